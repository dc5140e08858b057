"""Prune a model: observe → weigh → plan → cut, in one call."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from secateur.anatomy.family import family_of
from secateur.data.batches import Batches, as_batches
from secateur.data.images import ImageSet, open_images
from secateur.data.preprocessing import Preprocessing
from secateur.evidence import Evidence, observe
from secateur.pipeline.decide import decide
from secateur.pipeline.options import Options, Task, parse_groups, resolve
from secateur.pipeline.result import DataUsed, Result
from secateur.pipeline.weigh import criteria_needs, plan_of, weigh
from secateur.presets import DEFAULT
from secateur.surgery.cut import cut_, repair_needs

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total)."""


def prune(
    model: nn.Module,
    images: object,
    budget: str,
    *,
    preset: str = DEFAULT,
    groups: Sequence[str] | None = None,
    protect: Sequence[str] = (),
    repair: str | None = None,
    allocation: str | None = None,
    align: dict[str, int] | None = None,
    minimum: dict[str, int] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Result:
    """Return a smaller copy of `model` within `budget`; the model given is left as it is.

    `images` are calibration images: a path or data string, a tensor (n, C, H, W), a dataset or a
    loader; they need no labels. See `secateur.planning.budget` for budgets. Everything that can
    be wrong with the request raises UserError before the pass over the images begins.
    """
    options = Options(
        budget=budget,
        preset=preset,
        groups=None if groups is None else parse_groups(groups),
        align=dict(zip(parse_groups(list(align or {})), (align or {}).values(), strict=True)),
        minimum=dict(zip(parse_groups(list(minimum or {})), (minimum or {}).values(), strict=True)),
        protect=tuple(protect),
        repair=repair,
        allocation=allocation,
        seed=seed,
        batch_size=batch_size,
    )
    return run(model, images, options, progress)


def run(
    model: nn.Module, images: object, options: Options, progress: Progress | None = None
) -> Result:
    """The same as `prune`, from options."""
    seconds: dict[str, float] = {}
    family = family_of(model)
    anatomy = family.read(model)
    task = resolve(options, anatomy)
    needs = criteria_needs(task) | repair_needs(task.preset.repair, set(task.groups))
    batches, data = open_batches(model, images, options.batch_size)
    with _timed(seconds, "observe"):
        evidence = _observe(model, batches, needs, progress)
    with _timed(seconds, "weigh"):
        weighed = weigh(model, family, anatomy, task, evidence)
    with _timed(seconds, "plan"):
        plan = plan_of(anatomy, weighed, decide(anatomy, weighed.menus, task))
    with _timed(seconds, "cut"):
        smaller = copy.deepcopy(model)
        cut_(smaller, plan, evidence, task.preset.repair)
    return Result(
        model=smaller.eval(),
        before=anatomy,
        after=family.read(smaller),
        plan=plan,
        menus=weighed.menus,
        task=task,
        data=data,
        seconds=seconds,
    )


def open_batches(model: nn.Module, images: object, batch_size: int) -> tuple[Batches, DataUsed]:
    """Batches of calibration images and where they came from."""
    if isinstance(images, str | Path):
        classes = int(getattr(model, "num_classes", 0)) or None
        images = open_images(images, Preprocessing.of(model), num_classes=classes)
    batches = as_batches(images, batch_size)
    if isinstance(images, ImageSet):
        return batches, DataUsed(
            source=images.source,
            images=len(images),
            fingerprint=images.fingerprint,
            unreadable=images.unreadable,
        )
    return batches, DataUsed(source=type(images).__name__, images=batches.images)


def _observe(
    model: nn.Module, batches: Batches, needs: set[str], progress: Progress | None
) -> Evidence:
    if not needs:
        return Evidence(images=0, tokens=0)

    def on_batch(done: int) -> None:
        if progress is not None:
            progress("observe", done, batches.images)

    return observe(model, batches, needs, on_batch=on_batch)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


__all__ = ["Options", "Progress", "Task", "prune", "run"]
