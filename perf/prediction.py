"""float32 prediction: `md.predict`, its checks included, against PyTorch in inference mode and onnxruntime.

Three models at batch 1, 32 and 256; results are compared before they are timed. The last lines are geometric means.
"""

import numpy as np

import minidistill as md
from minidistill.bench import BATCHES, MODELS, mlp
from perf import peers
from perf.harness import OURS, measure, peer, report, threads


def sides_of(widths, batch):
    model = mlp(widths)
    x = np.random.default_rng(0).random((batch, widths[0]), dtype=np.float32)
    torch, net, session = peer("torch"), peers.torch_mlp(model), peers.onnx_session(model, 2)

    def torch_predict():
        with torch.inference_mode():
            return net(x_torch)

    if torch:
        x_torch = torch.from_numpy(x)
        net.eval()
    return {
        OURS: lambda: md.predict(model, x),
        "torch": torch_predict if torch else None,
        "onnxruntime": (lambda: session.run(None, {"x": x})[0]) if session else None,
    }


def check(sides):
    expected = sides[OURS]()
    for side in sides.values():
        if side:
            np.testing.assert_allclose(np.asarray(side()), expected, rtol=1e-4, atol=1e-5)


def means(rows):
    """Geometric mean of the ratios against each peer, over all cases and over those of batch 1."""
    lines = []
    for name in ("torch", "onnxruntime"):
        for label, chosen, target in (
            ("all", rows, 1),
            ("batch 1", [r for r in rows if r["case"].endswith("batch 1")], 2),
        ):
            ratios = [row["ratios"][name][0] for row in chosen if name in row["ratios"]]
            if ratios and (name, label) != ("onnxruntime", "batch 1"):
                lines.append(f"geometric mean, {name}, {label}: {np.exp(np.mean(np.log(ratios))):.2f}x [{target}]")
    return lines


def main():
    rows = []
    for widths in MODELS:
        for batch in BATCHES:
            sides = sides_of(widths, batch)
            with threads(2):
                check(sides)
                rows.append(measure(f"{'-'.join(map(str, widths))}, batch {batch}", sides, seconds=0.1))
    return "\n".join([report("prediction", "predict, float32", rows), *means(rows)])
