"""The ledger prints what was measured, and "no speed-up" where there is none."""

import json

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, ledger, nn, prune
from minidistill.datasets import Dataset
from minidistill.timing import Times


def network(width=32, seed=0):
    return nn.Sequential(nn.Dense(64, width, activation="relu"), nn.Dense(width, 10), rng=seed)


@pytest.fixture(scope="module")
def test_data():
    return datasets.load_digits()[1]


@pytest.fixture
def clock(monkeypatch):
    """Latencies by name instead of measured ones: seconds as (median, low, high)."""

    def set_times(**times):
        monkeypatch.setattr(ledger, "compare", lambda sides, **_: {name: Times(*times[name]) for name in sides})

    return set_times


def test_bytes_are_those_of_the_file_and_of_the_arrays(test_data, tmp_path):
    model = network()
    md.save(model, tmp_path / "m.npz")
    rows = md.Ledger(test_data, batch_sizes=(1,), seconds=0.001).add("model", model).rows
    assert rows[0]["file_bytes"] == (tmp_path / "m.npz").stat().st_size
    assert rows[0]["memory_bytes"] == 4 * (64 * 32 + 32 + 32 * 10 + 10)
    assert rows[0]["accuracy"] == md.evaluate(model, test_data)["accuracy"]
    times = rows[0]["latency"][1]
    assert 0 < times["low"] <= times["median"] <= times["high"] < 0.1


def test_a_masked_dense_model_shows_no_saving(test_data, clock):
    clock(dense=(1e-4, 9e-5, 1.1e-4), masked=(1e-4, 9e-5, 1.1e-4))
    model = network()
    masked = prune.magnitude(model.copy(), 0.9)
    text = str(md.Ledger(test_data).add("dense", model).add("masked", masked))
    row = next(line for line in text.splitlines() if line.startswith("masked"))
    assert row.count("no smaller") == 2 and row.count("no speed-up") == 3 and "x" not in row


def test_a_ratio_is_printed_only_beyond_the_noise(test_data, clock):
    clock(base=(2e-4, 1.9e-4, 2.1e-4), fast=(1e-4, 0.9e-4, 1.1e-4), noisy=(1.5e-4, 1e-4, 2e-4), slow=(3e-4, 3e-4, 3e-4))
    book = md.Ledger(test_data, batch_sizes=(32,))
    for name in ("base", "fast", "noisy", "slow"):
        book.add(name, network(16))
    lines = {line.split()[0]: line for line in str(book).splitlines()}
    assert lines["fast"].endswith("2.0x")
    assert lines["noisy"].endswith("no speed-up") and lines["slow"].endswith("no speed-up")


def test_the_table_is_aligned_and_says_what_its_ratios_are(test_data, clock):
    clock(teacher=(1e-3, 1e-3, 1e-3), student=(1e-5, 1e-5, 1e-5))
    book = md.Ledger(test_data).add("teacher", network(64)).add("student", network(4))
    lines = str(book).splitlines()
    assert len({len(line) for line in (lines[1], lines[3], lines[4])}) == 1
    assert lines[0].startswith("model") and "teacher / model" in lines[-1]
    assert repr(book) == str(book) and len(book) == 2
    assert str(md.Ledger(test_data)) == "Ledger: no models yet"


def test_json_holds_the_rows_and_the_machine(test_data, tmp_path):
    book = md.Ledger(test_data, batch_sizes=(1, 32), seconds=0.001).add("a", network())
    book.save(tmp_path / "ledger.json")
    content = json.loads((tmp_path / "ledger.json").read_text())
    assert content["test_samples"] == 500 and content["threads"] == 1
    assert set(content["machine"]) == {"python", "numpy", "numba", "processor", "cores"}
    assert set(content["rows"][0]) == {"name", "loss", "accuracy", "file_bytes", "memory_bytes", "latency"}
    assert set(content["rows"][0]["latency"]["32"]) == {"median", "low", "high", "rounds"}


def test_latency_is_measured_with_the_threads_that_it_says(test_data, monkeypatch):
    from threadpoolctl import threadpool_info

    seen = []

    def look(sides, **_):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return {name: Times(1e-5, 1e-5, 1e-5) for name in sides}

    monkeypatch.setattr(ledger, "compare", look)
    text = str(md.Ledger(test_data, batch_sizes=(1,)).add("a", network()))
    assert "one thread" in text and set(seen) <= {1}


def test_float_targets_are_judged_by_their_loss(clock):
    clock(a=(1e-5, 1e-5, 1e-5))
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(20, 3)), rng.normal(size=(20, 1)))
    text = str(md.Ledger(data).add("a", nn.Dense(3, 1, rng=0)))
    assert text.splitlines()[0].split()[:2] == ["model", "loss"]


def test_mistakes_are_told(test_data):
    book = md.Ledger(test_data).add("a", network())
    with pytest.raises(ValueError, match="named 'a' already"):
        book.add("a", network())
    with pytest.raises(TypeError, match="Dataset with targets"):
        md.Ledger(test_data.x)
    with pytest.raises(TypeError, match="Dataset with targets"):
        md.Ledger(Dataset(test_data.x))
