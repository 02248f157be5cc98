"""Post-training quantization: calibrate a float model with data, and replace its Dense layers by integer ones.

Nothing is trained. The model runs once over the calibration data; an observer at each `Dense` sees what comes in
(``nn.watch``, so that any module works, not only `Sequential`). Read ``layers.py`` before this file.
"""

from __future__ import annotations

from ..datasets import Dataset
from ..nn import Dense, replace, watch
from ..tensor import as_tensor
from ..training import predict
from .layers import QuantizedDense
from .observers import MinMax


def post_training(model, calibration, batch_size=256):
    """A new model whose `Dense` layers compute in integers. The float model is unchanged.

    Embedding tables and other layers stay as they are. Pruned weights stay exactly 0, since 0 is exact.

    Parameters
    ----------
    model : Module
    calibration : ndarray, tuple of ndarrays, or Dataset
        Typical inputs, some hundred or more; never the test set. The range of what each layer sees becomes its scale.
    batch_size : int

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        If there is no Dense layer, one is not reached, or NaN or infinity appears.
    """
    observers = {id(m): MinMax() for m in model.modules() if isinstance(m, Dense)}
    if not observers:
        raise ValueError(
            "post_training found no Dense layer.\nThese are what it quantizes.\nPass a float model with nn.Dense layers."
        )

    def see(module, inputs, output):
        if id(module) in observers:
            observers[id(module)].see(as_tensor(inputs[0]).data)
        return output

    with watch(see):
        predict(model, calibration.x if isinstance(calibration, Dataset) else calibration, batch_size)
    integer = {path: QuantizedDense.from_dense(m, observers[id(m)]) for path, m in model.named_modules() if id(m) in observers}
    twin = model.copy()
    for path, layer in integer.items():
        twin = replace(twin, path, layer)
    return twin
