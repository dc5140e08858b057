"""Make trained vision transformers smaller and faster by removing what they do not need.

    import secateur

    model = secateur.load("timm:vit_tiny_patch16_224", checkpoint="vit_tiny.safetensors")
    result = secateur.prune(model, "calibration_images/", budget="50% macs")
    result.save("small/")
    again = secateur.load("small/")

Names are imported when they are first used, so that `import secateur` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from secateur.errors import UserError

if TYPE_CHECKING:
    from secateur.measurement.latency import bench
    from secateur.verbs.analyze import Analysis, analyze
    from secateur.verbs.demo import demo
    from secateur.verbs.evaluate import evaluate
    from secateur.verbs.heal import heal
    from secateur.verbs.inspect import inspect
    from secateur.verbs.learn import learn
    from secateur.verbs.load import load
    from secateur.verbs.prune import prune
    from secateur.verbs.result import Result
    from secateur.verbs.saving import save
    from secateur.verbs.train import train

    __version__: str

_HOMES = {
    "Analysis": "secateur.verbs.analyze",
    "Result": "secateur.verbs.result",
    "analyze": "secateur.verbs.analyze",
    "bench": "secateur.measurement.latency",
    "demo": "secateur.verbs.demo",
    "evaluate": "secateur.verbs.evaluate",
    "heal": "secateur.verbs.heal",
    "inspect": "secateur.verbs.inspect",
    "learn": "secateur.verbs.learn",
    "load": "secateur.verbs.load",
    "prune": "secateur.verbs.prune",
    "save": "secateur.verbs.saving",
    "train": "secateur.verbs.train",
}

__all__ = [
    "Analysis",
    "Result",
    "UserError",
    "__version__",
    "analyze",
    "bench",
    "demo",
    "evaluate",
    "heal",
    "inspect",
    "learn",
    "load",
    "prune",
    "save",
    "train",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("secateur")
    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
