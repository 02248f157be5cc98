"""Models in which it is not plain who takes a layer's result: for tests of conversion, and of training for it."""

from __future__ import annotations

from minidistill import nn, ops


class Branches(nn.Module):
    """One result for two layers, and one that is also an output."""

    def __init__(self):
        self.stem = nn.Dense(8, 8, activation="relu", rng=0)
        self.left, self.right = nn.Dense(8, 4, activation="relu", rng=1), nn.Dense(8, 4, rng=2)
        self.end = nn.Dense(4, 4, rng=3)

    def forward(self, x):
        stem = self.stem(x)
        left = self.left(stem)
        return ops.add(ops.add(self.end(left), left), self.right(stem))


class HalfRelu(nn.Module):
    """What a layer gives goes to another both as it is and through a relu layer: that relu is not the first layer's."""

    def __init__(self):
        self.a, self.relu, self.b = nn.Dense(8, 8, rng=0), nn.ReLU(), nn.Dense(8, 4, rng=1)

    def forward(self, x):
        h = self.a(x)
        return ops.add(self.b(self.relu(h)), self.b(h))


class Pair(nn.Module):
    """A module that a trace cannot follow: it gives two results."""

    def forward(self, x):
        return x, x


class Untraceable(nn.Module):
    """Two layers behind it."""

    def __init__(self):
        self.pair, self.a, self.b = Pair(), nn.Dense(8, 8, activation="relu", rng=0), nn.Dense(8, 4, rng=1)

    def forward(self, x):
        return self.b(self.a(self.pair(x)[0]))
