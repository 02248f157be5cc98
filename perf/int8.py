"""int8: the bare product, whole static models, their bytes, and the rounding, against NumPy, onnxruntime and float32.

Everything that is timed was compared first: products with ``==``; models with onnxruntime's, of whose outputs at least 99
in 100 are equal (a hidden number next to a tie may be rounded the other way). Targets are those of the issue; the grid's
are for its mean and its worst cell.
"""

import os
import subprocess
import sys

import numpy as np

import minidistill as md
from minidistill import ledger, quantize
from minidistill.bench import BATCHES, mlp
from minidistill.kernels import cpu, dequantize, int8_sums
from minidistill.kernels import quantize as to_integers
from minidistill.kernels.packing import PackedMatrix
from perf import peers
from perf.harness import OURS, measure, report, threads

WIDTHS = ((64, 256, 256, 10), (784, 300, 100, 10), (784, 1200, 1200, 10))
GRID = [(m, k, n) for m in (1, 8, 32, 256, 1024) for k in (64, 256, 784, 1024) for n in (64, 256, 784, 1024)]
MILLIONS = 16
SPIN = 0.3  # seconds that are discarded after NumPy's BLAS, whose threads still turn on the core that ours needs
OLDER = {  # what Numba and OpenBLAS are held to, in processes of their own
    "AVX2": {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+popcnt,+movbe",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "128 bits": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "OPENBLAS_CORETYPE": "Nehalem"},
}


def product_sides(m, k, n, floats=False):
    """Ours, with the weight packed and the zero point folded in beforehand, as onnxruntime does when it loads a model."""
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (m, k)).astype(np.uint8), rng.integers(-127, 128, (k, n)).astype(np.int8)
    packed = PackedMatrix(weight)
    init = packed.pad(-7 * packed.sums)
    sides = {OURS: lambda: int8_sums(x, packed, init)}
    if floats:
        a, b = x.astype(np.float32) - 7, weight.astype(np.float32)
        sides["float32 BLAS"] = lambda: a @ b
        np.testing.assert_array_equal(a @ b, sides[OURS]())  # sums below 2**24: exact in float32 too
    else:
        theirs = peers.onnx_product(weight, 7, 2)
        sides["onnxruntime"] = (lambda: theirs(x)) if theirs else None
        if theirs:
            np.testing.assert_array_equal(theirs(x), sides[OURS]())
    return sides


def model_sides(model, int8, x):
    sessions = {form: peers.onnx_int8_session(int8, form, 2) for form in ("QOperator", "QDQ")}
    ours = md.predict(int8, x)
    sides = {OURS: lambda: md.predict(int8, x), "float32, ours": lambda: md.predict(model, x)}
    for form, session in sessions.items():
        sides[f"onnxruntime {form}"] = (lambda s=session: s.run(None, {"x": x})[0]) if session else None
        if session:
            equal = np.mean(session.run(None, {"x": x})[0] == ours)
            assert equal >= 0.99, f"{form}: {equal:.1%} of the outputs are equal"
    return sides


def rounding_sides():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(MILLIONS, 10**6)).astype(np.float32)
    scale, zero = np.float32(0.02), 120
    q, q_out, x_out = to_integers(x, scale, zero, 0, 255), np.empty(x.shape, np.uint8), np.empty_like(x)
    by_numpy = {
        "quantize": lambda: np.clip(np.rint(x / scale) + np.float32(zero), 0, 255).astype(np.uint8),
        "dequantize": lambda: (q.astype(np.float32) - np.float32(zero)) * scale,
    }
    np.testing.assert_array_equal(by_numpy["quantize"](), q)
    np.testing.assert_array_equal(by_numpy["dequantize"](), dequantize(q, scale, zero))
    copy = {"NumPy": lambda: np.copyto(x_out, x)}
    yield (
        f"quantize, {MILLIONS} million",
        {OURS: lambda: to_integers(x, scale, zero, 0, 255), "NumPy": by_numpy["quantize"]},
        10,
    )
    yield (
        f"dequantize, {MILLIONS} million",
        {OURS: lambda: dequantize(q, scale, zero), "NumPy": by_numpy["dequantize"]},
        3,
    )
    yield "quantize into out, against a copy", {OURS: lambda: to_integers(x, scale, zero, 0, 255, q_out), **copy}, 1
    yield "dequantize into out, against a copy", {OURS: lambda: dequantize(q, scale, zero, x_out), **copy}, 1


def grid():
    """The 80 products, against onnxruntime."""
    rows = []
    for m, k, n in GRID:
        rows.append(measure(f"{m} x {k} x {n}", product_sides(m, k, n)))
    return rows


def models():
    rows, sizes = [], []
    for widths in WIDTHS:
        name, model = "-".join(map(str, widths)), mlp(widths)
        data = np.random.default_rng(0).random((512, widths[0]), dtype=np.float32)
        int8 = quantize.post_training(model, calibration=data)
        with quantize.integers_only():
            md.predict(int8, data)
        for batch in BATCHES:
            target = {"float32, ours": 3} if batch == 256 and widths == WIDTHS[-1] else {}
            rows.append(measure(f"{name}, batch {batch}", model_sides(model, int8, data[:batch]), target))
        on_disk = ledger.file_bytes(int8) / ledger.file_bytes(model)
        in_memory = ledger.memory_bytes(int8) / ledger.memory_bytes(model)
        sizes.append(f"{name}: {on_disk:.3f} of the float32 file, {in_memory:.3f} of its memory [0.27 for the widest]")
    return rows, sizes


def older_processors():
    """The products on processors without 8-bit instructions: the same engine, held to fewer of this one's."""
    tables = []
    for name, environment in OLDER.items():
        command = [sys.executable, "-m", "perf.int8_older", name]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        tables.append(done.stdout or done.stderr)
    return "\n".join(tables)


def mean_line(what, rows, ratio, target):
    """Geometric mean and worst cell of ``ratio(row)``, in which None is a peer that is not installed."""
    ratios = [ratio(row) for row in rows]
    if None in ratios:
        return f"{what}: onnxruntime is not installed"
    mean, worst = np.exp(np.mean(np.log(ratios))), rows[int(np.argmin(ratios))]["case"]
    return f"{what} against onnxruntime: geometric mean {mean:.2f}x [{target}], worst {min(ratios):.2f}x ({worst})"


def faster_form(row):
    """The ratio against the faster of onnxruntime's two forms."""
    forms = [ratio[0] for name, ratio in row["ratios"].items() if name.startswith("onnxruntime")]
    return min(forms, default=None)


def main():
    with threads(2):
        shapes = (((256, 1024, 1024), 3.5), ((1, 1024, 1024), 2))
        rows = [measure(f"{m} x {k} x {n}", product_sides(m, k, n, floats=True), {"float32 BLAS": target}, settle=SPIN)
                for (m, k, n), target in shapes]  # fmt: skip
        cells = grid()
        model_rows, sizes = models()
        rounding = [measure(case, sides, {"NumPy": target}) for case, sides, target in rounding_sides()]
    lines = [
        f"kind of instruction: {cpu.kinds()[0]}",
        report("int8", "int8", [*rows, *rounding]),
        report("int8_models", "int8 models", model_rows),
        report("int8_grid", "M x K x N", cells),
        mean_line("products", cells, faster_form, "1.2, no cell under 0.8"),
        mean_line("models", model_rows, faster_form, "1.2, no cell under 0.9"),
        *sizes,
        older_processors(),
    ]
    return "\n".join(lines)
