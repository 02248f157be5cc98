"""What would falsify a gradient is detected, and every error of a Tensor says so in its three lines."""

from __future__ import annotations

import numpy as np
import pytest

from minidistill import Tensor, nn, ops


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


# ---- changes that would falsify a gradient -----------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self):
        self.w = nn.Parameter(np.array([[1.0, -2.0], [3.0, 4.0]]), constraints=[nn.MaxNorm(100.0)])


DOORS = {
    "assign": lambda model: model.w.assign(np.zeros((2, 2))),
    "data": lambda model: setattr(model.w, "data", np.zeros((2, 2))),
    "load_state_dict": lambda model: model.load_state_dict({"w": np.zeros((2, 2))}),
    "constrain": lambda model: model.w.constrain(),
    "changed": lambda model: model.w.changed(),
}
# Operations that read w again in backward, some of them through a view of its memory.
READERS = {
    "multiply": lambda w: w * w,
    "divide": lambda w: 1 / w,
    "power": lambda w: w**2,
    "matmul": lambda w: w @ w,
    "dense": lambda w: ops.dense(np.ones((3, 2)), w),
    "abs": lambda w: abs(w),
    "gelu": lambda w: ops.gelu(w),
    "log": lambda w: ops.log(w[1]),
    "log1p": lambda w: ops.log1p(w[1]),
    "clip": lambda w: w.clip(-1, 1),
    "max": lambda w: w.max(axis=0),
    "min": lambda w: w.min(axis=0),
    "maximum": lambda w: np.maximum(w, 0),
    "minimum": lambda w: np.minimum(0, w),
    "reshape": lambda w: np.square(w.reshape(4)),
    "transpose": lambda w: w.T.reshape(2, 2).swapaxes(0, 1) * w.T[0],
    "getitem": lambda w: w[0] * w[1],
    "broadcast_to": lambda w: np.square(np.broadcast_to(w, (3, 2, 2))),
    "split": lambda w: ops.split(w, 2)[0] * 2.0 * ops.split(w, 2)[1],
    "detach": lambda w: w.detach() * Tensor(np.ones((2, 2)), requires_grad=True),
    "Tensor": lambda w: Tensor(w, requires_grad=True) ** 2,
}
# Operations whose VJP does not need the values.
INDIFFERENT = {
    "add": lambda w: w + w,
    "subtract": lambda w: 3 - w,
    "negative": lambda w: -w,
    "sum": lambda w: w.sum(axis=0),
    "mean": lambda w: w.mean(),
    "reshape": lambda w: w.reshape(4),
    "transpose": lambda w: w.T,
    "getitem": lambda w: w[[0, 0]],
    "concatenate": lambda w: ops.concatenate([w, w]),
    "stack": lambda w: ops.stack([w, w]),
    "where": lambda w: np.where(np.eye(2) > 0, w, 0),
    "exp": lambda w: ops.exp(w),  # keeps its own result
    "logsumexp": lambda w: ops.logsumexp(w, axis=1),
    "embedding": lambda w: ops.embedding(w, [0, 0]),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("reader", READERS)
def test_a_change_to_what_backward_reads_raises(door, reader):
    model = Model()
    y = READERS[reader](model.w).sum()
    DOORS[door](model)
    with pytest.raises(
        RuntimeError, match=r"^backward reached `\w+.*` \(result of shape .*\), whose input was changed"
    ):
        y.backward()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("operation", INDIFFERENT)
def test_a_change_that_backward_does_not_see_is_no_error(door, operation):
    untouched, changed = Model(), Model()
    for model in (untouched, changed):
        y = INDIFFERENT[operation](model.w).sum()
        if model is changed:
            DOORS[door](model)
        y.backward()
    np.testing.assert_array_equal(np.asarray(changed.w.grad), np.asarray(untouched.w.grad))


def test_the_text_for_a_changed_value():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    x.assign([3, 4])
    assert x.data.tolist() == [3, 4]
    with pytest.raises(RuntimeError) as error:
        y.backward()
    assert str(error.value).split("\n") == [
        "backward reached `multiply` (result of shape (2,)), whose input was changed after it was used.",
        "The gradient needs the value as it was in the forward pass.",
        "Call backward() before the optimizer step or the assignment, or compute the result again after it.",
    ]
    (x * x).sum().backward()  # computed again
    assert x.grad.tolist() == [6, 8]


def test_a_backward_that_raises_leaves_no_gradient_behind():
    """Otherwise whoever catches the error and computes again would count the first half twice."""
    first, second, bias = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(0.0, 0.0)
    bias.grad = before = np.array([5.0, 6.0])
    loss = (ops.exp(first * first) * second + bias).sum()
    first.assign([0, 0])
    with pytest.raises(RuntimeError, match="backward reached `multiply`"):
        loss.backward()
    assert first.grad is None and second.grad is None and bias.grad is before and before.tolist() == [5, 6]


def test_a_tensor_assigned_from_another_does_not_follow_it():
    source, x = nn.Parameter(np.ones(2)), leaf(0.0, 0.0)
    x.assign(source)
    y = (x * x).sum()
    source.assign([5, 5])  # in place, and counted for `source` alone
    y.backward()
    assert x.data.tolist() == [1, 1] and x.grad.tolist() == [2, 2]


def test_assigning_a_parameter_is_in_place_and_a_tensor_replaces():
    w = nn.Parameter(np.zeros(2))
    memory = w.data
    w.assign([1, 2])
    assert w.data is memory and memory.tolist() == [1, 2] and w.dtype == np.float64
    x = Tensor(memory)
    x.assign(np.array([5.0, 6.0]))
    assert memory.tolist() == [1, 2] and x.data.tolist() == [5, 6]


# ---- errors ----------------------------------------------------------------------------------------------------------

ADD_OUT = r"np\.add\(\.\.\., out=\.\.\.\) was called on a Tensor\.\nOnly plain calls can be recorded.*\nUse the plain"
ERRORS = {
    "write by index": (
        lambda x: x.__setitem__(0, 1.0), TypeError,
        r"assigned to part of a tensor of shape \(2,\)\.\nA write in place would .*\nUse np\.where\(mask, new, x\)",
    ),
    "array += tensor": (lambda x: np.zeros(2).__iadd__(x), TypeError, ADD_OUT),
    "out": (lambda x: np.add(x, x, out=np.zeros(2)), TypeError, ADD_OUT),
    "out is a tensor": (lambda x: np.add(np.ones(2), 1.0, out=x), TypeError, ADD_OUT),
    "reduce": (lambda x: np.add.reduce(x), TypeError, r"np\.add\.reduce was called on a Tensor\.\n.*\n.*tensor\.numpy"),
    "at": (lambda x: np.add.at(np.zeros(2), [0], x), TypeError, r"np\.add\.at was called on a Tensor\."),
    "unknown function": (
        lambda x: np.cumsum(x), TypeError,
        r"np\.cumsum was called on a Tensor\.\nIt has no derivative here: a silent one would be wrong\.\nCompose it",
    ),
    "unknown ufunc": (lambda x: np.arctan(x), TypeError, r"np\.arctan was called on a Tensor\.\nIt has no derivative"),
    "unknown option": (lambda x: np.sum(x, dtype=np.float64), TypeError, "unexpected keyword argument 'dtype'"),
    "assign to a result": (
        lambda x: (x * 2).assign([1, 2]), RuntimeError,
        r"assigned to the result of `multiply`\.\nOnly leaves .*\nMake a new one: md\.Tensor\(values\)\.",
    ),
    "assign another shape": (
        lambda x: x.assign([1, 2, 3]), ValueError,
        r"an array of shape \(3,\) to a tensor of shape \(2,\)\.\nThe shape of a tensor never changes\.\nMake a new",
    ),
    "nothing recorded": (
        lambda x: x.detach().sum().backward(), RuntimeError,
        r"backward\(\) was called on a tensor of shape \(\) that records nothing\.\n.*requires_grad=True.*\nMake the",
    ),
    "not a scalar": (
        lambda x: x.backward(), RuntimeError,
        r"backward\(\) was called on a tensor of shape \(2,\)\.\nOnly a scalar .*\nReduce it first, x\.sum\(\)",
    ),
    "upstream of another shape": (
        lambda x: x.backward(1.0), ValueError,
        r"got shape \(\) for a tensor of shape \(2,\)\.\nThe two must be equal\.\nBroadcast it first: np\.broadcast_to",
    ),
    "complex numbers": (
        lambda x: Tensor([1j]), TypeError,
        r"data of dtype complex128\.\nIt holds float32 or float64 numbers\.\nConvert the data first",
    ),
    "text": (lambda x: x + "a", TypeError, "data of dtype <U1"),
    "None": (lambda x: x + None, TypeError, r"made from None\.\n.*\nA function without return gives None"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_error(case):
    call, kind, text = ERRORS[case]
    x = leaf(1.0, 2.0)
    with pytest.raises(kind, match=text):
        call(x)
    assert x.data.tolist() == [1, 2] and x.grad is None
