"""Metrics against the definitions, written out by brute force."""

import itertools

import numpy as np
import pytest

from minidistill import losses
from minidistill.training import (
    METRICS,
    accuracy,
    auc,
    binary_accuracy,
    expected_calibration_error,
    hit_rate_at_k,
    ndcg_at_k,
    rmse,
    top_k_accuracy,
)
from minidistill.training.metrics import find_metrics


def test_accuracy_of_ids_and_of_rows():
    logits = np.array([[1.0, 2], [3, 0], [0, 1], [5, 4]])
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.75
    assert accuracy(logits, np.eye(2)[[1, 0, 0, 0]]) == 0.75


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_by_sorting(rng, k):
    logits, labels = rng.normal(size=(200, 6)), rng.integers(0, 6, 200)
    expected = np.mean([y in np.argsort(-z)[:k] for z, y in zip(logits, labels)])
    assert top_k_accuracy(logits, labels, k=k) == expected
    assert top_k_accuracy(logits, labels, k=1) == accuracy(logits, labels)


def test_auc_by_comparing_all_pairs(rng):
    for decimals in (8, 0):  # without and with ties
        scores, targets = np.round(rng.normal(size=120), decimals), rng.integers(0, 2, 120)
        positive, negative = scores[targets == 1], scores[targets == 0]
        wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
        assert auc(scores, targets) == pytest.approx(wins, abs=1e-12)
    with pytest.raises(ValueError, match="3 positive and 0 negative"):
        auc(np.arange(3), np.ones(3))


def test_rankings_by_hand():
    scores = np.array([[0.1, 0.9, 0.5, 0.3], [0.9, 0.1, 0.2, 0.3]])
    relevant = np.array([[True, False, True, False], [False, True, False, False]])
    assert hit_rate_at_k(scores, relevant, k=2) == 0.5
    best = 1 + 1 / np.log2(3)
    assert ndcg_at_k(scores, relevant, k=2) == pytest.approx(((1 / np.log2(3)) / best + 0) / 2)
    assert ndcg_at_k(scores, relevant, k=10) == pytest.approx(
        ((1 / np.log2(3) + 1 / np.log2(5)) / best + 1 / np.log2(5)) / 2
    )
    assert ndcg_at_k(relevant.astype(float), relevant, k=3) == 1


def test_users_without_relevant_items_are_left_out():
    scores, relevant = np.array([[3.0, 2, 1], [1, 2, 3]]), np.array([[False, True, False], [False, False, False]])
    assert ndcg_at_k(scores, relevant, k=2) == pytest.approx(1 / np.log2(3))
    with pytest.raises(ValueError, match="no relevant item"):
        ndcg_at_k(scores, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and relevance of shape \(3,\)"):
        hit_rate_at_k(scores, np.zeros(3))


def one_order(metric, scores, relevant, k):
    """The definition for one user, by a loop over the items as they are ordered."""
    ordered = relevant[np.argsort(-scores)]
    if metric is hit_rate_at_k:
        return float(any(ordered[:k]))
    gained, best = (sum(g / np.log2(i + 2) for i, g in enumerate(o[:k])) for o in (ordered, sorted(ordered)[::-1]))
    return gained / best


@pytest.mark.parametrize("metric", [hit_rate_at_k, ndcg_at_k])
@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_ties_count_at_the_mean_over_all_orders(rng, metric, k):
    """Every permutation of five items decides the ties once: those of equal scores are equally likely."""
    scores = np.array([[0, 0, 0, 0, 0], [2, 1, 1, 1, 0], [1, 1, 0, 0, 0], [3, 3, 3, 1, 1], [5, 4, 3, 2, 1]])
    relevant = np.array([[1, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]])
    if metric is ndcg_at_k:
        relevant *= 3  # graded
        relevant[1, 2] = 1
    for user, (s, r) in enumerate(zip(scores, relevant)):
        orders = [np.array(order) for order in itertools.permutations(range(5))]
        expected = np.mean([one_order(metric, s + 0.1 * order, r, k) for order in orders])
        shuffled = rng.permutation(5)  # where an item stands in the array decides nothing
        assert metric(s[None], r[None], k=k) == pytest.approx(expected, abs=1e-12), user
        assert metric(s[None, shuffled], r[None, shuffled], k=k) == pytest.approx(expected, abs=1e-12), user
    each = [metric(s[None], r[None], k=k) for s, r in zip(scores, relevant)]
    assert metric(scores, relevant, k=k) == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_ties_of_classes_count_at_the_mean_over_all_orders(k):
    logits = np.array([[1, 1, 1, 1], [0, 2, 2, 1], [2, 2, 2, 0], [4, 3, 2, 1], [0, 0, 5, 0]])
    labels = np.array([2, 1, 0, 3, 0])
    orders = [np.array(order) for order in itertools.permutations(range(4))]
    expected = np.mean([[y in np.argsort(-(z + 0.1 * o))[:k] for o in orders] for z, y in zip(logits, labels)])
    assert top_k_accuracy(logits, labels, k=k) == pytest.approx(expected, abs=1e-12)


def test_constant_scores_get_what_chance_gets():
    """A dead model: 100 items, the relevant one first. HR@1 was 1.0, NDCG@10 too, top-5 accuracy 0."""
    scores, relevant = np.zeros((4, 100)), np.zeros((4, 100), bool)
    relevant[:, 0] = True
    assert hit_rate_at_k(scores, relevant, k=1) == pytest.approx(0.01, abs=1e-12)
    assert hit_rate_at_k(scores, relevant, k=10) == pytest.approx(0.1, abs=1e-12)
    assert ndcg_at_k(scores, relevant, k=10) == pytest.approx(np.sum(1 / np.log2(np.arange(2, 12))) / 100, abs=1e-12)
    assert top_k_accuracy(scores, np.zeros(4, int), k=5) == pytest.approx(0.05, abs=1e-12)
    assert auc(scores, relevant) == 0.5
    assert accuracy(scores, np.array([0, 0, 0, 7])) == 0.75  # a decision, always for class 0, and right so often


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint64", "int64", "float16", "float64"])
def test_numbers_of_any_type_are_ordered_and_subtracted_right(dtype):
    scores = np.array([[1, 0, 0]] if dtype == "bool" else [[3, 0, 2]]).astype(dtype)
    relevant = np.array([[1, 0, 0]])
    for kind in ("bool", "uint8", "int64", "float32"):
        assert ndcg_at_k(scores, relevant.astype(kind)) == 1
        assert hit_rate_at_k(scores, relevant.astype(kind), k=1) == 1
    assert top_k_accuracy(scores, np.array([0], np.uint8), k=1) == accuracy(scores, np.array([0], np.uint8)) == 1
    assert auc(scores[0], relevant[0]) == 1
    assert rmse(relevant.astype(dtype) * 0, relevant.astype(dtype)) == pytest.approx(np.sqrt(1 / 3))
    if dtype != "bool":  # [1, 0, 0] are probabilities
        z = scores.astype(float)
        assert expected_calibration_error(scores, np.array([0])) == pytest.approx(1 - np.exp(z[0, 0]) / np.exp(z).sum())


def test_the_error_of_bytes_is_not_taken_modulo_256():
    assert rmse(np.array([0], np.uint8), np.array([255], np.uint8)) == 255
    assert rmse(np.array([200], np.uint8), np.array([100], np.int8)) == 100


MATCHING = ("binary_accuracy", "rmse", "auc")
CLASSES = ("accuracy", "top_k_accuracy", "expected_calibration_error")


def example(name, rng):
    """Predictions and targets that the metric takes."""
    if name in MATCHING:
        return rng.normal(size=4), np.array([0.0, 1, 1, 0])
    if name in CLASSES:
        return rng.normal(size=(4, 3)), np.array([0, 1, 2, 0])
    return rng.normal(size=(4, 3)), np.add(np.eye(4, 3), [0, 0, 1])


@pytest.mark.parametrize("name", METRICS)
def test_metrics_never_broadcast(name, rng):
    predictions, targets = example(name, rng)
    assert np.isfinite(METRICS[name](predictions, targets))
    for wrong in (targets[:, None], targets[:1], targets[None]):
        with pytest.raises(ValueError, match=r"of shape") as caught:
            METRICS[name](predictions, wrong)
        assert len(str(caught.value).split("\n")) == 3
    with pytest.raises(ValueError, match="of shape"):
        METRICS[name](predictions[:, None], targets)
    with pytest.raises(ValueError, match="at least one"):
        METRICS[name](predictions[:0], targets[:0])


@pytest.mark.parametrize("name", METRICS)
def test_nan_is_no_result(name, rng):
    for side in (0, 1):
        pair = [np.array(array, float) for array in example(name, rng)]
        pair[side][1:3] = np.nan
        with pytest.raises(ValueError, match=r"NaN as (predictions|targets|logits|labels|scores|relevance)"):
            METRICS[name](*pair)


def test_infinite_scores_are_scores_and_an_infinite_confidence_is_none():
    scores, relevant = np.array([[-np.inf, 1, np.inf]]), np.array([[0, 0, 1]])
    assert hit_rate_at_k(scores, relevant, k=1) == ndcg_at_k(scores, relevant) == accuracy(scores, np.array([2])) == 1
    with pytest.raises(ValueError, match="largest logits of the rows with 1 NaN or infinite"):
        expected_calibration_error(scores, np.array([2]))


@pytest.mark.parametrize(
    ("logits", "labels", "cure"),
    [
        (np.zeros((4, 3)), np.zeros((4, 1), int), r"y\.ravel\(\)"),
        (np.zeros((4, 1)), np.zeros((4, 1), int), r"binary_accuracy"),
        (np.zeros((4, 1)), np.zeros(4, int), r"binary_accuracy"),
        (np.zeros(4), np.zeros(4, int), r"binary_accuracy"),
        (np.zeros((4, 3)), np.ones((4, 3), int), r"binary_accuracy"),
        (np.zeros((4, 3)), np.zeros(4), r"y\.astype\(np\.int64\)"),
        (np.zeros((4, 3)), np.array([0, 1, 2, -100]), "from -100 to 2"),
        (np.zeros((4, 3)), np.array([0, 1, 2, 3]), "from 0 to 3"),
    ],
)
def test_what_names_no_class_is_told_with_its_cure(logits, labels, cure):
    with pytest.raises(ValueError, match=cure):
        accuracy(logits, labels)


def test_cures_of_shapes_work_as_they_stand():
    predictions, y = np.ones((3, 1)), np.zeros(3)
    with pytest.raises(ValueError, match=r"y\.reshape\(3, 1\)\.$"):
        rmse(predictions, y)
    assert rmse(predictions, y.reshape(3, 1)) == 1
    with pytest.raises(ValueError, match=r"y\.argmax\(axis=1\)\.$"):
        top_k_accuracy(np.eye(3), np.eye(3, dtype=int))
    assert top_k_accuracy(np.eye(3), np.eye(3, dtype=int).argmax(axis=1), k=1) == 1


def test_counts_are_whole_numbers_of_any_kind():
    scores, relevant, labels = np.eye(3), np.eye(3), np.arange(3)
    for k in (1, np.int64(1), np.uint8(1)):
        assert hit_rate_at_k(scores, relevant, k=k) == ndcg_at_k(scores, relevant, k=k) == 1
        assert top_k_accuracy(scores, labels, k=k) == 1
        assert expected_calibration_error(scores * 9, labels, bins=k) < 1e-3
    for metric in (hit_rate_at_k, ndcg_at_k, top_k_accuracy):
        for k, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
            with pytest.raises(error, match=f"{metric.__name__} got k = {k}"):
                metric(scores, labels if metric is top_k_accuracy else relevant, k=k)


def test_the_simple_ones():
    assert rmse(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == pytest.approx(np.sqrt(2))
    assert binary_accuracy(np.array([-1.0, 0.0, 2.0]), np.array([0, 0, 1])) == 1
    assert list(find_metrics(["auc", rmse])) == ["auc", "rmse"]


@pytest.mark.parametrize(
    ("metrics", "error", "text"),
    [
        ("accuracy", TypeError, r"metrics = 'accuracy'\.\n.*\nWrite metrics=\['accuracy'\]\."),
        (rmse, TypeError, r"metrics = <function rmse at .*>\.\n.*\nWrite metrics=\[rmse\]\."),
        (3, TypeError, r"metrics = 3\.\n.*\nWrite metrics=\['accuracy'\]\."),
        (["acuracy"], ValueError, r"'acuracy'(.|\n)*Write metrics=\['accuracy'\]"),
        (["rmse", rmse], ValueError, "a name of its own"),
        ([lambda p, t: 0.0, lambda p, t: 1.0], ValueError, "a name of its own"),
    ],
)
def test_what_is_no_list_of_metrics_is_told(metrics, error, text):
    with pytest.raises(error, match=text):
        find_metrics(metrics)


def test_results_are_floats_or_refused():
    p, t = np.array([1.0, 3.0]), np.array([0.0, 1.0])

    def vector(predictions, targets):
        return predictions - targets

    found = find_metrics([losses.mae, lambda p, t: np.float32(2), vector])
    assert list(found) == ["mae", "<lambda>", "vector"]
    assert [(type(found[name](p, t)), found[name](p, t)) for name in ("mae", "<lambda>")] == [
        (float, 1.5),
        (float, 2.0),
    ]
    with pytest.raises(TypeError, match=r"the metric 'vector' is a ndarray of shape \(2,\)"):
        found["vector"](p, t)
