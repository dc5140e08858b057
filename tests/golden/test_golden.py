"""Plans and logits are those that were recorded: a change of structure changes no result."""

import pytest

from tests.golden.cases import CASES
from tests.golden.record import deviation, expected, number_deviations, run

NUMBERS, NEARLY_SINGULAR = 1e-3, 2e-2
"""Tolerances between processors of numbers, relative to themselves."""
ELSEWHERE = 0.1
"""Tolerance of logits where another processor may keep other units of equal worth."""


def allowed(key: str) -> float:
    """Canonical correlations of inputs that hardly vary rest on a nearly singular inverse."""
    return NEARLY_SINGULAR if key.endswith("scores.cca") else NUMBERS


@pytest.mark.parametrize("name", CASES)
def test_the_outcome_is_the_recorded_one(name: str) -> None:
    plans, logits = expected()
    case, found, recorded = CASES[name], run(name), plans[name]
    if case.portable:
        assert found.plan == recorded["plan"]
    assert (found.logits_BC is not None) == (name in logits)
    if found.logits_BC is not None:
        assert deviation(found.logits_BC, logits[name]) <= (
            case.tolerance if case.portable else ELSEWHERE
        )
    off = number_deviations(found.numbers, recorded["numbers"])
    far = {key: value for key, value in off.items() if value > allowed(key)}
    assert far == {} or not case.portable


def test_every_case_is_recorded() -> None:
    plans, logits = expected()
    assert set(plans) == set(CASES)
    assert set(logits) <= set(CASES)
    flagged = {name: case.expected_to_change for name, case in CASES.items()}
    assert {name: value.get("expected_to_change") for name, value in plans.items()} == flagged
