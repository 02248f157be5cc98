"""Training with 16-bit numbers: a laboratory for the numerics. It is slower than float32, and saves no memory.

Numbers stay float32 arrays, rounded to values that the 16-bit format has (``round16.py``): their values are right to the
bit, their cost is not. The recipe is that of Micikevicius et al. 2018, "Mixed Precision Training":

- **Master weights.** The model's parameters stay float32. Its forward pass sees a rounded copy of them.
- **Activations** are rounded after every operation of the forward pass. An operation computes in float32 and rounds its
  result once, as hardware does that adds products up in float32 (their section on arithmetic precision).
- **Gradients** are rounded before every operation of the backward pass, that is where they are complete, and once more
  where they arrive at a parameter. The loss is computed in float32; the gradient that it hands to the model is rounded, and
  that is where most of it may be lost: float16 has nothing between 0 and 2**-24.
- **Loss scaling.** The backward pass starts from a scale instead of 1, so that every gradient is so many times larger, and
  is divided by it in float32 before clipping and the update. A step whose gradients leave the range is skipped.

Two things make this work for any module: while its forward runs, ``tensor.record`` rounds each result and each gradient
(``tape_mode``), and the parameters hold rounded copies of their values. Read ``tensor.py`` and ``training/arithmetic.py``
before this file.

Given up: a fused operation (a `Dense` with its activation) rounds once where two operations would round twice,
and its derivative is that at the value before rounding. Constants inside a forward are not rounded; inputs and results are.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import numpy as np

from .. import checks
from ..kernels import all_finite
from ..tensor import RowSparse, Tensor, record, tape_mode
from ..training.arithmetic import FLOAT32_STATE, Float32
from .round16 import round_bfloat16, round_float16

ROUNDED_TO = {"float16": round_float16, "bfloat16": round_bfloat16}
FORMATS = (*ROUNDED_TO, "float32")
LARGEST = {"float16": "65504", "bfloat16": "3.4e38", "float32": "3.4e38"}
MOST_SKIPPED = 50  # in a row: by then a scale of 2**16 has been halved to 2**-34, and no scale will help
LOWEST_SCALE, HIGHEST_SCALE = 2.0**-120, 2.0**120  # so that both it and 1 / it are float32 numbers
_SCALE, _SCALES = "what the loss is multiplied by", "[1e-36, 1e36]"


@dataclass(frozen=True)
class Precision:
    """What `fit` and ``distill`` compute with; ``precision="float16"`` and ``"bfloat16"`` are short for two of these.

    Parameters
    ----------
    format : {"float16", "bfloat16", "float32"}
    loss_scale : "dynamic", float or None
        "dynamic" begins with ``initial_scale``, halves it when a gradient overflows, and doubles it after
        ``growth_interval`` steps in which none did. A number stays as it is; a power of two adds no rounding. None scales
        nothing and skips nothing: an overflow then stops the run.
    initial_scale : float
    growth_interval : int
        Both as in ``torch.amp.GradScaler``.

    Notes
    -----
    "float16" alone means dynamic scaling. "bfloat16" alone means none: it has the range of float32.
    """

    format: str = "float16"
    loss_scale: str | float | None = "dynamic"
    initial_scale: float = 2.0**16
    growth_interval: int = 2000

    dynamic = property(lambda self: isinstance(self.loss_scale, str) and self.loss_scale == "dynamic")

    def __post_init__(self):
        checks.choice("Precision", "format", self.format, FORMATS)
        if not (self.loss_scale is None or self.dynamic):
            meaning = f'{_SCALE} ("dynamic" finds it, None leaves it out)'
            checks.number("Precision", "loss_scale", self.loss_scale, _SCALES, meaning, 1024.0)
        checks.number("Precision", "initial_scale", self.initial_scale, _SCALES, _SCALE, 2.0**16)
        meaning = "how many steps without an overflow double the scale"
        checks.whole("Precision", "growth_interval", self.growth_interval, "[1, inf)", meaning, 2000)


class Arithmetic(Float32):
    """How one run computes: its `Precision`, and the loss scale of the moment.

    Attributes
    ----------
    precision : Precision
    scale : float or None
        What the next loss is multiplied by; None without scaling.
    """

    def __init__(self, precision, model):
        precision = as_precision(precision)
        self.precision, self.format = precision, precision.format
        self._nearest = ROUNDED_TO.get(precision.format)
        self.dynamic = precision.dynamic
        self.scale = precision.initial_scale if self.dynamic else precision.loss_scale
        self.good = self.bad = 0  # steps in a row, without and with an overflow
        self.skipped = 0  # steps of this epoch
        double = [path for path, p in model.named_parameters() if p.dtype != np.float32]
        if double and (self._nearest is not None or self.scale is not None):
            scaled = "" if self.scale is None else " and a loss scale"
            raise ValueError(
                f"training got precision = {precision.format!r}{scaled} for a model with float64 parameters: "
                f"{', '.join(map(repr, double[:3]))}.\nThe weights of 16-bit training, and of loss scaling, are float32.\n"
                "Train model.astype(np.float32), or leave precision out."
            )

    # ---- the forward pass ----------------------------------------------------------------------------------------
    @contextmanager
    def of(self, model):
        """Inside this block, a call of ``model`` computes in this precision; everything else does not."""
        if self._nearest is None:
            yield
            return
        own, forward, copies = vars(model).get("forward"), model.forward, {}

        def rounded_forward(*inputs):
            with self._rounded_weights(model.parameters(), copies):
                return forward(*[self._rounded_input(x) for x in inputs])

        model.forward = rounded_forward  # of this one object: `Module.__call__` finds it before that of the class
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                yield
        finally:
            del model.forward
            if own is not None:
                model.forward = own

    @contextmanager
    def _rounded_weights(self, parameters, copies):
        """Inside this block, parameters hold rounded copies of their values, and every operation rounds.

        A copy is made once a step, and again when the parameter is changed. If a layer changes its own parameter as it runs,
        the changed numbers go to the master weights; the others keep all their digits there.
        """
        masters = [(p, p._data, p._version.count) for p in parameters]
        for p, master, count in masters:
            if (id(p), count) not in copies:
                copies[id(p), count] = self.round(master)
            p._data = copies[id(p), count]
        token = tape_mode.set((tape_mode.get()[0], self._rounded_operation))
        try:
            yield
        finally:
            tape_mode.reset(token)
            for p, master, count in masters:
                if p._version.count != count:
                    np.copyto(master, p._data, where=p._data != self.round(master))
                p._data = master

    def _rounded_input(self, x):
        if isinstance(x, Tensor):
            return record("round", x._data, (x,), (lambda g: g,), saves=())
        return self.round(x) if np.asarray(x).dtype.kind == "f" else x

    def _rounded_operation(self, data, vjp):
        def before(f):
            return lambda g: f(self.round(g))

        return self.round(data), tuple(map(before, vjp)) if type(vjp) is tuple else before(vjp)

    def round(self, x):
        """The nearest numbers of the format, as a new float32 array or `RowSparse`."""
        if isinstance(x, RowSparse):
            return RowSparse(x.rows, self.round(x.values), x.shape)
        return self._nearest(np.asarray(x, np.float32))

    # ---- the backward pass ---------------------------------------------------------------------------------------
    def upstream(self, loss):
        """What the backward pass starts from: the scale in the place of 1."""
        return None if self.scale is None else np.full(loss.shape, self.scale, loss.dtype)

    def backward(self, run):
        """Leave in ``.grad`` of the parameters what the optimizer is to see. Returns whether it is to see it.

        If not, the step is to be skipped, and there are no gradients.
        """
        if self._nearest is None and self.scale is None:
            run.loss.backward()
            return True
        with np.errstate(over="ignore", invalid="ignore"):
            run.loss.backward(self.upstream(run.loss))
            trained = [*run.optimizer.parameters, *run.callback_parameters]
            trained = [p for p in trained if isinstance(p, Tensor) and p.grad is not None]
            if self._nearest is not None:
                own = {id(p) for p in run.model.parameters()}
                for p in (p for p in trained if id(p) in own):
                    p.grad = self.round(p.grad)
        if self.scale is None:
            return True
        finite = all(all_finite(p.grad.values if isinstance(p.grad, RowSparse) else p.grad) for p in trained)
        for p in trained:
            p.grad = p.grad * np.float32(1 / self.scale) if finite else None
        self._count(finite)
        return finite

    def _count(self, finite):
        self.good, self.bad = (self.good + 1, 0) if finite else (0, self.bad + 1)
        self.skipped += not finite
        if self.bad >= MOST_SKIPPED:
            raise FloatingPointError(self._too_many_skipped())
        if self.dynamic and not finite:
            self.scale = max(self.scale / 2, LOWEST_SCALE)
        elif self.dynamic and self.good >= self.precision.growth_interval:
            self.scale, self.good = min(2 * self.scale, HIGHEST_SCALE), 0

    def _too_many_skipped(self):
        name = self.precision.format
        cure = "Lower the learning rate or scale the inputs" if self.dynamic else 'Lower loss_scale, or write "dynamic"'
        return (
            f"training in {name} skipped {MOST_SKIPPED} steps in a row; the loss scale is {self.scale:g}, and the weights "
            "are those before them.\n"
            f"A step is skipped if a gradient is NaN or leaves the range of {name}, {LARGEST[name]}.\n"
            f'{cure}; precision="bfloat16" has the range of float32.'
        )

    def note(self):
        """For the error text of a loss that is not finite: where the range ends."""
        return f", in {self.precision.format} up to {LARGEST[self.precision.format]}" if self._nearest else ""

    # ---- what a run reports and keeps ----------------------------------------------------------------------------
    def report(self):
        """The columns of an epoch that has ended; none without scaling."""
        skipped, self.skipped = self.skipped, 0
        return {} if self.scale is None else {"loss_scale": float(self.scale), "skipped_steps": skipped}

    def state_dict(self):
        """What a resumed run needs."""
        return {"format": self.precision.format, "scale": self.scale, "good": self.good, "bad": self.bad}

    def load_state_dict(self, state):
        """Go on from there. A dynamic scale is taken from the file, a fixed one from this run's `Precision`."""
        if self.dynamic and state["scale"] is not None:
            self.scale = float(state["scale"])
        if self.scale == state["scale"]:  # steps under another scale do not count
            self.good, self.bad = state["good"], state["bad"]


def is_state(state):
    """Whether a file holds what `state_dict` could have given."""
    return (
        isinstance(state, dict)
        and state.keys() == FLOAT32_STATE.keys()
        and isinstance(state["format"], str)
        and state["format"] in FORMATS
        and (state["scale"] is None or _is_scale(state["scale"]))
        and all(type(state[name]) is int and state[name] >= 0 for name in ("good", "bad"))
    )


def _is_scale(value):
    return isinstance(value, Real) and not isinstance(value, bool) and LOWEST_SCALE <= value <= HIGHEST_SCALE


def as_precision(precision):
    """A `Precision` from what `fit` was given."""
    if isinstance(precision, Precision):
        return precision
    checks.choice("training", "precision", precision, FORMATS)
    return Precision(precision, "dynamic" if precision == "float16" else None)
