"""Checkpoints: a run's whole state in one ``.npz``, so that it continues bit for bit.

Whole means: parameters and buffers, masks, optimizer moments and step count (schedules depend on that alone), the loss scale,
the random generators, the history, what callbacks remember, the validation split, and the settings that a resumed run must
share. Everything becomes nested dicts and lists; arrays are stored as arrays, the rest as JSON, with a SHA-256 of all of it.
A file without one, or without split and settings, is from an older version, and loads.

Those settings are loss, metrics, objectives, augmentation (functions and objects by their names and plain attributes), batch
size, precision, the kinds of optimizer and callbacks, and the teacher's weights. The learning rate may be another.

Loading changes everything or nothing: the file is checked by itself, then its state is loaded into copies of model and
callbacks, and only then into the run. Read ``files.py`` before this file.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
from contextlib import contextmanager

import numpy as np

from ..files import FileFormatError, bad_file, read_npz, write_npz
from ..nn import Mask
from .arithmetic import FLOAT32_STATE

VERSION = 1
_TREE = "checkpoint.json"
_PLAIN = str, int, float, type(None)
_KINDS = {
    "epoch": int, "step": int, "samples": int, "model": dict, "masks": dict, "optimizer": dict, "generators": dict,
    "history": list, "callbacks": list,
}  # fmt: skip
_LATER_KINDS = {"settings": dict, "split": dict, "callback_names": list}  # missing in files of older versions
# What models, optimizers and callbacks, also of the user's, raise about a state that they cannot take.
_ERRORS = ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


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
        "callback_names": _names(run.callbacks),
        "settings": run.settings(),
        "split": run.split.state_dict(),
    }
    arrays = {}
    tree = _take_arrays(state, "", arrays)
    tree["sha256"] = _digest(tree["dict"], arrays)
    write_npz(path, {_TREE: np.frombuffer(json.dumps(tree).encode(), np.uint8), **arrays})


def load_checkpoint(path, run):
    """Bring a fresh `Run` to the state in the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is damaged, or belongs to another run. Nothing is changed then: not the model, the optimizer, generators,
        callbacks or counters. (A callback with a state that cannot be copied, because it holds an open file for example,
        is loaded first; if it is what fails, it is the only thing that may have changed.)
    """
    state = read_checkpoint(path)
    _check_data(path, state, run)
    _check_settings(path, state, run)
    _check_length(path, state, run)
    _check_arrays(path, state, run.model)
    arithmetic = state.get("arithmetic", FLOAT32_STATE)  # none in a file from before there was a loss scale
    _check_arithmetic(path, arithmetic, run.arithmetic)

    # A callback may hold the model or the run: in its copy, these are the copies.
    trial = dataclasses.replace(run, epoch=state["epoch"], step=state["step"])
    memo = {id(run): trial}
    trial.model = copy.deepcopy(run.model, memo)
    trial.callbacks = [_copied(callback, memo) for callback in run.callbacks]
    order = sorted(range(len(run.callbacks)), key=lambda i: trial.callbacks[i] is not None)
    with _named(path):
        generators = {name: _generator(state["generators"][name]) for name in run.generators}
        _load_model(state, trial)
        run.optimizer.check_state(state["optimizer"])
        for callback, saved in zip(trial.callbacks, state["callbacks"]):
            if callback is not None:
                _load_callback(callback, copy.deepcopy(saved))
                if hasattr(callback, "check_run"):
                    callback.check_run(trial)
        for i in order:
            _load_callback(run.callbacks[i], state["callbacks"][i])
    run.optimizer.load_state_dict(state["optimizer"])
    _load_model(state, run)
    run.arithmetic.load_state_dict(arithmetic)
    run.generators = generators
    run.epoch, run.step, run.history.epochs = state["epoch"], state["step"], state["history"]


def read_checkpoint(path):
    """The state in a file as nested dicts, if the file is whole; whether it fits a run is another question."""
    arrays = read_npz(path)
    if _TREE not in arrays:
        raise bad_file(path, "It is an .npz, but no checkpoint.", "Pass a file that the Checkpoint callback wrote.")
    try:
        tree = json.loads(arrays.pop(_TREE).tobytes())
        whole = "sha256" not in tree or tree["sha256"] == _digest(tree["dict"], arrays)
        state = _put_arrays(tree, arrays)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise bad_file(path, f"Its description is damaged: {_first(error)}.", "Start the run anew.") from error
    if not whole:
        raise bad_file(path, "Its fingerprint does not hold: this is not what was saved.", "Start the run anew.")
    if not isinstance(state, dict) or type(version := state.get("version")) is not int or version != VERSION:
        raise bad_file(path, f"It is no checkpoint of version {VERSION}.", "Resume with the version that wrote it.")
    if damage := _damage(state):
        raise bad_file(path, f"Its description is damaged: {damage}.", "Start the run anew.")
    return state


def described(value):
    """A function or an object by its name and plain settings, the same in each process."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [described(part) for part in value]
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.items()]
        return f"partial({', '.join(str(described(part)) for part in parts)})"
    if hasattr(value, "__name__"):
        return value.__name__
    shown = [
        f"{name}={described(part)}"
        for name, part in getattr(value, "__dict__", {}).items()
        if hasattr(part, "__name__") or (isinstance(part, _PLAIN) and not name.startswith("_"))
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


# ---- what a file may be --------------------------------------------------------------------------------------------
def _digest(tree, arrays):
    """SHA-256 of what stands in the JSON, and of all arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(tree).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _damage(state):
    """What is wrong with the state of any run whatever, or None."""
    kinds = _KINDS | {name: kind for name, kind in _LATER_KINDS.items() if name in state}
    for name, kind in kinds.items():
        if type(state.get(name)) is not kind:
            return f"{name!r} is no {kind.__name__}"
    if min(state["epoch"], state["step"], state["samples"]) < 0 or len(state["history"]) != state["epoch"]:
        return "its counters do not fit its history"
    for logs in state["history"]:
        fine = isinstance(logs, dict) and all(isinstance(name, str) for name in logs)
        if not fine or not all(isinstance(value, (*_PLAIN, list, np.ndarray)) for value in logs.values()):
            return "its history holds something else than names and values"
    names = state.get("callback_names", [""] * len(state["callbacks"]))
    if len(names) != len(state["callbacks"]) or not all(isinstance(name, str) for name in names):
        return "its callbacks have no names"
    return None if _is_split(state.get("split"), state["samples"]) else "its validation split"


def _is_split(split, samples):
    """Whether this can be the split of so many training samples; None is that of an older version."""
    if split is None:
        return True
    if split.keys() != {"data", "validation", "train", "held_out"} or not isinstance(split["data"], str):
        return False
    parts = [split["train"], split["held_out"]]
    if not isinstance(split["validation"], float):
        return all(part is None for part in parts) and isinstance(split["validation"], (str, type(None)))
    if not all(isinstance(part, np.ndarray) and part.ndim == 1 and part.dtype.kind in "iu" for part in parts):
        return False
    everyone = np.sort(np.concatenate(parts))
    return len(parts[0]) == samples and np.array_equal(everyone, np.arange(len(everyone))) and len(parts[1]) > 0


# ---- whether it fits a run -----------------------------------------------------------------------------------------
def _check_data(path, state, run):
    """Refuse other validation data, other data, or another number of callbacks."""
    saved, now = state.get("split"), run.split.notes if "split" in state else None
    if saved and saved["validation"] != now["validation"]:
        before, own = (
            "validation data of its own" if isinstance(part["validation"], str) else f"validation={part['validation']}"
            for part in (saved, now)
        )
        own = "others" if own == before else own
        cure = "those" if isinstance(saved["validation"], str) else before
        raise bad_file(path, f"It belongs to a run with {before}, this one has {own}.", f"Resume with {cure}.")
    known = "callback_names" in state  # those of our own, such as the one of `distill`, are not the user's affair
    parts = [state["callback_names"] if known else state["callbacks"], _names(run.callbacks)]
    counts = [len([name for name in part if not (known and name.startswith("_"))]) for part in parts]
    if state["samples"] != run.samples or counts[0] != counts[1]:
        raise bad_file(
            path,
            f"It belongs to a run of {state['samples']} training samples and {counts[0]} callbacks, this one has "
            f"{run.samples} and {counts[1]}.",
            "Resume with the data, validation split and callbacks that the run was started with.",
        )
    if saved and saved["data"] != now["data"]:
        raise bad_file(
            path,
            "It belongs to a run on other data, or on these in another order.",
            "Resume with the whole data set that the run was started with; what was held out is in the file.",
        )


def _check_settings(path, state, run):
    """Refuse other settings, and other callbacks where these remember something."""
    own = run.settings()
    for name, saved in state.get("settings", {}).items():
        if name not in own:
            rule = f"It belongs to a run with {name} = {saved}, which this kind of training does not have."
            raise bad_file(path, rule, "Resume with the function that started it: fit, distill or mutual.")
        if saved != own[name]:
            rule = f"It belongs to a run with {name} = {saved}, this one has {name} = {own[name]}."
            raise bad_file(path, rule, f"Resume with {name} = {saved}, as the run was started.")
    now = _names(run.callbacks)
    before = state.get("callback_names", now)
    fits = len(state["callbacks"]) == len(now) == len(before) and all(
        before[i] == now[i] or (saved is None and not hasattr(callback, "load_state_dict"))
        for i, (saved, callback) in enumerate(zip(state["callbacks"], run.callbacks))
    )
    if not fits:
        raise bad_file(
            path,
            f"It belongs to a run with the callbacks {', '.join(before)}; this one has {', '.join(now)}.",
            "Resume with the callbacks that the run was started with, in their order.",
        )


def _check_length(path, state, run):
    """Refuse a run that has fewer epochs than were done, or epochs of other length: schedules and pruning count steps."""
    if run.epochs < state["epoch"]:
        raise bad_file(
            path,
            f"Its run has finished {state['epoch']} epochs, more than epochs = {run.epochs}.",
            f"epochs counts all, those in the file too: write epochs={state['epoch'] + 10} for 10 more.",
        )
    if state["step"] != state["epoch"] * run.steps_per_epoch:
        steps = max(1, state["step"] // max(1, state["epoch"]))
        raise bad_file(
            path,
            f"Its epochs have {steps} steps, those of this run {run.steps_per_epoch}; schedules and pruning count steps.",
            f"Resume with the batch size of that run: {-(-state['samples'] // steps)}, or a little more.",
        )


def _check_arrays(path, state, model):
    """Refuse masks and parameters of other names, shapes or dtypes."""
    parameters = dict(model.named_parameters())
    for name, kept in state["masks"].items():
        if not isinstance(kept, np.ndarray) or kept.dtype != bool:
            raise bad_file(path, f"Its mask of {name!r} is damaged.", "Start the run anew.")
        if name not in parameters or parameters[name].shape != kept.shape:
            raise bad_file(
                path, f"It masks {name!r}, {kept.shape}, which this model does not have.", "Resume with the same model."
            )
    for name, parameter in parameters.items():
        dtype = getattr(state["model"].get(name), "dtype", parameter.dtype)  # what is missing is told by the model
        if dtype != parameter.dtype:
            raise bad_file(
                path,
                f"Its {name!r} is {dtype}, that of this model {parameter.dtype}: it would not go on bit for bit.",
                f"Resume with model.astype(np.{dtype}).",
            )


def _check_arithmetic(path, saved, own):
    if not own.is_state(saved):
        raise bad_file(path, "Its precision and loss scale are damaged.", "Start the run anew.")
    before, now = saved["format"], own.format
    if before != now:
        raise bad_file(
            path, f"It belongs to a run in {before}, this one is in {now}.", f'Resume with precision="{before}".'
        )


@contextmanager
def _named(path):
    """Turn what model, optimizer and callbacks (also the user's) raise about a state into an error that names the file."""
    try:
        yield
    except FileFormatError:
        raise
    except _ERRORS as error:
        lines = str(error).split("\n")
        if len(lines) == 3:  # in the form of the house
            raise bad_file(path, f"{lines[0]} {lines[1]}", lines[2]) from error
        rule = f"It does not fit this run: {_first(error)}."
        raise bad_file(
            path, rule, "Resume with the model, optimizer and callbacks that the run was started with."
        ) from error


def _first(error):
    """The first line of an error, with its kind."""
    return f"{type(error).__name__}: {error!s}".split("\n")[0].rstrip(". ")


# ---- putting it in place -------------------------------------------------------------------------------------------
def _copied(callback, memo):
    """A copy of a callback that has a state to load, or None."""
    if not hasattr(callback, "load_state_dict"):
        return None
    try:
        return copy.deepcopy(callback, memo)
    except _ERRORS:  # it holds a file, a lock, ...
        return None


def _load_callback(callback, saved):
    if hasattr(callback, "check_state"):
        callback.check_state(saved)
    if saved is not None:
        callback.load_state_dict(saved)


def _load_model(state, run):
    for path, parameter in run.model.named_parameters():
        others = [c for c in parameter.constraints if not isinstance(c, Mask)]
        masks = [Mask(state["masks"][path])] if path in state["masks"] else []
        parameter.constraints[:] = others + masks
    run.model.load_state_dict(state["model"])


def _generator(saved):
    """A generator in a saved state."""
    kind = saved["bit_generator"]
    if kind not in _BIT_GENERATORS:
        raise ValueError(f"there is no generator {kind!r}")
    generator = np.random.Generator(getattr(np.random, kind)(0))
    generator.bit_generator.state = saved
    if not _same(generator.bit_generator.state, saved):
        raise ValueError(f"the state of a {kind} is damaged")
    return generator


def _same(a, b):
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return np.array_equal(a, b)


def _masks(model):
    return {path: c.kept for path, p in model.named_parameters() for c in p.constraints if isinstance(c, Mask)}


def _names(callbacks):
    return [type(callback).__name__ for callback in callbacks]


def _take_arrays(value, path, arrays):
    """The same nesting with each array replaced by its name; big integers of generators become text."""
    if isinstance(value, dict):
        return {"dict": [[key, _take_arrays(v, f"{path}/{key}", arrays)] for key, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_take_arrays(v, f"{path}/{i}", arrays) for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        while path in arrays:  # a key may hold a slash
            path += "'"
        arrays[path] = value
        return {"array": path}
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    return value  # JSON of Python holds integers of any size, and the exact bits of a float


def _put_arrays(value, arrays):
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        return {key: _put_arrays(v, arrays) for key, v in value["dict"]}
    return [_put_arrays(v, arrays) for v in value] if isinstance(value, list) else value
