"""What an optimizer is given: nested parameters, groups of them, and gradients in the same nesting. Checked here.

A parameter is a leaf Tensor (usually `nn.Parameter`) or a plain float ndarray; both are updated in place. That is all
that the functional style (`md.grad`) and the object style (``.grad``) differ in, so they share one optimizer.
"""

from __future__ import annotations

import numpy as np

from .. import checks
from ..functional import flatten, unflatten
from ..kernels import all_finite
from ..nn.module import Module
from ..tensor import RowSparse, Tensor


def array_of(param):
    """The array that is updated in place."""
    return param.data if isinstance(param, Tensor) else param


def read_groups(params, defaults):
    """Split what the user passed as ``params`` into groups.

    Parameters
    ----------
    params : nested lists, tuples and dicts of parameters, or list of groups: dicts with a key "params"
    defaults : dict
        Options of a group that does not name them.

    Returns
    -------
    tree
        The parameters in their nesting; for groups, the list of the groups' nestings. Gradients must have the same.
    groups : list of dict
        The options of each group, and under "params" the flat list of its parameters.

    Raises
    ------
    TypeError, ValueError
        If there are no parameters, one appears twice or cannot be updated in place, or a group has an unknown key.
    """
    are_groups = isinstance(params, (list, tuple)) and bool(params) and all(_is_group(p) for p in params)
    given = list(params) if are_groups else [{"params": params}]
    for group in given:
        unknown = sorted(group.keys() - defaults.keys() - {"params"})
        if unknown:
            raise ValueError(
                f"a parameter group has the keys {unknown}.\nA group has the key 'params', and any of "
                f"{sorted(defaults)} for itself.\n"
                "Write [{'params': model.parameters(), 'lr': 1e-3}]; clipping is set for all groups at once."
            )
    groups = [{**defaults, **group, "params": flatten(group["params"])} for group in given]
    _check_parameters([p for group in groups for p in group["params"]])
    trees = [unflatten(group["params"], options["params"]) for group, options in zip(given, groups)]
    return (trees if are_groups else trees[0]), groups


def match_gradients(tree, grads, path="grads"):
    """The leaves of ``grads`` in the order of the parameters, or an error where the nesting differs."""
    if isinstance(tree, dict):
        if not isinstance(grads, dict) or grads.keys() != tree.keys():
            raise _nesting_error(path, tree, grads)
        pairs = [(tree[key], grads[key], f"{path}[{key!r}]") for key in tree]
    elif isinstance(tree, (list, tuple)):
        if not isinstance(grads, (list, tuple)) or len(grads) != len(tree):
            raise _nesting_error(path, tree, grads)
        pairs = [(part, grads[i], f"{path}[{i}]") for i, part in enumerate(tree)]
    else:
        if isinstance(grads, (dict, list, tuple)):
            raise _nesting_error(path, tree, grads)
        return [grads]
    return [leaf for part, gradient, where in pairs for leaf in match_gradients(part, gradient, where)]


def check_gradients(gradients, shapes):
    """The gradient of each parameter, as an ndarray or RowSparse of its (shape, dtype), or None; None if there is none."""
    checked, found = [], False
    for gradient, (shape, dtype) in zip(gradients, shapes):
        found = found or gradient is not None
        # Nearly always as it should be: a step of a small net takes little longer than looking closer would.
        usual = type(gradient) is np.ndarray and gradient.shape == shape and gradient.dtype is dtype
        checked.append(gradient if usual or gradient is None else _check_gradient(gradient, shape, dtype, len(checked)))
    return checked if found else None


def check_finite(params, gradients, who):
    """Refuse NaN and infinity in a gradient.

    Parameters
    ----------
    params : list of Tensor or ndarray
    gradients : list of ndarray, RowSparse or None
    who : str

    Raises
    ------
    FloatingPointError
        Its attribute ``about`` is the parameter.
    """
    for position, (param, gradient) in enumerate(zip(params, gradients)):
        values = gradient.values if isinstance(gradient, RowSparse) else gradient
        if values is None or all_finite(values):
            continue
        wrong = np.argwhere(~np.isfinite(values))
        row, *rest = (int(i) for i in wrong[0]) if values.ndim else [0]
        first = [int(gradient.rows[row]) if isinstance(gradient, RowSparse) else row, *rest]
        raise _stopped(
            param,
            f"{who} got a gradient with {len(wrong)} NaN or infinite numbers, the first at {first}, for parameter {position} "
            f"of shape {gradient.shape}.\nGradients are finite. Parameters, moments and step count are those before the step."
            "\nIf the loss had been growing, lower the learning rate. If not, look for sqrt, log, a power or a quotient that "
            "meets 0, and add an epsilon inside: np.sqrt(x + 1e-12). Neither clipping nor a np.where around it helps.",
        )


def overflow(param, position, who):
    """The error for a step that would make a parameter, or what is remembered of it, infinite."""
    array = array_of(param)
    return _stopped(
        param,
        f"a step of {who} would make parameter {position} of shape {array.shape}, or its moments, infinite.\n{array.dtype} "
        f"ends at {np.finfo(array.dtype).max:.2g}. Parameters, moments and step count are those before the step.\n"
        "Lower the learning rate, to lr=1e-3 for example; if gradients are that large, clip them: clip_norm=1.0.",
    )


def _stopped(param, text):
    error = FloatingPointError(text)
    error.about = param  # so that `fit` can say which one that is in the model
    return error


def _check_gradient(gradient, shape, dtype, position):
    if not isinstance(gradient, RowSparse):
        gradient = checks.array("step()", "grads", gradient)
    if gradient.shape != shape or gradient.dtype.kind not in "fiu":
        raise ValueError(
            f"step() got a gradient of shape {gradient.shape}, {gradient.dtype}, for parameter {position} of shape "
            f"{shape}, {dtype}.\nA gradient is an array of numbers of its parameter's shape.\n"
            "Pass the gradients in the order of the parameters, as md.grad(loss)(params) returns them."
        )
    # Row numbers are memory addresses to the kernels, which check nothing.
    if isinstance(gradient, RowSparse) and not _rows_fit(gradient):
        raise ValueError(
            f"step() got {gradient!r} for parameter {position}.\nIts rows are distinct, ascending and within the table, with "
            "one row of values each.\nLet ops.embedding make it, or sort and add up with np.unique and np.add.at."
        )
    return gradient.astype(dtype, copy=False)


def _rows_fit(gradient):
    rows, values = gradient.rows, gradient.values
    if values.shape != (len(rows), *gradient.shape[1:]) or rows.dtype.kind not in "iu":
        return False
    return len(rows) == 0 or (rows[0] >= 0 and rows[-1] < gradient.shape[0] and bool((rows[1:] > rows[:-1]).all()))


def _is_group(value):
    return isinstance(value, dict) and "params" in value


def _check_parameters(params):
    if not params:
        raise ValueError(
            "an optimizer was made without parameters.\nIt needs something to train.\n"
            "Pass model.parameters(), after the layers have been made. A quantized or sparse model has none: train the float "
            "one, then convert it again."
        )
    seen = set()
    for position, param in enumerate(params):
        _check_parameter(param, position)
        if id(param) in seen:
            raise ValueError(
                f"an optimizer got the same parameter twice, the second time as number {position}, of shape {param.shape}."
                "\nEach parameter is updated once a step.\nA model's parameters() names shared ones once: pass that list."
            )
        seen.add(id(param))


def _check_parameter(param, position):
    if not isinstance(param, (Tensor, np.ndarray)):
        cure = (
            "Pass model.parameters()."
            if isinstance(param, Module)
            else "Make it nn.Parameter(values), or a list of them."
        )
        raise TypeError(
            f"an optimizer got a {type(param).__name__} as parameter {position}.\nParameters are Tensors or float arrays, "
            f"in lists, tuples and dicts: they are updated in place.\n{cure}"
        )
    if isinstance(param, Tensor) and param._node is not None:
        raise ValueError(
            f"an optimizer got the result of `{param._node.op}` as parameter {position}.\nOnly leaves (parameters, tensors "
            "made by hand) keep a gradient and can be changed.\nPass the tensors that it was computed from."
        )
    array = array_of(param)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"an optimizer got an array of dtype {array.dtype} as parameter {position}.\nIt trains float32 and float64 "
            "numbers.\nConvert it before training: array.astype(np.float32)."
        )
    if not array.flags.carray:
        raise ValueError(
            f"an optimizer got an array of shape {array.shape}, strides {array.strides} as parameter {position}.\nIt is "
            "updated in place, so it is C-contiguous, aligned and writable.\nCopy it once: np.array(array, order='C')."
        )


def _nesting_error(path, tree, grads):
    return ValueError(
        f"step(grads) got {_describe(grads)} as {path}, where the parameters have {_describe(tree)}.\nGradients have the "
        "nesting of the parameters that the optimizer was made with.\nPass what md.grad(loss)(params) returns, unchanged."
    )


def _describe(node):
    if isinstance(node, dict):
        return f"a dict with the keys {list(node)}"
    if isinstance(node, (list, tuple)):
        return f"a {type(node).__name__} of {len(node)}"
    return "an array" if isinstance(node, (np.ndarray, Tensor, RowSparse)) else f"a {type(node).__name__}"
