import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from secateur.data.images import open_images
from secateur.data.sources import endings, listing
from secateur.errors import Advice, UserError
from tests.data.made_up import SMALL, jpeg, make_folder, png


@pytest.fixture(autouse=True)
def no_advice() -> Iterator[None]:
    """Nothing is told unless a test expects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        yield


@pytest.mark.parametrize("ending", [".JPG", ".jpe", ".JFIF", ".jif", ".Jpeg"])
def test_every_ending_of_a_jpeg_is_read(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a{ending}").write_bytes(jpeg())
    assert open_images(tmp_path, SMALL).names == (f"a{ending}",)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(".WEBP", "WEBP"), (".tga", "TGA"), (".pnm", "PPM"), (".jp2", "JPEG2000"), (".avif", "AVIF")],
)
def test_what_pillow_writes_is_read(tmp_path: Path, ending: str, kind: str) -> None:
    if not endings.is_readable(ending.lower()):
        pytest.skip(f"this Pillow reads no {ending}")
    Image.new("RGB", (16, 16), "red").save(tmp_path / f"a{ending}", kind)
    assert len(open_images(tmp_path, SMALL)) == 1


@pytest.mark.parametrize(
    ("ending", "advice"),
    [(".HEIC", "pillow-heif"), (".hif", "pillow-heif"), (".jxl", "jxl"), (".NEF", "convert them")],
)
def test_images_that_pillow_cannot_read_are_counted_and_named(
    tmp_path: Path, ending: str, advice: str
) -> None:
    if endings.is_readable(ending.lower()):
        pytest.skip(f"this Pillow reads {ending}")
    folder = make_folder(tmp_path / "d", {"a": 2, "b": 1})
    for number in range(3):
        (folder / "a" / f"x{number}{ending}").write_bytes(b"photo")
    with pytest.warns(Advice, match=f"3 {ending.lower()} files were left out.*{advice}"):
        assert len(open_images(folder, SMALL)) == 3
    for image in folder.glob("*/*.png"):
        image.unlink()
    with pytest.raises(UserError, match=f"no images in .*3 {ending.lower()} files.*{advice}"):
        open_images(folder, SMALL)


LOOPS = {
    "to itself": ("a/loop", "loop"),
    "to its folder": ("a/loop", "."),
    "to the root": ("a/loop", ".."),
    "above the root": ("a/loop", "../../.."),
    "as a class": ("loop", "."),
    "as a class above": ("loop", "../.."),
}


@pytest.mark.parametrize(("name", "target"), LOOPS.values(), ids=LOOPS)
def test_loops_of_links_end(tmp_path: Path, name: str, target: str) -> None:
    folder = make_folder(tmp_path / "x" / "d", {"a": 2, "b": 1})
    (folder / name).symlink_to(target, target_is_directory=True)
    images = open_images(folder, SMALL, num_classes=2)
    assert (images.names, images.labels) == (("a/0.png", "a/1.png", "b/0.png"), (0, 0, 1))


def test_many_links_to_each_other_are_followed_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 1})
    inner = [folder / "a" / str(number) for number in range(12)]
    for place in inner:
        place.mkdir()
        (place / "own.png").write_bytes(png(1))
        for other in inner:
            (place / f"to{other.name}").symlink_to(other, target_is_directory=True)
    assert len(open_images(folder, SMALL)) == 13


def test_links_to_folders_and_files_elsewhere_are_followed(tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", {"a": 2})
    folder = tmp_path / "d"
    (folder / "b").mkdir(parents=True)
    (folder / "a").symlink_to(other / "a", target_is_directory=True)
    (folder / "c").symlink_to(other / "a", target_is_directory=True)
    (folder / "b" / "x.png").symlink_to(other / "a" / "0.png")
    images = open_images(folder, SMALL, num_classes=3)
    assert images.names == ("a/0.png", "a/1.png", "b/x.png", "c/0.png", "c/1.png")


def test_pipes_sockets_and_devices_are_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 1})
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "zero.png").symlink_to("/dev/zero")
    held = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder / "a")  # The path of a socket is short.
    try:
        held.bind("s.png")
    finally:
        os.chdir(here)
        held.close()
    with pytest.warns(Advice, match="3 entries were left out that are no regular file"):
        assert open_images(folder, SMALL).names == ("a/0.png",)


def test_a_folder_called_like_an_image_is_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a.png": 1, "b.jpg": 2})
    assert open_images(folder, SMALL).labels == (0, 1, 1)


def test_links_to_nothing_are_unreadable_images(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 1})
    (folder / "a" / "gone.png").symlink_to("nowhere")
    (folder / "a" / "self.png").symlink_to("self.png")
    assert set(open_images(folder, SMALL, skip_unreadable=True).unreadable) == {
        "a/gone.png",
        "a/self.png",
    }


def test_places_of_the_system_are_no_classes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 1, "b": 1})
    for name in ("lost+found", "@eaDir", "__MACOSX", ".cache"):
        (folder / name).mkdir()
    assert open_images(folder, SMALL, num_classes=2).labels == (0, 1)


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "pipe.parquet", "pipe.tar"])
def test_what_is_no_file_is_refused(tmp_path: Path, place: str) -> None:
    if not place.startswith("/"):
        os.mkfifo(tmp_path / place)
    with pytest.raises(UserError, match="is no regular file"):
        open_images(tmp_path / place, SMALL)
    if not place.startswith("/"):
        with pytest.raises(UserError, match="is no regular file"):
            open_images(tmp_path, SMALL)


def test_the_root_of_a_file_system_is_refused() -> None:
    with pytest.raises(UserError, match="root of a file system"):
        open_images("/", SMALL)


def test_a_path_beyond_the_file_system_is_refused() -> None:
    with pytest.raises(UserError, match="cannot list the images"):
        open_images("x" * 5000, SMALL)


def test_endless_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "d", {"a": 5, "b": 5})
    (folder / "0").mkdir()
    for number in range(9):
        (folder / "0" / f"{number}.txt").write_text("no image")
    monkeypatch.setattr(listing, "MOST_BEFORE_ONE", 8)
    with pytest.raises(UserError, match="no image among the first 8 "):
        open_images(folder, SMALL)
    monkeypatch.setattr(listing, "MOST_BEFORE_ONE", 100)
    assert len(open_images(folder, SMALL)) == 10
    monkeypatch.setattr(listing, "MOST_ENTRIES", 15)
    with pytest.raises(UserError, match="more than 15 files and folders"):
        open_images(folder, SMALL)


def test_a_file_beyond_all_size_is_not_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 1})
    with (folder / "a" / "huge.png").open("wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(UserError, match=r"huge\.png.*3\.0 GiB"):
        open_images(folder, SMALL)
