"""Files of an older version load, and say what they said: models of each kind, checkpoints, a teacher's answers.

``tests/data/write_old_files.py`` shows what is in them.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, nn, optim
from minidistill.training import Checkpoint, EarlyStopping

ARCHIVE = Path(__file__).parent / "data" / "files_of_e6a02d7.zip"
with zipfile.ZipFile(ARCHIVE) as archive, np.load(archive.open("predictions.npz")) as arrays:
    SAID = dict(arrays)
MODELS = [name.removeprefix("model ") for name in SAID if name.startswith("model ")]
DATA = datasets.Dataset(SAID["x"], SAID["y"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(path)
    return path


def network(seed):
    return nn.Sequential(nn.Dense(6, 8, activation="relu"), nn.Dense(8, 3), rng=seed)


def is_said(answers, name):
    """Whether answers are those of the file, up to the rounding of another machine's products."""
    return np.allclose(answers[:8], SAID[name], rtol=1e-4, atol=1e-5)


def test_there_are_files_of_every_kind():
    assert len(MODELS) == 16 and ARCHIVE.stat().st_size < 40_000


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_what_it_said(folder, name):
    model = md.load(folder / f"{name}.npz")
    x = SAID["ids" if "table" in name else "x"]
    assert is_said(md.predict(model, x), f"model {name}")
    md.save(model, folder / f"{name}_again.npz")
    assert is_said(md.predict(md.load(folder / f"{name}_again.npz"), x), f"model {name}")


@pytest.mark.filterwarnings("ignore:.*was written before checkpoints held their validation split")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_checkpoint_goes_on(folder, tmp_path, precision):
    def resumed(epochs):
        model, adam = network(9), optim.Adam
        md.fit(
            model, DATA, optimizer=adam(model.parameters(), lr=0.01), epochs=epochs, batch_size=8, validation=0.25,
            progress=False, rng=0, precision=precision, resume=folder / f"checkpoint_{precision}.npz",
            callbacks=[EarlyStopping(patience=9), Checkpoint(tmp_path / "next.npz")],
        )  # fmt: skip
        return model

    assert is_said(md.predict(resumed(4), DATA), f"resumed {precision}")
    with pytest.warns(UserWarning, match="nothing is trained"):
        model = resumed(2)
    assert is_said(md.predict(model, DATA), f"checkpoint {precision}")
    assert sum(np.count_nonzero(layer.weight.data == 0) for layer in model.layers) == 18  # a quarter of 72


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_teachers_answers_are_found(folder, dtype):
    cache = distill.TeacherCache.load(folder / f"answers_{dtype}.npz")
    assert is_said(cache.answers(DATA), f"answers {dtype}")
    cache.check(network(4), DATA)


# ---- in a process that has not named the laboratory ------------------------------------------------------------------
START = """
import sys, numpy as np, minidistill as md
from minidistill import datasets, deploy, nn, plot, prune, training, ops
in_lab = lambda: sorted(name for name in sys.modules if name.startswith("minidistill.lab"))
net = lambda: nn.Sequential(nn.Dense(6, 8, activation="relu"), nn.Dense(8, 3), rng=0)
x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
data = datasets.Dataset(x, np.arange(16) % 3)
md.fit(net(), data, epochs=1, progress=False)
md.load("{folder}/dense.npz"), md.load("{folder}/int8.npz"), md.load("{folder}/qat.npz")
assert not in_lab(), in_lab()
"""
USES = {
    "deploy.share_weights": "deploy.compress(deploy.share_weights(prune.magnitude(net(), 0.5), bits=2))",
    "deploy names": "from minidistill.deploy import SharedDense, HuffmanDense, compression_report, k_means, load_compressed",
    "deploy.fit_budget": "deploy.fit_budget(net(), 10**6, x, x, bits=(8, 4))",
    "deploy.sensitivity": "assert isinstance(deploy.sensitivity(net(), x, x, bits=8), deploy.Sensitivity)",
    "prune.lottery_tickets": "prune.lottery_tickets(net(), lambda m, c: md.fit(m, data, epochs=1, progress=False), 1)",
    "prune.Ticket": "prune.Ticket",
    "precision": "md.fit(net(), data, epochs=1, progress=False, precision='float16')",
    "training.Precision": "md.fit(net(), data, epochs=1, progress=False, precision=training.Precision('bfloat16', None))",
    "training.GradientHistogram": "md.fit(net(), data, epochs=1, progress=False, callbacks=[training.GradientHistogram()])",
    "plot.bits": "plot.bits(deploy.Front([deploy.Point(9, 2.0, 'a')], [deploy.Point(8, 1.0)], 'error'))",
    "plot.underflow": "plot.underflow",
    "ops.shared_weight": "ops.shared_weight(np.ones(2, np.float32), np.array([1]), np.array([0]), (1, 2))",
    "load shared": "assert md.predict(md.load('{folder}/shared.npz'), x).shape == (16, 3)",
    "load compressed": "assert md.predict(md.load('{folder}/compressed.npz'), x).shape == (16, 3)",
    "load into": "assert md.load('{folder}/shared.npz', into=net()).layers[0].codebook.shape == (4,)",
    "resume": "from minidistill.training import checkpoint\n"
    "assert checkpoint.read_checkpoint('{folder}/checkpoint_float16.npz')\nplot.underflow",
}


FORK = """
failed = []
for name, use in USES.items():
    child = os.fork()
    if child == 0:
        try:
            exec(use)
            assert in_lab()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    failed += [name] * (os.waitpid(child, 0)[1] != 0)
print(failed)
"""


def test_the_laboratory_comes_when_it_is_asked_for(folder):
    """Each use in a process of its own: copies of one that has never named the laboratory."""
    program = START + f"import os, traceback\nUSES = {USES}" + FORK
    root = Path(md.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program.replace("{folder}", folder.as_posix())],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.split("\n")[-2] == "[]", done.stdout + done.stderr
