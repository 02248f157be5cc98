"""The sparse kernel against its specification: every format, every way through it, and no byte beyond an array."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_same, jit_only, layouts, seeded, unchanged

import minidistill as md
from minidistill import kernels
from minidistill.kernels import reference
from minidistill.kernels import sparse as fast
from minidistill.kernels.cpu import has
from minidistill.kernels.sparse_formats import (
    SparseMatrix,
    fill_groups,
    in_lanes,
    index_of,
    pack_places,
    place_bits,
    unpack_places,
)

HOW = [("csr", 0, 0), ("bitmap", 0, 0), ("n_m", 2, 4), ("n_m", 1, 2), ("n_m", 3, 8), ("n_m", 5, 17)]
ROWS = (0, 1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 130)


def random_matrix(how, k, n, density, seed, int8=False):
    """(SparseMatrix, the dense matrix it stands for); the first quarter of the outputs keeps nothing, except of n of m."""
    format, keep, group = how
    rng = np.random.default_rng(seed)
    k = -(-k // group) * group if group else k
    kept = rng.random((k, n)) < density
    kept[:, : n // 4] = False
    if format == "n_m":
        order = rng.permuted(np.arange(k).reshape(-1, group, 1).repeat(n, axis=2) % group, axis=1)
        kept = fill_groups((kept.reshape(-1, group, n) & (order < keep)).reshape(k, n), keep, group)
    index, row_starts = index_of(kept, format, keep, group)
    scales = (rng.random(n, dtype=np.float32) + np.float32(0.1)) / 50 if int8 else None
    size = int(kept.sum())
    values = rng.integers(-127, 128, size).astype(np.int8) if int8 else rng.normal(size=size).astype(np.float32)
    dense = np.zeros((n, k), np.float32)
    dense[kept.T] = values
    dense = dense.T * (1 if scales is None else scales)
    return SparseMatrix((k, n), values, index, row_starts, scales, format, keep, group), dense


def bound(x, dense, bias):
    """Of the rounding of a sum of products: Higham 2002, "Accuracy and Stability", section 3.1."""
    return 2 * np.finfo(np.float32).eps * (len(dense) + 2) * (abs(x) @ abs(dense) + abs(bias)) + 1e-30


@seeded
@given(
    how=st.sampled_from(HOW),
    k=st.integers(1, 300),
    n=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    int8=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_matrix_is_what_its_parts_stand_for(how, k, n, density, int8, seed):
    matrix, dense = random_matrix(how, k, n, density, seed, int8)
    assert_same(np.asarray(matrix), dense.astype(np.float32))


@seeded
@given(
    how=st.sampled_from(HOW),
    rows=st.sampled_from(ROWS),
    k=st.integers(1, 80),
    n=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    int8=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_product_is_that_of_the_dense_matrix(how, rows, k, n, density, int8, relu, seed):
    rng = np.random.default_rng(seed)
    matrix, dense = random_matrix(how, k, n, density, seed, int8)
    x, bias = rng.normal(size=(rows, len(dense))).astype(np.float32), rng.normal(size=n).astype(np.float32)
    exact = x.astype(np.float64) @ dense + bias
    for result in (kernels.sparse_dense(x, matrix, bias, relu), reference.sparse_dense(x, matrix, bias, relu)):
        assert (result.dtype, result.shape) == (np.float32, (rows, n))
        assert (abs(result - (np.maximum(exact, 0) if relu else exact)) <= bound(x, dense, bias)).all()


@seeded
@given(
    rows=st.integers(1, 2),
    k=st.integers(1, 100),
    n=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    int8=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 999),
)
def test_values_in_lanes_give_the_same_product(rows, k, n, density, int8, relu, seed):
    rng = np.random.default_rng(seed)
    matrix, dense = random_matrix(HOW[0], k, n, density, seed, int8)
    values, places, pairs, firsts = matrix.lanes = in_lanes(matrix)
    again = np.zeros((-(-n // 16) * 16, -(-k // 32) * 32), np.float32)  # put together slot by slot
    for block, first in enumerate(firsts):
        for chunk, count in enumerate(pairs[block]):
            for slot in range(first, first + 2 * count):
                again[block * 16 + np.arange(16), chunk * 32 + places[slot]] += values[slot]
            first += 2 * count
    assert_same(again[:n, :k].T * (1 if matrix.scales is None else matrix.scales), dense.astype(np.float32))
    if has("avx512f"):
        x, bias = rng.normal(size=(rows, k)).astype(np.float32), rng.normal(size=n).astype(np.float32)
        exact = x.astype(np.float64) @ dense + bias
        result = kernels.sparse_dense(x, matrix, bias, relu)
        assert (abs(result - (np.maximum(exact, 0) if relu else exact)) <= bound(x, dense, bias)).all()


@jit_only  # the reference goes through BLAS, which makes no such promise
@pytest.mark.parametrize("how", HOW[:3])
@pytest.mark.parametrize("rows", [1, 2, 40, 256, 700])
def test_large_products_on_one_thread_and_on_more_are_the_same(how, rows):
    matrix, dense = random_matrix(how, 900, 500, 0.3, 0)
    x, bias = np.random.default_rng(1).normal(size=(rows, len(dense))).astype(np.float32), np.zeros(500, np.float32)
    before, results = md.get_threads(), []
    try:
        for threads in (1, 2, 3):
            md.set_threads(threads)
            results.append(kernels.sparse_dense(x, matrix))
    finally:
        md.set_threads(before)
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])
    assert (abs(results[0] - x.astype(np.float64) @ dense) <= bound(x, dense, bias)).all()


@pytest.mark.parametrize("rows", [1, 20, 64])
def test_nan_and_infinity_stay_where_they_belong(rows):
    matrix, dense = random_matrix(HOW[0], 40, 12, 0.4, 3)
    x = np.ones((rows, 40), np.float32)
    x[0, np.nonzero(dense[:, 5])[0][0]] = np.nan
    x[-1, np.nonzero(dense[:, 7])[0][0]] += np.inf
    for relu in (False, True):
        result = kernels.sparse_dense(x, matrix, None, relu)
        assert np.isnan(result[0, 5])
        reads_nan = dense[np.nonzero(dense[:, 5])[0][0]] != 0
        if rows > 1:
            assert np.isnan(result[0, reads_nan]).all() and not np.isnan(result[1:]).any()
            assert not np.isnan(result[0, ~reads_nan]).any()
            sign = np.sign(dense[np.nonzero(dense[:, 7])[0][0], 7])
            assert result[-1, 7] == (0 if relu and sign < 0 else sign * np.inf)


@jit_only
def test_without_the_gather_instruction_the_sums_are_the_same(monkeypatch):
    matrix, _ = random_matrix(HOW[0], 100, 30, 0.5, 4)
    x = np.random.default_rng(5).normal(size=(2, 100)).astype(np.float32)
    expected = kernels.sparse_dense(x, matrix)
    monkeypatch.setattr(fast, "has", lambda feature: False)
    matrix.prepared = None
    assert_same(kernels.sparse_dense(x, matrix), expected)


def test_every_layout_of_the_input_is_read():
    matrix, dense = random_matrix(HOW[1], 24, 6, 0.5, 6)
    x = np.random.default_rng(7).normal(size=(5, 24)).astype(np.float32)
    for name, variant in layouts(x):
        result = unchanged(lambda a: kernels.sparse_dense(a, matrix), variant)
        np.testing.assert_allclose(result, x @ dense, rtol=1e-5, atol=1e-5, err_msg=name)
    wide = kernels.sparse_dense(x.astype(np.float64), matrix)
    np.testing.assert_allclose(wide, x.astype(np.float64) @ dense, rtol=1e-14)


@jit_only
def test_a_bias_of_another_type_is_converted_and_of_another_length_refused():
    matrix, dense = random_matrix(HOW[0], 24, 6, 0.5, 6)
    x = np.ones((40, 24), np.float32)
    bias = np.arange(6.0)
    np.testing.assert_allclose(kernels.sparse_dense(x, matrix, bias), x @ dense + bias, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="broadcast"):
        kernels.sparse_dense(x, matrix, np.ones(5, np.float32))


@jit_only
def test_a_wrong_shape_is_refused_before_it_becomes_an_address():
    matrix, _ = random_matrix(HOW[0], 24, 6, 0.5, 6)
    for shape in ((3, 23), (24,)):
        with pytest.raises(ValueError, match=r"a sparse product got x of shape .*, a weight of shape \(24, 6\)"):
            kernels.sparse_dense(np.zeros(shape, np.float32), matrix)


@jit_only
def test_nothing_beyond_the_arrays_is_read_or_written():
    """Inputs and result end at a page that may not be touched; so do values and positions."""
    if not sys.platform.startswith("linux"):
        pytest.skip("mprotect as on Linux")
    code = f"""
import ctypes, mmap, sys
import numpy as np
sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
from test_kernels_sparse import HOW, random_matrix
from minidistill.kernels import reference, sparse
from minidistill.kernels.cpu import has
from minidistill.kernels.sparse_formats import in_lanes
page = mmap.PAGESIZE
def guarded(array):
    memory = mmap.mmap(-1, 33 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + 32 * page), page, 0) == 0
    copy = np.frombuffer(memory, np.uint8, array.nbytes, 32 * page - array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
rng = np.random.default_rng(0)
sparse._new = lambda shape, dtype: guarded(np.zeros(shape, dtype))
for how in HOW:
    for int8 in (False, True):
        for rows, k, n in [(1, 33, 3), (2, 16, 5), (5, 17, 16), (33, 48, 17), (64, 31, 32), (40, 7, 1)]:
            matrix, dense = random_matrix(how, k, n, 0.6, rows, int8)
            x = guarded(rng.normal(size=(rows, len(dense))).astype(np.float32))
            matrix.values, matrix.index = guarded(matrix.values), guarded(matrix.index)
            matrix.row_starts = guarded(matrix.row_starts)
            if how == HOW[0] and has("avx512f"):
                matrix.lanes = tuple(map(guarded, in_lanes(matrix)))
            result = sparse.sparse_dense(x, matrix, guarded(np.ones(n, np.float32)))
            assert np.allclose(result, reference.sparse_dense(x, matrix, np.ones(n, np.float32)), atol=1e-3), (how, rows)
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "fine\n", (done.returncode, done.stderr[-2000:])


# ---- formats ------------------------------------------------------------------------------------------------------------
def test_the_formats_by_hand():
    kept = np.zeros((20, 2), bool)
    kept[[0, 3, 17], 0] = kept[[2, 19], 1] = True
    index, row_starts = index_of(kept, "csr")
    assert_same(index, np.array([0, 3, 17, 2, 19], np.uint8))
    assert_same(row_starts, np.array([0, 3, 5], np.uint8))
    index, _ = index_of(kept, "bitmap")
    assert_same(index, np.array([[0b1001, 0b10], [0b100, 0b1000]], np.uint16))
    filled = fill_groups(kept, 2, 4)  # the first of a group fill it up
    assert filled[:, 0].nonzero()[0].tolist() == [0, 3, 4, 5, 8, 9, 12, 13, 16, 17]
    index, row_starts = index_of(filled, "n_m", 2, 4)
    assert index[0].tolist() == [
        0b01001100,
        0b01000100,
        0b0100,
    ]  # places 0 3 0 1, 0 1 0 1, 0 1: the first in the lowest bits
    assert row_starts.tolist() == [0, 10, 20]


@pytest.mark.parametrize(
    ("inputs", "dtype"), [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)]
)
def test_an_index_has_the_smallest_type(inputs, dtype):
    kept = np.zeros((inputs, 1), bool)
    kept[-1] = True
    index, row_starts = index_of(kept, "csr")
    assert_same(index, np.array([inputs - 1], dtype))
    assert row_starts.dtype == np.uint8


@seeded
@given(st.integers(1, 256), st.integers(0, 40), st.integers(1, 4), st.integers(0, 99))
def test_places_come_back_and_take_their_bits(m, count, rows, seed):
    places = np.random.default_rng(seed).integers(0, m, (rows, count))
    packed = pack_places(places, place_bits(m))
    assert packed.shape == (rows, -(-count * place_bits(m) // 8))
    assert np.array_equal(unpack_places(packed, count, place_bits(m)), places)
    assert (place_bits(m) // 2 == 0 or m > 2 ** (place_bits(m) // 2)) and m <= 2 ** place_bits(m)
