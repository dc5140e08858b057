import re
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest

from secateur.report import anatomy_svg

SVG = "{http://www.w3.org/2000/svg}"


def groups(root: Element) -> list[Element]:
    return [g for g in root.iter(f"{SVG}g") if "branch" in g.get("class", "").split()]


def path(group: Element, kind: str) -> list[tuple[float, ...]]:
    """Rectangles (x, y, width, height) of the path with these classes."""
    found = [p for p in group.iter(f"{SVG}path") if p.get("class") == kind]
    assert len(found) == 1
    numbers = r"M([-\d.]+) ([-\d.]+)h([-\d.]+)v([-\d.]+)"
    return [tuple(map(float, match)) for match in re.findall(numbers, found[0].get("d", ""))]


def area(rectangles: list[tuple[float, ...]]) -> float:
    return sum(width * height for _, _, width, height in rectangles)


def attention(qk: int, vo: int, heads: int = 4) -> dict[str, int]:
    return {"heads": heads, "qk": qk, "vo": vo}


def made_up(record: dict[str, Any], blocks: int) -> dict[str, Any]:
    """The record of a model with any number of blocks, for looking at the layout alone."""
    own = []
    for block in range(blocks):
        for kind, dense, kept, params in (
            ("attention", attention(32, 16), attention(8, 12, 3), 40_000),
            ("mlp", {"hidden": 512}, {"hidden": 128}, 80_000),
        ):
            own.append(
                {
                    "id": f"blocks.{block}.{kind}",
                    "kind": kind,
                    "block": block,
                    "dense": dense,
                    "kept": kept,
                    "macs": {"dense": params, "pruned": params // 2},
                    "params": {"dense": params, "pruned": params // 2},
                }
            )
    return record | {"branches": own}


def test_one_group_per_branch_in_stream_order(record: dict[str, Any]) -> None:
    drawn = groups(fromstring(anatomy_svg(record)))
    assert [g.get("data-branch") for g in drawn] == [b["id"] for b in record["branches"]]
    for group, branch in zip(drawn, record["branches"], strict=True):
        title = group.find(f"{SVG}title")
        assert title is not None and title.text is not None and branch["id"] in title.text


def test_a_dropped_branch_is_an_empty_struck_outline(record: dict[str, Any]) -> None:
    drawn = groups(fromstring(anatomy_svg(record)))
    marks = {g.get("data-branch"): "dropped" in g.get("class", "").split() for g in drawn}
    assert marks == {b["id"]: b["kept"] is None for b in record["branches"]}
    assert sum(marks.values()) == 1
    (gone,) = [g for g in drawn if marks[g.get("data-branch")]]
    kinds = [p.get("class") for p in gone.iter(f"{SVG}path")]
    assert kinds == ["outline", "strike"]
    assert all(p.get("fill") == "none" for p in gone.iter(f"{SVG}path"))
    assert gone.find(f"{SVG}path[@stroke-dasharray]") is not None
    assert [t.text for t in gone.iter(f"{SVG}text")] == ["dropped"]


def test_what_is_left_is_drawn_to_scale(record: dict[str, Any]) -> None:
    first, mlp = groups(fromstring(anatomy_svg(made_up(record, 3))))[:2]
    for kind, share in (("qk", 8 / 32), ("vo", 12 / 16)):
        before, after = path(first, f"ghost {kind}"), path(first, f"solid {kind}")
        assert len(before) == 4 and len(after) == 3
        assert after[0][3] / before[0][3] == pytest.approx(share, abs=0.01)
        # Both stand on the side of the stream, which runs beneath attention.
        assert after[0][1] + after[0][3] == pytest.approx(before[0][1] + before[0][3], abs=0.11)
    assert path(first, "ghost qk")[0][3] / path(first, "ghost vo")[0][3] == pytest.approx(2, 0.01)
    before, after = path(mlp, "ghost hidden"), path(mlp, "solid hidden")
    assert area(after) / area(before) == pytest.approx(128 / 512, abs=0.01)
    assert after[0][1] == before[0][1]


def test_areas_are_proportional_to_parameters(record: dict[str, Any]) -> None:
    first, mlp = groups(fromstring(anatomy_svg(made_up(record, 12))))[:2]
    whole = area(path(first, "ghost qk")) + area(path(first, "ghost vo"))
    assert area(path(mlp, "ghost hidden")) / whole == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(("blocks", "rows"), [(1, 1), (3, 1), (12, 1), (13, 2), (24, 2), (48, 4)])
def test_everything_is_inside_the_picture(record: dict[str, Any], blocks: int, rows: int) -> None:
    root = fromstring(anatomy_svg(made_up(record, blocks)))
    left, top, width, height = map(float, root.get("viewBox", "").split())
    assert width <= 1200
    assert sum(g.get("class") == "stretch" for g in root.iter(f"{SVG}g")) == rows
    drawn = groups(root)
    assert len(drawn) == 2 * blocks
    boxes = [
        box
        for g in drawn
        for p in g.iter(f"{SVG}path")
        if "ghost" in p.get("class", "")
        for box in path(g, p.get("class", ""))
    ]
    assert all(left <= x and x + w <= left + width for x, _, w, _ in boxes)
    assert all(top <= y and y + h <= top + height for _, y, _, h in boxes)
    texts = [float(t.get("y", "")) for t in root.iter(f"{SVG}text")]
    assert min(texts) > top and max(texts) < top + height


def test_boxes_of_different_blocks_do_not_overlap(record: dict[str, Any]) -> None:
    drawn = groups(fromstring(anatomy_svg(made_up(record, 12))))
    spans = [path(g, "ghost hidden")[0] for g in drawn if "mlp" in g.get("class", "")]
    for (x, _, width, _), (following, *_) in pairwise(spans):
        assert x + width < following


def test_the_file_stands_alone(record: dict[str, Any]) -> None:
    text = anatomy_svg(record | {"model": 'a <b> & "c"'})
    root = fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert not re.search(r"url\(|href|<style|<script|var\(|@import", text)
    assert text.count("http") == 1  # the namespace
    background = root.find(f"{SVG}rect")
    assert background is not None and background.get("fill") == "#ffffff"
    assert any(t.text == 'a <b> & "c"' for t in root.iter(f"{SVG}text"))
