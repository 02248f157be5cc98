"""A teacher's answers on disk: found by sample, and refused for anything else."""

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, nn
from minidistill.datasets import Dataset
from minidistill.files import FileFormatError


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits()[0][:200]


@pytest.fixture(scope="module")
def teacher(digits):
    model = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=0)
    md.fit(model, digits, epochs=5, progress=False, rng=0)
    return model


def student():
    return nn.Sequential(nn.Dense(64, 8, activation="relu"), nn.Dense(8, 10), rng=1)


def weights(model):
    return [p.numpy().tobytes() for p in model.parameters()]


def train(teacher, data, **settings):
    model = student()
    distill.distill(teacher, model, data, **({"alpha": 1.0, "epochs": 2, "progress": False, "rng": 0} | settings))
    return weights(model)


def test_answers_are_found_for_any_part_of_the_data_in_any_order(teacher, digits):
    cache = distill.TeacherCache(teacher, digits)
    order = np.random.default_rng(0).permutation(200)[:50]
    assert np.array_equal(cache.answers(digits[order]), md.predict(teacher, digits)[order])
    assert len(cache) == 200


def test_a_student_of_the_cache_is_the_student_of_the_teacher(teacher, digits, tmp_path):
    plain = train(teacher, digits, validation=0.2)
    cache = distill.TeacherCache(teacher, digits)
    assert train(teacher, digits, validation=0.2, cache=cache) == plain
    path = tmp_path / "answers.npz"
    assert train(teacher, digits, validation=0.2, cache=path) == plain and path.exists()  # written
    written = path.stat().st_mtime_ns
    assert train(teacher, digits, validation=0.2, cache=path) == plain  # read
    assert path.stat().st_mtime_ns == written


def test_a_cache_needs_no_teacher(teacher, digits, tmp_path):
    distill.TeacherCache(teacher, digits).save(tmp_path / "a.npz")
    assert train(None, digits, cache=tmp_path / "a.npz") == train(teacher, digits)
    held_out = train(None, Dataset(digits.x, None), cache=tmp_path / "a.npz", validation=0.2)
    assert held_out == train(teacher, Dataset(digits.x, None), validation=0.2)
    with pytest.raises(FileNotFoundError, match="Pass the teacher too"):
        train(None, digits, cache=tmp_path / "missing.npz")
    with pytest.raises(TypeError, match="teacher = None"):
        train(None, digits)
    with pytest.raises(TypeError, match="teacher = None"):  # hidden layers are not in a cache
        train(None, digits, cache=tmp_path / "a.npz", objective=distill.Hint("0", "0"))
    assert not (tmp_path / "missing.npz").exists()


def older(cache, k=None, dtype=np.float32):
    """The arrays as versions before this one also wrote them: in float16, or the k largest logits of each row."""
    arrays = dict(cache._arrays)
    logits = arrays["logits"]
    if k is None:
        return arrays | {"logits": logits.astype(dtype)}
    del arrays["logits"]
    index = np.argsort(-logits, axis=1)[:, :k]
    top = np.take_along_axis(logits, index, axis=1).astype(dtype)
    rest = np.sort(logits, axis=1)[:, :-k].mean(axis=1).astype(dtype)
    return arrays | {"index": index.astype(np.uint16), "top": top, "rest": rest, "classes": np.array([10])}


def test_a_file_holds_what_was_saved(teacher, digits, tmp_path):
    cache = distill.TeacherCache(teacher, digits)
    cache.save(tmp_path / "a.npz")
    loaded = distill.TeacherCache.load(tmp_path / "a.npz")
    assert np.array_equal(loaded.answers(digits), cache.answers(digits)) and loaded.nbytes == cache.nbytes
    loaded.check(teacher, digits)


@pytest.mark.parametrize("k", [None, 1, 3, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_files_of_fewer_bytes_that_older_versions_wrote_are_read(teacher, digits, tmp_path, k, dtype):
    arrays, logits = older(distill.TeacherCache(teacher, digits), k, dtype), md.predict(teacher, digits)
    np.savez(tmp_path / "old.npz", **arrays)
    cache = distill.TeacherCache.load(tmp_path / "old.npz")
    cache.check(teacher, digits)
    expected = logits.astype(dtype).astype(np.float32)
    if k is not None:
        below = np.sort(logits, axis=1)[:, -k, None]
        expected = np.where(logits >= below, expected, arrays["rest"].astype(np.float32)[:, None])
    order = np.random.default_rng(0).permutation(200)[:50]
    assert np.array_equal(cache.answers(digits[order]), expected[order])


def test_several_inputs_make_one_key(digits):
    users, items = np.arange(6), np.array([3, 1, 2, 0, 0, 1])

    class Table(nn.Module):
        def __init__(self):
            self.table = nn.Embedding(10, 4, rng=0)

        def forward(self, users, items):
            return self.table(users) * self.table(items)

    data = Dataset((users, items), None)
    cache = distill.TeacherCache(Table(), data)
    assert np.array_equal(cache.answers(data[[4, 2]]), md.predict(Table(), data)[[4, 2]])
    with pytest.raises(ValueError, match="asked for 6, of which 2 are not in it"):
        cache.answers(Dataset((items, users), None))


# ---- what must be refused --------------------------------------------------------------------------------------------------
def test_another_teacher_and_other_data_are_refused_before_training(teacher, digits, tmp_path):
    cache = distill.TeacherCache(teacher, digits)
    other = teacher.copy()
    other.layers[0].weight.data[0, 0] += 1e-3
    with pytest.raises(ValueError, match="of another teacher"):
        train(other, digits, cache=cache)
    cache.save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="of another teacher"):
        train(other, digits, cache=tmp_path / "a.npz")
    moved = Dataset(digits.x.copy(), digits.y)
    moved.x[17, 3] += 1e-3
    with pytest.raises(ValueError, match="200 samples was asked for 200, of which 1 are not in it"):
        train(teacher, moved, cache=cache)
    with pytest.raises(ValueError, match="a cache and an augmentation"):
        train(teacher, digits, cache=cache, augment=distill.Noise())


def test_ensembles_of_other_weights_are_other_teachers(teacher, digits):
    pair = [teacher, student()]
    cache = distill.TeacherCache(distill.Ensemble(pair), digits)
    cache.check(distill.Ensemble(pair))
    for other in (distill.Ensemble(pair, weights=[1, 2]), distill.Ensemble(pair, average="logits")):
        with pytest.raises(ValueError, match="of another teacher"):
            cache.check(other)


class Bent(nn.Module):
    """Prints nothing of its settings."""

    def __init__(self, inner, shape="relu", factor=None):
        self.inner, self.shape, self.factor = inner, shape, factor

    def forward(self, x):
        z = self.inner(x)
        z = md.ops.relu(z) if self.shape == "relu" else md.ops.tanh(z)
        return z if self.factor is None else z * self.factor[0]


def test_settings_that_no_weight_shows_make_another_teacher(teacher, digits):
    cache = distill.TeacherCache(Bent(teacher), digits)
    cache.check(Bent(teacher), digits)
    with pytest.raises(ValueError, match="of another teacher"):
        cache.check(Bent(teacher, "tanh"))
    scaled = distill.TeacherCache(Bent(teacher, factor=[1.0]), digits)
    with pytest.raises(ValueError, match="but its answers are not"):
        scaled.check(Bent(teacher, factor=[5.0]), digits)


def test_a_cache_serves_objectives_that_read_hidden_layers_too(teacher, digits):
    terms = [distill.SoftTargets(), distill.Hint("0", "0")]
    few = digits[:100]
    with pytest.raises(ValueError, match="of which 100 are not in it"):
        train(teacher, digits, cache=distill.TeacherCache(teacher, few), objective=terms)
    cache = distill.TeacherCache(teacher, digits)
    assert train(teacher, digits, cache=cache, objective=terms) == train(teacher, digits, objective=terms)


def test_answers_of_another_shape_are_never_broadcast(digits):
    class Flat(nn.Module):
        def forward(self, x):
            return md.Tensor(np.asarray(x)[:, 0])

    cache = distill.TeacherCache(Flat(), digits)
    model = nn.Dense(64, 1, rng=0)
    with pytest.raises(ValueError, match=r"of shape \(200,\), where the student's have \(200, 1\)"):
        distill.distill(
            None, model, digits, objective=lambda e: md.ops.mean(e.student - e.teacher), cache=cache, progress=False
        )


def test_answers_that_are_not_finite_are_not_kept(digits):
    broken = nn.Dense(64, 10, rng=0)
    broken.weight.data[0] = np.nan
    with pytest.raises(ValueError, match="2000 answers of the teacher that are NaN"):
        distill.TeacherCache(broken, digits)


def damaged(arrays):
    yield "no format", {k: v for k, v in arrays.items() if k != "format"}
    yield "another format", arrays | {"format": np.frombuffer(b"something else", np.uint8)}
    yield "too few rows", arrays | {"top": arrays["top"][:-1]}
    yield "a class out of range", arrays | {"index": arrays["index"] + np.uint16(9)}
    yield "whole numbers as logits", arrays | {"top": arrays["top"].astype(np.int32)}
    yield "a rest of another shape", arrays | {"rest": np.stack([arrays["rest"]] * 2, axis=1)}
    yield "too many classes", arrays | {"classes": np.array([10**9])}
    yield "no rows", {k: v[:0] if k in ("keys", "index", "top", "rest") else v for k, v in arrays.items()}
    yield "keys of another kind", arrays | {"keys": arrays["keys"].astype(np.int64)}
    yield "keys in a table", arrays | {"keys": arrays["keys"][:, None]}
    yield "one key without an axis", arrays | {"keys": arrays["keys"][0]}
    for kind in ("U2", "S2", float, bool):
        yield f"classes as {kind}", arrays | {"classes": arrays["classes"].astype(kind)}
    for name in ("top", "rest"):
        for value in (np.nan, np.inf):
            answers = arrays[name].copy()
            answers.reshape(-1)[-1] = value
            yield f"{value} in {name}", arrays | {name: answers}
        yield f"{name} that float32 cannot hold", arrays | {name: np.full(arrays[name].shape, 1e300)}
        yield f"{name} as text", arrays | {name: arrays[name].astype("U8")}


def test_a_bad_file_is_refused(teacher, digits, tmp_path):
    arrays = older(distill.TeacherCache(teacher, digits), 3)
    for name, bad in damaged(arrays):
        np.savez(tmp_path / "bad.npz", **bad)
        with pytest.raises(FileFormatError, match=r"bad\.npz"):
            distill.TeacherCache.load(tmp_path / "bad.npz")
            pytest.fail(name)
    all_logits = distill.TeacherCache(teacher, digits)
    all_logits._arrays["logits"][7, 3] = np.nan
    all_logits.save(tmp_path / "nan.npz")
    with pytest.raises(FileFormatError, match=r"nan\.npz"):
        distill.TeacherCache.load(tmp_path / "nan.npz")
    md.save(teacher, tmp_path / "model.npz")
    with pytest.raises(FileFormatError, match="no teacher cache"):
        train(teacher, digits, cache=tmp_path / "model.npz")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e3])
def test_answers_that_are_none_are_not_those_of_the_teacher(teacher, digits, wrong):
    cache = distill.TeacherCache(teacher, digits)
    cache.check(teacher, digits)
    cache._arrays["logits"][3, 2] = wrong
    with pytest.raises(ValueError, match="its answers are not"):
        cache.check(teacher, digits)
