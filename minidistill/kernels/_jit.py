"""Every Numba option of the engine, decided here and nowhere else.

Read `reference/` first: it says *what* the kernels compute. This file says *how* they are compiled:

- **lazily**: no signatures are given, so a kernel compiles on its first call and importing compiles nothing;
- **cached on disk**, beside the source or in `NUMBA_CACHE_DIR`, so the second run of a program compiles
  nothing either. Where no such directory is writable the kernel is compiled anew in each process, and a
  damaged file is named, removed and made again;
- **`nogil`**, and serial: no `parallel=True`. Whoever wants threads splits the rows, a call for each range;
- **`error_model="numpy"`**: x / 0 is inf as in NumPy. Python's model would raise, and that branch inside a
  loop keeps the compiler from using vector instructions;
- **no bounds checks**: shapes and ids are validated at the public door (`nn`, `ops`, `optim`), not here.

`fastmath` is a set of licences to change floating point. Only one is given, and only to float kernels:
`contract`, one rounding instead of two in `a * b + c`. Not given: `nnan` and `ninf`, which let the compiler
delete every check for NaN and inf; `reassoc`, which lets a sum depend on the width of the vector registers;
`arcp`, which turns a division into a multiplication by a rounded reciprocal.

Given up for simplicity: Numba's cache notices an edit of the file that holds the kernel, and of no other.
That is why a kernel and all jitted code that it calls share one file, and why editing the options below needs
`make clean`.
"""

import os
import pickle
import warnings
from contextlib import suppress

import numba
import numpy as np
from numba.core.caching import FunctionCache

#: False under `NUMBA_DISABLE_JIT=1`: then the package runs on `reference/`, for a debugger to step through.
JIT_ENABLED = not numba.config.DISABLE_JIT

# All that reading a damaged pickle can raise, and writing a file.
_DAMAGE = (pickle.PickleError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError)
_DAMAGE += (OSError, RuntimeError, TypeError, ValueError)


def kernel(function):
    """Compile a float kernel: `a * b + c` may be rounded once, nothing else about the arithmetic changes."""
    return _compile(function, fastmath={"contract"})


def exact_kernel(function):
    """Compile an integer or quantization kernel: no fastmath flag, every operation rounded as NumPy does."""
    return _compile(function, fastmath=False)


def _compile(function, fastmath):
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": fastmath}
    compiled = numba.njit(**options)(function)
    if JIT_ENABLED:
        # Uncached where Numba finds no directory that it can write to, or none whose name it can write (LC_ALL=C).
        with suppress(RuntimeError, UnicodeError):
            compiled._cache = _Cache(function)  # what njit(cache=True) does, with our class
    return compiled


class _Cache(FunctionCache):
    """Numba's cache of one kernel, for which a damaged file or a full disk is a warning, never an error."""

    def load_overload(self, sig, target_context):
        """The compiled code, or None: then Numba compiles."""
        try:
            return super().load_overload(sig, target_context)
        except _DAMAGE as error:
            path = self._damaged_file(sig, target_context)
            with suppress(OSError):
                os.unlink(path)
            self._warn(f"{path} is damaged ({type(error).__name__})", "It was removed, and is compiled again")
            return None

    def save_overload(self, sig, data):
        """Keep the compiled code, if that is possible."""
        try:
            super().save_overload(sig, data)
        except _DAMAGE as error:
            told = getattr(error, "strerror", None) or type(error).__name__
            self._warn(f"{self.cache_path} takes no compiled code ({told})", "It is compiled anew in each process")

    def _damaged_file(self, sig, target_context):
        """The file of the code if the index can be read, else the index."""
        files = self._cache_file
        try:
            return files._data_path(files._load_index()[self._index_key(sig, target_context.codegen())])
        except _DAMAGE:
            return files._index_path

    @staticmethod
    def _warn(what, then):
        advice = "Free some space, or set NUMBA_CACHE_DIR to another folder, if this comes again"
        warnings.warn(f"Numba's cache: {what}.\n{then}.\n{advice}.", RuntimeWarning, stacklevel=2)


def is_ready(array):
    """Whether an array is in the layout of `kernel_input`: as ``array.flags.carray``, by the bits of NumPy's C interface.

    That property and Numba both warn at an array of `np.broadcast_arrays`, which NumPy has marked: its entries may share
    memory. Here it counts as not ready, and is copied.
    """
    return array.flags.num & LAYOUT == READY


READY = 0x001 | 0x100 | 0x400  # C-contiguous, aligned, writable
LAYOUT = READY | 1 << 31  # the same and NPY_ARRAY_WARN_ON_WRITE


def kernel_input(array, dtype=None):
    """Return `array` in the one layout that kernels are compiled for, copied only if it is not in it already.

    Numba compiles a kernel once more for every layout it meets: transposed, strided, read-only, misaligned.
    Bringing the odd ones into C order costs a copy, compiling costs half a second, so there is one layout:
    C-contiguous, aligned, writable.
    """
    if array.flags.num & LAYOUT == READY and (dtype is None or array.dtype == dtype):
        return array
    return np.array(array, dtype=dtype, order="C")


def flat_view(array):
    """Return a 1-D view of an array that a kernel is about to change in place.

    Raises
    ------
    ValueError
        If the array is not C-contiguous, aligned and writable: a copy would take the update and lose it.
    """
    if not is_ready(array):
        given = f"an array of shape {array.shape}, strides {array.strides} to update in place"
        rule = "It must be C-contiguous, aligned and writable, or the update would go to a copy."
        cure = "Make it so once, when it is created: array = np.array(array, order='C')."
        raise ValueError(f"A kernel got {given}.\n{rule}\n{cure}")
    return array.reshape(-1)
