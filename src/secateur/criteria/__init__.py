"""What a unit, a head or a whole branch is worth; one file per criterion."""

from secateur.criteria.registry import Criterion, criteria, criterion, score

__all__ = ["Criterion", "criteria", "criterion", "score"]
