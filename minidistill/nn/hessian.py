"""A layer's inputs as the Hessian of its output error, and the walk that makes later inputs answer for earlier ones.

Over inputs X (N, K), a `Dense` weight W (K, M) is to become a W' with zeros (pruning) or on a grid (quantization), such that
``‖X W - X W'‖² = tr(dᵀ H d)`` stays small; d = W - W', and ``H = XᵀX`` is all that the data have to say. What is lost at one
input can be made up for at others that resemble it: by how much, H⁻¹ tells (Hassibi & Stork 1993, "Second order derivatives
for network pruning"). SparseGPT and GPTQ let all outputs walk through the inputs in the same order; one Cholesky factor of
H⁻¹ then serves all, and what they set a weight to is the only difference between the two.

``prune/second_order.py`` and ``quantize/rounding.py`` stand on this. Shapes: N samples, K inputs, M outputs.
"""

from __future__ import annotations

import math

import numpy as np

from ..kernels import matmul


class Hessian:
    """The sum ``XᵀX`` over all inputs of a layer, in float64, a batch at a time.

    Parameters
    ----------
    name : str
        Whose inputs, for error messages.

    Attributes
    ----------
    value : ndarray of float64, shape (K, K), or 0.0
        0.0 until something was seen.
    """

    def __init__(self, name="a layer"):
        self.name, self.value = name, 0.0

    def see(self, x):
        """Take in one array of shape (..., K).

        Raises
        ------
        ValueError
            If it holds NaN or infinity, or K is not what it was before. What was seen before stays.
        """
        shape = np.shape(x)
        if not shape or (np.ndim(self.value) and shape[-1] != len(self.value)):
            inputs = len(self.value) if np.ndim(self.value) else "K"
            raise ValueError(
                f"the Hessian of {self.name} got x of shape {shape}.\nIts last axis holds the inputs of the layer, "
                f"the same in all batches: (..., {inputs}).\nTake one Hessian, or rounding, for each layer."
            )
        rows = np.asarray(x, np.float64).reshape(-1, shape[-1])
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            added = matmul(rows.T, rows)
        if not math.isfinite(added.trace()):
            raise ValueError(
                f"the Hessian of {self.name} met NaN or infinity.\nIt is a sum over all inputs.\n"
                "Look at the data, and at the layers before: md.nn.activations(model, x)."
            )
        self.value = self.value + added

    def factor(self, damping, order=None):
        """The damped H, and U, upper triangular, with ``UᵀU = H⁻¹``.

        Parameters
        ----------
        damping : float
            This part of H's mean diagonal is added to its diagonal. Where all inputs are 0, H is the identity.
        order : ndarray of int, shape (K,), optional
            In which the walk visits the inputs.

        Returns
        -------
        damped, upper : ndarray of float64, shape (K, K)
            With rows and columns in that order.

        Raises
        ------
        ValueError
            If the damped H cannot be inverted.
        """
        damped = self.value + (damping * float(self.value.trace()) / len(self.value) or 1.0) * np.eye(len(self.value))
        damped = damped if order is None else damped[np.ix_(order, order)]
        try:
            return damped, np.linalg.cholesky(np.linalg.inv(damped)).T
        except np.linalg.LinAlgError:
            raise ValueError(
                f"the Hessian of {self.name} with damping = {damping} could not be inverted.\nInputs that depend on each "
                "other leave it singular, but for the damping.\nTake more of it: damping=0.01."
            ) from None


def walk(weight, upper, settle, block=32):
    """Settle one input after another; the inputs that follow make up for what was lost, as well as they can.

    Row j of the Cholesky factor U (upper, H⁻¹ = UᵀU) holds what is needed at input j: ``U_jj²`` is [H⁻¹]_jj for the H of the
    inputs from j on, and ``U_jj * U_j`` that inverse's first row. (Frantar & Alistarh 2023, "SparseGPT", and Frantar et al.
    2023, "GPTQ", algorithm 1.)

    Parameters
    ----------
    weight : ndarray of float64, shape (K, M)
        Not changed.
    upper : ndarray of float64, shape (K, K)
        From `Hessian.factor`.
    settle : callable
        ``settle(j, w)`` returns what input j's weights (M,) become. w (K, M) is what the walk has made of all: up to date
        for the rest of j's block.
    block : int
        Inputs that hear of each loss at once; later ones hear of the whole block in one product.
    """
    w = weight.copy()
    for first in range(0, len(w), block):
        rows = slice(first, min(first + block, len(w)))
        errors = np.empty_like(w[rows])
        for i, j in enumerate(range(rows.start, rows.stop)):
            errors[i] = (w[j] - settle(j, w)) / upper[j, j]
            w[j : rows.stop] -= np.outer(upper[j, j : rows.stop], errors[i])
        w[rows.stop :] -= matmul(upper[rows, rows.stop :].T, errors)
