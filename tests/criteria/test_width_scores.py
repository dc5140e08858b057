"""Scores of units brought over from language models, against values by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.criteria import criteria, score
from secateur.criteria.registry import Question
from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.models.types import GroupName
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.statistics import Sums, observe, statistics_kinds
from secateur.statistics.kinds.gradients import parts
from tests.hosts import HOSTS, build, images_for

MLP = MlpWeights(
    readers_FD=(torch.tensor([[1.0, 0.0], [0.0, 2.0]]),),
    reader_biases_F=(None,),
    w2_DF=torch.tensor([[1.0, -3.0], [1.0, 1.0]]),
    b2_D=None,
)


def worth(name: str, group: GroupName, weights: BranchWeights, sums: dict[str, Sums]) -> Tensor:
    question = Question(group=group, owner="b", weights=weights, sums=sums, images=1, seed=0)
    return score(criteria.get(name), question)


def attention(o_DHV: Tensor) -> AttentionWeights:
    heads, dims = o_DHV.shape[1:]
    rows = torch.zeros(heads, dims, o_DHV.shape[0])
    return AttentionWeights(
        q_HKD=rows,
        k_HKD=rows,
        v_HVD=rows,
        o_DHV=o_DHV,
        qb_HK=None,
        kb_HK=None,
        vb_HV=None,
        ob_D=None,
        scale=1.0,
    )


def seen(kind: str, **tensors: Tensor) -> dict[str, Sums]:
    sums: Sums = {}
    statistics_kinds.get(kind).update(sums, tensors)
    return {kind: sums}


def test_wanda_is_mean_weight_times_length_of_activation() -> None:
    sums = seen("hidden_energies", hidden=torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]))
    found = worth("wanda", "hidden", MLP, sums)
    assert found.tolist() == pytest.approx([(1 + 1) / 2 * math.sqrt(5), (3 + 1) / 2])


def test_wanda_of_a_head_is_the_sum_over_its_dims() -> None:
    context = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]]]])
    weights = attention(torch.tensor([[[1.0, 1.0], [5.0, 0.5]]]))
    sums = seen("context_energies", context=context)
    assert worth("wanda", "vo", weights, sums).tolist() == [[1.0, 2.0], [0.0, 2.0]]
    assert worth("wanda", "heads", weights, sums).tolist() == [3.0, 2.0]


def test_minitron_averages_tokens_before_it_squares() -> None:
    # Two images of two tokens; the first neuron swings, the second is steady.
    hidden = torch.tensor([[[-4.0, 2.0], [0.0, 2.0]], [[0.0, 2.0], [0.0, 2.0]]])
    found = worth("minitron", "hidden", MLP, seen("hidden_means", hidden=hidden))
    assert found.tolist() == pytest.approx([math.sqrt((2**2 + 0) / 2), 2.0])
    context = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]]])
    weights = attention(torch.ones(1, 2, 2))
    heads = worth("minitron", "heads", weights, seen("head_means", context=context))
    assert heads.tolist() == pytest.approx([(5 + 1) / 2, 1.0])


def test_leverage_is_low_for_neurons_that_repeat_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, generator=generator)
    found = worth(
        "leverage",
        "hidden",
        MLP,
        seen("hidden_moments", hidden=torch.stack([a, a, b], 1)[None]),
    )
    assert found[0] == pytest.approx(float(found[1])) and float(found[0]) == pytest.approx(0.5, 0.1)
    assert float(found[2]) > 0.95


def test_obs_lets_a_repeated_neuron_go_for_nothing_and_prices_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4000, generator=generator)
    w2_DF = torch.tensor([[1.0, 1.0, 1.0]])
    weights = MlpWeights(readers_FD=(), reader_biases_F=(), w2_DF=w2_DF, b2_D=None)
    sums = seen("hidden_moments", hidden=torch.stack([a, a, b], 1)[None])
    found = worth("obs", "hidden", weights, sums)
    order = found.argsort().tolist()
    # One copy of a costs nothing; then b costs its variance; the last a stands for both copies.
    assert order[0] in (0, 1) and float(found[order[0]]) < 0.01
    assert order[1] == 2 and float(found[2]) == pytest.approx(float(b.var()), rel=0.05)
    assert float(found[order[2]]) == pytest.approx(4 * float(a.var()), rel=0.05)


def test_obs_of_heads_sees_what_other_heads_can_take_over() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4000, 1, generator=generator)
    context = torch.stack([a, b, a], 1)[None]
    weights = attention(torch.tensor([[[1.0], [0.5], [1.0]]]))
    found = worth("obs", "heads", weights, seen("context_moments", context=context))
    assert found.argmin().item() in (0, 2) and float(found.min()) < 0.01
    assert float(found[1]) == pytest.approx(0.25 * float(b.var()), rel=0.05)


@pytest.mark.parametrize("name", ["vit", "dinov2_registers", "vit_swiglu", "vit_no_biases"])
def test_gradients_of_weights_are_autograds_own(name: str) -> None:
    model = build(name)
    images, labels = images_for(model, 3), torch.tensor([1, 2, 3])
    found = observe(model, as_batches((images, labels), 2), ["weight_gradients"])
    branch = read(model).branch("blocks.1.mlp")
    squares = torch.zeros(())
    total = torch.zeros(())
    for i in range(3):
        model.zero_grad()
        F.cross_entropy(model(images[i : i + 1]), labels[i : i + 1]).backward()
        gradient = model.get_parameter("blocks.1.mlp.fc2.weight").grad
        assert gradient is not None
        total = total + gradient.T
        squares = squares + gradient.T.square()
    sums = found.of("weight_gradients", branch.id)
    assert torch.allclose(sums["out"], total, rtol=1e-3, atol=1e-5)
    assert torch.allclose(sums["out_square"], squares, rtol=1e-3, atol=1e-6)
    attn = found.of("weight_gradients", "blocks.1.attn")
    weights = family_of(model).weights(model, read(model).branch("blocks.1.attn"))
    assert {k: v.shape for k, v in parts(weights).items()} == {
        k: attn[k].shape for k in parts(weights)
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Elements of neuron 0: w = 1, 0 | 1, 1 with g = 2, 5 | 1, -1.
        ("taylor_element", [2 + 0 + 1 + 1, 0 + 2 + 3 + 0]),
        ("taylor_vector", [2 + 0 + 1 - 1, abs(0 + 2 - 3 + 0)]),
        ("taylor_second", [1 + 0 + 0 + 2, 0 + 2 + abs(-3 - 9) + 1]),
    ],
)
def test_taylor_by_hand(name: str, expected: list[float]) -> None:
    two = torch.full((2, 2), 2.0)
    sums = {
        "weight_gradients": {
            "images": torch.tensor(1.0),
            "in0": torch.tensor([[2.0, 5.0], [7.0, 1.0]]),
            "in0_square": two * torch.tensor([[1.0], [0.0]]),
            "out": torch.tensor([[1.0, -1.0], [1.0, 0.0]]),
            "out_square": two,
        }
    }
    assert worth(name, "hidden", MLP, sums).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", HOSTS)
def test_observing_gradients_leaves_the_model_as_it_was(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    observe(model, as_batches(images_for(model, 2), 2), ["weight_gradients"])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_channels_are_worth_their_energy_in_tokens_of_one_length() -> None:
    sums: Sums = {}
    # Two points of the stream; the second has tokens ten times as long, which norms do not see.
    tokens = torch.tensor([[[3.0, 4.0, 0.0, 0.0]], [[0.0, 0.0, 5.0, 0.0]]])
    seen = {"points": torch.tensor(2), "0.class": tokens, "1.class": 10 * tokens}
    statistics_kinds.get("stream_gram").update(sums, seen)
    question = Question(
        group="width",
        owner="stream",
        weights=None,
        sums={"stream_gram": sums},
        images=2,
        seed=0,
    )
    found = score(criteria.get("principal"), question)
    expected = torch.tensor([9 / 25, 16 / 25, 1.0, 0.0], dtype=torch.float64) * 4 / 2
    assert torch.allclose(found, expected)
