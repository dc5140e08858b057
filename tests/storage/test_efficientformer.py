"""EfficientFormers are rebuilt from timm's name, with what pruning and repair did to them."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from secateur.export import export
from secateur.measurement.counting import counted
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.storage.spec import read_spec
from secateur.verbs.prune import prune

SMALL = {"qk": 8, "vo": 8, "hidden": 8}


def small(name: str = "efficientformer_l1") -> nn.Module:
    """One of timm's architectures with narrower stages of fewer blocks."""
    torch.manual_seed(0)
    model = timm.create_model(
        name,
        depths=(1, 1, 1, 2),
        embed_dims=(4, 4, 8, 16),
        mlp_ratios=4.0,
        num_vit=1,
        num_classes=5,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images(count: int = 8) -> Tensor:
    """Of the size that four stages take."""
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_pruned_repaired_and_dropped_comes_back(tmp_path: Path) -> None:
    model, x = small(), images()
    result = prune(
        model,
        x,
        "60% hidden, 50% qk, 50% vo, drop 1 mlp",
        preset="energy",
        align=SMALL,
        minimum=SMALL,
    )
    result.save(tmp_path / "small")
    again = load(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(again(x), result.model(x))
    spec = read_spec(tmp_path / "small")
    assert (spec.base.library, spec.base.name) == ("timm", "efficientformer_l1.snap_dist_in1k")
    assert counted(again, (3, 224, 224)) == result.cost


def test_a_bias_behind_the_stem_comes_back(tmp_path: Path) -> None:
    model, x = small(), images()
    protect = ["stages.1.blocks.0", "stages.2.blocks.0", "stages.3.blocks.0", "stages.3.blocks.2"]
    result = prune(model, x, "drop 1 mlp", preset="layer_drop", protect=protect)
    result.save(tmp_path / "small")
    assert read_spec(tmp_path / "small").added_biases == ["stem.act2"]
    again = load(tmp_path / "small")
    with torch.no_grad():
        assert float(again.stem.act2.bias.abs().max()) > 0
        assert torch.equal(again(x), result.model(x))
    parity = export(again, "onnx", tmp_path / "small.onnx")
    assert parity.max_abs < 1e-4


def test_the_dense_model_is_recognised() -> None:
    base = base_of(small("efficientformer_l3"))
    assert base.name.partition(".")[0] == "efficientformer_l3"
    assert base.arguments["embed_dims"] == [4, 4, 8, 16]
