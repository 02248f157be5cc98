"""Module and Parameter: how a model holds its weights, is called, copied, watched and rewritten.

A module finds its parts by a plain walk over its attributes: Parameters are trained, ndarrays are stored with the model
but not trained (buffers: int8 weights, scales), other modules are walked in turn, and so are lists, tuples and dicts.
Nothing has to be registered.

Train and eval mode have two levels. ``model.eval()`` sets it on the model; ``with mode(training=False)`` sets it for
the current thread and context only and wins. ``fit`` and ``predict`` use the second, so that predicting never writes to
a model, and several threads may use one. Read ``tensor.py`` before this file.
"""

from __future__ import annotations

import copy
import itertools
import time
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from .. import checks
from ..kernels.packing import PackedMatrix
from ..tensor import Tensor
from .constraints import Mask
from .lost import UNSEARCHED, refuse_lost
from .wrong_input import WrongFeatures

MASK = (
    "mask:"  # before a path: the key of a mask in a state. A path begins with an attribute's name, which has no colon.
)
making = itertools.count(time.time_ns())  # from the clock, so that what was pickled earlier counts as made earlier

_mode: ContextVar[tuple | None] = ContextVar("minidistill_mode", default=None)
_watcher: ContextVar = ContextVar("minidistill_watcher", default=None)


class mode:
    """Run modules in train or eval mode inside this block, whatever their own flag says.

    Parameters
    ----------
    training : bool
    rng : np.random.Generator, optional
        Where random layers (dropout) draw from; their own generator if not given.
    """

    def __init__(self, training, rng=None):
        self.value = training, rng

    def __enter__(self):
        self.token = _mode.set(self.value)

    def __exit__(self, *error):
        _mode.reset(self.token)


def is_watched():
    """Whether a `watch` block wants to hear of module calls."""
    return _watcher.get() is not None


@contextmanager
def watch(callback):
    """Call ``callback(module, inputs, output)`` after each module call in this block; it returns the output to use."""
    token = _watcher.set(callback)
    try:
        yield
    finally:
        _watcher.reset(token)


class Parameter(Tensor):
    """A trained array: its own copy of the data, and the constraints that hold after every optimizer step.

    Parameters
    ----------
    data : array_like
        Copied; float64 stays float64, everything else becomes float32.
    constraints : iterable
        Objects with ``apply(param, rows=None)``; see ``nn/constraints.py``.

    Attributes
    ----------
    requires_grad : bool
        Set to False, the parameter rests: no optimizer moves it. Copies and files keep that; a `state_dict` holds arrays
        only, and so leaves it as it is.
    made : int
        When it was made, in the order of all parameters and optimizers; 0 from when an optimizer takes it.
    """

    __slots__ = ("constraints", "made")

    def __init__(self, data, constraints=()):
        super().__init__(np.array(Tensor(data).data, order="C"), requires_grad=True)
        self.constraints, self.made = list(constraints), next(making)

    def assign(self, value):
        """Overwrite the values in place (the shape must match), and apply the constraints."""
        value = checks.array("assign", "value", value)
        if value.shape != self.shape:
            super().assign(value)  # raises
        self._data[...] = value
        self.constrain()

    def constrain(self, rows=None):
        """Apply every constraint, to the given rows of the first axis or to all, and count the change."""
        for constraint in self.constraints:
            constraint.apply(self, rows)
        self.changed()


class NeedsTensors(Exception):
    """`infer` came to a layer that can only be called, as training calls it."""


def check_module(who, model):
    """The model, if it is a Module; ``who`` is the function that got it, in the error."""
    return checks.instance(who, "model", model, Module, "an nn.Module", f"Pass the model first: {who}(model, ...).")


class Module:
    """Base class of layers and models. Subclasses set attributes in ``__init__`` and define ``forward(*inputs)``."""

    training = True
    _numbered = None  # name of the list whose entries stand in paths by their number alone

    def __call__(self, *inputs):
        try:
            output = self.forward(*inputs)
        except WrongFeatures as error:
            raise error.seen_from(self, inputs) from None
        watcher = _watcher.get()
        return output if watcher is None else watcher(self, inputs, output)

    def infer(self, *inputs):
        """The same on plain arrays, off the tape, where a layer has a way to do that; here, and in the user's, it raises."""
        raise NeedsTensors

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        owner = {name: next(c for c in cls.__mro__ if name in vars(c)) for name in ("forward", "infer")}
        if cls.__mro__.index(owner["forward"]) < cls.__mro__.index(owner["infer"]):
            cls.infer = Module.infer  # an inherited one would compute what the forward below it does
            cls.work_per_row = Module.work_per_row

    def work_per_row(self):
        """(multiplications for one row of a batch, those of them that BLAS does), by which `predict` shares rows.

        A multiplication counts as long as BLAS takes for one: integer layers count less. None, as here: not known. Then
        `predict` calls the model as training does, on one thread: a layer of the user's expects tensors, and may remember
        things.
        """
        return None

    def at(self, rows):
        """The module that computes a batch of this many rows: itself, but for one that has several forms."""
        return self

    def forward(self, *inputs):
        raise TypeError(
            f"{type(self).__name__} was called.\nA Module computes in its method forward(*inputs), which this class "
            "does not have.\nDefine it: def forward(self, x): return ..."
        )

    # ---- finding the parts ---------------------------------------------------------------------------------------
    def _walk(self, wanted, prefix="", above=()):
        """Yield (dotted path, part) for all parts of the wanted type, depth first, in order of definition.

        A part that stands in several places comes once for each. A reference back to a module that this one is
        inside of (a parent) is no part, and is passed over.
        """
        above, stack = (*above, id(self)), []
        for name, value in vars(self).items():
            numbered = enumerate(value) if name == self._numbered else [(name, value)]
            stack.extend((f"{prefix}{key}", part) for key, part in numbered)
        stack.reverse()
        while stack:
            path, value = stack.pop()
            if id(value) in above:
                continue
            if isinstance(value, wanted):
                yield path, value
            if isinstance(value, Module):
                yield from value._walk(wanted, f"{path}.", above)
            elif isinstance(value, dict):
                stack.extend([(f"{path}.{key}", v) for key, v in value.items()][::-1])
            elif isinstance(value, (list, tuple)):
                stack.extend([(f"{path}.{i}", v) for i, v in enumerate(value)][::-1])

    def named_modules(self):
        """(path, module) of this module (path "") and all inside it, each once, in a stable order."""
        return _once([("", self), *self._walk(Module)])

    def modules(self):
        """This module and all inside it, each once."""
        return [module for _, module in self.named_modules()]

    def named_parameters(self):
        """(path, Parameter) of all parameters, each once (under its first path), in a stable order.

        Raises
        ------
        TypeError
            If something wants a gradient where it is not found: a Tensor that is no Parameter, a layer in a set. Results of
            operations that a forward has left here are passed over.
        """
        met = list(self._walk((Tensor, np.ndarray, *UNSEARCHED)))
        refuse_lost(self, met, (Module, Parameter))
        return _once([(path, part) for path, part in met if isinstance(part, Parameter)])

    def parameters(self):
        """All parameters, each once: what an optimizer takes."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self):
        """(path, ndarray or PackedMatrix) of the arrays that are stored but not trained."""
        return _once(self._walk((np.ndarray, PackedMatrix)))

    def derived(self):
        """Arrays that this module computed from the others for speed: they take memory, and no file holds them."""
        return []

    def get(self, path):
        """The module at a dotted path, such as ``"tower.0"``; ``""`` is the module itself."""
        modules = dict([("", self), *self._walk(Module)])
        if path not in list(modules):
            raise ValueError(
                f"asked {type(self).__name__} for the module {path!r}.\nA path joins attribute names and list "
                f"positions by dots.\nThis model has: {', '.join(repr(p) for p in modules)}."
            )
        return modules[path]

    # ---- mode ----------------------------------------------------------------------------------------------------
    def train(self, training=True):
        """Set train mode (dropout active) on this module and all inside it. Returns the module."""
        for module in self.modules():
            module.training = training
        return self

    def eval(self):
        """Set eval mode on this module and all inside it. Returns the module."""
        return self.train(False)

    def is_training(self):
        """The mode that holds now: that of the surrounding `mode` block, else the module's own flag."""
        context = _mode.get()
        return self.training if context is None else context[0]

    # ---- state ---------------------------------------------------------------------------------------------------
    def state_dict(self):
        """Copies of all parameters and buffers, by path; and of masks, arrays of bool at "mask:" and the parameter's path."""
        return {path: array.copy() for path, array in self._arrays().items()} | self._masks()

    def load_state_dict(self, state):
        """Set all parameters and buffers, in place, and the masks if the state has any. Constraints are applied again.

        Parameters
        ----------
        state : dict of str to ndarray
            From `state_dict`. One with masks sets all masks: a parameter for which it has none has none afterwards. One
            without any (of a dense model, say, to whose weights a pruned one is set back) leaves the masks of this model.

        Raises
        ------
        ValueError
            Naming every missing and unexpected key, or every array of a wrong shape or kind; nothing is changed then.
        """
        advice = "Pass what state_dict() returned; a file is read by md.load(path, into=model)."
        checks.instance("load_state_dict", "state", state, dict, "a dict of arrays by path", advice)
        own = self._arrays()
        masks = {
            MASK + path: np.broadcast_to(False, p.shape) for path, p in self.named_parameters() if MASK + path in state
        }
        own |= masks
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unexpected:
            raise ValueError(
                f"load_state_dict of {type(self).__name__} found other keys than the model has.\n"
                f"Missing: {missing}; unexpected: {unexpected}.\nLoad it into the architecture that it was saved from."
            )
        wrong = [
            f"{path} is {given.shape} {given.dtype}, not {array.shape} {array.dtype}"
            for path, array, given in (
                (path, array, checks.array("load_state_dict", path, state[path])) for path, array in own.items()
            )
            if given.shape != array.shape
            or not (given.dtype == array.dtype or given.dtype.kind == array.dtype.kind == "f")
        ]
        if wrong:
            raise ValueError(
                f"load_state_dict of {type(self).__name__} found arrays that do not fit.\n{'; '.join(wrong)}.\n"
                + ("Masks are arrays of bool: take them as they were saved, or leave all of them out."
                   if any(text.startswith(MASK) for text in wrong)
                   else "Load it into the architecture that it was saved from.")
            )  # fmt: skip
        before, whole = self.state_dict(), False
        constraints = [(p.constraints, p.constraints[:]) for p in self.parameters()]
        try:
            if masks:
                self._set_masks(state)
            self._assign(state)
            self.check_all()
            whole = True
        finally:
            if not whole:
                for current, earlier in constraints:
                    current[:] = earlier
                self._assign(before)
                self.check_all()

    def _arrays(self):
        """All parameters and buffers by path, not copies."""
        return {path: p.data for path, p in self.named_parameters()} | dict(self.named_buffers())

    def _masks(self):
        masks = {}
        for path, parameter in self.named_parameters():
            kept = [c.kept for c in parameter.constraints if isinstance(c, Mask)]
            masks |= {MASK + path: np.logical_and.reduce(kept)} if kept else {}
        return masks

    def _set_masks(self, state):
        own = self._masks()
        for path, parameter in self.named_parameters():
            kept, before = state.get(MASK + path), own.get(MASK + path)
            if kept is not None and before is not None and np.array_equal(kept, before):
                continue
            others = [c for c in parameter.constraints if not isinstance(c, Mask)]
            parameter.constraints[:] = others + ([] if kept is None else [Mask(np.array(kept))])

    def _assign(self, state):
        for path, parameter in self.named_parameters():
            parameter.assign(state[path])
        for path, array in self.named_buffers():
            array[...] = state[path]

    def check_all(self):
        """Let every module that has a ``check`` look at its arrays, after they were replaced."""
        for module in self.modules():
            if hasattr(module, "check"):
                module.check()

    def copy(self):
        """An independent deep copy: no array is shared, gradients are not copied."""
        twin = copy.deepcopy(self)
        for parameter in twin.parameters():
            parameter.grad = None
        return twin

    def astype(self, dtype):
        """A copy with all parameters in float32 or float64."""
        dtype = checks.dtype("astype", "dtype", dtype)
        if dtype not in (np.float32, np.float64):
            raise TypeError(
                f"astype({dtype.name}) of {type(self).__name__} was asked for.\n"
                "Parameters are float32 or float64.\nFor fewer bits: quantize.post_training(model, calibration)."
            )
        twin = self.copy()
        for parameter in twin.parameters():
            parameter._data = parameter._data.astype(dtype)
        return twin

    def config(self):
        """Arguments from which the constructor builds this layer again; what `md.save` writes as JSON."""
        return {}

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.config().items())
        return f"{type(self).__name__}({arguments})"


def replace(model, path, new):
    """Put another module in the place of the one at ``path``, in place; every attribute that holds it is changed.

    Returns the model (the new module itself if ``path`` is "").
    """
    old = check_module("nn.replace", model).get(path)
    if old is model:
        return new
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if _holds(value, old):
                setattr(module, name, _exchange(value, old, new))
    return model


def _holds(value, old):
    if isinstance(value, dict):
        return any(_holds(v, old) for v in value.values())
    return any(_holds(v, old) for v in value) if isinstance(value, (list, tuple)) else value is old


def _exchange(value, old, new):
    if isinstance(value, dict):
        return {k: _exchange(v, old, new) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_exchange(v, old, new) for v in value)
    return new if value is old else value


def _once(named):
    """Drop later occurrences of the same object; a layer or parameter may be used in several places."""
    seen, result = set(), []
    for path, part in named:
        if id(part) not in seen:
            seen.add(id(part))
            result.append((path, part))
    return result


def generator_in_use(module):
    """The generator that a random layer draws from now: that of the surrounding `mode` block, else its own."""
    context = _mode.get()
    return module.generator if context is None or context[1] is None else context[1]
