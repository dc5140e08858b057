"""Win back by training what a cut cost, with the dense model as the teacher."""

from secateur.healing.budget import PolishBudget, parse_polish
from secateur.healing.polish import PolishReport, PolishSettings, polish_

__all__ = ["PolishBudget", "PolishReport", "PolishSettings", "parse_polish", "polish_"]
