"""The whole path from a dense model to a saved smaller one; one file per stage."""

from secateur.pipeline.inspect import Inspection, inspect
from secateur.pipeline.measure import evaluate
from secateur.pipeline.opening import load
from secateur.pipeline.prune import prune
from secateur.pipeline.result import Result

__all__ = ["Inspection", "Result", "evaluate", "inspect", "load", "prune"]
