"""The split: what is trained on, what is held out, and how a resumed run finds both again.

One function, `split_validation`, serves `fit`, ``distill``, ``mutual``, ``chain`` and ``born_again``: the same ``rng`` holds
out the same samples in all of them, so that no student is judged by samples that its teacher was trained on. A checkpoint
holds the positions that were drawn, and a fingerprint of the data that they point into. Read ``checkpoint.py`` before this
file.
"""

from __future__ import annotations

import hashlib
import warnings
from functools import cached_property

import numpy as np

from .. import checks
from ..datasets import Dataset
from .checkpoint import read_checkpoint


class Split:
    """Training data and held-out data.

    Attributes
    ----------
    data : Dataset
        To train on.
    held_out : Dataset or None
        To validate on.
    """

    def __init__(self, whole, validation=None, train=None, held_out=None):
        self._whole, self._validation = whole, validation
        self._train, self._held_out = train, held_out  # positions, if the validation data are a fraction
        drawn = train is not None
        self.data, self.held_out = (whole[train], whole[held_out]) if drawn else (whole, validation)

    @cached_property
    def notes(self):
        """What a later run must be given again: fingerprints of the data, and the fraction if there is one.

        Every byte is read, once a run and only if there is a checkpoint: a part of the data would not tell that two rows
        changed places.
        """
        validation = fingerprint(self._validation) if isinstance(self._validation, Dataset) else self._validation
        return {"data": fingerprint(self._whole), "validation": validation}

    def state_dict(self):
        """What a checkpoint holds."""
        return {**self.notes, "train": self._train, "held_out": self._held_out}


def split_validation(data, validation, rng, resume=None, streams=0):
    """Split data by a fraction, or as the run was split that is resumed.

    Parameters
    ----------
    data : Dataset
    validation : float, Dataset or None
        A fraction to hold out, data of its own, or nothing.
    rng : int, np.random.Generator or None
        Whatever `np.random.default_rng` takes. The first generator that it spawns draws the split, unless a checkpoint holds
        one. A Generator spawns new ones in each call; a ``copy.deepcopy`` of it spawns the same again.
    resume : path, optional
        A checkpoint.
    streams : int
        How many more generators the caller needs.

    Returns
    -------
    list
        Training data, validation data or None, the `Split` with both, and the generators.

    Raises
    ------
    ValueError
        If the fraction is none.
    FileFormatError
        If the file is no checkpoint.
    """
    drawing, *rest = checks.generator("training", rng).spawn(1 + streams)
    if validation is None or isinstance(validation, Dataset):
        split = Split(data, validation)
    elif isinstance(validation, float) and 0 < validation < 1:
        held_out, train = Dataset(np.arange(len(data))).split(validation, rng=drawing)
        split = Split(data, validation, train.x, held_out.x)
    else:
        raise ValueError(
            f"training got validation = {validation!r}.\nIt is a fraction in (0, 1), or a Dataset.\n"
            "Write validation=0.1 to hold out a tenth."
        )
    split = split if resume is None else _resumed(split, data, validation, resume)
    return [split.data, split.held_out, split, *rest]


def _resumed(split, data, validation, resume):
    """The split of the run in the file, or that of this one if it is the same or the file is too old to know."""
    saved = read_checkpoint(resume).get("split")
    if saved is None and isinstance(validation, float):
        warnings.warn(
            f"{resume} was written before checkpoints held their validation split: it is drawn anew.\nWith another rng, a "
            "Generator, or data in another order, samples are held out that this model was trained on.\n"
            "Pass the rng (an int), the data and the fraction that the run was started with.",
            stacklevel=4,
        )
    if saved is None or saved["train"] is None or any(saved[name] != note for name, note in split.notes.items()):
        return split  # of other data: `load_checkpoint` refuses them
    return Split(data, validation, saved["train"], saved["held_out"])


def fingerprint(data):
    """A hash of all inputs and targets of a data set: their order, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for array in (*data.inputs, data.y):
        if array is not None:
            digest.update(f"{array.dtype.str} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
