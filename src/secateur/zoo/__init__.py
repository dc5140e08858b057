"""The tiny trained model that ships with the package, so that the demo needs no network."""

import json
from pathlib import Path

from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from secateur.errors import UserError
from secateur.registry import unknown

FOLDER = Path(__file__).parent


def zoo_path(name: str) -> Path:
    """Return the path of a file of the zoo, such as "digits_vit.safetensors".

    Raises UserError when the zoo has no such file.
    """
    known = sorted(
        path.name for path in FOLDER.iterdir() if path.suffix in {".json", ".safetensors"}
    )
    if name not in known:
        raise UserError(unknown("file of the zoo", name, known))
    return FOLDER / name


def digits_vit() -> nn.Module:
    """Return the trained vision transformer for 8 × 8 digits: images [B, 1, 8, 8] → logits [B, 10].

    A plain timm VisionTransformer in eval mode and fp32, made by `secateur.zoo.train_digits`. Its
    `pretrained_cfg` holds the preprocessing, where timm.data.resolve_data_config looks for it.
    """
    card = json.loads(zoo_path("digits_vit.json").read_text(encoding="utf-8"))
    model = VisionTransformer(**card["arguments"])
    model.load_state_dict(load_file(zoo_path("digits_vit.safetensors")), strict=True)
    preprocessing = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in card["preprocessing"].items()
    }
    config = {"architecture": "digits_vit", "num_classes": model.num_classes, **preprocessing}
    # timm sets both names on its own models without declaring either.
    model.pretrained_cfg = config  # type: ignore[assignment]
    model.default_cfg = config  # type: ignore[assignment]
    return model.eval()
