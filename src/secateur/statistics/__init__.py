"""What one streaming pass over calibration images leaves behind: sums, never activations."""

from secateur.statistics.observe import Statistics, observe
from secateur.statistics.registry import StatisticsKind, Sums, statistics_kinds

__all__ = ["Statistics", "StatisticsKind", "Sums", "observe", "statistics_kinds"]
