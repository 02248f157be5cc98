"""Saving and loading models: one ``.npz`` each, the architecture as JSON inside, the arrays without pickle.

The file stores *what* each module is (a name and constructor arguments), never code: only classes in the engine's own
registry are built from it. A class of the user's is filled instead: ``load(path, into=Ranker(...))``. Arrays are stored as
they are in memory, uncompressed, so that the size of a file says what a model costs; a mask takes one bit a weight.

Everything is checked before anything is built, and built before anything is changed: sizes, names, shapes, types and a
SHA-256 of every array. Read ``files.py`` and ``module.py`` before this file.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from itertools import zip_longest

import numpy as np

from ..explain import Table
from ..files import FileFormatError, bad_file, read_npz, write_npz
from ..lazy import import_lab
from .constraints import AtLeast, Mask, MaxNorm
from .layers import Activation, Concatenate, Dense, Dropout, Embedding, Flatten, Sequential
from .module import Module, Parameter, replace

FORMAT, VERSION = "minidistill model", 1
_HEADER = "model.json"
_LAYERS = {c.__name__: c for c in (Dense, Embedding, Dropout, Activation, Flatten, Concatenate, Sequential)}
_IN_LAB = {"SharedDense": "sharing", "HuffmanDense": "compression"}  # these modules register their layers when imported
_CONSTRAINTS = {c.__name__: c for c in (AtLeast, Mask, MaxNorm)}


def register(layer):
    """Let files name this layer class (a decorator). The engine's own layers use it; it is not for users' classes."""
    _LAYERS[layer.__name__] = layer
    return layer


def save(model, path, metadata=None):
    """Write a model into one file, atomically: also masks, and which parameters rest. The same model gives the same bytes.

    Parameters
    ----------
    model : Module
    path : path
        Taken as it is; ".npz" is the usual suffix.
    metadata : dict, optional
        Anything that JSON can hold; `describe` shows it.
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"save got a {type(model).__name__}.\nIt writes an nn.Module.\nWrite md.save(model, 'model.npz')."
        )
    for module in model.modules():
        if hasattr(module, "check_savable"):
            module.check_savable(_is_known)
    arrays = dict(sorted(model._arrays().items()))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "modules": _module_tree(model),
        "ties": _ties(model),
        "constraints": _store_constraints(model, arrays),
        "arrays": {name: _fingerprint(array) for name, array in arrays.items()},
        "metadata": metadata or {},
    }
    if frozen := [path for path, p in model.named_parameters() if not p.requires_grad]:
        header["frozen"] = frozen
    try:
        text = json.dumps(header, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"save got something that JSON cannot hold: {error}.\nMetadata and layer arguments are numbers, texts, lists and "
            "dicts.\nConvert it first: float(value), list(array)."
        ) from error
    write_npz(path, {_HEADER: np.frombuffer(text, np.uint8), **arrays})


def load(path, into=None, max_bytes=4 * 2**30):
    """Read a model that `save` wrote.

    Parameters
    ----------
    path : path
    into : Module, optional
        A model of your own class to fill, for files of models that are no engine classes. Layers that the file knows to be
        different (quantized, sparse) are put in place. Changed only if everything fits.
    max_bytes : int
        The most that all arrays together may take.

    Returns
    -------
    Module
        ``into`` if it was given, else a new model, in train mode like any new one.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        (a ValueError) If it is no model file, damaged, tampered with, from another version, or does not fit ``into``.
    """
    header, arrays = read_header(path, max_bytes)
    try:
        _check_unpacked(header, arrays, max_bytes, path)
        if into is None:
            model = _build(header, "", arrays, {}, path)
            _fill(model, header, arrays, path)
            return model
        trial = _take_over(into.copy(), header, arrays, path)
        _fill(trial, header, arrays, path)  # raises while ``into`` is still untouched
        into = _take_over(into, header, arrays, path)
        _fill(into, header, arrays, path)
        return into
    except FileFormatError:
        raise
    except (ArithmeticError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        cause = str(error).split("\n")[0].strip("'\". ")
        raise bad_file(path, f"Its description cannot be followed: {cause}.", "Save the model again.") from error


def read_header(path, max_bytes=4 * 2**30):
    """(description, arrays) of a model file, with every array checked against its fingerprint."""
    arrays = read_npz(path, max_bytes)
    if _HEADER not in arrays:
        raise bad_file(path, "It is an .npz, but no model of minidistill.", "Pass a file that md.save wrote.")
    try:
        header = json.loads(arrays.pop(_HEADER).tobytes())
        known = isinstance(header, dict) and header.get("format") == FORMAT
        if known and header["version"] == VERSION:
            parts = [header[name] for name in ("modules", "ties", "constraints", "arrays", "metadata")]
            known = all(isinstance(part, dict) for part in parts)
    except (ValueError, KeyError, RecursionError) as error:
        raise bad_file(path, "Its description is damaged.", "Save the model again.") from error
    if not known:
        raise bad_file(path, "It is an .npz, but no model of minidistill.", "Pass a file that md.save wrote.")
    if header["version"] != VERSION:
        remedy = "Install the version of minidistill that wrote it, or save it again."
        raise bad_file(path, f"It is in version {header['version']} of the format, not {VERSION}.", remedy)
    if arrays.keys() != header["arrays"].keys():
        wrong = sorted(arrays.keys() ^ header["arrays"].keys())
        raise bad_file(path, f"These arrays are missing or too many: {wrong}.", "Save the model again.")
    for name, array in arrays.items():
        if _fingerprint(array) != header["arrays"][name]:
            raise bad_file(path, f"Array {name!r} is not the one that was saved.", "Save the model again.")
    return header, arrays


def describe(path):
    """What a model file holds, as a printable table, without building the model."""
    header, arrays = read_header(path)
    masks = {name: stored for name, entries in header["constraints"].items() for e in entries
             for stored in e["arrays"].values()}  # fmt: skip
    parts = []  # (name, module, its arrays as cells)
    for name, entry in header["modules"].items():
        what = f"the same as {entry['same_as']!r}" if "same_as" in entry else _call(entry)
        prefix = f"{name}." if name else ""
        own = [n for n in header["arrays"] if n.startswith(prefix) and "." not in n[len(prefix) :] and ":" not in n]
        cells = [_array_cells(n[len(prefix) :], arrays[n], arrays.get(masks.get(n))) for n in own]
        parts.append((name or "(model)", what, cells))
    table = [("path", "module", "array", "dtype", "bytes", "masked")]
    others = [table[0][2:], *(four for _, _, cells in parts for four in cells)]
    room = 90 - max(len(name) for name, _, _ in parts) - sum(max(map(len, column)) for column in zip(*others))
    for name, what, cells in parts:  # 100 letters a line; what a choice was made by would fill a page
        texts = textwrap.wrap(what, max(room, 24), max_lines=4, placeholder=" ...")
        for i, (text, four) in enumerate(zip_longest(texts, cells)):
            table.append(("" if i else name, text or "", *(four or [""] * 4)))
    total = sum(a.nbytes for a in arrays.values())
    summary = f"{len(arrays)} array{'s' * (len(arrays) != 1)}, {total:,} bytes; every checksum holds"
    metadata = [f"{key}: {value}" for key, value in header["metadata"].items()]
    return Table.of(table, left=(0, 1, 2, 3, 5), notes=[summary, *metadata])


def _array_cells(name, array, mask):
    """What `describe` says of one array: name and shape, type, bytes, and how much of it a mask (stored as bits) covers."""
    share = "" if mask is None or not array.size else f"{1 - np.unpackbits(mask)[: array.size].mean():.2%}"
    return f"{name} {array.shape}", str(array.dtype), f"{array.nbytes:,}", share


# ---- writing -----------------------------------------------------------------------------------------------------
def _module_tree(model):
    """{path: what the module is}; a module that stands in several places is described once."""
    first, tree = {}, {}
    for path, module in [("", model), *model._walk(Module)]:
        if id(module) in first:
            tree[path] = {"same_as": first[id(module)]}
        else:
            first[id(module)] = path
            known = _is_known(module)
            tree[path] = {"type": type(module).__name__, "config": module.config() if known else {}, "own": not known}
    return tree


def _is_known(module):
    """Whether a file can name the class of a module."""
    return _LAYERS.get(type(module).__name__) is type(module)


def _ties(model):
    """{path of a shared parameter or buffer: its first path}, both attributes of modules.

    What else is shared, in lists and dicts, only classes of the user's hold; they share it from the start.
    """
    modules, first, ties = {"", *(path for path, _ in model._walk(Module))}, {}, {}
    for path, part in model._walk((Parameter, np.ndarray)):
        if path.rpartition(".")[0] not in modules:
            continue
        if id(part) in first:
            ties[path] = first[id(part)]
        first.setdefault(id(part), path)
    return ties


def _store_constraints(model, arrays):
    """Descriptions of all constraints, by parameter; their arrays of bool are added to ``arrays`` as bits."""
    stored = {}
    for path, parameter in model.named_parameters():
        for i, constraint in enumerate(parameter.constraints):
            if _CONSTRAINTS.get(type(constraint).__name__) is not type(constraint):
                raise ValueError(
                    f"save met the constraint {constraint!r} on {path!r}.\nA file can hold: {', '.join(_CONSTRAINTS)}.\n"
                    "Remove it before saving: parameter.constraints.clear()."
                )
            names = {name: f"{path}:{i}.{name}" for name in constraint.arrays()}
            arrays.update({names[name]: np.packbits(array) for name, array in constraint.arrays().items()})
            entry = {"type": type(constraint).__name__, "config": constraint.config(), "arrays": names}
            stored.setdefault(path, []).append(entry)
    return stored


def _fingerprint(array):
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": array.dtype.str, "sha256": digest}


# ---- reading -----------------------------------------------------------------------------------------------------
def _build(header, path, arrays, built, file):
    """The module that the file describes at ``path``, with its parts. Arrays are filled in later."""
    tree = header["modules"]
    entry = tree[path]
    if "same_as" in entry:
        return built[entry["same_as"]]
    if entry["own"] or entry["type"] not in _LAYERS:
        raise bad_file(
            file,
            f"{path or 'The model'!r} is a {entry['type']}, which is no class of ours: a file never names code to run.",
            f"Make the model yourself and fill it: md.load(path, into={entry['type']}(...)).",
        )
    layer = _LAYERS[entry["type"]]
    if layer._numbered is not None:  # built from its parts, and what arguments it has besides
        prefix = f"{path}." if path else ""
        numbers = sorted(int(p[len(prefix) :]) for p in tree if p.startswith(prefix) and p[len(prefix) :].isdigit())
        if numbers != list(range(len(numbers))):
            raise bad_file(file, f"The parts of {path or 'the model'!r} are not numbered from 0.", "Save it again.")
        parts = [_build(header, f"{prefix}{i}", arrays, built, file) for i in numbers]
        built[path] = layer(*parts, **entry["config"])
        return built[path]
    # A layer allocates its arrays when it is made: the description must not ask for more than the file holds.
    for name, shape in getattr(layer, "stored_shapes", lambda config: {})(entry["config"]).items():
        full = f"{path}.{name}" if path else name
        full = header["ties"].get(full, full)
        if full not in arrays or arrays[full].shape != tuple(shape):
            raise bad_file(file, f"{path!r} should have an array {name!r} of shape {shape}.", "Save the model again.")
    built[path] = layer(**entry["config"])
    return built[path]


def _check_unpacked(header, arrays, max_bytes, file):
    """Count what layers unpack when they are made, beside what the file holds, towards the limit."""
    entries = [entry for entry in header["modules"].values() if "same_as" not in entry and not entry["own"]]
    for home in {_IN_LAB[entry["type"]] for entry in entries if entry["type"] in _IN_LAB}:
        import_lab(home)
    sizes = [getattr(_LAYERS.get(e["type"]), "unpacked_bytes", lambda config: 0)(e["config"]) for e in entries]
    total = sum(sizes) + sum(array.nbytes for array in arrays.values())
    if total > max_bytes:
        remedy = "If you trust it, pass a larger max_bytes."
        raise bad_file(file, f"Its layers unpack to {total:,} bytes, more than max_bytes = {max_bytes:,}.", remedy)


def _take_over(model, header, arrays, file):
    """Put the layers that the file describes into a model of the user's, where they differ."""
    tree = header["modules"]
    own = dict([("", model), *model._walk(Module)])
    missing = sorted(tree.keys() - own.keys())
    if missing:
        raise bad_file(
            file,
            f"It has modules at {missing}, which {type(model).__name__} does not.",
            "Fill the class that it was saved from, made with the same arguments.",
        )
    for path, entry in tree.items():
        module = model.get(path)
        if "same_as" in entry:
            continue
        if entry["own"]:
            if type(module).__name__ != entry["type"]:
                raise bad_file(
                    file,
                    f"{path or 'The model'!r} was a {entry['type']}, and is a {type(module).__name__} here.",
                    "Fill the class that it was saved from.",
                )
        elif type(module).__name__ != entry["type"] or module.config() != entry["config"]:
            if module._numbered is not None:
                raise bad_file(
                    file, f"{path!r} is a container of another kind here.", "Fill the class it was saved from."
                )
            model = replace(model, path, _build(header, path, arrays, {}, file))
    return model


def _fill(model, header, arrays, file):
    """Parameters, buffers and constraints from the file into a model that has their places."""
    for path, first in header["ties"].items():
        parent, _, name = path.rpartition(".")
        source, _, source_name = first.rpartition(".")
        setattr(model.get(parent), name, getattr(model.get(source), source_name))
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    of_constraints = {
        name for entries in header["constraints"].values() for e in entries for name in e["arrays"].values()
    }
    stored = arrays.keys() - of_constraints
    if stored != parameters.keys() | buffers.keys():
        wrong = sorted(stored ^ (parameters.keys() | buffers.keys()))
        raise bad_file(file, f"These arrays are missing or too many for the model: {wrong}.", "Save the model again.")
    for name, own in {**parameters, **buffers}.items():
        kinds_fit = (
            arrays[name].dtype in (np.float32, np.float64) if name in parameters else arrays[name].dtype == own.dtype
        )
        if arrays[name].shape != own.shape or not kinds_fit:
            raise bad_file(
                file,
                f"Array {name!r} is {arrays[name].shape} {arrays[name].dtype}, where the model has {own.shape} {own.dtype}.",
                "Fill the class that it was saved from, made with the same arguments.",
            )
    constraints = _read_constraints(header["constraints"], parameters, arrays)
    frozen = header.get("frozen", [])
    if not set(frozen) <= parameters.keys():
        raise bad_file(file, f"It freezes parameters that the model does not have: {frozen}.", "Save the model again.")
    for name, parameter in parameters.items():
        parameter._data = np.array(arrays[name], order="C")
        parameter.constraints[:] = constraints.get(name, [])
        parameter.constrain()
    for name in frozen:
        parameters[name].requires_grad = False
    for name, buffer in buffers.items():
        buffer[...] = arrays[name]
    model.check_all()


def _read_constraints(stored, parameters, arrays):
    made = {}
    for path, entries in stored.items():
        shape = parameters[path].shape
        for entry in entries:
            bits = {name: arrays[full] for name, full in entry["arrays"].items()}
            size = int(np.prod(shape))
            flags = {name: np.unpackbits(packed)[:size].astype(bool).reshape(shape) for name, packed in bits.items()}
            made.setdefault(path, []).append(_CONSTRAINTS[entry["type"]](**entry["config"], **flags))
    return made


def _call(entry):
    options = ", ".join(f"{k}={v!r}" for k, v in entry["config"].items() if v is not None)
    return f"{entry['type']}({options})" if options else entry["type"]
