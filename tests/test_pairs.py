"""Models that score a pair of ids, as users write them: they rank, make lists, and learn from lists."""

from __future__ import annotations

import numpy as np
import pytest

import minidistill as md
from minidistill import distill, nn

QUICK = {"epochs": 1, "progress": False, "rng": 0}


def told(call, *parts):
    """The error is a ValueError of three lines that holds these parts."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert text.count("\n") == 2 and all(part in text for part in parts), text


def pairs(*end):
    tables = nn.Concatenate(nn.Embedding(5, 3), nn.Embedding(7, 3))
    return nn.Sequential(tables, nn.Dense(6, 4, activation="relu"), nn.Dense(4, 1), *end, rng=0)


class Joined(nn.Module):
    """As a user writes it: it joins its inputs, and knows nothing of broadcasting."""

    def __init__(self):
        self.users, self.items, self.head = nn.Embedding(5, 3, rng=0), nn.Embedding(7, 3, rng=1), nn.Dense(6, 1, rng=2)

    def forward(self, users, items):
        return self.head(np.concatenate([self.users(users), self.items(items)], axis=-1))


@pytest.mark.parametrize("make", [pairs, lambda: pairs(nn.Flatten()), Joined])
def test_every_model_of_pairs_can_rank(make):
    model, (users, items) = make(), np.divmod(np.arange(35), 7)
    scores = distill.score_all(model, 5, 7, batch_size=2)
    assert scores.shape == (5, 7)
    np.testing.assert_allclose(scores.ravel(), md.predict(model, (users, items)).ravel(), rtol=1e-6, atol=1e-7)
    users, lists = distill.ranking_lists(model, 5, 7, top_k=2, sampled=2, rng=0).x
    best = np.argsort(-scores, axis=1)[:, :2]
    np.testing.assert_array_equal(lists[:, :2], best)
    np.testing.assert_array_equal(users, np.arange(5)[:, None])


def test_lists_of_pairs_are_learnt():
    lists = distill.ranking_lists(pairs(), 5, 7, top_k=2, sampled=2, rng=0)
    student = nn.initialize(pairs(nn.Flatten()), rng=1)
    told(
        lambda: distill.distill(pairs(), student, lists, objective=distill.Listwise(), **QUICK),
        "nn.Sequential(teacher, nn.Flatten())",
    )
    told(lambda: distill.distill(pairs(), nn.initialize(pairs(), rng=1), lists, objective=distill.Listwise(), **QUICK),
         "(N, L)", "End the model in nn.Flatten()")  # fmt: skip
    teacher = nn.Sequential(pairs(), nn.Flatten())
    history = distill.distill(teacher, student, lists, objective=distill.Listwise(), epochs=20, progress=False, rng=0)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    wide = nn.Sequential(nn.Concatenate(nn.Embedding(5, 3), nn.Embedding(7, 3)), nn.Dense(6, 4), rng=0)
    told(lambda: distill.score_all(wide, 5, 7), "returns shape (35, 4) for 35 pairs", "nn.Dense(K, 1)")
    told(lambda: pairs()(np.arange(5), np.arange(4)), "parts of the shapes (5, ...), (4, ...)", "of one length")


def test_concatenate_broadcasts_and_its_gradient_adds_up():
    model, users, items = pairs(), np.arange(5)[:, None], np.arange(7)[None, :]
    model(users, items).sum().backward()
    broadcast = [np.asarray(p.grad) for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    model(np.repeat(users.ravel(), 7), np.tile(items.ravel(), 5)).sum().backward()
    for mine, p in zip(broadcast, model.parameters()):
        np.testing.assert_allclose(mine, np.asarray(p.grad), rtol=1e-5, atol=1e-6)
