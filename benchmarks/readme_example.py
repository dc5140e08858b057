"""Run the Python example in README.md and write its output below it.

Run: python benchmarks/readme_example.py. The example needs no network.
"""

import contextlib
import io
import os
import re
import sys
import tempfile

from readme_tables import README, replaced


def code(text: str) -> str:
    """The example."""
    found = re.search(r"<!-- code -->\s*```python\n(.*?)```\s*<!-- /code -->", text, re.DOTALL)
    if found is None:
        raise SystemExit("README.md has no example between <!-- code --> and <!-- /code -->")
    return found[1]


def output(source: str) -> str:
    """What the example prints, run in an empty folder."""
    printed, here = io.StringIO(), os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        os.chdir(folder)
        try:
            exec(compile(source, "README.md", "exec"), {})
        finally:
            os.chdir(here)
    return printed.getvalue()


def main() -> None:
    """Rewrite the output."""
    text = README.read_text(encoding="utf-8")
    block = f"```text\n{output(code(text))}```"
    README.write_text(replaced(text, "output", block), encoding="utf-8")
    sys.stdout.write(f"{README.name}: output rewritten\n")


if __name__ == "__main__":
    main()
