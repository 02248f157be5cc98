"""Laws of distillation, each a sentence about the loss or the loop that must hold exactly or in a limit."""

import numpy as np
import pytest

import minidistill as md
from minidistill import datasets, distill, losses, nn, optim
from minidistill.datasets import Dataset

N, C = 12, 7


def logits(seed, dtype=np.float64, scale=3.0):
    return (np.random.default_rng(seed).normal(0, scale, (N, C))).astype(dtype)


def labels(seed=9):
    return np.random.default_rng(seed).integers(0, C, N)


def loss_and_gradient(z, *args, **kwargs):
    z = md.Tensor(z, requires_grad=True)
    loss = distill.kd_loss(z, *args, **kwargs)
    loss.backward()
    return loss.item(), z.grad


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.3])
def test_a_student_that_equals_its_teacher_has_exactly_zero_loss_and_gradient(dtype, temperature):
    z = logits(0, dtype)
    loss, gradient = loss_and_gradient(z, z.copy(), temperature=temperature, alpha=1.0)
    assert loss == 0.0
    assert np.array_equal(gradient, np.zeros_like(z))


def test_alpha_zero_is_exactly_cross_entropy():
    z, y = logits(0, np.float32), labels()
    loss, gradient = loss_and_gradient(z, logits(1), y, alpha=0.0)
    t = md.Tensor(z, requires_grad=True)
    plain = losses.cross_entropy(t, y)
    plain.backward()
    assert loss == plain.item()
    assert np.array_equal(gradient, t.grad)


def test_the_loss_is_the_formula():
    z, teacher, y, t, alpha = logits(0), logits(1), labels(), 4.0, 0.7
    p, q = softmax(teacher / t), softmax(z / t)
    soft = t * t * (p * np.log(p / q)).sum() / N
    hard = -np.log(softmax(z)[np.arange(N), y]).mean()
    loss, _ = loss_and_gradient(z, teacher, y, temperature=t, alpha=alpha)
    assert loss == pytest.approx(alpha * soft + (1 - alpha) * hard, rel=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_the_gradient_is_the_closed_form(dtype, rtol):
    z, teacher, y, t, alpha = logits(0, dtype), logits(1, dtype), labels(), 4.0, 0.7
    _, gradient = loss_and_gradient(z, teacher, y, temperature=t, alpha=alpha)
    z, teacher = z.astype(np.float64), teacher.astype(np.float64)
    soft = t * (softmax(z / t) - softmax(teacher / t))  # T² / T
    expected = (alpha * soft + (1 - alpha) * (softmax(z) - np.eye(C)[y])) / N
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=rtol * np.abs(expected).max())


def test_duplicating_the_batch_changes_nothing():
    z, teacher, y = logits(0), logits(1), labels()
    once, gradient = loss_and_gradient(z, teacher, y)
    twice, doubled = loss_and_gradient(np.vstack([z, z]), np.vstack([teacher, teacher]), np.tile(y, 2))
    assert twice == pytest.approx(once, rel=1e-14)
    np.testing.assert_allclose(2 * doubled[:N], gradient, rtol=1e-13)


def test_adding_a_constant_to_the_logits_changes_nothing():
    z, teacher, y = logits(0), logits(1), labels()
    loss, gradient = loss_and_gradient(z, teacher, y)
    shifted, shifted_gradient = loss_and_gradient(z + 5.0, teacher - 3.0, y)
    assert shifted == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(shifted_gradient, gradient, rtol=1e-9, atol=1e-15)


def test_at_high_temperature_the_gradient_tends_to_logit_matching():
    """Hinton et al. 2015, equation 4, with the means that it assumes to be zero; the error falls as 1/T."""
    z, teacher = logits(0), logits(1)
    limit = ((z - z.mean(axis=1, keepdims=True)) - (teacher - teacher.mean(axis=1, keepdims=True))) / C
    errors = []
    for t in (1e3, 1e4, 1e5):
        _, gradient = loss_and_gradient(z, teacher, temperature=t, alpha=1.0)
        errors.append(np.abs(N * gradient - limit).max())
    assert errors[2] < 1e-4 * np.abs(limit).max()
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


def test_objectives_add_up_to_the_loss():
    z, teacher, y = md.Tensor(logits(0)), logits(1), labels()
    exchange = distill.Exchange(z, teacher, y)
    parts = distill.SoftTargets(4.0, weight=0.9)(exchange) + distill.HardLabels(weight=0.1)(exchange)
    assert parts.item() == pytest.approx(distill.kd_loss(z, teacher, y).item(), rel=1e-14)


def test_a_second_backward_through_the_loss_adds_the_same_gradient_again():
    """The kernel's gradient is given away to the first; whoever changes it in place changes nothing for the second."""
    z = md.Tensor(logits(0, np.float32), requires_grad=True)
    for loss in (distill.kd_loss(z, logits(1), labels()), losses.cross_entropy(z, labels())):
        z.grad = None
        loss.backward()
        once = z.grad.copy()
        z.grad[...] = 0
        loss.backward(2.0)
        np.testing.assert_array_equal(z.grad, 2 * once)


def test_the_teacher_gets_no_gradient():
    teacher = md.Tensor(logits(1), requires_grad=True)
    loss_and_gradient(logits(0), teacher, labels())
    assert teacher.grad is None


def networks(seed=0, width=8):
    teacher = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dropout(0.5), nn.Dense(32, 10), rng=seed)
    student = nn.Sequential(nn.Dense(64, width, activation="relu"), nn.Dense(width, 10), rng=seed + 1)
    return teacher, student


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits()[0][:200]


def test_the_teacher_is_unchanged_to_the_byte_and_the_student_learns(digits):
    teacher, student = networks(width=64)
    before = {name: array.tobytes() for name, array in teacher.state_dict().items()}
    agreement = [np.mean(md.predict(student, digits).argmax(1) == md.predict(teacher, digits).argmax(1))]
    distill.distill(teacher, student, digits, temperature=1.0, alpha=1.0, epochs=100, progress=False, rng=0)
    agreement.append(np.mean(md.predict(student, digits).argmax(1) == md.predict(teacher, digits).argmax(1)))
    assert {name: array.tobytes() for name, array in teacher.state_dict().items()} == before
    assert teacher.training and all(p.grad is None for p in teacher.parameters())
    assert agreement[1] > 0.9 > agreement[0]


def test_one_epoch_moves_every_parameter_of_the_student(digits):
    teacher, student = networks()
    before = student.state_dict()
    distill.distill(teacher, student, digits, epochs=1, progress=False, rng=0)
    for name, array in student.state_dict().items():
        assert not np.array_equal(array, before[name]), name


def test_a_student_that_equals_its_teacher_stays_what_it_is(digits):
    teacher, _ = networks()
    teacher = nn.Sequential(teacher.layers[0], teacher.layers[2])  # without dropout, which would make them differ
    student = teacher.copy()
    history = distill.distill(teacher, student, digits, alpha=1.0, epochs=2, progress=False, rng=0)
    assert history["loss"] == [0.0, 0.0]
    for name, array in student.state_dict().items():
        assert np.array_equal(array, teacher.state_dict()[name]), name


def test_alpha_zero_is_exactly_fit(digits):
    teacher, first = networks()
    second = first.copy()
    distilled = distill.distill(teacher, first, digits, alpha=0.0, epochs=3, validation=0.2, progress=False, rng=5)
    fitted = md.fit(second, digits, loss=losses.cross_entropy, epochs=3, validation=0.2, progress=False, rng=5)
    assert distilled["loss"] == fitted["loss"]
    assert distilled["validation_loss"] == fitted["validation_loss"]
    assert all(np.array_equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_teacher_and_student_see_the_same_batches_whatever_shuffling_and_augmentation_do(digits):
    teacher, student = networks()
    seen = {teacher: [], student: []}

    def note(module, inputs, output):
        if module in seen:
            seen[module].append((np.array(inputs[0]), module.is_training()))
        return output

    with nn.watch(note):
        distill.distill(teacher, student, digits, epochs=2, progress=False, rng=0,
                        augment=lambda x, rng: x + rng.normal(size=x.shape).astype(np.float32))  # fmt: skip
    batches = 2 * -(-len(digits) // 32)
    for (x, teacher_trains), (same, student_trains) in zip(seen[teacher][-batches:], seen[student][-batches:]):
        assert np.array_equal(x, same)
        assert (teacher_trains, student_trains) == (False, True)
    firsts = [x[0] for x, _ in seen[teacher][-batches:]]
    assert len({x.tobytes() for x in firsts}) == batches  # no two batches are equal: there was something to mix up


def test_the_teacher_answers_in_eval_mode_for_the_batch_that_the_student_sees(digits):
    """With augmentation that blanks the input, a teacher that saw the clean one would give other targets."""
    teacher, student = networks()
    blank = np.zeros((1, 64), np.float32)
    distill.distill(teacher, student, digits, alpha=1.0, epochs=150, progress=False, rng=0,
                    augment=lambda x, rng: np.zeros_like(x))  # fmt: skip
    np.testing.assert_allclose(
        losses.kl_divergence(md.predict(student, blank), softmax(md.predict(teacher, blank))).item(), 0, atol=1e-6
    )


def test_unlabelled_data_works_with_alpha_one_and_equals_labelled_data(digits):
    teacher, first = networks()
    second = first.copy()
    distill.distill(teacher, first, digits, alpha=1.0, epochs=2, progress=False, rng=0)
    distill.distill(teacher, second, Dataset(digits.x, None), alpha=1.0, epochs=2, progress=False, rng=0)
    assert all(np.array_equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_distillation_keeps_masks(digits):
    from minidistill import prune

    teacher, student = networks()
    prune.magnitude(student, 0.5)
    optimizer = optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    distill.distill(teacher, student, digits, optimizer=optimizer, epochs=2, progress=False, rng=0)
    for layer in student.layers:
        kept = layer.weight.constraints[0].kept
        assert np.all(layer.weight.data[~kept] == 0) and np.all(layer.weight.data[kept] != 0)


def test_validation_without_labels_is_agreement_with_the_teacher(digits):
    teacher, student = networks()
    unlabelled = Dataset(digits.x, None)
    twin = nn.Sequential(*teacher.copy().layers[::2])  # without dropout, so that it starts and stays equal
    history = distill.distill(nn.Sequential(*teacher.layers[::2]), twin, unlabelled, alpha=1.0, epochs=1,
                              validation=unlabelled, progress=False, rng=0)  # fmt: skip
    assert history["validation_accuracy"] == [1.0]
    history = distill.distill(teacher, student, Dataset(digits.x, None), alpha=1.0, epochs=3, validation=0.2,
                              progress=False, rng=0)  # fmt: skip
    assert 0 <= history["validation_accuracy"][-1] <= 1 and len(history) == 3


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda t, s, d: distill.distill(t, t, d), "share 4 parameters"),
        (lambda t, s, d: distill.distill(t, s, Dataset(d.x, None)), "without labels"),
        (lambda t, s, d: distill.distill(t, s, d, alpha=1.5), "alpha = 1.5"),
        (lambda t, s, d: distill.distill(t, s, d, temperature=0), "temperature = 0"),
        (lambda t, s, d: distill.distill(t, s, d, objective=[]), r"objective = \[\]"),
        (lambda t, s, d: distill.distill(t, nn.Dense(64, 5), d), r"\(1, 10\) for one.*\(1, 5\)"),
        (lambda t, s, d: distill.distill(t, s, d, optimizer=optim.SGD(t.parameters(), 0.1)), "none of which belong"),
        (lambda t, s, d: distill.kd_loss(md.Tensor(logits(0)), logits(1)), "no labels, and alpha = 0.9"),
        (lambda t, s, d: distill.kd_loss(md.Tensor(logits(0)), softmax(logits(1)), alpha=1), "probabilities as"),
        (lambda t, s, d: distill.kd_loss(md.Tensor(logits(0)), logits(1)[:, :3], alpha=1), r"\(12, 7\) and teacher"),
    ],
)  # fmt: skip
def test_mistakes_are_told_and_change_nothing(digits, call, text):
    teacher, student = networks()
    before = [p.data.copy() for p in student.parameters()]
    with pytest.raises(ValueError, match=text):
        call(teacher, student, digits)
    assert all(np.array_equal(a, p.data) for a, p in zip(before, student.parameters()))


def test_a_model_must_be_a_module(digits):
    with pytest.raises(TypeError, match="distill got teacher = "):
        distill.distill(lambda x: x, networks()[1], digits)


def test_a_schedule_belongs_to_an_objective_and_not_to_the_pure_loss():
    with pytest.raises(TypeError, match="an objective also takes a function of the step count"):
        distill.kd_loss(logits(0), logits(1), temperature=lambda step: 4.0, alpha=1.0)
