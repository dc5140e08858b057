"""What a statement says wrongly is refused by the family's name and the path."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from timm.layers import RmsNorm
from torch import nn

from secateur.errors import UserError
from secateur.models.family import Family, family_of
from secateur.models.norms import is_norm
from secateur.models.statement import AttentionLayer, MlpLayer, Residual, Statement
from tests.hosts import build, vit


def stated() -> Statement:
    family = family_of(vit())
    assert isinstance(family, Family)
    return replace(family.statement, name="mine")


def with_step(number: int, change: Callable[[Residual], Residual]) -> Statement:
    steps = list(stated().residuals["Block"])
    steps[number] = change(steps[number])
    return replace(stated(), residuals={"Block": tuple(steps)})


def attention(**changes: object) -> Statement:
    def change(step: Residual) -> Residual:
        layer = step.layers[0]
        assert isinstance(layer, AttentionLayer)
        return replace(step, layers=(replace(layer, **changes),))  # type: ignore[arg-type]

    return with_step(0, change)


def mlp(**changes: object) -> Statement:
    def change(step: Residual) -> Residual:
        layer = step.layers[0]
        assert isinstance(layer, MlpLayer)
        return replace(step, layers=(replace(layer, **changes),))  # type: ignore[arg-type]

    return with_step(1, change)


WRONG: list[tuple[Callable[[], Statement], str]] = [
    (lambda: attention(out="out_proj"), "out_proj"),
    (lambda: attention(heads="n_heads"), "n_heads"),
    (lambda: attention(path="attention"), "attention"),
    (lambda: attention(qk_norm=("norm_q", "norm_k")), "norm_q"),
    (lambda: mlp(readers=("dense",)), "dense"),
    (lambda: mlp(unit_norm="bn"), "bn"),
    (lambda: with_step(1, lambda step: replace(step, norm="ln_2")), "ln_2"),
    (lambda: with_step(1, lambda step: replace(step, scale="gamma_2")), "gamma_2"),
    (lambda: replace(stated(), blocks="layers.*"), "layers"),
    (lambda: replace(stated(), stem=replace(stated().stem, positions="position")), "position"),
    (lambda: replace(stated(), tail=replace(stated().tail, classifiers=("fc",))), "fc"),
    (lambda: replace(stated(), sizes=("hidden_size",)), "hidden_size"),
]


@pytest.mark.parametrize(("wrong", "path"), WRONG, ids=[path for _, path in WRONG])
def test_names_that_are_not_there_are_refused(wrong: Callable[[], Statement], path: str) -> None:
    with pytest.raises(UserError, match=rf"'{path}' is stated.*family 'mine'"):
        Family(wrong()).read(vit())


def test_names_that_may_be_missing_say_so() -> None:
    tail = replace(stated().tail, classifiers=("head", "second_head?"))
    found = Family(replace(stated(), tail=tail)).read(vit())
    assert found.branches == Family(stated()).read(vit()).branches


def test_rms_norms_of_libraries_are_known_by_their_name() -> None:
    assert all(is_norm(norm) for norm in (nn.LayerNorm(4), nn.RMSNorm(4), RmsNorm(4)))
    assert not any(is_norm(other) for other in (nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Identity()))


@torch.no_grad()
def test_facts_that_are_wrong_are_found_by_the_walk() -> None:
    """A norm that is stated on the wrong side gives another function."""
    family, model = Family(stated()), build("vit")
    x = torch.randn(2, *family.read(model).input_size)
    wrong = Family(with_step(0, lambda step: replace(step, norm_behind=True)))
    for one, same in ((family, True), (wrong, False)):
        stream = one.embed(model, x)
        for branch in one.read(model).branches:
            stream = one.through(model, branch)(stream)
        assert torch.allclose(one.head(model, stream), model(x), atol=1e-5) is same
