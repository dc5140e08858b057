"""Recipes: sizes layer by layer, those of published models among them."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from secateur.allocation.types import shapes_of, widths_of
from secateur.errors import UserError
from secateur.export.onnx import export_onnx
from secateur.measurement.counting import counted
from secateur.models.family import family_of, read
from secateur.models.host import host_of
from secateur.models.types import AttentionShape, MlpShape
from secateur.recipes import load_recipe, parse_recipe, recipe_names, recipe_sizes
from secateur.storage.shapes import resize_
from secateur.verbs.load import load, load_shape
from secateur.verbs.prune import prune
from tests.contract.test_refusals import Untouched
from tests.hosts import anatomy_of, build, images_for
from tests.storage.tiny import host as storable

PUBLISHED = {
    "deit_tiny_snp_0.6g": ("timm:deit_tiny_patch16_224", 0.638e9, 3.01e6),
    "deit_small_snp_2.0g": ("timm:deit_small_patch16_224", 2.037e9, 10.06e6),
    "deit_small_snp_1.3g": ("timm:deit_small_patch16_224", 1.265e9, 6.47e6),
    "deit_base_snp_6.4g": ("timm:deit_base_patch16_224", 6.32e9, 31.6e6),
}


def test_every_recipe_that_ships_is_a_published_model() -> None:
    assert recipe_names() == sorted(PUBLISHED)
    for name in recipe_names():
        assert load_recipe(name).title and load_recipe(name).source


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_cost(name: str) -> None:
    source, macs, params = PUBLISHED[name]
    model = load_shape(source, device="meta")
    family = family_of(model)
    anatomy = family.read(model)
    sizes = recipe_sizes(load_recipe(name), anatomy)
    shapes, widths = shapes_of(anatomy, sizes), widths_of(anatomy, sizes)
    predicted = anatomy.cost(shapes, widths)
    assert predicted.macs == pytest.approx(macs, rel=0.005)
    assert predicted.params == pytest.approx(params, rel=0.005)
    resize_(host_of(model), shapes, widths)
    assert read(model).cost() == predicted
    assert sum(p.numel() for p in model.parameters()) == predicted.params


@pytest.mark.slow
@torch.no_grad()
def test_a_published_model_runs_saves_loads_and_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load("timm:deit_tiny_patch16_224", pretrained=False)
    images = torch.randn(2, 3, 224, 224)
    result = prune(model, images, recipe="deit_tiny_snp_0.6g", preset="snp", batch_size=2)
    assert result.after.width == 153
    assert result.cost.macs == pytest.approx(0.638e9, rel=0.005)
    assert counted(result.model, (3, 224, 224)) == result.cost
    expected = result.model(images)
    assert expected.shape == (2, 1000) and bool(torch.isfinite(expected).all())
    result.save(tmp_path / "small")
    again = load(tmp_path / "small")
    assert torch.allclose(again(images), expected, rtol=0, atol=1e-5)
    assert export_onnx(again, tmp_path / "small.onnx", (3, 224, 224)).max_abs < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images[:1].numpy()})
    assert torch.allclose(torch.from_numpy(found), expected[:1], rtol=0, atol=1e-4)


def follow(text: str) -> dict[str, object]:
    """The shapes that come of a recipe, and the width."""
    recipe, anatomy = parse_recipe("mine", text), anatomy_of("vit")
    sizes = recipe_sizes(recipe, anatomy)
    return {**shapes_of(anatomy, sizes), **widths_of(anatomy, sizes)}


def test_units_shares_and_lists() -> None:
    found = follow("{hidden: [10, 50%, 0.3], qk: 4, vo: [8, [3, 3, 3, 3], 1.0], width: 75%}")
    assert [found[f"blocks.{i}.mlp"] for i in range(3)] == [
        MlpShape(hidden=10), MlpShape(hidden=32), MlpShape(hidden=19),
    ]  # fmt: skip
    assert [found[f"blocks.{i}.attn"] for i in range(3)] == [
        AttentionShape(heads=4, qk=4, vo=vo) for vo in (8, 3, 8)
    ]
    assert found["stream"] == 24


def test_names_come_before_lists_and_layers_may_go() -> None:
    found = follow(
        "{hidden: 8, heads: 2, drop: [blocks.0, blocks.1.mlp],"
        " branches: {blocks.2.mlp: {hidden: 5}, blocks.1.attn: {heads: 3, qk: [2, 2, 2, 2]}}}"
    )
    assert found["blocks.0.attn"] is None and found["blocks.0.mlp"] is None
    assert found["blocks.1.mlp"] is None
    assert found["blocks.1.attn"] == AttentionShape(heads=3, qk=2, vo=8)
    assert found["blocks.2.mlp"] == MlpShape(hidden=5)
    assert found["stream"] == 32


@torch.no_grad()
def test_a_recipe_stands_in_place_of_a_budget(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"hidden": [10, 20, 30, 0.5], "width": 0.5, "drop": ["blocks.2"]}))
    model = storable("vit")
    x = images_for(model)
    result = prune(model, x, recipe=mine, preset="snp")
    assert result.after.width == 16
    assert result.plan.shapes["blocks.1.mlp"] == MlpShape(hidden=20)
    assert result.plan.shapes["blocks.2.mlp"] is None
    assert set(result.task.groups) == {"hidden", "width", "block"}
    result.save(tmp_path / "small")
    assert torch.allclose(
        load(tmp_path / "small")(images_for(model)), result.model(images_for(model))
    )
    assert result.record()["budget"] == f"recipe {mine}"
    assert "follow the recipe" in (tmp_path / "small" / "report.html").read_text()


@torch.no_grad()
def test_the_criterion_of_the_preset_chooses_the_units(tmp_path: Path) -> None:
    model = build("vit")
    x: Tensor = images_for(model, 12)
    mine = tmp_path / "mine.yaml"
    mine.write_text("{hidden: 24, qk: 4, width: 20}")
    snp, magnitude = (prune(model, x, recipe=mine, preset=name) for name in ("snp", "magnitude"))
    assert snp.plan.shapes == magnitude.plan.shapes and snp.plan.widths == magnitude.plan.widths
    assert snp.plan.units != magnitude.plan.units
    mine.write_text("{hidden: 24, qk: 4, drop: [blocks.1.mlp]}")
    spectral = prune(model, x, recipe=mine, preset="spectral", batch_size=4)
    assert spectral.plan.shapes["blocks.1.mlp"] is None
    assert spectral.after.shapes["blocks.0.mlp"] == MlpShape(hidden=24)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("qk: [4, 4]", "gives 2 sizes of 'qk', .* 3 attention layers: blocks.2.attn is the first"),
        ("hidden: [4, 4, 4, 4]", "gives 4 .* 3 MLPs: there is none after blocks.2.mlp"),
        ("qk: [4, 9, 4]", "blocks.1.attn would keep 9 units of 'qk', more than the 8 it has"),
        ("vo: [4, [4, 4, 3, 4], 4]", "blocks.1.attn keeps 4, 4, 3, 4 'vo' dims in its heads"),
        ("qk: [4, [4, 4], 4]", "blocks.1.attn has 4 heads, but 2 sizes of 'qk'"),
        ("heads: [4, 2, 1%]", "blocks.2.attn would keep nothing of 'heads'"),
        ("branches: {blocks.1.mpl: {hidden: 3}}", "did you mean 'blocks.1.mlp'"),
        ("branches: {blocks.1.mlp: {qk: 3}}", "blocks.1.mlp has no group 'qk'"),
        ("drop: [block.1]", "did you mean 'blocks.1'"),
        ("width: 33", "width of 'stream' to 33; it lies between 1 and 32"),
        ("width: {steam: 16}", "unknown stream 'steam'"),
        ("hiden: 3", "unknown field 'hiden'; did you mean 'hidden'"),
        ("hidden: -3", "field 'hidden' is not understood"),
        ("hidden: 1.5", "field 'hidden' is not understood"),
        ("hidden: [3, many, 3]", r"field 'hidden\[1\]' is not understood"),
        ("{hidden: 64, qk: 100%}", "keeps everything"),
        ("hidden: [", "not valid YAML"),
        ("just words", "not valid YAML"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, words: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    with pytest.raises(UserError, match=words):
        prune(build("vit"), Untouched(), recipe=mine, preset="magnitude")


@pytest.mark.parametrize(
    ("host", "text", "words"),
    [
        ("vit_qk_norm", "qk: 4", "blocks.0.attn cannot lose units of 'qk': QK-norm"),
        ("vit_attention_pool", "width: 16", "pooling head"),
    ],
)
def test_groups_that_a_model_lacks_are_named(
    tmp_path: Path, host: str, text: str, words: str
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    with pytest.raises(UserError, match=words):
        prune(build(host), Untouched(), recipe=mine, preset="magnitude")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "50% macs"}, "either a budget or a recipe"),
        ({"align": {"hidden": 8}}, "--align and --min-width have no meaning"),
        (
            {"protect": ["blocks.1"]},
            "'hidden' of blocks.1.mlp to 10, but blocks.1.mlp is protected",
        ),
        ({"groups": ["qk"]}, "changes hidden, which --groups leaves out"),
        ({"preset": "snp", "recipe": "deit_tiny_snp_0.6"}, "did you mean 'deit_tiny_snp_0.6g'"),
        ({"recipe": "none.yaml"}, "none.yaml' cannot be read"),
        ({"recipe": "deit_tiny_snp_0.6g", "preset": "snp"}, "12 sizes of 'qk'"),
        ({"recipe": None}, "give a budget"),
        ({"preset": "layer_drop", "recipe": "heads"}, "cannot score 'heads'|heads"),
    ],
    ids=str,
)
def test_options_that_contradict_a_recipe(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("hidden: 10")
    request = {"recipe": mine, "preset": "magnitude"} | options
    with pytest.raises(UserError, match=words):
        prune(build("vit"), Untouched(), **request)
