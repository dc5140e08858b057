"""No way of pruning hands over a model above its budget, whatever made it larger than planned."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.allocation.budget import parse_budget
from secateur.cli import app
from secateur.errors import UserError
from secateur.masks import phases
from secateur.masks.settings import LearnSettings
from secateur.measurement.counting import counted, counted_anywhere
from secateur.measurement.within import OverBudgetError, require_within
from secateur.methods import cutting, spectral
from secateur.methods.method import Job
from secateur.models.caches import own_
from secateur.models.family import family_of, read
from secateur.training.settings import OptimizerSettings
from tests.hosts import HOSTS, build, images_for, shared, vit

PRESETS = (
    *("energy", "magnitude", "layer_drop", "greedy_drop"),
    *("nbl", "snp+block", "slicegpt", "spectral"),
)
PRUNE = importlib.import_module("secateur.verbs.prune")


@pytest.mark.parametrize("budget", ["85% macs", "85% params", "0.9 MMACs"])
@pytest.mark.parametrize(
    "preset",
    [
        "energy",
        "magnitude",
        "layer_drop",
        "greedy_drop",
        "nbl",
        "snp+block",
        "slicegpt",
        "spectral",
    ],
)
def test_a_cut_that_removes_nothing(
    preset: str, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uncut_(smaller: nn.Module, dense: Job, *_: object, **__: object) -> None:
        own_(smaller, dense.model)

    monkeypatch.setattr(cutting, "cut_", lambda *_: None)
    monkeypatch.setattr(spectral, "cut_spectral_", uncut_)
    model = vit().eval()
    if budget == "0.9 MMACs":
        budget = f"{0.85 * read(model).cost().macs:.0f} macs"
    with pytest.raises(
        OverBudgetError, match=r"the cut model has [\d,]+ .*more than the [\d,]+ of"
    ):
        images = images_for(model, 64)
        secateur.prune(model, images, budget, preset=preset, effort="quick", exact_tail=False)


def test_a_polish_that_adds_something(monkeypatch: pytest.MonkeyPatch) -> None:
    def polish_(smaller: nn.Module, *_: object, **__: object) -> None:
        smaller.extra = nn.Parameter(torch.zeros(10_000))

    monkeypatch.setattr(PRUNE, "polish_", polish_)
    monkeypatch.setattr(PRUNE, "polish_note", str)
    model = vit().eval()
    with pytest.raises(OverBudgetError, match="parameters"):
        secateur.prune(
            model, images_for(model, 64), "85% params", preset="energy", polish="1 steps"
        )


def test_masks_that_removed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    remove = phases.remove

    def kept(model: nn.Module, masks: object, limits: object) -> tuple[nn.Module, object]:
        return model, remove(model, masks, limits)[1]  # type: ignore[arg-type]

    monkeypatch.setattr(phases, "remove", kept)
    model = vit().eval()
    settings = LearnSettings(
        steps=1, search_share=0.0, refit=False, optimizer=OptimizerSettings(learning_rate=1e-9)
    )
    with pytest.raises(OverBudgetError):
        secateur.learn(model, images_for(model, 16), "85% params", settings=settings)


def test_nothing_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "cut_", lambda *_: None)
    told = ["prune", "digits_vit", "--data", "digits/train", "--limit", "32", "--preset", "energy"]
    out = tmp_path / "small"
    ended = CliRunner().invoke(app, [*told, "--budget", "50% macs", "--out", str(out)])
    assert ended.exit_code == 2
    assert "not handed over" in ended.stderr
    assert not out.exists()


def test_the_limit_itself_is_within() -> None:
    model = vit().eval()
    anatomy = read(model)
    for unit, amount in (("params", anatomy.cost().params), ("macs", anatomy.cost().macs)):
        require_within(model, anatomy, parse_budget(f"{amount} {unit}"), "all")
        require_within(model, anatomy, parse_budget(f"100% {unit}"), "all")
        with pytest.raises(
            OverBudgetError, match=f"{amount:,} .* the {amount - 1:,} of budget 'x'"
        ):
            require_within(model, anatomy, parse_budget(f"{amount - 1} {unit}"), "x")
    for budget in ("50% hidden", "drop 1 blocks", "1 ms"):
        require_within(model, anatomy, parse_budget(budget), budget)
    assert issubclass(OverBudgetError, UserError)


@pytest.mark.parametrize("name", HOSTS)
def test_counting_shapes_is_counting(name: str) -> None:
    model = build(name)
    size = family_of(model).read(model).input_size
    x = images_for(model, 2)
    before = model(x).detach()
    assert counted_anywhere(model, size) == counted(model, size)
    assert torch.equal(model(x), before)


def test_a_model_that_looks_at_numbers_is_run() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = shared("vit")

        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.own(x_BCHW)
            return out if float(out.sum()) > float("-inf") else -out

    assert counted_anywhere(Looks(), (3, 32, 32)) == counted(shared("vit"), (3, 32, 32))
