"""What the benchmark scripts share: model, images, forward passes as the unit of time, a store.

Costs are processor time of this process, set against that of forward passes in the same process:
on a machine that does other work as well, that says more than the clock on the wall.

Every script keeps what it measured, cell by cell, in benchmarks/out/NAME.jsonl, and does not
measure a finished cell again; delete the file to start afresh.
"""

import argparse
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import secateur
from secateur.errors import UserError
from secateur.measurement.accuracy import paired_difference, predict, summarize
from secateur.measurement.counting import counted
from secateur.models.family import read
from secateur.verbs.load import open_data

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "results"
INPUT = (3, 224, 224)
FINAL = ("ok", "unreachable", "unsupported")
"""States of a cell that measuring again would not change."""
Row = dict[str, Any]
Pairs = list[tuple[Tensor, Tensor]]


def parser(about: str) -> argparse.ArgumentParser:
    """The arguments that all scripts take."""
    given = argparse.ArgumentParser(description=about)
    given.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared")
    given.add_argument("--images", type=int, default=512, help="calibration images")
    given.add_argument("--limit-eval", type=int, help="validation images (default: all)")
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--threads", type=int, default=1)
    given.add_argument("--report", action="store_true", help="only write the page from the store")
    return given


class Bench:
    """The dense model and its images, each opened when first used and decoded once."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        self.shared: Path = args.shared
        self.images: int = args.images
        self.limit_eval: int | None = args.limit_eval
        self.seed: int = args.seed
        self.threads: int = args.threads

    @property
    def calibration_path(self) -> Path | str:
        return self.shared / "data" / "imagenet_calibration"

    @property
    def validation_path(self) -> Path | str:
        return self.shared / "data" / "imagenet_val_dev"

    def load(self) -> nn.Module:
        """ViT-Tiny as published."""
        file = self.shared / "models" / "vit_tiny_patch16_224.safetensors"
        if not file.is_file():
            raise SystemExit(f"no weights at {file}: say with --shared where models/ and data/ are")
        return secateur.load("timm:vit_tiny_patch16_224", checkpoint=file, mean=0.5, std=0.5)

    @cached_property
    def model(self) -> nn.Module:
        return self.load()

    @cached_property
    def calibration(self) -> Pairs:
        return self._decoded(self.calibration_path, self.images)

    @cached_property
    def validation(self) -> Pairs:
        return self._decoded(self.validation_path, self.limit_eval)

    @cached_property
    def dense(self) -> Row:
        """Accuracy, parameters and MACs of the dense model."""
        found = predict(self.model, self.validation)
        cost = counted(self.model, read(self.model).input_size)
        return {
            **summarize(found).to_json(),
            "macs": cost.macs,
            "params": cost.params,
            "correct": _bits(found.correct_N),
        }

    @cached_property
    def _dense_logits(self) -> list[Tensor]:
        file = HERE / "out" / f"dense_logits_{self.limit_eval or 'all'}_seed{self.seed}.pt"
        if file.is_file():
            known: list[Tensor] = torch.load(file, weights_only=True)
            return known
        model, batches = self.model, self.validation
        with torch.inference_mode():
            logits = [model(images_BCHW) for images_BCHW, _ in batches]
        file.parent.mkdir(exist_ok=True)
        torch.save([part.clone() for part in logits], file)
        return logits

    def told(self) -> nn.Module:
        """A module that gives the dense logits of the validation images, batch by batch."""
        return Told(self._dense_logits)

    def forward_cost(self) -> float:
        """Seconds of one forward pass of the dense model over the calibration images."""
        # WHY: what is first opened in inference mode could not be differentiated later.
        model, batches = self.model, self.calibration
        with torch.inference_mode():
            model(batches[0][0])
            start = time.process_time()
            for images_BCHW, _ in batches:
                model(images_BCHW)
            return time.process_time() - start

    def measure(self, make: Callable[[], nn.Module], begun: float = 0.0) -> Row:
        """Make a model, timed between two forward passes over the same images, and score it.

        `begun` are seconds spent before on what several models share; each is charged them all.
        """
        before = self.forward_cost()
        start = time.process_time()
        model = make()
        seconds = begun + time.process_time() - start
        forward = (before + self.forward_cost()) / 2
        cost = counted(model, read(model).input_size)
        return {
            "macs": cost.macs / self.dense["macs"],
            "params": cost.params / self.dense["params"],
            **self.scored(model),
            "seconds": seconds,
            "forward_seconds": forward,
            "passes": seconds / forward,
        }

    def scored(self, model: nn.Module) -> Row:
        """Accuracy of a model, and how near it is to the dense one."""
        found = predict(model, self.validation, reference=self.told())
        scores = summarize(found)
        return {
            "top1": scores.top1,
            "stderr": scores.stderr,
            "agreement": scores.agreement,
            "kl": scores.kl,
            "correct": _bits(found.correct_N),
            **self.setting(),
        }

    def setting(self) -> Row:
        """What a row holds for."""
        return {
            "n_calibration": self.images,
            "n_eval": sum(len(labels) for _, labels in self.validation),
            "seed": self.seed,
            "threads": self.threads,
        }

    def _decoded(self, path: Path | str, limit: int | None) -> Pairs:
        batches, _ = open_data(self.model, path, limit=limit, seed=self.seed)
        pairs = [(b.images_BCHW, b.labels_B) for b in batches if b.labels_B is not None]
        if not pairs:
            raise SystemExit(f"the images of {path} have no labels")
        return pairs


class DigitsBench(Bench):
    """The same with the bundled digits model, which is small enough for any machine."""

    @property
    def calibration_path(self) -> Path | str:
        return "digits/train"

    @property
    def validation_path(self) -> Path | str:
        return "digits/test"

    def load(self) -> nn.Module:
        return secateur.load("digits_vit")


class Told(nn.Module):
    """Gives the next of some known logits at each call, to save running the dense model again."""

    def __init__(self, logits: Sequence[Tensor]) -> None:
        super().__init__()
        self._rest = iter(logits)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return next(self._rest)


class Store:
    """Rows by cell, appended to a file as JSON lines; of one cell the last row counts."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.path = HERE / "out" / f"{name}.jsonl"
        self.suffix = f"n{args.images}/eval{args.limit_eval or 'all'}/seed{args.seed}"
        self.rows: dict[str, Row] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row: Row = json.loads(line)
                self.rows[row["cell"]] = row

    def get(self, *names: str) -> Row | None:
        """The row of a cell under the present settings."""
        return self.rows.get(self._cell(names))

    def run(self, names: tuple[str, ...], make: Callable[[], Row], **about: object) -> Row:
        """The stored row of a cell, or a new one; a failure becomes a row with its reason."""
        cell = self._cell(names)
        known = self.rows.get(cell)
        if known is not None and known["status"] in FINAL:
            return known
        print(f"{cell} ...", end=" ", flush=True)
        try:
            row: Row = {"status": "ok", **make()}
        except UserError as error:
            reason = str(error)
            status = "unreachable" if "out of reach" in reason else "unsupported"
            row = {"status": status, "reason": reason}
        except Exception as error:  # one broken method must not stop the others
            traceback.print_exc()
            row = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        row = {"cell": cell, **about, **row}
        print(_brief(row), flush=True)
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[cell] = row
        return row

    def _cell(self, names: Iterable[str]) -> str:
        return "/".join([*names, self.suffix])


def difference(a: Row, b: Row) -> tuple[float, float]:
    """Top-1 of row a minus that of row b on the same images, and its standard error, in points."""
    return paired_difference(_tensor(a["correct"]), _tensor(b["correct"]))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def top1(row: Row | None) -> str:
    """Top-1 and its standard error, or why there is none."""
    if row is None:
        return "not run"
    if row["status"] != "ok":
        return str(row["status"])
    return f"{row['top1']:.1f} ± {row['stderr']:.1f}"


def versions(*packages: str) -> str:
    """Versions and machine, for the foot of a page."""
    known = [f"Python {platform.python_version()}"]
    for name in ("secateur", "torch", "timm", *packages):
        try:
            known.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            known.append(f"{name} not installed")
    return ", ".join(known) + f"; {platform.system()} {platform.machine()}"


def command(script: str, args: argparse.Namespace) -> str:
    """The command that measures what a page shows."""
    words = [f"--images {args.images}", f"--seed {args.seed}", f"--threads {args.threads}"]
    if args.limit_eval:
        words.append(f"--limit-eval {args.limit_eval}")
    return f"python benchmarks/{script}.py {' '.join(words)}"


def write_page(name: str, text: str) -> None:
    """Write docs/results/NAME.md whole."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    fresh = RESULTS / f".{name}.md"
    fresh.write_text(text.rstrip() + "\n", encoding="utf-8")
    fresh.replace(RESULTS / f"{name}.md")
    print(f"wrote docs/results/{name}.md")


def _bits(correct_N: Tensor | None) -> str:
    return "" if correct_N is None else "".join(str(int(hit)) for hit in correct_N)


def _tensor(bits: str) -> Tensor:
    return torch.tensor([bit == "1" for bit in bits])


def _brief(row: Row) -> str:
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    words = [f"top-1 {top1(row)}"] if "top1" in row else []
    words += [f"{row['passes']:.1f} passes"] if "passes" in row else []
    return ", ".join(words) or "done"
