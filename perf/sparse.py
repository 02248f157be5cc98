"""Sparse layers against dense BLAS, PyTorch's CSR (MKL) and scipy's: whole forwards, from and to row-major arrays.

The peers multiply a sparse matrix by a dense one, so the samples stand in columns and are turned before and after. PyTorch
has two ways to say that; each case takes the faster. A second table is of our own formats, a third of a whole model.
"""

import warnings

import numpy as np

import minidistill as md
from minidistill import nn, prune
from minidistill.bench import BATCHES, mlp
from minidistill.timing import compare
from perf.harness import OURS, keep, measure, peer, table, threads

SHAPES, SPARSITIES = ((1024, 1024), (784, 300)), (0.8, 0.9, 0.95)
TARGETS = {(256, 0.8): 1.0, (256, 0.9): 2.0, (256, 0.95): 3.0, (1, 0.9): 3.0}  # of the dense layer's time
FORMATS = {
    "csr": {},
    "bitmap": {"format": "bitmap"},
    "csr, int8": {"values": "int8"},
    "bitmap, int8": {"format": "bitmap", "values": "int8"},
}


def pruned(shape, sparsity):
    """A relu layer with random weights, pruned by magnitude, and a bias."""
    layer = nn.Dense(*shape, activation="relu", rng=0)
    layer.bias.assign(np.random.default_rng(1).normal(size=shape[1]))
    return prune.magnitude(layer, sparsity, allow_empty="")


def torch_csr(layer, x):
    """The faster of PyTorch's two ways, as a function of x."""
    torch = peer("torch")
    if not torch:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta
        weight = torch.tensor(layer.weight.data.T.copy()).to_sparse_csr()
    bias, linear = torch.tensor(layer.bias.data), torch.nn.functional.linear

    def product(x):
        with torch.no_grad():
            return torch.relu_((weight @ torch.from_numpy(x).T).T.contiguous().add_(bias)).numpy()

    def by_linear(x):
        with torch.no_grad():
            return torch.relu_(linear(torch.from_numpy(x), weight, bias)).contiguous().numpy()

    ways = {way: lambda way=way: way(x) for way in (product, by_linear)}
    times = compare(ways, seconds=0.02, settle=0.02, rounds=2)
    best = min(times, key=lambda way: times[way].median)
    return lambda: best(x)


def scipy_csr(layer, x):
    if not peer("scipy"):
        return None
    from scipy.sparse import csr_matrix

    weight = csr_matrix(layer.weight.data.T)
    return lambda: np.maximum(np.ascontiguousarray((weight @ x.T).T) + layer.bias.data, 0)


def peers():
    """Sparse against dense and the peers, layer by layer; single samples also with the second copy made for them."""
    rows = []
    for shape in SHAPES:
        for batch, single in [(1, True), *((batch, False) for batch in BATCHES)]:
            x = np.random.default_rng(0).normal(size=(batch, shape[0])).astype(np.float32)
            for sparsity in SPARSITIES:
                layer = pruned(shape, sparsity)
                sparse = prune.to_sparse(layer, single=single)
                sides = {
                    OURS: lambda s=sparse, x=x: s.infer(x),
                    "dense": lambda d=layer, x=x: d.infer(x),
                    "torch CSR": torch_csr(layer, x),
                    "scipy": scipy_csr(layer, x),
                }
                _agree(sides)
                targets = {"torch CSR": 1.0, "scipy": 2.0}
                if (batch, sparsity) in TARGETS:
                    targets["dense"] = TARGETS[batch, sparsity]
                case = f"{shape[0]} x {shape[1]}, {sparsity:.0%}, batch {batch}{', single=True' if single else ''}"
                rows.append(measure(case, sides, {k: v for k, v in targets.items() if sides[k]}))
    return rows


def formats():
    """Our formats against each other and the dense layer: (1024, 1024)."""
    rows = []
    for batch in BATCHES:
        x = np.random.default_rng(0).normal(size=(batch, 1024)).astype(np.float32)
        for sparsity in (0.5, *SPARSITIES):
            layer = pruned((1024, 1024), sparsity)
            made = {name: prune.to_sparse(layer, **how) for name, how in FORMATS.items()}
            if sparsity == 0.5:
                layer = prune.n_m(nn.Dense(1024, 1024, activation="relu", rng=0), 2, 4)
                made["2:4"] = prune.to_sparse(layer, format="n_m", n=2, m=4)
            sides = {OURS if name == "csr" else name: lambda m=m, x=x: m.infer(x) for name, m in made.items()}
            sides["dense"] = lambda d=layer, x=x: d.infer(x)
            rows.append(measure(f"1024 x 1024, {sparsity:.0%}, batch {batch}", sides, seconds=0.1))
    return rows


def models():
    """784-300-100-10 as `md.predict` runs it."""
    rows = []
    for sparsity in SPARSITIES:
        model = mlp((784, 300, 100, 10))
        sparse = prune.to_sparse(prune.magnitude(model, sparsity=sparsity))
        for batch in BATCHES:
            x = np.random.default_rng(0).random((batch, 784), dtype=np.float32)
            sides = {OURS: lambda x=x, m=sparse: md.predict(m, x), "dense": lambda x=x, m=model: md.predict(m, x)}
            if batch == 1:
                twice = prune.to_sparse(model, single=True)
                sides["single=True"] = lambda x=x, m=twice: md.predict(m, x)
            _agree(sides)
            rows.append(measure(f"784-300-100-10, {sparsity:.0%}, batch {batch}", sides, seconds=0.1))
    return rows


def _agree(sides):
    """All sides give what the dense layer gives."""
    for name, side in sides.items():
        if side:
            np.testing.assert_allclose(side(), sides["dense"](), rtol=1e-3, atol=1e-4, err_msg=name)


def main():
    with threads(2):
        parts = {"layers": peers(), "formats (ours: csr)": formats(), "models": models()}
    keep("sparse", [row for rows in parts.values() for row in rows])
    return "\n\n".join(table(title, rows) for title, rows in parts.items())
