"""The images of a polish: some to train on, some held out, and mild changes to the former.

Legend: B batch, C channels, H height, W width, n images.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.data.batches import Batches
from secateur.data.split import HOLD_EVERY, is_held
from secateur.errors import UserError

IMAGE_BYTES = 1_500_000_000
"""Memory for images that are kept, so that nothing is decoded twice; later ones are left out."""


def require_images(images: int) -> None:
    """UserError when too few images are there to hold some of them out."""
    if images < HOLD_EVERY:
        raise UserError(
            f"{images} calibration images are too few to polish: every {HOLD_EVERY}th batch is "
            f"held out, so at least {HOLD_EVERY} are needed; give more, or leave the polish out."
        )


def split(batches: Batches, most_bytes: int = IMAGE_BYTES) -> tuple[Tensor, Tensor]:
    """Images to train on and images held out, both (n, C, H, W).

    Every fifth batch is held out, or every fifth image where there are fewer than five batches.
    Images beyond `most_bytes` are left out. UserError for fewer than five images.
    """
    require_images(batches.images)
    kept: list[Tensor] = []
    size = 0
    for batch in batches:
        images_BCHW = batch.images_BCHW
        size += images_BCHW.numel() * images_BCHW.element_size()
        if size > most_bytes and len(kept) >= HOLD_EVERY:
            break
        kept.append(images_BCHW)
    if len(kept) < HOLD_EVERY:
        kept = list(torch.cat(kept).split(1))
    held = [images for i, images in enumerate(kept) if is_held(i, len(kept))]
    train = [images for i, images in enumerate(kept) if not is_held(i, len(kept))]
    return torch.cat(train), torch.cat(held)


def shuffled(images_nCHW: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches without end; within a pass each image comes at most once.

    The images that do not fill the last batch of a pass are left out of that pass.
    """
    size = min(batch_size, len(images_nCHW))
    while True:
        order_n = torch.randperm(len(images_nCHW), generator=generator)
        for start in range(0, len(order_n) - size + 1, size):
            yield images_nCHW[order_n[start : start + size].to(images_nCHW.device)]


def augment(
    images_BCHW: Tensor, least_area: float, generator: torch.Generator, *, flip: bool = True
) -> Tensor:
    """A random crop of each image, scaled back to its size, and by chance its mirror image.

    The crop has the image's own shape and between `least_area` and all of its area. Interpolation
    is bilinear, hence the same whether images are normalised before or after it.
    """
    batch = len(images_BCHW)
    area_B, x_B, y_B, coin_B = torch.rand(4, batch, generator=generator)
    side_B = (least_area + (1 - least_area) * area_B).sqrt()
    sign_B = torch.where(coin_B < 0.5, -1.0, 1.0) if flip else torch.ones(batch)
    zeros_B = torch.zeros(batch)
    # Coordinates run from -1 to 1: a crop of side s may be centred anywhere within 1 - s of 0.
    across_B2 = (torch.stack([2 * x_B - 1, 2 * y_B - 1]) * (1 - side_B)).T
    theta_B23 = torch.stack(
        [
            torch.stack([sign_B * side_B, zeros_B, across_B2[:, 0]], dim=1),
            torch.stack([zeros_B, side_B, across_B2[:, 1]], dim=1),
        ],
        dim=1,
    ).to(images_BCHW)
    grid_BHW2 = F.affine_grid(theta_B23, list(images_BCHW.shape), align_corners=False)
    return F.grid_sample(
        images_BCHW, grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False
    )
