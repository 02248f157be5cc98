# %% [markdown]
# # 1. Automatic differentiation
#
# **Goal.** Build reverse-mode differentiation yourself, then read it in a real engine, and know where it can go wrong.
#
# **Prerequisites.** Python, NumPy, the chain rule. **Time.** 60 minutes to work through; the script runs in seconds.
#
# Each section has one idea. Where it says **Predict**, write your answer down before you run the next cell. The assertions
# are the claims of this lesson: if one failed, the text would be wrong.

# %%
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import minidistill as md
from minidistill import losses, nn

FOLDER = Path("runs/lessons/01_autograd")


def new_figure(width=8, height=4.5):
    """A figure with letters that can be read from the last row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E5E5E5")
    axis.tick_params(labelsize=13)
    axis.xaxis.label.set_size(15)
    axis.yaxis.label.set_size(15)
    return figure, axis


def keep(figure, name):
    """Write the figure into runs/lessons/01_autograd/. In a notebook, returning it from a cell shows it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=120)
    return figure


# %% [markdown]
# ## 1.1 A slope, and what it costs
#
# Training makes a loss smaller by changing weights. For that we need, for every weight, the slope of the loss. The honest
# way to measure a slope is to wiggle the weight and look.
#
# **Predict.** A loss with a million weights takes 1 ms to compute. How long does it take to measure all slopes so?

# %%
calls = 0


def loss_of(w):
    global calls
    calls += 1
    return np.sum((w - 1.0) ** 2)


def slopes_by_wiggling(f, w, step=1e-6):
    slopes = np.zeros_like(w)
    for i in range(len(w)):
        up, down = w.copy(), w.copy()
        up[i], down[i] = w[i] + step, w[i] - step
        slopes[i] = (f(up) - f(down)) / (2 * step)
    return slopes


w = np.linspace(-1, 1, 10)
measured = slopes_by_wiggling(loss_of, w)
print("slopes:", measured.round(3))
print("calls of the loss:", calls)
assert calls == 2 * len(w)
assert np.allclose(measured, 2 * (w - 1))

# %% [markdown]
# Two calls for each weight: a million weights take 2 000 s, more than half an hour, for a single step. The rest of this
# lesson computes *all* slopes for the price of a few calls.

# %% [markdown]
# ## 1.2 A tape by hand
#
# Write down every operation as it happens: its result, where it came from, and how a change of each input changes the
# result. Then walk back from the loss and multiply along the way; where two ways meet, add. That is the whole idea, and it
# fits into twenty lines.


# %%
class Scalar:
    def __init__(self, value, parents=()):
        self.value, self.parents, self.grad = value, parents, 0.0  # parents: pairs of (scalar, local slope)

    def __add__(self, other):
        return Scalar(self.value + other.value, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other):
        return Scalar(self.value * other.value, [(self, other.value), (other, self.value)])

    def backward(self):
        order, seen = [], set()

        def visit(node):
            if id(node) not in seen:
                seen.add(id(node))
                for parent, _ in node.parents:
                    visit(parent)
                order.append(node)

        visit(self)
        self.grad = 1.0
        for node in reversed(order):
            for parent, slope in node.parents:
                parent.grad += slope * node.grad


x, y = Scalar(3.0), Scalar(4.0)
z = x * y + x
z.backward()
print(f"z = xy + x:  dz/dx = {x.grad},  dz/dy = {y.grad}")
assert (x.grad, y.grad) == (y.value + 1, x.value)

# %% [markdown]
# ## 1.3 The same in the engine
#
# `md.Tensor` does this for whole arrays. `explain()` prints the tape.
#
# **Predict.** `loss = mean((X @ w - y)**2)`. Which operations will be on the tape, and in which order?

# %%
rng = np.random.default_rng(0)
X, y = rng.normal(size=(100, 3)), rng.normal(size=100)
w = md.Tensor(np.zeros(3), requires_grad=True)
error = X @ w - y
loss = (error * error).mean()
print(loss.explain())
loss.backward()
assert np.allclose(w.grad, 2 / 100 * X.T @ (X @ np.zeros(3) - y))

# %% [markdown]
# An operation and its *VJP* (vector-Jacobian product) stand together in `ops/`: the function that takes the gradient of the
# result and returns the gradients of the inputs. For `x @ w` it is `X.T @ g`. The Jacobian itself, here 100 × 3, is never
# built; and all three slopes come from one walk back.
#
# ## 1.4 Broadcasting copies, so its VJP sums
#
# **Predict.** `b` has shape `(3,)` and is added to a matrix of shape `(5, 3)`. Every element of the sum has the slope 1. What
# is the gradient of `b`?

# %%
b = md.Tensor(np.zeros(3), requires_grad=True)
(md.Tensor(np.ones((5, 3))) + b).sum().backward()
print("gradient of b:", b.grad)
assert np.array_equal(b.grad, [5, 5, 5])

# %% [markdown]
# Each entry of `b` was copied to five rows, and each copy reports its slope. The engine undoes broadcasting in exactly one
# function, `unbroadcast` in `ops/broadcast.py`. Read it: it is five lines.
#
# ## 1.5 The trap in the order
#
# **Predict.** `a` is doubled thirty times: `a = a + a`. A walk that follows every *path* back to the start visits how many
# nodes? One that visits every *node* once?


# %%
def paths_visited(depth):
    return 1 if depth == 0 else 1 + 2 * paths_visited(depth - 1)


start = md.Tensor(np.array(1.0), requires_grad=True)
a = start
for _ in range(30):
    a = a + a
a.backward()
print(
    f"paths in 10 doublings: {paths_visited(10):,}; in 20: {paths_visited(20):,}; the gradient after 30: {start.grad:,.0f}"
)
assert paths_visited(20) == 2**21 - 1
assert start.grad == 2**30

# %% [markdown]
# Thirty doublings have two thousand million paths, and thirty-one nodes. `toposort` in `tensor.py` orders the nodes so that
# each comes only after everyone who used it has reported. It keeps its own stack, since Python's would overflow: a chain of
# fifty thousand operations is no problem.

# %%
chain = start
for _ in range(50_000):
    chain = chain + 1.0
start.grad = None
chain.backward()
assert start.grad == 1

# %% [markdown]
# ## 1.6 How good is wiggling?
#
# A gradient is checked against central differences. A large step is inexact because the function is not straight; a small
# one because two nearly equal numbers are subtracted.
#
# **Predict.** With float32, about 7 digits, which step is best: 0.1, 0.001 or 0.000 001?

# %%
steps = 10.0 ** np.arange(-12, 0.5, 0.5)
errors = {}
for dtype in (np.float32, np.float64):
    at, slope = dtype(1.0), np.cos(1.0)
    central = [(np.sin(at + dtype(h)) - np.sin(at - dtype(h))) / dtype(2 * h) for h in steps]
    errors[dtype.__name__] = np.abs(np.array(central, float) - slope) + 1e-17
best = {name: steps[np.argmin(e)] for name, e in errors.items()}
print("best step:", {name: f"{h:.0e}" for name, h in best.items()})

figure, axis = new_figure()
for (name, e), colour, at in zip(errors.items(), ("#D55E00", "#0072B2"), (5, 8)):
    axis.loglog(steps, e, "o-", color=colour, lw=2.5)
    axis.annotate(name, (steps[at], e[at]), xytext=(8, 10), textcoords="offset points", color=colour, fontsize=15)
axis.set(xlabel="step", ylabel="error of the slope of sin at 1")
keep(figure, "differences.png")

assert best["float32"] > 1e-4 and best["float64"] < 1e-4
assert errors["float64"].min() < 1e-9 < 1e-6 < errors["float32"].min()

# %% [markdown]
# Both curves are a V: on the left rounding, on the right curvature. That is why gradients are checked in float64, with a
# step near the cube root of its precision. `minidistill.testing.check_gradients` does it for any function:

# %%
from minidistill.testing import check_gradients, check_vjp

check_gradients(lambda t: md.ops.tanh(t) * t, rng.normal(size=(3, 4)))
check_vjp(lambda t: md.ops.tanh(t) * t, rng.normal(size=(300, 400)))  # a random projection: two calls at any size

# %% [markdown]
# ## 1.7 Where gradients vanish
#
# Twenty layers deep, the gradient of the first layer is a product of twenty factors.
#
# **Predict.** The slope of a sigmoid is at most 1/4. By what factor does the gradient shrink from the last layer to the
# first, roughly? And with relu?

# %%
x, labels = rng.normal(size=(64, 32)).astype(np.float32), rng.integers(0, 32, 64)
norms = {}
for activation in ("sigmoid", "relu"):
    deep = nn.Sequential(*[nn.Dense(32, 32, activation=activation) for _ in range(20)], rng=0)
    losses.cross_entropy(deep(x), labels).backward()
    norms[activation] = [float(np.linalg.norm(layer.weight.grad)) for layer in deep.layers]
    print(f"{activation:<8} first layer {norms[activation][0]:.1e}, last layer {norms[activation][-1]:.1e}")

figure, axis = new_figure()
for (name, values), colour in zip(norms.items(), ("#D55E00", "#0072B2")):
    axis.semilogy(range(1, 21), values, "o-", color=colour, lw=2.5)
    axis.annotate(name, (7, values[6]), xytext=(-20, 16), textcoords="offset points", color=colour, fontsize=15)
axis.set(xlabel="layer", ylabel="norm of the gradient", xticks=[1, 5, 10, 15, 20])
keep(figure, "vanishing.png")

assert norms["sigmoid"][0] < 1e-8 * norms["sigmoid"][-1]
assert norms["relu"][0] > 1e-3 * norms["relu"][-1]

# %% [markdown]
# With sigmoids the first layers learn nothing. `loss.explain()` shows the same norms operation by operation: the first thing
# to print when a network does not train.
#
# ## 1.8 What must not change in between
#
# The backward pass needs values from the forward pass. If somebody overwrites one in between, the gradient is silently wrong,
# unless it is noticed.
#
# **Predict.** Is the gradient below wrong, right, or an error?

# %%
w = nn.Parameter(np.array([2.0]))
loss = (w * w).sum()
w.assign(np.array([5.0]))
try:
    loss.backward()
    raise AssertionError("the change should have been noticed")
except RuntimeError as noticed:
    print(noticed)

# %% [markdown]
# Every tensor counts its changes, and every operation remembers the count. What cannot be seen is a NumPy write into an
# array that you handed to a tensor: do not do that.
#
# ## 1.9 The functional style
#
# A function written for NumPy can be differentiated as it stands. Parameters may be nested lists, tuples and dicts; the
# gradients come in the same nesting.


# %%
def network(params, x):
    hidden = np.tanh(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def squared_error(params, x, y):
    return np.mean((network(params, x) - y) ** 2)


x = np.linspace(-3, 3, 200)[:, None]
target = np.sin(2 * x)
params = {
    "w1": rng.normal(size=(1, 32)),
    "b1": rng.normal(size=32),
    "w2": rng.normal(size=(32, 1)) / 6,
    "b2": np.zeros(1),
}
before = network(params, x).copy()
step = md.value_and_grad(squared_error)
history = []
for _ in range(3000):
    value, gradient = step(params, x, target)
    history.append(value)
    for name in params:
        params[name] -= 0.05 * gradient[name]
print(f"error at the start {history[0]:.3f}, at the end {history[-1]:.5f}")

figure, axis = new_figure()
axis.plot(x, target, color="#767676", lw=5, alpha=0.5)
axis.plot(x, before, color="#D55E00", lw=2.5, ls="--")
axis.plot(x, network(params, x), color="#0072B2", lw=2.5)
axis.annotate(
    "start", (x[0, 0], before[0, 0]), xytext=(0, -22), textcoords="offset points", color="#D55E00", fontsize=15
)
axis.annotate("after 3 000 steps", (x[40, 0], target[40, 0]), xytext=(8, 4), textcoords="offset points", color="#0072B2",
              fontsize=15)  # fmt: skip
axis.set(xlabel="x", ylabel="sin(2x) and the network")
keep(figure, "fit.png")

assert history[-1] < 0.1 * history[0]

# %% [markdown]
# ## What to take along
#
# - Reverse mode costs a few forward passes, however many weights there are.
# - Each operation brings its VJP; nothing ever builds a Jacobian.
# - Order matters: a node's gradient is complete only when everyone who used it has reported.
# - Check gradients in float64; look at norms layer by layer; do not overwrite what backward needs.
#
# **Exercises.** 1. Give `Scalar` an `exp`. 2. Read `ops/elementwise.py` and add `ops.cos`, with a test by `check_gradients`.
# 3. Draw a tape: `md.plot.tape(loss, path="tape.png")`. 4. In 1.7, replace the initialisation by `init="glorot_normal"`:
# does it help the sigmoids?
#
# Next: lesson 2, training.
