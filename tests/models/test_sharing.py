"""Weights used at two places: every kind is refused before an image is read, or does no harm."""

import copy
from collections.abc import Callable

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

import secateur
from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.masks.settings import LearnSettings
from secateur.models.host import host_of
from secateur.models.sharing import has_shared, refuse_shared, separated, shared_weights
from secateur.training.settings import OptimizerSettings
from tests.hosts import HOSTS, SIZES, build, images_for, shared, vit

Tie = Callable[[nn.Module], None]
PRESETS = {
    "spectral": {},
    "energy": {},
    "magnitude": {},
    "layer_drop": {},
    "sleb": {},
    "snp+head": {},
    "slicegpt": {},
}


def whole_attention(model: nn.Module) -> None:
    model.blocks[2].attn = model.blocks[1].attn


def whole_mlp(model: nn.Module) -> None:
    model.blocks[2].mlp = model.blocks[0].mlp


def block_twice(model: nn.Module) -> None:
    model.blocks[2] = model.blocks[1]


def all_blocks_one(model: nn.Module) -> None:
    model.blocks[1] = model.blocks[2] = model.blocks[0]


def linear_module(model: nn.Module) -> None:
    model.blocks[2].attn.proj = model.blocks[1].attn.proj


def queries(model: nn.Module) -> None:
    model.blocks[1].attn.qkv.weight = model.blocks[0].attn.qkv.weight


def neurons(model: nn.Module) -> None:
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight


def bias_alone(model: nn.Module) -> None:
    model.blocks[1].mlp.fc2.bias = model.blocks[0].attn.proj.bias


def norm_of_two_blocks(model: nn.Module) -> None:
    model.blocks[2].norm1 = model.blocks[1].norm1


def norm_of_one_block(model: nn.Module) -> None:
    model.blocks[1].norm2 = model.blocks[1].norm1


def head_and_branch(model: nn.Module) -> None:
    model.head.weight = model.blocks[2].mlp.fc1.weight


def embedding_and_branch(model: nn.Module) -> None:
    model.patch_embed.proj.bias = model.blocks[0].norm1.bias


def final_norm_and_branch(model: nn.Module) -> None:
    model.norm = model.blocks[2].norm2


def same_memory(model: nn.Module) -> None:
    model.blocks[1].mlp.fc1.weight.data = model.blocks[0].mlp.fc1.weight.data


def part_of_another(model: nn.Module) -> None:
    whole = model.blocks[0].attn.qkv.weight
    model.blocks[1].attn.proj.weight = nn.Parameter(whole.data[10:42])


def transposed(model: nn.Module) -> None:
    model.blocks[1].mlp.fc2.weight = nn.Parameter(model.blocks[1].mlp.fc1.weight.data.T)


def every_second_row(model: nn.Module) -> None:
    buffer = torch.randn(128, 32)
    model.blocks[0].mlp.fc1.weight = nn.Parameter(buffer[::2])
    model.blocks[1].mlp.fc1.weight = nn.Parameter(buffer[:64])


def plain_view(model: nn.Module) -> None:
    weight = model.blocks[0].mlp.fc1.weight.detach()
    del model.blocks[1].mlp.fc1.weight
    model.blocks[1].mlp.fc1.weight = weight


def one_identity(model: nn.Module) -> None:
    model.blocks[1].drop_path2 = model.blocks[0].drop_path2


TIES: dict[str, tuple[Tie, tuple[str, str]]] = {
    tie.__name__: (tie, places)
    for tie, places in [
        (whole_attention, ("blocks.1.attn", "blocks.2.attn")),
        (whole_mlp, ("blocks.0.mlp", "blocks.2.mlp")),
        (block_twice, ("blocks.1", "blocks.2")),
        (all_blocks_one, ("blocks.0", "blocks.1")),
        (linear_module, ("blocks.1.attn.proj", "blocks.2.attn.proj")),
        (queries, ("blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight")),
        (neurons, ("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight")),
        (bias_alone, ("blocks.0.attn.proj.bias", "blocks.1.mlp.fc2.bias")),
        (norm_of_two_blocks, ("blocks.1.norm1", "blocks.2.norm1")),
        (norm_of_one_block, ("blocks.1.norm1", "blocks.1.norm2")),
        (head_and_branch, ("blocks.2.mlp.fc1.weight", "head.weight")),
        (embedding_and_branch, ("patch_embed.proj.bias", "blocks.0.norm1.bias")),
        (final_norm_and_branch, ("blocks.2.norm2", "norm")),
        (same_memory, ("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight")),
        (part_of_another, ("blocks.0.attn.qkv.weight", "blocks.1.attn.proj.weight")),
        (transposed, ("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight")),
        (every_second_row, ("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight")),
        (plain_view, ("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight")),
        (one_identity, ("blocks.0.drop_path2", "blocks.1.drop_path2")),
    ]
}


def tied(name: str) -> nn.Module:
    """A host with 64 classes, so that its head can share with an MLP."""
    torch.manual_seed(0)
    model = vit(num_classes=64).eval()
    TIES[name][0](model)
    return model


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", TIES)
def test_what_is_shared_is_refused_before_an_image_is_read(
    name: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, places = tied(name), TIES[name][1]
    monkeypatch.setattr(Batches, "__iter__", lambda _: pytest.fail("the pass began"))
    for budget in ("80% params", "80% macs"):
        with pytest.raises(UserError) as refusal:
            secateur.prune(model, images_for(model, 8), budget, preset=preset)
        told = str(refusal.value)
        assert told.startswith(f"{places[0]} and {places[1]} "), told
        assert f"replace that at {places[1]} by a" in told


@pytest.mark.parametrize("name", [n for n in TIES if n != "plain_view"])
def test_the_advice_helps(name: str) -> None:
    """Copied as the sentence says, the model has the same outputs and keeps its budget."""
    model = tied(name)
    x = images_for(model, 64)
    before = model(x).detach()
    for _ in range(20):
        try:
            result = secateur.prune(model, x, "85% params", preset="energy")
            break
        except UserError as error:
            place = str(error).partition("replace that at ")[2].partition(" by a")[0]
            parent, _, last = place.rpartition(".")
            owner = model.get_submodule(parent)
            one = getattr(owner, last)
            own = copy.deepcopy(one) if isinstance(one, nn.Module) else nn.Parameter(one.clone())
            setattr(owner, last, own)
    assert torch.equal(model(x), before)
    dense, left = (sum(p.numel() for p in m.parameters()) for m in (model, result.model))
    assert left == result.cost.params <= 0.85 * dense


@pytest.mark.parametrize("name", TIES)
def test_a_model_that_shares_can_still_be_looked_at(name: str) -> None:
    model = tied(name)
    x = images_for(model, 64)
    found = secateur.inspect(model)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert 0 <= found.ends["params"] <= found.params
    labels = model(x).argmax(-1)
    assert secateur.evaluate(model, (x, labels)).top1 == 100
    apart = separated(model)
    assert torch.equal(apart(x), model(x))
    if name != "plain_view":
        assert not has_shared(apart)


@pytest.mark.parametrize("name", ["whole_attention", "block_twice", "queries", "one_identity"])
def test_an_analysis_is_that_of_a_model_that_shares_nothing(name: str) -> None:
    model = tied(name)
    x = images_for(model, 64)
    own = secateur.analyze(model, x, latency=False).record
    apart = secateur.analyze(separated(model), x, latency=False).record
    assert own["layers"] == apart["layers"]
    assert len(own["layers"]) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["whole_attention", "neurons", "norm_of_two_blocks"])
def test_masks_are_not_learned_on_what_is_shared(name: str) -> None:
    model = tied(name)
    settings = LearnSettings(steps=1, optimizer=OptimizerSettings(learning_rate=1e-9))
    with pytest.raises(UserError, match="share weights"):
        secateur.learn(model, images_for(model, 8), "80% params", settings=settings)


@pytest.mark.parametrize("name", HOSTS)
def test_ordinary_models_share_nothing(name: str) -> None:
    model = shared(name)
    assert not has_shared(model)
    groups = ("qk", "vo", "heads", "hidden", "branch", "block", "width")
    refuse_shared(host_of(model), groups)  # type: ignore[arg-type]


def flat(model: nn.Module) -> None:
    """All parameters side by side in one buffer, as some optimizers keep them."""
    buffer, begin = torch.cat([p.data.flatten() for p in model.parameters()]), 0
    for parameter in model.parameters():
        part = buffer[begin : begin + parameter.numel()]
        parameter.data = part.view_as(parameter)
        begin += parameter.numel()


def columns(model: nn.Module) -> None:
    """Two parameters in the columns of one matrix: their spans overlap, their numbers do not."""
    buffer = torch.randn(64, 64)
    model.blocks[0].mlp.fc1.weight.data = buffer[:, :32]
    model.blocks[1].mlp.fc1.weight.data = buffer[:, 32:]


@pytest.mark.parametrize("tie", [flat, columns])
@pytest.mark.parametrize("preset", ["spectral", "energy", "layer_drop"])
def test_neighbours_in_memory_share_nothing(tie: Tie, preset: str) -> None:
    model = build("vit")
    plain = copy.deepcopy(model)
    tie(model)
    assert not list(shared_weights(model))
    x = images_for(model, 64)
    told = {"preset": preset, "effort": "quick"}
    result = secateur.prune(model, x, "75% params", **told)  # type: ignore[arg-type]
    assert sum(p.numel() for p in result.model.parameters()) <= 0.75 * result.cost_dense.params
    if tie is flat:
        same = secateur.prune(plain, x, "75% params", **told)  # type: ignore[arg-type]
        assert torch.equal(result.model(x), same.model(x))


def test_classifiers_may_share_while_the_stream_keeps_its_width() -> None:
    model = VisionTransformerDistilled(**SIZES).eval()
    model.head_dist.weight = model.head.weight
    x: Tensor = images_for(model, 64)
    dense = sum(p.numel() for p in model.parameters())
    for preset in ("spectral", "energy", "magnitude", "layer_drop"):
        result = secateur.prune(model, x, "75% params", preset=preset, effort="quick")
        left = sum(p.numel() for p in result.model.parameters())
        assert left == result.cost.params <= 0.75 * dense
        assert result.model.head_dist.weight is result.model.head.weight
    with pytest.raises(UserError, match=r"head\.weight and head_dist\.weight share weights"):
        secateur.prune(model, x, "75% width", preset="magnitude")


def test_shapes_on_the_meta_device_are_compared_by_identity() -> None:
    model = build("vit").to("meta")
    assert not list(shared_weights(model))
    model.blocks[1].attn = model.blocks[0].attn
    pair = next(shared_weights(model))
    assert (pair.first, pair.second) == ("blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight")
