"""Checkpoints: a run's whole state in one ``.npz``, so that it continues bit for bit.

Whole means: parameters and buffers, masks, optimizer moments and step count (schedules depend on that alone), the loss scale,
the random generators, the history, and what callbacks remember. Everything becomes nested dicts and lists; arrays are stored
as arrays, the rest as JSON. Read ``files.py`` before this file.
"""

from __future__ import annotations

import json

import numpy as np

from ..files import bad_file, read_npz, write_npz
from ..nn import Mask
from .precision import FLOAT32_STATE

VERSION = 1
_TREE = "checkpoint.json"


def save_checkpoint(path, run):
    """Write the state of a `Run` after a finished epoch."""
    state = {
        "version": VERSION,
        "epoch": run.epoch,
        "step": run.step,
        "samples": run.samples,
        "model": run.model._arrays(),
        "masks": _masks(run.model),
        "optimizer": run.optimizer.state_dict(),
        "arithmetic": run.arithmetic.state_dict(),
        "generators": {name: generator.bit_generator.state for name, generator in run.generators.items()},
        "history": run.history.epochs,
        "callbacks": [c.state_dict() if hasattr(c, "state_dict") else None for c in run.callbacks],
    }
    arrays = {}
    tree = _take_arrays(state, "", arrays)
    write_npz(path, {_TREE: np.frombuffer(json.dumps(tree).encode(), np.uint8), **arrays})


def load_checkpoint(path, run):
    """Bring a fresh `Run` to the state in the file. On any error nothing is changed."""
    state = _read(path)
    if state["samples"] != run.samples or len(state["callbacks"]) != len(run.callbacks):
        raise bad_file(
            path,
            f"It belongs to a run of {state['samples']} training samples and {len(state['callbacks'])} callbacks, this one "
            f"has {run.samples} and {len(run.callbacks)}.",
            "Resume with the data, validation split and callbacks that the run was started with.",
        )
    _check_masks(path, state["masks"], run.model)
    arithmetic = state.get("arithmetic", FLOAT32_STATE)  # none in a file from before there was a loss scale
    _check_arithmetic(path, arithmetic, run.arithmetic)
    for callback, saved in zip(run.callbacks, state["callbacks"]):
        if hasattr(callback, "check_state"):
            callback.check_state(saved)
    twin = run.model.copy()
    twin.load_state_dict(state["model"])  # raises before anything is changed
    run.optimizer.load_state_dict(state["optimizer"])
    run.arithmetic.load_state_dict(arithmetic)
    _set_masks(state["masks"], run.model)
    run.model.load_state_dict(state["model"])
    for name, generator in run.generators.items():
        generator.bit_generator.state = state["generators"][name]
    for callback, saved in zip(run.callbacks, state["callbacks"]):
        if saved is not None:
            callback.load_state_dict(saved)
    run.epoch, run.step = state["epoch"], state["step"]
    run.history.epochs = state["history"]


def _read(path):
    arrays = read_npz(path)
    if _TREE not in arrays:
        raise bad_file(path, "It is an .npz, but no checkpoint.", "Pass a file that nn's Checkpoint callback wrote.")
    try:
        state = _put_arrays(json.loads(arrays[_TREE].tobytes()), arrays)
    except (ValueError, KeyError, TypeError) as error:
        raise bad_file(path, f"Its description is damaged: {error}.", "Start the run anew.") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise bad_file(path, f"It is no checkpoint of version {VERSION}.", "Resume with the version that wrote it.")
    return state


def _masks(model):
    return {path: c.kept for path, p in model.named_parameters() for c in p.constraints if isinstance(c, Mask)}


def _check_masks(path, masks, model):
    parameters = dict(model.named_parameters())
    for name, kept in masks.items():
        if name not in parameters or parameters[name].shape != kept.shape:
            raise bad_file(
                path, f"It masks {name!r}, {kept.shape}, which this model does not have.", "Resume with the same model."
            )


def _check_arithmetic(path, saved, own):
    if not own.is_state(saved):
        raise bad_file(path, "Its precision and loss scale are damaged.", "Start the run anew.")
    before, now = saved["format"], own.precision.format
    if before != now:
        raise bad_file(
            path, f"It belongs to a run in {before}, this one is in {now}.", f'Resume with precision="{before}".'
        )


def _set_masks(masks, model):
    for path, parameter in model.named_parameters():
        others = [c for c in parameter.constraints if not isinstance(c, Mask)]
        parameter.constraints[:] = others + ([Mask(masks[path])] if path in masks else [])


def _take_arrays(value, path, arrays):
    """The same nesting with each array replaced by its name; big integers of generators become text."""
    if isinstance(value, dict):
        return {"dict": [[key, _take_arrays(v, f"{path}/{key}", arrays)] for key, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_take_arrays(v, f"{path}/{i}", arrays) for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    return value  # JSON of Python holds integers of any size, and the exact bits of a float


def _put_arrays(value, arrays):
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        return {key: _put_arrays(v, arrays) for key, v in value["dict"]}
    return [_put_arrays(v, arrays) for v in value] if isinstance(value, list) else value
