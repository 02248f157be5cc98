"""The house rules that a reader relies on: who may import whom, what is never imported, and how long things get.

All of it is read from the source (`ast`), or run in a process of its own.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "minidistill"

# From the bottom up: a part may import from the lines above its own, never from those below. Parts of one line may
# import one another, but the pillars may not. (DESIGN.md, "The house".)
LAYERS = [
    ["checks", "files", "lazy", "timing"],  # know nothing of the engine
    ["kernels"],  # arrays in, arrays out
    ["row_sparse"],  # a gradient that is mostly zeros
    ["tensor"],  # the tape
    ["explain", "functional", "testing"],  # need only a tape
    ["ops"],  # what is recorded on it
    ["numpy_api"],  # gives tensors their operators
    ["nn"],
    ["losses", "optim", "datasets"],
    ["training"],
    ["distill", "prune", "quantize"],  # the pillars: none imports another
    ["ledger", "plot"],
    ["deploy"],  # what combines pillars
    ["lab"],  # what one lesson studies
    ["pipeline", "bench", "cli"],  # the command line and the demo
    ["__init__", "__main__"],  # the face
]
PILLARS = {"distill", "prune", "quantize"}
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
NEVER_IMPORTED = {"scipy", "sklearn", "torch", "pandas"}
DEPENDENCIES = {"numpy", "numba", "llvmlite", "matplotlib", "tqdm", "threadpoolctl"}  # llvmlite is a part of Numba
FILE_LINES, FUNCTION_LINES = 420, 80


@cache
def sources():
    """{file: its syntax tree}."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def part_of(path):
    """The part of the package that a file belongs to: its top-level module or folder."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path, tree):
    """(line, dotted name) of everything that a file imports, relative imports resolved, also inside functions."""
    package = ["minidistill", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def test_every_part_has_its_layer():
    assert {part_of(path) for path in sources()} <= LEVEL.keys()


def test_imports_only_go_down_and_never_between_pillars():
    wrong = []
    for path, tree in sources().items():
        mine = part_of(path)
        for line, name in imported(path, tree):
            root, *rest = name.split(".")
            if root != "minidistill":
                continue
            # `from minidistill import X`, where X is no part of it, takes X from the face.
            theirs = rest[0] if rest and rest[0] in LEVEL else "__init__"
            sideways = mine != theirs and {mine, theirs} <= PILLARS
            if LEVEL[theirs] > LEVEL[mine] or sideways:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert wrong == []


# `lazy.py` imports a file of `lab` by its name, which no import statement shows. These are allowed to ask it: packages that
# show names of `lab`, `md.load` for its layers, and `fit` for its arithmetic.
UPWARD = {
    "deploy/__init__.py",
    "distill/__init__.py", "nn/serialize.py", "ops/__init__.py", "plot/__init__.py", "prune/__init__.py",
    "training/__init__.py", "training/arithmetic.py",
}  # fmt: skip


def test_only_the_listed_files_reach_up_into_the_laboratory():
    asking, by_name = set(), set()
    for path, tree in sources().items():
        file = path.relative_to(PACKAGE).as_posix()
        names = {name for _, name in imported(path, tree)}
        asking |= {file for name in names if name.startswith("minidistill.lazy")}
        by_name |= {file for name in names if name.split(".")[0] == "importlib"}
        by_name |= {file for _, name in names_in(tree) if name == "__import__"}
    assert asking == UPWARD
    assert by_name == {"lazy.py"}


def test_the_import_rule_would_notice():
    """The test above on sources that break the rule: it must see each spelling."""
    file = PACKAGE / "nn" / "sketch.py"
    text = "from ..training import fit\ndef f():\n    from .. import prune, ops\nimport minidistill.cli\nfrom . import layers"
    names = [name for _, name in imported(file, ast.parse(text))]
    assert sorted(names) == [
        "minidistill.cli", "minidistill.nn.layers", "minidistill.ops", "minidistill.prune", "minidistill.training.fit",
    ]  # fmt: skip


def test_only_the_declared_dependencies_are_imported():
    allowed = DEPENDENCIES | set(sys.stdlib_module_names) | {"minidistill"}
    found = {
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path, tree in sources().items()
        for line, name in imported(path, tree)
        if name.split(".")[0] not in allowed
    }
    assert not found and not NEVER_IMPORTED & allowed


def dotted(node):
    """`np.random.seed` for the syntax of it; "" for what is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def names_in(tree):
    return {(node.lineno, dotted(node)) for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute))}


def test_no_prange_and_no_global_random_state():
    permitted = {"default_rng", "Generator", "SeedSequence", "PCG64", "BitGenerator"}
    wrong = []
    for path, tree in sources().items():
        for line, name in names_in(tree):
            parts = name.split(".")
            global_random = parts[:2] in (["np", "random"], ["numpy", "random"]) and parts[2:3]
            if parts[-1] == "prange" or (global_random and parts[2] not in permitted):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} {name}")
        for line, name in imported(path, tree):
            if name.split(".")[0] == "random" or name.startswith("numpy.random."):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert wrong == []


def test_no_bare_except():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and path.name != "pool.py"  # a worker hands whatever was raised to the caller, who waits for it
        and (node.type is None or dotted(node.type) in ("Exception", "BaseException"))
    ]
    assert wrong == []


def test_files_and_functions_stay_short():
    long = []
    for path, tree in sources().items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES:
            long.append(f"{path.relative_to(PACKAGE)}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= FUNCTION_LINES:
                long.append(f"{path.relative_to(PACKAGE)}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert long == []


def test_every_module_opens_with_a_docstring():
    assert [str(path) for path, tree in sources().items() if not ast.get_docstring(tree)] == []


# ---- in a process of its own -----------------------------------------------------------------------------------------


def run(program):
    """What a program prints, run with warnings as errors in a new process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_slow():
    loaded = run(
        "import sys, numpy, numba\n"
        "before = set(sys.modules)\n"
        "import minidistill\n"
        "print(*sorted({name for name in set(sys.modules) - before}))"
    ).split()
    assert "minidistill.tensor" in loaded
    slow = {"matplotlib", "tqdm", "urllib.request", "http.client", "scipy", "torch"}
    assert not slow & set(loaded)


TINY = """
import sys
class NoScipy:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "scipy":
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)
sys.meta_path.insert(0, NoScipy())
import numpy as np
import minidistill as md
from minidistill import nn, optim, prune, quantize
from minidistill.datasets import Dataset

x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
y = (x[:, 0] > 0).astype(np.int64)
model = nn.Sequential(nn.Dense(4, 8, activation="gelu"), nn.Dense(8, 2), rng=0)
adam = optim.Adam(model.parameters(), lr=0.02)
md.fit(model, Dataset(x, y), optimizer=adam, epochs=20, batch_size=16, progress=False, rng=0)
prune.magnitude(model, sparsity=0.25)
for trained in (model, prune.to_sparse(model), quantize.post_training(model, calibration=x)):
    print((md.predict(trained, x).argmax(axis=1) == y).mean())
print("scipy" in sys.modules)
"""


def test_the_package_works_where_scipy_cannot_be_imported():
    *accuracies, scipy = run(TINY).split()
    assert scipy == "False" and len(accuracies) == 3
    assert all(float(accuracy) > 0.9 for accuracy in accuracies)


@pytest.mark.parametrize("name", ["tensor", "ops", "nn", "functional", "testing", "explain", "numpy_api"])
def test_each_part_can_be_imported_first(name):
    assert run(f"import minidistill.{name} as part; print(part.__name__)").strip() == f"minidistill.{name}"
