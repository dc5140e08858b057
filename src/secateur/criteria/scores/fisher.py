"""Diagonal Fisher information of a gate on every unit: half of it is the loss of closing one."""

from torch import Tensor

from secateur.criteria.registry import Question, criterion


@criterion(
    "fisher",
    title="Fisher information of a gate",
    source="Kwon et al., arXiv 2204.09656; SnapViT, NeurIPS 2025, arXiv 2510.17700",
    needs={
        "hidden": ("mlp_gates",),
        "qk": ("attention_gates",),
        "vo": ("attention_gates",),
        "heads": ("attention_gates",),
        "branch": ("attention_gates", "mlp_gates"),
    },
)
def fisher(question: Question) -> Tensor:
    """Mean over images of (dL/dgate)^2 / 2, L the cross-entropy of one image (nats)."""
    gates = question.sums.get("mlp_gates") or question.sums["attention_gates"]
    return gates[f"{question.group}_square"] / (2 * question.images)
