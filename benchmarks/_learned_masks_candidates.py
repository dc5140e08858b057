"""The objective of learned_masks.py, and the settings that it judges on training images."""

from typing import Any

from secateur.training.distillation.objectives import DistilSettings

DISTIL = DistilSettings(
    logit_weight=0.5, label_weight=0.5, temperature=2.0, token_weight=0.0, layerwise=0.0
)

PRUNED = "one-shot spectral"
"""No learned masks, but the default method of `prune`, to compare them with."""
FLAT = ("qk", "vo", "hidden")
"""Groups that leave the stream as wide as it is, so that its tokens can be compared."""
CANDIDATES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "axes as given": {"axes": "given"},
    "start by taylor": {"criterion": "taylor"},
    "scores that go further": {"travel": 1.0},
    "scores that stay": {"travel": 0.01},
    "no takeover": {"takeover": False},
    "no refit": {"refit": False},
    "neither takeover nor refit": {"takeover": False, "refit": False},
    "learning rate x 2": {"rate": 2.0},
    "learning rate x 4": {"rate": 4.0},
    "search share 0.1": {"search_share": 0.1},
    "search share 0.5": {"search_share": 0.5},
    "search at the full rate": {"search_rate": 1.0},
    "batches of 64": {"batch_size": 64},
    "teacher only": {"distil": DISTIL.model_copy(update={"label_weight": 0.0})},
    "tokens too": {"distil": DISTIL.model_copy(update={"token_weight": 1.0}), "groups": FLAT},
    "one-shot, tokens too": {
        "distil": DISTIL.model_copy(update={"token_weight": 1.0}),
        "groups": FLAT,
        "search_share": 0.0,
    },
    "one-shot": {"search_share": 0.0},
    "one-shot, no refit": {"search_share": 0.0, "refit": False},
    "one-shot, learning rate x 3": {"search_share": 0.0, "rate": 3.0},
    "one-shot, learning rate x 6": {"search_share": 0.0, "rate": 6.0},
    "one-shot, muon": {"search_share": 0.0, "algorithm": "muon"},
    "one-shot, muon, learning rate x 3": {"search_share": 0.0, "algorithm": "muon", "rate": 3.0},
    "one-shot, muon, learning rate x 6": {"search_share": 0.0, "algorithm": "muon", "rate": 6.0},
    "one-shot, batches of 32": {"search_share": 0.0, "batch_size": 32},
    "one-shot, axes as given": {"search_share": 0.0, "axes": "given"},
}
"""Settings of `learned, common_count` to choose from.

`rate` multiplies the learning rate, and `algorithm` names another of timm's optimizers.
"""
