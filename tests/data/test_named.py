import gc
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from timm.data.dataset import IterableImageDataset
from torchvision.datasets import MNIST

from secateur.data.images import open_images
from secateur.data.sources.named import copy_stream
from secateur.errors import UserError
from tests.data.made_up import SMALL, png


@pytest.mark.parametrize("column", ["image", "img"])
def test_hugging_face_data_set_in_a_local_folder(tmp_path: Path, column: str) -> None:
    pytest.importorskip("datasets", reason="needs the datasets library")
    folder = tmp_path / "flowers"
    folder.mkdir()
    rows = [{"bytes": png(shade), "path": None} for shade in (10, 20, 30)]
    rows[1]["bytes"] = b"broken"
    pq.write_table(pa.table({column: rows, "label": [2, 1, 0]}), folder / "test.parquet")
    name = f"hfds/{folder}:test@{tmp_path / 'cache'}"
    with pytest.raises(UserError, match=r"1 of 3 images .*'flowers:test#1'"):
        open_images(name, SMALL)
    images = open_images(name, SMALL, num_classes=3, skip_unreadable=True)
    assert images.names == ("flowers:test#0", "flowers:test#2")
    assert images.labels == (2, 0)
    assert images.read(1) == png(30)
    with pytest.raises(UserError, match=r"validation.*test"):
        open_images(name.replace(":test@", "@"), SMALL)


def test_hugging_face_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the datasets library")
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"no images in a column 'image'.*text"):
        open_images(f"hfds/{tmp_path}:test@{tmp_path / 'cache'}", SMALL)


def write_mnist(root: Path, pixels: bytes, labels: bytes) -> None:
    """The test files of MNIST in the IDX format, in torchvision's folder."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        count = len(labels).to_bytes(4, "big")
        header = b"\0\0\x08\x03" + count + (2).to_bytes(4, "big") * 2
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + count + labels)


def test_torchvision_data_set_in_its_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path, bytes([0] * 4 + [255] * 4), bytes([3, 9]))
    assert len(MNIST(str(tmp_path))) == 2
    images = open_images(f"torch/mnist:test@{tmp_path}", SMALL, num_classes=10)
    assert images.labels == (3, 9)
    assert images.names == ("mnist:test#0", "mnist:test#1")
    assert float(images[0][0].max()) == -1.0 and float(images[1][0].min()) == 1.0


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("torch/cifar10", "needs the folder"),
        ("torch/cifar10:test@/nowhere/at/all", "cannot open 'torch/cifar10"),
        ("torch/", "cannot read the data name"),
    ],
)
def test_names_that_cannot_be_opened(name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        open_images(name, SMALL)


def test_a_stream_is_copied_once_and_the_copy_goes_with_its_source() -> None:
    # A stand-in for TensorFlow Datasets, which timm also reads through this class.
    pairs = [(Image.new("RGB", (2, 3), (index, 0, 0)), index % 2) for index in range(5)]
    source = copy_stream(IterableImageDataset(None, reader=pairs), "tfds/made_up", "made_up:test")
    assert source.labels == [0, 1, 0, 1, 0]
    assert source.names[4] == "made_up:test#4"
    assert source.read(3) == b"P6\n2 3\n255\n" + bytes([3, 0, 0]) * 6
    assert pickle.loads(pickle.dumps(source.read))(1) == source.read(1)
    file: Path = source.read.file  # type: ignore[attr-defined]
    assert file.stat().st_size == 5 * (11 + 18)
    del source
    gc.collect()
    assert not file.exists()


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(UserError, match="no images in 'tfds/made_up'"):
        copy_stream([], "tfds/made_up", "made_up:test")
