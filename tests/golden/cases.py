"""What is recorded: one host, one preset and one budget at a time, through the public functions."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from tests.golden import adapter
from tests.golden.hosts import build, images_for, labels_for

PRESETS = Path(__file__).parent / "presets"
FINE = {"qk": 2, "vo": 2, "hidden": 8, "heads": 1, "width": 4}
"""Sizes are multiples of these, so that hosts of 32 channels leave a choice."""
MENUS = "candidates were measured on the images of the fit"
SEEDS = "a random search dropped the same layers for every seed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case gives: a plan, logits of fixed images and further numbers, where it has them."""

    plan: dict[str, Any] | None = None
    logits_BC: Tensor | None = None
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """A run to record. `expected_to_change` is the defect whose repair changed its outcome since
    the first record.

    `tolerance` is the largest deviation of logits between processors, as a share of the largest
    logit; it is larger where a solve is nearly singular. Where rounding decides between units of
    equal worth, the plan is the same on one processor only: such a case is not `portable`.
    """

    run: Callable[[], Outcome]
    expected_to_change: str | None = None
    tolerance: float = 1e-5
    portable: bool = True


def outputs(model: nn.Module, host: str) -> Tensor:
    """Logits (8, C) of eight images that no case is fitted to."""
    with torch.no_grad():
        return model.eval()(images_for(host, 8, seed=77)).clone()


def model_and_images(host: str, count: int, labelled: bool) -> tuple[nn.Module, object]:
    """The host and its calibration images."""
    if host == "digits":
        return secateur.load("digits_vit"), "digits/train"
    images = images_for(host, count, seed=1)
    return build(host), (images, labels_for(count, seed=2)) if labelled else images


def preset_of(name: str) -> str:
    """A preset of these tests by its file, or one that ships by its name."""
    file = PRESETS / f"{name}.yaml"
    return str(file) if file.is_file() else name


def prune(host: str, preset: str, budget: str | None, count: int = 64, **options: Any) -> Any:
    """What `secateur.prune` returns for a host; `labelled` says that its images have labels."""
    model, images = model_and_images(host, count, options.pop("labelled", False))
    given = {"align": FINE, "minimum": FINE, "batch_size": 8} | options
    if host == "digits":
        given = {"limit": 128} | options
    if budget is None:
        given = options
    given = {"exact_tail": False} | given
    return secateur.prune(model, images, budget, preset=preset_of(preset), **given)


def pruned(host: str, preset: str, budget: str | None, **options: Any) -> Outcome:
    """Plan and logits of a pruning."""
    found = prune(host, preset, budget, **options)
    logits_BC = outputs(adapter.model_of(found), host)
    return Outcome(adapter.plan_json(found), logits_BC, adapter.numbers(found))


SGD = {"name": "sgd", "learning_rate": 0.005}
"""Plain descent: steps of Adam have one length, also along gradients that are rounding alone."""
LEARN: dict[str, object] = {
    "optimizer": SGD,
    "steps": 12,
    "batch_size": 16,
    "checks": 1,
    "observe": 64,
    "held_out": 0.1,
    "checkpoint_seconds": 0,
    "trackers": (),
}


def learned(host: str, budget: str, settings: dict[str, object], **options: Any) -> Outcome:
    """Plan and logits of masks learned for a few steps."""
    model, images = model_and_images(host, 64, labelled=True)
    if host == "digits":
        options = {"limit": 128} | options
    else:
        options = {"align": FINE, "minimum": FINE} | options
    options = {"exact_tail": False} | options
    torch.manual_seed(0)
    chosen = adapter.settings_for("learn", **LEARN | settings)
    found = secateur.learn(model, images, budget, settings=chosen, **options)
    logits_BC = outputs(adapter.model_of(found), host)
    return Outcome(adapter.plan_json(found), logits_BC, adapter.numbers(found))


def healed(host: str, preset: str, budget: str, settings: dict[str, object]) -> Outcome:
    """Logits of a pruned model after a few steps of healing."""
    found = heal(host, preset, budget, settings)
    return Outcome(
        logits_BC=outputs(adapter.model_of(found), host), numbers=adapter.training_numbers(found)
    )


def heal(host: str, preset: str, budget: str, settings: dict[str, object]) -> Any:
    """What `secateur.heal` returns for a pruned host."""
    model, images = model_and_images(host, 48, labelled=False)
    smaller = prune(host, preset, budget)
    chosen = {"steps": 6, "batch_size": 16, "checks": 1, "trackers": (), "checkpoint_seconds": 0}
    chosen["optimizer"] = SGD
    torch.manual_seed(0)
    return secateur.heal(
        smaller,
        images,
        reference=model,
        limit=128,
        settings=adapter.settings_for("heal", **chosen | settings),
    )


def analysed(host: str) -> Outcome:
    """Every measured number of an analysis."""
    model, images = model_and_images(host, 96, labelled=True)
    found = secateur.analyze(model, images, latency=False, batch_size=16, limit=128)
    return Outcome(numbers=adapter.analysis_numbers(found.record))


PRUNED: list[tuple[str, str, str | None, dict[str, Any]]] = [
    ("vit", "energy", "50% macs", {}),
    ("vit", "corp", "60% macs", {}),
    ("vit", "corp_symmetric", "60% params", {}),
    ("vit", "snp", "50% qk, 50% vo, 50% hidden", {}),
    ("vit", "obs", "50% hidden, 50% heads", {}),
    ("vit", "modegpt", "60% macs", {}),
    ("vit", "vbp", "60% hidden", {}),
    ("vit", "random", "60% macs", {"seed": 3}),
    ("vit", "geometric_median", "60% macs", {}),
    ("vit", "magnitude", "75% width", {}),
    ("vit", "magnitude", None, {"recipe": str(PRESETS / "tiny_recipe.yaml")}),
    ("vit", "energy", "50% macs", {"protect": ("blocks.0",), "groups": ("hidden", "heads")}),
    ("vit_qk_norm", "energy", "70% macs", {"groups": ("vo", "hidden")}),
    ("vit_qk_norm", "minitron", "50% hidden, 50% heads", {}),
    ("vit_post_norm", "taylor", "60% macs", {"labelled": True}),
    ("deit_distilled", "flap", "70% macs", {}),
    ("deit3", "snapvit", "60% macs", {"labelled": True}),
    ("dinov2", "magnitude", "60% params", {}),
    ("dinov2", "nvit", "60% macs", {"labelled": True}),
    ("clip", "wanda_sp", "60% macs", {}),
    ("clip", "isomorphic", "60% macs", {"labelled": True}),
    ("aimv2", "llm_pruner", "60% params", {"labelled": True}),
    ("vit", "heads_first", "60% macs", {}),
    ("clip", "blocks_first", "50% macs", {}),
    ("vit", "spectral", "50% macs", {}),
    ("vit", "spectral", "60% params", {"effort": "quick"}),
    ("vit", "spectral", "60% qk, 50% vo, 70% hidden", {}),
    ("vit", "spectral", "drop 2 attention", {}),
    ("vit_qk_norm", "spectral", "60% macs", {"groups": ("vo", "hidden")}),
    ("vit_post_norm", "spectral", "60% macs", {}),
    ("dinov2", "spectral", "60% params", {}),
    ("digits", "spectral", "50% macs", {}),
    ("digits", "energy", "50% params", {}),
    ("vit", "slicegpt", "75% width", {}),
    ("vit_average_pool", "slicegpt", "70% macs", {}),
    ("aimv2", "slicegpt", "60% params", {}),
    ("vit", "greedy_drop", "drop 2 layers", {}),
    ("clip", "greedy_drop", "60% macs", {}),
    ("vit", "shortgpt", "drop 2 blocks", {}),
    ("vit", "llm_drop", "drop 2 attention", {}),
    ("dinov2", "layer_drop", "70% params", {}),
    ("vit", "prune_comp", "drop 2 blocks", {}),
    ("deit3", "iterative_scalar", "drop 3 layers", {}),
    ("vit", "evopress", "drop 3 layers", {}),
    ("vit", "finercut", "drop 2 layers", {}),
    ("vit", "blockpruner", "drop 2 layers", {"labelled": True}),
    ("deit3", "sleb", "drop 1 blocks", {"labelled": True}),
    ("vit", "shortened_llama", "drop 1 blocks", {"labelled": True}),
    ("vit", "uidl", "drop 2 blocks", {}),
    ("vit", "nbl", "drop 2 attention", {}),
    ("vit", "replaceme", "drop 2 blocks", {}),
    ("dinov2", "laco", "drop 1 blocks", {}),
    ("vit", "shortgpt", "drop 1 blocks", {"replacement": "linear"}),
    ("dinov2", "nbl", "70% params", {"replacement": "affine"}),
    ("vit_average_pool", "greedy_drop", "drop 2 layers", {"replacement": "scalar"}),
    ("deit_distilled", "layer_drop", "drop 2 mlp, 50% hidden", {"replacement": "mean"}),
    ("clip", "taylor", "60% macs", {"labelled": True, "repair": "least_squares"}),
    ("vit", "magnitude", "60% macs", {"allocation": "knapsack", "repair": "mean"}),
    ("vit_post_norm", "energy", "2.0 MMACs", {}),
    ("efficientformer", "energy", "60% macs", {}),
    ("efficientformer", "magnitude", "60% params", {}),
    ("efficientformer", "taylor", "60% macs", {"labelled": True}),
    ("efficientformer", "magnitude", "75% width", {}),
    ("efficientformer", "spectral", "70% macs", {"count": 32}),
    ("efficientformer", "greedy_drop", "drop 2 layers", {}),
    ("efficientformer", "shortgpt", "drop 1 blocks", {}),
    ("efficientformer", "layer_drop", "drop 2 mlp", {"replacement": "affine"}),
    ("vit", "energy", "60% macs", {"polish": "8 steps"}),
    ("vit", "spectral", "60% macs", {"polish": "4 steps", "effort": "quick"}),
]
TAILED: list[tuple[str, str, str | None, dict[str, Any]]] = [
    ("vit", "energy", "50% macs", {}),
    ("deit_distilled", "flap", "70% macs", {}),
    ("vit_qk_norm", "energy", "70% macs", {"groups": ("vo", "hidden")}),
    ("vit", "magnitude", "60% macs", {"allocation": "knapsack", "repair": "mean"}),
    ("vit", "spectral", "60% macs", {"effort": "quick"}),
    ("vit", "heads_first", "60% macs", {}),
    ("vit", "energy", "lossless", {}),
]
PRUNED += [(*case, {**options, "exact_tail": True}) for *case, options in TAILED]  # type: ignore[arg-type]
SINGULAR = {
    ("digits", "energy"): 1e-3,
    ("dinov2", "nbl"): 1e-3,
    ("vit_post_norm", "spectral"): 1e-4,
    ("efficientformer", "spectral"): 1e-4,
}
"""Tolerances of nearly singular solves: ten times what two instruction sets were seen to differ."""
MEASURED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("vit", "snp", "60% macs", {}),
    ("vit", "measured_repaired", "50% macs", {}),
    ("clip", "snp+head", "60% macs", {}),
    ("deit3", "snp+block", "60% macs", {}),
    ("efficientformer", "measured_repaired", "70% macs", {}),
]


RECORDED = {"replacement": "stand_in"}
"""Options that cases call by their present name and recorded outcomes by an earlier one."""


def _name(host: str, preset: str, budget: str | None, options: dict[str, Any]) -> str:
    shown = {k: v for k, v in options.items() if k not in ("labelled", "count", "recipe")}
    words = [host, preset, budget or "recipe"]
    words += [
        f"{RECORDED.get(k, k)}={'+'.join(v) if isinstance(v, tuple) else v}"
        for k, v in shown.items()
    ]
    return " | ".join(words)


CASES: dict[str, Case] = {}
for _host, _preset, _budget, _options in PRUNED:
    CASES[_name(_host, _preset, _budget, _options)] = Case(
        partial(pruned, _host, _preset, _budget, **_options),
        tolerance=SINGULAR.get((_host, _preset), 1e-5),
    )
for _host, _preset, _budget, _options in MEASURED:
    CASES[_name(_host, _preset, _budget, _options)] = Case(
        partial(pruned, _host, _preset, _budget, **_options), expected_to_change=MENUS
    )
for _seed in range(3):
    CASES[f"vit | random_iterative | drop 4 layers | seed={_seed}"] = Case(
        partial(pruned, "vit", "random_iterative", "drop 4 layers", seed=_seed),
        expected_to_change=SEEDS,
    )
PLAIN: dict[str, object] = {"axes": "given", "takeover": False, "refit": False}
"""Without solves in axes of no variance, of which images of digits have many."""
LEARNED: dict[str, Callable[[], Outcome]] = {
    "digits | learn | 40% params": partial(learned, "digits", "40% params", {}),
    "digits | learn plain | 40% params": partial(learned, "digits", "40% params", PLAIN),
    "digits | learn plain per_head hard_concrete | 50% macs": partial(
        learned, "digits", "50% macs", PLAIN, sharing="per_head", gates="hard_concrete"
    ),
    "digits | learn plain one shot | 40% params": partial(
        learned, "digits", "40% params", PLAIN | {"search_share": 0.0}, criterion="energy"
    ),
    "vit | learn | 50% params": partial(learned, "vit", "50% params", {}),
    "vit | learn mixed progressive | 60% params": partial(
        learned, "vit", "60% params", {"search": "progressive"}, sharing="mixed"
    ),
    "vit | learn lagrangian threshold | 60% macs": partial(
        learned, "vit", "60% macs", {"search": "lagrangian"}, sharing="per_block", gates="threshold"
    ),
    "vit | learn lagrangian threshold | 60% macs | exact_tail=True": partial(
        learned,
        "vit",
        "60% macs",
        {"search": "lagrangian"},
        sharing="per_block",
        gates="threshold",
        exact_tail=True,
    ),
    "efficientformer | learn | 60% params": partial(learned, "efficientformer", "60% params", {}),
    "vit | heal | energy 50% macs": partial(healed, "vit", "energy", "50% macs", {}),
    "vit | heal | low rank": partial(
        healed, "vit", "magnitude", "50% hidden", {"lora_rank": 2, "refit_head": True}
    ),
    "efficientformer | heal | energy 60% macs": partial(
        healed, "efficientformer", "energy", "60% macs", {}
    ),
    "digits | heal | spectral 40% macs": partial(healed, "digits", "spectral", "40% macs", {}),
}
NOT_PORTABLE = {
    "digits | learn | 40% params",
    "digits | learn plain | 40% params",
    "digits | learn plain per_head hard_concrete | 50% macs",
}
for _title, _run in LEARNED.items():
    CASES[_title] = Case(
        _run,
        tolerance=5e-3 if _title.startswith("digits | heal") else 1e-4,
        portable=_title not in NOT_PORTABLE,
    )
for _host in ("vit", "dinov2", "digits", "efficientformer"):
    CASES[f"{_host} | analyze"] = Case(partial(analysed, _host))
FEW_BATCHES = (
    "digits | spectral | 50% macs",
    "efficientformer | spectral | 70% macs",
    "digits | learn | 40% params",
    "digits | learn plain | 40% params",
    "digits | learn plain per_head hard_concrete | 50% macs",
)
"""Cases of fewer than five batches, of which `spectral` held no image out."""
for _title in FEW_BATCHES:
    CASES[_title] = replace(CASES[_title], expected_to_change=MENUS)
