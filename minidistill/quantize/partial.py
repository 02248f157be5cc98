"""Layers that are quantized in part. Read ``affine.py`` and ``nn/forward_only.py`` before this file.

- `WeightOnlyDense`: int8 weights, float inputs and products. A quarter of the memory, no loss from activations, no speed.
- `DynamicDense`: int8 weights, and inputs that are rounded when they come, each row with a scale of its own: no calibration
  data is needed, integer products, floats in between.
- `QuantizedEmbedding`: an int8 table with a scale for each row; a lookup dequantizes the rows that it needs.

Shapes: N rows, K inputs, M outputs; R ids, D the length of a vector.
"""

from __future__ import annotations

import numpy as np

from ..kernels import add_bias, dequantize, dequantize_sums, int8_sums, lookup_rows, product, quantize, quantize_rows
from ..kernels.packing import PackedMatrix
from ..nn.forward_only import ForwardOnly
from ..nn.layers import check_ids
from ..nn.module import Module
from ..nn.serialize import register
from ..tensor import Tensor
from .affine import WEIGHT_MAX, bias_room, row_scales, weight_scales

BLOCK = 256  # rows of a weight that are floats at a time


class _FloatInputDense(ForwardOnly):
    """int8 weights with float inputs and a float bias: what the two classes below share.

    ``weight`` is what the integers stand for, computed when asked for: a model may use a layer's weight a second time.
    """

    weight = property(lambda self: dequantize(np.asarray(self.weight_q), self.weight_scale, 0))

    def __init__(self, in_features, out_features, activation=None, bias=True):
        super().__init__(in_features, out_features, activation)
        self.weight_scale = np.ones(out_features, np.float32)
        self.bias = np.zeros(out_features, np.float32) if bias else None

    @classmethod
    def from_dense(cls, dense, per_channel=True):
        """Quantize the weight (K, M) of a `Dense`; raises ValueError if it is not finite."""
        layer = cls(dense.in_features, dense.out_features, dense.activation, dense.bias is not None)
        layer.weight_scale[:] = weight_scales(dense.weight.data, per_channel=per_channel)
        layer.weight_q[...] = quantize(dense.weight.data, layer.weight_scale, 0, -WEIGHT_MAX, WEIGHT_MAX)
        if dense.bias is not None:
            layer.bias[:] = dense.bias.data
        layer.check()
        return layer

    def check(self):
        """Refuse scales that stand for nothing; run for every layer made or loaded."""
        _check_scales(self)

    def _biased(self, z):
        if self.bias is not None:
            add_bias(z, self.bias, False)
        return z

    def config(self):
        return {**super().config(), "bias": self.bias is not None}

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        return {"weight_q": (config["in_features"], config["out_features"])}


@register
class WeightOnlyDense(_FloatInputDense):
    """A `Dense` whose weight is stored as int8, and multiplied as float32, a block of rows at a time.

    Attributes
    ----------
    weight_q : ndarray of int8, shape (K, M)
    weight_scale : ndarray of float32, shape (M,)
    bias : ndarray of float32, shape (M,), or None
    """

    def __init__(self, in_features, out_features, activation=None, bias=True):
        super().__init__(in_features, out_features, activation, bias)
        self.weight_q = np.zeros((in_features, out_features), np.int8)

    def compute(self, x):
        """(N, K) to (N, M): the scales come last, since a column shares one."""
        x = np.asarray(x, np.float32)
        z = np.zeros((len(x), self.out_features), np.float32)
        for begin in range(0, self.in_features, BLOCK):
            part = slice(begin, begin + BLOCK)
            z += product(x[:, part], dequantize(self.weight_q[part], np.float32(1), 0))
        z *= self.weight_scale
        return self._biased(z)


@register
class DynamicDense(_FloatInputDense):
    """A `Dense` in integers whose input scale is found anew for each row, from its smallest to its largest number.

    A row's result does not depend on the rest of its batch.

    Attributes
    ----------
    weight_q : PackedMatrix of int8, shape (K, M)
    weight_scale : ndarray of float32, shape (M,)
    bias : ndarray of float32, shape (M,), or None
    """

    def __init__(self, in_features, out_features, activation=None, bias=True):
        super().__init__(in_features, out_features, activation, bias)
        bias_room(in_features)  # raises if the sums could overflow
        self.weight_q = PackedMatrix(np.zeros((in_features, out_features), np.int8))

    def compute(self, x):
        """float32 (N, K) to float32 (N, M). Raises ValueError if x holds NaN or infinity."""
        q, scale, zero_point = quantize_rows(np.asarray(x, np.float32))
        sums = int8_sums(q, self.weight_q, np.zeros(self.out_features, np.int32))
        z = dequantize_sums(sums, scale, zero_point, self.weight_q.sums, self.weight_scale)
        return self._biased(z)


@register
class QuantizedEmbedding(Module):
    """An `Embedding` table in int8, with a scale for each row.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        R and D.

    Attributes
    ----------
    weight_q : ndarray of int8, shape (R, D)
    weight_scale : ndarray of float32, shape (R,)
    weight : ndarray of float32, shape (R, D)
        What the integers stand for, computed when asked for.
    """

    weight = property(lambda self: self.weight_q * self.weight_scale[:, None])

    def __init__(self, num_embeddings, embedding_dim):
        if min(num_embeddings, embedding_dim) < 1:
            raise ValueError(
                f"QuantizedEmbedding({num_embeddings}, {embedding_dim}) was asked for.\nBoth numbers are at least 1.\n"
                "Make it with quantize.post_training, from a model with an nn.Embedding."
            )
        self.num_embeddings, self.embedding_dim = int(num_embeddings), int(embedding_dim)
        self.weight_q = np.zeros((self.num_embeddings, self.embedding_dim), np.int8)
        self.weight_scale = np.ones(self.num_embeddings, np.float32)

    @classmethod
    def from_embedding(cls, embedding):
        """Quantize the table (R, D) of an `Embedding`; raises ValueError if it is not finite."""
        layer = cls(embedding.num_embeddings, embedding.embedding_dim)
        table = embedding.weight.data
        layer.weight_scale[:] = row_scales(table)
        layer.weight_q[:] = quantize(np.ascontiguousarray(table.T), layer.weight_scale, 0, -WEIGHT_MAX, WEIGHT_MAX).T
        return layer

    def check(self):
        """As above."""
        _check_scales(self)

    def forward(self, ids):
        """ids of any shape S, whole numbers in [0, R), to (*S, D)."""
        ids = check_ids(self, ids)
        rows = lookup_rows(self.weight_q, self.weight_scale, ids.reshape(-1))
        return Tensor(rows.reshape(*ids.shape, self.embedding_dim))

    def config(self):
        return {"num_embeddings": self.num_embeddings, "embedding_dim": self.embedding_dim}

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        return {"weight_q": (config["num_embeddings"], config["embedding_dim"])}

    def __repr__(self):
        return f"QuantizedEmbedding({self.num_embeddings}, {self.embedding_dim})"


def _check_scales(layer):
    if not (np.isfinite(layer.weight_scale).all() and layer.weight_scale.min() > 0):
        raise ValueError(
            f"{layer!r} has weight scales that are not positive and finite.\nEach stands for one step of an integer.\n"
            "Make it with quantize.post_training."
        )
