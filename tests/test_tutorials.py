"""Every lesson runs as a plain script within its minute, opens as a notebook, and keeps what a lesson promises."""

import os
import re
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from apple import STRICT

from minidistill.kernels._jit import JIT_ENABLED

LESSONS = sorted((Path(__file__).resolve().parent.parent / "tutorials").glob("*/lesson.py"))
SECONDS = 60  # of CPU time: what a lesson takes, however busy the machine is
HANGS = 1200  # of the clock: no lesson takes so long on any machine


@pytest.fixture(params=LESSONS, ids=lambda path: path.parent.name)
def lesson(request):
    return request.param


@pytest.fixture
def text(lesson):
    return lesson.read_text(encoding="utf-8")


def cells(text):
    """(is Markdown, source) of each cell of a percent-format script."""
    before, *parts = re.split(r"^# %%( \[markdown\])?\n", text, flags=re.MULTILINE)
    assert before == "", "the first line starts a cell"
    return [(bool(kind), source) for kind, source in zip(parts[::2], parts[1::2])]


def sections(text):
    """The text of each numbered section, by its number."""
    _, *parts = re.split(r"^# ## (\d+\.\d+) ", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2]))


def test_the_lessons_are_found():
    assert [path.parent.name for path in LESSONS][:2] == ["01_autograd", "02_training"]


def run(lesson, folder, hangs=HANGS):
    """(exit code, what went to the error stream, seconds of CPU time) of a lesson."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, *STRICT, str(lesson)], cwd=folder, env={**os.environ, "MPLBACKEND": "Agg"},
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        killer = threading.Timer(hangs, child.kill)
        killer.start()
        _, status, usage = os.wait4(child.pid, 0)  # of this child alone: two of them run at once
        killer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        return child.returncode, errors.read(), usage.ru_utime + usage.ru_stime


def test_the_minute_is_one_of_work_not_of_waiting(tmp_path):
    def ran(program, **options):
        (tmp_path / "lesson.py").write_text(program)
        return run(tmp_path / "lesson.py", tmp_path, **options)

    code, errors, seconds = ran("import time; time.sleep(1.5)")
    assert (code, errors) == (0, "") and seconds < 1
    code, _, seconds = ran("import time\nwhile time.process_time() < 0.5: pass")
    assert code == 0 and 0.5 <= seconds < 1
    code, errors, _ = ran("raise ValueError('wrong')")
    assert code == 1 and "ValueError: wrong" in errors
    assert ran("import time; time.sleep(60)", hangs=0.3)[0] < 0  # killed


@pytest.fixture(scope="module")
def running(request, tmp_path_factory):
    """{lesson: (its folder, the run)} of the lessons that were asked for, two at a time: a core each. Not without the JIT,
    where some need their minute."""
    asked = [
        item.callspec.params["lesson"]
        for item in request.session.items
        if "running" in getattr(item, "fixturenames", ())
    ]
    with ThreadPoolExecutor(2 if JIT_ENABLED else 1) as pool:
        folders = {lesson: tmp_path_factory.mktemp(lesson.parent.name) for lesson in asked}
        yield {lesson: (folder, pool.submit(run, lesson, folder)) for lesson, folder in folders.items()}


def test_it_runs_within_its_minute_and_makes_every_figure(lesson, text, running):
    folder, future = running[lesson]
    code, errors, seconds = future.result()
    assert code == 0, errors
    assert seconds < SECONDS
    figures = re.findall(r'^show\(.*"(\w+\.png)"\)$', text, re.MULTILINE)
    made = list(folder.rglob("*.*"))
    assert sorted(made) == sorted(folder / "runs" / "lessons" / lesson.parent.name / name for name in figures)
    assert len(figures) >= 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_it_opens_with_its_number_goal_prerequisites_and_time(lesson, text):
    is_markdown, first = cells(text)[0]
    assert is_markdown and first.startswith(f"# # {int(lesson.parent.name[:2])}. ")
    assert all(f"**{word}.**" in first for word in ("Goal", "Prerequisites", "Time"))


def test_markdown_cells_are_comments_and_code_cells_compile(lesson, text):
    kinds = [is_markdown for is_markdown, _ in cells(text)]
    assert True in kinds and False in kinds
    for is_markdown, source in cells(text):
        if is_markdown:
            assert all(line.startswith("#") for line in source.splitlines() if line), source
        else:
            assert compile(source, str(lesson), "exec").co_names, "a code cell without code"


def test_every_section_asks_for_a_prediction_and_asserts_its_claim(lesson, text):
    found = sections(text)
    number = int(lesson.parent.name[:2])
    assert list(found) == [f"{number}.{i + 1}" for i in range(len(found))] and len(found) >= 5
    for name, section in found.items():
        assert "**Predict.**" in section, f"section {name} asks for no prediction"
        assert re.search(r"^ *assert ", section, re.MULTILINE), f"section {name} asserts nothing"
        assert section.index("**Predict.**") < section.index("assert "), f"section {name} asserts before it asks"
