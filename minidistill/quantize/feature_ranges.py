"""Features that 8 bits cannot tell apart: a calibration that works, and a model that is useless.

All features of a layer share one range, and it includes 0 (``affine.py``). Years from 1990 to 2020 then lie within four of
its 256 steps, and everything else beside them within one. The float model may have learned from them all the same. Only
inputs of the model are looked at: in between, a unit that hardly varies has little to say.
"""

from __future__ import annotations

import warnings

import numpy as np

from .affine import ACTIVATION_MAX

FAR, STEPS = 16, 16  # as many times its own width away from 0, and within fewer steps
ENOUGH = 30  # samples; of a few, any feature may show hardly any width


class FeatureRanges:
    """What the features of a layer's input come to, a batch at a time.

    Parameters
    ----------
    path : str
        Of the layer.
    """

    def __init__(self, path):
        self.path, self.low, self.high, self.count = path, np.inf, -np.inf, 0

    def observe(self, rows):
        """Take in an array (N, K)."""
        if len(rows):
            self.low, self.high = np.minimum(self.low, rows.min(axis=0)), np.maximum(self.high, rows.max(axis=0))
            self.count += len(rows)

    def warn(self):
        """Tell of features that vary, but far from 0, and so within a few steps. One that is constant says nothing anyway."""
        if self.count < ENOUGH:
            return
        low, high = np.float64(self.low), np.float64(self.high)
        width, distance = high - low, np.maximum(low, -high)
        steps = ACTIVATION_MAX * width / max(np.max(high, initial=0) - np.min(low, initial=0), np.finfo(float).tiny)
        far = np.flatnonzero((width > 0) & (distance > FAR * width) & (steps < STEPS))
        if len(far):
            j = far[np.argmin(steps[far])]
            warnings.warn(
                f"{len(far)} of {len(low)} features that layer {self.path!r} takes lie far from 0: feature {j} goes from "
                f"{low[j]:g} to {high[j]:g}.\nAll features share one range of 256 steps, with 0 in it: {steps[j]:.1f} for "
                "this one.\nStandardize first, x = (x - mean) / std by column, and train on that.",
                stacklevel=4,
            )
