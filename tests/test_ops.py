"""Every operation element by element, and every reduction, against NumPy; gradients against differences and projection.

The tests are made from the tables below: an operation, the NumPy function that says what it computes, and where its
arguments lie (away from kinks: `test_ops_edges.py` has those). `op_checks.verify` holds the laws. Read that first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from op_checks import (
    LAYOUTS,
    anywhere,
    erf,
    gelu_tanh,
    gradients_of,
    length,
    logsumexp,
    off_zero,
    positive,
    verify,
    verify_double,
)

from minidistill import Tensor, ops

SHAPES = [(3, 4), (), (5,), (0, 3), (3, 0), (2, 1, 3)]
ARRANGED = [*((shape, "C order") for shape in SHAPES), *(((3, 4), name) for name in LAYOUTS)]
ARRANGED_IDS = [f"{shape} {name}" for shape, name in ARRANGED]
BROADCAST = [
    ((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (3, 4)), ((3, 4), ()), ((), ()), ((2, 1, 4), (3, 1)),
    ((1, 1), (2, 3)), ((0, 3), (3,)), ((0, 1), (1, 3)), ((1,), (0,)), ((2, 0), ()),
]  # fmt: skip


class Op(NamedTuple):
    name: str
    fn: object  # on Tensors
    oracle: object  # on arrays
    domains: tuple
    twin: bool = False  # whether the oracle itself is a NumPy function that works on Tensors


UNARY = [
    Op("negative", ops.negative, np.negative, (anywhere,), True),
    Op("exp", ops.exp, np.exp, (anywhere,), True),
    Op("log", ops.log, np.log, (positive,), True),
    Op("log1p", ops.log1p, np.log1p, (positive,), True),
    Op("sqrt", ops.sqrt, np.sqrt, (positive,), True),
    Op("absolute", ops.absolute, np.absolute, (off_zero,), True),
    Op("square", np.square, np.square, (anywhere,), True),
    Op("tanh", ops.tanh, np.tanh, (anywhere,), True),
    Op("clip both", lambda x: ops.clip(x, -0.5, 0.8), lambda x: np.clip(x, -0.5, 0.8), (anywhere,), True),
    Op("clip below", lambda x: ops.clip(x, -0.5), lambda x: np.maximum(x, -0.5), (anywhere,)),
    Op("clip above", lambda x: ops.clip(x, high=0.5), lambda x: np.minimum(x, 0.5), (anywhere,)),
    Op("relu", ops.relu, lambda x: x * (x > 0), (off_zero,)),
    Op("leaky_relu", ops.leaky_relu, lambda x: np.where(x > 0, x, 0.01 * x), (off_zero,)),
    Op("leaky_relu 0.2", lambda x: ops.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, 0.2 * x), (off_zero,)),
    Op("sigmoid", ops.sigmoid, lambda x: 1 / (1 + np.exp(-x)), (anywhere,)),
    Op("gelu", ops.gelu, lambda x: x * (1 + erf(x / np.sqrt(2))) / 2, (anywhere,)),
    Op("gelu tanh", lambda x: ops.gelu(x, approximate="tanh"), gelu_tanh, (anywhere,)),
    Op("softplus", ops.softplus, lambda x: np.log(1 + np.exp(x)), (anywhere,)),
]
BINARY = [
    Op("add", ops.add, np.add, (anywhere, anywhere), True),
    Op("subtract", ops.subtract, np.subtract, (anywhere, anywhere), True),
    Op("multiply", ops.multiply, np.multiply, (anywhere, anywhere), True),
    Op("divide", ops.divide, np.divide, (anywhere, off_zero), True),
    Op("power", ops.power, np.power, (positive, anywhere), True),
    Op("maximum", ops.maximum, np.maximum, (anywhere, anywhere), True),
    Op("minimum", ops.minimum, np.minimum, (anywhere, anywhere), True),
]


def named(table):
    return pytest.mark.parametrize("op", table, ids=[op.name for op in table])


# ---- element by element ----------------------------------------------------------------------------------------------


@named(UNARY)
@pytest.mark.parametrize(("shape", "layout"), ARRANGED, ids=ARRANGED_IDS)
def test_unary(op, shape, layout, rng):
    verify(op.fn, op.oracle, LAYOUTS[layout](op.domains[0](rng, shape)))


@named(BINARY)
@pytest.mark.parametrize(("left", "right"), BROADCAST, ids=str)
def test_binary_broadcasts(op, left, right, rng):
    verify(op.fn, op.oracle, op.domains[0](rng, left), op.domains[1](rng, right))


@named(BINARY)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_binary_reads_any_memory(op, layout, rng):
    first, second = (domain(rng, (3, 4)) for domain in op.domains)
    verify(op.fn, op.oracle, LAYOUTS[layout](first), second)
    verify(op.fn, op.oracle, first, LAYOUTS[layout](second))


@named([op for op in BINARY if op.name not in ("maximum", "minimum")])  # these two sit on their kink: see the end
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_binary_of_one_operand_twice(op, shape, rng):
    x = positive(rng, shape)
    verify(lambda t: op.fn(t, t), lambda a: op.oracle(a, a), x)
    verify(lambda t: op.fn(t, op.fn(t, t)), lambda a: op.oracle(a, op.oracle(a, a)), x)


@named(BINARY)
def test_one_operand_may_be_a_plain_array_or_number(op, rng):
    first, second = (domain(rng, (3, 4)) for domain in op.domains)
    verify_double(lambda t: op.fn(t, second), lambda a: op.oracle(a, second), first)
    verify_double(lambda t: op.fn(first, t), lambda a: op.oracle(first, a), second)
    verify(lambda t: op.fn(t, 2), lambda a: op.oracle(a, 2), first)
    verify(lambda t: op.fn(2.5, t), lambda a: op.oracle(2.5, a), second)


@named([op for op in UNARY + BINARY if op.twin])
def test_the_numpy_function_is_the_operation(op, rng):
    arrays = [domain(rng, (3, 4)) for domain in op.domains]
    upstream = anywhere(rng, (3, 4))
    ours, our_grads = gradients_of(op.fn, arrays, upstream)
    numpys, numpy_grads = gradients_of(op.oracle, arrays, upstream)
    assert type(numpys) is Tensor and numpys._node.op == ours._node.op
    for a, b in zip([ours.data, *our_grads], [numpys.data, *numpy_grads]):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("left", "right"), BROADCAST, ids=str)
def test_where(left, right, rng):
    condition = rng.random(np.broadcast_shapes(left, right)) < 0.5
    a, b = anywhere(rng, left), anywhere(rng, right)
    verify(lambda x, y: ops.where(condition, x, y), lambda x, y: np.where(condition, x, y), a, b)
    verify(lambda x, y: np.where(condition, x, y), lambda x, y: np.where(condition, x, y), a, b)


def test_where_broadcasts_its_condition_and_takes_a_tensor_for_it(rng):
    a, condition = anywhere(rng, (3, 1)), np.array([True, False, True, False])
    verify(lambda x: ops.where(condition, x, 0.0), lambda x: np.where(condition, x, 0.0), a)
    verify(lambda x: np.where(x > 0, x, 2 * x), lambda x: np.where(x > 0, x, 2 * x), a)
    verify(lambda x: ops.where(Tensor(condition), x, 0), lambda x: np.where(condition, x, 0.0), a)


def test_both_spellings_of_the_limits_of_clip(rng):
    x = anywhere(rng, (3, 4))
    verify(lambda a: np.clip(a, a_min=-0.5, a_max=0.8), lambda a: np.clip(a, -0.5, 0.8), x)
    verify(lambda a: np.clip(a, None, 0.8), lambda a: np.minimum(a, 0.8), x)
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":  # min= and max= came with it
        verify(lambda a: np.clip(a, min=-0.5, max=0.8), lambda a: np.clip(a, -0.5, 0.8), x)
        verify(lambda a: np.clip(a, max=0.8), lambda a: np.minimum(a, 0.8), x)
        verify(lambda a: np.clip(a, min=-0.5), lambda a: np.maximum(a, -0.5), x)


def test_operators_are_the_operations(rng):
    a, b = positive(rng, (3, 3)), positive(rng, (3, 3))
    verify(lambda x, y: (-x + y - x * y / x) ** 2 @ y, lambda x, y: (-x + y - x * y / x) ** 2 @ y, a, b)
    verify(lambda x: 1 - 2 / x + 3**x, lambda x: 1 - 2 / x + 3**x, a)
    verify_double(lambda x: a - b / x + a**x + b @ x, lambda x: a - b / x + a**x + b @ x, a)
    verify(abs, np.abs, off_zero(rng, (3, 3)))


# ---- reductions ------------------------------------------------------------------------------------------------------

AXES = [None, 0, 1, -1, (0,), (0, 1), (2, 0), (-1, 0), (0, 1, 2), (), np.int64(1)]


REDUCTIONS = {
    "sum": (ops.sum, np.sum),
    "mean": (ops.mean, np.mean),
    "max": (ops.max, np.max),
    "min": (ops.min, np.min),
    "var": (ops.var, np.var),
    "std": (ops.std, np.std),
    "norm": (ops.norm, length),
    "logsumexp": (ops.logsumexp, logsumexp),
}


CASES = [(name, axis) for name in REDUCTIONS for axis in AXES]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(("name", "axis"), CASES, ids=str)
def test_reduction(name, axis, keepdims, rng):
    fn, oracle = REDUCTIONS[name]
    options = {"axis": axis, "keepdims": keepdims}
    verify(lambda x: fn(x, **options), lambda x: oracle(x, **options), anywhere(rng, (2, 3, 4)))


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reduction_reads_any_memory(name, layout, rng):
    fn, oracle = REDUCTIONS[name]
    verify(lambda x: fn(x, axis=0), lambda x: oracle(x, axis=0), LAYOUTS[layout](anywhere(rng, (3, 4))))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_of_a_number_and_to_nothing(name, rng):
    fn, oracle = REDUCTIONS[name]
    verify(fn, oracle, anywhere(rng, ()))
    verify(lambda x: fn(x, axis=1), lambda x: oracle(x, axis=1), anywhere(rng, (0, 3)))


def test_sum_of_nothing_is_zero():
    verify(ops.sum, np.sum, np.zeros((0, 3)))
    verify(lambda x: ops.sum(x, axis=0), lambda x: np.sum(x, axis=0), np.zeros((0, 3)))


@pytest.mark.parametrize("name", ["var", "std"])
@pytest.mark.parametrize("ddof", [1, 2])
@pytest.mark.parametrize("axis", [None, -1, (0, 2), (-1, 1)], ids=str)
def test_var_divides_by_n_minus_ddof(name, ddof, axis, rng):
    fn, oracle = REDUCTIONS[name]
    verify(lambda x: fn(x, axis=axis, ddof=ddof), lambda x: oracle(x, axis=axis, ddof=ddof), anywhere(rng, (3, 3, 4)))


@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name not in ("norm", "logsumexp")])
def test_reduction_as_a_method_and_as_a_numpy_function(name, rng):
    oracle = REDUCTIONS[name][1]
    x = anywhere(rng, (3, 4))
    verify(lambda t: getattr(t, name)(axis=0, keepdims=True), lambda a: oracle(a, axis=0, keepdims=True), x)
    verify(lambda t: oracle(t, axis=-1), lambda a: oracle(a, axis=-1), x)
    verify(lambda t: oracle(t, 1), lambda a: oracle(a, 1), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fn", [np.std, np.linalg.norm], ids=["std", "norm"])
def test_a_length_of_zero_has_a_gradient_of_zero_as_in_pytorch(fn, dtype):
    """Its `std` backward masks where the result is 0, and so does that of `norm`: 0 is a subgradient."""
    rows = np.array([[3.3] * 7, [0.0] * 7, [-1e-3] * 7], dtype) * (fn is np.std)  # the mean of the first is rounded
    rows = np.vstack([rows, np.arange(7)]).astype(dtype)
    for axis, x in ((1, rows), (0, rows.T.copy()), (None, rows[0]), (None, rows[:1, :1])):
        t = Tensor(x, requires_grad=True)
        out = fn(t, axis=axis)
        out.sum().backward()
        assert out.dtype == t.grad.dtype == dtype and np.isfinite(t.grad).all()
        still = t.grad if axis is None else np.delete(t.grad, 3, 1 - axis)
        assert not still.any()
        if axis is not None:  # the row 0 ... 6: mean 3, deviation 2; squares add up to 91
            expected = (np.arange(7) - 3) / (7 * 2) if fn is np.std else np.arange(7) / np.sqrt(91)
            np.testing.assert_allclose(np.take(t.grad, 3, 1 - axis), expected, rtol=1e-6, atol=1e-7)


def test_a_deviation_with_infinity_or_nan_stays_nan():
    with np.errstate(all="ignore"):
        for bad in (np.nan, np.inf):
            assert np.isnan(ops.std(Tensor(np.full(3, bad))).item())
        with pytest.warns(RuntimeWarning, match="Degrees of freedom"):
            assert np.isnan(ops.std(Tensor(np.ones(1)), ddof=1).item())


def test_norm_answers_to_numpys_name(rng):
    x = anywhere(rng, (3, 4))
    for options in ({}, {"axis": 0}, {"axis": (0, 1), "keepdims": True}, {"ord": 2, "axis": -1}, {"ord": "fro"}):
        verify(lambda t, options=options: np.linalg.norm(t, **options),
               lambda a, options=options: np.linalg.norm(a, **options), x)  # fmt: skip
    for wrong in ({"ord": 2}, {"ord": 1, "axis": 0}, {"ord": np.inf}, {"ord": "nuc"}):
        with pytest.raises(TypeError, match=r"ord=.*\nOnly the Euclidean norm has a derivative.*\nLeave ord out"):
            np.linalg.norm(Tensor(x), **wrong)
    with pytest.raises(TypeError, match=r"axis=\(0, 1, 2\)"):
        np.linalg.norm(Tensor(x[None]), axis=(0, 1, 2))


@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name not in ("norm", "logsumexp")])
def test_a_dtype_in_third_place_is_not_taken_for_keepdims(name):
    with pytest.raises(TypeError, match="positional argument"):
        REDUCTIONS[name][1](Tensor(np.ones((2, 2))), 0, np.float64)


@pytest.mark.parametrize("axis", [0, 1, -1, -3], ids=str)
def test_softmax_along_an_axis(axis, rng):
    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)

    x = anywhere(rng, (2, 3, 4))
    verify(lambda t: ops.softmax(t, axis), softmax, x)
    verify(lambda t: ops.log_softmax(t, axis), lambda a: np.log(softmax(a)), x)
    verify(lambda t: ops.softmax(t, axis), softmax, np.zeros((2, 3, 4))[:, :, :2])
