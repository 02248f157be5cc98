"""The integer products: every kind of instruction that this machine has against plain int64, bit for bit.

`kinds()` is ("plain",) under `NUMBA_DISABLE_JIT=1`; there the kernels are the reference, and it is the oracles that count.
"""

from __future__ import annotations

import copy
import os
import pickle
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_same, jit_only, layouts, seeded, unchanged

import minidistill as md
from minidistill import kernels
from minidistill.kernels import cpu, reference
from minidistill.kernels.packing import ALIGNMENT, PackedMatrix, aligned

KINDS = cpu.kinds()
every_kind = pytest.mark.parametrize("kind", KINDS)


def operands(m, k, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (m, k)).astype(np.uint8), rng.integers(-127, 128, (k, n)).astype(np.int8)


# ---- int8_matmul ---------------------------------------------------------------------------------


@seeded
@given(
    kind=st.sampled_from(KINDS),
    m=st.integers(0, 70),
    k=st.integers(0, 20),
    n=st.integers(0, 40),
    zero_point=st.integers(0, 255),
    seed=st.integers(0, 999),
)
def test_int8_matmul_is_exact(kind, m, k, n, zero_point, seed):
    x, weight = operands(m, k, n, seed)
    weight.flat[:1] = -128  # not a weight of ours, but an int8
    expected = (x.astype(object) - zero_point) @ weight.astype(object)  # Python's integers, of any size
    expected = np.asarray(expected if k else np.zeros((m, n)), np.int64).astype(np.int32)
    assert_same(unchanged(kernels.int8_matmul, x, PackedMatrix(weight, kind), zero_point), expected)
    assert_same(kernels.int8_matmul(x, weight, zero_point), expected)
    assert_same(reference.int8_matmul(x, weight, zero_point), expected)


@every_kind
def test_over_two_thousand_shapes_every_kind_equals_int64(kind):
    """Rows around every tile (1, 4, 6, 12, 16, 32), k around every group (2, 4, 64), columns around every panel (16, 32)."""
    x, weight = operands(70, 200, 70)
    for m in (1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 31, 32, 33, 37, 65):
        for k in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 128, 130, 200):
            for n in (1, 2, 15, 16, 17, 31, 32, 33, 64, 65):
                a, b = x[:m, :k], weight[:k, :n]
                expected = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
                assert np.array_equal(kernels.int8_matmul(a, PackedMatrix(b, kind), 0), expected), (m, k, n)


@every_kind
@pytest.mark.parametrize("m", [1, 3, 40])
def test_int8_matmul_reaches_the_ends_of_int32(kind, m):
    k = 66_311  # the largest k with k * 255 * 127 < 2**31
    assert k * 255 * 127 < 2**31 <= (k + 1) * 255 * 127
    x, weight = np.full((m, k), 255, np.uint8), np.full((k, 2), 127, np.int8)
    weight[:, 1] = -127
    sums = kernels.int8_matmul(x, PackedMatrix(weight, kind), 0)
    assert np.array_equal(sums, np.tile([k * 255 * 127, -k * 255 * 127], (m, 1)))


@every_kind
def test_pairs_of_extreme_products_do_not_saturate(kind):
    """255 * 127 + 255 * 127 exceeds int16: vpmaddubsw would give 32767."""
    x, weight = np.full((5, 8), 255, np.uint8), np.full((8, 3), 127, np.int8)
    assert (kernels.int8_matmul(x, PackedMatrix(weight, kind), 0) == 8 * 255 * 127).all()
    assert (kernels.int8_matmul(x, PackedMatrix(-weight, kind), 0) == -8 * 255 * 127).all()


@every_kind
def test_int8_matmul_reads_every_layout(kind):
    x, weight = operands(9, 7, 5)
    expected = reference.int8_matmul(x, weight, 13)
    for (_, a), (_, b) in zip(layouts(x), layouts(weight), strict=True):
        assert_same(unchanged(kernels.int8_matmul, a, PackedMatrix(b, kind), 13), expected)


@pytest.mark.parametrize("zero_point", [7, np.int64(7), np.uint8(7), np.int8(7)])
def test_a_zero_point_of_any_integer_type(zero_point):
    x, weight = operands(5, 9, 4)
    assert_same(kernels.int8_matmul(x, weight, zero_point), reference.int8_matmul(x, weight, 7))


@jit_only
def test_what_would_be_read_beyond_its_end_is_refused():
    x, weight = operands(3, 4, 2)
    packed, init = PackedMatrix(weight), np.zeros(2, np.int32)
    for wrong in (x[:, :3], x[0], x.astype(np.int64), x.astype(np.float32)):
        with pytest.raises(ValueError, match=r"an integer product got x of shape .*\n.*\(M, K\), uint8"):
            kernels.int8_sums(wrong, packed, init)
    for wrong in (init[:1], init.astype(np.int64), np.zeros(3, np.int32)):
        with pytest.raises(ValueError, match="begin with int32"):
            kernels.int8_sums(x, packed, wrong)
    with pytest.raises(ValueError, match="scaled by float32"):
        kernels.int8_dense(x, packed, init, np.zeros(2))
    with pytest.raises(ValueError, match="float32; the sums"):
        kernels.int8_dense(x, packed, init, np.zeros(2, np.float32), (0.1, 3))


def test_a_packed_matrix_is_replaced_as_a_whole():
    packed = PackedMatrix(operands(1, 4, 3)[1])
    before = packed[...].copy()
    for index, value in (
        ((0, 0), 5),
        (0, np.zeros(3, np.int8)),
        (..., np.zeros((4, 3))),
        (..., np.zeros((3, 4), np.int8)),
    ):
        with pytest.raises(ValueError, match="replaced as a whole"):
            packed[index] = value
    assert np.array_equal(packed[...], before)


@every_kind
def test_nothing_is_read_or_written_beyond_the_arrays(kind):
    """Input and output end where their pages end: one byte further would kill the process, so a child tries."""
    code = f"""
import ctypes, mmap, numpy as np
from minidistill.kernels import int8, int8_dense, int8_sums, reference
from minidistill.kernels.packing import PackedMatrix
page = mmap.PAGESIZE
def guarded(size, dtype=np.uint8):
    size *= np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, 17 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + 16 * page), page, 0) == 0
    return np.frombuffer(memory, np.uint8, size, 16 * page - size).view(dtype)
int8._ALIGN_FROM, int8.aligned = 0, lambda shape, dtype: guarded(shape[0] * shape[1], dtype).reshape(shape)
rng = np.random.default_rng(0)
for m, k, n in [(1, 3, 2), (5, 5, 7), (33, 70, 33), (40, 64, 32), (7, 100, 40), (2, 66, 31)]:
    x = guarded(m * k).reshape(m, k)
    x[...] = rng.integers(0, 256, (m, k))
    w = rng.integers(-127, 128, (k, n)).astype(np.int8)
    init = rng.integers(-9, 9, n).astype(np.int32)
    assert np.array_equal(int8_sums(x, PackedMatrix(w, {kind!r}), init), reference.int8_sums(x, w, init)), (m, k, n)
    floats = guarded(m * k, np.float32).reshape(m, k)
    floats[...] = rng.normal(size=(m, k))
    scale = np.full(n, 0.01, np.float32)
    for target in (None, (3, 0)):
        layer = init, scale, (np.float32(0.02), 100), target
        assert np.array_equal(int8_dense(floats, PackedMatrix(w, {kind!r}), *layer), reference.int8_dense(floats, w, *layer))
print("fine")
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("mprotect as on Linux")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "fine\n", (done.returncode, done.stderr[-2000:])


# ---- int8_dense ----------------------------------------------------------------------------------


@seeded
@given(
    kind=st.sampled_from(KINDS),
    m=st.integers(0, 40),
    k=st.integers(1, 80),
    n=st.integers(1, 70),
    zero_point=st.integers(0, 255),
    relu=st.booleans(),
    from_floats=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_layer_equals_its_parts_bit_for_bit(kind, m, k, n, zero_point, relu, from_floats, seed):
    rng = np.random.default_rng(seed)
    x, weight = operands(m, k, n, seed)
    init = rng.integers(-(2**20), 2**20, n).astype(np.int32)
    multiplier = rng.uniform(1e-6, 1e-2, n).astype(np.float32)
    source, target = None, (zero_point, zero_point if relu else 0)
    if from_floats:
        source = np.float32(rng.uniform(1e-3, 1)), int(rng.integers(0, 256))
        x = rng.normal(0, 100 * source[0], (m, k)).astype(np.float32)
    q = x if source is None else reference.quantize(x, *source, 0, 255)
    sums = (q.astype(np.int64) @ weight.astype(np.int64) + init).astype(np.int32)
    packed = PackedMatrix(weight, kind)
    assert_same(kernels.int8_sums(q, packed, init), sums)
    assert_same(
        unchanged(kernels.int8_dense, x, packed, init, multiplier, source), sums.astype(np.float32) * multiplier
    )
    rounded = np.rint(sums.astype(np.float32) * multiplier) + np.float32(zero_point)
    expected = np.clip(rounded, target[1], 255).astype(np.uint8)
    assert_same(kernels.int8_dense(x, packed, init, multiplier, source, target), expected)
    padded = packed.pad(init), packed.pad(multiplier)
    assert_same(kernels.int8_dense(x, packed, *padded, source, target), expected)


@every_kind
def test_rounding_to_bytes_is_half_to_even_with_the_zero_point_after_it(kind):
    x, weight = np.array([[1], [3], [5], [7]], np.uint8), np.ones((1, 1), np.int8)
    half, init = np.array([0.5], np.float32), np.zeros(1, np.int32)
    out = kernels.int8_dense(x, PackedMatrix(weight, kind), init, half, None, (3, 0))  # 0.5, 1.5, 2.5, 3.5
    assert out.ravel().tolist() == [3, 5, 5, 7]
    relu = kernels.int8_dense(x, PackedMatrix(-weight, kind), init, half, None, (3, 3))
    assert relu.ravel().tolist() == [3, 3, 3, 3]
    ends = kernels.int8_dense(x, PackedMatrix(127 * weight, kind), init, 10 * half, None, (200, 0))
    assert ends.ravel().tolist() == [255] * 4


@every_kind
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("k", [3, 16, 40])
def test_nan_is_refused_wherever_it_stands_and_infinity_saturates(kind, rows, k):
    weight = PackedMatrix(np.ones((k, 2), np.int8), kind)
    init, scale = np.zeros(2, np.int32), np.ones(2, np.float32)
    for position in (0, k - 1, rows * k - 1):
        x = np.zeros((rows, k), np.float32)
        x.flat[position] = np.nan
        with pytest.raises(ValueError, match="1 NaN in it"):
            kernels.int8_dense(x, weight, init, scale, (np.float32(1), 0))
        x.flat[position] = np.inf
        assert kernels.int8_dense(x, weight, init, scale, (np.float32(1), 0)).max() == 255


def test_nan_is_refused_from_every_thread():
    x, weight = np.zeros((2048, 512), np.float32), np.ones((512, 512), np.int8)
    init, scale = np.zeros(512, np.int32), np.ones(512, np.float32)
    for row in (0, 2047):
        x[row, 7] = np.nan
        with pytest.raises(ValueError, match="1 NaN in it"):
            kernels.int8_dense(x, PackedMatrix(weight), init, scale, (np.float32(1), 0))
        x[row, 7] = 0


# ---- requantize: both modes ----------------------------------------------------------------------


@seeded
@given(n=st.integers(1, 40), zero_point=st.integers(0, 255), seed=st.integers(0, 999))
def test_both_ways_to_requantize_agree_with_their_references(n, zero_point, seed):
    rng = np.random.default_rng(seed)
    sums = rng.integers(-(2**31), 2**31, (9, n)).astype(np.int32)
    multiplier = np.exp2(rng.uniform(-40, 3, n)).astype(np.float32)
    for low in (0, zero_point):
        expected = reference.requantize(sums, multiplier, zero_point, low)
        assert_same(unchanged(kernels.requantize, sums, multiplier, zero_point, low), expected)
        fixed = md.quantize.fixed_point(multiplier)
        integer = reference.requantize_integer(sums, *fixed, zero_point, low)
        assert_same(unchanged(kernels.requantize_integer, sums, *fixed, zero_point, low), integer)
        assert np.abs(integer.astype(int) - expected).max() <= 1  # they differ by a step, near ties


@pytest.mark.parametrize(("total", "multiplier", "shift", "expected"), [
    # gemmlowp: SaturatingRoundingDoublingHighMul(a, b) is the nearest of a * b / 2**31, RoundingDivideByPOT away from zero
    (100, 2**30, 0, 50),        # 100 * 0.5
    (101, 2**30, 0, 51),        # 50.5: the first rounding takes ties up
    (-101, 2**30, 0, -50),      # -50.5: up again
    (3, 2**30, 1, 1),           # 1.5 -> 2, then 2 / 2
    (5, 2**30, 1, 2),           # 2.5 -> 3, then 1.5 -> 2: rounded twice, where 1.25 would give 1
    (-5, 2**30, 1, -1),         # -2.5 -> -2, then -1
    (-7, 2**30, 1, -2),         # -3.5 -> -3, then -1.5 -> -2: away from zero
    (40, 2**30, -2, 80),        # M = 2: shifted left first
    (2**31 - 1, 2**31 - 1, 24, 128),
])  # fmt: skip
def test_known_vectors_of_the_integer_only_requantization(total, multiplier, shift, expected):
    arguments = np.array([[total]], np.int32), np.array([multiplier], np.int32), np.array([shift], np.int32)
    for module in (kernels, reference):
        for zero_point in (100, 128):
            got = int(module.requantize_integer(*arguments, zero_point, 0)[0, 0])
            assert got == min(max(expected + zero_point, 0), 255)


def test_fixed_point_is_the_nearest_fraction():
    multiplier = np.array([1.0, 0.5, 0.75, 3.0, 1 - 2.0**-24, 2.0**-20, 1e-30], np.float32)
    m, shift = md.quantize.fixed_point(multiplier)
    assert m.dtype == shift.dtype == np.int32 and (m[:-1] >= 2**30).all()
    assert m[:4].tolist() == [2**30, 2**30, 3 * 2**29, 3 * 2**29] and shift[:4].tolist() == [-1, 0, 0, -2]
    assert shift[-1] == 31 and m[-1] == 0  # too small for any shift: every int32 sum becomes 0
    np.testing.assert_allclose(m[:-1] * 2.0**-31 * 2.0 ** -shift[:-1].astype(float), multiplier[:-1], rtol=2**-31)
    for bad in (2.0**32, 0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"positive and below 2\*\*31"):
            md.quantize.fixed_point(np.array([1, bad], np.float32))
    largest, zero = np.array([[2**31 - 1]], np.int32), 100
    for exponent in (-31, -32, -33, -40, -70):
        tiny = np.array([0.9 * 2.0**exponent], np.float32)
        integer = kernels.requantize_integer(largest, *md.quantize.fixed_point(tiny), zero, 0)
        assert abs(int(integer[0, 0]) - int(kernels.requantize(largest, tiny, zero, 0)[0, 0])) <= (exponent > -33)


# ---- rows, tables --------------------------------------------------------------------------------


def test_rows_have_scales_of_their_own():
    x = np.array([[0, 0, 0], [-1, 0, 1.55], [51, 102, 25.5], [-510, -255, 0]], np.float32)
    q, scale, zero_point = unchanged(kernels.quantize_rows, x)
    assert scale.tolist() == [1, pytest.approx(0.01), pytest.approx(0.4), 2]
    assert zero_point.tolist() == [0, 100, 0, 255]
    assert q.tolist() == [[0, 0, 0], [0, 100, 255], [128, 255, 64], [0, 127, 255]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("k", [3, 16, 37])
def test_a_row_without_a_range_is_refused(bad, k):
    for position in (0, k - 1, 2 * k - 1):
        x = np.ones((2, k), np.float32)
        x.flat[position] = bad
        for module in (kernels, reference):
            with pytest.raises(ValueError, match=r"with 1 NaN or infinity in it"):
                module.quantize_rows(x)


@seeded
@given(m=st.integers(0, 6), k=st.integers(1, 40), n=st.integers(1, 20), size=st.sampled_from([1e-38, 1, 1e38]),
       seed=st.integers(0, 999))  # fmt: skip
def test_rows_and_tables_agree_with_their_references(m, k, n, size, seed):
    rng = np.random.default_rng(seed)
    x = (rng.uniform(-1, 1, (m, k)) * size).astype(np.float32)
    for ours, theirs in zip(unchanged(kernels.quantize_rows, x), reference.quantize_rows(x), strict=True):
        assert_same(ours, theirs)
    q, scale, zero_point = reference.quantize_rows(x)
    weight = rng.integers(-127, 128, (k, n)).astype(np.int8)
    sums, column_scale = (q.astype(np.int32) @ weight.astype(np.int32)), rng.random(n).astype(np.float32)
    arguments = sums, scale, zero_point, weight.sum(axis=0, dtype=np.int32), column_scale
    assert_same(unchanged(kernels.dequantize_sums, *arguments), reference.dequantize_sums(*arguments))
    ids = rng.integers(0, k, m)
    row_scale = rng.random(k).astype(np.float32)
    for same in (ids, ids.astype(np.uint8)):
        rows = unchanged(kernels.lookup_rows, weight, row_scale, weight.shape[1], 8, same)
        assert_same(rows, weight[ids] * row_scale[ids][:, None])


# ---- packing -------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 32), (65, 33), (100, 40)])
def test_packing_is_undone_exactly_and_copies_are_independent(kind, shape):
    matrix = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    packed = PackedMatrix(matrix, kind)
    assert_same(np.asarray(packed), matrix)
    assert packed.data.ctypes.data % ALIGNMENT == 0 and packed.columns >= shape[1]
    assert packed.sums.tolist() == matrix.sum(axis=0).tolist()
    twin = copy.deepcopy(packed)
    twin[...] = -matrix
    assert_same(np.asarray(packed), matrix)
    assert_same(np.asarray(twin), -matrix)
    assert_same(np.asarray(pickle.loads(pickle.dumps(packed))), matrix)
    assert packed.pad(np.arange(shape[1])).tolist() == [*range(shape[1]), *[0] * (packed.columns - shape[1])]


def test_a_kind_that_does_not_run_here_is_refused():
    with pytest.raises(ValueError, match=r"got kind='tpu'.*\n.*runs: "):
        PackedMatrix(np.zeros((4, 4), np.int8), "tpu")


@pytest.mark.skipif("avx512_vnni" not in KINDS, reason="another processor, another layout")
def test_the_packed_order_of_bytes():
    matrix = np.arange(-64, 64, dtype=np.int8).reshape(4, 32)
    packed = PackedMatrix(matrix, "avx512_vnni")
    assert packed.data.shape == (1, 4, 32, 4)  # a panel, k filled up to 16, 32 columns, groups of 4
    assert packed.data[0, 0, 0].tolist() == matrix[:, 0].tolist()
    assert packed.data[0, 0, 31].tolist() == matrix[:, 31].tolist()
    assert not packed.data[0, 1:].any()


def test_aligned_arrays_begin_at_a_cache_line():
    for shape in ((), (3,), (5, 7)):
        array = aligned(shape, np.float32)
        assert array.shape == shape and array.dtype == np.float32 and array.flags.carray
        assert array.ctypes.data % ALIGNMENT == 0


# ---- processors ----------------------------------------------------------------------------------


def kinds_with(**environment):
    code = "from minidistill.kernels import cpu; print(*cpu.kinds())"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@jit_only
def test_the_kind_follows_what_numba_may_compile():
    if "avx2" not in KINDS:
        pytest.skip("not an x86 processor with AVX2")
    assert kinds_with(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx2,+fma") == ["avx2", "vectors"]
    assert kinds_with(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == ["vectors"]
    assert kinds_with(NUMBA_DISABLE_JIT="1") == ["plain"]


@jit_only
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are those of x86")
@pytest.mark.parametrize(
    ("name", "features", "kinds"),
    [
        ("haswell", "", ["avx2", "vectors"]),
        ("x86-64-v3", "-avx2", ["vectors"]),
        ("alderlake", "", ["avx_vnni", "avx2", "vectors"]),
        ("cascadelake", "", ["avx512_vnni", "avx2", "vectors"]),
        ("generic", "+avx512vnni,+avx512bw,+avx512vl", ["avx512_vnni", "avx2", "vectors"]),
    ],
)
def test_what_a_named_processor_implies(name, features, kinds):
    """What Intel's manuals say of each: nothing is run, so the machine need not have the instructions."""
    assert kinds_with(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features) == kinds


@jit_only
@pytest.mark.parametrize("features", ["+avx2,+fma", ""])
def test_where_instructions_are_forbidden_models_give_the_same(features):
    """In a process of its own, compiled for an older processor, a model computes the same bits."""
    code = """
import hashlib, numpy as np, minidistill as md
from minidistill import nn, quantize
x = np.random.default_rng(0).normal(size=(70, 50)).astype(np.float32)
layer = quantize.QuantizedDense(50, 33)
layer.input_scale[0], layer.input_zero_point[0] = 0.02, 100
layer.weight_q[...] = np.random.default_rng(1).integers(-127, 128, (50, 33)).astype(np.int8)
layer.give_integers(0.5, 7)
print(hashlib.sha256(layer.infer(x).q.tobytes()).hexdigest(), hashlib.sha256(layer.infer(x[:1]).q.tobytes()).hexdigest())
"""
    printed = []
    for environment in ({}, {"NUMBA_CPU_NAME": "haswell" if features else "generic", "NUMBA_CPU_FEATURES": features}):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": "0", **environment}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        printed.append(done.stdout)
    assert printed[0] == printed[1]


@every_kind
def test_many_python_threads_get_the_right_sums(kind):
    x, weight = operands(500, 400, 260)  # enough to be split, with every kind
    expected, packed = reference.int8_matmul(x, weight, 5), PackedMatrix(weight, kind)
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda _: kernels.int8_matmul(x, packed, 5), range(64))
        assert all(np.array_equal(result, expected) for result in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@every_kind
def test_a_forked_child_computes_too(kind):
    x, weight = operands(600, 512, 512)
    packed = PackedMatrix(weight, kind)
    expected = kernels.int8_matmul(x, packed, 5)  # the pool and the tiles have been used
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(kernels.int8_matmul(x, packed, 5), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
