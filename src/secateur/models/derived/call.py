"""How the blocks of hosts call their layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a block calls a layer: `layer(x, …)`, with x `times` times, and what it gives back.

    `mask` is the keyword of an additive or boolean attention mask, `takes` are further keywords
    that the block passes on; `fixed` are always given. `by_position` names what blocks take and
    pass on behind x without a keyword; some hosts pass x itself under the keyword `by_name`. With
    `pair` the layer returns its output and a second value (attention weights, or None), which the
    block ignores.
    """

    mask: str | None = "attn_mask"
    takes: Names = ()
    times: int = 1
    fixed: Mapping[str, object] = field(default_factory=dict)
    by_position: Names = ()
    by_name: str | None = None
    pair: bool = False

    def bound(self, args: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """x and all that was given beside it, by name."""
        named = {**dict(zip(self.by_position, args[1:], strict=False)), **given}
        return (args[0] if args else named.pop(self.by_name or "")), named
