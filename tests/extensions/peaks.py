"""A kind of statistics in one file: the largest activation of each neuron in each image, summed."""

from secateur.statistics.registry import Seen, Sums, add_, statistics_kind


@statistics_kind("peaks", scope="mlp", sites=("hidden",))
def peaks(sums: Sums, seen: Seen) -> None:
    """Sum over images of the largest activation over tokens: (F,)."""
    add_(sums, "peak", seen["hidden"].amax(1).sum(0))
