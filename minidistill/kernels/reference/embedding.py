"""What an embedding lookup and its gradient need.

Legend: n ids, U distinct ones among them, D width of a row.
"""

import numpy as np


def within(ids, count):
    """Whether all ids, of any integer dtype and shape, lie in [0, count)."""
    return ids.size == 0 or bool(ids.min() >= 0 and ids.max() < count)


def sum_rows(ids, values):
    """Add up the rows of `values` that belong to the same id: the gradient of an embedding lookup.

    The cost depends on how many ids there are, not on how large the table is.

    Parameters
    ----------
    ids : ndarray of int, shape (n,)
        Not negative. Repeats are what this function is for.
    values : ndarray of float32 or float64, shape (n, D)

    Returns
    -------
    rows : ndarray of int64, shape (U,)
        The distinct ids, ascending.
    sums : ndarray of values' dtype, shape (U, D)
        Added in order of occurrence, so the same batch gives the same bits.
    """
    rows, inverse = np.unique(ids, return_inverse=True)
    sums = np.zeros((len(rows), values.shape[1]), dtype=values.dtype)
    np.add.at(sums, inverse, values)  # `sums[inverse] += values` would keep only the last of each repeated id
    return rows.astype(np.int64), sums
