"""Searches for layers to drop, against the same search written out with copies of the model."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from secateur.ablation.layers import removal
from secateur.criteria import criteria
from secateur.criteria.registry import Criterion, Question
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.models.family import family_of, read
from secateur.models.host import host_of
from secateur.statistics import observe
from secateur.surgery.replace import mean_update
from secateur.verbs.prune import prune
from tests.hosts import HOSTS, anatomy_of, build, images_for

IMAGES, LABELS = images_for(build("vit"), 6), torch.arange(6)


def without(model: nn.Module, gone: set[str]) -> nn.Module:
    smaller = copy.deepcopy(model)
    family_of(model).drop_(smaller, gone)
    return smaller


@torch.no_grad()
def degradation(model: nn.Module, gone: set[str], objective: str, images: Tensor = IMAGES) -> float:
    dense, changed = (m(images).double() for m in (model, without(model, gone)))
    if objective == "angle":
        return float(F.cosine_similarity(dense, changed).clamp(-1, 1).arccos().mean() / torch.pi)
    dense, changed = dense.log_softmax(-1), changed.log_softmax(-1)
    if objective == "kl":
        return float(F.kl_div(changed, dense, log_target=True, reduction="batchmean"))
    return float(F.nll_loss(changed, LABELS) - F.nll_loss(dense, LABELS))


def dropped(model: nn.Module, budget: str, preset: str, **options: Any) -> set[str]:
    plan = prune(model, (IMAGES, LABELS), budget, preset=preset, batch_size=4, **options).plan
    return {name for name, shape in plan.shapes.items() if shape is None}


@pytest.mark.parametrize("name", [name for name in HOSTS if anatomy_of(name).num_classes])
@pytest.mark.parametrize("objective", ["kl", "ce", "angle"])
def test_damages_are_those_of_the_model_without_the_branches(name: str, objective: str) -> None:
    model, anatomy = build(name), anatomy_of(name)
    images = images_for(model, len(LABELS))
    batches = as_batches((images, LABELS), 4)
    bench = removal(host_of(model), batches, 6, {}, f"delta_{objective}")
    ids = [branch.id for branch in anatomy.branches]
    sets = [{ids[3]}, {ids[0], ids[5]}, set(), {ids[4]}]
    for base in ({ids[3]}, {ids[0]}, set()):
        found = bench.degradations(frozenset(base), [frozenset(s) for s in sets])
        for gone, value in zip(sets, found, strict=True):
            expected = degradation(model, gone, objective, images)
            assert value == pytest.approx(expected, rel=1e-3, abs=2e-4)


def test_means_stand_in_during_the_search_as_they_do_after_the_cut() -> None:
    model, anatomy = build("dinov2_registers"), anatomy_of("dinov2_registers")
    batches = as_batches(IMAGES, 4)
    statistics = observe(model, batches, ["update_mean"])
    fills = {b.id: mean_update(statistics, b) for b in anatomy.branches}
    bench = removal(host_of(model), batches, 6, fills, "delta_kl")
    result = prune(model, IMAGES, "drop 2 layers", preset="greedy_drop", batch_size=4)
    gone = frozenset(name for name, shape in result.plan.shapes.items() if shape is None)
    with torch.no_grad():
        dense, changed = (m(IMAGES).double().log_softmax(-1) for m in (model, result.model))
    kl = float(F.kl_div(changed, dense, log_target=True, reduction="batchmean"))
    assert bench.degradations(frozenset(), [gone])[0] == pytest.approx(kl, rel=1e-3)
    assert result.plan.predicted_loss == pytest.approx(kl, rel=1e-3)


@pytest.mark.parametrize(("preset", "objective"), [("blockpruner", "ce"), ("finercut", "angle")])
def test_greedy_takes_the_least_damage_at_every_step(preset: str, objective: str) -> None:
    model = build("vit")
    gone: set[str] = set()
    for _ in range(3):
        open_ = [b.id for b in read(model).branches if b.id not in gone]
        gone = gone | {min(open_, key=lambda name: degradation(model, gone | {name}, objective))}
    assert dropped(model, "drop 3 layers", preset) == gone


def test_budgets_by_kind_count_each_kind() -> None:
    model = build("vit")
    gone = dropped(model, "drop 1 attention, drop 2 mlp", "blockpruner")
    assert sorted(name.rpartition(".")[2] for name in gone) == ["attn", "mlp", "mlp"]
    mixed = dropped(model, "drop 1 attention, drop 1 layer", "blockpruner")
    assert len(mixed) == 2 and any(name.endswith("attn") for name in mixed)


def test_the_ends_stay_where_the_preset_says_so() -> None:
    assert dropped(build("vit"), "drop 1 blocks", "sleb") == {"blocks.1.attn", "blocks.1.mlp"}
    with pytest.raises(UserError, match="cannot drop 2 of kind 'block'"):
        dropped(build("vit"), "drop 2 blocks", "sleb")


@pytest.mark.parametrize("preset", ["blockpruner", "greedy_drop", "evopress"])
def test_cost_budgets_are_kept_and_no_layer_goes_needlessly(preset: str) -> None:
    model, anatomy = build("vit"), anatomy_of("vit")
    limit = 0.7 * anatomy.cost().macs
    gone = dropped(model, "70% macs", preset, effort="quick", exact_tail=False)
    kept = {b.id: b.shape for b in anatomy.branches if b.id not in gone}
    assert anatomy.cost(kept).macs <= limit  # type: ignore[arg-type]
    for name in gone:
        more = kept | {name: anatomy.branch(name).shape}
        assert anatomy.cost(more).macs > limit  # type: ignore[arg-type]


def test_evolution_is_no_worse_than_greedy_and_finds_the_best_of_few() -> None:
    model = build("vit")
    names = [branch.id for branch in read(model).branches]
    best = min(
        (set(pair) for pair in itertools.combinations(names, 3)),
        key=lambda gone: degradation(model, gone, "kl"),
    )
    assert dropped(model, "drop 3 layers", "evopress") == best


def test_evolution_depends_on_nothing_but_its_seed() -> None:
    model = build("vit")
    runs = [dropped(model, "drop 3 layers", "evopress", effort="quick", seed=3) for _ in range(2)]
    assert runs[0] == runs[1]


def test_iterative_scores_see_the_stream_without_what_is_gone() -> None:
    model = build("vit")
    gone: set[str] = set()
    for _ in range(2):
        smaller = without(model, gone)
        statistics = observe(smaller, as_batches(IMAGES, 4), ["block_similarity"])

        def influence(block: str, statistics: Any = statistics) -> Tensor:
            sums = statistics.of("block_similarity", block)
            return 1 - sums["cosine"] / sums["count"]

        left = [b.id for b in read(smaller).blocks if b.branches]
        block = min(left, key=influence)
        gone |= {f"{block}.attn", f"{block}.mlp"}
    options: dict[str, Any] = {"replacement": "nothing"}
    assert dropped(model, "drop 2 blocks", "prune_comp", **options) == gone


def test_each_seed_of_a_random_search_drops_other_layers(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "{title: a, source: b, groups: [branch], criterion: random, allocation: ranking,"
        " search: iterative}"
    )
    found = [dropped(build("vit"), "drop 3 layers", str(mine), seed=seed) for seed in range(6)]
    assert all(len(gone) == 3 for gone in found)
    assert len({frozenset(gone) for gone in found}) > 3
    assert dropped(build("vit"), "drop 3 layers", str(mine), seed=5) == found[5]


def test_an_iterative_search_asks_with_the_settings_of_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Settings(BaseModel):
        sign: int = 1

    def answer(question: Question) -> Tensor:
        assert isinstance(question.settings, Settings)
        return torch.tensor(question.settings.sign * float(question.owner.split(".")[1]))

    known = Criterion(
        name="by_place", title="a", source="b", needs={"branch": ()}, answer=answer,
        settings=Settings,
    )  # fmt: skip
    monkeypatch.setitem(criteria._items, "by_place", known)
    found = {}
    for sign in (1, -1):
        mine = tmp_path / f"{sign}.yaml"
        mine.write_text(
            "{title: a, source: b, groups: [branch], criterion: by_place, allocation: ranking,"
            f" search: iterative, settings: {{by_place: {{sign: {sign}}}}}}}"
        )
        found[sign] = dropped(build("vit"), "drop 2 layers", str(mine))
    assert found[1] == {"blocks.0.attn", "blocks.0.mlp"}
    assert found[-1] == {"blocks.2.attn", "blocks.2.mlp"}


@pytest.mark.parametrize("length", [1, 2])
def test_the_window_is_that_with_the_least_angle(length: int) -> None:
    model = build("vit")
    sums = {
        block.id: observe(model, as_batches(IMAGES, 4), ["window_similarity"]).of(
            "window_similarity", block.id
        )
        for block in read(model).blocks
    }
    angles = {i: float(sums[f"blocks.{i}"]["angle"][length - 1]) for i in range(4 - length)}
    first = min(angles, key=angles.__getitem__)
    expected = {
        f"blocks.{i}.{part}" for i in range(first, first + length) for part in ("attn", "mlp")
    }
    assert dropped(model, f"drop {length} blocks", "uidl") == expected


@pytest.mark.parametrize("preset", ["uidl", "replaceme"])
@pytest.mark.parametrize("name", ["efficientformer", "efficientformer_grids"])
@pytest.mark.parametrize("length", [1, 2])
def test_windows_lie_in_one_stage(name: str, preset: str, length: int) -> None:
    model, anatomy = build(name), anatomy_of(name)
    gone = prune(model, images_for(model, 6), f"drop {length} blocks", preset=preset)
    blocks = [b for b in anatomy.blocks if gone.plan.shapes[b.branches[0]] is None]
    assert len(blocks) == length and len({anatomy.stage_of(block) for block in blocks}) == 1
    assert bool(gone.model(images_for(model, 2)).isfinite().all())


def test_a_stage_without_a_window_long_enough_is_refused() -> None:
    model = build("efficientformer_grids")
    with pytest.raises(UserError, match="no run of neighbouring blocks of one stage"):
        prune(model, images_for(model, 4), "drop 3 blocks", preset="uidl")


def test_the_first_block_of_a_stage_has_no_anchor_in_the_stage_before() -> None:
    """Its mean stays, since no branch before it writes the same stream."""
    model, anatomy = build("efficientformer"), anatomy_of("efficientformer")
    first = next(b for b in anatomy.blocks if anatomy.stage_of(b) == 1)
    others = [b.id for b in anatomy.blocks if b is not first]
    images = images_for(model, 6)
    found = prune(model, images, "drop 1 blocks", preset="replaceme", protect=others)
    assert [k for k, shape in found.plan.shapes.items() if shape is None] == [*first.branches]
    branch = anatomy.branch(first.branches[0])
    mean_D = mean_update(observe(model, as_batches(images, 6), ["update_mean"]), branch)
    expected = without(model, set())
    family_of(model).add_constant_(expected, branch, mean_D)
    family_of(model).drop_(expected, {branch.id})
    assert torch.allclose(found.model(images), expected(images), atol=1e-4)


def test_windows_meet_cost_budgets_with_as_few_blocks_as_possible() -> None:
    model, anatomy = build("vit"), anatomy_of("vit")
    gone = dropped(model, "60% macs", "uidl", exact_tail=False)
    assert len(gone) == 4
    assert len(dropped(model, "99% macs", "uidl", exact_tail=False)) == 2
    kept = {b.id: b.shape for b in anatomy.branches if b.id not in gone}
    assert anatomy.cost(kept).macs <= 0.6 * anatomy.cost().macs  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "options", "words"),
    [
        ("50% hidden", {"preset": "sleb"}, "searches for whole layers"),
        ("drop 1 attention", {"preset": "uidl"}, "drops one run of blocks"),
        (
            "drop 1 mlp",
            {"preset": "layer_drop", "replacement": "glue"},
            "unknown replacement 'glue'",
        ),
        ("drop 1 mlp", {"preset": "spectral", "replacement": "scalar"}, "has no meaning there"),
        ("drop 1 mlp", {"preset": "layer_drop", "replacement": "merge"}, "whole blocks"),
    ],
)
def test_what_makes_no_sense_is_refused(budget: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        prune(build("vit"), IMAGES, budget, **options)
