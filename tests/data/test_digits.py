import numpy as np

from secateur.data.digits import load_digits_split


def test_the_split_is_fixed_stratified_and_complete() -> None:
    train_images, train_labels = load_digits_split("train")
    test_images, test_labels = load_digits_split("test")
    assert train_images.shape == (1347, 8, 8)
    assert test_images.shape == (450, 8, 8)
    assert train_images.dtype == test_images.dtype == np.uint8
    assert test_labels[:10].tolist() == [2, 0, 4, 9, 4, 1, 2, 4, 6, 7]
    shares = np.bincount(test_labels) / np.bincount(np.concatenate([train_labels, test_labels]))
    assert np.abs(shares - 0.25).max() < 0.01


def test_no_image_is_in_both_splits() -> None:
    train = {image.tobytes() for image in load_digits_split("train")[0]}
    assert not any(image.tobytes() in train for image in load_digits_split("test")[0])


def test_brightness_fills_the_range() -> None:
    images, _ = load_digits_split("train")
    assert images.min() == 0
    assert images.max() == 255
    assert len(np.unique(images)) == 17


def test_changing_the_returned_arrays_changes_nothing() -> None:
    load_digits_split("test")[0][:] = 0
    assert load_digits_split("test")[0].any()
