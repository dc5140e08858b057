"""NViT's saliency and the Fisher information, by hand and against the weights' own gradients."""

import torch
import torch.nn.functional as F

from secateur.criteria import criteria, score
from secateur.criteria.registry import Question
from secateur.data.batches import as_batches
from secateur.models.family import read
from secateur.statistics import Sums, observe
from tests.hosts import build, images_for

LABELS = torch.tensor([3, 1, 4])


def worth(name: str, group: str, sums: dict[str, Sums], images: int) -> list[float]:
    question = Question(
        group=group,  # type: ignore[arg-type]
        owner="b",
        weights=None,
        sums=sums,
        images=images,
        seed=0,
    )
    found: list[float] = score(criteria.get(name), question).tolist()
    return found


def test_values_by_hand() -> None:
    """Two images with gate gradients (1, 3) and (2, -2) on two neurons."""
    gates = {
        "hidden_sum": torch.tensor([4.0, 0.0]),
        "hidden_square": torch.tensor([10.0, 8.0]),
    }
    assert worth("nvit", "hidden", {"mlp_gates": gates}, 2) == [4.0, 0.0]
    assert worth("fisher", "hidden", {"mlp_gates": gates}, 2) == [2.5, 2.0]
    gates = {f"heads_{key}": torch.tensor([[6.0]]) for key in ("sum", "square")}
    assert worth("nvit", "heads", {"attention_gates": gates}, 3) == [[4.0]]
    assert worth("fisher", "heads", {"attention_gates": gates}, 3) == [[1.0]]


def test_nvit_is_the_squared_sum_of_weights_times_gradients() -> None:
    model = build("vit").double()
    images = images_for(model, 3).double()
    kinds = ("attention_gates", "mlp_gates")
    statistics = observe(model, as_batches((images, LABELS), 2), kinds)
    F.cross_entropy(model(images), LABELS).backward()
    block = model.blocks[1]
    attention, mlp = read(model).branches[2:4]

    def saliency(branch: str, group: str) -> torch.Tensor:
        return torch.tensor(worth("nvit", group, statistics.about(branch), 3))

    def written(layer: torch.nn.Linear) -> torch.Tensor:
        return (layer.weight * layer.weight.grad).sum(0)

    expected_F = written(block.mlp.fc2).square()
    torch.testing.assert_close(saliency(mlp.id, "hidden"), expected_F.float(), rtol=1e-3, atol=0)
    vo_HV = written(block.attn.proj).unflatten(0, (4, 8))
    torch.testing.assert_close(
        saliency(attention.id, "vo"), vo_HV.square().float(), rtol=1e-3, atol=1e-12
    )
    heads_H = vo_HV.sum(1).square().float()
    torch.testing.assert_close(saliency(attention.id, "heads"), heads_H, rtol=1e-3, atol=1e-12)
    # What reads for queries, with its bias; rows of qkv are [q|k|v] by head.
    qkv = block.attn.qkv
    rows = (qkv.weight * qkv.weight.grad).sum(1) + qkv.bias * qkv.bias.grad
    qk_HK = rows[:32].unflatten(0, (4, 8)).square().float()
    torch.testing.assert_close(saliency(attention.id, "qk"), qk_HK, rtol=1e-3, atol=1e-12)
