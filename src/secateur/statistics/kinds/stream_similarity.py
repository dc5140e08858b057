"""How alike the residual stream is at different depths: sums for cosines and for unbiased CKA.

Everything is a sum over examples (tokens of images), so nothing depends on batches, and two sets of
images add up. Memory: a D × D cross-moment in fp64 per pair of points that `chosen_points` keeps
and per kind of token, at most `BYTES` together. Legend: B batch, T tokens, E examples (B * T),
D residual width, P points of the stream.
"""

import torch
from torch import Tensor

from secateur.statistics.registry import Seen, Sums, add_, statistics_kind

BYTES = 3_000_000_000
"""Most memory that cross-moments may take."""
PARTS = ("class", "patches")
IMAGES = 4
"""Images whose cosines are taken at a time."""


def chosen_points(points: int, width: int) -> list[int]:
    """The points between which cross-moments are kept: all, or evenly spread ones, ends included.

    As many as fit in `BYTES`; 3 at least.
    """
    pairs = BYTES // (len(PARTS) * 8 * width * width)
    most = max(3, int(((8 * pairs + 1) ** 0.5 - 1) / 2))
    if points <= most:
        return list(range(points))
    return sorted({round(i * (points - 1) / (most - 1)) for i in range(most)})


@statistics_kind("stream_similarity", scope="stream", sites=())
def stream_similarity(sums: Sums, seen: Seen) -> None:
    """Per part: `cosine` (P, P) and `count`; of the chosen points what `unbiased_cka` needs."""
    points = int(seen["points"])
    for part in PARTS:
        if f"0.{part}" not in seen:
            continue
        streams = [seen[f"{i}.{part}"] for i in range(points)]
        add_(sums, f"{part}.cosine", _cosines(streams))
        count = float(streams[0].shape[0] * streams[0].shape[1])
        add_(sums, f"{part}.count", torch.tensor(count, dtype=torch.float64))
        widest = max(x.shape[-1] for x in streams)
        chosen = chosen_points(points, widest)
        _add_cross_(sums, part, {i: streams[i].double().flatten(0, 1) for i in chosen})


def _cosines(streams: list[Tensor]) -> Tensor:
    """Sum over tokens of the cosine between each two points (P, P); 0 where shapes differ."""
    total_PP = torch.zeros(len(streams), len(streams), dtype=torch.float64)
    shapes = {x.shape[1:] for x in streams}
    for shape in shapes:
        own = [i for i, x in enumerate(streams) if x.shape[1:] == shape]
        for first in range(0, streams[0].shape[0], IMAGES):
            unit_PX = torch.stack(
                [
                    torch.nn.functional.normalize(streams[i][first : first + IMAGES], dim=-1)
                    for i in own
                ]
            ).flatten(1)
            gram_PP = (unit_PX @ unit_PX.T).double().cpu()
            total_PP[torch.tensor(own)[:, None], torch.tensor(own)] += gram_PP
    return total_PP


def _add_cross_(sums: Sums, part: str, x_ED: dict[int, Tensor]) -> None:
    """Sums over examples: cross-moments of pairs, and what removes their diagonal.

    Stages whose numbers of tokens differ have no pairs; each is compared within itself.
    """
    for i, x in x_ED.items():
        own = {j: y for j, y in x_ED.items() if y.shape[0] == x.shape[0]}
        squares_EP = torch.stack([y.square().sum(1) for y in own.values()], dim=1)
        add_(sums, f"{part}.sum.{i}", x.sum(0))
        add_(sums, f"{part}.weighted.{i}", x.T @ squares_EP)
        add_(sums, f"{part}.squares.{i}", x.square().sum(1) @ squares_EP)
        for j, y in own.items():
            if j >= i:
                add_(sums, f"{part}.cross.{i}.{j}", x.T @ y)
