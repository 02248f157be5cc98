"""Metrics against the definitions, written out by brute force."""

import numpy as np
import pytest

from minidistill.training import accuracy, auc, binary_accuracy, hit_rate_at_k, ndcg_at_k, rmse, top_k_accuracy
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


def test_ties_count_against_the_label():
    assert top_k_accuracy(np.zeros((4, 3)), np.array([0, 1, 2, 0]), k=2) == 0


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


def test_users_without_relevant_items_are_left_out_and_ties_go_by_number():
    scores, relevant = np.zeros((2, 3)), np.array([[False, True, False], [False, False, False]])
    assert ndcg_at_k(scores, relevant, k=2) == pytest.approx(1 / np.log2(3))
    with pytest.raises(ValueError, match="no relevant item"):
        ndcg_at_k(scores, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and relevance of shape \(3,\)"):
        hit_rate_at_k(scores, np.zeros(3))
    with pytest.raises(ValueError, match="k = 0"):
        hit_rate_at_k(scores, relevant, k=0)


def test_the_simple_ones():
    assert rmse(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == pytest.approx(np.sqrt(2))
    assert binary_accuracy(np.array([-1.0, 0.0, 2.0]), np.array([0, 0, 1])) == 1
    assert list(find_metrics(["auc", rmse])) == ["auc", "rmse"]
