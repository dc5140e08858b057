"""CORP's ranking: energy of a neuron times how often it is active; joint energy of q and k."""

from torch import Tensor

from secateur.criteria.registry import Question, criterion


@criterion(
    "active_energy",
    title="Active energy (CORP)",
    source="CORP, arXiv 2602.05243",
    needs={"hidden": ("hidden_activity",), "qk": ("logit_energies",)},
)
def active_energy(question: Question) -> Tensor:
    """E[x^2] P(|x| > eps) for neurons, E[q^2 k^2] at the same token for query/key dims.

    eps is 1 % of the root mean square of all neurons of the layer, per image.
    """
    if question.group == "qk":
        sums = question.sums["logit_energies"]
        return sums["product"] / sums["count"]
    sums = question.sums["hidden_activity"]
    return (sums["square"] / sums["count"]) * (sums["active"] / sums["count"])
