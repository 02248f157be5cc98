"""A path that begins with ~ means the home folder, at every door that takes a path."""

from __future__ import annotations

import struct

import matplotlib.font_manager  # noqa: F401 - it keeps files in the home folder, and should find the real one
import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, deploy, distill, nn, pipeline, plot, prune
from minidistill.training import Checkpoint, History


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder, and another folder to work in."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not list((tmp_path / "work").iterdir())  # above all no folder named ~


def network(seed=0):
    return nn.Sequential(nn.Dense(4, 3, activation="relu"), nn.Dense(3, 2), rng=seed)


DATA = datasets.Dataset(np.eye(4), np.array([0, 1, 0, 1]))


def write_model():
    md.save(network(), "~/f")
    assert np.array_equal(md.predict(md.load("~/f"), DATA), md.predict(network(), DATA))


def write_checkpoint():
    def fit(epochs, resume=None):
        model = network()
        md.fit(model, DATA, epochs=epochs, callbacks=[Checkpoint("~/f")], resume=resume, progress=False, rng=0)
        return md.predict(model, DATA)

    straight = fit(3)
    fit(2)
    assert np.array_equal(fit(3, resume="~/f"), straight)


def write_cache():
    for _ in range(2):  # written, then read
        distill.distill(network(), network(1), DATA, epochs=1, cache="~/f", progress=False)
    assert len(distill.TeacherCache.load("~/f").answers(DATA)) == 4


def write_ledger():
    book = md.Ledger(DATA)
    book.save("~/f")


def write_compressed():
    model = deploy.share_weights(prune.magnitude(network(), 0.5), bits=2)
    deploy.save_compressed(model, "~/f")
    assert np.array_equal(md.predict(deploy.load_compressed("~/f"), DATA), md.predict(model, DATA))


def write_figure():
    plot.training_curves(History([{"loss": 1.0}]), "~/f.png")


@pytest.mark.parametrize(
    "write", [write_model, write_checkpoint, write_cache, write_ledger, write_compressed, write_figure]
)
def test_what_is_written_there_lies_there(home, write):
    write()
    assert [path.stem for path in home.iterdir()] == ["f"]


def test_what_lies_there_is_read(home):
    (home / "t.csv").write_text("1,2,0\n3,4,1\n")
    (home / "u.data").write_text("1\t2\t3\t4\n2\t2\t5\t6\n")
    np.savez(home / "d.npz", x=np.eye(2), y=np.arange(2))
    (home / "i").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 2) + b"\x01\x02")
    assert datasets.load_csv("~/t.csv").x.tolist() == [[1, 2], [3, 4]]
    assert datasets.load_npz("~/d.npz").y.tolist() == [0, 1]
    assert datasets.read_idx("~/i").tolist() == [1, 2]
    for path in ("~", "~/u.data"):
        assert datasets.load_movielens(path).dataset.y.tolist() == [3, 5]
    assert datasets.data_home("~/data") == home / "data"


def test_the_demo_writes_there(home, monkeypatch):
    class Far(Exception):
        pass

    def study(*_):
        raise Far

    monkeypatch.setattr(pipeline, "label_study", study)
    with pytest.raises(Far):
        pipeline.demo("~/runs")
    assert [path.name for path in home.iterdir()] == ["runs"]


def test_other_names_with_a_tilde_are_names(home):
    assert md.files.as_path("a~/b~").parts == ("a~", "b~")
    assert md.files.as_path(home / "~").name == "~"
