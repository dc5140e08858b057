"""Saved models on the hub: which files travel, and that they are checked like local ones."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from secateur.errors import UserError
from secateur.storage import hub
from secateur.storage.hub import download, push_to_hub
from secateur.storage.load import load
from tests.storage.tiny import host, images


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_is_out_of_reach", lambda: None)


def test_loading_from_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def snapshot(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options))
        return str(saved)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    x = images(host("vit"))
    assert torch.equal(load("hub:org/small@v2")(x), load(saved)(x))
    files = ["spec.json", "model.safetensors"]
    options = {"revision": "v2", "allow_patterns": files, "local_files_only": False}
    assert asked == [("org/small", options)]
    (saved / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="truncated"):
        load("hub:org/small")


def test_the_cache_serves_without_network(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_is_out_of_reach", lambda: "no network")
    monkeypatch.setattr(
        hub, "snapshot_download", lambda repo_id, **o: saved if o["local_files_only"] else None
    )
    assert download("org/small") == saved


def test_what_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo_id: str, **options: Any) -> str:
        raise OSError("404\nmuch detail")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"cannot download hub:org/none: 404\."):
        load("hub:org/none")
    monkeypatch.setattr(hub, "hub_is_out_of_reach", lambda: "no network")
    with pytest.raises(UserError, match=r"hub:org/none: no network\."):
        load("hub:org/none")


class _Api:
    calls: ClassVar[list[tuple[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append((repo_id, options))
        if repo_id == "org/forbidden":
            raise OSError("403 Forbidden")
        return f"https://hub/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


def test_pushing(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "HfApi", _Api)
    _Api.calls.clear()
    assert push_to_hub(saved, "org/small", private=True) == "https://hub/org/small"
    assert _Api.calls[0] == ("org/small", {"private": True, "exist_ok": True})
    options = _Api.calls[1][1]
    assert options["repo_id"] == "org/small"
    assert options["folder_path"] == saved
    assert options["allow_patterns"] == [
        "spec.json", "model.safetensors", "README.md", "report.html",
    ]  # fmt: skip
    with pytest.raises(UserError, match="403 Forbidden"):
        push_to_hub(saved, "org/forbidden")
    with pytest.raises(UserError, match="no model saved by secateur"):
        push_to_hub(tmp_path, "org/small")
    monkeypatch.setattr(hub, "hub_is_out_of_reach", lambda: "no network")
    with pytest.raises(UserError, match="no network"):
        push_to_hub(saved, "org/small")
