"""Pruning. Read ``masks`` (what is pruned), ``sparse`` (how that saves bytes), then ``report`` (what was saved)."""

from .masks import magnitude, threshold
from .report import sparsity
from .sparse import SparseDense, to_sparse
