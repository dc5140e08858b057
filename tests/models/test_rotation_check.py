"""A stream that something reads channel by channel is never rotated."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.methods.rotated import rotated
from secateur.models.host import host_of
from secateur.models.rotation_check import require_rotatable
from secateur.verbs.prune import prune
from tests.contract.test_refusals import Untouched
from tests.hosts import SIZES, images_for, randomise_, vit


def pooled(pool: str, kind: type[nn.Module] = VisionTransformer) -> nn.Module:
    model = kind(**SIZES | {"global_pool": pool})
    randomise_(model, seed=1)
    return model.eval()


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_max_pooling_is_refused_before_an_image_is_read(pool: str) -> None:
    model = pooled(pool)
    with pytest.raises(UserError, match="cannot be rotated: in another basis its outputs differ"):
        prune(model, Untouched(), "75% width", preset="slicegpt")
    with pytest.raises(UserError, match="max pooling"):
        require_rotatable(host_of(model))


class SignedHead(VisionTransformer):
    """A subclass that does something of its own to single channels."""

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        return super().pool(x, pool_type).relu()


def test_whatever_acts_on_single_channels_is_refused() -> None:
    with pytest.raises(UserError, match="acts on single channels"):
        prune(pooled("avg", SignedHead), Untouched(), "75% width", preset="slicegpt")


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_other_pooling_gives_the_same_outputs_at_full_width(pool: str) -> None:
    model = pooled(pool)
    x = images_for(model, 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    require_rotatable(host_of(model))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    turned = rotated(host_of(model), as_batches(x, 4))
    with torch.no_grad():
        torch.testing.assert_close(turned(x), model(x), rtol=1e-4, atol=1e-4)


def test_channels_of_a_pooled_maximum_are_still_selected() -> None:
    model = pooled("max")
    found = prune(model, images_for(model, 16), "75% width", preset="magnitude", groups=["width"])
    assert found.after.width < found.before.width


def test_a_model_without_values_is_not_tried() -> None:
    require_rotatable(host_of(vit().to("meta")))
