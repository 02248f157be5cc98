"""Waiting for a moment without going to sleep: what makes `pool.py` quick when its calls follow each other closely.

Waking a thread that sleeps takes the operating system some ten microseconds, and on a virtual machine the processor itself
has to be woken too. So a thread that expects news soon first watches a counter in memory for a while, and sleeps only then.
The interpreter lock is not held meanwhile. What it watches is only a hint: what happens next is still decided by the locks
of `pool.py`, which are right with or without this file.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minidistill.kernels._jit import JIT_ENABLED, exact_kernel

LOOKS = 200_000  # about 100 microseconds
# More looks, about a microsecond, after the news: the thread that brought it still holds the interpreter lock, and lets go of
# it when its own kernel begins. Who asks for the lock before that is put to sleep.
LET_GO = 8_000


@intrinsic
def _look(typingctx, address):
    """The int64 at an address, read anew from memory each time: a compiler would read it once, before the loop."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(64)))
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.intp), generate


@exact_kernel
def _watch(counters, i, known, say, looks, let_go):
    if say >= 0:
        counters[say] = known  # only here, where the interpreter lock is given back: whoever sees it can have it
    address = counters.ctypes.data + i * 8
    for _ in range(looks):
        if _look(address) != known:
            for _ in range(let_go):
                _look(address)
            break


def watch(counters, i, known, say=-1, let_go=True):
    """Return when ``counters[i]`` is no longer ``known``, or after a while. Without the compiler: at once.

    Parameters
    ----------
    counters : ndarray of int64
    i : int
    known : int
    say : int
        Of the counter that is to become ``known`` first; -1 for none.
    let_go : bool
        Whether the thread that brings the news still holds the interpreter lock then.
    """
    if JIT_ENABLED:
        _watch(counters, i, known, say, LOOKS, LET_GO if let_go else 0)
    elif say >= 0:
        counters[say] = known
