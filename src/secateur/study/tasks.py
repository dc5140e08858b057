"""What a cell asks of the pruning pipeline."""

from contextlib import suppress

from secateur.allocation.budget import parse_budget
from secateur.allocation.candidates import Limits
from secateur.errors import UserError
from secateur.methods.by_preset import method_of
from secateur.methods.checked import check
from secateur.methods.request import PruneRequest
from secateur.methods.task import Task, resolve
from secateur.models.host import Host
from secateur.presets import Preset
from secateur.study.cells import Cell, cells_of
from secateur.study.spec import Study
from secateur.study.structures import BY_NAME, OWN, SEARCHES, Structure
from secateur.surgery.replace import Replacement


def task_of(cell: Cell, host: Host) -> Task:
    """The task of a cell: that of `prune` for a preset, else of one score on one structure.

    Units go in equal shares from every layer, so that the score decides which and nothing else;
    whole layers go by the least score per cost saved.
    """
    if cell.structure == OWN:
        own = PruneRequest(cell.budget, preset=cell.score, seed=cell.seed)
        return resolve(check(own), host.anatomy)
    structure = BY_NAME[cell.structure]
    search = cell.score if cell.score in SEARCHES else "one_shot"
    preset = Preset.model_validate(
        {
            "name": cell.score,
            "title": cell.score,
            "source": "a cell of a study",
            "groups": (structure.group,),
            "criterion": "delta_kl" if search != "one_shot" else cell.score,
            "allocation": "ranking" if structure.whole else "uniform",
            "repair": cell.repair,
            "replacement": replacement_for(structure, cell.repair, host),
            "search": search,
        }
    )
    others = [b.id for b in host.anatomy.branches if structure.kind not in (None, b.kind)]
    return Task(
        request=PruneRequest(cell.budget, seed=cell.seed, effort="quick"),
        preset=preset,
        budget=parse_budget(cell.budget),
        groups=(structure.group,),
        limits=Limits(protect=tuple(others)),
    )


def replacement_for(structure: Structure, repair: str, host: Host) -> Replacement | None:
    """What stands in for dropped layers under a repair; the mean where no map can be folded."""
    if not structure.whole:
        return None
    if repair == "none":
        return "nothing"
    linear = all(map(host.writes_linearly, host.anatomy.branches))
    return "affine" if repair == "least_squares" and linear else "mean"


def needs_of_study(study: Study, host: Host) -> set[str]:
    """The statistics of the dense model that some cell of a study reads.

    What a cell that cannot work would need is left out: it says so when its turn comes.
    """
    needs: set[str] = set()
    for cell in cells_of(study):
        with suppress(UserError):
            task = task_of(cell, host)
            needs |= method_of(task).needs(task)
    return needs
