"""The checkpoint file: any tree of plain data and tensors, or a sentence about the damage."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.errors import UserError
from secateur.training.checkpoint import FILE, read, write


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
