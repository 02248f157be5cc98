"""Every objective against its paper's formula written in NumPy, its gradient, and the laws that make it what it is."""

import numpy as np
import pytest

import minidistill as md
from minidistill import distill, losses
from minidistill.testing import check_gradients

N, C = 6, 5
RNG = np.random.default_rng(0)
Z, T = RNG.normal(0, 2, (2, N, C))  # the student's logits, the teacher's; float64
Y = RNG.integers(0, C, N)
HIDDEN, GUIDE = RNG.normal(size=(N, 4)), RNG.normal(size=(N, 3))
ROTATION = np.linalg.qr(RNG.normal(size=(4, 4)))[0]


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def coin_kl(t, z):
    p, q = sigmoid(t), sigmoid(z)
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def correlation(p, q):
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q)]).mean()


def dist(q, p):
    """Huang et al. 2022, equations 8 to 10, with weights 1.5 and 0.5 at T = 2."""
    return 4 * (1.5 * (1 - correlation(q, p)) + 0.5 * (1 - correlation(q.T, p.T)))


def dkd(z, t, y, temperature, a, b):
    """Zhao et al. 2022, equation 8, a sample at a time."""
    total = 0.0
    for i in range(len(z)):
        p, q = softmax(t[i] / temperature), softmax(z[i] / temperature)
        others = np.arange(len(p)) != y[i]
        pt, qt = p[y[i]], q[y[i]]
        target = pt * np.log(pt / qt) + (1 - pt) * np.log((1 - pt) / (1 - qt))
        p_hat, q_hat = p[others] / (1 - pt), q[others] / (1 - qt)
        total += a * target + b * (p_hat * np.log(p_hat / q_hat)).sum()
    return temperature**2 * total / len(z)


def similarity(a):
    g = a @ a.T
    return g / np.linalg.norm(g, axis=1, keepdims=True)


def huber(a, b):
    e = np.abs(a - b)
    return np.where(e <= 1, e**2 / 2, e - 0.5)


def distances(a):
    d = np.array([np.linalg.norm(a[i] - a[j]) for i in range(len(a)) for j in range(i + 1, len(a))])
    return d / d.mean()


def cosine(a, i, j, k):
    """At i between j and k. A way of no length has no angle: 0."""
    u, v = a[j] - a[i], a[k] - a[i]
    length = np.linalg.norm(u) * np.linalg.norm(v)
    return u @ v / length if length else 0.0


def angles(a):
    n = range(len(a))
    return np.array([cosine(a, i, j, k) for i in n for j in n for k in n])


def ranking(z, t, k, decay, sharpness):
    total = 0.0
    for s, teacher in zip(z, t):
        top = np.argsort(-teacher)[:k]
        weights = np.exp(-np.arange(1, k + 1) / decay)
        if sharpness:
            place = np.array([1 + (s > s[item]).sum() for item in top])
            weights = weights * np.tanh(np.maximum(sharpness * (place - np.arange(1, k + 1)), 0))
        total += (weights / weights.sum() * -np.log(sigmoid(s[top]))).sum()
    return total / len(z)


# (name, our function of the student's side, the same written out)
CASES = [
    ("logit matching", lambda z: distill.logit_matching(z, T), lambda z: ((z - T) ** 2).mean()),
    ("decoupled", lambda z: distill.decoupled_kd(z, T, Y, 3.0, 0.7, 2.0), lambda z: dkd(z, T, Y, 3.0, 0.7, 2.0)),
    ("DIST", lambda z: distill.dist(z, T, 2.0, 1.5, 0.5), lambda z: dist(softmax(z / 2), softmax(T / 2))),
    ("binary", lambda z: distill.binary_kd(z, T, 3.0), lambda z: 9 * coin_kl(T / 3, z / 3).mean()),
    ("confidence penalty", distill.confidence_penalty, lambda z: (softmax(z) * np.log(softmax(z))).sum(axis=1).mean()),
    ("virtual teacher", lambda z: distill.virtual_teacher(z, Y, 0.9, 5.0), lambda z: distill.kd_loss(
        md.Tensor(z), np.log(np.where(np.eye(C)[Y] > 0, 0.9, 0.1 / (C - 1))), temperature=5.0, alpha=1.0).item()),
    ("pairwise", lambda z: distill.pairwise_kd(z, T, 2.0), lambda z: 4 * np.mean(
        [coin_kl((t[i] - t[j]) / 2, (s[i] - s[j]) / 2) for s, t in zip(z, T) for i in range(C) for j in range(i)])),
    ("listwise", lambda z: distill.listwise_kd(z, T, 2.0), lambda z: 4 * np.mean(
        (softmax(T / 2) * np.log(softmax(T / 2) / softmax(z / 2))).sum(axis=1))),
    ("ranking", lambda z: distill.ranking_distillation(z, T, 3, 2.0), lambda z: ranking(z, T, 3, 2.0, 0)),
    ("ranking, dynamic", lambda z: distill.ranking_distillation(z, T, 4, 2.0, 0.5), lambda z: ranking(z, T, 4, 2.0, 0.5)),
]  # fmt: skip
HIDDEN_CASES = [
    ("hint", lambda h: distill.hint(h, HIDDEN[::-1]), lambda h: ((h - HIDDEN[::-1]) ** 2).mean()),
    ("activation boundary", lambda h: distill.activation_boundary(h, HIDDEN[::-1], 0.8), lambda h: np.mean(
        np.where(HIDDEN[::-1] > 0, np.maximum(0.8 - h, 0), np.maximum(0.8 + h, 0)) ** 2)),
    ("similarity", lambda h: distill.similarity_preserving(h, GUIDE), lambda h: np.mean(
        (similarity(h) - similarity(GUIDE)) ** 2)),
    ("distance", lambda h: distill.relational_distance(h, GUIDE), lambda h: huber(distances(h), distances(GUIDE)).mean()),
    ("angle", lambda h: distill.relational_angle(h, GUIDE), lambda h: huber(angles(h), angles(GUIDE)).mean()),
]  # fmt: skip
ALL = [(*case, Z) for case in CASES] + [(*case, HIDDEN) for case in HIDDEN_CASES]


@pytest.mark.parametrize(("name", "ours", "written_out", "point"), ALL, ids=[case[0] for case in ALL])
def test_the_value_is_the_papers_formula_and_the_gradient_its_derivative(name, ours, written_out, point):
    assert ours(md.Tensor(point)).item() == pytest.approx(written_out(point), rel=1e-9)
    check_gradients(ours, point)


@pytest.mark.parametrize(("name", "ours", "written_out", "point"), ALL, ids=[case[0] for case in ALL])
def test_float32_stays_float32_and_inputs_are_not_written_to(name, ours, written_out, point):
    z = md.Tensor(point.astype(np.float32), requires_grad=True)
    before = z.numpy().copy()
    loss = ours(z)
    loss.backward()
    assert loss.dtype == np.float32 and z.grad.dtype == np.float32
    assert loss.item() == pytest.approx(written_out(point), rel=1e-4)
    assert np.array_equal(z.numpy(), before)


@pytest.mark.parametrize("function", [
    distill.logit_matching, lambda z, t: distill.decoupled_kd(z, t, Y), distill.dist, distill.binary_kd, distill.pairwise_kd,
    distill.listwise_kd, distill.hint, distill.similarity_preserving, distill.relational_distance, distill.relational_angle,
])  # fmt: skip
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(function):
    z = md.Tensor(T.copy(), requires_grad=True)
    loss = function(z, T)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(z.grad, 0, atol=1e-9)


# ---- what each of them is blind to ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("function", "change"), [
    (distill.similarity_preserving, lambda h: 3 * h @ ROTATION),
    (distill.relational_distance, lambda h: 3 * h @ ROTATION + 7),
    (distill.relational_angle, lambda h: 3 * h @ ROTATION + 7),
])  # fmt: skip
def test_relations_do_not_change_when_the_whole_space_is_turned_scaled_or_moved(function, change):
    before, after = (function(md.Tensor(h), HIDDEN[::-1]).item() for h in (HIDDEN, change(HIDDEN)))
    assert after == pytest.approx(before, rel=1e-9) and before > 1e-3


@pytest.mark.parametrize("function", [distill.relational_distance, distill.relational_angle])
def test_relations_far_from_the_origin_keep_their_digits_in_float32(function):
    near, far = (function(md.Tensor((HIDDEN + shift).astype(np.float32)), GUIDE).item() for shift in (0, 1000))
    assert far == pytest.approx(near, rel=0.01)


def test_angles_are_those_of_the_first_samples():
    full, few = (distill.Relational(distance=0.0, angle=1.0, angle_samples=n)(exchange()).item() for n in (32, 4))
    assert few == pytest.approx(distill.relational_angle(Z[:4], T[:4]).item(), rel=1e-9) and few != pytest.approx(full)


@pytest.mark.parametrize("objective", [distill.SimilarityPreserving(), distill.Relational(), distill.DIST()])
def test_a_batch_of_one_sample_has_no_relations(objective):
    loss = objective(distill.Exchange(md.Tensor(T[:1], requires_grad=True), T[:1]))
    assert loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("function", [distill.pairwise_kd, distill.listwise_kd, distill.dist])
def test_a_constant_on_each_row_changes_nothing(function):
    shift = np.arange(N)[:, None] * 10.0
    assert function(md.Tensor(Z + shift), T - shift).item() == pytest.approx(function(md.Tensor(Z), T).item(), rel=1e-9)


def test_standardized_soft_targets_see_neither_the_scale_nor_the_mean_of_a_row():
    objective = distill.SoftTargets(temperature=2.0, standardized=True)
    plain = objective(distill.Exchange(md.Tensor(Z), T)).item()
    scaled = objective(distill.Exchange(md.Tensor(Z * 5 + 3), T * 0.1)).item()
    assert scaled == pytest.approx(plain, rel=1e-9) and plain > 0.1
    check_gradients(lambda z: objective(distill.Exchange(z, T)), Z)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [3, 7, 100])
def test_equal_logits_have_the_gradient_of_a_row_of_length_one(dtype, classes):
    """The mean of equal numbers is rounded: what is left of them is not blown up, and the row is not left behind either."""
    n, t = 5, 2.0
    teacher = np.random.default_rng(0).normal(size=(n, classes)).astype(dtype)
    rows = teacher - teacher.mean(axis=1, keepdims=True)

    def gradient(objective):
        z = md.Tensor(np.full((n, classes), 3.3, dtype), requires_grad=True)
        loss = objective(distill.Exchange(z, teacher))
        loss.backward()
        assert np.isfinite(loss.item())
        return z.grad

    # T² KL at the zeros of `standardize` has the gradient T (1 / C - p) / N; a length of 1 multiplies it by sqrt(C).
    p = softmax(rows / rows.std(axis=1, keepdims=True) / t)
    expected = np.sqrt(classes) * t * (1 / classes - p) / n
    tolerance = {"rtol": 0, "atol": (1e-6 if dtype is np.float32 else 1e-14) * np.abs(expected).max() * 10}
    np.testing.assert_allclose(gradient(distill.SoftTargets(t, standardized=True)), expected, **tolerance)

    # Correlation: minus the teacher's probabilities, centred and of length 1, averaged; and the softmax of equal logits
    # multiplies by 1 / (T C) what it has centred along the classes.
    q = softmax(teacher / t)
    parts = []
    for axis, count in ((1, n), (0, classes)):
        unit = q - q.mean(axis=axis, keepdims=True)
        unit = unit / np.linalg.norm(unit, axis=axis, keepdims=True) / count
        parts.append(-t / classes * (unit - unit.mean(axis=1, keepdims=True)))
    tolerance["atol"] = (1e-5 if dtype is np.float32 else 1e-13) * np.abs(parts[0]).max()
    for weights, expected in (((1, 0), parts[0]), ((0, 1), parts[1]), ((2, 3), 2 * parts[0] + 3 * parts[1])):
        np.testing.assert_allclose(gradient(distill.DIST(t, *weights)), expected, **tolerance)


def test_a_row_of_equal_logits_changes_nothing_for_the_others():
    mixed = np.vstack([Z, np.full(C, 3.0)])
    for rows in (Z, mixed):
        z = md.Tensor(rows, requires_grad=True)
        (distill.standardize(z) * np.arange(C)).sum().backward()
        if rows is Z:
            alone = z.grad
    np.testing.assert_array_equal(z.grad[:-1], alone)
    np.testing.assert_allclose(z.grad[-1], np.sqrt(C) * (np.arange(C) - (C - 1) / 2), rtol=1e-12)


def test_standardize_gives_zeros_for_a_constant_row_and_unit_rows_otherwise():
    rows = distill.standardize(np.vstack([Z, np.full(C, 3.0)])).numpy()
    np.testing.assert_allclose(rows[:-1].mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(rows[:-1].std(axis=1), 1, rtol=1e-9)
    assert np.array_equal(rows[-1], np.zeros(C))


@pytest.mark.parametrize("objective", [
    distill.DecoupledKD(lambda s: np.float64(4.0)), distill.DIST(lambda s: np.float64(4.0)),
    distill.BinarySoftTargets(lambda s: np.float64(4.0)), distill.Pairwise(2.0, weight=lambda s: np.float64(0.5)),
])  # fmt: skip
def test_schedules_of_numpy_numbers_leave_float32_alone(objective):
    loss = objective(distill.Exchange(md.Tensor(Z.astype(np.float32)), T.astype(np.float32), Y))
    assert loss.dtype == np.float32


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_the_decoupled_loss_with_the_weight_that_the_teacher_leaves(temperature):
    """Zhao et al. 2022, equation 7, for each sample."""
    for i in range(N):
        left = 1 - softmax(T[i] / temperature)[Y[i]]
        parts = distill.decoupled_kd(Z[i : i + 1], T[i : i + 1], Y[i : i + 1], temperature, 1.0, left).item()
        whole = distill.kd_loss(Z[i : i + 1], T[i : i + 1], temperature=temperature, alpha=1.0).item()
        assert parts == pytest.approx(whole, rel=1e-9)


def test_the_gradient_of_logit_matching_is_the_limit_of_soft_targets_for_centred_logits():
    z, t = (a - a.mean(axis=1, keepdims=True) for a in (Z, T))
    gradients = []
    for loss in (lambda z: distill.logit_matching(z, t) * (C / 2), lambda z: distill.kd_loss(z, t, None, 1e5, 1.0) * C):
        z_ = md.Tensor(z, requires_grad=True)
        loss(z_).backward()
        gradients.append(z_.grad)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=0, atol=1e-4 * np.abs(gradients[0]).max())


def test_ranking_distillation_pulls_at_the_teachers_first_places_only_and_hardest_at_the_first():
    z = md.Tensor(np.zeros((1, C)), requires_grad=True)
    distill.ranking_distillation(z, np.array([[0.0, 5.0, 1.0, 4.0, 2.0]]), top_k=3, decay=2.0).backward()
    assert z.grad[0, 1] < z.grad[0, 3] < z.grad[0, 4] < 0
    assert z.grad[0, 0] == z.grad[0, 2] == 0


def test_dynamic_weights_leave_alone_what_the_student_ranks_as_high_as_its_teacher():
    loss = distill.ranking_distillation(md.Tensor(T, requires_grad=True), T, top_k=3, sharpness=1.0)
    assert loss.item() == 0.0


def test_large_logits_do_not_overflow():
    z, t = np.array([[1e4, -1e4, 0.0]]), np.array([[-1e4, 1e4, 0.0]])
    for function in (distill.pairwise_kd, distill.listwise_kd, distill.binary_kd):
        loss = function(md.Tensor(z, requires_grad=True), t)
        assert np.isfinite(loss.item()) and loss.item() > 1000
    assert np.isfinite(distill.decoupled_kd(z, t, np.array([0])).item())


def test_equal_samples_have_a_finite_gradient():
    h = md.Tensor(np.ones((4, 3)), requires_grad=True)
    (distill.relational_distance(h, GUIDE[:4]) + distill.relational_angle(h, GUIDE[:4])).backward()
    assert np.isfinite(h.grad).all()


# ---- the objects ----------------------------------------------------------------------------------------------------------
def exchange(step=0, labels=Y):
    return distill.Exchange(
        md.Tensor(Z), T, labels, step, student_hidden={"0": md.Tensor(HIDDEN)}, teacher_hidden={"2": HIDDEN[::-1]}
    )


OBJECTS = {
    distill.SoftTargets(3.0, weight=0.5): lambda: distill.kd_loss(Z, T, None, 3.0, 1.0),
    distill.KnowledgeDistillation(3.0, 0.7): lambda: distill.kd_loss(Z, T, Y, 3.0, 0.7) * 2,
    distill.HardLabels(weight=0.5): lambda: losses.cross_entropy(Z, Y),
    distill.LogitMatching(weight=0.5): lambda: distill.logit_matching(Z, T),
    distill.DecoupledKD(2.0, 1.0, 3.0, weight=0.5): lambda: distill.decoupled_kd(Z, T, Y, 2.0, 1.0, 3.0),
    distill.DIST(2.0, 1.0, 3.0, weight=0.5): lambda: distill.dist(Z, T, 2.0, 1.0, 3.0),
    distill.BinarySoftTargets(2.0, weight=0.5): lambda: distill.binary_kd(Z, T, 2.0),
    distill.ScoreMatching(weight=0.5): lambda: losses.mse(Z, T),
    distill.Pairwise(2.0, weight=0.5): lambda: distill.pairwise_kd(Z, T, 2.0),
    distill.Listwise(2.0, weight=0.5): lambda: distill.listwise_kd(Z, T, 2.0),
    distill.RankingDistillation(3, 2.0, 0.5, weight=0.5): lambda: distill.ranking_distillation(Z, T, 3, 2.0, 0.5),
    distill.LabelSmoothing(0.2, weight=0.5): lambda: losses.cross_entropy(Z, Y, 0.2),
    distill.ConfidencePenalty(weight=0.5): lambda: distill.confidence_penalty(Z),
    distill.VirtualTeacher(0.9, 5.0, weight=0.5): lambda: distill.virtual_teacher(Z, Y, 0.9, 5.0),
    distill.Hint("2", "0", weight=0.5): lambda: distill.hint(HIDDEN, HIDDEN[::-1]),
    distill.ActivationBoundary("2", "0", 0.8, weight=0.5): lambda: distill.activation_boundary(
        HIDDEN, HIDDEN[::-1], 0.8
    ),
    distill.SimilarityPreserving("2", "0", weight=0.5): lambda: distill.similarity_preserving(HIDDEN, HIDDEN[::-1]),
    distill.SimilarityPreserving(weight=0.5): lambda: distill.similarity_preserving(Z, T),
    distill.Relational("2", "0", 2.0, 0.0, weight=0.5): lambda: distill.relational_distance(HIDDEN, HIDDEN[::-1]) * 2,
    distill.Relational(distance=0.0, angle=3.0, weight=0.5): lambda: distill.relational_angle(Z, T) * 3,
}


@pytest.mark.parametrize(("objective", "function"), OBJECTS.items(), ids=[repr(o) for o in OBJECTS])
def test_an_object_is_its_function_times_its_weight(objective, function):
    assert objective(exchange()).item() == pytest.approx(0.5 * function().item(), rel=1e-12)


def halved_at_first(value):
    return lambda step: value if step else value / 2


@pytest.mark.parametrize("objective", OBJECTS, ids=[repr(o) for o in OBJECTS])
def test_every_number_may_be_a_schedule(objective):
    """The same objective with functions of the step in place of its numbers, half of them at step 0 and all at step 1."""
    names = [name for name, value in vars(objective).items() if type(value) is float]
    scheduled = type(objective).__new__(type(objective))
    scheduled.__dict__.update(vars(objective))
    for name in names:
        setattr(scheduled, name, halved_at_first(getattr(objective, name)))
    assert names
    assert scheduled(exchange(step=1)).item() == pytest.approx(objective(exchange()).item(), rel=1e-12)
    assert scheduled(exchange(step=0)).item() != pytest.approx(objective(exchange()).item(), rel=1e-6, abs=1e-12)


def test_repr_shows_the_settings():
    assert repr(distill.SoftTargets(4.0, 0.9)) == "SoftTargets(weight=0.9, temperature=4.0, standardized=False)"
    assert repr(distill.Hint("1", "0")) == "Hint(weight=1.0, teacher_path='1', student_path='0')"


@pytest.mark.parametrize(("call", "text"), [
    (lambda: distill.SoftTargets(weight=-1), r"SoftTargets got weight = -1"),
    (lambda: distill.Hint("1", "1", weight=np.nan), r"Hint got weight = nan"),
    (lambda: distill.SoftTargets(temperature=0), r"temperature = 0"),
    (lambda: distill.KnowledgeDistillation(alpha=1.1), r"alpha = 1.1"),
    (lambda: distill.SoftTargets(lambda step: -1.0)(exchange()), r"temperature = -1.0"),
    (lambda: distill.KnowledgeDistillation(4.0, lambda step: 2.0)(exchange()), r"alpha = 2.0"),
    (lambda: distill.decoupled_kd(Z[:, :2], T[:, :2], Y % 2), "for 2 classes"),
    (lambda: distill.decoupled_kd(Z, T, np.eye(C)[Y]), r"labels of shape \(6, 5\)"),
    (lambda: distill.decoupled_kd(Z, T, Y + 1), r"class ids from 1 to 5"),
    (lambda: distill.dist(Z, softmax(T)), "probabilities as the teacher's"),
    (lambda: distill.logit_matching(Z, T[:, :3]), r"teacher logits of shape \(6, 3\)"),
    (lambda: distill.logit_matching(Z, T * np.nan), "They are finite"),
    (lambda: distill.binary_kd(md.ops.sigmoid(md.Tensor(Z, requires_grad=True)), T), "output of a sigmoid"),
    (lambda: distill.binary_kd(Z, T[:, :1]), r"teacher scores of shape \(6, 1\)"),
    (lambda: distill.binary_kd(Z, np.where(T > 1, np.inf, T)), "are finite"),
    (lambda: distill.virtual_teacher(Z, Y, correct=1.0), "correct = 1.0"),
    (lambda: distill.virtual_teacher(Z, Y, correct=0.1), "above that of chance"),
    (lambda: distill.pairwise_kd(Z[:, :1], T[:, :1]), "at least 2 items"),
    (lambda: distill.listwise_kd(Z[0], T[0]), r"scores of shape \(5,\)"),
    (lambda: distill.ranking_distillation(Z, T, top_k=6), "top_k = 6"),
    (lambda: distill.ranking_distillation(Z, T, 3, decay=0), "decay = 0"),
    (lambda: distill.activation_boundary(HIDDEN, GUIDE), r"\(6, 4\) and teacher values of shape \(6, 3\)"),
    (lambda: distill.activation_boundary(HIDDEN, HIDDEN, margin=0), "margin = 0"),
    (lambda: distill.similarity_preserving(HIDDEN, GUIDE[:5]), r"teacher values of shape \(5, 3\)"),
    (lambda: distill.relational_angle(HIDDEN[:1], GUIDE[:1]), "batch size of at least 2"),
    (lambda: distill.Labelled(md.datasets.Dataset(Z, None)), "y: None"),
    (lambda: distill.Labelled(md.datasets.Dataset(Z, Y), rng=None), "rng = None"),
    (lambda: distill.DecoupledKD(other_weight=-8), "DecoupledKD got other_weight = -8"),
    (lambda: distill.DIST(within=np.nan), "DIST got within = nan"),
    (lambda: distill.Pairwise(-1), "Pairwise got temperature = -1"),
    (lambda: distill.LabelSmoothing(2.0), "LabelSmoothing got smoothing = 2"),
    (lambda: distill.SoftTargets(weight=lambda step: -1.0)(exchange()), "SoftTargets got weight = -1"),
    (lambda: distill.Relational(angle_samples=2), "angle_samples = 2.\n.*of three each"),
])  # fmt: skip
def test_mistakes_are_told(call, text):
    with pytest.raises((ValueError, TypeError), match=text):
        call()


@pytest.mark.parametrize("value", ["4", [1, 2], None])
def test_settings_that_are_no_numbers_are_told(value):
    with pytest.raises(TypeError, match=r"logits are divided by \(an objective also takes a function"):
        distill.SoftTargets(temperature=value)
