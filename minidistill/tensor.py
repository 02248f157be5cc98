"""Tensor and the tape: what a computation remembers so that it can be differentiated.

Every differentiable operation (``ops/``) computes its result on plain arrays and then calls :func:`record`,
which writes one :class:`Node` on the tape: the operation's name, the nodes it came from, and its VJP, the function
that turns the gradient of the result into the gradients of the inputs (vector-Jacobian product; Baydin et al.
2018, "Automatic Differentiation in Machine Learning: a Survey", section 3.2). ``backward`` walks the nodes in
reverse and applies the VJPs. That is all of reverse-mode differentiation; the rest of this file is bookkeeping.

A node refers to other nodes and never to a tensor's values: an intermediate array lives exactly as long as a VJP
(or the user) holds it. Nothing is freed by ``backward``: the tape dies with the last tensor that refers to it.

Read this file first, then ``ops/elementwise.py``. Given up for simplicity: VJPs work on arrays, so gradients of
gradients do not exist; and a tensor holds float32 or float64, nothing else.
"""

from __future__ import annotations

import itertools
import weakref
from contextlib import ContextDecorator
from contextvars import ContextVar
from heapq import heappop, heappush

import numpy as np

from . import checks
from .row_sparse import RowSparse

# Whether operations are recorded, and what rounds their results and gradients, if anything: see ``lab/precision.py``.
tape_mode: ContextVar[tuple] = ContextVar("minidistill_tape_mode", default=(True, None))
_numbers = itertools.count()  # of the nodes, in the order in which they are recorded
_FLOATS = np.dtype(np.float32), np.dtype(np.float64)


class recording(ContextDecorator):
    """Write the operations inside this block on the tape, or do not. For the current thread and context only."""

    def __init__(self, on):
        self.on, self.tokens = on, []

    def __enter__(self):
        self.tokens.append(tape_mode.set((self.on, tape_mode.get()[1])))

    def __exit__(self, *error):
        tape_mode.reset(self.tokens.pop())


def no_grad():
    """Record nothing inside this block. Holds for the current thread and context only; also a decorator."""
    return recording(False)


class Version:
    """How often a piece of memory was changed; shared by all tensors that are views of it.

    Only what can be changed has one: leaves, and views of leaves. The result of an operation is what it computed.
    """

    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


class Node:
    """One recorded operation. A parent is a Node, a leaf Tensor, or None (no gradient wanted)."""

    __slots__ = ("dtype", "number", "op", "parents", "retain_for", "saved", "shape", "vjp")

    def __init__(self, op, parents, vjp, saved, data):
        self.op, self.parents, self.vjp, self.saved = op, parents, vjp, saved
        self.shape, self.dtype, self.retain_for = data.shape, data.dtype, None
        self.number = next(_numbers)

    def input_gradients(self, g):
        """The gradients of this operation's inputs, in order, given the gradient ``g`` of its result."""
        for version, count in self.saved:
            if version.count != count:
                raise RuntimeError(
                    f"backward reached `{self.op}` (result of shape {self.shape}), whose input was changed after it "
                    "was used.\nThe gradient needs the value as it was in the forward pass.\n"
                    "Call backward() before the optimizer step or the assignment, or compute the result again after it."
                )
        if callable(self.vjp):
            return self.vjp(g)
        return [None if p is None else vjp(g) for p, vjp in zip(self.parents, self.vjp)]


class Tensor:
    """An array that remembers how it was computed.

    Parameters
    ----------
    data : array_like
        float64 stays float64; everything else becomes float32. A float array is not copied, so later NumPy writes
        into it show here; they cannot be detected, and a gradient computed across one is wrong.
    requires_grad : bool
        Whether ``backward`` leaves a gradient in ``.grad``.

    Attributes
    ----------
    grad : ndarray, RowSparse or None
        Sum of the gradients of all ``backward`` calls since it was last set to None; shape and dtype of the data
        (a `RowSparse` for an embedding table).

    Notes
    -----
    Operators and NumPy functions work on tensors (``x @ w``, ``np.maximum(h, 0)``). Comparisons give plain boolean
    arrays. Python scalars are weak: ``x * 2.0`` keeps the dtype of ``x``.
    """

    __slots__ = ("__weakref__", "_data", "_node", "_version", "grad", "requires_grad")

    def __init__(self, data, requires_grad=False):
        if isinstance(data, Tensor):
            if data._version is None:  # from here on there is a leaf that looks at this memory
                data._version = Version()
            self._data, self._version = data._data, data._version
        else:
            self._data, self._version = as_float_array(data), Version()
        self.requires_grad, self.grad, self._node = bool(requires_grad), None, None

    @property
    def data(self):
        """The values, an ndarray. Assigning is a counted change: see `assign`."""
        return self._data

    @data.setter
    def data(self, value):
        self.assign(value)

    def assign(self, value):
        """Replace the values of a leaf by a copy of others of the same shape. A backward that needs the old ones raises."""
        value = np.array(
            checks.array("assign", "value", value), self.dtype
        )  # a copy: changes of a Parameter that it came from are not counted here
        if self._node is not None:
            raise RuntimeError(
                f"assigned to the result of `{self._node.op}`.\nOnly leaves (tensors made by hand, parameters) can be "
                "assigned to; a result is what its operation computed.\nMake a new one: md.Tensor(values)."
            )
        if value.shape != self.shape:
            raise ValueError(
                f"assigned an array of shape {value.shape} to a tensor of shape {self.shape}.\nThe shape of a tensor "
                "never changes.\nMake a new one: md.Tensor(values)."
            )
        self._data = value
        self.changed()

    def changed(self):
        """Count one change of the values, as every in-place writer of the engine does."""
        self._version.count += 1

    # ---- looking at it -------------------------------------------------------------------------------------------
    shape = property(lambda self: self._data.shape)
    dtype = property(lambda self: self._data.dtype)
    ndim = property(lambda self: self._data.ndim)
    size = property(lambda self: self._data.size)

    def numpy(self):
        """The values as an ndarray, shared with the tensor and off the tape."""
        return self._data

    def item(self):
        """The single value as a Python float: what to keep of a loss, which itself would keep its whole tape."""
        return self._data.item()

    def detach(self):
        """The same values (shared memory), off the tape."""
        return Tensor(self)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._data, dtype, copy=copy)

    def __float__(self):
        return self.item()

    def __bool__(self):
        return bool(self._data)

    def __format__(self, spec):
        return format(self.item() if spec else str(self), spec)

    def __len__(self):
        return len(self._data)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        values = np.array2string(self._data, separator=", ", prefix="Tensor(", threshold=20, precision=4)
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"{type(self).__name__}({values}, shape={self.shape}, {self.dtype}{grad})"

    def __setitem__(self, index, value):
        raise TypeError(
            f"assigned to part of a tensor of shape {self.shape}.\nA write in place would falsify gradients that were "
            "recorded before it.\nUse np.where(mask, new, x), or build a new array and wrap it: md.Tensor(array)."
        )

    def __reduce_ex__(self, protocol):
        """Copies and pickles are off the tape, which may be long and holds functions: that of a result is a constant."""
        make, arguments, (attributes, slots), *rest = super().__reduce_ex__(protocol)
        is_leaf = self.requires_grad and self._node is None
        return make, arguments, (attributes, slots | {"_node": None, "requires_grad": is_leaf}), *rest

    # ---- differentiation -----------------------------------------------------------------------------------------
    def retain_grad(self):
        """Keep the gradient of this intermediate result in ``.grad`` too. Returns the tensor."""
        if self._node is not None:
            self._node.retain_for = weakref.ref(self)  # weak: a cycle would keep the tape until Python looks for cycles
        return self

    def backward(self, upstream=None):
        """Add the gradient of this tensor to ``.grad`` of every leaf it depends on.

        Parameters
        ----------
        upstream : array_like, optional
            Gradient of some outer scalar with respect to this tensor, of its shape. May be left out for a scalar (1).

        Raises
        ------
        RuntimeError
            If nothing was recorded, if it is not a scalar and no upstream is given, or if a value that the backward
            pass needs was changed after it was used. No ``.grad`` is touched then.

        Notes
        -----
        The tape stays as it is, so backward can be called again; it lives as long as a tensor that was computed on it. A loss
        that is kept keeps it all: 1.2 MiB a step for 784-1200-1200-10 and 128 samples. Keep ``loss.item()`` instead.
        """
        found, handed_out = [], set()
        for end, g in gradients(self, upstream):  # to its end before any .grad is written: an error changes nothing
            tensor = end if isinstance(end, Tensor) else end.retain_for and end.retain_for()
            if tensor is not None:
                found.append((tensor, g))
        for tensor, g in found:
            if tensor.grad is not None:
                tensor.grad = _as_gradient(tensor.grad + g, tensor.dtype)
            else:
                # Two leaves may be handed one array (z = x + y), or a view of another's: each gets its own.
                shared = type(g) is np.ndarray and (g.base is not None or id(g) in handed_out)
                tensor.grad = g.copy() if shared else g
                handed_out.add(id(tensor.grad))


def record(op, data, inputs, vjp, saves=None):
    """Wrap the result of an operation, and put the operation on the tape if anybody wants a gradient.

    Parameters
    ----------
    op : str
        Name, for error messages and `Tensor.explain`.
    data : ndarray
        The result.
    inputs : tuple of Tensor
        What it was computed from.
    vjp : callable or tuple of callable
        One function of the gradient of the result that returns the gradients of all inputs; or a tuple with one
        function for each input, called only for the inputs that want a gradient. Both may return None.
    saves : tuple of Tensor, optional
        The inputs whose *values* the VJP reads (all of them, unless said otherwise): if one is changed before
        backward, backward raises.
    """
    if type(data) is not np.ndarray:
        data = np.asarray(data)
    on, rounded = tape_mode.get()
    if rounded is not None:
        data, vjp = rounded(data, vjp)
    out = Tensor.__new__(Tensor)
    out._data, out.grad, out._node = data, None, None
    out._version = None if data.base is None else _version_of_view(data, inputs)
    out.requires_grad = False
    if on:
        parents = []
        for x in inputs:
            if x.requires_grad:
                parents.append(x._node or x)
                out.requires_grad = True
            else:
                parents.append(None)
        if out.requires_grad:
            if type(vjp) is tuple:  # what nobody will call must not keep its arrays alive
                vjp = tuple([None if parent is None else f for f, parent in zip(vjp, parents)])
            saved = [(v, v.count) for x in (inputs if saves is None else saves) if (v := x._version) is not None]
            out._node = Node(op, parents, vjp, saved, data)
    return out


def _version_of_view(data, inputs):
    """The Version of the input whose memory this array looks at, if it has one: a view shares the fate of its memory."""
    versions = (x._version for x in inputs if x._version is not None and memory_of(x._data) is memory_of(data))
    return next(versions, None)


def gradients(output, upstream):
    """Yield (node or leaf, its complete gradient), from ``output`` back to the leaves.

    The order matters: in ``b = a + a; c = b + b`` the gradient of ``b`` is complete only when *both* of its uses in
    ``c`` have reported. Following every path instead of every node would visit ``a`` four times here, and 2**n times
    in a chain of n such steps. So nodes are taken in a topological order, and the tape was written in one: what uses a
    result is recorded after it. Taking the node with the highest number first reads the tape backwards. A heap and a loop
    do it: recursion would overflow on a deep network.
    """
    g = _check_upstream(output, upstream)
    if output._node is None:
        yield output, g
        return
    waiting, heap, leaves = {id(output._node): g}, [(-output._node.number, output._node)], []
    while heap:
        node = heappop(heap)[1]
        g = waiting.pop(id(node))
        yield node, g
        for parent, gradient in zip(node.parents, node.input_gradients(g if type(g) is np.ndarray else np.asarray(g))):
            if parent is None or gradient is None:
                continue
            is_node = type(parent) is Node
            dtype = parent.dtype if is_node else parent._data.dtype
            if type(gradient) is not np.ndarray or gradient.dtype is not dtype:
                gradient = _as_gradient(gradient, dtype)
            key = id(parent)
            if key in waiting:
                waiting[key] = _as_gradient(waiting[key] + gradient, dtype)
                continue
            waiting[key] = gradient
            if is_node:
                heappush(heap, (-parent.number, parent))
            else:
                leaves.append(parent)
    for leaf in leaves:
        yield leaf, waiting[id(leaf)]


def _as_gradient(g, dtype):
    """NumPy's arithmetic on zero-dimensional arrays gives scalars; a gradient is an array (or a RowSparse) always."""
    return g.astype(dtype, copy=False) if isinstance(g, RowSparse) else np.asarray(g, dtype)


def _check_upstream(output, upstream):
    if not output.requires_grad:
        raise RuntimeError(
            f"backward() was called on a tensor of shape {output.shape} that records nothing.\nAt least one input must "
            "have requires_grad=True, outside of md.no_grad().\nMake the inputs md.Tensor(array, requires_grad=True)."
        )
    if upstream is None:
        if output._data.size != 1:
            raise RuntimeError(
                f"backward() was called on a tensor of shape {output.shape}.\nOnly a scalar has a gradient without an "
                "upstream one.\nReduce it first, x.sum().backward(), or pass x.backward(upstream) of its shape."
            )
        g = np.empty(output._data.shape, output._data.dtype)
        g.fill(1)
        return g
    upstream = np.array(
        checks.array("backward", "upstream", upstream), output.dtype
    )  # a copy: it may end up as somebody's .grad
    if upstream.shape != output.shape:
        raise ValueError(
            f"backward(upstream) got shape {upstream.shape} for a tensor of shape {output.shape}.\n"
            "The two must be equal.\nBroadcast it first: np.broadcast_to(upstream, x.shape)."
        )
    return upstream


def as_float_array(value, dtype=None):
    """``value`` as an ndarray of float32 or float64; what is not floating becomes ``dtype`` (float32)."""
    if type(value) is np.ndarray and value.dtype in _FLOATS:
        return value
    if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) and part.requires_grad for part in value):
        raise TypeError(
            f"a Tensor was made from a {type(value).__name__} of {len(value)} with Tensors in it.\nTheir gradients would "
            "end here without a word.\nJoin them on the tape: ops.stack(parts), or ops.concatenate(parts, axis=-1)."
        )
    array = checks.array("a Tensor", "x", value)
    if array.dtype in _FLOATS:
        # A Python float, or a list of them, is no wish for double precision: only an array is.
        return array if isinstance(value, (np.ndarray, np.generic)) else array.astype(dtype or np.float32)
    if array.dtype.kind not in "fiub":
        what, cure = f"data of dtype {array.dtype}", "Convert the data first: np.asarray(data, np.float32)."
        if value is None:
            what, cure = "None", "A function without return gives None: end the forward of each layer in return."
        raise TypeError(f"a Tensor was made from {what}.\nIt holds float32 or float64 numbers.\n{cure}")
    return array.astype(dtype or np.float32)


def as_tensor(value, like=None):
    """``value`` as a Tensor; what is not floating takes the dtype of the tensor ``like``."""
    if isinstance(value, Tensor):
        return value
    if like is not None and isinstance(value, (int, float)):  # Python scalars are weak
        value = np.asarray(value, like.dtype)
    return Tensor(value if like is None else as_float_array(value, like.dtype))


def memory_of(array):
    """The array that owns the memory which ``array`` looks at."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
