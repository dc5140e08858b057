"""Find out what a model, dense or pruned, can be rebuilt from, by the state that it is in now.

A head for other classes, another image size or another pooling may have been set since it was
built; what a model is said to come from is compared with what it is.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.models.caches import evaluating
from secateur.models.derived.tokens.merge import merges_of
from secateur.models.derived.tokens.tail import tail_of
from secateur.models.family import families, read
from secateur.models.host import host_of
from secateur.models.norms import held_norms, uncentred_norms
from secateur.models.outputs import outputs_of
from secateur.models.walk_check import noise_for
from secateur.storage.base import Base, build, build_like
from secateur.storage.fingerprint import agree, probe, tolerance
from secateur.storage.library import Argument, libraries
from secateur.storage.saved import complete_
from secateur.storage.shapes import added_biases, resize_, shapes_of, widths_of
from secateur.storage.spec import Spec
from secateur.storage.weights import common_dtype, fill_, misfit

INSIGNIFICANT = (nn.Identity, nn.Dropout)
"""Leaves that change nothing in evaluation mode; timm's DropPath is another."""


def base_of(model: nn.Module) -> Base:
    """What `model`, dense or pruned, can be rebuilt from.

    Models from `secateur.load` and those that secateur pruned carry it as `secateur_base`, which is
    compared with the model and follows a new head, image size or pooling (where a family reads it).
    Others, which must be dense, are recognised, rebuilt with their own weights and compared by
    names, shapes, modules and outputs. Raises UserError when no rebuild agrees.
    """
    known = getattr(model, "secateur_base", None)
    if not isinstance(known, Base):
        return identify(model)
    if not any(family.matches(model) for _, family in families.items()):
        return known
    known = replace(known, preprocessing=_of_present_size(known.preprocessing, model))
    reason = _unlike(model, known)
    if reason is None:
        return known
    for base in _followed(model, known):
        if _unlike(model, base) is None:
            return base
    if _fits(model, known) is None:
        # WHY: outputs may differ by rounding alone on some devices; a save compares them again.
        return known
    with suppress(UserError):
        return identify(model)
    raise UserError(
        f"this {type(model).__name__} was built as {known.library}:{known.name}, but has been "
        f"changed since ({reason}), so it could not be loaded again; change only its weights, its "
        "head (reset_classifier) and its image size (set_input_size)."
    )


def remember_(model: nn.Module, base: Base, provenance: Mapping[str, object]) -> None:
    """Let a model that came out of secateur carry what a later save needs to know."""
    model.__dict__.update(secateur_base=base, secateur_provenance=dict(provenance))


def provenance_of(model: nn.Module) -> dict[str, Any]:
    """How a model came about, as far as it carries that."""
    known = model.__dict__.get("secateur_provenance")
    if isinstance(known, dict):
        return dict(known)
    spec = getattr(model, "secateur_spec", None)
    return dict(spec.provenance) if isinstance(spec, Spec) else {}


def _of_present_size(images: Preprocessing, model: nn.Module) -> Preprocessing:
    return replace(images, input_size=read(model).input_size)


def _followed(model: nn.Module, known: Base) -> Iterator[Base]:
    """The base with arguments that the model shows to have been changed, the fewest first."""
    present, before = read(model), build(known)
    built = read(before)
    changes: dict[str, Argument] = {}
    classes = _outputs_of(model) if present.num_classes else 0
    if classes != built.num_classes:
        changes["num_classes"] = classes
    if present.input_size != built.input_size:
        changes["img_size"] = list(present.input_size[1:])
    if changes:
        yield replace(known, arguments={**known.arguments, **changes})
    changed: Any = getattr(libraries.get(known.library), "changed", None)
    for more in () if changed is None else changed(model, before):
        yield replace(known, arguments={**known.arguments, **changes, **more})


@torch.no_grad()
def _outputs_of(model: nn.Module) -> int:
    """How many outputs a classifier has, whatever its configuration says."""
    images_BCHW = noise_for(model, read(model))
    if images_BCHW is None:
        return read(model).num_classes
    with evaluating(model):
        return int(outputs_of(model(images_BCHW)).shape[-1])


def resized_like(model: nn.Module, base: Base) -> nn.Module:
    """The dense model of `base` on the meta device, resized to `model` but for norms and biases.

    UserError where the branches or streams of `model` are not those of the base.
    """
    host = host_of(build_like(base, model.state_dict().keys()))
    dense = host.anatomy
    stand_ins = [layer.id for layer in read(model).stand_ins]
    resize_(host, shapes_of(model, dense), widths_of(model, dense), stand_ins)
    if merges := merges_of(model):
        host.family.put_merges_(host.model, merges)
    if tail_of(model) is not None:
        host.family.put_tail_(host.model)
    return host.model


def _fits(model: nn.Module, base: Base) -> str | None:
    """Why a rebuild from `base` cannot take the weights of `model`, or None."""
    try:
        _rebuilt(model, base)
    except UserError as error:
        return str(error).rstrip(".")
    return None


def _rebuilt(model: nn.Module, base: Base) -> nn.Module:
    """A rebuild with the weights of `model`."""
    again = resized_like(model, base)
    held, uncentred = held_norms(model.named_modules()), uncentred_norms(model.named_modules())
    biases = added_biases(model, again)
    return complete_(again, base, biases, model.state_dict(), held, uncentred)


def _unlike(model: nn.Module, base: Base) -> str | None:
    """The first way in which a rebuild with the weights of `model` differs from it, or None."""
    try:
        again = _rebuilt(model, base)
    except UserError as error:
        return str(error).rstrip(".")
    tensors = model.state_dict()
    if any(tensor.is_meta for tensor in tensors.values()):
        return None
    size = base.preprocessing.input_size
    device = next(model.parameters()).device
    expected = probe(model, size)
    largest = tolerance(expected, common_dtype(tensors))
    return None if agree(probe(again.to(device), size), expected, largest) else "its outputs differ"


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
    tensors = model.state_dict()
    rebuilt = build_like(base, tensors.keys())
    if reason := misfit(rebuilt, tensors):
        return f"compared with a rebuild of {base.name}: {reason}"
    mine, theirs = _leaves(model), _leaves(rebuilt)
    for path in sorted(mine.keys() | theirs.keys()):
        if mine.get(path) != theirs.get(path):
            return f"{path} is {mine.get(path)}, but {theirs.get(path)} in a rebuild"
    if not compare_outputs:
        return None
    device = next(model.parameters()).device
    fill_(rebuilt, tensors, lambda: build_like(base, tensors.keys(), device))
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
