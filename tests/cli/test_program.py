"""The installed program: quick to start, the same verbs everywhere."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import secateur
from tests.cli.conftest import Run

VERBS = ["inspect", "prune", "evaluate", "bench", "export", "study", "demo"]
HEAVY = ["torch", "timm", "numpy", "sklearn", "PIL"]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_version_and_json(run: Run, verb: str) -> None:
    helped = run(verb, "--help")
    assert helped.code == 0
    assert all(option in helped.out for option in ("--json", "--help", "--version", "--debug"))
    told = run(verb, "--version")
    assert (told.code, told.out) == (0, f"secateur {version('secateur')}\n")


def test_the_program_lists_its_verbs(run: Run) -> None:
    helped = run("--help")
    assert all(verb in helped.out for verb in VERBS)
    assert run("--version").out == f"secateur {version('secateur')}\n"
    assert run("prun").code == 2


def test_help_is_quick_since_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, json, secateur; from typer.testing import CliRunner;"
        "from secateur.cli import app;"
        "codes = [CliRunner().invoke(app, [*verb, '--help']).exit_code"
        f" for verb in [[], *[[v] for v in {VERBS}]]];"
        "print(json.dumps([codes, [m for m in sys.argv[1:] if m in sys.modules]]))"
    )
    found = python("-c", code, *HEAVY)
    assert json.loads(found.stdout) == [[0] * (1 + len(VERBS)), []], found.stderr


def test_a_saved_model_in_a_fresh_process(pruned_once: Path) -> None:
    found = python("-m", "secateur", "evaluate", str(pruned_once), "--data", "digits", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["n"] == 450
    assert found.stderr == ""


def test_the_same_verbs_as_functions() -> None:
    assert {"load", "prune", "evaluate", "inspect", "bench", "demo"} <= set(dir(secateur))
    assert all(hasattr(secateur, name) for name in dir(secateur))
    assert secateur.__version__ == version("secateur")
    with pytest.raises(AttributeError, match="no attribute 'prone'"):
        _ = secateur.prone
