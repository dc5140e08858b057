"""Muon where bf16 is emulated: its steps in fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch


@contextmanager
def muon_in_fp32(wanted: bool) -> Iterator[None]:
    """Let timm's Muon orthogonalize its updates in fp32, if wanted; afterwards all is as before.

    The Newton-Schulz iteration (Jordan et al. 2024, kellerjordan.github.io/posts/muon) is in bf16
    in timm because it bears the rounding, not because it needs it. timm's function takes the
    precision, but its optimizer has no option that hands it on.
    """
    from timm.optim import muon

    before = getattr(muon, "zeropower_via_newtonschulz", None)
    if not wanted or before is None:
        yield
        return
    muon.zeropower_via_newtonschulz = partial(before, dtype=torch.float32)
    try:
        yield
    finally:
        muon.zeropower_via_newtonschulz = before
