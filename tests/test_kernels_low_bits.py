"""Weights of fewer than 8 bits: their bytes in files and in memory, and the products with them, bit for bit."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_same, jit_only, seeded, unchanged

from minidistill import kernels
from minidistill.kernels import cpu, reference
from minidistill.kernels.bit_packing import FIELDS, PackedBits, pack_fields, stored_size, unpack_fields
from minidistill.kernels.packing import PackedMatrix

KINDS = cpu.kinds()
TRIED = dict.fromkeys((KINDS[0], "avx2" if "avx2" in KINDS else KINDS[-1]))  # each kind compiles for seconds


def integers(bits, shape, seed=0, lowest=False):
    limit = 2 ** (bits - 1)
    return np.random.default_rng(seed).integers(-limit + (not lowest), limit, shape).astype(np.int8)


# ---- in files and in memory ----------------------------------------------------------------------


def test_fields_follow_each_other_with_the_most_significant_bit_first():
    assert pack_fields([1, -1, 0, -2], 2).tolist() == [0b01_11_00_10]
    assert pack_fields([3, -3, 1, -4], 3).tolist() == [0b011_101_00, 0b1_100_0000]
    assert pack_fields([-8, 7, 1], 4).tolist() == [0b1000_0111, 0b0001_0000]


@seeded
@given(bits=st.integers(2, 8), k=st.integers(1, 40), n=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_file_has_every_integer_in_exactly_that_many_bits(bits, k, n, seed):
    matrix = integers(bits, (k, n), seed, lowest=True)
    stored = pack_fields(matrix, bits)
    assert stored.size == stored_size((k, n), bits) == -(-k * n * bits // 8)
    assert_same(unpack_fields(stored, bits, (k, n)), matrix)


@pytest.mark.parametrize("bits", FIELDS)
def test_the_fields_of_a_unit_use_every_bit_of_its_bytes_once(bits):
    used = [(field.byte, field.place + i) for pieces in FIELDS[bits] for field in pieces for i in range(field.width)]
    assert sorted(used) == [(byte, bit) for byte in range(len(FIELDS[bits]) * bits // 8) for bit in range(8)]
    for pieces in FIELDS[bits]:
        assert sorted(f.shift + i for f in pieces for i in range(f.width)) == list(range(bits))


@seeded
@given(
    kind=st.sampled_from(KINDS), bits=st.integers(2, 7), k=st.integers(1, 150), n=st.integers(1, 70), seed=st.integers(0, 99)
)  # fmt: skip
def test_what_is_packed_comes_out_again(kind, bits, k, n, seed):
    matrix = integers(bits, (k, n), seed, lowest=True)
    packed = PackedBits(matrix, bits, kind)
    assert_same(packed.integers(), matrix)
    assert_same(np.asarray(packed), pack_fields(matrix, bits))
    assert_same(packed.copy(), pack_fields(matrix, bits))
    assert_same(packed.sums, matrix.sum(axis=0, dtype=np.int32))
    other = PackedBits(np.zeros_like(matrix), bits, kind)
    other[...] = np.asarray(packed)
    for twin in (other, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert_same(twin.integers(), matrix)


@pytest.mark.parametrize(("bits", "share"), [(2, 0.25), (3, 0.375), (4, 0.5), (5, 1), (6, 1), (7, 1)])
def test_memory_holds_packed_bytes_for_2_to_4_bits_and_files_for_all(bits, share):
    packed = PackedBits(integers(bits, (256, 128)), bits)
    assert packed.data.nbytes == 256 * 128 * share
    assert packed.nbytes == packed.data.nbytes + 128 * 4
    assert np.asarray(packed).nbytes == 256 * 128 * bits / 8


def test_only_the_bytes_of_a_file_can_be_assigned():
    packed = PackedBits(integers(4, (8, 4)), 4)
    for wrong in (np.zeros(15, np.uint8), np.zeros(16, np.int8), np.zeros((8, 4), np.int8)):
        with pytest.raises(ValueError, match=r"replaced as a whole, by uint8 of shape \(16,\)"):
            packed[...] = wrong


# ---- products ------------------------------------------------------------------------------------


SHAPES = ((5, 3), (33, 40), (96, 32), (100, 70))  # k around units and groups, columns around panels
ROWS = (0, 1, 4, 5, 12, 13, 33)  # around every tile
SOURCE, TARGET = (np.float32(0.3), 100), (7, 7)


def floats(m, k, rng):
    x = rng.normal(0, 30, (m, k)).astype(np.float32)
    return x, reference.quantize(x, *SOURCE, 0, 255).astype(np.int64)


def rounded(total):
    return np.clip(np.rint(total) + np.float32(7), 7, 255).astype(np.uint8)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("kind", TRIED)
def test_a_layer_equals_its_parts_bit_for_bit(kind, bits):
    rng = np.random.default_rng(bits)
    for k, n in SHAPES:
        matrix = integers(bits, (k, n), k)
        packed = PackedBits(matrix, bits, kind)
        init, scale = rng.integers(-(2**15), 2**15, n).astype(np.int32), rng.uniform(1e-4, 1e-2, n).astype(np.float32)
        for m in ROWS:
            x, q = floats(m, k, rng)
            sums = q @ matrix.astype(np.int64) + init
            expected = rounded(sums.astype(np.float32) * scale)
            padded = packed.pad(init), packed.pad(scale)
            assert_same(unchanged(kernels.int8_dense, x, packed, *padded, SOURCE, TARGET), expected)
            if bits == 4:
                q = q.astype(np.uint8)
                assert_same(kernels.int8_dense(q, packed, init, scale), sums.astype(np.float32) * scale)
                assert_same(kernels.int8_sums(q, packed, init), sums.astype(np.int32))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", TRIED)
def test_groups_are_scaled_and_added_in_order_bit_for_bit(kind, bits):
    rng, group = np.random.default_rng(bits), 32
    for k, n in SHAPES:
        matrix = integers(bits, (k, n), k)
        packed = PackedMatrix(matrix, kind) if bits == 8 else PackedBits(matrix, bits, kind)
        start, scale = (
            rng.normal(size=n).astype(np.float32),
            rng.uniform(1e-4, 1e-2, (-(-k // group), n)).astype(np.float32),
        )
        numbers = packed.pad(scale), packed.pad(start), np.float32(0.37)
        for m in ROWS:
            x, q = floats(m, k, rng)
            total = np.repeat(start[None], m, axis=0)
            for g in range(len(scale)):
                part = slice(g * group, g * group + group)
                total = total + (q[:, part] @ matrix[part].astype(np.int64)).astype(np.float32) * scale[g]
            expected = rounded(total * np.float32(0.37))
            for module in (kernels, reference):
                assert_same(unchanged(module.grouped_dense, x, packed, group, *numbers, SOURCE, TARGET), expected)
            if bits == 4:
                q = q.astype(np.uint8)
                assert_same(kernels.grouped_dense(q, packed, group, *numbers), total * np.float32(0.37))


@jit_only
def test_numbers_that_do_not_fit_are_refused_since_kernels_read_by_address():
    packed, x = PackedBits(integers(4, (64, 40)), 4), np.ones((1, 64), np.uint8)
    scale, start = packed.pad(np.ones((2, 40), np.float32)), packed.pad(np.zeros(40, np.float32))
    kernels.grouped_dense(x, packed, 32, scale, start, 1.0)
    for wrong in (
        (x[:, :63], packed, 32, scale, start),
        (x, packed, 64, scale, start),
        (x, packed, 20, scale, start),
        (x, packed, 32, scale[:1], start),
        (x, packed, 32, scale[:, :40], start),
        (x, packed, 32, scale, start[:40]),
        (x, packed, 32, scale.astype(np.float64), start),
        (x, packed, 32, scale, start.astype(np.float64)),
        (x, packed, 32, np.asfortranarray(scale), start),
    ):
        with pytest.raises(ValueError, match="an integer product got x"):
            kernels.grouped_dense(*wrong, 1.0)
    for init in (np.zeros((2, 40), np.int32), np.zeros(80, np.int32), np.zeros(40, np.float32)):
        with pytest.raises(ValueError, match="an integer product got x"):
            kernels.int8_sums(x, packed, init)


def test_the_largest_sums_do_not_overflow():
    """In the upper bits of a byte numbers are larger than they are: 66 311 inputs of 255 and 7 must still fit an int32."""
    k = 66_311
    x, ends = np.full((1, k), 255, np.uint8), np.array([[-1, 1]], np.int8)
    for bits in (2, 3, 4):
        limit = 2 ** (bits - 1) - 1
        packed = PackedBits(np.repeat(limit * ends, k, axis=0), bits)
        assert kernels.int8_sums(x, packed, np.zeros(2, np.int32)).tolist() == [[-255 * limit * k, 255 * limit * k]]


def test_with_all_rows_on_every_thread_the_results_are_those_of_whole_bytes():
    rng, matrix = np.random.default_rng(0), integers(4, (512, 640))
    x = rng.integers(0, 256, (700, 512)).astype(np.uint8)
    init, scale = rng.integers(-99, 99, 640).astype(np.int32), rng.uniform(1e-4, 1e-3, 640).astype(np.float32)
    for rows in (1, 30, 700):
        expected = kernels.int8_dense(x[:rows], PackedMatrix(matrix), init, scale, None, (3, 3))
        assert_same(kernels.int8_dense(x[:rows], PackedBits(matrix, 4), init, scale, None, (3, 3)), expected)


def test_nan_is_refused():
    packed = PackedBits(np.ones((40, 2), np.int8), 4)
    x = np.zeros((3, 40), np.float32)
    x[2, 39] = np.nan
    scale, start = packed.pad(np.ones((2, 2), np.float32)), packed.pad(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="1 NaN in it"):
        kernels.grouped_dense(x, packed, 32, scale, start, 1.0, SOURCE, TARGET)
    with pytest.raises(ValueError, match="1 NaN in it"):
        kernels.int8_dense(x, packed, np.zeros(2, np.int32), np.ones(2, np.float32), SOURCE, TARGET)


def test_memory_is_near_the_ideal_for_shapes_that_no_panel_divides():
    for k, n in ((130, 300), (1100, 512), (784, 300), (40, 300), (784, 10)):
        for bits in (2, 3, 4):
            packed = PackedBits(integers(bits, (k, n)), bits)
            assert packed.data.nbytes <= 1.65 * k * n * bits / 8, (k, n, bits)


def test_large_matrices_are_packed_in_parts():
    matrix = integers(3, (2**18 // 64 + 5, 67))  # more numbers than are spread out at a time, and no multiple of 8
    stored = pack_fields(matrix, 3)
    assert stored.size == stored_size(matrix.shape, 3)
    assert_same(unpack_fields(stored, 3, matrix.shape), matrix)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("width", [1, 5, 8])
def test_rows_of_a_packed_table_are_looked_up(bits, width):
    matrix, ids = integers(bits, (9, width)), np.array([8, 0, 3, 3])
    in_row = -(-width * bits // 8)
    filled = np.zeros((9, in_row * 8 // bits), np.int8)
    filled[:, :width] = matrix
    table, scale = pack_fields(filled, bits).reshape(9, in_row), np.linspace(0.1, 2, 9, dtype=np.float32)
    expected = matrix[ids].astype(np.float32) * scale[ids][:, None]
    for module in (kernels, reference):
        assert_same(unchanged(module.lookup_rows, table, scale, width, bits, ids), expected)
