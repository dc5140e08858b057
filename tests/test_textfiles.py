"""Files that people write: one sentence for whatever they hold, in every kind of file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from secateur.errors import QUOTED, UserError, short
from secateur.presets import load_preset
from secateur.recipes import load_recipe
from secateur.study.spec import read_study
from secateur.textfiles import (
    DEEPEST,
    LARGEST,
    MOST_NODES,
    lines_of,
    parse_json,
    parse_mapping,
    parse_yaml,
    read_text,
)
from secateur.training.settings import TrainSettings, read_settings

KINDS: dict[str, Callable[[Path], object]] = {
    "preset": lambda path: load_preset(str(path)),
    "recipe": lambda path: load_recipe(str(path)),
    "recipe in JSON": lambda path: load_recipe(str(path.rename(path.with_suffix(".json")))),
    "study": read_study,
    "settings": lambda path: read_settings(TrainSettings, path),
}

LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
)
MERGES = "\n".join(
    ["a0: &a0 {k: v, l: v}"]
    + [f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
)

HOSTILE = {
    "aliases": (LAUGHS, "more than"),
    "merged aliases": (MERGES, "more than"),
    "an alias within itself": ("a: &a [*a]", "within what it names"),
    "a chain of aliases": (
        "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 99)]),
        "deep",
    ),
    "int of letters": ("a: !!int x", "not of the type"),
    "empty int": ("a: !!int ''", "not of the type"),
    "empty float": ("a: !!float ''", "not of the type"),
    "bool of letters": ("a: !!bool maybe", "not of the type"),
    "no timestamp": ("a: !!timestamp soon", "not of the type"),
    "no date": ("a: 2001-99-99", "not of the type"),
    "a date": ("a: 2001-01-01", "quotes"),
    "bytes": ("a: !!binary aGFsbG8=", "bytes"),
    "a set": ("a: !!set {b}", "set"),
    "deep lists": ("a: " + "[" * 50_000, "deep"),
    "deep mappings": ("a: " + "{a: " * 5_000 + "1" + "}" * 5_000, "deep"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(300)), "deep"),
    "half a character": ('a: "\\ud800"', "UTF-8"),
    "beyond all characters": ('a: "\\UFFFFFFFF"', ""),
    "digits": ("a: " + "9" * 20_000, "not of the type"),
    "hexadecimal digits": ("a: 0x" + "f" * 20_000, "63 bits"),
    "sexagesimal digits": ("a: 9" + ":59" * 2_000 + ".5", "not of the type"),
    "many values": ("a: [" + "1," * 60_000 + "]", "more than"),
    "a large file": ("#" * (LARGEST + 1), "larger than"),
    "control characters": ("a: \x00", ""),
    "code": ("a: !!python/object/apply:os.system [ls]", "constructor"),
    "two documents": ("a: 1\n---\nb: 2", "document"),
    "a list as key": ("? [a]\n: b", "key"),
    "a number as key": ("1: b", "quotes"),
    "Norwegian keys": ("no: b", "quotes"),
    "an open list": ("a: [", "line 1"),
    "a name twice": ("a: 1\nb: 2\na: 3", "'a' stands twice in one mapping"),
    "an inner name twice": ("a: {b: {c: 1, 'c': 1}}", "'c' stands twice"),
    "a name twice in JSON": ('{"a": 1, "a": 1}', "'a' stands twice"),
    "two merges": ("x: &x {a: 1}\ny: {<<: *x, <<: *x}", "'<<' stands twice"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", HOSTILE)
def test_every_kind_of_file_refuses_with_one_sentence(kind: str, case: str, tmp_path: Path) -> None:
    text, words = HOSTILE[case]
    path = tmp_path / "given.yaml"
    path.write_text(text, encoding="utf-8", newline="\n")
    with pytest.raises(UserError) as caught:
        KINDS[kind](path)
    sentence = str(caught.value)
    assert words in sentence and "given." in sentence
    assert "\n" not in sentence and sentence.endswith(".")
    assert len(sentence) < len(str(path)) + 2 * QUOTED


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_text_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match=r"cannot be read: it is no text in UTF-8\."):
        KINDS[kind](path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "JSON" not in kind])
def test_pipes_and_directories_are_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("folder.yaml", "pipe.yaml"):
        with pytest.raises(UserError, match=r"cannot be read: it is no regular file\."):
            KINDS[kind](tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["{}: 1", "repair: {}", "budgets: ['{}']", "time: {}"])
def test_messages_quote_a_little_of_a_long_text(kind: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(text.replace("{}", "word" * 5_000), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        KINDS[kind](path)
    assert "word" * (QUOTED // 4 + 1) not in str(caught.value)


def test_aliases_are_followed_where_they_are_few() -> None:
    found = parse_mapping("a: &a {x: 1}\nb: *a\nc:\n  <<: *a\n  y: 2", "the file")
    assert found == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


def test_the_bounds_themselves_are_allowed() -> None:
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert parse_yaml(deep[1:-1], "it") is not None
    assert len(parse_yaml("[" + "1," * (MOST_NODES - 1) + "]", "it")) == MOST_NODES - 1


def test_plain_values_come_as_they_are() -> None:
    text = 'a: [1, 2.5, true, null, "é", .inf]\nb: {c: -9223372036854775807}'
    found = parse_yaml(text, "it")
    assert found == {"a": [1, 2.5, True, None, "é", float("inf")], "b": {"c": -(2**63) + 1}}
    assert parse_mapping("", "it") == {}


def test_lines() -> None:
    assert lines_of("a: 1\nb:\n- x\n- {c: 2}", "it") == {
        ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "c"): 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "{", "[" * 100_000, '"\\ud800"', "9" * 5_000, "9" * 50, "[" * 60 + "]" * 60,
        '[{"a": {"b": 1, "b": 1}}]',
    ],
)  # fmt: skip
def test_json_is_bounded_too(text: str) -> None:
    with pytest.raises(UserError, match="it is not readable JSON"):
        parse_json(text, "it")


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_text(tmp_path / "x", "it") == "a: 1"


def test_short_texts() -> None:
    assert short("a\n b") == "a b"
    assert len(short("x" * 10**6)) == QUOTED
    assert short("\ud800") == "\\ud800"
