"""Losses, forward and backward, against PyTorch: the loss and its gradient by the logits."""

import numpy as np

from minidistill import Tensor, distill, losses
from perf.harness import OURS, measure, peer, report, threads

SHAPES = ((32, 10), (128, 10), (128, 1000))


def cases(n, classes):
    """(name, our loss of logits, PyTorch's) with the same targets."""
    rng = np.random.default_rng(0)
    ids, teacher = rng.integers(0, classes, n), rng.normal(0, 3, (n, classes)).astype(np.float32)
    bits = rng.integers(0, 2, (n, classes)).astype(np.float32)
    torch = peer("torch")
    f = torch.nn.functional if torch else None
    t_ids, t_teacher, t_bits = (torch.from_numpy(a) if torch else None for a in (ids, teacher, bits))

    def torch_kd(z):
        soft = f.kl_div(f.log_softmax(z / 4, dim=1), f.softmax(t_teacher / 4, dim=1), reduction="batchmean")
        return 0.9 * 16 * soft + 0.1 * f.cross_entropy(z, t_ids)

    yield "cross_entropy", lambda z: losses.cross_entropy(z, ids), lambda z: f.cross_entropy(z, t_ids)
    yield "kd_loss", lambda z: distill.kd_loss(z, teacher, ids), torch_kd
    yield (
        "binary_cross_entropy",
        lambda z: losses.binary_cross_entropy(z, bits),
        lambda z: f.binary_cross_entropy_with_logits(z, t_bits),
    )
    yield "mse", lambda z: losses.mse(z, teacher), lambda z: f.mse_loss(z, t_teacher)


def gradient_of(loss, z):
    def run():
        z.grad = None
        loss(z).backward()
        return z.grad

    return run


def main():
    rows, torch = [], peer("torch")
    for n, classes in SHAPES:
        values = np.random.default_rng(1).normal(0, 3, (n, classes)).astype(np.float32)
        for name, ours, theirs in cases(n, classes):
            z = Tensor(values, requires_grad=True)
            sides = {OURS: gradient_of(ours, z), "torch": None}
            if torch:
                sides["torch"] = gradient_of(theirs, torch.from_numpy(values).requires_grad_())
                np.testing.assert_allclose(sides["torch"]().numpy(), sides[OURS](), rtol=1e-3, atol=1e-6)
            with threads(2):
                rows.append(measure(f"{name}, {n} x {classes}", sides, seconds=0.05, settle=0.03))
    return report("losses", "loss and gradient", rows)
