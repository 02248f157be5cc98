"""Objectives for ranking: what a teacher says of a list of items. Read ``scores.py`` before this file.

A list is a row of scores. A two-tower model gives them by broadcasting: with users of shape (N, 1) and items of shape (N,
L) its output has shape (N, L), L scores of one user's list. `ranking_lists` makes such lists, a user a sample; a small
catalogue can be one list. Shapes: N users, L items of a list. Given up for simplicity: all lists of a batch have one
length.
"""

from __future__ import annotations

import numpy as np

from .. import checks, ops
from ..datasets import Dataset
from ..nn import mode
from ..nn.module import check_module
from ..tensor import no_grad
from ..training.returned import one_output
from .kd import trusted_kd_loss
from .logits import binary_kl
from .objective import Objective, check_number
from .scores import Tempered, check_scores


def pairwise_kd(student_scores, teacher_scores, temperature=1.0):
    """T² * KL between coins, averaged over all pairs of a list: how likely does item i stand before item j?

    The chance is sigmoid((score_i - score_j) / T), the model of Bradley & Terry (1952) that RankNet learns from labels
    (Burges et al. 2005, "Learning to Rank using Gradient Descent", section 3); here the teacher's chances are the targets.

    Parameters
    ----------
    student_scores : Tensor or array_like, shape (N, L)
    teacher_scores : array_like, shape (N, L)
    temperature : float
        T, positive.

    Returns
    -------
    Tensor, shape ()
    """
    check_number("pairwise_kd", "temperature", temperature)
    student, teacher = check_lists("pairwise_kd", student_scores, teacher_scores)
    first, second = np.triu_indices(student.shape[1], 1)
    gaps = (student[:, first] - student[:, second]) / temperature  # (N, L * (L - 1) / 2)
    return binary_kl(gaps, (teacher[:, first] - teacher[:, second]) / temperature) * temperature**2


class Pairwise(Tempered):
    """weight * `pairwise_kd`."""

    function = pairwise_kd


def listwise_kd(student_scores, teacher_scores, temperature=1.0):
    """T² * KL(teacher ‖ student) between the softmaxes over each list: the chance of each item to be the first.

    The top-one probabilities of ListNet (Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach",
    section 4.2) with the teacher's as targets. The arithmetic is that of soft targets, the classes being the items.

    Parameters
    ----------
    student_scores : Tensor or array_like, shape (N, L)
    teacher_scores : array_like, shape (N, L)
    temperature : float
        T, positive.

    Returns
    -------
    Tensor, shape ()
        Summed over each list, averaged over the lists.
    """
    check_number("listwise_kd", "temperature", temperature)
    student, teacher = check_lists("listwise_kd", student_scores, teacher_scores)
    return trusted_kd_loss(student, teacher, None, temperature, 1.0)


class Listwise(Tempered):
    """weight * `listwise_kd`."""

    function = listwise_kd


def ranking_distillation(student_scores, teacher_scores, top_k=10, decay=10.0, sharpness=0.0):
    """The teacher's top K as positives, the first ones weighing most: sum over r of w_r * -log sigmoid(student's score).

    Tang & Wang 2018, "Ranking Distillation: Learning Compact Ranking Models With High Performance for Recommender System",
    equations 6 to 10. Every term pulls up: it stands beside an objective over labels that also pulls down (`HardLabels`,
    `Labelled`).

    Parameters
    ----------
    student_scores : Tensor or array_like, shape (N, L)
        Logits of relevance.
    teacher_scores : array_like, shape (N, L)
    top_k : int
        K, the places of the teacher's order that are learnt; at most L.
    decay : float
        lambda of the position weights exp(-r / lambda), r the teacher's place from 1.
    sharpness : float
        mu of the dynamic weights tanh(max(mu * (student's place - r), 0)), which multiply those: items that the student
        already ranks as high count nothing. 0 leaves them out. Here the student's places are counted in its list, not
        estimated.

    Returns
    -------
    Tensor, shape ()
        Weights of a list sum to 1 (unless all are 0); averaged over the lists.
    """
    student, teacher = check_lists("ranking_distillation", student_scores, teacher_scores)
    n, length = student.shape
    checks.whole("ranking_distillation", "top_k", top_k, f"[1, {length}]", "how many places of a list are learnt", 1)
    check_number("ranking_distillation", "decay", decay)
    check_number("ranking_distillation", "sharpness", sharpness)
    top = np.argsort(-teacher, axis=1, kind="stable")[:, :top_k]  # (N, K)
    place = np.arange(1, top_k + 1)
    weights = np.broadcast_to(np.exp(-place / decay), top.shape)
    if sharpness:
        order = np.argsort(np.argsort(-student.numpy(), axis=1, kind="stable"), axis=1) + 1
        late = np.take_along_axis(order, top, axis=1) - place
        weights = weights * np.tanh(np.maximum(sharpness * late, 0))
    sums = weights.sum(axis=1, keepdims=True)
    weights = (weights / np.where(sums > 0, sums, 1) / n).astype(student.dtype)
    pulled = student[np.arange(n)[:, None], top]
    return ops.sum(ops.softplus(-pulled) * weights)


class RankingDistillation(Objective):
    """weight * `ranking_distillation`."""

    answers, function = "scores", ranking_distillation

    def __init__(self, top_k=10, decay=10.0, sharpness=0.0, weight=1.0):
        super().__init__(weight, top_k=top_k, decay=decay, sharpness=sharpness)


def score_all(model, users, items, batch_size=256):
    """The scores of every user for every item: what a full ranking is made from.

    Parameters
    ----------
    model : Module
        Called in eval mode, with users (n, 1) and items (1, I) if it broadcasts these to scores (n, I) or (n, I, 1), as two
        towers do, each of them once; else with the ids of all n * I pairs, (n * I,) each.
    users, items : int
        How many there are; ids count from 0.
    batch_size : int
        Users at a time.

    Returns
    -------
    ndarray, shape (users, items)

    Raises
    ------
    ValueError
        If the model returns something else than one score for each pair.
    """
    check_module("score_all", model)
    for name, value in (("users", users), ("items", items), ("batch_size", batch_size)):
        checks.whole("score_all", name, value, "[1, inf)", "a count", 100)
    rows = [np.arange(i, min(i + batch_size, users)) for i in range(0, users, batch_size)]
    with mode(training=False), no_grad():
        return np.concatenate([_scores(model, part, np.arange(items)) for part in rows])


def _scores(model, users, items):
    """Scores of all pairs, (n, I), of a model that broadcasts its inputs or takes pairs."""
    shape = len(users), len(items)
    try:
        scores = one_output("score_all", model, model(users[:, None], items[None, :])).numpy()
    except ValueError:  # it joins its inputs, which broadcasting would have to be told
        scores = np.empty(0)
    if scores.shape not in (shape, (*shape, 1)):
        pairs = np.repeat(users, len(items)), np.tile(items, len(users))
        scores = one_output("score_all", model, model(*pairs)).numpy()
        if scores.shape not in ((len(pairs[0]),), (len(pairs[0]), 1)):
            raise ValueError(
                f"score_all found that {type(model).__name__} returns shape {scores.shape} for {len(pairs[0])} pairs of a "
                "user and an item.\nA model that ranks returns one score for each pair, (n,) or (n, 1).\n"
                "End it in nn.Dense(K, 1), or in the products of the two vectors, np.sum(u * v, axis=-1)."
            )
    return scores.reshape(shape)


def ranking_lists(teacher, users, items, top_k=10, sampled=40, draws=1, rng=None):
    """An unlabelled transfer set: for each user the teacher's top items, and others drawn at random from the rest.

    Parameters
    ----------
    teacher : Module
        See `score_all`.
    users, items : int
        How many there are.
    top_k, sampled : int
        The list of each user has this many of the teacher's best, and this many others, each at most once.
    draws : int
        Lists of each user; each draws its own items from the rest.
    rng : int, np.random.Generator or None

    Returns
    -------
    Dataset
        ``x = (users (M, 1), items (M, top_k + sampled))`` of int64 with M = draws * users, no targets. The teacher's items
        come first, best first.
    """
    checks.whole("ranking_lists", "items", items, "[2, inf)", "how many there are", 100)
    checks.whole("ranking_lists", "top_k", top_k, f"[0, {items}]", "how many of the best items a list has", 1)
    least, rest = max(0, 2 - top_k), items - top_k
    checks.whole("ranking_lists", "sampled", sampled, f"[{least}, {rest}]", "how many of the other items it has", rest)
    checks.whole("ranking_lists", "draws", draws, "[1, inf)", "how many lists each user has", 1)
    order = np.argsort(-score_all(teacher, users, items), axis=1, kind="stable")
    order = np.concatenate([order] * draws)
    rest = checks.generator("ranking_lists", rng).permuted(order[:, top_k:], axis=1)
    chosen = np.concatenate([order[:, :top_k], rest[:, :sampled]], axis=1)
    return Dataset((np.arange(draws * users)[:, None] % users, chosen), None)


def check_lists(who, student, teacher):
    """As `check_scores`, for matrices of at least two columns."""
    student, teacher = check_scores(who, student, teacher)
    if student.ndim != 2 or student.shape[1] < 2:
        cure = "Make lists with distill.ranking_lists(teacher, users, items); single pairs take distill.ScoreMatching."
        if student.ndim == 3 and student.shape[2] == 1:
            cure = "End the model in nn.Flatten(), which makes (N, L, 1) to (N, L)."
        raise ValueError(
            f"{who} got scores of shape {student.shape}.\nThey are lists: (N, L), at least 2 items for each user.\n{cure}"
        )
    return student, teacher
