"""The site lists every page, its links lead somewhere, and its API pages name what exists."""

import importlib
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
DOCS = PROJECT / "docs"
CONFIG = yaml.safe_load((PROJECT / "mkdocs.yml").read_text(encoding="utf-8"))
ABOVE = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "license.md": "LICENSE"}
"""Pages of the site that are files above docs/."""
PAGES = sorted(DOCS.rglob("*.md"))


def listed(nav: object) -> Iterator[str]:
    """The pages of a navigation, in its order."""
    if isinstance(nav, str):
        yield nav
    for entry in nav if isinstance(nav, list) else []:
        for part in entry.values() if isinstance(entry, dict) else [entry]:
            yield from listed(part)


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, where GitHub and the site agree on them."""
    found = set()
    for title in re.findall(r"^#+ +(.+?)\s*$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        words = re.sub(r"[^\w\s-]", "", plain.lower()).strip()
        if re.sub(r"[-\s]+", "-", words) == words.replace(" ", "-"):
            found.add(words.replace(" ", "-"))
    return found


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead to no file, or to no heading of it."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = Path(posixpath.normpath(page.parent / path))
        if path and not file.is_file():
            found.append(target)
        elif anchor:
            there = file.read_text(encoding="utf-8") if path else text
            found += [target] if anchor not in anchors(there) else []
    return found


def test_every_page_is_listed_once() -> None:
    pages = [*ABOVE, *(page.relative_to(DOCS).as_posix() for page in PAGES)]
    assert sorted(listed(CONFIG["nav"])) == sorted(pages), "mend `nav` in mkdocs.yml"


@pytest.mark.parametrize("file", ABOVE.values())
def test_pages_above_docs_exist(file: str) -> None:
    assert (PROJECT / file).is_file()


@pytest.mark.parametrize(
    "page", [PROJECT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(PROJECT))
)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[here](glossary.md) and [there](https://example.org/none)", []),
        ("# A title\n[above](#a-title), [nowhere](#another-title)", ["#another-title"]),
        ("[gone](gone.md)", ["gone.md"]),
        ("[a folder](methods)", ["methods"]),
        ("[no heading](methods/snp.md#no-such-heading)", ["methods/snp.md#no-such-heading"]),
        ("```\n[code](gone.md)\n```", []),
    ],
)
def test_broken_links_are_noticed(text: str, found: list[str]) -> None:
    assert broken(DOCS / "page.md", text) == found


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=lambda page: page.stem)
def test_api_pages_name_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parts = re.split(r"^::: ([\w.]+)$", text, flags=re.MULTILINE)
    assert len(parts) > 1
    for name, rest in zip(parts[1::2], parts[2::2], strict=True):
        found = resolved(name)
        assert found.__doc__, f"{name} has no docstring"
        members = re.search(r"^ +members: \[(.*)\]$", rest, re.MULTILINE)
        for member in members[1].split(", ") if members else []:
            assert getattr(found, member).__doc__, f"{name}.{member} has no docstring"


def resolved(name: str) -> object:
    """The module, class or function of a dotted name."""
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), attribute)


def test_every_public_name_is_on_an_api_page() -> None:
    import secateur

    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    public = set(secateur.__all__) - {"UserError", "__version__"}
    assert {name for name in public if f"::: secateur.{name}\n" not in text} == set()
