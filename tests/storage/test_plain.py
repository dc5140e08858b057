"""Plain directories: what a pruned model's own library opens, without secateur's help."""

from pathlib import Path

import pytest
import timm
import torch
import transformers

import secateur
from secateur.allocation.types import Plan
from secateur.errors import UserError
from secateur.export import export
from secateur.models.family import read
from secateur.models.outputs import outputs_of
from secateur.models.types import AttentionShape, MlpShape
from secateur.surgery.cut import cut_
from tests.hosts import as_made, images_for


def uniform(model: torch.nn.Module, heads: int, dims: int, gone: str = "") -> Plan:
    """The first heads and dims, and three eighths of the neurons, of all blocks but one."""
    shapes, units = {}, {}
    for branch in read(model).branches:
        if branch.id.startswith(f"{gone}.") and gone:
            shapes[branch.id] = None
        elif isinstance(branch.shape, MlpShape):
            shapes[branch.id] = MlpShape(hidden=24)
            units[branch.id] = {"hidden": tuple(range(24))}
        else:
            shapes[branch.id] = AttentionShape(heads=heads, qk=dims, vo=dims)
            each = tuple(tuple(range(dims)) for _ in range(branch.shape.heads))
            units[branch.id] = {"heads": tuple(range(heads)), "qk": each, "vo": each}
            if dims == branch.shape.qk:
                del units[branch.id]["qk"], units[branch.id]["vo"]
    return Plan(shapes=shapes, units=units)


@pytest.mark.filterwarnings("ignore::secateur.errors.Advice")
@pytest.mark.parametrize(
    ("name", "heads", "dims"), [("hf_vit", 3, 4), ("hf_dinov2_registers", 4, 8), ("hf_clip", 4, 8)]
)
@torch.no_grad()
def test_transformers_opens_a_uniform_model(
    name: str, heads: int, dims: int, tmp_path: Path
) -> None:
    """Also with narrower heads, whose temperature goes into the queries, and a block fewer."""
    host = as_made(name)
    host.save_pretrained(tmp_path / "host")
    model = secateur.load(f"hf:{tmp_path / 'host'}")
    cut_(model, uniform(model, heads, dims, read(model).blocks[1].id), None, "none")
    secateur.save(model, tmp_path / "plain", plain=True)
    again = type(host).from_pretrained(tmp_path / "plain").eval()
    x = images_for(model)
    assert torch.allclose(outputs_of(again(x)), outputs_of(model(x)), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in again.parameters()) == read(model).cost().params
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "plain")
    assert processor.crop_size["height"] == 32


@torch.no_grad()
def test_timm_opens_a_uniform_model(tmp_path: Path) -> None:
    model = secateur.load("timm:vit_tiny_patch16_224", pretrained=False, num_classes=5, img_size=32)
    dims = read(model).branches[0].shape.size("qk")
    cut_(model, uniform(model, 3, dims, "blocks.1"), None, "none")
    parity = export(model, "plain", tmp_path / "plain")
    assert parity.max_rel < 1e-5
    again = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True).eval()
    x = images_for(model)
    assert torch.allclose(again(x), model(x), rtol=0, atol=1e-5)
    assert len(again.blocks) == 11


@pytest.mark.filterwarnings("ignore::secateur.errors.Advice")
def test_other_shapes_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    as_made("hf_vit").save_pretrained(tmp_path / "host")
    model = secateur.load(f"hf:{tmp_path / 'host'}")
    plan = uniform(model, 4, 8)
    last = read(model).branches[-1].id
    plan.shapes[last] = None
    cut_(model, plan, None, "none")
    with pytest.raises(UserError, match=r"layers\.2 has lost one of its layers"):
        secateur.save(model, tmp_path / "plain", plain=True)
    assert not (tmp_path / "plain").exists()
    with pytest.raises(UserError, match="is not empty"):
        secateur.save(model, tmp_path / "host", plain=True)
