import gc
import importlib.util
import time
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.measurement.latency import WARM_UPS, Latency, Row, bench, take_turns
from tests.measurement.hosts import INPUT, host, resize


class Clock:
    """A clock that stands still unless a model takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now)


class Timed(nn.Module):
    """Takes the given milliseconds in turn (the last ones for ever), and notes its calls."""

    def __init__(self, clock: Clock, name: str, log: list[str], ms: list[float]) -> None:
        super().__init__()
        self.clock, self.name, self.log, self.ms = clock, name, log, ms

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.log.append(self.name)
        self.clock.now += int(1e6 * (self.ms.pop(0) if len(self.ms) > 1 else self.ms[0]))
        return x_BCHW


def test_models_take_turns_in_a_new_order_each_round() -> None:
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in "ABC"}
    times = take_turns(calls, min_runs=20, max_seconds=0, wait=lambda: None, seed=3)
    assert {name: len(t) for name, t in times.items()} == {"A": 20, "B": 20, "C": 20}
    assert log[: 3 * WARM_UPS] == list("ABC") * WARM_UPS
    rest = log[3 * WARM_UPS :]
    rounds = ["".join(rest[i : i + 3]) for i in range(0, len(rest), 3)]
    assert len(rounds) == 20
    assert all(sorted(one) == list("ABC") for one in rounds)
    assert len(set(rounds)) > 3
    again: list[str] = []
    calls = {name: (lambda name=name: again.append(name)) for name in "ABC"}
    take_turns(calls, min_runs=20, max_seconds=0, wait=lambda: None, seed=3)
    assert again == log


def test_processor_time_stands_still_while_others_run() -> None:
    def sleep() -> None:
        time.sleep(0.02)

    by_wall = take_turns({"A": sleep}, min_runs=3, max_seconds=0, wait=lambda: None)
    by_processor = take_turns(
        {"A": sleep}, min_runs=3, max_seconds=0, wait=lambda: None, clock="processor"
    )
    assert min(by_wall["A"]) >= 20e6 > 10e6 > sorted(by_processor["A"])[1]


def test_rounds_go_on_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    model = Timed(clock, "A", [], [100.0])
    (row,) = bench({"A": model}, INPUT, min_runs=2, max_seconds=1.0)
    assert row.latency.runs == 10
    (row,) = bench({"A": model}, INPUT, min_runs=15, max_seconds=1.0)
    assert row.latency.runs == 15


def test_work_is_awaited_after_every_call() -> None:
    log: list[str] = []
    calls = {"A": lambda: log.append("A"), "B": lambda: log.append("B")}
    take_turns(calls, min_runs=4, max_seconds=0, wait=lambda: log.append("."))
    timed = "".join(log[2 * WARM_UPS :])
    assert timed[0] == "."
    assert set(timed[1::2]) == {"A", "B"}
    assert set(timed[2::2]) == {"."}


def test_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), []
    warm_up = [50.0] * WARM_UPS
    slow = Timed(clock, "slow", log, [*warm_up, 4, 8, 6, 10, 100])
    fast = Timed(clock, "fast", log, [*warm_up, 1, 2, 3, 5, 50])
    models = {"slow": slow, "fast": fast}
    rows = bench(models, INPUT, batch_sizes=(2,), min_runs=5, max_seconds=0)
    assert [row.model for row in rows] == ["slow", "fast"]
    assert rows[0].ratio == 1.0
    assert rows[1].ratio == 0.5
    assert rows[0].latency.median_ms == 8
    assert rows[0].latency.iqr_ms == 4
    assert rows[1].latency.median_ms == 3
    assert rows[1].latency.iqr_ms == 3
    assert rows[0].latency.throughput == pytest.approx(250)
    assert rows[0].latency.runs == 5


def test_json_is_flat() -> None:
    latency = Latency(
        median_ms=8.0,
        iqr_ms=1.0,
        runs=30,
        batch_size=2,
        runtime="eager",
        device="cpu",
        threads=1,
        throughput=250.0,
    )
    assert Row(model="small", ratio=0.5, latency=latency).to_json() == {
        "model": "small",
        "ratio": 0.5,
        "median_ms": 8.0,
        "iqr_ms": 1.0,
        "runs": 30,
        "batch_size": 2,
        "runtime": "eager",
        "device": "cpu",
        "threads": 1,
        "throughput": 250.0,
    }


def test_real_models_in_several_runtimes() -> None:
    models = {"dense": host(depth=1), "slim": host(depth=1).train()}
    resize(models["slim"], "blocks.0.attn", qk=8, vo=12)
    rows = bench(
        models,
        INPUT,
        runtimes=("eager", "onnxruntime"),
        batch_sizes=(1, 3),
        min_runs=4,
        max_seconds=0,
    )
    assert [(r.latency.runtime, r.latency.batch_size, r.model) for r in rows] == [
        (runtime, batch, name)
        for runtime in ("eager", "onnxruntime")
        for batch in (1, 3)
        for name in ("dense", "slim")
    ]
    for row in rows:
        assert row.latency.median_ms > 0
        assert row.latency.iqr_ms >= 0
        assert row.latency.runs == 4
        assert row.ratio > 0
        expected = 1e3 * row.latency.batch_size / row.latency.median_ms
        assert row.latency.throughput == pytest.approx(expected)
    assert models["slim"].training
    assert not models["dense"].training


def test_threads_are_set_and_put_back() -> None:
    seen: list[int] = []

    class Looking(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return x_BCHW

    before = torch.get_num_threads()
    (row,) = bench({"A": Looking()}, INPUT, min_runs=2, max_seconds=0, threads=before + 1)
    assert set(seen) == {before + 1} == {row.latency.threads}
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_missing_runtimes_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    model = Timed(Clock(monkeypatch), "A", log, [1.0])
    find_spec = importlib.util.find_spec

    def without_openvino(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "openvino" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_openvino)
    with pytest.raises(UserError, match=r"openvino.*not installed.*pip install secateur\[export\]"):
        bench({"A": model}, INPUT, runtimes=("eager", "openvino"))
    with pytest.raises(UserError, match="unknown runtime 'eagre'; did you mean 'eager'"):
        bench({"A": model}, INPUT, runtimes=("eager", "eagre"))
    assert log == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_sizes": (1, 0)}, "batch sizes must be at least 1, not 0"),
        ({"min_runs": 1}, "at least 2 runs"),
        ({"threads": 0}, "number of threads must be at least 1"),
        ({"device": "teapot"}, "'teapot' is no device"),
        ({"device": "meta", "runtimes": ("openvino",)}, "is measured on cpu only"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        bench({"A": host()}, INPUT, **arguments)
    with pytest.raises(UserError, match="no model to measure"):
        bench({}, INPUT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_absent_device() -> None:
    with pytest.raises(UserError, match="device 'cuda' is not available here"):
        bench({"A": host()}, INPUT, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_models_are_copied_to_the_device() -> None:
    model = host()
    (row,) = bench({"A": model}, INPUT, device="cuda", min_runs=3, max_seconds=0)
    assert row.latency.median_ms > 0
    assert next(model.parameters()).device.type == "cpu"
