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
from figures import tape  # beside this file
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

import minidistill as md
from minidistill import losses, nn
from minidistill.testing import check_gradients, check_vjp
from minidistill.timing import compare

FOLDER = Path("runs/lessons/01_autograd")
BLUE, RED, GREY = "#0072B2", "#D55E00", "#767676"


def new_figure(**names):
    """A figure with letters that can be read from the last row."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.set(**names)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E5E5E5")
    axis.tick_params(labelsize=13)
    axis.xaxis.label.set_size(15)
    axis.yaxis.label.set_size(15)
    return figure, axis


def label(axis, text, at, colour, shift=(10, 0)):
    """Text beside a point, in the colour of its curve."""
    axis.annotate(text, at, xytext=shift, textcoords="offset points", color=colour, fontsize=15, va="center")


def show(figure, name):
    """Write the figure into runs/lessons/01_autograd/, and show it if this is a notebook."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=120)
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(str(FOLDER / name)))


# %% [markdown]
# ## 1.1 A slope, and what it costs
#
# Training makes a loss smaller by changing weights. For that we need, for every weight, the slope of the loss. The plain way
# to measure a slope is to wiggle the weight and look.
#
# **Predict.** A loss with a million weights takes 1 ms to compute. How long does it take to measure all slopes like this?

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
print(f"{calls} calls of the loss for {len(w)} weights; a million weights at 1 ms a call: {2 * 1e6 * 1e-3:,.0f} s")
assert calls == 2 * len(w)
assert np.allclose(measured, 2 * (w - 1))

# %% [markdown]
# Two calls for each weight: more than half an hour for a single step. The rest of this lesson computes *all* slopes at once.
#
# ## 1.2 A tape by hand
#
# Write down every operation as it happens: its result, where it came from, and how a change of each input changes the
# result. Then walk back from the loss and multiply along the way; where two ways meet, add. That is the whole idea.
#
# **Predict.** `z = x * y + x` at `x = 3`, `y = 4`. There are two ways from `z` back to `x`. What is dz/dx?


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
print(f"dz/dx = {x.grad},  dz/dy = {y.grad}")
assert (x.grad, y.grad) == (y.value + 1, x.value)

# %% [markdown]
# ## 1.3 The same in the engine
#
# `md.Tensor` does this for whole arrays. `explain()` prints the tape.
#
# **Predict.** A straight line is fitted, and large weights cost extra. Which operations will be on the tape, in which order?

# %%
rng = np.random.default_rng(0)
X, y = rng.normal(size=(100, 3)), rng.normal(size=100)
w = md.Tensor(np.ones(3), requires_grad=True)
error = X @ w - y
loss = (error**2).mean() + 0.1 * np.sqrt((w * w).sum())
print(loss.explain())
show(tape(loss), "tape.png")

loss.backward()
upstream = 2 * error.numpy() / 100  # slope of the loss with respect to each of the 100 errors
assert np.allclose(w.grad, X.T @ upstream + 0.1 / np.sqrt(3))  # two ways from the loss back to w

# %% [markdown]
# An operation and its *VJP* (vector-Jacobian product) stand together in `ops/`: the function that takes the gradient of the
# result and returns the gradients of the inputs. For `X @ w` it is `X.T @ g`, as the assertion says.
#
# ## 1.4 One walk for all weights
#
# The walk back visits each operation once, however many weights there are.
#
# **Predict.** Wiggling costs 2 losses for each weight. What does the walk back cost for 1 000 weights, in units of one loss?


# %%
def fit_error(w, A):
    return np.mean((A @ w - 1.0) ** 2)


sizes, cost = (10, 30, 100, 300, 1000), []
for n in sizes:
    A, w = rng.normal(size=(2000, n)), rng.normal(size=n)
    sides = {"loss": lambda w=w, A=A: fit_error(w, A), "slopes": lambda w=w, A=A: md.grad(fit_error)(w, A)}
    with threadpool_limits(1):  # one thread, which waits for no other
        times = compare(sides, seconds=0.05, settle=0.02)
    cost.append(times["slopes"].low / times["loss"].low)
print(f"{sizes[-1]} slopes cost {2 * sizes[-1]:,} losses by wiggling, and {cost[-1]:.1f} by walking back")

figure, axis = new_figure(xlabel="weights", ylabel="cost of all slopes, in losses", xlim=(8, 3000), ylim=(1, 4000))
axis.loglog(sizes, 2 * np.array(sizes), "o-", color=RED, lw=2.5)
axis.loglog(sizes, cost, "o-", color=BLUE, lw=2.5)
label(axis, "wiggling", (sizes[-1], 2 * sizes[-1]), RED)
label(axis, "walking back", (sizes[2], cost[2]), BLUE, (0, 16))
show(figure, "cost.png")

assert cost[-1] < 0.05 * 2 * sizes[-1]

# %% [markdown]
# That is why training uses reverse mode: many weights, one loss. (For one weight and many results, one would walk forward.)
#
# ## 1.5 Broadcasting copies, so its VJP sums
#
# **Predict.** `b` has shape `(3,)` and is added to a matrix of shape `(5, 3)`. Every element of the result has the slope 1.
# What is the gradient of `b`?

# %%
b = md.Tensor(np.zeros(3), requires_grad=True)
(md.Tensor(np.ones((5, 3))) + b).sum().backward()
print("gradient of b:", b.grad)
assert np.array_equal(b.grad, [5, 5, 5])

# %% [markdown]
# Each entry of `b` was copied to five rows, and each copy reports its slope. The engine undoes broadcasting in exactly one
# function, `unbroadcast` in `ops/broadcast.py`. Read it: it is short.
#
# ## 1.6 The trap in the order
#
# **Predict.** `a` is doubled again and again: `a = a + a`. A careless walk follows every *path* back to the start. How many
# nodes does it visit after 20 doublings? And a walk that visits every *node* once?


# %%
def careless_visits(doublings):
    return 1 if doublings == 0 else 1 + 2 * careless_visits(doublings - 1)


start = md.Tensor(np.array(1.0), requires_grad=True)
a = start
for _ in range(20):
    a = a + a
a.backward()
on_tape = len(a.explain().splitlines()) - 1  # without its headline
print(f"visits along every path: {careless_visits(20):,}; nodes: {on_tape}; gradient: {start.grad:,.0f}")
assert careless_visits(20) == 2**21 - 1 and on_tape == 21
assert start.grad == 2**20  # one for each path

chain = leaf = md.Tensor(np.array(1.0), requires_grad=True)
for _ in range(50_000):
    chain = chain + 1.0
chain.backward()
assert leaf.grad == 1

# %% [markdown]
# Each doubling doubles the paths and adds one node. `gradients` in `tensor.py` takes each node only after everyone who used
# it has reported. It is a loop and no recursion: Python's stack would overflow on the chain of 50 000 additions.
#
# ## 1.7 How good is wiggling?
#
# A gradient is checked against central differences. A large step is inexact because the function is curved; a small one
# because two nearly equal numbers are subtracted.
#
# **Predict.** With float32, about 7 digits, which step is best: 0.1, 0.001 or 0.000 001? What comes out for 0.000 000 001?

# %%
steps = 10.0 ** np.arange(-12, 0.5, 0.5)
errors = {}
for dtype in (np.float32, np.float64):
    at = dtype(1.0)
    central = [(np.sin(at + dtype(h)) - np.sin(at - dtype(h))) / dtype(2 * h) for h in steps]
    errors[dtype.__name__] = np.abs(np.array(central, float) - np.cos(1.0))
best = {name: steps[np.argmin(e)] for name, e in errors.items()}
print("best step:", {name: f"{h:.0e}" for name, h in best.items()})

figure, axis = new_figure(xlabel="step", ylabel="error of the slope of sin at 1", ylim=(1e-13, 50))
for (name, e), colour, place in zip(errors.items(), (RED, BLUE), (12, 5)):
    axis.loglog(steps, e, "o-", color=colour, lw=2.5)
    label(axis, name, (steps[place], e[place]), colour, (12, 16))
axis.text(1e-12, 5e-9, "rounding", color=GREY, fontsize=14)
axis.text(4e-4, 5e-11, "curvature", color=GREY, fontsize=14)
show(figure, "differences.png")

assert best["float32"] > 10 * best["float64"]
assert errors["float64"].min() < 1e-9 < 1e-6 < errors["float32"].min()
assert np.isclose(errors["float32"][steps < 1e-8], np.cos(1.0)).all()  # 1 + step is 1: the slope comes out as 0

# %% [markdown]
# Both curves are a V: on the left rounding, on the right curvature. In float32 the best check leaves an error in the sixth
# digit, where a wrong gradient can hide. So gradients are checked in float64, for any function, by:

# %%
check_gradients(lambda t: md.ops.tanh(t) * t, rng.normal(size=(3, 4)))
check_vjp(lambda t: md.ops.tanh(t) * t, rng.normal(size=(300, 400)))  # a random projection: two calls at any size

# %% [markdown]
# ## 1.8 Where gradients vanish
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
    loss = losses.cross_entropy(deep(x), labels)
    tape = loss.explain().splitlines()
    print(activation, *tape[:4], "...", *tape[-4:], sep="\n")
    loss.backward()
    norms[activation] = [float(np.linalg.norm(layer.weight.grad)) for layer in deep.layers]
    print(f"{activation}: from last to first layer divided by {norms[activation][-1] / norms[activation][0]:.1e}\n")

figure, axis = new_figure(xlabel="layer", ylabel="norm of the gradient", xticks=[1, 5, 10, 15, 20], ylim=(1e-14, 1e3))
for (name, values), colour, shift in zip(norms.items(), (RED, BLUE), ((12, -12), (0, 18))):
    axis.semilogy(range(1, 21), values, "o-", color=colour, lw=2.5)
    label(axis, name, (10, values[9]), colour, shift)
show(figure, "vanishing.png")

assert norms["sigmoid"][0] < 1e-8 * norms["sigmoid"][-1]
assert norms["relu"][0] > 1e-2 * norms["relu"][-1]

# %% [markdown]
# With sigmoids the first layers hardly move. The column on the right of `explain()` tells you: it is the first thing to print
# when a network does not train.
#
# ## 1.9 What must not change in between
#
# The backward pass needs values from the forward pass. Here `w`, which was 2, becomes 5 in between: first through the engine,
# then by NumPy behind its back.
#
# **Predict.** Will the gradient of w² be that of 2, that of 5, or an error? In both cases?

# %%
w = nn.Parameter(np.array([2.0]))
loss = (w * w).sum()
w.assign(np.array([5.0]))
noticed = None
try:
    loss.backward()
except RuntimeError as problem:
    noticed = problem
print(noticed)
assert "was changed" in str(noticed) and w.grad is None

mine = np.array([2.0])
w = md.Tensor(mine, requires_grad=True)
loss = (w * w).sum()
mine[0] = 5.0
loss.backward()
print(f"\nbehind its back: the slope of w² at 2 is 4, backward says {w.grad[0]}")
assert w.grad[0] == 10

# %% [markdown]
# Every tensor counts its changes, and every operation remembers the count. What NumPy writes into an array that you handed to
# a tensor is not counted: the gradient is wrong, and nobody says so. Do not do that.
#
# ## 1.10 The functional style
#
# A function written for NumPy can be differentiated as it stands. Parameters may be nested lists, tuples and dicts; the
# gradients come in the same nesting. Gradient descent is then one line.
#
# **Predict.** A network of 32 tanh learns sin(2x) between -3 and 3. Where will it be worst: in the middle or at the ends?


# %%
def network(params, x):
    hidden = np.tanh(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def squared_error(params, x, y):
    return np.mean((network(params, x) - y) ** 2)


x = np.linspace(-3, 3, 200)[:, None]
target = np.sin(2 * x)
rng = np.random.default_rng(0)
params = {
    "w1": rng.normal(size=(1, 32)),
    "b1": rng.normal(size=32),
    "w2": rng.normal(size=(32, 1)) / 6,
    "b2": np.zeros(1),
}
before, history = network(params, x), []
for _ in range(3000):
    value, gradient = md.value_and_grad(squared_error)(params, x, target)
    params = {name: params[name] - 0.05 * gradient[name] for name in params}
    history.append(value)
after = network(params, x)
off = np.abs(after - target)
print(f"loss at the start {history[0]:.3f}, after {len(history)} steps {history[-1]:.5f}")
print(f"mean error in the middle {off[np.abs(x) < 1].mean():.3f}, at the ends {off[np.abs(x) > 2].mean():.3f}")

figure, axis = new_figure(xlabel="x", ylabel="y", ylim=(-1.3, 1.5))
axis.plot(x, target, color=GREY, lw=6, alpha=0.4)
axis.plot(x, before, color=RED, lw=2.5, ls="--")
axis.plot(x, after, color=BLUE, lw=2.5)
label(axis, "sin(2x)", (x[27, 0], 1.0), GREY, (-20, 18))
label(axis, "at the start", (x[85, 0], before[85, 0]), RED, (-50, 28))
label(axis, f"after {len(history)} steps", (x[138, 0], after[138, 0]), BLUE, (8, 6))
show(figure, "fit.png")

assert history[-1] < 0.1 * history[0]
assert off[np.abs(x) < 1].mean() < off[np.abs(x) > 2].mean()

# %% [markdown]
# ## What to take along
#
# - Reverse mode costs a few losses, however many weights there are.
# - Each operation brings its VJP; nothing ever builds a Jacobian.
# - Order matters: a node's gradient is complete only when everyone who used it has reported.
# - Check gradients in float64; look at norms layer by layer; do not overwrite what backward needs.
# - A loss holds its whole tape. For a curve, keep the number: `losses.append(loss.item())`.
#
# **Exercises.** 1. Give `Scalar` an `exp`. 2. Let `Scalar.backward` handle each node as soon as it is met, without an order:
# for which expression is the gradient wrong? 3. Read `ops/elementwise.py`; add `ops.cos` and check it by `check_gradients`.
# 4. Draw 1.8 with `tanh`, and with He's initial weights for the sigmoids (`init="he_normal"`): what helps, and why?
#
# Next: lesson 2, training.
