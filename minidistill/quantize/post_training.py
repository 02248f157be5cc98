"""Post-training quantization: calibrate a float model with data, and replace its Dense layers by integer ones.

Nothing is trained. The model runs once over the calibration data; an observer at each `Dense` sees what comes in
(``nn.watch``, so that any module works, not only `Sequential`). Read ``layers.py`` before this file.
"""

from __future__ import annotations

from ..nn import replace, watch
from ..nn.forward_only import replaceable
from ..tensor import as_tensor
from ..training import predict
from .layers import QuantizedDense
from .observers import MinMax


def post_training(model, calibration, batch_size=256):
    """A new model whose `Dense` layers compute in integers. The float model is unchanged.

    Everything else (embedding tables, sparse layers, subclasses of `Dense` with a forward of their own) stays as it is,
    in float. Pruned weights stay exactly 0, since 0 is exact; their masks are not kept.

    Parameters
    ----------
    model : Module
    calibration : ndarray, tuple of ndarrays (several inputs), or Dataset
        Typical inputs, some hundred or more; never the test set. The range of what each layer sees becomes its scale.
    batch_size : int
        Samples that pass through the model at a time; no influence on the result beyond rounding.

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        If there is no `Dense` layer, one is not reached, or NaN or infinity appears.
    """
    layers = replaceable(model)
    if not layers:
        raise ValueError(
            "post_training found no Dense layer.\nIt quantizes nothing else.\nPass a float model with nn.Dense layers."
        )
    observers = {id(layer): MinMax(f"the input of layer {path!r}") for path, layer in layers.items()}

    def see(module, inputs, output):
        if id(module) in observers:
            observers[id(module)].see(as_tensor(inputs[0]).data)
        return output

    with watch(see):
        predict(model, calibration, batch_size)
    integer = {path: QuantizedDense.from_dense(layer, observers[id(layer)]) for path, layer in layers.items()}
    twin = model.copy()
    for path, layer in integer.items():
        twin = replace(twin, path, layer)
    return twin
