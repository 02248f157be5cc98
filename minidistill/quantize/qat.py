"""Quantization-aware training: a float model made ready for it, and made an integer model afterwards.

In between it is trained by `fit` or ``distill`` like any other model: the rounding is in its layers, and
``simulated_quantization.py`` says how gradients pass. In eval mode it gives what the converted model gives, bit for bit: what
is validated is what is deployed.

Which layers hand integers to one another is decided here, before training, by the graph of the float model
(``consumers.py``), and conversion keeps to it. Read ``qat_layers.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from .. import checks
from ..nn import Dropout, Module, example_inputs, replace
from ..nn.module import check_module
from .consumers import integer_edges
from .observers import make_observer
from .post_training import bits_of, calibrate, give_floats_where_read, quantizable
from .qat_layers import FIXED, OBSERVE, QUANTIZE, QATDense, QATDropout, QATEmbedding, QATReLU


def prepare_qat(
    model, calibration=None, bits=8, per_channel=True, learned=False, embeddings=True, embedding_bits=8, observer="minmax",
    momentum=0.99, example=None, batch_size=256,
):  # fmt: skip
    """A new model that computes as the integer model made from it will, and can be trained. The float model stays.

    Start from a trained model, and train on with a lower rate (a tenth, say)::

        qat = quantize.prepare_qat(model, calibration=train.x, bits=4)
        md.fit(qat, train, optimizer=optim.Adam(qat.parameters(), lr=3e-4), epochs=10)
        integer = quantize.convert(qat)

    Parameters
    ----------
    model : Module
        Masks and other constraints are kept, so pruned weights stay exactly 0. A model of float64 is trained in float64, and
        computes in float32.
    calibration : ndarray, tuple of ndarrays (several inputs), or Dataset, optional
        From which the ranges of activations start, as in `post_training`: before any training, this model gives what that one
        does. Without it, they start from the first batch; ``learned`` needs it.
    bits : int in [2, 8], or dict of str to int
        Of the weights; a dict has them by path, and layers that it does not name have 8. Activations have 8.
    per_channel : bool
        A step size for each column of a weight, or one for all.
    learned : bool
        Whether step sizes are trained: LSQ (Esser et al. 2020, "Learned Step Size Quantization"). For few bits. Those of
        activations start from their ranges, with zero points that stay: so calibration data decide them. That of the model's
        inputs rests: its gradient would take another product. Weight decay would shrink these parameters, whose paths end in
        ``_reach``, and so clip more and more: leave them out of it, in a group of their own.
    embeddings : bool
        Whether tables are rounded, a scale for each row.
    embedding_bits : int
        Of tables: 8, 4 or 2.
    observer : str or callable
        What makes ranges of the calibration data, as in `post_training`; one of the user's own has ``range()``, too.
    momentum : float in [0, 1)
        The weight of the past when ranges move with the batches (Jacob et al. 2018, "Quantization and Training of Neural
        Networks for Efficient Integer-Arithmetic-Only Inference"; "close to 1"). To hold them where ``observer`` has put
        them, train with ``ActivationDelay(0, freeze=0)``.
    example : ndarray or tuple of ndarrays, optional
        Two samples, to see which layer feeds which, where there is no ``calibration`` and they cannot be guessed.
    batch_size : int
        Of the calibration.

    Returns
    -------
    Module
        In the mode of the float model.

    Raises
    ------
    ValueError
        If there is nothing to quantize, steps of activations are to be learned without calibration data, these do not reach a
        layer, or NaN or infinity appears.
    """
    layers, tables = quantizable(check_module("prepare_qat", model), embeddings)
    bits = bits_of(layers, bits)
    if learned and layers and calibration is None:
        raise ValueError(
            "prepare_qat got learned=True without calibration data.\nA learned step of an activation starts from its "
            "range, and its zero point stays: one batch is too little to decide it.\n"
            "Write quantize.prepare_qat(model, calibration=train.x, learned=True)."
        )
    inputs = example_inputs(model, example) if calibration is None else calibration
    ranges = {} if calibration is None else _ranges(model, layers, calibration, observer, batch_size)
    edges, follows = integer_edges(model, layers, inputs) if layers else ({}, set())
    qat, made = model.copy(), {}
    for path in layers:
        consumers, relus = edges.get(path, ((), ()))
        options = {"bits": bits[path], "per_channel": per_channel, "learned": learned, "momentum": momentum}
        places = {"gives_integers": bool(consumers), "relu_follows": bool(relus), "after_integers": path in follows}
        made[path] = QATDense.from_dense(qat.get(path), **options, **places)
        made |= {relu: QATReLU.from_relu(qat.get(relu)) for relu in relus}
    made |= {path: QATEmbedding.from_embedding(qat.get(path), embedding_bits) for path in tables}
    made |= {path: QATDropout.from_dropout(layer) for path, layer in qat.named_modules() if type(layer) is Dropout}
    for path, layer in made.items():
        qat = replace(qat, path, layer)
    _share_grids(qat, edges, layers, ranges)
    _give_floats_where_read(qat, inputs, batch_size)
    return qat


def convert(model):
    """The integer model that a model made by `prepare_qat` simulates: a new one, in eval mode. The trained model stays.

    It gives what the trained model gives in eval mode, bit for bit.

    Parameters
    ----------
    model : Module

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        If the model was not made by `prepare_qat`, or never saw data; if a weight is NaN or infinite.
    """
    if not any(isinstance(m, (QATDense, QATEmbedding)) for m in (model.modules() if isinstance(model, Module) else ())):
        raise ValueError(
            f"convert got a {type(model).__name__} without layers of quantization-aware training.\nIt converts what "
            "prepare_qat has made.\nCall quantize.prepare_qat(model) and train, or quantize.post_training(model, train.x)."
        )
    twin = model.copy()
    for path, layer in twin.named_modules():
        if isinstance(layer, (QATDense, QATReLU, QATDropout, QATEmbedding)):
            twin = replace(twin, path, layer.converted())
    return twin.eval()


class ActivationDelay:
    """A callback of `fit` and ``distill``: train with rounded weights only, round activations later, hold ranges at the end.

    Ranges of activations move a lot while training begins; what is clipped then learns nothing. (TensorFlow has a
    ``quant_delay`` for this, PyTorch enables observers and fake quantization one after the other.) In eval mode, and so in
    validation, the model is the integer one at all times.

    Parameters
    ----------
    epochs : int
        In the first so many epochs, activations are float and only observed.
    freeze : int, optional
        After so many epochs, ranges (and learned step sizes of activations) stay as they are.

    Notes
    -----
    It knows the epoch from the run alone, so a resumed run goes on bit for bit.
    """

    def __init__(self, epochs=1, freeze=None):
        observed, held = "how many epochs activations are only observed", "after how many epochs their ranges are held"
        self.epochs = checks.whole("ActivationDelay", "epochs", epochs, "[0, inf)", observed, 1)
        if freeze is not None:
            checks.whole("ActivationDelay", "freeze", freeze, f"[{epochs}, inf)", held, epochs + 1)
        self.freeze = freeze

    def on_train_begin(self, run):
        """Refuse a model that has nothing to delay."""
        self._set(run, QUANTIZE)

    def on_epoch_begin(self, run):
        """Set the stage."""
        frozen = self.freeze is not None and run.epoch >= self.freeze
        self._set(run, OBSERVE if run.epoch < self.epochs else FIXED if frozen else QUANTIZE)

    def on_train_end(self, run):
        """Leave the model as any other."""
        self._set(run, QUANTIZE)

    def _set(self, run, stage):
        layers = [module for module in run.model.modules() if isinstance(module, QATDense)]
        if not layers:
            raise ValueError(
                f"ActivationDelay was used with a {type(run.model).__name__} that rounds no activations.\nIt works on what "
                "quantize.prepare_qat has made.\nTrain that model, or leave the callback out."
            )
        for layer in layers:
            layer.stage = stage


def _ranges(model, layers, calibration, observer, batch_size):
    """{path: (low, high)} that the observers, which may be the user's, found for the inputs of layers."""
    observers = {path: make_observer(observer, f"the input of layer {path!r}") for path in layers}
    for made in observers.values():
        if not hasattr(made, "range"):
            raise ValueError(
                f"prepare_qat got an observer of the class {type(made).__name__}, which has no method range().\nA range "
                "goes on to move while training, so scale() is not enough.\nGive it range(), which returns (low, high), or "
                'write observer="minmax".'
            )
    calibrate(model, layers, calibration, observers, {}, batch_size)
    return {path: made.range() for path, made in observers.items()}


def _share_grids(qat, edges, layers, ranges):
    """Give each layer and those that take its result the same range, and the same reach; let it hold what was observed.

    Layers that take the same result share theirs, and so do all results that one layer takes.
    """
    group = {path: path for path in layers}  # each layer's input: by whose range it goes
    for consumers, _ in edges.values():
        joined = {group[consumer] for consumer in consumers}
        group = {path: group[consumers[0]] if first in joined else first for path, first in group.items()}
    for path in layers:
        first, layer = qat.get(group[path]), qat.get(path)
        layer.input_range, layer.input_reach = first.input_range, first.input_reach
    for path, (consumers, _) in edges.items():
        consumer, layer = qat.get(consumers[0]), qat.get(path)
        layer.output_range, layer.output_reach = consumer.input_range, consumer.input_reach
    for path, (low, high) in ranges.items():
        qat.get(path).widen(low, high)


def _give_floats_where_read(qat, inputs, batch_size):
    """Make a layer return floats if anything in the model reads its integers as floats."""
    ranges = [layer.input_range for layer in qat.modules() if isinstance(layer, QATDense)]
    unknown = [ends for ends in ranges if ends[0] > ends[1]]
    for ends in unknown:
        ends[:] = -1, 1  # any will do: only who reads what is looked at

    def give_floats(path, layer):
        layer.output_range, layer.output_reach, layer.relu_follows = None, None, False

    give_floats_where_read(qat, QATDense, inputs, batch_size, give_floats)
    for ends in unknown:
        ends[:] = np.inf, -np.inf
