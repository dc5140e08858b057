"""Digits models with LayerScale, for experiments about it: a trained one, and one made."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from secateur.data.digits import load_digits_split
from secateur.zoo import digits_vit, train_digits

INIT = 0.1
"""LayerScale at the start of training, as CaiT has it up to 18 layers."""

EPOCHS = 15
"""Fewer than the bundled model's: its accuracy is not the point."""


LEAST = 0.05
"""The least factor of a made LayerScale; the largest is 1."""


@torch.no_grad()
def digits_rewritten_with_layer_scale(seed: int) -> nn.Module:
    """The bundled model, its writers divided by LayerScales drawn log-uniformly from 0.05 to 1.

    It computes the same: what a branch adds to the stream has not changed.
    """
    bundled = digits_vit()
    model = VisionTransformer(**{**train_digits.ARGUMENTS, "init_values": 1.0})
    model.load_state_dict(bundled.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        for writer, scale in ((block.attn.proj, block.ls1), (block.mlp.fc2, block.ls2)):
            gamma_D = LEAST ** torch.rand(scale.gamma.shape, generator=generator)
            scale.gamma.copy_(gamma_D)
            writer.weight.div_(gamma_D[:, None])
            writer.bias.div_(gamma_D)
    model.pretrained_cfg = model.default_cfg = bundled.pretrained_cfg
    return model.eval()


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
