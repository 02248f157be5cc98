"""Layers that store and run only the weights that are left: where masks become fewer bytes.

Given up for now: a sparse layer is for inference, it is not on the tape; and the kernel is simple loops, so time is saved
only where very few weights are left. The `Ledger` tells. Read ``kernels/reference.csr_matmul`` before this file.
"""

from __future__ import annotations

import numpy as np

from .. import ops
from ..kernels import csr_matmul
from ..nn import Dense, Mask, Module, replace
from ..nn.serialize import register
from ..tensor import Tensor


@register
class SparseDense(Module):
    """A `Dense` layer in compressed sparse rows, one row for each output (CSR; Saad 2003, section 3.4).

    Attributes
    ----------
    values : ndarray of float32, shape (nonzeros,)
        The weights that are left, output by output.
    columns : ndarray of uint16 or uint32, shape (nonzeros,)
        The input that each belongs to; the smallest type that can count the inputs.
    row_starts : ndarray of uint32, shape (out_features + 1,)
        Where each output's weights begin.
    bias : ndarray, shape (out_features,), or None
    """

    def __init__(self, in_features, out_features, activation=None, bias=True, nonzeros=0):
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        self.values = np.zeros(nonzeros, np.float32)
        self.columns = np.zeros(nonzeros, np.uint16 if in_features <= 2**16 else np.uint32)
        self.row_starts = np.zeros(out_features + 1, np.uint32)
        self.bias = np.zeros(out_features, np.float32) if bias else None

    @classmethod
    def from_dense(cls, dense):
        """The weights of a `Dense` that its mask keeps (all that are not zero, if it has no mask)."""
        weight = dense.weight.data.T  # (out, in): a row for each output
        mask = next((c.kept.T for c in dense.weight.constraints if isinstance(c, Mask)), weight != 0)
        layer = cls(dense.in_features, dense.out_features, dense.activation, dense.bias is not None, int(mask.sum()))
        rows, columns = np.nonzero(mask)
        layer.values = weight[rows, columns]
        layer.columns = columns.astype(layer.columns.dtype)
        layer.row_starts = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.uint32)
        layer.bias = None if dense.bias is None else dense.bias.data.copy()
        return layer

    def check(self):
        """Refuse arrays that do not describe a sparse matrix: the kernel trusts them as addresses."""
        starts = self.row_starts.astype(np.int64)
        ordered = starts[0] == 0 and starts[-1] == len(self.columns) and bool((np.diff(starts) >= 0).all())
        if not ordered or (self.columns.size and self.columns.max() >= self.in_features):
            raise ValueError(
                f"{self!r} has row starts or columns that point outside of its weights.\nRow starts ascend from 0 to the number "
                "of weights; columns lie in [0, in_features).\nMake it with prune.to_sparse."
            )

    def forward(self, x):
        """(N, in_features) to (N, out_features), off the tape."""
        x = x.data if isinstance(x, Tensor) else np.asarray(x, np.float32)
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self!r} got x of shape {x.shape}.\nIts last axis must equal in_features = {self.in_features}.\n"
                "Flatten the images first: x.reshape(len(x), -1)."
            )
        z = csr_matmul(x.reshape(-1, self.in_features), self.values, self.columns, self.row_starts)
        z = z.reshape(*x.shape[:-1], self.out_features)
        if self.bias is not None:
            z += self.bias
        return Tensor(z if self.activation is None else ops.ACTIVATIONS[self.activation](z)[0])

    def config(self):
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "activation": self.activation,
            "bias": self.bias is not None,
            "nonzeros": len(self.values),
        }

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        return {"values": (config["nonzeros"],), "row_starts": (config["out_features"] + 1,)}

    def __repr__(self):
        share = 1 - len(self.values) / (self.in_features * self.out_features)
        activation = f", activation={self.activation!r}" if self.activation else ""
        return f"SparseDense({self.in_features}, {self.out_features}{activation}, sparsity={share:.2%})"


def to_sparse(model):
    """A new model whose masked `Dense` layers are stored and run sparse. Layers without a mask stay as they are.

    Raises
    ------
    ValueError
        If no layer has a mask.
    """
    twin = model.copy()
    masked = [
        (path, module)
        for path, module in twin.named_modules()
        if isinstance(module, Dense) and any(isinstance(c, Mask) for c in module.weight.constraints)
    ]
    if not masked:
        raise ValueError(
            "to_sparse found no masked layer.\nIt stores what masks have left over.\n"
            "Prune first: prune.magnitude(model, sparsity=0.9)."
        )
    for path, module in masked:
        twin = replace(twin, path, SparseDense.from_dense(module))
    return twin
