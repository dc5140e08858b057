from pathlib import Path

import pytest

from secateur.criteria import criteria
from secateur.errors import UserError
from secateur.methods.request import DEFAULT
from secateur.presets import load_preset, parse_preset, preset_names

GOOD = """
title: A method
source: a paper
groups: [hidden, qk]
criterion: energy
criteria: {qk: taylor}
repair: mean
"""


def test_fields_take_their_place() -> None:
    preset = parse_preset("mine", GOOD)
    assert (preset.name, preset.title, preset.source) == ("mine", "A method", "a paper")
    assert preset.groups == ("hidden", "qk")
    assert preset.criterion_for("qk") == "taylor" and preset.criterion_for("hidden") == "energy"
    assert (preset.repair, preset.allocation) == ("mean", "uniform")


@pytest.mark.parametrize("name", preset_names())
def test_presets_that_ship_can_score_their_groups(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name and preset.title and preset.source
    if preset.method == "criteria":
        for group in preset.groups:
            assert group in criteria.get(preset.criterion_for(group)).needs
        for group, criterion in preset.criteria.items():
            assert group in criteria.get(criterion).needs


def test_the_default_ships() -> None:
    assert DEFAULT in preset_names()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("repare: mean", "'mine': unknown field 'repare'; did you mean 'repair'"),
        ("criterion: enrgy", "unknown criterion 'enrgy'; did you mean 'energy'"),
        ("criteria: {hidden: enrgy}", "unknown criterion 'enrgy'"),
        ("repair: glue", "'mine': field 'repair'"),
        ("allocation: lottery", "'mine': field 'allocation'"),
        ("groups: [hidden, neurons]", r"'mine': field 'groups\.1'"),
        ("groups: hidden", "'mine': field 'groups'"),
        ("criteria: {neurons: energy}", r"'mine': field 'criteria\.neurons"),
        ("per_cost: perhaps", "'mine': field 'per_cost'"),
        ("title: [", "'mine' is not valid YAML"),
    ],
)
def test_wrong_fields_are_named(line: str, words: str) -> None:
    field = line.split(":")[0]
    kept = [old for old in GOOD.strip().splitlines() if not old.startswith(field + ":")]
    with pytest.raises(UserError, match=words):
        parse_preset("mine", "\n".join([*kept, line]))


@pytest.mark.parametrize("field", ["title", "source", "groups"])
def test_missing_fields_are_named(field: str) -> None:
    kept = [line for line in GOOD.strip().splitlines() if not line.startswith(field)]
    with pytest.raises(UserError, match=f"'mine': field '{field}'"):
        parse_preset("mine", "\n".join(kept))


@pytest.mark.parametrize("text", ["", "- a\n- b", "just words", "!!python/object:os.system {}"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="'mine' is not valid YAML"):
        parse_preset("mine", text)


def test_files_are_read_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_preset(str(path)).criterion_for("qk") == "taylor"
    with pytest.raises(UserError, match=r"absent\.yaml' cannot be read: No such file"):
        load_preset(str(tmp_path / "absent.yaml"))


def test_fields_are_read_by_their_earlier_names() -> None:
    lines = "engine: spectral\nstand_in: mean\nmenus: measured\n"
    preset = parse_preset("mine", f"title: A method\nsource: a paper\ngroups: [qk]\n{lines}")
    assert (preset.method, preset.candidates) == ("spectral", "measured")
    assert preset.replacement == "mean"


def test_unknown_presets_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown preset 'enrgy'; did you mean 'energy'"):
        load_preset("enrgy")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("groups: [hidden]\nsearch: iterative", "'mine': search 'iterative' drops whole layers"),
        ("groups: [branch]\nsearch: greedy", "let its criterion be one of delta_angle"),
        ("groups: [branch]\nsearch: window", "compares the ends of runs of blocks"),
        ("groups: [branch]\nreplacement: glue", "'mine': field 'replacement'"),
        ("groups: [branch]\nkeep_ends: -1", "'mine': field 'keep_ends'"),
        ("groups: [branch]\nrotate: true", "'rotate' needs 'width' among 'groups'"),
        ("groups: [width]\nmethod: spectral\nrotate: true", "and the method 'criteria'"),
    ],
)
def test_searches_that_cannot_work_are_refused(lines: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_preset("mine", f"title: A method\nsource: a paper\ncriterion: cosine\n{lines}\n")
