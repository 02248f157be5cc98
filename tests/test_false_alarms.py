"""False alarms of Apple's BLAS, which NumPy makes warnings of: no product of the engine passes them on."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minidistill as md

PACKAGE = Path(__file__).resolve().parent.parent / "minidistill"

# Products of integers, which are none of BLAS's, and of tensors, which `ops.matmul` multiplies.
HARMLESS = {"kernels/reference/int8.py": 3, "distill/relations.py": 3, "lab/compression.py": 1}

PROGRAM = """
import platform, sys
import numpy as np, numba, threadpoolctl

platform.system = lambda: "Darwin"  # only Python's word for it: nothing else of a Mac is needed
alarms = []

def alarming(multiply):
    def product(*operands, **options):
        alarms.append(len(operands[0]))
        np.array([1, 1e38, 0], np.float32) * np.float32(1e38) / np.float32(0)  # all three warnings
        return multiply(*operands, **options)
    return product

np.matmul, np.dot = alarming(np.matmul), alarming(np.dot)

import minidistill as md
from minidistill import datasets, distill, nn, optim, prune, quantize
from minidistill.kernels.pool import set_threads

set_threads(2)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(200, 12)).astype(np.float32), rng.integers(3, size=200)
data = datasets.Dataset(x, y)
teacher = nn.Sequential(nn.Dense(12, 16, "relu"), nn.Dense(16, 3), rng=0)

def hears(name, call):
    before = len(alarms)
    value = call()
    print(name, len(alarms) > before)
    return value

hears("fit", lambda: md.fit(teacher, data, epochs=1, progress=False, rng=0))
student = nn.Sequential(nn.Dense(12, 8, "relu"), nn.Dense(8, 3), rng=1)
objective = [distill.SoftTargets(2.0), distill.Relational()]
hears("distill", lambda: distill.distill(teacher, student, data, objective=objective, epochs=1, progress=False, rng=0))
hears("predict", lambda: md.predict(student, x))
hears("large", lambda: md.kernels.product(np.ones((300, 300), np.float32), np.ones((300, 300), np.float32)))
for shape in ((600, 200), (200, 600)):
    md.kernels.products([(np.ones((shape[0], 300), np.float32), np.ones((300, shape[1]), np.float32))])
for a, b in (((4,), (4,)), ((4,), (4, 2)), ((3, 4), (4,)), ((5, 3, 4), (4, 2))):
    value = md.value_and_grad(lambda p: np.sum(p[0] @ p[1]))
    hears("matmul", lambda: value([rng.normal(size=a), rng.normal(size=b)]))
hears("gptq", lambda: quantize.post_training(student, x, bits=4, rounding="gptq"))
hears("bias", lambda: quantize.post_training(student, x, bias_correction=True))
hears("obs", lambda: prune.obs(student.copy(), 0.3, data))
"""


def test_no_warning_of_a_false_alarm_reaches_the_user():
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    heard = dict(line.split() for line in done.stdout.splitlines())
    assert set(heard.values()) == {"True"} and len(heard) == 8, heard  # the fake really stood in each way


def products(tree):
    """Lines that multiply as NumPy does, and so pass alarms on. `np.vdot` and `np.einsum` never do."""
    named = {"dot", "matmul", "inner", "tensordot", "norm"}
    for node in ast.walk(tree):
        operator = isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.MatMult)
        call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in named
        if operator or (call and ast.unparse(node.func) not in ("linear.matmul", "kernels.matmul", "reduction.norm")):
            yield node.lineno


def test_every_product_goes_where_alarms_are_not_heard():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = list(products(ast.parse(path.read_text(encoding="utf-8"))))
        if lines:
            found[path.relative_to(PACKAGE).as_posix()] = lines
    assert {name: len(lines) for name, lines in found.items()} == HARMLESS, found


@pytest.mark.parametrize("text", ["a @ b", "a @= b", "a.dot(b)", "np.matmul(a, b)", "np.linalg.norm(a)"])
def test_the_rule_would_notice(text):
    assert list(products(ast.parse(text))) == [1]


def test_large_finite_numbers_warn_of_nothing():
    """Sums of squares beyond float32, where finite targets and inputs are only looked through."""
    large = np.full((300, 200), 1e25, np.float32)
    prediction = md.Tensor(large)
    assert md.losses.mae(prediction, large / 2).item() == pytest.approx(5e24, rel=1e-6)
    assert md.losses.mse(prediction, large / 2).item() == np.inf  # what it is, told by `fit`
    assert md.predict(md.nn.Dense(200, 2, rng=0), large).shape == (300, 2)
