"""Rounding to float16 and bfloat16: every value of the formats, every midpoint between two, and random bits.

The oracles know nothing of the kernels: a format is the sorted list of its values, the nearest of two is found by exact
comparison in float64, and the even one of two is that with the even number in the format.
"""

from __future__ import annotations

import numpy as np
import pytest
from kernel_checks import assert_same, jit_only, layouts, unchanged

from minidistill.lab import round16

CODES = np.arange(65536, dtype=np.uint32)
FORMATS = {
    "float16": CODES.astype(np.uint16).view(np.float16).astype(np.float32),
    "bfloat16": (CODES << 16).view(np.float32),
}
every_format = pytest.mark.parametrize("name", FORMATS)


def functions(name):
    return getattr(round16, f"round_{name}"), getattr(round16, f"reference_{name}")


def ladder(name):
    """The values from 0 to inf in order; the entry's number is its code, so even numbers are even fractions."""
    infinity = 0x7C00 if name == "float16" else 0x7F80
    return FORMATS[name][: infinity + 1].astype(np.float64)


def beyond(name):
    """Where inf begins: the midpoint between the largest value and the next, were there one more."""
    steps = ladder(name)
    return steps[-2] + (steps[-2] - steps[-3]) / 2


@every_format
def test_a_value_of_the_format_is_rounded_to_itself(name):
    values = FORMATS[name]
    numbers = ~np.isnan(values)
    for function in functions(name):
        rounded = unchanged(function, values)
        assert rounded.dtype == np.float32
        assert (rounded.view(np.uint32) == values.view(np.uint32))[numbers].all()  # the sign of 0 too
        assert np.isnan(rounded[~numbers]).all() and (np.signbit(rounded) == np.signbit(values)).all()


@every_format
def test_halfway_between_two_neighbours_the_even_one_wins_and_beside_it_the_nearer(name):
    steps = ladder(name)
    below, above = steps[:-2], steps[1:-1]
    middle = ((below + above) / 2).astype(np.float32)
    assert (middle == (below + above) / 2).all()  # float32 holds it exactly, down to the smallest numbers of bfloat16
    even = np.where(np.arange(len(below)) % 2 == 0, below, above).astype(np.float32)
    for function in functions(name):
        for sign in (1, -1):
            sign = np.float32(sign)
            assert_same(function(sign * middle), sign * even)
            assert_same(function(sign * np.nextafter(middle, np.float32(-1))), sign * below.astype(np.float32))
            assert_same(function(sign * np.nextafter(middle, np.float32(np.inf))), sign * above.astype(np.float32))


@every_format
def test_infinity_begins_half_a_step_past_the_largest_value(name):
    first = np.float32(beyond(name))
    largest = np.float32(ladder(name)[-2])
    assert largest == {"float16": 65504, "bfloat16": np.float32(3.3895314e38)}[name]
    x = np.array([np.nextafter(first, np.float32(0)), first, np.finfo(np.float32).max, np.inf], np.float32)
    for function in functions(name):
        assert function(x).tolist() == [largest, np.inf, np.inf, np.inf]
        assert function(-x).tolist() == [-largest, -np.inf, -np.inf, -np.inf]


@every_format
def test_no_nan_becomes_a_number(name):
    """Among them those whose bits a carry would turn into inf, -0 or 0: all ones, and only the lowest one."""
    bits = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FC00000, 0x7F80FFFF, 0x7FFF8000], np.uint32)
    for function in functions(name):
        rounded = function(bits.view(np.float32))
        assert np.isnan(rounded).all()
        assert not (rounded.view(np.uint32) & (0x1FFF if name == "float16" else 0xFFFF)).any()  # a NaN of the format


@every_format
def test_random_bits_go_to_the_nearest_value(name):
    x = np.random.default_rng(0).integers(0, 2**32, 300_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, np.random.default_rng(1).normal(0, 1e-6, 100_000).astype(np.float32)])
    fast, plain = (function(x) for function in functions(name))
    np.testing.assert_array_equal(fast, plain)  # NaN equals NaN here
    finite = np.abs(x) < beyond(name)
    steps, exact = ladder(name)[:-1], np.abs(x[finite].astype(np.float64))
    place = np.searchsorted(steps, exact).clip(1, len(steps) - 1)
    distance = np.minimum(abs(steps[place] - exact), abs(exact - steps[place - 1]))
    assert (abs(np.abs(fast[finite]) - exact) == distance).all()
    assert np.isin(np.abs(fast[finite]).astype(np.float64), steps).all()


@every_format
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3, 4)])
def test_every_layout_and_writing_in_place(name, shape):
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    fast, plain = functions(name)
    expected = plain(x)
    assert expected.shape == shape and type(expected) is np.ndarray
    for _, same in layouts(x) if x.ndim else [("as is", x)]:
        assert_same(fast(same), expected)
        assert_same(plain(same), expected)
    for function in (fast, plain):
        out, own = np.full(shape, np.nan, np.float32), x.copy()
        assert function(x, out) is out and function(own, own) is own
        assert_same(out, expected)
        assert_same(own, expected)


@every_format
@jit_only
def test_a_result_that_would_be_lost_in_a_copy_is_refused(name):
    x, out = np.ones((3, 2), np.float32), np.zeros((2, 3), np.float32).T
    with pytest.raises(ValueError, match=r"shape \(3, 2\), strides \(4, 12\) to update in place"):
        getattr(round16, f"round_{name}")(x, out)
    assert not out.any()
