"""Fast twins of the integer products of `reference/int8.py`. Read that file, ``cpu.py`` and ``packing.py`` first.

The multiplying itself is done by *intrinsics* (``intrinsics.py``): what Numba has no words for. Around them is ordinary code:
`_block_kernel` takes a few rows of the input into a small buffer (floats are rounded on the way), runs over the panels of the
weight, and stores. Inputs are read once, sums never leave the first-level cache, and neither int32 nor floats are written to
memory between two integer layers.

Of weights of 2 to 4 bits (`PackedBits`) fewer bytes are read, and unpacked in registers; on AMX, whose tiles take bytes from
memory, and on processors without 8-bit products they are unpacked first. Where groups of
inputs have scales of their own (`grouped_dense`), totals are floats.

``perf/ladders/int8.py`` climbs from three loops to this, a rung an idea. Given up for simplicity: more than two heights of
tile for each kind, and blocking for weights that exceed the second-level cache.
"""

import functools

import numpy as np

from minidistill.kernels._jit import LAYOUT, READY, exact_kernel, is_ready, kernel_input
from minidistill.kernels.bit_packing import FIELDS
from minidistill.kernels.intrinsics import BYTES, DOT_KINDS, FLOATS, LINE_TYPES, SUMS
from minidistill.kernels.intrinsics import amx_tile, copy_64, dot_tile, round_16, store_row
from minidistill.kernels.intrinsics import tiles_off, tiles_on, unpack_unit
from minidistill.kernels.packing import LAYOUTS, PackedMatrix, aligned
from minidistill.kernels.pool import split
from minidistill.kernels.reference import nan_error

# Rows of a tile, whose sums fill 24 of 32 registers (12 of 16, or 4 of 8 tiles); and of a smaller tile, for a few rows.
_TILES = {"amx": (32, 4), "avx512_vnni": (12, 4), "avx_vnni": (6, 2), "avx2": (6, 2), "vectors": (6, 2)}
# Products (M * K * N) from which a second thread pays: some 30 microseconds of one. Measured by perf/int8.py.
_WORTH_SPLITTING = {"amx": 30e6, "avx512_vnni": 6e6, "avx_vnni": 3e6, "avx2": 2e6, "vectors": 1e6}
_FEW_FOR_TILES = 4  # rows; for more, AMX multiplies so much faster that weights of few bits are unpacked for it
_COST_OF_A_SUM = 96  # products: what it takes to start and store one
_FEW_PANELS = 4  # for so few, rows are not worth copying into tiles
_WORTH_SHARING = 1_200_000  # bytes of weights: more than half of a usual second-level cache. Two threads use two caches
_MANY_ROWS = 64  # from there rows are split, below it columns
_ALIGN_FROM = 16_384  # numbers of the output; below, a store that straddles two cache lines costs less than aligning


def int8_matmul(x, weight, zero_point):
    """As `reference.int8_matmul`, on 8-bit instructions. The zero point moves out of the loop:
    sum((x - z) * w) = sum(x * w) - z * sum(w), and the second sum does not depend on x."""
    if not isinstance(weight, PackedMatrix):
        weight = PackedMatrix(weight)
    return int8_sums(x, weight, -int(zero_point) * weight.sums)


def int8_sums(x, weight, init):
    """As `reference.int8_sums`."""
    return _dense(SUMS, x, weight, init, _NO_SCALE, None, 0, 0)


def int8_dense(x, weight, init, scale, source=None, target=None):
    """As `reference.int8_dense`: rounding in, product and rounding out in one pass over a few rows at a time."""
    if scale.size != weight.columns or scale.dtype is not _FLOAT32:
        scale = _padded(x, weight, scale, _FLOAT32, source)
    if target is None:
        return _dense(FLOATS, x, weight, init, scale, source, 0, 0)
    return _dense(BYTES, x, weight, init, scale, source, *target)


_INT32, _FLOAT32, _UINT8 = np.dtype(np.int32), np.dtype(np.float32), np.dtype(np.uint8)
_RESULTS = _INT32, _FLOAT32, _UINT8  # of SUMS, FLOATS and BYTES
_NO_SCALE, _NO_SOURCE = np.zeros(1, np.float32), (1.0, 0)


def grouped_dense(x, weight, group, scale, start, factor, source=None, target=None):
    """As `reference.grouped_dense`: a panel's totals stay in the first-level cache while its groups are added to them."""
    _check_input(x, weight, start, source)
    (k, _), columns = weight.matrix_shape, weight.columns
    fits = scale.shape == (-(-k // group), columns) and start.size == columns and group % 32 == 0
    if not fits or not scale.dtype == start.dtype == _FLOAT32 or not is_ready(scale):
        raise _misfit(x, weight, scale, source)
    in_bytes, data = type(weight) is PackedMatrix or weight.bits not in FIELDS, weight.data
    if in_bytes:
        data = data.reshape(len(data), -1, weight.layout.columns * weight.layout.group)
    numbers = (*(source or _NO_SOURCE), factor, *(target or (0, 0)))
    result, kind = FLOATS if target is None else BYTES, "avx512_vnni" if weight.kind == "amx" else weight.kind
    kernel = _group_kernel(kind, 8 if in_bytes else weight.bits, result, source is not None)
    return _run(kernel, result, x, weight, data, (scale, start, group, *map(float, numbers)))


def _dense(result, x, weight, init, scale, source, zero_point, low):
    """Choose the kernel for these inputs and give it what it needs."""
    _check_input(x, weight, init, source)
    if init.size != weight.columns or init.dtype is not _INT32:
        init = _padded(x, weight, init, _INT32, source)
    kernel, data = _kernel_for(weight, result, source is not None, len(x))
    in_scale, in_zero = source or _NO_SOURCE
    numbers = float(in_scale), float(in_zero), float(zero_point), float(low)
    return _run(kernel, result, x, weight, data, (init, scale, *numbers))


def _check_input(x, weight, column_values, source):
    """Inside, arrays are addresses: a wrong shape or type would be read beyond its end."""
    wanted = _FLOAT32 if source else _UINT8
    if x.ndim != 2 or x.shape[1] != weight.matrix_shape[0] or (x.dtype is not wanted and x.dtype != wanted):
        raise _misfit(x, weight, column_values, source)


def _run(kernel, result, x, weight, data, arguments):
    """Share the rows, or the panels, if there is much to multiply."""
    kind, (k, n), rows = weight.kind, weight.matrix_shape, len(x)
    x, size = x if x.flags.num & LAYOUT == READY else kernel_input(x), rows * n
    out = (np.empty if size < _ALIGN_FROM else aligned)((rows, n), _RESULTS[result])
    arguments, panels, found_nan = (x, data, *arguments, out), len(data), []
    if size * (k + _COST_OF_A_SUM) < _WORTH_SPLITTING[kind] and data.size < _WORTH_SHARING:
        found_nan = kernel(*arguments, 0, rows, 0, panels)
    elif rows >= _MANY_ROWS:
        split(_some_rows, (kernel, found_nan, arguments, panels), rows)
    else:
        split(_some_panels, (kernel, found_nan, arguments, rows), panels)
    if found_nan:
        raise nan_error(x)
    return out


def _padded(x, weight, values, dtype, source):
    """Numbers for the columns, in whole panels; or an error, if they are not of this type or not as many as the columns."""
    if values.dtype != dtype or values.size not in (weight.matrix_shape[1], weight.columns):
        raise _misfit(x, weight, values, source)
    return values if values.size == weight.columns else weight.pad(values)


def _misfit(x, weight, column_values, source):
    return ValueError(
        f"an integer product got x of shape {x.shape} {x.dtype}, a weight of shape {weight.matrix_shape}, and for its columns"
        f" {column_values.size} numbers of {column_values.dtype}.\nx is (M, K), {'float32' if source else 'uint8'}; the sums "
        "begin with int32 and are scaled by float32, one for each column.\nConvert them first: x.astype(np.uint8)."
    )


def _some_rows(kernel, found_nan, arguments, panels, lo, hi):
    if kernel(*arguments, lo, hi, 0, panels):
        found_nan.append(lo)


def _some_panels(kernel, found_nan, arguments, rows, lo, hi):
    """A part of the columns: each thread reads its own part of the weight, which then stays in its own cache."""
    if kernel(*arguments, 0, rows, lo, hi):
        found_nan.append(lo)


@functools.cache
def _block_kernel(kind, bits, result, floats):
    """The kernel for one kind of instruction, one width of weights, one kind of result, and inputs of uint8 or (``floats``)
    float32. Each is compiled apart, since code for instructions that a processor does not have cannot even be compiled.

    It works on ``[lo, hi)`` rows and on panels ``[first, last)``, a block of rows at a time. ``lines`` holds the block as the
    vector tiles read it, ``tiles`` as those of AMX do (``tall``: there are rows enough for them); weights of few bits that no
    instruction takes as they are come into ``plain``. A tile's ``sums`` go through `store_row`, a row at a time; the last
    panel may reach beyond the output's columns, and goes through ``tail``.
    """
    amx, (block, few) = kind == "amx", _TILES[kind]
    columns, group, _ = LAYOUTS[kind]
    dot = DOT_KINDS.index("avx512_vnni" if amx else kind)  # up to four rows are left to vectors
    most, unit, out_bytes = few if amx else block, len(FIELDS.get(bits, [1])), _RESULTS[result].itemsize

    @exact_kernel
    def rows_kernel(x, weight, init, scale, in_scale, in_zero, zero_point, low, out, lo, hi, first, last):
        in_scale, in_zero = np.float32(in_scale), np.float32(in_zero)
        zero_point, low, found_nan = np.float32(zero_point), np.float32(low), False
        n_out, units = out.shape[1], weight.shape[1]
        steps = units * unit
        lines = np.empty((block, steps * group), LINE_TYPES[dot])
        tiles = np.empty(steps * 4 * block + 64 if amx else 0, np.uint8)
        plain = np.empty(steps * columns * group if unit > 1 else 0, np.int8)
        sums, tail = np.empty((block, columns), np.int32), np.empty(columns, out.dtype)
        step, plain_at = lines.strides[0], plain.ctypes.data
        line_at, tiles_at, sums_at = lines.ctypes.data, (tiles.ctypes.data + 63) // 64 * 64, sums.ctypes.data
        if amx:
            tiles_on()
        for i in range(lo, hi, block):
            count = min(block, hi - i)
            tall, row_step, block_step, inputs_at = amx and count > few, 64, 2048, tiles_at
            if floats:
                found_nan |= _round_rows(x, i, count, in_scale, in_zero, lines)
                if tall:
                    _to_tiles(line_at, lines.shape[1], 0, count, steps // 16, tiles_at)
            elif tall:  # blocks of 64 go beyond the end of a row, where weights are 0, but not beyond that of x
                x_at, inside = x.ctypes.data + i * x.shape[1], (x.size - lines.shape[1]) // x.shape[1] + 1 - i
                if last - first <= _FEW_PANELS and inside >= block:
                    row_step, block_step, inputs_at = x.shape[1], 64, x_at
                else:
                    inside = min(count, max(0, inside))
                    _to_tiles(x_at, x.shape[1], 0, inside, steps // 16, tiles_at)
                    _copy_rows(x, i, inside, count, lines)
                    _to_tiles(line_at, lines.shape[1], inside, count, steps // 16, tiles_at)
            else:
                _copy_rows(x, i, 0, count, lines)
            for p in range(first, last):
                n = p * columns
                w_at = weight.ctypes.data + p * weight.strides[0]
                init_at, scale_at = init.ctypes.data + n * 4, scale.ctypes.data + n * 4
                out_at = out.ctypes.data + (i * n_out + n) * out_bytes
                whole = n + columns <= n_out
                direct = result == SUMS and whole and count == block  # then a tile may be stored as it is
                to, stride = (out_at, n_out * 4) if direct else (sums_at, columns * 4)
                if tall:
                    amx_tile(inputs_at, row_step, block_step, w_at, steps // 16, init_at, to, stride, count > 16)
                else:
                    dot_tile(dot, bits, few, most, 0, count, line_at, step, w_at, units, init_at, plain_at, to, stride)
                for r in range(0 if direct else count):
                    row_at, here = sums_at + r * columns * 4, out_at + r * n_out * out_bytes
                    if whole:
                        store_row(result, 0, columns, row_at, scale_at, zero_point, low, here)
                    else:
                        store_row(result, 0, columns, row_at, scale_at, zero_point, low, tail.ctypes.data)
                        for c in range(n_out - n):
                            out[i + r, n + c] = tail[c]
        if amx:
            tiles_off()
        return found_nan

    return rows_kernel


def _kernel_for(weight, result, floats, rows):
    """(kernel, its weights) for a weight, a result, the kind of inputs and their number."""
    kind = weight.kind
    if type(weight) is PackedMatrix or weight.bits not in FIELDS:
        return _block_kernel(kind, 8, result, floats), weight.data
    if kind == "amx" and rows > _FEW_FOR_TILES:
        return _block_kernel(kind, 8, result, floats), _in_bytes(weight)
    return _block_kernel("avx512_vnni" if kind == "amx" else kind, weight.bits, result, floats), weight.data


def _in_bytes(weight):
    """The numbers of a `PackedBits` in whole bytes, as a `PackedMatrix` has them."""
    (panels, units, _), size = weight.data.shape, weight.layout.columns * weight.layout.group
    wide = aligned((panels, units * len(weight.fields), size), np.int8)
    split(_widen(weight.bits, size), (weight.data, wide), panels)
    return wide


@functools.cache
def _group_kernel(kind, bits, result, floats):
    """The kernel of `grouped_dense`: ``totals`` of a block of rows and a panel begin with ``start``."""
    (block, few), (columns, group, _) = _TILES[kind], LAYOUTS[kind]
    dot, unit, across = DOT_KINDS.index(kind), len(FIELDS.get(bits, [1])), columns * 4
    out_bytes = _RESULTS[result].itemsize

    @exact_kernel
    def rows_kernel(
        x, weight, scale, start, inputs, in_scale, in_zero, factor, zero_point, low, out, lo, hi, first, last
    ):
        in_scale, in_zero, factor = np.float32(in_scale), np.float32(in_zero), np.float32(factor)
        zero_point, low, found_nan = np.float32(zero_point), np.float32(low), False
        n_out, units, most = out.shape[1], weight.shape[1], inputs // (unit * group)
        lines = np.empty((block, units * unit * group), LINE_TYPES[dot])
        plain = np.empty((most * unit, columns * group), np.int8)
        totals, factors = np.empty((block, columns), np.float32), np.full(columns, factor, np.float32)
        tail = np.empty(columns, out.dtype)
        step, plain_at, sums_at = lines.strides[0], plain.ctypes.data, totals.ctypes.data
        for i in range(lo, hi, block):
            count = min(block, hi - i)
            if floats:
                found_nan |= _round_rows(x, i, count, in_scale, in_zero, lines)
            else:
                _copy_rows(x, i, 0, count, lines)
            for p in range(first, last):
                n = p * columns
                totals[:] = start[n : n + columns]
                for g in range(scale.shape[0]):
                    here = min(most, units - g * most)
                    line_at = lines.ctypes.data + g * inputs * lines.itemsize
                    w_at = weight.ctypes.data + p * weight.strides[0] + g * most * weight.strides[1]
                    scale_at = scale.ctypes.data + g * scale.strides[0] + n * 4
                    dot_tile(
                        dot, bits, few, block, 1, count, line_at, step, w_at, here, scale_at, plain_at, sums_at, across
                    )
                whole = n + columns <= n_out
                for r in range(count):
                    at = out.ctypes.data + ((i + r) * n_out + n) * out_bytes
                    to = at if whole else tail.ctypes.data
                    store_row(result, 1, columns, sums_at + r * across, factors.ctypes.data, zero_point, low, to)
                    for c in range(0 if whole else n_out - n):
                        out[i + r, n + c] = tail[c]
        return found_nan

    return rows_kernel


@functools.cache
def _widen(bits, size):
    """A kernel that unpacks panels [lo, hi) of a `PackedBits` to what a `PackedMatrix` has."""
    unit = len(FIELDS[bits])

    @exact_kernel
    def panels_kernel(packed, wide, lo, hi):
        for p in range(lo, hi):
            for u in range(packed.shape[1]):
                from_at = packed.ctypes.data + p * packed.strides[0] + u * packed.strides[1]
                unpack_unit(bits, size, from_at, wide.ctypes.data + p * wide.strides[0] + u * unit * size)

    return panels_kernel


@exact_kernel
def _copy_rows(x, i, begin, end, lines):
    for r in range(begin, end):
        for k in range(x.shape[1]):
            lines[r, k] = x[i + r, k]


@exact_kernel
def _round_rows(x, i, count, scale, zero, lines):
    found_nan, size = False, x.shape[1]
    for r in range(count):
        x_at, line_at = x.ctypes.data + (i + r) * size * 4, lines.ctypes.data + r * lines.strides[0]
        for k in range(0, size - 15, 16):
            found_nan |= round_16(x_at + k * 4, scale, zero, 0.0, 255.0, lines, line_at + k * lines.itemsize)
        for k in range(size // 16 * 16, size):
            q = np.rint(x[i + r, k] / scale) + zero
            found_nan |= np.isnan(q)
            lines[r, k] = min(max(q, np.float32(0)), np.float32(255))
    return found_nan


@exact_kernel
def _to_tiles(rows_at, stride, begin, end, blocks, tiles_at):
    """Rows [begin, end) to ``[K / 64][32 rows][64]``, where a tile's rows stand beside each other. In x they may be a
    multiple of 4096 bytes apart, and would push each other out of the cache."""
    for r in range(begin, end):
        for b in range(blocks):
            copy_64(tiles_at + (b * 32 + r) * 64, rows_at + r * stride + b * 64)
