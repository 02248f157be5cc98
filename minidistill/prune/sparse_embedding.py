"""A table that stores only the rows that are left: what masks of whole rows (`embedding_rows`) become in bytes.

An id leads to a slot, a slot to a row; all ids whose rows are gone lead to slot 0, a row of zeros. The map costs one to four
bytes an id, whatever the width of a row. Nothing is rounded. Read ``nn/layers.Embedding`` before this file.

Given up: like all sparse layers it does not train; and single weights that are masked in a row that stays are stored.

Shapes: R ids, D the length of a vector, S rows that are stored.
"""

from __future__ import annotations

import numpy as np

from ..nn.layers import Embedding, check_ids
from ..nn.module import Module
from ..nn.serialize import register
from ..tensor import Tensor
from .masks import kept_of


@register
class SparseEmbedding(Module):
    """An `Embedding` without its pruned rows, which read as zeros.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        R and D.
    stored : int
        S.
    dtype : str
        "float32" or "float64".

    Attributes
    ----------
    slots : ndarray of uint8, uint16 or uint32, shape (R,)
        For each id, 0 (its row is gone) or its place in ``table``; in the smallest type that holds S.
    table : ndarray of float, shape (S + 1, D)
        Row 0 is zero; then the rows that are left, in the order of their ids.
    weight : ndarray of float, shape (R, D)
        The whole table, put together when asked for.
    """

    weight = property(lambda self: self.table[self.slots])

    def __init__(self, num_embeddings, embedding_dim, stored=0, dtype="float32"):
        if min(num_embeddings, embedding_dim) < 1 or not 0 <= stored <= num_embeddings:
            raise ValueError(
                f"SparseEmbedding({num_embeddings}, {embedding_dim}, stored={stored}) was asked for.\nBoth sizes are at "
                "least 1, and no more rows are stored than there are.\nMake it with prune.to_sparse, from a pruned model."
            )
        if dtype not in ("float32", "float64"):
            raise ValueError(
                f"SparseEmbedding got dtype={dtype!r}.\nIts rows are float32 or float64, as those of an Embedding.\n"
                "Make it with prune.to_sparse; for int8, write quantize.post_training(model)."
            )
        self.num_embeddings, self.embedding_dim = int(num_embeddings), int(embedding_dim)
        self.slots = np.zeros(self.num_embeddings, np.min_scalar_type(stored))
        self.table = np.zeros((stored + 1, self.embedding_dim), dtype)

    @classmethod
    def from_embedding(cls, embedding):
        """The rows of an `Embedding` of which its mask keeps anything: all of them, if it has none."""
        ids = np.flatnonzero(kept_of(embedding.weight).any(axis=1))
        layer = cls(embedding.num_embeddings, embedding.embedding_dim, len(ids), embedding.weight.dtype.name)
        layer.slots[ids] = np.arange(1, len(ids) + 1)
        layer.table[1:] = embedding.weight.data[ids]
        return layer

    def check(self):
        """Refuse slots that lead out of the table, and a row of zeros that is not zero; run for every layer loaded."""
        if self.slots.max() >= len(self.table) or self.table[0].any():
            raise ValueError(
                f"{self!r} has slots up to {self.slots.max()}, or numbers in row 0.\nSlots lie in [0, {len(self.table)}), "
                "and row 0 is zero: it stands for all that is gone.\nMake it with prune.to_sparse."
            )

    def forward(self, ids):
        """ids of any shape, whole numbers in [0, R), to (*shape, D). Layers above it train as usual."""
        return Tensor(self.table[self.slots[check_ids(self, ids)]])

    def config(self):
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "stored": len(self.table) - 1,
            "dtype": self.table.dtype.name,
        }

    @staticmethod
    def stored_shapes(config):
        """As in `Dense`."""
        shape = config["stored"] + 1, config["embedding_dim"]
        return {"slots": (config["num_embeddings"],), "table": shape}

    def __repr__(self):
        return f"SparseEmbedding({self.num_embeddings}, {self.embedding_dim}, stored={len(self.table) - 1:,})"


def tables_with_rows_gone(model):
    """{path: table} of the embeddings of which masks take whole rows; subclasses with a forward of their own are left out."""
    tables = {
        p: m for p, m in model.named_modules() if isinstance(m, Embedding) and type(m).forward is Embedding.forward
    }
    return {path: table for path, table in tables.items() if not kept_of(table.weight).any(axis=1).all()}
