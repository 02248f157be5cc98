"""What masks cost while a model trains: a step with every weight masked to 90%, against the same step without masks.

At most 5% more: a mask is applied inside the fused optimizer kernel, to weights that are in a register's reach anyway.
"""

import numpy as np

from minidistill import prune
from minidistill.bench import mlp, training_step
from minidistill.prune.masks import kept_of
from perf.harness import OURS, measure, report, threads

MODELS = (((64, 32, 10), 32), ((64, 256, 256, 10), 64), ((784, 300, 100, 10), 128), ((784, 1200, 1200, 10), 128))
SPARSITY = 0.9


def main():
    rows = []
    for widths, size in MODELS:
        rng = np.random.default_rng(0)
        x, y = rng.random((size, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], size)
        masked = prune.magnitude(mlp(widths), SPARSITY, scope="layer")
        sides = {OURS: training_step(masked, x, y), "without masks": training_step(mlp(widths), x, y)}
        with threads(2):
            name = f"{'-'.join(map(str, widths))}, batch {size}"
            rows.append(measure(name, sides, {"without masks": 0.95}, rounds=7))
        wrong = sum(np.count_nonzero(layer.weight.data[~kept_of(layer.weight)]) for layer in masked.layers)
        assert wrong == 0, "a masked weight has moved"
    return report("prune_cost", "a training step with masks", rows)
