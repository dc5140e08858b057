"""How well a pruned model attends as the dense one does, and its maps on single images.

Legend: B batch, N tokens (queries I, keys J), H heads, K query/key dims, L layers.
"""

from pathlib import Path

import torch
from _common import Pairs, Row
from torch import Tensor, nn

from secateur.anatomy.family import family_of, read
from secateur.anatomy.taps import attached
from secateur.anatomy.weights import AttentionWeights

PRESERVED = ("50% qk", "25% qk")
"""Budgets at which attention is compared."""
FIGURE = "25% qk"
IMAGES = 32
"""Validation images over which attention is compared."""
SHOWN = (3, 11, 20, 28)
"""Numbers of the images, among these, whose maps are drawn."""
LAYER = 8
"""Block whose maps are drawn."""


def preservation(dense: nn.Module, pruned: nn.Module, images: Pairs) -> Row:
    """Per layer and head: relative error of the scores, and KL of the rows of softmax, in nats.

    Scores are centred over the keys of each row, since the softmax ignores what all have alike.
    Both models run on the images as they are, so errors of earlier layers count.
    """
    error_LH, square_LH, kl_LH, rows = 0.0, 0.0, 0.0, 0
    for batch_BCHW in _some(images):
        wanted, found = scores(dense, batch_BCHW), scores(pruned, batch_BCHW)
        centred = [x - x.mean(-1, keepdim=True) for x in (wanted, found)]
        error_LH = error_LH + (centred[0] - centred[1]).square().sum((1, 3, 4))
        square_LH = square_LH + centred[0].square().sum((1, 3, 4))
        logs = [x.log_softmax(-1) for x in (wanted, found)]
        kl_LH = kl_LH + (logs[0].exp() * (logs[0] - logs[1])).sum((1, 3, 4))
        rows += wanted.shape[1] * wanted.shape[3]
    assert isinstance(error_LH, Tensor) and isinstance(kl_LH, Tensor)
    return {
        "images": IMAGES,
        "relative_error": (error_LH / square_LH).sqrt().tolist(),
        "row_kl": (kl_LH / rows).tolist(),
    }


def attention_maps(model: nn.Module, images: Pairs) -> list[list[list[float]]]:
    """What the class token looks at: the mean over heads of its row, as a square, per image."""
    batch_BCHW = torch.cat(_some(images))[list(SHOWN)]
    a_BHJ = scores(model, batch_BCHW)[LAYER].softmax(-1)[:, :, 0, 1:]
    side = round(a_BHJ.shape[-1] ** 0.5)
    maps: list[list[list[float]]] = a_BHJ.mean(1).unflatten(-1, (side, side)).tolist()
    return maps


@torch.inference_mode()
def scores(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Logits of all attention layers before the softmax (L, B, H, I, J)."""
    family, anatomy = family_of(model), read(model)
    layers = [branch for branch in anatomy.branches if branch.kind == "attention"]
    seen: dict[tuple[str, str], Tensor] = {}
    edits = []
    for branch in layers:
        taps = family.taps(model, branch)
        for site in ("query", "key"):

            def see(x: Tensor, key: tuple[str, str] = (branch.id, site)) -> None:
                seen[key] = x

            edits.append((taps[site], see))
    with attached(model, edits):
        model(images_BCHW)
    found = []
    for branch in layers:
        weights = family.weights(model, branch)
        assert isinstance(weights, AttentionWeights)
        q_BHIK, k_BHJK = (seen[branch.id, site].transpose(1, 2) for site in ("query", "key"))
        found.append(weights.scale * q_BHIK @ k_BHJK.mT)
    return torch.stack(found)


def _some(images: Pairs) -> list[Tensor]:
    """The first images in small batches; scores of all layers take much memory."""
    return list(
        torch.cat([x for x, _ in images[: 1 + IMAGES // len(images[0][0])]])[:IMAGES].split(8)
    )


def draw_maps(rows: list[tuple[str, list[list[list[float]]]]], path: Path) -> None:
    """A picture: one column per image, one row per model, each image on one colour scale."""
    from matplotlib import pyplot as plt

    count = len(SHOWN)
    figure, axes = plt.subplots(
        len(rows), count, figsize=(1.35 * count + 1.3, 1.35 * len(rows)), squeeze=False
    )
    for column in range(count):
        most = max(max(map(max, rows[0][1][column])), 1e-9)
        for line, (name, maps) in enumerate(rows):
            axis = axes[line][column]
            axis.imshow(maps[column], cmap="magma", vmin=0.0, vmax=most, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(
        left=0.22, right=0.995, top=0.995, bottom=0.005, wspace=0.06, hspace=0.06
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_preservation(rows: dict[str, Row], path: Path) -> None:
    """A picture: KL of softmax rows and relative error of scores over the layers."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.3))
    titles = ("KL(dense ‖ pruned) of softmax rows, nats", "relative error of centred scores")
    for axis, key, title in zip(axes, ("row_kl", "relative_error"), titles, strict=True):
        for number, (method, row) in enumerate(rows.items()):
            values = torch.tensor(row[key])
            layers = torch.arange(values.shape[0])
            axis.plot(layers, values.mean(1), label=method, color=f"C{number}", linewidth=1.6)
            for head in range(values.shape[1]):
                axis.plot(layers, values[:, head], ".", color=f"C{number}", markersize=4, alpha=0.6)
        axis.set_yscale("log")
        axis.set_xlabel("block")
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(0, values.shape[0], 2))
        axis.grid(alpha=0.25, linewidth=0.6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, ncols=len(labels), loc="lower center")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
