"""Checkpoints: a resumed run is the same run, bit for bit, and a bad file changes nothing."""

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, nn, optim, prune
from minidistill.training import Checkpoint, EarlyStopping


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits()[0][:300]


def shifted(x, rng):
    return datasets.shift(x, 8, 8, max_pixels=1, rng=rng)


def parts(masked=False):
    model = nn.Sequential(nn.Dense(64, 16, activation="relu"), nn.Dropout(0.4), nn.Dense(16, 10), rng=0)
    if masked:
        prune.magnitude(model, 0.5)
    return model, optim.Adam(model.parameters(), lr=optim.cosine(1e-2, 60), weight_decay=1e-3)


def train(data, path, epochs, resume=None, masked=False):
    model, optimizer = parts(masked)
    callbacks = [EarlyStopping(patience=50), Checkpoint(path)]
    history = md.fit(model, data, optimizer=optimizer, epochs=epochs, validation=0.2, augment=shifted, callbacks=callbacks,
                     resume=resume, progress=False, rng=7)  # fmt: skip
    return model, optimizer, history


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("masked", [False, True])
def test_three_epochs_and_three_more_are_six(digits, tmp_path, masked):
    straight, optimizer, history = train(digits, tmp_path / "a.npz", 6, masked=masked)
    train(digits, tmp_path / "b.npz", 3, masked=masked)
    resumed, other, rest = train(digits, tmp_path / "b.npz", 6, resume=tmp_path / "b.npz", masked=masked)
    assert same(straight, resumed)
    for name in ("loss", "validation_loss", "validation_accuracy", "lr"):
        assert history[name] == rest[name]
    assert history.best_epoch == rest.best_epoch and optimizer.step_count == other.step_count
    a, b = md.files.read_npz(tmp_path / "a.npz"), md.files.read_npz(tmp_path / "b.npz")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[k], b[k]) for k in a if k != "checkpoint.json")  # moments and best weights too
    if masked:
        assert all(not layer.weight.data[~layer.weight.constraints[0].kept].any() for layer in resumed.layers[::2])


class Silent:
    """A callback of a user's that remembers nothing."""

    def on_epoch_end(self, run):
        pass


@pytest.mark.parametrize("turned", [False, True])
def test_callbacks_that_remember_nothing_may_be_others_in_a_resumed_run_and_all_stand_in_any_order(
    digits, tmp_path, turned
):
    path = tmp_path / "c.npz"
    straight, _, history = train(digits, tmp_path / "a.npz", 4)
    train(digits, path, 2)
    model, optimizer = parts()
    remember = [EarlyStopping(patience=50)]
    callbacks = [Silent(), Checkpoint(path), *remember] if turned else remember
    rest = md.fit(model, digits, optimizer=optimizer, epochs=4, validation=0.2, augment=shifted, callbacks=callbacks,
                  resume=path, progress=False)  # fmt: skip
    assert same(straight, model) and rest["validation_loss"] == history["validation_loss"]
    assert rest.best_epoch == history.best_epoch


def test_masks_come_back_into_a_model_without_them(digits, tmp_path):
    train(digits, tmp_path / "c.npz", 2, masked=True)
    model, _, _ = train(digits, tmp_path / "c.npz", 3, resume=tmp_path / "c.npz", masked=False)
    assert (model.layers[0].weight.data == 0).mean() > 0.3
    assert isinstance(model.layers[0].weight.constraints[0], nn.Mask)


def test_distillation_resumes_too(digits, tmp_path):
    teacher = parts()[0]

    def run(epochs, resume=None):
        student = nn.Sequential(nn.Dense(64, 8, activation="relu"), nn.Dense(8, 10), rng=1)
        distill.distill(teacher, student, digits, epochs=epochs, callbacks=[Checkpoint(tmp_path / "d.npz")],
                        resume=resume, progress=False, rng=3)  # fmt: skip
        return student

    straight = run(4)
    run(2)
    assert same(straight, run(4, resume=tmp_path / "d.npz"))


def test_a_finished_run_resumes_to_nothing_more(digits, tmp_path):
    first, _, _ = train(digits, tmp_path / "c.npz", 2)
    with pytest.warns(
        UserWarning, match=r"finished after 2 epochs: nothing is trained.\nepochs counts all, .* epochs=12"
    ):
        again, _, history = train(digits, tmp_path / "c.npz", 2, resume=tmp_path / "c.npz")
    assert same(first, again) and len(history) == 2


def test_checkpoints_are_written_every_so_often_and_at_the_end(digits, tmp_path):
    written = []

    class Watch:
        def on_save(self, run):
            path = tmp_path / "e.npz"
            written.append(path.stat().st_mtime_ns if path.exists() else None)

    model, _ = parts()
    md.fit(model, digits, epochs=5, callbacks=[Checkpoint(tmp_path / "e.npz", every=2), Watch()], progress=False)
    assert written[0] is None and written[1] == written[2] < written[3] < written[4]
    with pytest.raises(ValueError, match="every = 0"):
        Checkpoint("x", every=0)


def damaged(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        at = data.index(b"\x93NUMPY", len(data) // 2) + 130  # behind the header of 128 bytes, in the numbers
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    elif how == "model file":
        md.save(parts()[0], path)
    elif how == "text":
        path.write_text("hello")


@pytest.mark.parametrize("how", ["truncated", "flipped", "model file", "text"])
def test_a_bad_file_is_told_and_changes_nothing(digits, tmp_path, how):
    path = tmp_path / "c.npz"
    train(digits, path, 1)
    damaged(path, how)
    model, optimizer = parts()
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"Could not read .*c\.npz") as caught:
        md.fit(model, digits, optimizer=optimizer, epochs=2, validation=0.2, callbacks=[EarlyStopping(50), Checkpoint(path)],
               resume=path, progress=False)  # fmt: skip
    assert len(str(caught.value).split("\n")) == 3
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert optimizer.step_count == 0


def test_a_checkpoint_of_something_else_is_told_and_changes_nothing(digits, tmp_path):
    path = tmp_path / "c.npz"
    train(digits, path, 1)
    model, optimizer = parts()
    before = model.state_dict()
    callbacks = [EarlyStopping(50), Checkpoint(path)]
    with pytest.raises(ValueError, match=r"= 300 samples with .*, this one has .* = 200 samples with"):
        md.fit(
            model, digits[:200], optimizer=optimizer, validation=0.2, callbacks=callbacks, resume=path, progress=False
        )
    with pytest.raises(ValueError, match=r"callbacks = \['EarlyStopping'\], this one has callbacks = \[\]"):
        md.fit(model, digits, optimizer=optimizer, validation=0.2, resume=path, augment=shifted, progress=False)
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    wider = nn.Sequential(nn.Dense(64, 20), nn.Dropout(0.4), nn.Dense(20, 10), rng=0)
    with pytest.raises(ValueError, match=r"0\.weight is \(64, 16\)"):
        md.fit(wider, digits, validation=0.2, callbacks=callbacks, resume=path, augment=shifted, progress=False)
    with pytest.raises(FileNotFoundError, match="no file of that name"):
        md.fit(model, digits, validation=0.2, callbacks=callbacks, resume=tmp_path / "none.npz", progress=False)
