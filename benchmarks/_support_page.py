"""The page of the support matrix, and its summary, which the README repeats."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "support_matrix.md"
LIBRARIES = {
    "timm": "timm",
    "hf": "transformers",
    "torchvision": "torchvision",
    "open_clip": "open_clip",
}
MARKS = {"pass": "✓", "refused": "–", "fails": "✗"}
WIDTH = 100
Row = dict[str, Any]

ABOUT = """\
# Support matrix

Every architecture is built with random weights at a reduced size, or at that of its smallest
published member (`benchmarks/_support_architectures.py`), and passes through the verbs. ✓: passed.
–: refused with the sentence of the note. ✗: failed with another exception than a refusal.

- **`qk` to `width`**: groups that some layer offers.
- **walk**: the steps by which the model is read compute its own forward pass, on random images.
- **cut**: for every group offered, for a first block dropped and for all groups together, the cut
  model equals the dense one with the same units held at zero, to 1e-5 (of the largest output where
  that exceeds 1).
- **prune**: preset `energy` to 70 % of the MACs, or to 90 % where the groups offered allow no more;
  the counted cost is the predicted one and within the budget, which units alone meet (without the
  exact tail).
- **rotate**: preset `slicegpt` to 80 % of the MACs.
- **learn**: masks learned for one step and one step of fine-tuning, to the budget of **prune**.
- **heal**: two steps of the pruned model towards the dense outputs.
- **save**: the pruned model, saved and loaded, gives the same outputs (to 1e-6 of the largest).
- **ONNX**: the exported pruned model agrees with it in ONNX Runtime (to 1e-4 of the largest).
"""


class Notes:
    """Numbers of reasons, in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def cell(self, answer: dict[str, str]) -> str:
        """The mark of an answer, with the number of its reason."""
        mark = MARKS[answer["state"]]
        if answer["state"] == "pass":
            return mark
        return f"{mark} {self.numbers.setdefault(answer['reason'], len(self.numbers) + 1)}"

    def text(self) -> str:
        """The reasons as a numbered list."""
        lines = []
        for reason, number in self.numbers.items():
            plain = re.sub(r"([<>*_|])", r"\\\1", reason)
            head = f"{number}. "
            sentence = plain[0].upper() + plain[1:].rstrip(".") + "."
            lines.append(
                textwrap.fill(
                    sentence,
                    WIDTH,
                    initial_indent=head,
                    subsequent_indent=" " * len(head),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
        return "\n".join(lines)


def page(rows: Sequence[Row], foot: str) -> str:
    """The whole page of these rows."""
    parts = [ABOUT, "## Summary", "", summary(rows), ""]
    notes = Notes()
    read = [row for row in rows if row["whole"]["state"] == "pass"]
    for prefix, library in LIBRARIES.items():
        own = [row for row in read if row["name"].startswith(f"{prefix}:")]
        if own:
            parts += [f"## {library}", "", _table(own, notes), ""]
    refused = [row for row in rows if row["whole"]["state"] != "pass"]
    lines = [_line(f"`{row['name']}`", notes.cell(row["whole"])) for row in refused]
    head = [_line("architecture", "reason"), _line("---", "---")]
    parts += ["## Refused as a whole", "", "\n".join([*head, *lines]), ""]
    parts += ["## Notes", "", notes.text(), "", foot]
    return "\n".join(parts)


def summary(rows: Sequence[Row]) -> str:
    """By family, how many architectures pass each check of those that were tried."""
    read = [row for row in rows if row["whole"]["state"] == "pass"]
    checks = list(read[0]["checks"])
    lines = [_line("family", "tried", *checks), _line(*["---"] * (len(checks) + 2))]
    for family in dict.fromkeys(row["family"] for row in read):
        own = [row for row in read if row["family"] == family]
        cells = [_counted(row["checks"][check]["state"] for row in own) for check in checks]
        lines.append(_line(family, str(len(own)), *cells))
    whole = Counter(row["whole"]["state"] for row in rows)
    told = f"{whole['refused']} further architectures are refused as a whole"
    told += f"; {whole['fails']} fail" if whole["fails"] else ""
    return "\n".join([*lines, "", f"{told}, each with its reason."])


def summary_of(text: str) -> str:
    """The summary of a page that was written."""
    return text.partition("## Summary\n\n")[2].partition("\n\n## ")[0].strip()


def _table(rows: Sequence[Row], notes: Notes) -> str:
    groups, checks = list(rows[0]["groups"]), list(rows[0]["checks"])
    lines = [
        _line("architecture", *(f"`{group}`" for group in groups), *checks),
        _line(*["---"] * (1 + len(groups) + len(checks))),
    ]
    for family in dict.fromkeys(row["family"] for row in rows):
        lines.append(_line(f"**{family}**", *[""] * (len(groups) + len(checks))))
        for row in (row for row in rows if row["family"] == family):
            answers = [*row["groups"].values(), *row["checks"].values()]
            lines.append(_line(f"`{row['name']}`", *map(notes.cell, answers)))
    return "\n".join(lines)


def _counted(states: Iterable[str]) -> str:
    """How many passed, and how many did not."""
    found = Counter(states)
    more = [f"{found[state]} {MARKS[state]}" for state in ("refused", "fails") if found[state]]
    passed = [f"{found['pass']} {MARKS['pass']}"] if found["pass"] else []
    return ", ".join([*passed, *more])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
