"""Whatever mode torch is in around a call, each verb gives the same, and leaves the mode."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.masks.settings import LearnSettings
from secateur.training.heal_and_train import FineTuneSettings, HealSettings
from secateur.training.settings import TrainSettings
from tests.hosts import build, images_for


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default_device": lambda: default_device("meta"),
    "device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
}


def settings(kind: type[TrainSettings]) -> Any:
    return kind(epochs=1, batch_size=8)


def saved(model: nn.Module, out: Path) -> nn.Module:
    secateur.save(model, out)
    return secateur.load(out)


VERBS: dict[str, Callable[[nn.Module, Tensor, Tensor, Path], object]] = {
    "load": lambda m, x, y, out: secateur.load("digits_vit"),
    "inspect": lambda m, x, y, out: secateur.inspect(m).macs,
    "prune": lambda m, x, y, out: secateur.prune(m, x, "75% macs"),
    "prune_by_gradients": lambda m, x, y, out: secateur.prune(m, x, "75% macs", preset="taylor"),
    "polish": lambda m, x, y, out: secateur.prune(m, x, "75% macs", polish="1 step"),
    "evaluate": lambda m, x, y, out: secateur.evaluate(m, (x, y), reference=m),
    "analyze": lambda m, x, y, out: secateur.analyze(m, x, latency=False).record["layers"],
    "heal": lambda m, x, y, out: secateur.heal(
        m, x, reference=build("vit"), settings=settings(HealSettings)
    ),
    "train": lambda m, x, y, out: secateur.train(m, (x, y), settings=settings(FineTuneSettings)),
    "learn": lambda m, x, y, out: secateur.learn(
        m, (x, y), "60% params", settings=LearnSettings(steps=4, batch_size=8, held_out=0.25)
    ),
    "save": lambda m, x, y, out: saved(m, out),
}


def modes() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        str(torch.get_default_device()),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
    )


def seen() -> tuple[Tensor, Tensor]:
    """Images and labels."""
    return images_for(build("vit"), 16), torch.arange(16) % 10


def numbers(found: object) -> object:
    """What a verb gives: the weights where that is a model."""
    model = found if isinstance(found, nn.Module) else getattr(found, "model", None)
    return model.state_dict() if isinstance(model, nn.Module) else found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("expected")
    return {verb: numbers(run(build("vit"), *seen(), folder / verb)) for verb, run in VERBS.items()}


@pytest.mark.parametrize("mode", MODES)
def test_every_verb_gives_the_same(mode: str, expected: dict[str, object], tmp_path: Path) -> None:
    x, y = seen()
    for verb, run in VERBS.items():
        fresh = build("vit")
        with MODES[mode]():
            before = modes()
            found = run(fresh, x, y, tmp_path / verb)
            assert modes() == before, verb
        wanted, got = expected[verb], numbers(found)
        if isinstance(wanted, dict) and isinstance(got, dict) and "head.weight" in wanted:
            assert list(got) == list(wanted), verb
            assert all(torch.equal(got[key], wanted[key]) for key in wanted), verb
        else:
            assert got == wanted, verb
