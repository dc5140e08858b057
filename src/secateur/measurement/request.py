"""What a comparison of latencies may be asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from secateur.request.say import Say
from secateur.request.text import counts, names

Clock = Literal["wall", "processor"]
"""Processor time does not count while other processes have the core: on one thread it is what the
wall clock would say on a quiet machine."""


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """Where models are timed and for how long. `threads` None: those of torch."""

    runtimes: Annotated[
        Sequence[str],
        Say(
            "eager, compile, onnxruntime, openvino.",
            metavar="A,B",
            flag="--runtime",
            read=names,
            default="eager",
        ),
    ] = ("eager",)
    batch_sizes: Annotated[
        Sequence[int],
        Say("Images per pass.", metavar="N,N", flag="--batch-size", read=counts, default="1"),
    ] = (1,)
    min_runs: Annotated[int, Say("Least passes per model.")] = 30
    max_seconds: Annotated[float, Say("Seconds per runtime and batch size, or more.")] = 10.0
    threads: int | None = None
    device: str = "cpu"
    seed: int = 0
    clock: Clock = "wall"
