"""NViT: the square of the first-order change of the loss when all weights of a unit vanish."""

from torch import Tensor

from secateur.criteria.registry import Question, criterion


@criterion(
    "nvit",
    title="Squared group saliency (NViT)",
    source="NViT, CVPR 2023, arXiv 2110.04869",
    needs={
        "hidden": ("mlp_gates",),
        "qk": ("attention_gates",),
        "vo": ("attention_gates",),
        "heads": ("attention_gates",),
        "branch": ("attention_gates", "mlp_gates"),
    },
)
def nvit(question: Question) -> Tensor:
    """(sum over a unit's weights of w g)^2, g the gradient of the mean loss over all images.

    The sum over the weights that write from a unit, W[:, j], is the gradient with respect to a gate
    on the unit, since both are the sum over tokens of the unit's output times its gradient; so is
    the sum over the weights that read for a query, key or value dim.
    """
    gates = question.sums.get("mlp_gates") or question.sums["attention_gates"]
    return (gates[f"{question.group}_sum"] / question.images).square()
