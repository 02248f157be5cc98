"""Two-tower ranking: 100 000 users, 50 000 items, 32 numbers each, fresh ids in every step, binary cross-entropy, Adam.

Ours updates the touched rows only (lazy Adam), as PyTorch's SparseAdam does: those two must give the same losses. PyTorch's
dense embedding with Adam goes over both tables in every step. The second case is ours against itself with ten times the rows:
a step should cost what it touches, so at most 1.2 times as much (caches and page tables are larger).
"""

import numpy as np

from minidistill import losses, nn, optim
from perf import peers
from perf.harness import OURS, measure, peer, report, threads

USERS, ITEMS, WIDTH, BATCH = 100_000, 50_000, 32, 1024


class Ranker(nn.Module):
    """Score of a user and an item: the product of their vectors."""

    def __init__(self, users, items, width, rng=0):
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        nn.initialize(self, rng)

    def forward(self, users, items):
        return (self.users(users) * self.items(items)).sum(axis=1)


def batches(users, items, batch=BATCH, count=64):
    """Ids of users and items, and whether they met; drawn once, gone through in turn."""
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, users, batch), rng.integers(0, items, batch), rng.integers(0, 2, batch).astype(np.float32))
        for _ in range(count)
    ]


def our_step(model, data):
    optimizer, turn = optim.Adam(model.parameters(), lr=peers.LR), iter(_forever(data))

    def step():
        users, items, met = next(turn)
        optimizer.zero_grad()
        loss = losses.binary_cross_entropy(model(users, items), met)
        loss.backward()
        optimizer.step()
        return loss

    return step


def torch_step(model, data, sparse):
    torch = peer("torch")
    if not torch:
        return None
    tables = [torch.nn.Embedding.from_pretrained(torch.tensor(table.weight.data), freeze=False, sparse=sparse)
              for table in (model.users, model.items)]  # fmt: skip
    kind = torch.optim.SparseAdam if sparse else torch.optim.Adam
    optimizer = kind([table.weight for table in tables], lr=peers.LR)
    turn = iter(_forever([tuple(map(torch.from_numpy, batch)) for batch in data]))

    def step():
        users, items, met = next(turn)
        optimizer.zero_grad()
        scores = (tables[0](users) * tables[1](items)).sum(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, met)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _forever(data):
    while True:
        yield from data


def sides_of(model, data):
    return {
        OURS: our_step(model, data),
        "torch, dense": torch_step(model, data, sparse=False),
        "torch, SparseAdam": torch_step(model, data, sparse=True),
    }


def check():
    """Equal losses, on tables so small that rows come again: of 150 000 few do, and whatever Adam did would not show."""
    sides = sides_of(Ranker(60, 30, WIDTH), batches(60, 30, batch=8, count=4))
    peers.same_losses({name: side for name, side in sides.items() if name != "torch, dense"}, steps=20)


def main():
    model, data = Ranker(USERS, ITEMS, WIDTH), batches(USERS, ITEMS)
    sides = sides_of(model, data)
    large = Ranker(10 * USERS, 10 * ITEMS, WIDTH)
    with threads(2):
        check()
        rows = [measure("150 000 rows", sides, {"torch, dense": 3, "torch, SparseAdam": 1})]
        more = {OURS: our_step(model, data), "ten times the rows": our_step(large, batches(10 * USERS, 10 * ITEMS))}
        rows.append(measure("1 500 000 against 150 000 rows: at most 1.2", more))
    return report("embedding", "two-tower ranking, batch 1 024", rows)
