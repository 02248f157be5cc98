"""The same work in PyTorch, JAX and onnxruntime, from one of our models and with its weights: what a user of each would type.

A model is an `nn.Sequential` of `nn.Dense` with relu, the last one linear (`minidistill.bench.mlp`). Every function returns
None where its library is not installed. Given up: other layers and other losses.
"""

from __future__ import annotations

import functools

import numpy as np

from perf.harness import peer

LR = 1e-3


# ---- PyTorch ---------------------------------------------------------------------------------------------------------
def torch_mlp(model):
    """The model as a torch.nn.Sequential."""
    torch = peer("torch")
    if not torch:
        return None
    layers = []
    for layer in model.layers:
        linear = torch.nn.Linear(layer.in_features, layer.out_features)
        linear.weight.data = torch.from_numpy(layer.weight.data.T.copy())
        linear.bias.data = torch.from_numpy(layer.bias.data.copy())
        layers += [linear, torch.nn.ReLU()] if layer.activation else [linear]
    return torch.nn.Sequential(*layers)


def torch_step(model, x, loss_of):
    """A training step: zero_grad, ``loss_of(logits)``, backward, Adam. Returns the loss."""
    torch = peer("torch")
    if not torch:
        return None
    net, x = torch_mlp(model), torch.from_numpy(x)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)

    def step():
        optimizer.zero_grad()
        loss = loss_of(net(x))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def torch_cross_entropy(y):
    torch = peer("torch")
    if torch:
        y = torch.from_numpy(y)
        return lambda logits: torch.nn.functional.cross_entropy(logits, y)


def torch_kd_loss(teacher_logits, y, temperature, alpha):
    """With the teacher's logits cached: F.kl_div at temperature T, times T², and cross-entropy."""
    torch = peer("torch")
    if torch:
        f, y, teacher = torch.nn.functional, torch.from_numpy(y), torch.from_numpy(teacher_logits)

        def loss(logits):
            student = f.log_softmax(logits / temperature, dim=1)
            soft = f.kl_div(student, f.softmax(teacher / temperature, dim=1), reduction="batchmean")
            return alpha * temperature**2 * soft + (1 - alpha) * f.cross_entropy(logits, y)

        return loss


# ---- JAX -------------------------------------------------------------------------------------------------------------
def jax_step(model, x, loss_of):
    """A training step: one jax.jit of loss, gradient and Adam, the state donated to it. Returns the loss."""
    jax = peer("jax")
    if not jax:
        return None
    jnp = jax.numpy
    params = [jnp.array(p.data) for p in model.parameters()]
    state = [params, [jnp.zeros_like(p) for p in params], [jnp.zeros_like(p) for p in params], jnp.float32(0)]
    x = jnp.array(x)

    def logits(params, x):
        for w, b in zip(params[:-2:2], params[1:-2:2]):
            x = jax.nn.relu(x @ w + b)
        return x @ params[-2] + params[-1]

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))  # written in place: faster than without
    def update(params, m, v, count, x):
        loss, grads = jax.value_and_grad(lambda p: loss_of(logits(p, x)))(params)
        count = count + 1
        m = [0.9 * a + 0.1 * g for a, g in zip(m, grads)]
        v = [0.999 * a + 0.001 * g * g for a, g in zip(v, grads)]
        rate, root = LR / (1 - 0.9**count), 1 / jnp.sqrt(1 - 0.999**count)
        params = [p - rate * a / (root * jnp.sqrt(b) + 1e-8) for p, a, b in zip(params, m, v)]
        return loss, params, m, v, count

    def step():
        loss, *state[:] = update(*state, x)
        return loss.block_until_ready()

    return step


def jax_cross_entropy(y):
    jax = peer("jax")
    if jax:
        jnp, y = jax.numpy, jax.numpy.array(y)
        return lambda z: -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1).mean()


def jax_kd_loss(teacher_logits, y, temperature, alpha):
    jax = peer("jax")
    if jax:
        hard = jax_cross_entropy(y)
        teacher = jax.numpy.array(teacher_logits) / temperature

        def loss(z):
            q, log_q = jax.nn.softmax(teacher), jax.nn.log_softmax(teacher)
            soft = (q * (log_q - jax.nn.log_softmax(z / temperature))).sum(axis=1).mean()
            return alpha * temperature**2 * soft + (1 - alpha) * hard(z)

        return loss


# ---- onnxruntime -----------------------------------------------------------------------------------------------------
def onnx_session(model, threads):
    """The model as an onnxruntime session with one input, "x"."""
    onnx, runtime = peer("onnx"), peer("onnxruntime")
    if not onnx or not runtime:
        return None
    helper, arrays, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    nodes, weights, current = [], [], "x"
    for i, layer in enumerate(model.layers):
        weights += [arrays.from_array(layer.weight.data, f"w{i}"), arrays.from_array(layer.bias.data, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [current, f"w{i}", f"b{i}"], [f"z{i}"]))
        current = f"z{i}"
        if layer.activation:
            nodes.append(helper.make_node("Relu", [current], [f"h{i}"]))
            current = f"h{i}"
    inputs = [helper.make_tensor_value_info("x", kind, [None, model.layers[0].in_features])]
    outputs = [helper.make_tensor_value_info(current, kind, [None, model.layers[-1].out_features])]
    return session(_onnx_model(nodes, inputs, outputs, weights), threads)


def onnx_product(weight, zero_point, threads):
    """x -> MatMulInteger(x, weight) as a call of a session; the weight is part of the model, as it is packed in ours."""
    onnx = peer("onnx")
    if not onnx or not peer("onnxruntime"):
        return None
    helper, arrays, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    node = helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])
    weights = [arrays.from_array(weight, "w"), arrays.from_array(np.array(zero_point, np.uint8), "zero")]
    inputs = [helper.make_tensor_value_info("x", kind.UINT8, [None, len(weight)])]
    outputs = [helper.make_tensor_value_info("y", kind.INT32, [None, weight.shape[1]])]
    run = session(_onnx_model([node], inputs, outputs, weights), threads).run
    return lambda x: run(None, {"x": x})[0]


def onnx_int8_session(model, form, threads):
    """A static integer model of ours, with its weights, scales and zero points, as a session with one input, "x".

    ``form`` is "QOperator" (QuantizeLinear, then QGemm with relu in its clamp) or "QDQ" (Gemm between QuantizeLinear and
    DequantizeLinear, which the runtime fuses): the two that its own static quantizer writes.
    """
    onnx = peer("onnx")
    if not onnx or not peer("onnxruntime"):
        return None
    helper, arrays, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    weights, nodes = [], []

    def constant(name, value):
        weights.append(arrays.from_array(np.asarray(value), name))
        return name

    def node(operation, inputs, output, **options):
        nodes.append(helper.make_node(operation, inputs, [output], **options))
        return output

    def scale_of(name, scale, zero_point):
        return [constant(f"{name}_scale", scale[0]), constant(f"{name}_zero", zero_point[0])]

    current, layers = "x", model.layers
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        if i == 0:
            scale = scale_of("x", layer.input_scale, layer.input_zero_point)
            current = node("QuantizeLinear", [current, *scale], "q0")
        weight = constant(f"w{i}", np.asarray(layer.weight_q))
        w_scale = [constant(f"ws{i}", layer.weight_scale), constant(f"wz{i}", np.zeros(layer.out_features, np.int8))]
        bias, after = constant(f"b{i}", layer.bias_q), None
        if not last:
            after = scale_of(f"h{i}", layer.output_scale, layer.output_zero_point)
        if form == "QOperator":
            inputs = [current, *scale, weight, *w_scale, bias, *(after or [])]
            current = node("QGemm", inputs, f"q{i + 1}", domain="com.microsoft")
        else:
            b_scale = [
                constant(f"bs{i}", layer.sum_scale()),
                constant(f"bz{i}", np.zeros(layer.out_features, np.int32)),
            ]
            floats = [
                node("DequantizeLinear", [current, *scale], f"xf{i}"),
                node("DequantizeLinear", [weight, *w_scale], f"wf{i}", axis=1),
                node("DequantizeLinear", [bias, *b_scale], f"bf{i}", axis=0),
            ]
            current = node("Gemm", floats, f"z{i}")
            if not last:
                current = node("QuantizeLinear", [node("Relu", [current], f"r{i}"), *after], f"q{i + 1}")
        scale = after
    inputs = [helper.make_tensor_value_info("x", kind.FLOAT, [None, layers[0].in_features])]
    outputs = [helper.make_tensor_value_info(current, kind.FLOAT, [None, layers[-1].out_features])]
    return session(_onnx_model(nodes, inputs, outputs, weights), threads)


def onnx_4_bits(q, scale, threads):
    """x @ weight by MatMulNBits: 4-bit integers (K, N) in [-7, 7], a scale for each 32 inputs of a column, (K / 32, N)."""
    onnx = peer("onnx")
    if not (onnx and peer("onnxruntime")):
        return None
    k, n = q.shape
    padded = np.full((len(scale) * 32, n), 8, np.uint8)
    padded[:k] = q + 8  # its zero point; neighbours share a byte, the first has the lower half
    blocks = padded.T.reshape(n, len(scale), 16, 2)
    helper, arrays, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    packed = {"q": blocks[..., 0] | blocks[..., 1] << 4, "scale": np.ascontiguousarray(scale.T).reshape(-1)}
    options = {"K": k, "N": n, "bits": 4, "block_size": 32, "accuracy_level": 4, "domain": "com.microsoft"}
    node = helper.make_node("MatMulNBits", ["x", *packed], ["y"], **options)
    inputs = [helper.make_tensor_value_info("x", kind.FLOAT, [None, k])]
    outputs = [helper.make_tensor_value_info("y", kind.FLOAT, [None, n])]
    weights = [arrays.from_array(array, name) for name, array in packed.items()]
    run = session(_onnx_model([node], inputs, outputs, weights), threads)
    return lambda x: run.run(None, {"x": x})[0]


def _onnx_model(nodes, inputs, outputs, weights):
    helper = peer("onnx").helper
    graph = helper.make_graph(nodes, "model", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def session(onnx_model, threads):
    """An onnxruntime session on this many threads."""
    runtime = peer("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(onnx_model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def same_losses(sides, steps=5, rtol=2e-4):
    """Make the first steps on every side and compare the losses: all sides do the same work, or this raises."""
    losses = {name: [float(step()) for _ in range(steps)] for name, step in sides.items() if step is not None}
    first, *others = losses.items()
    for name, values in others:
        np.testing.assert_allclose(values, first[1], rtol=rtol, err_msg=f"{name} against {first[0]}")
