"""Two stages within one budget: whole heads or blocks, then units of what is left."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.allocation.candidates import Limits
from secateur.allocation.target import Target, decide, unweighed
from secateur.allocation.types import Plan, shapes_of
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.methods.checked import check
from secateur.methods.images import Images
from secateur.methods.method import Job, Prepared
from secateur.methods.request import PruneRequest
from secateur.methods.task import Task, resolve
from secateur.methods.two_stage import TwoStage
from secateur.models.family import family_of, read
from secateur.models.types import Anatomy, AttentionShape
from secateur.presets import load_preset, parse_preset
from secateur.storage.shapes import resize_
from secateur.surgery.cut import cut_
from secateur.verbs.load import load_shape
from secateur.verbs.prune import prune
from secateur.verbs.result import Result
from tests.hosts import build, images_for

FINE = {"qk": 1, "vo": 1, "hidden": 2, "heads": 1}
PRESETS = ("snp+head", "snp+block")


def pruned(budget: str, preset: str, **options: object) -> tuple[nn.Module, Result]:
    model = build("vit")
    options = {"align": FINE, "minimum": FINE, "exact_tail": False} | options
    return model, prune(model, images_for(model, 6), budget, preset=preset, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("budget", ["85% macs", "50% macs", "30% params"])
@torch.no_grad()
def test_both_stages_share_one_budget(preset: str, budget: str) -> None:
    model, result = pruned(budget, preset)
    share = float(budget.split("%")[0]) / 100
    unit = budget.split()[1]
    assert getattr(result.cost, unit) <= share * getattr(result.before.cost(), unit)
    assert result.budget_use is not None and result.budget_use.shortfall_percent < 5
    assert result.cost == result.before.cost(result.plan.shapes, result.plan.widths)
    shapes = result.plan.shapes.values()
    if preset == "snp+head":
        assert any(s.heads < 4 for s in shapes if isinstance(s, AttentionShape))
    elif share < 0.6:
        assert None in shapes
    again = copy.deepcopy(model)
    cut_(again, result.plan, None, "none")
    x = images_for(model)
    assert torch.allclose(again(x), result.model(x), rtol=0, atol=1e-5), "the plan says it all"


def test_the_first_stage_takes_its_share_of_the_saving() -> None:
    text = (
        "{title: a, source: b, groups: [heads, hidden], criterion: magnitude,"
        " allocation: ranking, per_cost: false, first: {group: heads, share: SHARE}}"
    )
    task = resolve(check(PruneRequest("70% macs", preset="magnitude")), read(build("vit")))
    anatomy = read(build("vit"))
    heads = []
    for share in ("0.01", "0.3", "0.6"):
        preset = parse_preset("mine", text.replace("SHARE", share))
        plan = _plan(anatomy, task, preset=preset, groups=("heads", "hidden"))
        heads.append(sum(s.heads for s in plan.shapes.values() if isinstance(s, AttentionShape)))
        assert anatomy.cost(plan.shapes).macs <= 0.7 * anatomy.cost().macs
    assert heads == sorted(heads, reverse=True) and heads[0] > heads[-1]


class Blind:
    """A method that looks at no image: candidates without losses, shapes without weights."""

    def needs(self, task: Task) -> set[str]:
        return set()

    def prepare(self, job: Job) -> Prepared:
        return Prepared(candidates=unweighed(job.anatomy, job.task.demand), dense=job.model)

    def plan(self, job: Job, prepared: Prepared, target: Target | None = None) -> Plan:
        sizes = decide(job.anatomy, prepared.candidates, job.task.demand, target)
        return Plan(shapes=shapes_of(job.anatomy, sizes))

    def cut(self, job: Job, prepared: Prepared, plan: Plan) -> nn.Module:
        smaller = job.with_model(copy.deepcopy(job.model))
        resize_(smaller, plan.shapes, plan.widths)
        return smaller.model


def _blind_job(model: nn.Module, task: Task) -> Job:
    family = family_of(model)
    images = Images(batches=as_batches(torch.zeros(1, 3, 8, 8)))
    return Job(model=model, family=family, anatomy=family.read(model), task=task, images=images)


def _plan(anatomy: Anatomy, task: Task, **changes: object) -> Plan:
    """A plan in two stages on a meta model, from candidates without losses."""
    task = replace(task, limits=Limits(align=FINE, minimum=FINE), **changes)  # type: ignore[arg-type]
    job, method = _blind_job(build("vit").to("meta"), task), TwoStage(Blind())
    assert job.anatomy == anatomy
    return method.plan(job, method.prepare(job))


@pytest.mark.parametrize("preset", PRESETS)
def test_deit_b_reaches_a_fifth(preset: str) -> None:
    model = load_shape("timm:deit_base_patch16_224", device="meta")
    anatomy = read(model)
    task = resolve(check(PruneRequest("3.5 GMACs", preset=preset, allocation="uniform")), anatomy)

    job, method = _blind_job(model, task), TwoStage(Blind())
    prepared = method.prepare(job)
    plan = method.plan(job, prepared)
    reached = read(method.cut(job, prepared, plan)).cost()
    assert reached == anatomy.cost(plan.shapes)
    assert 0.97 * 3.5e9 < reached.macs <= 3.5e9
    assert reached.macs / anatomy.cost().macs < 0.2


def test_shares_and_recipes_go_in_one_stage() -> None:
    _, result = pruned("50% heads, 50% hidden", "snp+head")
    assert {s.heads for s in result.plan.shapes.values() if isinstance(s, AttentionShape)} == {2}
    _, result = pruned("70% macs", "snp+head", groups=["hidden"])
    assert {s.heads for s in result.plan.shapes.values() if isinstance(s, AttentionShape)} == {4}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("first: {group: heads, share: 0.5}", "'first' must name one of 'groups'"),
        ("first: {group: qk, share: 0.5}", "first.group"),
        ("first: {group: block, share: 1.5}", "first.share"),
        ("first: {group: block, part: 0.5}", "first"),
    ],
)
def test_wrong_first_stages_are_named(line: str, words: str) -> None:
    text = f"title: a\nsource: b\ngroups: [qk, block]\ncriterion: snp\n{line}"
    with pytest.raises(UserError, match=words):
        parse_preset("mine", text)


def test_presets_that_ship_have_a_first_stage() -> None:
    firsts: Iterator[str] = (load_preset(name).first.group for name in PRESETS)  # type: ignore[union-attr]
    assert list(firsts) == ["heads", "block"]
