"""What stops a run because a number is not finite, beside the loss itself: a gradient, an update, a weight, the validation.

Each error says what is not finite and where it began. The checks themselves cost next to nothing: the optimizer's own
(``optim/base.py``), and one look at the weights an epoch. Read ``loop.py`` with this file.
"""

from __future__ import annotations

import math

import numpy as np

from ..explain import first_not_finite
from ..nn import activations, mode
from ..tensor import no_grad


def not_taken(run, error):
    """The error for a step in which something was not finite: the text of who found it, the path, and where it began.

    Parameters
    ----------
    run : Run
        With the loss of the step; None if there is none yet.
    error : FloatingPointError
        Of the optimizer, or of a layer. Its attribute ``about`` may be the parameter or layer.
    """
    about, model = getattr(error, "about", None), run.model
    path = next((path for path, part in (*model.named_parameters(), *model.named_modules()) if part is about), None)
    where = "" if path is None else f", because of {path!r}"
    numbers = f"learning rate {run.optimizer.lr:.4g}"
    if run.loss is not None:
        operation = first_not_finite(run.loss, run.arithmetic.upstream(run.loss))
        numbers += f", loss {run.loss.item():.4g}" + (
            f"; it began in the backward pass of `{operation}`" if operation else ""
        )
    return FloatingPointError(
        f"step {run.step + 1} (epoch {run.epoch + 1}) was not taken{where} ({numbers}); the weights are those before it. "
        f"{error}"
    )


def check_weights(run):
    """Refuse NaN in the weights at the end of an epoch, before a callback saves them; a -inf may be meant."""
    for path, parameter in run.model.named_parameters():
        if np.isnan(parameter.data).any():
            raise FloatingPointError(
                f"{path!r} holds NaN after epoch {run.epoch + 1}, although every gradient was finite.\nWeights are numbers. "
                "Nothing was saved in this epoch.\nLook at what else changes them: constraints, callbacks, the rule of an "
                "optimizer of your own."
            )


def check_validation(run):
    """Refuse a validation loss that is not finite."""
    value = run.logs.get("validation_loss", 0.0)
    if not math.isfinite(value):
        raise FloatingPointError(
            f"validation_loss became {value} in epoch {run.epoch + 1}; the weights are finite, those of its last step.\n"
            f"Training needs finite numbers, in validation too. The loss of the training data was {run.logs['loss']:.4g}.\n"
            "If md.predict(model, validation.x) is finite, keep what the loss divides by, or takes a logarithm of, away from "
            "0. If not, scale these inputs as those of training, and lower the learning rate."
        )


def infinite_loss(run, inputs, value):
    """The error text, with the layers whose activations are largest: that is usually where it began."""
    with mode(training=False), no_grad(), np.errstate(all="ignore"):
        try:
            found = activations(run.model, *inputs)
        except ValueError:  # layers that round refuse NaN
            found = {}
        largest = {path: float(np.abs(out.numpy()).max()) for path, out in found.items()}
    worst = sorted(largest.items(), key=lambda item: -item[1] if math.isfinite(item[1]) else -math.inf)[:3]
    return FloatingPointError(
        f"the loss became {value} in step {run.step + 1} (epoch {run.epoch + 1}); the weights are those before it.\n"
        f"Training needs finite numbers{run.arithmetic.note()}. "
        f"Largest activations: {', '.join(f'{p!r}: {v:.3g}' for p, v in worst) or 'not finite'}.\n"
        "Lower the learning rate, clip gradients (clip_norm=1.0), or scale the inputs."
    )
