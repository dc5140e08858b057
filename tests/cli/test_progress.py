"""Off a terminal, a run says now and then how far it is, with a time left that does not jump."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from secateur.cli import progress
from secateur.verbs.analyze import analyze
from tests.cli.conftest import Run
from tests.cli.test_overwrite import DATA, QUICK
from tests.cli.test_study import GRID
from tests.hosts import build, images_for

LINE = re.compile(r"(\w[\w ]*): ([\d,]+) of ([\d,]+) \((\d+) %\)(?:, (.+) left)?")


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that is set by hand."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_line_every_half_minute(
    hour: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress_bar(silent=False) as report:
        for done in range(1, 101):
            hour.now += 10 if done % 2 else 4
            report("observe", done, 100)
        hour.now += 5
        report("cut", 1, 2)
    found = [LINE.fullmatch(line) for line in capsys.readouterr().err.splitlines()]
    assert len(found) == 700 // 35
    assert found[0] is not None and found[0].groups()[:4] == ("observe", "5", "100", "5")
    for match in found[1:-1]:
        assert match is not None
        minutes, seconds = map(int, re.findall(r"\d+", match[5]))
        assert 60 * minutes + seconds == pytest.approx(7 * (100 - int(match[2])), rel=0.1)


def test_a_resumed_stage_counts_its_own_work_only(
    hour: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress_bar(silent=False) as report:
        report("train", 900, 1000)
        hour.now += 40
        report("train", 910, 1000)
        assert "train: 910 of 1,000 (91 %), 6 min 0 s left" in capsys.readouterr().err
        hour.now += 29
        report("train", 911, 1000)
    with progress.progress_bar(silent=True) as report:
        hour.now += 99
        report("train", 912, 1000)
    assert capsys.readouterr().err == ""


VERBS = {
    "prune": ["prune", "digits_vit", *DATA, "--budget", "60% macs", "--limit", 40, "--no-latency"],
    "analyze": ["analyze", "digits_vit", *DATA, "--limit", 16, "--no-latency"],
    "study": ["study", "STUDY"],
    "heal": ["heal", "INPUT", *DATA, *QUICK],
    "learn": ["learn", "digits_vit", *DATA, "--budget", "60% params", *QUICK],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_long_verb_says_how_far_it_is(
    verb: str, run: Run, pruned_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress.turn, "every", 0.0)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(GRID))
    files = {"INPUT": pruned_once, "STUDY": tmp_path / "study.yaml"}
    ended = run(*(files.get(str(word), word) for word in VERBS[verb]), "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    found = [match for line in ended.err.splitlines() if (match := LINE.fullmatch(line))]
    assert found, ended.err
    last: dict[str, tuple[int, int]] = {}
    for match in found:
        done, total = (int(match[part].replace(",", "")) for part in (2, 3))
        before, of = last.get(match[1], (0, total))
        assert done <= total and (before == of or (done >= before and total == of)), ended.err
        last[match[1]] = done, total


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_the_work_of_an_analysis_is_known_before_it_begins(effort: str) -> None:
    model, told = build("vit"), []
    found = analyze(
        model,
        images_for(model, 16),
        latency=False,
        effort=effort,
        progress=lambda stage, done, total: told.append((stage, done, total)),
    )
    done, totals = zip(*(each[1:] for each in told if each[0] == "remove"), strict=True)
    costs = found.record["costs"]
    passes = sum(16 * row["passes"] for row in costs if row["stage"] != "observe" and row["passes"])
    assert len(set(totals)) == 1 and totals[0] == pytest.approx(passes, rel=0.1)
    assert list(done) == sorted(done) and done[-1] == pytest.approx(min(passes, totals[0]), abs=1)
