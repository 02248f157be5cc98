"""Weights of fewer than 8 bits: their bytes in files and in memory, and the products with them, bit for bit."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_same, seeded, unchanged

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
    kind=st.sampled_from(KINDS), bits=st.integers(2, 8), inputs=st.sampled_from([None, 32, 64]), k=st.integers(1, 150),
    n=st.integers(1, 70), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_is_packed_comes_out_again(kind, bits, inputs, k, n, seed):
    matrix = integers(bits, (k, n), seed, lowest=True)
    packed = PackedBits(matrix, bits, inputs, kind)
    assert_same(packed.integers(), matrix)
    assert_same(np.asarray(packed), pack_fields(matrix, bits))
    assert_same(packed.copy(), pack_fields(matrix, bits))
    starts = range(0, k, inputs or k)
    assert_same(packed.sums, np.stack([matrix[i : i + (inputs or k)].sum(axis=0, dtype=np.int32) for i in starts]))
    other = PackedBits(np.zeros_like(matrix), bits, inputs, kind)
    other[...] = np.asarray(packed)
    for twin in (other, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert_same(twin.integers(), matrix)


@pytest.mark.parametrize(("bits", "share"), [(2, 0.25), (3, 0.375), (4, 0.5), (5, 1), (6, 1), (7, 1), (8, 1)])
def test_memory_holds_packed_bytes_for_2_to_4_bits_and_files_for_all(bits, share):
    packed = PackedBits(integers(bits, (256, 128)), bits)
    assert packed.data.nbytes == 256 * 128 * share
    assert packed.nbytes == packed.data.nbytes + 128 * 4
    assert PackedBits(integers(bits, (256, 128)), bits, 32).nbytes == 256 * 128 * share
    assert np.asarray(packed).nbytes == 256 * 128 * bits / 8


def test_only_the_bytes_of_a_file_can_be_assigned():
    packed = PackedBits(integers(4, (8, 4)), 4)
    for wrong in (np.zeros(15, np.uint8), np.zeros(16, np.int8), np.zeros((8, 4), np.int8)):
        with pytest.raises(ValueError, match=r"replaced as a whole, by uint8 of shape \(16,\)"):
            packed[...] = wrong


# ---- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [None, 32])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("kind", TRIED)
def test_a_layer_equals_its_parts_bit_for_bit(kind, bits, inputs):
    """Rows around every tile (1, 4, 12, 32), k around units and groups, columns around panels; written out in int64."""
    rng = np.random.default_rng(bits)
    for k, n in ((5, 3), (33, 40), (96, 32), (100, 70)):
        matrix = integers(bits, (k, n), k)
        packed = PackedBits(matrix, bits, inputs, kind)
        starts = range(0, k, inputs or k)
        init = rng.integers(-(2**15), 2**15, (len(starts), n)).astype(np.int32)
        scale = rng.uniform(1e-4, 1e-2, (len(starts), n)).astype(np.float32)
        padded = packed.pad(init), packed.pad(scale)
        for m in (0, 1, 4, 5, 12, 13, 33):
            x = rng.normal(0, 30, (m, k)).astype(np.float32)
            q = reference.quantize(x, np.float32(0.3), 100, 0, 255)
            total = np.zeros((m, n), np.float32)
            for g, begin in enumerate(starts):
                part = slice(begin, begin + (inputs or k))
                sums = q[:, part].astype(np.int64) @ matrix[part].astype(np.int64) + init[g]
                total = total + sums.astype(np.float32) * scale[g]
            rounded = np.clip(np.rint(total) + np.float32(7), 7, 255).astype(np.uint8)
            assert_same(unchanged(kernels.int8_dense, x, packed, *padded, (np.float32(0.3), 100), (7, 7)), rounded)
            if inputs is None and bits == 4:
                assert_same(kernels.int8_dense(q, packed, init[0], scale[0]), total)
                assert_same(kernels.int8_sums(q, packed, init[0]), sums.astype(np.int32))


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
    packed = PackedBits(np.ones((40, 2), np.int8), 4, 32)
    x = np.zeros((3, 40), np.float32)
    x[2, 39] = np.nan
    with pytest.raises(ValueError, match="1 NaN in it"):
        kernels.int8_dense(
            x, packed, np.zeros((2, 2), np.int32), np.ones((2, 2), np.float32), (np.float32(1), 0), (7, 7)
        )


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
