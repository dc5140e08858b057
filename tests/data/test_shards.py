import io
import pickle
import tarfile
from pathlib import Path

import pytest

from secateur.data.images import open_images
from secateur.errors import UserError
from tests.data.made_up import SMALL, png


def write_shard(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def test_samples_of_all_shards_in_order(tmp_path: Path) -> None:
    write_shard(tmp_path / "b.tar", {"x/0.cls": b"2", "x/0.png": png(30)})
    write_shard(
        tmp_path / "a.tar",
        {"000.png": png(10), "000.cls": b"1\n", "001.json": b'{"label": 0}', "001.png": png(20)},
    )
    images = open_images(f"wds/{tmp_path}", SMALL, num_classes=3)
    assert images.names == ("a.tar/000", "a.tar/001", "b.tar/x/0")
    assert images.labels == (1, 0, 2)
    assert [images.read(index) for index in range(3)] == [png(10), png(20), png(30)]
    assert pickle.loads(pickle.dumps(images.read))(2) == png(30)


def test_what_the_webdataset_library_writes_can_be_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs the webdataset library")
    with webdataset.TarWriter(str(tmp_path / "val-000.tar")) as writer:
        for index in range(3):
            writer.write({"__key__": f"s{index}", "png": png(index), "cls": index})
    images = open_images(f"wds/{tmp_path}/val-*.tar", SMALL, num_classes=3)
    assert images.labels == (0, 1, 2)
    assert images.read(1) == png(1)


def test_a_broken_image_in_a_shard_is_named(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.png": b"broken", "1.png": png(1)})
    with pytest.raises(UserError, match=r"1 of 2 images .*'a\.tar/0'"):
        open_images(shard, SMALL)
    assert open_images(shard, SMALL, skip_unreadable=True).unreadable == ("a.tar/0",)


def test_damaged_shards_and_labels_are_named(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.png": png(1), "0.cls": b"cat"})
    with pytest.raises(UserError, match=r"0\.cls"):
        open_images(shard, SMALL)
    twice = write_shard(tmp_path / "b.tar", {"0.png": png(1), "0.json": b'{"label":0,"label":1}'})
    with pytest.raises(UserError, match=r"'0\.json' of .*'label' stands twice"):
        open_images(twice, SMALL)
    (tmp_path / "cut.tar").write_bytes(shard.read_bytes()[:700])
    with pytest.raises(UserError, match=r"cut\.tar"):
        open_images(tmp_path / "cut.tar", SMALL)
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"bad\.tar"):
        open_images(tmp_path / "bad.tar", SMALL)


def test_labels_beyond_the_head_are_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.png": png(1), "0.cls": b"10"})
    with pytest.raises(UserError, match=r"11 classes.* 10 outputs"):
        open_images(shard, SMALL, num_classes=10)
