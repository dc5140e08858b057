"""How well a pruned model attends as the dense one does, and its maps on single images.

Legend: B batch, N tokens (queries I, keys J), H heads, K query/key dims, L layers.
"""

from pathlib import Path

import torch
from _common import Pairs, Row
from torch import Tensor, nn

from secateur.models.family import family_of, read
from secateur.models.hook_points import attached
from secateur.models.weights import AttentionWeights

PRESERVED = ("50% qk", "25% qk")
"""Budgets at which attention is compared."""
IMAGES = 32
"""Validation images over which attention is compared."""
SHOWN = (3, 11, 20, 28)
"""Numbers of the images, among these, whose maps are drawn."""
LAYER = 8
"""Block whose maps are drawn."""
TOP = 0.975
"""Share of the patches of a dense map that the colour scale tells apart."""


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
        hook_points = family.hook_points(model, branch)
        for site in ("query", "key"):

            def see(x: Tensor, key: tuple[str, str] = (branch.id, site)) -> None:
                seen[key] = x

            edits.append((hook_points[site], see))
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


def draw_maps(models: list[tuple[str, list[list[list[float]]]]], path: Path) -> None:
    """A picture: one row per image, one column per model, each image on one colour scale.

    The scale ends where `TOP` of the dense map lies below, since a few patches (often the corners)
    take so much that nothing else would be seen.
    """
    from matplotlib import pyplot as plt

    count = len(SHOWN)
    figure, axes = plt.subplots(
        count, len(models), figsize=(1.4 * len(models), 1.4 * count + 0.35), squeeze=False
    )
    for row in range(count):
        most = float(torch.tensor(models[0][1][row]).flatten().quantile(TOP))
        for column, (name, maps) in enumerate(models):
            axis = axes[row][column]
            axis.imshow(maps[row], cmap="magma", vmin=0.0, vmax=most, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(name.replace(", ", ",\n"), fontsize=9)
    figure.subplots_adjust(
        left=0.005, right=0.995, top=1 - 0.45 / (1.4 * count + 0.35), bottom=0.005,
        wspace=0.05, hspace=0.05,
    )  # fmt: skip
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_preservation(rows: dict[str, Row], path: Path) -> None:
    """A picture: KL of softmax rows and relative error of scores over the layers."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10.0, 4.2))
    titles = ("KL(dense ‖ pruned) of softmax rows, nats", "relative error of centred scores")
    for axis, key, title in zip(axes, ("row_kl", "relative_error"), titles, strict=True):
        for number, (method, row) in enumerate(rows.items()):
            values_LH = torch.tensor(row[key])
            layers_L = torch.arange(len(values_LH))
            # WHY dashes: lines of methods that do nearly the same would hide each other.
            style = ("-", "--")[number % 2]
            colour = f"C{number}"
            axis.plot(layers_L, values_LH.mean(1), style, label=method, color=colour, linewidth=1.8)
            aside_L = layers_L + 0.1 * (number - (len(rows) - 1) / 2)
            for values_L in values_LH.T:
                axis.plot(aside_L, values_L, ".", color=colour, markersize=3, alpha=0.55)
        axis.set_yscale("log")
        axis.set_xlabel("block")
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(values_LH)))
        axis.grid(alpha=0.25, linewidth=0.6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, frameon=False, ncols=4, loc="lower center")
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
