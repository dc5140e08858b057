import dataclasses
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from secateur.data.images import open_images
from secateur.data.preprocessing import Preprocessing
from secateur.errors import Advice, UserError
from tests.data.made_up import SMALL, jpeg, make_folder, png

WORDNET = {"n01440764": 2, "n01443537": 1, "n15075141": 3}


def shade(x_CHW: torch.Tensor) -> int:
    """The shade `png` was given."""
    return round(float(x_CHW[0, 0, 0] * 0.5 + 0.5) * 255)


def write_parquet(
    file: Path,
    shades: list[int],
    labels: list[int | None] | None,
    *,
    names: list[str] | None = None,
    column: str = "image",
    group: int = 2,
) -> Path:
    columns: dict[str, list[object]] = {column: [{"bytes": png(s), "path": None} for s in shades]}
    if labels is not None:
        columns["label"] = list(labels)
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    file.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, file, row_group_size=group)
    return file


def test_wordnet_folders_go_to_imagenet_outputs_though_most_classes_are_absent(
    tmp_path: Path,
) -> None:
    images = open_images(make_folder(tmp_path / "d", WORDNET), SMALL, num_classes=1000)
    assert images.labels == (0, 0, 1, 999, 999, 999)
    assert (images.labelled, images.label_count) == (True, 1000)
    assert images.names[2] == "n01443537/0.png"
    assert [shade(x) for x, _ in images] == [1, 2, 3, 4, 5, 6]
    assert images[3][1] == 999


def test_wordnet_folders_are_not_scored_by_position_when_the_head_is_unknown(
    tmp_path: Path,
) -> None:
    images = open_images(make_folder(tmp_path / "d", WORDNET), SMALL)
    assert images.labels == (0, 0, 1, 999, 999, 999)


def test_wordnet_folders_of_another_head_keep_their_position(tmp_path: Path) -> None:
    images = open_images(make_folder(tmp_path / "d", WORDNET), SMALL, num_classes=3)
    assert images.labels == (0, 0, 1, 2, 2, 2)


@pytest.mark.parametrize("dog", ["golden retriever", "Golden_Retriever", "golden-retriever"])
def test_folders_named_like_imagenet_classes_are_matched(dog: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"Carassius auratus": 1, dog: 2, "n01440764": 1})
    with pytest.warns(Advice, match="matched to ImageNet's by their names: .*auratus is 1"):
        images = open_images(folder, SMALL, num_classes=1000)
    assert sorted(images.labels) == [0, 1, 207, 207] and images.label_count == 1000
    by_position = open_images(folder, SMALL, num_classes=3)
    assert set(by_position.labels) == {0, 1, 2}
    assert open_images(folder, SMALL).label_count == 3


@pytest.mark.parametrize("other", ["crane", "my dog"])
def test_names_of_several_or_no_classes_are_not_matched(other: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"tench": 1, other: 1})
    with pytest.raises(UserError, match=r"2 classes .*1000 outputs.* such as n01440764 or tench"):
        open_images(folder, SMALL, num_classes=1000)


def test_images_of_the_same_content_are_counted(tmp_path: Path) -> None:
    for number, content in enumerate((1, 1, 2, 1)):
        (tmp_path / f"{number}.png").write_bytes(png(content))
    assert open_images(tmp_path, SMALL).repeated == 2


def test_a_wordnet_folder_that_imagenet_has_not_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"n01440764": 1, "n00000001": 1})
    with pytest.raises(UserError, match="n00000001"):
        open_images(folder, SMALL, num_classes=1000)


@pytest.mark.parametrize("num_classes", [1000, 7])
def test_class_count_mismatch_names_both_numbers(tmp_path: Path, num_classes: int) -> None:
    folder = make_folder(tmp_path / "d", {"cat": 1, "dog": 1})
    with pytest.raises(UserError, match=rf"2 classes .*{num_classes} outputs"):
        open_images(folder, SMALL, num_classes=num_classes)


def test_a_thousand_other_folders_are_not_taken_for_imagenet(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {str(number): 0 for number in range(1000)})
    (folder / "7" / "a.png").write_bytes(png(1))
    with pytest.raises(UserError, match="not named by WordNet id"):
        open_images(folder, SMALL, num_classes=1000)


def test_numbered_folders_are_in_numerical_order_and_empty_ones_count(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"10": 1, "2": 1, "1": 0})
    images = open_images(folder, SMALL, num_classes=3)
    assert dict(zip(images.names, images.labels, strict=True)) == {"2/0.png": 1, "10/0.png": 2}


def test_a_plain_folder_has_no_labels(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.PNG").write_bytes(png(index))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._0.png").write_text("hidden")
    images = open_images(tmp_path, SMALL, num_classes=1000)
    assert (len(images), images.labelled, images.label_count) == (3, False, 0)
    assert images[1][1] == -1


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_images(tmp_path / "nowhere", SMALL)
    with pytest.raises(UserError, match="no images in"):
        open_images(tmp_path, SMALL)
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="no images in"):
        open_images(tmp_path, SMALL)
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(UserError, match="neither a folder nor"):
        open_images(tmp_path / "data.csv", SMALL)


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    # Not by chmod: it does not keep out the superuser, whom tests may run as.
    monkeypatch.setattr("secateur.data.sources.folders.os.scandir", refuse)
    with pytest.raises(UserError, match=f"no permission to read {tmp_path}"):
        open_images(tmp_path, SMALL)


def test_loose_images_beside_classes_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "d", {"cat": 1})
    (tmp_path / "d" / "loose.png").write_bytes(png(1))
    with pytest.raises(UserError, match=r"loose\.png"):
        open_images(tmp_path / "d", SMALL)


def test_corrupt_images_are_named_and_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"cat": 9, "dog": 1})
    for index in range(4):
        (folder / "cat" / f"{index}.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError) as error:
        open_images(folder, SMALL)
    message = str(error.value)
    assert "4 of 10 images" in message
    assert "'cat/0.png'" in message and "'cat/2.png'" in message and "'cat/3.png'" not in message
    assert "and 1 more" in message and "--skip-unreadable" in message


@pytest.mark.parametrize("size", [300, 1500])
def test_truncated_jpegs_can_be_left_out(tmp_path: Path, size: int) -> None:
    folder = make_folder(tmp_path / "d", {"cat": 1, "dog": 2})
    (folder / "dog" / "0.jpg").write_bytes(jpeg()[:size])
    (folder / "dog" / "7.jpg").write_bytes(jpeg())
    images = open_images(folder, SMALL, skip_unreadable=True)
    assert images.unreadable == ("dog/0.jpg",)
    assert images.names == ("cat/0.png", "dog/0.png", "dog/1.png", "dog/7.jpg")
    assert images.labels == (0, 1, 1, 1)
    assert [shade(images[index][0]) for index in range(3)] == [1, 2, 3]


def test_nothing_readable_is_refused_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 1 images"):
        open_images(tmp_path, SMALL, skip_unreadable=True)


def test_an_image_that_vanishes_later_is_named(tmp_path: Path) -> None:
    images = open_images(make_folder(tmp_path / "d", {"cat": 2}), SMALL)
    (tmp_path / "d" / "cat" / "1.png").unlink()
    with pytest.raises(UserError, match=r"cat/1\.png"):
        images[1]


def test_limit_is_even_over_classes_seeded_and_nested(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 20, "b": 20, "c": 2})
    some = open_images(folder, SMALL, limit=12)
    assert [some.labels.count(label) for label in range(3)] == [5, 5, 2]
    assert open_images(folder, SMALL, limit=12).names == some.names
    assert open_images(folder, SMALL, limit=12, seed=1).names != some.names
    assert set(open_images(folder, SMALL, limit=7).names) < set(some.names)
    assert len(open_images(folder, SMALL, limit=99)) == 42
    with pytest.raises(UserError, match="at least 1, not 0"):
        open_images(folder, SMALL, limit=0)


def test_corrupt_images_outside_the_limit_do_no_harm(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 5})
    chosen = open_images(folder, SMALL, limit=4).names
    (left,) = {f"a/{index}.png" for index in range(5)} - set(chosen)
    (folder / left).write_bytes(b"broken")
    assert open_images(folder, SMALL, limit=4).names == chosen


def test_fingerprint_depends_on_names_sizes_and_labels_alone(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", WORDNET)
    first = open_images(folder, SMALL, num_classes=1000).fingerprint
    shutil.copytree(folder, tmp_path / "elsewhere")
    again = open_images(tmp_path / "elsewhere", SMALL.override(image_size=8), num_classes=1000)
    assert again.fingerprint == first
    assert open_images(folder, SMALL, num_classes=3).fingerprint != first
    assert open_images(folder, SMALL, num_classes=1000, limit=5).fingerprint != first
    (folder / "n01440764" / "0.png").write_bytes(png(1) + b"\0")
    assert open_images(folder, SMALL, num_classes=1000).fingerprint != first


def test_fingerprint_is_the_same_on_every_machine(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("2.ppm", "10.ppm"):
        (tmp_path / "a" / name).write_bytes(b"P6\n1 1\n255\nrgb")
    assert (
        open_images(tmp_path, SMALL).fingerprint
        == hashlib.sha256(b"a/10.ppm\x0014\x000\na/2.ppm\x0014\x000\n").hexdigest()
    )


def test_grey_models_get_grey_images(tmp_path: Path) -> None:
    grey = Preprocessing(
        input_size=(1, 8, 8),
        interpolation="nearest",
        crop_pct=1.0,
        crop_mode="center",
        mean=(0.0,),
        std=(1.0,),
    )
    images = open_images(make_folder(tmp_path / "d", {"a": 1}), grey)
    assert images[0][0].shape == (1, 8, 8)


def test_another_transform_for_the_same_images(tmp_path: Path) -> None:
    images = open_images(make_folder(tmp_path / "d", {"a": 1}), SMALL)
    other = dataclasses.replace(images, transform=lambda image: torch.ones(1) * image.width)
    assert float(other[0][0]) == 16
    assert other.fingerprint == images.fingerprint


def test_loader_workers_read_the_same_images(tmp_path: Path) -> None:
    images = open_images(make_folder(tmp_path / "d", {"a": 3}), SMALL)
    loader = DataLoader(images, 2, num_workers=1)
    assert torch.equal(torch.cat([x for x, _ in loader]), torch.stack([x for x, _ in images]))


def test_parquet_over_several_row_groups_and_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-00000-of-00002.parquet", [1, 2, 3, 4, 5], [0, 1, 2, 0, 1])
    write_parquet(tmp_path / "test-00001-of-00002.parquet", [6, 7, 8], [2, 0, 1])
    images = open_images(tmp_path, SMALL, num_classes=3)
    assert [shade(images[index][0]) for index in (7, 0, 4, 5, 2)] == [8, 1, 5, 6, 3]
    assert images.labels == (0, 1, 2, 0, 1, 2, 0, 1)
    assert images.names[5] == "test-00001-of-00002.parquet#0"
    copy = pickle.loads(pickle.dumps(images.read))
    assert copy(6) == images.read(6) == png(7)


def test_parquet_class_names_are_matched_to_the_head(tmp_path: Path) -> None:
    named = write_parquet(tmp_path / "a.parquet", [1, 2], [0, 1], names=["cat", "dog", "owl"])
    assert open_images(named, SMALL, num_classes=3).label_count == 3
    with pytest.raises(UserError, match=r"3 classes .*10 outputs"):
        open_images(named, SMALL, num_classes=10)
    wordnet = write_parquet(
        tmp_path / "b.parquet", [1, 2], [1, 0], names=["n01440764", "n15075141"], column="img"
    )
    assert open_images(wordnet, SMALL, num_classes=1000).labels == (999, 0)


def test_parquet_labels_beyond_the_head_are_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", [1, 2], [0, 12])
    with pytest.raises(UserError, match=r"13 classes.* 10 outputs"):
        open_images(file, SMALL, num_classes=10)


def test_parquet_without_labels(tmp_path: Path) -> None:
    assert not open_images(write_parquet(tmp_path / "a.parquet", [1], None), SMALL).labelled
    hidden = write_parquet(tmp_path / "b.parquet", [1, 2], [-1, -1], names=["cat", "dog"])
    assert not open_images(hidden, SMALL, num_classes=2).labelled
    partly = write_parquet(tmp_path / "c.parquet", [1, 2], [0, None])
    with pytest.raises(UserError, match="only 1 of 2"):
        open_images(partly, SMALL)


def test_parquet_of_several_splits_is_refused_but_a_pattern_chooses(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-0.parquet", [1], [0])
    write_parquet(tmp_path / "data" / "test-0.parquet", [2], [0])
    with pytest.raises(UserError, match="test, train"):
        open_images(tmp_path, SMALL)
    images = open_images(f"{tmp_path}/data/test*.parquet", SMALL)
    assert images.names == ("test-0.parquet#0",)


def test_damaged_and_foreign_parquet_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"broken\.parquet"):
        open_images(broken, SMALL)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(UserError, match=r"no column 'image'.*text"):
        open_images(tmp_path / "text.parquet", SMALL)
    pq.write_table(pa.table({"image": ["a"], "label": [0]}), tmp_path / "path.parquet")
    with pytest.raises(UserError, match="not encoded images"):
        open_images(tmp_path / "path.parquet", SMALL)


def test_a_parquet_row_without_bytes_is_unreadable(tmp_path: Path) -> None:
    rows = [{"bytes": png(1), "path": None}, {"bytes": None, "path": "gone.png"}]
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / "a.parquet")
    images = open_images(tmp_path / "a.parquet", SMALL, skip_unreadable=True)
    assert images.unreadable == ("a.parquet#1",)


def test_digits_are_a_fixed_stratified_split() -> None:
    grey = Preprocessing(
        input_size=(1, 8, 8),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
        mean=(0.5,),
        std=(0.5,),
    )
    test, train = open_images("digits", grey), open_images("digits/train", grey, num_classes=10)
    assert (len(test), len(train)) == (450, 1347)
    assert open_images("digits/test", grey).fingerprint == test.fingerprint
    assert all(abs(test.labels.count(digit) - 45) <= 2 for digit in range(10))
    x_CHW, label = test[0]
    assert x_CHW.shape == (1, 8, 8) and label in range(10)
    # The originals count 0..16 inked points, so normalised pixels are multiples of 1/8.
    torch.testing.assert_close((x_CHW * 8).round() / 8, x_CHW, atol=5e-3, rtol=0)
    with pytest.raises(UserError, match=r"10 classes .*1000 outputs"):
        open_images("digits", grey, num_classes=1000)
