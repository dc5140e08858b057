"""First-order Taylor importance: how much the loss moves when a unit's gate closes."""

from torch import Tensor

from secateur.criteria.registry import Question, criterion


@criterion(
    "taylor",
    title="First-order Taylor",
    source="Molchanov et al., CVPR 2019, arXiv 1906.10771",
    needs={
        "hidden": ("mlp_gates",),
        "qk": ("attention_gates",),
        "vo": ("attention_gates",),
        "heads": ("attention_gates",),
        "branch": ("attention_gates", "mlp_gates"),
    },
)
def taylor(question: Question) -> Tensor:
    """Mean over images of |dL/dgate|, L the cross-entropy of one image (nats)."""
    gates = question.sums.get("mlp_gates") or question.sums["attention_gates"]
    return gates[f"{question.group}_abs"] / question.images
