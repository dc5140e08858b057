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
    from secateur.measuring.latency import bench
    from secateur.pipeline.analyze import Analysis, analyze
    from secateur.pipeline.demo import demo
    from secateur.pipeline.heal import heal
    from secateur.pipeline.inspect import inspect
    from secateur.pipeline.learn import learn
    from secateur.pipeline.measure import evaluate
    from secateur.pipeline.opening import load
    from secateur.pipeline.prune import prune
    from secateur.pipeline.result import Result
    from secateur.pipeline.train import train

    __version__: str

_HOMES = {
    "Analysis": "secateur.pipeline.analyze",
    "Result": "secateur.pipeline.result",
    "analyze": "secateur.pipeline.analyze",
    "bench": "secateur.measuring.latency",
    "demo": "secateur.pipeline.demo",
    "evaluate": "secateur.pipeline.measure",
    "heal": "secateur.pipeline.heal",
    "inspect": "secateur.pipeline.inspect",
    "learn": "secateur.pipeline.learn",
    "load": "secateur.pipeline.opening",
    "prune": "secateur.pipeline.prune",
    "train": "secateur.pipeline.train",
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
