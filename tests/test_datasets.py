"""`datasets`: Dataset, its splits and batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidistill import datasets
from minidistill.datasets import Dataset, make_ratings, shift


def raises(error, match):
    """pytest.raises that also wants the three lines of the house."""
    return pytest.raises(error, match=f"(?s)(?=.*{match})[^\n]*\n[^\n]*\n[^\n]*$")


@pytest.fixture
def ten():
    return Dataset(np.arange(20.0).reshape(10, 2), np.arange(10) % 3)


# --- Dataset ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "dtype", "expected"),
    [
        (np.ones((2, 3)), np.float32, np.float32),
        (np.ones((2, 3), np.float16), np.float32, np.float32),
        (np.ones((2, 3)), None, np.float64),
        (np.ones((2, 3)), np.float64, np.float64),
        (np.ones((2, 3), ">f4"), None, np.float32),
        (np.ones((2, 3), np.int16), np.float32, np.int16),
        (np.ones((2, 3), ">i4"), np.float32, np.int32),
        (np.ones((2, 3), bool), np.float32, bool),
        ([[1.0, 2.0], [3.0, 4.0]], np.float32, np.float32),
    ],
)
def test_dtypes_of_x(x, dtype, expected):
    dataset = Dataset(x, dtype=dtype)
    assert dataset.x.dtype == np.dtype(expected) and dataset.x.dtype.isnative
    np.testing.assert_array_equal(dataset.x, x)


@pytest.mark.parametrize(
    ("y", "expected"),
    [([0, 1], np.int64), (np.uint8([0, 1]), np.int64), ([True, False], np.int64), ([0.5, 1.5], np.float32)],
)
def test_dtypes_of_y(y, expected):
    dataset = Dataset(np.ones((2, 1)), y)
    assert dataset.y.dtype == expected
    np.testing.assert_array_equal(dataset.y, y)


def test_right_arrays_are_not_copied():
    x, y = np.ones((4, 2), np.float32), np.zeros(4, np.int64)
    dataset = Dataset(x, y)
    assert dataset.x is x and dataset.y is y


def test_several_inputs():
    users, items = np.array([3, 1, 2]), np.array([0, 0, 1], np.int32)
    dataset = Dataset((users, items), [5.0, 1.0, 2.0])
    assert len(dataset) == 3 and isinstance(dataset.x, tuple)
    assert [a.dtype for a in dataset.x] == [np.int64, np.int32]
    assert [a.tolist() for a in dataset[[2, 0]].x] == [[2, 3], [1, 0]]
    assert dataset.inputs == dataset.x and dataset.inputs[0] is users


@pytest.mark.parametrize(
    ("x", "y", "error", "match"),
    [
        (np.ones((3, 2)), np.ones(4), ValueError, "x of length 3, y of length 4"),
        ((np.ones(3), np.ones(2)), None, ValueError, r"x\[0\] of length 3, x\[1\] of length 2"),
        (np.ones((0, 2)), None, ValueError, "got no samples"),
        ((), None, ValueError, "empty tuple"),
        (1.0, None, ValueError, "single number 1.0 as x"),
        (np.ones(2), 1, ValueError, "single number 1 as y"),
        ([[1.0], [1.0, 2.0]], None, ValueError, "could not make an array of x"),
        (np.array([{}, {}]), None, TypeError, "x of dtype object"),
        (np.ones(2), ["cat", "dog"], TypeError, "y of dtype <U3"),
        (np.ones(2, complex), None, TypeError, "x of dtype complex128"),
    ],
)
def test_bad_arrays(x, y, error, match):
    with raises(error, match):
        Dataset(x, y)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_counted_and_placed(value):
    x = np.zeros((4, 3))
    x[2, 1] = x[3, 0] = value
    with raises(ValueError, r"x with 2 of 12 values NaN or infinite as float32, the first at x\[2, 1\]"):
        Dataset(x)
    with raises(ValueError, r"y with 2 of 12 values .* the first at y\[2, 1\]"):
        Dataset(np.zeros(4), x)
    with raises(ValueError, r"x\[1\] with 2 of 12 values .* the first at x\[1\]\[2, 1\]"):
        Dataset((np.zeros(4), x))


def test_opposite_infinities_do_not_hide_each_other():
    with raises(ValueError, r"x with 2 of 3 values"):
        Dataset([np.inf, 1.0, -np.inf])


def test_values_that_do_not_fit_into_float32_are_told():
    with raises(ValueError, r"x with 1 of 2 values NaN or infinite as float32, the first at x\[1\]"):
        Dataset([1.0, 1e300])
    assert Dataset([1.0, 1e300], dtype=None).x[1] == 1e300


def test_large_finite_values_are_not_mistaken_for_infinite():
    large = np.full(1000, np.finfo(np.float32).max)
    assert (Dataset(large).x == large).all()


def test_dtype_must_be_floating():
    with raises(TypeError, "a floating type or None"):
        Dataset([1.0], dtype=np.int64)


def test_slices_are_views_and_arrays_are_copies(ten):
    assert np.shares_memory(ten[2:5].x, ten.x) and np.shares_memory(ten[::2].y, ten.y)
    assert not np.shares_memory(ten[[2, 3]].x, ten.x)
    np.testing.assert_array_equal(ten[2:5].x, ten.x[2:5])
    np.testing.assert_array_equal(ten[[-1, 0, 0]].x, ten.x[[9, 0, 0]])
    np.testing.assert_array_equal(ten[ten.y == 2].x, ten.x[[2, 5, 8]])
    assert ten[np.uint8([9])].y.tolist() == [0]


def test_unlabelled_parts_stay_unlabelled():
    dataset = Dataset(np.ones((5, 1)))
    assert dataset.y is None and dataset[1:3].y is None and dataset[[1]].y is None
    assert all(part.y is None for part in dataset.split(2, rng=0))
    assert all(batch.y is None for batch in dataset.batches(2))


@pytest.mark.parametrize(
    ("index", "error", "match"),
    [
        (3, TypeError, r"dataset\[i : i \+ 1\]"),
        (1.5, TypeError, r"indexed with 1\.5\."),
        ("x", TypeError, "indexed with 'x'"),
        ([[1, 2]], TypeError, r"int64 of shape \(1, 2\)"),
        ([0, 10], IndexError, "positions from 0 to 10.*between -10 and 9"),
        ([-11], IndexError, "positions from -11 to -11"),
        ([True, False], IndexError, "10 samples was indexed with a mask of 2"),
        (slice(5, 5), ValueError, "took no sample out of 10"),
        ([], ValueError, "took no sample"),
        (np.zeros(10, bool), ValueError, "took no sample"),
    ],
)
def test_bad_indices(ten, index, error, match):
    with raises(error, match):
        ten[index]


def test_num_classes(ten):
    assert ten.num_classes == 3
    for y in (None, [0.0, 1.0], [[0, 1], [1, 0]], [-1, 2]):
        with raises(ValueError, r"num_classes was asked of Dataset\(x: float32 \(2,\)"):
            Dataset(np.ones(2), y).num_classes  # noqa: B018


def test_repr(ten):
    assert repr(ten) == "Dataset(x: float32 (10, 2), y: int64 (10,))"
    assert repr(Dataset(([1], [2]))) == "Dataset(x: (int64 (1,), int64 (1,)), y: None)"


# --- split ------------------------------------------------------------------------------------------------

FRACTIONS = st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda tenths: sum(tenths) <= 10)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(n=st.integers(20, 200), tenths=FRACTIONS, seed=st.integers(0, 9))
def test_split_by_fractions_is_a_partition(n, tenths, seed):
    sizes = [tenth / 10 for tenth in tenths]
    parts = Dataset(np.arange(n)).split(*sizes, rng=seed)
    assert len(parts) == len(sizes) + (sum(tenths) < 10)
    assert sorted(np.concatenate([part.x for part in parts])) == list(range(n))
    for part, size in zip(parts, sizes, strict=False):
        assert abs(len(part) - size * n) <= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5), rest=st.integers(0, 5))
def test_split_by_counts_is_a_partition(sizes, rest):
    n = sum(sizes) + rest
    parts = Dataset(np.arange(n)).split(*sizes, rng=0)
    assert [len(part) for part in parts] == sizes + [rest] * (rest > 0)
    assert sorted(np.concatenate([part.x for part in parts])) == list(range(n))


def test_split_keeps_x_and_y_together_and_shuffles():
    n = np.arange(100)
    first, rest = Dataset((n, n + 1000), n * 2.0).split(0.3, rng=0)
    for part in (first, rest):
        np.testing.assert_array_equal(part.x[0] * 2, part.y)
        np.testing.assert_array_equal(part.x[0] + 1000, part.x[1])
    assert first.x[0].tolist() != list(range(30))


def test_split_is_seeded(ten):
    same = [ten.split(5, rng=3)[0].x.tolist() for _ in range(2)]
    assert same[0] == same[1] != ten.split(5, rng=4)[0].x.tolist()
    generator = np.random.default_rng(3)
    assert ten.split(5, rng=generator)[0].x.tolist() == same[0]
    assert ten.split(5, rng=generator)[0].x.tolist() != same[0]


@pytest.mark.parametrize(
    ("sizes", "error", "match"),
    [
        ((), TypeError, "all fractions .* or all counts"),
        ((0.5, 5), TypeError, "all fractions .* or all counts"),
        ((True,), TypeError, "all fractions .* or all counts"),
        (("0.5",), TypeError, "all fractions .* or all counts"),
        ((11,), ValueError, "add up to at most 10"),
        ((0.6, 0.5), ValueError, "add up to at most 1.0"),
        ((0,), ValueError, "must be positive"),
        ((-0.1, 0.2), ValueError, "must be positive"),
        ((float("nan"),), ValueError, "must be positive"),
        ((0.01,), ValueError, "leaves a part empty"),
        ((0.99,), ValueError, "leaves a part empty"),
    ],
)
def test_bad_sizes(ten, sizes, error, match):
    with raises(error, match):
        ten.split(*sizes)


def test_fractions_that_sum_to_one_only_nearly(ten):
    assert 0.7 + 0.2 + 0.1 != 1.0
    assert [len(part) for part in ten.split(0.7, 0.2, 0.1)] == [7, 2, 1]
    assert [len(part) for part in ten.split(1.0)] == [10]


# --- batches ----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), shuffle=st.booleans(), drop_last=st.booleans())
def test_batches_partition_the_data(n, batch_size, shuffle, drop_last):
    dataset = Dataset((np.arange(n), np.arange(n) / 2), np.arange(n) * 3)
    batches = list(dataset.batches(batch_size, rng=0, shuffle=shuffle, drop_last=drop_last))
    size = min(batch_size, n)
    assert [len(batch.index) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    index = np.concatenate([batch.index for batch in batches])
    assert index.dtype == np.int64 and len(set(index.tolist())) == len(index)
    assert len(index) == (n - n % size if drop_last else n)
    assert shuffle or index.tolist() == list(range(len(index)))
    for batch in batches:
        np.testing.assert_array_equal(batch.x[0], batch.index)
        np.testing.assert_array_equal(batch.x[1], batch.index / 2)
        np.testing.assert_array_equal(batch.y, batch.index * 3)


def test_unshuffled_batches_are_views(ten):
    assert all(np.shares_memory(b.x, ten.x) and np.shares_memory(b.y, ten.y) for b in ten.batches(3, shuffle=False))
    assert not any(np.shares_memory(b.x, ten.x) for b in ten.batches(3))


def test_batch_order_is_seeded(ten):
    def order(rng):
        return [i for batch in ten.batches(3, rng=rng) for i in batch.index]

    assert order(0) == order(0) != order(1)
    generator = np.random.default_rng(0)
    assert order(generator) == order(0)
    assert order(generator) != order(0)  # the next epoch of one generator


def test_a_batch_size_larger_than_the_data_is_one_batch(ten):
    for drop_last in (False, True):
        (batch,) = ten.batches(1000, drop_last=drop_last)
        assert len(batch.index) == 10


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, None])
def test_bad_batch_size_raises_at_the_call(ten, batch_size):
    with raises((TypeError, ValueError), f"batch_size = {batch_size}"):
        ten.batches(batch_size)


def test_global_random_state_is_not_touched(ten):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    list(ten.batches(3))
    ten.split(5)
    shift(np.ones((3, 4)), 2, 2)
    make_ratings(3, 3, 1, 4, rng=None)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# --- importing --------------------------------------------------------------------------------------------


def test_importing_datasets_loads_nothing_heavy():
    """Seen in a fresh interpreter and without `minidistill/__init__.py`, which may load more."""
    code = (
        "import sys, types\n"
        "package = types.ModuleType('minidistill')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "sys.modules['minidistill'] = package\n"
        "import minidistill.datasets\n"
        "print([m for m in ('tqdm', 'urllib.request', 'http', 'numba', 'matplotlib') if m in sys.modules])"
    )
    folder = str(Path(datasets.__file__).parents[1])
    out = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"
