"""What models and losses return, looked at before it is used: one Tensor, with a row for each sample; one number.

The usual slips are a forgotten ``return``, two outputs, and numbers that left the tape. Read ``tensor.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from ..tensor import Tensor


def one_output(who, model, output):
    """The output of a model, a Tensor; ``who`` is the function that asked.

    Raises
    ------
    TypeError
    """
    if isinstance(output, Tensor):
        return output
    cure = (
        "Return the Tensor that the last layer gives, without .numpy() or .data: nothing before them would be trained."
    )
    if output is None:
        cure = "End its forward in return: def forward(self, x): return self.layer(x)."
    elif isinstance(output, (tuple, list)):
        cure = "Join them, return ops.concatenate([a, b], axis=-1), and cut them in the loss: out[:, :10], out[:, 10:]."
    raise TypeError(
        f"{who} found that the forward of {type(model).__name__} returns {_shown(output)}.\n"
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
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{who} found that the loss is {_shown(value)}.\nA loss returns a Tensor, whose gradient can be taken.\n"
            f"{'End the function in return.' if value is None else 'Leave out .item(), .numpy() and float().'}"
        )
    if value._data.size != 1:
        plain_number(f"{who} found that the loss", value)
    if trained and not value.requires_grad:
        raise ValueError(
            f"{who} found that the loss depends on no weight.\nA loss is made from the model's outputs.\n"
            "Compute it without .numpy(), .item() or float() on the way. A model whose parameters all have "
            "requires_grad=False has nothing to train."
        )
    return value


def plain_number(what, value):
    """A result as a number of Python, where nothing is trained: any single number will do.

    Raises
    ------
    TypeError
    """
    array = np.asarray(value.data if isinstance(value, Tensor) else value)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise TypeError(
            f"{what} is {_shown(value)}.\nIt is one number for all samples.\n"
            "Return one: end the function in return, and average over the batch, return value.mean()."
        )
    return array.item()


def _shown(value):
    """What was returned, for an error text."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    shape = f" of shape {value.shape}" if getattr(value, "shape", ()) else ""
    return "None" if value is None else f"a {type(value).__name__}{shape}"
