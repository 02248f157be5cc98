"""What distilling costs: an epoch of it against an epoch of plain training, and the fused loss against composed operations.

With a cache of the teacher's answers: at most 1.15 times plain training. Without one (augmented inputs are new in every
epoch): at most plain training with that augmentation plus one forward pass of the teacher. Fused loss and gradient: at
least 5 times as fast.

A side is a whole training of many epochs, so what is done once (finding the samples in the cache by their hashes, the
checks) is shared by them; making the cache is outside of the timer.
"""

from __future__ import annotations

import numpy as np

import minidistill as md
from minidistill import Tensor, distill, ops
from minidistill.bench import mlp
from minidistill.datasets import Dataset
from minidistill.nn import mode
from perf.harness import OURS, measure, report, threads

# Teacher, student, batch size, samples of an epoch, epochs.
CASES = (
    ((64, 256, 10), (64, 32, 10), 32, 1280, 40),
    ((784, 1200, 1200, 10), (784, 300, 100, 10), 128, 6400, 20),
    ((784, 1200, 1200, 10), (784, 800, 800, 10), 128, 6400, 10),
)
SHAPES = ((256, 10), (256, 1000))
TEMPERATURE = 4.0


def trainings(teacher, student, batch_size, samples, epochs):
    """Functions that each train a student for some epochs, by what they do."""
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(samples, teacher[0])), rng.integers(0, teacher[-1], samples))
    guide = mlp(teacher)
    cache = distill.TeacherCache(guide, data)
    settings = {"epochs": epochs, "batch_size": batch_size, "progress": False, "rng": 0}

    def the_same(x, rng):
        """An augmentation that costs nothing: its results count as new."""
        return x

    def and_ask(x, rng):
        """The same, and a forward pass of the teacher, in the middle of a step as distilling has it."""
        with mode(training=False), md.no_grad():
            guide(x)
        return x

    return {
        OURS: lambda: md.fit(mlp(student), data, **settings),
        "cached": lambda: distill.distill(guide, mlp(student), data, cache=cache, **settings),
        "plain + teacher": lambda: md.fit(mlp(student), data, augment=and_ask, **settings),
        "not cached": lambda: distill.distill(guide, mlp(student), data, augment=the_same, **settings),
    }


def composed(z, teacher):
    """The loss as its formula reads, an operation for each step of it."""
    log_q = ops.log_softmax(z / TEMPERATURE)
    log_p = ops.log_softmax(Tensor(teacher / TEMPERATURE))
    return ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=1)) * TEMPERATURE**2


def fused(z, teacher):
    return distill.kd_loss(z, teacher, None, TEMPERATURE, alpha=1.0)


def gradient_of(loss, z, teacher):
    def run():
        z.grad = None
        value = loss(z, teacher)
        value.backward()
        return value.item(), z.grad

    return run


def loss_rows():
    for n, classes in SHAPES:
        values, teacher = np.random.default_rng(0).normal(0, 3, (2, n, classes)).astype(np.float32)
        z = Tensor(values, requires_grad=True)
        sides = {OURS: gradient_of(fused, z, teacher), "composed": gradient_of(composed, z, teacher)}
        (value, gradient), (other, another) = (side() for side in sides.values())
        np.testing.assert_allclose(value, other, rtol=1e-4)
        np.testing.assert_allclose(gradient, another, rtol=1e-3, atol=1e-6)
        yield measure(f"soft targets, {n} x {classes}", sides, {"composed": 5.0})


def epoch_rows():
    """Plain training is the side that the others are divided by: a ratio is what distilling costs, so smaller is better."""
    for teacher, student, batch_size, *length in CASES:
        sides = trainings(teacher, student, batch_size, *length)
        row = measure(f"{name_of(student)} from {name_of(teacher)}, batch {batch_size}", sides, {"cached": 1.15})
        row["targets"]["not cached"] = round(row["ratios"]["plain + teacher"][0], 2)
        yield row


def name_of(widths):
    return "-".join(map(str, widths))


def main():
    with threads(2):
        costs = report("distill_cost", "training for some epochs: distilling / plain", list(epoch_rows()))
        return costs + "\n\n" + report("distill_loss", "the loss of soft targets with its gradient", list(loss_rows()))
