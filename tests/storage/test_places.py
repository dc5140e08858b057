"""A saved model tells the names of its maker's folders, not where they lie."""

from pathlib import Path

import pytest
from PIL import Image

import secateur
from secateur.storage.directories.places import names_of_places


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("/home/ann/pets/train", "train"),
        ("~/pets", "pets"),
        (r"C:\Users\ann\pets", "pets"),
        (Path("/home/ann/pets"), "pets"),
        ("pets/train", "pets/train"),
        ("digits/train", "digits/train"),
        ("50% macs", "50% macs"),
        ("/", "/"),
    ],
)
def test_the_last_name_is_kept(given: object, told: str) -> None:
    assert names_of_places({"a": {"b": [given]}}, {}) == {"a": {"b": [told]}}


def test_commands_keep_all_else() -> None:
    line = "secateur prune m --data '/home/ann/my pets' --budget '50% macs' --out=/tmp/x"
    found = names_of_places({"command": line}, {})["command"]
    assert found == "secateur prune m --data 'my pets' --budget '50% macs' --out=x"


def test_no_file_of_a_saved_model_has_the_path(tmp_path: Path) -> None:
    images = tmp_path / "ann" / "my pets"
    for number in range(16):
        folder = images / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number * 10).save(folder / f"{number}.png")
    result = secateur.prune(secateur.load("digits_vit"), str(images), "60% macs", preset="energy")
    result.command = f"secateur prune digits_vit --data '{images}' --out {tmp_path / 'small'}"
    result.save(tmp_path / "small")
    for file in (tmp_path / "small").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    card = (tmp_path / "small" / "README.md").read_text()
    assert "my pets" in card and "polish" not in card
    assert result.record()["data"]["source"] == str(images)
