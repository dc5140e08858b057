"""A digits model with LayerScale, trained like the bundled one, for experiments about it."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from secateur.data.digits import load_digits_split
from secateur.zoo import train_digits

INIT = 0.1
"""LayerScale at the start of training, as CaiT has it up to 18 layers."""

EPOCHS = 15
"""Fewer than the bundled model's: its accuracy is not the point."""


def digits_with_layer_scale(folder: Path, seed: int) -> nn.Module:
    """The trained model; kept in `folder` after the first time."""
    arguments = {**train_digits.ARGUMENTS, "init_values": INIT}
    file = folder / f"digits_layer_scale_{seed}.safetensors"
    if not file.is_file():
        images, labels = load_digits_split("train")
        train_digits.ARGUMENTS.update(init_values=INIT)
        train_digits.EPOCHS = EPOCHS
        model = train_digits.train(images, labels, seed)
        folder.mkdir(exist_ok=True)
        save_file(model.state_dict(), file)
    model = VisionTransformer(**arguments)
    model.load_state_dict(load_file(file), strict=True)
    mean = (train_digits.MEAN,)
    config = {
        "input_size": (1, 8, 8),
        "mean": mean,
        "std": mean,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    model.pretrained_cfg = model.default_cfg = config
    return model.eval()
