"""Studies are read strictly; what is wrong is named with its line before anything is run."""

from pathlib import Path
from typing import Any

import pytest

from secateur.errors import UserError
from secateur.study.cells import cells_of
from secateur.study.spec import read_study
from tests.study.conftest import Write


def test_a_name_is_short_for_a_model(write: Write) -> None:
    study = read_study(write())
    assert study.models["digits"].source == "digits_vit"
    assert study.repair == ("none", "least_squares") and study.latency is None


def test_cells_are_all_that_makes_sense_seed_by_seed(write: Write) -> None:
    cells = cells_of(read_study(write()))
    # attention: random, magnitude, delta_kl; hidden: random, magnitude, energy.
    assert len(cells) == (3 + 3) * 2 * 2 * 2
    assert {(c.structure, c.score) for c in cells} == {
        *(("attention", score) for score in ("random", "magnitude", "delta_kl")),
        *(("hidden", score) for score in ("random", "magnitude", "energy")),
    }
    assert [cell.seed for cell in cells] == [0] * 24 + [1] * 24
    assert len({cell.id for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("changes", "near", "words"),
    [
        ({"bugdets": ["90% macs"]}, "bugdets:", "unknown key 'bugdets'; did you mean 'budgets'"),
        (
            {"scores": ["random", "magnitud"]},
            "- magnitud\n",
            "unknown score 'magnitud'; did you mean 'magnit",
        ),
        (
            {"structures": ["attention", "hiden"]},
            "- hiden",
            "unknown structure 'hiden'; did you mean",
        ),
        ({"repair": ["glue"]}, "- glue", "unknown repair 'glue'; Known: none, mean, least_squares"),
        ({"budgets": []}, "budgets: []", "'budgets' is empty, so the grid has no cell"),
        ({"seeds": []}, "seeds: []", "'seeds' is empty"),
        ({"models": {}}, "models: {}", "'models' is empty"),
        ({"seeds": [0, 0]}, "- 0\n- 0", "'0' stands in seeds twice"),
        ({"seeds": ["one"]}, "- one", r"'seeds\.0': input should be a valid integer"),
        ({"budgets": ["drop 2 blocks"]}, "- drop 2", "does not fit every structure"),
        ({"budgets": ["90% maks"]}, "- 90% maks", "cannot be understood"),
        ({"budgets": ["2x faster"]}, "- 2x faster", "does not fit every structure"),
        (
            {"evaluation": {"data": "digits", "limits": 3}},
            "limits: 3",
            "unknown key 'limits'; did you mean",
        ),
        ({"models": {"a": {"source": "digits_vit", "men": 0.5}}}, "men: 0.5", "unknown key 'men'"),
        ({"evaluation": {"limit": 3}}, "digits: digits_vit", "no evaluation images"),
        (
            {"latency": {"runtime": "eagr"}},
            "runtime: eagr",
            "unknown runtime 'eagr'; did you mean 'eager'",
        ),
        (
            {"latency": {"clock": "processr"}},
            "clock: processr",
            "unknown clock 'processr'; did you mean 'processor'",
        ),
        (
            {"latency": {"clock": "processor"}, "threads": 2},
            "clock: processor",
            "adds up over 2 threads; measure with one thread",
        ),
        ({"models": {"a": "$NOWHERE_AT_ALL/x"}}, "a: $NOWHERE", "not set in the environment"),
    ],
)
def test_mistakes_are_named_with_their_line(
    write: Write, changes: dict[str, Any], near: str, words: str
) -> None:
    path = write(**changes)
    text = path.read_text(encoding="utf-8")
    line = text[: text.index(near)].count("\n") + 1 + near.count("\n- ")
    with pytest.raises(UserError, match=rf"study\.yaml, line {line}: .*{words}"):
        read_study(path)


def test_a_needed_key_that_is_written_wrong_is_named(write: Write) -> None:
    path = write()
    path.write_text(path.read_text(encoding="utf-8").replace("budgets:", "bugdets:"))
    with pytest.raises(UserError, match=r"line \d+: unknown key 'bugdets'; did you mean 'budgets'"):
        read_study(path)


@pytest.mark.parametrize("key", ["title", "models", "structures", "scores", "budgets"])
def test_missing_keys_are_named(write: Write, key: str) -> None:
    path = write()
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f"\n{key}:", "\nseeds:", 1).replace(f"{key}:", "threads:", 1))
    with pytest.raises(UserError):
        read_study(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "empty or no mapping"), ("- a", "empty or no mapping"), ("a: [", "no valid|not valid")],
)
def test_what_is_no_study_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_study(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_study(tmp_path / "absent.yaml")


def test_a_grid_whose_scores_fit_nothing_is_refused(write: Write) -> None:
    study = read_study(write(structures=["qk"], scores=["cosine"]))
    with pytest.raises(UserError, match="no cell; name others"):
        cells_of(study)


def test_paths_beside_the_file_and_of_the_environment_are_found(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.safetensors").touch()
    monkeypatch.setenv("IMAGES", "digits")
    path = write(
        models={"a": {"source": "digits_vit", "checkpoint": "weights.safetensors"}},
        evaluation={"data": "${IMAGES}/test"},
    )
    study = read_study(path)
    assert study.models["a"].checkpoint == str(tmp_path / "weights.safetensors")
    assert study.evaluation.data == "digits/test"


def test_some_of_the_models_can_be_run_without_the_files_of_the_others(write: Write) -> None:
    both = write(models={"here": "digits_vit", "away": "$NOWHERE_AT_ALL/x"})
    study = read_study(both, ["here"])
    assert list(study.models) == ["here"]
    assert {cell.model for cell in cells_of(study)} == {"here"}
    with pytest.raises(UserError, match="not set in the environment"):
        read_study(both)
    with pytest.raises(UserError, match=r"study\.yaml: unknown model 'her'; did you mean 'here'"):
        read_study(both, ["her"])
    with pytest.raises(UserError, match=r"no model was named; those of .* are here, away"):
        read_study(both, [])
