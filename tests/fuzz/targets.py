"""What is changed, how it is read, and when a reading counts as right."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from secateur.presets import load_preset
from secateur.recipes import load_recipe
from secateur.storage.load import load
from secateur.storage.saved import load_saved
from secateur.storage.spec import SPEC, WEIGHTS, checksum_of
from secateur.study.spec import read_study
from secateur.training import checkpoint
from secateur.training.heal_and_train import HealSettings
from secateur.training.settings import read_settings
from tests.fuzz.mutations import bytes_changed, text_changed, tree_changed

SAVED = Path(__file__).parent.parent / "fixtures" / "saved"
NAME = "test_vit"

STUDY = """title: A study
models:
  small: digits_vit
  large: {source: digits_vit, calibration: digits/train, mean: [0.5]}
calibration: {data: digits/train, limit: 64}
evaluation: {data: digits/test}
structures: [block, mlp]
scores: [cosine, taylor]
budgets: [80% macs, 3k params]
repair: [none, mean]
seeds: [0, 1]
latency: {runtime: eager, batch: 1, seconds: 0.5}
threads: 1
"""
SETTINGS = """epochs: 2.5
batch_size: 64
optimizer: {name: adamw, learning_rate: 3e-4, weight_decay: 0.05, clip: 1.0}
schedule:
  name: cosine
  warmup: 0.1
augment: {least_area: 0.5, flip: true, auto: rand-m9, mixup: 0.8, views: 4}
ema: 0.999
keep: best
seed: 1
trackers: [tensorboard]
distil:
  temperature: 2
"""
RECIPE = """title: By hand
width: 90%
heads: [3, 2, 2, 1]
qk: 50%
hidden: [10, 20, 0.5, 30]
drop: [blocks.1.mlp]
branches:
  blocks.0.attn: {qk: 4}
"""


@dataclass(frozen=True)
class Target:
    """One kind of file: `change` writes a changed copy, `use` reads it and checks what it got."""

    change: Callable[[random.Random], None]
    use: Callable[[], None]


def targets(folder: Path) -> dict[str, Target]:
    """All kinds, with whole files below `folder`."""
    torch.manual_seed(0)
    found = {
        "saved model, bytes": _saved_bytes(folder / "bytes"),
        "saved model, sealed anew": _saved_sealed(folder / "sealed"),
        "training checkpoint": _training(folder / "training"),
    }
    for suffix, how in ((".safetensors", None), (".pth", True), (".bin", False)):
        found[f"checkpoint{suffix}"] = _weights(folder / f"weights{suffix}", how)
    presets = files("secateur.presets")
    kinds: dict[str, tuple[str, Callable[[Path], object]]] = {
        "preset": ((presets / "isomorphic.yaml").read_text(), lambda p: load_preset(str(p))),
        "recipe": (RECIPE, lambda p: load_recipe(str(p))),
        "study": (STUDY, read_study),
        "settings": (SETTINGS, lambda p: read_settings(HealSettings, p)),
    }
    for name, (text, read) in kinds.items():
        found[name] = _text(folder / f"{name}.yaml", text, read)
    return found


def _text(path: Path, text: str, read: Callable[[Path], object]) -> Target:
    path.write_text(text)
    read(path)

    def change(rng: random.Random) -> None:
        path.write_bytes(text_changed(rng, text).encode("utf-8", "surrogatepass"))

    return Target(change, lambda: _drop(read(path)))


def _drop(found: object) -> None:
    """Texts have no right meaning to compare with."""
    repr(found)


def _weights(path: Path, zipped: bool | None) -> Target:
    """Such files have no checksum: whatever is read must fit, be finite and be floating-point."""
    sizes = {"num_classes": 7, "img_size": 32}
    state = timm.create_model(NAME, **sizes).state_dict()
    if zipped is None:
        save_file(dict(state), path)
    else:
        wrapped = {"state_dict": state, "epoch": 3}
        torch.save(wrapped, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()

    def use() -> None:
        found = load(f"timm:{NAME}", checkpoint=path, **sizes)  # type: ignore[arg-type]
        assert all(bool(p.isfinite().all()) for p in found.parameters())
        assert all(p.dtype == torch.float32 for p in found.parameters())

    use()
    return Target(lambda rng: _write(path, bytes_changed(rng, whole)), use)


def _training(folder: Path) -> Target:
    state: dict[str, Any] = {
        "identity": {"settings": {"seed": 0}, "images": "abc"},
        "step": 12,
        "weights": {"a": torch.randn(8, 8), "b": torch.randn(8).bfloat16()},
        "rows": [[1, 0.5], [2, 0.25]],
        "random": (torch.arange(20, dtype=torch.uint8), None, "x"),
    }
    checkpoint.write(folder, state)
    path = folder / checkpoint.FILE
    whole = path.read_bytes()

    def use() -> None:
        found = checkpoint.read(folder)
        assert found is not None
        assert checkpoint.pack(found, "", mine := {}) == checkpoint.pack(state, "", theirs := {})
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)

    use()
    return Target(lambda rng: _write(path, bytes_changed(rng, whole)), use)


def _copies(folder: Path) -> list[tuple[Path, dict[str, bytes], dict[str, torch.Tensor], Any]]:
    """Every recorded model: a place for copies, its files, its weights and its spec, sealed."""
    found = []
    for source in sorted(SAVED.iterdir()):
        here = Path(shutil.copytree(source, folder / source.name))
        spec = json.loads((here / SPEC).read_text())
        spec["checksum"] = checksum_of(spec)
        (here / SPEC).write_text(json.dumps(spec, indent=2))
        whole = {name: (here / name).read_bytes() for name in (SPEC, WEIGHTS)}
        found.append((here, whole, dict(load_saved(here).state_dict()), spec))
    return found


def _saved_bytes(folder: Path) -> Target:
    """Bytes of either file: refused, or the very same model."""
    copies = _copies(folder)
    now = {"which": 0}

    def change(rng: random.Random) -> None:
        now["which"] = rng.randrange(len(copies))
        here, whole, _, _ = copies[now["which"]]
        name = rng.choice((SPEC, WEIGHTS))
        for other, content in whole.items():
            (here / other).write_bytes(bytes_changed(rng, content) if other == name else content)

    def use() -> None:
        here, _, weights, spec = copies[now["which"]]
        model = load_saved(here)
        found = model.state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name]) for name in weights)
        assert json.loads((here / SPEC).read_text()) == spec

    return Target(change, use)


def _saved_sealed(folder: Path) -> Target:
    """Values of the spec or bytes of the weights, by someone who knows how checksums are made."""
    copies = _copies(folder)
    now = {"which": 0}

    def change(rng: random.Random) -> None:
        now["which"] = rng.randrange(len(copies))
        here, whole, _, spec = copies[now["which"]]
        weights = whole[WEIGHTS]
        if rng.random() < 0.25:
            weights = bytes_changed(rng, weights)
        else:
            spec = tree_changed(rng, spec)
        (here / WEIGHTS).write_bytes(weights)
        if isinstance(spec.get("weights"), dict) and weights is not whole[WEIGHTS]:
            about = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
            spec = {**spec, "weights": {**spec["weights"], **about}}
        spec = {**spec, "checksum": checksum_of(spec)}
        (here / SPEC).write_text(json.dumps(spec))

    def use() -> None:
        model = load_saved(copies[now["which"]][0])
        assert all(bool(p.isfinite().all()) for p in model.parameters())

    return Target(change, use)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
