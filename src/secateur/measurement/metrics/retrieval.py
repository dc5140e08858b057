"""How well an image finds others of its class by its features.

Legend: n images, q queries of one chunk, E feature width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import UserError
from secateur.measurement.metrics import Inquiry, Values, metric

CHUNK = 256
"""Queries at a time: memory is CHUNK × n floats."""


@metric("retrieval", title="Retrieval within the images", needs=("labels",))
def retrieval(inquiry: Inquiry) -> Values:
    """Mean average precision and recall at 1, in percent: each image asks for all others.

    Others are ranked by cosine; those of the query's class are right. Average precision is the
    mean over the right ones of the precision down to their rank. Images alone in their class ask
    nothing; `queries` counts those that do, `stderr` is that of the mean in points.
    """
    found = inquiry.features()
    assert found.labels_n is not None
    precision_n, first_n = ranked(found.pooled_nE, found.labels_n)
    if len(precision_n) == 0:
        raise UserError("metric 'retrieval' needs at least two images of some class.")
    return {
        "map": 100 * float(precision_n.mean()),
        "stderr": 100 * float(precision_n.std(correction=0)) / len(precision_n) ** 0.5,
        "recall1": 100 * float(first_n.double().mean()),
        "queries": len(precision_n),
    }


def ranked(features_nE: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision, and whether the first answer is right, of every query with an answer."""
    unit_nE = F.normalize(features_nE.float(), dim=1)
    places = torch.arange(len(unit_nE), device=unit_nE.device).split(CHUNK)
    parts = [_ask(unit_nE, labels_n, place_q) for place_q in places]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _ask(unit_nE: Tensor, labels_n: Tensor, place_q: Tensor) -> tuple[Tensor, Tensor]:
    cosine_qn = unit_nE[place_q] @ unit_nE.T
    cosine_qn[torch.arange(len(place_q), device=place_q.device), place_q] = -torch.inf
    order_qn = cosine_qn.argsort(stable=True, dim=1, descending=True)[:, :-1]
    right_qn = labels_n[order_qn] == labels_n[place_q, None]
    ask_q = right_qn.any(1)
    right_qn = right_qn[ask_q].double()
    rank_n = torch.arange(1, right_qn.shape[1] + 1, device=right_qn.device, dtype=torch.float64)
    precision_qn = right_qn.cumsum(1) / rank_n
    average_q = (precision_qn * right_qn).sum(1) / right_qn.sum(1)
    none = torch.empty(0, device=right_qn.device)
    return average_q, right_qn[:, 0] > 0 if len(right_qn) else none
