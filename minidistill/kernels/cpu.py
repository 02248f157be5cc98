"""Which of the processor's 8-bit instructions the integer kernels use: the best that Numba really compiles for.

============  ====================  ======================================================================
kind          instruction           what one does
============  ====================  ======================================================================
"amx"         ``tdpbusd``           a 16 x 64 block of uint8 times a 64 x 16 block of int8, added to 16 x 16 int32
"avx512_vnni" ``vpdpbusd`` (zmm)    64 products of uint8 and int8, added four by four to 16 int32
"avx_vnni"    ``vpdpbusd`` (ymm)    32 products, added four by four to 8 int32
"avx2"        ``vpmaddwd``          16 products of int16, added in pairs to 8 int32; an addition follows
"vectors"     any processor's       8 products of int16 in four lanes, in whatever instructions the compiler finds
"plain"       none                  nothing is compiled (``NUMBA_DISABLE_JIT=1``): `reference/` runs
============  ====================  ======================================================================

All give the same integers. ``vpmaddubsw``, which older libraries use for 8 bits, is not among them: it adds two products
of up to 255 * 127 in 16 bits, and saturates.

Numba is asked and not the processor: ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` can forbid instructions, and code for
one that is switched off would abort the process.
"""

import ctypes
import functools
import platform
import sys

import llvmlite.binding
import numba
from numba.core.compiler_lock import global_compiler_lock

from minidistill.kernels._jit import JIT_ENABLED

_NEEDS = {  # the best first
    "amx": {"amx-int8", "amx-tile", "avx512vnni", "avx512bw", "avx512vl"},
    "avx512_vnni": {"avx512vnni", "avx512bw", "avx512vl"},
    "avx_vnni": {"avxvnni", "avx2"},
    "avx2": {"avx2"},
    "vectors": set(),
}
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # asm/unistd_64.h, asm/prctl.h, and the XSAVE component


@functools.cache
def kinds():
    """The kinds that run here, the best first. "vectors" is always the last."""
    if not JIT_ENABLED:
        return ("plain",)
    features = _features()
    return tuple(k for k, needs in _NEEDS.items() if needs <= features and (k != "amx" or _may_use_tiles()))


@functools.cache
def has(feature):
    """Whether Numba compiles for a processor with this feature, by LLVM's name for it ("avx512f")."""
    return JIT_ENABLED and feature in _features()


@functools.cache
def _features():
    """The features that Numba compiles for, among those asked for here."""
    from numba.core.registry import cpu_target  # here, since asking starts Numba's compiler

    codegen = cpu_target.target_context.codegen()
    triple, _, listed = codegen.magic_tuple()
    if (numba.config.CPU_NAME is None and numba.config.CPU_FEATURES is None) or not triple.startswith(("x86", "i686")):
        return {name[1:] for name in listed.split(",") if name.startswith("+")}  # LLVM lists all that this machine has
    return _compiled_for(codegen, listed, sorted({"avx512f"}.union(*_NEEDS.values())))


def _compiled_for(codegen, listed, names):
    """Those of the features that a user's choice of processor and features comes to, by LLVM's own account.

    "haswell" alone implies AVX2, and "+avx512vnni" AVX-512; LLVM keeps a table of that and shows it to nobody. But it moves a
    function into its caller only if the caller has all features of the function: so for each feature a function that asks
    for it is compiled, and LLVM has answered where the function is gone.
    """
    text = ""
    for i, name in enumerate(names):
        asked = f"{listed},+{name}" if listed else f"+{name}"
        text += f"""
            define internal i32 @asks{i}(i32 %x) #{i} {{
                %y = call i32 asm sideeffect "", "=r,0"(i32 %x)
                ret i32 %y
            }}
            define i32 @caller{i}(i32 %x) {{
                %y = call i32 @asks{i}(i32 %x)
                ret i32 %y
            }}
            attributes #{i} = {{ "target-features"="{asked}" }}
        """
    library = codegen.create_library("features")
    library.add_llvm_module(llvmlite.binding.parse_assembly(text))
    with global_compiler_lock:
        library.finalize()
    left = library.get_llvm_str()
    return {name for i, name in enumerate(names) if f"@asks{i}(" not in left}


def _may_use_tiles():
    """Ask the kernel for AMX's 8 KB of tile registers: a process gets them only on request (Linux 5.16 and later).

    The permission holds for all threads of the process, and its forked children have it too.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0
