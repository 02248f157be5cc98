"""How a training step grows: time and peak memory against batch, width, depth, rows of a table and number of classes.

Each series doubles one size. A step costs a + b * n**k: a is the overhead of a step, k the exponent; least squares on the
logarithms finds k over the upper half of a series, where the overhead matters least. Expected: 1 for the batch, 2 for the
width (a weight has width² entries), 1 for the depth and the classes, and 0 for a table's rows, since a step costs what it
touches. An exponent below that means that larger steps are more efficient: larger products, and from some size on, threads.
Memory is the peak of what the first step allocates (activations, gradients, moments), as tracemalloc sees it; there a table
counts with its moments, 1.
"""

from __future__ import annotations

import tracemalloc

import numpy as np

from minidistill.bench import mlp, training_step
from minidistill.timing import compare
from perf import embedding
from perf.harness import FIGURES, keep, threads

EXPECTED = {"batch": 1, "width": 2, "depth": 1, "table rows": 0, "classes": 1}


def series():
    """{name: {size: step}}."""
    return {
        "batch": {n: dense_step((256, 256, 256, 10), n) for n in (32, 64, 128, 256, 512, 1024)},
        "width": {n: dense_step((n, n, n, 10), 128) for n in (64, 128, 256, 512, 1024)},
        "depth": {n: dense_step((256, *[256] * n, 10), 128) for n in (1, 2, 4, 8, 16)},
        "table rows": {n: table_step(n) for n in (10_000, 40_000, 160_000, 640_000)},
        "classes": {n: dense_step((256, 256, n), 128) for n in (64, 256, 1024, 4096)},
    }


def dense_step(widths, batch):
    rng = np.random.default_rng(0)
    x, y = rng.random((batch, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], batch)
    return training_step(mlp(widths), x, y)


def table_step(rows):
    return embedding.our_step(embedding.Ranker(rows, rows, 32), embedding.batches(rows, rows, count=16))


def exponent(sizes, values):
    """Slope of log(value) against log(size), over the upper half of the sizes."""
    upper = slice(len(sizes) // 2 - (len(sizes) < 4), None)
    return float(np.polyfit(np.log(sizes[upper]), np.log(values[upper]), 1)[0])


def peak_bytes(step):
    """Peak of what the first step allocates: activations, gradients and moments. Call it before any other step."""
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main():
    rows = []
    dense_step((8, 8, 8), 4)(), table_step(8)()  # what they compile is no step's memory
    with threads(2):
        for name, steps in series().items():
            sizes = list(steps)
            peaks = [peak_bytes(step) for step in steps.values()]
            seconds = [compare({"step": step}, seconds=0.1, settle=0.05)["step"].median for step in steps.values()]
            rows.append({
                "case": name, "sizes": sizes, "seconds": seconds, "peak_bytes": peaks, "expected": EXPECTED[name],
                "time_exponent": exponent(sizes, seconds), "memory_exponent": exponent(sizes, peaks),
            })  # fmt: skip
    keep("scaling", rows)
    figure(rows, FIGURES / "scaling.png")
    lines = [f"{'a step against':<14}{'sizes':>20}{'time':>22}{'exponent':>10}{'expected':>10}{'memory exponent':>17}"]
    for row in rows:
        span = f"{row['sizes'][0]:,}-{row['sizes'][-1]:,}".replace(",", " ")
        times = f"{row['seconds'][0] * 1e3:.2f}-{row['seconds'][-1] * 1e3:.2f} ms"
        lines.append(f"{row['case']:<14}{span:>20}{times:>22}{row['time_exponent']:>10.2f}{row['expected']:>10}"
                     f"{row['memory_exponent']:>17.2f}")  # fmt: skip
    return "\n".join(lines)


def figure(rows, path):
    """One panel a series, both axes logarithmic; a thin line has the expected slope."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(3.6 * len(rows), 3.8), layout="constrained")
    for axis, row in zip(picture.subplots(1, len(rows)), rows):
        sizes, ms = np.array(row["sizes"], float), np.array(row["seconds"]) * 1e3
        axis.plot(sizes, ms[-1] * (sizes / sizes[-1]) ** row["expected"], color="#767676", lw=1, ls=":")
        axis.plot(sizes, ms, color="#0072B2", lw=2.5, marker="o")
        axis.annotate(f"exponent {row['time_exponent']:.2f}", (0.06, 0.9), xycoords="axes fraction", fontsize=13,
                      color="#0072B2")  # fmt: skip
        axis.annotate(
            f"dotted: {row['expected']}", (0.06, 0.82), xycoords="axes fraction", fontsize=11, color="#767676"
        )
        axis.set(xscale="log", yscale="log", xlabel=row["case"], ylim=(ms.min() / 3, ms.max() * 6))
        axis.spines[["top", "right"]].set_visible(False)
    picture.axes[0].set_ylabel("ms a training step")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110)
