"""A training step (forward, cross-entropy, backward, Adam): what the tape costs, and the ratio against PyTorch.

The baseline is the same step written by hand in NumPy, without tape, tensors or checks, with our Adam kernel: what is
above it is the price of being general. Gradients are compared before anything is timed. PyTorch is skipped by name
where it is not installed.
"""

import json
from pathlib import Path

import numpy as np

from minidistill import losses
from minidistill.bench import mlp, training_step
from minidistill.kernels import adam_step
from minidistill.timing import compare, show

CASES = (((64, 32, 10), 32), ((64, 256, 256, 10), 64), ((784, 300, 100, 10), 128))
RESULTS = Path(__file__).parent / "results"


def batch(widths, size):
    rng = np.random.default_rng(0)
    return rng.random((size, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], size)


def our_gradients(model, x, y):
    losses.cross_entropy(model(x), y).backward()
    return [p.grad for p in model.parameters()]


def hand_gradients(weights, x, y):
    """Gradients of [W1, b1, W2, b2, ...] in plain NumPy."""
    hidden = [x]
    for w, b in zip(weights[:-2:2], weights[1:-2:2]):
        hidden.append(np.maximum(hidden[-1] @ w + b, 0))
    logits = hidden[-1] @ weights[-2] + weights[-1]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    dz, gradients = p / len(y), []
    for layer in range(len(weights) // 2 - 1, -1, -1):
        gradients = [hidden[layer].T @ dz, dz.sum(axis=0), *gradients]
        dz = (dz @ weights[2 * layer].T) * (hidden[layer] > 0) if layer else None
    return gradients


def hand_step(weights, x, y):
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    count = 0

    def step():
        nonlocal count
        count += 1
        for w, g, (m, v) in zip(weights, hand_gradients(weights, x, y), moments):
            adam_step(w, g, m, v, None, None, count, 1e-3, 0.9, 0.999, 1e-8, 0.0, False)

    return step


def torch_step(model, x, y, expected):
    """The same step in PyTorch from the same weights, checked against our gradients; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(2)
    layers = []
    for layer in model.layers:
        linear = torch.nn.Linear(layer.in_features, layer.out_features)
        linear.weight.data = torch.from_numpy(layer.weight.data.T.copy())
        linear.bias.data = torch.from_numpy(layer.bias.data.copy())
        layers += [linear, torch.nn.ReLU()] if layer.activation else [linear]
    net, xt, yt = torch.nn.Sequential(*layers), torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(xt), yt).backward()
        optimizer.step()

    torch.nn.functional.cross_entropy(net(xt), yt).backward()
    for p, g in zip(net.parameters(), expected):
        np.testing.assert_allclose(p.grad.numpy().T, g, rtol=1e-3, atol=1e-6)
    return step


def measure(widths, size):
    """Times of every side that is installed, for one model and batch size."""
    x, y = batch(widths, size)
    model = mlp(widths)
    expected = our_gradients(model.copy(), x, y)
    weights = [p.data.copy() for p in model.parameters()]
    for ours, by_hand in zip(expected, hand_gradients(weights, x, y)):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-3, atol=1e-6)
    sides = {"minidistill": training_step(model.copy(), size), "by hand": hand_step(weights, x, y)}
    peer = torch_step(model, x, y, expected)
    return compare(sides | ({"PyTorch": peer} if peer else {}))


def main():
    columns = ("minidistill", "by hand", "PyTorch")
    lines = [
        f"{'training step':<22}"
        + "".join(f" {c:>18}" for c in columns)
        + f"{'by hand / ours':>16}{'PyTorch / ours':>16}"
    ]
    kept = []
    for widths, size in CASES:
        times = measure(widths, size)
        name = f"{'-'.join(map(str, widths))}, {size}"
        cells, ratios = [], []
        for side in columns:
            t = times.get(side)
            cells.append(show(t) if t else "not installed")
            ratios.append(f"{t.median / times['minidistill'].median:.2f}x" if t else "-")
        lines.append(f"{name:<22}" + "".join(f" {c:>18}" for c in cells) + "".join(f"{r:>16}" for r in ratios[1:]))
        kept.append({"case": name, "seconds": {side: t._asdict() for side, t in times.items()}})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training_step.json").write_text(json.dumps(kept, indent=1) + "\n")
    return "\n".join(lines)
