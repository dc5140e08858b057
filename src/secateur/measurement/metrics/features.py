"""How alike the features of a model are to those of its dense original.

Legend: B batch, N tokens, n images, D residual widths, E feature widths.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.measurement.cka import unbiased_cka
from secateur.measurement.features import Reader
from secateur.measurement.metrics import Inquiry, Values, metric
from secateur.models.caches import evaluating


@dataclass(slots=True)
class _Pair:
    """Running cosines of one sort of feature, and the rows of both models for CKA."""

    cosine: float = 0.0
    count: int = 0
    own: list[Tensor] = field(default_factory=list)
    other: list[Tensor] = field(default_factory=list)

    def add(self, own_BND: Tensor, other_BND: Tensor) -> None:
        """Take in tokens (B, N, D) of both; CKA compares their means over tokens."""
        if own_BND.shape == other_BND.shape:
            cosine_BN = F.cosine_similarity(own_BND.float(), other_BND.float(), dim=-1)
            self.cosine += float(cosine_BN.cpu().double().sum())
            self.count += cosine_BN.numel()
        self.own.append(own_BND.float().mean(1).cpu())
        self.other.append(other_BND.float().mean(1).cpu())

    def values(self, name: str) -> dict[str, float | None]:
        """Mean cosine (None where widths differ) and CKA (None with too few images)."""
        own_nD, other_nD = torch.cat(self.own), torch.cat(self.other)
        return {
            f"cosine_{name}": self.cosine / self.count if self.count else None,
            f"cka_{name}": unbiased_cka(own_nD, other_nD),
        }


@metric("features", title="Similarity of features to the reference", needs=("reference",))
def features(inquiry: Inquiry) -> Values:
    """Mean cosine and unbiased CKA with the reference: pooled feature, class token, patches.

    Tokens are those of the stream after the last layer, before the final norm. CKA (Kornblith et
    al., arXiv 1905.00414, with HSIC_1 of Song et al., JMLR 2012) compares how images differ and
    needs no equal widths; for patches it compares their mean over each image.
    """
    assert inquiry.reference is not None
    pairs = {"pooled": _Pair(), "class": _Pair(), "patches": _Pair()}
    n = 0
    with evaluating(inquiry.model, inquiry.reference), torch.inference_mode():
        own, other = Reader(inquiry.model), Reader(inquiry.reference)
        prefix = min(own.anatomy.prefix_tokens, other.anatomy.prefix_tokens)
        for batch in inquiry.images:
            mine, theirs = own.look(batch.images_BCHW), other.look(batch.images_BCHW)
            pairs["pooled"].add(mine.pooled_BE[:, None], theirs.pooled_BE[:, None])
            if prefix:
                pairs["class"].add(mine.stream_BND[:, :1], theirs.stream_BND[:, :1])
            pairs["patches"].add(
                mine.stream_BND[:, own.anatomy.prefix_tokens :],
                theirs.stream_BND[:, other.anatomy.prefix_tokens :],
            )
            n += len(batch.images_BCHW)
            if inquiry.on_batch is not None:
                inquiry.on_batch(len(batch.images_BCHW))
    found: dict[str, float | int | None] = {"n": n}
    for name, pair in pairs.items():
        found |= pair.values(name) if pair.own else {f"cosine_{name}": None, f"cka_{name}": None}
    return found
