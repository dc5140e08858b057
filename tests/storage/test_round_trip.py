"""Save → load in a fresh process gives the same outputs, for every host and kind of change."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.data.preprocessing import Preprocessing
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.storage.save import save
from secateur.storage.spec import read_spec
from tests.storage.tiny import HOSTS, SIZES, add_writer_biases_, host, images, shrink_

LOAD_ALL = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from secateur.storage.load import load

inputs, outputs = load_file(sys.argv[1]), {}
with torch.inference_mode():
    for name, x in inputs.items():
        outputs[name] = load(Path(sys.argv[2]) / name)(x)
save_file(outputs, sys.argv[3])
"""


def _save(model: nn.Module, folder: Path) -> None:
    save(model, folder, base=model.base, provenance={}, results={})


def _cut(name: str) -> nn.Module:
    dense = host(name)
    base = base_of(dense)
    model = add_writer_biases_(shrink_(dense))
    model.__dict__["base"] = base
    return model


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    """Outputs of each saved model (before, after a fresh process loaded it)."""
    folder = tmp_path_factory.mktemp("models")
    inputs, before = {}, {}
    for name in HOSTS:
        model = _cut(name)
        inputs[name] = images(model)
        with torch.inference_mode():
            before[name] = model(inputs[name]).clone()
        _save(model, folder / name)
    save_file(inputs, folder / "inputs.safetensors")
    command = [sys.executable, "-c", LOAD_ALL, "inputs.safetensors", ".", "outputs.safetensors"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    after = load_file(folder / "outputs.safetensors")
    return {name: (before[name], after[name]) for name in HOSTS}


@pytest.mark.parametrize("name", HOSTS)
def test_fresh_process_gives_the_same_outputs(
    name: str, again: dict[str, tuple[Tensor, Tensor]]
) -> None:
    before, after = again[name]
    assert before.std() > 0.1
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_spec_says_what_was_cut(tmp_path: Path) -> None:
    _save(_cut("no_writer_bias"), tmp_path / "small")
    spec = json.loads((tmp_path / "small" / "spec.json").read_text())
    assert spec["format"] == 1
    assert spec["base"]["library"] == "timm"
    assert spec["base"]["arguments"] == {**SIZES, "proj_bias": False}
    assert spec["shapes"] == {
        "blocks.0.attn": {"heads": 3, "qk": 4, "vo": 6},
        "blocks.0.mlp": {"hidden": 20},
        "blocks.1.attn": None,
        "blocks.1.mlp": {"hidden": 21},
        "blocks.2.attn": {"heads": 3, "qk": 6, "vo": 6},
        "blocks.2.mlp": None,
        "blocks.3.attn": None,
        "blocks.3.mlp": None,
    }
    assert spec["added_biases"] == [
        "blocks.0.attn.proj",
        "blocks.0.mlp.fc2",
        "blocks.1.mlp.fc2",
        "blocks.2.attn.proj",
    ]


def test_an_unpruned_model_comes_back(tmp_path: Path) -> None:
    model = host("vit")
    save(model, tmp_path / "dense", base=base_of(model), provenance={}, results={})
    x = images(model)
    assert torch.equal(load(tmp_path / "dense")(x), model(x))


def test_saving_a_loaded_model_again(tmp_path: Path) -> None:
    _save(_cut("deit_distilled"), tmp_path / "one")
    first = load(tmp_path / "one")
    save(first, tmp_path / "two", base=base_of(first), provenance={}, results={})
    x = images(first)
    assert torch.equal(load(str(tmp_path / "two"))(x), first(x))
    one, two = (read_spec(tmp_path / folder) for folder in ("one", "two"))
    assert one == two


def test_a_loaded_model_can_be_trained_and_saved_in_its_own_place(tmp_path: Path) -> None:
    out = tmp_path / "small"
    _save(_cut("vit"), out)
    model = load(out)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    x = images(model)
    model(x).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    save(model, out, base=base_of(model), provenance={}, results={}, overwrite=True)
    assert torch.equal(load(out)(x), model(x))


def test_the_bundled_model(tmp_path: Path) -> None:
    model = load("digits_vit")
    x = images(model)
    save(shrink_(model), tmp_path / "small", base=base_of(model), provenance={}, results={})
    assert read_spec(tmp_path / "small").base.library == "zoo"
    assert torch.equal(load(tmp_path / "small")(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types(dtype: torch.dtype, tmp_path: Path) -> None:
    model = _cut("vit").to(dtype)
    _save(model, tmp_path / "small")
    again = load(tmp_path / "small")
    assert {p.dtype for p in again.parameters()} == {dtype}
    dense, loaded = model.state_dict(), again.state_dict()
    assert dense.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], dense[name]) for name in dense)
    # WHY not bit by bit: where tensors lie in memory decides which kernels some machines take.
    x = images(model).to(dtype)
    torch.testing.assert_close(again(x), model(x))


def test_preprocessing_travels(tmp_path: Path) -> None:
    model = host("vit")
    base = base_of(model)
    base = replace(base, preprocessing=base.preprocessing.override(mean=0.25, std=0.125))
    save(model, tmp_path / "dense", base=base, provenance={}, results={})
    again = load(tmp_path / "dense")
    assert Preprocessing.of(again) == base.preprocessing
    assert base_of(again) == base
    assert base.preprocessing.mean == (0.25, 0.25, 0.25)
