"""`SparseEmbedding`: a table without its pruned rows. The same vectors, in fewer bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from optim_checks import refused

import minidistill as md
from minidistill import losses, nn, optim
from minidistill.files import FileFormatError, read_npz, write_npz
from minidistill.nn.serialize import _fingerprint
from minidistill.prune.masks import set_mask
from minidistill.prune.sparse_embedding import SparseEmbedding, tables_with_rows_gone

IDS = np.random.default_rng(0).integers(0, 500, (4, 30))


def pruned(rows=500, width=16, share=0.8, dtype=np.float32):
    """A table of which a share of the rows is masked, and single weights of a row that stays."""
    table = nn.Embedding(rows, width, rng=0).astype(dtype)
    kept = np.ones((rows, width), bool)
    kept[np.random.default_rng(1).permutation(rows)[: round(share * rows)]] = False
    kept[np.flatnonzero(kept.any(axis=1))[0], ::2] = False
    set_mask(table.weight, kept)
    return table


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_the_same_vectors_bit_for_bit(share, dtype):
    table = pruned(share=share, dtype=dtype) if share < 1 else nn.Embedding(500, 16, rng=0).astype(dtype)
    if share == 1:
        set_mask(table.weight, np.zeros((500, 16), bool))
    sparse = SparseEmbedding.from_embedding(table)
    assert len(sparse.table) == 1 + round((1 - share) * 500) and sparse.table.dtype == dtype
    for ids in (IDS, IDS[0, 0], np.arange(500), np.empty((0, 3), int)):
        out = sparse(ids)
        assert out.dtype == dtype and np.array_equal(out.numpy(), table(ids).numpy())
    assert np.array_equal(sparse.weight, table.weight.data)
    sparse.check()
    assert not np.shares_memory(sparse.table, table.weight.data)


@pytest.mark.parametrize("rows, width, kind", [(300, 200, np.uint8), (300, 256, np.uint16), (70000, 66000, np.uint32)])
def test_the_map_has_the_smallest_type(rows, width, kind):
    table = nn.Embedding(rows, 1, rng=0)
    set_mask(table.weight, (np.arange(rows) < width)[:, None])
    sparse = SparseEmbedding.from_embedding(table)
    assert sparse.slots.dtype == kind and sparse.slots.max() == width
    assert np.array_equal(sparse.weight, table.weight.data)


def test_bytes_on_disk_and_in_memory(tmp_path):
    table = pruned(rows=5000)
    sparse = SparseEmbedding.from_embedding(table)
    held = sum(array.nbytes for _, array in sparse.named_buffers())
    assert held == 5000 * 2 + 1001 * 16 * 4 and sparse.derived() == []
    md.save(table, tmp_path / "table.npz")
    md.save(sparse, tmp_path / "sparse.npz")
    assert (tmp_path / "sparse.npz").stat().st_size < 0.3 * (tmp_path / "table.npz").stat().st_size
    back = md.load(tmp_path / "sparse.npz")
    assert back.config() == sparse.config() and np.array_equal(back(IDS).numpy(), table(IDS).numpy())
    assert "SparseEmbedding(5000, 16, stored=1,000)" in repr(back)


def test_layers_above_it_train():
    model = nn.Sequential(SparseEmbedding.from_embedding(pruned()), nn.Dense(16, 3), rng=0)
    before, weight = model.layers[0].table.copy(), model.layers[1].weight.data.copy()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    losses.cross_entropy(model(IDS[0]), IDS[0] % 3).backward()
    optimizer.step()
    assert np.array_equal(model.layers[0].table, before) and not np.array_equal(model.layers[1].weight.data, weight)


def test_what_cannot_be_looked_up():
    sparse = SparseEmbedding.from_embedding(pruned())
    with pytest.raises(IndexError, match=r"from 3 to 500.\nIds must lie in \[0, 500\)"):
        sparse([3, 500])
    with pytest.raises(IndexError, match="from -1"):
        sparse([-1])
    with pytest.raises(TypeError, match="whole numbers"):
        sparse(np.zeros(3))


def test_arrays_that_fit_no_table_are_refused(tmp_path):
    sparse = SparseEmbedding.from_embedding(pruned())
    sparse.slots[7] = 101
    refused(sparse.check, "slots up to 101", "[0, 101), and row 0 is zero", "prune.to_sparse")
    sparse.slots[7] = 100
    sparse.check()
    sparse.table[0, 3] = 1e-30
    refused(sparse.check, "numbers in row 0", "stands for all that is gone")
    refused(lambda: SparseEmbedding(0, 4), "SparseEmbedding(0, 4, stored=0)", "at least 1", "to_sparse")
    refused(lambda: SparseEmbedding(3, 4, stored=4), "stored=4", "no more rows are stored", "to_sparse")
    refused(lambda: SparseEmbedding(3, 4, dtype="int8"), "dtype='int8'", "float32 or float64", "post_training")


@pytest.mark.parametrize("name, value", [("slots", 255), ("table", 1.0)])
def test_a_file_with_wrong_slots_is_refused(tmp_path, name, value):
    """Even where every checksum is right."""
    sparse, path = SparseEmbedding.from_embedding(pruned()), tmp_path / "sparse.npz"
    md.save(sparse, path)
    arrays = dict(read_npz(path, 2**20))
    arrays[name] = arrays[name].copy()
    arrays[name][0] = value
    header = json.loads(arrays["model.json"].tobytes())
    header["arrays"][name] = _fingerprint(arrays[name])
    arrays["model.json"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    write_npz(path, arrays)
    with pytest.raises(FileFormatError, match="slots up to"):
        md.load(path)


def test_tables_that_a_mask_took_whole_rows_from():
    class Mine(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * 2.0

    whole, single, mine = nn.Embedding(500, 16, rng=0), nn.Embedding(3, 2, rng=0), Mine(3, 2, rng=0)
    set_mask(single.weight, np.array([[True, False]] * 3))
    set_mask(mine.weight, np.array([[True, True], [False, False], [True, True]]))
    table = pruned()
    assert tables_with_rows_gone(nn.Concatenate(whole, single, mine, table)) == {"3": table}
