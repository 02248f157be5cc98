"""Peak memory of a training run with Adam, and whether it grows: each case in a process of its own.

The bound is 1.3 x (4 x the bytes of the parameters + the activations of one batch + the data): parameters, gradients and two
moments, what backward needs, and what is trained on. Measured is the peak of the process's resident set above what it was
after a tiny training run, so that code, compiled kernels and BLAS's buffers belong to the baseline; and beside it the peak
that tracemalloc saw, which NumPy tells of every array. PyTorch does the same work for comparison. (A table's gradient holds
the touched rows only, so its bound is generous.)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

from perf.harness import keep, peer

SAMPLES, LIMIT = 4096, 1.3
MODELS = {"784-300-100-10, 128": (784, 300, 100, 10), "784-1200-1200-10, 128": (784, 1200, 1200, 10)}
TABLES = (100_000, 50_000, 32)
ROOT = Path(__file__).resolve().parent.parent


def needed_bytes(widths, batch=128, samples=SAMPLES):
    """4 x parameters + activations of one batch + data, of an MLP trained on float32 rows and int64 labels."""
    parameters = sum(k * m + m for k, m in zip(widths, widths[1:]))
    return 4 * (4 * parameters + batch * sum(widths[1:]) + samples * widths[0]) + 8 * samples


def needed_for_tables(batch=1024, batches=4):
    """The same for the two towers: activations are both lookups, their product and the score."""
    users, items, width = TABLES
    return 4 * (4 * (users + items) * width + batch * (3 * width + 1)) + batches * batch * (8 + 8 + 4)


def in_fresh_process(call):
    """What a call of a function of this file returns, made in a process of its own."""
    code = f"import json; from perf import memory; print(json.dumps(memory.{call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    if done.returncode:
        raise RuntimeError(f"the measuring process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- in that process -------------------------------------------------------------------------------------------------
def resident(what):
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at most. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) * 1024


def mlp_steps(library, widths, batch=128, samples=SAMPLES):
    """Data, model and optimizer; returns the function that makes a step on the next batch."""
    import numpy as np

    from minidistill.bench import mlp, training_step
    from perf import peers

    rng, net = np.random.default_rng(0), mlp(widths)
    x, y = rng.random((samples, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], samples)
    if library == "torch":
        return peers.torch_step(net, x[:batch], peers.torch_cross_entropy(y[:batch])), (x, y)
    return training_step(net, x[:batch], y[:batch]), (x, y)


def table_steps(library):
    from perf import embedding

    users, items, width = TABLES
    model, data = embedding.Ranker(users, items, width), embedding.batches(users, items, count=4)
    return (
        embedding.our_step(model, data) if library == "minidistill" else embedding.torch_step(model, data, True)
    ), data


def peak(library, widths, traced):
    """Bytes above the baseline at the peak of 30 steps, by the resident set or as traced."""
    tiny, _ = mlp_steps(library, (64, 32, 10), 32, 64)
    for _ in range(20):
        tiny()
    if traced:
        tracemalloc.start()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    step, _data = table_steps(library) if widths == "tables" else mlp_steps(library, widths)
    for _ in range(30):
        step()
    return tracemalloc.get_traced_memory()[1] if traced else resident("VmHWM") - before


def growth(steps):
    """Bytes after 1 000 steps of a small net, and after that many more: [resident, resident, traced, traced]."""
    step, _data = mlp_steps("minidistill", (64, 32, 10), 32, 64)
    tracemalloc.start()
    numbers = []
    for count in (1000, steps):
        for _ in range(count):
            step()
        numbers.append((resident("VmRSS"), tracemalloc.get_traced_memory()[0]))
    (a, b), (c, d) = numbers
    return [a, c, b, d]


def main():
    rows = []
    cases = {name: (widths, needed_bytes(widths)) for name, widths in MODELS.items()}
    for name, (widths, needed) in {**cases, "two towers, 1 024": ("tables", needed_for_tables())}.items():
        row = {"case": name, "needed": needed, "limit": LIMIT}
        for library in ("minidistill", "torch") if peer("torch") else ("minidistill",):
            row[library] = in_fresh_process(f"peak({library!r}, {widths!r}, False)")
        row["traced"] = in_fresh_process(f"peak('minidistill', {widths!r}, True)")
        rows.append(row)
    grown = in_fresh_process("growth(10_000)")
    keep("memory", [*rows, {"case": "growth over 10 000 steps", "bytes": grown}])
    names = ("needed", 10), ("ours", 10), ("/ needed", 12), ("arrays", 10), ("torch", 10), ("/ needed", 10)
    lines = [f"{'peak above the baseline':<26}" + "".join(f"{name:>{width}}" for name, width in names)]
    for row in rows:
        torch = (
            (f"{row['torch'] / 1e6:>7.1f} MB{row['torch'] / row['needed']:>10.2f}")
            if "torch" in row
            else "  not installed"
        )
        ours = row["minidistill"]
        lines.append(
            f"{row['case']:<26}{row['needed'] / 1e6:>7.1f} MB{ours / 1e6:>7.1f} MB{ours / row['needed']:>6.2f} [{LIMIT}]"
            f"{row['traced'] / 1e6:>7.1f} MB{torch}"
        )
    resident_growth, traced_growth = (grown[1] - grown[0]) / 1e3, (grown[3] - grown[2]) / 1e3
    lines.append(f"10 000 more steps of 64-32-10: resident {resident_growth:+.0f} kB, arrays {traced_growth:+.1f} kB")
    return "\n".join(lines)
