"""What quantization-aware training costs: a step with rounded weights and activations, against a plain step.

At most twice as long. Weights of 4 bits; how many makes no difference, since they are float32 here.
"""

import numpy as np

from minidistill import quantize
from minidistill.bench import mlp, training_step
from perf.harness import OURS, measure, report, threads

CASES = (((64, 32, 10), 32), ((784, 300, 100, 10), 32), ((784, 300, 100, 10), 128))


def main():
    rows = []
    for widths, size in CASES:
        rng = np.random.default_rng(0)
        x, y = rng.random((size, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], size)
        for learned in (False, True):
            qat = quantize.prepare_qat(mlp(widths), x, bits=4, learned=learned)
            sides = {OURS: training_step(qat, x, y), "plain": training_step(mlp(widths), x, y)}
            with threads(2):
                name = f"{'-'.join(map(str, widths))}, batch {size}{', learned steps' if learned else ''}"
                rows.append(measure(name, sides, {"plain": 0.5}, rounds=7))
            before, after = qat(x).numpy(), quantize.convert(qat)(x).numpy()  # in train mode ranges move once more
            assert np.array_equal(qat.eval()(x).numpy(), after) and before.shape == after.shape
    return report("qat_cost", "a quantization-aware training step", rows)
