"""What is learned: each term against its formula, and what cannot be compared is refused."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.runner import Runner
from secateur.training.distillation.losses import token_error
from secateur.training.distillation.objectives import Distil, DistilSettings, logit_loss, supervised
from secateur.training.distillation.teacher import teacher_for
from secateur.training.lesson import Lesson, Moment, total
from secateur.verbs.prune import prune
from tests.hosts import SIZES, build, images_for, vit

START = Moment(step=0, share=0.0)
LATE = Moment(step=9, share=0.9)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return build("vit")


@pytest.fixture(scope="module")
def student(dense: nn.Module) -> nn.Module:
    images = images_for(dense, 16)
    return prune(dense, images, "50% hidden, drop 1 attention", preset="magnitude").model


def lesson_of(dense: nn.Module, labels: bool = False) -> Lesson:
    return Lesson(
        images_BCHW=images_for(dense, 6, seed=3),
        labels_B=torch.arange(6) if labels else None,
    )


def test_terms_are_their_formulas(dense: nn.Module, student: nn.Module) -> None:
    lesson = lesson_of(dense, labels=True)
    weights = {"logit_weight": 0.5, "token_weight": 2.0, "feature_weight": 3.0}
    it = DistilSettings(temperature=2.0, label_weight=0.25, layerwise=0.2, **weights)
    objective = Distil(teacher_for(student, dense), it)
    found = objective(student, lesson, LATE)
    ours, theirs = (Runner.of(model).trace(lesson.images_BCHW) for model in (student, dense))
    p_BC, q_BC = ((seen.logits_BC / 2).softmax(-1) for seen in (theirs, ours))
    kl = (p_BC * (p_BC.log() - q_BC.log())).sum(-1).mean()
    assert found["logits"].item() == pytest.approx(0.5 * 4 * kl.item(), rel=1e-4)
    error = token_error(ours.stream_BND, theirs.stream_BND, 1)
    assert found["tokens"].item() == pytest.approx(2 * error.item(), rel=1e-5)
    errors = [token_error(x, theirs.after[name], 1) for name, x in ours.after.items()]
    assert len(errors) == 5
    mean = torch.stack(errors).mean()
    assert found["features"].item() == pytest.approx(3 * mean.item(), rel=1e-5)
    nll = F.cross_entropy(ours.logits_BC, torch.arange(6))
    assert found["labels"].item() == pytest.approx(0.25 * nll.item(), rel=1e-5)
    assert total(found).item() == pytest.approx(sum(v.item() for v in found.values()), rel=1e-5)
    assert objective(student, lesson, START).keys() == {"layerwise"}


def test_terms_vanish_for_the_teacher_itself(dense: nn.Module) -> None:
    twin = copy.deepcopy(dense)
    objective = Distil(teacher_for(twin, dense), DistilSettings(feature_weight=1.0))
    for moment in (START, LATE):
        found = objective(twin, lesson_of(dense), moment)
        assert all(abs(value.item()) < 1e-6 for value in found.values())


def test_hard_logits_are_the_cross_entropy_of_the_teachers_class() -> None:
    ours, theirs = torch.randn(5, 4), torch.randn(5, 4)
    wanted = -ours.log_softmax(-1)[torch.arange(5), theirs.argmax(-1)].mean()
    found = logit_loss(ours, theirs, DistilSettings(logits="hard"))
    assert torch.allclose(found, wanted)


def test_only_streams_may_be_learned(dense: nn.Module, student: nn.Module) -> None:
    it = DistilSettings(logit_weight=0.0, layerwise=0.0)
    found = Distil(teacher_for(student, dense), it)(student, lesson_of(dense), LATE)
    assert found.keys() == {"logits", "tokens"} and found["logits"].item() == 0


def test_labels_plain_smoothed_and_mixed(dense: nn.Module) -> None:
    lesson = lesson_of(dense, labels=True)
    logits = dense(lesson.images_BCHW)
    wanted = F.cross_entropy(logits, torch.arange(6), label_smoothing=0.1)
    assert torch.allclose(supervised(0.1)(dense, lesson, START)["labels"], wanted)
    soft = torch.full((6, 10), 0.1)
    mixed = Lesson(images_BCHW=lesson.images_BCHW, labels_B=lesson.labels_B, targets_BC=soft)
    wanted = -logits.log_softmax(-1).mean(-1).mean()
    assert torch.allclose(supervised(0.1)(dense, mixed, START)["labels"], wanted)
    with pytest.raises(UserError, match="needs labelled images"):
        supervised()(dense, lesson_of(dense), START)


def other_teacher() -> nn.Module:
    """Another architecture, another image size, another normalisation."""
    model = timm.create_model("resnet18", num_classes=10)
    config = {"input_size": (3, 64, 64), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    return model.eval()


def test_a_teacher_of_another_family_sees_the_images_in_its_own_way(dense: nn.Module) -> None:
    model = other_teacher()
    teacher = teacher_for(dense, model)
    images, shown = images_for(dense, 2), []
    model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    logits: Tensor = teacher.logits(images)
    assert logits.shape == (2, 10) and shown[0].shape == (2, 3, 64, 64)
    mine = teacher.view.before
    pixel = images * torch.tensor(mine.std)[:, None, None] + torch.tensor(mine.mean)[:, None, None]
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    wanted = (pixel.mean((0, 2, 3)) - mean) / std
    assert torch.allclose(shown[0].mean((0, 2, 3)), wanted, atol=0.02)
    it = DistilSettings(token_weight=0.0, layerwise=0.0)
    assert Distil(teacher, it)(dense, lesson_of(dense), START)["logits"] > 0
    with pytest.raises(UserError, match=r"cannot be compared .*outputs alone"):
        Distil(teacher, DistilSettings())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 7}, "has 7 classes, the model 10"),
        ({"in_chans": 1}, "images of 1 channels, the model 3"),
    ],
)
def test_a_teacher_of_other_things_is_refused(
    dense: nn.Module, changes: dict[str, int], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        teacher_for(dense, vit(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 64}, "its width: 64, the model's: 32"),
        ({"patch_size": 16}, "its tokens: 5, the model's: 17"),
        ({"depth": 2}, "no branch blocks.2.attn"),
    ],
)
def test_streams_that_do_not_match_say_why(
    dense: nn.Module, changes: dict[str, int], words: str
) -> None:
    teacher = teacher_for(dense, vit(**SIZES | changes))
    assert teacher.runner is None and words in teacher.mismatch
