"""`datasets/ratings.py`: ratings whose true structure is known."""

from __future__ import annotations

import numpy as np
import pytest

from minidistill.datasets import make_ratings


def raises(error, match):
    """pytest.raises that also wants the three lines of the house."""
    return pytest.raises(error, match=f"(?s)(?=.*{match})[^\n]*\n[^\n]*\n[^\n]*$")


def test_ratings_have_the_promised_structure():
    dataset, user_factors, item_factors = make_ratings(60, 40, rank=3, observations=1500, noise=0.2, rng=1)
    users, items = dataset.x
    assert user_factors.shape == (60, 3) and item_factors.shape == (40, 3)
    assert users.dtype == items.dtype == np.int64 and dataset.y.dtype == user_factors.dtype == np.float32
    assert users.min() >= 0 and users.max() < 60 and items.min() >= 0 and items.max() < 40
    assert len(set(zip(users.tolist(), items.tolist(), strict=True))) == 1500
    truth = user_factors @ item_factors.T
    assert np.linalg.matrix_rank(truth) == 3
    error = dataset.y - truth[users, items]
    # The spread of a standard deviation from n samples is about sd / sqrt(2n); four of them.
    assert abs(error.std() - 0.2) < 4 * 0.2 / np.sqrt(3000)
    assert abs(error.mean()) < 4 * 0.2 / np.sqrt(1500)


def test_ratings_without_noise_are_the_truth_in_every_cell():
    dataset, user_factors, item_factors = make_ratings(7, 5, rank=2, observations=35, noise=0.0)
    table = np.empty((7, 5), np.float32)
    table[dataset.x] = dataset.y
    np.testing.assert_allclose(table, user_factors @ item_factors.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_scores_have_variance_one_at_every_rank(rank):
    _, user_factors, item_factors = make_ratings(2000, 2000, rank, observations=1, rng=0)
    assert abs(np.var(user_factors @ item_factors.T) - 1) < 0.1


def test_ratings_are_seeded():
    one, two, three = (make_ratings(9, 9, 2, 30, rng=seed) for seed in (5, 5, 6))
    assert (one.dataset.y == two.dataset.y).all() and (one.dataset.y != three.dataset.y).any()


@pytest.mark.parametrize(
    "bad",
    [
        {"users": 0},
        {"items": 0},
        {"rank": 0},
        {"observations": 0},
        {"observations": 13},
        {"noise": -1},
        {"noise": np.nan},
    ],
)
def test_bad_ratings(bad):
    (name, value), large = *bad.items(), bad == {"observations": 13}
    with raises(
        ValueError, "observations are at most the 12 pairs" if large else rf"got {name} = {value}\..*Write {name}="
    ):
        make_ratings(**{"users": 3, "items": 4, "rank": 1, "observations": 5, **bad})
