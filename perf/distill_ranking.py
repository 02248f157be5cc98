"""Ranking: how much of the gap between a teacher and a student of a quarter of its width does each objective recover?

Generated ratings of known structure: 500 users, 400 items, a score table of rank 8 seen through noise. The teacher (two
towers of width 16) learns from 60 000 observed ratings; the student (width 4) has 15 000 of them. Judged by NDCG@10 of the
full ranking, all 400 items of every user, against each user's true ten best. Every row takes as many updates of the same
optimizer and has three settings to choose from: the users of odd number choose one, with a seed that is not among the
three; the users of even number are what the table shows. Recovered: (student - alone) / (teacher - alone).
"""

from __future__ import annotations

import json

import numpy as np

import minidistill as md
from minidistill import datasets, distill, losses, nn, optim
from minidistill.plot.style import mean_and_spread
from minidistill.training import ndcg_at_k
from perf.harness import RESULTS

USERS, ITEMS, RANK, NOISE = 500, 400, 8, 0.3
OBSERVED, SCARCE, RELEVANT = 60_000, 15_000, 10
TEACHER_WIDTH, STUDENT_WIDTH = 16, 4
SEEDS, TUNING_SEED, UPDATES, RATE = (0, 1, 2), 100, 3_000, 0.01
TOP, SAMPLED = 30, 70  # of a short list, for pairs: the teacher's best, and others. The other objectives see all items.


class TwoTowers(nn.Module):
    """Score of a user and an item: the product of their vectors. Ids broadcast: (N, 1) and (N, L) give (N, L) scores."""

    def __init__(self, width, rng):
        self.users, self.items = nn.Embedding(USERS, width), nn.Embedding(ITEMS, width)
        nn.initialize(self, rng)

    def forward(self, users, items):
        return (self.users(users) * self.items(items)).sum(axis=-1)


class World:
    """What is the same for all students of a seed: the truth, the observations, the teacher and its lists."""

    def __init__(self, seed):
        made = datasets.make_ratings(USERS, ITEMS, RANK, OBSERVED, noise=NOISE, rng=seed)
        truth = made.user_factors @ made.item_factors.T
        self.relevant = truth >= np.sort(truth, axis=1)[:, [-RELEVANT]]
        self.seed, self.ratings, self.few = seed, made.dataset, made.dataset[:SCARCE]
        self.teacher = TwoTowers(TEACHER_WIDTH, seed)
        self.fit(self.teacher, self.ratings)
        self.short_lists = distill.ranking_lists(self.teacher, USERS, ITEMS, TOP, SAMPLED, rng=seed)
        self.all_items = distill.ranking_lists(self.teacher, USERS, ITEMS, 0, ITEMS, rng=seed)

    def ndcg(self, model):
        """(of the users who choose, of those who are shown)."""
        scores = distill.score_all(model, USERS, ITEMS)
        return [ndcg_at_k(scores[part], self.relevant[part]) for part in (slice(1, None, 2), slice(0, None, 2))]

    def fit(self, model, ratings, decay=0.0):
        how = self.settings(model, len(ratings), 256, decay)
        md.fit(model, ratings, loss=losses.mse, **how)
        return model

    def distil(self, *objective, short=False):
        student = TwoTowers(STUDENT_WIDTH, self.seed + 1000)
        how = self.settings(student, USERS, 32)
        lists = self.short_lists if short else self.all_items
        distill.distill(self.teacher, student, lists, objective=list(objective), **how)
        return student

    def labels(self, weight):
        return distill.Labelled(self.few, losses.mse, batch_size=256, weight=weight, rng=self.seed)

    def settings(self, model, samples, batch_size, decay=0.0):
        epochs = round(UPDATES / -(-samples // batch_size))
        optimizer = optim.Adam(model.parameters(), lr=optim.cosine(RATE, UPDATES), weight_decay=decay)
        return {"optimizer": optimizer, "epochs": epochs, "batch_size": batch_size, "progress": False, "rng": self.seed}


ROWS = {
    "student alone, its 15 000 ratings": ("weight decay", (3e-4, 1e-3, 3e-3), lambda w, v: w.fit(
        TwoTowers(STUDENT_WIDTH, w.seed + 1000), w.few, v)),
    "student alone, all 60 000": ("weight decay", (0.0, 3e-4, 1e-3), lambda w, v: w.fit(
        TwoTowers(STUDENT_WIDTH, w.seed + 1000), w.ratings, v)),
    "score matching": ("labels x", (0, 0.1, 1), lambda w, v: w.distil(distill.ScoreMatching(), w.labels(v))),
    "pairwise, short lists": ("T", (0.3, 1, 3), lambda w, v: w.distil(distill.Pairwise(v), short=True)),
    "listwise, short lists": ("T", (0.3, 0.5, 1), lambda w, v: w.distil(distill.Listwise(v), short=True)),
    "listwise": ("T", (0.3, 0.5, 1), lambda w, v: w.distil(distill.Listwise(v))),
    "score matching + listwise": ("listwise x", (0.1, 1, 10), lambda w, v: w.distil(
        distill.ScoreMatching(), distill.Listwise(0.5, weight=v))),
    "ranking distillation + labels": ("weight", (0.3, 1, 3), lambda w, v: w.distil(
        distill.RankingDistillation(10, decay=10.0, weight=v), w.labels(1.0))),
    "ranking distillation, dynamic + labels": ("weight", (0.3, 1, 3), lambda w, v: w.distil(
        distill.RankingDistillation(10, decay=10.0, sharpness=0.1, weight=v), w.labels(1.0))),
}  # fmt: skip
ALONE = "student alone, its 15 000 ratings"


def main():
    choosing = World(TUNING_SEED)
    tuned = {row: {v: choosing.ndcg(train(choosing, v))[0] for v in values} for row, (_, values, train) in ROWS.items()}
    best = {row: max(scores, key=scores.get) for row, scores in tuned.items()}
    shown = {"teacher": []} | {row: [] for row in ROWS}
    for world in map(World, SEEDS):
        shown["teacher"].append(world.ndcg(world.teacher)[1])
        for row, (_, _, train) in ROWS.items():
            shown[row].append(world.ndcg(train(world, best[row]))[1])
    rows = {"teacher": {"ndcg": shown["teacher"]}}
    for row, scores in tuned.items():
        setting = f"{ROWS[row][0]} {best[row]:g}"
        rows[row] = {"ndcg": shown[row], "setting": setting, "tuning": {f"{v:g}": score for v, score in scores.items()}}
    content = {"command": "python -m perf distill_ranking", "seeds": len(SEEDS), "updates": UPDATES, "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "distill_ranking.json").write_text(json.dumps(content, indent=1) + "\n")
    return as_text(rows)


def as_text(rows):
    alone, teacher = np.array(rows[ALONE]["ndcg"]), np.array(rows["teacher"]["ndcg"])
    lines = [f"{'width 4 from width 16, three seeds':<40} {'NDCG@10, all items':>18}  {'gap recovered':>16}  setting"]
    for name, row in rows.items():
        ndcg = np.array(row["ndcg"])
        share = 100 * (ndcg - alone) / (teacher - alone)
        recovered = "" if name in (ALONE, "teacher") else f"{mean_and_spread(share, '.0f')} %"
        lines.append(f"{name:<40} {mean_and_spread(ndcg, '.3f'):>18}  {recovered:>16}  {row.get('setting', '')}")
    return "\n".join(
        [*lines, "mean ± standard deviation over the seeds; target: the best of the distilled recovers 25 %"]
    )
