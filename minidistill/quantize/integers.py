"""What travels between two integer layers: uint8, with the scale and zero point that say what they stand for.

A `QuantizedTensor` is a Tensor whose values are computed only if somebody asks for floats. An integer layer takes the
integers and never asks; anything else (an operation of a user's own ``forward``, `numpy`) gets the right floats. So a
model cannot become wrong where integers end, only slower; `integers_only` finds such places. Read ``tensor.py`` and
``affine.py`` before this file.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from ..kernels import dequantize
from ..tensor import Tensor

_integers_only: ContextVar[bool] = ContextVar("minidistill_integers_only", default=False)


class QuantizedTensor(Tensor):
    """uint8 numbers q that stand for ``scale * (q - zero_point)``.

    Parameters
    ----------
    q : ndarray of uint8, any shape
    scale : float
    zero_point : int
    """

    __slots__ = ("q", "scale", "zero_point")

    def __init__(self, q, scale, zero_point):
        self.q, self.scale, self.zero_point = q, scale, zero_point
        self.requires_grad, self.grad, self._node, self._version = False, None, None, None

    @property
    def _data(self):
        """The floats, computed anew each time."""
        if _integers_only.get():
            raise RuntimeError(
                f"integers of shape {self.q.shape} were turned into floats inside integers_only().\nAn integer layer takes "
                "them as they are; something else asked for floats.\nConvert the model again, or look at its forward."
            )
        return dequantize(self.q, np.float32(self.scale), self.zero_point)

    shape = property(lambda self: self.q.shape)
    dtype = property(lambda self: np.dtype(np.float32))
    ndim = property(lambda self: self.q.ndim)
    size = property(lambda self: self.q.size)

    def __repr__(self):
        return f"QuantizedTensor(shape={self.shape}, scale={self.scale:.4g}, zero_point={self.zero_point})"


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


def floats_arrived(layer):
    """Called by an integer layer that gets floats though integer layers come before it."""
    if _integers_only.get():
        raise RuntimeError(
            f"floats reached {layer!r} inside integers_only().\nInteger layers come before it, and what lies between (an "
            "activation other than relu, an operation of the model's own) has no integer form.\n"
            "Use relu there, or accept the way back to float."
        )
