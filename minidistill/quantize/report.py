"""Which layer does quantization hurt? A report, layer by layer, of a float model against its integer twin.

Read ``post_training.py`` before this file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..explain import Table
from ..kernels import dequantize
from ..nn import watch
from ..nn.forward_only import replaceable
from ..nn.module import check_module
from ..tensor import as_float_array, as_tensor
from ..training import predict
from .integer_layers import QuantizedDense


class LayerError(NamedTuple):
    """One line of an `ErrorReport`.

    Attributes
    ----------
    path : str
    alone_db : float
        Signal to quantization noise of this layer alone: the twin's layer gets the inputs of the float model.
    so_far_db : float
        The same with the inputs that the twin really has: the errors of all layers so far.
    max_error : float
        Largest absolute error of this layer alone.
    saturated : float
        Fraction of its inputs outside the range of its scale, and so cut off. 0 for layers without a fixed scale.
    """

    path: str
    alone_db: float
    so_far_db: float
    max_error: float
    saturated: float


class ErrorReport(list):
    """The `LayerError` of every quantized `Dense`, in the order of computation; prints as a table."""

    @property
    def worst(self):
        """The layer with the lowest signal-to-noise ratio of its own: where more bits would help first."""
        return min(self, key=lambda error: error.alone_db)

    def __str__(self):
        rows = [["layer", "alone", "so far", "max error", "saturated", ""]]
        for e in self:
            numbers = f"{e.alone_db:.1f} dB", f"{e.so_far_db:.1f} dB", f"{e.max_error:.3g}", f"{e.saturated:.2%}"
            rows.append([e.path, *numbers, "<- worst" if e is self.worst and len(self) > 1 else ""])
        return str(Table.of(rows, left=(0, 5)))

    __repr__ = __str__


def error_report(model, quantized, data, batch_size=256):
    """Compare each quantized layer with the float layer that it was made from.

    Parameters
    ----------
    model : Module
        Float.
    quantized : Module
        What `post_training` made of it.
    data : ndarray, tuple of ndarrays, or Dataset
        Inputs; they need no labels.
    batch_size : int

    Returns
    -------
    ErrorReport

    Raises
    ------
    ValueError
        If no Dense layer of the model is quantized in the other.
    """
    layers = replaceable(check_module("error_report", model))
    twins = dict(check_module("error_report", quantized).named_modules())
    pairs = {path: twins[path] for path in layers if path in twins and type(twins[path]) is not type(layers[path])}
    if not pairs:
        raise ValueError(
            "error_report found no Dense layer that is quantized in the other model.\nIt compares layers of the same path.\n"
            "Pass the float model first, then what quantize.post_training made of it."
        )
    floats, integers = _record(model, pairs, data, batch_size), _record(quantized, pairs, data, batch_size)
    report = ErrorReport()
    for path, (inputs, exact) in floats.items():
        if path not in integers or integers[path][1].shape != exact.shape:
            continue  # the two models went different ways, at a branch of their own
        twin, so_far, alone = pairs[path], integers[path][1], pairs[path](inputs).numpy()
        if (
            twin.activation == "relu" != layers[path].activation
        ):  # the relu was a layer of its own, and is done by the twin
            exact, so_far = np.maximum(exact, 0), np.maximum(so_far, 0)
        errors = signal_to_noise(exact, alone), signal_to_noise(exact, so_far), float(np.abs(alone - exact).max())
        report.append(LayerError(path, *errors, _saturated(twin, inputs)))
    return report


def signal_to_noise(exact, approximate):
    """10 log10(sum exact² / sum (exact - approximate)²) in dB: 6 dB are one bit. inf if they are equal.

    Parameters
    ----------
    exact, approximate : ndarray, of one shape

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    exact, approximate = (as_float_array(values).astype(np.float64) for values in (exact, approximate))
    if exact.shape != approximate.shape:
        raise ValueError(
            f"signal_to_noise got shapes {exact.shape} and {approximate.shape}.\nIt compares number by number.\n"
            "Pass the outputs of two models for the same inputs."
        )
    noise = np.square(exact - approximate).sum()
    signal = np.square(exact).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


def _record(model, paths, data, batch_size):
    """{path: (inputs, outputs)} of these layers over all of the data, in the order of computation."""
    names, seen = {id(model.get(path)): path for path in paths}, {}

    def note(module, inputs, output):
        if id(module) in names:
            rows = seen.setdefault(names[id(module)], ([], []))
            for kept, value in zip(rows, (inputs[0], output)):
                kept.append(as_tensor(value).numpy().reshape(-1, np.shape(value)[-1]))
        return output

    with watch(note):
        predict(model, data, batch_size)
    return {path: tuple(np.concatenate(rows) for rows in pair) for path, pair in seen.items()}


def _saturated(layer, inputs):
    if not isinstance(layer, QuantizedDense):
        return 0.0
    ends = dequantize(np.array([0, 255], np.uint8), layer.input_scale[0], int(layer.input_zero_point[0]))
    step = layer.input_scale[0] / 2
    return float(np.mean((inputs < ends[0] - step) | (inputs > ends[1] + step)))
