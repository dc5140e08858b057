"""A file is given out only if what it computes is what the model computes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.measurement.modes import example_images
from secateur.measurement.runtimes import Run
from secateur.models.caches import evaluating
from secateur.models.outputs import outputs_of
from secateur.storage.directories.existing import saved_on
from secateur.whole import complete_file, sweep, writing

IMAGES = 3
"""Another number than any that graphs are traced with."""

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference, as a share of the largest output; 1e-4 for the types not named."""

BESIDE = {".xml": (".bin",)}
"""Endings of the further files of a target, by the ending of the one that is named."""

Write = Callable[[nn.Module, Tensor, Path], bool]
"""Writes a model to a file and returns whether that takes any number of images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far a file's outputs are from the model's on random images.

    `max_abs` is the largest difference, `max_rel` its share of the model's largest output;
    `any_batch` says whether the file takes any number of images or only one.
    """

    path: str
    max_abs: float
    max_rel: float
    images: int
    any_batch: bool

    def to_json(self) -> dict[str, str | float | int | bool]:
        """The fields by name."""
        return asdict(self)


def written(
    model: nn.Module,
    out: Path,
    input_size: tuple[int, int, int],
    *,
    suffix: str,
    write: Write,
    load: Callable[[Path], Run],
) -> Parity:
    """Write `model` to `out`, load the file again and compare; keep it only if it agrees."""
    images_BCHW = example_images(model, input_size, IMAGES)
    with _whole(out, suffix) as unfinished:
        if not _outputs(model, images_BCHW[:1]).isfinite().all():
            raise UserError(
                f"the model's outputs are not finite, so {out} was not written; check its weights."
            )
        any_batch = write(model, images_BCHW[:1], unfinished)
        count = IMAGES if any_batch else 1
        expected_BC = _outputs(model, images_BCHW[:count])
        with torch.inference_mode():
            got_BC = load(unfinished)(images_BCHW[:count]).cpu().double()
        max_abs = (got_BC - expected_BC).abs().max().item()
        max_rel = max_abs / max(expected_BC.abs().max().item(), torch.finfo(torch.float32).tiny)
        # WHY negated: a NaN is no agreement either.
        if not max_rel <= TOLERANCE.get(images_BCHW.dtype, 1e-4):
            raise RuntimeError(
                f"the exported file's outputs differ from the model's by {max_abs:.3g} "
                f"({max_rel:.2%} of the largest), so {out} was not written."
            )
    return Parity(
        path=str(out), max_abs=max_abs, max_rel=max_rel, images=count, any_batch=any_batch
    )


def _outputs(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Logits in fp64 on the CPU."""
    with evaluating(model), torch.inference_mode():
        return outputs_of(model(images_BCHW)).cpu().double()


def check_file(out: Path, *, overwrite: bool) -> str | None:
    """Refuse, before any long work, a file that is there, or one of those written beside it.

    With `overwrite` it is returned in words. Completes and removes what killed runs left.
    """
    if not out.parent.is_dir():
        return None
    try:
        complete_file(out)
    except OSError as error:
        raise _refusal(out, error) from error
    sweep(out)
    beside = [out.with_suffix(suffix) for suffix in BESIDE.get(out.suffix, ())]
    present = [path for path in (out, *beside) if path.exists()]
    if not present or out.is_dir():
        return None
    told = f"{present[0]}, {saved_on(present[0])}"
    if not overwrite:
        raise UserError(
            f"there is a file {told}; name another file, or replace it with --overwrite "
            "(overwrite=True in Python)."
        )
    return told


@contextmanager
def _whole(out: Path, suffix: str) -> Iterator[Path]:
    """A path to write to; the file, with any beside it, takes its place when all went well."""
    if out.suffix != suffix:
        raise UserError(f"the file to export to, {out}, must end in '{suffix}'; rename it.")
    if out.is_dir():
        raise UserError(f"cannot export to {out}: it is a folder; name a file.")
    if not out.parent.is_dir():
        raise UserError(f"cannot export to {out}: there is no folder {out.parent}; create it.")
    try:
        with writing(out) as unfinished:
            yield unfinished
    except OSError as error:
        raise _refusal(out, error) from error


def _refusal(out: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {out}: {error.strerror or error}; free the disk or choose another place."
    )
