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
from secateur.statistics.registry import Sums, add_, statistics_trial


@statistics_trial("window_similarity")
def window_similarity(
    sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch, _loss: LossName
) -> None:
    """For each block, sums over tokens by length of the window that begins there.

    `cosine` and `angle` (windows,): entry n - 1 compares the stream at the block with that after n
    blocks of the same stage; streams of different stages differ in channels and tokens. UIDL, arXiv
    2403.17887, looks at the last token only, which in a vision transformer is a patch like any
    other; here all tokens count.
    """
    runner = Runner.of(model)
    embedded_BND = runner.embed(batch.images_BCHW)
    streams = [embedded_BND, *runner.streams(embedded_BND)]
    present = [block for block in runner.anatomy.blocks if block.branches]
    for number, block in enumerate(present):
        place, stage = runner.names.index(block.branches[0]), runner.anatomy.stage_of(block)
        start_BND = runner.arrive(place, streams[place]).float()
        own = [b for b in present[number:] if runner.anatomy.stage_of(b) == stage]
        behind = [streams[runner.names.index(b.branches[-1]) + 1].float() for b in own]
        cosines_WBN = torch.stack(
            [F.cosine_similarity(start_BND, x_BND, dim=-1) for x_BND in behind]
        )
        sums = sums_of(block.id)
        add_(sums, "count", torch.tensor(float(cosines_WBN[0].numel()), dtype=torch.float64))
        add_(sums, "cosine", cosines_WBN.sum((1, 2), dtype=torch.float64))
        add_(sums, "angle", angle(cosines_WBN).sum((1, 2)))
