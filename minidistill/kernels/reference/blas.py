"""Matrix products."""

from __future__ import annotations

import numpy as np


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product, (M, K) times (K, N) to (M, N)."""
    return a @ b


def products(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Several matrix products that do not depend on one another."""
    return [a @ b for a, b in pairs]
