"""Observers: what they see of the activations during calibration decides the scales. Streaming, a batch at a time."""

from __future__ import annotations

import numpy as np

from .affine import activation_scale


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self):
        self.low, self.high = np.inf, -np.inf

    def see(self, x):
        """Take in one array; NaN and infinity raise."""
        if not np.isfinite(x).all():
            raise ValueError(
                f"calibration met {np.count_nonzero(~np.isfinite(x))} activations that are NaN or infinite.\n"
                "A range has finite ends.\nCheck the weights, and calibrate with clean data."
            )
        if x.size:
            self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))

    def scale(self):
        """(scale, zero_point) for what was seen. Having seen nothing raises: there is no default."""
        if self.low > self.high:
            raise ValueError(
                "an uncalibrated layer was asked for its scale.\nThe scale comes from data that passed through it.\n"
                "Calibrate with samples that reach every layer: quantize.post_training(model, calibration=train.x)."
            )
        return activation_scale(self.low, self.high)
