# %% [markdown]
# # 5. Fast kernels
#
# **Goal.** Climb from three Python loops to a kernel that keeps up with float32 BLAS, and read the ones that leave it behind,
# for one product: uint8 times int8. Know why each step helps, how a test keeps it right, and how to time it without fooling
# yourself.
#
# **Prerequisites.** NumPy; lesson 4 for why these numbers have 8 bits. **Time.** 90 minutes to work through; the script runs
# in under a minute.
#
# All times are measured on your machine, on one thread. Speed is asserted only where no processor could be otherwise
# (compiled loops against Python, a function against itself); equality always is: integers, with `==`. Some processors
# lack some instructions. Then those rungs are left out.

# %%
import re
from collections import Counter
from pathlib import Path
from time import perf_counter

import numba
import numpy as np
from llvmlite import ir
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

import minidistill as md
from minidistill import timing
from minidistill.kernels import int8_sums, reference
from minidistill.kernels.cpu import kinds
from minidistill.kernels.packing import LAYOUTS, PackedMatrix
from minidistill.timing import compare

FOLDER = Path("runs/lessons/05_fast_kernels")
BLUE, RED, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
PALE = "#A6CEE3", "#FDC98F", "#B2DFB0", "#D9C2E0"  # to write on


def new_figure(**names):
    """A figure with letters that can be read from the last row."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.set(**names)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E5E5E5")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=13)
    axis.xaxis.label.set_size(15)
    axis.yaxis.label.set_size(15)
    return figure, axis


def show(figure, name):
    """Write the figure into runs/lessons/05_fast_kernels/, and show it if this is a notebook."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=120)
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(str(FOLDER / name)))


COMPILES = not numba.config.DISABLE_JIT  # NUMBA_DISABLE_JIT=1 runs all of this in Python, for a debugger
jit = numba.njit(nogil=True, error_model="numpy")
md.set_threads(1)
print("8-bit instructions that Numba may use here, the best first:", *kinds())

# %% [markdown]
# ## 5.1 What is to be computed
#
# `sums[m, n] = sum over k of x[m, k] * weight[k, n]`: each of M × N sums takes K products and K additions. The first version
# is the definition itself. It is slow and obviously right, and every other one will be compared with it.
#
# **Predict.** How many operations a second does Python do here? And NumPy's `@`, on int64 and on float32?

# %%
M, K, N = (240, 512, 512) if COMPILES else (48, 32, 32)
rng = np.random.default_rng(0)
x = rng.integers(0, 256, (M, K)).astype(np.uint8)
weight = rng.integers(-127, 128, (K, N)).astype(np.int8)


def loops_mnk(x, weight):
    sums = np.zeros((x.shape[0], weight.shape[1]), np.int32)
    for m in range(x.shape[0]):
        for n in range(weight.shape[1]):
            for k in range(x.shape[1]):
                sums[m, n] += np.int32(x[m, k]) * np.int32(weight[k, n])
    return sums


def operations(m, k, n):
    return 2 * m * k * n


expected = x.astype(np.int64) @ weight.astype(np.int64)
corner = x[:4], weight[:, :32]  # enough for Python
floats = x.astype(np.float32), weight.astype(np.float32)
assert np.array_equal(loops_mnk(*corner), expected[:4, :32])
assert np.array_equal(floats[0] @ floats[1], expected)  # float32 holds whole numbers up to 2**24, and these are smaller

rungs = {
    "Python": lambda: loops_mnk(*corner),
    "NumPy, int64": lambda: x.astype(np.int64) @ weight.astype(np.int64),
    "float32 BLAS": lambda: floats[0] @ floats[1],
}


def gops(rung, times):
    """1e9 operations a second."""
    shape = (4, K, 32) if rung == "Python" else (M, K, N)
    return operations(*shape) / times.median / 1e9


for rung, t in compare(rungs, seconds=0.02, settle=0.02).items():
    print(f"{rung:<14}{gops(rung, t):10.4f} Gop/s")

# %% [markdown]
# BLAS multiplies floats only. For integers NumPy falls back to a plain loop, whatever their size. **float32 BLAS is the
# yardstick**: 8 bits that run slower than that save memory and lose time.
#
# ## 5.2 Compiled, and in which order
#
# Numba compiles the three loops as they stand. Then we swap two of them: k outside, n inside.
#
# **Predict.** A cache line has 64 bytes and is always fetched whole. The innermost loop reads K weights: down a column, or
# along a row. How many lines does each way touch? Which of the two loops can use vector instructions?

# %%
mnk = jit(loops_mnk)


@jit
def mkn(x, weight):
    sums = np.zeros((x.shape[0], weight.shape[1]), np.int32)
    for m in range(x.shape[0]):
        for k in range(x.shape[1]):
            factor = np.int32(x[m, k])
            for n in range(weight.shape[1]):
                sums[m, n] += factor * np.int32(weight[k, n])
    return sums


def lines_touched(k, n):
    """Different cache lines that the elements weight[k, n] lie on."""
    return len(np.unique((np.asarray(k) * N + np.asarray(n)) // 64))


along = np.arange(K)
print(f"{K} weights down a column: {lines_touched(along, 0)} lines; along a row: {lines_touched(0, along)} lines")
assert lines_touched(along, 0) == K * min(N, 64) // 64 >= 8 * lines_touched(0, along)

start = perf_counter()
assert np.array_equal(mkn(x, weight), expected)
first = perf_counter() - start
assert np.array_equal(mnk(x, weight), expected)
rungs["loops m, n, k"] = lambda: mnk(x, weight)
rungs["loops m, k, n"] = lambda: mkn(x, weight)
times = compare({rung: rungs[rung] for rung in ("loops m, n, k", "loops m, k, n")}, seconds=0.05, settle=0.02)
for rung, t in times.items():
    print(f"{rung:<14}{timing.show(t):>14}{gops(rung, t):10.2f} Gop/s")
if COMPILES:
    print(f"the first call of the second one: {first * 1e3:.0f} ms, since it was compiled then")
    assert first > 5 * times["loops m, k, n"].median

# %% [markdown]
# Down a column each line is fetched for one byte, and the compiler finds no neighbours to multiply at once. Along a row it
# takes a whole vector of weights. (Integers may be added in any order. For floats that would change the result, so there the
# compiler may not even try to use vectors in the first order.)
#
# Still, compare with float32 BLAS above. Each weight is widened to 32 bits, so a vector holds as few numbers as with floats,
# and each product loads a sum and stores it again. Python has no word for "keep these sums in registers", nor for any
# instruction that multiplies bytes. So we need another language, for a few lines.
#
# ## 5.3 A word of LLVM
#
# Numba turns Python into the language of LLVM, and LLVM into machine code. An *intrinsic* is a function that writes the LLVM
# itself. How to read one:
#
# - the outer function is called with *types* and returns a signature and a generator;
# - `generate` runs once, **while** Numba compiles the caller: `builder.add(a, b)` adds nothing, it writes an addition down;
# - so a Python loop in it is unrolled: it writes its body again and again;
# - addresses are plain integers. Nobody checks them.
#
# `zext` widens a number without a sign, `sext` one with a sign. This one takes four uint8 and four int8.
#
# **Predict.** Somebody writes `sext` for both. For which inputs is the result wrong? How many pairs of bytes must a test try?

# %%
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def load(builder, address, kind):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def make_dot_4(widen_x):
    @intrinsic
    def dot_4(typingctx, x_at, w_at):
        def generate(context, builder, signature, arguments):
            x_at, w_at = arguments
            bytes_, words = ir.VectorType(I8, 4), ir.VectorType(I32, 4)
            x = getattr(builder, widen_x)(load(builder, x_at, bytes_), words)
            w = builder.sext(load(builder, w_at, bytes_), words)
            products = builder.mul(x, w)
            total = ir.Constant(I32, 0)
            for lane in range(4):
                total = builder.add(total, builder.extract_element(products, ir.Constant(I32, lane)))
            return total

        return types.int32(types.intp, types.intp), generate

    @jit
    def dots(x, w, out):
        for i in range(len(out)):
            out[i] = dot_4(x.ctypes.data + 4 * i, w.ctypes.data + 4 * i)

    return dots


every_x, every_w = (a.ravel() for a in np.meshgrid(np.arange(256), np.arange(-128, 128), indexing="ij"))
four_x = np.zeros((len(every_x), 4), np.uint8)
four_w = np.zeros((len(every_w), 4), np.int8)
for lane in range(4):  # all pairs in each lane, with other pairs beside them
    four_x[:, lane], four_w[:, lane] = np.roll(every_x, 1000 * lane), np.roll(every_w, 1000 * lane)
truth = (four_x.astype(np.int64) * four_w).sum(axis=1)
out = np.zeros(len(truth), np.int32)

wrong_from = 128
assert ((four_x.view(np.int8).astype(np.int64) * four_w).sum(axis=1) == truth)[(four_x < wrong_from).all(axis=1)].all()
if COMPILES:  # an intrinsic exists in compiled code only
    right, wrong = make_dot_4("zext"), make_dot_4("sext")
    right(four_x, four_w, out)
    assert np.array_equal(out, truth)
    wrong(four_x, four_w, out)
    assert not np.array_equal(out, truth) and (out == truth)[(four_x < wrong_from).all(axis=1)].all()
    print(
        f"zext: right for all {len(truth):,} rows; sext: wrong for {(out != truth).sum():,}, all with an x from 128 on"
    )
    written = next(iter(right.inspect_llvm().values()))
    print("what `generate` wrote, as LLVM sees it:")
    for operation in ("zext", "sext", "mul"):
        print("   ", re.search(rf"%\S+ = {operation} .*<4 x.*", written).group())

# %% [markdown]
# A test with small inputs would have passed both. Bytes are so few that a test can try them all.
#
# ## 5.4 Packing: bytes in the order of reading
#
# A vector instruction wants neighbours: for several columns at once, a few neighbouring k of each. In the plain matrix
# neighbouring k are N bytes apart. So the weight is copied once into another order, `[N/columns][K/group][columns][group]`:
#
# - `columns` of them, a *panel*, are computed together: all bytes of a panel come before those of the next;
# - in a panel, k goes on from group to group;
# - in a group stand the `group` neighbouring k of one column side by side.
#
# A model packs its weights once, when it is loaded. The figure shows 8 × 8 weights with panels of 4 columns and groups of 4.
#
# **Predict.** Where in memory will `weight[5, 6]` stand? And how many cache lines hold the 64 bytes that one instruction of
# 16 columns × 4 k takes, before and after packing?


# %%
def up(n, multiple):
    return -(-n // multiple) * multiple


def pack(weight, columns, group):
    """[N/columns][K/group][columns][group], filled up with zeros: they add nothing to a sum."""
    k, n = weight.shape
    filled = np.zeros((up(k, group), up(n, columns)), np.int8)
    filled[:k, :n] = weight
    blocks = filled.reshape(filled.shape[0] // group, group, filled.shape[1] // columns, columns)
    return np.ascontiguousarray(blocks.transpose(2, 0, 3, 1))


def place(k, n, groups, columns, group):
    """Where weight[k, n] stands in memory after packing."""
    return ((n // columns * groups + k // group) * columns + n % columns) * group + k % group


def packing_figure(size=8, columns=4, group=4):
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(8, 16))
    for k in range(size):
        for n in range(size):
            at = place(k, n, size // group, columns, group)
            colour, bold = PALE[at // (columns * group)], "bold" if (k, n) == (5, 6) else "normal"
            row, column = divmod(at, columns * group)
            for axis, corner, text in ((left, (n, k), at), (right, (column, 2 * row + 0.5), f"{k},{n}")):
                axis.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", lw=2))
                axis.text(corner[0] + 0.5, corner[1] + 0.5, text, ha="center", va="center", fontsize=14, weight=bold)
            if k % group == 0:
                frame = Rectangle((column, 2 * row + 0.5), group, 1, fill=False, edgecolor="black", lw=2, zorder=3)
                right.add_patch(frame)
    left.set_title("the matrix; numbers: place in memory", fontsize=15)
    right.set_title("memory, 16 bytes a line; numbers: k,n", fontsize=15)
    left.set(
        xticks=np.arange(size) + 0.5, yticks=np.arange(size) + 0.5, xticklabels=range(size), yticklabels=range(size)
    )
    left.set_xlabel("n", fontsize=15)
    left.set_ylabel("k", fontsize=15)
    left.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
    right.set(xlim=(-0.05, 16.05), ylim=(8, 0), xticks=[], yticks=[2 * i + 1 for i in range(4)], aspect="equal")
    right.set_yticklabels([f"{16 * i}" for i in range(4)])
    for axis in (left, right):
        axis.tick_params(length=0, labelsize=14)
        axis.spines[:].set_visible(False)
    return figure


show(packing_figure(), "packing.png")

small = rng.integers(-127, 128, (8, 8)).astype(np.int8)
packed = pack(small, 4, 4).ravel()
assert all(packed[place(k, n, 2, 4, 4)] == small[k, n] for k in range(8) for n in range(8))
print("weight[5, 6] stands at", place(5, 6, 2, 4, 4))
assert place(5, 6, 2, 4, 4) == 57

k, n = np.meshgrid(np.arange(4), np.arange(16), indexing="ij")
packed_lines = len(np.unique(place(k, n, K // 4, 32, 4) // 64))
print(
    f"64 bytes of one instruction lie on {lines_touched(k, n)} lines of the matrix, and on {packed_lines} after packing"
)
assert packed_lines == 1
for kind in [kind for kind in kinds() if kind != "plain"]:  # "plain" is what runs where nothing is compiled
    assert np.array_equal(
        PackedMatrix(weight, kind).data.ravel()[: weight.size], pack(weight, *LAYOUTS[kind][:2]).ravel()
    )

# %% [markdown]
# One line, and no rearranging between the load and the multiplication. The engine's `PackedMatrix` makes the
# same bytes; `LAYOUTS` says which panel and group each kind of instruction wants.
#
# ## 5.5 A tile stays in registers
#
# Now the idea that made BLAS fast. Take a *tile* of sums, a few rows × two vectors of columns, and keep it in registers while
# k runs. Each step loads two vectors of weights, and two neighbouring x for each row. A weight, loaded once, serves all
# rows, and a sum is stored once instead of K times.
#
# **Predict.** For R rows: how many loads for how many vector products in a step? A tile of more rows needs fewer loads for
# each product, so why not take 100 rows? Your processor has 16 or 32 vector registers.

# %%
LANES = 16 if "avx512_vnni" in kinds() else 8  # int32 in a vector register
COLUMNS, PAIR = 2 * LANES, 2
heights = (1, 2, 4, 6, 8, 12, 16, 24)
for rows in heights:
    products, loads, registers = 2 * rows, 2 + rows, 2 * rows + 2 + 1
    print(f"{rows:>3} rows: {loads / products:.2f} loads for a vector product, {registers:>2} registers")
assert [2 + rows for rows in (1, 12)] == [3, 14] and [2 * rows for rows in (1, 12)] == [2, 24]


def plus(builder, address, count, size):
    """address + count * size; each may be a number that is known now, or one that the kernel will know."""
    count, size = (n if isinstance(n, ir.Value) else ir.Constant(I64, n) for n in (count, size))
    return builder.add(address, builder.mul(count, size))


def make_tile(rows):
    """rows x COLUMNS sums over all steps of two k. x is int16 already; weights are widened on loading."""
    sums_type, pairs_type = ir.VectorType(I32, LANES), ir.VectorType(I32, 2 * LANES)
    even, odd = (ir.Constant(sums_type, list(range(first, 2 * LANES, 2))) for first in (0, 1))
    to_all_lanes, nothing = ir.Constant(sums_type, [0] * LANES), ir.Constant(sums_type, ir.Undefined)

    @intrinsic
    def tile(typingctx, x_at, x_stride, w_at, steps, sums_at, sums_stride):
        def generate(context, builder, signature, arguments):
            x_at, x_stride, w_at, steps, sums_at, sums_stride = arguments
            zeros = ir.Constant(sums_type, None)
            sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(2)] for _ in range(rows)]
            with cgutils.for_range(builder, steps) as loop:  # the only loop that is left when the kernel runs
                panel_at, weights = plus(builder, w_at, loop.index, 2 * COLUMNS), []
                for v in range(2):
                    narrow = load(builder, plus(builder, panel_at, v, COLUMNS), ir.VectorType(I8, 2 * LANES))
                    weights.append(builder.sext(narrow, pairs_type))
                for r in range(rows):
                    row_at = plus(builder, x_at, r, x_stride)
                    pair = load(builder, plus(builder, row_at, loop.index, 4), I32)  # two int16 at once
                    one = builder.insert_element(nothing, pair, ir.Constant(I32, 0))
                    pairs = builder.bitcast(
                        builder.shuffle_vector(one, one, to_all_lanes), ir.VectorType(I16, 2 * LANES)
                    )
                    pairs = builder.sext(pairs, pairs_type)
                    for v in range(2):
                        products = builder.mul(pairs, weights[v])
                        first, second = (builder.shuffle_vector(products, products, which) for which in (even, odd))
                        total = builder.add(builder.load(sums[r][v]), builder.add(first, second))
                        builder.store(total, sums[r][v])
            for r in range(rows):
                for v in range(2):
                    at = plus(builder, plus(builder, sums_at, r, sums_stride), v, 4 * LANES)
                    at = builder.inttoptr(at, sums_type.as_pointer())
                    builder.store(builder.load(sums[r][v]), at, align=1)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return tile


def make_tiles(rows):
    """The loops around the tile: panels of the weight outside, so that one stays in the cache while all rows pass."""
    tile = make_tile(rows)

    @jit
    def tiles(x, packed, sums):
        for panel in range(packed.shape[0]):
            w_at, sums_at = packed.ctypes.data + panel * packed.strides[0], sums.ctypes.data + panel * 4 * COLUMNS
            for m in range(0, x.shape[0] - rows + 1, rows):
                x_at = x.ctypes.data + m * x.strides[0]
                tile(x_at, x.strides[0], w_at, packed.shape[1], sums_at + m * sums.strides[0], sums.strides[0])

    return tiles


def make_tiles_in_numpy(rows):
    """The slow twin of `make_tiles`: the same result, without a word of LLVM."""

    def tiles(x, packed, sums):
        for panel, columns in zip(packed, np.split(sums, len(packed), axis=1)):
            for m in range(0, x.shape[0] - rows + 1, rows):
                pairs = x[m : m + rows].reshape(rows, -1, 1, 2).astype(np.int32)
                columns[m : m + rows] = (pairs * panel).sum(axis=(1, 3))

    return tiles


def run_tiles(tiles, x, packed):
    lines = np.zeros((len(x), 2 * packed.shape[1]), np.int16)
    lines[:, : x.shape[1]] = x
    sums = np.zeros((len(x), packed.shape[0] * COLUMNS), np.int32)
    tiles(lines, packed, sums)
    return sums


in_pairs = pack(weight, COLUMNS, 2)
kernels = {rows: make_tiles(rows) if COMPILES else make_tiles_in_numpy(rows) for rows in heights}
for rows, tiles in kernels.items():
    assert np.array_equal(run_tiles(tiles, x, in_pairs), expected), rows

sides = {rows: lambda tiles=tiles: run_tiles(tiles, x, in_pairs) for rows, tiles in kernels.items()}
times = compare({**sides, "float32 BLAS": rungs["float32 BLAS"]}, seconds=0.05, settle=0.02)
rates = {side: gops(side, t) for side, t in times.items()}
best = max(heights, key=rates.get)
rungs["our tile, 1 row"], rungs[f"our tile, {max(best, 2)} rows"] = sides[1], sides[max(best, 2)]
print(f"{rates[1]:.0f} Gop/s with one row, {rates[best]:.0f} with {best}; float32 BLAS: {rates['float32 BLAS']:.0f}")

figure, axis = new_figure(xlabel="rows of the tile", ylabel="Gop/s", xticks=heights, xlim=(0, 29))
axis.plot([0, 24.5], [rates["float32 BLAS"]] * 2, color=RED, lw=2.5, ls="--")
axis.text(25, rates["float32 BLAS"], "float32\nBLAS", color=RED, fontsize=15, va="center")
axis.plot(heights, [rates[rows] for rows in heights], "o-", color=BLUE, lw=2.5, ms=9)
axis.set_ylim(0, 1.15 * max(rates.values()))
show(figure, "rows.png")

# %% [markdown]
# The rise on the left is fewer loads for each product, and more sums that need not wait for each other. Where does it end? Do
# not guess: read the machine code. Sums that find no register are *spilled*: they go to the stack and back in every step.
#
# Nothing above names an instruction: it is portable LLVM, and also right on a processor of another make. But the compiler
# recognizes "widen, multiply, add neighbours". On x86, `vpmaddwd` does that for pairs of int16, and `vpdpwssd` adds them to a
# sum as well. It may change its mind from one height to the next.

# %%
if COMPILES:
    print("rows   Gop/s   moves to or from the stack   multiplications (none: no x86 name)")
    for rows, tiles in kernels.items():
        machine_code = next(iter(tiles.inspect_asm().values()))
        stack = len(re.findall(r"\bv?mov.*mm.*\(%r[sb]p\)|\bv?mov.*\(%r[sb]p\).*mm", machine_code))
        multiplying = Counter(re.findall(r"^\s+(v?p(?:madd|dp|mull)\w+)", machine_code, re.MULTILINE))
        print(f"{rows:>4}{rates[rows]:>8.0f}{stack:>29}   ", *(f"{n} {name}" for name, n in multiplying.items()))

# %% [markdown]
# A few moves of the stack surround every kernel; what comes on top of them is spilling. There may be a point on your curve
# that counting does not explain. That is why heights are measured and not derived.
#
# ## 5.6 Four products in one instruction
#
# The next step needs the processor's own instruction, since no pattern leads the compiler to it reliably. `vpdpbusd` takes
# bytes as they are: 64 of the weight, four of x repeated for all columns, and 16 sums. The figure shows which bytes meet.
# `vpmaddubsw`, its older relative, also multiplies bytes, but adds *two* products in 16 bits and saturates:
# what does not fit becomes the nearest number that does.
#
# **Predict.** 255 · 127 + 255 · 127: does it fit into int16, up to 32 767? If all x were at most 127, would it always?


# %%
def dot_figure():
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    ink = {"ha": "center", "va": "center", "fontsize": 14}

    def box(axis, x, y, width, height, colour, text="", **style):
        axis.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", lw=1.5))
        axis.text(x + width / 2, y + height / 2, text, **{**ink, **style})

    for k in range(4):  # the matrices: x on the left, weight on top, sums in the corner between them
        box(left, 9, 1.2 + k, 16, 1, PALE[k])
        box(left, 25, 1.2 + k, 16, 1, "#EFEFEF")
        box(left, 2 * k, 6, 2, 12, "#EFEFEF")
        box(left, 2 * k, 9, 2, 1, PALE[k])
    box(left, 9, 6, 32, 12, "#EFEFEF")
    box(left, 9, 9, 16, 1, "#606060")
    left.text(25, 0.4, "weight: 4 k × 32 columns", **{**ink, "fontsize": 15})
    left.text(4, 19.4, "x: 12 rows\n× 4 k", **{**ink, "fontsize": 15})
    left.text(25, 19, "sums: 12 × 32, in 24 registers", **{**ink, "fontsize": 15})
    left.text(25, 13.5, "coloured: what one\ninstruction takes", color=GREY, **{**ink, "fontsize": 15})
    left.set(xlim=(-0.5, 42), ylim=(20.2, -0.4), aspect="auto")

    names = ("0", "1", "2", "", "15")
    for lane, name in enumerate(names):
        for k in range(4):
            at = 4.4 * lane + k
            if name:
                box(right, at, 1, 1, 1, PALE[k], f"x{k}")
                box(right, at, 3.25, 1, 1, PALE[k], f"w{k}")
                right.text(at + 0.5, 2.3, "×", **ink)
                right.plot([at + 0.5, 4.4 * lane + 2], [4.35, 6.3], color=GREY, lw=1.5)
        if name:
            box(right, 4.4 * lane, 6.4, 4, 1, "#606060", f"sum {name}", color="white")
        else:
            for y in (1.5, 3.75, 6.9):
                right.text(4.4 * lane + 2, y, "· · ·", **ink)
    for y, text in ((0.7, "four bytes of x, the same in every lane"), (2.95, "64 bytes of packed weight, in order"),
                    (8.2, "16 sums: each takes up its four products, in 32 bits")):  # fmt: skip
        right.text(0, y, text, fontsize=15)
    right.set(xlim=(-0.2, 22), ylim=(8.6, -0.2))
    for axis in (left, right):
        axis.set_axis_off()
    left.set_title("in the matrices", fontsize=17)
    right.set_title("in the registers", fontsize=17)
    return figure


show(dot_figure(), "dot.png")


def vpdpbusd(sums, four, weights):
    return sums + (four.astype(np.int32) * weights.reshape(-1, 4)).sum(axis=1, dtype=np.int32)


def saturating(sums, four, weights):
    """The same by way of vpmaddubsw: pairs are added in int16."""
    products = four.astype(np.int32) * weights.reshape(-1, 4)
    return sums + sum(np.clip(products[:, i] + products[:, i + 1], -(2**15), 2**15 - 1) for i in (0, 2))


def emulated(dot, x, weight):
    """The product by one of these instructions, step by step, as a kernel runs over packed weights."""
    packed = pack(weight, 16, 4)
    lines = np.zeros((len(x), 4 * packed.shape[1]), np.uint8)
    lines[:, : x.shape[1]] = x
    out = np.zeros((len(x), packed.shape[0], 16), np.int32)
    for m, p, step in np.ndindex(len(x), *packed.shape[:2]):
        out[m, p] = dot(out[m, p], lines[m, 4 * step : 4 * step + 4], packed[p, step])
    return out.reshape(len(x), -1)[:, : weight.shape[1]]


some = x[:3, :32], weight[:32, :24]
assert np.array_equal(emulated(vpdpbusd, *some), some[0].astype(np.int64) @ some[1])

largest = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
print(
    f"4 times 255 * 127: {emulated(vpdpbusd, *largest)[0, 0]:,}; by vpmaddubsw: {emulated(saturating, *largest)[0, 0]:,}"
)
assert emulated(saturating, *largest)[0, 0] == 2 * 32_767 < 4 * 255 * 127
halved = x[:3, :32] // 2, weight[:32, :24]
assert np.array_equal(emulated(saturating, *halved), halved[0].astype(np.int64) @ halved[1])  # 2 * 127 * 127 fits

no_bias = np.zeros(N, np.int32)


def engine(kind):
    packed = PackedMatrix(weight, kind)
    start = packed.pad(no_bias)
    return lambda: int8_sums(x, packed, start)


for kind in reversed(kinds()):
    rungs[f"engine: {kind}"] = engine(kind)
    assert np.array_equal(rungs[f"engine: {kind}"](), expected)

# %% [markdown]
# Saturation makes a wrong number and no error. (Some libraries keep x to 7 bits for that reason, and lose half of the steps.)
# The engine does not use `vpmaddubsw`. Where a processor has no 8-bit instruction, "vectors" runs: a tile as ours, on int16.
#
# Now open `minidistill/kernels/intrinsics.py` and read `dot_tile`: it is our tile, and `_dot` in it names the instruction.
# `amx_tile`, below it, uses registers that hold whole matrices.
#
# ## 5.7 The slow twin
#
# Every fast kernel of the engine has a twin in `kernels/reference/`: the same name, the same arguments, a few lines of NumPy.
# It says *what* is computed, so the fast one explains only *how*. And a test may ask the twin about any input. But which?
#
# Three faults: our tiles leave over the rows that fill no tile; pairs are added in 16 bits (`saturating`); x is read with a
# sign. Four tests: small numbers in a round shape, small numbers in an odd shape, random bytes, the largest bytes.
#
# **Predict.** Which test finds which fault?

# %%
faulty = {
    "whole tiles only": lambda x, w: run_tiles(kernels[6], x, pack(w, COLUMNS, 2))[:, : w.shape[1]],
    "pairs in 16 bits": lambda x, w: emulated(saturating, x, w),
    "x with a sign": lambda x, w: x.view(np.int8).astype(np.int32) @ w.astype(np.int32),
}


def random_operands(m, k, n, x_below, w_below):
    x = rng.integers(0, x_below, (m, k)).astype(np.uint8)
    return x, rng.integers(-w_below + 1, w_below, (k, n)).astype(np.int8)


tests = {
    "small, 12 x 32 x 32": random_operands(12, 32, 32, 100, 100),
    "small, 13 x 33 x 31": random_operands(13, 33, 31, 100, 100),
    "random bytes": random_operands(12, 32, 32, 256, 128),
    "the largest bytes": (np.full((12, 32), 255, np.uint8), np.full((32, 32), 127, np.int8)),
}
found = {}
print(" " * 20, *(f"{name:>18}" for name in faulty))
for test, operands in tests.items():
    truth = reference.int8_matmul(*operands, 0)
    found[test] = [name for name, product in faulty.items() if not np.array_equal(product(*operands), truth)]
    print(f"{test:<20}", *(f"{'found' if name in found[test] else '-':>18}" for name in faulty))
assert found["small, 12 x 32 x 32"] == []
assert found["small, 13 x 33 x 31"] == ["whole tiles only"]
assert found["random bytes"] == found["the largest bytes"] == ["pairs in 16 bits", "x with a sign"]

# %% [markdown]
# The friendly test finds nothing, and no single test finds all. So `tests/test_kernels_int8.py` takes shapes around every
# tile, panel and group, random and extreme bytes, sums up to the end of int32, and arrays that end where a page of memory
# ends, so that reading one byte too far kills the process. Every kind of instruction goes through all of it.
#
# **Predict.** Our tiles can be mended without touching the intrinsic. How?


# %%
def our_product(x, weight, rows=6):
    filled = np.zeros((up(len(x), rows), x.shape[1]), np.uint8)
    filled[: len(x)] = x
    return run_tiles(kernels[rows], filled, pack(weight, COLUMNS, 2))[: len(x), : weight.shape[1]]


for m in (0, 1, 5, 6, 7, 13):
    for k in (1, 2, 3, 16, 33):
        for n in (1, COLUMNS - 1, COLUMNS, COLUMNS + 1):
            operands = random_operands(m, k, n, 256, 128)
            assert np.array_equal(our_product(*operands), reference.int8_matmul(*operands, 0)), (m, k, n)
for operands in tests.values():
    assert np.array_equal(our_product(*operands), reference.int8_matmul(*operands, 0))

# %% [markdown]
# Rows of zeros fill up the last tile, as zeros fill up the weight when it is packed: then no kernel needs a special case.
#
# ## 5.8 Which differences to believe
#
# How long does a kernel take? Here is one function, timed in two ways: again and again by itself, and each time after a call
# of float32 BLAS, as if the two were compared call by call.
#
# **Predict.** The function is the same, and so are its operands. Will its times be?

# %%
fastest = list(rungs)[-1]


def once(function):
    start = perf_counter()
    function()
    return perf_counter() - start


again, after_other = [], []
for _ in range(300):
    again.append(1e6 * once(rungs[fastest]))
for _ in range(300):
    rungs["float32 BLAS"]()
    after_other.append(1e6 * once(rungs[fastest]))
for name, microseconds in (("again and again", again), ("after BLAS", after_other)):
    low, middle, high = np.percentile(microseconds, [5, 50, 95])
    print(f"{fastest}, {name:<16} median {middle:.0f} µs, mean {np.mean(microseconds):.0f}, "
          f"nine of ten between {low:.0f} and {high:.0f}")  # fmt: skip

figure, axis = new_figure(xlabel=f"µs of a call, {fastest}", ylim=(-0.5, 1.7))
widest = 1.1 * np.percentile(again + after_other, 98)
for height, (microseconds, colour) in enumerate(((after_other, RED), (again, BLUE))):
    spread = height + rng.uniform(-0.2, 0.2, len(microseconds))
    axis.plot(np.minimum(microseconds, widest), spread, "o", color=colour, alpha=0.35, ms=8, mew=0)
    axis.plot([np.median(microseconds)] * 2, [height - 0.33, height + 0.33], color="black", lw=3)
    axis.text(np.median(microseconds), height + 0.36, f"median {np.median(microseconds):.0f}", fontsize=15, ha="center")
axis.set(xlim=(0, 1.03 * widest))
axis.set_yticks([0, 1], ["after a call\nof BLAS", "again\nand again"])
axis.tick_params(labelsize=15)
show(figure, "believe.png")

# %% [markdown]
# The other side has used the caches for its own arrays, and its threads, if it has several, still look for work while ours
# runs. So `compare` times in *blocks*: each runs its side for a while without a clock, until everything has settled, and then
# takes the median of many calls, which a few outliers do not move; the sides take turns, so that what slows down the machine
# slows down both. (If your kernel will run among others, with cold caches, then say so and measure that.)
#
# **Predict.** Now in blocks, and the same function stands on both sides. How far from 1 is the ratio?

# %%
same = compare({"one": rungs[fastest], "the other": rungs[fastest]}, seconds=0.05, settle=0.03, rounds=10)
ratios = np.divide(same["one"].rounds, same["the other"].rounds)
print(f"ratio of medians {same['one'].median / same['the other'].median:.3f}; of single blocks "
      f"from {ratios.min():.3f} to {ratios.max():.3f}")  # fmt: skip
assert 0.5 < np.median(ratios) < 2

# %% [markdown]
# That is how small a difference can be seen here: smaller ones are none. The other rules are as simple, and each has been
# broken by somebody who published a speed-up:
#
# - compare the outputs first: the fastest kernel is the wrong one;
# - compile before the clock starts;
# - give both sides the same number of threads;
# - take the ratio of two times from one run, never from two;
# - say what is inside the clock. Packing, for example.
#
# **Predict.** A product packs its weight in every call. How much of the advantage is left?

# %%
sides = {
    "packed before": rungs[fastest],
    "packed in every call": lambda: int8_sums(x, PackedMatrix(weight), no_bias),
    "float32 BLAS": rungs["float32 BLAS"],
}
assert all(np.array_equal(side(), expected) for side in sides.values())
for name, t in compare(sides, seconds=0.05, settle=0.02).items():
    print(f"{name:<22}{timing.show(t):>14}{gops(name, t):10.1f} Gop/s")

# %% [markdown]
# Packing reads and writes the whole weight, in NumPy. The more rows x has, the less it shows; for few rows it eats
# the advantage. A model packs when it is loaded, so the engine's clock starts after it; a benchmark of a single
# product has to say which it means.
#
# ## 5.9 The ladder
#
# Now all rungs in one run, on the same operands, on one thread.
#
# **Predict.** How many times faster than Python is the last rung: a thousand, a million? Where does float32 BLAS stand?

# %%
for rung, function in rungs.items():
    truth = expected[:4, :32] if rung == "Python" else expected
    assert np.array_equal(function(), truth), rung


def short(rate):
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


times = compare(rungs, seconds=0.06, settle=0.03)
rates = {rung: gops(rung, t) for rung, t in times.items()}
blas = rates.pop("float32 BLAS")
print(f"{'':<24}{'Gop/s':>10}{'over Python':>14}{'over float32 BLAS':>20}")
for rung, rate in rates.items():
    print(f"{rung:<24}{short(rate):>10}{rate / rates['Python']:>13,.0f}x{rate / blas:>19.2g}x")

figure = Figure(figsize=(10, 1.4 + 0.48 * len(rates)), layout="constrained")
axis = figure.subplots()
for height, (rung, rate) in enumerate(rates.items()):
    colour = GREEN if rung.startswith("engine") else GREY if rung in ("Python", "NumPy, int64") else BLUE
    axis.barh(height, rate, color=colour, height=0.72)
    axis.text(rate * 1.15, height, short(rate), va="center", fontsize=14, bbox={"color": "white", "pad": 1})
axis.axvline(blas, color=RED, lw=2.5, ls="--", zorder=0)
axis.text(blas, -0.68, f"float32 BLAS {short(blas)}", color=RED, fontsize=15, ha="center", va="bottom")
axis.set(xscale="log", ylim=(len(rates) - 0.4, -0.6), xlim=(min(rates.values()) / 3, 4 * max(rates.values())))
axis.set_xlabel("Gop/s", fontsize=15)
axis.set_yticks(range(len(rates)), rates)
axis.tick_params(labelsize=14)
axis.spines[["top", "right"]].set_visible(False)
show(figure, "ladder.png")
if COMPILES:
    assert rates["loops m, k, n"] > 5 * rates["Python"]

# %% [markdown]
# Each rung asked its own question: what does the interpreter cost, in which order is memory read, what stays in registers,
# what does one instruction do. None of them changed the result. `perf/ladders/int8.py` climbs further: a larger product, and
# two threads.
#
# ## What to take along
#
# - The yardstick is the best that there is for floats, not your own slow version.
# - Memory in the order of reading; sums in registers; then the instruction. It pays only after the other two.
# - An intrinsic writes code while the kernel is compiled. It may name any instruction, and nobody checks its addresses.
# - Keep the slow version: it is the specification, and the test.
# - Compare one thing with itself before you compare two.
#
# **Exercises.** 1. Run this lesson as an older processor: `NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma`. Which
# rungs are gone? Where is the best height of the tile, and why? 2. In `make_tile`, replace the `sext` of the weights by
# `zext`. Which of the four tests of 5.7 find it? 3. Give `make_tile` groups of four: `pack(weight, COLUMNS, 4)`, x as uint8
# with `zext`, four shuffles. Test it against the twin. How fast is it, and what does the machine code say? 4. If `kinds()`
# shows "avx512_vnni": let your tile of exercise 3 call `llvm.x86.avx512.vpdpbusd.512`, as `_dot` in `kernels/intrinsics.py`
# does. 5. Give all rungs one row of x. Which wins, and what limits it? Count the bytes of weight read for each product.
