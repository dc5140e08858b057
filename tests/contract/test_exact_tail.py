"""The exact tail changes no output, costs what is counted, and is put where the head allows it."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

import secateur
from secateur.errors import UserError
from secateur.measurement.counting import counted
from secateur.measurement.layer_table import Setting, latency_cost, layer_table
from secateur.models.derived.tokens.tail import tail_of
from secateur.models.family import family_of, read
from secateur.models.hook_points import attached
from secateur.models.host import Host, host_of
from tests.hosts import HOSTS, SIZES, anatomy_of, build, images_for, randomise_

FINE = {"qk": 2, "vo": 2, "hidden": 8, "heads": 1}
WITH_TAIL = [name for name in HOSTS if anatomy_of(name).tail]


def eva(**changes: object) -> nn.Module:
    """Rotary embeddings and a head that reads the class token."""
    sizes = {key: value for key, value in SIZES.items() if key != "mlp_ratio"}
    model = Eva(**sizes, mlp_ratio=2.0, global_pool="token", use_rot_pos_emb=True, **changes)
    randomise_(model, seed=3)
    return model.eval()


def without(*names: str) -> Callable[[], nn.Module]:
    """A ViT that lost some of its layers."""

    def build_it() -> nn.Module:
        model = build("vit")
        family_of(model).drop_(model, set(names))
        return model

    return build_it


def shrunk() -> nn.Module:
    """A ViT with unequal widths in its last block."""
    model = build("vit")
    return secateur.prune(
        model, images_for(model, 32), "50% qk, 75% vo, 50% hidden", preset="magnitude",
        align=FINE, minimum=FINE,
    ).model  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda name=name: build(name)) for name in WITH_TAIL},
    "rotary": lambda: eva(attn_type="rope", qkv_fused=True),
    "no last attention": without("blocks.2.attn"),
    "no last mlp": without("blocks.2.mlp"),
    "no last block": without("blocks.2.attn", "blocks.2.mlp"),
    "no attention": without("blocks.0.attn", "blocks.1.attn", "blocks.2.attn"),
    "shrunk": shrunk,
}


def tailed(model: nn.Module) -> nn.Module:
    """A copy with the tail."""
    other = copy.deepcopy(model)
    family_of(other).put_tail_(other)
    assert tail_of(other) is not None
    return other


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_outputs_stay_and_costs_are_as_planned(name: str) -> None:
    model = MODELS[name]()
    images_BCHW, before = images_for(model, 3), read(model)
    planned = family_of(model).read(model, exact_tail=True)
    smaller = tailed(model)
    with torch.no_grad():
        whole, narrow = model(images_BCHW), smaller(images_BCHW)
        if (features := getattr(model, "forward_features", None)) is not None:
            assert apart(smaller.forward_features(images_BCHW), features(images_BCHW)) <= 1e-5  # type: ignore[operator]
    assert apart(narrow, whole) <= 1e-5
    cost = counted(smaller, before.input_size)
    assert cost == read(smaller).cost() == planned.cost()
    assert cost.macs < before.cost().macs == planned.reference.macs
    assert read(smaller).reference == read(smaller).cost()


@pytest.mark.parametrize("name", [name for name in HOSTS if name not in WITH_TAIL])
def test_models_whose_outputs_need_all_tokens_are_refused(name: str) -> None:
    model = build(name)
    family_of(model).put_tail_(model)
    assert tail_of(model) is None
    why = anatomy_of(name).no_tail
    assert why
    with pytest.raises(UserError, match="cannot compute less without another output") as error:
        secateur.prune(model, images_for(model, 8), "lossless")
    assert why in str(error.value)


def test_who_looks_into_the_block_or_trains_it_sees_all_tokens() -> None:
    model = build("vit")
    smaller, images_BCHW = tailed(model), images_for(model, 2)
    family, anatomy = family_of(smaller), read(smaller)
    seen: list[int] = []
    points = family.hook_points(smaller, anatomy.branches[-2])
    edits = [(points[site], lambda x: seen.append(x.shape[1])) for site in ("update", "query")]
    with torch.no_grad(), attached(smaller, edits):
        smaller(images_BCHW)
    assert seen == [anatomy.tokens] * 2
    for mode, recomputed in ((True, False), (False, True), (False, False)):
        grads = []
        for one in (model, smaller):
            one.train(mode).set_grad_checkpointing(recomputed)  # type: ignore[operator]
            one.zero_grad()
            one(images_BCHW).square().sum().backward()
            grads.append(one.get_parameter("blocks.2.attn.qkv.weight").grad)
        assert grads[0] is not None and grads[1] is not None
        assert apart(grads[1], grads[0]) <= 1e-5
    for one in (model, smaller):
        one.reset_classifier(10, "avg")  # type: ignore[operator]
        randomise_(one, seed=5)
    with torch.no_grad():
        assert apart(smaller.eval()(images_BCHW), model.eval()(images_BCHW)) <= 1e-5


def test_the_tail_is_narrow_in_what_is_compiled_and_exported() -> None:
    model = build("vit")
    smaller, images_BCHW = tailed(model), images_for(model, 2)
    with torch.no_grad():
        expected = model(images_BCHW)
        program = torch.export.export(smaller, (images_BCHW,))
        gelus = [node for node in program.graph.nodes if "gelu" in node.name]
        compiled = torch.compile(smaller, fullgraph=True, backend="eager")
        for other in (program.module(), compiled):
            assert apart(other(images_BCHW), expected) <= 1e-5
    assert [node.meta["val"].shape[1] for node in gelus] == [17, 17, 1]
    tail = tail_of(smaller)
    assert tail is not None and not tail.narrow


@pytest.mark.parametrize("preset", ["energy", "magnitude", "snp", "spectral"])
def test_budgets_in_macs_count_the_tail(preset: str) -> None:
    model = build("vit")
    images, given = images_for(model, 64), {"preset": preset, "align": FINE, "minimum": FINE}
    found = secateur.prune(model, images, "60% macs", **given)  # type: ignore[arg-type]
    assert tail_of(model) is None and tail_of(found.model) is not None
    assert found.before.cost() == read(model).cost()
    assert found.cost.macs <= 0.6 * found.cost_dense.macs
    assert found.cost == counted(found.model, found.before.input_size)
    assert any("Exact tail" in note for note in found.notes)
    if preset in ("energy", "magnitude"):
        last = [branch.id for branch in found.before.branches[-2:]]
        assert all(found.plan.shapes[name] == found.before.shapes[name] for name in last)
    for budget, more in (("60% params", {}), ("60% macs", {"exact_tail": False})):
        other = secateur.prune(model, images, budget, **given | more)  # type: ignore[arg-type]
        assert tail_of(other.model) is None


def test_nothing_but_the_tail_and_what_is_saved_of_it(tmp_path: Path) -> None:
    model = secateur.load("digits_vit")
    found = secateur.prune(model, "digits/train", "lossless", limit=8)
    assert found.plan.shapes == found.before.shapes
    assert found.cost.params == found.cost_dense.params
    found.save(tmp_path / "tail")
    again = secateur.load(tmp_path / "tail")
    assert counted(again, found.before.input_size) == found.cost
    with torch.no_grad():
        images_BCHW = images_for(model, 2)
        assert apart(again(images_BCHW), model(images_BCHW)) <= 1e-5
    twice = secateur.prune(again, "digits/train", "60% macs", limit=32, preset="energy")
    assert twice.before.cost() == found.cost
    assert twice.cost.macs <= 0.6 * found.cost.macs
    assert twice.cost == counted(twice.model, found.before.input_size)
    twice.save(tmp_path / "twice")
    assert read(secateur.load(tmp_path / "twice")).cost() == twice.cost


def test_tables_of_times_price_the_tail_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = build("vit")
    family = family_of(model)
    planned = family.read(model, exact_tail=True)
    table = layer_table(Host(model, family, planned), Setting(), {}, rounds=2, seconds=0)
    again = layer_table(Host(model, family, planned), Setting(), {}, rounds=2, seconds=0)
    assert sorted(table.kinds.values()) == [0, 0, 1, 1, 2, 3]
    assert again.recalled and again == table
    assert latency_cost(planned, table)({}) == pytest.approx(table.tailed_ms)
    plain = layer_table(host_of(model), Setting(), {}, rounds=2, seconds=0)
    assert plain.tailed_ms is None and not plain.recalled
