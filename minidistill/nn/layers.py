"""The layers: Dense, Embedding, Dropout, activations, Concatenate, and Sequential to put them in a row.

A layer checks its input at this public door (shapes, kinds of numbers, ids in range); the operations below it assume
that it fits. Read ``module.py`` and ``ops/linear.py`` before this file.

Shapes: N rows of a batch, K = in_features, M = out_features, R = num_embeddings, D = embedding_dim.
"""

from __future__ import annotations

import numpy as np

from .. import checks, ops
from ..kernels import within
from ..tensor import Tensor, as_tensor
from .init import INITIALIZERS, initialize
from .module import Module, Parameter, generator_in_use
from .wrong_input import WrongFeatures


class Dense(Module):
    """A fully connected layer: ``activation(x @ weight + bias)``.

    Parameters
    ----------
    in_features, out_features : int
        K and M. ``weight`` has shape (K, M), ``bias`` (M,).
    activation : str, optional
        "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "softplus", "softmax" or "log_softmax"; None is
        linear.
    bias : bool
    init : str, optional
        "he_normal", "he_uniform", "glorot_normal" or "glorot_uniform"; by default He for the relu family and
        Glorot for the rest. Biases start at 0.
    rng : int, np.random.Generator or None
    """

    def __init__(self, in_features, out_features, activation=None, bias=True, init=None, rng=None):
        in_features = checks.whole("Dense", "in_features", in_features, "[1, inf)", "the length of an input row", 64)
        out_features = checks.whole(
            "Dense", "out_features", out_features, "[1, inf)", "the length of an output row", 10
        )
        check_name("activation", activation, ops.ACTIVATIONS)
        check_name("init", init, INITIALIZERS)
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.init = activation, init
        self.weight = Parameter(np.zeros((in_features, out_features), np.float32))
        self.bias = Parameter(np.zeros(out_features, np.float32)) if bias else None
        self.initialize(rng)

    def initialize(self, rng=None):
        """Draw the weight anew; the bias becomes 0."""
        default = "he_uniform" if self.activation in ("relu", "leaky_relu", "gelu", "gelu_tanh") else "glorot_uniform"
        draw = INITIALIZERS[self.init or default]
        self.weight.assign(draw(checks.generator("Dense", rng), self.in_features, self.out_features))
        if self.bias is not None:
            self.bias.assign(np.zeros(self.out_features))

    def forward(self, x):
        """x of shape (..., K) to (..., M)."""
        x = x if isinstance(x, Tensor) else as_tensor(x, like=self.weight)
        shape = x._data.shape
        if not shape or shape[-1] != self.in_features:
            raise WrongFeatures(self, shape)
        return ops.dense(x, self.weight, self.bias, self.activation)

    def infer(self, x):
        """As `forward`, on an array of shape (N, K) and the dtype of the weight; anything else goes the usual way."""
        w = self.weight._data
        if type(x) is not np.ndarray or x.ndim != 2 or x.shape[1] != self.in_features or x.dtype is not w.dtype:
            return self(x).numpy()
        return ops.dense_forward(x, w, None if self.bias is None else self.bias._data, self.activation)[0]

    def work_per_row(self):
        return self.weight.size, self.weight.size

    def config(self):
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "activation": self.activation,
            "bias": self.bias is not None,
        }

    @staticmethod
    def stored_shapes(config):
        """Shapes of arrays in a file that this configuration implies; checked before the layer is built."""
        return {"weight": (config["in_features"], config["out_features"])}

    def __repr__(self):
        activation = f", activation={self.activation!r}" if self.activation else ""
        return (
            f"Dense({self.in_features}, {self.out_features}{activation}{', bias=False' if self.bias is None else ''})"
        )


class Embedding(Module):
    """A table of vectors, looked up by id. Its gradient is a `RowSparse`: a step costs what the batch touches.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        R rows of D numbers. ``weight`` has shape (R, D) and starts as N(0, 0.1**2).
    rng : int, np.random.Generator or None
    """

    def __init__(self, num_embeddings, embedding_dim, rng=None):
        for name, value, meaning in (("num_embeddings", num_embeddings, "the number of ids"),
                                     ("embedding_dim", embedding_dim, "the length of each vector")):  # fmt: skip
            setattr(self, name, checks.whole("Embedding", name, value, "[1, inf)", meaning, 16))
        self.weight = Parameter(np.zeros((num_embeddings, embedding_dim), np.float32))
        self.initialize(rng)

    def initialize(self, rng=None):
        """Draw the table anew."""
        self.weight.assign(checks.generator("Embedding", rng).normal(0, 0.1, self.weight.shape))

    def forward(self, ids):
        """ids of any shape S, whole numbers in [0, R), to (*S, D)."""
        return ops.embedding(self.weight, check_ids(self, ids))

    def config(self):
        return {"num_embeddings": self.num_embeddings, "embedding_dim": self.embedding_dim}

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        return {"weight": (config["num_embeddings"], config["embedding_dim"])}

    def __repr__(self):
        return f"Embedding({self.num_embeddings}, {self.embedding_dim})"


class Dropout(Module):
    """In train mode, set each element to 0 with this probability and scale up the rest; in eval mode, do nothing.

    Parameters
    ----------
    rate : float in [0, 1)
    rng : int, np.random.Generator or None
        Own generator; inside `fit`, the generator of `fit` is used instead.
    """

    def __init__(self, rate=0.5, rng=None):
        self.rate = float(checks.number("Dropout", "rate", rate, "[0, 1)", "the fraction that is dropped", 0.2))
        self.initialize(rng)

    def initialize(self, rng=None):
        """Draw from this generator from now on."""
        self.generator = checks.generator("Dropout", rng)

    def forward(self, x):
        """Any shape, unchanged."""
        if not self.is_training() or self.rate == 0:
            return as_tensor(x)
        return ops.dropout(x, self.rate, generator_in_use(self))

    def infer(self, x):
        """x itself in eval mode."""
        return x if not self.is_training() and isinstance(x, (np.ndarray, Tensor)) else self(x).numpy()

    def work_per_row(self):
        return 0, 0

    def config(self):
        return {"rate": self.rate}

    def __repr__(self):
        return f"Dropout({self.rate})"


class Activation(Module):
    """An activation as a layer, by name; `ReLU` and its like are its short forms.

    Inside a `Dense` (``activation="relu"``) the same function costs less: it is one operation with the product.
    """

    def __init__(self, name):
        check_name("activation", name, ops.ACTIVATIONS)
        self.name = name

    def forward(self, x):
        """Any shape, unchanged."""
        return ops.activate(self.name, x)

    def infer(self, x):
        """As `forward`."""
        return self(x).numpy()

    def work_per_row(self):
        return 0, 0

    def config(self):
        return {"name": self.name}

    def __repr__(self):
        return f"Activation({self.name!r})"


def ReLU():
    """max(x, 0) as a layer."""
    return Activation("relu")


def LeakyReLU():
    """x where positive, 0.01 x elsewhere, as a layer."""
    return Activation("leaky_relu")


def Sigmoid():
    """1 / (1 + exp(-x)) as a layer."""
    return Activation("sigmoid")


def Tanh():
    """Hyperbolic tangent as a layer."""
    return Activation("tanh")


def GELU():
    """x * P(X <= x), X standard normal, as a layer."""
    return Activation("gelu")


def Softplus():
    """log(1 + exp(x)) as a layer."""
    return Activation("softplus")


def Softmax():
    """Softmax over the last axis as a layer. The losses take logits: do not end a model in it that is to be trained."""
    return Activation("softmax")


class Flatten(Module):
    """(N, ...) to (N, everything else in one axis)."""

    def forward(self, x):
        """(N, ...) to (N, K)."""
        x = as_tensor(x)
        return ops.reshape(x, x.shape[0], int(np.prod(x.shape[1:])))

    def infer(self, x):
        """As `forward`."""
        return self(x).numpy()

    def work_per_row(self):
        return 0, 0


class Concatenate(Module):
    """Several inputs, each through its own branch, joined along the last axis.

    The other axes are broadcast: users (N, 1) and items (1, I) make N * I pairs (``distill.score_all``).

    Parameters
    ----------
    *branches : Module
        One for each input. Without any, the inputs are joined as they are.
    """

    _numbered = "branches"

    def __init__(self, *branches):
        self.branches = list(branches)

    def forward(self, *inputs):
        """(N, K1), (N, K2), ... to (N, K1 + K2 + ...)."""
        if self.branches and len(inputs) != len(self.branches):
            raise ValueError(
                f"Concatenate with {len(self.branches)} branches got {len(inputs)} inputs.\n"
                "Each branch takes one input.\nCall the model with one array for each: model(user_ids, item_ids)."
            )
        parts = [branch(x) for branch, x in zip(self.branches, inputs)] if self.branches else list(inputs)
        shapes = [np.shape(part)[:-1] for part in parts]
        if shapes.count(shapes[0]) < len(shapes):
            parts = [ops.broadcast_to(part, (*_common(shapes), np.shape(part)[-1])) for part in parts]
        return ops.concatenate(parts, axis=-1)

    def __repr__(self):
        return f"Concatenate({', '.join(map(repr, self.branches))})"


class Sequential(Module):
    """Layers one after another. Paths number them: ``"2.weight"`` is the weight of the third.

    Parameters
    ----------
    *layers : Module
        The first may take several inputs (`Concatenate`).
    rng : int, np.random.Generator or None
        If given, all layers are drawn anew from this one stream.
    """

    _numbered = "layers"

    def __init__(self, *layers, rng=None):
        for layer in layers:
            if not isinstance(layer, Module):
                raise TypeError(
                    f"Sequential got {layer!r} as a layer.\nEvery layer is a Module.\n"
                    'Write nn.Activation("relu") or Dense(..., activation="relu") for a function.'
                )
        self.layers = list(layers)
        if rng is not None:
            initialize(self, rng)

    def forward(self, *inputs):
        """Through all layers."""
        for layer in self.layers:
            inputs = (layer(*inputs),)
        return inputs[0]

    def infer(self, *inputs):
        """As `forward`, on arrays."""
        for layer in self.layers:
            inputs = (layer.infer(*inputs),)
        return inputs[0]

    def work_per_row(self):
        total = in_blas = 0
        for layer in self.layers:
            work = layer.work_per_row()
            if work is None:
                return None
            total, in_blas = total + work[0], in_blas + work[1]
        return total, in_blas

    def __len__(self):
        return len(self.layers)

    def __getitem__(self, index):
        return Sequential(*self.layers[index]) if isinstance(index, slice) else self.layers[index]

    def __repr__(self):
        return "Sequential(\n" + "".join(f"    {layer!r},\n" for layer in self.layers) + ")"


def _common(shapes):
    """The shape that several broadcast to."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        told = ", ".join(f"({', '.join(map(str, shape))}, ...)" for shape in shapes)
        raise ValueError(
            f"Concatenate got parts of the shapes {told}.\nAll axes but the last are equal, or 1.\n"
            "Pass as many rows to each branch: model(user_ids, item_ids) of one length."
        ) from error


def check_ids(layer, ids):
    """``ids`` as an integer array that indexes the rows of ``layer``, or an error that says what is wrong."""
    array = checks.array("Embedding", "ids", ids)
    if isinstance(ids, Tensor) or array.dtype.kind not in "iu":
        raise TypeError(
            f"{layer!r} got ids of dtype {array.dtype}.\nIds are whole numbers.\n"
            "Pass an integer array: ids.astype(np.int64)."
        )
    if not within(array, layer.num_embeddings):
        raise IndexError(
            f"{layer!r} got ids from {array.min()} to {array.max()}.\nIds must lie in [0, {layer.num_embeddings}).\n"
            "Number the ids from 0, or make the table larger."
        )
    return array


def check_name(what, name, known):
    """Refuse a name that is not among those known; None is always allowed."""
    if name is not None and name not in list(known):
        raise ValueError(
            f"{what}={name!r} was asked for.\nThe known names are: {', '.join(known)}.\n"
            f"Choose one of them, or None for {'a linear layer' if what == 'activation' else 'the default'}."
        )
