"""The kernels: what they compute (against oracles written differently), and that fast and reference agree.

Under `NUMBA_DISABLE_JIT=1` `kernels.f` *is* `reference.f`: then the comparisons of the two are trivial and
the oracles carry the weight. The optimizer steps are tested in `test_kernels_optimizer.py`, how all of it is
compiled in `test_kernels_jit.py`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_checks import DTYPES, assert_close, assert_same, layouts, seeded, unchanged

from minidistill import kernels
from minidistill.kernels import reference

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


# ---- erf -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_at_known_points(dtype):
    x = np.array([0.0, 0.5, 1.0, 2.0, -0.5, 6.0, np.inf, -np.inf], dtype)
    # Abramowitz & Stegun, table 7.1
    known = [0.0, 0.5204998778, 0.8427007929, 0.9953222650, -0.5204998778, 1.0, 1.0, -1.0]
    np.testing.assert_allclose(kernels.erf(x), known, rtol=1e-9 if dtype is np.float64 else 2e-7)
    assert np.isnan(kernels.erf(np.array([np.nan], dtype))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (4, 5), (2, 3, 4)])
def test_erf_keeps_shape_and_dtype_in_every_layout(dtype, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    expected = reference.erf(x)
    assert expected.shape == shape
    assert expected.dtype == dtype
    for name, same in layouts(x) if x.ndim else [("as is", x)]:
        actual = unchanged(kernels.erf, same)
        assert isinstance(actual, np.ndarray), name
        assert actual.shape == shape, name
        assert actual.dtype == dtype, name
        assert_close(actual, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_finite_finds_one_bad_number_wherever_it_stands(dtype):
    x = np.full((7, 33), np.finfo(dtype).max, dtype)
    assert kernels.all_finite(x) is reference.all_finite(x) is True and kernels.all_finite(x[:0]) is True
    for bad in (np.nan, np.inf, -np.inf):
        for position in (0, 16, 31, 230):
            y = x.copy()
            y.flat[position] = bad
            for _, same in layouts(y):
                assert unchanged(kernels.all_finite, same) is reference.all_finite(same) is False


@pytest.mark.parametrize("dtype", DTYPES)
def test_count_beyond_counts_what_is_too_large_and_what_is_no_number(dtype):
    most = np.finfo(dtype).max
    arrays = [np.full(size, sign * 1e12, dtype) for size, sign in ((2050, 1), (0, 1), (7, -1), (1, 1))]
    for function in (kernels.count_beyond, reference.count_beyond):
        assert function(tuple(arrays), 1e12) == 0 and function(tuple(a[:0] for a in arrays), 1e12) == 0
        for bad in (np.nan, np.inf, -np.inf, most, -most, np.nextafter(dtype(1e12), most)):
            for first, second in ((0, 2), (2049, 6), (1024, 3)):
                marked = [a.copy() for a in arrays]
                marked[0][first] = marked[2][second] = bad
                assert function(tuple(marked), 1e12) == 2


# ---- sum_rows ------------------------------------------------------------------------------------


def sums_by_dict(ids, values):
    total = {}
    for i, value in zip(ids.tolist(), values, strict=True):
        total[i] = total.get(i, np.zeros_like(value)) + value
    rows = sorted(total)
    sums = np.array([total[i] for i in rows], values.dtype).reshape(len(rows), values.shape[1])
    return np.array(rows, np.int64), sums


@seeded
@given(
    ids=hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.int32, np.int64, np.uint64]),
        st.integers(0, 40),
        elements=st.integers(0, 9),
    ),
    width=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_sum_rows_adds_each_id_in_order_of_occurrence(ids, width, dtype, seed):
    values = np.random.default_rng(seed).normal(size=(len(ids), width)).astype(dtype)
    rows, sums = unchanged(kernels.sum_rows, ids, values)
    expected_rows, expected_sums = sums_by_dict(ids, values)
    for actual, expected in ((rows, expected_rows), (sums, expected_sums)):
        assert_same(actual, expected)
    reference_rows, reference_sums = reference.sum_rows(ids, values)
    assert_same(reference_rows, expected_rows)
    assert_same(reference_sums, expected_sums)


def test_sum_rows_does_not_reorder_a_sum():
    ids = np.array([7, 3, 7, 7])
    values = np.array([[1e8], [5], [1], [-1e8]], np.float32)  # in this order the 1 is lost; in others it is not
    rows, sums = kernels.sum_rows(ids, values)
    assert rows.tolist() == [3, 7]
    assert sums.tolist() == [[5.0], [0.0]]


def test_sum_rows_of_a_long_batch():
    rng = np.random.default_rng(1)
    ids, values = rng.integers(0, 700, 5000), rng.normal(size=(5000, 3)).astype(np.float32)
    for actual, expected in zip(kernels.sum_rows(ids, values), sums_by_dict(ids, values), strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("largest", [10**12, 2**62 - 1, 2**62, 2**63 - 1])
def test_sum_rows_needs_no_memory_for_a_large_table(largest):
    rows, sums = kernels.sum_rows(np.array([largest, 0, largest]), np.array([[1.0], [2.0], [4.0]]))
    assert rows.tolist() == [0, largest]
    assert sums.tolist() == [[2.0], [5.0]]


def test_sum_rows_in_every_layout():
    rng = np.random.default_rng(2)
    ids, values = rng.integers(0, 4, 9), rng.normal(size=(9, 3)).astype(np.float32)
    expected = sums_by_dict(ids, values)
    for (_, i), (_, v) in zip(layouts(ids), layouts(values), strict=True):
        for actual, wanted in zip(unchanged(kernels.sum_rows, i, v), expected, strict=True):
            assert_same(actual, wanted)


# ---- quantize, dequantize ------------------------------------------------------------------------


def test_quantize_rounds_half_to_even_and_then_adds_the_zero_point():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.0], np.float32)
    assert kernels.quantize(x, 1.0, 0, -128, 127).tolist() == [0, 2, 2, 0, -2, 0]
    assert kernels.quantize(x, 1.0, 3, 0, 255).tolist() == [3, 5, 5, 3, 1, 3]  # rint(0.5 + 3) would be 4


def test_quantize_clamps_before_it_casts():
    x = np.array([1e30, -1e30, np.inf, -np.inf, 300.0, -300.0, 1e-45, -1e-45], np.float32)
    assert_same(kernels.quantize(x, 1.0, 10, 0, 255), np.array([255, 0, 255, 0, 255, 0, 10, 10], np.uint8))
    assert_same(kernels.quantize(x, 1.0, 0, -127, 127), np.array([127, -127, 127, -127, 127, -127, 0, 0], np.int8))
    assert kernels.quantize(x, np.float32(1e-30), 0, -4, 3).tolist() == [3, -4, 3, -4, 3, -4, 0, 0]
    assert kernels.quantize(x, np.float32(1e-45), 0, -4, 3).tolist() == [3, -4, 3, -4, 3, -4, 1, -1]


def test_quantize_divides_rather_than_multiplying_by_a_reciprocal():
    scale = np.float32(0.03)
    x = (np.arange(-100, 100, dtype=np.float32) + np.float32(0.5)) * scale  # as near to ties as float32 comes
    divided = np.rint(x / scale)
    assert (np.rint(x * (1 / scale)) != divided).any()  # or this test would test nothing
    assert (kernels.quantize(x, scale, 0, -128, 127) == divided).all()


floats = st.floats(width=32, allow_nan=False)
scales = st.floats(min_value=2.0**-126, max_value=2.0**100, width=32)


@seeded
@given(
    x=hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6), elements=floats),
    scale=scales,
    zero_point=st.integers(-128, 255),
    bounds=st.sampled_from([(0, 255), (-127, 127), (-128, 127), (0, 15), (-7, 7)]),
)
def test_quantize_agrees_with_the_reference_bit_for_bit(x, scale, zero_point, bounds):
    scale = np.float32(scale)
    actual = unchanged(kernels.quantize, x, scale, zero_point, *bounds)
    assert_same(actual, reference.quantize(x, scale, zero_point, *bounds))
    assert actual.dtype == (np.uint8 if bounds[0] == 0 else np.int8)
    for value, q in zip(x.ravel().tolist(), actual.ravel().tolist(), strict=True):
        with np.errstate(over="ignore"):
            quotient = float(np.float32(value) / scale)
        rounded = round(quotient) if math.isfinite(quotient) else quotient  # Python's round is half to even as well
        assert q == min(max(float(np.float32(rounded) + np.float32(zero_point)), bounds[0]), bounds[1])


@seeded
@given(data=st.data(), channels=st.integers(1, 20), rows=st.integers(0, 4), zero_per_channel=st.booleans())
def test_quantize_and_dequantize_per_channel(data, channels, rows, zero_per_channel):
    x = data.draw(hnp.arrays(np.float32, (rows, channels), elements=floats))
    scale = data.draw(hnp.arrays(np.float32, channels, elements=scales))
    zero_point = data.draw(hnp.arrays(np.int64, channels, elements=st.integers(0, 255)))
    zero_point = zero_point if zero_per_channel else int(zero_point[0])
    q = unchanged(kernels.quantize, x, scale, zero_point, 0, 255)
    assert_same(q, reference.quantize(x, scale, zero_point, 0, 255))
    back = unchanged(kernels.dequantize, q, scale, zero_point)
    assert_same(back, reference.dequantize(q, scale, zero_point))
    for n in range(channels):  # a channel on its own gives what it gives among others
        z = int(zero_point[n]) if zero_per_channel else zero_point
        assert_same(q[:, n], kernels.quantize(x[:, n], scale[n], z, 0, 255))
        assert_same(back[:, n], kernels.dequantize(q[:, n], scale[n], z))


def test_one_scale_with_a_zero_point_per_channel():
    x = np.array([[1.0, 1.0, 1.0]], np.float32)
    assert kernels.quantize(x, 0.5, np.array([0, 1, 2]), 0, 255).tolist() == [[2, 3, 4]]
    assert kernels.dequantize(np.array([[2, 3, 4]], np.uint8), 0.5, np.array([0, 1, 2])).tolist() == [[1, 1, 1]]


def test_quantize_and_dequantize_read_every_layout():
    x = np.random.default_rng(7).normal(size=(5, 6)).astype(np.float32)
    scale = np.linspace(0.01, 0.1, 6, dtype=np.float32)
    expected = reference.quantize(x, scale, 4, 0, 255)
    for _, same in layouts(x):
        assert_same(unchanged(kernels.quantize, same, scale, 4, 0, 255), expected)
    values = reference.dequantize(expected, scale, 4)
    for _, same in layouts(expected):
        assert_same(unchanged(kernels.dequantize, same, scale, 4), values)


@pytest.mark.parametrize("scale", [np.float32(0.1), np.full(3, 0.1, np.float32)], ids=["one scale", "per channel"])
@pytest.mark.parametrize("position", [0, 5, 299])
def test_quantize_refuses_nan(scale, position):
    x = np.zeros((100, 3), np.float32)
    x.flat[position] = np.nan
    message = r"got x of shape \(100, 3\) with 1 NaN in it\.\n.*must be a number.*\n.*np\.nan_to_num\(x\)"
    for module in (kernels, reference):
        with pytest.raises(ValueError, match=message):
            module.quantize(x, scale, 0, 0, 255)


@pytest.mark.parametrize(("low", "high", "dtype"), [(0, 255, np.uint8), (-127, 127, np.int8)])
def test_every_integer_survives_dequantize_then_quantize(low, high, dtype):
    codes = np.arange(low, high + 1).astype(dtype)
    for scale in np.random.default_rng(8).uniform(1e-4, 10, 50).astype(np.float32):
        for zero_point in (0, 1, 77, 127):
            floats_again = kernels.dequantize(codes, scale, zero_point)
            assert floats_again[codes == zero_point] == 0  # zero is exact
            assert_same(kernels.quantize(floats_again, scale, zero_point, low, high), codes)


def test_dequantize_by_hand():
    q = np.array([0, 3, 255], np.uint8)  # in uint8 arithmetic 0 - 3 would be 253
    assert_same(kernels.dequantize(q, 0.5, 3), np.array([-1.5, 0.0, 126.0], np.float32))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(), (37,), (5, 40)])
def test_dequantize_takes_integers_of_any_size(dtype, shape):
    q = np.random.default_rng(10).integers(0, 127, shape).astype(dtype)
    assert_same(kernels.dequantize(q, 0.5, 3), reference.dequantize(q, 0.5, 3))
    out = np.empty(shape, np.float32)
    assert kernels.dequantize(q, 0.5, 3, out) is out and np.array_equal(out, (q.astype(np.float32) - 3) / 2)


def test_quantize_writes_where_it_is_told():
    x = np.random.default_rng(11).normal(size=(300, 400)).astype(np.float32)  # long enough for threads
    for scale in (np.float32(0.02), np.full(400, 0.02, np.float32)):
        out = np.empty(x.shape, np.uint8)
        assert kernels.quantize(x, scale, 100, 0, 255, out) is out
        assert_same(out, reference.quantize(x, np.float32(0.02), 100, 0, 255))
    if kernels.quantize is not reference.quantize:  # which takes any layout
        for wrong in (np.empty((16, 400), np.uint8), np.empty(x.shape, np.int32)):
            with pytest.raises(ValueError, match="a kernel was to write"):
                kernels.quantize(x, np.float32(0.02), 100, 0, 255, wrong)
        with pytest.raises(ValueError, match="It must be C-contiguous"):
            kernels.quantize(x, np.float32(0.02), 100, 0, 255, np.empty((400, 300), np.uint8).T)


# ---- images ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_shifted_images(dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 200, (60, 4, 5)).astype(dtype)
    down, right = rng.integers(-4, 5, 60), rng.integers(-5, 6, 60)  # up to all of the image
    expected = np.zeros_like(images)
    for n, row, column in np.ndindex(images.shape):
        if 0 <= row + down[n] < 4 and 0 <= column + right[n] < 5:
            expected[n, row + down[n], column + right[n]] = images[n, row, column]
    assert_same(reference.shift_images(images, down, right), expected)
    for name, layout in layouts(images):
        assert_same(unchanged(kernels.shift_images, layout, down, right), expected), name
