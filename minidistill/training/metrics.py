"""Metrics: what a model is judged by. Each takes predictions and targets as arrays and returns one number.

Names in `METRICS` can be given to ``fit`` and ``evaluate`` as text. Nothing here is differentiable.

Shapes: predictions and targets must fit as each docstring says, and nothing is broadcast: (N, 1) against (N,) would be an
N x N comparison. NaN raises everywhere, infinity may be a score. Integers and booleans of any type are numbers as they stand.

Ties: a metric of an order (`top_k_accuracy`, `hit_rate_at_k`, `ndcg_at_k`, `auc`) has the mean of its values over all orders
of the tied items, as if each were equally likely. So constant scores get what chance gets, wherever the relevant items stand
in the array. McSherry & Najork 2008, "Computing information retrieval performance measures efficiently in the presence of
tied scores"; `ndcg_score` of scikit-learn does the same. A metric of a decision (`accuracy`, `binary_accuracy`,
`expected_calibration_error`) judges the decision that a program makes of the outputs: ``logits.argmax(axis=1)``, which takes
the lowest of tied classes, and ``logit > 0``. There is nothing to average: the model answers the same each time.
"""

from __future__ import annotations

import numpy as np

from .. import checks
from .returned import plain_number


def accuracy(logits, labels):
    """Fraction of rows whose largest logit is at the label.

    Parameters
    ----------
    logits : ndarray, shape (N, C), of at least two classes
    labels : ndarray
        Class ids (N,), or rows (N, C) whose largest entry is at the class: one-hot, or probabilities.
    """
    logits, labels = _classes("accuracy", logits, labels, rows=True)
    return float(np.mean(logits.argmax(axis=1) == labels))


def top_k_accuracy(logits, labels, k=5):
    """Fraction of rows whose label is among the k largest logits; ties as above. Shapes as in `accuracy`, labels as ids.

    Of t equal logits, the label's among them, with a larger ones before them, k - a get one of the first k places.
    """
    k = checks.whole("top_k_accuracy", "k", k, "[1, inf)", "how many classes count from the top", 5)
    logits, labels = _classes("top_k_accuracy", logits, labels)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    larger, equal = (logits > own).sum(axis=1), (logits == own).sum(axis=1)
    return float(np.mean(np.clip((k - larger) / equal, 0, 1)))


def binary_accuracy(logits, targets):
    """Fraction of elements where (logit > 0) equals (target > 0.5). Any equal shapes."""
    logits, targets = _alike("binary_accuracy", logits, targets)
    return float(np.mean((logits > 0) == (targets > 0.5)))


def rmse(predictions, targets):
    """Root of the mean squared error over all elements, in float64. Any equal shapes."""
    predictions, targets = _alike("rmse", predictions, targets)
    return float(np.sqrt(np.mean(np.subtract(predictions, targets, dtype=np.float64) ** 2)))


def auc(scores, targets):
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counting half.

    From the rank sum (Mann & Whitney 1947; Hanley & McNeil 1982, section II), in O(n log n).

    Parameters
    ----------
    scores : ndarray
    targets : ndarray
        0 and 1, at least one of each. Both of one shape; over all elements.
    """
    scores, targets = _alike("auc", scores, targets)
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
    bins = checks.whole(
        "the calibration error", "bins", bins, "[1, inf)", "how many ranges of confidence there are", 15
    )
    logits, labels = _classes("the calibration error", logits, labels)
    z = logits.astype(np.float64)
    checks.finite("the calibration error", "largest logits of the rows", z.max(axis=1), "Find out where they overflow.")
    if z.min() >= 0 and np.abs(z.sum(axis=1) - 1).max() < 1e-4:
        raise ValueError(
            "the calibration error got rows of numbers that are not negative and sum to 1.\nIt takes logits, not "
            "probabilities.\nPass md.predict(model, x) of a model without a softmax, or the logarithm of the rows."
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

    Ties as above: of t items at the k-th highest score, r of them relevant, as many as there are places left are drawn; the
    chance that none of these is relevant is hypergeometric.

    Parameters
    ----------
    scores : ndarray, shape (users, items)
    relevant : ndarray of bool, shape (users, items)
        Numbers count as relevant where they are positive.
    k : int
    """
    scores, relevant, k = _rankings("hit_rate_at_k", scores, relevant, k)
    last = np.partition(scores, -k, axis=1)[:, -k, None]  # the k-th highest
    above, equal, relevant = scores > last, scores == last, relevant > 0
    left, tied, good = k - above.sum(axis=1), equal.sum(axis=1), (equal & relevant).sum(axis=1)
    missed = 1.0 - (above & relevant).any(axis=1)
    for i in range(left.max()):  # draw without replacement, for all users at once
        missed *= np.where(i < left, np.maximum(tied - good - i, 0) / np.maximum(tied - i, 1), 1)
    return float(np.mean(1 - missed))


def ndcg_at_k(scores, relevant, k=10):
    """Normalised discounted cumulative gain of the k highest scores, averaged over users (Järvelin & Kekäläinen 2002).

    The gain of the item at place i (from 1) is relevant / log2(i + 1); the sum is divided by that of the best possible
    order. Tied items each gain the mean over their group. Users without a relevant item are left out. Parameters as in
    `hit_rate_at_k`; relevance may be graded.
    """
    scores, relevant, k = _rankings("ndcg_at_k", scores, relevant, k)
    order = np.argsort(scores, axis=1)[:, ::-1]
    ranked, gains = np.take_along_axis(scores, order, axis=1), np.take_along_axis(relevant, order, axis=1).astype(float)
    first = np.ones(ranked.shape, bool)  # of its group of equal scores
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    if not first.all():
        group = np.cumsum(first).reshape(first.shape) - 1
        gains = (np.bincount(group.ravel(), gains.ravel()) / np.bincount(group.ravel()))[group]
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = (np.sort(relevant.astype(float), axis=1)[:, ::-1][:, :k] * discount).sum(axis=1)
    known = best > 0
    if not known.any():
        raise ValueError(
            "ndcg_at_k got no relevant item for any user.\nThe best order is what a ranking is compared with.\n"
            "Pass the relevance as an array (users, items) that is positive where an item is relevant."
        )
    return float(np.mean((gains[:, :k] * discount).sum(axis=1)[known] / best[known]))


def _alike(who, predictions, targets, names=("predictions", "targets")):
    """Both as arrays of one shape."""
    predictions, targets = (_numbers(who, name, values) for name, values in zip(names, (predictions, targets)))
    if predictions.shape != targets.shape:
        fits = predictions.size == targets.size
        cure = f"Reshape the {names[1]}: y.reshape{predictions.shape}." if fits else f"Give as many {names[1]}."
        raise ValueError(
            f"{who} got {names[0]} of shape {predictions.shape} and {names[1]} of shape {targets.shape}.\n"
            f"Both have one shape; nothing is broadcast.\n{cure}"
        )
    return predictions, targets


def _classes(who, logits, labels, rows=False):
    """(logits (N, C), class ids (N,) in [0, C)). ``rows``: labels may be rows (N, C) whose largest entry is at the class."""
    logits, labels = _numbers(who, "logits", logits), _numbers(who, "labels", labels)
    if rows and labels.shape == logits.shape and labels.ndim == 2 and labels.shape[1] > 1:
        if labels.dtype.kind == "f" or (labels.astype(bool).sum(axis=1) == 1).all():
            return logits, labels.argmax(axis=1)
        cure = 'Several labels in a row are judged one by one: metrics=["binary_accuracy"].'
    elif logits.ndim != 2 or logits.shape[1] < 2:
        cure = (
            'One number a sample is a yes or no: metrics=["binary_accuracy"], with targets of the shape of the logits.'
        )
    elif labels.shape == logits.shape:
        cure = "Make ids of the rows: y.argmax(axis=1)."
    elif labels.size == len(logits) and labels.ndim != 1:
        cure = "Make the ids a vector: y.ravel()."
    elif labels.ndim == 1 and labels.dtype.kind == "f":
        cure = "Make the ids whole numbers: y.astype(np.int64)."
    else:
        labels = labels.astype(np.int64)
        if labels.shape == logits.shape[:1] and labels.min() >= 0 and labels.max() < logits.shape[1]:
            return logits, labels
        cure = "Give a class id for each row of logits, numbered from 0; drop rows without one: y[y >= 0], x[y >= 0]."
    ids = f"{labels.dtype} labels of shape {labels.shape}, from {float(labels.min()):.6g} to {float(labels.max()):.6g}"
    raise ValueError(
        f"{who} got logits of shape {logits.shape} and {ids}.\nLogits are (N, C) with C of at least 2, labels N class ids "
        f"in [0, C){' or N rows that name one class each' if rows else ''}.\n{cure}"
    )


def _rankings(who, scores, relevant, k):
    """(scores, relevance, both (users, items), the number of places that count)."""
    k = checks.whole(who, "k", k, "[1, inf)", "how many places count from the top", 10)
    scores, relevant = _alike(who, scores, relevant, ("scores", "relevance"))
    if scores.ndim != 2 or relevant.min() < 0:
        raise ValueError(
            f"{who} got scores of shape {scores.shape}, and a relevance of {float(relevant.min()):.4g}.\nBoth are (users, "
            "items), and relevance is not negative.\nPass one row for each user, with 0 for what is not relevant."
        )
    return scores, relevant, min(k, scores.shape[1])


def _numbers(who, name, values):
    """An array of real numbers, not empty and without NaN: an average over any of these would be a number all the same."""
    values = np.asarray(values)
    nan = values.dtype.kind == "f" and np.isnan(values).sum()
    if nan or values.dtype.kind not in "buif" or values.size == 0:
        found = f"{nan} NaN" if nan else f"an array of shape {values.shape} and type {values.dtype}"
        raise ValueError(
            f"{who} got {found} as {name}.\nA metric takes real numbers, at least one and none of them NaN.\n"
            "Find out where they come from; leave out samples without a target."
        )
    return values


_ALL = accuracy, top_k_accuracy, binary_accuracy, rmse, auc, expected_calibration_error, hit_rate_at_k, ndcg_at_k
METRICS = {metric.__name__: metric for metric in _ALL}


def find_metrics(metrics):
    """{name: function that returns a float} from a list of names and functions."""
    one = getattr(metrics, "__name__", repr(metrics)) if isinstance(metrics, str) or callable(metrics) else "'accuracy'"
    rule, advice = "a list of names and functions", f"Write metrics=[{one}]."
    checks.instance("training", "metrics", metrics, (list, tuple), rule, advice)
    found = [_named(metric) for metric in metrics]
    names = [name for name, _ in found]
    if len(set(names)) < len(names) or "loss" in names:
        raise ValueError(
            f"training got metrics named {names}.\nEach needs a name of its own, and 'loss' is taken.\n"
            "Rename the function, or wrap it in a def."
        )
    return dict(found)


def _named(metric):
    """(name, the metric with a float as its result)."""
    if not callable(metric):
        advice = "Write metrics=['accuracy'], or pass a function of (predictions, targets)."
        metric = METRICS[checks.choice("training", "a metric", metric, METRICS, advice)]
    name = getattr(metric, "__name__", type(metric).__name__)

    def as_float(predictions, targets):
        return float(plain_number(f"the result of the metric {name!r}", metric(predictions, targets)))

    as_float.__wrapped__ = metric
    return name, as_float
