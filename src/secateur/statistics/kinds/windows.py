"""How much every window of consecutive blocks turns the residual stream.

Legend: B batch, N tokens, D residual width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from secateur.data.batches import Batch
from secateur.models.runner import Runner
from secateur.statistics.divergence import LossName
from secateur.statistics.kinds.similarity import angle
from secateur.statistics.registry import Sums, add_, evidence_trial


@evidence_trial("window_similarity")
def window_similarity(
    sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch, _loss: LossName
) -> None:
    """For each block, sums over tokens by length of the window that begins there.

    `cosine` and `angle` (windows,): entry n - 1 compares the stream before the block with that
    after n blocks. UIDL, arXiv 2403.17887, looks at the last token only, which in a vision
    transformer is a patch like any other; here all tokens count.
    """
    runner = Runner.of(model)
    embedded_BND = runner.embed(batch.images_BCHW)
    streams = [embedded_BND, *runner.streams(embedded_BND)]
    present = [block for block in runner.anatomy.blocks if block.branches]
    ends = [runner.names.index(block.branches[-1]) + 1 for block in present]
    cuts = [embedded_BND, *(streams[end] for end in ends)]
    for first, block in enumerate(present):
        start_BND = cuts[first].float()
        cosines_WBN = torch.stack(
            [F.cosine_similarity(start_BND, x_BND.float(), dim=-1) for x_BND in cuts[first + 1 :]]
        )
        sums = sums_of(block.id)
        add_(sums, "count", torch.tensor(float(cosines_WBN[0].numel()), dtype=torch.float64))
        add_(sums, "cosine", cosines_WBN.sum((1, 2), dtype=torch.float64))
        add_(sums, "angle", angle(cosines_WBN).sum((1, 2)))
