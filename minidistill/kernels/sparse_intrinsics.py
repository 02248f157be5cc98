"""The vector code of the sparse kernels. Read the first paragraph of ``intrinsics.py`` (what an intrinsic is) and
``sparse_formats.py`` before this file.

A sparse product multiplies few numbers, so what counts is how they are found. With many samples, `tile_product` loads one
weight and multiplies it with the same input of 16 or 32 samples, which `turn_16` has put beside each other. With one
sample, `gathered_dot` loads 16 inputs from 16 places at once, and `bitmap_dot` spreads the next few values over the places
that a word of 16 bits names.

All is written for 16 floats, in words that LLVM translates for any processor; ``masked`` loads and stores touch only the
lanes whose bit is set, and no memory for the others. As in ``intrinsics.py``, run `make clean` after an edit.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minidistill.kernels.intrinsics import _F32, _I8, _I32, _I64, _at, _call, _load, _plus, _splat, _store

LANES = 16
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)
_I16 = ir.IntType(16)
_CHAINS = 4  # sums side by side in a dot product: an addition waits four cycles for the one before it


def _times(builder, index, size):
    return builder.mul(index, ir.Constant(_I64, size))


def _multiply_add(builder, a, b, held):
    """held += a * b. LLVM rounds once where the processor can and twice elsewhere, as `contract` allows."""
    builder.store(_call(builder, "llvm.fmuladd.v16f32", _FLOATS, [a, b, builder.load(held)]), held)


def _no_sums(builder, count):
    return [cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, None)) for _ in range(count)]


def _added(builder, parts):
    """The sum of vectors, by halves: an addition waits only for the two before it."""
    while len(parts) > 1:
        halves = [builder.fadd(x, y) for x, y in zip(parts[::2], parts[1::2])]
        parts = halves + parts[2 * len(halves) :]
    return parts[0]


def _element(array):
    """(LLVM's type, bytes) of an element of a Numba array: float32, int8 or an unsigned integer."""
    bits = array.dtype.bitwidth
    return _F32 if isinstance(array.dtype, types.Float) else ir.IntType(bits), bits // 8


def _name(kind):
    """How LLVM's intrinsics spell a type."""
    return "f32" if kind == _F32 else f"i{kind.width}"


def _masked_load(builder, address, kind, bits):
    """16 elements, of which only those are touched whose bit is set; the others are 0."""
    name, vector = f"v{LANES}{_name(kind)}", ir.VectorType(kind, LANES)
    arguments = [_at(builder, address, vector), ir.Constant(_I32, 1), bits, ir.Constant(vector, None)]
    return _call(builder, f"llvm.masked.load.{name}.p0{name}", vector, arguments)


def _as_floats(builder, values):
    """float32 as they are, int8 (one or 16) converted."""
    kind = getattr(values.type, "element", values.type)
    if kind == _F32:
        return values
    wide, real = (_INTS, _FLOATS) if hasattr(values.type, "element") else (_I32, _F32)
    return builder.sitofp(builder.sext(values, wide), real)


def _transposed(builder, source, step):
    """16 rows of 16 floats from memory, turned over their diagonal in registers.

    In four rounds: the first exchanges the two off-diagonal 8 x 8 squares, the next the 4 x 4 ones in each quarter, and so
    on. 64 instructions for 256 numbers, where copying them one by one takes 256 loads and stores.
    """
    rows = [_load(builder, _plus(builder, source, _times(builder, step, i)), _FLOATS) for i in range(LANES)]
    for d in (8, 4, 2, 1):
        low = ir.Constant(_INTS, [16 + e - d if e & d else e for e in range(LANES)])
        high = ir.Constant(_INTS, [16 + e if e & d else e + d for e in range(LANES)])
        for i in range(LANES):
            if not i & d:
                upper, lower = rows[i], rows[i + d]
                rows[i] = builder.shuffle_vector(upper, lower, low)
                rows[i + d] = builder.shuffle_vector(upper, lower, high)
    return rows


@intrinsic
def turn_16(typingctx, source, source_step, to, to_step):
    """A square of 16 x 16 floats, turned over its diagonal. Steps are the bytes between two rows."""

    def generate(context, builder, signature, arguments):
        source, source_step, to, to_step = arguments
        for i, row in enumerate(_transposed(builder, source, source_step)):
            _store(builder, row, _plus(builder, to, _times(builder, to_step, i)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@intrinsic
def finish_16(typingctx, source, source_step, scale, bias, low, to, to_step):
    """As `turn_16`, and on the way each column is scaled, gets its bias, and is held above ``low`` (NaN stays NaN)."""

    def generate(context, builder, signature, arguments):
        source, source_step, scale, bias, low, to, to_step = arguments
        scales, biases = (_load(builder, address, _FLOATS) for address in (scale, bias))
        lows = _splat(builder, low, LANES)
        for i, row in enumerate(_transposed(builder, source, source_step)):
            row = builder.fadd(builder.fmul(row, scales), biases)
            row = builder.select(builder.fcmp_ordered("<", row, lows), lows, row)
            _store(builder, row, _plus(builder, to, _times(builder, to_step, i)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, types.float32, types.intp, types.intp), generate


@intrinsic
def add_up_16(typingctx, sums, scale, bias, low, out):
    """The totals of 16 rows of 16 partial sums, scaled, with a bias, and held above ``low``.

    Turned first, they are one sum of 16 vectors, where adding up each row by itself would take four steps that wait for each
    other.
    """

    def generate(context, builder, signature, arguments):
        sums, scale, bias, low, out = arguments
        totals = _added(builder, _transposed(builder, sums, ir.Constant(_I64, 4 * LANES)))
        value = builder.fadd(builder.fmul(totals, _load(builder, scale, _FLOATS)), _load(builder, bias, _FLOATS))
        lows = _splat(builder, low, LANES)
        _store(builder, builder.select(builder.fcmp_ordered("<", value, lows), lows, value), out)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.float32, types.intp), generate


@intrinsic(prefer_literal=True)
def tile_product(typingctx, registers, values, value_type, columns, column_type, count, packed, out):
    """One output for 16 x ``registers`` samples: the sum over its values, each times its input of all samples.

    ``packed`` holds the samples as [K][16 * registers], ``columns`` the inputs; the last two arrays only say of which types
    they are. Two values at a time have sums of their own, so that an addition seldom waits for the one before it.
    """
    registers_, chains = registers.literal_value, 2
    value, value_bytes = _element(value_type)
    column, column_bytes = _element(column_type)

    def generate(context, builder, signature, arguments):
        _, values, _, columns, _, count, packed, out = arguments
        sums = [_no_sums(builder, registers_) for _ in range(chains)]

        def add(index, chain):
            number = _load(builder, _plus(builder, values, _times(builder, index, value_bytes)), value)
            weight = _splat(builder, _as_floats(builder, number), LANES)
            place = _load(builder, _plus(builder, columns, _times(builder, index, column_bytes)), column)
            x_at = _plus(builder, packed, _times(builder, builder.zext(place, _I64), 64 * registers_))
            for r in range(registers_):
                _multiply_add(builder, weight, _load(builder, _plus(builder, x_at, 64 * r), _FLOATS), sums[chain][r])

        zero, one = ir.Constant(_I64, 0), ir.Constant(_I64, 1)
        paired = builder.and_(count, ir.Constant(_I64, -chains))
        with cgutils.for_range_slice(builder, zero, paired, ir.Constant(_I64, chains), _I64) as (j, _):
            for chain in range(chains):
                add(_plus(builder, j, chain), chain)
        with cgutils.for_range_slice(builder, paired, count, one, _I64) as (j, _):
            add(j, 0)
        for r in range(registers_):
            total = builder.fadd(*[builder.load(sums[chain][r]) for chain in range(chains)])
            _store(builder, total, _plus(builder, out, 64 * r))
        return context.get_dummy_value()

    return types.void(registers, types.intp, value_type, types.intp, column_type, *[types.intp] * 3), generate


@intrinsic(prefer_literal=True)
def gathered_dot(typingctx, has_gather, values, value_type, columns, column_type, count, x, out):
    """The sum of ``count`` values times the inputs at their columns, as 16 parts that are yet to be added up, at ``out``.

    ``has_gather`` says whether the processor loads from 16 places in one instruction; elsewhere there are 16 loads. The last
    few values are 16 with most lanes switched off.
    """
    has_gather_ = has_gather.literal_value
    value, value_bytes = _element(value_type)
    column, column_bytes = _element(column_type)

    def generate(context, builder, signature, arguments):
        _, values, _, columns, _, count, x, out = arguments
        sums = _no_sums(builder, 1)

        def add(j, bits):
            weight_at = _plus(builder, values, _times(builder, j, value_bytes))
            column_at = _plus(builder, columns, _times(builder, j, column_bytes))
            weights = _as_floats(builder, _masked_load(builder, weight_at, value, bits))
            places = _masked_load(builder, column_at, column, bits)
            places = places if column == _I32 else builder.zext(places, _INTS)
            _multiply_add(builder, weights, gather(places, bits), sums[0])

        def gather(places, bits):
            nothing = ir.Constant(_FLOATS, None)
            if has_gather_:
                request = [nothing, _at(builder, x, _I8), places, bits, ir.Constant(_I32, 4)]
                return _call(builder, "llvm.x86.avx512.mask.gather.dps.512", _FLOATS, request)
            inputs = nothing
            for lane in range(LANES):  # a lane that is off has place 0, which is there, and a weight of 0
                place = builder.zext(builder.extract_element(places, ir.Constant(_I32, lane)), _I64)
                one = _load(builder, _plus(builder, x, _times(builder, place, 4)), _F32)
                inputs = builder.insert_element(inputs, one, ir.Constant(_I32, lane))
            return inputs

        whole = builder.and_(count, ir.Constant(_I64, -LANES))
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), whole, ir.Constant(_I64, LANES), _I64) as (j, _):
            add(j, ir.Constant(_BITS, [1] * LANES))
        left = builder.sub(count, whole)
        with builder.if_then(builder.icmp_unsigned("!=", left, ir.Constant(_I64, 0))):
            lanes = ir.Constant(_INTS, list(range(LANES)))
            add(whole, builder.icmp_unsigned("<", lanes, _splat(builder, builder.trunc(left, _I32), LANES)))
        _store(builder, builder.load(sums[0]), out)
        return context.get_dummy_value()

    arguments = types.intp, value_type, types.intp, column_type, types.intp, types.intp, types.intp
    return types.void(has_gather, *arguments), generate


@intrinsic
def lane_sums(typingctx, values, value_type, places, pairs, chunks, inputs, x, out):
    """Sixteen outputs for one sample, each in its lane, at ``out``; from values in the order of `sparse_formats.in_lanes`.

    32 inputs are loaded into two registers, and sixteen of them, one for each lane, are picked by a *permutation*: one
    instruction where a gather takes sixteen loads. ``inputs`` is the length of x, beyond which nothing is touched.
    """
    value, value_bytes = _element(value_type)

    def generate(context, builder, signature, arguments):
        values, _, places, pairs, chunks, inputs, x, out = arguments
        sums = _no_sums(builder, 2)
        slot = cgutils.alloca_once_value(builder, ir.Constant(_I64, 0))
        lanes = ir.Constant(_INTS, list(range(LANES)))
        with cgutils.for_range(builder, chunks) as loop:
            first = _times(builder, loop.index, 2 * LANES)
            left = _splat(builder, builder.trunc(builder.sub(inputs, first), _I32), LANES)
            held = []
            for half in range(2):
                at = _plus(builder, _plus(builder, x, _times(builder, first, 4)), 64 * half)
                beyond = builder.add(lanes, ir.Constant(_INTS, [LANES * half] * LANES))
                held.append(_masked_load(builder, at, _F32, builder.icmp_signed("<", beyond, left)))
            here = builder.load(slot)
            count = builder.zext(_load(builder, _plus(builder, pairs, loop.index), _I8), _I64)
            with cgutils.for_range(builder, count) as pair:
                for u in range(2):
                    row = builder.add(here, _plus(builder, _times(builder, pair.index, 2), u))
                    weight_at = _plus(builder, values, _times(builder, row, LANES * value_bytes))
                    weights = _as_floats(builder, _load(builder, weight_at, ir.VectorType(value, LANES)))
                    place_at = _plus(builder, places, _times(builder, row, LANES))
                    place = builder.zext(_load(builder, place_at, ir.VectorType(_I8, LANES)), _INTS)
                    request = [held[0], place, held[1]]
                    picked = _call(builder, "llvm.x86.avx512.vpermi2var.ps.512", _FLOATS, request)
                    _multiply_add(builder, weights, picked, sums[u])
            builder.store(builder.add(here, _times(builder, count, 2)), slot)
        _store(builder, builder.fadd(*map(builder.load, sums)), out)
        return context.get_dummy_value()

    return types.void(types.intp, value_type, *[types.intp] * 6), generate


@intrinsic
def bitmap_dot(typingctx, values, value_type, words, count, x, out):
    """As `gathered_dot`, where ``count`` words of 16 bits say which inputs have a value.

    A masked *expanding* load takes as many values as the word has bits, and puts each into the lane of its bit.
    """
    value, value_bytes = _element(value_type)
    load = f"llvm.masked.expandload.v16{_name(value)}"

    def generate(context, builder, signature, arguments):
        values, _, words, count, x, out = arguments
        sums, at = _no_sums(builder, _CHAINS), cgutils.alloca_once_value(builder, values)

        def add(j, chain):
            word = _load(builder, _plus(builder, words, _times(builder, j, 2)), _I16)
            bits, here = builder.bitcast(word, _BITS), builder.load(at)
            kind = ir.VectorType(value, LANES)
            weights = _call(builder, load, kind, [_at(builder, here, value), bits, ir.Constant(kind, None)])
            taken = builder.zext(_call(builder, "llvm.ctpop.i16", _I16, [word]), _I64)
            builder.store(_plus(builder, here, _times(builder, taken, value_bytes)), at)
            inputs = _masked_load(
                builder, _plus(builder, x, _times(builder, j, 64)), _F32, bits
            )  # not beyond the end of x
            _multiply_add(builder, _as_floats(builder, weights), inputs, sums[chain])

        whole = builder.and_(count, ir.Constant(_I64, -_CHAINS))
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), whole, ir.Constant(_I64, _CHAINS), _I64) as (j, _):
            for chain in range(_CHAINS):
                add(_plus(builder, j, chain), chain)
        with cgutils.for_range_slice(builder, whole, count, ir.Constant(_I64, 1), _I64) as (j, _):
            add(j, 0)
        _store(builder, _added(builder, [builder.load(held) for held in sums]), out)
        return context.get_dummy_value()

    return types.void(types.intp, value_type, *[types.intp] * 4), generate
