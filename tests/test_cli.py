"""The command line, as a user meets it: exit codes, one clear line for a mistake, and no traceback."""

import json
import subprocess
import sys

import numpy as np
import pytest

import minidistill as md
from minidistill import nn
from minidistill.cli import main


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


def test_ctrl_c_ends_with_130(monkeypatch, model_file, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("minidistill.nn.serialize.describe", interrupted)
    assert run(capsys, "inspect", str(model_file))[0] == 130


def test_bench_prints_a_row_a_model(capsys):
    code, out, _ = run(capsys, "bench", "--seconds", "0.01")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["64-32-10", "64-256-256-10", "784-300-100-10"]
