"""What stays known of the dense model once it was pruned: how to rebuild it, how to tell it."""

import warnings
from pathlib import Path

import torch
from torch import nn

from secateur.errors import Advice, UserError
from secateur.models.caches import copy_of
from secateur.models.family import read
from secateur.storage.base import Base
from secateur.storage.fingerprint import agree, probe, tolerance
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.storage.spec import Spec
from secateur.storage.weights import refuse_not_finite

BUNDLED = "zoo"


def base_or_reason(model: nn.Module) -> Base | str:
    """What a dense model can be rebuilt from, or the sentence that says why it cannot."""
    try:
        return base_of(model)
    except UserError as error:
        return str(error)


def base_or_advice(model: nn.Module) -> Base | str:
    """The same before long work, with advice where what comes of it could not be saved."""
    found = base_or_reason(model)
    if isinstance(found, str):
        warnings.warn(f"what comes out cannot be saved: {found}", Advice, stacklevel=2)
    return found


def logits(model: nn.Module) -> list[list[float]]:
    """The first logits of a model for a fixed input."""
    values: list[list[float]] = probe(model, read(model).input_size).tolist()
    return values


def reference_of(reference: nn.Module | str | Path) -> nn.Module:
    """A copy of the model to learn from, or the one of that name; UserError for NaN weights."""
    found = copy_of(reference) if isinstance(reference, nn.Module) else load(reference)
    refuse_not_finite(found.state_dict(), "the reference")
    return found


def name_of_reference(reference: nn.Module | str | Path | None) -> str | None:
    """What a reference is called in a record; None for one without a name."""
    if isinstance(reference, nn.Module):
        known = getattr(reference, "secateur_base", None)
        return f"{known.library}:{known.name}" if isinstance(known, Base) else None
    return None if reference is None else str(reference)


def dense_of(model: nn.Module) -> tuple[nn.Module | None, str]:
    """The dense model that a saved one was pruned from, where its weights need no download.

    Returns it, or None, and a sentence that says which it is or why there is none. It is on
    the device of `model`. Its outputs are those that the dense model had when it was pruned.
    """
    spec = getattr(model, "secateur_spec", None)
    if not isinstance(spec, Spec):
        return None, "no reference: name one with --reference."
    base = spec.base.base()
    name = f"{base.library}:{base.name}"
    if base.library != BUNDLED:
        return None, f"no reference: the dense weights are not kept; name them: --reference {name}."
    dense = load(name)
    expected = torch.tensor(spec.provenance.get("dense_logits") or [], dtype=torch.float64)
    found = probe(dense, base.preprocessing.input_size)
    if not agree(found, expected, tolerance(found, torch.float32)):
        return None, f"no reference: it was pruned from other weights than those of {name}."
    dense = dense.to(next(model.parameters()).device)
    return dense, f"reference: {name}, the dense model it was pruned from."
