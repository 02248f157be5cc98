"""Initial weights: Glorot and He, uniform and normal, and `initialize` for a whole model from one stream.

Both keep the variance of the signal about constant from layer to layer; He doubles it, because relu passes half.
"""

from __future__ import annotations

import numpy as np

from .. import checks
from .module import check_module


def glorot_uniform(rng, fan_in, fan_out):
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, equation 16). Shape (fan_in, fan_out)."""
    a = np.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-a, a, (fan_in, fan_out))


def glorot_normal(rng, fan_in, fan_out):
    """N(0, 2 / (fan_in + fan_out)) (Glorot & Bengio 2010, section 4.2.1). Shape (fan_in, fan_out)."""
    return rng.normal(0, np.sqrt(2 / (fan_in + fan_out)), (fan_in, fan_out))


def he_uniform(rng, fan_in, fan_out):
    """U(-a, a) with a = sqrt(6 / fan_in) (He et al. 2015, equation 10). Shape (fan_in, fan_out)."""
    a = np.sqrt(6 / fan_in)
    return rng.uniform(-a, a, (fan_in, fan_out))


def he_normal(rng, fan_in, fan_out):
    """N(0, 2 / fan_in) (He et al. 2015, equation 10). Shape (fan_in, fan_out)."""
    return rng.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out))


INITIALIZERS = {f.__name__: f for f in (glorot_uniform, glorot_normal, he_uniform, he_normal)}


def initialize(model, rng=None):
    """Draw all parameters of a model anew, layer after layer, from one stream.

    One stream matters: two equal layers that were each made with ``rng=0`` would start identical.

    Parameters
    ----------
    model : Module
    rng : int, np.random.Generator or None

    Returns
    -------
    Module
        The same model.
    """
    check_module("nn.initialize", model)
    rng = checks.generator("initialize", rng)
    for module in model.modules():
        if hasattr(module, "initialize"):
            module.initialize(rng)
    return model
