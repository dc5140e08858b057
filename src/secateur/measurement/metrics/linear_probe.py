"""Accuracy of a linear classifier trained on frozen features.

Legend: n images, E feature width.
"""

import numpy as np

from secateur.errors import UserError
from secateur.measurement.metrics import Inquiry, Values, metric
from secateur.measurement.metrics.knn import accuracy

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of regularisation (scikit-learn's C) to choose from."""
HELD = 0.2
LEAST = 5
"""Images of the smallest class from which a choice on held-out ones means something."""
ITERATIONS = 500


@metric("linear_probe", title="Linear-probe accuracy", needs=("labels", "train"))
def linear_probe(inquiry: Inquiry) -> Values:
    """Top-1 in percent of a multinomial logistic regression on standardised features.

    C is the best on a fifth of the training images, drawn with the seed; the classifier is then
    fitted to all. With fewer than five images of some class, C is 0.01. The images that are
    measured on choose nothing.
    """
    from sklearn.model_selection import train_test_split

    train, test = inquiry.features("train"), inquiry.features()
    assert train.labels_n is not None and test.labels_n is not None
    x_nE, y_n = train.pooled_nE.double().numpy(), train.labels_n.numpy()
    classes, counts = np.unique(y_n, return_counts=True)
    if len(classes) < 2:
        raise UserError("metric 'linear_probe' needs training images of at least two classes.")
    strength = 0.01
    if counts.min() >= LEAST and HELD * len(y_n) >= len(classes):
        fit_nE, held_nE, fit_n, held_n = train_test_split(
            x_nE, y_n, test_size=HELD, stratify=y_n, random_state=inquiry.seed
        )
        scores = [float(_fitted(fit_nE, fit_n, c).score(held_nE, held_n)) for c in STRENGTHS]
        strength = STRENGTHS[int(np.argmax(scores))]
    said_n = _fitted(x_nE, y_n, strength).predict(test.pooled_nE.double().numpy())
    return {**accuracy(said_n == test.labels_n.numpy()), "strength": strength}


def _fitted(x_nE, y_n, strength: float):  # type: ignore[no-untyped-def]
    """A standardising logistic regression (scikit-learn is untyped)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = LogisticRegression(C=strength, max_iter=ITERATIONS)
    return make_pipeline(StandardScaler(), probe).fit(x_nE, y_n)
