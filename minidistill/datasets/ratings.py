"""Made-up ratings whose true structure is known.

Read `dataset.py` before it. Matrix factorisation (Y. Koren, R. Bell, C. Volinsky, "Matrix Factorization
Techniques for Recommender Systems", IEEE Computer 42(8), 2009) assumes that a table of ratings is nearly of
low rank. Here it is so by construction, and a model can be compared with the truth, also where nothing was
observed.

Given up for simplicity: pairs are observed uniformly at random, where real users prefer popular items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import checks
from .dataset import Dataset


class MadeRatings(NamedTuple):
    """What `make_ratings` returns.

    Attributes
    ----------
    dataset : Dataset
        ``x = (user_ids, item_ids)``, both int64 of shape (observations,); `y` float32, the noisy scores.
    user_factors : ndarray of float32, shape (users, rank)
    item_factors : ndarray of float32, shape (items, rank)
        The true score of every pair is ``user_factors @ item_factors.T``.
    """

    dataset: Dataset
    user_factors: np.ndarray
    item_factors: np.ndarray


def make_ratings(users, items, rank, observations, noise=0.1, rng=0):
    """Draw a score table of rank `rank` and observe some of its cells through noise.

    True scores have mean 0 and variance 1 over the table (in expectation); the best possible mean squared
    error on the observations is therefore ``noise ** 2``, and that of always predicting 0 is ``1 + noise **
    2``.

    Parameters
    ----------
    users, items, rank : int
    observations : int
        Number of different (user, item) pairs, at most ``users * items``.
    noise : float
        Standard deviation of the Gaussian noise on each observation, in units of the scores' own.
    rng : int, Generator or None

    Returns
    -------
    MadeRatings

    Raises
    ------
    ValueError
        If a number is below 1, `observations` exceeds the table, or `noise` is negative or not finite.
    """
    for name, value in (("users", users), ("items", items), ("rank", rank), ("observations", observations)):
        checks.whole("make_ratings()", name, value, "[1, inf)", "a count", 100)
    checks.number("make_ratings()", "noise", noise, "[0, inf)", "a standard deviation", 0.1)
    if observations > users * items:
        given = f"{users} users, {items} items and {observations} observations"
        rule = f"All are different: observations are at most the {users * items} pairs."
        raise ValueError(f"make_ratings() got {given}.\n{rule}\nAsk for fewer observations or a larger table.")
    rng = checks.generator("make_ratings()", rng)
    spread = rank**-0.25  # a sum of `rank` products of two such normals has variance rank * spread**4 = 1
    user_factors = rng.normal(0, spread, size=(users, rank)).astype(np.float32)
    item_factors = rng.normal(0, spread, size=(items, rank)).astype(np.float32)
    cells = rng.choice(users * items, size=observations, replace=False)
    user_ids, item_ids = np.divmod(cells.astype(np.int64), items)
    scores = np.einsum("nr,nr->n", user_factors[user_ids], item_factors[item_ids])
    observed = scores + rng.normal(0, noise, size=observations)
    return MadeRatings(Dataset((user_ids, item_ids), observed), user_factors, item_factors)
