# %% [markdown]
# # 2. Training
#
# **Goal.** Train a classifier on real images, first by hand, then with `md.fit`; choose its settings without fooling
# yourself; and say how sure you are of the result.
#
# **Prerequisites.** Lesson 1. **Time.** 60 minutes to work through; the script runs in under a minute.
#
# The data are handwritten digits of 8 × 8 pixels that ship with the package. The test set is touched once, at the very end.
# Until then, everything is chosen on a *validation* part that is split off the training data.

# %%
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import minidistill as md
from minidistill import datasets, losses, nn, optim
from minidistill.training import EarlyStopping

FOLDER = Path("runs/lessons/02_training")
BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"


def new_figure(**names):
    """A figure with letters that can be read from the last row."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.set(**names)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E5E5E5")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=13)
    axis.xaxis.label.set_size(15)
    axis.yaxis.label.set_size(15)
    return figure, axis


def label(axis, text, at, colour, shift=(10, 0), ha="left"):
    """Text beside a point, in the colour of its curve."""
    axis.annotate(text, at, xytext=shift, textcoords="offset points", color=colour, fontsize=15, va="center", ha=ha)


def show(figure, name):
    """Write the figure into runs/lessons/02_training/, and show it if this is a notebook."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=120)
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(str(FOLDER / name)))


train, test = datasets.load_digits()
fitting, validation = train.split(0.8, rng=0)
print(f"{len(fitting)} images to fit, {len(validation)} to choose by, {len(test)} for the end")

figure = Figure(figsize=(13, 2.1), layout="constrained")
for axis, image, digit in zip(figure.subplots(1, 8), fitting.x, fitting.y):
    axis.imshow(image.reshape(8, 8), cmap="gray_r")
    axis.set_title(digit, fontsize=18)
    axis.set(xticks=[], yticks=[])
show(figure, "digits.png")

# %% [markdown]
# ## 2.1 From scores to a loss
#
# A classifier gives a score for each class, the *logits*. Softmax turns them into probabilities; the loss is minus the
# logarithm of the probability of the right class.
#
# **Predict.** The logits are 10 000 and 0. What does `np.exp` say to the first one? And what should the loss be if the
# second class is right?

# %%
logits, right = np.array([[10_000.0, 0.0]]), np.array([1])
with np.errstate(over="ignore", invalid="ignore"):
    naive = np.exp(logits) / np.exp(logits).sum()
shifted = logits - logits.max()  # softmax does not change when all logits move together
log_probabilities = shifted - np.log(np.exp(shifted).sum())
loss = losses.cross_entropy(logits, right).item()
print("softmax as in the textbook:", naive, "  log-probabilities, shifted first:", log_probabilities, "  loss:", loss)
assert np.isnan(naive[0, 0])
assert loss == -log_probabilities[0, 1] == 10_000

# %% [markdown]
# So the loss takes logits and never forms a probability, and a model for training ends *without* a softmax.
#
# **Predict.** An untrained model knows nothing about ten classes. What is its loss, about?


# %%
def network(seed=0, width=32, rate=0.0):
    layers = [nn.Dense(64, width, activation="relu"), nn.Dropout(rate), nn.Dense(width, 10)]
    return nn.Sequential(*layers, rng=seed)


model = network()
untrained = losses.cross_entropy(model(fitting.x), fitting.y).item()
print(f"loss of the untrained model {untrained:.2f}, log(10) = {np.log(10):.2f}")
assert abs(untrained - np.log(10)) < 0.3

# %% [markdown]
# ## 2.2 The loop, by hand
#
# Forward, backward, step; again and again, over mini-batches in a new order each time.
#
# **Predict.** 20 epochs, batches of 32. How many steps will the optimizer take? Careful: the last batch of an epoch is small.

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
print(f"{optimizer.step_count} steps, validation accuracy {by_hand['accuracy']:.1%}")
assert optimizer.step_count == 20 * -(-len(fitting) // 32)  # rounded up
assert by_hand["accuracy"] > 0.9

# %% [markdown]
# `md.fit` is this loop with what one always needs around it: validation, a history, progress, early stopping, checkpoints,
# and a halt when the loss is no longer finite. From here on we use it.
#
# ## 2.3 The learning rate
#
# **Predict.** Plain SGD with learning rates 0.001, 0.1 and 10, ten epochs each. Which one wins, and how do the others fail?
# Momentum 0.9 adds up about ten gradients, 1 / (1 - 0.9). Where does its curve lie?


# %%
def accuracy_with(make_optimizer):
    """Validation accuracy after ten epochs; one tenth, that of a guess, if the loss became infinite."""
    model = network()
    try:
        with np.errstate(all="ignore"):
            md.fit(model, fitting, optimizer=make_optimizer(model.parameters()), epochs=10, progress=False, rng=0)
    except FloatingPointError:
        return 0.1
    return md.evaluate(model, validation)["accuracy"]


rates = 10.0 ** np.arange(-3.5, 1.6, 0.5)
makers = {
    "SGD": lambda lr: lambda parameters: optim.SGD(parameters, lr=lr),
    "momentum": lambda lr: lambda parameters: optim.SGD(parameters, lr=lr, momentum=0.9),
    "Adam": lambda lr: lambda parameters: optim.Adam(parameters, lr=lr),
}
accuracy = {name: np.array([accuracy_with(make(lr)) for lr in rates]) for name, make in makers.items()}
plateau = {name: rates[values > values.max() - 0.03] for name, values in accuracy.items()}
for name, good in plateau.items():
    print(f"{name:<9} best {accuracy[name].max():.1%}; within 3 points of it from {good[0]:.2g} to {good[-1]:.2g}")

figure, axis = new_figure(xlabel="learning rate", ylabel="validation accuracy, %", xlim=(1e-5, 60), ylim=(0, 104))
for (name, values), colour in zip(accuracy.items(), (BLUE, GREEN, RED)):
    axis.semilogx(rates, 100 * values, "o-", color=colour, lw=2.5)
    label(axis, name, (rates[0], 100 * values[0]), colour, (-10, 0), ha="right")
show(figure, "rates.png")

assert accuracy["SGD"][1] < 0.5 < 0.9 < accuracy["SGD"][5]  # 0.001: it has hardly moved; 0.1: good
assert all(values[-2] < 0.5 for values in accuracy.values())  # 10: it diverges
assert np.abs(accuracy["momentum"][:3] - accuracy["SGD"][2:5]).max() < 0.05  # ten times the rate, the same result
assert all(good[-1] / good[0] > 9 for good in plateau.values()) and plateau["Adam"][0] < plateau["SGD"][0]

# %% [markdown]
# Too small a rate wastes time, too large a one diverges, and in between is a plateau of a factor of ten. Small rates with
# momentum do what ten times the rate does without. Adam divides each step by the size of the gradient, so its rate is about
# the distance that a weight moves in one step.
#
# ## 2.4 Overfitting, and when to stop
#
# Now 200 labelled images, and one label in five is wrong: the annotators were tired.
#
# **Predict.** Over 100 epochs the training loss goes towards zero. What does the loss on the validation data do?


# %%
def tired(seed, count=200, wrong=40):
    """Some images, the first of them with a wrong label."""
    rng = np.random.default_rng(seed)
    chosen = fitting[rng.permutation(len(fitting))[:count]]
    labels = chosen.y.copy()
    labels[:wrong] = (labels[:wrong] + rng.integers(1, 10, wrong)) % 10
    return datasets.Dataset(chosen.x, labels)


def fit_tired(seed, callbacks=()):
    model = network(seed, width=128)
    history = md.fit(
        model, tired(seed), epochs=100, validation=validation, callbacks=callbacks, progress=False, rng=seed
    )
    return model, history


to_the_end = [fit_tired(seed) for seed in range(5)]
history = to_the_end[0][1]
lowest = int(np.argmin(history["validation_loss"])) + 1
print(f"training loss {history['loss'][-1]:.3f} at the end. Validation loss {min(history['validation_loss']):.3f} in epoch "
      f"{lowest}, {history['validation_loss'][-1]:.3f} at the end")  # fmt: skip

figure, axis = new_figure(xlabel="epoch", ylabel="loss", xlim=(0, 128), ylim=(0, 2.5), xticks=range(0, 101, 20))
for column, name, colour in (("loss", "training", BLUE), ("validation_loss", "validation", RED)):
    axis.plot(range(1, 101), history[column], color=colour, lw=2.5)
    label(axis, name, (100, history[column][-1]), colour, (10, 6))
axis.axvline(lowest, color="#767676", lw=2, ls=":")
label(axis, f"lowest in epoch {lowest}", (lowest, 2.3), "#767676")
show(figure, "overfitting.png")

for _, history in to_the_end:
    assert history["loss"][-1] < 0.2 and history["validation_loss"][-1] > 1.1 * min(history["validation_loss"])

# %% [markdown]
# First the model learns what digits look like; then it learns the wrong labels by heart. `EarlyStopping` watches the
# validation loss and gives back the weights of the best epoch.
#
# **Predict.** How many points of accuracy does it save?

# %%
stopped = [fit_tired(seed, [EarlyStopping(patience=10)]) for seed in range(5)]
late, early = (np.array([100 * md.evaluate(m, validation)["accuracy"] for m, _ in r]) for r in (to_the_end, stopped))
print("weights kept from epoch", [history.best_epoch for _, history in stopped])
print(f"to the end {late.mean():.1f} %, stopped early {early.mean():.1f} %; gains {(early - late).round(1)}")
for model, history in stopped:
    assert md.evaluate(model, validation)["loss"] == min(history["validation_loss"])
assert (early > late).all()

# %% [markdown]
# Every seed gains. But this validation accuracy flatters a little: the epoch was chosen by the same images. Hence a test set.
#
# ## 2.5 One seed proves nothing
#
# Dropout is said to help against overfitting. Does it, with 100 images and right labels? The seed draws the images, the
# initial weights, the order of the batches and what is dropped.
#
# **Predict.** How far apart are two trainings that differ in nothing but the seed?


# %%
def accuracy_with_dropout(rate, seed):
    sample = fitting[np.random.default_rng(seed).permutation(len(fitting))[:100]]
    model = network(seed, width=128, rate=rate)
    md.fit(model, sample, epochs=60, progress=False, rng=seed)
    return 100 * md.evaluate(model, validation)["accuracy"]


seeds = range(8)
spread = {rate: np.array([accuracy_with_dropout(rate, seed) for seed in seeds]) for rate in (0.0, 0.2, 0.5)}
for rate, values in spread.items():
    error = values.std(ddof=1) / np.sqrt(len(seeds))
    print(f"dropout {rate}: mean {values.mean():.1f} ± {error:.1f} %, from {values.min():.1f} to {values.max():.1f}")
without, with_half = spread[0.0], spread[0.5]
better, worse = (without, with_half) if without.mean() > with_half.mean() else (with_half, without)
misled = int((worse[:, None] > better).sum())
print(f"one run of 0.0 against one of 0.5: the worse setting wins in {misled} of {len(seeds) ** 2} pairs")

figure, axis = new_figure(xlabel="dropout rate", ylabel="validation accuracy, %", xlim=(-0.4, 2.9))
for place, values in enumerate(spread.values()):
    axis.plot(np.full(len(values), place), values, "o", ms=11, color=BLUE, alpha=0.5, mew=0)
    axis.plot([place - 0.2, place + 0.2], [values.mean()] * 2, color=RED, lw=4)
    label(axis, f"mean {values.mean():.1f}", (place + 0.2, values.mean()), RED, (6, 0))
axis.set_xticks(range(3), [str(rate) for rate in spread])
show(figure, "seeds.png")

means = [values.mean() for values in spread.values()]
assert min(np.ptp(values) for values in spread.values()) > max(means) - min(means)
assert misled >= 8

# %% [markdown]
# Within each setting the seeds lie further apart than the settings do on average. A single run of each would have "proved"
# whatever the seeds wanted. So a claim about training is a mean over seeds with its standard error: the spread divided by the
# root of the number of seeds.
#
# ## 2.6 The end: the test set, once
#
# All settings are chosen. Five seeds train on everything but the test set, and we look at it for the only time.
#
# **Predict.** The test set has 500 images. A model is right in 98 of 100. How far off is its measured accuracy, by luck?

# %%
steps = 40 * -(-len(train) // 32)
models = [network(seed, width=64) for seed in range(5)]
for seed, model in enumerate(models):
    schedule = optim.cosine(0.01, steps=steps)  # from the plateau of Adam down to 0
    md.fit(model, train, optimizer=optim.Adam(model.parameters(), lr=schedule), epochs=40, progress=False, rng=seed)
final = np.array([md.evaluate(model, test)["accuracy"] for model in models])
luck = np.sqrt(final.mean() * (1 - final.mean()) / len(test))
print(f"test accuracy {final.mean():.1%}, from {final.min():.1%} to {final.max():.1%} over {len(models)} seeds")
print(f"standard error of a fraction of {len(test)} images: {luck:.1%}")
show(md.plot.confusion_matrix(models[0], test), "confusion.png")
assert final.min() > 0.95 and luck < 0.01

# %% [markdown]
# More seeds would not help against that luck: all of them are asked the same 500 questions.
#
# ## 2.7 Keep it
#
# **Predict.** How many bytes will the file have, at least? Count the weights: 64 inputs, 64 hidden, 10 classes, float32.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "digits.npz"
    md.save(models[0], path, metadata={"lesson": 2, "test_accuracy": final[0]})
    size, again = path.stat().st_size, md.load(path)
weights = (64 * 64 + 64) + (64 * 10 + 10)
print(f"{weights:,} numbers of 4 bytes are {4 * weights:,} bytes; the file has {size:,}")
assert 4 * weights < size < 1.5 * 4 * weights
assert np.array_equal(md.predict(again, test), md.predict(models[0], test))

# %% [markdown]
# ## What to take along
#
# - Losses take logits; never put a softmax before them.
# - Look for the plateau of the learning rate on validation data.
# - The training loss always improves. Stop by the validation loss.
# - One seed proves nothing. The test set is for the end.
#
# **Exercises.** 1. Repeat 2.5 with 32 seeds: what happens to the standard error? The settings share their images, so compare
# them seed by seed. 2. Multiply the loss by 100, `loss=lambda z, y: 100 * losses.cross_entropy(z, y)`, and repeat 2.3: which
# optimizer does not care? 3. In 2.4, pass `augment=lambda x, rng: datasets.shift(x, 8, 8, rng=rng)`: does it help?
# 4. Pass `callbacks=[Checkpoint("run.npz")]`, stop it with Ctrl-C, and go on with `resume="run.npz"`. The
# KeyboardInterrupt that you see has the epochs so far as its `history`; in a notebook it is `sys.last_value`.
