"""Saving: whole or not at all, in the right places, and only what can be loaded again."""

import errno
import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import secateur.storage.save as saving
from secateur.errors import UserError
from secateur.storage.base import Base
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.storage.save import check_out, save
from tests.storage.tiny import host, images, shrink_


@pytest.fixture
def small() -> tuple[nn.Module, Base]:
    dense = host("vit")
    base = base_of(dense)
    return shrink_(dense), base


def _save(small: tuple[nn.Module, Base], out: Path, **further: object) -> None:
    options: dict[str, object] = {"provenance": {}, "results": {}, **further}
    save(small[0], out, base=small[1], **options)  # type: ignore[arg-type]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_files_and_card(small: tuple[nn.Module, Base], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "small"
    results = {
        "macs": {"dense": 1_258_000_000, "pruned": 629_000_000},
        "top1": np.float64(81.25),
        "kl": float("nan"),
    }
    provenance = {"preset": "spectral", "budget": "50% macs", "data": {"n": 512}, "at": Path("x")}
    files = {"report.html": "<p>é</p>", "raw.bin": b"\x00\xff"}
    _save(small, out, results=results, provenance=provenance, extra_files=files)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "model.safetensors", "raw.bin", "report.html", "spec.json",
    ]  # fmt: skip
    assert [p.name for p in out.parent.iterdir()] == ["small"]
    assert (out / "report.html").read_text(encoding="utf-8") == "<p>é</p>"
    assert (out / "raw.bin").read_bytes() == b"\x00\xff"
    spec = json.loads((out / "spec.json").read_text())
    assert spec["results"] == {**results, "kl": None}
    assert spec["provenance"] == {**provenance, "at": "x"}
    assert spec["versions"]["torch"] == version("torch")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: secateur\n")
    assert "| macs | 1,258,000,000 | 629,000,000 |" in card
    assert "- top1: 81.25" in card
    assert "with preset `spectral` to `50% macs`" in card
    assert "| `blocks.0.attn` | 3 heads × (4 query/key, 6 value dims) |" in card
    assert "| `blocks.1.attn` | removed |" in card
    assert "- data.n: 512" in card


def test_the_model_is_left_as_it_was(small: tuple[nn.Module, Base], tmp_path: Path) -> None:
    model = small[0].train()
    model.norm.eval()
    before = {name: module.training for name, module in model.named_modules()}
    _save(small, tmp_path / "small")
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_shared_and_strided_tensors(small: tuple[nn.Module, Base], tmp_path: Path) -> None:
    model = small[0]
    with torch.no_grad():
        fc1 = model.blocks[0].mlp.fc1
        fc1.weight = nn.Parameter(fc1.weight.t().contiguous().t())
        both = torch.randn(2, model.head.out_features)
        model.head.bias = nn.Parameter(both[0])
        model.blocks[0].norm2.weight = model.blocks[0].norm1.weight
    assert not model.blocks[0].mlp.fc1.weight.is_contiguous()
    _save(small, tmp_path / "small")
    x = images(model)
    assert torch.equal(load(tmp_path / "small")(x), model(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    small: tuple[nn.Module, Base], tmp_path: Path, value: float
) -> None:
    with torch.no_grad():
        small[0].blocks[0].mlp.fc2.weight[3, 1] = value
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc2\.weight.*1 of"):
        _save(small, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_its_base_does_not_describe(
    small: tuple[nn.Module, Base], tmp_path: Path
) -> None:
    """A changed scale is in no file, so the rebuild would differ."""
    small[0].blocks[2].attn.scale *= 3
    with pytest.raises(UserError, match="other outputs"):
        _save(small, tmp_path / "small")
    small[0].head = nn.Linear(32, 3)
    with pytest.raises(UserError, match=r"head\.weight is \(3, 32\) instead of \(10, 32\)"):
        _save(small, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors", "../x", "a/b", "", ".", ".."])
def test_names_of_further_files(small: tuple[nn.Module, Base], tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no name for a further file"):
        _save(small, tmp_path / "small", extra_files={name: "x"})


def test_free_names_and_empty_directories_are_allowed(tmp_path: Path) -> None:
    check_out(tmp_path / "a" / "b" / "c")
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_empty_directory_is_filled(small: tuple[nn.Module, Base], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _save(small, tmp_path / "empty")
    load(tmp_path / "empty")


@pytest.mark.parametrize("text", [None, "{}", "not json", '{"format": 99}'])
def test_a_directory_that_is_not_ours(
    small: tuple[nn.Module, Base], tmp_path: Path, text: str | None
) -> None:
    out = tmp_path / "theirs"
    out.mkdir()
    (out / "thesis.tex").write_text("ten years of work")
    if text is not None:
        (out / "spec.json").write_text(text)
    before = _contents(out)
    for attempt in (lambda: check_out(out), lambda: _save(small, out)):
        with pytest.raises(UserError, match="not written by secateur"):
            attempt()
    assert _contents(out) == before


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no directory"):
        check_out(tmp_path / "file")
    with pytest.raises(UserError, match="no directory"):
        check_out(tmp_path / "file" / "small")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(UserError, match=rf"cannot write to {tmp_path} \(permission denied\)"):
        check_out(tmp_path / "small")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a /proc file system")
def test_a_file_system_that_cannot_be_written() -> None:
    with pytest.raises(UserError, match="cannot write to /proc"):
        check_out("/proc/small")


def test_replacing_our_own(saved: Path, small: tuple[nn.Module, Base]) -> None:
    (saved / "report.html").write_text("old")
    with torch.no_grad():
        small[0].head.bias += 1
    _save(small, saved, overwrite=True)
    assert [p.name for p in saved.parent.iterdir()] == ["small"]
    assert not (saved / "report.html").exists()
    x = images(small[0])
    assert torch.equal(load(saved)(x), small[0](x))


def test_a_link_to_our_own_keeps_linking(
    saved: Path, small: tuple[nn.Module, Base], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(saved)
    with torch.no_grad():
        small[0].head.bias += 1
    _save(small, link, overwrite=True)
    assert link.is_symlink()
    x = images(small[0])
    assert torch.equal(load(saved)(x), small[0](x))


def _full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("broken", ["save_file", "card", "write_text"])
def test_disk_full(
    saved: Path,
    small: tuple[nn.Module, Base],
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    broken: str,
) -> None:
    out = saved if there else saved.parent / "new"
    before = _contents(saved.parent)
    if broken == "write_text":
        monkeypatch.setattr(Path, "write_text", _full)
    else:
        monkeypatch.setattr(saving, broken, _full)
    with pytest.raises(UserError, match="the disk is full; nothing was written"):
        _save(small, out, overwrite=there)
    assert _contents(saved.parent) == before
    assert [p.name for p in saved.parent.iterdir()] == ["small"]


def test_a_full_disk_as_safetensors_reports_it(
    small: tuple[nn.Module, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        _save(small, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_failure_of_the_last_step_restores_the_old(
    saved: Path, small: tuple[nn.Module, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _contents(saved.parent)
    rename = os.rename

    def fail_on_unfinished(source: Path, target: Path) -> None:
        if ".unfinished-" in str(source):
            _full()
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_on_unfinished)
    with pytest.raises(UserError, match="unchanged"):
        _save(small, saved, overwrite=True)
    assert _contents(saved.parent) == before
    assert [p.name for p in saved.parent.iterdir()] == ["small"]


def test_interruption_leaves_nothing(
    small: tuple[nn.Module, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _save(small, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []
