"""The command line, as a user meets it: exit codes, one clear line for a mistake, and no traceback."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import minidistill as md
from minidistill import nn, pipeline, quantize
from minidistill.cli import EXAMPLES, main


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def model_file(tmp_path):
    model = nn.Sequential(nn.Dense(64, 8, activation="relu"), nn.Dense(8, 10), rng=0)
    path = tmp_path / "model.npz"
    md.save(model, path, metadata={"note": "untrained"})
    return path


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(folder), "--seeds", "1", "--quiet"]) == 0
    return folder


def test_demo_writes_models_figures_and_ledger(demo_folder, capsys):
    names = {p.name for p in demo_folder.iterdir()}
    assert {"ledger.json", "study.json", "demo.png", "study.png", "teacher.npz", "pruned-80-int8.npz"} <= names
    rows = json.loads((demo_folder / "ledger.json").read_text())["rows"]
    assert rows[0]["name"] == "teacher" and len(rows) == 6
    for row in rows:
        path = demo_folder / f"{row['name'].replace(', ', '-').replace(' ', '-').replace('%', '')}.npz"
        assert path.stat().st_size == row["file_bytes"]
        assert row["accuracy"] > 0.85 and set(row["latency"]) == {"1", "32", "256"}
    sizes = {row["name"]: row["file_bytes"] for row in rows}
    assert sizes["pruned 80%, masks"] >= sizes["student, distilled"] > sizes["pruned 80%, sparse"]
    study = json.loads((demo_folder / "study.json").read_text())
    mean = {case: np.mean(values) for case, values in study["accuracy"].items()}
    assert mean["hard"] < mean["soft"] < mean["soft_unlabelled"]


def test_every_model_of_the_demo_can_be_inspected_and_evaluated(demo_folder, capsys):
    for path in sorted(demo_folder.glob("*.npz")):
        code, out, _ = run(capsys, "inspect", str(path))
        assert code == 0 and "every checksum holds" in out
        code, out, _ = run(capsys, "evaluate", str(path))
        assert code == 0 and "accuracy" in out and "500" in out


def test_inspect_shows_layers_and_metadata(model_file, capsys):
    code, out, err = run(capsys, "inspect", str(model_file))
    assert code == 0 and err == ""
    assert "Dense(in_features=64, out_features=8" in out and "note: untrained" in out


@pytest.mark.parametrize("kind", ["float", "int8", "QAT"])
def test_inspect_keeps_its_columns_in_100_letters(kind, model_file, tmp_path, capsys):
    model = md.load(model_file)
    x = np.random.default_rng(0).random((20, 64), np.float32)
    made = {"float": lambda: model, "int8": lambda: quantize.post_training(model, calibration=x),
            "QAT": lambda: quantize.prepare_qat(model, calibration=x)}[kind]()  # fmt: skip
    md.save(made, tmp_path / "m.npz")
    head, *rows = run(capsys, "inspect", str(tmp_path / "m.npz"))[1].splitlines()
    table = rows[: next(i for i, row in enumerate(rows) if "every checksum holds" in row)]
    assert all(len(row) <= 100 for row in table)
    ends = [head.index("array") - 2, head.index("dtype") - 2]
    assert all(row[end : end + 2].strip() == "" for row in table for end in ends)  # no text runs into a column
    found = {row[ends[0] :].split()[0] for row in table if row[ends[0] :].strip()}
    assert found == {name.rpartition(".")[2] for name in made.state_dict()}


def test_evaluate_agrees_with_python(model_file, capsys):
    code, out, _ = run(capsys, "evaluate", str(model_file), "--split", "train")
    train, _ = md.datasets.load_digits()
    expected = md.evaluate(md.load(model_file), train)
    assert code == 0
    assert f"{expected['accuracy']:.4f}" in out and f"{expected['loss']:.4f}" in out


def test_evaluate_reads_npz_and_csv(model_file, tmp_path, capsys):
    train, _ = md.datasets.load_digits()
    np.savez(tmp_path / "d.npz", x=train.x[:50], y=train.y[:50])
    np.savetxt(
        tmp_path / "d.csv", np.column_stack([train.x[:50], train.y[:50]]), delimiter=",", fmt=["%.9g"] * 64 + ["%d"]
    )
    outputs = [run(capsys, "evaluate", str(model_file), "--data", str(tmp_path / name)) for name in ("d.npz", "d.csv")]
    assert outputs[0] == outputs[1] and outputs[0][0] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["inspect", "nowhere.npz"], "There is no file of that name"),
        (["evaluate", "MODEL", "--data", "letters"], "--data 'letters' was asked for"),
        (["evaluate", "MODEL", "--data", "nowhere.csv"], "nowhere.csv"),
        (["evaluate", "MODEL", "--data", "OTHER"], "in_features = 64"),
        (["inspect", "OTHER"], "no model of minidistill"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, text, model_file, tmp_path, capsys):
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros((3, 5), np.float32), y=np.zeros(3, int))
    names = {"MODEL": str(model_file), "OTHER": str(other)}
    code, out, err = run(capsys, *[names.get(a, a) for a in arguments])
    assert code == 2 and out == ""
    assert text in err and err.count("\n") == 1 and err.startswith("minidistill: ")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--seeds", "0"], ["fetch", "letters"], ["inspect"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["demo"], ["inspect"], ["evaluate"], ["fetch"], ["bench"]])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_python_dash_m_is_the_same_command(model_file):
    result = subprocess.run(
        [sys.executable, "-m", "minidistill", "inspect", str(model_file)], capture_output=True, text=True
    )
    assert result.returncode == 0 and "every checksum holds" in result.stdout
    result = subprocess.run([sys.executable, "-m", "minidistill", "inspect", "nowhere"], capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_the_examples_name_files_that_the_demo_writes(demo_folder):
    named = re.findall(r"runs/demo/(\S+\.npz)", EXAMPLES)
    assert len(named) == 2 and all((demo_folder / name).is_file() for name in named)


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"minidistill {md.__version__}\n"


@pytest.mark.parametrize("command", ["inspect", "evaluate", "--help"])
def test_a_reader_that_has_enough_ends_it_without_a_word(command, model_file):
    read, write = os.pipe()
    os.close(read)  # nobody will ever read: what `| head` comes to
    arguments = [command] if command == "--help" else [command, str(model_file)]
    with os.fdopen(write, "w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "minidistill", *arguments], stdout=out, stderr=subprocess.PIPE, text=True
        )
    # 128 + SIGPIPE, as the shell says of other programs; of its help, unbuffered, argparse itself drops the rest.
    assert done.returncode in ((0, 141) if command == "--help" else (141,)) and done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_one_line(model_file):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minidistill", "inspect", str(model_file)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2 and done.stderr.startswith("minidistill: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_of_the_demo_is_for_terminals(is_terminal, monkeypatch, tmp_path):
    class Stream(io.StringIO):
        def isatty(self):
            return is_terminal

    def short(out, seeds, progress):
        progress("seed 0: teacher")
        return "report"

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(pipeline, "demo", short)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert ("seed 0: teacher" in stream.getvalue()) == is_terminal and bool(stream.getvalue()) == is_terminal


def test_one_seed_has_no_spread():
    text = pipeline.study_table({key: [0.914] for key in pipeline.CASES})
    assert "±" not in text and "test accuracy, 1 seed\n" in text and text.count("91.4 %\n") == len(pipeline.CASES)
    text = pipeline.study_table({key: [0.9, 0.92] for key in pipeline.CASES})
    assert "test accuracy, 2 seeds\n" in text and text.count(" 91.0 % ± 1.4\n") == len(pipeline.CASES)


def interrupt_after(monkeypatch, module, name, calls):
    """Press Ctrl-C when a function has been called so often."""
    real, seen = getattr(module, name), []

    def counted(*arguments, **options):
        seen.append(name)
        if len(seen) == calls:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, counted)
    return seen


@pytest.mark.parametrize(("name", "calls"), [("fit", 1), ("evaluate", 3), ("_saved_and_loaded", 4)])
def test_a_demo_that_is_interrupted_ends_with_130_and_writes_no_table(name, calls, monkeypatch, tmp_path, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    monkeypatch.setattr(pipeline, "UPDATES", 20)
    seen = interrupt_after(monkeypatch, pipeline, name, calls)
    try:
        code, out, err = run(capsys, "demo", "--seeds", "2", "--out", str(tmp_path), "--quiet")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out, err) == (130, "", "minidistill: interrupted\n") and len(seen) == calls
    assert not [path.name for path in tmp_path.iterdir() if path.suffix != ".npz"]


@pytest.mark.skipif(os.name == "nt", reason="a signal to one process")
def test_ctrl_c_in_the_middle_of_a_demo(tmp_path):
    program = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from minidistill.cli import main
sys.exit(main(["demo", "--seeds", "3", "--out", "out"]))
"""
    demo = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out").exists() and demo.poll() is None:
        time.sleep(0.02)
    time.sleep(0.7)  # in one of its 21 trainings
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (130, "minidistill: interrupted\n") and not list((tmp_path / "out").iterdir())


# ---- the Makefile ----------------------------------------------------------------------------------------------------
ROOT = Path(__file__).resolve().parent.parent


def test_the_package_that_runs_is_the_checkout(tmp_path):
    """In any folder: in the checkout itself, `python -m` finds the source beside it, whatever is installed."""
    program = "import minidistill; print(minidistill.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve() == ROOT / "minidistill" / "__init__.py"


def test_no_target_of_the_makefile_installs_a_copy_in_its_place():
    lines = [
        line
        for line in (ROOT / "Makefile").read_text().splitlines()
        if re.search(r"pip install.* \"?\.(\[|\s|\"|$)", line)
    ]
    assert len(lines) == 5 and all("--editable" in line for line in lines), lines


def test_ctrl_c_ends_with_130(monkeypatch, model_file, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("minidistill.nn.serialize.describe", interrupted)
    assert run(capsys, "inspect", str(model_file))[0] == 130


def test_bench_prints_a_row_a_model(capsys):
    code, out, _ = run(capsys, "bench", "--seconds", "0.01")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["64-32-10", "64-256-256-10", "784-300-100-10"]
