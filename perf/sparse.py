"""Sparse prediction: the model that `prune.to_sparse` makes, against the dense one and scipy's CSR product.

No targets yet. The engine's sparse kernel is a plain loop; this table says from which sparsity on it pays.
"""

import numpy as np

import minidistill as md
from minidistill import prune
from minidistill.bench import BATCHES, mlp
from perf.harness import OURS, measure, peer, report, threads

WIDTHS, SPARSITIES = (784, 300, 100, 10), (0.8, 0.9, 0.95)


def scipy_predict(model):
    """x -> the same forward pass with scipy.sparse matrices, transposed so that CSR multiplies whole rows of samples."""
    if not peer("scipy"):
        return None
    from scipy.sparse import csr_matrix

    layers = [(csr_matrix(layer.weight.data.T), layer.bias.data, layer.activation) for layer in model.layers]

    def predict(x):
        for weight, bias, activation in layers:
            x = (weight @ x.T).T + bias
            x = np.maximum(x, 0) if activation else x
        return x

    return predict


def main():
    rows = []
    for sparsity in SPARSITIES:
        model = mlp(WIDTHS)
        prune.magnitude(model, sparsity=sparsity)
        sparse, theirs = prune.to_sparse(model), scipy_predict(model)
        for batch in BATCHES:
            x = np.random.default_rng(0).random((batch, WIDTHS[0]), dtype=np.float32)
            sides = {
                OURS: lambda x=x, m=sparse: md.predict(m, x),
                "dense": lambda x=x, m=model: md.predict(m, x),
                "scipy": (lambda x=x, f=theirs: f(x)) if theirs else None,
            }
            for side in sides.values():
                if side:
                    np.testing.assert_allclose(side(), sides[OURS](), rtol=1e-3, atol=1e-4)
            with threads(2):
                rows.append(measure(f"{sparsity:.0%} zeros, batch {batch}", sides, seconds=0.05, settle=0.03))
    return report("sparse", "784-300-100-10, pruned", rows)
