"""Sources of knowledge besides one teacher and its data: several teachers, invented samples, the teacher's own labels.

A student can learn from a teacher on any inputs, since the teacher answers for them; these make inputs. The other sources are
ways to train (``stages.py``). Read ``train.py`` before this file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import checks, ops
from ..datasets import Dataset
from ..losses import check_logits
from ..nn import Module
from ..tensor import as_float_array
from ..training import predict
from .kd import check_not_probabilities, check_teacher
from .objective import check_number


class Ensemble(Module):
    """Several teachers as one (Hinton et al. 2015, section 1: an ensemble's knowledge in a single model).

    Parameters
    ----------
    teachers : list of Module
        All return logits of one shape.
    weights : list of float, optional
        Not negative, divided by their sum. Equal by default.
    average : {"probabilities", "logits"}
        The arithmetic mean of the softmaxes, returned as its logarithm; or the mean of the logits, which is the geometric
        mean of the softmaxes: a class that one of them rules out stays out.

    Call it, predict with it, evaluate it, or pass it to ``distill``: it returns logits (N, C).
    """

    def __init__(self, teachers, weights=None, average="probabilities"):
        advice = "Write Ensemble([a, b])."
        teachers = list(checks.instance("Ensemble", "teachers", teachers, (list, tuple), "a list of models", advice))
        weights = np.ones(len(teachers)) if weights is None else as_float_array(weights, float)
        fits = teachers and weights.shape == (len(teachers),) and weights.min() >= 0 and 0 < weights.sum() < np.inf
        if not fits:
            raise ValueError(
                f"Ensemble got {len(teachers)} teachers and weights = {weights.tolist()}.\nIt has at least one teacher, and "
                "a weight for each that is not negative.\nWrite Ensemble([a, b], weights=[2, 1])."
            )
        self.teachers = teachers
        self.average = checks.choice("Ensemble", "average", average, ("probabilities", "logits"))
        self.weights = tuple((weights / weights.sum()).tolist())

    def forward(self, *inputs):
        """(N, ...) to logits (N, C)."""
        outputs = [teacher(*inputs) for teacher in self.teachers]
        shapes = {output.shape for output in outputs}
        if len(shapes) > 1:
            raise ValueError(
                f"Ensemble got answers of the shapes {sorted(shapes)}.\nTheir mean needs the same classes in the same "
                "order.\nLeave out the teacher that has others."
            )
        if self.average == "probabilities" and (outputs[0].ndim != 2 or outputs[0].shape[1] < 2):
            raise ValueError(
                f"Ensemble got answers of shape {outputs[0].shape}.\nThe mean of probabilities is one of softmaxes over "
                'two or more classes: (N, C).\nWrite average="logits" for scores, and for yes or no.'
            )
        for output in outputs:
            if output.ndim == 2 and output.size:
                check_not_probabilities(output.data)
        if self.average == "logits":
            parts = [output * weight for output, weight in zip(outputs, self.weights)]
            return ops.sum(ops.stack(parts), axis=0)
        parts = [ops.log_softmax(z) + np.log(w) for z, w in zip(outputs, self.weights) if w > 0]
        return ops.logsumexp(ops.stack(parts), axis=0)

    def config(self):
        """What `repr` shows."""
        return {"teachers": self.teachers, "weights": self.weights, "average": self.average}


def pseudo_label(teacher, data, confidence=0.95, temperature=1.0):
    """The samples that a teacher is sure of, with its decisions as hard labels (Lee 2013, "Pseudo-Label").

    Parameters
    ----------
    teacher : Module
    data : Dataset
        Labels are not looked at.
    confidence : float in [0, 1)
        Samples whose largest probability is above it are kept.
    temperature : float
        At which probabilities are taken.

    Returns
    -------
    Dataset
        The kept samples in their order, with class ids.

    Raises
    ------
    ValueError
        If the teacher is nowhere that sure.
    """
    check_number("pseudo_label", "temperature", temperature)
    checks.number("pseudo_label", "confidence", confidence, "[0, 1)", "a probability that the teacher exceeds", 0.95)
    logits = check_logits("pseudo_label", predict(teacher, data)).data
    p = ops.softmax(check_teacher(logits, logits.shape, logits.dtype) / temperature).numpy()
    sure = p.max(axis=1) > confidence
    if not sure.any():
        raise ValueError(
            f"pseudo_label found no sample with a probability above {confidence}.\nThe largest is {p.max():.4f}.\n"
            f"Lower the confidence: {p.max() * 0.99:.2f}, for example."
        )
    kept = data[sure]
    return Dataset(kept.x, p[sure].argmax(axis=1), dtype=None)


class Mixup:
    """Augmentation: each sample mixed with another of its batch (Zhang et al. 2018, "mixup", section 2).

    x = m * x_i + (1 - m) * x_j, m drawn for each sample from Beta(strength, strength). The labels of either no longer fit,
    so the teacher answers for the mixture; ``distill`` and ``fit`` refuse to use labels with it.

    Parameters
    ----------
    strength : float
        Positive; 1 draws m uniformly, small ones keep it near 0 or 1.
    """

    changes_labels = True

    def __init__(self, strength=1.0):
        self.strength = checks.number("Mixup", "strength", strength, "(0, inf]", "the parameter of Beta", 1.0)

    def __call__(self, x, rng):
        """Mix a batch of floating inputs, (N, ...)."""
        x = _floating("Mixup", x)
        share = rng.beta(self.strength, self.strength, size=(len(x), *[1] * (x.ndim - 1))).astype(x.dtype)
        return x * share + x[rng.permutation(len(x))] * (1 - share)

    def __repr__(self):
        return f"Mixup({self.strength})"


class Noise:
    """Augmentation: Gaussian noise on every input, which leaves labels as they are.

    Parameters
    ----------
    deviation : float
        Not negative, in units of the inputs.
    """

    def __init__(self, deviation=0.1):
        self.deviation = checks.number("Noise", "deviation", deviation, "[0, inf]", "a standard deviation", 0.1)

    def __call__(self, x, rng):
        """Disturb a batch of floating inputs, (N, ...)."""
        x = _floating("Noise", x)
        noise = rng.standard_normal(x.shape, dtype=np.float32).astype(x.dtype, copy=False)
        return x + noise * x.dtype.type(self.deviation)

    def __repr__(self):
        return f"Noise({self.deviation})"


def transfer_set(data, augment, copies=1, rng=None):
    """A data set of augmented samples without labels, drawn once: unlike ``distill(augment=...)``, the answers can be kept.

    Parameters
    ----------
    data : Dataset
    augment : callable
        ``augment(x, rng)``, such as `Mixup` or `Noise`; it sees all samples at once.
    copies : int
        How many of each sample are drawn, besides the original.
    rng : int, np.random.Generator or None

    Returns
    -------
    Dataset
        ``(copies + 1) * len(data)`` samples, the originals first.
    """
    checks.whole("transfer_set", "copies", copies, "[1, inf)", "how many of each sample are drawn", 1)
    checks.instance("transfer_set", "data", data, Dataset, "a Dataset", "Wrap the inputs: datasets.Dataset(x, None).")
    advice = "Write augment=distill.Noise(0.1)."
    checks.instance("transfer_set", "augment", augment, Callable, "a function of (x, rng) that returns inputs", advice)
    rng = checks.generator("transfer_set", rng)
    versions = [data.inputs]
    for _ in range(copies):
        drawn = augment(data.x, rng)
        versions.append(drawn if isinstance(drawn, tuple) else (drawn,))
    x = tuple(np.concatenate(parts) for parts in zip(*versions))
    return Dataset(x if isinstance(data.x, tuple) else x[0], None, dtype=None)


def _floating(who, x):
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        raise TypeError(
            f"{who} got inputs of type {getattr(x, 'dtype', type(x).__name__)}.\nIt computes with numbers; ids have nothing "
            "in between.\nUse it for one floating input."
        )
    return x
