"""What models and losses return, looked at before it is used: one Tensor, with a row for each sample; one number.

The usual slips are a forgotten ``return``, two outputs, and numbers that left the tape. Read ``tensor.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from ..tensor import Tensor


def one_output(who, model, output):
    """The output of a model, a Tensor.

    Parameters
    ----------
    who : str
        For the error text.
    model : Module
    output : object
        What calling it returned.

    Raises
    ------
    TypeError
    """
    if isinstance(output, Tensor):
        return output
    what, cure = f"a {type(output).__name__}", "Return what the last layer gives."
    if output is None:
        what, cure = "None", "End its forward in return: def forward(self, x): return self.layer(x)."
    elif isinstance(output, (tuple, list)):
        what = f"a {type(output).__name__} of {len(output)}"
        cure = "Join them, return ops.concatenate([a, b], axis=-1), and cut them in the loss: out[:, :10], out[:, 10:]."
    elif isinstance(output, (np.ndarray, np.generic, float)):
        cure = "Return the Tensor itself, without .numpy() or .data: nothing before them would be trained."
    raise TypeError(
        f"{who} found that the forward of {type(model).__name__} returns {what}.\n"
        f"A model returns one Tensor, with a row for each sample.\n{cure}"
    )


def rows_of(run, output, rows):
    """The output of a model, or of its method ``infer``, as an array with as many rows as its input had.

    Raises
    ------
    TypeError, ValueError
    """
    model = getattr(run, "__self__", run)
    if type(output) is not np.ndarray:  # a tensor, or integers of a cut-off model
        output = output.numpy() if hasattr(output, "numpy") else one_output("predict", model, output)
    if not output.ndim or len(output) != rows:
        raise ValueError(
            f"predict gave {rows} rows to {type(model).__name__}, which returned shape {output.shape}.\n"
            "The first axis counts the samples, in the input and in the output.\n"
            "A single sample is a batch of one: x[None]. A forward keeps the first axis: x.mean(axis=-1), not x.mean()."
        )
    return output


def one_number(who, value, trained=True):
    """What a loss returned, a Tensor of one number; if it is ``trained``, one that depends on weights.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(value, Tensor):
        if value._data.size == 1 and (value.requires_grad or not trained):
            return value
        what = f"a Tensor of shape {value.shape}"
        cure = "Average over the batch: return value.mean()."
        if value._data.size == 1:
            what += " that depends on no weight"
            cure = (
                "Compute it from the model's outputs, without .numpy(), .item() or float() on the way; a model whose "
                "parameters all have requires_grad=False has nothing to train."
            )
        raise ValueError(f"{who} found that the loss is {what}.\nA loss is one number, made from the outputs.\n{cure}")
    what = "None" if value is None else f"{value!r}, a {type(value).__name__}"
    what = what if len(what) < 60 else f"a {type(value).__name__}"
    cure = (
        "End the function in return." if value is None else "Leave out .item(), .numpy() and float(); return a Tensor."
    )
    raise TypeError(
        f"{who} found that the loss is {what}.\nA loss returns a Tensor, whose gradient can be taken.\n{cure}"
    )


def plain_number(value):
    """What a loss returned, as a float, where nothing is trained: any single number will do.

    Raises
    ------
    TypeError
    """
    array = np.asarray(value.data if isinstance(value, Tensor) else value)
    if array.size != 1 or array.dtype.kind not in "fiub":
        what = "None" if value is None else f"a {type(value).__name__} of shape {array.shape}"
        raise TypeError(
            f"evaluate found that the loss is {what}.\nA loss is one number for all samples.\n"
            "Return one: end the function in return, and average, value.mean()."
        )
    return array.item()
