"""The stand-in refuses what CUDA refuses and allows what CUDA allows."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

Case = Callable[[Tensor, Tensor], object]
REFUSED: dict[str, Case] = {
    "sum": lambda x, c: x + c,
    "sum the other way": lambda x, c: c + x,
    "product": lambda x, c: x @ c.T,
    "choice": lambda x, c: torch.where(x > 0, x, c),
    "concatenation": lambda x, c: torch.cat([x, c]),
    "stack of scalars": lambda x, c: torch.stack([x[0, 0], c[0, 0]]),
    "in place": lambda x, c: c.add_(x),
    "scalar in place": lambda x, c: c[0, 0].add_(x[0, 0]),
    "index of the device": lambda x, c: c[torch.tensor([0], device=x.device)],
    "gather": lambda x, c: x.gather(0, torch.zeros(1, 2, dtype=torch.long)),
    "selection": lambda x, c: x.index_select(0, torch.tensor([0])),
    "accumulation": lambda x, c: c.index_add_(0, torch.tensor([0], device=x.device), x[:1]),
    "numpy": lambda x, c: x.numpy(),
    "array": lambda x, c: np.asarray(x),
    "generator": lambda x, c: torch.rand(2, device=x.device, generator=torch.Generator()),
    "generator in place": lambda x, c: x.uniform_(generator=torch.Generator()),
    "layer": lambda x, c: nn.Linear(5, 2)(x),
}
ALLOWED: dict[str, Case] = {
    "scalar": lambda x, c: x + c[0, 0],
    "index of the CPU": lambda x, c: x[torch.tensor([0])],
    "mask of the CPU": lambda x, c: x[c > 0],
    "copy": lambda x, c: x.copy_(c),
    "generator": lambda x, c: x.uniform_(generator=torch.Generator(x.device)),
    "list": lambda x, c: x.new_tensor(c.tolist()) + torch.tensor(x.tolist(), device=x.device),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(name: str, device: torch.device) -> None:
    x, c = torch.randn(4, 5, device=device), torch.randn(4, 5)
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[name](x, c)


@pytest.mark.parametrize("name", ALLOWED)
def test_it_allows(name: str, device: torch.device) -> None:
    x, c = torch.randn(4, 5, device=device), torch.randn(4, 5)
    found = ALLOWED[name](x, c)
    assert isinstance(found, Tensor) and found.device == device


def test_it_computes_as_the_cpu_does(device: torch.device) -> None:
    plain = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2))
    x = torch.randn(3, 5)
    expected = plain(x)
    expected.square().sum().backward()
    grad = plain[0].weight.grad
    assert grad is not None
    plain.zero_grad()
    moved = plain.to(device)
    found = moved(x.to(device))
    found.square().sum().backward()
    assert found.device == device and moved[0].weight.grad.device == device
    assert torch.allclose(found.cpu(), expected, rtol=0, atol=1e-3)
    assert torch.allclose(moved[0].weight.grad.cpu(), grad, rtol=0, atol=1e-2)
