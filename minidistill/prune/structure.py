"""Structured pruning: whole units at a time. What goes is then a neuron, a block or a row, and not a weight here and there.

===================  =========================================  ======================================================
function             a unit is                                  what it is good for
===================  =========================================  ======================================================
`neurons`            a column of a weight, and its bias         `shrink` takes it out, and the rows of the next layer
`n_m`                one weight; n of each m neighbours stay    a fixed place for each weight: packed without an index
`blocks`             a rectangle of a weight                    one index for many weights
`embedding_rows`     an id's vector                             tables of ids that hardly occur
`embedding_columns`  one number of each vector                  `shrink` makes the table narrower
===================  =========================================  ======================================================

A unit gets a score, and ``masks.mask_lowest`` picks an exact number of the lowest, as it does with single weights. A unit
counts as masked already when all of its weights are. Read ``masks.py`` and ``criteria.py`` before this file.

Given up: what a neuron did is not handed on to those that stay (as the paper of "redundancy" does, and ``second_order.py``
for single weights); train on, or distil. Shapes: K inputs, M units or outputs, R rows and D columns of a table.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np

from ..datasets import Dataset
from ..kernels import matmul
from ..nn import Activation, Dense, Embedding, example_inputs, trace, watch
from ..nn.forward_only import ForwardOnly, refuse_converted
from ..nn.graph import check_samples
from ..nn.module import check_module
from ..training import predict
from .criteria import check_reached
from .masks import check_sparsity, keep_along, kept_of, mask_lowest, prunable, set_mask, set_masks

NEURON_CRITERIA = ("norm", "activation", "redundancy")


def neurons(model, fraction, layers=None, by="norm", data=None, example=None, batch_size=256, allow_empty=()):
    """Mask whole neurons of hidden `Dense` layers, in place: their incoming weights and their bias.

    Parameters
    ----------
    model : Module
    fraction : float in [0, 1), or dict of str to float
        Of the neurons of each layer, how many are to be masked afterwards, those before included: exactly
        ``round(fraction * M)``. Of equal ones, the first go. A dict has one for each layer that is to be pruned, by path.
    layers : list of str, optional
        Dotted paths. By default those whose result reaches the model's output only through other `Dense` layers: never the
        output layer, nor one that is added to its result or sits beside it.
    by : {"norm", "activation", "redundancy"}
        Which go first. "norm": those with the smallest L2 norm of incoming weights. "activation": those with the smallest
        mean absolute output over ``data``. "redundancy": of the two neurons whose incoming weights and bias point in the
        most similar direction, the one with the shorter vector; then again, among the others. It needs no data (Srinivas &
        Babu 2015, "Data-free Parameter Pruning for Deep Neural Networks").
    data : ndarray, tuple of ndarrays (several inputs), or Dataset, optional
        For "activation". A layer's output is what it gives after its activation, be that its own or a layer that follows.
    example : ndarray or tuple of ndarrays, optional
        Two samples, to find the hidden layers by. Needed for a model with a ``forward`` of its own, if there is neither
        ``data`` nor ``layers``.
    batch_size : int
        Samples of ``data`` that pass through the model at a time.
    allow_empty : list of str, optional
        As in `prune.magnitude`. An output neuron is masked only where its layer is named here, too.

    Returns
    -------
    Module
        The same model. `shrink` makes a smaller one of it.

    Raises
    ------
    ValueError
        As in `prune.magnitude`, and if a layer would lose all its neurons, there is no hidden layer, or the data is missing
        or does not reach a layer. The model is unchanged then.
    """
    check_sparsity(fraction, "fraction")
    _check_criterion(by, data)
    check_module("prune.neurons", model)
    if layers is None and not isinstance(fraction, dict):
        layers = _hidden_layers(model, _rows_of(data) if example is None else example)
    chosen = prunable(model, layers, fraction, Dense, allow_empty, data if example is None else example)
    if by == "activation":
        scores = _activity(model, chosen, data, batch_size)
    elif by == "redundancy":
        scores = {path: _redundancy(layer) for path, layer in chosen.items()}
    else:
        scores = {path: _norm(layer.weight.data, axis=0) for path, layer in chosen.items()}
    kept = _mask_lines(chosen, scores, fraction, axis=0)
    for path, layer in chosen.items():
        if layer.bias is not None:
            set_mask(layer.bias, kept_of(layer.bias) & kept[path])
    return model


def n_m(model, n=2, m=4, layers=None, allow_empty=()):
    """Keep at most the n largest of each m neighbouring inputs of each output, in place: N:M sparsity.

    Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", is about 2:4. The groups are the inputs 0 to m - 1, m to
    2 m - 1 and so on.

    Parameters
    ----------
    model : Module
    n, m : int
        1 <= n <= m. ``m - n`` weights of each group are masked afterwards, those before included, or more where more were
        masked before. Of equal magnitudes, the first go.
    layers : list of str, optional
        Dotted paths of the `Dense` layers to prune; all by default.
    allow_empty : list of str, optional
        As in `prune.magnitude`: where more was masked before, a group may keep nothing.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        If n or m is out of range, m does not divide a layer's in_features, a path is unknown, or a weight is NaN or
        infinite. The model is unchanged then.
    """
    if not (isinstance(n, Integral) and isinstance(m, Integral) and 1 <= n <= m):
        raise ValueError(
            f"prune.n_m got n = {n!r} and m = {m!r}.\nOf each m neighbours n are kept: whole numbers, 1 <= n <= m.\n"
            "Write prune.n_m(model, n=2, m=4)."
        )
    chosen, masks = prunable(model, layers, kind=Dense, allow_empty=allow_empty), {}
    for path, layer in chosen.items():
        _check_divides("n_m", path, layer, (m, 1))
        kept = kept_of(layer.weight)
        ranked = np.where(kept, np.abs(layer.weight.data), -np.inf).reshape(-1, m, layer.out_features)
        masks[path] = kept & keep_along(ranked, m - n, axis=1).reshape(kept.shape)
    set_masks(chosen, masks)
    return model


def blocks(model, sparsity, shape=(8, 1), scope="global", layers=None, allow_empty=()):
    """Mask whole blocks of weights, those with the smallest L2 norm, in place.

    Parameters
    ----------
    model, layers, allow_empty
        As in `prune.magnitude`, but `Dense` layers only.
    sparsity : float in [0, 1), or dict of str to float
        Fraction of the blocks to be masked afterwards, those masked before included: exactly ``round(sparsity * blocks)``.
    shape : (int, int)
        Inputs and outputs of a block. They divide in_features and out_features of each layer.
    scope : {"global", "layer", "output"}
        As in `prune.magnitude`; "output" compares the blocks of the same outputs.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        As in `prune.magnitude`, and if the shape does not divide that of a layer. The model is unchanged then.
    """
    _check_shape(shape)
    chosen, scores, (rows, columns) = prunable(model, layers, sparsity, Dense, allow_empty), {}, shape
    for path, layer in chosen.items():
        _check_divides("blocks", path, layer, shape)
        grid = layer.in_features // rows, rows, layer.out_features // columns, columns
        scores[path] = _norm(layer.weight.data.reshape(grid), axis=(1, 3))
    mask_lowest(chosen, scores, sparsity, scope)
    return model


def embedding_rows(model, fraction, layers=None, counts=None, allow_empty=()):
    """Mask whole rows of embedding tables, in place: ids whose vector is 0 from then on.

    Parameters
    ----------
    model : Module
    fraction : float in [0, 1), or dict of str to float
        Of the rows of each table, how many are to be masked afterwards, those before included: exactly
        ``round(fraction * R)``. A dict has one for each table that is to be pruned, by path.
    layers : list of str, optional
        Dotted paths; all `Embedding` layers by default.
    counts : array_like, shape (R,), or dict of str to such, optional
        How often each id occurs, such as ``np.bincount(users, minlength=R)``; the rarest go. Without, those with the
        smallest L2 norm.
    allow_empty : list of str, optional
        Dotted paths of tables that may lose all their rows.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        As in `prune.magnitude`, and if nothing would be left of a table or the counts do not fit it. The model is unchanged
        then.
    """
    check_sparsity(fraction, "fraction")
    chosen = prunable(model, layers, fraction, Embedding, allow_empty)
    if counts is None:
        scores = {path: _norm(table.weight.data, axis=1) for path, table in chosen.items()}
    else:
        scores = {path: _counts_of(path, table, counts) for path, table in chosen.items()}
    _mask_lines(chosen, scores, fraction, axis=1)
    return model


def embedding_columns(model, fraction, layers=None, allow_empty=()):
    """Mask whole columns of embedding tables, those with the smallest L2 norm, in place.

    Parameters
    ----------
    model, layers, allow_empty
        As in `embedding_rows`.
    fraction : float in [0, 1), or dict of str to float
        Of the columns of each table, how many are to be masked afterwards: exactly ``round(fraction * D)``.

    Returns
    -------
    Module
        The same model. `shrink` makes the tables narrower, and the layers that take their vectors.

    Raises
    ------
    ValueError
        As in `embedding_rows`.
    """
    check_sparsity(fraction, "fraction")
    chosen = prunable(model, layers, fraction, Embedding, allow_empty)
    _mask_lines(chosen, {path: _norm(t.weight.data, axis=0) for path, t in chosen.items()}, fraction, axis=0)
    return model


def _mask_lines(layers, scores, fraction, axis):
    """Mask the columns (axis 0) or rows (axis 1) of lowest score, each layer for itself; return which are kept."""
    scores = {path: np.expand_dims(score, axis) for path, score in scores.items()}
    return {p: kept.ravel() for p, kept in mask_lowest(layers, scores, fraction, "layer", scopes=()).items()}


def _norm(values, axis):
    """L2 norms, summed in float64."""
    return np.sqrt(np.square(values, dtype=np.float64).sum(axis=axis))


def _activity(model, layers, data, batch_size):
    """{path: sum of absolute outputs of each neuron over the data, shape (M,)}; after an Activation layer, if one follows."""
    paths, made, sums = {id(layer): path for path, layer in layers.items()}, {}, {}

    def note(module, inputs, output):
        follows, path = type(module) is Activation, paths.get(id(module))
        if follows:
            path = next((path for path, result in made.items() if result is inputs[0]), None)
        elif path is not None:
            made[path] = output
        if path is not None:
            sizes = np.abs(output.data, dtype=np.float64).reshape(-1, output.shape[-1])
            sums[path, follows] = sums.get((path, follows), 0) + sizes.sum(axis=0)
        return output

    check_samples(model, data)
    with watch(note):
        check_samples(model, data, predict(model, data, batch_size))
    check_reached(layers, {path for path, _ in sums}, "the data never reached")
    return {path: sums[path, (path, True) in sums] for path in layers}


def _redundancy(layer):
    """When each neuron would go, from 0, if of the closest pair the shorter went again and again; shape (M,)."""
    vectors = layer.weight.data if layer.bias is None else np.vstack([layer.weight.data, layer.bias.data])
    lengths = _norm(vectors, axis=0)
    directions = vectors / np.where(lengths > 0, lengths, 1)
    likeness = matmul(directions.T, directions)
    gone = ~kept_of(layer.weight).any(axis=0)
    likeness[gone] = likeness[:, gone] = -np.inf
    np.fill_diagonal(likeness, -np.inf)
    turns = np.full(len(lengths), float(len(lengths)))
    for turn in range(np.count_nonzero(~gone) - 1):
        pair = np.array(np.unravel_index(np.argmax(likeness), likeness.shape))
        one = pair[np.argmin(lengths[pair])]
        turns[one] = turn
        likeness[one] = likeness[:, one] = -np.inf
    return turns


def _hidden_layers(model, example):
    """Paths of the Dense layers from which every way to the output leads through another Dense layer."""
    graph = trace(model, *example_inputs(model, example))
    last = graph.last((Dense, ForwardOnly))
    answers = {id(getattr(node.module, "weight", None)) for node in last}  # which a hidden layer may share
    hidden = [
        node.name for node in graph.layers if isinstance(node.module, Dense) and id(node.module.weight) not in answers
    ]
    if not hidden:
        if not any(isinstance(module, Dense) for module in model.modules()):
            refuse_converted(model, "pruning", "prune it, then convert it again")
        raise ValueError(
            "prune.neurons found no hidden Dense layer.\nOutput neurons are the answers, and not pruned unless "
            "named.\nPass a model with a Dense layer before the last, or name layers: layers=['0']."
        )
    return list(dict.fromkeys(hidden))


def _rows_of(data):
    return data.inputs if isinstance(data, Dataset) else data


def _counts_of(path, table, counts):
    """The counts of one table as float64, or an error."""
    found = counts.get(path) if isinstance(counts, dict) else counts
    array = np.asarray([] if found is None else found)
    fits = array.shape == (table.num_embeddings,) and array.dtype.kind in "iuf"
    if not fits or not np.isfinite(array).all() or array.min() < 0:
        raise ValueError(
            f"prune.embedding_rows got counts of shape {array.shape} for the table {path!r}.\nThere is one for each of its "
            f"{table.num_embeddings} ids, finite and not negative.\n"
            f"Write counts=np.bincount(ids, minlength={table.num_embeddings}), or a dict of such by path."
        )
    return array.astype(np.float64)


def _check_criterion(by, data):
    if by not in NEURON_CRITERIA or (by == "activation" and data is None):
        raise ValueError(
            f"prune.neurons got by={by!r}{'' if data is not None else ' and no data'}.\nThe criteria are: "
            f"{', '.join(NEURON_CRITERIA)}; activation needs data.\nWrite by='activation', data=train."
        )


def _check_shape(shape):
    numbers = isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(size, Integral) for size in shape)
    if not numbers or min(shape) < 1:
        raise ValueError(
            f"prune.blocks got shape = {shape!r}.\nA block is some inputs by some outputs, each at least 1.\n"
            "Write shape=(8, 1), for eight weights of one output."
        )


def _check_divides(who, path, layer, shape):
    """Refuse a layer that cannot be cut into pieces of this shape."""
    for name, size, part in zip(("in_features", "out_features"), layer.weight.shape, shape):
        if size % part:
            raise ValueError(
                f"prune.{who} met layer {path!r}, whose weight has shape {layer.weight.shape}.\nIts {name} = {size} has to "
                f"be a multiple of {part}.\nChoose another size, or name the layers that fit: layers=[...]."
            )
