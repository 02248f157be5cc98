"""Pruning. Read ``masks`` (what a mask is), ``criteria`` (which weights go), ``structure`` (which units), ``shrink`` and
``sparse`` (how that saves bytes), then ``report`` (what was saved). ``second_order`` corrects what stays; ``schedules``
prune while a model trains. Lottery tickets are in ``lab/``.
"""

from ..lazy import names_from_lab
from .criteria import activation, gradient, magnitude, random, standard_deviation, threshold
from .report import sensitivity, sparsity
from .schedules import Gradual, Iterative, OneShot, Regrow
from .second_order import obs
from .shrink import shrink
from .sparse import SparseDense, to_sparse
from .sparse_embedding import SparseEmbedding
from .structure import blocks, embedding_columns, embedding_rows, n_m, neurons

__getattr__, __dir__ = names_from_lab(__name__, tickets="Ticket lottery_tickets")
