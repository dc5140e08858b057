"""What a dense model is rebuilt from: a library, a name, arguments; and how it is found out."""

from dataclasses import dataclass, field

import torch
from torch import nn

from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.storage.fingerprint import agree, probe, tolerance
from secateur.storage.library import Arguments, libraries
from secateur.storage.meta import on_meta
from secateur.storage.weights import common_dtype, fill_, misfit

INSIGNIFICANT = (nn.Identity, nn.Dropout)
"""Leaves that change nothing in evaluation mode; timm's DropPath is another."""


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


def base_of(model: nn.Module) -> Base:
    """What `model`, a dense model, can be rebuilt from.

    Models from `secateur.load` carry it as `secateur_base`. Others are recognised, rebuilt with
    their own weights and compared by names, shapes, modules and outputs. Raises UserError when
    no rebuild agrees.
    """
    known = getattr(model, "secateur_base", None)
    return known if isinstance(known, Base) else identify(model)


def identify(model: nn.Module, *, compare_outputs: bool = True) -> Base:
    """Recognise a model that does not carry its base; see `base_of`."""
    preprocessing = Preprocessing.of(model)
    reasons = []
    # WHY: a name says more than a class, so the libraries of names are asked first.
    for prefix, library in sorted(libraries.items(), key=lambda item: not item[1].by_name):
        try:
            for name, arguments in library.recognise(model):
                base = Base(
                    library=prefix, name=name, arguments=arguments, preprocessing=preprocessing
                )
                reason = _difference(model, base, compare_outputs)
                if reason is None:
                    return base
                reasons.append(f"{prefix}: {reason}")
        except UserError as error:
            reasons.append(f"{prefix}: {str(error).rstrip('.')}")
    why = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
    raise UserError(
        f"cannot tell how this {type(model).__name__} was built{why}, so it could not be loaded "
        'again once pruned; make it with secateur.load("timm:NAME", checkpoint=FILE).'
    )


def _difference(model: nn.Module, base: Base, compare_outputs: bool) -> str | None:
    """The first way in which a rebuild from `base` differs from `model`, or None."""
    rebuilt = build(base)
    tensors = model.state_dict()
    if reason := misfit(rebuilt, tensors):
        return f"compared with a rebuild of {base.name}: {reason}"
    mine, theirs = _leaves(model), _leaves(rebuilt)
    for path in sorted(mine.keys() | theirs.keys()):
        if mine.get(path) != theirs.get(path):
            return f"{path} is {mine.get(path)}, but {theirs.get(path)} in a rebuild"
    if not compare_outputs:
        return None
    device = next(model.parameters()).device
    fill_(rebuilt, tensors, lambda: build(base, device))
    input_size = base.preprocessing.input_size
    expected = probe(model, input_size)
    largest = tolerance(expected, common_dtype(tensors), share=0.01)
    if not agree(probe(rebuilt, input_size), expected, largest):
        return f"a rebuild of {base.name} gives other outputs"
    return None


def _leaves(model: nn.Module) -> dict[str, str]:
    """Every module without children that matters in evaluation mode, with its settings."""
    return {
        path: repr(module)
        for path, module in model.named_modules()
        if not any(module.children())
        and not isinstance(module, INSIGNIFICANT)
        and type(module).__name__ not in ("DropPath", "PatchDropout")
    }
