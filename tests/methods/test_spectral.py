"""The spectral method over hosts and groups: exact where it must be, within budget, refused."""

import copy
from dataclasses import replace

import pytest
import torch

from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.models.family import family_of
from secateur.models.types import AttentionShape, MlpShape
from secateur.surgery.sequential import SequentialSettings, cut_front_to_back_
from secateur.verbs.prune import prune
from tests.hosts import (
    HOSTS,
    anatomy_of,
    build,
    efficientformer,
    images_for,
    randomise_,
    settle_,
)

SMALL = {"qk": 2, "vo": 2, "hidden": 4}


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_composed_branches_are_the_model(name: str) -> None:
    model, anatomy = build(name), anatomy_of(name)
    family, images = family_of(model), images_for(build(name))
    with torch.no_grad():
        stream = family.embed(model, images)
        for branch in anatomy.branches:
            stream = family.through(model, branch)(stream)
        torch.testing.assert_close(family.head(model, stream), model(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_refitting_an_uncut_model_changes_nothing(name: str) -> None:
    """Full rank is exact: with all shapes kept, the front-to-back pass is the identity."""
    model = build(name)
    images = images_for(model, count=40)
    smaller = copy.deepcopy(model)
    cut_front_to_back_(
        smaller, model, anatomy_of(name).shapes, as_batches(images, 8), SequentialSettings()
    )
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), model(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(HOSTS))
@pytest.mark.parametrize("budget", ["70% macs", "50% vo, 50% hidden", "drop 1 mlp"])
def test_prunes_every_host_within_budget(name: str, budget: str) -> None:
    model, anatomy = build(name), anatomy_of(name)
    for group in ("vo", "hidden"):
        if group in budget and not any(group in b.groups for b in anatomy.branches):
            pytest.skip(f"{name} refuses {group}")
    images = images_for(model, count=40)
    done = prune(
        model, images, budget, preset="spectral", effort="quick", align=SMALL, minimum=SMALL
    )
    assert done.cost.macs < done.cost_dense.macs
    if budget.endswith("macs"):
        assert done.cost.macs <= 0.7 * done.cost_dense.macs
    with torch.no_grad():
        out = done.model(images)
    assert bool(torch.isfinite(out).all())
    assert done.cost.params == sum(p.numel() for p in done.model.parameters())


def test_rank_of_the_data_is_enough() -> None:
    """Queries, keys and values that live in half of their dims lose nothing at half the size."""
    name = sorted(HOSTS)[0]
    model, anatomy = build(name), anatomy_of(name)
    family = family_of(model)
    generator = torch.Generator().manual_seed(0)
    shapes = anatomy.shapes
    for branch in anatomy.branches:
        if branch.kind != "attention" or {"qk", "vo"} - set(branch.groups):
            continue
        weights = family.weights(model, branch)
        k, v = weights.shape.qk, weights.shape.vo
        mix_k = torch.randn(weights.shape.heads, k, k // 2, generator=generator) / k**0.5
        mix_v = torch.randn(weights.shape.heads, v, v // 2, generator=generator) / v**0.5
        low = replace(
            weights,
            q_HKD=mix_k @ weights.q_HKD[:, : k // 2],
            qb_HK=None
            if weights.qb_HK is None
            else (mix_k @ weights.qb_HK[:, : k // 2, None])[..., 0],
            v_HVD=mix_v @ weights.v_HVD[:, : v // 2],
            vb_HV=None
            if weights.vb_HV is None
            else (mix_v @ weights.vb_HV[:, : v // 2, None])[..., 0],
        )
        family.assign_(model, branch, low)
        shapes[branch.id] = AttentionShape(heads=weights.shape.heads, qk=k // 2, vo=v // 2)
    images = images_for(model, count=40)
    smaller = copy.deepcopy(model)
    cut_front_to_back_(smaller, model, shapes, as_batches(images, 8), SequentialSettings())
    with torch.no_grad():
        dense, out = model(images), smaller(images)
    assert float((out - dense).abs().max()) < 1e-3 * float(dense.abs().max())


def test_too_few_images_are_refused_with_the_number_needed() -> None:
    name = sorted(HOSTS)[0]
    with pytest.raises(UserError, match="at least"):
        prune(build(name), images_for(build(name), count=1), "50% hidden", preset="spectral")


def test_mlp_shape_of_a_constant_layer_stays_finite() -> None:
    """An MLP whose neurons never fire is cut without a solve blowing up."""
    name = sorted(HOSTS)[0]
    model, anatomy = build(name), anatomy_of(name)
    branch = next(b for b in anatomy.branches if b.kind == "mlp" and "hidden" in b.groups)
    family = family_of(model)
    weights = family.weights(model, branch)
    silent = tuple(torch.zeros_like(reader) for reader in weights.readers_FD)
    family.assign_(model, branch, replace(weights, readers_FD=silent))
    shapes = anatomy.shapes | {branch.id: MlpShape(hidden=4)}
    images = images_for(model, count=20)
    smaller = copy.deepcopy(model)
    cut_front_to_back_(smaller, model, shapes, as_batches(images, 4), SequentialSettings())
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), model(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("groups", [("hidden",), ("qk", "vo"), ("heads", "hidden"), ("block",)])
def test_any_choice_of_groups_can_be_measured(groups: tuple[str, ...]) -> None:
    model = build("vit")
    done = prune(
        model,
        images_for(model, count=40),
        "85% macs",
        preset="spectral",
        groups=groups,
        effort="quick",
        align=SMALL,
        minimum=SMALL,
    )
    assert done.cost.macs <= 0.85 * done.cost_dense.macs
    assert {entry.group for entry in done.candidates} == set(groups)


def test_another_repair_makes_no_sense() -> None:
    with pytest.raises(UserError, match="refits"):
        prune(build("vit"), images_for(build("vit")), "85% macs", preset="spectral", repair="mean")


def test_the_writer_before_a_dropped_layer_stands_in_for_it() -> None:
    model, anatomy = build("vit"), anatomy_of("vit")
    images = images_for(model, count=40)
    shapes = anatomy.shapes | {anatomy.branches[-1].id: None}

    def error(*, replacement: bool) -> float:
        smaller = copy.deepcopy(model)
        settings = SequentialSettings(affine=replacement)
        cut_front_to_back_(smaller, model, shapes, as_batches(images, 8), settings)
        assert sum(p.numel() for p in smaller.parameters()) == anatomy.cost(shapes).params
        with torch.no_grad():
            return float((smaller(images) - model(images)).square().mean())

    assert error(replacement=True) < 0.9 * error(replacement=False)


def test_an_affine_stand_in_is_asked_for_by_name() -> None:
    model = build("vit")
    images = images_for(model, count=40)

    def pruned(replacement: str | None) -> torch.nn.Module:
        return prune(
            model, images, "drop 1 mlp", preset="spectral", effort="quick", replacement=replacement
        ).model

    with torch.no_grad():
        assert not torch.allclose(pruned("affine")(images), pruned(None)(images), atol=1e-4)
    with pytest.raises(UserError, match="merge"):
        pruned("merge")


def test_heads_may_hold_more_value_dims_than_the_stream_is_wide() -> None:
    """The output of a head then has the rank of the stream at most; other dims may stay."""
    model = efficientformer(embed_dims=(8, 8))
    attention = model.stages[-1].blocks[-1].token_mixer
    new = type(attention)(8, 8, num_heads=4, attn_ratio=4, resolution=7)
    model.stages[-1].blocks[-1].token_mixer = new
    randomise_(model, seed=0)
    settle_(model)
    found = prune(model.eval(), images_for(model, 16), "75% vo", preset="spectral")
    (shape,) = (s for s in found.plan.shapes.values() if isinstance(s, AttentionShape) and s.vo > 8)
    assert 8 < shape.vo < 32
    assert bool(found.model(images_for(model, 2)).isfinite().all())
