"""The tape: deep and shared graphs, accumulation, what is kept, `no_grad`, copies, `explain`."""

from __future__ import annotations

import contextvars
import copy
import gc
import pickle
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import minidistill as md
from minidistill import Tensor, losses, nn, ops
from minidistill.tensor import Node, gradients


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


# ---- backward: deep, shared, linear ----------------------------------------------------------------------------------


def test_a_chain_of_100_000_operations():
    x = leaf(1.0, 2.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.tolist() == [1, 1] and y.data.tolist() == [100_001, 100_002]
    del y  # the tape goes with its last tensor: no recursion that would overflow Python's stack


def test_nested_sharing_is_linear_not_exponential(monkeypatch):
    calls = []
    plain = Node.input_gradients
    monkeypatch.setattr(Node, "input_gradients", lambda node, g: calls.append(node.op) or plain(node, g))
    x = leaf(3.0)
    y = x
    for _ in range(10_000):
        y = (y + y) / 2  # 2**10_000 paths lead from y to x
    y.sum().backward()
    assert x.grad.tolist() == [1]
    assert sorted(calls) == ["add"] * 10_000 + ["divide"] * 10_000 + ["sum"]  # each VJP once


def test_gradients_come_to_everything_before_what_it_came_from():
    a = leaf(1.0)
    b = a + a
    c = b * b
    d = (c + a).sum()
    order = [end for end, _ in gradients(d, None)]
    assert [getattr(end, "op", "leaf") for end in order] == ["sum", "add", "multiply", "add", "leaf"]
    place = {id(end): i for i, end in enumerate(order)}
    for end in order[:-1]:
        assert all(place[id(end)] < place[id(parent)] for parent in end.parents if parent is not None)


def test_the_gradient_of_a_shared_result_is_complete_before_it_is_passed_on():
    a = leaf(2.0)
    b = a * a
    (b * b).backward()  # a**4
    assert a.grad.tolist() == [32]


def test_gradients_accumulate_until_they_are_cleared():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    assert x.grad.tolist() == [5, 7] and first.tolist() == [2, 4]
    x.grad = None
    x.sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_backward_twice_through_one_tape():
    x = leaf(3.0)
    y = x * x
    y.backward()
    y.backward()
    assert x.grad.tolist() == [12]


def test_a_loss_that_is_kept_keeps_its_tape_and_its_number_does_not():
    """So that backward can be called again; the docstring says what to do."""
    model, x, y = (
        nn.Sequential(nn.Dense(8, 300, activation="relu"), nn.Dense(300, 2), rng=0),
        np.ones((64, 8)),
        [0, 1] * 32,
    )

    def bytes_kept(keep):
        kept = []
        for i in range(6):
            loss = losses.cross_entropy(model(x), np.array(y))
            loss.backward()
            kept.append(keep(loss))
            if i == 0:
                tracemalloc.start()
        del loss
        size = tracemalloc.get_traced_memory()[0] / 5
        tracemalloc.stop()
        return size

    hidden = 64 * 300 * 4
    assert bytes_kept(lambda loss: loss.item()) < hidden / 10 < hidden < bytes_kept(lambda loss: loss)
    assert "loss.item()" in Tensor.backward.__doc__


def test_a_zero_dimensional_gradient_is_an_array():
    x = Tensor(np.float64(3), requires_grad=True)
    for expected in (6, 12):
        (x * x).backward()
        assert type(x.grad) is np.ndarray and x.grad.shape == () and x.grad == expected


def test_backward_from_a_leaf_and_with_an_upstream_gradient():
    x = leaf(1.0, 2.0)
    x.backward([5, 7])
    assert x.grad.tolist() == [5, 7]
    (x * x).backward(np.array([1.0, 10.0]))
    assert x.grad.tolist() == [7, 47]
    (x[:1] * 2).backward()  # one element is as good as a scalar
    assert x.grad.tolist() == [9, 47]


def test_retain_grad_keeps_the_gradient_of_an_intermediate_result():
    x = leaf(1.0, 2.0)
    y = (x * 3).retain_grad()
    z = (y * y).retain_grad()
    z.sum().backward()
    assert y.grad.tolist() == [6, 12] and z.grad.tolist() == [1, 1] and x.grad.tolist() == [18, 36]
    assert x.retain_grad() is x
    w = x * 2
    w.sum().backward()
    assert w.grad is None


def test_gradients_are_not_aliased():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    upstream = np.array([1.0, 1.0])
    z = (x + y).retain_grad()
    z.backward(upstream)
    held = [x.grad, y.grad, z.grad, upstream]
    assert all(not np.shares_memory(a, b) for i, a in enumerate(held) for b in held[:i])
    x.grad[...] = 9
    assert upstream.tolist() == y.grad.tolist() == z.grad.tolist() == [1, 1]
    a = leaf(1.0, 2.0)
    a.backward(Tensor(upstream))
    assert not np.shares_memory(a.grad, upstream)
    a, b = leaf(1.0), leaf(1.0, 2.0)
    ops.concatenate([a, b]).backward([1, 2, 3])  # slices of one gradient
    assert not np.shares_memory(a.grad, b.grad) and a.grad.base is None
    a.grad = None
    np.broadcast_to(a, (3, 1)).sum().backward()
    a.grad += 1  # writable, although the gradient of a sum is a broadcast view
    assert a.grad.tolist() == [4]


# ---- what the tape keeps alive ---------------------------------------------------------------------------------------


def test_only_what_a_vjp_needs_is_kept():
    x = leaf(1.0, 2.0)
    h = x * 2.0  # a product with a constant needs the constant only
    k = h + 1.0  # a sum needs nothing
    s = k * k
    dead, alive = weakref.ref(h.data), weakref.ref(k.data)
    del h, k
    assert dead() is None and alive() is not None
    s.sum().backward()
    assert x.grad.tolist() == [12, 20]


def test_a_product_with_a_constant_keeps_the_constant_only():
    constants = {
        "multiply": lambda h: h * np.ones((2, 2)),
        "divide": lambda h: h / np.ones((2, 2)),
        "matmul": lambda h: h @ np.eye(2),
        "matmul of a vector": lambda h: h[0] @ np.eye(2),
        "matmul from the left": lambda h: np.eye(2) @ h,
    }
    for name, operation in constants.items():
        h = leaf([1.0, 2.0], [3.0, 4.0]) * 2.0
        out, values = operation(h), weakref.ref(h.data)
        del h
        assert out.requires_grad and values() is None, name


def closed_over(function):
    """Everything that a VJP holds on to, through the functions it calls."""
    stack, found = [function], []
    while stack:
        value = stack.pop()
        found.append(value)
        if isinstance(value, (tuple, list)):
            stack.extend(value)
        stack.extend(cell.cell_contents for cell in getattr(value, "__closure__", None) or ())
    return found


def test_no_vjp_holds_a_tensor():
    x, w, b = leaf([1.0, 2.0], [3.0, 4.0]), leaf([1.0, 0.5], [2.0, 1.0]), leaf(1.0, 2.0)
    ends = [
        *(operation(x, w) for operation in (ops.add, ops.subtract, ops.multiply, ops.divide, ops.power, ops.matmul)),
        *(operation(x, w) for operation in (ops.maximum, ops.minimum, lambda *t: ops.where(w > 0, *t), ops.dense)),
        *(getattr(ops, name)(x) for name in ("sum", "mean", "max", "min", "var", "std", "logsumexp", "clip", "log1p")),
        *(getattr(ops, name)(x) for name in ("negative", "exp", "log", "sqrt", "absolute", "squeeze", "transpose")),
        *(ops.dense(x, w, b, name) for name in ops.ACTIVATIONS),
        *(operation([x, w]) for operation in (ops.concatenate, ops.stack)),
        *(x.reshape(4), x[[0, 0]], ops.broadcast_to(x, (3, 2, 2)), ops.expand_dims(x, 0), ops.dropout(x, 0.5, rng=0)),
        *(ops.embedding(x, [0]), ops.softmax_cross_entropy(x, np.array([0, 1])), ops.softmax_kl(x, x.data)),
        *(ops.sigmoid_cross_entropy(x, x.data), *ops.split(x, 2)),
    ]
    for end in ends:
        assert end._node.vjp and not any(isinstance(value, Tensor) for value in closed_over(end._node.vjp)), (
            end._node.op
        )


def test_the_tape_dies_with_its_last_tensor_without_the_cycle_collector():
    gc.collect()
    gc.disable()
    try:
        x = leaf(1.0, 2.0)
        loss = ops.exp(ops.tanh(x).retain_grad()).sum().retain_grad()
        loss.backward()
        values = weakref.ref(loss._node.parents[0].vjp[0].__closure__[0].cell_contents)
        tensor = weakref.ref(loss)
        assert isinstance(values(), np.ndarray)
        del loss
        assert values() is None and tensor() is None
    finally:
        gc.enable()


def test_nothing_is_recorded_where_nobody_wants_a_gradient():
    x = Tensor([1.0, 2.0])
    assert (x * x)._node is None and not (x * x).requires_grad
    y = leaf(1.0)
    with md.no_grad():
        assert (y * 2)._node is None
    assert (y.detach() * 2)._node is None and y.detach().data is y.data


# ---- no_grad -----------------------------------------------------------------------------------------------------


def test_no_grad_nests_decorates_and_ends_with_an_exception():
    x = leaf(1.0)

    @md.no_grad()
    def frozen():
        return x * 2

    assert not frozen().requires_grad and not frozen().requires_grad
    with md.no_grad():
        with md.no_grad():
            pass
        assert not (x * 2).requires_grad
    with pytest.raises(ZeroDivisionError), md.no_grad():
        raise ZeroDivisionError
    assert (x * 2).requires_grad


def test_no_grad_holds_for_its_own_thread_and_context_only():
    x, seen = leaf(1.0), {}
    inside, done = threading.Event(), threading.Event()

    def other():
        inside.wait(5)
        seen["other thread"] = (x * 2).requires_grad
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    before = contextvars.copy_context()
    with md.no_grad():
        inside.set()
        assert done.wait(5)
        seen["older context"] = before.run(lambda: (x * 2).requires_grad)
        seen["here"] = (x * 2).requires_grad
    thread.join()
    assert seen == {"other thread": True, "older context": True, "here": False}


# ---- copies and pickles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_and_pickles_are_leaves(duplicate):
    x = leaf(1.0, 2.0)
    y = x
    for _ in range(20_000):  # long enough to overflow the stack, were the tape copied along
        y = y + 1.0
    twin = duplicate(y)
    assert twin._node is None and twin.data.tolist() == y.data.tolist() and not np.shares_memory(twin.data, y.data)
    assert y._node is not None
    w = nn.Parameter(np.ones(2), constraints=[nn.MaxNorm(2.0)])
    (w * w).sum().backward()
    other = duplicate(w)
    assert type(other) is nn.Parameter and other.requires_grad and other.grad.tolist() == [2, 2]
    assert other.constraints[0].limit == 2.0 and other.constraints[0] is not w.constraints[0]
    kept = (w * w).sum()
    other.assign([5, 5])  # versions are not shared either
    kept.backward()
    assert w.data.tolist() == [1, 1] and w.grad.tolist() == [4, 4]


# ---- explain ---------------------------------------------------------------------------------------------------------


def test_explain_says_what_a_small_tape_holds():
    x = np.array([[1, 2], [3, 4]], np.float32)
    w = Tensor(np.ones(2, np.float32), requires_grad=True)
    h = x @ w  # [3, 7]; its VJP keeps x: 16 bytes
    loss = (h * h).mean()  # the product keeps h: 8 bytes; the gradient of h is h: sqrt(58)
    assert str(loss.explain()).split("\n") == [
        "     op                       shape               kept for backward  gradient norm",
        "   0 leaf Tensor              (2,)                                -          41.62",
        "   1 matmul                   (2,)                             16 B          7.616",
        "   2 multiply                 (2,)                              8 B         0.7071",
        "   3 mean                     ()                                0 B              1",
    ]
    assert w.grad is None
    assert repr(loss.explain()) == str(loss.explain())


def test_explain_counts_an_array_once_and_shows_row_sparse_gradients():
    e = nn.Embedding(10, 3, rng=0)
    h = e([1, 1, 4])
    lines = str((h * h + h * 2.0).explain()).split("\n")
    assert [line.split()[1] for line in lines[1:]] == ["leaf", "embedding", "multiply", "multiply", "add"]
    kept = [line[49:67].split()[0] for line in lines[1:]]
    assert kept == ["-", "24", "36", "4", "0"]  # the ids; h for h * h; the number 2 for h * 2.0
    assert e.weight.grad is None
