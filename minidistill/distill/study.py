"""Looking at what was distilled: does the student agree with its teacher, and where?

Read ``kd.py`` before this file. ``training/metrics.py`` has the calibration error, ``plot`` the figures. Shapes: N samples, C
classes.
"""

from __future__ import annotations

import numpy as np

from ..training import predict
from ..training.guards import check_targets
from ..training.inference import judge
from ..training.task import DECISIONS, find_task
from .kd import check_not_probabilities, kd_loss
from .logits import binary_kl


def fidelity(teacher, student, data, loss=None, metrics=None):
    """How far a student is its teacher's copy, and whether that is the same as being right.

    Stanton et al. 2021, "Does Knowledge Distillation Really Work?", section 3: a student often is accurate without
    agreeing, and agreement on what the teacher gets wrong is no gain.

    Parameters
    ----------
    teacher, student : Module
        With outputs of one shape.
    data : Dataset
        With targets.
    loss, metrics
        As in `md.evaluate`; they say what kind of task this is (``training/task.py``).

    Returns
    -------
    dict of str to float
        Metrics of both, as "teacher_accuracy", "student_accuracy" and so on. For classes, yes or no, and several labels also
        "agreement": the fraction of equal decisions; "agreement_when_right", "agreement_when_wrong": among those
        where the teacher is right or wrong (NaN where there are none); "kl": the mean KL(teacher ‖ student) in nats at
        temperature 1, over softmax or sigmoid. For rankings and numbers the losses of both, and
        "difference": the root of the mean squared difference of their answers.
    """
    check_targets(data, "fidelity")
    z, t = predict(student, data), predict(teacher, data)
    if z.shape != t.shape:
        raise ValueError(
            f"fidelity got answers of shape {t.shape} from the teacher and {z.shape} from the student.\nThey are "
            "compared class by class.\nPass two models of the same classes."
        )
    task = find_task("fidelity", z.shape[1:], data.y, loss, metrics)
    decided = task.kind in DECISIONS
    both = {"teacher": judge(task, t, data.y), "student": judge(task, z, data.y)}
    report = {f"{who}_{k}": v for who, found in both.items() for k, v in found.items() if k != "loss" or not decided}
    exact, taught = z.astype(np.float64), t.astype(np.float64)
    if not decided:
        return report | {"difference": float(np.sqrt(np.mean(np.square(exact - taught))))}
    if task.kind == "classes":
        check_not_probabilities(z)
        kl = kd_loss(exact, taught, temperature=1.0, alpha=1.0)
    else:
        kl = binary_kl(exact, taught)
    right, same = task.right(t, data.y), task.decisions(t) == task.decisions(z)
    return report | {
        "agreement": float(same.mean()),
        "agreement_when_right": _share(same, right),
        "agreement_when_wrong": _share(same, ~right),
        "kl": kl.item(),
    }


def _share(same, among):
    return float(same[among].mean()) if among.any() else float("nan")
