"""How the blocks of hosts call their layers, and where these have the positions of tokens from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a block calls a layer: `layer(x, …)`, with x `times` times, and what it gives back.

    `mask` is the keyword of an additive or boolean attention mask, `takes` are further keywords
    that the block passes on; `fixed` are always given. `by_position` names what blocks take and
    pass on behind x without a keyword; some hosts pass x itself under the keyword `by_name`. With
    `pair` the layer returns its output and a second value (attention weights, or None), which the
    block ignores. With `grid` it takes x as rows and columns (B, R, C, D), and gives it back so.
    """

    mask: str | None = "attn_mask"
    takes: Names = ()
    times: int = 1
    fixed: Mapping[str, object] = field(default_factory=dict)
    by_position: Names = ()
    by_name: str | None = None
    pair: bool = False
    grid: bool = False

    def bound(self, args: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """x and all that was given beside it, by name."""
        named = {**dict(zip(self.by_position, args[1:], strict=False)), **given}
        return (args[0] if args else named.pop(self.by_name or "")), named


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """Biases of the attention logits: parameter (H, T), or (T, H) if `heads` is 1."""

    table: str
    index: str
    heads: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeVectors:
    """Position biases q · R of the logits, of rows and of columns: tables (T, K) for all heads.

    `vectors(n, n, table)` are R for n places (n, n, K). Queries are not scaled before. Source:
    MViTv2, CVPR 2022, arXiv 2112.01526, eq. 4.
    """

    rows: str
    columns: str
    vectors: Callable[[int, int, Tensor], Tensor]

    def present(self, layer: object) -> "RelativeVectors | None":
        """The same without the signs of names that may be missing; None where they are."""
        rows, columns = self.rows.removesuffix("?"), self.columns.removesuffix("?")
        return replace(self, rows=rows, columns=columns) if hasattr(layer, rows) else None
