"""What is said to users: the input was wrong, or something is worth knowing."""

import re

QUOTED = 200
"""Characters of a user's text that a message quotes."""
FROM_WORKER = re.compile(
    r"Caught \w+ in DataLoader worker .*\nsecateur\.errors\.\w+: (.*)", re.DOTALL
)


def short(text: object) -> str:
    """A text of a user's as messages quote it: in one line, its end left out where it is long."""
    # WHY sliced first: the text may be as long as a file.
    words = " ".join(str(text)[: 4 * QUOTED].split())
    words = words.encode("utf-8", "backslashreplace").decode("utf-8")
    return words if len(words) <= QUOTED else words[: QUOTED - 1] + "…"


class UserError(Exception):
    """What was wrong, where, and what to do about it, in one sentence.

    The command line prints the sentence alone and exits with code 2.
    """

    def __init__(self, sentence: str) -> None:
        # WHY: torch raises a worker's error again with its traceback around the sentence.
        found = FROM_WORKER.match(sentence)
        super().__init__(found[1].strip() if found else sentence)


class OutOfReach(UserError):
    """A budget that no choice of sizes meets; the sentence names the smallest reachable one."""


class Advice(UserWarning):
    """Something worth knowing before long work goes on; the command line shows it as a note."""
