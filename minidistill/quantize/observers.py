"""Observers: what they see of the activations during calibration decides the scales. Streaming, a batch at a time.

Read ``affine.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from .affine import activation_scale


class MinMax:
    """The smallest and the largest value seen: nothing is clipped, and a single outlier stretches the range.

    Parameters
    ----------
    name : str
        What is observed, for error messages.
    """

    def __init__(self, name="a tensor"):
        self.name, self.low, self.high = name, np.inf, -np.inf

    def see(self, x):
        """Take in one array, of any shape.

        Raises
        ------
        ValueError
            If it holds NaN, or a number that is infinite in float32; what was seen before stays.
        """
        if x.size == 0:
            return
        low, high = float(x.min()), float(x.max())  # NaN wins in both
        limit = float(np.finfo(np.float32).max)
        if not (-limit <= low and high <= limit):
            raise ValueError(
                f"calibration met NaN or infinity in {self.name}.\nA range has finite ends.\n"
                "Check the weights, and calibrate with clean data."
            )
        self.low, self.high = min(self.low, low), max(self.high, high)

    def scale(self):
        """(scale, zero_point) for what was seen. Having seen nothing raises: there is no default."""
        if self.low > self.high:
            raise ValueError(
                f"{self.name} was to be quantized, but calibration never reached it.\nA scale comes from data; there "
                "is no default.\nCalibrate with samples that pass through every layer, or remove the layer if the "
                "model never calls it."
            )
        return activation_scale(self.low, self.high)
