"""An interrupted run keeps what it has learned, and goes on bit for bit."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from secateur.errors import Advice
from secateur.training import checkpoint
from secateur.training.lesson import Hook, Moment
from tests.training.learners import fit, fresh, same, settings
from tests.training.test_loop import EVERYTHING, judge_of


class SignalAt(Hook):
    """Sends signals to its own process after a step, as a terminal would."""

    def __init__(self, step: int, *signals: int) -> None:
        self.step, self.signals = step, signals

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.step:
            for number in self.signals:
                signal.raise_signal(number)


def test_an_interrupt_before_any_checkpoint_waits_for_the_step_and_keeps_the_run(
    tmp_path: Path,
) -> None:
    straight, stopped = fresh(), fresh()
    how = settings(**EVERYTHING)
    whole = fit(straight, how, judge=judge_of(straight), hooks=[Hook()])
    before = signal.getsignal(signal.SIGINT)
    with (
        pytest.warns(Advice, match="stopping after this step, with a checkpoint"),
        pytest.raises(KeyboardInterrupt),
    ):
        hooks = [SignalAt(2, signal.SIGINT)]
        fit(stopped, how, tmp_path, judge=judge_of(stopped), hooks=hooks)
    assert signal.getsignal(signal.SIGINT) is before
    assert same(stopped, fresh()), "the model has its old weights"
    report = fit(stopped, how, tmp_path, judge=judge_of(stopped), hooks=[Hook()])
    assert report.resumed_at == 2
    assert same(straight, stopped) and report.scores == whole.scores


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    with (
        pytest.warns(Advice, match="interrupt again to stop at once"),
        pytest.raises(KeyboardInterrupt),
    ):
        fit(fresh(), settings(), tmp_path, hooks=[SignalAt(3, signal.SIGINT, signal.SIGINT)])
    assert checkpoint.read(tmp_path) is None


def test_without_a_folder_an_interrupt_is_as_ever() -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), settings(), hooks=[SignalAt(3, signal.SIGINT)])


def test_an_interrupt_of_the_last_look_loses_nothing(tmp_path: Path) -> None:
    judge, looks = judge_of(fresh()), []

    def interrupted(model: nn.Module, process: int, processes: int) -> Mapping[str, Any]:
        looks.append(process)
        if len(looks) == 2:
            signal.raise_signal(signal.SIGINT)
        return judge(model, process, processes)

    with pytest.warns(Advice, match="stopping"), pytest.raises(KeyboardInterrupt):
        fit(fresh(), settings(checks=0), tmp_path, judge=interrupted)
    report = fit(fresh(), settings(checks=0), tmp_path, judge=judge)
    assert len(looks) >= 2 and report.resumed_at == report.steps == 10
