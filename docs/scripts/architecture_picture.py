"""Draw docs/images/architecture.svg from the imports: python docs/scripts/architecture_picture.py.

Rooms stand in their order (that of tests/test_structure.py) and each dot is an import of one room
by another, read from the source by `ast`. Beside them runs one call of `secateur prune`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from secateur.report.drawing.colours import DARK, LIGHT

PROJECT = Path(__file__).resolve().parents[2]
SOURCE = PROJECT / "src" / "secateur"
ORDER_FILE = PROJECT / "tests" / "test_structure.py"
PICTURE = PROJECT / "docs" / "images" / "architecture.svg"

Edge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run: the room at work, the room that calls it, and the work."""

    room: str
    caller: str
    work: str


RUN = (
    Step("cli", "", "options become a request"),
    Step("verbs", "cli", "open the model, check, call the method"),
    Step("storage", "verbs", "load named weights or a saved directory"),
    Step("models", "verbs", "read the structure of the model"),
    Step("methods", "verbs", "choose the method of the preset"),
    Step("presets", "methods", "read the preset"),
    Step("allocation", "verbs", "refuse a budget out of reach"),
    Step("data", "verbs", "stream the calibration images"),
    Step("statistics", "methods", "one pass: sums over images"),
    Step("criteria", "methods", "score the units"),
    Step("allocation", "methods", "choose one size per group"),
    Step("surgery", "methods", "cut a copy, repair the survivors"),
    Step("measurement", "verbs", "accuracy and latency, dense and pruned"),
    Step("report", "verbs", "one offline page"),
    Step("storage", "verbs", "save the directory as a whole"),
    Step("cli", "", "print the summary"),
)
"""`secateur prune --preset energy`, in order."""

ORDERED = "in order: a room imports only rooms above it, so all dots lie left of the diagonal"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
ROW, CELL, PITCH = 22, 15, 18
NAMES, TOP = 108, 186


def order() -> list[str]:
    """The rooms in the order in which data walks through them."""
    for node in ast.parse(ORDER_FILE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            rooms: list[str] = ast.literal_eval(node.value)
            return rooms
    raise SystemExit(f"{ORDER_FILE} holds no ORDER")


def edges() -> set[Edge]:
    """(importer, imported) for every pair of rooms of which the first imports the second."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).with_suffix("").parts[0]
        if not room.startswith("__"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {(room, other) for other in _imported(tree) if other != room}
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    """The rooms that a module imports; the project has no relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "secateur" and rest:
                yield rest.partition(".")[0]


def drawn(text: str) -> set[Edge]:
    """The edges that a picture shows."""
    found = re.findall(r'data-edge="(\w+) (\w+)"', text)
    return {(importer, imported) for importer, imported in found}


def picture() -> str:
    """The picture as SVG, for light and dark backgrounds."""
    rooms = order()
    lane = NAMES + CELL * len(rooms) + 26
    width = lane + PITCH * len(RUN) + 6
    matrix_end = TOP + ROW * len(rooms)
    lines = -(-len(RUN) // 2)
    height = matrix_end + 44 + 18 * lines + 10
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"-16 0 {width + 32} {height}",
            "width": str(width + 32),
            "height": str(height),
            "role": "img",
            "aria-label": "The rooms of secateur, their imports, and one run of secateur prune",
            "font-family": FONT,
            "font-size": "12",
        },
    )
    SubElement(root, "style").text = _style()
    _draw(root, "rect", "paper", x=-16, y=0, width=width + 32, height=height)
    _text(root, "ink", 0, 30, "The rooms of secateur", size=17, weight=600)
    _text(root, "muted", 0, 50, ORDERED)
    _text(root, "hidden-text", NAMES, 74, "● imports the room of the column", weight=600)
    _text(root, "qk-text", lane - 4, 74, "one run of secateur prune", weight=600)
    _rows(root, rooms, width)
    _matrix(root, rooms)
    _walk(root, rooms, lane)
    _legend(root, matrix_end + 34, width, lines)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _style() -> str:
    """Classes that colour fills; the dark set where the reader's system is dark."""
    names = ("paper", "panel", "ink", "muted", "line", "qk", "qk-text", "hidden", "hidden-text")

    def rules(colours: dict[str, str]) -> str:
        fills = " ".join(f".{name}{{fill:{colours[name]}}}" for name in names)
        return fills + f" .walk{{stroke:{colours['qk']}}} .on{{fill:{colours['paper']}}}"

    return f"{rules(LIGHT)} @media (prefers-color-scheme: dark){{{rules(DARK)}}}"


def _rows(root: Element, rooms: list[str], width: int) -> None:
    for index, room in enumerate(rooms):
        y = TOP + ROW * index
        if index % 2 == 0:
            _draw(root, "rect", "panel", x=-8, y=y, width=width + 16, height=ROW)
        _text(root, "ink", NAMES - 10, y + 15, room, anchor="end", size=13)


def _matrix(root: Element, rooms: list[str]) -> None:
    for index, room in enumerate(rooms):
        x = NAMES + CELL * index + CELL / 2
        label = _text(root, "muted", 0, 0, room)
        label.set("transform", f"translate({x + 4} {TOP - 6}) rotate(-90)")
        _draw(root, "rect", "line", x=x - 5, y=TOP + ROW * index + 6, width=10, height=10, rx=2)
    for importer, imported in sorted(edges()):
        x = NAMES + CELL * rooms.index(imported) + CELL / 2
        y = TOP + ROW * rooms.index(importer) + ROW / 2
        dot = _draw(root, "circle", "hidden", cx=x, cy=y, r=3.6)
        dot.set("data-edge", f"{importer} {imported}")
        SubElement(dot, "title").text = f"{importer} imports {imported}"


def _walk(root: Element, rooms: list[str], lane: int) -> None:
    places = [
        (lane + PITCH * index + PITCH / 2, TOP + ROW * rooms.index(step.room) + ROW / 2)
        for index, step in enumerate(RUN)
    ]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
    line = _draw(root, "path", "walk", d=path, fill="none")
    line.set("stroke-width", "1.6")
    line.set("stroke-linejoin", "round")
    for number, ((x, y), step) in enumerate(zip(places, RUN, strict=True), start=1):
        dot = _draw(root, "circle", "qk", cx=x, cy=y, r=8.5)
        SubElement(dot, "title").text = f"{step.room}: {step.work}"
        _text(root, "on", x, y + 3.8, str(number), anchor="middle", size=10.5, weight=600)


def _legend(root: Element, top: int, width: int, lines: int) -> None:
    for index, step in enumerate(RUN):
        x = (index // lines) * (width / 2 + 4)
        y = top + 18 * (index % lines)
        _text(root, "qk-text", x + 16, y, str(index + 1), anchor="end", weight=600)
        _text(root, "ink", x + 24, y, step.room, weight=600)
        _text(root, "muted", x + 118, y, step.work)


def _draw(parent: Element, tag: str, cls: str, **attributes: float | str) -> Element:
    values = {name: f"{v:g}" if not isinstance(v, str) else v for name, v in attributes.items()}
    return SubElement(parent, tag, {"class": cls, **values})


def _text(
    parent: Element,
    cls: str,
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: float = 12,
    weight: int = 400,
) -> Element:
    found = _draw(parent, "text", cls, x=x, y=y)
    found.text = text
    found.attrib |= {"text-anchor": anchor, "font-size": f"{size:g}", "font-weight": str(weight)}
    return found


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(PROJECT)} written\n")
