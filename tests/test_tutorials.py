"""Every lesson runs as a plain script within its minute, opens as a notebook, and keeps what a lesson promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).resolve().parent.parent / "tutorials").glob("*/lesson.py"))
SECONDS = 60


@pytest.fixture(params=LESSONS, ids=lambda path: path.parent.name)
def lesson(request):
    return request.param


def cells(text):
    """(is Markdown, source) of each cell of a percent-format script."""
    parts = re.split(r"^# %%( \[markdown\])?\n", text, flags=re.MULTILINE)
    assert parts[0] == ""  # the first line starts a cell
    return [(bool(kind), source) for kind, source in zip(parts[1::2], parts[2::2])]


def test_there_are_lessons():
    assert [path.parent.name for path in LESSONS][:2] == ["01_autograd", "02_training"]


def test_it_runs_within_its_minute_and_makes_its_figures(lesson, tmp_path):
    result = subprocess.run(
        [sys.executable, "-W", "error", str(lesson)], cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True, text=True, timeout=SECONDS * (5 if os.environ.get("NUMBA_DISABLE_JIT") == "1" else 1),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = set(re.findall(r'"(\w+\.png)"', lesson.read_text())) - {"tape.png"}
    made = {path.name for path in (tmp_path / "runs" / "lessons" / lesson.parent.name).glob("*.png")}
    assert made >= {name for name in figures if f'"{name}")' in lesson.read_text()} and len(made) >= 3


def test_it_opens_with_goal_prerequisites_and_time(lesson):
    is_text, first = cells(lesson.read_text())[0]
    assert is_text and first.startswith("# # ")
    assert all(f"**{word}.**" in first for word in ("Goal", "Prerequisites", "Time"))


def test_markdown_cells_are_comments_and_code_cells_compile(lesson):
    for is_text, source in cells(lesson.read_text()):
        if is_text:
            assert all(line.startswith("#") or not line.strip() for line in source.splitlines()), source
        else:
            compile(source, str(lesson), "exec")


def test_it_asks_for_predictions_and_asserts_its_claims(lesson):
    text = lesson.read_text()
    assert text.count("**Predict.**") >= 5
    assert len(re.findall(r"^assert ", text, re.MULTILINE)) >= 8
