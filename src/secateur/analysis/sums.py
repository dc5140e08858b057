"""What the sums of its pass tell an analysis: similarity of depths, heads, spectra."""

from torch import Tensor

from secateur.analysis.heads import head_similarity
from secateur.analysis.similarity import similarities
from secateur.analysis.spectra import spectra
from secateur.models.host import Host
from secateur.models.types import Anatomy, AttentionShape
from secateur.statistics import Statistics
from secateur.statistics.registry import STREAM

Plain = dict[str, object]
HELD = 64
"""Most points at which a spectrum's running sum is told."""


def similarity_records(statistics: Statistics) -> dict[str, Plain]:
    """Similarity between depths, by part of the tokens."""
    return {
        part: {
            "cosine": matrix(found.cosine_PP),
            "cka": matrix(found.cka_QQ),
            "points": found.points,
            "rank": found.rank_Q.tolist(),
        }
        for part, found in similarities(statistics.of("stream_similarity", STREAM)).items()
    }


def head_records(anatomy: Anatomy, statistics: Statistics) -> list[Plain]:
    """CKA between heads for every attention layer with more than one."""
    return [
        {
            "owner": branch.id,
            "cka": matrix(
                head_similarity(statistics.of("context_moments", branch.id), branch.shape.heads)
            ),
        }
        for branch in anatomy.branches
        if isinstance(branch.shape, AttentionShape) and branch.shape.heads > 1
    ]


def spectrum_records(host: Host, statistics: Statistics) -> list[Plain]:
    """The spectra of every branch."""
    found: list[Plain] = []
    for branch in host.anatomy.branches:
        for each in spectra(host.weights(branch), statistics.about(branch.id)):
            held_S = each.share_S.cumsum(0)
            step = -(-len(held_S) // HELD)
            found.append(
                {
                    "owner": branch.id,
                    "group": each.group,
                    "size": each.size,
                    "effective": each.effective,
                    "most": each.most,
                    "held": held_S[step - 1 :: step].tolist(),
                }
            )
    return found


def matrix(values: Tensor) -> list[list[float | None]]:
    """A matrix as lists; what is not finite becomes None."""
    return [[x if x == x and abs(x) != float("inf") else None for x in r] for r in values.tolist()]
