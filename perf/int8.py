"""int8: the model that `quantize.post_training` makes, and its bare product, against float32 and onnxruntime's int8.

No targets yet. The engine's integer kernel is a plain loop, exact and slow; this table says by how much.
"""

import numpy as np

import minidistill as md
from minidistill import quantize
from minidistill.bench import BATCHES, mlp
from minidistill.kernels import int8_matmul
from perf import peers
from perf.harness import OURS, measure, peer, report, threads

WIDTHS = (784, 300, 100, 10)


def onnx_product(weight, zero_point):
    """x -> MatMulInteger(x, weight) as an onnxruntime session's call; weights are part of the model, as in ours."""
    onnx = peer("onnx")
    if not onnx or not peer("onnxruntime"):
        return None
    helper, arrays, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    node = helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])
    weights = [arrays.from_array(weight, "w"), arrays.from_array(np.array(zero_point, np.uint8), "zero")]
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("x", kind.UINT8, [None, len(weight)])],
        [helper.make_tensor_value_info("y", kind.INT32, [None, weight.shape[1]])], weights,
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    session = peers.session(helper.make_model(graph, opset_imports=opset, ir_version=8), 2)
    return lambda x: session.run(None, {"x": x})[0]


def product_sides(batch):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (batch, WIDTHS[0])).astype(np.uint8)
    weight = rng.integers(-127, 128, WIDTHS[:2]).astype(np.int8)
    floats = x.astype(np.float32) - 7, weight.astype(np.float32)
    theirs = onnx_product(weight, 7)
    sides = {
        OURS: lambda: int8_matmul(x, weight, 7),
        "float32 BLAS": lambda: floats[0] @ floats[1],
        "onnxruntime int8": (lambda: theirs(x)) if theirs else None,
    }
    for side in sides.values():
        if side:
            np.testing.assert_array_equal(side(), sides[OURS]())  # sums below 2**24: exact in float32 too
    return sides


def main():
    rows = []
    model = mlp(WIDTHS)
    data = np.random.default_rng(0).random((512, WIDTHS[0]), dtype=np.float32)
    int8 = quantize.post_training(model, calibration=data)
    np.testing.assert_allclose(md.predict(int8, data), md.predict(model, data), atol=0.2)
    with threads(2):
        for batch in BATCHES:
            rows.append(measure(f"784 x 300 product, batch {batch}", product_sides(batch), seconds=0.05))
        for batch in BATCHES:
            x = data[:batch]
            sides = {OURS: lambda x=x: md.predict(int8, x), "float32": lambda x=x: md.predict(model, x)}
            rows.append(measure(f"784-300-100-10, batch {batch}", sides, seconds=0.05))
    return report("int8", "int8", rows)
