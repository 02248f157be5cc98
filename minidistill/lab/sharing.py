"""Weight sharing: the weights that pruning has left take one of a few values, which are then trained (Han, Mao & Dally 2016,
"Deep Compression", section 3).

`k_means` finds the values, `SharedDense` is the layer that trains them, `share_weights` puts it in place. Which weight has
which value never changes while training, as in the paper. Given up: other clusterings than Lloyd's; in one dimension the
best one could be found exactly, but a local one is trained to the same accuracy. Read ``prune/masks.py`` and
``ops/linear.py`` before this file. Shapes: K inputs, M outputs, C values in the codebook, n weights that are left.
"""

from __future__ import annotations

import numpy as np

from .. import checks, ops
from ..nn import Dense, Mask, Module, Parameter, replace
from ..nn.forward_only import replaceable
from ..nn.layers import check_name
from ..nn.serialize import register
from ..nn.wrong_input import WrongFeatures
from ..prune.masks import kept_of
from ..tensor import Tensor, as_tensor, record

INITS = "linear", "density", "random"
_ROUNDS = 10_000  # Lloyd's algorithm ends by itself; rounding could make it run in a circle


@register
class SharedDense(Module):
    """A `Dense` layer whose weights are entries of a codebook. It trains: the codebook and the bias are its parameters.

    Parameters
    ----------
    in_features, out_features, activation, bias
        As in `Dense`.
    kept, centroids : int
        n and C.

    Attributes
    ----------
    codebook : Parameter, shape (C,)
    codes : ndarray of the smallest unsigned type, shape (n,)
        Which entry of the codebook each weight has.
    positions : ndarray of the smallest unsigned type, shape (n,)
        Where it stands in the (K, M) matrix, row by row; ascending. Everywhere else is 0.
    bias : Parameter, shape (M,), or None
    weight : ndarray, shape (K, M)
        The whole matrix, computed on demand.

    Notes
    -----
    Made by `share_weights`.
    """

    def __init__(self, in_features, out_features, activation=None, bias=True, kept=0, centroids=1):
        check_name("activation", activation, ops.ACTIVATIONS)
        self.in_features, self.out_features, self.activation = int(in_features), int(out_features), activation
        self.codebook = Parameter(np.zeros(centroids, np.float32))
        self.codes = np.zeros(kept, np.min_scalar_type(centroids - 1))
        self.positions = np.zeros(kept, np.min_scalar_type(in_features * out_features - 1))
        self.bias = Parameter(np.zeros(out_features, np.float32)) if bias else None

    weight = property(lambda self: self._weight().numpy())
    stored_weights = property(lambda self: len(self.positions))

    @classmethod
    def from_dense(cls, dense, bits, init="linear", rng=None):
        """The weights that the mask of a `Dense` keeps, in 2**bits clusters at most. The bias is taken over as it is."""
        positions = np.flatnonzero(kept_of(dense.weight))
        codebook, codes = k_means(dense.weight.data.reshape(-1)[positions], 2**bits, init, rng)
        shape = dense.in_features, dense.out_features
        layer = cls(*shape, dense.activation, dense.bias is not None, len(positions), len(codebook))
        layer.codebook, layer.bias = Parameter(codebook), dense.bias
        layer.codebook.requires_grad = dense.weight.requires_grad
        layer.codes[:], layer.positions[:] = codes, positions
        return layer

    def to_dense(self):
        """An ordinary `Dense` with the same weights and a `Mask`. It gives the same answers, bit for bit."""
        dense = Dense(self.in_features, self.out_features, self.activation, self.bias is not None, rng=0)
        kept = np.zeros(dense.weight.shape, bool)
        kept.reshape(-1)[self.positions] = True
        dense.weight = Parameter(self.weight, [] if kept.all() else [Mask(kept)])
        dense.weight.requires_grad = self.codebook.requires_grad
        if self.bias is not None:
            dense.bias = Parameter(self.bias.data, self.bias.constraints)
            dense.bias.requires_grad = self.bias.requires_grad
        return dense

    def check(self):
        """Refuse codes and positions that point outside, or twice to the same place; run for every layer loaded."""
        places = self.positions.astype(np.int64)
        inside = places.max(initial=-1) < self.in_features * self.out_features and (np.diff(places) > 0).all()
        if not inside or self.codes.max(initial=0) >= len(self.codebook):
            raise ValueError(
                f"{self!r} has codes or positions that point outside.\nCodes are in [0, {len(self.codebook)}), positions "
                "ascend in [0, in_features * out_features).\nMake it with deploy.share_weights."
            )

    def _weight(self):
        shape = self.in_features, self.out_features
        return shared_weight(self.codebook, self.codes, self.positions, shape)

    def forward(self, x):
        """x of shape (..., K) to (..., M)."""
        x = x if isinstance(x, Tensor) else as_tensor(x, like=self.codebook)
        if not x.shape or x.shape[-1] != self.in_features:
            raise WrongFeatures(self, x.shape)
        return ops.dense(x, self._weight(), self.bias, self.activation)

    def infer(self, x):
        """As `Dense.infer`."""
        dtype = self.codebook.dtype
        if type(x) is not np.ndarray or x.ndim != 2 or x.shape[1] != self.in_features or x.dtype != dtype:
            return self(x).numpy()
        return ops.dense_forward(x, self.weight, None if self.bias is None else self.bias.data, self.activation)[0]

    def work_per_row(self):
        """That of the `Dense`: `predict` shares rows in the same way, and the answers are the same bits."""
        return self.in_features * self.out_features, self.in_features * self.out_features

    def config(self):
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "activation": self.activation,
            "bias": self.bias is not None,
            "kept": len(self.positions),
            "centroids": len(self.codebook),
        }

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        kept = (config["kept"],)
        shapes = {"codebook": (config["centroids"],), "codes": kept, "positions": kept}
        return shapes | ({"bias": (config["out_features"],)} if config["bias"] else {})


def share_weights(model, bits=6, layers=None, init="linear", rng=None):
    """A new model whose pruned `Dense` layers share weights; train it with `md.fit`. The model itself is unchanged.

    Parameters
    ----------
    model : Module
    bits : int in [1, 16], or dict of str to int
        Each layer gets 2**bits values at most: fewer, where some would stand for no weight. A dict has one for each layer
        that is to be shared, by path.
    layers : list of str, optional
        Dotted paths; by default all `Dense` layers that have a mask. A layer without one keeps all of its weights.
    init : {"linear", "density", "random"}
        Where k-means starts; see `k_means`.
    rng : int, np.random.Generator or None
        For "random".

    Returns
    -------
    Module
        With new parameters: make a new optimizer for it. Masks become positions. Other constraints on a weight, such as
        a norm, are left out: they cannot hold for values that many weights share. Those on a bias stay.

    Raises
    ------
    ValueError
        If the number of bits or ``init`` is unknown, a path is not that of a `Dense`, none is masked, a weight is shared
        by two layers, or is NaN or infinite.
    """
    checks.choice("share_weights", "init", init, INITS)
    shared, rng = model.copy(), checks.generator("share_weights", rng)
    chosen = _chosen(shared, bits, layers)
    made = {path: SharedDense.from_dense(layer, n, init, rng) for path, (layer, n) in chosen.items()}
    for path, layer in made.items():
        shared = replace(shared, path, layer)
    return shared


def _chosen(model, bits, layers):
    """{path: (layer, bits)} of the layers to share, after all checks."""
    known = replaceable(model)
    if isinstance(bits, dict):
        if layers is not None:
            raise ValueError(
                f"share_weights got a dict of bits and layers={layers!r}.\nThe dict's keys are the layers.\n"
                "Leave layers out, or pass one number for all of them."
            )
        layers = list(bits)
    masked = [path for path, layer in known.items() if any(isinstance(c, Mask) for c in layer.weight.constraints)]
    paths = masked if layers is None else [layers] if isinstance(layers, str) else list(layers)
    unknown = [path for path in paths if path not in known]
    if unknown or not paths:
        what = f"was asked for the layers {unknown}" if unknown else "found no masked Dense layer"
        raise ValueError(
            f"share_weights {what}.\nIt shares the weights of Dense layers, by default of those with a mask.\nPrune first, "
            "and share before to_sparse: prune.magnitude(model, 0.9); or name some of: "
            f"{', '.join(map(repr, known)) or 'none'}."
        )
    chosen = {path: (known[path], bits[path] if isinstance(bits, dict) else bits) for path in paths}
    for path, (layer, n) in chosen.items():
        _check_layer(model, path, layer, n)
    return chosen


def _check_layer(model, path, layer, bits):
    checks.whole("share_weights", "bits", bits, "[1, 16]", f"the bits of a weight of layer {path!r}", 6)
    advice = "Train the model again; md.fit stops where a loss is no longer finite."
    checks.finite("share_weights", f"weights of layer {path!r}", layer.weight.data, advice)
    users = [part for part in model.modules() if any(value is layer.weight for value in vars(part).values())]
    if len(users) > 1:
        raise ValueError(
            f"share_weights met a weight of layer {path!r} that {len(users)} modules use.\nEach would get a codebook of its "
            "own, and they would drift apart.\nLeave the layer out, or give each module a weight of its own."
        )


def shared_weight(codebook, codes, positions, shape):
    """A matrix of weights that share a few values: ``codebook[codes]`` at ``positions``, and 0 everywhere else.

    The gradient of a value is the sum of the gradients of all weights that share it (Han, Mao & Dally 2016, "Deep
    Compression", section 3.3); it is added up in float64.

    Parameters
    ----------
    codebook : Tensor, shape (C,)
    codes : ndarray of int, shape (n,), in [0, C)
    positions : ndarray of int, shape (n,), distinct, in [0, K * M)
        Row by row.
    shape : tuple of int
        (K, M).

    Returns
    -------
    Tensor, shape (K, M)
    """
    codebook = as_tensor(codebook)
    count = len(codebook._data)
    weight = np.zeros(shape, codebook.dtype)
    weight.reshape(-1)[positions] = codebook._data[codes]

    def vjp(g):
        return (np.bincount(codes, g.reshape(-1)[positions], count),)

    return record("shared_weight", weight, (codebook,), vjp, saves=())


def k_means(values, count, init="linear", rng=None):
    """Clusters of numbers: Lloyd's algorithm in one dimension (Lloyd 1982), until no number changes its cluster.

    The numbers are sorted once; a cluster is then a stretch between two midpoints, and a round costs a binary search for
    each centroid, however many numbers there are.

    Parameters
    ----------
    values : ndarray of float, shape (n,)
    count : int
        Number of clusters at the start. Empty ones stay where they are, and are dropped at the end.
    init : {"linear", "density", "random"}
        Where the centroids start (Han et al. 2016, section 3.2): evenly from the smallest to the largest value, which leaves
        most for the few large weights; evenly over the sorted values (density); or at some of them (random, Forgy).
    rng : int, np.random.Generator or None
        For "random".

    Returns
    -------
    centroids : ndarray of the values' dtype, shape (C,)
        Ascending, C <= count; the values themselves where there are no more than ``count``. A single 0 for no values.
    codes : ndarray of int64, shape (n,)
        The centroid nearest to each value; of two that are equally near, the lower.
    """
    if not len(values):
        return np.zeros(1, values.dtype), np.zeros(0, np.int64)
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) <= count:
        return distinct, codes
    ordered = np.sort(values).astype(np.float64)
    centroids = _start(ordered, distinct, count, init, rng)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    ends = None
    for _ in range(_ROUNDS):
        previous, ends = ends, np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, side="right")
        if previous is not None and np.array_equal(previous, ends):
            break
        edges = np.concatenate([[0], ends, [len(ordered)]])
        sizes = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(sizes, 1)
        centroids = np.sort(np.where(sizes > 0, means, centroids))  # rounding may exchange two neighbours
    codes = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values.astype(np.float64), side="left")
    used, codes = np.unique(codes, return_inverse=True)
    return centroids[used].astype(values.dtype), codes


def _start(ordered, distinct, count, init, rng):
    if init == "linear":
        return np.linspace(ordered[0], ordered[-1], count)
    if init == "density":
        return np.quantile(ordered, np.linspace(0, 1, count))
    return np.sort(checks.generator("k_means", rng).choice(distinct, count, replace=False).astype(np.float64))
