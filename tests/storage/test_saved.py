"""A damaged, foreign or hostile directory is refused by name, and nothing in it is run."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.errors import UserError
from secateur.storage.load import load
from secateur.storage.saved import load_saved

Edit = Callable[[Callable[[dict[str, Any]], object]], None]


def _refused(saved: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(saved)
    sentence = str(caught.value)
    assert str(saved) in sentence
    for word in words:
        assert word in sentence, sentence


def _put_weights(saved: Path, edit: Edit, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights, with size and hash that agree."""
    path = saved / "model.safetensors"
    path.unlink()
    save_file(tensors, path)
    weights = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    edit(lambda spec: spec["weights"].update(weights))


def test_the_undamaged_copy_loads(saved: Path) -> None:
    model = load(saved)
    assert model.secateur_spec.provenance == {"preset": "spectral"}
    assert model.secateur_base.library == "timm"


def test_one_changed_byte(saved: Path) -> None:
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    _refused(saved, "model.safetensors", "SHA-256")


def test_truncated_weights(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    _refused(saved, "model.safetensors", "truncated")


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors"])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    _refused(saved, name)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0])
def test_unknown_format_version(saved: Path, edit: Edit, version: object) -> None:
    edit(lambda spec: spec.update(format=version))
    _refused(saved, "format version", "reads version 1")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"format": 1', "null", "\udcff"], ids=str.__len__
)
def test_unreadable_spec(saved: Path, text: str) -> None:
    (saved / "spec.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    _refused(saved, "spec.json")


def test_huge_spec_is_not_read(saved: Path) -> None:
    with (saved / "spec.json").open("r+b") as file:
        file.truncate(9 * 2**20)
    _refused(saved, "larger than")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda spec: spec.pop("base"), "base"),
        (lambda spec: spec.update(hook="import os"), "hook"),
        (lambda spec: spec["base"].update(module="os"), "module"),
        (lambda spec: spec["shapes"].update({"blocks.0.mlp": {"hidden": 0}}), "hidden"),
        (lambda spec: spec["shapes"].update({"blocks.0.mlp": {"hidden": 2.5}}), "hidden"),
        (lambda spec: spec["shapes"].update({"blocks.0.mlp": {"hidden": "20"}}), "hidden"),
        (lambda spec: spec["fingerprint"].update(input_size=[3, 10**6, 10**6]), "input_size"),
        (lambda spec: spec["fingerprint"].update(logits=[[1.0]]), "logits"),
        (lambda spec: spec["weights"].update(dtype="object"), "dtype"),
    ],
)
def test_spec_that_does_not_validate(
    saved: Path, edit: Edit, change: Callable[[dict[str, Any]], object], word: str
) -> None:
    edit(change)
    _refused(saved, "spec.json", "not valid", word)


@pytest.mark.parametrize(
    ("base", "word"),
    [
        ({"library": "os", "name": "system"}, "unknown model library 'os'"),
        ({"library": "timm", "name": "no_such_model"}, "unknown timm model"),
        ({"library": "timm", "name": "hf_hub:evil/model"}, "base.name"),
        ({"library": "timm", "name": "local-dir:/tmp"}, "base.name"),
        ({"library": "timm", "name": "../../etc/passwd"}, "base.name"),
        ({"arguments": {"checkpoint_path": "evil.pth"}}, "checkpoint_path"),
        ({"arguments": {"pretrained": True}}, "pretrained"),
        ({"arguments": {"pretrained_cfg": "evil"}}, "pretrained_cfg"),
        ({"arguments": {"cache_dir": "/tmp"}}, "cache_dir"),
        ({"arguments": {"features_only": True}}, "features_only"),
        ({"arguments": {"pretrained_cfg_overlay": {"file": "evil.pth"}}}, "neither a scalar"),
        ({"arguments": {"block_fn": "os.system"}}, "cannot build"),
        ({"arguments": {"norm_layer": "os.system"}}, "cannot build"),
        ({"arguments": {"depth": -1}}, "rebuilt"),
        ({"arguments": {"depth": 2**31}}, "out of bounds"),
        ({"arguments": {"depth": 100_000}}, "the shapes of 8 branches"),
        ({"arguments": {"embed_dim": 2**40}}, "out of bounds"),
        ({"arguments": {"mlp_ratio": 1e300}}, "out of bounds"),
        ({"arguments": {"img_size": [16] * 5_000}}, "out of bounds"),
        ({"arguments": {"num_heads": True}}, "'num_heads' of the base model is True"),
        ({"arguments": {"img_size": [True, 16]}}, "no truth value"),
        ({"arguments": {"qkv_bias": 3}}, "not true or false"),
        ({"arguments": {"patch_size": 0}}, "cannot build"),
        ({"name": "vit_tiny" * 20}, "unknown timm model"),
        ({"name": "v" * 10**6}, "base.name"),
        (
            {
                "library": "timm-class",
                "name": "VisionTransformer",
                "arguments": {"num_heads": True},
            },
            "'num_heads' of the base model is True",
        ),
        (
            {"library": "torchvision", "name": "vit_b_16", "arguments": {"image_size": True}},
            "no whole number",
        ),
        (
            {"library": "hf", "name": "timm_wrapper", "arguments": {"architecture": "x"}},
            "'timm_wrapper' is no model type",
        ),
        ({"library": "hf", "name": "timm_backbone"}, "'timm_backbone' is no model type"),
        (
            {"library": "hf", "name": "vit", "arguments": {"use_timm_backbone": True}},
            "'use_timm_backbone' is no setting",
        ),
        (
            {"library": "hf", "name": "vit", "arguments": {"backbone": "resnet50"}},
            "'backbone' is no setting",
        ),
        ({"library": "timm-class", "name": "os.system"}, "unknown class 'os.system'"),
        (
            {"library": "timm-class", "name": "VisionTransformer", "arguments": {"device": "cpu"}},
            "'device' is no argument",
        ),
        (
            {
                "library": "timm-class",
                "name": "VisionTransformer",
                "arguments": {"mlp_layer": "subprocess.Popen"},
            },
            "unknown mlp_layer",
        ),
        ({"preprocessing": {"mean": "evil"}}, "preprocessing"),
    ],
)
def test_base_that_could_reach_further_than_sizes(
    saved: Path, edit: Edit, base: dict[str, object], word: str
) -> None:
    edit(lambda spec: spec["base"].update(base))
    _refused(saved, word)


def test_more_shapes_than_any_model_has(saved: Path, edit: Edit) -> None:
    edit(lambda spec: spec["shapes"].update({f"blocks.{i}.mlp": None for i in range(20_000)}))
    _refused(saved, "not valid at 'shapes'")


@pytest.mark.parametrize("arguments", [{}, {"dynamic_img_size": True}])
def test_a_fingerprint_of_larger_images(
    saved: Path, edit: Edit, arguments: dict[str, object]
) -> None:
    edit(lambda spec: spec["base"]["arguments"].update(arguments))
    edit(lambda spec: spec["fingerprint"].update(input_size=[3, 4096, 4096]))
    _refused(saved, "input size of its fingerprint is (3, 4096, 4096), that of the model (3, 16")


def test_a_model_of_more_tokens_than_tensors(saved: Path, edit: Edit) -> None:
    """Without a position table, no tensor says how large the images are."""
    edit(
        lambda spec: spec["base"]["arguments"].update(
            pos_embed="none", dynamic_img_size=True, img_size=[2048, 2048]
        )
    )
    edit(lambda spec: spec["fingerprint"].update(input_size=[3, 2048, 2048]))
    _refused(saved, "tokens, for which the file has no tensor")


def test_images_larger_than_any(saved: Path, edit: Edit) -> None:
    edit(lambda spec: spec["base"]["preprocessing"].update(input_size=[3, 10**6, 10**6]))
    _refused(saved, "above 4096 pixels")


@pytest.mark.parametrize(
    "change",
    [
        lambda spec, text: spec["base"]["preprocessing"].update(interpolation=text),
        lambda spec, text: spec["base"]["preprocessing"].update(crop_mode=text),
        lambda spec, text: spec["base"]["preprocessing"].update({text: 1}),
        lambda spec, text: spec["base"].update(name="vit_" + text[:196].replace("\n", "_")),
        lambda spec, text: spec["base"]["arguments"].update(global_pool=text),
        lambda spec, text: spec["shapes"].update({text: None}),
        lambda spec, text: spec.update(stand_ins=[text]),
        lambda spec, text: spec.update(widths={text: 1}),
        lambda spec, text: spec.update(added_biases=[text]),
        lambda spec, text: spec.update(held_norms={text: 1}),
        lambda spec, text: spec.update(uncentred_norms=[text]),
        lambda spec, text: spec.update({text: 1}),
    ],
)
def test_messages_quote_a_little_of_a_long_text(
    saved: Path, edit: Edit, change: Callable[[dict[str, Any], str], object]
) -> None:
    edit(lambda spec: change(spec, "word\n" * 5_000))
    with pytest.raises(UserError) as caught:
        load(saved)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("word") <= 50


def test_a_large_header(saved: Path, edit: Edit) -> None:
    """84 MB of names; without zeros on the disk."""
    path = saved / "model.safetensors"
    length = 84 * 10**6
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(length + 8)
    weights = {"bytes": length + 8, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    edit(lambda spec: spec["weights"].update(weights))
    _refused(saved, "model.safetensors", "its header has 84000000 bytes")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a": {"dtype": "F32", "shape": [4294967296, 65536], "data_offsets": [0, 4]}}', "hold"),
        (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "no list of tensors"),
        (b'{"a": 1}', "no list of tensors"),
        (b"[]", "no list of tensors"),
        (b"[" * 10**5, "no list of tensors"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 9]}}', "safetensors"),
    ],
)
def test_headers_that_lie(saved: Path, edit: Edit, header: bytes, words: str) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    weights = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    edit(lambda spec: spec["weights"].update(weights))
    _refused(saved, "no readable safetensors file", words)


@pytest.mark.parametrize("place", ["base", "provenance", "fingerprint"])
def test_a_changed_spec_shows(saved: Path, place: str) -> None:
    path = saved / "spec.json"
    spec = json.loads(path.read_text())
    changes: dict[str, Callable[[], object]] = {
        "base": lambda: spec["base"]["preprocessing"].update(mean=[0.4, 0.5, 0.5]),
        "provenance": lambda: spec["provenance"].update(preset="energy"),
        "fingerprint": lambda: spec["fingerprint"].update(tolerance=1e3),
    }
    changes[place]()
    path.write_text(json.dumps(spec))
    _refused(saved, "spec.json was changed after it was saved", "'checksum'")


def test_specs_without_a_checksum_load(saved: Path) -> None:
    """Those of earlier versions have none; order and spaces do not matter to it."""
    path = saved / "spec.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(spec.items())), indent=7))
    assert load(saved).secateur_spec.checksum == spec["checksum"]
    del spec["checksum"]
    path.write_text(json.dumps(spec))
    assert load(saved).secateur_spec.checksum is None


def test_shapes_of_other_branches(saved: Path, edit: Edit) -> None:
    edit(lambda spec: spec["shapes"].update({"blocks.9.mlp": None}))
    _refused(saved, "blocks.9.mlp")


def test_shape_of_the_wrong_kind(saved: Path, edit: Edit) -> None:
    edit(lambda spec: spec["shapes"].update({"blocks.0.mlp": {"heads": 1, "qk": 8, "vo": 8}}))
    _refused(saved, "blocks.0.mlp")


def test_shapes_that_do_not_match_the_weights(saved: Path, edit: Edit) -> None:
    edit(lambda spec: spec["shapes"].update({"blocks.0.mlp": {"hidden": 24}}))
    _refused(saved, "do not fit", "blocks.0.mlp.fc1.weight is (20, 32) instead of (24, 32)")


def test_dropped_branch_that_has_weights(saved: Path, edit: Edit) -> None:
    edit(lambda spec: spec["shapes"].update({"blocks.0.mlp": None}))
    _refused(saved, "unexpected blocks.0.mlp.fc1")


@pytest.mark.parametrize("path", ["blocks.0.mlp.fc1", "blocks.0", "nowhere", "cls_token"])
def test_added_bias_in_an_impossible_place(saved: Path, edit: Edit, path: str) -> None:
    edit(lambda spec: spec.update(added_biases=[path]))
    _refused(saved, path)


def test_missing_tensor(saved: Path, edit: Edit) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors["head.bias"]
    _put_weights(saved, edit, tensors)
    _refused(saved, "missing head.bias")


def test_other_weights_of_the_same_shapes(saved: Path, edit: Edit) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["head.bias"] = tensors["head.bias"].flip(0)
    _put_weights(saved, edit, tensors)
    _refused(saved, "does not give the outputs", "timm")


def test_weights_of_another_type(saved: Path, edit: Edit) -> None:
    tensors = {k: v.half() for k, v in load_file(saved / "model.safetensors").items()}
    _put_weights(saved, edit, tensors)
    _refused(saved, "float32")


def test_other_number_of_heads_shows_in_the_outputs(saved: Path, edit: Edit) -> None:
    """Names and shapes agree; only the fingerprint can tell."""
    before = json.loads((saved / "spec.json").read_text())["shapes"]["blocks.0.attn"]
    assert before == {"heads": 3, "qk": 4, "vo": 6}
    edit(lambda spec: spec["shapes"].update({"blocks.0.attn": {"heads": 1, "qk": 12, "vo": 18}}))
    _refused(saved, "does not give the outputs")


class _Bomb:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def test_planted_pickles_are_never_opened(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    bomb = pickle.dumps(_Bomb(marker))
    for name in ("model.pkl", "model.pth", "pytorch_model.bin", "spec.pkl", "config.json"):
        (saved / name).write_bytes(bomb)
    load_saved(saved)
    assert not marker.exists()
    pickle.loads(bomb)
    assert marker.exists(), "the bomb must be a real one"


def test_pickle_in_place_of_the_weights(saved: Path, edit: Edit, tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    path = saved / "model.safetensors"
    path.unlink()
    path.write_bytes(pickle.dumps(_Bomb(marker)))
    weights = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    edit(lambda spec: spec["weights"].update(weights))
    _refused(saved, "no readable safetensors file")
    (saved / "spec.json").write_bytes(pickle.dumps(_Bomb(marker)))
    _refused(saved, "spec.json")
    assert not marker.exists()
