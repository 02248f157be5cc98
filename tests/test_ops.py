"""Every operation against NumPy, and its gradient against central differences and a random projection.

The tests are made from the tables below: an operation, the NumPy function that says what it computes, and where its
arguments lie (away from kinks: what happens on one is tested by name at the end). `verify` holds the laws.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

import minidistill as md
from minidistill import Tensor, ops
from minidistill.testing import check_gradients, check_vjp

# ---- the laws --------------------------------------------------------------------------------------------------------


def gradients_of(fn, arrays, upstream):
    """(result, gradients) of an operation on these arrays."""
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    out = fn(*tensors)
    out.backward(upstream)
    return out, [t.grad for t in tensors]


def assert_near(actual, expected, digits):
    """Equal to so many digits of the largest number."""
    scale = np.max(np.abs(expected), initial=0)
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=10.0**-digits, atol=10.0**-digits * scale)


def verify(fn, oracle, *arrays):
    """Value, gradient, dtypes, both precisions, and that nothing is written to."""
    before = [a.copy() for a in arrays]
    upstream = np.random.default_rng(1).standard_normal(np.shape(oracle(*arrays)))
    out, grads = gradients_of(fn, arrays, upstream)
    assert type(out) is Tensor and type(out.data) is np.ndarray
    assert_near(out.data, oracle(*arrays), 13)
    check_gradients(fn, *arrays)
    check_vjp(fn, *arrays)

    small = [a.astype(np.float32) for a in arrays]
    out32, grads32 = gradients_of(fn, small, upstream)
    out64, grads64 = gradients_of(fn, [a.astype(np.float64) for a in small], upstream.astype(np.float32))
    for single, double in zip([out32.data, *grads32], [out64.data, *grads64]):
        assert single.dtype == np.float32 and double.dtype == np.float64
        assert_near(single, double, 5)
    for g, a, copy in zip(grads, arrays, before):
        assert type(g) is np.ndarray and not np.shares_memory(g, a)
        np.testing.assert_array_equal(a, copy)


# ---- where arguments lie, and how ------------------------------------------------------------------------------------


def anywhere(rng, shape):
    return rng.standard_normal(shape)


def positive(rng, shape):
    return rng.uniform(0.3, 2.0, shape)


def off_zero(rng, shape):
    return rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def _read_only(a):
    a = a.copy()
    a.setflags(write=False)
    return a


# The same values in other memory.
LAYOUTS = {
    "C order": lambda a: a,
    "Fortran order": lambda a: a.copy("F"),
    "every second of a larger one": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "read-only": _read_only,
    "inner axis repeated": lambda a: np.broadcast_to(a[..., :1], a.shape) if a.ndim else a,
}
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


def erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


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
    verify(lambda t: op.fn(t, second), lambda a: op.oracle(a, second), first)
    verify(lambda t: op.fn(first, t), lambda a: op.oracle(first, a), second)
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


def test_operators_are_the_operations(rng):
    a, b = positive(rng, (3, 3)), positive(rng, (3, 3))
    verify(lambda x, y: (-x + y - x * y / x) ** 2 @ y, lambda x, y: (-x + y - x * y / x) ** 2 @ y, a, b)
    verify(lambda x: 1 - 2 / x + 3**x, lambda x: 1 - 2 / x + 3**x, a)
    verify(lambda x: a - b / x + a**x + b @ x, lambda x: a - b / x + a**x + b @ x, a)
    verify(abs, np.abs, off_zero(rng, (3, 3)))


# ---- reductions ------------------------------------------------------------------------------------------------------

AXES = [None, 0, 1, -1, (0,), (0, 1), (2, 0), (-1, 0), (0, 1, 2), (), np.int64(1)]


def logsumexp(x, axis=None, keepdims=False):
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


REDUCTIONS = {
    "sum": (ops.sum, np.sum),
    "mean": (ops.mean, np.mean),
    "max": (ops.max, np.max),
    "min": (ops.min, np.min),
    "var": (ops.var, np.var),
    "std": (ops.std, np.std),
    "logsumexp": (ops.logsumexp, logsumexp),
}


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name, axis, keepdims, rng):
    if name == "std" and axis == ():
        pytest.skip("the deviation of one number is 0, where the square root has no derivative")
    fn, oracle = REDUCTIONS[name]
    options = {"axis": axis, "keepdims": keepdims}
    verify(lambda x: fn(x, **options), lambda x: oracle(x, **options), anywhere(rng, (2, 3, 4)))


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reduction_reads_any_memory(name, layout, rng):
    if layout == "inner axis repeated" and name in ("max", "min"):
        pytest.skip("equal elements: a kink, see the end")
    fn, oracle = REDUCTIONS[name]
    verify(lambda x: fn(x, axis=0), lambda x: oracle(x, axis=0), LAYOUTS[layout](anywhere(rng, (3, 4))))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_of_a_number_and_to_nothing(name, rng):
    fn, oracle = REDUCTIONS[name]
    if name != "std":
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


@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name != "logsumexp"])
def test_reduction_as_a_method_and_as_a_numpy_function(name, rng):
    fn, oracle = REDUCTIONS[name]
    x = anywhere(rng, (3, 4))
    verify(lambda t: getattr(t, name)(axis=0, keepdims=True), lambda a: oracle(a, axis=0, keepdims=True), x)
    verify(lambda t: oracle(t, axis=-1), lambda a: oracle(a, axis=-1), x)
    verify(lambda t: oracle(t, 1), lambda a: oracle(a, 1), x)


@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name != "logsumexp"])
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


# ---- moving elements -------------------------------------------------------------------------------------------------

MOVES = [
    ("reshape", (2, 6), lambda f, x: f.reshape(x, (3, 4))),
    ("reshape -1", (2, 6), lambda f, x: f.reshape(x, (-1, 3))),
    ("reshape to a number", (1, 1), lambda f, x: f.reshape(x, ())),
    ("reshape nothing", (0, 6), lambda f, x: f.reshape(x, (3, 0, 2))),
    ("transpose", (2, 3, 4), lambda f, x: f.transpose(x)),
    ("transpose axes", (2, 3, 4), lambda f, x: f.transpose(x, (1, 2, 0))),
    ("transpose negative axes", (2, 3, 4), lambda f, x: f.transpose(x, (-1, 0, 1))),
    ("transpose mixed axes", (2, 3, 4), lambda f, x: f.transpose(x, (0, -1, 1))),
    ("transpose a number", (), lambda f, x: f.transpose(x, ())),
    ("swapaxes", (2, 3, 4), lambda f, x: f.swapaxes(x, 0, -1)),
    ("expand_dims", (2, 3), lambda f, x: f.expand_dims(x, -2)),
    ("expand_dims twice", (2, 3), lambda f, x: f.expand_dims(x, (0, -1))),
    ("squeeze", (1, 3, 1), lambda f, x: f.squeeze(x)),
    ("squeeze one", (1, 3, 1), lambda f, x: f.squeeze(x, -1)),
    ("squeeze two", (1, 3, 1), lambda f, x: f.squeeze(x, (0, 2))),
    ("broadcast_to", (3, 1), lambda f, x: f.broadcast_to(x, (2, 3, 4))),
    ("broadcast_to nothing", (1, 3), lambda f, x: f.broadcast_to(x, (0, 3))),
]


@pytest.mark.parametrize(("shape", "move"), [m[1:] for m in MOVES], ids=[m[0] for m in MOVES])
def test_moves(shape, move, rng):
    x = anywhere(rng, shape)
    for layout in LAYOUTS.values():
        verify(lambda t: move(ops, t), lambda a: move(np, a), layout(x))
        verify(lambda t: move(np, t), lambda a: move(np, a), layout(x))


def test_moves_as_methods(rng):
    x = anywhere(rng, (2, 3, 4))
    for move in (
        lambda t: t.T,
        lambda t: t.transpose(),
        lambda t: t.transpose(2, 0, 1),
        lambda t: t.transpose((2, 0, 1)),
        lambda t: t.transpose([0, -1, 1]),
        lambda t: t.reshape(6, 4),
        lambda t: t.reshape((6, -1)),
        lambda t: t.reshape([6, -1]),
        lambda t: t.swapaxes(0, 1),
        lambda t: t[:, :1].squeeze(1),
        np.ravel,
    ):
        verify(move, move, x)


INDICES = [
    0, -1, np.int64(2), slice(1, 3), slice(None, None, -2), slice(4, 4), None, ..., (0, 1), (0, 1, 2), (slice(None), 2),
    (..., 1), (None, 0, ..., None), (slice(None), None, 1), [0, 0, 2], [-1, 3, -1], [], np.array([[0, 1], [1, 1]]),
    np.array(2), np.array([], int), range(2), ([0, 0, 1], [1, 1, 4]), ((0, 0, 1), (1, 1, 4)), ((0, 0, 1),),
    (slice(None), [3, 3, 0]), ([0, 0], slice(None), [1, 1]), (0, slice(None), [1, 1]), ([1, 1], 0, ...),
    (np.array([[0], [0]]), np.array([1, 1, 2])), (None, [0, 0]), (..., [0, 2, 2], 1), np.arange(4) > 1,
    np.zeros(4, bool), np.arange(20).reshape(4, 5) % 3 == 0, (slice(None), np.arange(5) > 2), (np.arange(4) > 1, [0, 0]),
    (np.arange(4) > 0, 1, [0, 0, 2]), True, (np.bool_(False),), (Ellipsis, np.arange(3) > 0),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=lambda index: str(index).replace("\n", ""))
def test_indexing_as_numpy_does(index, rng):
    verify(lambda t: t[index], lambda a: a[index], anywhere(rng, (4, 5, 3)))


def test_repeated_ids_accumulate():
    x = Tensor(np.zeros((3, 2)), requires_grad=True)
    x[[1, 1, 1, 0]].sum().backward()
    np.testing.assert_array_equal(x.grad, [[1, 1], [3, 3], [0, 0]])
    np.testing.assert_array_equal(md.grad(lambda t: t[((1, 1),)].sum())(np.zeros((3, 2))), [[0, 0], [2, 2], [0, 0]])


def test_indexing_with_a_tensor_raises():
    x = Tensor(np.zeros(3))
    with pytest.raises(
        TypeError, match=r"indexed with a Tensor of shape \(2,\)\.\nIts values are floating.*\nIndex with"
    ):
        x[Tensor([0, 1])]
    with pytest.raises(TypeError, match="indexed with a Tensor"):
        x[None, Tensor([0, 1])]


@pytest.mark.parametrize("axis", [0, 1, -1], ids=str)
def test_take(axis, rng):
    ids = np.array([[0, 1], [1, 1]])
    verify(lambda t: np.take(t, ids, axis), lambda a: np.take(a, ids, axis), anywhere(rng, (3, 4)))
    verify(lambda t: np.take(t, ids), lambda a: np.take(a, ids), anywhere(rng, (3, 4)))  # of all elements in a row


@pytest.mark.parametrize("axis", [0, 1, -1, -2], ids=str)
def test_concatenate_and_stack(axis, rng):
    a, b, c = (anywhere(rng, (2, 3)) for _ in range(3))
    for join in ("concatenate", "stack"):
        ours, numpys = getattr(ops, join), getattr(np, join)
        verify(lambda x, y, z: ours([x, y, z], axis), lambda x, y, z: numpys([x, y, z], axis), a, b, c)
        verify(lambda x, y: numpys((x, b, y), axis=axis), lambda x, y: numpys((x, b, y), axis=axis), a, c)
        verify(lambda x: ours((t for t in [x, x])), lambda x: numpys([x, x]), a)


def test_concatenate_different_lengths_and_nothing(rng):
    parts = [anywhere(rng, (n, 3)) for n in (2, 0, 1)]
    verify(lambda *t: ops.concatenate(t), lambda *a: np.concatenate(a), *parts)
    verify(lambda *t: ops.concatenate(t, axis=-1), lambda *a: np.concatenate(a, axis=-1), *[p.T for p in parts])


def test_stack_of_numbers(rng):
    verify(
        lambda x, y: ops.stack([x, y, 1.0]), lambda x, y: np.stack([x, y, 1.0]), anywhere(rng, ()), anywhere(rng, ())
    )


@pytest.mark.parametrize("axis", [0, 1, -1], ids=str)
@pytest.mark.parametrize("sections", [1, 2, [1], [1, 3], [-1], [2, 2], [3, 1], [0, 9], np.array([1, 2])], ids=str)
def test_split(sections, axis, rng):
    x = anywhere(rng, (4, 6))
    parts = ops.split(Tensor(x), sections, axis)
    expected = np.split(x, sections, axis)
    assert [p.shape for p in parts] == [p.shape for p in expected]
    for ours, numpys in zip(parts, expected):
        np.testing.assert_array_equal(ours.data, numpys)
    check_gradients(lambda t: ops.split(t, sections, axis), x)
    check_vjp(lambda t: np.split(t, sections, axis), x)


def test_split_of_nothing_and_unequal():
    assert [p.shape for p in ops.split(Tensor(np.zeros((0, 2))), 2)] == [(0, 2), (0, 2)]
    with pytest.raises(ValueError, match="equal division"):
        ops.split(Tensor(np.zeros(5)), 2)


# ---- products --------------------------------------------------------------------------------------------------------

PRODUCTS = [
    ((3, 4), (4, 2)), ((4,), (4,)), ((4,), (4, 2)), ((3, 4), (4,)), ((2, 3, 4), (4,)), ((4,), (2, 4, 3)),
    ((2, 3, 4), (4, 2)), ((3, 4), (2, 4, 2)), ((2, 3, 4), (2, 4, 2)), ((1, 3, 4), (5, 4, 2)), ((5, 1, 3, 4), (2, 4, 1)),
    ((0, 4), (4, 2)), ((3, 0), (0, 2)), ((0,), (0,)), ((2, 0, 4), (4,)), ((0, 3, 4), (4, 2)), ((3, 4), (0, 4, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), PRODUCTS, ids=str)
def test_matmul(left, right, rng):
    verify(ops.matmul, np.matmul, anywhere(rng, left), anywhere(rng, right))
    verify(np.matmul, np.matmul, anywhere(rng, left), anywhere(rng, right))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matmul_reads_any_memory(layout, rng):
    a, b = anywhere(rng, (3, 4)), anywhere(rng, (4, 3))
    verify(ops.matmul, np.matmul, LAYOUTS[layout](a), b)
    verify(ops.matmul, np.matmul, a, LAYOUTS[layout](b))
    verify(lambda x: x @ x, lambda x: x @ x, LAYOUTS[layout](a[:, :3]))
    verify(lambda x: x @ x.T, lambda x: x @ x.T, LAYOUTS[layout](a))


@pytest.mark.parametrize(("left", "right"), [((), (3, 4)), ((3,), ()), ((), ()), *PRODUCTS[:7]], ids=str)
def test_dot(left, right, rng):
    verify(np.dot, np.dot, anywhere(rng, left), anywhere(rng, right))


def test_dot_of_stacks_raises_because_it_is_not_matmul():
    with pytest.raises(TypeError, match=r"np\.dot .* \(2, 3, 4\) and \(2, 4, 2\)\.\n.*\n.*a @ b"):
        np.dot(Tensor(np.zeros((2, 3, 4))), np.zeros((2, 4, 2)))


ORACLES = {
    None: lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "gelu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
    "gelu_tanh": gelu_tanh,
    "softplus": lambda z: np.log(1 + np.exp(z)),
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True),
    "log_softmax": lambda z: z - logsumexp(z, axis=-1, keepdims=True),
}


def test_every_activation_has_an_oracle():
    assert set(ORACLES) == {None, *ops.ACTIVATIONS}


@pytest.mark.parametrize("activation", ORACLES, ids=str)
@pytest.mark.parametrize("shape", [(5, 4), (4,), (2, 3, 4), (0, 4), (2, 0, 4), (1, 4)], ids=str)
def test_dense(activation, shape, rng):
    x, w, b = anywhere(rng, shape), anywhere(rng, (4, 3)), anywhere(rng, 3)
    oracle = ORACLES[activation]
    verify(lambda x, w, b: ops.dense(x, w, b, activation), lambda x, w, b: oracle(x @ w + b), x, w, b)
    verify(lambda x, w: ops.dense(x, w, None, activation), lambda x, w: oracle(x @ w), x, w)


def test_dense_without_inputs_is_its_bias(rng):
    verify(ops.dense, lambda x, w, b: x @ w + b, np.zeros((5, 0)), np.zeros((0, 3)), anywhere(rng, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_reads_any_memory(layout, rng):
    x, w, b = (LAYOUTS[layout](anywhere(rng, shape)) for shape in [(5, 4), (4, 3), (3,)])
    verify(lambda *t: ops.dense(*t, "tanh"), lambda x, w, b: np.tanh(x @ w + b), x, w, b)


def test_dense_with_plain_arrays_and_frozen_parts(rng):
    x, w, b = anywhere(rng, (5, 4)), anywhere(rng, (4, 3)), anywhere(rng, 3)
    verify(lambda x: ops.dense(x, w, b, "tanh"), lambda x: np.tanh(x @ w + b), x)
    verify(lambda w: ops.dense(x, w, b, "tanh"), lambda w: np.tanh(x @ w + b), w)
    verify(lambda b: ops.dense(x, w, b, "tanh"), lambda b: np.tanh(x @ w + b), b)
    verify(lambda w: ops.dense(w, w), lambda w: w @ w, anywhere(rng, (3, 3)))


@pytest.mark.parametrize("ids", [[0, 2, 2], 1, [[4, 4], [4, 0]], np.zeros((0,), int), np.zeros((2, 0), int)], ids=str)
def test_embedding_is_indexing_with_a_sparse_gradient(ids, rng):
    ids, table = np.asarray(ids), anywhere(rng, (5, 3))
    upstream = anywhere(rng, (*ids.shape, 3))
    looked_up, (sparse,) = gradients_of(lambda t: ops.embedding(t, ids), [table], upstream)
    indexed, (dense,) = gradients_of(lambda t: t[ids], [table], upstream)
    np.testing.assert_array_equal(looked_up.data, indexed.data)
    assert isinstance(sparse, md.RowSparse) and sparse.shape == (5, 3) and sparse.dtype == np.float64
    np.testing.assert_array_equal(sparse.rows, np.unique(ids))
    np.testing.assert_allclose(np.asarray(sparse), dense, rtol=1e-15, atol=0)
    check_gradients(lambda t: ops.embedding(t, ids), table)


def test_embedding_of_a_computed_table_and_of_a_table_used_twice(rng):
    table, ids = anywhere(rng, (5, 3)), np.array([1, 1, 4])
    check_gradients(lambda t: ops.embedding(2 * t, ids), table)
    check_gradients(lambda t: ops.embedding(t, ids) * ops.embedding(t, ids[::-1]), table)
    check_gradients(lambda t: ops.embedding(t, ids) @ t.T, table)  # a sparse gradient and a dense one, in both orders
    check_gradients(lambda t: t[:3] @ ops.embedding(t, ids).T, table)
    tensor = Tensor(table.astype(np.float32), requires_grad=True)
    ops.embedding(tensor, ids).sum().backward()
    assert tensor.grad.dtype == np.float32


def test_embedding_ids_outside_of_the_table_raise():
    for ids in ([-1], [5], [0, 7]):
        with pytest.raises(IndexError, match=r"^embedding .* \(5, 3\).*\nIds must lie in \[0, 5\)\.\n"):
            ops.embedding(np.zeros((5, 3)), ids)


def test_dropout_scales_what_it_keeps_and_passes_the_gradient_there(rng):
    x = off_zero(rng, (40, 50))
    out, (grad,) = gradients_of(lambda t: ops.dropout(t, 0.25, rng=3), [x], np.ones((40, 50)))
    kept = out.data != 0
    np.testing.assert_allclose(out.data[kept], x[kept] / 0.75, rtol=1e-15)
    np.testing.assert_allclose(grad, kept / 0.75, rtol=1e-15)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / x.size)  # four standard deviations
    check_gradients(lambda t: ops.dropout(t, 0.25, rng=3), x[:3, :4])
    np.testing.assert_array_equal(ops.dropout(x, 0.0, rng=3).data, x.astype(np.float64))
    np.testing.assert_array_equal(ops.dropout(x, 1.0, rng=3).data, 0 * x)
    assert ops.dropout(x.astype(np.float32), 0.5, rng=0).dtype == np.float32
    assert ops.dropout(Tensor(2.0), 0.5, rng=0).item() in (0.0, 4.0)
    assert ops.dropout(np.zeros((0, 3)), 0.5, rng=0).shape == (0, 3)


# ---- on a kink, at the edge, far out ---------------------------------------------------------------------------------


def slope(fn, *points):
    """The gradients of a sum of fn at these points, as lists."""
    grads = gradients_of(lambda *t: ops.sum(fn(*t)), [np.array(p, np.float64) for p in points], None)[1]
    return [g.tolist() for g in grads]


def test_kinks_are_where_the_docstrings_say():
    assert slope(ops.relu, [0.0, -0.0]) == [[0, 0]]
    assert slope(ops.absolute, [0.0]) == [[0]]
    assert slope(lambda x: ops.clip(x, -1, 1), [-1.0, 1.0, 1.5]) == [[1, 1, 0]]
    assert slope(ops.maximum, [1.0, 2.0], [1.0, 3.0]) == [[0.5, 0], [0.5, 1]]
    assert slope(ops.minimum, [1.0, 2.0], [1.0, 3.0]) == [[0.5, 1], [0.5, 0]]
    assert slope(lambda x: ops.maximum(x, x), [1.0]) == [[1]]
    assert slope(ops.max, [3.0, 1.0, 3.0, 3.0]) == [[1 / 3, 0, 1 / 3, 1 / 3]]
    assert slope(lambda x: ops.min(x, axis=1), [[1.0, 1.0], [2.0, 1.0]]) == [[[0.5, 0.5], [0, 1]]]
    assert slope(lambda x: ops.max(x, axis=(0, 1)), [[1.0, 1.0], [0.0, 1.0]]) == [[[1 / 3, 1 / 3], [0, 1 / 3]]]


def test_power_at_its_corners():
    assert slope(lambda x: x**0, [0.0, -2.0, 3.0]) == [[0, 0, 0]]
    assert slope(lambda x: x**1, [0.0, -2.0, 3.0]) == [[1, 1, 1]]
    assert slope(lambda x: x**2, [0.0, -2.0, 3.0]) == [[0, -4, 6]]
    assert slope(lambda x: x**3, [0.0, -2.0]) == [[0, 12]]
    assert slope(lambda x: x**-1, [-2.0, 0.5]) == [[-0.25, -4]]
    assert slope(ops.power, [0.0, 0.0, -2.0], [0.0, 2.0, 2.0]) == [[0, 0, -4], [0, 0, 0]]
    assert slope(lambda y: 2**y, [0.0]) == [[math.log(2)]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_out_values_are_right_and_silent(dtype):
    x = np.array([-1e4, 0, 1e4], dtype)
    for fn, value, gradient in [
        (ops.sigmoid, [0, 0.5, 1], [0, 0.25, 0]),
        (ops.tanh, [-1, 0, 1], [0, 1, 0]),
        (ops.softplus, [0, np.log(2), 1e4], [0, 0.5, 1]),
        (ops.gelu, [0, 0, 1e4], [0, 0.5, 1]),
        (lambda t: ops.gelu(t, "tanh"), [0, 0, 1e4], [0, 0.5, 1]),
        (ops.logsumexp, 1e4, [0, 0, 1]),
    ]:
        out, (grad,) = gradients_of(fn, [x], np.ones(np.shape(value)))
        np.testing.assert_allclose(out.data, np.array(value, dtype), rtol=1e-6, atol=0)
        np.testing.assert_allclose(grad, np.array(gradient, dtype), rtol=1e-6, atol=0)
    upstream = np.array([1.0, 2.0, 4.0])
    out, (grad,) = gradients_of(ops.softmax, [x], upstream)
    assert out.data.tolist() == [0, 0, 1] and grad.tolist() == [0, 0, 0]
    out, (grad,) = gradients_of(ops.log_softmax, [x], upstream)
    assert out.data.tolist() == [-2e4, -1e4, 0] and grad.tolist() == [1, 2, -3]


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1)], ids=str)
def test_logsumexp_of_minus_infinity(axis):
    """The empty sum in logarithms: as NumPy's log(sum(exp)), but silent, and without a gradient of NaN."""
    x = np.array([[-np.inf, -np.inf], [-np.inf, 1.0]])
    with np.errstate(divide="ignore"):
        expected = logsumexp(x, axis=axis)
    out, (grad,) = gradients_of(lambda t: ops.logsumexp(t, axis), [x], np.ones(np.shape(expected)))
    np.testing.assert_array_equal(out.data, expected)
    np.testing.assert_array_equal(grad, [[0, 0], [0, 1]])
    assert ops.logsumexp(np.full(3, -np.inf)).item() == -np.inf
    assert ops.logsumexp(np.array([0.0, np.inf])).item() == np.inf


def test_a_masked_softmax_gives_masked_classes_nothing():
    x = np.array([1.0, -np.inf, 1.0])
    out, (grad,) = gradients_of(ops.softmax, [x], np.array([1.0, 5.0, 0.0]))
    assert out.data.tolist() == [0.5, 0, 0.5] and grad.tolist() == [0.25, 0, -0.25]
    out, (grad,) = gradients_of(ops.log_softmax, [x], np.array([1.0, 0.0, 0.0]))
    assert out.data.tolist() == [-math.log(2), -np.inf, -math.log(2)] and grad.tolist() == [0.5, 0, -0.5]


def test_log1p_keeps_small_numbers():
    assert ops.log1p(np.float32(1e-10)).item() == np.float32(1e-10)


def test_nan_and_infinity_pass_through():
    x = np.array([np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(ops.relu(x).data, [np.nan, np.inf, 0])
    np.testing.assert_array_equal(np.maximum(Tensor(x), 0).data, [np.nan, np.inf, 0])
    np.testing.assert_array_equal(ops.sigmoid(x).data, [np.nan, 1, 0])
    np.testing.assert_array_equal(ops.tanh(x).data, [np.nan, 1, -1])
    np.testing.assert_array_equal(ops.softplus(x).data, [np.nan, np.inf, 0])
    np.testing.assert_array_equal(ops.clip(x, -1, 1).data, [np.nan, 1, -1])
