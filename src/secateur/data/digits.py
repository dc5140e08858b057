"""The bundled data: scikit-learn's handwritten digits with one fixed split.

Shape suffixes: n images.
"""

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Split = Literal["train", "test"]

TEST_SHARE = 0.25
SPLIT_SEED = 0
_LARGEST_COUNT = 16
"""Each pixel of the original counts the inked points of a 4 x 4 cell: 0..16."""


def load_digits_split(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the grey images, 0 (paper) to 255 (ink), and the labels 0..9 of one split.

    Shapes: images [n, 8, 8], labels [n]; n is 1347 for "train" and 450 for "test". The split is
    stratified by label and always the same. The arrays are copies, free to be changed.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, as
    shipped with scikit-learn.
    """
    images, labels = _splits()[split]
    return images.copy(), labels.copy()


@cache
def _splits() -> dict[Split, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    digits = load_digits()
    images = np.rint(digits.images * (255 / _LARGEST_COUNT)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    return {"train": (train_images, train_labels), "test": (test_images, test_labels)}
