"""What models of transformers give besides their outputs stays what it was when layers go."""

from typing import Any

import pytest
import torch
import transformers

from secateur.models.family import family_of, read
from secateur.models.types import AttentionShape
from secateur.models.weights import AttentionWeights
from secateur.storage.meta import on_meta
from secateur.surgery.cut import cut_
from tests.contract.cases import plan_for
from tests.hosts import build, images_for


@pytest.mark.parametrize("name", ["hf_vit", "hf_dinov2_registers", "hf_clip", "hf_aimv2_features"])
@torch.no_grad()
def test_hidden_states_keep_their_places(name: str) -> None:
    """The states before and behind every block, in a model without its last blocks, too."""
    model = build(name)
    x = images_for(model)
    dense = model(x, output_hidden_states=True).hidden_states
    cut_(model, plan_for(read(model), "last blocks"), None, "none")
    found = model(x, output_hidden_states=True).hidden_states
    assert len(found) == len(dense) == 4
    assert torch.equal(found[1], dense[1]) and torch.equal(found[2], found[1])
    fresh = build(name)
    cut_(fresh, plan_for(read(fresh), "last blocks"), None, "none")
    again = fresh(x, output_hidden_states=True).hidden_states
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@torch.no_grad()
def test_narrower_attention_gives_its_weights() -> None:
    model = build("hf_vit")
    model.set_attn_implementation("eager")
    cut_(model, plan_for(read(model), "qk"), None, "none")
    given = model(images_for(model), output_attentions=True).attentions
    assert [weights.shape for weights in given] == [(4, 4, 17, 17)] * 3
    assert all(torch.allclose(w.sum(-1), torch.ones(())) for w in given)


def test_uniform_shapes_stay_in_the_host_class() -> None:
    """Equal dims in all heads, and fewer heads, are shapes of the host's own attention."""
    model = build("hf_vit")
    family, branch = family_of(model), read(model).branches[0]
    weights, host = family.weights(model, branch), type(model.get_submodule(branch.id))
    for heads, dims in ((2, 8), (2, 4)):
        shape = AttentionShape(heads=heads, qk=dims, vo=dims)
        family.assign_(model, branch, AttentionWeights.empty(shape, weights))
        assert type(model.get_submodule(branch.id)) is host
        assert read(model).branches[0].shape == shape


LARGE: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "Dinov2Model": {
        "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "image_size": 518,
        "patch_size": 14, "use_swiglu_ffn": True,
    },
    "CLIPVisionModel": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14,
        "intermediate_size": 4096,
    },
    "SiglipVisionModel": {
        "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16,
        "intermediate_size": 4304, "image_size": 384, "patch_size": 14,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_models_of_real_size_are_counted_without_weights(name: str) -> None:
    with on_meta():
        model = getattr(transformers, name)(getattr(transformers, name).config_class(**LARGE[name]))
    anatomy = read(model)
    assert anatomy.cost().params == sum(p.numel() for p in model.parameters())
