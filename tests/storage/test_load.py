"""Every source and checkpoint that `load` takes, and a sentence for each that it does not."""

import argparse
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.errors import UserError
from secateur.storage import network
from secateur.storage.identify import base_of
from secateur.storage.libraries import timm_models
from secateur.storage.load import load
from tests.storage.tiny import images

NAME = "test_vit"
"""timm's smallest registered vision transformer."""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=7, img_size=32).eval()


@pytest.fixture
def checkpoint(model: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


def _load(checkpoint: Path | None = None, **options: object) -> nn.Module:
    options = {"num_classes": 7, "img_size": 32, **options}
    return load(f"timm:{NAME}", checkpoint=checkpoint, **options)  # type: ignore[arg-type]


def _sentence(*args: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load(*args, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_feature_extractor_takes_a_checkpoint_with_a_head(
    model: nn.Module, checkpoint: Path
) -> None:
    loaded = _load(checkpoint, num_classes=0)
    x = images(model)
    features = model.forward_head(model.forward_features(x), pre_logits=True)  # type: ignore[operator]
    assert torch.equal(loaded(x), features)
    assert base_of(loaded).arguments["num_classes"] == 0


def test_safetensors(model: nn.Module, checkpoint: Path) -> None:
    loaded = _load(checkpoint)
    x = images(model)
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    base = base_of(loaded)
    assert (base.library, base.name) == ("timm", "test_vit.r160_in1k")
    assert base.arguments == {"num_classes": 7, "img_size": 32}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "args": argparse.Namespace(lr=1e-3)},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"_orig_mod.{name}": t for name, t in state.items()}},
        lambda state: {"model": {n: t + 1 for n, t in state.items()}, "state_dict_ema": state},
    ],
)
def test_torch_checkpoints(model: nn.Module, tmp_path: Path, suffix: str, wrap) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(model.state_dict()), path)
    x = images(model)
    assert torch.equal(_load(path)(x), model(x))


def test_half_precision_weights_are_loaded_in_full(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: t.half() for name, t in model.state_dict().items()}, path)
    loaded = _load(path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.head.weight, model.head.weight.half().float())


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_modules_and_code_are_refused(model: nn.Module, tmp_path: Path) -> None:
    path, marker = tmp_path / "model.pth", tmp_path / "exploded"
    for content in (model, {"state_dict": model.state_dict(), "hook": _Bomb(marker)}):
        torch.save(content, path)
        assert "Python objects besides tensors" in _sentence(f"timm:{NAME}", checkpoint=path)
    path.write_bytes(pickle.dumps(_Bomb(marker)))
    assert str(path) in _sentence(f"timm:{NAME}", checkpoint=path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the bomb must be a real one"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"PK\x03\x04broken"])
def test_damaged_checkpoints(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert _sentence(f"timm:{NAME}", checkpoint=path).startswith(str(path))


def test_checkpoints_that_are_no_weights(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for content in ([1, 2], torch.zeros(3), {"a": 1}, {"state_dict": [1]}, {}):
        torch.save(content, path)
        assert _sentence(f"timm:{NAME}", checkpoint=path).startswith(str(path))
    missing = tmp_path / "missing.safetensors"
    assert "no checkpoint file" in _sentence(f"timm:{NAME}", checkpoint=missing)
    other = tmp_path / "weights.npz"
    other.write_bytes(b"x")
    assert ".safetensors, .pth" in _sentence(f"timm:{NAME}", checkpoint=other)


def test_missing_unexpected_and_mismatching_keys_are_named(
    model: nn.Module, tmp_path: Path
) -> None:
    state = dict(model.state_dict())
    state["extra.weight"] = torch.zeros(1)
    for name in [name for name in state if name.startswith("blocks.5.")]:
        del state[name]
    state["norm.bias"] = torch.zeros(5)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    text = _sentence(f"timm:{NAME}", checkpoint=path, num_classes=7, img_size=32)
    assert f"{path} does not fit timm:{NAME}" in text
    assert "missing blocks.5.norm1.weight, blocks.5.norm1.bias" in text
    assert "and 9 more" in text
    assert "unexpected extra.weight" in text
    assert f"norm.bias is (5,) instead of ({model.embed_dim},)" in text


def test_other_image_size(checkpoint: Path) -> None:
    text = _sentence(f"timm:{NAME}", checkpoint=checkpoint, num_classes=7)
    assert "pos_embed is" in text and "--img-size" in text


@pytest.mark.parametrize(("given", "shown"), [(None, "1000"), (5, "5")])
def test_other_classes(checkpoint: Path, given: int | None, shown: str) -> None:
    text = _sentence(f"timm:{NAME}", checkpoint=checkpoint, img_size=32, num_classes=given)
    assert f"head for 7 classes, but timm:{NAME} was built for {shown}" in text
    assert "--num-classes 7" in text


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite(model: nn.Module, tmp_path: Path, value: float) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["blocks.1.mlp.fc1.bias"][2] = value
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    text = _sentence(f"timm:{NAME}", checkpoint=path, num_classes=7, img_size=32)
    assert "'blocks.1.mlp.fc1.bias' has NaN or infinite values (1 of" in text


def test_without_pretrained_weights() -> None:
    loaded = _load(pretrained=False)
    assert loaded.head.out_features == 7
    assert loaded.patch_embed.img_size == (32, 32)


def test_pretrained_and_checkpoint_exclude_each_other(checkpoint: Path) -> None:
    assert "not both" in _sentence(f"timm:{NAME}", checkpoint=checkpoint, pretrained=True)


def test_offline_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models, "hub_is_out_of_reach", lambda: "the hub cannot be reached")
    monkeypatch.setattr(timm_models, "try_to_load_from_cache", lambda *args: None)
    text = _sentence(f"timm:{NAME}")
    assert "the hub cannot be reached" in text and "--checkpoint" in text


def test_failing_download(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def fail(name: str, *, pretrained: bool, **arguments: object) -> nn.Module:
        if pretrained:
            raise OSError("connection reset\nby peer")
        return create(name, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(timm_models, "hub_is_out_of_reach", lambda: None)
    monkeypatch.setattr(timm_models.timm, "create_model", fail)
    text = _sentence(f"timm:{NAME}")
    assert "connection reset" in text and "--checkpoint" in text


def test_weights_found_online_or_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module
) -> None:
    """timm's own loader is asked for them, with nothing but the name."""
    asked = []

    def create(name: str, *, pretrained: bool, **arguments: object) -> nn.Module:
        asked.append((name, pretrained, arguments))
        return build(name, pretrained_cfg_overlay={"num_classes": 7}, img_size=32)

    build = timm.create_model
    monkeypatch.setattr(timm_models, "hub_is_out_of_reach", lambda: None)
    monkeypatch.setattr(timm_models.timm, "create_model", create)
    monkeypatch.setattr("secateur.storage.load.identify", lambda model, **options: "the base")
    loaded = load(f"timm:{NAME}")
    assert asked == [(NAME, True, {})]
    assert loaded.secateur_base == "the base"


def test_an_untrained_head_is_refused() -> None:
    assert "have 1000 classes, not 7" in _sentence(f"timm:{NAME}", num_classes=7)


def test_local_directory_of_timm(model: nn.Module, tmp_path: Path) -> None:
    timm.models.save_for_hf(
        model, tmp_path / "mine", model_args={"img_size": 32}, safe_serialization=True
    )
    x = images(model)
    loaded = load(f"timm:local-dir:{tmp_path / 'mine'}")
    assert torch.equal(loaded(x), model(x))
    base = base_of(loaded)
    assert (base.library, base.name) == ("timm", "test_vit.r160_in1k")
    assert base.arguments["num_classes"] == 7
    assert base.arguments["img_size"] == [32, 32]
    assert "no config.json" in _sentence(f"timm:local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("timm:test_vti", "did you mean 'test_vit"),
        ("timm:zzzzzz", "timm.list_models"),
        ("timm:test_vit.nope", "known: test_vit.r160_in1k"),
        ("timn:test_vit", "unknown prefix 'timn:'"),
        ("test_vit", "did you mean 'timm:test_vit'?"),
        ("zoo:digit_vit", "did you mean 'digits_vit'?"),
        ("digits_vitt", "did you mean 'digits_vit'?"),
        ("timm-class:VisionTransformer", "unknown prefix"),
        ("timm:", "no model is called 'timm:'"),
        ("nowhere/at/all", "there is no directory"),
    ],
)
def test_unknown_names(source: str, words: str) -> None:
    assert words in _sentence(source)


def test_prefixes_are_listed() -> None:
    text = _sentence("nonsense")
    for prefix in ("timm:NAME", "hf:NAME_OR_DIR", "torchvision:NAME", "digits_vit", "hub:"):
        assert prefix in text


def test_paths(checkpoint: Path) -> None:
    assert "as in timm:NAME --checkpoint" in _sentence(checkpoint)
    assert "it has no spec.json" in _sentence(checkpoint.parent)
    assert "it has no spec.json" in _sentence(str(checkpoint.parent))


def test_a_module_is_returned_in_eval_mode(model: nn.Module) -> None:
    assert load(model.train()) is model
    assert not model.training
    assert "leave out num_classes" in _sentence(model, num_classes=3)


def test_a_saved_directory_takes_no_options(saved: Path) -> None:
    assert "leave out checkpoint" in _sentence(saved, checkpoint="x.pth")
    assert "leave out pretrained" in _sentence(str(saved), pretrained=True)


def test_devices() -> None:
    assert "device 'abacus' cannot be used" in _sentence(f"timm:{NAME}", device="abacus")
    loaded = _load(pretrained=False, device="meta")
    assert loaded.head.weight.is_meta


def test_bundled_model() -> None:
    model = load("digits_vit")
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert (model.secateur_base.library, model.secateur_base.name) == ("zoo", "digits_vit")
    assert model.secateur_base.preprocessing.input_size == (1, 8, 8)
    again = load("zoo:digits_vit")
    assert torch.equal(again.head.weight, model.head.weight)
    assert "leave out num_classes" in _sentence("digits_vit", num_classes=3)


def test_real_checkpoint(shared_dir: Path) -> None:
    name = "vit_tiny_patch16_224"
    model = load(f"timm:{name}", checkpoint=shared_dir / "models" / f"{name}.safetensors")
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_717_416
    assert base_of(model).arguments == {"num_classes": 1000}


def test_reach_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_host(*args: object) -> None:
        raise OSError

    monkeypatch.setattr(network.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network, "getproxies", dict)
    monkeypatch.setattr(network.socket, "getaddrinfo", unknown_host)
    assert "cannot be reached" in str(network.hub_is_out_of_reach())
    monkeypatch.setattr(network, "getproxies", lambda: {"https": "http://proxy"})
    assert network.hub_is_out_of_reach() is None
    monkeypatch.setattr(network.constants, "HF_HUB_OFFLINE", True)
    assert network.hub_is_out_of_reach() == "HF_HUB_OFFLINE is set"
