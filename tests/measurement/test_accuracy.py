import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.data.images import open_images
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.measurement.accuracy import evaluate, paired_difference, predict, summarize


class Table(nn.Module):
    """Says for each image what its first pixel points to in a table of logits."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))
        self.frozen = nn.BatchNorm2d(1)
        self.modes: list[bool] = []

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.rows[x_BCHW[:, 0, 0, 0].long()]


def pointers(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float32)[:, None, None, None]


ROWS = [
    [9.0, 1, 2, 3, 4, 5],  # 0; second choice 5
    [9.0, 8, 7, 6, 5, 4],  # 0; label 5 is sixth
    [0.0, 1, 2, 3, 4, 5],  # 5
    [0.0, 9, 2, 3, 4, 5],  # 1; label 2 is fifth
]
LABELS = torch.tensor([0, 5, 5, 2])


def test_top1_top5_and_standard_error() -> None:
    found = evaluate(Table(ROWS), (pointers(4), LABELS), batch_size=3)
    assert (found.top1, found.top5, found.n) == (50.0, 75.0, 4)
    assert found.stderr == pytest.approx(100 * math.sqrt(0.5 * 0.5 / 4))
    assert (found.agreement, found.kl) == (None, None)
    assert set(found.to_json()) == {
        "top1",
        "top5",
        "n",
        "stderr",
        "agreement",
        "kl",
        "change_stderr",
    }


def test_agreement_and_divergence_from_the_reference() -> None:
    p, q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    reference = Table([[math.log(v) for v in p], [1.0, 2.0, 3.0]])
    model = Table([[math.log(v) + 7 for v in q], [1.0, 2.0, 3.0]])
    found = evaluate(model, pointers(2), reference=reference)
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert found.kl == pytest.approx(expected / 2, rel=1e-5)
    assert found.agreement == 50.0
    assert (found.top1, found.top5, found.stderr, found.n) == (None, None, None, 2)


def test_the_error_of_the_difference_is_paired() -> None:
    reference = Table([ROWS[0], [0.0, 1, 2, 3, 4, 9], ROWS[2], ROWS[3]])  # right on image 1, too
    found = evaluate(Table(ROWS), (pointers(4), LABELS), reference=reference)
    own, other = (predict(m, (pointers(4), LABELS)) for m in (Table(ROWS), reference))
    assert own.correct_N is not None and other.correct_N is not None
    change, error = paired_difference(own.correct_N, other.correct_N)
    assert (change, found.change_stderr) == (-25.0, pytest.approx(error))
    assert error == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 4))


def test_a_model_agrees_with_itself() -> None:
    model = Table(ROWS)
    found = evaluate(model, pointers(4), reference=model)
    assert (found.agreement, found.kl) == (100.0, 0.0)


def test_top5_needs_five_classes() -> None:
    found = evaluate(Table([[1.0, 2, 3, 4]]), (pointers(1), torch.tensor([3])))
    assert (found.top1, found.top5) == (100.0, None)


def test_models_get_their_modes_back_and_progress_is_told() -> None:
    model, reference = Table(ROWS).train(), Table(ROWS).eval()
    model.frozen.eval()
    done: list[int] = []
    evaluate(model, pointers(4), reference=reference, batch_size=3, on_batch=done.append)
    assert done == [3, 1]
    assert (model.training, model.frozen.training, reference.training) == (True, False, False)
    assert model.modes == [False, False]
    with pytest.raises(IndexError):
        evaluate(model, pointers(9))
    assert (model.training, model.frozen.training) == (True, False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_refused(value: float) -> None:
    broken = Table([[value, 1.0]])
    with pytest.raises(UserError, match="the model Table gives outputs that are not finite"):
        evaluate(broken, pointers(1))
    with pytest.raises(UserError, match="the reference Table"):
        evaluate(Table([[0.0, 1.0]]), pointers(1), reference=broken)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(UserError, match=r"label 6 .* 6 outputs"):
        evaluate(Table(ROWS), (pointers(4), LABELS + 1))
    with pytest.raises(UserError, match=r"reference has 2 outputs .* model has 6"):
        evaluate(Table(ROWS), pointers(1), reference=Table([[0.0, 1.0]]))
    with pytest.raises(UserError, match=r"Identity gives tuple|gives \[1, 1, 1, 1\]"):
        evaluate(nn.Identity(), pointers(1))


def test_half_precision_and_wrapped_outputs() -> None:
    class Wrapped(Table):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            assert x_BCHW.dtype == torch.bfloat16
            return SimpleNamespace(logits=super().forward(x_BCHW))  # type: ignore[return-value]

    found = evaluate(Wrapped(ROWS).bfloat16(), (pointers(4), LABELS))
    assert (found.top1, found.top5) == (50.0, 75.0)


def test_predictions_are_per_image_and_in_order() -> None:
    found = predict(Table(ROWS), (pointers(4), LABELS), batch_size=3)
    assert found.top1_N.tolist() == [0, 0, 5, 1]
    assert found.correct_N is not None
    assert found.correct_N.tolist() == [True, False, True, False]
    assert summarize(found) == evaluate(Table(ROWS), (pointers(4), LABELS))
    assert predict(Table(ROWS), pointers(4)).correct_N is None


def test_paired_difference_counts_only_what_differs() -> None:
    a = torch.tensor([True, True, True, False] * 25)
    b = torch.tensor([True, True, False, False] * 25)
    difference, stderr = paired_difference(a, b)
    assert difference == pytest.approx(25.0)
    assert stderr == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 100))
    assert paired_difference(b, b) == (0.0, 0.0)
    with pytest.raises(ValueError, match="not the same images"):
        paired_difference(a, b[:3])


def test_vit_tiny_on_real_validation_images(shared_dir: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224")
    model.load_state_dict(load_file(shared_dir / "models" / "vit_tiny_patch16_224.safetensors"))
    images = open_images(
        shared_dir / "data" / "imagenet_val_dev",
        Preprocessing.of(model),
        num_classes=1000,
        limit=64,
    )
    assert len(set(images.labels)) == 64
    found = predict(model, images)
    accuracy = summarize(found)
    assert accuracy.n == 64
    assert accuracy.top1 is not None and accuracy.top1 > 70
    # Had the classes that are present been numbered by position, nothing would be right.
    by_position = torch.tensor([sorted(images.labels).index(label) for label in images.labels])
    assert (found.top1_N == by_position).double().mean() < 0.1
