"""Accuracy and latency beside the dense model, and which model that is."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import secateur
from secateur.measurement.accuracy import evaluate as plain
from secateur.storage.reference import dense_of


@pytest.fixture
def model() -> nn.Module:
    return secateur.load("digits_vit")


def test_dense_and_pruned_are_scored_on_the_same_images(model: nn.Module) -> None:
    seen: list[tuple[str, int, int]] = []
    result = secateur.prune(
        model,
        "digits/train",
        "40% hidden",
        preset="energy",
        limit=64,
        eval_images="digits/test",
        latency=True,
        progress=lambda *step: seen.append(step),
    )
    assert result.accuracy_dense == secateur.evaluate(model, "digits/test")
    expected = secateur.evaluate(result.model, "digits/test", reference=model)
    assert result.accuracy == expected
    assert expected.agreement is not None
    assert expected.agreement < 100
    assert [row["model"] for row in result.latency] == ["dense", "pruned"]
    assert ("observe", 64, 64) in seen
    assert ("evaluate", 450, 450) in seen
    assert set(result.seconds) == {"observe", "weigh", "plan", "cut", "measure"}


def test_nothing_is_measured_unless_wished(model: nn.Module) -> None:
    result = secateur.prune(model, "digits/train", "40% hidden", limit=16, preset="energy")
    assert (result.accuracy, result.accuracy_dense, result.latency) == (None, None, [])
    assert "measure" not in result.seconds


def test_a_part_of_the_images(model: nn.Module) -> None:
    found = secateur.evaluate(model, "digits/test", limit=40, batch_size=16)
    assert found.n == 40
    whole = plain(model, torch.randn(5, 1, 8, 8))
    assert (whole.n, whole.top1) == (5, None)


def test_the_dense_original_is_found_again_if_it_is_bundled(
    model: nn.Module, tmp_path: Path
) -> None:
    secateur.prune(model, "digits/train", "50% hidden", limit=16, preset="energy").save(
        tmp_path / "small"
    )
    dense, note = dense_of(secateur.load(tmp_path / "small"))
    assert dense is not None
    assert "zoo:digits_vit" in note
    expected = model.state_dict()
    assert all(torch.equal(dense.state_dict()[name], expected[name]) for name in expected)


def test_other_weights_are_no_dense_original(model: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        model.blocks[0].mlp.fc1.bias.add_(0.5)
    secateur.prune(model, "digits/train", "50% hidden", limit=16, preset="energy").save(
        tmp_path / "small"
    )
    dense, note = dense_of(secateur.load(tmp_path / "small"))
    assert dense is None
    assert "other weights" in note
    assert dense_of(model) == (None, "no reference: name one with --reference.")


def test_images_of_the_same_content_are_told_where_models_are_compared(
    model: nn.Module, tmp_path: Path
) -> None:
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        for copy in range(2):
            image = Image.new("L", (8, 8), 20 * number)
            image.save(tmp_path / str(number) / f"{copy}.png")
    how = {"preset": "magnitude", "limit": 16}
    given = (model, "digits/train", "40% hidden")
    told = secateur.prune(*given, eval_images=tmp_path, **how).notes
    assert any("Evaluation: 10 of 20 images have the content of another" in note for note in told)
    told = secateur.prune(*given, eval_images="digits/test", **how).notes
    assert not any("content of another" in note for note in told)
