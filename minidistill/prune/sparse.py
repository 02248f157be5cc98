"""Layers that store and run only the weights that are left: where masks become fewer bytes and less time.

Three formats (``kernels/sparse_formats.py`` says how each writes down positions), with values in float32 or int8. Given up: a
sparse layer only runs, it does not train (``nn/forward_only.py``), and int8 values are multiplied as floats: they save bytes,
not time. From which sparsity on time is saved depends on the layer and the batch; the `Ledger` tells, and ``deploy.choose``
measures. Read ``kernels/sparse_formats.py`` and ``kernels/reference/sparse.py`` before this file. Shapes: K inputs, M
outputs.
"""

from __future__ import annotations

import numpy as np

from ..kernels import sparse_dense
from ..kernels.cpu import has
from ..kernels.sparse_formats import FORMATS, WORD, SparseMatrix, fill_groups, in_lanes, index_of, place_bits
from ..nn import Mask, Parameter, replace
from ..nn.forward_only import ForwardOnly, refuse_converted, replaceable
from ..nn.module import check_module
from ..nn.serialize import register
from .masks import kept_of
from .sparse_embedding import SparseEmbedding, tables_with_rows_gone

VALUES = ("float32", "int8")


@register
class SparseDense(ForwardOnly):
    """A `Dense` layer that stores only the weights its mask kept.

    Parameters
    ----------
    in_features, out_features, activation, bias
        As in `Dense`.
    nonzeros : int
        How many weights are stored.
    format : str
        "csr", "bitmap" or "n_m": how their positions are stored.
    values : str
        "float32" or "int8".
    n, m : int
        Of "n_m": n of each m neighbouring inputs are stored.
    single : bool
        Whether memory holds the weights once more, for single samples; see `to_sparse`.

    Attributes
    ----------
    values : ndarray of float32 or int8, shape (nonzeros,)
        The weights that are left, output by output.
    scales : ndarray of float32, shape (M,)
        Of int8 values: what 1 stands for in each output. Absent for float32.
    index : ndarray
        Their positions; see `kernels.sparse_formats.SparseMatrix`.
    row_starts : ndarray of uint8, uint16 or uint32, shape (M + 1,)
        Where each output's values begin.
    bias : ndarray of float32, shape (M,), or None
    weight : ndarray of float32, shape (K, M)
        What is stored stands for, computed when asked for.

    Notes
    -----
    Made by `to_sparse`. It computes in the dtype of its input, as `Dense` does; quickly in float32. Change its arrays only
    through `load_state_dict`: the kernel keeps looking at those that it has seen.
    """

    def __init__(
        self, in_features, out_features, activation=None, bias=True, nonzeros=0, format="csr", values="float32", n=0, m=0,
        single=False,
    ):  # fmt: skip
        super().__init__(in_features, out_features, activation)
        _check_storage(format, values)
        self.format, self.n, self.m, self.single = format, int(n), int(m), bool(single)
        self.values = np.zeros(nonzeros, values)
        if values == "int8":
            self.scales = np.ones(out_features, np.float32)
        kind = {"csr": np.min_scalar_type(in_features - 1), "bitmap": np.uint16, "n_m": np.uint8}[format]
        self.index = np.zeros(_index_shape(in_features, out_features, nonzeros, format, n, m), kind)
        self.row_starts = np.zeros(out_features + 1, np.min_scalar_type(nonzeros))
        self.bias = np.zeros(out_features, np.float32) if bias else None
        self._matrix = None

    @classmethod
    def from_dense(cls, dense, format="csr", values="float32", n=0, m=0, single=False):
        """The weights of a `Dense` that its mask keeps: all of them, if it has none.

        Raises
        ------
        ValueError
            If the format or the type is unknown, or a mask keeps more than n of m weights.
        """
        _check_storage(format, values)
        kept = kept_of(dense.weight)
        if format == "n_m":
            _check_pattern(dense, kept, n, m)
            kept = fill_groups(kept, n, m)
        index, row_starts = index_of(kept, format, n, m)
        nonzeros = int(row_starts[-1])
        layer = cls(
            dense.in_features, dense.out_features, dense.activation, dense.bias is not None, nonzeros, format, values, n, m,
            single,
        )  # fmt: skip
        with np.errstate(over="ignore"):
            weight = dense.weight.data.astype(np.float32)
        if not np.isfinite(weight).all():
            raise ValueError(
                f"{dense!r} has a weight that is NaN, infinite, or beyond float32.\nSparse layers store float32, or steps of "
                "the largest.\nTrain the model again; md.fit stops where a loss is no longer finite."
            )
        if values == "int8":
            largest = np.abs(weight).max(axis=0)
            layer.scales[:] = np.where(largest > 0, largest, 127) / 127
            weight = np.rint(weight / layer.scales)
        layer.values[:] = weight.T[kept.T]
        layer.index[...], layer.row_starts[:] = index, row_starts
        if dense.bias is not None:
            layer.bias[:] = dense.bias.data
        return layer

    @property
    def weight(self):
        return np.asarray(self.matrix())

    @property
    def stored_weights(self):
        """How many weights are stored."""
        return len(self.values)

    def matrix(self):
        """The stored weights as the kernels take them: a `SparseMatrix` that looks at this layer's arrays."""
        if self._matrix is None:
            scales = getattr(self, "scales", None)
            shape = self.in_features, self.out_features
            parts = self.values, self.index, self.row_starts, scales, self.format, self.n, self.m
            self._matrix = _Look(SparseMatrix(shape, *parts))
            if self.single and has("avx512f"):
                self._matrix.matrix.lanes = in_lanes(self._matrix.matrix)
        return self._matrix.matrix

    def check(self):
        """Refuse arrays that do not describe a sparse matrix: the kernel trusts them as addresses."""
        self._matrix = None
        starts = self.row_starts.astype(np.int64)
        sound = starts[0] == 0 and starts[-1] == len(self.values) and bool((np.diff(starts) >= 0).all())
        if sound:
            sound = self._index_fits(starts)
        if not sound:
            raise ValueError(
                f"{self!r} has row starts or positions that do not fit its values.\nRow starts ascend from 0 to the number "
                "of weights; positions ascend within each output and lie in [0, in_features).\nMake it with prune.to_sparse."
            )

    def _index_fits(self, starts):
        counts = np.diff(starts)
        if self.format == "bitmap":
            bits = np.unpackbits(self.index.astype("<u2").view(np.uint8), bitorder="little")
            bits = bits.reshape(self.out_features, -1)
            return not bits[:, self.in_features :].any() and np.array_equal(bits.sum(axis=1), counts)
        if self.format == "n_m" and (counts != self.in_features // self.m * self.n).any():
            return False
        columns = self.matrix().columns()
        inside = np.ones(len(columns), bool)
        inside[starts[:-1][counts > 0]] = False  # the first of each output follows nothing
        return not columns.size or bool(columns.max() < self.in_features and (np.diff(columns) > 0)[inside[1:]].all())

    def compute(self, x):
        """(N, K) to (N, M): the product with the weights that are there, plus the bias."""
        return sparse_dense(x, self.matrix(), self.bias)

    def _activated(self, x):
        if self.activation == "relu":
            return sparse_dense(x, self.matrix(), self.bias, relu=True)
        return super()._activated(x)

    def derived(self):
        return [] if self._matrix is None else self._matrix.matrix.derived()

    def config(self):
        return {
            **super().config(), "bias": self.bias is not None, "nonzeros": len(self.values), "format": self.format,
            "values": str(self.values.dtype), "n": self.n, "m": self.m,
            "single": self.single,
        }  # fmt: skip

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        names = ("in_features", "out_features", "nonzeros", "format", "n", "m")
        index = _index_shape(*(config[name] for name in names))
        return {"values": (config["nonzeros"],), "row_starts": (config["out_features"] + 1,), "index": index}

    def __repr__(self):
        share = 1 - len(self.values) / (self.in_features * self.out_features)
        pattern = f" {self.n}:{self.m}" if self.format == "n_m" else ""
        kind = "" if self.values.dtype == np.float32 else ", int8"
        return f"{super().__repr__()[:-1]}, {self.format}{pattern}{kind}, sparsity={share:.2%})"

    def __getstate__(self):
        return {**vars(self), "_matrix": None}  # copies look at their own arrays


class _Look:
    """Hides a `SparseMatrix` from the walk over a module's parts: it holds the layer's own arrays, not more of them."""

    def __init__(self, matrix):
        self.matrix = matrix


def to_sparse(model, format="csr", values="float32", n=2, m=4, single=False):
    """A new model whose masked `Dense` layers are stored and run sparse; the model itself is unchanged.

    What is stored is what the masks keep, a kept weight that happens to be 0 included. Layers without a mask, and subclasses
    of `Dense` with a forward of their own, stay as they are. `Embedding` tables of which whole rows are masked become
    `SparseEmbedding`.

    Parameters
    ----------
    model : Module
    format : str
        "csr", the fastest; "bitmap"; "n_m"; or "smallest": for each layer the one of the first two that takes fewer bytes.
    values : str
        "float32": the model computes the same (but that of a float64 model is rounded to float32); "int8": each output's
        weights in steps of a 127th of the largest.
    n, m : int
        For "n_m": each m neighbouring inputs of an output keep n at most (`n_m`).
    single : bool
        Hold the weights once more in memory, in an order that is faster for one or two samples at a time. It takes 1.4 to
        2.4 times the bytes of "csr" besides (80 to 95 % zeros), and none in a file. On processors without AVX-512 it does
        nothing.

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        If no layer has a mask, the format or type of values is unknown, a mask is not n of m, or a weight is no finite
        float32.
    """
    if format != "smallest":
        _check_storage(format, values)
    check_module("prune.to_sparse", model)
    twin = model.copy()
    masked = {
        path: layer
        for path, layer in replaceable(twin).items()
        if any(isinstance(c, Mask) for c in layer.weight.constraints)
    }
    tables = tables_with_rows_gone(twin)
    if not masked and not tables:
        raise _nothing_to_store(twin)
    for path, layer in masked.items():
        how = _smallest(layer) if format == "smallest" else format
        pattern = (n, m) if how == "n_m" else (0, 0)
        twin = replace(twin, path, SparseDense.from_dense(layer, how, values, *pattern, single))
    for path, table in tables.items():
        twin = replace(twin, path, SparseEmbedding.from_embedding(table))
    return twin


def _nothing_to_store(model):
    """The error for a model without a layer that can be stored sparse."""
    if not replaceable(model):
        refuse_converted(model, "to_sparse", "prune it, then prune.to_sparse(model), or with values='int8' for both")
    others = [m for m in model.modules() for p in vars(m).values() if isinstance(p, Parameter)
              if any(isinstance(c, Mask) for c in p.constraints)]  # fmt: skip
    if not others:
        return ValueError(
            "to_sparse found no masked Dense layer.\nIt stores what masks have left over.\n"
            "Prune first: prune.magnitude(model, sparsity=0.9)."
        )
    return ValueError(
        f"to_sparse found masks, but on no plain Dense layer: the first is on {others[0]!r}.\nIt stores Dense layers, and "
        "Embedding tables with whole rows masked.\nName layers of nn.Dense: prune.magnitude(model, 0.9, layers=[...])."
    )


def _smallest(dense):
    """Whichever of "csr" and "bitmap" writes positions in fewer bytes."""
    kept = kept_of(dense.weight)
    csr = int(kept.sum()) * np.min_scalar_type(dense.in_features - 1).itemsize
    return "csr" if csr <= dense.out_features * 2 * -(-dense.in_features // 16) else "bitmap"


def _index_shape(in_features, out_features, nonzeros, format, n, m):
    """Of the array of positions, or an error if there is no such format."""
    if format == "csr":
        return (nonzeros,)
    if format == "bitmap":
        return out_features, -(-in_features // WORD)
    if not 0 < n <= m <= 256:
        raise ValueError(
            f"a sparse layer was asked for with n = {n} and m = {m}.\nOf each m neighbours n are stored, 256 at most.\n"
            "Write n=2, m=4."
        )
    return out_features, -(-(in_features // m * n) * place_bits(m) // 8)


def _check_storage(format, values):
    if format not in FORMATS:
        raise ValueError(
            f"a sparse layer was asked for with format={format!r}.\nThe formats are: {', '.join(FORMATS)}.\n"
            "Leave it out for csr, or write format='smallest'."
        )
    if values not in VALUES:
        raise ValueError(
            f"a sparse layer was asked for with values={values!r}.\nValues are: {', '.join(VALUES)}.\n"
            "Write values='int8' for a quarter of the bytes, at some loss of precision."
        )


def _check_pattern(dense, kept, n, m):
    fits = 0 < n <= m <= 256 and dense.in_features % m == 0
    if fits and kept.reshape(-1, m, dense.out_features).sum(axis=1).max() <= n:
        return
    raise ValueError(
        f"{dense!r} was to be stored as {n} of {m}.\nIts in_features are a multiple of m (256 at most), and each m "
        f"neighbouring inputs of an output keep n at most.\nPrune it so first: prune.n_m(model, n={n}, m={m})."
    )
