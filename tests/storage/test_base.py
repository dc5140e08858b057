"""Dense models are recognised, however they were built, or refused with the reason."""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from timm.layers import RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from secateur.errors import UserError
from secateur.storage.base import Base, build
from secateur.storage.identify import base_of
from tests.storage.tiny import HOSTS, SIZES, host, images


def _rebuilt(model: nn.Module, base: Base) -> nn.Module:
    again = build(base, "cpu")
    again.load_state_dict(model.state_dict(), strict=True)
    return again


@pytest.mark.parametrize("name", HOSTS)
def test_a_rebuild_with_the_same_weights_gives_the_same_outputs(name: str) -> None:
    model = host(name)
    base = base_of(model)
    assert base.library == ("timm-class" if name.startswith("class") else "timm")
    x = images(model)
    assert torch.equal(_rebuilt(model, base)(x), model(x))


def test_building_on_meta_needs_no_memory_and_draws_no_numbers() -> None:
    base = base_of(host("vit"))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = build(base)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.training


def test_building_on_a_device_gives_initial_weights() -> None:
    model = build(base_of(host("vit")), "cpu")
    assert model.blocks[0].mlp.fc1.weight.std() > 0.01
    assert torch.equal(model.norm.weight, torch.ones(32))


def test_arguments_of_create_model_are_kept() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224.augreg_in21k", **{**SIZES, "img_size": (16, 24)}, act_layer="relu"
    )
    base = base_of(model)
    assert base.name == "vit_tiny_patch16_224.augreg_in21k"
    assert base.arguments == {**SIZES, "img_size": [16, 24], "act_layer": "relu"}
    assert base.preprocessing.input_size == (3, 16, 24)


def test_later_changes_of_head_and_pooling_are_seen() -> None:
    model = host("vit")
    model.reset_classifier(3, "avg")
    with torch.no_grad():
        model.head.weight.normal_()
    base = base_of(model)
    assert base.arguments["num_classes"] == 3
    assert base.arguments["global_pool"] == "avg"
    x = images(model)
    assert torch.equal(_rebuilt(model, base)(x), model(x))


def test_older_timm_that_keeps_no_arguments() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=4)
    del model._model_args
    base = base_of(model)
    assert (base.library, base.name) == ("timm", "deit_tiny_distilled_patch16_224.fb_in1k")
    assert base.arguments == {"num_classes": 4, "img_size": [32, 32]}


def test_unusual_sizes_without_kept_arguments_are_read_off_the_module() -> None:
    model = host("deit3")
    del model._model_args
    base = base_of(model)
    assert (base.library, base.name) == ("timm-class", "VisionTransformer")
    x = images(model)
    assert torch.equal(_rebuilt(model, base)(x), model(x))


@pytest.mark.parametrize(
    "arguments",
    [
        {"in_chans": 1, "img_size": (8, 16), "patch_size": (4, 8)},
        {"mlp_ratio": 29.5 / 32},
        {"mlp_ratio": 29 / 49, "embed_dim": 49, "num_heads": 7},
        {"norm_layer": partial(nn.LayerNorm, eps=3e-5)},
        {"norm_layer": RmsNorm, "pre_norm": True},
        {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True, "qkv_bias": False},
        {"pos_embed": "none", "reg_tokens": 2, "no_embed_class": True},
        {"global_pool": "avg", "fc_norm": False},
        {"global_pool": "map", "class_token": False},
        {"final_norm": False, "act_layer": "silu"},
        {"dynamic_img_size": True, "init_values": 1e-3},
        {"num_classes": 0},
    ],
    ids=str,
)
def test_constructor_arguments_are_read_off_the_module(arguments: dict[str, object]) -> None:
    model = VisionTransformer(**{**SIZES, **arguments}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    base = base_of(model)
    assert base.library == "timm-class"
    x = images(model)
    assert torch.equal(_rebuilt(model, base)(x), model(x))


def test_dropout_rates_are_kept_for_healing() -> None:
    model = VisionTransformer(**SIZES, drop_path_rate=0.3, proj_drop_rate=0.1, drop_rate=0.2)
    again = build(base_of(model), "cpu")
    rates = [block.drop_path1.drop_prob for block in list(model.blocks)[1:]]
    assert [block.drop_path1.drop_prob for block in list(again.blocks)[1:]] == rates
    assert again.blocks[0].mlp.drop1.p == 0.1
    assert again.head_drop.p == 0.2


def test_a_model_in_training_mode_stays_in_it() -> None:
    model = host("vit").train()
    base_of(model)
    assert all(module.training for module in model.modules())


def test_a_base_that_load_has_set_is_returned_where_it_is_that_of_the_model() -> None:
    model, other = host("vit"), host("deit3")
    known = base_of(model)
    model.secateur_base = replace(known, preprocessing=known.preprocessing.override(mean=0.25))
    assert base_of(model) == model.secateur_base != known
    model.secateur_base = base_of(other)
    assert base_of(model) == known


def _other_scale(model: nn.Module) -> None:
    model.blocks[1].attn.scale = 0.5
    model.blocks[1].attn.fused_attn = False


def _other_epsilon(model: nn.Module) -> None:
    model.blocks[1].norm1.eps = 1e-2


def _other_activation(model: nn.Module) -> None:
    model.blocks[1].mlp.act = nn.ReLU()


def _other_head(model: nn.Module) -> None:
    model.head = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 10))


def _other_forward(model: nn.Module) -> None:
    model.forward_head = lambda x: model.head(x.mean(dim=1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_scale, "other outputs"),
        (_other_epsilon, r"blocks\.1\.norm1 is .*eps=0\.01"),
        (_other_activation, r"blocks\.1\.mlp\.act is ReLU"),
        (_other_head, r"unexpected head\.0\.weight"),
        (_other_forward, "other outputs"),
    ],
)
@pytest.mark.parametrize("name", ["vit", "class"])
def test_a_changed_model_is_refused_with_the_reason(name: str, change, reason: str) -> None:  # type: ignore[no-untyped-def]
    model = host(name)
    change(model)
    with pytest.raises(UserError, match=reason) as caught:
        base_of(model)
    assert 'secateur.load("timm:NAME"' in str(caught.value)
    assert images(model) is not None


def test_an_unknown_class_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model.pretrained_cfg = {"input_size": (3, 2, 2)}
    with pytest.raises(UserError, match="cannot tell how this Sequential was built"):
        base_of(model)
