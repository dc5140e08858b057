"""Records of real runs on a tiny random model, as the pages get them."""

import copy
from typing import Any

import pytest
import timm
import torch

from secateur.training.heal_and_train import HealSettings
from secateur.verbs.analyze import analyze
from secateur.verbs.heal import heal
from secateur.verbs.prune import prune

Record = dict[str, Any]


def tiny_model() -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=10,
    )
    return model.eval()


def pruned_record(budget: str, **options: Any) -> Record:
    model, images = tiny_model(), torch.randn(8, 3, 32, 32)
    return prune(model, images, budget, **{"preset": "energy"} | options).record()


@pytest.fixture(scope="session")
def shared_record() -> Record:
    return pruned_record("drop 1 attention, 50% qk, 34% hidden", align={"qk": 4})


@pytest.fixture
def record(shared_record: Record) -> Record:
    """One of three attention layers dropped, half the query/key dims, a third of the neurons."""
    return copy.deepcopy(shared_record)


@pytest.fixture
def measured(record: Record) -> Record:
    """The same with a model's name, accuracy and latency, a note and an unreadable image."""
    sides = {"n": 650, "agreement": None, "kl": None}
    latency = {"runs": 40, "batch_size": 8, "runtime": "eager", "device": "cpu", "threads": 2}
    return record | {
        "model": "timm:some_vit",
        "command": "secateur prune timm:some_vit --budget '50% qk'",
        "notes": ["The budget was met with 12 kMACs to spare."],
        "accuracy": {
            "dense": {"top1": 75.38, "top5": 92.8, "stderr": 1.69, **sides},
            "pruned": {"top1": 68.91, "top5": 89.1, "stderr": 1.82, **sides}
            | {"agreement": 80.4, "kl": 0.3123},
        },
        "latency": [
            {"model": "dense", "ratio": 1.0, "median_ms": 6.213, "iqr_ms": 0.31, **latency},
            {"model": "pruned", "ratio": 0.683, "median_ms": 4.241, "iqr_ms": 0.22, **latency},
        ],
        "data": record["data"] | {"fingerprint": "sha256:9f2c1b", "unreadable": ["n01/bad.JPEG"]},
    }


@pytest.fixture(scope="session")
def shared_analysis() -> Record:
    found = analyze(tiny_model(), torch.randn(40, 3, 32, 32), latency=False)
    return found.record | {"model": "timm:some_vit", "command": "secateur analyze some"}


@pytest.fixture(scope="session")
def shared_training() -> Record:
    """The record of a real short healing run."""
    model = tiny_model()
    images, labels = torch.randn(24, 3, 32, 32), torch.arange(24) % 10
    smaller = prune(model, images, "50% hidden", preset="energy")
    settings = HealSettings(steps=8, log_every=2, held_out=0.25, batch_size=6)
    healed = heal(smaller, images, reference=model, settings=settings, eval_images=(images, labels))
    return healed.record() | {"model": "timm:some_vit", "command": "secateur heal some"}


@pytest.fixture
def training(shared_training: Record) -> Record:
    return copy.deepcopy(shared_training)
