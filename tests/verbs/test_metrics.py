"""Feature extractors from pruning to metrics, and splits of one set."""

from pathlib import Path

import pytest
import timm
import torch

import secateur
from secateur.errors import UserError
from secateur.verbs.metrics import check_classes, evaluate_metrics


def test_feature_extractors_are_pruned_saved_and_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    images = torch.randn(40, 3, 32, 32)
    labels = torch.arange(40) % 4
    result = secateur.prune(model, images, "70% macs", preset="energy", align={"qk": 4, "vo": 4})
    result.save(tmp_path / "small")
    small = secateur.load(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(small(images), result.model(images))
    found = evaluate_metrics(
        small,
        (images, labels),
        ["knn", "linear_probe", "retrieval", "features"],
        train=(images, labels),
        reference=model,
    )
    assert found["knn"]["n"] == 40
    probed = found["linear_probe"]["top1"]
    assert isinstance(probed, float) and probed > 40
    cosine = found["features"]["cosine_pooled"]
    assert isinstance(cosine, float) and 0.3 < cosine < 0.9999


def test_splits_must_count_the_same_classes() -> None:
    check_classes(0, 7)
    check_classes(7, 7)
    with pytest.raises(UserError, match="7 classes but the train images 9"):
        check_classes(7, 9)
