"""The checkpoint file: any tree of plain data and tensors, or a sentence about the damage."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.errors import Advice, UserError
from secateur.tensorfiles import digest
from secateur.training.checkpoint import FILE, pack, read, write


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "avg": shared}, 1: {"avg": shared.T}},
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "none": None, "on": True}],
        "numbers": [0.1 + 0.2, float("inf"), 2**40],
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "empty": {},
    }
    write(tmp_path, tree)
    found = read(tmp_path)
    assert found is not None
    assert torch.equal(found["state"][0]["avg"], shared)
    assert torch.equal(found["state"][1]["avg"], shared.T)
    assert found["state"][0]["step"].shape == ()
    assert found["groups"] == tree["groups"] and found["numbers"] == tree["numbers"]
    assert isinstance(found["groups"][0]["betas"], tuple)
    assert found["bf16"].dtype == torch.bfloat16 and found["empty"] == {}


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "absent") is None


def test_objects_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a \w*Path cannot be kept in a checkpoint \(/inner\)"):
        write(tmp_path, {"inner": tmp_path})


@pytest.mark.parametrize("damage", ["cut", "foreign", "text"])
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    write(tmp_path, {"x": torch.ones(100)})
    path = tmp_path / FILE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "foreign":
        save_file({"x": torch.ones(2)}, path)
    else:
        path.write_text("hello")
    with pytest.raises(UserError, match=r"no checkpoint that this secateur can read .*remove it"):
        read(tmp_path)


def test_no_bit_of_the_file_can_change_unseen(tmp_path: Path) -> None:
    """Every byte of the numbers and of the header in turn: refused, or the very same state."""
    tree = {"x": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16), "curve": [0.5, "a"]}
    write(tmp_path, tree)
    path = tmp_path / FILE
    whole, refusals = path.read_bytes(), 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Advice)
                found = read(tmp_path)
        except UserError:
            refusals += 1
            continue
        assert found is not None and found["curve"] == tree["curve"], place
        assert torch.equal(found["x"], tree["x"]) and torch.equal(found["b"], tree["b"]), place
    # The spaces with which safetensors fills up its header may change.
    assert refusals >= len(whole) - 16


def test_checkpoints_of_earlier_versions_have_no_checksum(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps({"format": 1, "state": pack({"x": torch.ones(3)}, "", tensors)})
    save_file(tensors, tmp_path / FILE, metadata={"secateur": text})
    with pytest.warns(Advice, match=r"by an earlier version, without a checksum"):
        found = read(tmp_path)
    assert found is not None and torch.equal(found["x"], torch.ones(3))


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 3, "state": 1}', "[" * 10**5, "nonsense"])
def test_a_right_checksum_of_something_else(text: str, tmp_path: Path) -> None:
    about = {"secateur": text, "sha256": digest(text, {})}
    save_file({}, tmp_path / FILE, metadata=about)
    with pytest.raises(UserError, match=r"no checkpoint that this secateur can read"):
        read(tmp_path)


def test_a_file_without_its_checksum_is_no_earlier_one(tmp_path: Path) -> None:
    write(tmp_path, {"x": torch.ones(2)})
    text = json.dumps({"format": 2, "state": {"map": [["x", {"tensor": "/x"}]]}})
    save_file(load_file(tmp_path / FILE), tmp_path / FILE, metadata={"secateur": text})
    with pytest.raises(UserError, match=r"\(format 2\)"):
        read(tmp_path)
