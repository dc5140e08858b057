"""How long a training run takes, as users write it."""

import pytest

from secateur.errors import UserError
from secateur.training import parse_run_length


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5min", 300), (" 5 MIN ", 300), ("1.5 hours", 5400), ("90 seconds", 90)],
)
def test_times(text: str, seconds: float) -> None:
    length = parse_run_length(text)
    assert (length.steps, length.seconds) == (None, seconds)
    assert length.share(steps=10**6, seconds=seconds / 4) == 0.25


@pytest.mark.parametrize(("text", "steps"), [("200 steps", 200), ("1 step", 1), ("20steps", 20)])
def test_steps(text: str, steps: int) -> None:
    length = parse_run_length(text)
    assert (length.steps, length.seconds) == (steps, None)
    assert length.share(steps=steps, seconds=1e6) == 1


@pytest.mark.parametrize(
    "text",
    ["", "5", "min", "0s", "0 steps", "-5min", "1.5 steps", "5 epochs", "5min 30s", "infs", "5 ss"],
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UserError, match="'5min' or '200 steps'"):
        parse_run_length(text)
