"""The models that ship with the package: `digits_vit`, also written `zoo:digits_vit`."""

import json
from collections.abc import Callable, Iterator

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from secateur.errors import UserError
from secateur.registry import unknown
from secateur.storage.libraries._pooling import changed_pooling
from secateur.storage.library import Arguments, libraries, tuples
from secateur.zoo import digits_vit, zoo_path

MODELS: dict[str, Callable[[], nn.Module]] = {"digits_vit": digits_vit}

CHANGEABLE = frozenset({"num_classes", "img_size", "global_pool", "fc_norm"})
"""Arguments of a bundled model that may have been changed after it was opened."""


class ZooModels:
    """Bundled models: each has a card NAME.json and weights NAME.safetensors."""

    title = f"{' or '.join(MODELS)} (bundled)"
    by_name = True
    changed = staticmethod(changed_pooling)

    def open(
        self, name: str, *, pretrained: bool, num_classes: int | None, img_size: int | None
    ) -> nn.Module:
        """The bundled model; its classes and image size cannot be chosen."""
        if num_classes is not None or img_size is not None:
            raise UserError(f"'{name}' is bundled as it is: leave out num_classes and img_size.")
        return _known(name)() if pretrained else self.skeleton(name, {})

    def recognise(self, model: nn.Module) -> Iterator[tuple[str, Arguments]]:
        """By the architecture in the model's configuration."""
        config = getattr(model, "pretrained_cfg", None)
        name = config.get("architecture") if isinstance(config, dict) else None
        if name in MODELS:
            yield name, {}

    def skeleton(self, name: str, arguments: Arguments) -> nn.Module:
        """The architecture written on the model's card, with another head or image size."""
        if odd := sorted(set(arguments) - CHANGEABLE):
            raise UserError(f"'{odd[0]}' is no argument of the bundled model '{name}'.")
        _known(name)
        card = json.loads(zoo_path(f"{name}.json").read_text(encoding="utf-8"))
        values = {key: tuples(value) for key, value in arguments.items()}
        try:
            return VisionTransformer(**card["arguments"] | values)
        except (ArithmeticError, AssertionError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"'{name}' cannot be built with {values}: {error}.") from error


def _known(name: str) -> Callable[[], nn.Module]:
    if name not in MODELS:
        raise UserError(unknown("bundled model", name, sorted(MODELS)))
    return MODELS[name]


libraries.register("zoo")(ZooModels())
