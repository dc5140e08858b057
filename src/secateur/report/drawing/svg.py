"""Elements of an SVG, their numbers short."""

import math
from xml.etree.ElementTree import Element, SubElement


def text(parent: Element, x: float, y: float, words: str, **attributes: str) -> None:
    """Write `words` with their baseline at a place."""
    draw(parent, "text", x=x, y=y, **attributes).text = words


def draw(parent: Element, tag: str, **attributes: object) -> Element:
    """Add an element; an underscore in a name stands for a hyphen, numbers are pixels."""
    return SubElement(
        parent,
        tag,
        {
            name.replace("_", "-"): px(value) if isinstance(value, float | int) else str(value)
            for name, value in attributes.items()
        },
    )


def px(value: float) -> str:
    """Pixels, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def symbol(name: str, x: float, y: float, r: float) -> str:
    """The path of a marker of radius `r` around a place."""
    if name == "circle":
        half = f"a{px(r)} {px(r)} 0 1 0"
        return f"M{px(x - r)} {px(y)}{half} {px(2 * r)} 0{half} {px(-2 * r)} 0z"
    if name == "cross":
        ends = [(x - r, y - r), (x + r, y + r), (x - r, y + r), (x + r, y - r)]
        return "M{}L{}M{}L{}".format(*(f"{px(a)} {px(b)}" for a, b in ends))
    corners, turn, near = {
        "square": (4, 45, 0), "diamond": (4, 0, 0), "up": (3, -90, 0), "down": (3, 90, 0),
        "star": (10, -90, 0.45),
    }[name]  # fmt: skip
    points = []
    for i in range(corners):
        angle = math.radians(turn + 360 * i / corners)
        far = r * 1.25 * (near if near and i % 2 else 1)
        points.append(f"{px(x + far * math.cos(angle))} {px(y + far * math.sin(angle))}")
    return "M" + "L".join(points) + "z"
