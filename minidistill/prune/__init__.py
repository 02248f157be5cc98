"""Pruning. Read ``masks`` (what is pruned), then ``sparse`` (how that saves bytes)."""

from .masks import magnitude, sparsity, threshold
from .sparse import SparseDense, to_sparse
