"""The whole path: observe, weigh, plan, cut, measure; one file per stage that ties rooms together."""

from secateur.pipeline.prune import prune
from secateur.pipeline.result import Result

__all__ = ["Result", "prune"]
