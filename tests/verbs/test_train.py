"""Fine-tuning as a function: it learns, its model is an ordinary one, other heads are made."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import secateur
from secateur.data.digits import load_digits_split
from secateur.errors import UserError
from secateur.training.heal_and_train import FineTuneSettings, HealSettings
from secateur.verbs.train import open_to_train
from secateur.verbs.training_result import Trained
from tests.training.learners import same

QUICK = FineTuneSettings.model_validate(
    {"steps": 8, "batch_size": 16, "trackers": (), "optimizer": {"learning_rate": 1e-3}}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images of each of three digits."""
    images, labels = load_digits_split("train")
    for digit in range(3):
        (tmp_path / "digits" / str(digit)).mkdir(parents=True)
        for number, image in enumerate(images[labels == digit][:8]):
            Image.fromarray(image).save(tmp_path / "digits" / str(digit) / f"{number}.png")
    return tmp_path / "digits"


def spoilt() -> nn.Module:
    """The bundled model with a head that knows nothing."""
    model = secateur.load("digits_vit")
    nn.init.zeros_(model.head.weight)
    return model


def test_it_learns_and_every_verb_loads_it(tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"steps": 60, "ema": None})
    model = spoilt()
    found = secateur.train(
        model, "digits/train", limit=300, settings=settings, eval_images="digits/test"
    )
    assert found.accuracy["pruned"].top1 > 80  # type: ignore[operator]
    assert not model.head.weight.any()
    found.save(tmp_path / "dense")
    again = secateur.load(tmp_path / "dense")
    assert same(again, found.model)
    record = found.record()
    assert record["macs"]["dense"] == record["macs"]["pruned"]
    assert (record["preset"], record["budget"]) == (None, None)
    small = secateur.prune(again, "digits/train", "50% hidden", preset="energy", limit=40)
    small.save(tmp_path / "small")
    quiet = HealSettings.model_validate({"steps": 2, "trackers": ()})
    healed = secateur.heal(
        secateur.load(tmp_path / "small"),
        "digits/train",
        reference=tmp_path / "dense",
        limit=40,
        settings=quiet,
    )
    assert healed.notes == [] and healed.earlier["budget"] == "50% hidden"
    assert secateur.evaluate(secateur.load(tmp_path / "small"), "digits/test").n == 450


def test_a_named_model_gets_a_head_for_the_images_classes(folder: Path, tmp_path: Path) -> None:
    import timm

    start = timm.create_model("vit_tiny_patch16_224", num_classes=9, img_size=48)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    model, images = open_to_train(
        "timm:vit_tiny_patch16_224",
        folder,
        checkpoint=tmp_path / "start.safetensors",
        img_size=32,
        mean=0.5,
        std=0.25,
    )
    assert model.head.out_features == 3 and images.label_count == 3
    assert model.pos_embed.shape == (1, 5, 192)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, start.blocks[3].mlp.fc1.weight)
    assert images[0][0].shape == (3, 32, 32)
    assert images.preprocessing.std == (0.25,) * 3
    short = QUICK.model_copy(update={"steps": 1, "held_out": 0.0})
    found = secateur.train(model, images, settings=short)
    found.save(tmp_path / "out")
    assert same(secateur.load(tmp_path / "out"), found.model)
    own = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    kept, _ = open_to_train(
        "timm:vit_tiny_patch16_224",
        folder,
        checkpoint=tmp_path / "own.safetensors",
        img_size=48,
    )
    assert torch.equal(kept.head.weight, own.head.weight)


@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_stopped_run_goes_on_though_its_head_began_at_random(
    from_scratch: bool, folder: Path, tmp_path: Path
) -> None:
    import timm

    start = timm.create_model("vit_tiny_patch16_224", num_classes=9, img_size=32)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    checkpoint = None if from_scratch else tmp_path / "start.safetensors"
    settings = QUICK.model_copy(update={"steps": 4, "checkpoint_seconds": 0.0, "held_out": 0.0})

    def kill(stage: str, done: int, total: int) -> None:
        if done == 3 * 16:
            raise KeyboardInterrupt

    def run(folder_: Path | None, progress: object = None, seed: int = 0) -> Trained:
        torch.rand(2)
        model, images = open_to_train(
            "timm:vit_tiny_patch16_224",
            folder,
            checkpoint=checkpoint,
            from_scratch=from_scratch,
            img_size=32,
            seed=seed,
        )
        return secateur.train(model, images, settings=settings, folder=folder_, progress=progress)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", kill)
    found = run(tmp_path / "run")
    assert found.report.resumed_at == 2
    assert same(found.model, run(None).model)
    assert not same(found.model, run(None, seed=1).model)


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("timm:vit_tiny_patch16_224", {"num_classes": 2}, "has 3 classes .* 2 outputs"),
        ("digits_vit", {}, "a head for 10 classes, but the images are of 3"),
        ("timm:vit_tinny_patch16_224", {}, "unknown timm model"),
        ("timm:vit_tiny_patch16_224", {"from_scratch": True, "checkpoint": "x"}, "either"),
    ],
)
def test_what_does_not_match_is_refused(
    source: str, changes: dict[str, object], words: str, folder: Path
) -> None:
    with pytest.raises(UserError, match=words):
        open_to_train(source, folder, **{"img_size": None, **changes})  # type: ignore[arg-type]


def test_a_checkpoint_of_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    save_file({"nothing": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"cannot be the start of timm:vit_tiny"):
        open_to_train(
            "timm:vit_tiny_patch16_224", folder, checkpoint=tmp_path / "other.safetensors"
        )


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(UserError, match="no labels to learn from"):
        secateur.train(spoilt(), torch.zeros(9, 1, 8, 8), settings=QUICK)


def test_vit_tiny_at_a_reduced_resolution(shared_dir: Path) -> None:
    model, images = open_to_train(
        "timm:vit_tiny_patch16_224",
        shared_dir / "data" / "cifar10" / "train.parquet",
        checkpoint=shared_dir / "models" / "vit_tiny_patch16_224.safetensors",
        img_size=96,
        limit=40,
        mean=0.5,
        std=0.5,
    )
    assert sum(p.numel() for p in model.parameters()) > 5_000_000
    assert (model.head.out_features, model.pos_embed.shape[1]) == (10, 37)
    assert images.labels.count(3) == 4 and images[0][0].shape == (3, 96, 96)
    short = QUICK.model_copy(update={"steps": 8, "held_out": 0.0, "log_every": 2})
    report = secateur.train(model, images, settings=short).report
    assert report.history[-1]["loss"] < report.history[0]["loss"]
