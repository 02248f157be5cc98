"""What Numba has no words for: vector registers, and the instructions that multiply 8-bit numbers in them.

An *intrinsic* is a function that writes code instead of running: Numba calls ``generate`` while it compiles a kernel, and
what ``builder`` is told there, in LLVM's language, becomes part of the kernel at the place of the call. Arguments named
``kind``, ``rows`` and the like are constants of the kernel, known by then (`literal_value`); addresses are plain integers.

- `dot_tile`: a tile of rows x columns sums stays in vector registers while k runs (all kinds of ``cpu.py`` but AMX); weights
  of 2 to 4 bits are unpacked in registers;
- `amx_tile`: the same for 32 x 32 sums in the tile registers of AMX;
- `store_row`: a row of finished sums becomes floats or uint8 on its way to the output;
- `round_16`, `widen_16`: 16 floats become integers, or widen 16 ranges.

LLVM's names: ``alloca`` is a variable (which ends up in a register), ``splat`` copies a number to all lanes of a register.
Read ``packing.py`` before this file, and the twins in ``reference/`` for what is computed. Numba does not see an edit of this
file in the kernels that it has cached: run `make clean` after one.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minidistill.kernels.bit_packing import FIELDS

DOT_KINDS = ("avx512_vnni", "avx_vnni", "avx2", "vectors")
_LANES = (16, 8, 8, 4)  # int32 in a register
LINE_TYPES = (np.uint8, np.uint8, np.int16, np.int16)  # of the buffered rows; the last two multiply int16
_UNROLL = 4  # steps of a single row at once: otherwise each addition would wait for the one before it
_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32, _VOID = ir.FloatType(), ir.VoidType()
SUMS, FLOATS, BYTES = 0, 1, 2  # what `store_row` makes of sums


def _at(builder, address, kind):
    return builder.inttoptr(address, ir.PointerType(kind))


def _load(builder, address, kind):
    return builder.load(_at(builder, address, kind), align=1)


def _store(builder, value, address):
    builder.store(value, _at(builder, address, value.type), align=1)


def _call(builder, name, result, arguments):
    function = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _plus(builder, address, offset):
    return builder.add(address, offset if isinstance(offset, ir.Value) else ir.Constant(_I64, offset))


def _splat(builder, value, lanes):
    one = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined), value, ir.Constant(_I32, 0)
    )
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _dot(builder, kind, sums, inputs, w_at):
    """sums + products, in int32 lanes: each lane of ``inputs`` holds four uint8 (or two int16), and so does each at w_at."""
    lanes = sums.type.count
    if DOT_KINDS[kind] == "vectors":  # no processor's own word: the compiler finds the instructions that come nearest
        wide = ir.VectorType(_I32, 2 * lanes)
        weights = builder.sext(_load(builder, w_at, ir.VectorType(_I8, 2 * lanes)), wide)
        products = builder.mul(builder.sext(builder.bitcast(inputs, ir.VectorType(_I16, 2 * lanes)), wide), weights)
        even, odd = (ir.Constant(sums.type, list(range(first, 2 * lanes, 2))) for first in (0, 1))
        pairs = [builder.shuffle_vector(products, products, which) for which in (even, odd)]
        return builder.add(sums, builder.add(*pairs))
    if DOT_KINDS[kind] == "avx2":
        weights = builder.sext(_load(builder, w_at, ir.VectorType(_I8, 2 * lanes)), ir.VectorType(_I16, 2 * lanes))
        pairs = builder.bitcast(inputs, weights.type)
        return builder.add(sums, _call(builder, "llvm.x86.avx2.pmadd.wd", sums.type, [pairs, weights]))
    weights = _load(builder, w_at, sums.type)
    return _call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", sums.type, [sums, inputs, weights])


@intrinsic(prefer_literal=True)
def dot_tile(
    typingctx, kind, bits, few, block, scaled, count, line, line_step, weight, units, beside, plain, out, stride
):
    """rows x (2 registers) sums over all k, stored with ``stride`` bytes between rows. One of three tiles computes ``count``
    rows: of 1 row, of ``few`` or of ``block``; rows that are too many are not looked at.

    The sums begin with the int32 at ``beside``. If they are ``scaled``, they become floats, are multiplied by the float32 at
    ``beside`` and added to what stands at ``out``. Addresses are integers, and so is ``line_step``, the bytes from one row of
    inputs to the next. For each step the kernel loads two registers of weights and, for each row, four bytes of input that
    are spread to all lanes: two loads of weights serve all rows, which is why the tile is tall.

    Numbers of 2 to 4 bits come as ``bit_packing.py`` keeps them. Instructions that multiply bytes get them out of registers:
    a shift and a mask bring a step's numbers into the *upper* bits of their bytes. There they have their sign, and are
    2**(8 - bits) times what they are; so are the sums, which one shift at the end makes right again, exactly. Sums are not
    larger on the way than with 8 bits: 7 * 16, 3 * 32 and 64 are below 127. Without such instructions all units are unpacked
    to ``plain`` first.
    """
    kind_, bits_, few_, block_, scaled_ = (argument.literal_value for argument in (kind, bits, few, block, scaled))
    packed = bits_ in FIELDS

    def tile(builder, rows, line, line_step, weight, units, beside, plain, out, stride):
        if packed and DOT_KINDS[kind_].endswith("vnni"):
            _tile_of_bits(builder, kind_, bits_, rows, scaled_, line, line_step, weight, units, beside, out, stride)
            return
        if packed:
            size, steps = 2 * _LANES[kind_] * 4 // LINE_TYPES[kind_]().itemsize, len(FIELDS[bits_])
            with cgutils.for_range(builder, units) as loop:
                from_at = _plus(builder, weight, builder.mul(loop.index, ir.Constant(_I64, size * steps * bits_ // 8)))
                to = _plus(builder, plain, builder.mul(loop.index, ir.Constant(_I64, size * steps)))
                _unpack(builder, bits_, size, from_at, to)
            weight, units = plain, builder.mul(units, ir.Constant(_I64, steps))
        _tile_of_bytes(builder, kind_, rows, scaled_, line, line_step, weight, units, beside, out, stride)

    def generate(context, builder, signature, arguments):
        count, *rest = arguments[5:]
        with builder.if_else(builder.icmp_signed("==", count, ir.Constant(_I64, 1))) as (one, more):
            with one:
                tile(builder, 1, *rest)
            with more, builder.if_else(builder.icmp_signed("<=", count, ir.Constant(_I64, few_))) as (some, many):
                with some:
                    tile(builder, few_, *rest)
                with many:
                    tile(builder, block_, *rest)
        return context.get_dummy_value()

    return types.void(kind, bits, few, block, scaled, *[types.intp] * 9), generate


def _tile_of_bytes(builder, kind, rows, scaled, line, line_step, weight, steps, beside, out, stride):
    lanes, unroll = _LANES[kind], max(1, _UNROLL // rows)
    vector = ir.VectorType(_I32, lanes)
    vector_bytes = lanes * 4 // LINE_TYPES[kind]().itemsize
    sums = [[[cgutils.alloca_once(builder, vector) for _ in range(2)] for _ in range(rows)] for _ in range(unroll)]
    for held in (held for chain in sums for row in chain for held in row):
        builder.store(ir.Constant(vector, None), held)
    first, stride_of_steps = ir.Constant(_I64, 0), ir.Constant(_I64, unroll)
    with cgutils.for_range_slice(builder, first, steps, stride_of_steps, _I64) as (step, _):
        x_at = _plus(builder, line, builder.mul(step, ir.Constant(_I64, 4)))
        w_at = _plus(builder, weight, builder.mul(step, ir.Constant(_I64, 2 * vector_bytes)))
        for u in range(unroll):
            for r in range(rows):
                at = _plus(builder, x_at, builder.mul(line_step, ir.Constant(_I64, r)))
                inputs = _splat(builder, _load(builder, _plus(builder, at, 4 * u), _I32), lanes)
                for v in range(2):
                    here = _plus(builder, w_at, (2 * u + v) * vector_bytes)
                    held = sums[u][r][v]
                    builder.store(_dot(builder, kind, builder.load(held), inputs, here), held)
    for r in range(rows):
        for v in range(2):
            total = builder.load(sums[0][r][v])
            for u in range(1, unroll):
                total = builder.add(total, builder.load(sums[u][r][v]))
            at = _plus(builder, out, builder.mul(stride, ir.Constant(_I64, r)))
            _finish(builder, total, scaled, beside, at, 4 * lanes * v)


def _finish(builder, total, scaled, beside, at, offset):
    """Store a register of sums: see `dot_tile`. Every operation is rounded."""
    at, beside = _plus(builder, at, offset), _plus(builder, beside, offset)
    if scaled:
        floats = ir.VectorType(_F32, total.type.count)
        value = builder.fmul(builder.sitofp(total, floats), _load(builder, beside, floats))
        total = builder.fadd(_load(builder, at, floats), value)
    else:
        total = builder.add(total, _load(builder, beside, total.type))
    _store(builder, total, at)


def _tile_of_bits(builder, kind, bits, rows, scaled, line, line_step, weight, units, beside, out, stride):
    lanes, chains = _LANES[kind], max(1, _UNROLL // rows)
    vector, size = ir.VectorType(_I32, lanes), lanes * 4
    fields, registers = FIELDS[bits], 2 * len(FIELDS[bits]) * bits // 8  # of a unit
    sums = [[[cgutils.alloca_once(builder, vector) for _ in range(2)] for _ in range(rows)] for _ in range(chains)]
    for held in (held for chain in sums for row in chain for held in row):
        builder.store(ir.Constant(vector, None), held)
    with cgutils.for_range(builder, units) as loop:
        x_at = _plus(builder, line, builder.mul(loop.index, ir.Constant(_I64, 4 * len(fields))))
        w_at = _plus(builder, weight, builder.mul(loop.index, ir.Constant(_I64, registers * size)))
        packed = [_load(builder, _plus(builder, w_at, i * size), vector) for i in range(registers)]
        for step, pieces in enumerate(fields):
            weights = [_upper_bits(builder, bits, packed[v::2], pieces) for v in range(2)]
            for r in range(rows):
                at = _plus(builder, x_at, builder.mul(line_step, ir.Constant(_I64, r)))
                inputs = _splat(builder, _load(builder, _plus(builder, at, 4 * step), _I32), lanes)
                for v in range(2):
                    held = sums[step % chains][r][v]
                    operands = [builder.load(held), inputs, weights[v]]
                    builder.store(_call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", vector, operands), held)
    down = ir.Constant(vector, [8 - bits] * lanes)
    for r in range(rows):
        for v in range(2):
            total = builder.load(sums[0][r][v])
            for chain in sums[1:]:
                total = builder.add(total, builder.load(chain[r][v]))
            at = _plus(builder, out, builder.mul(stride, ir.Constant(_I64, r)))
            _finish(builder, builder.ashr(total, down), scaled, beside, at, size * v)


@intrinsic(prefer_literal=True)
def unpack_unit(typingctx, bits, size, packed, out):
    """The steps of one unit, ``size`` bytes each, as int8: for instructions that take whole bytes."""
    bits_, size_ = bits.literal_value, size.literal_value

    def generate(context, builder, signature, arguments):
        _unpack(builder, bits_, size_, *arguments[2:])
        return context.get_dummy_value()

    return types.void(bits, size, types.intp, types.intp), generate


def _unpack(builder, bits, size, packed, out):
    words, bytes_ = ir.VectorType(_I32, size // 4), ir.VectorType(_I8, size)
    fields, down = FIELDS[bits], ir.Constant(bytes_, [8 - bits] * size)
    loaded = [_load(builder, _plus(builder, packed, i * size), words) for i in range(len(fields) * bits // 8)]
    for step, pieces in enumerate(fields):
        value = builder.bitcast(_upper_bits(builder, bits, loaded, pieces), bytes_)
        _store(builder, builder.ashr(value, down), _plus(builder, out, step * size))


def _upper_bits(builder, bits, packed, pieces):
    """The numbers of a step, in the upper bits of each byte. ``packed``: the bytes of its unit, a register each.

    Registers are shifted as int32; what then comes from the byte beside is masked away.
    """
    result = None
    for byte, place, width, shift in pieces:
        value, to = packed[byte], 8 - bits + shift  # where its lowest bit goes
        amount = ir.Constant(value.type, [abs(to - place)] * value.type.count)
        if to != place:
            value = builder.shl(value, amount) if to > place else builder.lshr(value, amount)
        mask = ir.Constant(value.type, [(2**width - 1 << to) * 0x01010101] * value.type.count)
        value = builder.and_(value, mask)
        result = value if result is None else builder.or_(result, value)
    return result


@intrinsic(prefer_literal=True)
def store_row(typingctx, result, scaled, columns, sums, scale, zero_point, low, out):
    """One row of a tile, from int32 sums (or, ``scaled``, float32 totals) to what the kernel gives; the arithmetic of
    `reference.requantize`."""
    result_, scaled_, columns_ = result.literal_value, scaled.literal_value, columns.literal_value

    def generate(context, builder, signature, arguments):
        _, _, _, sums, scale, zero_point, low, out = arguments
        floats, ints = ir.VectorType(_F32, columns_), ir.VectorType(_I32, columns_)
        value = _load(builder, sums, floats if scaled_ else ints)
        if result_ != SUMS:
            value = value if scaled_ else builder.sitofp(value, floats)
            value = builder.fmul(value, _load(builder, scale, floats))
        if result_ == BYTES:
            rounded = _call(builder, f"llvm.rint.v{columns_}f32", floats, [value])
            value = builder.fadd(rounded, _splat(builder, zero_point, columns_))
            top = ir.Constant(floats, [255.0] * columns_)
            value = _clamp(builder, value, _splat(builder, low, columns_), top)
            value = builder.trunc(builder.fptosi(value, ints), ir.VectorType(_I8, columns_))
        _store(builder, value, out)
        return context.get_dummy_value()

    f = types.float32
    signature = types.void(result, scaled, columns, types.intp, types.intp, f, f, types.intp)
    return signature, generate


@intrinsic
def round_16(typingctx, x, scale, zero_point, low, high, array, out):
    """16 floats to integers of the type of ``array``, as `reference.quantize`: divide, round, add, clamp, cast; stored at
    ``out``. Returns whether one was NaN.

    Written out because the compiler prefers registers of half the size for loops, even where it has the whole.
    """
    width = array.dtype.bitwidth

    def generate(context, builder, signature, arguments):
        x, scale, zero_point, low, high, _, out = arguments
        floats, ints = ir.VectorType(_F32, 16), ir.VectorType(_I32, 16)
        value = builder.fdiv(_load(builder, x, floats), _splat(builder, scale, 16))
        value = builder.fadd(_call(builder, "llvm.rint.v16f32", floats, [value]), _splat(builder, zero_point, 16))
        is_nan = builder.fcmp_unordered("uno", value, value)
        value = _clamp(builder, value, _splat(builder, low, 16), _splat(builder, high, 16))
        _store(builder, builder.trunc(builder.fptosi(value, ints), ir.VectorType(ir.IntType(width), 16)), out)
        return builder.icmp_unsigned("!=", builder.bitcast(is_nan, _I16), ir.Constant(_I16, 0))

    f = types.float32
    return types.boolean(types.intp, f, f, f, f, array, types.intp), generate


@intrinsic
def widen_16(typingctx, x, bounds):
    """Widen 16 ranges, stored as 16 lower and 16 upper ends at ``bounds``, by 16 floats."""

    def generate(context, builder, signature, arguments):
        x, bounds = arguments
        floats, upper = ir.VectorType(_F32, 16), _plus(builder, bounds, 64)
        value, low, high = (_load(builder, at, floats) for at in (x, bounds, upper))
        _store(builder, builder.select(builder.fcmp_ordered("<", value, low), value, low), bounds)
        _store(builder, builder.select(builder.fcmp_ordered(">", value, high), value, high), upper)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


def _clamp(builder, value, low, high):
    value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
    return builder.select(builder.fcmp_ordered(">", value, high), high, value)


@intrinsic
def copy_64(typingctx, to, source):
    """64 bytes from one address to another."""

    def generate(context, builder, signature, arguments):
        to, source = arguments
        _store(builder, _load(builder, source, ir.VectorType(_I8, 64)), to)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def tiles_on(typingctx):
    """Give all eight tile registers 16 rows of 64 bytes."""

    def generate(context, builder, signature, arguments):
        config = bytearray(64)
        config[0] = 1  # palette
        config[16:32] = b"\x40\0" * 8  # bytes in a row, as uint16
        config[48:56] = b"\x10" * 8  # rows
        stored = cgutils.global_constant(builder, "tile_config", ir.Constant(ir.ArrayType(_I8, 64), config))
        _call(builder, "llvm.x86.ldtilecfg", _VOID, [builder.bitcast(stored, ir.PointerType(_I8))])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def tiles_off(typingctx):
    """Give the tile registers back, so that switching threads need not save their 8 KB."""

    def generate(context, builder, signature, arguments):
        _call(builder, "llvm.x86.tilerelease", _VOID, [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def amx_tile(typingctx, inputs, row_step, block_step, weight, blocks, init, out, stride, both):
    """32 x 32 sums, from ``init`` on, over ``blocks`` of 64 k: four tile registers of sums, two of inputs, two of weights.
    Steps are in bytes: from a row of the inputs to the next, and from a block to the next.

    Four blocks are loaded for four products, where one product alone would need two: that is the point of 32 x 32. The
    sums begin as 16 copies of a row of ``init``: a tile is loaded with a stride of 0. Without ``both``, only the
    upper 16 rows are computed and stored.
    """

    def generate(context, builder, signature, arguments):
        inputs, row_step, block_step, weight, blocks, init, out, stride, both = arguments

        def tile(instruction, number, address, step):
            step = step if isinstance(step, ir.Value) else ir.Constant(_I64, step)
            number, address = ir.Constant(_I8, number), _at(builder, address, _I8)
            _call(builder, f"llvm.x86.tile{instruction}64", _VOID, [number, address, step])

        def multiply(sums, inputs, weights):
            _call(builder, "llvm.x86.tdpbusd", _VOID, [ir.Constant(_I8, t) for t in (sums, inputs, weights)])

        def compute(halves):
            for number in range(2 * halves):  # 0 and 1: left and right columns of the upper rows; 2 and 3: of the lower
                tile("loadd", number, _plus(builder, init, number % 2 * 64), 0)
            with cgutils.for_range(builder, blocks) as loop:
                w = _plus(builder, weight, builder.mul(loop.index, ir.Constant(_I64, 2048)))
                a = _plus(builder, inputs, builder.mul(loop.index, block_step))
                tile("loadd", 6, w, 128)
                tile("loadd", 4, a, row_step)
                multiply(0, 4, 6)
                tile("loadd", 7, _plus(builder, w, 64), 128)
                multiply(1, 4, 7)
                if halves == 2:
                    tile("loadd", 5, _plus(builder, a, builder.mul(row_step, ir.Constant(_I64, 16))), row_step)
                    multiply(2, 5, 6)
                    multiply(3, 5, 7)
            for number in range(2 * halves):
                row = builder.mul(stride, ir.Constant(_I64, number // 2 * 16))
                tile("stored", number, _plus(builder, _plus(builder, out, row), number % 2 * 64), stride)

        with builder.if_else(both) as (tall, short):
            with tall:
                compute(2)
            with short:
                compute(1)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8, types.boolean), generate
