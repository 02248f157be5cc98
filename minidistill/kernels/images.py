"""Fast twin of the image kernel of `reference/`. Read that folder and `_jit.py` first."""

import numpy as np

from minidistill.kernels._jit import kernel, kernel_input

_INT64 = np.dtype(np.int64)


def shift_images(images, down, right):
    """As `reference.shift_images`, each pixel copied once: no larger image with a border of zeros in between."""
    images = kernel_input(images)
    out = np.zeros(images.shape, images.dtype)
    _shift(images, kernel_input(down, _INT64), kernel_input(right, _INT64), out)
    return out


@kernel
def _shift(images, down, right, out):
    n, height, width = images.shape
    for i in range(n):
        first = max(0, right[i])
        for row in range(max(0, down[i]), min(height, height + down[i])):
            source = images[i, row - down[i], first - right[i] :]
            target = out[i, row, first : min(width, width + right[i])]
            for column in range(target.size):
                target[column] = source[column]
