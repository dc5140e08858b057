"""The whole path from a dense model to a saved smaller one; one file per stage."""

from secateur.verbs.evaluate import evaluate
from secateur.verbs.inspect import Inspection, inspect
from secateur.verbs.load import load
from secateur.verbs.prune import prune
from secateur.verbs.result import Result

__all__ = ["Inspection", "Result", "evaluate", "inspect", "load", "prune"]
