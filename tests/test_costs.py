"""What things cost, without a clock: operations on the tape, function calls, bytes, passes over an array, rows touched.

A clock on a shared machine cannot tell 10 % from noise. These numbers are the same in every run, so a change that makes the
hot path longer fails here. Where one is raised on purpose, the reason belongs into ``perf/LOG.md``.
"""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest

import minidistill as md
from minidistill import distill, losses, nn, optim, tensor
from minidistill.bench import mlp, training_step
from minidistill.datasets import Dataset
from minidistill.kernels import _jit, blas, dense, embedding, optimizer
from minidistill.tensor import gradients


def batch(widths, size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((size, widths[0]), dtype=np.float32), rng.integers(0, widths[-1], size)


# ---- the tape and Python ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("widths", [(8, 6, 3), (8, 7, 6, 5, 4)])
def test_a_dense_layer_is_one_operation_and_a_loss_is_one(widths):
    x, y = batch(widths, 4)
    ends = [end for end, _ in gradients(losses.cross_entropy(mlp(widths)(x), y), None)]
    layers = len(widths) - 1
    assert [end.op for end in ends if isinstance(end, tensor.Node)] == [
        "softmax_cross_entropy", "dense linear", *["dense relu"] * (layers - 1)
    ]  # fmt: skip
    assert len(ends) == 1 + layers + 2 * layers  # the leaves: a weight and a bias for each layer


def test_a_distillation_loss_is_one_operation():
    x, y = batch((8, 6, 3), 4)
    loss = distill.kd_loss(mlp((8, 6, 3))(x), np.zeros((4, 3), np.float32), y)
    assert loss._node.op == "distillation_loss" and loss._node.parents[0].op == "dense linear"


def python_calls(function):
    """Python functions that are entered in one call."""
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return len(calls)


@pytest.mark.skipif(not _jit.JIT_ENABLED, reason="the reference kernels are Python functions, and call others")
def test_python_functions_entered_in_a_step():
    """Overhead of a small net is what Python does around the kernels.

    Counted: 102 with two layers; 40 more for the third, whose parameters are the first of another call of the optimizer.
    """
    counts = []
    for widths in ((64, 32, 10), (64, 32, 32, 10)):
        step = training_step(mlp(widths), *batch(widths, 32))
        step(), step()
        counts.append(python_calls(step))
    assert counts[0] <= 105
    assert counts[1] - counts[0] <= 42


@pytest.mark.skipif(not _jit.JIT_ENABLED, reason="the reference kernels are Python functions, and call others")
def test_python_functions_entered_in_a_prediction():
    model, x = mlp((64, 32, 10)), batch((64, 32, 10), 1)[0]
    md.predict(model, x)
    assert python_calls(lambda: md.predict(model, x)) <= 28  # one of them asks a model which of its forms runs


# ---- bytes -----------------------------------------------------------------------------------------------------------
def peak_bytes(function):
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_step_allocates_gradients_and_activations_and_little_else():
    widths, size = (200, 300, 300, 10), 64
    x, y = batch(widths, size)
    model = mlp(widths)
    optimizer = optim.Adam(model.parameters())

    def gradients():
        losses.cross_entropy(model(x), y).backward()

    gradients()
    optimizer.step()
    optimizer.zero_grad()
    weights = sum(p.data.nbytes for p in model.parameters())
    activations = sum(size * width * 4 for width in widths[1:])
    # Beside every activation there is, at most, the gradient of it, and once more for the layer that is being worked on.
    assert peak_bytes(gradients) < weights + 2.6 * activations + 50_000
    if _jit.JIT_ENABLED:  # the reference makes temporaries
        assert peak_bytes(optimizer.step) < 20_000


def test_nothing_is_left_behind_by_steps():
    widths = (20, 15, 5)
    step = training_step(mlp(widths), *batch(widths, 8))
    for _ in range(20):
        step()
    tracemalloc.start()
    try:
        numbers = []
        for _ in range(2):
            for _ in range(100):
                step()
            numbers.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert numbers[1] - numbers[0] < 2000


def test_a_table_costs_what_a_batch_touches():
    """Bytes of a step after the first: independent of the number of rows, about 1 MB for 1 024 ids and 32 numbers each."""
    peaks = []
    for rows in (20_000, 80_000):
        table = nn.Embedding(rows, 32, rng=0)
        optimizer = optim.Adam([table.weight])
        ids, target = np.random.default_rng(0).integers(0, rows, 1024), np.zeros((1024, 32), np.float32)

        def step(table=table, optimizer=optimizer, ids=ids, target=target):
            optimizer.zero_grad()
            losses.mse(table(ids), target).backward()
            optimizer.step()

        step()
        peaks.append(peak_bytes(step))
    assert abs(peaks[1] - peaks[0]) < 50_000 and max(peaks) < 1_500_000


def test_batches_in_stored_order_are_views_and_predicting_copies_no_input():
    data = Dataset(np.ones((1000, 50), np.float32), np.zeros(1000, np.int64))
    assert all(np.shares_memory(part.x, data.x) for part in data.batches(64, shuffle=False))
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(np.shares_memory(np.asarray(x), data.x))
            return md.Tensor(np.zeros((len(x), 1), np.float32))

    md.predict(Spy(), data)
    md.predict(Spy(), data.x)
    assert seen == [True] * 8


# ---- passes over arrays ----------------------------------------------------------------------------------------------
class Counted:
    """An array that counts how often each entry is read and written."""

    def __init__(self, values):
        self.values = values
        self.shape, self.size, self.dtype = values.shape, values.size, values.dtype
        self.reads, self.writes = np.zeros(values.shape, int), np.zeros(values.shape, int)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.values[index]

    def __setitem__(self, index, value):
        self.writes[index] += 1
        self.values[index] = value


def counted(*shape, positive=False):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return Counted(np.abs(values) if positive else values)


def plain(function):
    """The Python function behind a compiled one."""
    return getattr(function, "py_func", function)


def test_adam_reads_and_writes_every_number_once():
    param, grad, m, v = (counted(50, positive=True) for _ in range(4))
    rule = optimizer._adam_rule(np.dtype(np.float32), 1, 0.1, 0.9, 0.999, 1e-8, 0.0, False)
    empty = np.empty(0, bool)
    plain(optimizer._adam_stretch)(param, grad, m, v, empty, np.uint64(0), np.uint64(0), np.uint64(50), rule)
    for array in (param, grad, m, v):
        assert (array.reads == 1).all()
        assert (array.writes == (array is not grad)).all()


def test_a_dense_layer_passes_over_its_values_once_each_way():
    z, bias = counted(6, 5), counted(5)
    plain(dense._add_bias)(z, bias, True, 0, 6)
    assert (z.reads == 1).all() and (z.writes == 1).all()
    g, y, dz, sums = counted(6, 5), counted(6, 5), counted(6, 5), counted(5)
    plain(dense._relu_backward)(g, y, dz, sums)
    assert (g.reads <= 1).all() and (y.reads == 1).all() and (dz.writes == 1).all()
    np.testing.assert_array_equal(g.reads == 1, y.values > 0)  # not read where the unit was off


def test_the_gradient_of_a_lookup_reads_every_row_once():
    ids, values = np.array([3, 1, 3, 3, 0]), counted(5, 4)
    order, rows, starts = np.argsort(ids, kind="stable"), np.zeros(5, np.int64), np.zeros(6, np.int64)
    assert plain(embedding._find_runs)(ids, order, rows, starts) == 3
    sums = np.zeros((3, 4), np.float32)
    plain(embedding._sum_runs)(order, starts, values, sums, 0, 3)
    assert (values.reads == 1).all() and rows[:3].tolist() == [0, 1, 3]


# ---- how often -------------------------------------------------------------------------------------------------------
def test_the_teacher_answers_once_and_not_in_every_epoch():
    rows = []

    class Teacher(nn.Module):
        def forward(self, x):
            rows.append(len(x))
            return md.Tensor(np.asarray(x)[:, :3])

    data = Dataset(*batch((5, 3), 700))
    distill.distill(Teacher(), mlp((5, 4, 3)), data, epochs=4, progress=False, rng=0)
    assert sum(rows) == 700 + 16  # and eight samples twice beforehand: do the shapes fit, does it answer alike?
    rows.clear()
    augment = lambda x, rng: x + 1  # noqa: E731
    distill.distill(Teacher(), mlp((5, 4, 3)), data, epochs=4, augment=augment, progress=False, rng=0)
    assert sum(rows) == 4 * 700 + 16 + 1


@pytest.mark.skipif(not _jit.JIT_ENABLED, reason="the reference multiplies with NumPy as it is")
def test_blas_is_told_its_threads_once_for_a_prediction(monkeypatch):
    told = []
    monkeypatch.setattr(blas, "_set_blas_threads", lambda counts: told.append(list(counts)))
    model, x = mlp((64, 256, 256, 10)), batch((64, 10), 100)[0]
    md.predict(model, x)
    assert len(told) == 2
    told.clear()
    md.predict(model, x[:2])  # so small that BLAS uses one thread by itself
    assert told == []
