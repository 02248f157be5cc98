"""What a dense layer does besides its products.

Legend: M samples, N outputs.
"""

import numpy as np


def add_bias(z, bias, relu):
    """Add a bias to every row, and keep what is positive if `relu`; in place.

    Parameters
    ----------
    z : ndarray of float32 or float64, shape (M, N), C-contiguous
        Changed in place.
    bias : ndarray of z's dtype, shape (N,)
    relu : bool
        NaN stays NaN.
    """
    z += bias
    if relu:
        np.maximum(z, 0, out=z)


def dense_backward(g, y):
    """What a dense layer's backward pass does around its products: through the relu, and to the bias.

    Parameters
    ----------
    g : ndarray, shape (M, N)
        Gradient of the layer's value.
    y : ndarray, shape (M, N), or None
        The value, if there was a relu: where it is not positive the gradient is 0, whatever stands in `g`.

    Returns
    -------
    dz : ndarray, shape (M, N)
        Gradient of ``x @ weight + bias``; `g` itself without a relu.
    db : ndarray, shape (N,)
        Its sum over the rows: the gradient of the bias.
    """
    dz = g if y is None else np.where(y > 0, g, g.dtype.type(0))
    return dz, dz.sum(axis=0)
