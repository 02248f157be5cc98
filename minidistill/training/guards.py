"""Guards: what would train nothing, or something else than was meant, is refused before anything is trained."""

from __future__ import annotations

import warnings

from .. import checks
from ..datasets import Dataset
from ..optim.base import Optimizer


def check_targets(data, who):
    """Refuse data without targets."""
    advice = f"Write md.{who}(model, datasets.Dataset(x, y))."
    checks.instance(who, "data", data, Dataset, "a data set, with inputs and targets", advice)
    if data.y is None:
        raise ValueError(
            f"{who} got a data set without targets.\nThere is nothing to compare predictions with.\n"
            "Pass Dataset(x, y); without labels, use md.predict, or distill with alpha=1."
        )


def check_augmentation(who, augment):
    """Refuse an augmentation after which the labels are no longer right, where labels are used."""
    if getattr(augment, "changes_labels", False):
        raise ValueError(
            f"{who} got {augment!r}, and needs labels.\nIt makes samples that the labels do not belong to; a teacher "
            "can answer for them.\nDistil without labels, distill.distill(teacher, student, data, alpha=1.0, "
            "augment=...), or leave it out."
        )


def check_optimizer(who, optimizer):
    """The optimizer, if it is one: no name, no class that was not called."""
    rule = "an optimizer, made over the parameters that it is to train"
    advice = "Write optimizer=optim.Adam(model.parameters(), lr=1e-3)."
    return checks.instance(who, "optimizer", optimizer, Optimizer, rule, advice)


def check_ownership(model, optimizer):
    """Refuse an optimizer that would train nothing of this model; warn of parameters that are too new for it to know."""
    own, held = dict(model.named_parameters()), {id(p) for p in optimizer.parameters}
    if held.isdisjoint(map(id, own.values())):
        raise ValueError(
            f"training got an optimizer over {len(held)} parameters, none of which belong to the model.\n"
            "It would change something else, and the model not at all.\n"
            "Make it from this model, after copying or replacing layers: optim.Adam(model.parameters())."
        )
    missed = {name: p for name, p in own.items() if p.requires_grad and id(p) not in held}
    late = [repr(name) for name, p in missed.items() if p.made > optimizer.made]
    if late:
        more = f" and {len(late) - 6} more" if len(late) > 6 else ""
        warnings.warn(
            f"training got an optimizer that is older than these parameters: {', '.join(late[:6])}{more}.\n"
            "It does not hold them, so they stay as they are.\n"
            "Make it after the layers, optim.Adam(model.parameters()); or set requires_grad = False, if they are to rest.",
            stacklevel=4,  # where fit or distill was called
        )


def warn_of_ended_schedules(optimizer, steps):
    """One warning if a schedule, over since an earlier training, leaves the rate at 0 in all steps of this one."""
    done = optimizer.step_count
    for schedule in (group["lr"] for group in optimizer.groups if callable(group["lr"])):
        over = steps > 0 and not any(map(schedule, range(done, done + steps)))
        if over and (highest := max(map(schedule, range(done)), default=0)):
            cure = f"optim.{type(optimizer).__name__}(model.parameters(), lr=optim.cosine({highest:g}, {steps}))"
            warnings.warn(
                f"training got an optimizer whose schedule is over: the rate is 0 in all {steps} steps from step {done}.\n"
                "A schedule counts the steps of its optimizer, those of earlier trainings too, and nothing is learned now.\n"
                f"Make a new optimizer: {cure}.",
                stacklevel=4,
            )
            return
