"""The README runs as written: its code blocks, its make targets, its commands, its links."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from apple import STRICT

from minidistill.cli import _parser
from perf import code_size

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


RESULTS = (ROOT / "perf" / "RESULTS.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_it_is_short():
    assert README.count("\n") <= 190 and len(README.split()) <= 2000


def test_the_reading_path_exists_and_takes_an_afternoon():
    path = code_size.reading_path(README)
    assert sum(lines for _, _, lines in path) <= code_size.AFTERNOON
    assert len(path) >= 40 and len({(file, name) for file, name, _ in path}) == len(path)
    with pytest.raises(LookupError, match="no_such_function is on the README's reading path"):
        code_size.reading_path(README.replace("`record`", "`no_such_function`"))


@pytest.mark.parametrize("code", blocks("python") + blocks("python", RESULTS), ids=lambda code: code.split("\n")[0])
def test_code_blocks_run_as_written(code, tmp_path):
    result = subprocess.run([sys.executable, *STRICT, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_long_example_is_about_thirty_lines_and_saves_what_it_says(tmp_path):
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    checks = """
assert md.load("student.npz").layers[0].weight_q.dtype.name == "int8"
rows = {row["name"]: row for row in ledger.rows}
assert all(row["accuracy"] > 0.93 for row in rows.values()), rows
assert rows["int8"]["file_bytes"] < rows["teacher"]["file_bytes"] / 8
"""
    result = subprocess.run([sys.executable, "-c", code + checks], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "no speed-up" in result.stdout or "x" in result.stdout


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", README)) | set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets
    for target in ("demo", "test", "test-nojit", "lint", "perf", "notebooks", "size", "clean", "help"):
        assert target in targets


def test_every_command_line_is_understood():
    commands = [line for block in blocks("sh") for line in block.splitlines() if "minidistill " in line]
    assert len(commands) >= 5
    for line in commands:
        words = shlex.split(line, comments=True)
        words = words[next(i for i, w in enumerate(words) if w.endswith("minidistill")) + 1 :]
        assert callable(_parser().parse_args(words).run)


def test_every_file_that_the_results_name_exists():
    for path in re.findall(r"\]\(([\w/.-]+)\)", RESULTS):
        assert (ROOT / "perf" / path).exists(), path


def test_every_file_that_is_named_exists():
    for path in re.findall(r"\]\(([\w/.-]+)\)", README) + re.findall(
        r"`((?:tutorials|minidistill|\.ci)/[\w/.-]+)`", README
    ):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:\w+/)*\w+\.py)`", README):
        assert (ROOT / "minidistill" / path).exists() or (ROOT / path).exists(), path


def test_no_path_of_a_machine_stands_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    home, parent = str(Path.home()) + "/", str(ROOT.parent) + "/"
    for name in listed.stdout.split():
        path = ROOT / name
        if path.is_file() and path.suffix in (".py", ".md", ".toml", ".json", ".sh", ""):
            text = path.read_text(errors="replace")
            assert home not in text and parent not in text, name
