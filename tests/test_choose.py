"""Choosing what runs: the table that decides, the form that runs, and what is kept in a file."""

import sys

import numpy as np
import pytest

import minidistill as md
from minidistill import deploy, nn, prune
from minidistill.timing import Times

module = sys.modules["minidistill.deploy.choose"]  # the name in the package is the function's
QUICK = {"seconds": 0.0005, "rounds": 1}


def network(sparsity=0.5):  # of which no neuron dies
    layers = nn.Dense(20, 30, activation="relu"), nn.Dropout(0.2), nn.Dense(30, 16, activation="relu"), nn.Dense(16, 10)
    model = nn.Sequential(*layers, rng=0)
    return prune.magnitude(model, sparsity, scope="layer") if sparsity else model


def inputs(rows=50):
    return np.random.default_rng(0).normal(size=(rows, 20)).astype(np.float32)


@pytest.fixture
def clock(monkeypatch):
    """A clock that is told what each way costs: {name: seconds}; ways it does not know take one second."""
    costs = {}

    def compare(sides, **timing):
        for side in sides.values():
            side()  # all of them run
        return {name: Times(costs.get(name, 1.0), 0, 0) for name in sides}

    monkeypatch.setattr(module, "compare", compare)
    return costs


def kinds(model):
    return [type(layer).__name__ for layer in model.layers if not isinstance(layer, nn.Dropout)]


def test_the_fastest_way_is_taken_and_a_simpler_one_where_it_is_as_fast(clock):
    model, x = network(), inputs()
    clock |= {"sparse": 0.5}
    chosen = deploy.choose(model, x, batch_sizes=(4,))
    assert kinds(chosen.at(4)) == ["SparseDense"] * 3
    clock |= {"sparse": 0.98}  # hardly faster: noise
    assert kinds(deploy.choose(model, x, batch_sizes=(4,)).at(4)) == ["Dense"] * 3
    clock |= {"sparse": 1.5}
    assert kinds(deploy.choose(model, x, batch_sizes=(4,)).at(4)) == ["Dense"] * 3
    assert isinstance(model.layers[0], nn.Dense) and model.layers[0].weight.constraints  # as it was


def test_forms_share_the_layers_that_they_have_in_common(monkeypatch):
    """A table and a layer without a mask are held once, whichever forms were chosen."""
    table, hidden, out = (
        nn.Embedding(50, 20, rng=0),
        nn.Dense(20, 30, activation="relu", rng=1),
        nn.Dense(30, 10, rng=2),
    )
    model, ids = nn.Sequential(table, hidden, out), np.arange(50)
    prune.magnitude(model, {"1": 0.5})

    def compare(sides, **timing):
        rows = len(next(iter(sides.values()))())
        return {way: Times({"dense": 3e-6, "sparse": 2e-6 if rows < 8 else 4e-6}.get(way, 5e-6), 0, 0) for way in sides}

    monkeypatch.setattr(module, "compare", compare)
    chosen = deploy.choose(model, ids, batch_sizes=(1, 8))
    assert chosen.picks == [0, 1]
    sparse, dense = (form.layers for form in chosen.forms)
    assert sparse[0] is dense[0] and sparse[2] is dense[2] and type(sparse[1]) is prune.SparseDense
    np.testing.assert_allclose(md.predict(chosen, ids), md.predict(model, ids), rtol=1e-5, atol=1e-6)
    lines = str(chosen.table()).splitlines()
    assert lines[0].split() == ["batch", "dense", "sparse", "single"] and len(lines) == 2 + 2 + 1
    assert lines[2].split() == ["1", "3.0", "*2.0", "5.0"] and lines[3].split() == ["8", "*3.0", "4.0", "-"]


def test_a_table_of_an_older_version_shows_its_whole_models():
    rows = [{"batch": 1, "what": what, "way": "dense", "seconds": 1e-6, "picked": True} for what in ("0", "")]
    chosen = deploy.Chosen(network(), batch_sizes=[1], picks=[0], measured=rows)
    assert [line.split() for line in str(chosen.table()).splitlines()][2:-1] == [["1", "*1.0"]]


def test_each_batch_takes_the_form_of_the_nearest_size(monkeypatch):
    model, x = network(), inputs(40)

    def compare(sides, **timing):
        rows = len(next(iter(sides.values()))())
        return {way: Times(1.0 if (way == "sparse") == (rows < 10) else 2.0, 0, 0) for way in sides}

    monkeypatch.setattr(module, "compare", compare)
    chosen = deploy.choose(model, x, batch_sizes=(32, 1))
    assert chosen.batch_sizes == [1, 32]
    names = {rows: kinds(chosen.at(rows))[0] for rows in (0, 1, 5, 6, 32, 10_000)}
    assert not chosen.at(1).layers[0].single
    assert names == {0: "SparseDense", 1: "SparseDense", 5: "SparseDense", 6: "Dense", 32: "Dense", 10_000: "Dense"}
    sparse, dense = prune.to_sparse(model), model
    assert np.array_equal(md.predict(chosen, x[:2]), md.predict(sparse, x[:2]))
    assert np.array_equal(md.predict(chosen, x), md.predict(dense, x))
    assert np.array_equal(md.predict(chosen, x, batch_size=2), md.predict(sparse, x, batch_size=2))
    assert np.array_equal(chosen(x[:2]).numpy(), sparse.eval()(x[:2]).numpy())


def test_the_second_copy_is_a_way_for_single_samples_only(clock):
    clock |= {"single": 0.3, "sparse": 0.5}
    chosen = deploy.choose(network(), inputs(), batch_sizes=(1, 32))
    assert [chosen.at(rows).layers[0].single for rows in (1, 32)] == [True, False]
    ways = {(row["batch"], row["way"]) for row in chosen.measured}
    assert (1, "single") in ways and (32, "single") not in ways


def test_dead_neurons_are_taken_out_first(clock):
    model, x = prune.neurons(network(0), 0.5), inputs()
    clock |= {"shrunk": 0.5}
    chosen = deploy.choose(model, x, batch_sizes=(4,))
    assert [layer.weight.shape for layer in chosen.at(4).layers if hasattr(layer, "weight")] == [
        (20, 15),
        (15, 8),
        (8, 10),
    ]
    np.testing.assert_allclose(md.predict(chosen, x), md.predict(model, x), rtol=1e-5, atol=1e-6)
    assert not any(p.constraints for p in chosen.parameters())  # no form holds a mask


def test_int8_only_where_it_is_allowed(clock):
    model, x = network(0), inputs(300)
    clock |= {"int8": 0.1}
    assert kinds(deploy.choose(model, x, batch_sizes=(4,)).at(4)) == ["Dense"] * 3
    chosen = deploy.choose(model, x, batch_sizes=(4,), int8=True)
    assert kinds(chosen.at(4)) == ["QuantizedDense"] * 3
    assert chosen.at(4).layers[0].output_scale[0] > 0  # integers pass from layer to layer
    with md.quantize.integers_only():
        md.predict(chosen, x[:4])


@pytest.mark.parametrize("int8", [False, True])
def test_a_file_keeps_the_choice_and_every_form(int8, tmp_path):
    model, x = network(), inputs(300)
    chosen = deploy.choose(model, x, batch_sizes=(1, 7), int8=int8, **QUICK)
    md.save(chosen, tmp_path / "chosen.npz")
    loaded = md.load(tmp_path / "chosen.npz").eval()
    assert (loaded.picks, loaded.measured, str(loaded.table())) == (chosen.picks, chosen.measured, str(chosen.table()))
    for rows in (1, 3, 7, 90):
        assert np.array_equal(md.predict(loaded, x[:rows]), md.predict(chosen, x[:rows]))
    assert {"processor", "numba"} <= loaded.measured_on.keys()


def test_models_with_several_inputs_and_a_forward_of_their_own(clock):
    class Ranker(nn.Module):
        def __init__(self):
            self.user, self.item = nn.Embedding(9, 4, rng=0), nn.Embedding(7, 4, rng=1)
            self.hidden, self.out = nn.Dense(8, 6, activation="relu", rng=2), nn.Dense(6, 1, rng=3)

        def forward(self, user, item):
            return self.out(self.hidden(md.ops.concatenate([self.user(user), self.item(item)], axis=-1)))

    model = prune.magnitude(Ranker(), 0.5)
    ids = np.arange(20) % 9, np.arange(20) % 7
    clock |= {"sparse": 0.5}
    chosen = deploy.choose(model, ids, batch_sizes=(3,))
    assert type(chosen.at(3).hidden).__name__ == "SparseDense"
    np.testing.assert_allclose(md.predict(chosen, ids), md.predict(model, ids), rtol=1e-5, atol=1e-6)


def test_where_shrinking_is_impossible_it_is_not_one_of_the_ways(clock):
    class Residual(nn.Module):
        def __init__(self):
            self.first, self.second, self.out = (nn.Dense(6, 6, "relu", rng=i) for i in range(3))

        def forward(self, x):
            h = self.first(x)
            return self.out(h + self.second(h))

    model, x = Residual(), inputs()[:, :6]
    prune.neurons(model, {"second": 0.5})
    with pytest.raises(ValueError, match="cannot take them out"):
        prune.shrink(model, example=x[:2])
    clock |= {"sparse": 0.5}
    chosen = deploy.choose(model, x, batch_sizes=(4,))
    assert {row["way"] for row in chosen.measured} == {"dense", "sparse"}
    assert type(chosen.at(4).second).__name__ == "SparseDense"
    np.testing.assert_allclose(md.predict(chosen, x), md.predict(model, x), rtol=1e-5, atol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="choose found no Dense layer"):
        deploy.choose(nn.Embedding(3, 2), np.zeros(3, int))
    for sizes in ((), (0, 1), (1.5,), (True,)):
        with pytest.raises((TypeError, ValueError), match=r"choose got (no batch sizes|batch_sizes = )[^\n]*\n"):
            deploy.choose(network(), inputs(), batch_sizes=sizes)
    for sizes, picks in (([2, 1], [0, 0]), ([1], [1]), ([1, 2], [0]), ([0], [0])):
        with pytest.raises(ValueError, match=r"Make it with deploy\.choose"):
            deploy.Chosen(network(), batch_sizes=sizes, picks=picks)


def test_a_chosen_model_refuses_to_train_and_its_remedy_works(clock):
    model, x = network(), inputs()
    clock |= {"sparse": 2.0}
    chosen = deploy.choose(model, x, batch_sizes=(4,))
    data = md.datasets.Dataset(x, np.zeros(len(x), np.int64))
    before = chosen.state_dict()
    with pytest.raises(RuntimeError, match=r"backward reached Chosen.*\nIts forms only run"):
        md.fit(chosen, data, epochs=1, progress=False)
    assert all(np.array_equal(array, before[path]) for path, array in chosen.state_dict().items())


def test_a_chosen_model_of_a_users_class_is_refused_by_save_not_by_load(clock, tmp_path):
    class Mine(nn.Module):
        def __init__(self):
            self.a = nn.Dense(20, 4, rng=0)

        def forward(self, x):
            return self.a(x)

    chosen = deploy.choose(Mine(), inputs(), batch_sizes=(4,))
    with pytest.raises(ValueError, match=r"forms are of the class Mine.*\n.*\nSave the model that it was made from"):
        md.save(chosen, tmp_path / "mine.npz")
    assert not (tmp_path / "mine.npz").exists()


def test_shrinking_is_checked_on_more_than_two_samples(clock):
    """A gate that the graph does not see, and that is open for the first samples."""

    class Gate(nn.Module):
        def __init__(self):
            self.a, self.b = nn.Dense(4, 6, activation="sigmoid", rng=0), nn.Dense(6, 3, rng=1)

        def forward(self, x):
            return self.b(self.a(x) * (np.asarray(x)[:, :1] > 0).astype(np.float32))

    model, x = Gate(), inputs()[:, :4]
    x[:3, 0] = np.abs(x[:3, 0])
    prune.neurons(model, 0.5, layers=["a"])
    with pytest.raises(ValueError, match="changes with the input"):
        prune.shrink(model, example=x)
    with pytest.raises(ValueError, match="an example of 1 samples"):
        prune.shrink(model, example=x[:1])
    chosen = deploy.choose(model, x, batch_sizes=(4,))
    assert "shrunk" not in {row["way"] for row in chosen.measured}
    np.testing.assert_allclose(md.predict(chosen, x), md.predict(model, x), rtol=1e-5, atol=1e-6)
