"""The optimizers: SGD, Adam and AdamW. Each is its options, what it remembers for a parameter, and a call of a kernel.

The update rules themselves, line by line and with their sources, are in ``kernels/reference/``; what happens around
them is in ``base.py``. Read both before this file.
"""

from __future__ import annotations

import numpy as np

from ..kernels import adam_step, adam_steps, sgd_step, sgd_steps, together
from .base import Optimizer

_NO_VELOCITIES = {dtype: together([], dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted.

    The velocity is ``momentum * velocity + g`` and the step ``-lr * velocity`` (Sutskever et al. 2013, "On the importance
    of initialization and momentum in deep learning", with the rate outside of the velocity).

    Parameters
    ----------
    params, clip_norm, clip_value
        See `Optimizer`.
    lr : float or schedule
        See ``schedules.py``.
    momentum : float in [0, 1)
    nesterov : bool
        Step along ``g + momentum * velocity`` (Bengio et al. 2013, "Advances in optimizing recurrent networks", section
        3.5). Needs momentum.
    weight_decay : float
        Added as ``weight_decay * w`` to the gradient: an L2 penalty of ``weight_decay / 2 * sum(w**2)``.
    decoupled : bool
        Take ``lr * weight_decay * w`` off the weight instead, past the momentum (Loshchilov & Hutter 2019, "Decoupled
        Weight Decay Regularization", algorithm 1).

    Raises
    ------
    ValueError, TypeError
        If an option is out of its range or a parameter cannot be trained.
    """

    def __init__(
        self,
        params,
        lr,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        decoupled=False,
        clip_norm=None,
        clip_value=None,
    ):
        options = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
        }
        super().__init__(params, options, clip_norm, clip_value)

    def check_options(self, options):
        super().check_options(options)
        self.number("momentum", options["momentum"], "[0, 1)", "the share of the last step that is kept", 0.9)
        if options["nesterov"] and not options["momentum"]:
            raise self.option_error("nesterov", True, "Nesterov's step needs momentum", "momentum=0.9, nesterov=True")

    def slot_names(self, options):
        return ("velocity",) if options["momentum"] else ()

    def rule(self, params, grads, slots, masks, lr, options):
        velocities = slots["velocity"] if options["momentum"] else _NO_VELOCITIES[params[0].dtype]
        sgd_steps(params, grads, velocities, masks, lr, *self._how(options))

    def row_rule(self, array, grad, slots, mask, rows, lr, options):
        sgd_step(array, grad, slots.get("velocity"), mask, rows, lr, *self._how(options))

    def _how(self, options):
        return options["momentum"], options["nesterov"], options["weight_decay"], options["decoupled"]


class Adam(Optimizer):
    """Adam: a step of about ``lr`` for each number, whatever the scale of its gradient (Kingma & Ba 2015, algorithm 1).

    Parameters
    ----------
    params, clip_norm, clip_value
        See `Optimizer`.
    lr : float or schedule
        See ``schedules.py``.
    betas : pair of floats in [0, 1)
        Decay of the first and second moment.
    eps : float
        Positive; added to the root of the second moment.
    weight_decay : float
        Added as ``weight_decay * w`` to the gradient: an L2 penalty, which the moments rescale. See `AdamW`.

    Raises
    ------
    ValueError, TypeError
        If an option is out of its range or a parameter cannot be trained.
    """

    decoupled = False

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip_norm=None, clip_value=None
    ):
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, clip_norm, clip_value)

    def check_options(self, options):
        super().check_options(options)
        betas = options["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise self.option_error("betas", betas, "Betas are two numbers in [0, 1)", "betas=(0.9, 0.999)")
        for name, beta, usual in zip(("betas[0]", "betas[1]"), betas, (0.9, 0.999)):
            self.number(name, beta, "[0, 1)", "the share of a moment that is kept", usual)
        self.number("eps", options["eps"], "(0, inf)", "what keeps the root from 0", 1e-8)

    def slot_names(self, options):
        return ("m", "v")

    def rule(self, params, grads, slots, masks, lr, options):
        adam_steps(params, grads, slots["m"], slots["v"], masks, self.step_count, lr, *self._how(options))

    def row_rule(self, array, grad, slots, mask, rows, lr, options):
        adam_step(array, grad, slots["m"], slots["v"], mask, rows, self.step_count, lr, *self._how(options))

    def _how(self, options):
        return *options["betas"], options["eps"], options["weight_decay"], self.decoupled


class AdamW(Adam):
    """Adam with decoupled weight decay: ``lr * weight_decay * w`` is taken off the weight itself, past the moments.

    Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2; their schedule multiplier times alpha is
    ``lr`` here. Parameters as in `Adam`.
    """

    decoupled = True

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, clip_norm=None, clip_value=None
    ):
        super().__init__(params, lr, betas, eps, weight_decay, clip_norm, clip_value)
