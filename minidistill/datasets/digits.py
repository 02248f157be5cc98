"""The handwritten digits that ship with the package.

Read `dataset.py` before it. 1 797 images of 8 x 8 pixels, 48 kB; `DIGITS_LICENSE.md` beside this file says
where they come from, how the file was made, and on what terms it may be passed on (CC BY 4.0).
"""

from pathlib import Path

import numpy as np

from ..files import read_npz
from .dataset import Dataset

DIGITS_FILE = Path(__file__).with_name("digits.npz")
TRAIN_SAMPLES = 1297


def load_digits():
    """UCI handwritten digits: (train, test) of 1 297 and 500 samples.

    The split is the same for everybody: one shuffle is stored with the data (`order` in the file), and the
    first 1 297 samples in that order are for training.

    Returns
    -------
    train, test : Dataset
        `x` float32 of shape (N, 64), brightness from 0 to 1 in sixteenths, row by row; `y` int64 of shape
        (N,), the digit 0 to 9. Fresh arrays at every call.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998, doi:10.24432/C50P49.
    """
    arrays = read_npz(DIGITS_FILE)
    order = arrays["order"]
    x = arrays["images"][order].astype(np.float32) / 16
    y = arrays["labels"][order]
    train, test = slice(TRAIN_SAMPLES), slice(TRAIN_SAMPLES, None)
    return Dataset(x[train], y[train]), Dataset(x[test], y[test])
