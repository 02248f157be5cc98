"""Callbacks: what fit makes of a list of them, in which order, after which end; and schedules that have ended."""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
import pickle
import warnings
from functools import partial

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, losses, nn, optim, prune
from minidistill.training import Checkpoint, EarlyStopping, GradientHistogram, callbacks, loop


@pytest.fixture(scope="module")
def data():
    return datasets.load_digits()[0][:160]


def network(seed=0):
    return nn.Sequential(nn.Dense(64, 8, activation="relu"), nn.Dense(8, 10), rng=seed)


def fit(model, data, listed=(), **options):
    options = {"epochs": 3, "batch_size": 40, "progress": False, "rng": 0} | options
    return md.fit(model, data, callbacks=listed, **options)


def weights(model):
    return {name: array.tobytes() for name, array in model.state_dict().items()}


class Scripted:
    """Puts given numbers into the history, so that the best epoch is known."""

    def __init__(self, *values):
        self.values = values

    def __call__(self, predictions, targets):
        self.calls = getattr(self, "calls", 0) + 1
        return self.values[self.calls - 1]

    __name__ = "score_loss"


# ---- the order of the list -------------------------------------------------------------------------------------------
SCORES = (5.0, 3.0, 4.0, 4.0, 4.0, 1.0)  # best is epoch 2; a patience of 2 ends after epoch 4


def stopping():
    return EarlyStopping(patience=2, monitor="validation_score_loss")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_checkpoint_is_written_after_an_early_stop_wherever_it_stands(data, tmp_path, order):
    path, model = tmp_path / "c.npz", network()
    listed = [Checkpoint(path, every=100), stopping()]
    history = fit(model, data, [listed[i] for i in order], epochs=6, validation=0.25, metrics=[Scripted(*SCORES)])
    assert path.is_file() and len(history) == 4 and history.best_epoch == 2
    again, other = network(1), [Checkpoint(tmp_path / "d.npz"), stopping()]
    with pytest.warns(UserWarning, match="was stopped by a callback after 4 epochs"):
        listed = [other[i] for i in order]
        resumed = fit(again, data, listed, epochs=6, validation=0.25, resume=path, metrics=[Scripted(1.0)])
    assert (len(resumed), resumed.best_epoch, resumed.stopped_early) == (4, 2, True)  # it had stopped, and stays so
    assert weights(again) == weights(model)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_run_cut_anywhere_gives_the_same_best_epoch_back(data, tmp_path, order, cut):
    def run(epochs, scores, resume=None):
        model, listed = network(), [Checkpoint(tmp_path / "c.npz"), stopping()]
        options = {"resume": resume, "validation": 0.25, "metrics": [Scripted(*scores)]}
        return model, fit(model, data, [listed[i] for i in order], epochs=epochs, **options)

    straight, history = run(6, SCORES)
    run(cut, SCORES)
    resumed, rest = run(6, SCORES[cut:], tmp_path / "c.npz")
    assert rest.best_epoch == history.best_epoch == 2 and rest["validation_score_loss"] == list(SCORES[:4])
    assert weights(resumed) == weights(straight)


def test_regrowth_finds_what_a_one_shot_prunes_wherever_it_stands(data):
    found = []
    for order in itertools.permutations(range(2)):
        model = network()
        listed = [prune.OneShot(0.6, criterion=partial(prune.random, rng=0)), prune.Regrow(every=2, rng=0)]
        fit(model, data, [listed[i] for i in order])
        found.append(weights(model))
    assert found[0] == found[1]


# ---- what is no callback ---------------------------------------------------------------------------------------------
def methods(*names):
    return type("Own", (), {name: lambda self, run: None for name in names})()


def test_the_listed_events_are_those_that_are_told():
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(loop))) if isinstance(node, ast.Call)]
    told = {call.args[0].value for call in calls if getattr(call.func, "attr", "") == "tell"}
    assert told == set(callbacks.EVENTS)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_batch_end", "on_step_end"),
        ("on_train_batch_end", "on_step_end"),
        ("on_epoch_ends", "on_epoch_end"),
        ("on_epoch_start", "on_epoch_begin"),
        ("on_training_end", "on_train_end"),
        ("on_saved", "on_save"),
    ],
)
def test_a_method_that_would_never_be_called_is_refused_with_the_nearest_name(data, name, meant):
    model = network()
    before = weights(model)
    for own in (methods(name), methods(name, "on_epoch_end")):
        with pytest.raises(
            ValueError, match=rf"Own among the callbacks got its method = '{name}'\.\n.*\nName it {meant};"
        ):
            fit(model, data, [own])
    assert weights(model) == before
    fit(model, data, [methods(meant)], epochs=1)


@pytest.mark.parametrize(
    ("listed", "text"),
    [
        (EarlyStopping(), r"callbacks = a EarlyStopping\.\n.*list.*\nWrite callbacks=\[EarlyStopping\(\)\]"),
        (
            prune.Gradual,
            r"callbacks = the class Gradual itself\.\n.*list.*\nWrite callbacks=\[EarlyStopping\(\)\]: objects",
        ),
        ("early", r"got a str among the callbacks\.\n.*\nWrite callbacks=\[EarlyStopping\(\)\]"),
        (3, r"callbacks = 3\."),
        (
            [EarlyStopping],
            r"the class EarlyStopping among the callbacks\.\n.*object.*\nWrite callbacks=\[EarlyStopping\(\)\]",
        ),
        ([methods()], r"got a Own among the callbacks\.\n.*on_train_begin, .*on_train_end\.\nWrite callbacks"),
        ([methods("epoch_end")], r"got a Own among the callbacks"),
        ([print], r"got a builtin_function_or_method among the callbacks"),
        ([None], r"got a NoneType among the callbacks"),
        (["early"], r"got a str among the callbacks"),
    ],
)
def test_what_is_no_list_of_callbacks_is_told_before_anything(data, listed, text):
    model = network()
    before = weights(model)
    for call in (fit, lambda m, d, c: distill.distill(network(1), m, d, epochs=1, callbacks=c, progress=False)):
        with pytest.raises(TypeError, match=text):
            call(model, data, listed)
    assert weights(model) == before


def test_callbacks_of_any_iterable_and_none(data):
    for listed in (None, (), iter([GradientHistogram(1)]), {GradientHistogram(1): 0}):
        assert len(fit(network(), data, listed, epochs=1)) == 1


# ---- early stopping --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["Max", "maximum", "MIN", "larger", "auto", "", True])
def test_a_mode_that_is_none_is_refused(mode):
    """The nearest is recommended; where none is near, both are, since the first would minimise the accuracy."""
    nearest = {"Max": "max", "maximum": "max", "MIN": "min"}.get(mode)
    cure = f"Write mode='{nearest}'." if nearest else 'mode="max") if more is better, mode="min" if less is.'
    with pytest.raises(ValueError, match=r"mode = .*\n.*'min', 'max'.*\n") as caught:
        EarlyStopping(monitor="validation_accuracy", mode=mode)
    assert str(caught.value).endswith(cure)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "max") for name in ("accuracy", "top_k_accuracy", "binary_accuracy", "auc", "hit_rate_at_k", "ndcg_at_k")]
    + [(name, "min") for name in ("loss", "rmse", "mae", "mse", "huber", "expected_calibration_error")]
    + [(name, "min") for name in ("cross_entropy", "binary_cross_entropy", "kl_divergence")],
)
def test_known_names_say_what_is_better_and_others_have_to_be_told(name, mode):
    assert EarlyStopping(monitor=f"validation_{name}").mode == EarlyStopping(monitor=name).mode == mode
    assert EarlyStopping(monitor="validation_f1", mode=mode).mode == mode
    with pytest.raises(
        ValueError, match=r"'validation_f1' got mode = None\.\n.*\nWrite .*mode=\"max\"\) if more is better"
    ):
        EarlyStopping(monitor="validation_f1")
    with pytest.raises(TypeError, match=r"monitor = \['loss'\]"):
        EarlyStopping(monitor=["loss"])


class Fails:
    """Raises in the middle of an epoch."""

    def __init__(self, step, error):
        self.step, self.error, self.ended = step, error, 0

    def on_step_end(self, run):
        if run.step == self.step:
            raise self.error

    def on_train_end(self, run):
        self.ended += 1


class Keep:
    def __init__(self):
        self.states = []

    def on_epoch_end(self, run):
        self.states.append(weights(run.model))


def test_the_best_weights_come_back_after_an_error(data):
    model, keep, fails = network(), Keep(), Fails(14, RuntimeError("the disk is full"))  # 3 steps an epoch
    listed = [EarlyStopping(patience=9, monitor="validation_score_loss"), keep, fails]
    with pytest.raises(RuntimeError, match="the disk is full"):
        fit(model, data, listed, epochs=9, validation=0.25, metrics=[Scripted(*SCORES)])
    assert fails.ended == 1 and len(keep.states) == 4
    assert weights(model) == keep.states[1]


def test_without_early_stopping_an_error_leaves_the_weights_of_the_last_step(data):
    models = network(), network()
    with pytest.raises(RuntimeError):
        fit(models[0], data, [Fails(8, RuntimeError())])
    fit(models[1], data, epochs=2)
    assert weights(models[0]) == weights(models[1])


# ---- what metrics return ---------------------------------------------------------------------------------------------
def test_a_metric_that_returns_a_tensor_gives_a_float_that_a_checkpoint_holds(tmp_path):
    rng = np.random.default_rng(0)
    numbers = datasets.Dataset(rng.normal(size=(40, 3)), rng.normal(size=(40, 1)))
    model, path = nn.Sequential(nn.Dense(3, 1), rng=0), tmp_path / "c.npz"
    options = {"validation": numbers, "metrics": [losses.mae, "rmse"]}
    history = fit(model, numbers, [Checkpoint(path)], epochs=2, **options)
    assert all(type(value) is float for logs in history.epochs for value in logs.values())
    assert history["validation_mae"][-1] == pytest.approx(
        np.abs(md.predict(model, numbers) - numbers.y).mean(), rel=1e-6
    )
    resumed = fit(nn.Sequential(nn.Dense(3, 1), rng=1), numbers, [Checkpoint(path)], resume=path, **options)
    assert resumed["validation_mae"][:2] == history["validation_mae"]


def test_two_metrics_of_one_name_are_refused(data):
    with pytest.raises(ValueError, match="a name of its own"):
        fit(network(), data, validation=0.25, metrics=[lambda p, y: 0.0, lambda p, y: 1.0])


# ---- schedules -------------------------------------------------------------------------------------------------------
SCHEDULES = {
    "constant": lambda: optim.constant(0.1),
    "step_decay": lambda: optim.step_decay(0.1, every=3, factor=0.5),
    "exponential": lambda: optim.exponential(0.1, 0.9),
    "cosine": lambda: optim.cosine(0.1, 12, final=0.01),
    "warmup": lambda: optim.warmup(3, optim.cosine(0.1, 12)),
    "chain": lambda: optim.chain([(3, 0.1), (4, optim.cosine(0.1, 4)), (None, optim.warmup(2, 0.05))]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_copied_and_pickled(name):
    schedule = SCHEDULES[name]()
    for other in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert [other(step) for step in range(20)] == [schedule(step) for step in range(20)]
    optimizer = optim.Adam([np.ones(3, np.float32)], lr=schedule)
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert other.lr == optimizer.lr


def test_a_schedule_that_is_over_is_told_once_and_the_cure_works(data):
    teacher, model = network(1), network()
    made = optim.Adam(model.parameters(), lr=optim.cosine(0.01, 8))
    fit(model, data, epochs=2, optimizer=made)  # 8 steps: just what the schedule has
    trainings = (
        lambda optimizer: fit(model, data, epochs=2, optimizer=optimizer),
        lambda optimizer: distill.distill(
            teacher, model, data, epochs=2, batch_size=40, optimizer=optimizer, progress=False
        ),
    )
    for training in trainings:
        before = weights(model)
        with pytest.warns(UserWarning, match=r"0 in all 8 steps from step \d+\.\n.*\nMake .*: (.*)\.$") as caught:
            training(made)
        assert len(caught) == 1 and caught[0].filename == __file__ and weights(model) == before
        advised = str(caught[0].message).rpartition(": ")[2].rstrip(".")
        assert advised == "optim.Adam(model.parameters(), lr=optim.cosine(0.01, 8))"
        training(eval(advised, {"optim": optim, "model": model}))  # warnings are errors here
        assert weights(model) != before


@pytest.mark.parametrize(
    ("lr", "done"),
    [
        (lambda step: 0.0, 4),  # a part that is held still on purpose
        (optim.cosine(0.01, 5), 4),  # over in this training, but not from its start
        (optim.cosine(0.01, 4, final=1e-4), 8),
        (optim.chain([(4, optim.cosine(0.01, 4)), (4, 1e-3), (None, 1e-3)]), 4),
        (0.01, 4),
    ],
)
def test_other_schedules_are_not_warned_of(data, lr, done):
    model = network()
    optimizer = optim.SGD(
        [{"params": model.layers[0].parameters(), "lr": lr}, {"params": model.layers[1].parameters()}], lr=0.1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(done // 4):
            fit(model, data, epochs=1, optimizer=optimizer)
        fit(model, data, epochs=1, optimizer=optimizer)


def test_of_a_finished_run_only_its_end_is_warned_of(data, tmp_path):
    def run(resume=None):
        model = network()
        optimizer = optim.Adam(model.parameters(), lr=optim.cosine(0.01, 8))
        fit(model, data, [Checkpoint(tmp_path / "c.npz")], epochs=2, optimizer=optimizer, resume=resume)
        return weights(model)

    first = run()
    with pytest.warns(UserWarning, match="is finished after 2 epochs") as warned:
        assert run(tmp_path / "c.npz") == first
    assert len(warned) == 1  # and not of a schedule that is over
