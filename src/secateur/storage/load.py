"""`secateur.load`: one verb for every place a model can come from."""

from difflib import get_close_matches
from pathlib import Path

import timm
import torch
from torch import nn

from secateur.devices import plain_torch, usable_device
from secateur.errors import UserError
from secateur.models.caches import stated_names
from secateur.models.family import families, family_of
from secateur.models.head import give_head_
from secateur.storage.base import build
from secateur.storage.directories.existing import mend_model
from secateur.storage.hub import download
from secateur.storage.identify import base_of, identify, provenance_of, remember_
from secateur.storage.library import Library, libraries
from secateur.storage.meta import on_meta
from secateur.storage.saved import load_saved
from secateur.storage.spec import SPEC
from secateur.storage.untrusted.checkpoints import read_checkpoint
from secateur.storage.weights import (
    Weights,
    fill_,
    misfit,
    refuse_not_finite,
)


@plain_torch()
def load(
    source: str | Path | nn.Module,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    pretrained: bool | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A model in eval mode, ready to be pruned or used.

    `source` is `timm:NAME` (also `timm:hf_hub:ORG/NAME`, `timm:local-dir:PATH`), `hf:NAME_OR_DIR`,
    `torchvision:NAME`, `digits_vit`, a directory saved by secateur, `hub:ORG/NAME` (such a
    directory on the Hugging Face hub), or a module, which is put in eval mode and returned where
    it is. `checkpoint` is a file of weights for a named model, loaded strictly; without one, the
    library's own weights are loaded, or none if `pretrained` is False. A saved directory takes
    another `num_classes` in the form of a new, untrained head. Pickled code is never run.

    Raises UserError for a device that is not there, unknown names, weights that do not fit
    or hold NaN, damaged directories.
    """
    if not isinstance(source, str | Path | nn.Module):
        family_of(source)  # Raises.
    options: dict[str, object] = {
        "checkpoint": checkpoint,
        "num_classes": num_classes,
        "img_size": img_size,
        "pretrained": pretrained,
    }
    if isinstance(source, nn.Module):
        _refuse_options(f"a {type(source).__name__}", options)
        return source.eval()
    device = usable_device(device)
    directory = _saved_directory(source)
    if directory is not None:
        _refuse_options(str(source), options | {"num_classes": None})
        model = load_saved(directory, device)
        return model if num_classes is None else _with_head(model, num_classes)
    if pretrained and checkpoint is not None:
        raise UserError("give either pretrained=True or a checkpoint, not both.")
    sizes = {"num_classes": num_classes, "img_size": img_size}
    if checkpoint is None:
        model = _open(str(source), sizes, pretrained is not False)
    else:
        model = _open_with(Path(checkpoint), str(source), sizes)
    return model.eval().to(device)


def _with_head(model: nn.Module, num_classes: int) -> nn.Module:
    """A saved model with a head for other classes, and what it is now."""
    provenance = provenance_of(model)
    if give_head_(model, num_classes):
        model.__dict__.pop("secateur_spec")
        remember_(model, base_of(model), provenance)
    return model


Sizes = dict[str, int | None]


def _open(source: str, sizes: Sizes, pretrained: bool) -> nn.Module:
    library, name = _parse(source)
    model = library.open(name, pretrained=pretrained, **sizes)
    if pretrained:
        refuse_not_finite(model.state_dict(), source)
    model.__dict__.update(secateur_base=identify(model, compare_outputs=False))
    return model


def _open_with(path: Path, source: str, sizes: Sizes) -> nn.Module:
    """The named model on the meta device, filled from a checkpoint."""
    library, name = _parse(source)
    with on_meta():
        model = library.open(name, pretrained=False, **sizes)
    base = identify(model, compare_outputs=False)
    tensors = read_checkpoint(path, model)
    if sizes["num_classes"] == 0:
        tensors = _without_classifier(model, tensors)
    _refuse_other_classes(model, tensors, path, source, sizes["num_classes"])
    if reason := misfit(model, tensors):
        sized = reason.startswith(tuple(stated_names("positions")))
        hint = "; pass the --img-size it was trained for" if sized else ""
        raise UserError(f"{path} does not fit {source}: {reason}{hint}.")
    refuse_not_finite(tensors, str(path))
    # WHY: calibration and repair need full precision, whatever a checkpoint was stored in.
    full = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    fill_(model, full, lambda: build(base, "cpu"))
    model.__dict__.update(secateur_base=base)
    return model


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifying layers; a distilled model has two."""
    stated = [f.statement.tail.classifiers for _, f in families.items() if f.matches(model)]
    config = getattr(model, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or (stated[0] if stated and stated[0] else "head")
    return (heads,) if isinstance(heads, str) else tuple(heads)


def _without_classifier(model: nn.Module, tensors: Weights) -> Weights:
    """The tensors of a checkpoint but for its classifier, which a feature extractor lacks."""
    gone = tuple(f"{name}." for name in _classifiers(model))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(gone)}


def _refuse_other_classes(
    model: nn.Module, tensors: Weights, path: Path, source: str, num_classes: int | None
) -> None:
    head = _classifiers(model)[0]
    wanted = model.state_dict().get(f"{head}.weight")
    found = tensors.get(f"{head}.weight")
    if found is None or (wanted is not None and wanted.shape[0] == found.shape[0]):
        return
    classes = num_classes or (0 if wanted is None else wanted.shape[0])
    raise UserError(
        f"{path} has a head for {found.shape[0]} classes, but {source} was built for {classes}; "
        f"pass --num-classes {found.shape[0]}."
    )


def _saved_directory(source: str | Path) -> Path | None:
    """The directory that `source` names, local or from the hub, or None if it names a model."""
    text = str(source)
    if isinstance(source, str) and text.startswith("hub:"):
        return download(text.removeprefix("hub:"))
    prefix, colon, _ = text.partition(":")
    named = isinstance(source, str) and ((colon and len(prefix) > 1) or text in _zoo_names())
    path = Path(source)
    if named and not (path / SPEC).is_file():
        return None
    if not path.exists():
        mend_model(path)
    if isinstance(source, Path) or path.exists() or "/" in text or "\\" in text:
        if path.is_file():
            raise UserError(
                f"{path} is a file; name its architecture and pass it as the checkpoint, as in "
                f"timm:NAME --checkpoint {path}."
            )
        if not path.exists():
            raise UserError(f"there is no directory {path}.")
        return path
    return None


def _parse(source: str) -> tuple[Library, str]:
    prefix, colon, name = source.partition(":")
    if not colon and source in _zoo_names():
        return libraries.get("zoo"), source
    known = {key: library for key, library in libraries.items() if library.by_name}
    if colon and prefix in known and name:
        return known[prefix], name
    titles = ", ".join(library.title for library in known.values())
    what = f"no model is called '{source}';"
    if colon and prefix not in known:
        what = f"unknown prefix '{prefix}:' in '{source}';"
    if timm.is_model(source.partition(".")[0]):
        what += f" did you mean 'timm:{source}'?"
    elif not colon and (close := get_close_matches(source, _zoo_names(), n=1, cutoff=0.7)):
        what += f" did you mean '{close[0]}'?"
    raise UserError(f"{what} Known: {titles}, hub:ORG/NAME, or a directory saved by secateur.")


def _zoo_names() -> tuple[str, ...]:
    return ("digits_vit",)


def _refuse_options(what: str, options: dict[str, object]) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{what} already has its weights and sizes: leave out {name}.")
