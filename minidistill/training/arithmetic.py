"""What a run computes in: float32, unless `fit` is asked for 16 bits or a loss scale. Those are in ``lab/precision.py``,
which is imported then. Nothing needs to be read before this file.
"""

from contextlib import nullcontext

from ..lazy import import_lab

FLOAT32_STATE = {
    "format": "float32",
    "scale": None,
    "good": 0,
    "bad": 0,
}  # also of files from before there was a choice


def arithmetic_of(precision, model):
    """What a run with ``fit(..., precision=precision)`` computes in."""
    plain = isinstance(precision, str) and precision == "float32"
    return Float32() if plain else import_lab("precision").Arithmetic(precision, model)


class Float32:
    """Forward and backward as they are. ``lab/precision.py`` does more in each of these places.

    Attributes
    ----------
    format : str
    scale : float or None
        What the next loss is multiplied by; None without scaling.
    """

    format, scale = "float32", None

    def of(self, model):
        """Inside this block, a call of ``model`` computes in this arithmetic."""
        return nullcontext()

    def upstream(self, loss):
        """What the backward pass starts from, in the place of 1."""

    def backward(self, run):
        """Leave in ``.grad`` of the parameters what the optimizer is to see. Returns whether it is to see it."""
        run.loss.backward()
        return True

    def note(self):
        """For the error text of a loss that is not finite: where the range ends."""
        return ""

    def report(self):
        """The columns of an epoch that has ended."""
        return {}

    def state_dict(self):
        """What a resumed run needs."""
        return dict(FLOAT32_STATE)

    def is_state(self, state):
        """Whether a file holds what the `state_dict` of any arithmetic could have given."""
        return import_lab("precision").is_state(state)

    def load_state_dict(self, state):
        """Go on from there."""
