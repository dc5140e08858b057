"""Cut a copy of the dense model to a plan, with the repair and replacement of the preset."""

from torch import nn

from secateur.allocation.types import Plan
from secateur.methods.method import Job
from secateur.models.caches import copy_of
from secateur.statistics import Statistics
from secateur.surgery.cut import cut_
from secateur.surgery.replace import gaps_of, runs_of


def cut_copy(job: Job, statistics: Statistics, plan: Plan) -> nn.Module:
    """A copy of the job's model within the plan; replacements of layers look at the images."""
    preset = job.task.preset
    smaller = copy_of(job.model)
    with job.timed("cut"):
        anchors = {}
        if preset.replacement == "affine":
            anchors = job.images.anchors(job.model, runs_of(job.anatomy, plan.shapes))
        elif preset.replacement == "linear":
            anchors = job.images.gaps(job.model, gaps_of(job.anatomy, plan.shapes))
        cut_(smaller, plan, statistics, preset.repair, preset.replacement, anchors)
    return smaller
