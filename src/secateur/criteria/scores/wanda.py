"""Weight times activation, summed over what the writer makes of a unit.

Legend: D residual width, H heads, V value dims, F hidden neurons, U units a writer reads.
"""

from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.criteria.scores.energy import by_group, energy_of, written
from secateur.models.weights import AttentionWeights, MlpWeights


@criterion(
    "wanda",
    title="Weight times activation (Wanda-sp)",
    source="Wanda, arXiv 2306.11695; structured as in FLAP, AAAI 2024, arXiv 2312.11983",
    needs={
        "hidden": ("hidden_energies",),
        "vo": ("context_energies",),
        "heads": ("context_energies",),
    },
)
def wanda(question: Question) -> Tensor:
    """mean_i |W_ij| sqrt(E[x_j^2]), summed over the dims of a head for `heads`."""
    weights = question.weights
    if isinstance(weights, MlpWeights):
        w_DU = weights.w2_DF
    else:
        assert isinstance(weights, AttentionWeights)
        w_DU = weights.o_DHV.flatten(1)
    length_U = energy_of(written(question)).sqrt()
    return by_group(question, w_DU.double().abs().mean(0) * length_U)
