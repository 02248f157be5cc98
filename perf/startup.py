"""Start-up: what an import costs, and what the first and the second run of a program pay for compiling.

Every number comes from fresh processes: imports are medians over several, the demo runs once with an empty cache of compiled
kernels and once with the cache that the first run left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from perf.harness import keep, peer

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = ("numpy", "numba", "minidistill", "torch", "jax", "onnxruntime")
COMPILE_LIMIT, FIRST_BATCH_LIMIT, IMPORT_LIMIT = 25, 2, 0.2  # seconds; the last one is above `import numba`

# Prints the seconds until the first training step, those spent compiling, the number of compilations, and all seconds.
DEMO = """
import json, sys, time
start = time.perf_counter()
from numba.core import event
compiled = event.RecordingListener()
event.register("numba:compile", compiled)
from minidistill import pipeline
from minidistill.training import loop
first, step = [], loop._step
def timed(*arguments):
    result = step(*arguments)
    first.append(time.perf_counter() - start)
    return result
loop._step = timed
pipeline.demo(sys.argv[1])
outer, depth, seconds, began = 0, 0, 0.0, 0.0
for when, e in compiled.buffer:
    if e.is_start:
        began, depth, outer = (when if depth == 0 else began), depth + 1, outer + (depth == 0)
    else:
        depth -= 1
        seconds += when - began if depth == 0 else 0
print(json.dumps([first[0], seconds, outer, time.perf_counter() - start]))
"""


def python(code, *arguments, **environment):
    """The last line that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the measuring process failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def import_seconds(name, runs=7):
    code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    return median(float(python(code)) for _ in range(runs))


def import_is_clean():
    """Whether importing the package compiles nothing and leaves matplotlib alone."""
    code = (
        "import sys; from numba.core import event; seen = event.RecordingListener(); event.register('numba:compile', seen); "
        "import minidistill; print(len(seen.buffer) == 0 and 'matplotlib' not in sys.modules)"
    )
    return python(code) == "True"


def demo_runs():
    """[first batch, compiling, compilations, all] in seconds, with an empty cache and again."""
    with tempfile.TemporaryDirectory() as folder:
        return [json.loads(python(DEMO, folder, NUMBA_CACHE_DIR=f"{folder}/cache")) for _ in range(2)]


def main():
    seconds = {
        name: import_seconds(name) for name in IMPORTS if name in ("numpy", "numba", "minidistill") or peer(name)
    }
    clean, (first, second) = import_is_clean(), demo_runs()
    keep("startup", [{"imports": seconds, "clean": clean, "first demo": first, "second demo": second}])
    above = seconds["minidistill"] - seconds["numba"]
    imports = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    return "\n".join([
        f"import: {imports}",
        f"minidistill above numba: {above:+.2f} s [{IMPORT_LIMIT}]; compiles nothing, no matplotlib: {clean}",
        f"first demo: {first[1]:.1f} s compiling in {first[2]} compilations [{COMPILE_LIMIT}], {first[3]:.1f} s in all",
        f"second demo: {second[0]:.2f} s before the first batch [{FIRST_BATCH_LIMIT}], {second[2]} compilations, "
        f"{second[3]:.1f} s in all",
    ])  # fmt: skip
