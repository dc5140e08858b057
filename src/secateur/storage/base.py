"""What a dense model is rebuilt from: a library, a name, arguments; `identify` finds it out."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn

from secateur.data.preprocessing import Preprocessing
from secateur.models.family import families
from secateur.storage.library import Arguments, libraries
from secateur.storage.meta import on_meta


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The dense model of a pruned one, without its weights.

    `library` names one of `secateur.storage.library.libraries`; `arguments` are plain JSON.
    """

    library: str
    name: str
    preprocessing: Preprocessing
    arguments: Arguments = field(default_factory=dict)


def build(base: Base, device: torch.device | str = "meta") -> nn.Module:
    """The dense model in eval mode, untrained; on the meta device it costs no memory."""
    with on_meta() if torch.device(device).type == "meta" else torch.device(device):
        return libraries.get(base.library).skeleton(base.name, base.arguments).eval()


def build_like(
    base: Base, tensors: Collection[str], device: torch.device | str = "meta"
) -> nn.Module:
    """The same, with our attention wherever a model with tensors of these names has it."""
    model = build(base, device)
    for _, family in families.items():
        if family.matches(model):
            family.adopt_(model, tensors)
            break
    return model
