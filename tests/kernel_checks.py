"""What the three files of kernel tests share: odd memory layouts, tolerances, and how to compare."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings

from minidistill.kernels import _jit

DTYPES = (np.float32, np.float64)
TOLERANCE = {np.float32: 1e-6, np.float64: 1e-15}  # a few units in the last place of values near 1

seeded = settings(max_examples=60, deadline=None, derandomize=True, database=None)
jit_only = pytest.mark.skipif(not _jit.JIT_ENABLED, reason="NUMBA_DISABLE_JIT=1: nothing is compiled")


def assert_close(actual, expected, dtype):
    tolerance = TOLERANCE[np.dtype(dtype).type]
    np.testing.assert_allclose(actual, expected, rtol=4 * tolerance, atol=tolerance)


def assert_same(actual, expected):
    """Equal in dtype, shape and every bit that `==` sees."""
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert (actual == expected).all()


def layouts(array):
    """The same values in every layout that Numba would compile separately, or that a kernel could misread."""
    yield "as is", array
    yield "Fortran order", np.asfortranarray(array)
    yield "every second of a larger one", np.repeat(array, 2, axis=-1)[..., ::2]
    yield "reversed twice", np.flip(np.ascontiguousarray(np.flip(array)))
    frozen = array.copy()
    frozen.setflags(write=False)
    yield "read-only", frozen
    shifted = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    yield "misaligned", shifted


def unchanged(function, *args):
    """Call the function and check that it did not write to an argument."""
    before = [np.array(a, copy=True) for a in args]
    result = function(*args)
    for was, now in zip(before, args, strict=True):
        assert np.array(now).tobytes() == was.tobytes()
    return result
