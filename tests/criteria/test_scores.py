"""Every basic criterion against values computed by hand from weights and sums."""

import pytest
import torch
from torch import Tensor

from secateur.criteria import criteria, score
from secateur.criteria.registry import Question
from secateur.models.types import GroupName
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.statistics import Sums

MLP = MlpWeights(
    readers_FD=(torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]]),),
    reader_biases_F=(torch.tensor([7.0, 7.0, 7.0]),),
    w2_DF=torch.tensor([[4.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    b2_D=None,
)
GATED = MlpWeights(
    readers_FD=(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [0.0]])),
    reader_biases_F=(None, None),
    w2_DF=torch.tensor([[2.0, 0.0]]),
    b2_D=None,
)
ATTENTION = AttentionWeights(
    q_HKD=torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]]),
    k_HKD=torch.tensor([[[0.0, 4.0]], [[0.0, 0.0]]]),
    v_HVD=torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [6.0, 0.0]]]),
    o_DHV=torch.tensor([[[0.0, 2.0], [1.0, 8.0]], [[1.0, 2.0], [0.0, 0.0]]]),
    qb_HK=None,
    kb_HK=None,
    vb_HV=None,
    ob_D=None,
    scale=1.0,
)


def worth(
    name: str,
    group: GroupName,
    weights: BranchWeights | None = None,
    sums: dict[str, Sums] | None = None,
    images: int = 1,
    seed: int = 0,
) -> Tensor:
    question = Question(
        group=group, owner="b", weights=weights, sums=sums or {}, images=images, seed=seed
    )
    return score(criteria.get(name), question)


def close(found: Tensor, expected: object) -> bool:
    wanted = torch.tensor(expected, dtype=torch.float64)
    return found.shape == wanted.shape and torch.allclose(found, wanted)


def test_magnitude_is_the_norm_of_all_weights_of_a_unit() -> None:
    squares = [9 + 16, 1 + 0, 4 + 4 + 1]
    assert close(worth("magnitude", "hidden", MLP), [5.0, 1.0, 3.0])
    assert close(worth("magnitude", "branch", MLP), (sum(squares) / 3) ** 0.5)
    assert close(worth("magnitude", "hidden", GATED), [3.0, 2.0])


def test_magnitude_of_attention_joins_pairs() -> None:
    assert close(worth("magnitude", "qk", ATTENTION), [[5.0], [1.0]])
    vo = [[4 + 1, 1 + 4 + 4], [1, 36 + 64]]
    assert close(worth("magnitude", "vo", ATTENTION), [[v**0.5 for v in row] for row in vo])
    heads = [25 + 5 + 9, 1 + 1 + 100]
    assert close(worth("magnitude", "heads", ATTENTION), [h**0.5 for h in heads])
    assert close(worth("magnitude", "branch", ATTENTION), (sum(heads) / 2) ** 0.5)


COUNT = torch.tensor(4.0, dtype=torch.float64)
WRITTEN: Sums = {
    "count": COUNT,
    "sum": torch.tensor([4.0, 8.0, 0.0, 2.0], dtype=torch.float64),
    "square": torch.tensor([4.0, 20.0, 8.0, 1.0], dtype=torch.float64),
}
FULL: Sums = {
    "count": COUNT,
    "sum": WRITTEN["sum"],
    "gram": torch.full((4, 4), 9.0).double() + torch.diag(WRITTEN["square"] - 9.0),
}


@pytest.mark.parametrize("kind", ["energies", "moments"])
def test_energy_and_variance_of_what_writers_read(kind: str) -> None:
    sums = {f"hidden_{kind}": WRITTEN if kind == "energies" else FULL}
    assert close(worth("energy", "hidden", MLP, sums), [1.0, 5.0, 2.0, 0.25])
    assert close(worth("variance", "hidden", MLP, sums), [0.0, 1.0, 2.0, 0.0])
    sums = {f"context_{kind}": WRITTEN if kind == "energies" else FULL}
    assert close(worth("energy", "vo", ATTENTION, sums), [[1.0, 5.0], [2.0, 0.25]])
    assert close(worth("energy", "heads", ATTENTION, sums), [6.0, 2.25])
    assert close(worth("variance", "vo", ATTENTION, sums), [[0.0, 1.0], [2.0, 0.0]])
    assert close(worth("variance", "heads", ATTENTION, sums), [1.0, 2.0])


def test_energy_of_query_key_dims_is_that_of_their_product() -> None:
    sums: dict[str, Sums] = {
        "logit_moments": {
            "count": torch.tensor(2.0),
            "q_gram": torch.tensor([[[4.0, 1.0], [1.0, 2.0]]]),
            "k_gram": torch.tensor([[[6.0, 5.0], [5.0, 1.0]]]),
        }
    }
    assert close(worth("energy", "qk", ATTENTION, sums), [[2.0 * 3.0, 1.0 * 0.5]])


@pytest.mark.parametrize("group", ["hidden", "branch"])
def test_taylor_is_the_mean_of_absolute_gate_gradients(group: GroupName) -> None:
    gates = {"hidden_abs": torch.tensor([6.0, 0.0]), "branch_abs": torch.tensor(12.0)}
    expected: dict[str, object] = {"hidden": [2.0, 0.0], "branch": 4.0}
    assert close(worth("taylor", group, MLP, {"mlp_gates": gates}, images=3), expected[group])


@pytest.mark.parametrize("group", ["qk", "vo", "heads", "branch"])
def test_taylor_of_attention(group: GroupName) -> None:
    gates = {f"{group}_abs": torch.tensor([[6.0, 1.0]])}
    found = worth("taylor", group, ATTENTION, {"attention_gates": gates}, images=2)
    assert close(found, [[3.0, 0.5]])


@pytest.mark.parametrize("group", ["branch", "block"])
def test_cosine_is_zero_for_what_changes_nothing(group: GroupName) -> None:
    sums = {"count": torch.tensor(8.0), "cosine": torch.tensor(6.0)}
    assert close(worth("cosine", group, None, {f"{group}_similarity": sums}), 0.25)
    sums["cosine"] = sums["count"]
    assert close(worth("cosine", group, None, {f"{group}_similarity": sums}), 0.0)


def test_random_depends_on_the_seed_alone() -> None:
    shapes: dict[GroupName, tuple[int, ...]] = {
        "qk": (2, 1),
        "vo": (2, 2),
        "heads": (2,),
        "branch": (),
        "block": (),
    }
    for group, shape in shapes.items():
        weights = None if group == "block" else ATTENTION
        first, again = (worth("random", group, weights, seed=5) for _ in range(2))
        assert first.shape == shape and torch.equal(first, again)
        assert not torch.equal(first, worth("random", group, weights, seed=6))
    assert worth("random", "hidden", MLP).shape == (3,)
