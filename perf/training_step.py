"""A training step (forward, loss, backward, Adam), the tape included: against PyTorch eager, jax.jit, and NumPy by hand.

Once with cross-entropy, once with the distillation loss and a cached teacher. "by hand" is the same step in NumPy, without
tape, tensors or checks, with our Adam kernel: what is above it is the price of being general, and what is below it the gain
of fused kernels. All sides start from the same weights, and their first losses are compared before anything is timed.
"""

import numpy as np

from minidistill import distill
from minidistill.bench import mlp, training_step
from minidistill.kernels import adam_step
from perf import peers
from perf.harness import OURS, measure, report, threads

MODELS = (((64, 32, 10), 32), ((64, 256, 256, 10), 64), ((784, 300, 100, 10), 128), ((784, 1200, 1200, 10), 128))
TORCH_TARGETS, JAX_TARGETS = (8, 2.5, 1.6, 1.3), (1.3, 1.3, 1, 0.95)
TEMPERATURE, ALPHA = 4.0, 0.9


def hand_step(model, x, y):
    """The step in plain NumPy, for [W1, b1, W2, b2, ...]."""
    weights = [p.data.copy() for p in model.parameters()]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    count = 0

    def step():
        nonlocal count
        count += 1
        loss, gradients = hand_gradients(weights, x, y)
        for w, g, (m, v) in zip(weights, gradients, moments):
            adam_step(w, g, m, v, None, None, count, peers.LR, 0.9, 0.999, 1e-8, 0.0, False)
        return loss

    return step


def hand_gradients(weights, x, y):
    hidden = [x]
    for w, b in zip(weights[:-2:2], weights[1:-2:2]):
        hidden.append(np.maximum(hidden[-1] @ w + b, 0))
    logits = hidden[-1] @ weights[-2] + weights[-1]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(p[rows, y]).mean()
    p[rows, y] -= 1
    dz, gradients = p / len(y), []
    for layer in range(len(weights) // 2 - 1, -1, -1):
        gradients = [hidden[layer].T @ dz, dz.sum(axis=0), *gradients]
        dz = (dz @ weights[2 * layer].T) * (hidden[layer] > 0) if layer else None
    return loss, gradients


def plain_sides(widths, size):
    rng = np.random.default_rng(0)
    x, y = rng.random((size, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], size)
    model = mlp(widths)
    return {
        OURS: training_step(model.copy(), x, y),
        "by hand": hand_step(model, x, y),
        "torch": peers.torch_step(model, x, peers.torch_cross_entropy(y)),
        "jax": peers.jax_step(model, x, peers.jax_cross_entropy(y)),
    }


def distillation_sides(widths, size):
    rng = np.random.default_rng(0)
    x, y = rng.random((size, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], size)
    teacher = rng.normal(0, 3, (size, widths[-1])).astype(np.float32)
    model, settings = mlp(widths), (teacher, y, TEMPERATURE, ALPHA)
    return {
        OURS: training_step(model.copy(), x, y, lambda logits, y: distill.kd_loss(logits, *settings)),
        "torch": peers.torch_step(model, x, peers.torch_kd_loss(*settings)),
        "jax": peers.jax_step(model, x, peers.jax_kd_loss(*settings)),
    }


def main():
    rows = []
    for name, sides_of in (("", plain_sides), ("distil ", distillation_sides)):
        for (widths, size), torch, jax in zip(MODELS, TORCH_TARGETS, JAX_TARGETS):
            sides = sides_of(widths, size)
            with threads(2):
                peers.same_losses(sides)
                case = f"{name}{'-'.join(map(str, widths))}, {size}"
                rows.append(measure(case, sides, {"torch": torch, "jax": jax}))
    return report("training_step", "training step", rows)
