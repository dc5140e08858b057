"""Second moments of queries and keys: the metrics in which attention logits are preserved.

Legend: B batch, N tokens (queries I, keys J), H heads, K query/key dims per head.
"""

import torch
from torch import Tensor

from secateur.statistics.known import batch_weights
from secateur.statistics.registry import Seen, Sums, add_, statistics_kind


@statistics_kind("logit_moments", scope="attention", sites=("query", "key"))
def logit_moments(sums: Sums, seen: Seen) -> None:
    """Per head Gram of queries and of token-centred keys: `q_gram`, `k_gram` (H, K, K).

    A vector added to all keys of an image shifts every row of logits by a constant, which the
    softmax ignores; so keys are centred over the tokens of each image.
    """
    q_BNHK = seen["query"].float()
    k_BNHK = seen["key"].float()
    k_BNHK = k_BNHK - k_BNHK.mean(1, keepdim=True)
    tokens = torch.tensor(float(q_BNHK.shape[0] * q_BNHK.shape[1]), dtype=torch.float64)
    add_(sums, "count", tokens)
    for name, x_BNHK in (("q_gram", q_BNHK), ("k_gram", k_BNHK)):
        x_HTK = x_BNHK.permute(2, 0, 1, 3).flatten(1, 2)
        add_(sums, name, x_HTK.transpose(1, 2) @ x_HTK)
    add_(sums, "q_sum", q_BNHK.sum((0, 1), dtype=torch.float64))


@statistics_kind("attention_moments", scope="attention", sites=("query", "key"))
def attention_moments(sums: Sums, seen: Seen) -> None:
    """Per head Gram of queries, and of keys as the softmax weighs them: (H, K, K) each.

    A change d_j of one row of logits changes that row of attention a by a_j (d_j - sum_j a_j d_j)
    to first order, so the key metric is the covariance of the keys under a, averaged over the
    queries. Derived here; the Kronecker form (queries apart from keys) is an approximation.
    """
    q_BHIK = seen["query"].float().transpose(1, 2)
    k_BHJK = seen["key"].float().transpose(1, 2)
    weight_BI = batch_weights(seen.get("weights"), q_BHIK[:, 0, :, 0])
    logits_BHIJ = float(seen["scale"]) * q_BHIK @ k_BHJK.transpose(-2, -1)
    if "logit_bias" in seen:
        bias_WHIJ = seen["logit_bias"].float()
        logits_WHIJ = logits_BHIJ.unflatten(0, (-1, len(bias_WHIJ))) + bias_WHIJ
        logits_BHIJ = logits_WHIJ.flatten(0, 1)
    a_BHIJ = logits_BHIJ.softmax(-1)
    mean_BHIK = a_BHIJ @ k_BHJK
    weight_WI = weight_BI[: int(seen.get("windows", 1))]
    by_window = a_BHIJ.unflatten(0, (-1, len(weight_WI)))
    received_BHJ = torch.einsum("bwhij,wi->bwhj", by_window, weight_WI).flatten(0, 1)
    root_B1I1 = weight_BI.sqrt()[:, None, :, None]
    count = weight_BI.sum(dtype=torch.float64)
    add_(sums, "count", count)
    add_(sums, "q_gram", _gram(q_BHIK * root_B1I1))
    spread = _gram(k_BHJK * received_BHJ.sqrt()[..., None]) - _gram(mean_BHIK * root_B1I1)
    add_(sums, "k_gram", spread)


def _gram(x_BHTK: Tensor) -> Tensor:
    x_HTK = x_BHTK.transpose(0, 1).flatten(1, 2)
    return x_HTK.transpose(1, 2) @ x_HTK
