"""Which method carries out a task: the one door from a preset to its way of pruning."""

from typing import Any

from secateur.methods.by_score import ByScore
from secateur.methods.layer_search.search import LayerSearch
from secateur.methods.merging import ConstantMerging
from secateur.methods.method import Method
from secateur.methods.rotated import Rotated
from secateur.methods.spectral import Spectral
from secateur.methods.tail import TailOnly
from secateur.methods.task import Task
from secateur.methods.two_stage import TwoStage, is_staged


def method_of(task: Task) -> Method[Any]:
    """The method of the task's preset under its budget."""
    inner = _unrotated(task)
    return Rotated(inner) if task.preset.rotate and task.groups else inner


def _unrotated(task: Task) -> Method[Any]:
    if not task.groups:
        return TailOnly()
    if task.preset.method == "merging":
        return ConstantMerging()
    if is_staged(task):
        return TwoStage(ByScore())
    if task.preset.search != "one_shot":
        return LayerSearch()
    return Spectral() if task.preset.method == "spectral" else ByScore()
