"""Ranks bring every kind of structure to one scale, whatever its scores are."""

import torch

from secateur.allocation.normalise import normalised
from secateur.verbs.prune import prune
from tests.hosts import anatomy_of, build, images_for

WHOLE = {"exact_tail": False}
SMALL = {"qk": 1, "vo": 1, "hidden": 1}


def test_ranks_by_hand() -> None:
    anatomy = anatomy_of("vit")
    scores = {
        ("blocks.0.mlp", "hidden"): torch.tensor([10.0, 30.0]),
        ("blocks.1.mlp", "hidden"): torch.tensor([20.0, 10.0]),
        ("blocks.0.attn", "qk"): torch.tensor([[1e-6, 3e-6], [2e-6, 4e-6]]),
        ("blocks.0.attn", "branch"): torch.tensor(7.0),
    }
    ranked = normalised(scores, "rank", anatomy)  # type: ignore[arg-type]
    assert ranked["blocks.0.mlp", "hidden"].tolist() == [0.5, 1.0]
    assert ranked["blocks.1.mlp", "hidden"].tolist() == [0.75, 0.5]
    assert ranked["blocks.0.attn", "qk"].tolist() == [[0.125, 0.375], [0.25, 0.5]]
    assert float(ranked["blocks.0.attn", "branch"]) == 7.0


def test_isomorphic_takes_the_same_share_of_every_kind() -> None:
    """Also where one kind's scores are far below another's, which a plain ranking would empty."""
    model = build("vit")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.mul_(1e-3)
    shares = {}
    for preset in ("isomorphic", "taylor"):
        result = prune(
            model,
            images_for(model, 8),
            "60% macs",
            preset=preset,
            align=SMALL,
            minimum=SMALL,
            exact_tail=False,
        )
        for group in ("hidden", "vo"):
            pairs = [
                (result.plan.shapes[b.id].size(group), b.shape.size(group))  # type: ignore
                for b in result.before.branches
                if group in b.groups
            ]
            shares[preset, group] = sum(kept for kept, _ in pairs) / sum(n for _, n in pairs)
    assert abs(shares["isomorphic", "hidden"] - shares["isomorphic", "vo"]) < 0.1
    assert shares["taylor", "vo"] < 0.5 * shares["isomorphic", "vo"]


def test_isomorphic_ranks_over_all_layers() -> None:
    """A layer whose neurons matter less loses more of them."""
    model = build("vit")
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight.mul_(1e-3)
    result = prune(
        model, images_for(model, 8), "80% macs", preset="isomorphic", align=SMALL, exact_tail=False
    )
    kept = [result.plan.shapes[f"blocks.{i}.mlp"].size("hidden") for i in range(3)]  # type: ignore
    assert kept[1] < min(kept[0], kept[2])
