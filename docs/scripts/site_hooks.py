"""Hooks of MkDocs that make one site of files in and above docs/, each kept in one place only.

README.md is the first page, and the changelog and the license are pages. Links from a page to
other files of the repository, such as a study in benchmarks/, lead to copies in the site. Formulas
become MathML, so that the site needs no script from elsewhere.
"""

import html
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "LICENSE": "license.md"}
"""Pages of the site that are files above docs/, by their path there."""
COPIES = "repository"
"""Folder of the site for other files of the repository."""
FORMULA = re.compile(r'(class="arithmatex">)\\([(\[])(.*?)\\[)\]](<)', re.DOTALL)
"""A formula as pymdownx.arithmatex leaves it, between "\\(" and "\\)", or square brackets."""
LINK = re.compile(r"(\]\()([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages above docs/, and every file of the repository that a page links to."""
    linked = set()
    for file in list(files.documentation_pages()):
        targets = LINK.findall(file.content_string)
        linked |= {outside(target, f"docs/{file.src_uri}") for _, target in targets}
    for path, page in PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        shown = f"# License\n\n```text\n{text}\n```\n" if path == "LICENSE" else text
        files.append(File.generated(config, page, content=relinked(shown, path, page)))
        linked |= {outside(target, path) for _, target in LINK.findall(text)}
    for path in sorted(linked - PAGES.keys() - {None}):
        copy = f"{COPIES}/{path}"
        files.append(File.generated(config, copy, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Let links to files above docs/ lead to their pages or copies."""
    uri = page.file.src_uri
    if uri in PAGES.values():
        return markdown
    return relinked(markdown, f"docs/{uri}", uri)


def on_page_content(content: str, **_: object) -> str:
    """Formulas as MathML."""
    return FORMULA.sub(_drawn, content)


def _drawn(match: re.Match[str]) -> str:
    display = "block" if match[2] == "[" else "inline"
    return match[1] + convert(html.unescape(match[3]), display=display) + match[4]


def outside(target: str, path: str) -> str | None:
    """The path in the repository of a link in the file `path`; None if in docs/ or elsewhere."""
    if ":" in target:
        return None
    whole = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return None if whole.startswith("docs/") else whole


def relinked(text: str, path: str, uri: str) -> str:
    """The text of the file `path` with its links as the page `uri` needs them."""
    return LINK.sub(_pointing(path, posixpath.dirname(uri)), text)


def _pointing(path: str, folder: str) -> Callable[[re.Match[str]], str]:
    def point(match: re.Match[str]) -> str:
        target = match[2]
        if ":" in target:
            return match[0]
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if whole.startswith("docs/"):
            found = whole.removeprefix("docs/")
        else:
            found = PAGES.get(whole, f"{COPIES}/{whole}")
        return match[1] + posixpath.relpath(found, folder or ".")

    return point
