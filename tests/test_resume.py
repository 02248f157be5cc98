"""Splits and resumed runs: nobody is judged by samples that were trained on, and nothing goes on as something else."""

import copy
import functools
import json

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, losses, nn, optim, prune
from minidistill.files import FileFormatError, read_npz, write_npz
from minidistill.training import Checkpoint, EarlyStopping, checkpoint, loop
from minidistill.training.split import split_validation

# ---- one split for all ---------------------------------------------------------------------------------------------
# Each sample carries its number, so that whoever computes with it can be asked which ones it met.
SAMPLES = 60
_numbers = np.arange(SAMPLES)
DATA = datasets.Dataset(np.stack([_numbers, np.sin(_numbers), np.cos(_numbers)], 1), _numbers % 3)


class Listener(nn.Module):
    """A linear model that notes the samples it is trained on, and those it answers for otherwise."""

    def __init__(self, seed=0):
        self.layer, self.notes = nn.Dense(3, 3, rng=seed), {"trained": set(), "asked": set()}

    def forward(self, x):
        self.notes["trained" if self.is_training() else "asked"] |= set(np.asarray(x)[:, 0].astype(int).tolist())
        return self.layer(x * np.array([0.01, 1, 1], np.float32))


def train_fit(rng, **options):
    model = Listener()
    history = md.fit(model, DATA, rng=rng, validation=0.2, progress=False, **options)
    return [model], history


def train_fine_tune(rng, **options):
    model = Listener()
    return [model], distill.fine_tune(model, DATA, rng=rng, validation=0.2, progress=False, **options)


def train_distill(rng, **options):
    student = Listener()
    return [student], distill.distill(Listener(1), student, DATA, rng=rng, validation=0.2, progress=False, **options)


def train_mutual(rng, **options):
    peers = [Listener(), Listener(1)]
    return peers, distill.mutual(peers, DATA, rng=rng, validation=0.2, progress=False, **options)


def train_chain(rng, **options):
    models = [Listener(), Listener(1), Listener(2)]
    return models[1:], distill.chain(models, DATA, rng=rng, validation=0.2, progress=False, **options)[-1]


def train_born_again(rng, **options):
    models = distill.born_again(Listener(), DATA, generations=2, rng=rng, validation=0.2, progress=False, **options)
    for model in models:
        assert len(model.notes["trained"]) == 48  # each copy has the notes of the ones it is a copy of
    return models, None


TRAININGS = [train_fit, train_fine_tune, train_distill, train_mutual, train_chain, train_born_again]
SEEDS = {
    "int": lambda: 3,
    "numpy": lambda: np.int64(3),
    "Generator": lambda: np.random.default_rng(3),
    "SeedSequence": lambda: np.random.SeedSequence(3),
}


def weights(models):
    return b"".join(p.data.tobytes() for model in models for p in model.parameters())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("train", TRAININGS)
def test_the_same_rng_holds_out_the_same_samples_everywhere(train, seed):
    expected = set(np.random.default_rng(3).spawn(1)[0].permutation(SAMPLES)[12:].tolist())
    models, _ = train(SEEDS[seed](), epochs=1)
    for model in models:
        assert model.notes["trained"] == expected
    again, _ = train(SEEDS[seed](), epochs=1)
    assert weights(models) == weights(again)


@pytest.mark.parametrize("train", TRAININGS)
def test_a_copy_of_a_generator_trains_the_same_again_and_the_generator_itself_anew(train):
    generator = np.random.default_rng(5)
    generator.spawn(4)
    twin = copy.deepcopy(generator)
    first, other, second = (train(rng, epochs=1)[0] for rng in (generator, twin, generator))
    assert weights(first) == weights(other) != weights(second)


# ---- a resumed run keeps its split ---------------------------------------------------------------------------------
RESUMED = [train_fit, train_fine_tune, train_distill, train_mutual]


def same_histories(a, b):
    columns = set(a.keys()) - {"seconds"}
    return a.keys() == b.keys() and all(a[name] == b[name] for name in columns)


@pytest.mark.parametrize("how", ["left out", "another seed", "one Generator"])
@pytest.mark.parametrize("train", RESUMED)
def test_a_resumed_run_never_trains_on_what_it_held_out_and_goes_on_bit_for_bit(train, how, tmp_path):
    path, generator = tmp_path / "run.npz", np.random.default_rng(3)
    first = 3 if how == "another seed" else generator
    second = {"left out": None, "another seed": 4, "one Generator": generator}[how]
    whole, history = train(np.random.default_rng(3), epochs=4, callbacks=[Checkpoint(tmp_path / "other.npz")])
    train(first, epochs=2, callbacks=[Checkpoint(path)])
    rest, longer = train(second, epochs=4, resume=path, callbacks=[Checkpoint(path)])
    assert weights(whole) == weights(rest) and same_histories(history, longer)
    for a, b in zip(whole, rest):
        assert a.notes["trained"] == b.notes["trained"] and len(b.notes["trained"]) == 48
    held_out = set(_numbers) - rest[0].notes["trained"]
    saved = checkpoint.read_checkpoint(path)["split"]
    assert set(saved["held_out"]) == held_out and set(saved["train"]) == rest[0].notes["trained"]


def labelled(rng, data=DATA, validation=0.2, model=None, optimizer=None, callbacks=None, **options):
    callbacks = [Stop(99)] if callbacks is None else callbacks  # as many as `started` has
    model = model or nn.Sequential(nn.Dense(3, 8, activation="relu"), nn.Dense(8, 3), rng=0)
    return md.fit(model, data, optimizer=optimizer, rng=rng, validation=validation, callbacks=callbacks, progress=False,
                  **options)  # fmt: skip


def refused(text, path, rng=0, call=labelled, **options):
    """Resuming raises in three lines that begin with the file; nothing is changed."""
    model = nn.Sequential(nn.Dense(3, 8, activation="relu"), nn.Dense(8, 3), rng=5)
    before = weights([model])
    with pytest.raises(FileFormatError) as error:
        call(rng, model=model, resume=path, **{"epochs": 4} | options)
    told = str(error.value)
    assert told.startswith(f"Could not read {path}.\n") and told.count("\n") == 2 and text in told, told
    assert weights([model]) == before


def started(path, **options):
    labelled(0, callbacks=[Checkpoint(path)], epochs=2, **options)
    return path


OTHERS = {
    "another order": lambda: DATA[np.random.default_rng(0).permutation(SAMPLES)],
    "two samples exchanged": lambda: DATA[np.r_[1, 0, 2:SAMPLES]],
    "another label": lambda: datasets.Dataset(DATA.x, np.r_[2, DATA.y[1:]]),
    "one number": lambda: datasets.Dataset(DATA.x + np.eye(SAMPLES, 3, dtype=np.float32) * 1e-3, DATA.y),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("validation", [0.2, None, DATA[:9]], ids=["fraction", "none", "data"])
def test_other_data_are_refused(other, validation, tmp_path):
    path = started(tmp_path / "run.npz", validation=validation)
    text = "with data, in their order = 60 samples with the hash "
    refused(text, path, data=OTHERS[other](), validation=validation)
    assert len(labelled(None, resume=path, validation=validation, epochs=3)) == 3


@pytest.mark.parametrize(("was", "now", "text"), [
    (None, 0.2, "with validation = None, this one has validation = 0.2.\nResume with validation = None,"),
    (0.2, None, "with validation = 0.2, this one has validation = None.\nResume with validation = 0.2,"),
    (0.2, 0.25, "with validation = 0.2, this one has validation = 0.25.\nResume with validation = 0.2,"),
    (0.2, DATA[:9], "with validation = 0.2, this one has validation = 9 samples with the hash "),
    (DATA[:9], DATA[1:10], "this one has validation = 9 samples with the hash "),
    (DATA[:9], 0.2, ", this one has validation = 0.2.\nResume with validation = 9 samples with the hash "),
])  # fmt: skip
def test_other_validation_data_are_refused(was, now, text, tmp_path):
    path = started(tmp_path / "run.npz", validation=was)
    refused(text, path, validation=now)
    assert len(labelled(None, resume=path, validation=was, epochs=3)) == 3


def test_a_run_made_by_hand_is_checked_by_its_data(tmp_path):
    def by_hand(data, callbacks, resume=None):
        model, settings = nn.Sequential(nn.Dense(3, 3), rng=0), loop.Settings(3, 16, callbacks=callbacks, resume=resume)
        split = split_validation(data, None, None, resume, streams=1)
        return loop.run(model, split, lambda b: losses.cross_entropy(model(b.x), b.y), settings, None, None)

    path = tmp_path / "run.npz"
    by_hand(DATA, callbacks=[Checkpoint(path), Stop(1)])
    with pytest.raises(FileFormatError, match="with data, in their order = 60 samples"):
        by_hand(OTHERS["another label"](), callbacks=[Checkpoint(path), Stop(9)], resume=path)
    assert len(by_hand(DATA, callbacks=[Checkpoint(path), Stop(9)], resume=path)) == 3


class Stop:
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, run):
        if run.epoch == self.epoch:
            run.stop()


def aged(path, *missing):
    """Make a file what an older version wrote: no fingerprint, split, settings and names."""
    arrays = read_npz(path)
    tree = json.loads(arrays.pop(checkpoint._TREE).tobytes())
    del tree["sha256"]
    gone = missing or ("split", "settings", "callback_names")
    tree["dict"] = [[name, part] for name, part in tree["dict"] if name not in gone]
    write_npz(path, {checkpoint._TREE: np.frombuffer(json.dumps(tree).encode(), np.uint8), **arrays})
    return path


@pytest.mark.parametrize("validation", [None, DATA[:9]], ids=["none", "data"])
def test_a_file_of_an_older_version_goes_on_where_there_was_nothing_to_split(validation, tmp_path):
    path = aged(started(tmp_path / "run.npz", validation=validation))
    whole = labelled(0, epochs=4, validation=validation)
    assert same_histories(labelled(9, resume=path, epochs=4, validation=validation), whole)


def test_a_file_of_an_older_version_with_a_fraction_is_warned_of(tmp_path):
    path = aged(started(tmp_path / "run.npz"))
    with pytest.warns(
        UserWarning, match=r"run\.npz was written before .* validation split: it is drawn anew"
    ) as caught:
        rest = labelled(0, resume=path, epochs=4)
    assert same_histories(rest, labelled(0, epochs=4))
    assert str(caught[0].message).count("\n") == 2


# ---- steps that would be counted otherwise -------------------------------------------------------------------------
OF_FEW_WEIGHTS = functools.partial(prune.magnitude, allow_empty=["0", "1"])
SCHEDULES = {
    "one shot": lambda: prune.OneShot(0.5, at=9),  # 48 samples: 3 steps an epoch, or 6
    "gradual": lambda: prune.Gradual(0.9, begin=2, end=11, every=2, criterion=OF_FEW_WEIGHTS),
    "none": lambda: EarlyStopping(50),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_another_batch_size_is_refused_and_the_first_one_named(schedule, tmp_path):
    path = tmp_path / "run.npz"
    labelled(0, batch_size=16, epochs=4, callbacks=[SCHEDULES[schedule](), Checkpoint(path, every=2), Crash(2)])
    for size in (8, 17):  # as many steps as before with 17
        text = f"with batch_size = 16, this one has batch_size = {size}.\nResume with batch_size = 16,"
        refused(text, path, batch_size=size, callbacks=[SCHEDULES[schedule](), Checkpoint(path), Crash(9)])
    aged(path, "settings")  # in files of older versions, the steps tell
    text = "steps in 3 epochs (by batch_size) = 9, this one has steps in 3 epochs (by batch_size) = 18."
    refused(text, path, batch_size=8, callbacks=[SCHEDULES[schedule](), Checkpoint(path), Crash(9)])
    model = nn.Sequential(nn.Dense(3, 8, activation="relu"), nn.Dense(8, 3), rng=5)
    labelled(
        0,
        model=model,
        batch_size=16,
        epochs=4,
        resume=path,
        callbacks=[SCHEDULES[schedule](), Checkpoint(path), Crash(9)],
    )
    masked = sum((~c.kept).sum() for p in model.parameters() for c in p.constraints)
    assert masked == {"one shot": 24, "gradual": 43, "none": 0}[schedule]  # of 48


class Crash:
    """Ends a run as a crash would: nothing is written, nobody is told."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, run):
        if run.epoch == self.epoch:
            run.epochs = run.epoch  # `Gradual` has looked at the epochs already
            run.stop()


def test_a_batch_of_all_is_the_same_whatever_its_size_is_called(tmp_path):
    path = started(tmp_path / "run.npz", batch_size=100)
    assert len(labelled(None, resume=path, epochs=3, batch_size=48)) == 3


# ---- other settings ------------------------------------------------------------------------------------------------
def half(outputs, y):
    return losses.cross_entropy(outputs, y) * 0.5


def flipped(x, rng):
    return -x


def scaled(by, x, rng):
    return by * x


@pytest.mark.parametrize(("was", "now", "text"), [
    ({}, {"loss": half}, "loss = cross_entropy, this one has loss = half.\nResume with loss = cross_entropy,"),
    ({}, {"metrics": [md.training.top_k_accuracy]}, "metrics = None, this one has metrics = ['top_k_acc"),
    ({"augment": flipped}, {}, "augment = flipped, this one has augment = None"),
    ({"augment": functools.partial(scaled, 1)}, {"augment": functools.partial(scaled, 2)}, "partial(scaled, 1), this one"),
    ({"precision": "float16"}, {}, "precision = float16, this one has precision = float32.\nResume with precision = float16"),
], ids=["loss", "metrics", "augment", "partial", "precision"])  # fmt: skip
def test_other_settings_are_refused(was, now, text, tmp_path):
    refused(text, started(tmp_path / "run.npz", **was), **now)


def test_another_optimizer_is_refused_and_another_rate_is_not(tmp_path):
    def sgd(lr):
        model = nn.Sequential(nn.Dense(3, 8, activation="relu"), nn.Dense(8, 3), rng=0)
        return {"model": model, "optimizer": optim.SGD(model.parameters(), lr=lr)}

    path = started(tmp_path / "run.npz", **sgd(0.1))
    refused("optimizer = SGD, this one has optimizer = Adam", path)
    assert labelled(None, resume=path, epochs=3, **sgd(0.01))["lr"] == [0.1, 0.1, 0.01]


def test_other_callbacks_are_refused(tmp_path):
    path, number = tmp_path / "run.npz", iter(range(99))

    def start(*callbacks):
        labelled(0, epochs=2, callbacks=[*callbacks, Checkpoint(path)])

    def no(text, *callbacks):
        refused(text, path, callbacks=[*callbacks, Checkpoint(tmp_path / f"{next(number)}.npz")])

    start(EarlyStopping(50), prune.OneShot(0.5, at=1))
    no("has callbacks = ['Iterative', 'OneShot'", prune.Iterative(0.5, rounds=1), prune.OneShot(0.5, at=1))
    no("has callbacks = ['EarlyStopping'].", EarlyStopping(), Stop(9))
    no("the best 'validation_loss' (min), and now monitors 'validation_accuracy' (max)",
       EarlyStopping(monitor="validation_accuracy"), prune.OneShot(0.5, at=1))  # fmt: skip
    no("'at': 3", EarlyStopping(), prune.OneShot(0.5, at=3))
    no("['EarlyStopping', 'OneShot'], this one has callbacks = ['EarlyStopping'].", EarlyStopping())
    with pytest.raises(FileFormatError, match=r"has callbacks = \['Iterative', 'OneShot'"):
        labelled(0, epochs=4, resume=path, callbacks=[prune.Iterative(0.5, 1), prune.OneShot(0.5, at=1), Stop(9)])
    assert len(labelled(0, epochs=3, resume=path, callbacks=[EarlyStopping(9), prune.OneShot(0.5, at=1), Stop(9)])) == 3


def test_a_distillation_goes_on_with_its_objectives_and_its_teacher_only(tmp_path):
    path = tmp_path / "run.npz"

    def run(teacher=1, resume=path, **options):
        teacher = nn.Sequential(nn.Dense(3, 3), rng=teacher)
        student = nn.Sequential(nn.Dense(3, 8, activation="relu"), nn.Dense(8, 3), rng=0)
        before, epochs = weights([student]), 2 if resume is None else 3
        options |= {"validation": 0.2, "callbacks": [Checkpoint(path)], "progress": False}
        try:
            return distill.distill(teacher, student, DATA, epochs=epochs, resume=resume, **options)
        except FileFormatError:
            assert weights([student]) == before
            raise

    run(resume=None, temperature=2.0)
    for text, options in {
        r"temperature=2\.0, alpha=0\.9\)'\], this one has .*alpha=0\.5": {"temperature": 2.0, "alpha": 0.5},
        r"this one has objective = \['SoftTargets": {"objective": distill.SoftTargets(2.0)},
        r"teacher = \w{12}, this one has teacher = \w{12}": {"temperature": 2.0, "teacher": 4},
    }.items():
        with pytest.raises(FileFormatError, match=text):
            run(**options)
    refused("with objective =", path)  # `fit` cannot go on with it
    assert len(run(temperature=2.0, cache=distill.TeacherCache(nn.Sequential(nn.Dense(3, 3), rng=1), DATA))) == 3


# ---- how long ------------------------------------------------------------------------------------------------------
def test_fewer_epochs_than_were_done_are_refused(tmp_path):
    path = started(tmp_path / "run.npz")
    refused(
        "has finished 2 epochs, more than epochs = 1.\nepochs counts all, those in the file too: write epochs=12",
        path,
        epochs=1,
    )


def test_a_run_that_was_stopped_stays_so_and_goes_on_with_more_patience(tmp_path):
    path = tmp_path / "run.npz"

    def run(patience, **options):
        stopping = EarlyStopping(patience, monitor="lr", mode="min")  # which never becomes less
        model = nn.Sequential(nn.Dense(3, 3), rng=0)
        return labelled(0, model=model, callbacks=[stopping, Checkpoint(path)], **options), model

    whole, model = run(2, epochs=9)
    with pytest.warns(UserWarning, match="was stopped by a callback after 3 epochs: nothing is trained"):
        again, same = run(2, epochs=9, resume=path)
    assert len(whole) == len(again) == 3 and again.stopped_early and again.best_epoch == 1
    assert weights([model]) == weights([same])
    assert len(run(4, epochs=9, resume=path)[0]) == 5


# ---- states that are loaded whole ----------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [ValueError, TypeError, ZeroDivisionError])
def test_a_module_that_refuses_its_arrays_keeps_the_old_ones(error):
    class Picky(nn.Module):
        def __init__(self):
            self.a, self.b = nn.Dense(2, 2, rng=0), nn.Dense(2, 2, rng=1)

        def check(self):
            if self.b.weight.data.max() > 5:
                raise error("too large")

    model = Picky()
    before = model.state_dict()
    with pytest.raises(error, match="too large"):
        model.load_state_dict({name: array + 9 for name, array in before.items()})
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


@pytest.mark.parametrize("step", [2**63, 2**60, [1], np.array([1, 2]), 1.0, True, None])
def test_an_optimizer_refuses_a_step_that_no_kernel_can_take(step):
    optimizer = optim.Adam([nn.Parameter(np.ones(2))])
    with pytest.raises(ValueError, match="load_state_dict of Adam"):
        optimizer.load_state_dict({"step": step, "slots": {}})
    assert optimizer.step_count == 0


def test_arrays_whose_names_would_be_the_same_stay_apart(tmp_path):
    class Two:
        def on_epoch_end(self, run):
            pass

        def state_dict(self):
            return {"a": {"b": np.array([1.0])}, "a/b": np.array([2.0])}

    labelled(0, epochs=1, callbacks=[Two(), Checkpoint(tmp_path / "two.npz")])
    saved = checkpoint.read_checkpoint(tmp_path / "two.npz")["callbacks"][0]
    assert saved["a"]["b"] == 1.0 and saved["a/b"] == 2.0


def test_a_callback_that_cannot_be_copied_is_the_only_thing_that_may_change(tmp_path):
    class Logs:
        """Its open file cannot be copied."""

        def __init__(self, fails=False):
            self.file, self.fails, self.lines = (tmp_path / "log.txt").open("a"), fails, 0

        def on_epoch_end(self, run):
            self.lines += 1

        def state_dict(self):
            return {"lines": self.lines}

        def load_state_dict(self, state):
            self.lines = state["lines"]
            if self.fails:
                raise KeyError("lost")

        def on_train_end(self, run):
            self.file.close()

    path = tmp_path / "run.npz"
    labelled(0, epochs=2, callbacks=[EarlyStopping(9), Logs(), Checkpoint(path)])
    failing, stopping = Logs(fails=True), EarlyStopping(9)
    refused("KeyError: 'lost'", path, callbacks=[stopping, failing, Checkpoint(path)])
    failing.file.close()
    assert stopping.weights is None
    fine = Logs()
    labelled(0, epochs=3, resume=path, callbacks=[EarlyStopping(9), fine, Checkpoint(path)])
    assert fine.lines == 3
