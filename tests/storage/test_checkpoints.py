"""Checkpoints as training scripts leave them, and files that are none."""

import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import Advice, UserError
from secateur.storage.adapt import load_to_train
from secateur.storage.load import load
from secateur.storage.untrusted.checkpoints import read_checkpoint
from tests.storage.tiny import images

NAME = "test_vit"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=7, img_size=32).eval()


def _load(path: Path) -> nn.Module:
    return load(f"timm:{NAME}", checkpoint=path, num_classes=7, img_size=32)


def _refused(path: Path, *words: str) -> None:
    for attempt in (
        lambda: _load(path),
        lambda: load_to_train(f"timm:{NAME}", checkpoint=path, num_classes=7, img_size=32),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(caught.value).startswith(str(path))
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth.tar", ".pth"])
@pytest.mark.parametrize(
    "prefix",
    ["model.", "module.", "backbone.", "_orig_mod.", "_forward_module.", "module._orig_mod.model."],
)
@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model", "model_ema"])
def test_wrapped_weights_are_found(
    model: nn.Module, tmp_path: Path, suffix: str, prefix: str, entry: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({entry: state, "epoch": 3, "optimizer": {"state": {}, "lr": 0.1}}, path)
    x = images(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        assert torch.equal(_load(path)(x), model(x))


def test_averaged_models_of_torch(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), path)
    x = images(model)
    assert torch.equal(_load(path)(x), model(x))


def test_files_of_old_versions_of_torch(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth.tar"
    state = {"state_dict": model.state_dict()}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    x = images(model)
    assert torch.equal(_load(path)(x), model(x))


@pytest.mark.parametrize(
    ("taken", "left", "words"),
    [
        ("state_dict_ema", "state_dict", "took the averaged weights 'state_dict_ema'"),
        ("model_ema", "model", "took the averaged weights 'model_ema'"),
        ("state_dict", "model", "took the weights 'state_dict'"),
    ],
)
def test_which_of_several_was_taken_is_said(
    model: nn.Module, tmp_path: Path, taken: str, left: str, words: str
) -> None:
    path = tmp_path / "weights.pth"
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    torch.save({left: other, taken: model.state_dict()}, path)
    x = images(model)
    with pytest.warns(Advice, match=f"{words} .* holds '{left}' as well"):
        assert torch.equal(_load(path)(x), model(x))


def test_one_name_without_the_prefix_keeps_it(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file({**state, "loss.weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match="missing cls_token"):
        _load(path)


def test_prefixes_that_the_model_has_as_well_stay(tmp_path: Path) -> None:
    host = nn.ModuleDict({"backbone": nn.Linear(2, 2)})
    path = tmp_path / "weights.safetensors"
    save_file(dict(host.state_dict()), path)
    assert read_checkpoint(path, host).keys() == host.state_dict().keys()
    assert read_checkpoint(path).keys() == nn.Linear(2, 2).state_dict().keys()


def test_filters_of_timm_apply(model: nn.Module, tmp_path: Path) -> None:
    """Names as OpenAI publishes them for CLIP."""
    small = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
    host = timm.create_model("vit_base_patch16_clip_224", num_classes=0, **small).eval()
    theirs: State = {}
    for name, tensor in host.state_dict().items():
        theirs[_openai_name(name)] = _openai_shape(name, tensor)
    path = tmp_path / "weights.pth"
    torch.save(theirs, path)
    found = read_checkpoint(path, host)
    for name, tensor in host.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(found[name], tensor), name


def _openai_name(name: str) -> str:
    for ours, theirs in (
        ("patch_embed.proj.weight", "conv1.weight"),
        ("pos_embed", "positional_embedding"),
        ("cls_token", "class_embedding"),
        ("norm_pre", "ln_pre"),
        ("blocks.", "transformer.resblocks."),
        ("attn.qkv.weight", "attn.in_proj_weight"),
        ("attn.qkv.bias", "attn.in_proj_bias"),
        ("attn.proj.", "attn.out_proj."),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
    ):
        name = name.replace(ours, theirs)
    return f"visual.{'ln_post' + name[4:] if name.startswith('norm.') else name}"


def _openai_shape(name: str, tensor: Tensor) -> Tensor:
    return tensor.flatten(0, -2).squeeze(0) if name in ("pos_embed", "cls_token") else tensor


def test_nothing_is_resampled_on_the_way(model: nn.Module, tmp_path: Path) -> None:
    other = timm.create_model(NAME, num_classes=7, img_size=64)
    path = tmp_path / "weights.pth"
    torch.save(other.state_dict(), path)
    with pytest.raises(UserError, match=r"pos_embed is .*--img-size"):
        _load(path)


def _of(change: Callable[[Tensor], Any]) -> Callable[[State], dict[str, Any]]:
    return lambda state: {**state, "blocks.0.mlp.fc1.weight": change(state["head.weight"])}


KINDS: dict[str, tuple[Callable[[State], dict[str, Any]], str]] = {
    "complex": (_of(lambda t: t.to(torch.complex64)), "of type complex64"),
    "whole numbers": (_of(lambda t: t.to(torch.int8)), "of type int8"),
    "fp8": (_of(lambda t: t.to(torch.float8_e4m3fn)), "of type float8_e4m3fn"),
    "sparse": (_of(lambda t: t.to_sparse()), "is sparse"),
    "compressed": (_of(lambda t: t.to_sparse_csr()), "is sparse"),
    "quantised": (_of(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), "quantised"),
    "meta": (_of(lambda t: t.to("meta")), "has no values"),
    "expanded": (_of(lambda t: t[:1, :1].expand(2**20, 2**20)), "larger than its part"),
    "a text": (_of(lambda t: "text"), "is a str, no tensor"),
    "numbered": (lambda state: dict(enumerate(state.values())), "no plain weights: '0'"),  # type: ignore[dict-item]
    "a long name": (lambda state: {**state, "x" * 10_000: 1}, "xxx…"),
}


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*deprecated")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_other_kinds_are_refused(model: nn.Module, tmp_path: Path, kind: str) -> None:
    change, words = KINDS[kind]
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": change(dict(model.state_dict()))}, path)
    _refused(path, words)


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pth.tar", ".ckpt", ".safetensors", ".bin"])
def test_truncated_files_are_refused(
    model: nn.Module, tmp_path: Path, suffix: str, keep: float
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(dict(model.state_dict()), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=suffix != ".bin")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    _refused(path, "damaged")


def test_exploding_archives_are_refused(model: nn.Module, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "weights.pth"
    torch.save(model.state_dict(), whole)
    with (
        zipfile.ZipFile(whole) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        for part in old.infolist():
            content = old.read(part)
            new.writestr(part.filename, bytes(2**27) if "data/0" in part.filename else content)
    assert path.stat().st_size < 2**21
    _refused(path, "unpacks to more than its own size")


def test_pickles_that_ask_for_memory_are_refused(tmp_path: Path) -> None:
    """bytearray(2**40), which torch's reader would allow."""
    size = b"\x8a\x06" + struct.pack("<q", 2**40)[:6]
    bomb = b"\x80\x02}X\x01\x00\x00\x00ac__builtin__\nbytearray\n" + size + b"\x85Rs."
    path = tmp_path / "weights.bin"
    path.write_bytes(bomb)
    _refused(path, "damaged or of another kind")


def test_a_large_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.write((84 * 10**6).to_bytes(8, "little"))
        file.truncate(84 * 10**6 + 8)
    _refused(path, "damaged or of another kind")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    for name in ("weights.tar", "weights.npz", "weights"):
        (tmp_path / name).write_bytes(b"x")
        _refused(tmp_path / name, "known endings are .safetensors, .pth")
