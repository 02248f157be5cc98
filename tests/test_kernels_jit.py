"""How the kernels are compiled: lazily, cached where possible, all options in one file, no `prange`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_checks import jit_only

from minidistill import kernels
from minidistill.kernels import _jit, reference

PACKAGE = Path(kernels.__file__).parents[1]
FAST_MODULES = (
    "affine", "dense", "elementwise", "embedding", "fake_quant", "images", "int8", "optimizer", "softmax", "sparse",
)  # fmt: skip
EXACT = ("affine", "fake_quant", "int8", "round16")
FILES = {name: ("kernels", name) for name in FAST_MODULES} | {"round16": ("lab", "round16")}


def sources(folder):
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}


def decorators(tree):
    """(function, decorator) for every decorated function of a file."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [(function, ast.unparse(decorator)) for function in functions for decorator in function.decorator_list]


def taken_from_numba(tree):
    """What a file takes from Numba: `numba.x`, or `from numba import x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numba":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("numba", "nb"):
            yield node.attr


def test_all_options_of_numba_stand_in_one_file():
    compilers = {"njit", "jit", "vectorize", "guvectorize", "stencil", "cfunc"}
    for path, tree in sources(PACKAGE).items():
        taken = set(taken_from_numba(tree))
        keywords = {k.arg for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords}
        assert "prange" not in taken, path
        assert "parallel" not in keywords, path
        if path.name == "_jit.py":
            assert taken & compilers == {"njit"}
        else:
            assert not taken & compilers, path
            assert "fastmath" not in keywords, path


def test_the_only_licence_to_change_floats_is_contract():
    tree = ast.parse((PACKAGE / "kernels" / "_jit.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    licences = {k.value for call in calls for k in call.keywords if k.arg == "fastmath"}
    assert {ast.unparse(value) for value in licences} == {"{'contract'}", "False"}
    assert "parallel" not in {k.arg for call in calls for k in call.keywords}


@pytest.mark.parametrize("name", FILES)
def test_jitted_functions_use_our_decorators_and_call_nothing_of_another_file(name):
    folder, file = FILES[name]
    tree = ast.parse((PACKAGE / folder / f"{file}.py").read_text(encoding="utf-8"))
    jitted = [(function, d) for function, d in decorators(tree) if not d.startswith(("functools.cache", "np.errstate"))]
    assert {d for _, d in jitted} == {"exact_kernel" if name in EXACT else "kernel"}
    imported = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module != "__future__"]
    pasted = {f"minidistill.kernels.{name}" for name in ("intrinsics", "sparse_intrinsics")}
    foreign = {alias.name for n in imported for alias in n.names if n.module not in pasted}
    permitted = {  # intrinsics are code that is pasted into a kernel; the rest is called from Python
        "minidistill.kernels._jit",
        "minidistill.kernels.reference",
        "minidistill.kernels.pool",
        "minidistill.kernels",
        *pasted,
        *(f"minidistill.kernels.{name}" for name in ("bit_packing", "cpu", "packing", "sparse_formats")),
    }
    assert {n.module for n in imported} <= permitted
    for function, _ in jitted:
        used = {n.id for statement in function.body for n in ast.walk(statement) if isinstance(n, ast.Name)}
        assert not used & foreign, function.name


@jit_only
@pytest.mark.parametrize("name", FILES)
def test_jitted_functions_release_the_gil_and_keep_nan_and_inf(name):
    from numba.core.dispatcher import Dispatcher

    found = [
        f
        for f in vars(importlib.import_module(".".join(["minidistill", *FILES[name]]))).values()
        if isinstance(f, Dispatcher)
    ]
    assert found
    for dispatcher in found:
        assert dispatcher.targetoptions["nogil"] is True
        assert dispatcher.targetoptions["fastmath"] == (False if name in EXACT else {"contract"})
        assert not dispatcher.targetoptions.get("parallel", False)


def test_fast_and_reference_have_the_same_names_and_signatures():
    fast = {}
    for name in (*FAST_MODULES, "blas"):
        module = importlib.import_module(f"minidistill.kernels.{name}")
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__ and function.__name__[0] != "_":
                fast[function.__name__] = function
    only_in_reference = {"TOGETHER", "dot", "matmul", "nan_error", "range_error", "smallest"}
    assert sorted({*fast, *only_in_reference}) == sorted(reference.__all__)
    assert all(getattr(kernels, name) is getattr(reference, name) for name in only_in_reference)
    for name, function in fast.items():
        assert inspect.signature(function) == inspect.signature(getattr(reference, name))
        assert getattr(kernels, name) is (function if _jit.JIT_ENABLED else getattr(reference, name))


def run_python(code, root, **environment):
    """Run code in a fresh interpreter that imports minidistill from `root`; return what it printed."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0", "PYTHONPATH": str(root), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_compiles_nothing(tmp_path):
    code = """
from numba.core import event
with event.install_recorder("numba:compile") as compiled:
    import numpy as np
    from minidistill import kernels
    on_import = len(compiled.buffer)
    kernels.erf(np.zeros(1))
print(on_import, len(compiled.buffer) > 0)
"""
    assert run_python(code, PACKAGE.parent, NUMBA_CACHE_DIR=str(tmp_path)) == ["0", "True"]
    assert list(tmp_path.rglob("*_erf_rows*.nbi"))  # and what was compiled is kept for the next run


def test_without_a_writable_cache_kernels_run_uncached(tmp_path):
    shutil.copytree(PACKAGE / "kernels", tmp_path / "minidistill" / "kernels", ignore=lambda *_: ["__pycache__"])
    (tmp_path / "minidistill" / "__init__.py").touch()  # or an installed minidistill would be found instead
    blocked = tmp_path / "minidistill" / "kernels" / "__pycache__"
    blocked.write_text("a file where the cache directory would be: not even root can write inside it")
    code = """
import numba, numpy as np
from minidistill import kernels
from minidistill.kernels import _jit
try:
    numba.njit(cache=True)(_jit.kernel_input)
except RuntimeError:
    print("no cache")
print(kernels.erf(np.array([np.inf]))[0])
"""
    nowhere = {name: str(blocked / "x") for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA")}
    assert run_python(code, tmp_path, PYTHONDONTWRITEBYTECODE="1", **nowhere) == ["no", "cache", "1.0"]
    assert not list(tmp_path.rglob("*.nb[ci]"))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Makes a kernel of one line anew, as each process does; its cache lies in `tmp_path`."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "tiny.py").write_text("def tiny(a):\n    return a + 1\n")
    specification = importlib.util.spec_from_file_location("tiny", tmp_path / "tiny.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return lambda: _jit.kernel(module.tiny)


def calls(kernel):
    """What it gives for 2, and how much of it came from the cache."""
    return kernel(2.0), sum(kernel.stats.cache_hits.values())


@jit_only
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("part", ["nothing", "a byte", "ten", "half", "all but one", "noise"])
def test_a_damaged_file_of_the_cache_is_named_removed_and_made_again(tiny, tmp_path, suffix, part):
    """Emptied, truncated or overwritten: the next run says so and computes; the one after it finds all in order."""
    assert calls(tiny()) == (3.0, 0) and calls(tiny()) == (3.0, 1)
    (damaged,) = tmp_path.rglob(f"*.{suffix}")
    whole = damaged.read_bytes()
    length = {"nothing": 0, "a byte": 1, "ten": 10, "half": len(whole) // 2, "all but one": len(whole) - 1}.get(part)
    damaged.write_bytes(b"\x93noise" * 50 if length is None else whole[:length])
    told = f"Numba's cache: {re.escape(str(damaged))} is damaged .*\nIt was removed, and is compiled again."
    with pytest.warns(RuntimeWarning, match=told) as warned:
        assert calls(tiny()) == (3.0, 0)
    assert len(warned) == 1 and calls(tiny()) == (3.0, 1)


@jit_only
def test_a_cache_that_takes_nothing_is_told_and_kernels_run(tiny, tmp_path, monkeypatch):
    """A disk that fills up after Numba has chosen its folder."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", full)
    with pytest.warns(
        RuntimeWarning, match="takes no compiled code .No space left on device.*\n.*anew in each process"
    ):
        assert calls(tiny()) == (3.0, 0)
    assert not list(tmp_path.rglob("*.nbc"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere paths are Unicode, whatever the locale")
def test_a_path_that_the_locale_cannot_write_runs_uncached(tmp_path):
    """LC_ALL=C, UTF-8 mode off: Numba cannot hash a folder with an umlaut to name its cache."""
    root = tmp_path / "Schüler"
    shutil.copytree(PACKAGE / "kernels", root / "minidistill" / "kernels", ignore=lambda *_: ["__pycache__"])
    (root / "minidistill" / "__init__.py").touch()
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    code = "import numpy as np; from minidistill import kernels; print(kernels.erf(np.array([np.inf]))[0])"
    assert run_python(code, root, **plain) == ["1.0"]
    assert not list(tmp_path.rglob("*.nb[ci]"))


def test_without_the_jit_everything_runs_on_the_reference():
    code = """
from minidistill import kernels
from minidistill.kernels import reference
print(all(getattr(kernels, name) is getattr(reference, name) for name in reference.__all__))
"""
    assert run_python(code, PACKAGE.parent, NUMBA_DISABLE_JIT="1") == ["True"]
