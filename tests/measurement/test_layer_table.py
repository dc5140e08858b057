"""Tables of timings under a clock that follows a formula."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.allocation.types import Key, shapes_of
from secateur.errors import UserError
from secateur.measurement import layer_table as module
from secateur.measurement.layer_table import LayerTable, Setting, latency_cost, layer_table
from secateur.measurement.table_cache import cache_dir
from secateur.models.family import read
from secateur.models.host import host_of
from tests.measurement.hosts import host

DENSE = 20.0
Timing = Callable[[dict[str, int]], float]


def linear(size: dict[str, int]) -> float:
    """Milliseconds of a branch; bilinear, so that a table is exact between its points."""
    if "hidden" in size:
        return 0.01 * size["hidden"]
    return size["heads"] * (0.05 * size["qk"] + 0.02 * size["vo"])


class Timer:
    """Stands in for `take_turns` and counts how often it is asked."""

    def __init__(self, ms_of: Timing, dense: float) -> None:
        self.ms_of, self.dense = ms_of, dense
        self.asked: list[list[str]] = []

    def __call__(
        self, calls: Mapping[str, Callable[[], torch.Tensor]], *_: object
    ) -> dict[str, list[int]]:
        self.asked.append(list(calls))
        with torch.inference_mode():
            for call in calls.values():
                assert call().isfinite().all()
        return {name: [int(1e6 * self._ms(name))] * 3 for name in calls}

    def _ms(self, name: str) -> float:
        sizes = {group: int(size) for group, size in re.findall(r"(\w+)=(\d+)", name)}
        return self.ms_of(sizes) if sizes else self.dense


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    timer = Timer(linear, DENSE)
    monkeypatch.setattr(module, "take_turns", timer)
    return timer


MODEL = host()
ANATOMY = read(MODEL)
SIZES: dict[Key, tuple[int, ...]] = {}
for _branch in ANATOMY.branches:
    for _group in _branch.groups:
        SIZES[_branch.id, _group] = {
            "heads": (1, 2, 3),
            "qk": (4, 8, 12, 16),
            "vo": (4, 8, 12, 16),
            "hidden": tuple(range(16, 193, 16)),
        }[_group]


def table(**setting: object) -> LayerTable:
    return layer_table(host_of(MODEL), Setting(**setting), SIZES)  # type: ignore[arg-type]


def test_equal_branches_share_entries(timer: Timer) -> None:
    found = table()
    assert found.kinds == {
        "blocks.0.attn": 0,
        "blocks.0.mlp": 1,
        "blocks.1.attn": 0,
        "blocks.1.mlp": 1,
    }
    assert [len(ms) for ms in found.ms] == [3 * 3 * 3, 6]
    assert len(timer.asked[0]) == 1 + 27 + 6


def test_costs_between_the_sizes_and_of_the_ends(timer: Timer) -> None:
    cost_of = latency_cost(ANATOMY, table())
    inside = 2 * (linear({"heads": 3, "qk": 16, "vo": 16}) + linear({"hidden": 192}))
    assert cost_of.ends == pytest.approx(DENSE - inside)
    assert cost_of({}) == pytest.approx(DENSE)
    picked: dict[Key, int] = {
        ("blocks.0.attn", "heads"): 2,
        ("blocks.0.attn", "qk"): 12,
        ("blocks.0.attn", "vo"): 8,
        ("blocks.1.mlp", "hidden"): 80,
        ("blocks.1.attn", "branch"): 0,
    }
    expected = linear({"heads": 2, "qk": 12, "vo": 8}) + linear({"hidden": 192})
    expected += linear({"hidden": 80})
    assert cost_of(picked) - cost_of.ends == pytest.approx(expected)
    assert cost_of({("blocks.0", "block"): 0}) == pytest.approx(DENSE - inside / 2)
    assert shapes_of(ANATOMY, picked)["blocks.1.attn"] is None


def test_branches_slower_alone_than_the_model_are_scaled(timer: Timer) -> None:
    timer.dense = 5.0
    cost_of = latency_cost(ANATOMY, table())
    assert cost_of.ends == 0
    assert cost_of({}) == pytest.approx(5.0)
    half = cost_of({("blocks.0.mlp", "hidden"): 96})
    inside = 2 * (linear({"heads": 3, "qk": 16, "vo": 16}) + 1.92)
    assert half == pytest.approx(5.0 * (1 - 0.96 / inside))


def test_smaller_is_never_slower_however_noisy(timer: Timer) -> None:
    noise = np.random.default_rng(0)
    timer.ms_of = lambda size: linear(size) * float(noise.uniform(0.2, 3))
    timer.dense = 100.0
    cost_of = latency_cost(ANATOMY, table())
    for key, sizes in SIZES.items():
        costs = [cost_of({key: size}) for size in sizes]
        assert costs == sorted(costs)
        assert costs[-1] == pytest.approx(100.0)


def test_a_table_is_measured_once_per_setting(timer: Timer) -> None:
    first = table()
    assert table() == first
    assert len(timer.asked) == 1
    timer.dense = 30.0
    assert table(batch_size=2).dense_ms == pytest.approx(30.0)
    assert table(threads=2).dense_ms == pytest.approx(30.0)
    assert len(timer.asked) == 3
    assert table() == first
    assert all(path.suffix == ".json" for path in cache_dir().iterdir())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"ms": [1.0]})),
        lambda path: path.write_text(path.read_text().replace("20.0", "NaN")),
        lambda path: path.write_text(path.read_text().replace("20.0", "Infinity")),
        lambda path: path.write_text(path.read_text().replace("20.0", "-20.0")),
        lambda path: path.write_text(path.read_text().replace("20.0", "0.0")),
        lambda path: path.write_text(path.read_text().replace("20.0", "1e-300")),
        lambda path: path.write_text(path.read_text().replace("20.0", "1e300")),
        lambda path: path.write_text(path.read_text().replace("20.0", "1" + 400 * "0")),
        lambda path: path.write_text(path.read_text().replace("20.0", "true")),
        lambda path: path.write_text(path.read_text().replace("20.0", '"20.0"')),
        lambda path: path.write_text(path.read_text().replace("20.0", "1e-5")),
        lambda path: path.write_text("[" * 100000),
        lambda path: path.write_text(path.read_text().replace("eager", "other")),
    ],
)
def test_a_spoilt_table_is_measured_again(timer: Timer, spoil: Callable[[Path], int]) -> None:
    first = table()
    (path,) = cache_dir().iterdir()
    spoil(path)
    assert table() == first
    assert len(timer.asked) == 2
    assert table() == first
    assert len(timer.asked) == 2


def test_without_a_place_to_keep_it(
    timer: Timer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert table() == table()
    assert len(timer.asked) == 2


def test_the_model_is_left_alone(timer: Timer) -> None:
    model = host().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_table(host_of(model), Setting(), SIZES)
    assert read(model) == ANATOMY
    assert all(m.training for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_runtimes_take_single_branches(timer: Timer, name: str) -> None:
    few: dict[Key, tuple[int, ...]] = {("blocks.0.attn", "qk"): (8, 16)}
    found = layer_table(host_of(MODEL), Setting(runtime=name), few)
    assert [len(ms) for ms in found.ms] == [2, 1]


def test_unknown_runtimes_are_refused_before_anything(timer: Timer) -> None:
    with pytest.raises(UserError, match="'eager'"):
        table(runtime="egger")
    assert timer.asked == []


def test_real_times_are_positive() -> None:
    few: dict[Key, tuple[int, ...]] = {("blocks.0.mlp", "hidden"): (16, 192)}
    setting = Setting(threads=torch.get_num_threads())
    found = layer_table(host_of(MODEL), setting, few, rounds=3, seconds=0)
    assert min(found.dense_ms, *found.ms[0], *found.ms[1]) > 0
