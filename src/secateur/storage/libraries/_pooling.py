"""How timm's models show that their pooling was changed after they were built."""

from collections.abc import Iterator

from torch import nn

from secateur.storage.library import Arguments, is_argument


def changed_pooling(model: nn.Module, before: nn.Module) -> Iterator[Arguments]:
    """Arguments by which a build gives the pooling of `model`, where `before` has another."""
    pool = getattr(model, "global_pool", None)
    if not is_argument(pool) or pool == getattr(before, "global_pool", pool):
        return
    yield {"global_pool": pool}
    # WHY: timm puts the last norm before or behind the pooling when it builds, and leaves it there.
    normed = not isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity)
    yield {"global_pool": pool, "fc_norm": normed}
