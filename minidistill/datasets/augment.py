"""Augmentation: images moved by a few pixels, each by its own random amount.

Nothing needs to be read before it. Call it on a batch inside a training loop, so that every epoch sees other
shifts. Given up for simplicity: whole pixels, zeros at the border, one channel.
"""

from .. import checks


def shift(images, height, width, max_pixels=1, rng=None):
    """Move every image by up to `max_pixels` down or up and right or left, filling with 0.

    Both distances are drawn uniformly from the integers ``-max_pixels .. max_pixels``, independently.

    Parameters
    ----------
    images : ndarray, shape (N, height * width) or (N, height, width)
        Not changed.
    height, width : int
        In pixels.
    max_pixels : int
        0 to ``min(height, width) - 1``, so that a part of each image stays.
    rng : int, Generator or None

    Returns
    -------
    ndarray
        A new array of the shape and dtype of `images`.

    Raises
    ------
    ValueError
        If the shape does not fit or `max_pixels` is out of range.
    """
    for name, value in (("height", height), ("width", width)):
        checks.whole("shift()", name, value, "[1, inf)", "the pixels of an image on that side", 28)
    most = min(height, width) - 1  # so that a part of each image stays
    checks.whole("shift()", "max_pixels", max_pixels, f"[0, {most}]", "the largest shift, in pixels", min(1, most))
    images = checks.array("shift()", "images", images)
    if images.shape[1:] not in [(height * width,), (height, width)]:
        rule = f"They must be (N, {height * width}) or (N, {height}, {width}) for {height} x {width} pixels."
        cure = "Pass the height and width of your images, or reshape them."
        raise ValueError(f"shift() got images of shape {images.shape}.\n{rule}\n{cure}")
    from ..kernels import shift_images  # here and not above: data can be read without Numba

    n, m = len(images), max_pixels
    down, right = checks.generator("shift()", rng).integers(-m, m + 1, size=(2, n))
    return shift_images(images.reshape(n, height, width), down, right).reshape(images.shape)
