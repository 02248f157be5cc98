# %% [markdown]
# # 2. Training
#
# **Goal.** Train a classifier on real images, first by hand, then with `md.fit`; choose its settings without fooling
# yourself; and say how sure you are of the result.
#
# **Prerequisites.** Lesson 1. **Time.** 60 minutes to work through; the script runs in under a minute.
#
# The data are 1 797 handwritten digits of 8 × 8 pixels that ship with the package. 500 of them are the test set: it is
# touched once, at the very end.

# %%
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import minidistill as md
from minidistill import datasets, losses, nn, optim
from minidistill.training import EarlyStopping

FOLDER = Path("runs/lessons/02_training")
BLUE, RED, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"


def new_figure(panels=1, width=8, height=4.5):
    """A figure with letters that can be read from the last row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#E5E5E5")
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=13)
        axis.xaxis.label.set_size(15)
        axis.yaxis.label.set_size(15)
    return figure, axes


def keep(figure, name):
    """Write the figure into runs/lessons/02_training/. In a notebook, returning it from a cell shows it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=120)
    return figure


train, test = datasets.load_digits()
fitting, validation = train.split(0.8, rng=0)
print(f"{len(fitting)} to fit, {len(validation)} for choosing, {len(test)} for the end")

figure, axes = new_figure(panels=8, width=13, height=2)
for axis, image, label in zip(axes, fitting.x, fitting.y):
    axis.imshow(image.reshape(8, 8), cmap="gray_r")
    axis.set_title(label, fontsize=15)
    axis.axis("off")
keep(figure, "digits.png")

# %% [markdown]
# ## 2.1 From scores to a loss
#
# A classifier gives a score for each class, the *logits*. Softmax turns them into probabilities; the loss is minus the
# logarithm of the probability of the right class.
#
# **Predict.** The logits are 10 000 and 0. What does `np.exp` say to the first one? And what should the loss be if the
# second class is right?

# %%
logits = np.array([[10_000.0, 0.0]])
with np.errstate(over="ignore", invalid="ignore"):
    naive = np.exp(logits) / np.exp(logits).sum()
print("softmax as in the textbook:", naive)
print("loss:", losses.cross_entropy(logits, np.array([1])).item())
assert np.isnan(naive[0, 0])
assert losses.cross_entropy(logits, np.array([1])).item() == 10_000

# %% [markdown]
# The loss takes logits and never forms the probability: log(exp(a) + exp(b)) is computed with the largest one taken out. So
# a model for training ends *without* a softmax.
#
# **Predict.** An untrained model knows nothing about ten classes. What is its loss, about?

# %%
model = nn.Sequential(nn.Dense(64, 32, activation="relu"), nn.Dense(32, 10), rng=0)
untrained = losses.cross_entropy(model(fitting.x), fitting.y).item()
print(f"loss of the untrained model {untrained:.2f}, log(10) = {np.log(10):.2f}")
assert abs(untrained - np.log(10)) < 0.3

# %% [markdown]
# ## 2.2 The loop, by hand
#
# Forward, backward, step; again and again, over mini-batches in a new order each time.

# %%
optimizer = optim.SGD(model.parameters(), lr=0.1)
rng = np.random.default_rng(0)
for _ in range(20):
    for batch in fitting.batches(32, rng=rng):
        optimizer.zero_grad()
        loss = losses.cross_entropy(model(batch.x), batch.y)
        loss.backward()
        optimizer.step()
by_hand = md.evaluate(model, validation)
print(by_hand)
assert by_hand["accuracy"] > 0.9

# %% [markdown]
# `md.fit` is this loop with what one always needs around it: a validation split, a history, progress, early stopping,
# checkpoints, and a halt when the loss is no longer finite. From here on we use it.
#
# ## 2.3 The learning rate
#
# **Predict.** Learning rates 0.001, 0.1 and 10 for plain SGD, ten epochs each. Which one wins, and how do the other two fail?


# %%
def network(seed=0, width=32, rate=0.0):
    layers = [nn.Dense(64, width, activation="relu"), nn.Dropout(rate), nn.Dense(width, 10)]
    return nn.Sequential(*layers, rng=seed)


def accuracy_with(make_optimizer, epochs=10, data=fitting, seed=0):
    """Validation accuracy after training; 0.1, the accuracy of a guess, if the loss became infinite."""
    model = network(seed)
    try:
        with np.errstate(all="ignore"):
            md.fit(model, data, optimizer=make_optimizer(model.parameters()), epochs=epochs, progress=False, rng=seed)
    except FloatingPointError:
        return 0.1
    return md.evaluate(model, validation)["accuracy"]


rates = 10.0 ** np.arange(-3.5, 1.6, 0.5)
results = {
    "SGD": [accuracy_with(lambda p, lr=lr: optim.SGD(p, lr=lr)) for lr in rates],
    "momentum": [accuracy_with(lambda p, lr=lr: optim.SGD(p, lr=lr, momentum=0.9)) for lr in rates],
    "Adam": [accuracy_with(lambda p, lr=lr: optim.Adam(p, lr=lr)) for lr in rates],
}
figure, (axis,) = new_figure()
for (name, values), colour, at, shift in zip(
    results.items(), (BLUE, GREEN, RED), (3, 0, 1), ((8, -16), (10, -12), (-4, 12))
):
    axis.semilogx(rates, 100 * np.array(values), "o-", color=colour, lw=2.5)
    axis.annotate(
        name, (rates[at], 100 * values[at]), xytext=shift, textcoords="offset points", color=colour, fontsize=14
    )
axis.set(xlabel="learning rate", ylabel="validation accuracy, %")
keep(figure, "rates.png")
best = {name: rates[int(np.argmax(values))] for name, values in results.items()}
print("best rates:", {name: f"{rate:.2g}" for name, rate in best.items()})

assert max(results["SGD"]) > 0.9 > results["SGD"][0]  # too small: it has hardly moved
assert results["SGD"][-1] < 0.5  # too large: it diverges
assert best["Adam"] < best["SGD"]

# %% [markdown]
# Too small a rate wastes time, too large a one diverges, and in between is a plateau of a factor of ten or more. Its place
# depends on the optimizer: Adam divides by the size of the gradient, so its good rates are smaller, and about the same from
# problem to problem.
#
# ## 2.4 Overfitting, and when to stop
#
# Now only 100 labelled images.
#
# **Predict.** Over 150 epochs the training loss goes to zero. What does the loss on the validation data do?

# %%
few = fitting[:100]
model = network(width=128)
history = md.fit(model, few, epochs=150, validation=validation, progress=False, rng=0)
keep(md.plot.training_curves(history), "overfitting.png")
lowest = int(np.argmin(history["validation_loss"])) + 1
print(f"validation loss is lowest in epoch {lowest}: {min(history['validation_loss']):.3f}; in the last one it is "
      f"{history['validation_loss'][-1]:.3f}, and the training loss {history['loss'][-1]:.4f}")  # fmt: skip
assert history["loss"][-1] < 0.02
assert history["validation_loss"][-1] > 10 * history["loss"][-1]

# %% [markdown]
# The model has learned its hundred images by heart: on them the loss is almost zero, on others it is not. `EarlyStopping`
# watches the validation loss and gives back the weights of the best epoch.

# %%
model = network(width=128)
history = md.fit(
    model, few, epochs=500, validation=validation, callbacks=[EarlyStopping(patience=10)], progress=False, rng=0
)
print(f"stopped after {len(history)} epochs, with the weights of epoch {history.best_epoch}")
assert md.evaluate(model, validation)["loss"] == min(history["validation_loss"])

# %% [markdown]
# ## 2.5 One seed proves nothing
#
# Does dropout help here? With seed 0, and then with eight seeds.
#
# **Predict.** How far apart are two trainings of the *same* network that differ in nothing but the seed?


# %%
def accuracy_with_dropout(rate, seed):
    sample = fitting[np.random.default_rng(seed).permutation(len(fitting))[:100]]
    model = network(seed, width=128, rate=rate)
    md.fit(model, sample, epochs=60, progress=False, rng=seed)
    return 100 * md.evaluate(model, validation)["accuracy"]


choices = (0.0, 0.2, 0.5)
spread = {rate: np.array([accuracy_with_dropout(rate, seed) for seed in range(8)]) for rate in choices}
for rate, values in spread.items():
    print(
        f"dropout {rate}: {values.mean():.1f} ± {values.std(ddof=1):.1f} %, from {values.min():.1f} to {values.max():.1f}"
    )

figure, (axis,) = new_figure()
for place, values in enumerate(spread.values()):
    axis.plot(np.full(8, place), values, "o", ms=10, color=BLUE, alpha=0.5, mew=0)
    axis.plot([place - 0.2, place + 0.2], [values.mean()] * 2, color=RED, lw=4)
    axis.annotate(f"{values.mean():.1f}", (place + 0.22, values.mean()), color=RED, fontsize=15, va="center")
axis.set(xticks=range(3), xlim=(-0.5, 2.7), xlabel="dropout rate", ylabel="validation accuracy, %")
axis.set_xticklabels(choices)
keep(figure, "seeds.png")

means = [values.mean() for values in spread.values()]
largest_spread = max(np.ptp(values) for values in spread.values())
assert largest_spread > max(means) - min(means)

# %% [markdown]
# Two seeds of one setting differ by more than the settings do on average. A single run of each would have "proved" whatever
# the seeds wanted. So every claim about training in this project is a mean over seeds, with its spread.
#
# ## 2.6 The end: the test set, once
#
# All settings are chosen. We train on everything but the test set, and look at it for the first and only time.

# %%
final = network(width=64, rate=0.2)
schedule = optim.cosine(3e-3, steps=40 * -(-len(train) // 32))
md.fit(final, train, optimizer=optim.Adam(final.parameters(), lr=schedule), epochs=40, progress=False, rng=0)
result = md.evaluate(final, test)
n, p = len(test), result["accuracy"]
print(f"test accuracy {p:.1%} ± {np.sqrt(p * (1 - p) / n):.1%} (standard error of a fraction of {n})")
keep(md.plot.confusion_matrix(final, test), "confusion.png")
assert p > 0.95

# %% [markdown]
# ## 2.7 Keep it

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "digits.npz"
    md.save(final, path, metadata={"lesson": 2, "test_accuracy": p})
    print(nn.describe(path))
    again = md.load(path)
assert np.array_equal(md.predict(again, test), md.predict(final, test))

# %% [markdown]
# ## What to take along
#
# - Losses take logits; never put a softmax before them.
# - Look for the plateau of the learning rate on validation data.
# - The training loss always improves. Stop by the validation loss.
# - One seed proves nothing. The test set is for the end.
#
# **Exercises.** 1. Repeat 2.5 with 16 seeds: does the standard error halve? 2. Add `augment=` with `datasets.shift` to 2.4:
# does it help? 3. `md.fit(..., callbacks=[Checkpoint("run.npz")])`, stop it with Ctrl-C, and go on with `resume="run.npz"`.
# 4. Write your own callback that prints the norm of the gradient in each epoch.
