"""What makes two runs the same run, so that one may go on from the checkpoint of the other."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.data.images import ImageSet
from secateur.errors import UserError
from secateur.training.settings import FREE, TrainSettings

PREPARED = "preprocessing"
"""Of images, in an identity; earlier versions noted none."""


def identity_of(
    model: nn.Module,
    images: object,
    count: int,
    settings: TrainSettings,
    about: Mapping[str, object],
) -> dict[str, Any]:
    """Everything that decides how a run goes, as plain data."""
    return {
        "settings": {k: v for k, v in settings.model_dump(mode="json").items() if k not in FREE},
        "images": {"count": count} | _known_of(images),
        "starting weights": digest(model),
        **about,
    }


def _known_of(images: object) -> dict[str, Any]:
    if not isinstance(images, ImageSet):
        return {"fingerprint": None}
    return {"fingerprint": images.fingerprint, PREPARED: images.preprocessing.to_json()}


def digest(model: nn.Module) -> str:
    """A short hash of names and values of all weights."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(raw.numpy().tobytes())
    return found.hexdigest()[:16]


def refuse_other_run(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """UserError listing what differs between the run in `folder` and the one asked for."""
    old, new = dict(_flat(before)), dict(_flat(now))
    if PREPARED not in before.get("images", {}):
        new = {key: value for key, value in new.items() if f".{PREPARED}." not in key}
    changes = [
        f"{key}: {old.get(key, 'absent')} → {new.get(key, 'absent')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    if changes:
        raise UserError(
            f"{folder} holds the checkpoint of another run ({'; '.join(changes)}); give the old "
            "values to go on with it, or restart to begin anew (--restart)."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
