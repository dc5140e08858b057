"""`secateur learn` on the command line."""

from pathlib import Path

import pytest

import secateur
from tests.cli.conftest import Run

SHORT = ("--steps", 8, "--batch-size", 16, "--limit", 96)


def test_learn_and_what_it_saves(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "small"
    found = run(
        "learn", "digits_vit", "--data", "digits/train", "--budget", "40% params", "--sharing",
        "independent", "--out", out, *SHORT, "--eval-data", "digits", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    told = found.json
    assert (told["out"], told["preset"], told["budget"]) == (
        str(out), "learned_masks", "40% params"
    )  # fmt: skip
    assert told["params"]["pruned"] <= 0.4 * told["params"]["dense"] == 0.4 * 302_154
    assert told["macs"]["pruned"] < told["macs"]["dense"]
    assert told["seconds"] > 0 and told["accuracy"]["pruned"]["n"] == 450
    learning = told["learning"]
    assert learning["sharing"] == "independent"
    assert learning["masked_percent"] > learning["removed_percent"] >= 60
    assert learning["steps"] == {"search": 2, "tune": 6}
    assert "Outputs of proj and fc2 stay" in found.err, "said before training"
    model = secateur.load(out)
    assert sum(p.numel() for p in model.parameters()) == told["params"]["pruned"]
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


def test_people_read_masked_beside_removed(run: Run, tmp_path: Path) -> None:
    found = run(
        "learn", "digits_vit", "--data", "digits/train", "--budget", "50% macs", "--sharing",
        "per_head", "--out", tmp_path / "small", *SHORT,
    )  # fmt: skip
    assert found.code == 0, found.err
    text = " ".join(found.out.split())
    assert "Budget 50% macs" in text and "Masked:" in text and "removed:" in text


def test_a_model_pruned_before_learns_from_the_reference(run: Run, tmp_path: Path) -> None:
    first = tmp_path / "first"
    given = ("--data", "digits/train", "--budget", "60% params")
    assert run("prune", "digits_vit", *given, "--limit", 64, "--out", first).code == 0
    found = run(
        "learn", first, *given, "--reference", "digits_vit", "--out", tmp_path / "second", *SHORT,
        "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert found.json["learning"]["reference"] == "zoo:digits_vit"
    found = run(
        "learn", first, *given, "--reference-checkpoint", "w.safetensors", "--out",
        tmp_path / "third", *SHORT,
    )  # fmt: skip
    assert found.code == 2 and "needs the name of its model: --reference" in found.err
    assert not (tmp_path / "third").exists()


def test_from_scratch_makes_a_head_for_the_data(run: Run, tmp_path: Path) -> None:
    found = run(
        "learn", "timm:test_vit", "--from-scratch", "--img-size", 32, "--data", "digits/train",
        "--budget", "60% params", "--out", tmp_path / "small", *SHORT, "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert set(found.json["learning"]["steps"]) == {"warmup", "search", "tune"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--budget", "1% params"), "out of reach"),
        (("--budget", "50% hidden"), "whole model"),
        (("--sharing", "mixt"), "did you mean 'mixed'"),
        (("--gates", "pitt"), "did you mean 'pit'"),
        (("--search-share", "1"), "leave a share"),
        (("--search-share", "2"), "search_share"),
        (("--groups", "hiden"), "did you mean 'hidden'"),
        (("--data", "nowhere"), "no images at"),
        (("--align", "hidden"), "cannot be understood"),
    ],
)
def test_wrong_input(run: Run, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    given = {"--data": "digits/train", "--budget": "40% params", "--out": str(tmp_path / "o")}
    given[change[0]] = change[1]
    words = [word for pair in given.items() for word in pair]
    found = run("learn", "digits_vit", *words, "--limit", "64", "--steps", "4")
    assert found.code == 2
    assert message in " ".join(found.err.split())
    assert not list(tmp_path.iterdir())
