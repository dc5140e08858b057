"""Attention is taken apart while a CPU trains in bfloat16, and only then."""

import pytest
import torch
from torch import Tensor, nn

from secateur.training.distillation.attention import fast_attention
from secateur.training.lesson import Lesson, Moment
from secateur.training.loop import fit_
from secateur.training.settings import TrainSettings
from tests.hosts import build, images_for


@pytest.mark.parametrize(("precision", "fused"), [("bf16", False), ("no", True)])
def test_while_training_on_a_cpu(precision: str, fused: bool) -> None:
    model = build("vit")
    flags = [m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")]
    assert flags and all(flags)
    seen: list[bool] = []

    def objective(student: nn.Module, lesson: Lesson, moment: Moment) -> dict[str, Tensor]:
        seen.extend(m.fused_attn for m in student.modules() if hasattr(m, "fused_attn"))
        return {"size": student(lesson.images_BCHW).float().square().mean()}

    settings = TrainSettings(steps=2, batch_size=4, precision=precision)  # type: ignore[arg-type]
    fit_(model, images_for(model), objective, settings)
    assert seen and set(seen) == {fused}
    assert [m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")] == flags


def test_not_on_accelerators_and_not_where_it_was_apart_already() -> None:
    model = build("vit")
    with fast_attention(model, torch.device("cuda"), "bf16"):
        assert all(m.fused_attn for m in model.modules() if hasattr(m, "fused_attn"))
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    with fast_attention(model, torch.device("cpu"), "bf16"):
        pass
    assert not any(m.fused_attn for m in model.modules() if hasattr(m, "fused_attn"))
