"""Metrics of features against plain definitions, and what they ask for."""

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.measurement.cka import unbiased_cka
from secateur.measurement.features import Features, Reader, extract
from secateur.measurement.metrics import Inquiry, chosen, measure_all, metrics
from secateur.measurement.metrics.retrieval import ranked
from secateur.models.derived.members import heads_of
from secateur.models.family import family_of
from secateur.verbs.metrics import evaluate_metrics
from tests.hosts import HOSTS, SIZES, anatomy_of, build, images_for


def clusters(n: int, seed: int, spread: float = 0.3, classes: int = 3) -> Features:
    """Features around one direction per class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.eye(classes, 8)
    noise = spread * torch.randn(n, 8, generator=generator)
    return Features(pooled_nE=centres[labels] + noise, labels_n=labels)


def inquiry_of(test: Features, train: Features | None = None) -> Inquiry:
    """An inquiry whose features are known already."""
    batches = as_batches((torch.zeros(len(test.pooled_nE), 1, 1, 1), test.labels_n))
    known = {"images": test} | ({"train": train} if train else {})
    return Inquiry(model=nn.Identity(), images=batches, train=batches, known=known)


@pytest.mark.parametrize("name", sorted(n for n in HOSTS if anatomy_of(n).num_classes))
def test_pooled_features_are_what_the_classifier_reads(name: str) -> None:
    model, images = build(name), images_for(build(name), 5)
    found = extract(model, as_batches((images, torch.arange(5)), 2))
    assert found.labels_n is not None and found.labels_n.tolist() == list(range(5))
    with torch.no_grad():
        logits = model(images)
        if name == "deit_distilled":
            assert torch.allclose(found.pooled_nE, model.forward_features(images)[:, 0], atol=1e-5)
        elif name == "hf_deit_teacher":
            tokens = model.deit(images).last_hidden_state
            assert torch.allclose(found.pooled_nE, tokens[:, 0], atol=1e-5)
        else:
            heads = heads_of(family_of(model).statement, model).values()
            given = torch.stack([head(found.pooled_nE) for head in heads])
            assert torch.allclose(given.mean(0), logits, atol=1e-5)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_without_a_head_features_are_the_output() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **SIZES | {"num_classes": 0}).eval()
    images = images_for(model, 3)
    with torch.no_grad():
        assert torch.allclose(
            extract(model, as_batches(images)).pooled_nE, model(images), atol=1e-5
        )


def test_a_head_of_another_sort_is_refused() -> None:
    model = build("vit")
    model.head = nn.Sequential(nn.LayerNorm(32), nn.Conv1d(32, 10, 1))
    with pytest.raises(UserError, match=r"no linear classifier.*num_classes=0"):
        Reader(model)


def test_knn_is_the_weighted_vote() -> None:
    train, test = clusters(90, 1, 0.8), clusters(60, 2, 0.8)
    found = measure_all(chosen(["knn"], train=True, reference=False), inquiry_of(test, train))
    a, b = F.normalize(test.pooled_nE.double()), F.normalize(train.pooled_nE.double())
    cosine, near = (a @ b.T).topk(20)
    votes = torch.zeros(60, 3, dtype=torch.float64)
    assert train.labels_n is not None
    votes.scatter_add_(1, train.labels_n[near], (cosine / 0.07).exp())
    top1 = 100 * float((votes.argmax(1) == test.labels_n).double().mean())
    assert found["knn"]["top1"] == pytest.approx(top1) and 40 < top1 < 100
    assert found["knn"]["stderr"] == pytest.approx(math.sqrt(top1 * (100 - top1) / 60))
    few = inquiry_of(test, clusters(6, 1))
    assert measure_all(chosen(["knn"], train=True, reference=False), few)["knn"]["k"] == 6


def test_linear_probe_separates_what_can_be_separated() -> None:
    which = chosen(["linear_probe"], train=True, reference=False)
    easy = measure_all(which, inquiry_of(clusters(60, 2, 0.1), clusters(90, 1, 0.1)))
    assert easy["linear_probe"]["top1"] == 100
    noise = Features(pooled_nE=torch.randn(300, 8), labels_n=torch.arange(300) % 3)
    hard = measure_all(which, inquiry_of(noise, clusters(90, 1)))["linear_probe"]["top1"]
    assert isinstance(hard, float) and 20 < hard < 47
    one_each = measure_all(which, inquiry_of(clusters(60, 2, 0.1), clusters(3, 1, 0.1)))
    assert one_each["linear_probe"]["strength"] == 0.01
    alike = Features(pooled_nE=torch.randn(5, 8), labels_n=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(UserError, match="at least two classes"):
        measure_all(which, inquiry_of(clusters(6, 1), alike))


def test_retrieval_is_mean_average_precision() -> None:
    from sklearn.metrics import average_precision_score

    found = clusters(40, 3, 0.7)
    assert found.labels_n is not None
    labels = found.labels_n.clone()
    labels[7] = 99  # alone: asks nothing, and is wrong for all others
    precision, first = ranked(found.pooled_nE, labels)
    unit = F.normalize(found.pooled_nE)
    expected = []
    for i in [i for i in range(40) if i != 7]:
        others = [j for j in range(40) if j != i]
        right = (labels[others] == labels[i]).numpy()
        expected.append(average_precision_score(right, (unit[others] @ unit[i]).numpy()))
    assert np.allclose(precision.numpy(), expected, atol=1e-6)
    values = measure_all(
        chosen(["retrieval"], train=False, reference=False),
        inquiry_of(Features(pooled_nE=found.pooled_nE, labels_n=labels)),
    )["retrieval"]
    assert values["map"] == pytest.approx(100 * float(np.mean(expected)))
    assert values["queries"] == 39
    assert values["recall1"] == pytest.approx(100 * float(first.double().mean()))
    lonely = Features(pooled_nE=torch.randn(3, 8), labels_n=torch.arange(3))
    with pytest.raises(UserError, match="at least two images of some class"):
        measure_all(chosen(["retrieval"], train=False, reference=False), inquiry_of(lonely))


def compared(model: nn.Module, reference: nn.Module, images: Tensor) -> dict[str, object]:
    return evaluate_metrics(model, images, ["features"], reference=reference)["features"]


def test_features_of_the_same_model_are_the_same() -> None:
    model, images = build("dinov2_registers"), images_for(build("dinov2_registers"), 8)
    found = compared(model, build("dinov2_registers"), images)
    for key in ("pooled", "class", "patches"):
        assert found[f"cosine_{key}"] == pytest.approx(1, abs=1e-5)
        assert found[f"cka_{key}"] == pytest.approx(1, abs=1e-5)
    other = build("dinov2_registers")
    with torch.no_grad():
        other.get_submodule("blocks.2.mlp.fc2").weight.mul_(-3)
    changed = compared(model, other, images)
    assert all(float(str(changed[key])) < 0.999 for key in changed if key != "n")


def test_features_of_other_widths_have_cka_only() -> None:
    model = build("vit")
    narrow = timm.create_model("vit_tiny_patch16_224", **SIZES | {"embed_dim": 16}).eval()
    found = compared(narrow, model, images_for(model, 8))
    assert found["cosine_class"] is None and found["cosine_pooled"] is None
    assert found["cka_class"] is not None and found["cka_pooled"] is not None
    plain = compared(build("vit_average_pool"), model, images_for(model, 8))
    assert plain["cosine_class"] is None and plain["cka_patches"] is not None


def test_cka_is_the_definition_and_ignores_rotations() -> None:
    from tests.analysis.test_similarity import plain_cka

    x, y = torch.randn(12, 5), torch.randn(12, 7) + 3
    assert unbiased_cka(x, y) == pytest.approx(plain_cka(x, y), abs=1e-9)
    turn, _ = torch.linalg.qr(torch.randn(5, 5))
    assert unbiased_cka(x, 4 * x @ turn - 2) == pytest.approx(1)
    assert unbiased_cka(x[:3], y[:3]) is None


def test_what_is_missing_is_said_before_any_pass() -> None:
    assert metrics.names() == ["features", "knn", "linear_probe", "retrieval"]
    images = images_for(build("vit"), 4)
    for names, words in (
        (["kn"], "unknown metric 'kn'; did you mean 'knn'"),
        (["knn"], "--train-data"),
        (["features"], "--reference"),
        (["retrieval"], "needs labels, but the images have none"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate_metrics(build("vit"), images, names)
    labelled = (images, torch.arange(4))
    with pytest.raises(UserError, match="the train images have none"):
        evaluate_metrics(build("vit"), labelled, ["knn"], train=images)


def test_features_that_are_not_finite_are_refused() -> None:
    model = build("vit")
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="not finite"):
        extract(model, as_batches(images_for(model)))
