"""What is tried on each architecture of the support matrix; every answer is a state and a reason.

`pass`; `refused`, with the sentence of the UserError; `fails`, with any other exception.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from _support_architectures import ARCHITECTURES
from readme_tables import groups, reason_against
from torch import Tensor, nn

import secateur
from secateur.allocation.target import check_reachable
from secateur.errors import UserError
from secateur.export import export
from secateur.masks.settings import LearnSettings
from secateur.measurement.counting import counted
from secateur.methods.checked import check
from secateur.methods.request import PruneRequest
from secateur.methods.task import resolve
from secateur.models.caches import observable
from secateur.models.family import family_of, read
from secateur.models.outputs import outputs_of
from secateur.models.walk_check import require_walk
from secateur.surgery.cut import cut_
from secateur.training.heal_and_train import HealSettings
from tests.contract.cases import UNIT_GROUPS, masked, offered, plan_for
from tests.hosts import images_for, settled

Answer = dict[str, str]
IMAGES = 8
TOLERANCE = 1e-5
SHARES = (0.7, 0.9)
FINE = dict.fromkeys(("qk", "vo", "heads", "hidden", "width"), 1)
ANY: dict[str, Any] = {"align": FINE, "minimum": FINE, "exact_tail": False}
"""Tiny models have tiny layers; units alone are to meet the budget."""
STEPS: dict[str, Any] = {"steps": 2, "batch_size": 4, "held_out": 0.0}
PLANS = (*UNIT_GROUPS, "first block", "everything", "width", "everything and width")
SENTENCE = 400
"""Characters of a reason that are kept."""


class Trial:
    """One architecture with all that is tried on it, each model made when it is first needed."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.given, self.model, self.folder = model, observable(model), folder
        self.anatomy = read(self.model)
        self.images = images_for(self.model, IMAGES)
        classes = self.anatomy.num_classes
        self.data: object = (
            (self.images, torch.arange(IMAGES) % classes) if classes else self.images
        )

    @cached_property
    def pruned(self) -> secateur.Result:
        """The result of `prune`, which most other checks continue from."""
        return self._pruned("energy", self.share)

    @cached_property
    def share(self) -> float:
        """The part of the MACs that stays; more where few groups can be pruned."""
        asked = {"preset": "energy", **ANY}
        for share in SHARES:
            task = resolve(check(PruneRequest(budget=f"{share:.0%} macs", **asked)), self.anatomy)
            with suppress(UserError):
                check_reachable(self.anatomy, task.demand)
                return share
        return SHARES[-1]

    def walk(self) -> None:
        """The walk through the steps of a model is its forward pass."""
        require_walk(self.model)

    @torch.no_grad()
    def cut(self) -> None:
        """Cut models compute what the dense one computes with the same units held at zero."""
        for group in PLANS:
            if not offered(self.anatomy, group):
                continue
            plan, smaller = plan_for(self.anatomy, group), copy.deepcopy(self.model)
            with masked(self.model, plan):
                expected = outputs_of(self.model(self.images))
            cut_(smaller, plan, None, "none")
            apart = (outputs_of(smaller(self.images)) - expected).abs().max().item()
            assert apart <= TOLERANCE * max(1.0, expected.abs().max().item()), (
                f"'{group}': the outputs of the cut and of the masked model differ by {apart:.2g}"
            )

    def prune(self) -> None:
        """Within the budget, with the cost that was predicted."""
        self._within(self.pruned.model, self.share)
        assert self.pruned.after.shapes != self.pruned.before.shapes, "nothing was removed"

    def rotate(self) -> None:
        """The stream turned to its principal components, the smallest removed."""
        result = secateur.prune(self.given, self.images, "80% macs", preset="slicegpt", **ANY)
        self._within(result.model, 0.8)

    def learn(self) -> None:
        """Two steps: one with masks, one of fine-tuning."""
        settings = LearnSettings(**STEPS, search_share=0.5, observe=IMAGES)
        budget = f"{self.share:.0%} macs"
        learned = secateur.learn(self.given, self.data, budget, settings=settings, **ANY)
        self._within(learned.model, self.share)

    def heal(self) -> None:
        """Two steps towards the dense outputs."""
        healed = secateur.heal(
            self.pruned, self.images, reference=self.given, settings=HealSettings(**STEPS)
        )
        assert self._outputs(healed.model).isfinite().all(), "its outputs are not finite"
        moved = self._outputs(healed.model) - self._outputs(self.pruned.model)
        assert moved.abs().max() > 0, "training changed nothing"

    def save(self) -> None:
        """The loaded model gives the outputs of the saved one."""
        self.pruned.save(self.folder / "saved")
        again = secateur.load(self.folder / "saved")
        expected = self._outputs(self.pruned.model)
        apart = (self._outputs(again) - expected).abs().max().item()
        assert apart <= 1e-6 * expected.abs().max().item(), (
            f"the outputs of the loaded model differ by {apart:.2g}"
        )

    def onnx(self) -> None:
        """The exported file agrees with the model, or it is not written."""
        export(self.pruned.model, "onnx", self.folder / "pruned.onnx")

    def _pruned(self, preset: str, share: float) -> secateur.Result:
        budget = f"{share:.0%} macs"
        return secateur.prune(self.given, self.images, budget, preset=preset, **ANY)

    def _within(self, model: nn.Module, share: float) -> None:
        found = counted(model, self.anatomy.input_size)
        assert found.macs <= share * self.anatomy.cost().macs, "the budget is exceeded"
        assert read(model).cost() == found, "the predicted cost is not the counted one"
        assert self._outputs(model).isfinite().all(), "its outputs are not finite"

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> Tensor:
        return outputs_of(model.eval()(self.images))


CHECKS: dict[str, Callable[[Trial], None]] = {
    "walk": Trial.walk,
    "cut": Trial.cut,
    "prune": Trial.prune,
    "rotate": Trial.rotate,
    "learn": Trial.learn,
    "heal": Trial.heal,
    "save": Trial.save,
    "ONNX": Trial.onnx,
}


def tried(name: str) -> dict[str, Any]:
    """Everything about one architecture: its family, its groups and its checks, or its refusal."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    found: dict[str, Any] = {"name": name, "family": None, "groups": {}, "checks": {}}
    with tempfile.TemporaryDirectory() as folder:
        trials: list[Trial] = []

        def begin() -> None:
            model = ARCHITECTURES[name]()
            found["family"] = family_of(model).title
            read(model)
            trials.append(Trial(settled(model, name), Path(folder)))

        found["whole"] = answer(begin)
        for trial in trials:
            seen = secateur.inspect(trial.model)
            for group in groups():
                why = reason_against(seen, group)
                found["groups"][group] = told("refused", why) if why else told("pass")
            for each, run in CHECKS.items():
                found["checks"][each] = answer(lambda run=run, trial=trial: run(trial))
    return found


def answer(run: Callable[[], None]) -> Answer:
    """What became of a check."""
    try:
        run()
    except UserError as error:
        return told("refused", str(error))
    except Exception as error:  # one fault must not hide the others
        return told("fails", f"{type(error).__name__}: {error}")
    return told("pass")


def told(state: str, reason: str = "") -> Answer:
    """An answer, with its reason in one line."""
    plain = " ".join(reason.partition("; known families")[0].split())
    return {"state": state, "reason": plain[:SENTENCE]}
