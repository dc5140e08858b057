"""One branch on its own, in another shape, for runtimes.

Legend: B batch, N tokens, D residual width.
"""

import torch
from torch import Tensor, nn

from secateur.models.caches import copy_of
from secateur.models.host import Host
from secateur.models.types import AttentionShape, Branch, MlpShape, Shape
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights


class Alone(nn.Module):
    """One branch for runtimes, which take images: the stream is an image of one channel."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, stream_B1ND: Tensor) -> Tensor:
        out_BND: Tensor = self.branch(stream_B1ND.squeeze(1))
        return out_BND.unsqueeze(1)


def resized(host: Host, branch: Branch, shape: Shape) -> nn.Module:
    """One branch alone, in another shape, with random weights."""
    own = host.with_model(copy_of(host.model))
    if shape != branch.shape:
        own.assign_(branch, _random(shape, own.weights(branch)))
    if branch.rows is not None:
        own.family.put_tail_(own.model)
    return own.family.alone(own.model, branch, tail=branch.rows is not None).eval()


def _random(shape: Shape, like: BranchWeights) -> BranchWeights:
    generator = torch.Generator().manual_seed(0)

    def fill_(*tensors: Tensor | None) -> None:
        for tensor in tensors:
            if tensor is not None:
                tensor.copy_(0.02 * torch.randn(tensor.shape, generator=generator))

    if isinstance(shape, AttentionShape) and isinstance(like, AttentionWeights):
        a = AttentionWeights.empty(shape, like)
        fill_(a.q_HKD, a.k_HKD, a.v_HVD, a.o_DHV, a.qb_HK, a.kb_HK, a.vb_HV)
        return a
    if isinstance(shape, MlpShape) and isinstance(like, MlpWeights):
        m = MlpWeights.empty(shape, like)
        fill_(*m.readers_FD, *m.reader_biases_F, m.w2_DF)
        return m
    raise TypeError(f"no {type(like).__name__} has the shape {shape}")
