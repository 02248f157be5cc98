"""What must hold for a parameter after every step, whatever the optimizer did.

A constraint is an object with ``apply(param, rows=None)``, called by every optimizer after each step (with the touched
rows, if the gradient was row-sparse) and by every assignment. This is why a pruned weight cannot come back through
momentum or weight decay. ``config()`` and ``arrays()`` are what a file stores of it.
"""

from __future__ import annotations

import numpy as np

from .. import checks


class Mask:
    """Keep the weights where ``kept`` is False at exactly 0. Optimizers apply it inside their fused step.

    Parameters
    ----------
    kept : ndarray of bool, shape of the parameter
        Can be changed in place; a new array takes a new Mask, since optimizers keep what they read of this one.
    """

    def __init__(self, kept):
        self._kept = np.ascontiguousarray(kept, bool)

    @property
    def kept(self):
        """Where weights are kept, ndarray of bool."""
        return self._kept

    def apply(self, param, rows=None):
        """Set the masked weights (of these rows of the first axis) to 0."""
        if rows is None:
            np.copyto(param.data, 0, where=~self.kept)
        else:
            param.data[rows] = np.where(self.kept[rows], param.data[rows], 0)

    @property
    def sparsity(self):
        """Fraction of the weights that are masked."""
        return 1 - self.kept.mean() if self.kept.size else 0.0

    def config(self):
        """Constructor arguments that are no arrays."""
        return {}

    def arrays(self):
        """Constructor arguments that are arrays."""
        return {"kept": self.kept}

    def __repr__(self):
        return f"Mask(shape={self.kept.shape}, sparsity={self.sparsity:.4f})"


class MaxNorm:
    """Limit the Euclidean norm of each unit's incoming weights (Srivastava et al. 2014, section 5.1).

    Parameters
    ----------
    limit : float
        Largest norm.
    axis : int
        The axis that is summed: 0 for the columns of a `Dense` weight (one column feeds one unit), 1 for the rows of an
        embedding table.
    """

    def __init__(self, limit, axis=0):
        self.limit = float(checks.number("MaxNorm", "limit", limit, "(0, inf]", "the largest norm", 3.0))
        self.axis = axis

    def apply(self, param, rows=None):
        """Shrink the vectors that are too long. With rows of a table, only these are looked at."""
        rows = slice(None) if rows is None or self.axis == 0 else rows
        values = param.data[rows]
        norms = np.sqrt((values * values).sum(axis=self.axis, keepdims=True))
        param.data[rows] = values * (self.limit / np.maximum(norms, self.limit))

    def config(self):
        """Constructor arguments that are no arrays."""
        return {"limit": self.limit, "axis": self.axis}

    def arrays(self):
        """Constructor arguments that are arrays."""
        return {}

    def __repr__(self):
        return f"MaxNorm({self.limit}, axis={self.axis})"


class AtLeast:
    """Keep every number at or above a limit: for what must stay positive, such as a learned scale.

    Parameters
    ----------
    limit : float
    """

    def __init__(self, limit):
        self.limit = float(limit)

    def apply(self, param, rows=None):
        """Raise what is below the limit to it."""
        values = param.data
        if rows is None:
            np.maximum(values, self.limit, out=values)
        else:
            values[rows] = np.maximum(values[rows], self.limit)

    def config(self):
        """Constructor arguments that are no arrays."""
        return {"limit": self.limit}

    def arrays(self):
        """Constructor arguments that are arrays."""
        return {}

    def __repr__(self):
        return f"AtLeast({self.limit})"
