"""Train the tiny vision transformer of the zoo: `python -m secateur.zoo.train_digits`.

Hyperparameters were chosen with `--validate`, which trains on four fifths of the training split
and scores the rest; the test split is scored once, after training on all of the training split.

Shape suffixes: B batch, C channels, H height, W width.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.model_selection import train_test_split
from timm.loss import LabelSmoothingCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from secateur.data.digits import load_digits_split
from secateur.zoo import FOLDER

ARGUMENTS: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 4.0,
}
MEAN = STD = 0.5
PREPROCESSING = {
    "input_size": [1, 8, 8],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": [MEAN],
    "std": [STD],
}
BATCH = 64
EPOCHS = 100
WARMUP_EPOCHS = 10
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
LARGEST_CHANGE = 0.15
"""Of each entry of the 2 × 2 matrix that turns, scales and shears an image."""
LARGEST_SHIFT = 0.75
"""In pixels."""


def normalize(images: NDArray[np.uint8]) -> Tensor:
    """Grey images [B, 8, 8] of 0..255 → what the model reads, [B, 1, 8, 8] of -1..1."""
    x_BHW = torch.from_numpy(images).float() / 255
    return (x_BHW.unsqueeze(1) - MEAN) / STD


def augment(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, shear and shift each image a little, by its own random affine map."""
    batch, _, _, width = x_BCHW.shape
    change = torch.empty(batch, 2, 3).uniform_(-1, 1, generator=generator)
    pixel = 2 / width
    maps = torch.eye(2, 3) + change * torch.tensor(
        [LARGEST_CHANGE, LARGEST_CHANGE, LARGEST_SHIFT * pixel]
    )
    grid = affine_grid(maps, list(x_BCHW.shape), align_corners=False)
    # Bicubic, since bilinear blurs strokes of one pixel into images unlike those of the test
    # split. Outside an image is paper, which is -1 where grid_sample fills in 0.
    moved = grid_sample(x_BCHW + 1, grid, mode="bicubic", align_corners=False)
    return moved.clamp(0, 2) - 1


def train(images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> nn.Module:
    """Return a model trained on images [n, 8, 8] of 0..255 and labels [n]."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = VisionTransformer(**ARGUMENTS)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=EPOCHS, warmup_t=WARMUP_EPOCHS, lr_min=LEARNING_RATE / 1000
    )
    criterion = LabelSmoothingCrossEntropy(LABEL_SMOOTHING)
    x_BCHW, y_B = normalize(images), torch.from_numpy(labels)
    model.train()
    for epoch in range(EPOCHS):
        scheduler.step(epoch)
        for batch in torch.randperm(len(y_B), generator=generator).split(BATCH):
            loss = criterion(model(augment(x_BCHW[batch], generator)), y_B[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.inference_mode()
def top1(model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Return the share of images [n, 8, 8] that are classified rightly, in percent."""
    predictions = model(normalize(images)).argmax(dim=1)
    return 100 * float((predictions == torch.from_numpy(labels)).double().mean())


def save(model: nn.Module, card: dict[str, object], folder: Path) -> None:
    """Write the weights and the card into `folder`, each whole or not at all."""
    weights, text = folder / "digits_vit.safetensors", folder / "digits_vit.json"
    unfinished = [path.with_name(path.name + ".unfinished") for path in (weights, text)]
    save_file(model.state_dict(), unfinished[0])
    unfinished[1].write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished[0], weights)
    os.replace(unfinished[1], text)


def main(
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where to write the model.")] = FOLDER,
    validate: Annotated[
        bool, typer.Option("--validate", help="Score a part of the training split; write nothing.")
    ] = False,
) -> None:
    """Train on the digits, print the accuracy and write the model into the zoo."""
    # One thread sums in one order, and small matrices gain nothing from more.
    torch.set_num_threads(1)
    images, labels = load_digits_split("train")
    if validate:
        images, held_images, labels, held_labels = train_test_split(
            images, labels, test_size=0.2, random_state=seed, stratify=labels
        )
    else:
        held_images, held_labels = load_digits_split("test")
    start = time.perf_counter()
    model = train(images, labels, seed)
    seconds = time.perf_counter() - start
    accuracy = top1(model, held_images, held_labels)
    typer.echo(f"{accuracy:.2f} % of {len(held_labels)} held-out digits, {seconds:.0f} s")
    if not validate:
        card: dict[str, object] = {
            "arguments": ARGUMENTS,
            "preprocessing": PREPROCESSING,
            "test_top1_percent": round(accuracy, 2),
            "training_seconds": round(seconds),
            "seed": seed,
        }
        save(model, card, folder)


if __name__ == "__main__":
    typer.run(main)
