import pytest
import torch
from torch import nn

from secateur.measurement.counting import counted
from secateur.models.family import family_of, read
from tests.measurement.hosts import HOSTS, INPUT, host, resize, slim


@pytest.mark.parametrize("name", HOSTS)
def test_counted_equals_predicted(name: str) -> None:
    model = HOSTS[name]()
    assert counted(model, INPUT) == read(model).cost()


@pytest.mark.parametrize("name", [name for name in HOSTS if name != "qk_norm"])
def test_counted_equals_predicted_after_cuts(name: str) -> None:
    model = HOSTS[name]()
    dense, anatomy = counted(model, INPUT), read(model)
    resize(model, "blocks.0.attn", qk=8, vo=12)
    resize(model, "blocks.0.mlp", hidden=32)
    resize(model, "blocks.1.attn", heads=2)
    smaller = counted(model, INPUT)
    assert smaller.macs < dense.macs
    assert smaller == read(model).cost()
    assert smaller == anatomy.cost(read(model).shapes)


def test_counted_equals_predicted_without_branches() -> None:
    model = host(depth=3)
    anatomy = read(model)
    family_of(model).drop_(model, {"blocks.0.attn", "blocks.1.mlp", "blocks.2.attn"})
    one_gone = counted(model, INPUT)
    assert one_gone == read(model).cost() == anatomy.cost(read(model).shapes)
    family_of(model).drop_(model, {"blocks.2.mlp"})
    assert counted(model, INPUT) == read(model).cost() == anatomy.cost(read(model).shapes)


def test_counts_by_hand() -> None:
    patches, tokens, width, dims, hidden = 16, 17, 48, 48, 192
    attention = tokens * width * 3 * dims + 2 * tokens * tokens * dims + tokens * dims * width
    mlp = 2 * tokens * width * hidden
    ends = patches * 3 * 8 * 8 * width + width * 10
    assert counted(host(), INPUT).macs == 2 * (attention + mlp) + ends


@pytest.mark.parametrize("fused", [True, False])
def test_attention_products_are_counted_in_either_path(fused: bool) -> None:
    model = slim()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    assert counted(model, INPUT) == read(model).cost()


def test_fast_path_of_multihead_attention_is_counted() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            x_BND = x_BCHW.flatten(2).transpose(1, 2)
            return self.attention(x_BND, x_BND, x_BND, need_weights=False)[0]

    tokens, width = 9, 8
    assert counted(Attending(), (8, 3, 3)).macs == 4 * tokens * width**2 + 2 * tokens**2 * width


def test_everything_is_left_as_it_was() -> None:
    model = host("deit_tiny_distilled_patch16_224").train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    counted(model, INPUT)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
