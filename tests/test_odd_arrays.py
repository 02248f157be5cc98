"""Arrays as they come from elsewhere: any layout, byte order and class gives the numbers of a plain one, at every door.

Warnings are errors here: an array of `np.broadcast_arrays` is marked by NumPy, and warns where it is asked if it is writable.
"""

from __future__ import annotations

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, losses, nn, ops, optim, prune, quantize


class Sub(np.ndarray):
    pass


def misaligned(a):
    out = np.frombuffer(bytearray(a.nbytes + 1), a.dtype, a.size, offset=1).reshape(a.shape)
    out[...] = a
    return out


def readonly(a):
    a.flags.writeable = False
    return a


def memmap(a, folder):
    out = np.memmap(folder / "a", a.dtype, "w+", shape=a.shape)
    out[...] = a
    return out


KINDS = {
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "negative strides": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "readonly": readonly,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "broadcast": lambda a: np.broadcast_arrays(a[..., None], np.zeros(2))[0][..., 0],
    "marked": lambda a: np.broadcast_arrays(a, a)[0],
    "misaligned": misaligned,
    "masked without a mask": np.ma.array,
    "subclass": lambda a: a.view(Sub),
    "matrix": lambda a: a.view(np.matrix) if a.ndim == 2 else a,
}

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(70, 16)).astype(np.float32), DRAW.integers(0, 5, 70)
LOGITS, OTHERS = DRAW.normal(size=(2, 70, 5)).astype(np.float32)
ROWS = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
NET = nn.Sequential(nn.Dense(16, 32, activation="relu"), nn.Dense(32, 5), rng=0)
WEIGHT = NET[0].weight.data.copy()
MASKED = prune.magnitude(NET.copy(), 0.8, scope="layer")
TABLE = nn.Embedding(5, 3, rng=0)
MODELS = {
    "float": NET,
    "int8": quantize.post_training(NET, calibration=X),
    "4 bits": quantize.post_training(NET, calibration=X, bits=4),
    "dynamic": quantize.post_training(NET, mode="dynamic"),
    "sparse": prune.to_sparse(MASKED),
    "sparse int8": prune.to_sparse(MASKED, values="int8"),
}


def table_gradient(ids):
    table = TABLE.copy()
    (table(ids) ** 2).sum().backward()
    return np.asarray(table.weight.grad)


def weight_gradient(w):
    weight = md.Tensor(w, requires_grad=True)
    ops.dense(X, weight, None, "relu").sum().backward()
    return weight.grad


def stepped(gradient):
    w = np.ones((70, 16), np.float32)
    optim.Adam(w).step(gradient)
    return w


def assigned(weight):
    layer = nn.Dense(16, 32, rng=1)
    layer.weight.assign(weight)
    return layer.weight.data


def loaded(weight):
    layer = nn.Dense(16, 32, rng=1)
    layer.load_state_dict(layer.state_dict() | {"weight": weight})
    return layer.weight.data


def pulled_back(upstream):
    x = md.Tensor(X, requires_grad=True)
    (x * 1).backward(upstream)
    return x.grad


DOORS = {
    **{f"predict, {name}": (lambda a, model=model: md.predict(model, a), X) for name, model in MODELS.items()},
    **{f"predict one, {name}": (lambda a, model=model: md.predict(model, a), X[:1]) for name, model in MODELS.items()},
    **{f"call, {name}": (lambda a, model=model: model(a).numpy(), X) for name, model in MODELS.items()},
    "Dataset, x": (lambda a: datasets.Dataset(a, Y).x, X),
    "Dataset, y": (lambda a: datasets.Dataset(X, a).y, Y),
    "Dataset, float64": (lambda a: datasets.Dataset(a, dtype=None).x, X.astype(np.float64)),
    "Tensor, float64": (lambda a: (md.Tensor(a) * 2).numpy(), X.astype(np.float64)),
    "Embedding": (lambda a: TABLE(a).numpy(), Y),
    "Embedding, uint8": (lambda a: TABLE(a).numpy(), Y.astype(np.uint8)),
    "ops.embedding": (lambda a: ops.embedding(TABLE.weight, a).numpy(), Y),
    "gradient of a table": (table_gradient, Y),
    "cross_entropy, logits": (lambda a: losses.cross_entropy(a, Y).numpy(), LOGITS),
    "cross_entropy, ids": (lambda a: losses.cross_entropy(LOGITS, a).numpy(), Y),
    "cross_entropy, rows": (lambda a: losses.cross_entropy(LOGITS, a).numpy(), ROWS),
    "kl_divergence": (lambda a: losses.kl_divergence(LOGITS, a).numpy(), ROWS),
    "mse": (lambda a: losses.mse(LOGITS, a).numpy(), OTHERS),
    "binary_cross_entropy": (lambda a: losses.binary_cross_entropy(LOGITS, a).numpy(), ROWS),
    "kd_loss, student": (lambda a: distill.kd_loss(a, OTHERS, Y).numpy(), LOGITS),
    "kd_loss, teacher": (lambda a: distill.kd_loss(LOGITS, a, Y).numpy(), OTHERS),
    "kd_loss, labels": (lambda a: distill.kd_loss(LOGITS, OTHERS, a).numpy(), Y),
    "shift": (lambda a: datasets.shift(a, 4, 4, rng=0), X),
    "calibration": (lambda a: md.predict(quantize.post_training(NET, calibration=a), X), X),
    "step": (stepped, X),
    "md.grad": (lambda a: md.grad(lambda w: (w * w).sum())(a), X),
    "dense, x": (lambda a: ops.dense(a, NET[0].weight).numpy(), X),
    "dense, gradient": (weight_gradient, WEIGHT),
    "assign": (assigned, WEIGHT),
    "load_state_dict": (loaded, WEIGHT),
    "backward": (pulled_back, X),
    "gelu": (lambda a: ops.gelu(md.Tensor(a)).numpy(), X),
}


@pytest.mark.parametrize("door", DOORS)
def test_an_array_of_any_kind_is_its_numbers(door, tmp_path):
    call, plain = DOORS[door]
    expected = call(plain.copy())
    for kind, make in {**KINDS, "memmap": lambda a: memmap(a, tmp_path)}.items():
        found = call(make(plain.copy()))
        assert type(found) is np.ndarray and found.dtype == expected.dtype, kind
        np.testing.assert_array_equal(found, expected, err_msg=kind)


@pytest.mark.parametrize("door", DOORS)
def test_masked_numbers_are_refused(door):
    call, plain = DOORS[door]
    masked = np.ma.array(plain.copy())
    masked[0] = np.ma.masked
    count = plain[0].size
    with pytest.raises(
        ValueError, match=rf"with {count} of {plain.size} entries masked\.\n.*\nFill them, .*\.filled\(0\.0\)"
    ):
        call(masked)


def test_ids_of_broadcast_arrays_are_ids():
    users, items = np.broadcast_arrays(np.arange(5)[:, None], np.arange(5)[None, :])
    model = nn.Sequential(nn.Concatenate(TABLE, TABLE), nn.Dense(6, 1), rng=0)
    every = md.predict(model, (np.ascontiguousarray(users), np.ascontiguousarray(items)))
    np.testing.assert_array_equal(md.predict(model, (users, items)), every)
    np.testing.assert_array_equal(model(users, items).numpy(), every)


def test_what_is_updated_in_place_is_not_copied():
    with pytest.raises(ValueError, match="updated in place"):
        optim.Adam(np.ones((4, 4), np.float32)[::2])
    with pytest.raises(ValueError, match="updated in place"):
        optim.Adam(readonly(np.ones(4, np.float32)))
