# %% [markdown]
# # 7. Pruning
#
# **Goal.** Take most of the weights out of a network, and have a smaller file and a faster model to show for it. Choose
# which weights go, how fast, and in what pattern; and learn to check that a saving is real.
#
# **Prerequisites.** Lesson 2; the sections on bytes use int8 as in lesson 4. **Time.** 90 minutes to work through; the
# script runs in under a minute.
#
# Files to read along: `nn/constraints.py` (what holds a zero), `prune/masks.py` and `prune/criteria.py` (which weights go),
# `kernels/sparse_formats.py` (how zeros become fewer bytes). Everything is compared on validation images, over seeds; the
# test set is for the end.

# %%
from functools import partial
from pathlib import Path

import numba
import numpy as np
from figures import sparsity_pattern  # beside this file
from matplotlib.figure import Figure

import minidistill as md
from minidistill import datasets, losses, nn, optim, prune, timing

FOLDER = Path("runs/lessons/07_pruning")
BLUE, RED, GREEN, ORANGE, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#767676"
md.set_threads(1)  # these models are small: a second thread would mostly be waited for


def panels(count=1, width=8.6, height=4.8, **options):
    """A figure with letters that can be read from the last row, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, count, **options))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#E5E5E5")
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=13)
        axis.xaxis.label.set_size(15)
        axis.yaxis.label.set_size(15)
        axis.title.set_size(15)
    return figure, axes


def label(axis, text, at, colour, shift=(10, 0), ha="left"):
    """Text beside a point, in the colour of its curve."""
    axis.annotate(text, at, xytext=shift, textcoords="offset points", color=colour, fontsize=15, va="center", ha=ha,
                  annotation_clip=False)  # fmt: skip


def band(axis, x, values, colour, line="-", name=None):
    """Mean over the seeds, and the standard deviation around it."""
    mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
    axis.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
    axis.plot(x, mean, "o" + line, color=colour, lw=3, ms=8, label=name)


def percents(axis, name):
    """A logarithmic axis of errors, so that 3 and 4 % can be told apart beside 50."""
    axis.set(ylabel=name, yscale="log", ylim=(1.8, 100))
    axis.set_yticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])


def show(figure, name):
    """Write the figure into runs/lessons/07_pruning/, and show it if this is a notebook."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=120)
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(str(FOLDER / name)))


COMPILES = not numba.config.DISABLE_JIT  # NUMBA_DISABLE_JIT=1 runs all of this in Python, for a debugger
SEEDS, EPOCHS = range(4 if COMPILES else 2), 15
train, test = datasets.load_digits()
fitting, validation = train.split(0.8, rng=0)
STEPS = -(-len(fitting) // 32)  # of an epoch


def network(seed, *widths):
    sizes = (64, *(widths or (128, 64)))
    hidden = [nn.Dense(a, b, activation="relu") for a, b in zip(sizes, sizes[1:])]
    return nn.Sequential(*hidden, nn.Dense(sizes[-1], 10), rng=seed)


def trained(model, seed, epochs=EPOCHS, **options):
    md.fit(model, fitting, epochs=epochs, progress=False, rng=seed, **options)
    return model


def points(models):
    """Validation accuracy of each model, in percent."""
    return np.array([100 * md.evaluate(model, validation)["accuracy"] for model in models])


def told(values):
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f} %"


models = [trained(network(seed), seed) for seed in SEEDS]
dense = points(models)
print(f"{len(fitting)} images to fit, {len(validation)} to compare on; dense networks {told(dense)}")

# %% [markdown]
# ## 7.1 A mask saves nothing
#
# `prune.magnitude` sets the smallest weights to 0 and gives each weight matrix a *mask*: which weights are left. The matrix
# keeps its shape. `md.Ledger` writes files, holds arrays and stops times, so it cannot be talked into a saving.
#
# **Predict.** Half of all weights of a network go. What becomes of its file, of the memory that it takes, and of the time
# for one image and for 256?

# %%
wide = trained(network(0, 512, 512), 0, epochs=5)
half = prune.magnitude(wide.copy(), sparsity=0.5)
print(prune.sparsity(half))
ledger = md.Ledger(validation)
ledger.add("dense", wide)
ledger.add("half masked", half)
print(ledger)
before, after = ledger.rows
assert after["file_bytes"] > before["file_bytes"] and after["memory_bytes"] > before["memory_bytes"]

weights = sum(layer.weight.size for layer in wide.layers)
total = prune.sparsity(half).total
assert total.masked == total.zeros == round(0.5 * weights)
assert all(not layer.bias.constraints for layer in half.layers)

# %% [markdown]
# File and memory *grow*: zeros take four bytes each, and the mask comes on top. The time is the same, since BLAS multiplies
# by 0 as it multiplies by anything. (If your table has a ratio there, print it again: both rows compute the same product,
# so it is noise, and a good look at how much of it there is.) A mask is a promise, and sections 7.8 and 7.9 keep it. Until
# then, "sparsity" is only a number.
#
# Read the first table, too. Exactly half of the *weights* went, ties included; the layers lost unequal shares, since they
# are compared with one another. Biases are never pruned: they are few, and each is used by a whole neuron.
#
# ## 7.2 Why a zero stays zero
#
# Many projects prune like this: `weight *= mask`, once, and train on. We do that by hand, in the middle of a training, and
# look at the weights that should be gone. Three ways:
#
# - "set to 0": once, and no more;
# - "and no gradient": from then on their gradients are set to 0 as well;
# - "mask": the engine's constraint, which the optimizer applies in every step. We take it away at the end.
#
# The optimizer is SGD with momentum and weight decay.
#
# **Predict.** Sketch the mean size of the pruned weights over the steps, for each way. Does weight decay push them back to
# 0? In the second way, what is there to move them, if not a gradient?

# %%
PRUNED, FREED, LAST = 100, 250, 300  # steps
WAYS = {"set to 0": RED, "and no gradient": ORANGE, "mask": BLUE}


def by_hand(way, make_optimizer):
    """Mean size of the pruned weights after each step, in percent of that of the others."""
    model, shuffle, sizes = network(0), np.random.default_rng(0), []
    optimizer = make_optimizer(model.parameters())
    weights, kept = [layer.weight for layer in model.layers], None
    while len(sizes) < LAST:
        for batch in fitting.batches(32, rng=shuffle):
            if len(sizes) == PRUNED:
                kept = [np.abs(w.data) > np.quantile(np.abs(w.data), 0.5) for w in weights]
                if way == "mask":
                    prune.magnitude(model, 0.5, scope="layer")
                    assert all(np.array_equal(w.data != 0, k) for w, k in zip(weights, kept))
                for w, k in zip(weights, kept):
                    w.assign(w.data * k)
            if len(sizes) == FREED:
                for w in weights:
                    w.constraints.clear()
            optimizer.zero_grad()
            losses.cross_entropy(model(batch.x), batch.y).backward()
            if way == "and no gradient" and kept:
                for w, k in zip(weights, kept):
                    w.grad *= k
            optimizer.step()
            shares = [np.abs(w.data[~k]).mean() / np.abs(w.data[k]).mean() for w, k in zip(weights, kept or [])]
            sizes.append(100 * np.mean(shares) if kept else np.nan)
            if len(sizes) == LAST:
                break
    return np.array(sizes)


momentum = partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)
sizes = {way: by_hand(way, momentum) for way in WAYS}
figure, (axis,) = panels()
axis.set(xlabel="step", ylabel="mean size of the pruned weights,\n% of that of the others")
axis.set(xlim=(PRUNED - 5, LAST + 70), ylim=(-0.4, 10))
axis.set_xticks(range(PRUNED, LAST + 1, 50))
for way, colour in WAYS.items():
    axis.plot(np.arange(LAST) + 1, sizes[way], color=colour, lw=3)
    label(axis, way, (LAST, sizes[way][-1]), colour)
axis.axvline(FREED, color=GREY, lw=1.5, ls=":")
label(axis, "mask taken away", (FREED, 9.4), GREY, (-8, 0), ha="right")
show(figure, "revived.png")

held = slice(PRUNED, FREED)
print("size of the pruned weights, % of the others, after", f"{FREED} steps and at the end")
for way, found in sizes.items():
    print(f"  {way:<16} {found[FREED - 1]:6.2f} {found[-1]:6.2f}")
assert np.all(sizes["mask"][held] == 0) and sizes["mask"][-1] > 0.5
assert sizes["set to 0"][held].min() > 0 and sizes["set to 0"][FREED - 1] > 5
assert sizes["and no gradient"][FREED - 1] > 1
makes = {
    "Nesterov": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": partial(optim.Adam, lr=3e-3, weight_decay=1e-3, clip_norm=1.0),
    "AdamW": partial(optim.AdamW, lr=3e-3, weight_decay=0.1),
}
for name, make in makes.items():
    found = {way: by_hand(way, make)[FREED - 1] for way in WAYS}
    print(f"  {name:<9}", *(f"{way}: {size:.2f} %  " for way, size in found.items()))
    assert found["mask"] == 0 and found["and no gradient"] > 0.3

# %% [markdown]
# The gradient by a weight does not vanish because the weight is 0: `dL/dw = x · dL/dy` does not contain w. So the first way
# loses its zeros in one step. In the second, the momentum still remembers the gradients from before; it carries the weights
# away, and nothing brings them back but a decay that is far too slow. Decay alone never revives anything (a share of 0 is
# 0), and never repairs it in time either.
#
# So a zero has to be held *after* the update, in every step, whatever the optimizer is. That is the constraint: `Mask` in
# `nn/constraints.py`. It is also the only thing that counts as pruned: a weight that is 0 by chance has no mask, and
# learns.
#
# ## 7.3 Which weights?
#
# A criterion is a score for each weight, and the lowest go:
#
# - `magnitude`: abs(w);
# - `gradient`: abs(w · dL/dw), by how much the loss changes without it, to first order;
# - `activation`: abs(w) · ‖x‖, since a large weight on a pixel that is always 0 does nothing;
# - `obs`, the Optimal Brain Surgeon: goes on from the last. It takes what disturbs the layer's output least, and *changes
#   the weights that stay*, so that they take over what the others did;
# - `random`: the control. Whatever does not beat it is no criterion.
#
# No training yet: prune and measure, each layer to the same sparsity.
#
# **Predict.** At which sparsity does each of the five have lost ten points? The networks are trained to the end: what is
# their gradient worth?

# %%
# A criterion refuses to take all weights of an output, since its answers would be constant. Here that is to be measured.
UNLIMITED = {"allow_empty": ["2"]}
CRITERIA = {
    "magnitude": (lambda model, s, seed: prune.magnitude(model, s, scope="layer", **UNLIMITED), BLUE),
    "gradient": (lambda model, s, seed: prune.gradient(model, s, fitting, scope="layer", **UNLIMITED), GREEN),
    "activation": (lambda model, s, seed: prune.activation(model, s, fitting, scope="layer", **UNLIMITED), ORANGE),
    "obs": (lambda model, s, seed: prune.obs(model, s, fitting, **UNLIMITED), RED),
    # Lots of their own: with the network's seed they would be the very numbers that its first weights were drawn from.
    "random": (lambda model, s, seed: prune.random(model, s, scope="layer", rng=1000 + seed, **UNLIMITED), GREY),
}
sparsities = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
pruned = {
    name: [[criterion(models[seed].copy(), s, seed) for seed in SEEDS] for s in sparsities]
    for name, (criterion, _) in CRITERIA.items()
}
untrained = {name: np.array([points(group) for group in groups]) for name, groups in pruned.items()}

figure, (axis,) = panels()
axis.set(xlabel="sparsity, %", ylabel="validation accuracy, %\n(no training after pruning)", ylim=(0, 102))
for name, (_, colour) in CRITERIA.items():
    band(axis, 100 * np.array(sparsities), untrained[name], colour, name=name)
axis.legend(fontsize=15, frameon=False, loc="center left", bbox_to_anchor=(1, 0.6))
show(figure, "criteria.png")

means = {name: dict(zip(sparsities, values.mean(axis=1))) for name, values in untrained.items()}
for name, values in untrained.items():
    print(f"{name:<11}", *(f"{s:.0%}: {told(v)}   " for s, v in zip(sparsities, values)))
logits = md.predict(models[0], fitting).astype(np.float64)
each = np.sort(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(fitting)), fitting.y])
hard = each[-len(each) // 20 :].sum() / each.sum()
print(f"mean loss of the first network {each.mean():.4f}; one image in twenty makes {hard:.0%} of it")
assert hard > 0.3
assert means["magnitude"][0.5] > max(90, means["random"][0.5] + 15)
assert means["obs"][0.8] > means["magnitude"][0.8] + 10
assert means["gradient"][0.7] < means["magnitude"][0.7] - 8

# %% [markdown]
# Half of the weights can go at little cost if one asks how large they are, and not if one draws lots. The gradient
# of a trained network is nearly zero, that is what trained means; the last line says whose it is. The surgeon is ahead by
# far. What does it do? For each output it solves a least-squares problem: among the weights that stay, which values give
# back what the layer gave before? (`damping` adds a little to the diagonal.)
#
# **Predict.** We have the mask of one output of the first layer. Which three lines of NumPy give its new weights?

# %%
was, surgeon = models[0].layers[0].weight.data, pruned["obs"][3][0].layers[0].weight.data
neuron = 5
stays = surgeon[:, neuron] != 0
hessian = fitting.x.T.astype(np.float64) @ fitting.x
hessian += 0.01 * np.diag(hessian).mean() * np.eye(64)
by_least_squares = np.linalg.solve(hessian[np.ix_(stays, stays)], hessian[stays] @ was[:, neuron])
print(f"{stays.sum()} of 64 weights stay:\n  before  ", was[stays, neuron].round(2))
print("  after   ", surgeon[stays, neuron].round(2), "\n  by hand ", by_least_squares.round(2))
errors = {
    "cut": fitting.x[:, stays] @ was[stays, neuron] - fitting.x @ was[:, neuron],
    "corrected": fitting.x @ surgeon[:, neuron] - fitting.x @ was[:, neuron],
}
for name, error in errors.items():
    print(f"{name}: the neuron's sum is off by {np.sqrt(np.mean(error**2)):.3f}")
assert np.allclose(by_least_squares, surgeon[stays, neuron], rtol=1e-4, atol=1e-5)
assert np.mean(errors["corrected"] ** 2) < np.mean(errors["cut"] ** 2) / 2

# %% [markdown]
# Usually one trains on after pruning (*fine-tuning*). Then the question is another: not what the network is worth now, but
# what it can become.
#
# **Predict.** At 95 %, after 15 epochs: which of the five are still apart? Is the surgeon still the first?

# %%
tuned = {}
for name, groups in pruned.items():
    tuned[name] = points([trained(m.copy(), i) for i, m in enumerate(groups[-1])])
    unread = np.mean([sum((layer.weight.data == 0).all(axis=1).sum() for layer in m.layers[1:]) for m in groups[-1]])
    print(f"{name:<11} {told(tuned[name])}; hidden neurons that nobody reads: {unread:.0f} of 192")
print(f"{'not pruned':<11} {told(dense)}")
after = {name: values.mean() for name, values in tuned.items()}
assert after["magnitude"] > max(after["random"], after["gradient"], after["obs"]) + 2
assert after["gradient"] < after["random"] - 10

# %% [markdown]
# Training repairs most of it, and changes the order. The surgeon falls far behind: it looks at one layer at a time, and puts
# the weights where *this layer* reproduces best, on few inputs. The neurons behind the others have nobody to listen to them;
# the last column counts those. As long as nothing is trained that is fine; afterwards it is a narrower network. (A hint, no
# proof: exercise 2 tests it.) The gradient ends below the lots. By our own rule it is no criterion, not for a network that is
# trained to the end; a likely reason is that it kept what the few hard images need.
#
# So: with inputs, but no time to train, take `obs`; with training, the size of the weights is hard to beat. And who compares
# criteria only without training, or only with it, has seen half of it.
#
# ## 7.4 Which layers?
#
# `prune.sensitivity` prunes one layer at a time, without training.
#
# **Predict.** The layers have 8 192, 8 192 and 640 weights. Which one suffers first? And some pixels are white in every
# image: does `magnitude` know that their weights do nothing? Does `activation`?

# %%
scans = [prune.sensitivity(model, validation) for model in models]
print(scans[0])
show(md.plot.sensitivity(scans[0]), "sensitivity.png")
losses_at_90 = {
    path: 100 * np.array([scan.values[path][0] - scan.values[path][scan.sparsities.index(0.9)] for scan in scans])
    for path in scans[0].values
}
print("points lost with one layer at 90 %, all seeds:", {path: told(lost) for path, lost in losses_at_90.items()})

model, shares = models[0], {}
for scope in ("layer", "global"):
    counted = prune.sparsity(prune.magnitude(model.copy(), 0.95, scope=scope, **UNLIMITED))
    shares[scope] = [count.sparsity for count in counted.layers.values()]
    print(f'scope="{scope}": in all {counted.sparsity:.2%}; by layer', *(f"{share:.1%}" for share in shares[scope]))

white = (fitting.x > 0).mean(axis=0) < 0.01
left_on = {}
for name in ("magnitude", "activation"):
    left = (pruned[name][4][0].layers[0].weight.data != 0).sum(axis=1)  # of each pixel's 128 weights, at 90 %
    left_on[name] = left[white].mean(), left[~white].mean()
    print(f"{name}: {white.sum()} pixels that are 0 in more than 99 % of the images have {left_on[name][0]:.1f} weights left "
          f"on average, the others {left_on[name][1]:.1f}")  # fmt: skip

lost = {path: values.mean() for path, values in losses_at_90.items()}
assert lost["1"] < min(lost["0"], lost["2"])
assert shares["global"][1] > max(shares["global"][0], shares["global"][2])
assert abs(np.dot(shares["global"], [8192, 8192, 640]) / 17024 - 0.95) < 1e-3
assert left_on["activation"][0] < 1 < left_on["magnitude"][0]

# %% [markdown]
# The middle layer has the most to spare. The first has the pixels to look at, and the last has so few weights that sparing
# it costs nothing. Comparing all weights with one another finds that by itself (`scope="global"`, the default); a dict says
# it by hand: `prune.magnitude(model, {"0": 0.93, "1": 0.98, "2": 0.5})`. Global comparison assumes that a weight's size
# means the same in each layer. If a layer is scaled differently (lesson 4 has a loud neuron), use a dict, and scan first.
#
# A pixel that is always 0 gives its weights no gradient. They keep their first values, and `magnitude` takes them for as
# good as any others of their size.
#
# ## 7.5 How fast?
#
# All at once, or by and by? Each schedule is a callback of `md.fit`, and gets the same 15 epochs, starting from the same
# trained networks:
#
# - `OneShot`: prune to the end at step 0, then train;
# - `Iterative`: five rounds, two epochs apart, each takes the same share of what is left;
# - `Gradual`: every ten steps, along the cubic of Zhu & Gupta: much in the beginning, ever less towards the end.
#
# **Predict.** At 99 %, one weight in a hundred stays. Sketch the validation accuracy over the epochs for the three. Which
# ends highest? Would you expect the same order at 90 %?

# %%
END = 10 * STEPS  # the last five epochs are for training only
by_size = partial(prune.magnitude, **UNLIMITED)  # at 99 %, an output or two may lose everything
SCHEDULES = {
    "one shot": (lambda s: prune.OneShot(s, criterion=by_size), RED),
    "five rounds": (lambda s: prune.Iterative(s, rounds=5, every=2, criterion=by_size), ORANGE),
    "cubic": (lambda s: prune.Gradual(s, begin=0, end=END, every=10, criterion=by_size), BLUE),
}
sparsities = (0.9, 0.96, 0.99)
results = {name: [] for name in SCHEDULES}
curves = {}
for name, (make, _) in SCHEDULES.items():
    for s in sparsities:
        runs = [model.copy() for model in models]
        watched = {"validation": validation} if s == 0.99 else {}
        histories = [
            md.fit(run, fitting, epochs=EPOCHS, progress=False, rng=i, callbacks=[make(s)], **watched)
            for i, run in enumerate(runs)
        ]
        results[name].append(points(runs))
        if s == 0.99:
            curves[name] = 100 * np.array([history["validation_accuracy"] for history in histories]).T
        assert all(prune.sparsity(run).total.masked == round(s * 17024) for run in runs)

figure, (above, below) = panels(2, width=13)
for name, (make, colour) in SCHEDULES.items():
    plan = make(0.99).plan(STEPS)
    steps, reached = np.array([0, *plan, EPOCHS * STEPS]), np.array([0, *plan.values(), 0.99])
    above.step(steps / STEPS, 100 * reached, where="post", color=colour, lw=3)
    band(below, np.arange(1, EPOCHS + 1), curves[name], colour)
    label(below, name, (EPOCHS, curves[name][-1].mean()), colour)
for name, at, shift, ha in (("one shot", (0, 99), (8, 12), "left"), ("cubic", (2, 50), (12, -10), "left"),
                            ("five rounds", (6.4, 85), (0, 0), "left")):  # fmt: skip
    label(above, name, at, SCHEDULES[name][1], shift, ha)
above.set(xlabel="epoch", ylabel="sparsity, %", ylim=(0, 108), xlim=(-0.3, EPOCHS))
below.set(xlabel="epoch", ylabel="validation accuracy, %", xlim=(0, 19.5), ylim=(0, 102))
for axis in (above, below):
    axis.set_xticks([0, 5, 10, 15])
show(figure, "schedules.png")

results = {name: np.array(values) for name, values in results.items()}
for name, values in results.items():
    print(f"{name:<12}", *(f"{s:.0%}: {told(v)}   " for s, v in zip(sparsities, values)))
at = sparsities.index(0.99)
assert min(results[name][at].mean() for name in ("cubic", "five rounds")) > results["one shot"][at].mean() + 15
assert abs(results["cubic"][0].mean() - results["one shot"][0].mean()) < 2

# %% [markdown]
# At 90 % it hardly matters; the harder one prunes, the more it does. One shot takes away weights that would have been
# needed, and nothing brings them back; by and by, those that stay have the time to take over, and their sizes mean
# something again before the next ones go. Which of the two slow ones is better, the spread does not say. (Bringing some
# back is possible: `prune.Regrow`, exercise 4.)
#
# Now the question that papers often forget. Here is a *small dense network*, with one hidden layer of as many neurons as it
# takes for the same number of weights, trained for as many epochs as the pruned one in all. It needs no mask, no positions
# and no sparse kernel.
#
# **Predict.** At which sparsities is the pruned network better than the small one?

# %%
widths = [max(1, round((1 - s) * 17024 / 74)) for s in sparsities]  # a neuron has 64 weights in and 10 out
small = np.array([points([trained(network(seed, n), seed, 2 * EPOCHS) for seed in SEEDS]) for n in widths])
for s, n, values, ours in zip(sparsities, widths, small, results["cubic"]):
    print(f"{s:.0%}: pruned {told(ours)}; dense with {n} hidden neurons, {74 * n} weights: {told(values)}")

figure, (axis,) = panels()
left = 100 * (1 - np.array(sparsities))
for name, (_, colour) in SCHEDULES.items():
    band(axis, left, 100 - results[name], colour)
    label(axis, name, (left[-1], 100 - results[name][-1].mean()), colour, (12, -6 if name == "cubic" else 6))
band(axis, left, 100 - small, GREEN, "--")
label(axis, "small, dense", (left[-1], 100 - small[-1].mean()), GREEN, (12, 0))
axis.axhline(100 - dense.mean(), color=GREY, lw=2, ls=":")
label(axis, "not pruned", (left[-1], 100 - dense.mean()), GREY, (12, 12))
percents(axis, "validation error, %")
axis.set(xlabel="weights left, %", xscale="log", xlim=(11, 0.55))
axis.minorticks_off()
axis.set_xticks(left, [f"{value:g}" for value in left.round(1)])
show(figure, "how_fast.png")

assert (small - results["cubic"])[:2].mean(axis=1).min() > -2
assert results["cubic"][-1].mean() > small[-1].mean() + 10

# %% [markdown]
# On these digits a small dense network does what a pruned one does for most of the way, and it is the better bargain there.
# Pruning pulls ahead where hardly anything is left, since it may choose *which* weights. Digits are easy, and with other
# data that point may lie elsewhere: measure it. Whoever reports that a pruned network keeps its accuracy should have tried
# the small one.
#
# ## 7.6 The lottery ticket
#
# Frankle & Carbin (2019) asked whether the sparse network could have been trained *from the start*. Train, prune the
# smallest weights of each layer, set the rest back to what they were at step 0, and again: `prune.lottery_tickets`. What is
# found is a *ticket*: places and first values. It has two controls:
#
# - *drawn anew*: the same places, other first values;
# - *random ticket*: the same first values, other places, as many in each layer.
#
# The paper removes 20 % a round; we take 40 %, to save time. Nothing is rewound but the weights: each training has the same
# length.
#
# **Predict.** After 3 epochs, and after 10: is the ticket ahead of its controls? Of which one more? Is it ahead of the
# dense network?

# %%
EARLY, SHORT, SHOWN = 3, 10, (2, 4, 7)
KINDS = {"ticket": BLUE, "drawn anew": ORANGE, "random ticket": GREY}


def fully_trained(model, callbacks=(), seed=0):
    return md.fit(model, fitting, optimizer=optim.Adam(model.parameters(), lr=2e-3), epochs=SHORT, progress=False,
                  validation=validation, rng=seed, callbacks=callbacks)  # fmt: skip


def at_two_times(history):
    accuracy = 100 * np.array(history["validation_accuracy"])
    return accuracy[EARLY - 1], accuracy[-1]


found = {kind: np.empty((len(SHOWN), 2, len(SEEDS))) for kind in KINDS}
whole, on_white = np.empty((2, len(SEEDS))), {"ticket": [], "random ticket": []}
for seed in SEEDS:
    tickets = prune.lottery_tickets(
        network(seed), lambda m, callbacks, s=seed: fully_trained(m, callbacks, s), rounds=7, rate=0.4, output_rate=0.2
    )
    whole[:, seed] = at_two_times(tickets[0].result)
    for i, number in enumerate(SHOWN):
        ticket = tickets[number]
        controls = {"drawn anew": ticket.reinitialized(rng=100 + seed), "random ticket": ticket.random(rng=200 + seed)}
        found["ticket"][i, :, seed] = at_two_times(ticket.result)
        for kind, control in controls.items():
            found[kind][i, :, seed] = at_two_times(fully_trained(control, seed=seed))
    first = network(seed).layers[0].weight.data
    start = ticket.model().layers[0].weight.data
    assert np.array_equal(start[start != 0], first[start != 0])  # rewound to the very first values
    on_white["ticket"].append((start != 0)[white].sum() / (start != 0).sum())
    anywhere = ticket.random(rng=200 + seed).layers[0].weight.data != 0
    on_white["random ticket"].append(anywhere[white].sum() / anywhere.sum())

left = [100 * tickets[number].remaining for number in SHOWN]
for time, name in enumerate((f"after {EARLY} epochs", f"after {SHORT} epochs")):
    print(f"{name}: dense {told(whole[time])}")
    for kind, values in found.items():
        print(f"  {kind:<14}", *(f"{share:.1f} % left: {told(v)}   " for share, v in zip(left, values[:, time])))
print("weights on pixels that are nearly always 0:", *(f"{k} {np.mean(v):.0%}  " for k, v in on_white.items()))

figure, axes = panels(2, width=13, sharey=True)
for time, axis in enumerate(axes):
    axis.axhline(100 - whole[time].mean(), color=GREEN, lw=2, ls=":", xmax=0.72)
    for kind, colour in KINDS.items():
        band(axis, left, 100 - found[kind][:, time], colour)
        label(axis, kind, (left[-1], 100 - found[kind][-1, time].mean()), colour, (12, 0))
    axis.set(xlabel="weights left, %", xscale="log", xlim=(42, 1.4), title=f"after {(EARLY, SHORT)[time]} epochs")
    label(axis, "dense", (left[-1], 100 - whole[time].mean()), GREEN, (12, 0))
    percents(axis, None)
    axis.minorticks_off()
    axis.set_xticks(left, [f"{share:.1f}" for share in left])
axes[0].set_ylabel("validation error, %")
show(figure, "tickets.png")
show(sparsity_pattern(tickets[-1].model().layers[0], image_shape=(8, 8)), "pattern.png")

early, late = ({kind: values[:, time].mean(axis=1) for kind, values in found.items()} for time in (0, 1))
assert early["ticket"][0] > max(early["drawn anew"][0], early["random ticket"][0]) + 3
assert late["ticket"][0] - max(late["drawn anew"][0], late["random ticket"][0]) < 3
assert late["ticket"][-1] > late["drawn anew"][-1] + 3
assert late["drawn anew"][-1] > late["random ticket"][-1] + 10
assert late["ticket"].max() < whole[1].mean() + 1.5

# %% [markdown]
# What the digits show, and what they do not:
#
# - A ticket learns *faster* than its controls, at every size. That is the clearest result. (Look at the dotted line, too.)
# - With a third of the weights left, ten epochs are nearly enough for all three. Who trains for long enough does not see
#   a ticket there.
# - With few weights left, the places matter most, and part of it is simple: look at the share of a random ticket's weights
#   that hang on white pixels. In the real one (second figure), a weight that no image trains stays as small as it began,
#   and some round takes it. But the same places with other first values are worse as well, so the values matter, too.
# - Does a ticket end better than the dense network? The paper sees a small gain at moderate sizes. Here it cannot be told:
#   hold the difference in the table against its spread.
#
# And what it costs: the last ticket took eight trainings. It explains why sparse training works; it is not a way to save
# time. Larger networks need rewinding to an early step instead of the first (`rewind=k`), says the later paper of 2020.
#
# ## 7.7 Structure: whole neurons, and N of M
#
# A neuron whose incoming weights and bias are all masked always says the same: act(0). For `relu` this is 0, and it can
# simply be cut out. For `sigmoid` it is 0.5.
#
# **Predict.** We cut half of the hidden neurons out of a network of sigmoids: their column and bias in the first layer,
# their row in the second. What else must be done, so that it computes what the masked one did?

# %%
curved = nn.Sequential(nn.Dense(64, 16, activation="sigmoid"), nn.Dense(16, 10), rng=0)
trained(curved, 0)
prune.neurons(curved, fraction=0.5)
first, second = curved.layers
stays = first.bias.constraints[0].kept
hidden = nn.activations(curved, validation.x, paths=["0"])["0"].numpy()
print("a neuron that is gone says", np.unique(hidden[:, ~stays]))

W, b = first.weight.data[:, stays], first.bias.data[stays]
W_next, constant = second.weight.data[stays], 0.5 * second.weight.data[~stays].sum(axis=0)
kept_hidden = 1 / (1 + np.exp(-(validation.x @ W + b)))
naive = kept_hidden @ W_next + second.bias.data
folded = kept_hidden @ W_next + (second.bias.data + constant)
expected = md.predict(curved, validation)
for name, logits in (("cut out", naive), ("cut out, and act(0) @ W folded into the bias", folded)):
    print(f"{name}: largest difference {np.abs(logits - expected).max():.1e}")

smaller = prune.shrink(curved)
print(smaller)
assert np.all(hidden[:, ~stays] == 0.5)
assert np.abs(naive - expected).max() > 0.1 > 1e-4 > np.abs(folded - expected).max()
assert np.array_equal(smaller.layers[0].weight.data, W) and np.array_equal(smaller.layers[1].weight.data, W_next)
assert np.allclose(smaller.layers[1].bias.data, second.bias.data + constant, atol=1e-6)
assert np.allclose(md.predict(smaller, validation), expected, atol=1e-4)

# %% [markdown]
# `prune.shrink` does this through whole models, and hands on masks and the optimizer's moments, so that training can go on
# in the small model. The output layer's neurons are never taken by default: they are the answers.
#
# **Predict.** Three quarters of the hidden neurons go, from 128 and 64 to 32 and 16. By what should they be chosen? And as
# in 7.5: is this better than a *fresh* network of 32 and 16, trained for as long in all?

# %%
raw, tuned = {}, {}
for by in ("norm", "activation", "redundancy"):
    shrunk = [prune.shrink(prune.neurons(m.copy(), 0.75, by=by, data=fitting)) for m in models]
    raw[by], tuned[by] = points(shrunk), points([trained(m, i) for i, m in enumerate(shrunk)])
    print(f"{by:<11} at once {told(raw[by])}, after training {told(tuned[by])}")
assert [layer.weight.shape for layer in shrunk[0].layers] == [(64, 32), (32, 16), (16, 10)]
fresh = points([trained(network(seed, 32, 16), seed, 2 * EPOCHS) for seed in SEEDS])
print(f"{'fresh':<11} {'':>20} after training {told(fresh)}")
assert raw["norm"].mean() < 85
assert all(abs(values.mean() - fresh.mean()) < 2 for values in tuned.values())

silenced = prune.neurons(models[0].copy(), {"2": 0.1}, allow_empty=["2"])  # a class is lost: refused, unless named
silent = int(np.flatnonzero(~silenced.layers[2].bias.constraints[0].kept)[0])
recall = np.mean(md.predict(silenced, validation).argmax(axis=1)[validation.y == silent] == silent)
print(f"output neuron {silent} masked: {recall:.0%} of the {silent}s are recognised")
assert np.all(md.predict(silenced, validation)[:, silent] == 0)

# %% [markdown]
# Neurons are a coarse unit: cutting them hurts more at once than cutting as many single weights. After training, little is
# left of what the criteria differed by, and none is clearly ahead of a network that was small from the start; others found
# the same for large networks (Liu et al. 2019, "Rethinking the Value of Network Pruning"). The reason to prune neurons is
# practical: you *have* a trained network and little time, or you do not know beforehand which width is enough. What comes out
# is plain and dense, and fast everywhere.
#
# Between single weights and neurons lies *N:M*: of each M neighbouring inputs of an output, N stay. 2:4 is what some
# graphics processors multiply directly.
#
# **Predict.** 2:4 removes half of the weights, and each group must give up two, whatever they are worth. What does this
# cost against the free choice of half of the weights?

# %%
free = points([prune.magnitude(m.copy(), 0.5, scope="layer") for m in models])
pattern = [prune.n_m(m.copy(), n=2, m=4) for m in models]
fine = points([trained(m.copy(), i, epochs=5) for i, m in enumerate(pattern)])
print(f"half of the weights: free {told(free)}, 2:4 {told(points(pattern))}, 2:4 after five epochs {told(fine)}")
groups = (pattern[0].layers[0].weight.data != 0).reshape(16, 4, 128).sum(axis=1)
assert np.all(groups == 2)
assert free.mean() > points(pattern).mean() and fine.mean() > dense.mean() - 1.5

# %% [markdown]
# ## 7.8 From zeros to bytes
#
# To save bytes, one stores the weights that are left, and *where they are*. Values are stored output by output. For the
# positions there are three formats (`kernels/sparse_formats.py`):
#
# - `csr`: for each value the number of its input, a byte if there are at most 256 inputs;
# - `bitmap`: for each output one bit for each input, kept or not;
# - `n_m`: for each value its place in its group of M: two bits for M = 4.
#
# For csr and bitmap one also needs to know where each output's values begin. Values are float32, or int8 with a scale for
# each output (lesson 4).
#
# **Predict.** A matrix of 8 inputs and 3 outputs, pruned 2:4, takes 96 bytes as float32. How many does each format take?

# %%
tiny = nn.Sequential(nn.Dense(8, 3, bias=False))
tiny.layers[0].weight.assign(np.float32([
    [9, 0.5, 1], [-2, 7, 2], [1, 8, -3], [4, 0.1, 5], [0.2, 3, 8], [6, 2, 1], [5, 0.3, 2], [1, -4, -6],
]))  # fmt: skip
prune.n_m(tiny, n=2, m=4)
W = tiny.layers[0].weight.data
print("outputs, each with its 8 inputs:", W.T, sep="\n")
inputs = [np.flatnonzero(column) for column in W.T]  # which are left, for each output

values = np.concatenate([W[kept, n] for n, kept in enumerate(inputs)])
starts = np.cumsum([0] + [len(kept) for kept in inputs])
csr = np.concatenate(inputs)
bitmap = np.array([sum(1 << k for k in kept) for kept in inputs])
places = np.array([sum(int(k % 4) << 2 * i for i, k in enumerate(kept)) for kept in inputs])  # four of two bits: a byte
scales = np.abs(W).max(axis=0) / np.float32(127)
integers = np.concatenate([np.rint(W[kept, n] / scales[n]) for n, kept in enumerate(inputs)])
print("csr:   ", csr)
print("bitmap:", [f"{word:08b}" for word in bitmap], "(input 0 is the last bit)")
print("n_m:   ", [f"{byte:08b}" for byte in places], "(the first place is in the last two bits)")

for how, index in (("csr", csr), ("bitmap", bitmap), ("n_m", places)):
    for kind, numbers in (("float32", values), ("int8", integers)):
        layer = prune.to_sparse(tiny, format=how, values=kind).layers[0]
        parts = [layer.values, layer.index, layer.row_starts] + ([layer.scales] if kind == "int8" else [])
        print(f"{how:<7} {kind:<8}", " + ".join(str(part.nbytes) for part in parts), "=", sum(p.nbytes for p in parts))
        assert np.array_equal(layer.index.ravel(), index) and np.array_equal(layer.row_starts, starts)
        assert np.array_equal(layer.values, numbers)
        tolerance = 0 if kind == "float32" else 1.001 * scales.max() / 2
        assert np.abs(layer.weight - W).max() <= tolerance

# %% [markdown]
# So a weight that is left costs its value *and* its position. That decides from which sparsity on anything is saved.
#
# **Predict.** A layer with 256 inputs. From which sparsity on is csr smaller than dense, with float32 values? And with int8
# values, against dense int8? From which on is it smaller than the bitmap?

# %%
levels = np.array([0, 0.05, 0.1, 0.15, 0.25, 0.3, 0.4, 0.45, 0.55, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99])
square = nn.Sequential(nn.Dense(256, 256, bias=False), rng=0)


def bytes_per_weight(model, how, kind, **pattern):
    layer = prune.to_sparse(model, format=how, values=kind, **pattern).layers[0]
    parts = [layer.values, layer.index, layer.row_starts, *([layer.scales] if kind == "int8" else [])]
    return sum(part.nbytes for part in parts) / 256**2


masked = [prune.random(square.copy(), s, rng=0, allow_empty="0") for s in levels]
cost = {(how, kind): np.array([bytes_per_weight(m, how, kind) for m in masked])
        for how in ("csr", "bitmap") for kind in ("float32", "int8")}  # fmt: skip
patterns = [(2, 4), (1, 4), (1, 8), (1, 16)]
packed = {kind: [bytes_per_weight(prune.n_m(square.copy(), n=n, m=m), "n_m", kind, n=n, m=m) for n, m in patterns]
          for kind in ("float32", "int8")}  # fmt: skip

figure, axes = panels(2, width=13)
for axis, kind, whole_weight in zip(axes, ("float32", "int8"), (4, 1)):
    axis.axhline(whole_weight, color=GREY, lw=2, ls=":")
    for how, colour in (("csr", RED), ("bitmap", BLUE)):
        axis.plot(100 * levels, cost[how, kind], color=colour, lw=3)
        at = 2 if how == "csr" else 6
        label(axis, how, (100 * levels[at], cost[how, kind][at]), colour, (8, 12) if how == "csr" else (-6, -14),
              ha="left" if how == "csr" else "right")  # fmt: skip
    axis.plot([100 * (1 - n / m) for n, m in patterns], packed[kind], "D", ms=11, color=GREEN)
    for (n, m), value in zip(patterns, packed[kind]):
        shift, ha = ((-8, -14), "right") if m == 4 else ((10, 16), "left")
        label(axis, f"{n}:{m}", (100 * (1 - n / m), value), GREEN, shift, ha)
    label(axis, "dense", (100, whole_weight), GREY, (0, 12), ha="right")
    axis.set(
        xlabel="sparsity, %",
        title=f"values {kind}",
        xlim=(-5, 108),
        ylim=(0, 1.5 * whole_weight if kind == "float32" else 2.4),
    )
axes[0].set_ylabel("bytes for each weight of the matrix")
show(figure, "formats.png")

for kind, whole_weight in (("float32", 4), ("int8", 1)):
    smaller_from = {how: float(levels[np.argmax(cost[how, kind] < whole_weight)]) for how in ("csr", "bitmap")}
    print(f"{kind}: of these sparsities, the first with fewer bytes than dense:", smaller_from,
          "and csr below bitmap from", levels[np.argmax(cost["csr", kind] < cost["bitmap", kind])])  # fmt: skip
at = {s: i for i, s in enumerate(levels)}
assert cost["csr", "float32"][at[0.15]] > 4 > cost["csr", "float32"][at[0.25]]
assert cost["csr", "int8"][at[0.45]] > 1 > cost["csr", "int8"][at[0.55]]
for kind in ("float32", "int8"):
    difference = cost["csr", kind] - cost["bitmap", kind]
    assert difference[at[0.85]] > 0 > difference[at[0.9]]

# %% [markdown]
# A csr value costs 4 + 1 bytes, so four fifths of the weights may be left. With int8 values it costs 1 + 1, the position as
# much as the value: only half may be left, or the file *grows*. (Layers with more inputs need two bytes for a position.) A
# bitmap costs an eighth of a byte for each weight, kept or not; it wins until so few are left that naming them is cheaper,
# one in eight for positions of one byte. N:M pays two bits in groups of 4, and four in groups of 16, for each weight that
# is left: with 2:4 as much as a bitmap, with fewer left less, and each value stands at a place that is known beforehand.
# `format="smallest"` picks by layer. Lesson 8 goes on from here, with shared values and codes of variable length.
#
# ## 7.9 What is really smaller, and what is faster?
#
# The bill. A network with two hidden layers of 1 024, large enough for its time to be arithmetic, is trained on the digits,
# then pruned by the cubic schedule, once for each sparsity. The test set is touched here, once.
#
# **Predict.** For each row: is the file smaller, and by how much? Is it faster at batch 1, at batch 256? What does int8
# add: bytes, time, both?

# %%
N = 1024 if COMPILES else 512
large = trained(network(0, N, N), 0, epochs=3)


def gradually(sparsity):
    return trained(large.copy(), 0, epochs=5, callbacks=[prune.Gradual(sparsity, begin=0, end=2 * STEPS, every=11)])


masked = {s: gradually(s) for s in (0.8, 0.95)}
narrow = trained(prune.shrink(prune.neurons(large.copy(), 0.75)), 0, epochs=5)
ledger = md.Ledger(test, seconds=0.02)
ledger.add("dense", large)
ledger.add("80 %, csr", prune.to_sparse(masked[0.8]))
ledger.add("95 % masked", masked[0.95])
ledger.add("95 %, csr", prune.to_sparse(masked[0.95]))
ledger.add("95 %, csr, int8", prune.to_sparse(masked[0.95], values="int8"))
ledger.add("2:4", prune.to_sparse(trained(prune.n_m(large.copy()), 0, epochs=1), format="n_m"))
ledger.add("neurons, shrunk", narrow)
print(ledger)
show(md.plot.pareto(ledger), "bill.png")

path = FOLDER / "sparse.npz"
sparse = prune.to_sparse(masked[0.95])
md.save(sparse, path)
again = md.load(path)
print(f"{path.name}: {path.stat().st_size:,} bytes; loaded again, its answers are the same")
assert np.array_equal(md.predict(again, validation), md.predict(sparse, validation))
assert np.allclose(md.predict(sparse, validation), md.predict(masked[0.95], validation), rtol=1e-4, atol=1e-3)
path.unlink()

rows = {row["name"]: row for row in ledger.rows}
whole_file = rows["dense"]["file_bytes"]
assert rows["95 % masked"]["file_bytes"] > whole_file
assert rows["80 %, csr"]["file_bytes"] < 0.35 * whole_file and rows["95 %, csr"]["file_bytes"] < 0.1 * whole_file
assert rows["95 %, csr, int8"]["file_bytes"] < 0.6 * rows["95 %, csr"]["file_bytes"]
assert rows["neurons, shrunk"]["file_bytes"] < 0.12 * whole_file
assert all(row["accuracy"] > rows["dense"]["accuracy"] - 0.08 for row in rows.values())

# %% [markdown]
# Read your own table. The masked row is the promise, the csr row beneath it the same network with the promise kept. int8
# values save bytes and no time: they are multiplied as floats. 2:4 saves bytes; on a processor without instructions for it,
# look whether it saves any time. The shrunk row is the plainest of all. Its neurons were chosen by norm and it was trained
# on for as long as the csr ones. (One seed: compare bytes and times here, not tenths of a point.)
#
# From which sparsity on is it faster? Against BLAS, which is as good as dense products get, a sparse product pays for every
# position that it reads. We time whole predictions of the large network, and of the small one of the first sections; at
# batch 1 we also time a network of as many layers with hardly a weight in it.
#
# **Predict.** Large network: where does its curve cross 1, at batch 1 and at 256? Small network, 99 % sparse, one image:
# how many times faster?


# %%
def ratios(dense_model, size, levels):
    """Time of the dense network by that of its sparse versions. Only speed is asked for, so lots will do."""
    x = np.resize(validation.x, (size, 64))
    versions = {s: prune.to_sparse(prune.random(dense_model.copy(), s, rng=0, allow_empty="2")) for s in levels}
    sides = {s: partial(md.predict, version, x) for s, version in versions.items()}
    times = timing.compare({"dense": partial(md.predict, dense_model, x), **sides}, seconds=0.02, settle=0.01)
    return np.array([times["dense"].median / times[s].median for s in levels])


levels = (0.5, 0.8, 0.9, 0.95, 0.99)
sizes = {"large": large, "small": models[0]}
gains = {(name, batch): ratios(m, batch, levels) for name, m in sizes.items() for batch in (1, 256)}
for (name, batch), values in gains.items():
    print(f"{name} network, batch {batch:>3}:", *(f"{s:.0%} sparse: {gain:.1f}x   " for s, gain in zip(levels, values)))

x = validation.x[:1]
nearly_empty = network(0, 1, 1)
sides = {"small, dense": models[0], "three layers, one neuron each": nearly_empty, "large, dense": large}
times = timing.compare({name: partial(md.predict, m, x) for name, m in sides.items()}, seconds=0.03, settle=0.015)
for name, measured in times.items():
    print(f"one image, {name}: {timing.show(measured)}")
floor = times["three layers, one neuron each"].median
print(f"share of a call that is not arithmetic: small {floor / times['small, dense'].median:.0%}, "
      f"large {floor / times['large, dense'].median:.0%}")  # fmt: skip

figure, axes = panels(2, width=13, sharey=True)
for axis, name in zip(axes, sizes):
    axis.axhline(1, color=GREY, lw=2, ls=":")
    for batch, colour in ((1, RED), (256, BLUE)):
        axis.plot(range(len(levels)), gains[name, batch], "o-", color=colour, lw=3, ms=9)
        label(axis, f"batch {batch}", (len(levels) - 1, gains[name, batch][-1]), colour, (12, 7 if batch > 1 else -7))
    hidden = " and ".join(str(layer.out_features) for layer in sizes[name].layers[:-1])
    axis.set(xlabel="sparsity, %", title=f"{name}: hidden layers of {hidden}", xlim=(-0.3, 5.1), yscale="log")
    axis.set_xticks(range(len(levels)), [f"{100 * s:g}" for s in levels])
    axis.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20], ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20"])
    axis.minorticks_off()
axes[0].set_ylabel("times as fast as dense")
label(axes[0], "no gain", (len(levels), 1), GREY, (0, 12), ha="right")
show(figure, "speed.png")

# %% [markdown]
# The large network gains the more the sparser it is. For the small one at batch 1 there is nothing to gain: most of the
# call is Python, and that is there for a layer with hardly a weight, too (a sparse layer may need even more of it). A
# product that takes no time cannot be made faster. At batch 256 the same layers are arithmetic again. So "90 % sparse" says
# nothing about speed; the shape of the layers, the batch and the machine do. `md.deploy.choose` measures that for each
# layer and batch size, and takes what is fastest.
#
# ## What to take along
#
# How to choose:
#
# - No data or no time to train: `obs` if you have inputs, `magnitude` if you have nothing.
# - Time to train: `magnitude`, global, with `Gradual` or `Iterative`; the sparser, the more the schedule matters.
# - It must be fast everywhere, with no special kernel: `neurons` and `shrink`; and try a small network first.
# - The file must be small: single weights, `to_sparse`, int8 values; then lesson 8.
#
# How to check that a saving is real:
#
# - bytes: of a file that was written and loaded again, with the same answers;
# - time: of whole predictions, at *your* batch size, against BLAS on as many threads;
# - accuracy: over seeds, beside a small dense network of as many weights that was trained for as long;
# - and count the zeros: `prune.sparsity`. A zero without a mask is a coincidence, a mask without `shrink` or `to_sparse` a
#   promise.
#
# What pruning does not do: it leaves biases and output neurons alone, and what they cost; it does not make Python, small
# layers or memory for activations any less.
#
# **Exercises.** 1. Write a criterion of your own as in the docstring of `prune/masks.py`: abs(w) times how often the input
# is not 0. Put it into 7.3. 2. Give `obs` more damping, 0.3, or `exact=True`. What happens to the neurons that nobody reads,
# and to the accuracy after training? Then keep its masks, and give the weights that stay their old values. 3. In 7.2, mask
# the weights *before* `optimizer.step()` instead of after it. How many are not 0 when the loss is computed? 4. Train with
# `callbacks=[prune.OneShot(0.99), prune.Regrow(every=33)]`. Does it catch up with the cubic schedule? 5. Give the random
# ticket of 7.6 the real ticket's number of weights on each pixel. How much of the gap closes? 6. Compress the two files of
# 7.1 with `gzip`. What does the mask save now, and why is that no answer for the memory and the time? 7. Distil the dense
# network into its own pruned self (`distill.distill(..., callbacks=[prune.Gradual(...)])`, lesson 3). At which sparsity does
# the teacher help?
