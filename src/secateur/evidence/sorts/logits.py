"""Second moments of queries and keys: the metric in which attention logits are preserved.

Legend: B batch, N tokens, H heads, K query/key dims per head.
"""

import torch

from secateur.evidence.kinds import Seen, Sums, add_, evidence_kind


@evidence_kind("logit_moments", scope="attention", sites=("query", "key"))
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
