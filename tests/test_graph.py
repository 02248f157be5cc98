"""The traced graph, `summary` and `activations`: any model whose forward stays on the tape."""

from __future__ import annotations

import numpy as np
import pytest

import minidistill as md
from minidistill import nn, ops


def sketch(graph):
    """Each node as (kind, name, shape, positions of what feeds it)."""
    place = {id(node): i for i, node in enumerate(graph.nodes)}
    return [(n.kind, n.name, n.shape, [place[id(source)] for source in n.inputs]) for n in graph.nodes]


class TwoTowers(nn.Module):
    """User and item ids, a product between, a head, and a parameter of its own."""

    def __init__(self):
        self.user = nn.Embedding(10, 4, rng=0)
        self.item = nn.Embedding(5, 4, rng=1)
        self.spare = nn.Dense(7, 7, rng=2)
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.head = nn.Sequential(nn.Dense(4, 3, activation="relu", rng=3), nn.Dense(3, 1, rng=4))

    def forward(self, user, item):
        return self.head(self.user(user) * self.item(item)) * self.scale


class Residual(nn.Module):
    def __init__(self):
        self.inner = nn.Dense(3, 3, rng=0)

    def forward(self, x):
        return x + self.inner(self.inner(x))


X = np.ones((2, 3), np.float32)


def test_sequential():
    model = nn.Sequential(nn.Dense(3, 4, rng=0), nn.Sequential(nn.ReLU(), nn.Dense(4, 2, rng=0)))
    graph = nn.trace(model, X)
    assert sketch(graph) == [
        ("input", "input 0", (2, 3), []),
        ("layer", "0", (2, 4), [0]),
        ("layer", "1.0", (2, 4), [1]),
        ("layer", "1.1", (2, 2), [2]),
    ]
    assert graph.unused == [] and [node.module for node in graph.layers] == [model.get(p) for p in ("0", "1.0", "1.1")]
    assert graph.consumers(graph.nodes[1]) == [graph.nodes[2]] and graph.consumers(graph.nodes[3]) == []


def test_several_inputs_of_ids_with_operations_between():
    graph = nn.trace(TwoTowers(), [1, 2], [0, 1])
    assert sketch(graph) == [
        ("input", "input 0", (2,), []),
        ("layer", "user", (2, 4), [0]),
        ("input", "input 1", (2,), []),
        ("layer", "item", (2, 4), [2]),
        ("op", "multiply", (2, 4), [1, 3]),
        ("layer", "head.0", (2, 3), [4]),
        ("layer", "head.1", (2, 1), [5]),
        ("constant", "Parameter", (1,), []),
        ("op", "multiply", (2, 1), [6, 7]),
    ]
    assert graph.unused == ["spare"]


def test_a_layer_used_twice_and_a_residual_sum():
    model = Residual()
    graph = nn.trace(model, X)
    assert sketch(graph) == [
        ("input", "input 0", (2, 3), []),
        ("layer", "inner", (2, 3), [0]),
        ("layer", "inner", (2, 3), [1]),
        ("op", "add", (2, 3), [0, 2]),
    ]
    assert [node.module for node in graph.layers] == [model.inner, model.inner]
    assert graph.consumers(graph.nodes[0]) == [graph.nodes[1], graph.nodes[3]]


def test_layers_that_do_nothing_still_stand_in_the_graph():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5), nn.Dense(3, 2, rng=0), nn.Dropout(0.5))
    assert sketch(nn.trace(model, X)) == [
        ("input", "input 0", (2, 3), []),
        ("layer", "0", (2, 3), [0]),
        ("layer", "1", (2, 3), [1]),
        ("layer", "2", (2, 2), [2]),
        ("layer", "3", (2, 2), [3]),
    ]
    assert model.training  # traced in eval mode, by context


def test_a_model_that_is_one_layer_and_branches_that_join():
    assert sketch(nn.trace(nn.Dense(3, 2, rng=0), X)) == [("input", "input 0", (2, 3), []), ("layer", "", (2, 2), [0])]
    join = nn.Sequential(nn.Concatenate(nn.Embedding(4, 2, rng=0), nn.Flatten()), nn.Dense(5, 1, rng=0))
    assert sketch(nn.trace(join, [0, 1], X)) == [
        ("input", "input 0", (2,), []),
        ("layer", "0.0", (2, 2), [0]),
        ("input", "input 1", (2, 3), []),
        ("layer", "0.1", (2, 3), [2]),
        ("op", "concatenate", (2, 5), [1, 3]),
        ("layer", "1", (2, 1), [4]),
    ]


def test_a_layer_of_plain_numpy_is_followed_around_the_tape():
    class Off(nn.Module):
        def forward(self, x):
            return md.Tensor(np.sign(x))

    model = nn.Sequential(nn.Dense(3, 3, rng=0), Off(), nn.Dense(3, 1, rng=0))
    assert [node[1:] for node in sketch(nn.trace(model, X))] == [
        ("input 0", (2, 3), []), ("0", (2, 3), [0]), ("1", (2, 3), [1]), ("2", (2, 1), [2]),
    ]  # fmt: skip


def test_what_leaves_the_tape_between_layers_appears_as_a_constant():
    class Leaves(nn.Module):
        def __init__(self):
            self.dense = nn.Dense(3, 1, rng=0)

        def forward(self, x):
            return self.dense(np.round(x.numpy()))

    assert sketch(nn.trace(Leaves(), X)) == [("constant", "ndarray", (2, 3), []), ("layer", "dense", (2, 1), [0])]


def test_tracing_a_deep_model_does_not_recurse_and_works_inside_no_grad():
    model = nn.Sequential(*[nn.ReLU() for _ in range(3000)])
    assert len(nn.trace(model, X).layers) == 3000
    expected = sketch(nn.trace(TwoTowers(), [1, 2], [0, 1]))
    with md.no_grad():
        assert sketch(nn.trace(TwoTowers(), [1, 2], [0, 1])) == expected


def test_tracing_leaves_no_gradient_and_the_inputs_alone():
    model, x = Residual(), md.Tensor(X)
    nn.trace(model, x)
    assert model.inner.weight.grad is None and not x.requires_grad and x.grad is None


def test_modules_that_do_not_return_one_tensor_are_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Unpack(nn.Module):
        def __init__(self, inner):
            self.inner = inner

        def forward(self, x):
            return self.inner(x)[0]

    for model in (Pair(), nn.Sequential(nn.Flatten(), Pair()), Unpack(Pair())):
        with pytest.raises(
            TypeError, match=r"^tracing found that Pair returns a tuple\.\nThe graph follows .*\nReturn one"
        ):
            nn.trace(model, X)


# ---- summary ---------------------------------------------------------------------------------------------------------


def test_summary_is_a_table_of_layers_with_their_sizes():
    model = nn.Sequential(nn.Dense(3, 4, activation="relu", rng=0), nn.Dropout(0.5), nn.Dense(4, 2, bias=False, rng=0))
    assert str(md.summary(model, X)).split("\n") == [
        "path     layer                           output shape  parameters  bytes",
        "------------------------------------------------------------------------",
        "input 0  input                           (N, 3)                 0      0",
        "0        Dense(3, 4, activation='relu')  (N, 4)                16     64",
        "1        Dropout(0.5)                    (N, 4)                 0      0",
        "2        Dense(4, 2, bias=False)         (N, 2)                 8     32",
        "------------------------------------------------------------------------",
        "         total                                                 24     96",
    ]
    assert repr(md.summary(model, X)) == str(md.summary(model, X))


def test_summary_counts_every_parameter_and_buffer_once():
    model = TwoTowers()
    model.buffer = np.zeros(3, np.int8)
    lines = str(md.summary(model, [1, 2], [0, 1])).split("\n")
    assert [line.split()[0] for line in lines[2:]] == [
        "input", "user", "input", "item", "multiply", "head.0", "head.1", "constant", "multiply", "in", lines[1], "total",
    ]  # fmt: skip
    assert lines[2].split() == ["input", "0", "input", "(N,)", "0", "0"]
    # Neither traced as layers: the spare layer (7 * 7 + 7), the scale, and three bytes of buffer.
    assert lines[-3].split() == ["in", "none", "of", "these", "layers", "57", str(57 * 4 + 3)]
    sizes = [p.size for p in model.parameters()]
    assert lines[-1].split() == ["total", str(sum(sizes)), str(4 * sum(sizes) + 3)]
    twice = str(md.summary(Residual(), X)).split("\n")
    assert [line.split()[-2:] for line in twice[2:]] == [
        ["0", "0"], ["12", "48"], ["0", "0"], ["0", "0"], [twice[1]], ["12", "48"],
    ]  # fmt: skip


# ---- activations -----------------------------------------------------------------------------------------------------


def test_activations_by_path_without_editing_the_model(rng):
    model = nn.Sequential(nn.Dense(3, 4, activation="tanh", rng=0), nn.Sequential(nn.Dense(4, 4, rng=0), nn.ReLU()))
    x = rng.standard_normal((5, 3)).astype(np.float32)
    found = md.activations(model, x)
    assert list(found) == ["0", "1.0", "1.1"]
    np.testing.assert_array_equal(found["0"].data, model[0](x).data)
    np.testing.assert_array_equal(found["1.1"].data, model(x).data)
    some = md.activations(model, x, paths=["", "1", "0"])
    assert list(some) == ["", "1", "0"] and some[""].data.tolist() == some["1"].data.tolist() == model(x).data.tolist()
    found["0"].sum().backward()  # on the tape
    np.testing.assert_allclose(model[0].bias.grad, (1 - found["0"].data ** 2).sum(axis=0), rtol=1e-5)


def test_activations_of_shared_and_idle_layers_and_of_unknown_paths():
    model = TwoTowers()
    model.nickname = model.user
    found = md.activations(model, [1, 2], [0, 1], paths=["nickname", "user", "spare"])
    assert list(found) == ["nickname", "user"] and found["user"] is found["nickname"]
    twice = Residual()
    last = md.activations(twice, X)["inner"]
    np.testing.assert_array_equal((ops.add(X, last)).data, twice(X).data)
    with pytest.raises(ValueError, match=r"asked TwoTowers for the module 'towr'\.\n"):
        md.activations(model, [1], [0], paths=["towr"])


class HeadFirst(nn.Module):
    """Defines its layers in another order than it computes them; two heads, a skip, and a layer that is both."""

    def __init__(self):
        self.head, self.other = nn.Dense(4, 2, rng=0), nn.Dense(4, 2, rng=1)
        self.body, self.drop, self.first = nn.Dense(4, 4, rng=2), nn.Dropout(0.5), nn.Dense(3, 4, rng=3)

    def forward(self, x):
        h = self.first(x)
        h = self.drop(np.tanh(self.body(h))) + h
        return ops.concatenate([self.head(h) * 2, np.tanh(self.other(h))], axis=1)


def test_the_last_layers_are_those_that_make_the_answers():
    graph = nn.trace(HeadFirst(), np.ones((2, 3)))
    assert sorted(node.name for node in graph.last(nn.Dense)) == ["head", "other"]
    assert [node.name for node in graph.last(nn.Dropout)] == ["drop"]
    assert sorted(node.name for node in graph.last((nn.Dense, nn.Dropout))) == ["head", "other"]
    assert graph.last(nn.Embedding) == []
