"""What a family cannot support is refused with the reason, before any image is looked at."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import UserError
from secateur.models.checks.refused import REASONS
from secateur.models.family import family_of, read
from secateur.models.types import GroupName
from secateur.verbs.prune import prune
from tests.contract.cases import UNIT_GROUPS, offered
from tests.hosts import HOSTS, anatomy_of, build, gated, vit


class Untouched:
    """Images that must not be looked at."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("the images were touched")


REFUSED = [
    (name, group) for name in HOSTS for group in UNIT_GROUPS if not offered(anatomy_of(name), group)
]


@pytest.mark.parametrize(("name", "group"), REFUSED)
def test_groups_that_a_host_lacks_are_refused(name: str, group: GroupName) -> None:
    model = build(name)
    reasons = {b.refusals[group] for b in read(model).branches if group in b.refusals}
    assert reasons, "a family must say why"
    with pytest.raises(UserError) as by_groups:
        prune(model, Untouched(), "90% macs", groups=[group], preset="magnitude")
    with pytest.raises(UserError) as by_budget:
        prune(model, Untouched(), f"50% {group}", preset="magnitude")
    for error in (by_groups, by_budget):
        assert f"'{group}'" in str(error.value)
        assert all(reason in str(error.value) for reason in reasons)


def test_every_kind_of_refusal_is_tested() -> None:
    assert {group for _, group in REFUSED} == set(UNIT_GROUPS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": "half of it"}, "cannot be understood"),
        ({"budget": "0% macs"}, "above 0"),
        ({"budget": "1% macs"}, "smallest reachable is"),
        ({"budget": "5% hidden"}, "smallest reachable"),
        ({"budget": "50% qk"}, "smallest reachable"),
        ({"budget": "drop 7 attention"}, "cannot drop 7"),
        ({"groups": ["hiden"]}, "did you mean 'hidden'"),
        ({"groups": ["width"]}, "width"),
        ({"preset": "enrgy"}, "did you mean 'energy'"),
        ({"repair": "glue"}, "glue"),
        ({"allocation": "lottery"}, "lottery"),
        ({"protect": ["blocks.9"]}, "blocks.9"),
        ({"align": {"hidden": 0}}, "hidden=0"),
        ({"preset": "vbp", "groups": ["heads", "block", "qk", "branch", "width"]}, "width"),
    ],
    ids=str,
)
def test_wrong_requests_are_refused_before_the_pass(change: dict[str, Any], words: str) -> None:
    request = {"budget": "50% macs", "preset": "energy"} | change
    with pytest.raises(UserError, match=words):
        prune(build("vit"), Untouched(), **request)


def test_the_trap_works() -> None:
    with pytest.raises(AssertionError, match="touched"):
        prune(build("vit"), Untouched(), "95% macs", align={"hidden": 1}, preset="energy")


def test_unknown_families_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear .*VisionTransformer"):
        family_of(nn.Linear(2, 2))


def test_known_hosts_without_a_family_are_refused_with_the_reason() -> None:
    import timm

    for name, words in (
        ("cait_xxs24_224", "talking heads mix the logits"),
        ("pvt_v2_b0", "through a strided convolution"),
        ("hiera_tiny_224", "pools its queries and its shortcut"),
    ):
        with torch.device("meta"):
            model = timm.create_model(name)
        with pytest.raises(UserError, match=words):
            family_of(model)


@pytest.mark.parametrize("name", REASONS)
def test_hosts_without_a_family_exist(name: str) -> None:
    module, _, cls = name.partition(":")
    assert issubclass(getattr(importlib.import_module(module), cls), nn.Module)


def test_members_that_cannot_be_read_are_refused_by_name() -> None:
    import timm
    from timm.layers import DiffAttention
    from timm.models.vision_transformer import ParallelScalingBlock

    with pytest.raises(UserError, match=r"blocks\.0 is a ParallelScalingBlock"):
        read(vit(block_fn=ParallelScalingBlock))
    with pytest.raises(UserError, match=r"blocks\.0\.attn is a DiffAttention"):
        read(vit(attn_layer=DiffAttention))
    with pytest.raises(UserError, match=r"patch_embed\.proj is a Identity, .* writes the stream"):
        with torch.device("meta"):
            model = timm.create_model("vit_base_mci_224")
        read(model)
    wrapped = gated()
    wrapped.blocks[1].mlp.fc2 = nn.Sequential(nn.Linear(64, 32))
    with pytest.raises(UserError, match=r"'fc2' of a Mlp is a Sequential"):
        read(wrapped)
