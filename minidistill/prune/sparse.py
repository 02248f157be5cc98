"""Layers that store and run only the weights that are left: where masks become fewer bytes.

Given up for now: a sparse layer only runs, it does not train (``nn/forward_only.py``); and the kernel is simple loops,
so time is saved only where very few weights are left. The `Ledger` tells. Read ``kernels/reference.csr_matmul`` before
this file. Shapes: K inputs, M outputs.
"""

from __future__ import annotations

import numpy as np

from ..kernels import csr_matmul
from ..nn import Mask, replace
from ..nn.forward_only import ForwardOnly, replaceable
from ..nn.serialize import register
from .masks import kept_of


@register
class SparseDense(ForwardOnly):
    """A `Dense` layer in compressed sparse rows, one row for each output (CSR; Saad 2003, section 3.4).

    Parameters
    ----------
    in_features, out_features, activation, bias
        As in `Dense`.
    nonzeros : int
        How many weights are stored.

    Attributes
    ----------
    values : ndarray of float32, shape (nonzeros,)
        The weights that are left, output by output.
    columns : ndarray of uint8, uint16 or uint32, shape (nonzeros,)
        The input that each belongs to.
    row_starts : ndarray of uint8, uint16 or uint32, shape (M + 1,)
        Where each output's weights begin. Both index arrays have the smallest type that holds them.
    bias : ndarray of float32, shape (M,), or None

    Notes
    -----
    Made by `to_sparse`. It computes in the dtype of its input, as `Dense` does, from float32 weights.
    """

    def __init__(self, in_features, out_features, activation=None, bias=True, nonzeros=0):
        super().__init__(in_features, out_features, activation)
        self.values = np.zeros(nonzeros, np.float32)
        self.columns = np.zeros(nonzeros, np.min_scalar_type(in_features - 1))
        self.row_starts = np.zeros(out_features + 1, np.min_scalar_type(nonzeros))
        self.bias = np.zeros(out_features, np.float32) if bias else None

    @classmethod
    def from_dense(cls, dense):
        """The weights of a `Dense` that its mask keeps: all of them, if it has none."""
        kept = kept_of(dense.weight).T  # (M, K)
        outputs, inputs = np.nonzero(kept)
        layer = cls(dense.in_features, dense.out_features, dense.activation, dense.bias is not None, len(outputs))
        layer.values[:] = dense.weight.data.T[outputs, inputs]
        layer.columns[:] = inputs
        layer.row_starts[1:] = np.cumsum(kept.sum(axis=1))
        if dense.bias is not None:
            layer.bias[:] = dense.bias.data
        return layer

    def check(self):
        """Refuse arrays that do not describe a sparse matrix: the kernel trusts them as addresses."""
        starts = self.row_starts.astype(np.int64)
        ordered = starts[0] == 0 and starts[-1] == len(self.columns) and bool((np.diff(starts) >= 0).all())
        if not ordered or (self.columns.size and self.columns.max() >= self.in_features):
            raise ValueError(
                f"{self!r} has row starts or columns that point outside of its weights.\nRow starts ascend from 0 to "
                "the number of weights; columns lie in [0, in_features).\nMake it with prune.to_sparse."
            )

    def compute(self, x):
        """(N, K) to (N, M): the product with the weights that are there, plus the bias."""
        z = csr_matmul(x, self.values, self.columns, self.row_starts)
        if self.bias is not None:
            z += self.bias
        return z

    def config(self):
        return {**super().config(), "bias": self.bias is not None, "nonzeros": len(self.values)}

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        return {"values": (config["nonzeros"],), "row_starts": (config["out_features"] + 1,)}

    def __repr__(self):
        share = 1 - len(self.values) / (self.in_features * self.out_features)
        return f"{super().__repr__()[:-1]}, sparsity={share:.2%})"


def to_sparse(model):
    """A new model whose masked `Dense` layers are stored and run sparse; the model itself is unchanged.

    What is stored is what the masks keep, in float32, a kept weight that happens to be 0 included. Layers without a
    mask, and subclasses of `Dense` with a forward of their own, stay as they are.

    Parameters
    ----------
    model : Module

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        If no layer has a mask.
    """
    twin = model.copy()
    masked = {
        path: layer
        for path, layer in replaceable(twin).items()
        if any(isinstance(c, Mask) for c in layer.weight.constraints)
    }
    if not masked:
        raise ValueError(
            "to_sparse found no masked Dense layer.\nIt stores what masks have left over.\n"
            "Prune first: prune.magnitude(model, sparsity=0.9)."
        )
    for path, layer in masked.items():
        twin = replace(twin, path, SparseDense.from_dense(layer))
    return twin
