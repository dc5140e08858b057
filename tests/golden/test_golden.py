"""Plans and logits are those that were recorded: a change of structure changes no result."""

import pytest

from tests.golden.cases import CASES
from tests.golden.record import deviation, expected, number_deviations, run

LOGITS, TRAINED, NUMBERS = 1e-5, 1e-4, 1e-4
"""Tolerances between processors: logits relative to the largest, numbers relative to themselves."""


@pytest.mark.parametrize("name", CASES)
def test_the_outcome_is_the_recorded_one(name: str) -> None:
    plans, logits = expected()
    found, recorded = run(name), plans[name]
    assert found.plan == recorded["plan"]
    assert (found.logits_BC is not None) == (name in logits)
    if found.logits_BC is not None:
        assert deviation(found.logits_BC, logits[name]) <= (
            TRAINED if CASES[name].trained else LOGITS
        )
    off = number_deviations(found.numbers, recorded["numbers"])
    assert {key: value for key, value in off.items() if value > NUMBERS} == {}


def test_every_case_is_recorded() -> None:
    plans, logits = expected()
    assert set(plans) == set(CASES)
    assert set(logits) <= set(CASES)
    flagged = {name: case.expected_to_change for name, case in CASES.items()}
    assert {name: value.get("expected_to_change") for name, value in plans.items()} == flagged
