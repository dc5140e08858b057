"""Constants end in biases that exist anyway, also where there was none; else they are refused."""

import pytest
import torch
from timm.layers import RmsNorm
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from secateur.errors import UserError
from secateur.models.derived.fold import add_to_bias_
from secateur.models.family import family_of, read
from tests.hosts import HOSTS, build, images_for, randomise_, vit


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_a_constant_arrives_at_its_place(name: str) -> None:
    model = build(name)
    family, anatomy = family_of(model), read(model)
    x = images_for(model)
    for number, branch in enumerate(anatomy.branches):
        constant_D = torch.linspace(-1, 1, branch.width, dtype=torch.float64)
        changed = build(name)
        family.add_constant_(changed, branch, constant_D)
        before, after = family.embed(model, x), family.embed(changed, x)
        for earlier in anatomy.branches[:number]:
            before = family.through(model, earlier)(before)
            after = family.through(changed, earlier)(after)
        before, after = (
            family.arrive(m, branch, x) for m, x in ((model, before), (changed, after))
        )
        assert torch.allclose(after, before + constant_D.float(), atol=1e-5)
        assert len(list(changed.modules())) == len(list(model.modules()))


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 4), nn.Linear(3, 4, bias=False), nn.LayerNorm(4, bias=False)]
)
def test_biases_grow_or_appear(module: nn.Module) -> None:
    before = torch.zeros(4) if module.bias is None else module.bias.detach().clone()
    add_to_bias_(module, torch.arange(4, dtype=torch.float64))
    assert isinstance(module.bias, nn.Parameter) and module.bias.dtype == torch.float32
    assert torch.equal(module.bias.detach(), before + torch.arange(4))
    assert "bias" in module.state_dict()


def test_new_biases_train_only_where_the_weights_do() -> None:
    frozen = nn.Linear(3, 4, bias=False).requires_grad_(False)
    add_to_bias_(frozen, torch.ones(4))
    assert not frozen.bias.requires_grad


def test_norms_without_a_place_for_a_bias_are_refused() -> None:
    model = vit(norm_layer=RmsNorm, block_fn=ResPostBlock)
    randomise_(model, seed=0)
    branch = read(model).branches[1]
    with pytest.raises(UserError, match="a RmsNorm has no bias to carry the mean"):
        family_of(model).add_constant_(model, branch, torch.ones(32))
    assert not hasattr(model.blocks[0].norm1, "bias")
