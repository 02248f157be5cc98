"""What wrote ``files_of_e6a02d7.zip`` with the engine of that commit: its files must load for good (``test_old_files.py``).

It shows what is in them. ``PYTHONPATH=<checkout of e6a02d7> python tests/data/write_old_files.py`` writes them again.
"""

import tempfile
import zipfile
from pathlib import Path

import numpy as np

import minidistill as md
from minidistill import datasets, deploy, distill, nn, optim, prune, quantize
from minidistill.training import Checkpoint, EarlyStopping

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype(np.float32)
Y = np.argmax(X[:, :3], axis=1)
IDS = RNG.integers(0, 9, (32, 2))
DATA = datasets.Dataset(X, Y)


def network(seed=0):
    return nn.Sequential(nn.Dense(6, 8, activation="relu"), nn.Dense(8, 3), rng=seed)


def models():
    """{name: (model, its inputs)}, one of each kind of layer."""
    plain = network()
    md.fit(plain, DATA, epochs=5, progress=False, rng=0)
    several = nn.Sequential(
        nn.Dense(6, 8, activation="gelu"), nn.Dropout(0.2), nn.Dense(8, 8, activation="tanh", bias=False), nn.Flatten(),
        nn.Dense(8, 3), nn.Activation("softplus"), rng=1,
    )  # fmt: skip
    several.layers[0].weight.requires_grad = False
    several.layers[4].weight.constraints.append(nn.MaxNorm(2.0))
    pruned = prune.magnitude(plain.copy(), 0.5, scope="layer")
    table = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Dense(8, 3), rng=2)
    shared = deploy.share_weights(pruned, bits=2)
    wide = nn.Sequential(nn.Dense(6, 40, activation="relu"), nn.Dense(40, 3), rng=5)
    qat = quantize.prepare_qat(plain, calibration=X)
    md.fit(qat, DATA, epochs=1, progress=False, rng=0)
    with_rows = table.copy()
    prune.embedding_rows(with_rows, 0.3)
    return {
        "dense": (plain, X),
        "several": (several, X),
        "pruned": (pruned, X),
        "table": (table, IDS),
        "sparse_csr": (prune.to_sparse(pruned, "csr"), X),
        "sparse_int8": (prune.to_sparse(pruned, "bitmap", "int8"), X),
        "sparse_table": (prune.to_sparse(with_rows), IDS),
        "shared": (shared, X),
        "compressed": (deploy.compress(shared), X),
        "int8": (quantize.post_training(plain, calibration=X), X),
        "int3": (quantize.post_training(plain, calibration=X, bits=3), X),
        "int8_dynamic": (quantize.post_training(plain, mode="dynamic"), X),
        "int4_groups": (quantize.post_training(wide, mode="weight_only", bits=4, group=32), X),
        "int8_table": (quantize.post_training(table, calibration=IDS), IDS),
        "qat": (qat, X),
        "qat_converted": (quantize.convert(qat), X),
    }


def train(model, epochs, **options):
    return md.fit(model, DATA, optimizer=optim.Adam(model.parameters(), lr=0.01), epochs=epochs, batch_size=8,
                  validation=0.25, progress=False, rng=0, **options)  # fmt: skip


def write(folder):
    predictions = {"x": X, "y": Y, "ids": IDS}
    for name, (model, x) in models().items():
        md.save(model, folder / f"{name}.npz", {"by": "e6a02d7"})
        predictions[f"model {name}"] = md.predict(model, x)[:8]
    for precision in ("float32", "float16"):
        model, path = prune.magnitude(network(3), 0.25), folder / f"checkpoint_{precision}.npz"
        train(model, 2, precision=precision, callbacks=[EarlyStopping(patience=9), Checkpoint(path)])
        predictions[f"checkpoint {precision}"] = md.predict(model, X)[:8]
        callbacks = [EarlyStopping(patience=9), Checkpoint(folder / "unused.npz")]
        train(model, 4, precision=precision, callbacks=callbacks, resume=path)
        predictions[f"resumed {precision}"] = md.predict(model, X)[:8]
    (folder / "unused.npz").unlink()
    for dtype in ("float32", "float16"):
        cache = distill.TeacherCache(network(4), DATA, dtype=np.dtype(dtype).type)
        cache.save(folder / f"answers_{dtype}.npz")
        predictions[f"answers {dtype}"] = cache.answers(DATA)[:8]
    np.savez_compressed(folder / "predictions.npz", **predictions)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        with zipfile.ZipFile(
            Path(__file__).with_name("files_of_e6a02d7.zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=9
        ) as one:
            for path in sorted(Path(folder).iterdir()):
                one.write(path, path.name)
