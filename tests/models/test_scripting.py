"""What torch's tools do with a dense model, they do with a pruned one."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import secateur
from secateur.models.derived.blocks import PartialBlock
from secateur.models.family import read
from secateur.models.modules import LinearStandIn, SlimAttention
from tests.hosts import build, images_for

FINE = {"qk": 1, "vo": 1, "hidden": 1}
CUTS: dict[str, dict[str, object]] = {
    "smaller": {"budget": "55% qk, 80% vo", "preset": "energy", "align": FINE, "minimum": FINE},
    "dropped": {"budget": "drop 1 attention", "preset": "layer_drop"},
    "replaced": {"budget": "drop 1 attention", "preset": "layer_drop", "replacement": "linear"},
}
CASES = [
    *(("vit", cut) for cut in CUTS),
    ("eva_rope", "smaller_vo"),
    ("eva_rope", "dropped"),
    ("eva_dinov3", "smaller_vo"),
    ("vit_post_norm", "smaller"),
    ("deit3", "dropped"),
    ("efficientformer", "dropped"),
]
CUTS["smaller_vo"] = CUTS["smaller"] | {"budget": "80% vo"}


@cache
def pruned(name: str, cut: str) -> nn.Module:
    model = build(name)
    return secateur.prune(model, images_for(model, 8), **CUTS[cut]).model  # type: ignore[arg-type]


def extracted(model: nn.Module, x: Tensor) -> Tensor:
    last = get_graph_node_names(model)[1][-1]
    return create_feature_extractor(model, [last])(x)[last]


def stored(model: nn.Module, x: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)(x)


TOOLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "script": lambda m, x: torch.jit.script(m)(x),
    "trace": lambda m, x: torch.jit.trace(m, x, check_trace=False)(x),
    "fx": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "feature_extractor": extracted,
    "export": lambda m, x: torch.export.export(m, (x,)).module()(x),
    "deepcopy": lambda m, x: copy.deepcopy(m)(x),
    "pickle": lambda m, x: pickle.loads(pickle.dumps(m))(x),
    "torch_save": stored,
}


@pytest.mark.parametrize(("name", "cut"), CASES)
@torch.no_grad()
def test_tools_for_dense_models_work_on_pruned_ones(name: str, cut: str) -> None:
    model, x = pruned(name, cut), images_for(build(name), 2)
    ours = SlimAttention | LinearStandIn | PartialBlock
    assert any(isinstance(module, ours) for module in model.modules())
    before, anatomy = model(x), read(model)
    for tool, work in TOOLS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = work(model, x)
        assert torch.allclose(found, before, atol=1e-5), tool
    # TorchScript lets modules be changed in place; the model is the same as before.
    assert torch.equal(model(x), before)
    assert read(model) == anatomy
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), before)


@pytest.mark.parametrize("masking", ["causal", "boolean", "added"])
@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_scripted_attention_takes_masks(masking: str, fused: bool) -> None:
    model = pruned("vit", "smaller")
    slim = copy.deepcopy(next(m for m in model.modules() if isinstance(m, SlimAttention)))
    slim.fused_attn = fused
    x = torch.randn(2, 5, slim.qkv.in_features, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    added = torch.zeros(5, 5).masked_fill(~mask, float("-inf"))
    given = {"causal": {"is_causal": True}, "boolean": {"attn_mask": mask}}
    arguments = given.get(masking, {"attn_mask": added})
    wanted = slim(x, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(copy.deepcopy(slim))
    assert torch.allclose(scripted(x, **arguments), wanted, atol=1e-6)


@pytest.mark.parametrize(("name", "cut"), [("vit", "smaller"), ("vit", "replaced")])
def test_hooks_of_users_stay_or_their_loss_is_said(name: str, cut: str) -> None:
    model = build(name)
    seen: list[str] = []
    for branch in read(model).branches:
        layer = model.get_submodule(branch.id)
        layer.register_forward_hook(lambda *_, path=branch.id: seen.append(path))
    model.get_submodule("blocks.0").register_forward_pre_hook(lambda *_: seen.append("block"))
    x = images_for(model, 8)
    result = secateur.prune(model, x, **CUTS[cut])  # type: ignore[arg-type]
    plain = pruned(name, cut)
    seen.clear()
    with torch.no_grad():
        assert torch.equal(result.model(x), plain(x))
    assert seen == ["block", *(branch.id for branch in read(model).branches)]
    assert not any("ooks" in note for note in result.notes)


def test_lost_hooks_are_named() -> None:
    model = build("vit")
    for branch in read(model).branches:
        model.get_submodule(branch.id).register_forward_hook(lambda *_: None)
    result = secateur.prune(model, images_for(model, 8), "drop 1 attention", preset="layer_drop")
    gone = {branch.id for branch in result.before.branches} - {
        branch.id for branch in result.after.branches
    }
    assert f"Hooks are gone with what was removed: {', '.join(gone)}." in result.notes
