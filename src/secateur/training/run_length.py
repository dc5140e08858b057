"""How long a training run takes: a number of steps, or a time on the clock."""

import re
from dataclasses import dataclass

from secateur.errors import QUOTED, UserError, short

_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")
_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLength:
    """`steps` of the optimizer, or `seconds` of wall time; exactly one is given."""

    text: str
    steps: int | None = None
    seconds: float | None = None

    def share(self, steps: int, seconds: float) -> float:
        """The part of the run that is over; training ends at 1."""
        if self.steps is not None:
            return steps / self.steps
        return seconds / (self.seconds or 1.0)


def parse_run_length(text: str, name: str = "polish") -> RunLength:
    """Read '30s', '5min', '1.5 h' or '200 steps'; UserError for anything else, under `name`."""
    found = _FORM.fullmatch(text.strip().lower()) if len(text) <= QUOTED else None
    number, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if unit in ("step", "steps") and number >= 1 and number == int(number):
        return RunLength(text=text.strip(), steps=int(number))
    if unit in _SECONDS and number > 0:
        return RunLength(text=text.strip(), seconds=number * _SECONDS[unit])
    raise UserError(
        f"{name} '{short(text)}' is neither a time nor a number of steps above zero; write for "
        "example '30s', '5min' or '200 steps'."
    )
