"""What travels between two integer layers: uint8, with the scale and zero point that say what they stand for.

A `QuantizedTensor` is a Tensor whose values are computed only if somebody asks for floats. An integer layer takes the
integers and never asks; anything else (an operation of a user's own ``forward``, `numpy`) gets the right floats. So a
model is not wrong where integers end, only slower. Conversion looks for such places (`watch_float_reads`) and lets the
layer before them give floats; `integers_only` raises there. Read ``tensor.py`` and ``affine.py`` before this file.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from ..kernels import dequantize
from ..tensor import Tensor

_integers_only: ContextVar[bool] = ContextVar("minidistill_integers_only", default=False)
_asked: ContextVar[list | None] = ContextVar("minidistill_asked_for_floats", default=None)


class LazyTensor(Tensor):
    """A tensor whose floats are computed anew each time somebody asks for them; ``_like`` is an array of its shape.

    Subclasses define ``_data``, and set ``_like`` and what `Tensor` has besides.
    """

    __slots__ = ()

    shape = property(lambda self: self._like.shape)
    dtype = property(lambda self: np.dtype(np.float32))
    ndim = property(lambda self: self._like.ndim)
    size = property(lambda self: self._like.size)

    def __reduce_ex__(self, protocol):
        """Copies and pickles are plain tensors, off the tape."""
        return Tensor, (self._data,)


class QuantizedTensor(LazyTensor):
    """uint8 numbers q that stand for ``scale * (q - zero_point)``.

    Parameters
    ----------
    q : ndarray of uint8, any shape
    scale : float
    zero_point : int
    maker : Module, optional
        The layer that gave it.
    """

    __slots__ = ("maker", "q", "scale", "zero_point")

    def __init__(self, q, scale, zero_point, maker=None):
        self.q, self.scale, self.zero_point, self.maker = q, scale, zero_point, maker
        self.requires_grad, self.grad, self._node, self._version = False, None, None, None

    _like = property(lambda self: self.q)

    @property
    def _data(self):
        """The floats, computed anew each time."""
        if _integers_only.get():
            raise RuntimeError(
                f"integers of shape {self.q.shape} were turned into floats inside integers_only().\nAn integer layer takes "
                "them as they are; something else asked for floats.\nCall model.eval() first, if there is dropout; else look "
                "at the model's own forward."
            )
        note_float_read(self.maker)
        return dequantize(self.q, np.float32(self.scale), self.zero_point)

    def __reduce_ex__(self, protocol):
        """Copies and pickles are off the tape, like those of any tensor."""
        return QuantizedTensor, (self.q, self.scale, self.zero_point)

    def __repr__(self):
        return f"QuantizedTensor(shape={self.shape}, scale={self.scale:.4g}, zero_point={self.zero_point})"


@contextmanager
def watch_float_reads():
    """The layers whose integers something asked to be floats inside this block, as a list that grows (``as``)."""
    asked = []
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


@contextmanager
def integers_only():
    """Raise, inside this block, where floats appear between two integer layers. For tests of a converted model.

    Raises
    ------
    RuntimeError
        If integers are turned into floats, or a layer that was converted to take integers gets floats.
    """
    token = _integers_only.set(True)
    try:
        yield
    finally:
        _integers_only.reset(token)


def note_float_read(maker):
    """Called where what this layer gave is asked to be floats."""
    if (asked := _asked.get()) is not None:
        asked.append(maker)


def refuse_float_input(layer):
    """Called by an integer layer that gets floats though integer layers come before it."""
    if _integers_only.get():
        raise RuntimeError(
            f"floats reached {layer!r} inside integers_only().\nInteger layers come before it, and what lies between (an "
            "activation other than relu, an operation of the model's own) has no integer form.\n"
            "Use relu there, or accept the way back to float."
        )
