"""A model of one's own: its statement is drafted, completed by hand, and then it can be pruned."""

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import UserError
from secateur.measurement.counting import counted
from tests.hosts import randomise_


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.scale = 4, 8**-0.5
        self.to_q, self.to_k, self.to_v = (nn.Linear(32, 32) for _ in range(3))
        self.join = nn.Linear(32, 32)

    def forward(self, x_BND: Tensor) -> Tensor:
        parts = (p(x_BND).unflatten(-1, (4, 8)).transpose(1, 2) for p in self.projections())
        q, k, v = parts
        weights = (q * self.scale @ k.mT).softmax(-1)
        return self.join((weights @ v).transpose(1, 2).flatten(2))

    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.to_q, self.to_k, self.to_v


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.attend = nn.LayerNorm(32), Attend()
        self.between = nn.LayerNorm(32)
        self.think = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attend(self.before(x_BND))
        return x_BND + self.think(self.between(x_BND))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 32, 8, stride=8)
        self.place = nn.Parameter(torch.zeros(1, 16, 32))
        self.stack = nn.ModuleList(Layer() for _ in range(3))
        self.calm, self.say = nn.LayerNorm(32), nn.Linear(32, 10)

    def begin(self, images_BCHW: Tensor) -> Tensor:
        return self.cut(images_BCHW).flatten(2).mT + self.place

    def end(self, x_BND: Tensor) -> Tensor:
        return self.say(self.calm(x_BND).mean(1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x_BND = self.begin(images_BCHW)
        for layer in self.stack:
            x_BND = layer(x_BND)
        return self.end(x_BND)


WRITTEN = {
    "embed=lambda model, images: ...": "embed=lambda model, images: model.begin(images)",
    "head=lambda model, stream: ...": "head=lambda model, stream: model.end(stream)",
    "image=lambda model: (3, ..., ...)": "image=lambda model: (3, 32, 32)",
    "grid=lambda model: (..., ...)": "grid=lambda model: (4, 4)",
    "prefix=lambda model: ...": "prefix=lambda model: 0",
}


def drafted(model: nn.Module, **written: str) -> nn.Module:
    """The model as the draft of `inspect`, completed as `WRITTEN` says, has it."""
    with pytest.raises(UserError) as told:
        secateur.inspect(model)
    (text,) = told.value.__notes__
    assert "recognised: 3 blocks of class Layer at stack.*" in text
    assert "missing: embed, head" in text
    code = text[text.index("from secateur") :]
    for gap, found in (WRITTEN | written).items():
        assert gap in code
        code = code.replace(gap, found)
    names: dict[str, nn.Module] = {"model": model, "secateur": secateur}  # type: ignore[dict-item]
    exec(code, names)
    return names["model"]


@pytest.fixture
def own() -> nn.Module:
    model = Own()
    randomise_(model, seed=1)
    return model.eval()


@pytest.mark.parametrize("budget", ["70% macs", "75% width, 50% hidden", "drop 1 attention"])
def test_a_drafted_statement_is_enough_to_prune(own: nn.Module, budget: str) -> None:
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = drafted(own)
    assert model is own
    assert secateur.inspect(model).params == sum(p.numel() for p in model.parameters())
    preset = "magnitude" if "width" in budget else "spectral"
    with pytest.warns(UserWarning, match="cannot be saved"):
        result = secateur.prune(model, x, budget, preset=preset, align={"hidden": 4})
    assert result.after.cost() == counted(result.model, (3, 32, 32))
    assert result.after.cost().params < result.before.cost().params
    assert secateur.inspect(result.model).macs == result.after.cost().macs


def test_a_statement_that_is_not_the_forward_pass_is_refused(own: nn.Module) -> None:
    gap = "head=lambda model, stream: ..."
    with pytest.raises(UserError, match="is not that of own"):
        drafted(own, **{gap: "head=lambda model, stream: model.say(stream.mean(1))"})


@pytest.mark.parametrize("gap", WRITTEN)
def test_gaps_that_were_left_are_refused(own: nn.Module, gap: str) -> None:
    with pytest.raises(UserError, match=r"family 'own'|gives a ellipsis"):
        drafted(own, **{gap: gap})


def test_no_statement_is_drafted_where_there_are_no_blocks() -> None:
    with pytest.raises(UserError, match="belongs to no family") as told:
        secateur.inspect(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    assert not hasattr(told.value, "__notes__")
