"""`datasets/augment.py`: shifted images against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidistill.datasets import shift


def raises(error, match):
    """pytest.raises that also wants the three lines of the house."""
    return pytest.raises(error, match=f"(?s)(?=.*{match})[^\n]*\n[^\n]*\n[^\n]*$")


def shifted_by_loop(image, down, right):
    """The plain definition: pixel (r, c) goes to (r + down, c + right), if that is inside."""
    height, width = image.shape
    out = np.zeros_like(image)
    for r in range(height):
        for c in range(width):
            if 0 <= r + down < height and 0 <= c + right < width:
                out[r + down, c + right] = image[r, c]
    return out


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 5),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    flat=st.booleans(),
    data=st.data(),
)
def test_shift_is_one_of_the_shifts_of_the_loop(n, height, width, flat, data):
    m = data.draw(st.integers(0, min(height, width) - 1))
    images = np.arange(1, n * height * width + 1, dtype=np.int32).reshape(n, height, width)
    given_images = images.reshape(n, -1) if flat and n else images
    kept = given_images.copy()
    out = shift(given_images, height, width, m, rng=data.draw(st.integers(0, 99)))
    assert out.shape == given_images.shape and out.dtype == given_images.dtype
    np.testing.assert_array_equal(given_images, kept)
    for image, moved in zip(images, out.reshape(n, height, width), strict=True):
        distances = [(d, r) for d in range(-m, m + 1) for r in range(-m, m + 1)]
        assert any(np.array_equal(moved, shifted_by_loop(image, d, r)) for d, r in distances)


def test_shift_reaches_every_distance_alike():
    images = np.zeros((9000, 5, 5), np.float32)
    images[:, 2, 2] = 1
    out = shift(images, 5, 5, max_pixels=1, rng=0)
    counts = out.sum(axis=0)
    assert counts.sum() == 9000 and (counts > 0).sum() == 9
    # Each of nine places gets 1000 on average, with a standard deviation of sqrt(9000 * 1/9 * 8/9) = 29.8.
    assert np.abs(counts[1:4, 1:4] - 1000).max() < 4 * 29.8


def test_shift_by_zero_is_a_copy_and_seeds_count():
    images = np.random.default_rng(0).random((20, 64)).astype(np.float32)
    out = shift(images, 8, 8, max_pixels=0)
    np.testing.assert_array_equal(out, images)
    assert not np.shares_memory(out, images)
    assert (shift(images, 8, 8, 2, rng=1) == shift(images, 8, 8, 2, rng=1)).all()
    assert (shift(images, 8, 8, 2, rng=1) != shift(images, 8, 8, 2, rng=2)).any()


def test_bad_shifts():
    with raises(ValueError, r"images of shape \(3, 63\).*\(N, 64\) or \(N, 8, 8\)"):
        shift(np.ones((3, 63)), 8, 8)
    for m in (-1, 8):
        with raises(ValueError, f"max_pixels ?= ?{m}"):
            shift(np.ones((3, 64)), 8, 8, m)
