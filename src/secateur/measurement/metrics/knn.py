"""Accuracy of the weighted nearest neighbours among labelled images, on frozen features.

Legend: n images, m training images, k neighbours, E feature width.
"""

import math

import numpy as np
from numpy.typing import NDArray

from secateur.measurement.metrics import Inquiry, Values, metric

NEIGHBOURS = 20
TEMPERATURE = 0.07


@metric("knn", title="k-nearest-neighbour accuracy", needs=("labels", "train"))
def knn(inquiry: Inquiry) -> Values:
    """Top-1 in percent: each of the 20 nearest by cosine votes with exp(cosine / 0.07).

    Wu et al., CVPR 2018, arXiv 1805.01978, section 3.4; k and temperature as usual for frozen
    ViTs (DINO, arXiv 2104.14294). Fewer neighbours where there are fewer training images.
    """
    from sklearn.neighbors import KNeighborsClassifier

    train, test = inquiry.features("train"), inquiry.features()
    assert train.labels_n is not None and test.labels_n is not None
    k = min(NEIGHBOURS, len(train.labels_n))
    voters = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=_weights
    )
    voters.fit(train.pooled_nE.double().numpy(), train.labels_n.numpy())
    said_n = voters.predict(test.pooled_nE.double().numpy())
    return {**accuracy(said_n == test.labels_n.numpy()), "k": k}


def _weights(distance_nk: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(cosine / T), up to a factor that no vote depends on."""
    nearest_n1 = distance_nk.min(axis=1, keepdims=True)
    weights: NDArray[np.float64] = np.exp(-(distance_nk - nearest_n1) / TEMPERATURE)
    return weights


def accuracy(correct_n: NDArray[np.bool_]) -> dict[str, float | int]:
    """Percent correct, its binomial standard error in points, and the number of images."""
    n = len(correct_n)
    top1 = 100 * float(np.mean(correct_n))
    return {"top1": top1, "stderr": math.sqrt(top1 * (100 - top1) / n), "n": n}
