"""Layers that run but do not train: what sparse and integer layers have in common.

They hold plain arrays, no Parameters. Their result still stands on the tape when their input does, for two reasons:
``graph.py`` sees who feeds whom, and a backward pass that arrives here is refused. A gradient that silently ended here
would leave everything below untrained. Layers above such a layer train as usual.

Read ``layers.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from .. import ops
from ..tensor import as_tensor, record
from .layers import Dense, check_name
from .module import Module
from .wrong_input import WrongFeatures


class ForwardOnly(Module):
    """Base of layers that stand in for a `Dense` and only run. Subclasses define ``compute``.

    Parameters
    ----------
    in_features, out_features : int
        K and M.
    activation : str, optional
        As in `Dense`.
    """

    def __init__(self, in_features, out_features, activation=None):
        if min(in_features, out_features) < 1:
            raise ValueError(
                f"{type(self).__name__}({in_features}, {out_features}) was asked for.\nBoth numbers of features are at "
                "least 1.\nSuch a layer is made from a Dense, by converting a model."
            )
        check_name("activation", activation, ops.ACTIVATIONS)
        self.in_features, self.out_features, self.activation = int(in_features), int(out_features), activation

    def compute(self, x):
        """The layer before its activation, on arrays: (N, K) to a new array (N, M)."""
        raise NotImplementedError

    def forward(self, x):
        """x of shape (..., K) to (..., M). A gradient cannot pass."""
        x = as_tensor(x)
        if not x.shape or x.shape[-1] != self.in_features:
            raise WrongFeatures(self, x.shape)
        out = self._activated(x.data.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
        return record(type(self).__name__, out, (x,), self._refuse, saves=())

    def infer(self, x):
        """As in `Dense`."""
        if type(x) is not np.ndarray or x.ndim != 2 or x.shape[1] != self.in_features or x.dtype != np.float32:
            return self(x).numpy()
        return self._activated(x)

    def work_per_row(self):
        """Nothing: sharing rows is left to the kernel."""
        return 0, 0

    def _activated(self, x):
        z = self.compute(x)
        if self.activation == "relu":
            return np.maximum(z, 0, out=z)
        return z if self.activation is None else ops.ACTIVATIONS[self.activation](z)[0]

    def _refuse(self, g):
        raise RuntimeError(
            f"backward reached {self!r}.\nSparse and integer layers only run: no gradient passes through them.\n"
            "Train the float model (its masks hold while it trains), then convert it again."
        )

    def config(self):
        return {"in_features": self.in_features, "out_features": self.out_features, "activation": self.activation}

    def __repr__(self):
        activation = f", activation={self.activation!r}" if self.activation else ""
        return f"{type(self).__name__}({self.in_features}, {self.out_features}{activation})"


def replaceable(model):
    """{path: layer} of the `Dense` layers that another layer can stand in for.

    A subclass with a forward of its own computes something else; it is left out.
    """
    return {p: m for p, m in model.named_modules() if isinstance(m, Dense) and type(m).forward is Dense.forward}


def is_for_training(module):
    """Whether it is a layer of `prepare_qat`, by its method ``converted``: this floor does not know these classes."""
    return callable(getattr(type(module), "converted", None))


def refuse_converted(model, who, order):
    """Say what is wrong with a model in which nothing was found to work on, if that is because it was converted before.

    Parameters
    ----------
    model : Module
    who : str
        The public function.
    order : str
        What to do with the float model instead, in this order.

    Raises
    ------
    ValueError
    """
    for module in model.modules():
        if is_for_training(module):
            raise ValueError(
                f"{who} got a model of quantize.prepare_qat, with {module!r}.\nIts layers become integers when training is "
                f"done, and nothing else.\nWrite quantize.convert(model); or start from the float model: {order}."
            )
        if isinstance(module, ForwardOnly):
            raise ValueError(
                f"{who} got a model that was converted before: it has {module!r}.\nSparse and integer layers only run.\n"
                f"Start from the float model that it was made from: {order}."
            )
