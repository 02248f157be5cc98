"""Rounding: which integer each weight becomes. The nearest is the best for the weight, not for what the layer computes.

A layer computes x W. What rounding costs it, over the inputs of the calibration data, is ``tr(dᵀ H d)`` with d = W - S q and
H = XᵀX (``nn/hessian.py``): errors at inputs that are large together add up, or cancel. Here are three opinions:

- `Nearest`: each weight for itself; needs no data.
- `GPTQ`: one input after another is rounded, and those that follow take over the error.
- `AdaRound`: up or down is learned, for all weights of a layer at once.

Those that use H keep, for each output, the nearest integers where they did not find better ones. A weight that is exactly 0
stays 0 in all of them, since it may be pruned, and a mask is no part of an array.

An object of one's own has ``observe(x)``, called for all inputs (N, K) of the layer, and ``integers(weight, scale, limit)``.
Given up: layers are rounded one by one, for the inputs that the float model gives them; biases take over nothing
(``bias_correction.py`` does that). Read ``affine.py`` and ``nn/hessian.py`` before this file. Shapes: K inputs, M outputs.
"""

from __future__ import annotations

import numpy as np

from .. import checks
from ..kernels import matmul, product
from ..kernels.blas import OneBlasThread
from ..nn.hessian import Hessian, walk
from ..optim import Adam
from .affine import least, nearest
from .observers import make


class Nearest:
    """The nearest integer, half to even.

    Parameters
    ----------
    name : str
        Whose weights, for error messages.
    """

    def __init__(self, name="a layer"):
        self.name = name

    def observe(self, x):
        """Nothing to learn from inputs."""

    def see(self, x):
        """The older name of `observe`."""
        self.observe(x)

    def integers(self, weight, scale, limit):
        """The integers of a weight.

        Parameters
        ----------
        weight : ndarray of float32, shape (K, M)
            Finite.
        scale : ndarray of float32 that broadcasts to (K, M)
            Positive.
        limit : int
            At most 127.

        Returns
        -------
        ndarray of int8, shape (K, M)
            In [-limit, limit].
        """
        return nearest(weight, scale, limit)


class LeastError(Nearest):
    """Base of those that weigh errors by H. Subclasses define ``_round(weight, scale, limit)``, in float64 but for scale."""

    def __init__(self, name="a layer"):
        super().__init__(name)
        self.hessian = Hessian(name)

    def observe(self, x):
        """Take in inputs of shape (..., K); NaN or infinity raises ValueError."""
        self.hessian.see(x)

    def integers(self, weight, scale, limit):
        """As in `Nearest`; having seen nothing raises ValueError."""
        if np.ndim(self.hessian.value) == 0:
            raise ValueError(
                f"{type(self).__name__} saw nothing of {self.name}.\nIt weighs errors by the inputs of a layer.\n"
                'Calibrate with samples that pass through every layer, or write rounding="nearest".'
            )
        plain, scale = nearest(weight, scale, limit), np.broadcast_to(np.asarray(scale, np.float32), weight.shape)
        weight = np.asarray(weight, np.float64)
        with OneBlasThread():
            found = self._round(weight, scale, limit)
            changes = [weight - q * scale.astype(np.float64) for q in (plain, found)]
            errors = [output_errors(self.hessian.value, change) for change in changes]
        # No error is larger: |H_ij| <= sqrt(H_ii H_jj). In directions that no input has, errors are rounding alone.
        size = (np.abs(changes) * np.sqrt(self.hessian.value.diagonal())[:, None]).sum(axis=1).max(axis=0) ** 2
        return np.where(least(errors, size) == 1, found, plain)


class GPTQ(LeastError):
    """Round one input after another; those that follow take over the error (Frantar et al. 2023, "GPTQ", algorithm 1).

    Parameters
    ----------
    name : str
    damping : float
        Positive. This part of H's mean diagonal is added to its diagonal: the less data, the more.
    largest_first : bool
        Whether inputs are rounded in the order of their H_jj, so that those that matter most can be helped by most others
        (``act_order`` in the authors' code), or as they come.
    """

    def __init__(self, name="a layer", damping=0.01, largest_first=True):
        meaning = "what is added to the Hessian, so that this can be inverted"
        self.damping = checks.number("GPTQ", "damping", damping, "(0, inf)", meaning, 0.01)
        super().__init__(name)
        self.largest_first = largest_first

    def _round(self, weight, scale, limit):
        order = np.arange(len(weight))
        if self.largest_first:
            order = np.argsort(-self.hessian.value.diagonal(), kind="stable")
        kept, scale, q = weight[order] != 0, scale[order], np.empty(weight.shape, np.int8)

        def settle(j, w):
            q[order[j]] = np.where(kept[j], nearest(w[j], scale[j], limit), 0)
            return q[order[j]] * scale[j].astype(np.float64)

        walk(weight[order], self.hessian.factor(self.damping, order)[1], settle)
        return q


class AdaRound(LeastError):
    """Learn for each weight whether to round it down or up (Nagel et al. 2020, "Up or Down? Adaptive Rounding").

    The integer is ``floor(w / S) + h(v)``: h is a sigmoid, stretched to [-0.1, 1.1] and cut off at 0 and 1, and v is learned.
    The loss is the layer's output error plus ``1 - |2 h - 1|**beta`` for each weight, which drives h to 0 or 1 (equation 24);
    beta falls from 20 to 2, so that first those close to an end are driven there, later all.

    With H instead of batches of data, each step sees all of them. Errors count against those of the nearest integers, output
    by output, so that ``push`` suits layers of any size. Given up: inputs and targets that take the layers before and the
    activation into account (the paper's "asymmetric reconstruction"). So learning starts without an error, at the float
    weights, and has no need of the paper's warm-up, in which only the error counts.

    Parameters
    ----------
    name : str
    steps : int
        Of Adam. More are better.
    lr : float
        Of Adam.
    push : float
        The weight of the second term.
    """

    def __init__(self, name="a layer", steps=500, lr=0.1, push=20.0):
        self.steps = checks.whole("AdaRound", "steps", steps, "[1, inf)", "how many steps Adam makes", 500)
        self.lr = checks.number("AdaRound", "lr", lr, "(0, inf)", "the learning rate of Adam", 0.1)
        self.push = checks.number("AdaRound", "push", push, "(0, inf)", "the weight of the second term", 20.0)
        super().__init__(name)

    def _round(self, weight, scale, limit):
        low = np.clip(np.floor(weight / scale), -limit, limit - 1)
        rest, plain = (weight / scale - low).astype(np.float32), nearest(weight, scale, limit) - low
        start = np.clip(rest, 0.01, 0.99)  # at the very ends there is no slope
        v = np.log((start + 0.1) / (1.1 - start))
        v[weight == 0] = -np.inf  # h is 0, and stays so
        # Only ratios matter from here on, and float32 holds them.
        scale, largest = scale / scale.max(axis=0), self.hessian.value.diagonal().max() or 1.0
        hessian = (self.hessian.value / largest).astype(np.float32)
        error = output_errors(hessian, (plain - rest) * scale) / len(weight)
        floor = 1e-6 * (scale**2 * hessian.diagonal()[:, None]).mean(axis=0)  # outputs may be on the grid already
        slope = (2 * scale / np.where(floor > 0, np.maximum(error, floor), 1)).astype(np.float32)
        optimizer = Adam([v], lr=self.lr)
        for step in range(self.steps):
            sigmoid = 1 / (1 + np.exp(-np.maximum(v, -80)))  # float32 holds exp(88); h is 0 from -2.4 down
            h = np.clip(1.2 * sigmoid - 0.1, 0, 1)
            beta, away = 20 - 18 * step / self.steps, 2 * h - 1
            gradient = slope * product(hessian, (h - rest) * scale)
            gradient -= self.push * 2 * beta * np.sign(away) * np.abs(away) ** (beta - 1)
            gradient *= 1.2 * sigmoid * (1 - sigmoid) * ((h > 0) & (h < 1))
            optimizer.step([gradient])
        return (low + (v > 0)).astype(np.int8)


ROUNDINGS = {"nearest": Nearest, "gptq": GPTQ, "adaround": AdaRound}


def make_rounding(kind, name="a layer"):
    """A rounding of `name`; ``kind`` is one of `ROUNDINGS`, or makes one of a name: ``partial(GPTQ, damping=0.1)``."""
    return make(kind, name, ROUNDINGS, "rounding", "gptq")


def output_errors(hessian, difference):
    """dᵀ H d of each output, (M,), for a change d (K, M) of the weight."""
    return (difference * (matmul(hessian, difference))).sum(axis=0)
