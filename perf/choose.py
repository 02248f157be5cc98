"""`deploy.choose` against every single way: the model it makes must not be slower than the best of them, beyond noise.

Without int8, since that changes the answers; then with it. The choice is made first, with short measurements, as a user
would; the longer ones here judge it.
"""

import runpy
from pathlib import Path

import numpy as np

import minidistill as md
from minidistill import deploy, nn, prune, quantize
from minidistill.bench import BATCHES, mlp
from perf.harness import FIGURES, OURS, keep, measure, table, threads

LESSON = Path(__file__).parent.parent / "tutorials" / "08_deep_compression"
CROSSOVER = runpy.run_path(str(LESSON / "crossover.py"))


def networks():
    """(name, model): pruned in different ways."""
    yield "784-300-100-10, 90%", prune.magnitude(mlp((784, 300, 100, 10)), 0.9)
    yield (
        "784-300-100-10, 92%: 8/9/26% left",
        prune.magnitude(mlp((784, 300, 100, 10)), {"0": 0.92, "1": 0.91, "2": 0.74}),
    )
    yield "1024-1024-1024-10, 80%", prune.magnitude(mlp((1024, 1024, 1024, 10)), 0.8)
    yield "784-300-100-10, half of the neurons", prune.neurons(mlp((784, 300, 100, 10)), 0.5)
    yield "64-32-10, 80%", prune.magnitude(mlp((64, 32, 10)), 0.8)


def single_ways(model, x, int8):
    """Each way for the whole model."""
    shrunk = prune.shrink(model)
    ways = {"dense": model, "shrunk": shrunk}
    if any(isinstance(c, nn.Mask) for p in shrunk.parameters() for c in p.constraints):
        ways["sparse"], ways["single"] = prune.to_sparse(shrunk), prune.to_sparse(shrunk, single=True)
    if int8:
        ways["int8"] = quantize.post_training(shrunk, calibration=x)
    return ways


def main():
    rows = []
    with threads(2):
        for int8 in (False, True):
            for name, model in networks():
                x = np.random.default_rng(0).normal(size=(max(BATCHES), model.layers[0].in_features)).astype(np.float32)
                chosen, ways = deploy.choose(model, x, BATCHES, int8=int8), single_ways(model, x, int8)
                for batch in BATCHES:
                    sides = {OURS: lambda m=chosen, b=x[:batch]: md.predict(m, b)}
                    sides |= {way: lambda m=m, b=x[:batch]: md.predict(m, b) for way, m in ways.items()}
                    if not int8:
                        for side in sides.values():
                            np.testing.assert_allclose(side(), sides["dense"](), rtol=1e-3, atol=1e-4)
                    row = measure(f"{name}{', int8 too' if int8 else ''}, batch {batch}", sides, seconds=0.1)
                    best = min((way for way in sides if way != OURS), key=lambda way: row["seconds"][way]["median"])
                    row["targets"] = {best: 1.0}  # the best single way; the ratio is its time over ours
                    rows.append(row)
        FIGURES.mkdir(parents=True, exist_ok=True)
        measured, draw = CROSSOVER["measure"], CROSSOVER["draw"]
        draw(measured(784, 300), FIGURES / "crossover_784_300.png")
        draw(measured(1024, 1024, int8=True), FIGURES / "crossover_1024_1024.png")
    keep("choose", rows)
    return table("chosen (the target marks the best single way)", rows)
