"""The analysis as a whole, on tiny hosts and on the bundled model."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import secateur
from secateur.analysis.removals import _counts
from secateur.data.batches import as_batches
from secateur.data.split import keep_evenly
from secateur.errors import UserError
from secateur.models.family import family_of, read
from secateur.report.analysis_record import AnalysisRecord
from secateur.verbs.analyze import Analysis, analyze
from tests.hosts import HOSTS, build, images_for


@cache
def of_digits() -> Analysis:
    return analyze(secateur.load("digits_vit"), "digits/train", limit=64, latency=False)


def record_of(found: Analysis) -> AnalysisRecord:
    return AnalysisRecord.model_validate(found.record)


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_every_host_can_be_analysed(name: str) -> None:
    model = build(name)
    images = images_for(model, 40)
    with torch.no_grad():
        before = model(images)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = record_of(analyze(model, images, latency=False))
    with torch.no_grad():
        assert torch.equal(model(images), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    anatomy = read(model)
    assert len(found.layers) == len(anatomy.branches)
    assert len(found.blocks) == sum(bool(block.branches) for block in anatomy.blocks)
    assert all(layer.degradation > 0 for layer in found.layers)
    agreements = [layer.agreement for layer in found.layers if layer.agreement is not None]
    assert len(agreements) == (len(found.layers) if anatomy.num_classes else 0)
    assert all(0 <= agreement <= 1 for agreement in agreements)
    assert {series.structure for series in found.series} >= {"attention", "mlp", "layers", "blocks"}
    for series in found.series:
        assert list(series.macs) == sorted(series.macs) and series.macs[0] > 0
    assert found.interactions is not None
    assert {share.what for share in found.shares} == {"params", "macs"}
    for share in found.shares:
        assert sum(share.parts.values()) == pytest.approx(1)
    asked = {"cosine", "magnitude", "random"} | ({"taylor"} if anatomy.num_classes else set())
    assert {score.name for score in found.scores} >= asked


@pytest.mark.parametrize(
    "gone",
    [
        {"blocks.1.attn", "blocks.1.mlp"},
        {"blocks.0.attn", "blocks.1.attn", "blocks.2.attn"},
        {"blocks.0.attn", "blocks.1.attn", "blocks.2.attn", "blocks.0.mlp", "blocks.2.mlp"},
    ],
    ids=("a block", "all attention", "all but one layer"),
)
def test_models_that_lost_layers(gone: set[str]) -> None:
    model = build("vit")
    family_of(model).drop_(model, gone)
    found = analyze(model, images_for(model, 40), latency=False)
    record = record_of(found)
    assert {layer.id for layer in record.layers}.isdisjoint(gone)
    assert len(record.layers) == 6 - len(gone)
    assert len(record.similarity["class"].cosine) == 4
    assert found.findings and "</html>" in found.html()
    family_of(model).drop_(model, {layer.id for layer in record.layers})
    with pytest.raises(UserError, match="no attention layer or MLP left"):
        analyze(model, images_for(model, 40), latency=False)


def test_models_of_uneven_widths() -> None:
    model = secateur.load("digits_vit")
    smaller = secateur.prune(model, "digits/train", "50% qk, 75% vo, 50% hidden", limit=64).model
    record = record_of(analyze(smaller, "digits/train", limit=64, latency=False))
    sizes = {(s.owner, s.group): s.size for s in record.spectra}
    assert sizes["blocks.2.attn", "qk"] == 8 and sizes["blocks.2.mlp", "hidden"] == 128


def test_degradation_is_that_of_the_model_without_the_layer() -> None:
    """Against secateur's own removal: a branch dropped and its mean folded into a bias."""
    model = secateur.load("digits_vit")
    images = images_for(model, 48)
    found = record_of(analyze(model, images, latency=False))
    result = secateur.prune(model, images, "drop 1 mlp", preset="layer_drop")
    (gone,) = [name for name, shape in result.plan.shapes.items() if shape is None]
    kept = keep_evenly(as_batches(images, 32), found.probe_images)
    for _ in kept[0]:
        pass
    probes = torch.cat(kept[1])
    with torch.no_grad():
        dense, pruned = model(probes).log_softmax(-1), result.model(probes).log_softmax(-1)
    expected = float(F.kl_div(pruned, dense, log_target=True, reduction="batchmean"))
    layer = next(layer for layer in found.layers if layer.id == gone)
    assert layer.degradation == pytest.approx(expected, rel=1e-3)


def test_a_layer_that_does_nothing_can_go_first() -> None:
    model = build("vit")
    with torch.no_grad():
        writer = model.get_submodule("blocks.1.mlp.fc2")
        writer.weight.zero_()
    found = record_of(analyze(model, images_for(model, 40), latency=False))
    idle = next(layer for layer in found.layers if layer.id == "blocks.1.mlp")
    assert idle.degradation == pytest.approx(0, abs=1e-6) and idle.droppable
    together = next(series for series in found.series if series.structure == "layers")
    assert together.order[0] == "blocks.1.mlp"
    cosine = next(score for score in found.scores if score.name == "cosine")
    assert cosine.rho is not None


def test_droppable_layers_are_within_the_tolerance_together() -> None:
    found = record_of(of_digits())
    own = {layer.id for layer in found.layers if layer.droppable}
    together = next(series for series in found.series if series.structure == "layers")
    assert own == set(together.order[: len(own)]) and own
    counts = [int(what.split()[0]) for what in together.what]
    assert together.degradation[counts.index(len(own))] <= found.tolerance
    strict = analyze(
        secateur.load("digits_vit"), "digits/train", limit=64, latency=False, tolerance=1e-9
    )
    assert not any(layer["droppable"] for layer in rows(strict, "layers"))
    assert "No whole layer can go" in strict.findings[0]


def rows(found: Analysis, key: str) -> list[dict[str, Any]]:
    value = found.record[key]
    assert isinstance(value, list)
    return value


def test_pairs_agree_with_singles() -> None:
    found = record_of(of_digits())
    assert found.interactions is not None
    lost = {layer.id: layer.degradation for layer in found.layers}
    owners = found.interactions.owners
    assert set(owners) == set(sorted(lost, key=lost.__getitem__)[:8])
    for i, one in enumerate(owners):
        assert found.interactions.excess[i][i] is None
        for j, other in enumerate(owners):
            if i != j:
                both, excess = found.interactions.together[i][j], found.interactions.excess[i][j]
                assert both is not None and excess is not None
                assert both - lost[one] - lost[other] == pytest.approx(excess, abs=1e-9)


def test_costs_are_told_in_passes() -> None:
    found = record_of(of_digits())
    passes = {cost.stage: cost.passes for cost in found.costs if cost.passes is not None}
    # Half of the images only probe; one pass over the others, and one forward and back over them.
    assert passes["observe"] == (1 + 3) / 2
    # Half of the images probe; the twelve layers and six blocks need from 1/12 to 12/12 of them.
    assert 0 < passes["layers and blocks"] < 18 / 2
    assert 20 < sum(passes.values()) < 40


def test_an_analysis_repeats_itself() -> None:
    again = analyze(secateur.load("digits_vit"), "digits/train", limit=64, latency=False)
    for one, other in zip(rows(of_digits(), "layers"), rows(again, "layers"), strict=True):
        assert one["degradation"] == pytest.approx(other["degradation"], rel=1e-5, abs=1e-9)


def test_models_without_classes() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3,
        num_classes=0,
    ).eval()  # fmt: skip
    found = record_of(analyze(model, torch.randn(40, 3, 32, 32), latency=False))
    assert found.unit == "1 − cosine" and found.num_classes == 0
    assert all(layer.agreement is None and layer.degradation >= 0 for layer in found.layers)
    assert "taylor" not in {score.name for score in found.scores}


def test_time_is_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("secateur.measurement.timing.SECONDS", 0.0)
    found = record_of(analyze(build("vit"), images_for(build("vit"), 40)))
    assert found.ms is not None and found.ms > 0
    time = next(share for share in found.shares if share.what == "ms")
    assert sum(time.parts.values()) == pytest.approx(1)
    assert sum(layer.ms or 0 for layer in found.layers) <= found.ms * (1 + 1e-9)
    depth = next(series for series in found.series if series.structure == "layers")
    assert all(share is not None and 0 < share < 1 for share in depth.ms)


def test_saving_is_whole_or_not_at_all(tmp_path: Path) -> None:
    found = of_digits()
    assert found.save(tmp_path / "a" / "page") is None
    with pytest.raises(UserError, match=r"holds an analysis, saved on .*--overwrite"):
        found.save(tmp_path / "a" / "page")
    replaced = found.save(tmp_path / "a" / "page", overwrite=True)
    assert replaced is not None and replaced.startswith("an analysis, saved on ")
    assert {path.name for path in (tmp_path / "a" / "page").iterdir()} == {
        "analysis.html",
        "analysis.json",
    }
    told = json.loads((tmp_path / "a" / "page" / "analysis.json").read_text(encoding="utf-8"))
    assert told["findings"] == found.findings and len(told["layers"]) == 12
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds other files, such as diary\.txt"):
        found.save(tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is no directory"):
        found.save(tmp_path / "file")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "mine", "file"}


def test_wrong_input_is_refused() -> None:
    model = build("vit")
    with pytest.raises(UserError, match="unknown effort 'ful'; did you mean 'full'"):
        analyze(model, images_for(model), effort="ful")
    with pytest.raises(UserError, match="belongs to no family"):
        analyze(nn.Linear(2, 2), images_for(model))


@pytest.mark.parametrize(
    ("total", "counts"),
    [(1, [1]), (2, [1]), (6, [1, 2, 3]), (24, [1, 2, 3, 4, 6, 8, 10, 12])],
)
def test_series_begin_with_one_layer_and_end_with_half(total: int, counts: list[int]) -> None:
    assert _counts(total) == counts
