"""Merging of tokens behind the attention of a block, a fixed number in each, by matching keys.

The patches are split in turns into two sets. Each token of the first set is tied to the token of
the second with the most similar key (cosine, keys averaged over heads); the r most similar pairs
become one token each, the mean weighted by size, which is the number of patches in it. Behind that,
attention counts a token as often as its size says: its logits get the logarithm of it. So equal
tokens merge without any change (ToMe, arXiv 2210.09461, section 3). Prefix tokens never merge.

Legend: B batch, N tokens, P patches, S of them in the first set, T in the second, D residual width,
K query/key dims.
"""

from collections.abc import Mapping
from threading import get_ident
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.models.derived.blocks import PartialBlock
from secateur.models.modules import SlimAttention
from secateur.models.statement import Residual


class Sizes:
    """The sizes of tokens (B, N, 1) between the blocks of a model, in each thread that runs it.

    Copies begin empty. They stay for the backward pass, where blocks may run again.
    """

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], Tensor] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "Sizes":
        memo[id(self)] = other = Sizes()
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {"slots": {}}

    def at(self, place: int) -> Tensor | None:
        """The sizes of the tokens that arrive at a block; None for the first, where all are 1."""
        return self.slots[_thread(), place] if place else None

    def put(self, place: int, sizes_BN1: Tensor) -> None:
        """Tell the block at `place` the sizes of the tokens that it will get."""
        self.slots[_thread(), place] = sizes_BN1


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else get_ident()


class MergeBlock(PartialBlock):
    """A block that merges `merge` tokens behind its attention, and weighs tokens by their sizes.

    `place` counts the blocks from the first that merges, `sizes` is shared by all of them. Without
    `sizes` every token is one patch.
    """

    def __init__(
        self,
        block: nn.Module,
        residuals: tuple[Residual, ...],
        kept: tuple[str, ...],
        *,
        merge: int = 0,
        prefix: int = 0,
        place: int = 0,
        sizes: Sizes | None = None,
    ) -> None:
        super().__init__(block, residuals, kept)
        self.merge: Final = merge
        self.prefix, self.place, self.sizes = prefix, place, sizes

    def forward(self, *args: Any, **given: Any) -> Tensor:
        """From N tokens to N - `merge`."""
        x_BND, bound = self.bound(args, given)
        if self.sizes is None:
            return super().forward(*args, **given)
        sizes_BN1 = self.sizes.at(self.place)
        if sizes_BN1 is not None:
            bound["log_sizes"] = log_of(sizes_BN1)
        for residual in self.steps:
            if self.attends(residual):
                seen: dict[str, Tensor] = {}
                bound["seen"] = seen
                x_BND = x_BND + self._update(residual, x_BND, bound)
                if sizes_BN1 is None:
                    sizes_BN1 = torch.ones_like(x_BND[..., :1])
                if self.merge:
                    x_BND, sizes_BN1 = merged(
                        x_BND, sizes_BN1, seen["keys"], self.merge, self.prefix
                    )
            else:
                x_BND = x_BND + self._update(residual, x_BND, bound)
        if sizes_BN1 is not None:
            self.sizes.put(self.place + 1, sizes_BN1)
        return x_BND

    def attends(self, residual: Residual) -> bool:
        """Whether the layer of a step is attention."""
        return isinstance(self.get_submodule(residual.path), SlimAttention)

    def _layer(
        self, residual: Residual, read: Tensor, given: Mapping[str, Any], passed: dict[str, Any]
    ) -> Any:
        if self.attends(residual):
            more = {name: given[name] for name in ("log_sizes", "seen") if name in given}
            passed = {**passed, **more}
        return super()._layer(residual, read, given, passed)


def log_of(sizes_BN1: Tensor) -> Tensor:
    """What the logits of attention to tokens of these sizes get (B, 1, 1, N)."""
    return sizes_BN1.log().transpose(1, 2).unsqueeze(1)


def pairs_of(patches: int) -> int:
    """The most pairs of which no token is in two."""
    return patches // 2


def merged(
    x_BND: Tensor, sizes_BN1: Tensor, keys_BNK: Tensor, count: int, prefix: int
) -> tuple[Tensor, Tensor]:
    """The stream and the sizes with the `count` most similar pairs of patches as one token each."""
    kept_BS, gone_BS, partner_BS = matched(keys_BNK[:, prefix:], count)
    whole_BND = torch.cat([x_BND * sizes_BN1, sizes_BN1], dim=-1)
    first_BSD, second_BTD = whole_BND[:, prefix::2], whole_BND[:, prefix + 1 :: 2]

    def taken(t_BSD: Tensor, which_BS: Tensor) -> Tensor:
        return t_BSD.gather(1, which_BS[..., None].expand(-1, -1, t_BSD.shape[-1]))

    gone_BSD = taken(first_BSD, gone_BS)
    into_BSD = partner_BS[..., None].expand(-1, -1, gone_BSD.shape[-1])
    second_BTD = second_BTD.scatter_add(1, into_BSD, gone_BSD)
    sums_BND = torch.cat([whole_BND[:, :prefix], taken(first_BSD, kept_BS), second_BTD], dim=1)
    sizes_BN1 = sums_BND[..., -1:]
    return sums_BND[..., :-1] / sizes_BN1, sizes_BN1


def matched(keys_BPK: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens of the first set stay, which go, and into which of the second these go."""
    unit_BPK = F.normalize(keys_BPK, dim=-1)
    alike_BST = unit_BPK[:, ::2] @ unit_BPK[:, 1::2].transpose(1, 2)
    best_BS, partner_BS = alike_BST.max(dim=-1)
    order_BS = best_BS.topk(best_BS.shape[1], dim=-1).indices
    gone_BS, kept_BS = order_BS[:, :count], order_BS[:, count:]
    return kept_BS, gone_BS, partner_BS.gather(1, gone_BS)


def merges_of(model: nn.Module) -> dict[str, int]:
    """How many tokens each block of a model merges, by its path; none where none does."""
    blocks = {path: m for path, m in model.named_modules() if isinstance(m, MergeBlock)}
    return {path: block.merge for path, block in blocks.items() if block.merge}
