"""What the tests of the optimizers share: one of each kind, a small net to train, and how a refusal reads."""

from __future__ import annotations

import numpy as np
import pytest

from minidistill import losses, nn, optim
from minidistill.tensor import RowSparse

STEPS = 20
ALL = {
    "sgd": lambda p, **o: optim.SGD(p, lr=0.1, **o),
    "momentum": lambda p, **o: optim.SGD(p, lr=0.1, momentum=0.9, **o),
    "nesterov": lambda p, **o: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **o),
    "adam": lambda p, **o: optim.Adam(p, lr=0.1, **o),
    "adamw": lambda p, **o: optim.AdamW(p, lr=0.1, **{"weight_decay": 0.1, **o}),
}
STATEFUL = {name: make for name, make in ALL.items() if name != "sgd"}

every_optimizer = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
stateful = pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)


def gradients(rng, *shape, steps=STEPS):
    return rng.standard_normal((steps, *shape))


def small_net(rng=0):
    return nn.Sequential(nn.Dense(6, 8, activation="tanh"), nn.Dense(8, 3), rng=rng)


def batch(rng, n=16):
    return rng.standard_normal((n, 6)).astype(np.float32), rng.integers(0, 3, n)


def train(model, optimizer, x, y, steps=STEPS):
    for _ in range(steps):
        optimizer.zero_grad()
        losses.cross_entropy(model(x), y).backward()
        optimizer.step()


def as_rows(dense):
    rows = np.flatnonzero(np.any(dense != 0, axis=1))
    return RowSparse(rows, dense[rows], dense.shape)


def refused(call, *match, error=ValueError):
    """The call raises, in three lines, each of which holds its part of ``match``."""
    with pytest.raises(error) as caught:
        call()
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    for line, part in zip(lines, match):
        assert part in line
