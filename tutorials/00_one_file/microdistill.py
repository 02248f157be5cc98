"""microdistill: how a neural network is made smaller, the whole story in one file of NumPy.

    python tutorials/00_one_file/microdistill.py [digits.npz]

A teacher learns the digits. A small student learns from the teacher's answers (distillation). Its smallest weights are
removed (pruning). The others become whole numbers of 8 bits, and so does all arithmetic between layers (quantization). The
table at the end counts the bytes of files that were really written.

Read from top to bottom; nothing is used before it is defined. What was given up: speed (the engine has kernels) and checks
(the engine refuses what would go wrong; this file trusts you). Each section names the files that do the same with care.
Tests hold both together, the integers bit for bit.

Letters for shapes: N samples, K inputs and M outputs of a layer, C classes, R rows and D columns of an embedding table.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np


# ---- 1. The tape: minidistill/tensor.py, ops/ ------------------------------------------------------------------------
class Tensor:
    """An array that remembers how it was computed, so that gradients can flow back.

    A result knows its `parents`, and for each a function (the vector-Jacobian product, VJP) that turns the gradient with
    respect to the result into the gradient with respect to that parent.
    """

    def __init__(self, data, parents=(), vjps=()):
        self.data, self.parents, self.vjps = np.asarray(data), parents, vjps
        self.grad, self.kept = None, None  # kept: the mask of a pruned weight, section 5

    def backward(self):
        """Gradients of this scalar with respect to everything that it was computed from, added to their `grad`.

        The gradient of a tensor is complete when *all* its uses have reported, so the uses come first: a topological
        order. It is found with a stack of our own, since recursion would overflow on a deep network.
        """
        order, seen, stack = [], set(), [(self, False)]
        while stack:
            tensor, parents_done = stack.pop()
            if parents_done:
                order.append(tensor)
            elif id(tensor) not in seen:
                seen.add(id(tensor))
                stack.append((tensor, True))
                stack.extend((parent, False) for parent in tensor.parents)
        gradients = {id(self): np.ones_like(self.data)}
        for tensor in reversed(order):
            g = gradients.pop(id(tensor))
            if not tensor.parents:
                tensor.grad = g if tensor.grad is None else tensor.grad + g
            for parent, vjp in zip(tensor.parents, tensor.vjps):
                gradients[id(parent)] = gradients.get(id(parent), 0) + vjp(g)

    def __add__(self, other):
        other = other if isinstance(other, Tensor) else Tensor(np.asarray(other, self.data.dtype))
        shapes = self.data.shape, other.data.shape
        vjps = (lambda g: unbroadcast(g, shapes[0]), lambda g: unbroadcast(g, shapes[1]))
        return Tensor(self.data + other.data, (self, other), vjps)

    def __mul__(self, other):
        other = other if isinstance(other, Tensor) else Tensor(np.asarray(other, self.data.dtype))
        a, b = self.data, other.data
        vjps = (lambda g: unbroadcast(g * b, a.shape), lambda g: unbroadcast(g * a, b.shape))
        return Tensor(a * b, (self, other), vjps)

    def __matmul__(self, other):  # (N, K) @ (K, M)
        a, b = self.data, other.data
        return Tensor(a @ b, (self, other), (lambda g: g @ b.T, lambda g: a.T @ g))

    def relu(self):
        positive = self.data > 0
        return Tensor(np.where(positive, self.data, 0), (self,), (lambda g: g * positive,))

    def rows(self, ids):
        """Rows of a table, as an embedding looks them up. An id that occurs twice gets both gradients: `np.add.at` adds
        each, where `g_table[ids] += g` would keep only the last."""

        def vjp(g):
            g_table = np.zeros_like(self.data)
            np.add.at(g_table, ids, g)
            return g_table

        return Tensor(self.data[ids], (self,), (vjp,))


def unbroadcast(g, shape):
    """Broadcasting copies a value to many places; its gradient is the sum over them."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] > 1), keepdims=True)


def side_by_side(a, b):
    """(N, D) and (N, E) to (N, D + E)."""
    d = a.data.shape[1]
    return Tensor(np.concatenate([a.data, b.data], axis=1), (a, b), (lambda g: g[:, :d], lambda g: g[:, d:]))


# ---- 2. Layers: minidistill/nn/ --------------------------------------------------------------------------------------
class Dense:
    """``x @ weight + bias``, then relu if wanted. The weight is (K, M), drawn as He et al. 2015 or Glorot & Bengio 2010."""

    def __init__(self, inputs, outputs, relu=False, rng=None):
        limit = np.sqrt(6 / inputs if relu else 6 / (inputs + outputs))
        weight = np.random.default_rng(rng).uniform(-limit, limit, (inputs, outputs))
        self.weight, self.bias, self.relu = (
            Tensor(weight.astype(np.float32)),
            Tensor(np.zeros(outputs, np.float32)),
            relu,
        )

    def __call__(self, x):
        out = x @ self.weight + self.bias
        return out.relu() if self.relu else out

    def parameters(self):
        return [self.weight, self.bias]


class Embedding:
    """A table with a row of D numbers for each of R ids."""

    def __init__(self, rows, dim, rng=None):
        self.weight = Tensor(np.random.default_rng(rng).normal(0, 0.1, (rows, dim)).astype(np.float32))

    def __call__(self, ids):
        return self.weight.rows(ids)

    def parameters(self):
        return [self.weight]


def forward(layers, x):
    """Layers one after another; x is an array (N, K). Returns a Tensor (N, C) of logits."""
    x = Tensor(x)
    for layer in layers:
        x = layer(x)
    return x


def parameters(layers):
    return [parameter for layer in layers for parameter in layer.parameters()]


# ---- 3. Losses: minidistill/losses.py, distill/kd.py, kernels/reference/softmax.py -----------------------------------
def log_softmax(z):
    """log(exp(z) / sum(exp(z))) of each row; less its largest number first, so that nothing overflows."""
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def cross_entropy(logits, labels):
    """Mean of -log p[label]. Its gradient is p - t: what the model says minus what is right, a row of 0 and a single 1."""
    n = len(labels)
    log_p = log_softmax(logits.data)
    right = np.eye(logits.data.shape[1], dtype=log_p.dtype)[labels]  # (N, C)
    loss = -(right * log_p).sum() / n
    return Tensor(loss, (logits,), (lambda g: g * (np.exp(log_p) - right) / log_p.dtype.type(n),))


def soft_cross_entropy(logits, teacher_logits, temperature):
    """T² * KL(teacher ‖ student) at temperature T, averaged over the samples (Hinton, Vinyals & Dean 2015, section 2).

    Dividing logits by T > 1 brings out what a teacher knows besides the answer: a 7 looks more like a 1 than like an 8. It
    also shrinks gradients as 1/T², which the factor T² undoes. p and q are probabilities of student and teacher.
    """
    t = logits.data.dtype.type(temperature)
    log_p, log_q = log_softmax(logits.data / t), log_softmax(np.asarray(teacher_logits, logits.data.dtype) / t)
    p, q, n = np.exp(log_p), np.exp(log_q), len(log_p)
    loss = temperature**2 * (q * (log_q - log_p)).sum() / n
    return Tensor(loss, (logits,), (lambda g: g * (p - q) * t / log_p.dtype.type(n),))


def distillation_loss(logits, teacher_logits, labels, temperature=4.0, alpha=0.9):
    """alpha * soft_cross_entropy + (1 - alpha) * cross_entropy with the true labels."""
    soft = soft_cross_entropy(logits, teacher_logits, temperature) * alpha
    return soft if alpha == 1 else soft + cross_entropy(logits, labels) * (1 - alpha)


# ---- 4. Adam and the loop: minidistill/optim/, training/loop.py, kernels/reference/optimizer.py -----------------------
class Adam:
    """Kingma & Ba 2015, algorithm 1: a step of about `lr` for each number, whatever the size of its gradient.

    m and v are running means of the gradient and of its square. They start at 0, and the division by 1 - beta**step undoes
    that. A pruned weight and its moments are set to 0 in each step, or momentum would bring the weight back.
    """

    def __init__(self, parameters, lr=3e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        self.parameters, self.lr, self.beta1, self.beta2, self.eps = parameters, lr, beta1, beta2, eps
        self.m = [np.zeros_like(p.data) for p in parameters]
        self.v = [np.zeros_like(p.data) for p in parameters]
        self.steps = 0

    def step(self):
        self.steps += 1
        for p, m, v in zip(self.parameters, self.m, self.v):
            m[...] = self.beta1 * m + (1 - self.beta1) * p.grad
            v[...] = self.beta2 * v + (1 - self.beta2) * p.grad**2
            m_hat, v_hat = m / (1 - self.beta1**self.steps), v / (1 - self.beta2**self.steps)
            p.data = p.data - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)
            if p.kept is not None:
                p.data, m[...], v[...] = p.data * p.kept, m * p.kept, v * p.kept
            p.grad = None


def train(layers, x, loss_of, steps=1000, batch=32, seed=0):
    """Mini-batches in a new order for each pass. ``loss_of(logits, index)`` is told which samples it sees."""
    rng, optimizer, order = np.random.default_rng(seed), Adam(parameters(layers)), []
    for _ in range(steps):
        if len(order) < batch:
            order = rng.permutation(len(x))
        index, order = order[:batch], order[batch:]
        loss_of(forward(layers, x[index]), index).backward()
        optimizer.step()
    return layers


def predict(layers, x):
    return forward(layers, x).data


# ---- 5. Pruning: minidistill/prune/masks.py, criteria.py, nn/constraints.py -------------------------------------------
def prune(layers, sparsity):
    """Mask the smallest weights of all Dense layers together, exactly round(sparsity * n) of them, ties included.

    What was masked before goes first and counts. A stable sort takes the first of equal weights; a threshold would take
    all of them, or none. A mask is remembered, never guessed from ``weight == 0``: a weight may be 0 by chance and learn.
    """
    weights = [layer.weight for layer in layers if isinstance(layer, Dense)]
    masked = [np.zeros(w.data.shape, bool) if w.kept is None else ~w.kept for w in weights]
    size = np.concatenate([np.where(gone, -1, np.abs(w.data)).ravel() for w, gone in zip(weights, masked)])
    kept = np.ones(len(size), bool)
    kept[np.argsort(size, kind="stable")[: round(sparsity * len(size))]] = False
    for w, part in zip(weights, np.split(kept, np.cumsum([w.data.size for w in weights])[:-1])):
        w.kept = part.reshape(w.data.shape)
        w.data = w.data * w.kept
    return layers


# ---- 6. Quantization: minidistill/quantize/affine.py, integer_layers.py, kernels/reference/ -----------------------------
# A float x is stored as the integer q = clip(rint(x / scale) + zero_point), which stands for scale * (q - zero_point). The
# integer zero_point stands for 0.0 exactly, since relu, padding and pruning are full of zeros (Jacob et al. 2018, section 2).
F = np.float32  # every operation rounds to it, so that two machines agree to the bit


def quantize(x, scale, zero_point, low, high):
    """The one rounding: divide, round half to even, add the zero point, clip, and only then cast."""
    q = np.clip(np.rint(np.asarray(x, F) / scale) + F(zero_point), low, high)
    return q.astype(np.int8 if low < 0 else np.uint8)


def activation_scale(x):
    """Scale and zero point of uint8 for the range of x, widened to hold 0."""
    low, high = F(min(x.min(), 0)), F(max(x.max(), 0))
    if low == high:
        return F(1), 0
    scale = max(high / F(255) - low / F(255), np.finfo(F).tiny)
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def weight_scales(weight, bias, input_scale):
    """A scale for each output, F (M,): its largest weight becomes 127. Larger where the bias, an int32 in units of
    input_scale * scale, would leave no room in the int32 for K products of at most 255 * 127."""
    room = F((2**31 - 1 - len(weight) * 255 * 127) / 2)
    scale = np.maximum(np.abs(weight).max(axis=0) / F(127), np.abs(bias) / room / input_scale)
    tiny = np.finfo(F).tiny
    return np.where(scale > 0, np.maximum(scale, max(tiny, tiny / input_scale)), F(1))


class QuantizedDense:
    """A Dense layer whose products and sums are integers.

    Only two places know floats: the model's inputs are rounded, and its last layer gives floats. Between two layers the int32
    sum goes straight to the uint8 of the next one, by a multiplier (input_scale * weight_scale) / output_scale.
    """

    def __init__(self, dense, x):
        """x, the calibration data: what comes into the layer, (N, K). Its range decides the scale."""
        self.scale, self.zero_point = activation_scale(x)
        self.weight_scale = weight_scales(dense.weight.data, dense.bias.data, self.scale)
        self.weight = quantize(dense.weight.data, self.weight_scale, 0, -127, 127)  # int8 (K, M)
        self.sum_scale = self.scale * self.weight_scale  # what 1 in a sum stands for
        self.bias = np.rint(dense.bias.data / self.sum_scale).astype(np.int32)
        self.relu, self.multiplier = dense.relu, None

    def feed(self, following):
        """Give the integers that this layer takes, from now on. After a relu its range begins at 0: so its zero point is 0,
        and clipping there is the relu."""
        self.multiplier, self.output_zero_point = self.sum_scale / following.scale, following.zero_point

    def __call__(self, q):
        """uint8 (N, K) to the uint8 of the next layer, or to F (N, M)."""
        sums = (q.astype(np.int32) - self.zero_point) @ self.weight.astype(np.int32) + self.bias
        if self.multiplier is None:
            out = sums.astype(F) * self.sum_scale
            return np.maximum(out, 0) if self.relu else out
        return np.clip(np.rint(sums.astype(F) * self.multiplier) + F(self.output_zero_point), 0, 255).astype(np.uint8)


class QuantizedEmbedding:
    """A table of int8 with a scale for each row, chosen as those of weights."""

    def __init__(self, embedding):
        table = embedding.weight.data  # (R, D)
        self.scale = weight_scales(table.T, np.zeros(len(table), F), F(1))
        self.weight = quantize(table.T, self.scale, 0, -127, 127).T

    def __call__(self, ids):
        return self.weight[ids].astype(F) * self.scale[ids][:, None]


def post_training(layers, x):
    """Dense layers to integer layers, by looking at what comes into each of them when the model sees x."""
    integers = []
    for layer in layers:
        integers.append(QuantizedDense(layer, x))
        x = layer(Tensor(x)).data
    for layer, following in zip(integers, integers[1:]):
        layer.feed(following)
    return integers


def predict_integers(integers, x):
    """From floats to floats, with integers all the way between."""
    q = quantize(x, integers[0].scale, integers[0].zero_point, 0, 255)
    for layer in integers:
        q = layer(q)
    return q


# ---- 7. Bytes: minidistill/files.py, prune/sparse.py, ledger.py ---------------------------------------------------------
def sparse(weight):
    """What is left of a pruned weight: its values, and for each row how many there are and where."""
    rows, columns = np.nonzero(weight)
    counts = np.bincount(rows, minlength=len(weight))
    return {"values": weight[rows, columns], "columns": columns.astype(np.uint16), "counts": counts.astype(np.uint16)}


def file_bytes(layers, store=lambda weight: {"weight": weight}):
    """Bytes of the file, which is written. A mask alone saves nothing: zeros take four bytes like other numbers."""
    arrays = {}
    for i, layer in enumerate(layers):
        arrays |= {f"{i}.{name}": array for name, array in store(array_of(layer.weight)).items()}
        arrays |= {f"{i}.{name}": array_of(getattr(layer, name)) for name in ("bias", "weight_scale", "scale", "zero_point")
                   if hasattr(layer, name)}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        np.savez(path, **arrays)
        return path.stat().st_size


def array_of(value):
    return value.data if isinstance(value, Tensor) else np.asarray(value)


# ---- 8. The story --------------------------------------------------------------------------------------------------------
def load_digits(path=None):
    """(x, y) for training and for the test: 8 x 8 pixels from 0 to 1. The file of the UCI digits ships with minidistill."""
    here = Path(__file__).resolve().parent
    places = [path] if path else [here / "digits.npz", here.parents[1] / "minidistill" / "datasets" / "digits.npz"]
    with np.load(next(place for place in places if Path(place).exists())) as file:
        x, y = file["images"][file["order"]].astype(F) / 16, file["labels"][file["order"]]
    return (x[:1297], y[:1297]), (x[1297:], y[1297:])


def main(path=None):
    (x, y), (test_x, test_y) = load_digits(path)
    few = np.random.default_rng(0).permutation(len(x))[:100]  # the student has 100 labels, the teacher had them all

    def student():
        return [Dense(64, 32, relu=True, rng=1), Dense(32, 10, rng=2)]

    teacher = [Dense(64, 256, relu=True, rng=3), Dense(256, 10, rng=4)]
    train(teacher, x, lambda z, index: cross_entropy(z, y[index]))
    answers = predict(teacher, x)  # once for all samples; each batch looks up its own

    def from_teacher(z, index):
        return distillation_loss(z, answers[index], None, temperature=4.0, alpha=1.0)

    alone = train(student(), x[few], lambda z, index: cross_entropy(z, y[few][index]))
    distilled = train(student(), x, from_teacher)
    rows = [("teacher 64-256-10, 1 297 labels", predict(teacher, test_x), file_bytes(teacher)),
            ("student 64-32-10, 100 labels", predict(alone, test_x), file_bytes(alone)),
            ("student, distilled", predict(distilled, test_x), file_bytes(distilled))]  # fmt: skip
    pruned = train(prune(distilled, sparsity=0.8), x, from_teacher)  # the mask holds while the rest learns on
    rows.append(("... 80 % pruned, masks", predict(pruned, test_x), file_bytes(pruned)))
    rows.append(("... 80 % pruned, zeros left out", predict(pruned, test_x), file_bytes(pruned, sparse)))
    int8 = post_training(pruned, x)
    rows.append(("... and int8", predict_integers(int8, test_x), file_bytes(int8)))
    rows.append(("... and int8, zeros left out", predict_integers(int8, test_x), file_bytes(int8, sparse)))
    print(f"{'one seed':<34} {'test accuracy':>13} {'file':>9}")
    for name, logits, size in rows:
        print(f"{name:<34} {(logits.argmax(axis=1) == test_y).mean():>13.1%} {size:>7,} B")


if __name__ == "__main__":
    main(*sys.argv[1:2])
