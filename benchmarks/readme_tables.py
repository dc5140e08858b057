"""Rewrite the tables in README.md from registries and results: python benchmarks/readme_tables.py.

Each stands between markers, <!-- NAME --> and <!-- /NAME -->, and is replaced as a whole.
"""

import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from _readme_measured import measured_table
from _support_page import PAGE, summary_of
from torch import nn

import secateur
from secateur.criteria import criteria
from secateur.errors import UserError
from secateur.methods.request import DEFAULT
from secateur.models.family import Family, families
from secateur.models.types import ALL_GROUPS
from secateur.presets import load_preset, preset_names
from secateur.storage.meta import on_meta
from secateur.verbs.inspect import Inspection
from secateur.verbs.load import load_shape

README = Path(__file__).resolve().parents[1] / "README.md"
YES, NO = "✓", "–"


def groups() -> list[str]:
    """The groups that some criterion can score."""
    scored = {group for _, criterion in criteria.items() for group in criterion.needs}
    return [group for group in ALL_GROUPS if group in scored]


@cache
def families_table() -> str:
    """What can be pruned in an example of every kind of model of every family."""
    columns = groups()
    lines = [
        _row("model", *(f"`{group}`" for group in columns)),
        _row(*["---"] * len([0, *columns])),
    ]
    reasons: dict[str, int] = {}
    titles = dict.fromkeys(family.title for _, family in families.items())
    for title in titles:
        lines.append(_row(f"**{title}**", *[""] * len(columns)))
        alike = [family for _, family in families.items() if family.title == title]
        for family, name in [(f, name) for f in alike for name in f.examples]:
            found = secateur.inspect(_shape(family, name))
            cells = [_cell(found, group, reasons) for group in columns]
            lines.append(_row(f"`{name}`", *cells))
    notes = [f"{number}. {reason[0].upper()}{reason[1:]}." for reason, number in reasons.items()]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _shape(family: Family, name: str) -> nn.Module:
    """An example without weights; one of transformers from the defaults of its class."""
    if not name.startswith("hf:"):
        return load_shape(name, device="meta")
    module, _, cls = family.statement.hosts[0].partition(":")
    host: Any = getattr(import_module(module), cls)
    with on_meta():
        model: nn.Module = host(host.config_class())
    return model


def offered(found: Inspection) -> set[str]:
    """The groups that can be pruned somewhere in a model."""
    units = {group for branch in found.branches for group in branch.groups}
    whole = {"branch", "block", "tokens"} | ({"width"} if found.streams else set())
    return units | whole


def reason_against(found: Inspection, group: str) -> str | None:
    """Why no layer of a model offers a group; None where one does."""
    if group in found.refusals:
        return found.refusals[group]
    if group in offered(found):
        return None
    told = (branch.refusals[group] for branch in found.branches if group in branch.refusals)
    return next(told, "no layer has such units")


def _cell(found: Inspection, group: str, reasons: dict[str, int]) -> str:
    """Whether a group can be pruned, with the number of the reason if it cannot."""
    reason = reason_against(found, group)
    return YES if reason is None else f"{NO} {reasons.setdefault(reason, len(reasons) + 1)}"


def presets_table() -> str:
    """Every preset that ships, with its source."""
    lines = [_row("preset", "method", "groups", "source"), _row(*["---"] * 4)]
    for name in preset_names():
        preset = load_preset(name)
        page = Path("docs", "methods", f"{name}.md")
        label = (
            f"[`{name}`]({page.as_posix()})" if (README.parent / page).is_file() else f"`{name}`"
        )
        label += " (default)" if name == DEFAULT else ""
        lines.append(_row(label, preset.title, ", ".join(preset.groups), preset.source))
    return "\n".join(lines)


def support_table() -> str:
    """The summary of the support matrix, as its page has it."""
    return summary_of(PAGE.read_text(encoding="utf-8"))


TABLES: dict[str, Callable[[], str]] = {
    "measured": measured_table,
    "families": families_table,
    "support": support_table,
    "presets": presets_table,
}


def replaced(text: str, name: str, content: str) -> str:
    """`text` with the part between the markers of `name` replaced; UserError without them."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"{README.name} must hold the markers {begin} and {end} once each.")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text)


def outdated(text: str) -> Iterator[str]:
    """Names of tables in `text` that are not what registries and results say."""
    for name, table in TABLES.items():
        if replaced(text, name, table()) != text:
            yield name


def main() -> None:
    """Rewrite the tables."""
    text = README.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        text = replaced(text, name, table())
    README.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{README.name}: {', '.join(TABLES)} rewritten\n")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
