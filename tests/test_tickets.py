"""Lottery tickets: exact counts, weights that are those of the beginning, controls that differ in the right thing only."""

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, nn, optim, prune
from minidistill.prune.masks import kept_of

ROUNDS = 4


@pytest.fixture(scope="module")
def data():
    return datasets.load_digits()[0][:320]


def network(seed=0, dtype=np.float32):
    model = nn.Sequential(nn.Dense(64, 20, activation="relu"), nn.Dropout(0.1), nn.Dense(20, 10), rng=seed)
    return model if dtype == np.float32 else model.astype(dtype)


def trainer(data, epochs=2, watch=None):
    def train(model, callbacks):
        optimizer = optim.Adam(model.parameters(), lr=3e-3)
        callbacks = [*callbacks, *([watch] if watch else [])]
        return md.fit(
            model, data, optimizer=optimizer, epochs=epochs, batch_size=32, callbacks=callbacks, progress=False, rng=0
        )

    return train


class Note:
    """Keeps the weights of one step of the first training that it sees."""

    def __init__(self, step):
        self.step, self.state = step, None

    def on_step_end(self, run):
        if run.step == self.step and self.state is None:
            self.state = run.model.state_dict()


def weights(model):
    return {path: model.get(path).weight for path in ("0", "2")}


def arrays(model):
    found = [p.data for p in model.parameters()]
    return found + [c.kept for p in model.parameters() for c in p.constraints]


@pytest.fixture(scope="module")
def tickets(data):
    return prune.lottery_tickets(network(), trainer(data), ROUNDS)


def test_the_ladder_is_exact(tickets):
    counts = {"0": [1280, 1024, 819, 655, 524], "2": [200, 180, 162, 146, 131]}
    assert [ticket.round for ticket in tickets] == list(range(ROUNDS + 1))
    for i, ticket in enumerate(tickets):
        assert ticket.kept == {path: counts[path][i] for path in counts}
        assert {path: int(mask.sum()) for path, mask in ticket.masks.items()} == ticket.kept
        assert ticket.remaining == (counts["0"][i] + counts["2"][i]) / 1480
    assert repr(tickets[4]) == "Ticket(round=4, remaining=44.26%)"


def test_each_round_keeps_the_largest_weights_of_what_was_trained_before(tickets):
    for before, after in zip(tickets, tickets[1:]):
        for path, weight in weights(before.trained).items():
            kept, was = after.masks[path], before.masks[path]
            size = np.abs(weight.data)
            assert not (kept & ~was).any()
            assert size[kept].min() >= size[was & ~kept].max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_ticket_starts_from_the_weights_of_the_beginning_bit_for_bit(data, dtype):
    initial = network(dtype=dtype)
    data = datasets.Dataset(data.x.astype(dtype), data.y, dtype=None)
    for ticket in prune.lottery_tickets(initial, trainer(data, epochs=1), 2):
        model = ticket.model()
        for path, weight in weights(model).items():
            first = weights(initial)[path].data
            assert weight.dtype == dtype and np.array_equal(weight.data, np.where(ticket.masks[path], first, 0))
            assert np.array_equal(kept_of(weight), ticket.masks[path])
        for layer, before in ((model.layers[0], initial.layers[0]), (model.layers[2], initial.layers[2])):
            assert np.array_equal(layer.bias.data, before.bias.data)


def test_the_dense_ticket_has_no_mask_and_the_trained_ones_keep_theirs(tickets):
    assert all(weight.constraints == [] for weight in weights(tickets[0].model()).values())
    for ticket in tickets:
        assert len(ticket.result) == 2 and ticket.result["loss"][1] < ticket.result["loss"][0]
        for path, weight in weights(ticket.trained).items():
            assert np.array_equal(weight.data != 0, ticket.masks[path])


def test_training_a_ticket_again_gives_what_its_round_gave(tickets, data):
    again = tickets[2].model()
    trainer(data)(again, [])
    assert all(np.array_equal(a.data, b.data) for a, b in zip(again.parameters(), tickets[2].trained.parameters()))


@pytest.mark.parametrize("step", [1, 7, 20])
def test_rewinding_to_a_step_takes_its_weights(data, step):
    note, initial = Note(step), network()
    found = prune.lottery_tickets(initial, trainer(data, watch=note), 2, rewind=step)
    for ticket in found[1:]:
        model = ticket.model()
        for path, weight in weights(model).items():
            assert np.array_equal(weight.data, np.where(ticket.masks[path], note.state[f"{path}.weight"], 0))
            assert not np.array_equal(weight.data, np.where(ticket.masks[path], weights(initial)[path].data, 0))
        assert np.array_equal(model.layers[0].bias.data, note.state["0.bias"])
    dense = found[0].model()  # the first training began at the beginning
    assert all(np.array_equal(a.data, b.data) for a, b in zip(dense.parameters(), initial.parameters()))


# ---- the controls ----------------------------------------------------------------------------------------------------
def test_reinitialized_has_the_masks_and_other_weights(tickets):
    ticket = tickets[3]
    control, same, other = ticket.reinitialized(5), ticket.reinitialized(5), ticket.reinitialized(6)
    fresh = nn.initialize(network(), 5)
    for path, weight in weights(control).items():
        kept = ticket.masks[path]
        assert np.array_equal(kept_of(weight), kept)
        assert np.array_equal(weight.data, np.where(kept, weights(fresh)[path].data, 0))
        assert np.array_equal(weight.data, weights(same)[path].data)
        assert (weight.data[kept] != weights(other)[path].data[kept]).all()
        assert (weight.data[kept] != weights(ticket.model())[path].data[kept]).all()


def test_random_has_the_weights_and_other_places_as_many_in_each_layer(tickets):
    ticket, initial = tickets[3], network()
    control, same, other = ticket.random(5), ticket.random(5), ticket.random(6)
    for path, weight in weights(control).items():
        kept = kept_of(weight)
        assert kept.sum() == ticket.kept[path] and (kept != ticket.masks[path]).any()
        assert np.array_equal(weight.data, np.where(kept, weights(initial)[path].data, 0))
        assert np.array_equal(kept, kept_of(weights(same)[path]))
        assert (kept != kept_of(weights(other)[path])).any()


def test_nothing_aliases(data):
    initial = network()
    before = [array.copy() for array in arrays(initial)]
    found = prune.lottery_tickets(initial, trainer(data, epochs=1), 2, rewind=3)
    assert all(np.array_equal(a, b) for a, b in zip(arrays(initial), before))
    ticket = found[2]
    made = [
        ticket.model(),
        ticket.model(),
        ticket.reinitialized(0),
        ticket.random(0),
        *(t.trained for t in found),
        initial,
    ]
    owned = [arrays(model) for model in made] + [list(t.masks.values()) for t in found]
    for i, mine in enumerate(owned):
        for theirs in owned[i + 1 :]:
            assert not any(np.shares_memory(a, b) for a in mine for b in theirs)
    first = [array.copy() for array in arrays(ticket.model())]
    trainer(data)(made[0], [])  # training one leaves the others
    assert all(np.array_equal(a, b) for a, b in zip(arrays(ticket.model()), first))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(made[1]), first))


# ---- settings --------------------------------------------------------------------------------------------------------
def test_rates_by_layer_and_chosen_layers(data):
    by_path = prune.lottery_tickets(network(), trainer(data, epochs=1), 2, rate={"2": 0.5})
    assert [ticket.kept for ticket in by_path] == [{"2": 200}, {"2": 100}, {"2": 50}]
    assert all(ticket.trained.layers[0].weight.constraints == [] for ticket in by_path)
    first = prune.lottery_tickets(network(), trainer(data, epochs=1), 1, layers="0", output_rate=0.25)
    assert first[1].kept == {"0": 1024}  # no output layer
    turned = prune.lottery_tickets(network(), trainer(data, epochs=1), 1, layers=["2", "0"], output_rate=0.25)
    assert turned[1].kept == {"2": 150, "0": 1024}  # whatever the order


def test_a_model_that_is_sparse_already_goes_on_from_there(data):
    model = prune.random(network(), {"0": 0.5}, rng=0)
    before = kept_of(model.layers[0].weight)
    found = prune.lottery_tickets(model, trainer(data, epochs=1), 1)
    assert found[0].kept == {"0": 640, "2": 200} and found[1].kept == {"0": 512, "2": 180}
    for control in (found[1].model(), found[1].random(0)):
        assert not (kept_of(control.layers[0].weight) & ~before).any()
    assert np.array_equal(kept_of(found[0].model().layers[0].weight), before)


def test_another_criterion(data):
    def largest_first(model, sparsity):
        chosen = {path: model.get(path) for path in sparsity}
        prune.masks.mask_lowest(chosen, {path: -np.abs(layer.weight.data) for path, layer in chosen.items()}, sparsity)

    found = prune.lottery_tickets(network(), trainer(data, epochs=1), 1, criterion=largest_first)
    size = np.abs(found[0].trained.layers[0].weight.data)
    kept = found[1].masks["0"]
    assert kept.sum() == 1024 and size[kept].max() <= size[~kept].min()


class HeadFirst(nn.Module):
    """Defines its last layer first."""

    def __init__(self):
        self.head, self.body = nn.Dense(20, 10, rng=0), nn.Dense(64, 20, rng=1)

    def forward(self, x):
        return self.head(np.maximum(self.body(x), 0))


def test_the_output_layer_is_the_one_that_makes_the_answers_and_not_the_one_defined_last(data):
    found = prune.lottery_tickets(HeadFirst(), trainer(data, epochs=1), 1, example=data.x[:2])
    assert found[1].kept == {"head": round(0.9 * 200), "body": round(0.8 * 1280)}
    with pytest.raises(ValueError, match=r"Pass two samples: example="):  # the order of definition says nothing
        prune.lottery_tickets(HeadFirst(), never, 1)
    for rates in ({"rate": {"head": 0.5}}, {"rate": 0.1}):  # no question is asked where the answer does not matter
        prune.lottery_tickets(HeadFirst(), trainer(data, epochs=1), 1, **rates)


class Called(Exception):
    pass


def never(model, callbacks):
    raise Called


@pytest.mark.parametrize(("options", "text"), [
    ({"rounds": 0}, "rounds = 0"),
    ({"rounds": 2, "rewind": -1}, "rewind = -1"),
    ({"rounds": 2, "rate": 1.0}, r"rate = 1.0"),
    ({"rounds": 2, "output_rate": 0}, r"rate = 0\."),
    ({"rounds": 2, "rate": {"0": -0.1}}, r"rate = -0.1"),
    ({"rounds": 9, "rate": {"0": 0.6, "2": 0.1}}, r"no weight in '0' after 9 rounds"),
    ({"rounds": 2, "layers": ["1"]}, "the layer '1'"),
])  # fmt: skip
def test_bad_settings_are_told_before_anything_is_trained(options, text):
    with pytest.raises(ValueError, match=text) as caught:
        prune.lottery_tickets(network(), never, **options)
    assert len(str(caught.value).splitlines()) == 3


def test_a_train_function_that_does_not_do_its_work_is_told(data):
    with pytest.raises(TypeError, match=r"train = a History"):
        prune.lottery_tickets(network(), md.fit(network(), data, epochs=1, progress=False), 2)
    with pytest.raises(ValueError, match="the model is as before"):  # trains a copy
        prune.lottery_tickets(network(), lambda model, callbacks: trainer(data)(model.copy(), callbacks), 2)
    with pytest.raises(ValueError, match=r"rewind to step 21, and saw 20 steps"):
        prune.lottery_tickets(network(), trainer(data), 2, rewind=21)
    with pytest.raises(ValueError, match=r"rewind to step 5, and saw 0 steps"):
        prune.lottery_tickets(network(), lambda model, callbacks: trainer(data)(model, []), 2, rewind=5)


# ---- sensitivity -----------------------------------------------------------------------------------------------------
def test_the_scan_measures_one_pruned_layer_at_a_time(tickets, data):
    model = tickets[0].trained
    before = arrays(model.copy())
    scan = prune.sensitivity(model, data, sparsities=(0, 0.5, 0.9))
    assert scan.metric == "accuracy" and scan.sparsities == [0, 0.5, 0.9] and scan.weights == {"0": 1280, "2": 200}
    assert scan.baseline == md.evaluate(model, data)["accuracy"]
    for path in ("0", "2"):
        for sparsity, value in zip(scan.sparsities, scan.values[path]):
            alone = prune.magnitude(model.copy(), {path: sparsity}, allow_empty=[path])
            assert value == md.evaluate(alone, data)["accuracy"]
        assert scan.values[path][0] == scan.baseline > scan.values[path][2]
    assert all(np.array_equal(a, b) for a, b in zip(arrays(model), before)) and len(arrays(model)) == len(before)
    lines = repr(scan).splitlines()
    assert lines[0] == f"accuracy with one layer pruned to a sparsity; {scan.baseline:.4f} as it is"
    assert lines[1].split() == ["layer", "weights", "0", "0.5", "0.9"]
    assert lines[2].split() == ["0", "1,280", *(f"{value:.4f}" for value in scan.values["0"])]


def test_the_scan_of_a_sparse_layer_of_another_metric_and_criterion(tickets, data):
    ticket = tickets[2]
    scan = prune.sensitivity(ticket.trained, data, (0.1, 0.8), metric="loss", layers=["0"])
    assert list(scan.values) == ["0"] and np.isnan(scan.values["0"][0]) and scan.values["0"][1] > scan.baseline
    assert scan.metric == "loss" and scan.baseline == md.evaluate(ticket.trained, data)["loss"]
    assert repr(scan).splitlines()[2].split()[2] == "-"

    def mean_confidence(logits, y):
        return float(logits.max(axis=1).mean())

    by_lot = prune.sensitivity(
        tickets[0].trained, data, (0.5,), lambda m, s: prune.random(m, s, rng=0), mean_confidence, ["2"]
    )
    assert by_lot.metric == "mean_confidence"
    alone = prune.random(tickets[0].trained.copy(), {"2": 0.5}, rng=0)
    assert by_lot.values["2"] == [mean_confidence(md.predict(alone, data), data.y)]
    regression = datasets.Dataset(data.x, data.x[:, :10])
    assert prune.sensitivity(tickets[0].trained, regression, (0.5,)).metric == "loss"


def test_the_scan_refuses_what_it_cannot_do(tickets, data):
    with pytest.raises(ValueError, match="sparsity = 95"):
        prune.sensitivity(tickets[0].trained, data, (0, 95))
    with pytest.raises(ValueError, match="the layer '7'"):
        prune.sensitivity(tickets[0].trained, data, layers="7")
