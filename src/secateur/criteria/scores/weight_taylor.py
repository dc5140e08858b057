"""LLM-Pruner's Taylor scores, from gradients of weights rather than of activations.

Summed over all weights of a unit: rows that read for it and columns that write from it.
Legend: H heads, K query/key dims, V value dims, F hidden neurons, D residual width.
"""

from collections.abc import Callable

from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.models.types import GroupName
from secateur.statistics.kinds.gradients import parts

SOURCE = "LLM-Pruner, NeurIPS 2023, arXiv 2305.11627"
NEEDS: dict[GroupName, tuple[str, ...]] = dict.fromkeys(
    ("hidden", "qk", "vo", "heads"), ("weight_gradients",)
)
USED: dict[GroupName, tuple[str, ...]] = {
    "qk": ("q", "k"),
    "vo": ("v", "o"),
    "heads": ("q", "k", "v", "o"),
}
Salience = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called as salience(weight, mean gradient, mean squared gradient), element by element."""


def _salience(question: Question, of_element: Salience) -> Tensor:
    """The salience of every element summed over D: (F,), (H, K), (H, V), or (H,) for heads."""
    assert question.weights is not None
    sums = question.sums["weight_gradients"]
    matrices = {name: matrix.double() for name, matrix in parts(question.weights).items()}
    total: Tensor | None = None
    for name in USED.get(question.group, tuple(matrices)):
        gradient = sums[name].double() / sums["images"]
        square = sums[f"{name}_square"].double() / sums["images"]
        own = of_element(matrices[name], gradient, square).sum(-1)
        if question.group == "heads":
            own = own.sum(-1)
        total = own if total is None else total + own
    assert total is not None
    return total


@criterion("taylor_element", title="Taylor, element by element", source=SOURCE, needs=NEEDS)
def taylor_element(question: Question) -> Tensor:
    """sum |w g|, g the gradient of the mean loss."""
    return _salience(question, lambda w, g, _h: (w * g).abs())


@criterion("taylor_vector", title="Taylor, whole vectors", source=SOURCE, needs=NEEDS)
def taylor_vector(question: Question) -> Tensor:
    """|sum w g|: elements may cancel."""
    return _salience(question, lambda w, g, _h: w * g).abs()


@criterion("taylor_second", title="Taylor of second order", source=SOURCE, needs=NEEDS)
def taylor_second(question: Question) -> Tensor:
    """sum |w g - w^2 h / 2|, h the mean over images of the squared gradient."""
    return _salience(question, lambda w, g, h: (w * g - w.square() * h / 2).abs())
