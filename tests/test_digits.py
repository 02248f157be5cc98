"""`datasets/digits.py`: the data that ship with the package."""

from __future__ import annotations

import numpy as np

from minidistill import datasets
from minidistill.datasets import load_digits
from minidistill.files import read_npz, sha256

# The three arrays were compared with scikit-learn 1.9.1's load_digits when the file was made.
DIGITS_SHA256 = "bce1e7dd0a2ad5b236f99eb1ef20349d4a660cd920947e937877aeef0d135a0d"


def test_digits_file_is_the_published_one():
    assert sha256(datasets.digits.DIGITS_FILE) == DIGITS_SHA256
    assert datasets.digits.DIGITS_FILE.stat().st_size < 60_000


def test_digits_licence_stands_beside_them():
    text = datasets.digits.DIGITS_FILE.with_name("DIGITS_LICENSE.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text and "10.24432/C50P49" in text and "Alpaydin" in text


def test_digits():
    train, test = load_digits()
    assert repr(train) == "Dataset(x: float32 (1297, 64), y: int64 (1297,))"
    assert repr(test) == "Dataset(x: float32 (500, 64), y: int64 (500,))"
    for part in (train, test):
        assert part.x.min() == 0.0 and part.x.max() == 1.0 and part.num_classes == 10
        np.testing.assert_array_equal(part.x * 16, np.rint(part.x * 16))
        assert np.bincount(part.y).min() >= 39
    total = np.bincount(np.concatenate([train.y, test.y]))
    assert total.tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]  # as UCI publishes for optdigits.tes


def test_digits_original_order_can_be_recovered():
    arrays = read_npz(datasets.digits.DIGITS_FILE)
    order = arrays["order"]
    assert sorted(order.tolist()) == list(range(1797))
    np.testing.assert_array_equal(order, np.random.default_rng(0).permutation(1797))
    train, test = load_digits()
    pixels, labels = np.empty((1797, 64), np.float32), np.empty(1797, np.int64)
    pixels[order] = np.concatenate([train.x, test.x])
    labels[order] = np.concatenate([train.y, test.y])
    np.testing.assert_array_equal(pixels * 16, arrays["images"])
    np.testing.assert_array_equal(labels, arrays["labels"])
    first = [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]  # the first two rows of sample 0, a zero
    assert arrays["images"][0, :16].tolist() == first
    assert arrays["labels"][:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_digits_are_fresh_arrays():
    load_digits()[0].x[:] = 7
    assert load_digits()[0].x.max() == 1.0
