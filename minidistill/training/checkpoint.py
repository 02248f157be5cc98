"""Checkpoints: a run's whole state in one ``.npz``, so that it continues bit for bit.

Whole means: parameters and buffers, masks, optimizer moments and step count (schedules depend on that alone), the loss scale,
the random generators, the history, what callbacks remember, the positions that were held out, and the settings. Everything
becomes nested dicts and lists; arrays are stored as arrays, the rest as JSON, with a SHA-256 of all of it. A file without
one, or without split and settings, is from an older version, and loads.

A run goes on with the settings that it was started with: data and validation data (by a hash), loss, metrics, objectives,
augmentation (functions and objects by their names and plain attributes), batch size, precision, the kinds of optimizer and of
callbacks that remember something (in any order), and the teacher's weights. The learning rate may be another.

Loading changes everything or nothing: the state is loaded into a copy of the run first. Read ``files.py`` before this file.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from contextlib import contextmanager

import numpy as np

from .. import checks
from ..files import FileFormatError, bad_file, read_npz, write_npz
from ..nn import Mask
from ..nn.module import MASK
from .arithmetic import FLOAT32_STATE

VERSION = 1
_TREE = "checkpoint.json"
_PLAIN = str, int, float, type(None)
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
        "masks": {name.removeprefix(MASK): kept for name, kept in run.model._masks().items()},
        "optimizer": run.optimizer.state_dict(),
        "arithmetic": run.arithmetic.state_dict(),
        "generators": {name: generator.bit_generator.state for name, generator in run.generators.items()},
        "history": run.history.epochs,
        "callbacks": [c.state_dict() if hasattr(c, "state_dict") else None for c in run.callbacks],
        "settings": run.started_with(),
        "split": run.split.positions,
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
        If it is damaged, or belongs to another run. Nothing is changed then, except perhaps a callback that cannot be
        copied, because it holds an open file for example.
    """
    state = read_checkpoint(path)
    with errors_of(path):
        _check_settings(path, state, run)
        memo = {id(part): part for part in (run.split, run.settings)}  # by id: what stands in the copy of the run
        for callback in run.callbacks:
            memo[id(callback)] = _copied(callback, memo)
        _load(copy.deepcopy(run, memo), copy.deepcopy(state))
        _load(run, state)


def read_checkpoint(path):
    """The state in a file as nested dicts, if the file is whole; whether it fits a run is another question."""
    arrays = read_npz(path)
    if _TREE not in arrays:
        raise bad_file(path, "It is an .npz, but no checkpoint.", "Pass a file that the Checkpoint callback wrote.")
    with errors_of(path, "Its description is damaged", "Start the run anew."):
        tree = json.loads(arrays.pop(_TREE).tobytes())
        if "sha256" in tree and tree["sha256"] != _digest(tree["dict"], arrays):
            raise ValueError("its fingerprint is that of something else.")
        state = _put_arrays(tree, arrays)
        if state["version"] != VERSION:
            raise ValueError(f"it is in version {state['version']} of the format, not {VERSION}.")
    return state


def kinds(callbacks):
    """The kind of each callback, or "stateless" if it remembers nothing: of those, a resumed run may have more or fewer."""
    return [type(c).__name__ if hasattr(c, "load_state_dict") else "stateless" for c in callbacks]


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


@contextmanager
def errors_of(path, rule="It does not fit this run", cure="Resume with what the run was started with."):
    """Turn what is raised about a state, also by classes of the user's, into an error that names the file."""
    try:
        yield
    except FileFormatError:
        raise
    except _ERRORS as error:
        text = str(error).split("\n")
        if len(text) == 3:  # in the form of the house, with a cure of its own
            raise bad_file(path, f"{text[0]} {text[1]}", text[2]) from error
        raise bad_file(path, f"{rule}: {type(error).__name__}: {text[0].rstrip('. ')}.", cure) from error


def _check_settings(path, state, run):
    """Refuse a run with other settings than those in the file; of older files, as far as they tell."""
    epochs, arithmetic = state["epoch"], state.get("arithmetic", FLOAT32_STATE)
    if not run.arithmetic.is_state(arithmetic):
        raise bad_file(path, "Its precision and loss scale are damaged.", "Start the run anew.")
    now, started_with = run.started_with(), dict(state.get("settings", {}))
    if "callbacks" in started_with:
        started_with["callbacks"] = sorted(kind for kind, _ in _remembered(state, run))
        now = now | {"callbacks": sorted(kind for kind in kinds(run.callbacks) if kind != "stateless")}
    else:
        started_with["number of callbacks"] = len(state["callbacks"])
        now = now | {"number of callbacks": len(run.callbacks)}
    steps = f"steps in {epochs} epochs (by batch_size)"  # schedules count them
    saved_and_now = {name: (saved, now.get(name)) for name, saved in started_with.items()} | {
        "training samples": (state["samples"], run.samples),
        "precision": (arithmetic["format"], run.arithmetic.format),
        "dtypes": (_dtypes(state["model"]), _dtypes(run.model._arrays())),
        steps: (state["step"], epochs * run.steps_per_epoch),
    }
    for name, (saved, own) in saved_and_now.items():
        if saved != own:
            raise bad_file(
                path,
                f"It belongs to a run with {name} = {saved}, this one has {name} = {own}.",
                f"Resume with {name} = {saved}, as the run was started, by the same function.",
            )
    if run.epochs < epochs:
        raise bad_file(
            path,
            f"Its run has finished {epochs} epochs, more than epochs = {run.epochs}.",
            f"epochs counts all, those in the file too: write epochs={epochs + 10} for 10 more.",
        )


def _remembered(state, run):
    """[(kind of callback, what it remembers)] in a file; older ones name no kinds, and go by places."""
    saved_kinds = state.get("settings", {}).get("callbacks", kinds(run.callbacks))
    pairs = zip(saved_kinds, state["callbacks"], strict=True)
    return [(kind, saved) for kind, saved in pairs if kind != "stateless"]


def _load(run, state):
    """Bring a run, or its copy, to a state."""
    generators = {name: _generator(state["generators"][name]) for name in run.generators}
    remembered = _remembered(state, run)
    for callback, kind in zip(run.callbacks, kinds(run.callbacks)):
        if kind != "stateless":  # the first that is left of its kind
            place = next(i for i, (saved_kind, _) in enumerate(remembered) if saved_kind == kind)
            callback.load_state_dict(remembered.pop(place)[1])
    for parameter in run.model.parameters():
        parameter.constraints[:] = [c for c in parameter.constraints if not isinstance(c, Mask)]
    run.model.load_state_dict(state["model"] | {MASK + name: kept for name, kept in state["masks"].items()})
    run.optimizer.load_state_dict(state["optimizer"])
    run.arithmetic.load_state_dict(state.get("arithmetic", FLOAT32_STATE))
    run.generators, run.epoch, run.step = generators, state["epoch"], state["step"]
    run.history.epochs = [dict(logs) for logs in state["history"]]


def _copied(callback, memo):
    """A copy of a callback, or the callback itself where that is impossible."""
    try:
        return copy.deepcopy(callback, memo)
    except _ERRORS:  # it holds a file, a lock, ...
        return callback


def _generator(saved):
    """A random generator in a saved state."""
    kind = checks.choice("a generator", "kind", saved["bit_generator"], _BIT_GENERATORS)
    generator = np.random.Generator(getattr(np.random, kind)(0))
    generator.bit_generator.state = saved
    return generator


def _dtypes(arrays):
    return sorted({str(array.dtype) for array in arrays.values()})


# ---- the file --------------------------------------------------------------------------------------------------------
def _digest(tree, arrays):
    """SHA-256 of what stands in the JSON, and of all arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(tree).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


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
