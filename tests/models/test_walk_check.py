"""A model that is not the walk through its steps is refused, never measured wrong."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from secateur.errors import UserError
from secateur.models.walk_check import require_walk
from secateur.verbs.analyze import analyze
from secateur.verbs.prune import prune
from tests.contract.test_refusals import Untouched
from tests.hosts import HOSTS, SIZES, build, randomise_


@pytest.mark.parametrize("name", HOSTS)
def test_every_host_is_its_walk_in_any_type_and_mode(name: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        require_walk(build(name).to(dtype))
    model = build(name)
    for module in model.modules():
        module.training = True
    before = {key: value.clone() for key, value in model.state_dict().items()}
    require_walk(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Doubled(VisionTransformer):
    """Another function of the same features."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Any:
        return 2 * super().forward(x)


class SkipsEverySecond(VisionTransformer):
    """A masked autoencoder's way: not all patches go through the blocks."""

    def forward_features(self, x: Tensor, **_masks: Any) -> Tensor:
        return self.norm(self.blocks(self._pos_embed(self.patch_embed(x))[:, ::2]))


class PoolsByItself(VisionTransformer):
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x[:, 1:].mean(1)) if not pre_logits else x

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Any:
        return self.head(self.forward_features(x)[:, 1:].amax(1))


class TwoHeads(VisionTransformer):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Any:
        x = self.forward_features(x)
        return self.forward_head(x), x[:, 1:]


class Named(VisionTransformer):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Any:
        return {"logits": super().forward(x)}


class Tokens(VisionTransformer):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Any:
        return self.forward_features(x)


class WantsMore(VisionTransformer):
    def forward(self, x: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x * mask)


REFUSED = [
    (Doubled, "outputs differ by"),
    (SkipsEverySecond, "outputs differ by"),
    (PoolsByItself, "outputs differ by"),
    (TwoHeads, r"outputs of shape \(2, 17, 32\), not \(2, 10\)"),
    (Tokens, r"outputs of shape \(2, 17, 32\), not \(2, 10\)"),
    (WantsMore, "fails on images"),
]


@pytest.mark.parametrize(("kind", "words"), REFUSED)
def test_another_forward_pass_is_refused_before_an_image_is_read(
    kind: type[VisionTransformer], words: str
) -> None:
    model = kind(**SIZES)
    randomise_(model, seed=1)
    with pytest.raises(UserError, match=words) as error:
        prune(model.eval(), Untouched(), "80% macs", preset="magnitude")
    assert kind.__name__ in str(error.value)
    with pytest.raises(UserError, match=words):
        analyze(model.eval(), Untouched())


def test_logits_under_a_name_are_the_outputs() -> None:
    model = Named(**SIZES)
    randomise_(model, seed=1)
    require_walk(model.eval())


def test_a_model_without_values_is_not_looked_at() -> None:
    require_walk(build("vit").to("meta"))
