"""Where everything in the picture of a model goes; all lengths in px of the picture.

Blocks are columns along the stream, wrapped into rows. A box's area is proportional to the
parameters of its dense branch, so that the eye adds up what is left correctly.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from secateur.report.record import AttentionSize, BranchRecord, blocks_of
from secateur.report.words import size_lines

LEFT, RIGHT = 76.0, 20.0
WIDTH, MIN_WIDTH = 1120.0, 800.0
MAX_COLUMNS, MAX_PITCH, GAP = 12, 210.0, 16.0
LINE = 14.0
STEM = 17.0
"""Half the height of the band in which the stream runs."""
SPLIT = 3.0
"""Between the query/key and the value part of a head."""
HEADING, LEGEND, FOOT, ROW_GAP = 62.0, 34.0, 30.0, 22.0
USABLE = {1: 300.0, 2: 220.0, 3: 175.0}
USABLE_MANY = 150.0
"""Height for attention and MLP together in a row, by the number of rows."""
MIN_BOX = 8.0
LABEL, MIN_LABEL = 11.0, 7.5
"""Font size of labels, and the least one to which they shrink where columns are narrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """The dense outline of a branch."""

    branch: BranchRecord
    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """Centre of the box across the stream."""
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A block: its boxes and where its bead sits on the stream."""

    number: int
    x: float
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A stretch of the stream at height `y`, with lane heights above (attention) and below."""

    y: float
    end: float
    above: float
    below: float
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The whole picture."""

    width: float
    height: float
    top: float
    label: float
    rows: tuple[Row, ...]


def lay_out(branches: Sequence[BranchRecord], *, heading: bool) -> Layout:
    """Place every branch; `heading` reserves room for a title."""
    blocks = blocks_of(branches)
    lines = -(-len(blocks) // MAX_COLUMNS)
    columns = -(-len(blocks) // lines)
    pitch = min(MAX_PITCH, (WIDTH - LEFT - RIGHT) / columns)
    above, below, per_param = _scale(blocks, pitch, USABLE.get(lines, USABLE_MANY))
    top = HEADING if heading else 0.0
    y = top + LEGEND
    rows = []
    for start in range(0, len(blocks), columns):
        part = blocks[start : start + columns]
        stem = y + above + STEM + (2 * LINE if above else 0)
        placed = tuple(
            _column(block, LEFT + (i + 0.5) * pitch, stem, pitch, per_param)
            for i, block in enumerate(part)
        )
        end = LEFT + len(part) * pitch + 8
        rows.append(Row(y=stem, end=end, above=above, below=below, columns=placed))
        y = stem + STEM + below + (LINE if below else 0) + ROW_GAP
    width = max(MIN_WIDTH, LEFT + columns * pitch + RIGHT)
    return Layout(
        width=width,
        height=y + FOOT - ROW_GAP + 8,
        top=top,
        label=_label_size(branches, pitch),
        rows=tuple(rows),
    )


def parts(box: Box) -> dict[str, tuple[float, float]]:
    """Top and height of the dense query/key, value or hidden part of a box, by group."""
    size = box.branch.dense
    if not isinstance(size, AttentionSize):
        return {"hidden": (box.y, box.height)}
    room = box.height - SPLIT
    qk = room * size.qk / (size.qk + size.vo)
    return {"qk": (box.y, qk), "vo": (box.y + qk + SPLIT, room - qk)}


def cell_gap(width: float, cells: int) -> float:
    """Between heads side by side in `width`; none where the eye could not see it."""
    pitch = width / cells
    return 2.0 if pitch >= 12 else 1.2 if pitch >= 4 else 0.0


def _inked(branch: BranchRecord, width: float) -> float:
    """What is left of a box's width without the gaps between heads."""
    if not isinstance(branch.dense, AttentionSize):
        return width
    return width - (branch.dense.heads - 1) * cell_gap(width, branch.dense.heads)


def _scale(
    blocks: list[list[BranchRecord]], pitch: float, usable: float
) -> tuple[float, float, float]:
    """Tallest attention, tallest MLP, and px² per parameter, filling `usable` height."""
    tallest = {"attention": 0.0, "mlp": 0.0}
    for block in blocks:
        for branch, width in _widths(block, pitch):
            tall = branch.params.dense / _inked(branch, width)
            tallest[branch.kind] = max(tallest[branch.kind], tall)
    per_param = usable / max(sum(tallest.values()), 1e-9)
    heights = {
        kind: max(MIN_BOX, value * per_param) if value else 0.0 for kind, value in tallest.items()
    }
    attention = heights["attention"] and heights["attention"] + SPLIT
    return attention, heights["mlp"], per_param


def _widths(block: list[BranchRecord], pitch: float) -> Iterator[tuple[BranchRecord, float]]:
    """Box widths: branches of one kind in the same block share its column."""
    for branch in block:
        rivals = sum(other.kind == branch.kind for other in block)
        yield branch, (pitch - GAP - 4 * (rivals - 1)) / rivals


def _label_size(branches: Iterable[BranchRecord], pitch: float) -> float:
    """The font size at which the longest label fits its column, even in a wide font."""
    lines = [text for branch in branches for text in size_lines(branch).values()]
    longest = max(
        (sum(0.84 if c in "×→" else 0.34 if c == " " else 0.64 for c in line) for line in lines),
        default=1.0,
    )
    return min(LABEL, max(MIN_LABEL, (pitch - 5) / longest))


def _column(
    block: list[BranchRecord], x: float, stem: float, pitch: float, per_param: float
) -> Column:
    boxes = []
    left = {"attention": x - (pitch - GAP) / 2, "mlp": x - (pitch - GAP) / 2}
    for branch, width in _widths(block, pitch):
        height = max(MIN_BOX, branch.params.dense * per_param / _inked(branch, width))
        height += SPLIT if branch.kind == "attention" else 0
        y = stem - STEM - height if branch.kind == "attention" else stem + STEM
        boxes.append(Box(branch=branch, x=left[branch.kind], y=y, width=width, height=height))
        left[branch.kind] += width + 4
    return Column(number=block[0].block, x=x, boxes=tuple(boxes))
