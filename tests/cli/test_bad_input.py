"""Wrong input ends with exit code 2 and one sentence, before the pass over the images."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateur.storage import save as saving
from tests.cli.conftest import Ended, Run

pytestmark = pytest.mark.usefixtures("no_pass")

Write = Callable[[Callable[[dict[str, Tensor]], object]], Path]


def refused(ended: Ended, *words: str) -> None:
    assert ended.code == 2, ended.err
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1, "one line"
    assert ended.err.rstrip()[-1] in ".?", "a sentence"
    for word in words:
        assert word in ended.err


def prune(run: Run, out: Path, *more: object, model: str = "digits_vit") -> Ended:
    """A run that is right but for what the test adds; later options win."""
    right = ["--data", "digits/train", "--limit", "32", "--budget", "50% macs", "--out", out]
    return run("prune", model, *right, "--preset", "energy", "--json", *more)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budget", "50% mac"], ["50% mac", "did you mean 'macs'?"]),
        (["--runtime", "egger"], ["'egger'", "did you mean 'eager'?"]),
        (["--latency-batch", "0"], ["batch", "at least 1"]),
        (["--budget", "1% macs"], ["1% macs", "out of reach", "smallest reachable is 18.9% macs"]),
        (["--budget", "drop 9 mlp"], ["drop 9", "'mlp'", "the model has 6", "drop fewer"]),
        (["--budget", "50% width"], ["width"]),
        (["--preset", "enrgy"], ["preset", "'enrgy'", "did you mean 'energy'?"]),
        (["--preset", "none.yaml"], ["none.yaml", "cannot be read"]),
        (["--groups", "hidden,heds"], ["'heds'", "did you mean 'heads'?"]),
        (["--groups", ","], ["no group"]),
        (["--budget", "50% qk", "--groups", "hidden"], ["qk", "--groups"]),
        (["--protect", "blocks.17"], ["'blocks.17'", "blocks.0.attn"]),
        (["--repair", "leastsquares"], ["repair", "did you mean 'least_squares'?"]),
        (["--allocation", "even"], ["allocation 'even'", "uniform, ranking"]),
        (["--align", "hidden"], ["--align hidden", "hidden=32"]),
        (["--align", "hidden=0"], ["hidden=0", "at least 1"]),
        (["--min-width", "hiden=16"], ["'hiden'", "did you mean 'hidden'?"]),
        (["--limit", "-3"], ["limit", "-3"]),
        (["--batch-size", "0"], ["batch size", "0"]),
        (["--threads", "0"], ["--threads", "0"]),
        (["--data", "nowhere"], ["'nowhere'", "no such file or folder"]),
        (["--eval-data", "nowhere"], ["'nowhere'", "no such file or folder"]),
        (["--mean", "half"], ["--mean half", "0.5"]),
        (["--mean", "0.1,0.2"], ["2 values for 1 channels"]),
        (["--std", "0"], ["std must be positive"]),
        (["--crop-pct", "7"], ["crop_pct", "7"]),
        (["--interpolation", "cubist"], ["'cubist'", "bicubic"]),
        (["--checkpoint", "none.safetensors"], ["none.safetensors", "no checkpoint file"]),
        (["--num-classes", "3"], ["num_classes"]),
        (["--recipe", "deit_tiny_snp_0.6g"], ["either a budget or a recipe"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_prune_refuses(run: Run, tmp_path: Path, more: list[str], words: list[str]) -> None:
    refused(prune(run, tmp_path / "out", *more), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("digit_vit", ["'digit_vit'", "digits_vit"]),
        ("tim:vit_tiny_patch16_224", ["'tim:'", "timm:NAME"]),
        ("timm:vit_tny_patch16_224", ["did you mean 'vit_tiny_patch16_224'"]),
        ("somewhere/small", ["somewhere/small", "no directory"]),
    ],
)
def test_every_verb_refuses_unknown_models(
    run: Run, tmp_path: Path, model: str, words: list[str]
) -> None:
    refused(prune(run, tmp_path / "out", model=model), *words)
    refused(run("inspect", model), *words)
    refused(run("evaluate", model, "--data", "digits"), *words)
    refused(run("bench", model), *words)
    refused(run("export", model, "--to", "onnx", "--out", tmp_path / "a.onnx"), *words)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--effort", "ful"], ["effort 'ful'", "did you mean 'full'?"]),
        (["--runtime", "egger"], ["'egger'", "did you mean 'eager'?"]),
        (["--latency-batch", "0"], ["batch", "at least 1"]),
        (["--data", "nowhere"], ["'nowhere'", "no such file or folder"]),
        (["--limit", "-3"], ["limit", "-3"]),
        (["--tolerance", "-1"], ["tolerance", "-1"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_analyze_refuses(run: Run, tmp_path: Path, more: list[str], words: list[str]) -> None:
    out = tmp_path / "out"
    right = ["--data", "digits/train", "--limit", "32", "--out", out, "--json"]
    refused(run("analyze", "digits_vit", *right, *more), *words)
    assert not out.exists()


def test_analyze_refuses_a_foreign_directory(run: Run, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    found = run("analyze", "digits_vit", "--data", "digits", "--out", tmp_path)
    refused(found, "diary.txt", "another output directory")
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--metrics", "kn"], ["metric 'kn'", "did you mean 'knn'?"]),
        (["--metrics", "knn"], ["'knn'", "--train-data"]),
        (["--metrics", "features"], ["'features'", "--reference"]),
        (["--metrics", "knn", "--train-data", "nowhere"], ["'nowhere'"]),
        (["--features-only"], ["no accuracy", "--metrics"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_evaluate_refuses(run: Run, more: list[str], words: list[str]) -> None:
    refused(run("evaluate", "digits_vit", "--data", "digits", "--json", *more), *words)


def test_inspect_refuses(run: Run) -> None:
    refused(run("inspect", "digits_vit", "--latency", "--runtime", "egger"), "did you mean 'eager'")
    refused(run("inspect", "digits_vit", "--latency-batch", "0"), "at least 1")


def test_a_model_of_no_known_family(run: Run) -> None:
    refused(run("inspect", "timm:resnet18"), "ResNet", "known families", "VisionTransformer")


def test_a_name_on_the_hub_without_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_models = "secateur.storage.libraries.timm_models"
    monkeypatch.setattr(f"{timm_models}.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(f"{timm_models}.hub_is_out_of_reach", lambda: "HF_HUB_OFFLINE is set")
    found = run("evaluate", "timm:vit_tiny_patch16_224", "--data", "digits")
    refused(found, "vit_tiny_patch16_224", "HF_HUB_OFFLINE is set", "--checkpoint FILE")


def test_an_empty_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(prune(run, tmp_path / "out", "--data", tmp_path / "empty"), "no images", "empty")


def test_a_corrupt_image_is_named(run: Run, tmp_path: Path, digits_folder: Path) -> None:
    (digits_folder / "7" / "0.png").write_bytes(b"not an image")
    for option in ("--data", "--eval-data"):
        found = prune(run, tmp_path / "out", option, digits_folder)
        refused(found, "1 of 30 images", "7/0.png", "--skip-unreadable")
    found = run("evaluate", "digits_vit", "--data", digits_folder)
    refused(found, "7/0.png", "--skip-unreadable")


def test_classes_that_do_not_match_the_head(run: Run, tmp_path: Path, digits_folder: Path) -> None:
    for name in ("0.png", "1.png", "2.png"):
        (digits_folder / "9" / name).unlink()
    (digits_folder / "9").rmdir()
    refused(
        prune(run, tmp_path / "out", "--eval-data", digits_folder),
        "9 classes",
        "the head has 10 outputs",
    )
    # Calibration needs no labels: it goes on to the pass over the images, which is barred here.
    found = prune(run, tmp_path / "out", "--data", digits_folder)
    assert "labels of" in found.err and "not used: " in found.err
    assert "a pass over the images began" in found.err


def test_checkpoints_that_do_not_fit(run: Run, tmp_path: Path, write_checkpoint: Write) -> None:
    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors["blocks.0.mlp.fc1.weight"] = torch.zeros(100, 64)

    found = prune(run, tmp_path / "out", "--checkpoint", write_checkpoint(narrow))
    refused(found, "changed.safetensors does not fit", "blocks.0.mlp.fc1.weight", "(100, 64)")

    def other_head(tensors: dict[str, Tensor]) -> None:
        tensors["head.weight"] = torch.zeros(7, 64)

    found = prune(run, tmp_path / "out", "--checkpoint", write_checkpoint(other_head))
    refused(found, "a head for 7 classes", "10")


def test_weights_that_are_not_numbers(run: Run, tmp_path: Path, write_checkpoint: Write) -> None:
    file = write_checkpoint(lambda tensors: tensors["blocks.1.attn.qkv.weight"].fill_(torch.nan))
    found = prune(run, tmp_path / "out", "--checkpoint", file)
    refused(found, "changed.safetensors", "blocks.1.attn.qkv.weight", "NaN")


def test_places_that_are_not_ours(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refused(prune(run, tmp_path / "mine"), "mine", "not written by secateur", "another")
    refused(run("demo", "--out", tmp_path / "mine"), "mine", "not written by secateur")
    refused(prune(run, tmp_path / "mine" / "letter.txt"), "letter.txt", "no directory")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="may write everywhere")
def test_no_permission_to_write(run: Run, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(prune(run, tmp_path / "locked" / "out"), "locked", "permission denied")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_place_that_takes_no_files(run: Run) -> None:
    refused(prune(run, Path("/proc/out")), "cannot write to /proc", "another")


def test_measuring_and_exporting_refuse(run: Run, tmp_path: Path, pruned_once: Path) -> None:
    refused(run("bench", "digits_vit", "--runtime", "egger"), "'egger'", "did you mean 'eager'?")
    refused(run("bench", "digits_vit", "--batch-size", "1,x"), "--batch-size 1,x", "1,8")
    refused(run("bench", "digits_vit", "digits_vit"), "digits_vit is named twice")
    refused(run("bench", "digits_vit", "timm:vit_tiny_patch16_224"), "1×8×8", "3×224×224")
    refused(run("export", pruned_once, "--to", "onxx", "--out", tmp_path / "a"), "'onxx'", "onnx")
    refused(run("export", pruned_once, "--to", "onnx", "--out", tmp_path / "a.pt"), "'.onnx'")
    found = run("evaluate", pruned_once, "--data", "digits", "--reference-checkpoint", "a.pth")
    refused(found, "--reference-checkpoint", "--reference")
    found = run("evaluate", pruned_once, "--data", "digits", "--checkpoint", "a.pth")
    refused(found, "already has its weights", "checkpoint")


def test_misspelt_options_and_missing_ones(run: Run) -> None:
    for arguments in (["prune", "digits_vit"], ["evaluate", "digits_vit", "--dta", "digits"]):
        found = run(*arguments)
        assert (found.code, found.out) == (2, "")
        assert "--data" in found.err


class TestWhileSaving:
    """The pass has been; what fails now must leave nothing behind."""

    @pytest.fixture
    def no_pass(self) -> None:
        """Let the pass over the images happen."""

    def test_a_full_disk(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_space(tensors: object, path: Path, metadata: object) -> None:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(saving, "save_file", no_space)
        found = prune(run, tmp_path / "out", "--no-latency")
        refused(found, "the disk is full", "nothing was written")
        assert list(tmp_path.iterdir()) == []
