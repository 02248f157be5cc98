"""``minidistill bench``: training steps and predictions of usual small models on the machine at hand.

No peers here: ratios against PyTorch, JAX and onnxruntime are measured under ``perf/``.
"""

from __future__ import annotations

import numpy as np

from . import losses, nn, optim
from .explain import Table
from .timing import compare, show
from .training import predict

MODELS = ((64, 32, 10), (64, 256, 256, 10), (784, 300, 100, 10))
BATCHES = (1, 32, 256)


def mlp(widths, rng=0):
    """A relu network with these widths, input first."""
    hidden = [nn.Dense(a, b, activation="relu") for a, b in zip(widths[:-2], widths[1:-1])]
    return nn.Sequential(*hidden, nn.Dense(widths[-2], widths[-1]), rng=rng)


def training_step(model, x, y, loss=losses.cross_entropy):
    """A function that makes one training step with Adam on a batch, and returns the loss."""
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        return value

    return step


def bench(seconds=0.3):
    """Time everything and return the table as text; ``seconds`` are spent on each number."""
    rng = np.random.default_rng(0)
    rows = [["model", "training step, 32", *(f"predict {batch}" for batch in BATCHES)]]
    for widths in MODELS:
        model = mlp(widths)
        x, y = rng.random((32, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], 32)
        sides = {"step": training_step(model.copy(), x, y)}
        for batch in BATCHES:
            x = rng.random((batch, widths[0]), dtype=np.float32)
            sides[batch] = lambda x=x, model=model: predict(model, x)
        times = compare(sides, seconds=seconds / 3, settle=seconds / 6)
        rows.append(["-".join(map(str, widths)), *map(show, times.values())])
    return Table.of(rows, notes=["median ± half the distance between the quartiles"])
