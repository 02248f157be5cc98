"""A checkpoint loads whole or not at all: some hundreds of seeded changes of real files, and who may not notice them."""

import functools
import json
import pickle

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, nn, optim, prune
from minidistill.files import FileFormatError, read_npz, write_npz
from minidistill.training import Checkpoint, EarlyStopping, Precision, checkpoint, loop

TREE = checkpoint._TREE


def data():
    rng = np.random.default_rng(0)
    return datasets.Dataset(rng.normal(size=(40, 6)), rng.integers(3, size=40))


def network(seed=0):
    return nn.Sequential(nn.Dense(6, 5, activation="relu"), nn.Dropout(0.3), nn.Dense(5, 3), rng=seed)


class Gradients:
    """A callback of a user's, with a generator and numbers of its own, that checks nothing."""

    def __init__(self):
        self.generator, self.sums, self.run = np.random.default_rng(3), {}, None

    def on_train_begin(self, run):
        self.run = run

    def on_step_end(self, run):
        self.sums["last"] = np.array([float(np.abs(p.grad).sum()) for p in run.model.parameters()])

    def state_dict(self):
        return {"generator": self.generator.bit_generator.state, "sums": self.sums}

    def load_state_dict(self, state):
        self.sums = {"last": state["sums"]["last"] + 0.0}
        self.generator.bit_generator.state = state["generator"]


def pruned(path, **options):
    model = prune.random(network(options.pop("seed", 0)), 0.4, rng=1)
    optimizer = optim.Adam(model.parameters(), lr=optim.cosine(1e-2, 60))
    callbacks = [EarlyStopping(50), prune.Regrow(every=2, rng=4), Gradients(), Checkpoint(path)]
    return md.fit(model, data(), optimizer=optimizer, validation=0.2, callbacks=callbacks, progress=False,
                  batch_size=8, **options)  # fmt: skip


OF_FEW_WEIGHTS = functools.partial(prune.magnitude, allow_empty=["0", "2"])


def distilled(path, **options):
    student, teacher = network(options.pop("seed", 0)), network(9)
    callbacks = [EarlyStopping(50), prune.Iterative(0.5, rounds=2, begin=1, criterion=OF_FEW_WEIGHTS), Checkpoint(path)]
    return distill.distill(
        teacher, student, data(), objective=[distill.SoftTargets(2.0), distill.Hint("0", "0")], validation=0.2,
        optimizer=optim.SGD(student.parameters(), lr=0.05, momentum=0.9), callbacks=callbacks, batch_size=8,
        precision=Precision("float16", initial_scale=64.0), progress=False, **options,
    )  # fmt: skip


class Caught(Exception):
    pass


def fresh_run(train, path, monkeypatch):
    """The `Run` that is about to be loaded into, seeded otherwise than the one in the file."""
    caught = []

    def catch(path, run):
        caught.append(run)
        raise Caught

    with monkeypatch.context() as patch, pytest.raises(Caught):
        patch.setattr(loop, "load_checkpoint", catch)
        train(path, epochs=5, resume=path, rng=77, seed=5)
    return caught[0]


def snapshot(run):
    """Every byte that a checkpoint may change."""
    callbacks = [
        {name: part for name, part in vars(c).items() if name not in ("run", "optimizer")} for c in run.callbacks
    ]
    generators = {name: generator.bit_generator.state for name, generator in run.generators.items()}
    masks = {name: c.kept for name, p in run.model.named_parameters() for c in p.constraints if isinstance(c, nn.Mask)}
    whole = [
        run.model.state_dict(), masks, run.optimizer.state_dict(), generators, vars(run.arithmetic) | {"_nearest": None},
        run.history.epochs, run.epoch, run.step, run.stopped,
        [[p.data for p in c.pop("parameters", []) + c.pop("trained", [])] for c in callbacks], callbacks,
        [c.optimizer.state_dict() for c in run.callbacks if getattr(c, "optimizer", None)],
    ]  # fmt: skip
    return pickle.dumps(whole)


def places(tree, found, path=()):
    """Paths of all nodes of the JSON."""
    found.append(path)
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, part in children:
        places(part, found, (*path, key))
    return found


VALUES = [
    None,
    True,
    False,
    -1,
    0,
    1,
    1.5,
    2**70,
    -(2**70),
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [1],
    {},
    {"dict": []},
]


def changed(rng, tree, arrays):
    """One random change in place. Returns what was done."""
    if rng.random() < 0.4:
        name = str(rng.choice(sorted(arrays)))
        array = arrays[name]
        ways = {
            "gone": lambda: arrays.pop(name),
            "longer": lambda: arrays.update({name: np.concatenate([array.ravel(), array.ravel()])}),
            "other dtype": lambda: arrays.update({name: array.astype(rng.choice(["f8", "i4", "?", "U3", "c8"]))}),
            "flat": lambda: arrays.update({name: array.ravel()[:, None]}),
            "empty": lambda: arrays.update({name: array[:0]}),
            "other numbers": lambda: arrays.update(
                {name: array[::-1].copy() if len(array) > 1 else ~array.view(np.uint8)}
            ),
            "of another": lambda: arrays.update({name: arrays[str(rng.choice(sorted(arrays)))]}),
        }
        way = str(rng.choice(sorted(ways)))
        ways[way]()
        return f"array {name}: {way}"
    nodes = places(tree, [])[1:]
    path = nodes[rng.integers(len(nodes))]
    node = tree
    for key in path[:-1]:
        node = node[key]
    if rng.random() < 0.3:
        del node[path[-1]]
        return f"{path} deleted"
    value = VALUES[rng.integers(len(VALUES))]
    node[path[-1]] = value
    return f"{path} = {value!r}"


def listed(tree, arrays):
    return json.dumps(tree), {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}


@pytest.mark.parametrize("signed", [True, False], ids=["with its fingerprint", "as from an older version"])
@pytest.mark.parametrize("train", [pruned, distilled])
def test_a_changed_file_loads_whole_or_changes_nothing(train, signed, tmp_path, monkeypatch):
    path, other = tmp_path / "run.npz", tmp_path / "changed.npz"
    monkeypatch.setattr("os.fsync", lambda file: None)  # most of the time, and of no interest here
    train(path, epochs=3, rng=0)
    run = fresh_run(train, path, monkeypatch)
    before, refused, saved = snapshot(run), 0, read_npz(path)
    for seed in range(150):
        arrays = dict(saved)
        tree = json.loads(arrays.pop(TREE).tobytes())
        if not signed:
            del tree["sha256"]
        original = listed(tree, arrays)
        what = changed(np.random.default_rng([seed, signed]), tree, arrays)
        now = listed(tree, arrays)
        write_npz(other, {TREE: np.frombuffer(json.dumps(tree).encode(), np.uint8), **arrays})
        try:
            checkpoint.load_checkpoint(other, run)
        except FileFormatError as error:
            refused += 1
            assert str(error).startswith(f"Could not read {other}.\n") and str(error).count("\n") == 2, what
            assert snapshot(run) == before, what
        else:
            assert not signed or now == original or what == "('sha256',) deleted", what
            run = fresh_run(train, path, monkeypatch)
    assert refused > (140 if signed else 110)
    checkpoint.load_checkpoint(path, run)
    assert snapshot(run) != before and run.epoch == 3
