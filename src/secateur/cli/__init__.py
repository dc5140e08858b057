"""The command line: one file per verb; heavy libraries are imported when a verb runs."""

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


def main() -> None:
    """Entry point of the program."""
    app()
