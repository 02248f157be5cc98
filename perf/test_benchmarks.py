"""Figures kept over time: ``pytest perf --benchmark-autosave``, later ``pytest perf --benchmark-compare``.

No peers and no ratios here (`python -m perf` has those): the same few things timed by pytest-benchmark, so that a run can be
held against an earlier one on the same machine. Its files go to .benchmarks/, which git ignores.
"""

import numpy as np
import pytest

import minidistill as md
from minidistill import distill, kernels
from minidistill.bench import MODELS, mlp, training_step
from perf import embedding
from perf.kernels import cases

KERNELS = {name: arguments for name, arguments in cases() if name not in ("int8_matmul", "sparse_dense")}
rounds = {"rounds": 200, "warmup_rounds": 20}


def batch(widths, size):
    rng = np.random.default_rng(0)
    return rng.random((size, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], size)


def name_of(value):
    return "-".join(map(str, value)) if isinstance(value, tuple) else None


@pytest.mark.parametrize("widths", MODELS, ids=name_of)
def test_training_step(benchmark, widths):
    benchmark.group = "training step, batch 64"
    benchmark.pedantic(training_step(mlp(widths), *batch(widths, 64)), **rounds)


@pytest.mark.parametrize("widths", MODELS, ids=name_of)
def test_distillation_step(benchmark, widths):
    benchmark.group = "distillation step, batch 64"
    x, y = batch(widths, 64)
    teacher = np.random.default_rng(1).normal(0, 3, (64, widths[-1])).astype(np.float32)
    step = training_step(mlp(widths), x, y, lambda logits, y: distill.kd_loss(logits, teacher, y))
    benchmark.pedantic(step, **rounds)


@pytest.mark.parametrize("size", [1, 256])
@pytest.mark.parametrize("widths", MODELS, ids=name_of)
def test_prediction(benchmark, widths, size):
    benchmark.group = f"predict, batch {size}"
    model, x = mlp(widths), batch(widths, size)[0]
    benchmark.pedantic(lambda: md.predict(model, x), **rounds)


def test_two_towers(benchmark):
    benchmark.group = "two-tower step, batch 1024"
    step = embedding.our_step(embedding.Ranker(100_000, 50_000, 32), embedding.batches(100_000, 50_000))
    benchmark.pedantic(step, **rounds)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel(benchmark, name):
    benchmark.group = "kernels"
    benchmark.pedantic(lambda: getattr(kernels, name)(*KERNELS[name]), **rounds)
