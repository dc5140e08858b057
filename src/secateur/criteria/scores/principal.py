"""How much of the stream a channel carries, as norms see it.

Legend: D residual width.
"""

from pydantic import BaseModel
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.errors import UserError
from secateur.models.types import Anatomy, GroupName


def check_one_stream(_settings: BaseModel | None, anatomy: Anatomy, group: GroupName) -> None:
    """Refuse models with a stream per stage: what is seen of streams knows one only."""
    if group == "width" and len(anatomy.streams) > 1:
        raise UserError(
            "criterion 'principal' looks at one stream through the whole model, and this model has "
            "one per stage; score 'width' by another criterion, such as magnitude."
        )


@criterion(
    "principal",
    title="Energy of the stream's channels",
    source="SliceGPT, ICLR 2024, arXiv 2401.15024",
    needs={"width": ("stream_gram",)},
    check=check_one_stream,
)
def principal(question: Question) -> Tensor:
    """Mean square of each channel (D,) where every token is scaled to mean square 1.

    In a stream that was rotated onto its principal components these are their eigenvalues.
    """
    sums = question.sums["stream_gram"]
    energy_D: Tensor = sums["gram"].diagonal() / sums["count"]
    return energy_D
