"""Gradient clipping: limit a step before it is taken.

Gradients come as lists of ndarray, `RowSparse` or None (no gradient), and are never written to: who looks at ``.grad``
afterwards sees what backward computed. Row-sparse gradients stay row-sparse; their rows are distinct, so the norm of
their values is the norm of the dense gradient.
"""

from __future__ import annotations

import math

import numpy as np

from ..tensor import RowSparse


def clip_values(gradients, limit):
    """Gradients with every entry limited to [-limit, limit]. NaN stays NaN."""
    return [None if g is None else _map(g, lambda values: np.clip(values, -limit, limit)) for g in gradients]


def clip_norm(gradients, limit):
    """Gradients scaled by one common factor so that their global norm is at most ``limit``.

    Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1. A norm that is not finite
    scales nothing: otherwise one infinite gradient would turn all others into 0 and hide what happened.
    """
    norm = global_norm(gradients)
    if not limit < norm < math.inf:
        return gradients
    return [None if g is None else _map(g, lambda values: values * values.dtype.type(limit / norm)) for g in gradients]


def global_norm(gradients):
    """Euclidean norm of all gradients together, as if they were one long vector."""
    arrays = [g.values if isinstance(g, RowSparse) else g for g in gradients if g is not None]
    norm = math.sqrt(sum(float(np.vdot(a, a)) for a in arrays))
    if norm == math.inf:  # squares of float32 overflow from 1e19 on; those of float64 hardly ever
        norm = math.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays))
    return norm


def _map(gradient, function):
    if isinstance(gradient, RowSparse):
        return RowSparse(gradient.rows, function(gradient.values), gradient.shape)
    return function(gradient)
