"""Change files at random and read them: nothing but a UserError or what was there before.

python -m tests.fuzz --mutations 40000

Memory is limited to 1 GiB. Every change follows from the seed, the kind of file and its number, so
that `--only KIND --start NUMBER --mutations 1` repeats one. Exit code 1 when one ended otherwise.
"""

import argparse
import gc
import logging
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from secateur.errors import QUOTED, UserError
from tests.fuzz.targets import Target, targets

MEMORY = 2**30
SLOW = 5.0


@dataclass
class Tally:
    """What became of the changes of one kind of file."""

    read: int = 0
    refused: int = 0
    slowest: tuple[float, int] = (0.0, -1)
    failures: list[str] = field(default_factory=list)


def limit_memory() -> None:
    """Let this process grow to 1 GiB; its libraries map more than that without using it."""
    pages = [int(n) for n in Path("/proc/self/statm").read_text().split()]
    mapped, used = (n * resource.getpagesize() for n in pages[:2])
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY - used,) * 2)


def attempt(target: Target, rng: random.Random) -> tuple[bool, str | None]:
    """Whether one changed file was read, and what went wrong otherwise than in a sentence."""
    try:
        target.use()
    except UserError as error:
        causes = [error, error.__cause__]
        if any(isinstance(e, MemoryError) or "not enough memory" in str(e) for e in causes):
            return False, f"asked for too much memory: {error}"
        sentence = str(error)
        if "\n" in sentence or len(sentence) > 6 * QUOTED:
            return False, f"no sentence: {sentence[:1000]}"
        return False, None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return False, "".join(traceback.format_exception(error, limit=-4))
    return True, None


def run(name: str, target: Target, seed: int, numbers: range, until: float) -> Tally:
    """Change and read one kind of file as often as asked, or until the time is up."""
    tally = Tally()
    for number in numbers:
        rng = random.Random(f"{seed}/{name}/{number}")
        target.change(rng)
        begin = time.monotonic()
        read, failure = attempt(target, rng)
        seconds = time.monotonic() - begin
        tally.slowest = max(tally.slowest, (seconds, number))
        tally.read += read
        tally.refused += not read and failure is None
        if failure is not None:
            tally.failures.append(f"{name} --start {number}: {failure}")
        if number % 200 == 0:
            gc.collect()
        if time.monotonic() > until:
            break
    return tally


def main() -> int:
    """Run all kinds in equal shares and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all together")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kinds = targets(Path(folder))
        limit_memory()
        if given.only is not None:
            kinds = {given.only: kinds[given.only]}
        each = -(-given.mutations // len(kinds))
        numbers = range(given.start, given.start + each)
        failures, total = [], 0
        end = time.monotonic() + given.seconds
        print(f"{'':28}{'read':>8}{'refused':>8}{'failed':>8}{'slowest':>10}")
        for place, (name, target) in enumerate(kinds.items()):
            now = time.monotonic()
            until = now + (end - now) / (len(kinds) - place)
            tally = run(name, target, given.seed, numbers, until)
            seconds, number = tally.slowest
            counts = f"{tally.read:>8}{tally.refused:>8}{len(tally.failures):>8}"
            late = f"  above {SLOW:g} s: --start {number}" if seconds > SLOW else ""
            print(f"{name:28}{counts}{seconds:8.2f} s{late}", flush=True)
            total += tally.read + tally.refused + len(tally.failures)
            failures += tally.failures
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{total} changed files, {len(failures)} failures, {peak:.2f} GiB at most")
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
