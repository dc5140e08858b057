"""Try every verb on every architecture, at reduced sizes: python benchmarks/support_matrix.py.

Writes docs/results/support_matrix.md and its summary in README.md. Rows are kept in
benchmarks/out/support_matrix.jsonl; a row is tried again only after a change of what reads, saves
or makes models.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from _common import HERE, versions, write_page
from _support_architectures import ARCHITECTURES
from _support_checks import CHECKS, tried
from _support_page import page
from readme_tables import main as rewrite_readme

STORE = HERE / "out" / "support_matrix.jsonl"
SOURCE = HERE.parent / "src" / "secateur"
HOSTS = ("torch", "timm", "transformers", "torchvision")


def fingerprint() -> str:
    """Changes with what reads and saves models, with what is tried, and with the libraries."""
    found = hashlib.sha256("".join(version(name) for name in HOSTS).encode())
    files = [*sorted((SOURCE / "models").rglob("*.py"))]
    files += sorted((SOURCE / "storage" / "libraries").rglob("*.py"))
    for path in (*files, HERE / "_support_checks.py"):
        found.update(str(path.relative_to(HERE.parent)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def recipe(name: str) -> str:
    """How an architecture is built, in words."""
    build = ARCHITECTURES[name]
    if isinstance(build, partial):
        return f"{build.func.__qualname__} {build.args} {build.keywords}"
    return build.__qualname__


def stored(key: str) -> dict[str, dict[str, Any]]:
    """Rows that were tried under this key and are still built alike, by name."""
    if not STORE.is_file():
        return {}
    rows = map(json.loads, STORE.read_text(encoding="utf-8").splitlines())
    known = (row for row in rows if row["key"] == key and row["name"] in ARCHITECTURES)
    return {row["name"]: row for row in known if row["recipe"] == recipe(row["name"])}


def fresh(names: list[str], key: str, jobs: int) -> Iterator[dict[str, Any]]:
    """Rows as they are done, each kept at once."""
    STORE.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for done in as_completed([pool.submit(tried, name) for name in names]):
            row = done.result()
            row |= {"key": key, "recipe": recipe(row["name"])}
            with STORE.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            yield row


def brief(row: dict[str, Any]) -> str:
    """A row in a line, failures in full."""
    answers = {"whole": row["whole"], **row["checks"]}
    failed = [f"{k}: {a['reason']}" for k, a in answers.items() if a["state"] == "fails"]
    passed = sum(row["checks"].get(check, {}).get("state") == "pass" for check in CHECKS)
    return " | ".join([f"{row['name']}: {passed} of {len(CHECKS)}", *failed])


def main() -> None:
    """Try what is new, then write the page and the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args()
    key = fingerprint()
    rows = stored(key)
    for row in fresh([name for name in ARCHITECTURES if name not in rows], key, args.jobs):
        rows[row["name"]] = row
        print(brief(row), flush=True)
    foot = f"`python benchmarks/support_matrix.py`; {versions('transformers', 'torchvision')}."
    write_page("support_matrix", page([rows[name] for name in ARCHITECTURES], foot))
    rewrite_readme()


if __name__ == "__main__":
    main()
