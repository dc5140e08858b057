"""Record what every case gives, or compare it with the record.

python -m tests.golden.record              write expected.json and expected.safetensors
python -m tests.golden.record --strict     compare, on the machine of the record
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden.cases import CASES, Outcome

FOLDER = Path(__file__).parent
PLANS, LOGITS = FOLDER / "expected.json", FOLDER / "expected.safetensors"
STRICT = 1e-6
"""Largest deviation, as a share of the largest number, on the machine of the record."""


def run(name: str) -> Outcome:
    """One case from fixed seeds, whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return CASES[name].run()


def expected() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is recorded: plans and numbers by case, logits by case."""
    return json.loads(PLANS.read_text(encoding="utf-8")), load_file(LOGITS)


def deviation(found: Tensor, recorded: Tensor) -> float:
    """Largest difference as a share of the largest recorded value; infinite if shapes differ."""
    if found.shape != recorded.shape:
        return math.inf
    return float((found - recorded).abs().max() / recorded.abs().max())


def number_deviations(
    found: Mapping[str, float], recorded: Mapping[str, float]
) -> dict[str, float]:
    """Differences by name, as a share of 1 or of the number where it is larger."""
    if found.keys() != recorded.keys():
        return dict.fromkeys(found.keys() ^ recorded.keys(), math.inf)
    return {
        name: abs(found[name] - value) / max(1.0, abs(value)) for name, value in recorded.items()
    }


def write() -> None:
    """Run every case and write what it gives."""
    plans: dict[str, Any] = {}
    logits: dict[str, Tensor] = {}
    for name, case in CASES.items():
        start = time.perf_counter()
        found = run(name)
        plans[name] = {"plan": found.plan, "numbers": found.numbers}
        if case.expected_to_change is not None:
            plans[name]["expected_to_change"] = case.expected_to_change
        if found.logits_BC is not None:
            logits[name] = found.logits_BC.contiguous()
        print(f"{time.perf_counter() - start:6.2f} s  {name}", flush=True)
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in plans.items()]
    PLANS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    save_file(logits, LOGITS)
    LOGITS.chmod(0o644)


def compare() -> int:
    """Print the deviation of every case; the number of cases that differ and are not to change."""
    plans, logits = expected()
    failed = 0
    print("| case | plan | logits | numbers |\n| --- | --- | --- | --- |")
    for name, case in CASES.items():
        found, recorded = run(name), plans[name]
        same = found.plan == recorded["plan"]
        apart = 0.0 if found.logits_BC is None else deviation(found.logits_BC, logits[name])
        off = max(number_deviations(found.numbers, recorded["numbers"]).values(), default=0.0)
        wrong = not same or apart > STRICT or off > STRICT
        note = "" if case.expected_to_change is None else f" (to change: {case.expected_to_change})"
        failed += wrong and not note
        told = "equal" if same else "DIFFERENT"
        print(f"| {name}{note} | {told} | {apart:.1e} | {off:.1e} |", flush=True)
    print(f"\n{len(CASES)} cases, {failed} differ")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true", help="compare instead of writing")
    if parser.parse_args().strict:
        sys.exit(min(1, compare()))
    write()
