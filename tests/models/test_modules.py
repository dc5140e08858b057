import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.models.modules import SlimAttention

WIDTHS = [(8, 24), (24, 8), (16, 16)]


def slim(qk: int, vo: int) -> SlimAttention:
    torch.manual_seed(0)
    return SlimAttention(32, 2, qk, vo, scale=0.3).eval()


@pytest.mark.parametrize(("qk", "vo"), WIDTHS)
@pytest.mark.parametrize("masking", ["none", "causal", "mask"])
@torch.no_grad()
def test_the_fused_kernel_gets_equal_widths_and_gives_the_same(
    qk: int, vo: int, masking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, x = slim(qk, vo), torch.randn(3, 11, 32)
    mask = torch.rand(11, 11) > 0.3 if masking == "mask" else None
    arguments = {"attn_mask": mask, "is_causal": masking == "causal"}
    attention.fused_attn = False
    wanted = attention(x, **arguments)
    attention.fused_attn = True
    kernel, seen = F.scaled_dot_product_attention, []

    def noting(q: Tensor, k: Tensor, v: Tensor, **more: object) -> Tensor:
        seen.append((q.shape[-1], k.shape[-1], v.shape[-1]))
        return kernel(q, k, v, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    torch.testing.assert_close(attention(x, **arguments), wanted, atol=1e-6, rtol=1e-5)
    assert seen == [(max(qk, vo),) * 3]


@pytest.mark.parametrize(("qk", "vo"), WIDTHS)
def test_gradients_pass_the_padding(qk: int, vo: int) -> None:
    attention, x = slim(qk, vo), torch.randn(2, 5, 32)
    gradients = []
    for fused in (False, True):
        attention.fused_attn = fused
        attention.zero_grad()
        attention(x).square().sum().backward()
        gradients.append(attention.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("qk", "vo"), WIDTHS)
def test_an_exported_graph_is_without_padding(qk: int, vo: int) -> None:
    attention, x = slim(qk, vo), torch.randn(2, 5, 32)
    program = torch.export.export(attention, (x,))
    assert "pad" not in program.graph_module.code
    torch.testing.assert_close(program.module()(x), attention(x), atol=1e-6, rtol=1e-5)
