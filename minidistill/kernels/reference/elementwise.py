"""Functions of single numbers."""

import math

import numpy as np


def erf(x):
    """The error function, 2 / sqrt(pi) times the integral of exp(-t²) from 0 to x. GELU needs it.

    Parameters
    ----------
    x : ndarray of float32 or float64, any shape

    Returns
    -------
    ndarray of the same shape and dtype
    """
    flat = [math.erf(value) for value in x.ravel()]
    return np.array(flat, dtype=x.dtype).reshape(x.shape)


def all_finite(x):
    """Whether no number is NaN or infinite.

    Parameters
    ----------
    x : ndarray of float32 or float64, any shape

    Returns
    -------
    bool
    """
    return bool(np.isfinite(x).all())


def count_beyond(arrays, limit):
    """How many numbers of several arrays lie outside of [-limit, limit]; infinity does, and so does NaN.

    Parameters
    ----------
    arrays : tuple of ndarray of float32 or float64, all of one dtype, shape (any,)
        As `together` makes them.
    limit : float

    Returns
    -------
    int
    """
    return sum(int(np.count_nonzero(~(np.abs(array) <= limit))) for array in arrays)
