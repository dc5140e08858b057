"""The command line: one file per verb; heavy libraries are imported when a verb runs."""

import codecs
import sys

import typer

from secateur.cli.analyze import analyze
from secateur.cli.bench import bench
from secateur.cli.common import Version
from secateur.cli.demo import demo
from secateur.cli.evaluate import evaluate
from secateur.cli.export import export
from secateur.cli.heal import heal
from secateur.cli.inspect import inspect
from secateur.cli.learn import learn
from secateur.cli.prune import prune
from secateur.cli.study import study
from secateur.cli.train import train

app = typer.Typer(
    name="secateur",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _app(version: Version = False) -> None:
    """Make trained vision transformers smaller and faster by removing what they do not need.

    Start with: secateur demo
    """


for _verb in (inspect, analyze, prune, learn, heal, train, evaluate, bench, export, study, demo):
    app.command()(_verb)


PLAIN: dict[str, str | int | None] = {
    "\xa0": " ",
    "·": "-",
    "–": "-",
    "−": "-",
    "─": "-",
    "×": "x",
    "→": "->",
    "±": "+-",
}
PLAIN |= {"…": "...", "‖": "||", "≤": "<=", "≥": ">="}
"""What a terminal without these characters is shown."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, in those that it has."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(str.maketrans(PLAIN))
    return text.encode("ascii", "replace").decode("ascii"), error.end


def main() -> None:
    """Entry point of the program."""
    codecs.register_error("secateur", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="secateur")
    app()
