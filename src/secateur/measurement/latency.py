"""Latency of several models side by side, so that a busy machine is busy for all of them."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from secateur.devices import same_device, usable_device
from secateur.errors import UserError
from secateur.measurement.modes import example_images
from secateur.measurement.request import BenchRequest, Clock
from secateur.measurement.runtimes import Run, require, runtimes
from secateur.models.caches import copy_of, evaluating
from secateur.models.family import family_of
from secateur.request.takes import takes

WARM_UPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one forward pass: median and interquartile range in ms over `runs` passes.

    `throughput` is images per second at the median.
    """

    median_ms: float
    iqr_ms: float
    runs: int
    batch_size: int
    runtime: str
    device: str
    threads: int
    throughput: float

    def to_json(self) -> dict[str, float | int | str]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Latency of one model in one runtime at one batch size.

    `ratio` is its time as a share of the first model's (0.5: half the time), the median over
    rounds in which both ran within moments of each other.
    """

    model: str
    ratio: float
    latency: Latency

    def to_json(self) -> dict[str, float | int | str]:
        """The fields by name, those of the latency beside the others."""
        return {"model": self.model, "ratio": self.ratio, **self.latency.to_json()}


@takes(BenchRequest)
def bench(
    models: Mapping[str, nn.Module], input_size: tuple[int, int, int], request: BenchRequest
) -> list[Row]:
    """Measure `models` on random images, one row per runtime, batch size and model.

    For each runtime and batch size the models take turns, run by run, in an order drawn anew
    each round. Rounds go on until there were `min_runs` and until `max_seconds` have passed.
    `threads` is the number of CPU threads each runtime may use (default: torch's own). With the
    `clock` `processor`, all threads' time counts, so it is for one thread on the CPU.
    Models on another device are copied to `device`; none is changed. UserError for unknown or
    missing runtimes before anything is measured.
    """
    _check(models, request)
    device = request.device
    rows: list[Row] = []
    with ExitStack() as stack:
        stack.enter_context(using_threads(request.threads))
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="secateur-")))
        placed = {name: _on(device, model) for name, model in models.items()}
        stack.enter_context(evaluating(*placed.values()))
        for runtime in request.runtimes:
            for batch in request.batch_sizes:
                calls = _prepare(placed, input_size, runtime, batch, scratch)
                times = take_turns(
                    calls,
                    request.min_runs,
                    request.max_seconds,
                    waiting(device),
                    request.seed,
                    request.clock,
                )
                rows += _rows(times, batch, runtime, device)
    return rows


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    min_runs: int,
    max_seconds: float,
    wait: Callable[[], None],
    seed: int = 0,
    clock: Clock = "wall",
) -> dict[str, list[int]]:
    """Nanoseconds of each call, round by round: the i-th entries of all lists are neighbours.

    `wait` returns once all work that was begun is done.
    """
    now = time.process_time_ns if clock == "processor" else time.perf_counter_ns
    names, order = list(calls), random.Random(seed)
    times: dict[str, list[int]] = {name: [] for name in names}
    with torch.inference_mode(), _no_collection():
        for _ in range(WARM_UPS):
            for call in calls.values():
                call()
        wait()
        started = time.perf_counter_ns()
        rounds = 0
        while rounds < min_runs or time.perf_counter_ns() - started < max_seconds * 1e9:
            order.shuffle(names)
            for name in names:
                begin = now()
                calls[name]()
                wait()
                times[name].append(now() - begin)
            rounds += 1
    return times


def _check(models: Mapping[str, nn.Module], request: BenchRequest) -> None:
    if not models:
        raise UserError("there is no model to measure; name at least one.")
    for model in models.values():
        if not isinstance(model, nn.Module):
            family_of(model)  # Raises; any module can be measured.
    if any(batch < 1 for batch in request.batch_sizes):
        raise UserError(f"batch sizes must be at least 1, not {min(request.batch_sizes)}.")
    if request.min_runs < 2:
        raise UserError(f"a median and a spread need at least 2 runs, not {request.min_runs}.")
    if request.threads is not None and request.threads < 1:
        raise UserError(f"the number of threads must be at least 1, not {request.threads}.")
    usable_device(request.device)
    for name in request.runtimes:
        require(name, request.device)


def _prepare(
    models: Mapping[str, nn.Module],
    input_size: tuple[int, int, int],
    runtime: str,
    batch: int,
    scratch: Path,
) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {}
    for index, (name, model) in enumerate(models.items()):
        images_BCHW = example_images(model, input_size, batch)
        folder = scratch / str(index)
        folder.mkdir(exist_ok=True)
        run = runtimes.get(runtime).prepare(model, images_BCHW, folder)
        calls[name] = bound(run, images_BCHW)
    return calls


def bound(run: Run, images_BCHW: Tensor) -> Callable[[], object]:
    """A pass over these images, without arguments."""
    return lambda: run(images_BCHW)


def _rows(times: Mapping[str, list[int]], batch: int, runtime: str, device: str) -> list[Row]:
    first = next(iter(times.values()))
    rows = []
    for name, own in times.items():
        low, median, high = statistics.quantiles((t / 1e6 for t in own), n=4, method="inclusive")
        latency = Latency(
            median_ms=median,
            iqr_ms=high - low,
            runs=len(own),
            batch_size=batch,
            runtime=runtime,
            device=device,
            threads=torch.get_num_threads(),
            throughput=batch / median * 1e3,
        )
        ratio = statistics.median(mine / other for mine, other in zip(own, first, strict=True))
        rows.append(Row(model=name, ratio=ratio, latency=latency))
    return rows


def _on(device: str, model: nn.Module) -> nn.Module:
    if all(same_device(p.device, device) for p in model.parameters()):
        return model
    return copy_of(model).to(device)


def waiting(device: str) -> Callable[[], None]:
    """What returns once all work on `device` is done."""
    if torch.device(device).type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch use as many CPU threads; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
