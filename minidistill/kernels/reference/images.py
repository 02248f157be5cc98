"""Moving images by whole pixels.

Legend: M samples, H rows of pixels, W columns.
"""

import numpy as np


def shift_images(images, down, right):
    """Move every image by its own number of pixels, filling with 0.

    Parameters
    ----------
    images : ndarray, shape (M, H, W)
    down, right : ndarray of int, shape (M,)
        Between -H and H, and -W and W; negative is up, and left.

    Returns
    -------
    ndarray of the shape and dtype of `images`
    """
    out = np.zeros_like(images)
    height, width = images.shape[1:]
    for image, moved, d, r in zip(images, out, down, right):
        moved[max(0, d) : height + min(0, d), max(0, r) : width + min(0, r)] = image[
            max(0, -d) : height + min(0, -d), max(0, -r) : width + min(0, -r)
        ]
    return out
