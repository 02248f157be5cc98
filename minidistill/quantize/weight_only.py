"""Layers with integer weights and float activations. Read ``integer_weight.py`` before this file.

- `WeightOnlyDense`: integer weights, float inputs and products. A quarter of the memory or less, no loss from activations, no
  speed.
- `DynamicDense`: integer weights, and inputs that are rounded when they come, each row with a scale of its own: no
  calibration data is needed, integer products, floats in between.
- `QuantizedEmbedding`: an integer table with a scale for each row; a lookup dequantizes the rows that it needs.

Shapes: N rows, K inputs, M outputs; R ids, D the length of a vector.
"""

from __future__ import annotations

import math

import numpy as np

from .. import checks
from ..kernels import add_bias, dequantize_sums, int8_sums, lookup_rows, product, quantize_rows
from ..kernels.bit_packing import pack_fields, unpack_fields
from ..nn.layers import check_ids
from ..nn.module import Module
from ..nn.serialize import register
from ..tensor import Tensor
from .affine import bias_room, round_rows, weight_limit
from .integer_weight import IntegerWeight, check_weight_scale

BLOCK = 256  # rows of a weight that are floats at a time


class _FloatBias(IntegerWeight):
    """What the two classes below share: they take and give floats, and add a bias, float32 (M,) or None.

    Parameters
    ----------
    in_features, out_features, activation, bits, group
        As in `IntegerWeight`.
    bias : bool
        Whether there is one.
    """

    def __init__(self, in_features, out_features, activation=None, bias=True, bits=8, group=None):
        super().__init__(in_features, out_features, activation, bits, group)
        self.bias = np.zeros(self.out_features, np.float32) if bias else None

    @classmethod
    def from_dense(cls, dense, per_channel=True, clip="max", rounding=None, **options):
        """Quantize the weight (K, M) of a `Dense`; raises ValueError if it is not finite. See `QuantizedDense.from_dense`."""
        layer = cls(dense.in_features, dense.out_features, dense.activation, dense.bias is not None, **options)
        layer.set_weight(dense.weight.data, per_channel=per_channel, clip=clip, rounding=rounding)
        if dense.bias is not None:
            layer.bias[:] = dense.bias.data
        layer.check()
        return layer

    def _biased(self, z):
        if self.bias is not None:
            add_bias(z, self.bias, False)
        return z

    def config(self):
        return {**super().config(), "bias": self.bias is not None}


@register
class WeightOnlyDense(_FloatBias):
    """A `Dense` whose weight is stored in integers, and multiplied as float32, a block of rows at a time.

    No kernel reads its integers, so that in memory they are as in a file: ``weight_q`` is an ndarray of int8, shape (K, M),
    or of uint8, packed by `pack_fields`.
    """

    def __init__(self, in_features, out_features, activation=None, bias=True, bits=8, group=None):
        super().__init__(in_features, out_features, activation, bias, bits, group)
        self.weight_q = self.weight_q.copy()

    def set_integers(self, q):
        """Take these integers, int8 (K, M)."""
        self.weight_q[...] = q if self.weight_q.ndim == 2 else pack_fields(q, self.bits)

    def integers(self, begin=0, end=None):
        """The weight's integers, int8, of these rows; ``begin`` is a multiple of 8."""
        if self.weight_q.ndim == 2:
            return self.weight_q[begin:end]
        end = min(end or self.in_features, self.in_features)
        first, last = (row * self.out_features * self.bits / 8 for row in (begin, end))
        return unpack_fields(self.weight_q[int(first) : math.ceil(last)], self.bits, (end - begin, self.out_features))

    def compute(self, x):
        """(N, K) to (N, M): where a column shares one scale, that comes last."""
        x = np.asarray(x, np.float32)
        z = np.zeros((len(x), self.out_features), np.float32)
        rows = self.group or BLOCK
        for i, begin in enumerate(range(0, self.in_features, rows)):
            part = slice(begin, begin + rows)
            block = product(x[:, part], self.integers(begin, begin + rows).astype(np.float32))
            z += block if self.group is None else block * self.weight_scale[i]
        if self.group is None:
            z *= self.weight_scale
        return self._biased(z)


@register
class DynamicDense(_FloatBias):
    """A `Dense` in integers whose input scale is found anew for each row, from its smallest to its largest number.

    A row's result does not depend on the rest of its batch. There are no groups: one scale for each output.
    """

    def __init__(self, in_features, out_features, activation=None, bias=True, bits=8, group=None):
        if group is not None:
            raise ValueError(
                f"DynamicDense was asked for with group={group}.\nIts sums have one scale for each output.\n"
                "Leave it out, or take mode='static' or 'weight_only'."
            )
        super().__init__(in_features, out_features, activation, bias, bits)
        bias_room(in_features)  # raises if the sums could overflow

    def compute(self, x):
        """float32 (N, K) to float32 (N, M). Raises ValueError if x holds NaN or infinity."""
        q, scale, zero_point = quantize_rows(np.asarray(x, np.float32))
        sums = int8_sums(q, self.weight_q, np.zeros(self.out_features, np.int32))
        z = dequantize_sums(sums, scale, zero_point, self.weight_q.sums, self.weight_scale)
        return self._biased(z)


@register
class QuantizedEmbedding(Module):
    """An `Embedding` table in integers of 8, 4 or 2 bits, with a scale for each row.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        R and D.
    bits : int
        8, 4 or 2.

    Attributes
    ----------
    weight_q : ndarray, shape (R, D) of int8, or (R, ceil(D * bits / 8)) of uint8
        Rows begin at a byte; of neighbours in a byte the first has the upper bits (`pack_fields`).
    weight_scale : ndarray of float32, shape (R,)
    weight : ndarray of float32, shape (R, D)
        What the integers stand for, computed when asked for.
    """

    weight = property(lambda self: lookup_rows(*self._table(), np.arange(self.num_embeddings)))

    def __init__(self, num_embeddings, embedding_dim, bits=8):
        sizes = (("num_embeddings", num_embeddings, 1000), ("embedding_dim", embedding_dim, 32))
        self.num_embeddings, self.embedding_dim = (
            checks.whole("QuantizedEmbedding", name, size, "[1, inf)", "a size of the table", usual)
            for name, size, usual in sizes
        )
        self.bits = check_table_bits(bits)
        self.weight_q = np.zeros(**_table_form(num_embeddings, embedding_dim, bits))
        self.weight_scale = np.ones(self.num_embeddings, np.float32)

    @classmethod
    def from_embedding(cls, embedding, bits=8):
        """Quantize the table (R, D) of an `Embedding`; raises ValueError if it is not finite."""
        layer = cls(embedding.num_embeddings, embedding.embedding_dim, bits)
        q, layer.weight_scale[:] = round_rows(embedding.weight.data, bits)
        layer.set_integers(q)
        return layer

    def set_integers(self, q):
        """Take these integers, int8 (R, D)."""
        if self.bits == 8:
            self.weight_q[:] = q
        else:
            whole_bytes = np.zeros((len(q), self.weight_q.shape[1] * 8 // self.bits), np.int8)
            whole_bytes[:, : q.shape[1]] = q
            self.weight_q[:] = pack_fields(whole_bytes, self.bits).reshape(self.weight_q.shape)

    def check(self):
        """As in `IntegerWeight`."""
        check_weight_scale(self)

    def forward(self, ids):
        """ids of any shape S, whole numbers in [0, R), to (*S, D)."""
        ids = check_ids(self, ids)
        rows = lookup_rows(*self._table(), ids.reshape(-1))
        return Tensor(rows.reshape(*ids.shape, self.embedding_dim))

    def _table(self):
        return self.weight_q, self.weight_scale, self.embedding_dim, self.bits

    def config(self):
        bits = {} if self.bits == 8 else {"bits": self.bits}
        return {"num_embeddings": self.num_embeddings, "embedding_dim": self.embedding_dim, **bits}

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        form = _table_form(config["num_embeddings"], config["embedding_dim"], config.get("bits", 8))
        return {"weight_q": form["shape"]}

    def __repr__(self):
        bits = "" if self.bits == 8 else f", bits={self.bits}"
        return f"QuantizedEmbedding({self.num_embeddings}, {self.embedding_dim}{bits})"


def check_table_bits(bits):
    """The number of bits of an embedding table: so many that a row begins at a byte and can be looked up."""
    weight_limit(bits)  # raises
    return checks.choice("an embedding table", "bits", int(bits), (8, 4, 2), "Write embedding_bits=4.")


def _table_form(rows, width, bits):
    """Shape and dtype of the array of a table."""
    return {"shape": (rows, width if bits == 8 else -(-width * bits // 8)), "dtype": np.int8 if bits == 8 else np.uint8}
