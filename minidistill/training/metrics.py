"""Metrics: what a model is judged by. Each takes predictions and targets as arrays and returns one number.

Names in `METRICS` can be given to ``fit`` and ``evaluate`` as text. Nothing here is differentiable.
"""

from __future__ import annotations

import numpy as np


def accuracy(logits, labels):
    """Fraction of rows whose largest logit is at the label. logits (N, C), labels int (N,) or rows of probabilities."""
    labels = labels.argmax(axis=1) if labels.ndim == 2 else labels
    return float(np.mean(logits.argmax(axis=1) == labels))


def top_k_accuracy(logits, labels, k=5):
    """Fraction of rows whose label is among the k largest logits. Ties count against the label."""
    _check_k(k)
    own = logits[np.arange(len(labels)), labels][:, None]
    return float(np.mean((logits >= own).sum(axis=1) <= k))  # the label itself is one of those that are >= it


def binary_accuracy(logits, targets):
    """Fraction of elements where (logit > 0) equals (target > 0.5). Any equal shapes."""
    return float(np.mean((logits > 0) == (np.asarray(targets) > 0.5)))


def rmse(predictions, targets):
    """Root of the mean squared error over all elements."""
    return float(np.sqrt(np.mean((predictions - targets) ** 2, dtype=np.float64)))


def auc(scores, targets):
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counting half.

    From the rank sum (Mann & Whitney 1947; Hanley & McNeil 1982, section II), in O(n log n).

    Parameters
    ----------
    scores : ndarray, N numbers
    targets : ndarray, N of 0 and 1, at least one of each
    """
    scores, positive = np.ravel(scores), np.ravel(targets) > 0.5
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(
            f"auc got {positives} positive and {negatives} negative targets.\nIt compares the two kinds with each other.\n"
            "Evaluate on data that holds both."
        )
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[group]  # equal scores share the mean of their ranks
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def expected_calibration_error(logits, labels, bins=15):
    """How far confidence and accuracy are apart on average: sum over bins of share * |accuracy - confidence|.

    Naeini et al. 2015; Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Parameters
    ----------
    logits : ndarray, shape (N, C)
    labels : ndarray of int, shape (N,)
    bins : int
        Of equal width in confidence, the probability of the decision.
    """
    return calibration_bins(logits, labels, bins)[3]


def calibration_bins(logits, labels, bins=15):
    """(mean confidence, accuracy, share of the samples, calibration error): three arrays over the bins, and a number.

    A bin without samples has NaN as confidence and accuracy, and counts nothing. Parameters as above.
    """
    if bins < 1:
        raise ValueError(f"a metric got bins = {bins}.\nThere is at least one.\nWrite bins=15.")
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or np.shape(labels) != z.shape[:1] or (z.min() >= 0 and np.abs(z.sum(axis=1) - 1).max() < 1e-4):
        raise ValueError(
            f"the calibration error got logits of shape {z.shape} from {z.min():.4g} to {z.max():.4g}, and labels of shape "
            f"{np.shape(labels)}.\nIt takes logits (N, C), not probabilities, and a class id for each row.\n"
            "Pass md.predict(model, x) of a model without a softmax, and labelled data."
        )
    p = np.exp(z - z.max(axis=1, keepdims=True))
    sure = p.max(axis=1) / p.sum(axis=1)
    right = z.argmax(axis=1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    some = np.where(counts, counts, np.nan)
    confidence = np.bincount(place, sure, bins) / some
    accuracy = np.bincount(place, right, bins) / some
    share = counts / len(z)
    return confidence, accuracy, share, float(np.nansum(share * np.abs(accuracy - confidence)))


def hit_rate_at_k(scores, relevant, k=10):
    """Fraction of users with a relevant item among their k highest scores (HR@k; He et al. 2017, section 4.1).

    Parameters
    ----------
    scores : ndarray, shape (users, items)
    relevant : ndarray of bool, shape (users, items)
    k : int

    Equal scores are ordered by item number, in `ndcg_at_k` too.
    """
    return float(np.mean(_ranked(scores, relevant, k).any(axis=1)))


def ndcg_at_k(scores, relevant, k=10):
    """Normalised discounted cumulative gain of the k highest scores, averaged over users (Järvelin & Kekäläinen 2002).

    The gain of the item at place i (from 1) is relevant / log2(i + 1); the sum is divided by that of the best possible
    order. Users without a relevant item are left out. Parameters as in `hit_rate_at_k`; relevance may be graded.
    """
    gains = _ranked(scores, relevant, k).astype(float)
    discount = 1 / np.log2(np.arange(2, gains.shape[1] + 2))
    best = -np.sort(-np.asarray(relevant, float), axis=1)[:, : gains.shape[1]] @ discount
    known = best > 0
    if not known.any():
        raise ValueError(
            "ndcg_at_k got no relevant item for any user.\nThe best order is what a ranking is compared with.\n"
            "Pass the relevance as an array (users, items) that is positive where an item is relevant."
        )
    return float(np.mean((gains @ discount)[known] / best[known]))


def _ranked(scores, relevant, k):
    """Relevance of the k items with the highest scores, best first. Shape (users, min(k, items))."""
    _check_k(k)
    scores, relevant = np.asarray(scores), np.asarray(relevant)
    if scores.shape != relevant.shape or scores.ndim != 2:
        raise ValueError(
            f"a ranking metric got scores of shape {scores.shape} and relevance of shape {relevant.shape}.\n"
            "Both are (users, items).\nPass one row of scores for each user, over all items."
        )
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(relevant, order, axis=1)


def _check_k(k):
    if k < 1:
        raise ValueError(f"a metric got k = {k}.\nk counts places from the top.\nUse k of at least 1.")


_NAMED = (
    accuracy, top_k_accuracy, binary_accuracy, rmse, auc, expected_calibration_error, hit_rate_at_k, ndcg_at_k,
)  # fmt: skip
METRICS = {f.__name__: f for f in _NAMED}


def find_metrics(metrics):
    """{name: function} from a list of names and functions."""
    found = {}
    for metric in metrics:
        if callable(metric):
            found[getattr(metric, "__name__", type(metric).__name__)] = metric
        elif metric in METRICS:
            found[metric] = METRICS[metric]
        else:
            raise ValueError(
                f"the metric {metric!r} was asked for.\nThe known names are: {', '.join(METRICS)}.\n"
                "Choose one of them, or pass a function of (predictions, targets)."
            )
    return found
