"""Fast twin of the sparse layer of `reference/`. Read that file, ``sparse_formats.py`` and ``sparse_intrinsics.py`` first.

Why is a sparse product slow, where it multiplies so little? A value that is used once needs its position, a load of the
input from there, and a place for the sum. So the samples are taken 32 at a time and turned, `[K][32]`: then one position
and one value serve 32 samples, whose inputs lie beside each other and whose sums stay in two registers. Turning, and
turning the result back, is done in registers (`turn_16`). With one or two samples there is nothing to share, and
`_few_kernel` fetches the inputs of 16 values at a time.

Whatever the format, the inputs of the values are written out once, as CSR has them, and kept: with many samples that is up
to five times faster than to read a bitmap for each tile, and a general n of m has no instruction. Only single samples read a
bitmap as it is, which is the fastest where half of the weights are left.

``perf/ladders/sparse.py`` climbs from three loops to this. Given up for simplicity: float64 multiplies densely, as the
reference does.
"""

import functools

import numpy as np

from minidistill.kernels import reference
from minidistill.kernels._jit import LAYOUT, READY, kernel, kernel_input
from minidistill.kernels.cpu import has
from minidistill.kernels.pool import share
from minidistill.kernels.sparse_intrinsics import LANES, add_up_16, bitmap_dot, finish_16, gathered_dot
from minidistill.kernels.sparse_intrinsics import lane_sums, tile_product, turn_16

_TILE = 2 * LANES  # samples
_FEW_ROWS = 3  # from here on turning pays (measured from 80 to 95% zeros)
_WORTH_SPLITTING = 100_000  # cycles of one thread, some 30 microseconds
_FLOAT32, _INF = np.dtype(np.float32), float("inf")
_new = np.empty  # of a result; a test hands out memory with a fence behind it


def sparse_dense(x, weight, bias=None, relu=False):
    """As `reference.sparse_dense`, from the stored values alone."""
    inputs, outputs = weight.shape
    if x.dtype != _FLOAT32:
        return reference.sparse_dense(x, weight, bias, relu)
    if x.ndim != 2 or x.shape[1] != inputs:  # inside, arrays are addresses
        raise ValueError(
            f"a sparse product got x of shape {x.shape}, a weight of shape {weight.shape}.\nx is (M, K), the weight (K, N)."
            "\nReshape it first: x.reshape(-1, K)."
        )
    x, rows, stored = x if x.flags.num & LAYOUT == READY else kernel_input(x), len(x), len(weight.values)
    out = _new((rows, outputs), np.float32)
    columns, row_starts, scales = weight.prepared or _prepare(weight)
    bias = np.zeros(outputs, np.float32) if bias is None else bias
    if bias.dtype is not _FLOAT32 or bias.size != outputs or bias.flags.num & LAYOUT != READY:
        bias = np.array(np.broadcast_to(bias, outputs), np.float32)
    blocks, result = -(-outputs // LANES), (scales, bias, 0.0 if relu else -_INF, out)
    if rows < _FEW_ROWS and weight.lanes is not None:
        share(_single, (x, *weight.lanes, *result), blocks, rows * len(weight.lanes[0]) * 3, _WORTH_SPLITTING)
    elif rows < _FEW_ROWS and weight.format == "bitmap":
        few, work = _few_kernel(True, False), rows * inputs * outputs * 3 // LANES
        share(few, (x, weight.values, weight.index, row_starts, *result), blocks, work, _WORTH_SPLITTING)
    elif rows < _FEW_ROWS:
        few = _few_kernel(False, has("avx512f"))
        share(few, (x, weight.values, columns, row_starts, *result), blocks, rows * stored, _WORTH_SPLITTING)
    else:
        arguments, work = (x, weight.values, columns, row_starts, *result), rows * stored // 12
        if rows >= 2 * _TILE:
            share(_some_rows, (arguments, outputs), rows, work, _WORTH_SPLITTING)
        else:
            share(_some_outputs, (arguments, rows, outputs), blocks, work, _WORTH_SPLITTING)
    return out


def _prepare(weight):
    """What a product needs besides the values, kept with the matrix: the input of each value, row starts and scales."""
    columns = weight.index
    if weight.format != "csr":
        columns = weight.columns().astype(np.min_scalar_type(max(weight.shape[0] - 1, 0)))
    scales = np.ones(weight.shape[1], np.float32) if weight.scales is None else weight.scales
    weight.prepared = columns, weight.row_starts.astype(np.uint32), scales  # starts of one type: fewer kernels
    return weight.prepared


def _some_rows(arguments, outputs, lo, hi):
    _tiles(*arguments, lo, hi, 0, outputs)


def _some_outputs(arguments, rows, outputs, lo, hi):
    _tiles(*arguments, 0, rows, lo * LANES, min(hi * LANES, outputs))


@kernel
def _tiles(x, values, columns, row_starts, scales, bias, low, out, lo, hi, first, last):
    """Many samples: the rows [lo, hi) and the outputs [first, last).

    Sixteen outputs are collected before they are turned back: that is a square of `finish_16`, and a cache line of the
    result.
    """
    inputs, low = x.shape[1], np.float32(low)
    packed, sums = np.empty(_TILE * inputs + 16, np.float32), np.empty(_TILE * LANES + 16, np.float32)
    packed_at, sums_at = _line(packed), _line(sums)
    for i in range(lo, hi, _TILE):
        rows = min(_TILE, hi - i)
        _turn(x, i, rows, packed, packed_at)
        for block in range(first, last, LANES):
            outputs = min(LANES, last - block)
            for c in range(outputs):
                begin, end = np.int64(row_starts[block + c]), np.int64(row_starts[block + c + 1])
                at, here = values.ctypes.data + begin * values.itemsize, columns.ctypes.data + begin * columns.itemsize
                to = sums_at + 4 * c * _TILE
                if rows > LANES:
                    tile_product(2, at, values, here, columns, end - begin, packed_at, to)
                else:
                    tile_product(1, at, values, here, columns, end - begin, packed_at, to)
            _turn_back(sums, sums_at, i, rows, block, outputs, scales, bias, low, out)


@kernel
def _line(buffer):
    """The first address in the buffer where a cache line begins."""
    return (buffer.ctypes.data + 63) // 64 * 64


@kernel
def _turn(x, i, count, packed, packed_at):
    """Rows [i, i + count) of x as [K][32], or [K][16] if there are no more; samples that are missing are 0."""
    inputs, width = x.shape[1], _TILE if count > LANES else LANES
    start = (packed_at - packed.ctypes.data) // 4
    for r in range(0, width, LANES):
        whole = inputs // LANES * LANES if r + LANES <= count else 0
        x_at = x.ctypes.data + 4 * (i + r) * inputs
        for k in range(0, whole, LANES):
            turn_16(x_at + 4 * k, 4 * inputs, packed_at + 4 * (k * width + r), 4 * width)
        for k in range(whole, inputs):
            for s in range(r, r + LANES):
                packed[start + k * width + s] = x[i + s, k] if s < count else np.float32(0)


@kernel
def _turn_back(sums, sums_at, i, count, block, outputs, scales, bias, low, out):
    """A tile of [16 outputs][32 samples] (each a row of 32 or 16 numbers) to rows of the result."""
    start = (sums_at - sums.ctypes.data) // 4
    for r in range(0, count, LANES):
        if outputs == LANES and r + LANES <= count:
            scale_at, bias_at = scales.ctypes.data + 4 * block, bias.ctypes.data + 4 * block
            out_at = out.ctypes.data + 4 * ((i + r) * out.shape[1] + block)
            finish_16(sums_at + 4 * r, 4 * _TILE, scale_at, bias_at, low, out_at, 4 * out.shape[1])
        else:
            for s in range(r, min(r + LANES, count)):
                for c in range(outputs):
                    value = sums[start + c * _TILE + s] * scales[block + c] + bias[block + c]
                    out[i + s, block + c] = low if value < low else value


@kernel
def _single(x, values, places, pairs, firsts, scales, bias, low, out, lo, hi):
    """Blocks [lo, hi) of 16 outputs, from values `in_lanes`."""
    inputs, outputs, chunks, low = x.shape[1], out.shape[1], pairs.shape[1], np.float32(low)
    sums = np.empty(LANES, np.float32)
    for block in range(lo, hi):
        at = values.ctypes.data + firsts[block] * values.strides[0]
        places_at, pairs_at = places.ctypes.data + firsts[block] * LANES, pairs.ctypes.data + block * chunks
        for i in range(x.shape[0]):
            x_at = x.ctypes.data + 4 * i * inputs
            lane_sums(at, values, places_at, pairs_at, chunks, inputs, x_at, sums.ctypes.data)
            for n in range(block * LANES, min((block + 1) * LANES, outputs)):
                value = sums[n - block * LANES] * scales[n] + bias[n]
                out[i, n] = low if value < low else value


@functools.cache
def _few_kernel(bitmap, has_gather):
    """The kernel for one or two samples; blocks [lo, hi) of 16 outputs, whose parts are added up together."""

    @kernel
    def few(x, values, index, row_starts, scales, bias, low, out, lo, hi):
        outputs, low = out.shape[1], np.float32(low)
        sums = np.zeros((x.shape[0], LANES, LANES), np.float32)
        for block in range(lo * LANES, min(hi * LANES, outputs), LANES):
            count = min(LANES, outputs - block)
            for n in range(block, block + count):
                begin, end = np.int64(row_starts[n]), np.int64(row_starts[n + 1])
                at = values.ctypes.data + begin * values.itemsize
                for i in range(x.shape[0]):
                    x_at = x.ctypes.data + 4 * i * x.shape[1]
                    to = sums.ctypes.data + i * sums.strides[0] + (n - block) * sums.strides[1]
                    if bitmap:
                        bitmap_dot(at, values, index.ctypes.data + n * index.strides[0], index.shape[1], x_at, to)
                    else:
                        here = index.ctypes.data + begin * index.itemsize
                        gathered_dot(has_gather, at, values, here, index, end - begin, x_at, to)
            for i in range(x.shape[0]):
                if count == LANES:
                    sums_at = sums.ctypes.data + i * sums.strides[0]
                    out_at = out.ctypes.data + 4 * (i * outputs + block)
                    scale_at, bias_at = scales.ctypes.data + 4 * block, bias.ctypes.data + 4 * block
                    add_up_16(sums_at, scale_at, bias_at, low, out_at)
                else:
                    for c in range(count):
                        value = sums[i, c].sum() * scales[block + c] + bias[block + c]
                        out[i, block + c] = low if value < low else value

    return few
