# %% [markdown]
# # 4. Quantization
#
# **Goal.** Go from one number line to a model that computes in 8-bit integers. Rebuild one of its layers by hand, bit for
# bit, and find the layer that suffers when it goes wrong.
#
# **Prerequisites.** Lesson 2. **Time.** 75 minutes to work through; the script runs in under a minute.
#
# The engine's files to read along are `quantize/affine.py`, `kernels/reference/affine.py` and
# `kernels/reference/int8.py`. They are short, and they are the specification: every fast kernel is tested to give the
# same integers.

# %%
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import minidistill as md
from minidistill import datasets, kernels, nn, quantize

FOLDER = Path("runs/lessons/04_quantization")
BLUE, RED, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"


def style(axis, **names):
    """Letters that can be read from the last row."""
    axis.set(**names)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E5E5E5")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=13)
    axis.xaxis.label.set_size(15)
    axis.yaxis.label.set_size(15)


def two_panels(ratios=(1, 1)):
    """A figure with one axis above the other, on the same x."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    return figure, figure.subplots(2, sharex=True, height_ratios=ratios)


def label(axis, text, at, colour, shift=(10, 0), ha="left"):
    """Text beside a point, in the colour of its curve."""
    axis.annotate(text, at, xytext=shift, textcoords="offset points", color=colour, fontsize=15, va="center", ha=ha)


def show(figure, name):
    """Write the figure into runs/lessons/04_quantization/, and show it if this is a notebook."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=120)
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(str(FOLDER / name)))


# %% [markdown]
# ## 4.1 A number line with eight marks
#
# A float `x` is stored as an integer `q`, and `q` stands for a mark on the number line:
#
# - store: `q = clip(rint(x / S) + Z)`
# - read: `S * (q - Z)`
#
# The *scale* S is the distance between two marks. The *zero point* Z is the integer that stands for 0. Here are three
# bits, so `q` is in 0..7, with S = 0.5 and Z = 2.
#
# **Predict.** Which integers do -1.3, -0.3, 0, 0.25, 0.75, 1.9 and 7 become, and what do you read back? (0.25 and 0.75
# lie in the middle between two marks. `rint` takes the even number of steps.)

# %%
S, Z = np.float32(0.5), 2
x = np.float32([-1.3, -0.3, 0.0, 0.25, 0.75, 1.9, 7.0])
q = kernels.quantize(x, S, Z, 0, 7)
back = kernels.dequantize(q, S, Z)
for line in zip(x, x / S, q, back):
    print("x = {:5.2f}   x / S = {:5.2f}   q = {}   read back {:5.2f}".format(*line))
assert q.tolist() == [0, 1, 2, 2, 4, 6, 7]
assert np.array_equal(q, np.clip(np.rint(x / S) + Z, 0, 7)) and np.array_equal(back, S * (q.astype(np.float32) - Z))

figure = Figure(figsize=(10, 3.4), layout="constrained")
axis = figure.subplots()
for value, read in zip(x, back):
    start = min(value, 2.8)  # 7 lies far outside
    axis.annotate(
        "", (read, 0.06), (start, 0.72), arrowprops={"arrowstyle": "-|>", "color": BLUE, "lw": 2, "shrinkA": 0}
    )
    axis.text(
        start,
        0.78,
        f"{value:g}" if start == value else f"{value:g} …",
        ha="center",
        va="bottom",
        color=BLUE,
        fontsize=15,
    )
marks = S * (np.arange(8) - Z)
axis.plot([-1.5, 3], [0, 0], color=GREY, lw=2)
axis.plot(marks, 0 * marks, "o", ms=11, color="black")
axis.plot(0, 0, "o", ms=15, color=RED)
for number, mark in enumerate(marks):
    colour = RED if number == Z else "black"
    axis.text(mark, -0.16, f"{mark:g}", ha="center", va="top", color=colour, fontsize=15)
    axis.text(mark, -0.42, number, ha="center", va="top", color=colour, fontsize=19, weight="bold")
for text, height, size in (("x", 0.78, 15), ("S (q - Z)", -0.16, 15), ("q", -0.42, 19)):
    axis.text(-1.62, height, text, ha="right", va="bottom" if height > 0 else "top", color=GREY, fontsize=size)
axis.set(xlim=(-2.3, 3.1), ylim=(-0.68, 1))
axis.axis("off")
show(figure, "number_line.png")

# %% [markdown]
# Between the outer marks, and half a step beyond, the error is at most half a step: *rounding*. Further out it grows
# without bound: *clipping*. All that follows is a trade between the two.

# %%
x = np.linspace(-2, 3.5, 2201, dtype=np.float32)
q = kernels.quantize(x, S, Z, 0, 7)
back = kernels.dequantize(q, S, Z)
inside = (x >= marks[0] - S / 2) & (x <= marks[-1] + S / 2)
assert np.abs(back - x)[inside].max() <= S / 2 < np.abs(back - x)[~inside].min()
assert len(np.unique(back)) == 8

figure, (stairs, error) = two_panels((3, 2))
stairs.axline((0, 0), slope=1, color=GREY, lw=1.5, ls=":")
error.axhspan(-S / 2, S / 2, color=BLUE, alpha=0.12, lw=0)
for axis, y in ((stairs, back), (error, back - x)):
    # A jump is no line.
    axis.plot(x[inside], np.where(np.diff(q, append=7) > 0, np.nan, y)[inside], color=BLUE, lw=3, solid_capstyle="butt")
    for part in (x < marks[0] - S / 2, x > marks[-1] + S / 2):
        axis.plot(x[part], y[part], color=RED, lw=3, solid_capstyle="butt")
label(stairs, "clipped", (3.5, back[-1]), RED, (0, -16), ha="right")
label(error, "± S/2", (3.5, 0), BLUE, (0, 0), ha="right")
style(stairs, ylabel="read back", ylim=(-2, 3.6))
style(error, xlabel="x", ylabel="error", ylim=(-1.1, 1.1), xlim=(-2, 3.5))
show(figure, "staircase.png")

# %% [markdown]
# ## 4.2 The engine's grid, and why 0 is on it
#
# Activations are `uint8`: 256 marks over the range that one expects. `quantize.activation_scale(low, high)` gives S and
# Z. It first widens the range to hold 0, then rounds Z to a whole number, so that 0 is *exactly* a mark.
#
# From here on we need a patient: a network for the digits, whose pixels are centred, so that they are of both signs.
#
# **Predict.** What share of its hidden activations, behind `relu`, is exactly 0?

# %%
digits, last = datasets.load_digits()
centre = digits.x.mean(axis=0)
train, test = (datasets.Dataset(part.x - centre, part.y) for part in (digits, last))
fitting, validation = train.split(0.8, rng=0)


def network(*widths, activation="relu"):
    sizes = (64, *widths)
    hidden = [nn.Dense(a, b, activation=activation) for a, b in zip(sizes, widths)]
    return nn.Sequential(*hidden, nn.Dense(widths[-1], 10), rng=0)


def given_by(model, path, x):
    """What this layer gives: an array."""
    return nn.activations(model, x, paths=[path])[path].numpy()


model = network(256, 256)
md.fit(model, fitting, epochs=15, progress=False, rng=0)
accuracy = md.evaluate(model, validation)["accuracy"]
hidden = given_by(model, "0", validation.x)  # what the second layer gets
print(f"validation accuracy {accuracy:.1%}; {np.mean(hidden == 0):.0%} of the hidden activations are exactly 0")
assert accuracy > 0.93
assert 0.3 < np.mean(hidden == 0) < 0.7

# %% [markdown]
# About half of what `relu` gives is zeros, and pruned weights and padding are zeros too. Suppose that the grid were moved
# by half a step: then each zero is read back as S/2. No error is larger than half a step, as before.
#
# **Predict.** The next layer sums over 256 activations. With the moved grid, by how many times are its sums further off,
# on average over all images?

# %%
S, Z = quantize.activation_scale(hidden.min(), hidden.max())
grids = {
    "0 is a mark": kernels.dequantize(kernels.quantize(hidden, S, Z, 0, 255), S, Z),
    "moved by S/2": (np.floor(hidden / S) + np.float32(0.5)) * S,
}
shifts = {}
for name, read in grids.items():
    errors = (read - hidden) @ model.layers[1].weight.data  # (images, outputs)
    shifts[name] = np.abs(errors.mean(axis=0)).mean()
    largest = np.abs(read - hidden).max() / S
    print(f"{name}: largest error {largest:.2f} S; sums are off by {shifts[name]:.5f} on average over the images")
print(f"{shifts['moved by S/2'] / shifts['0 is a mark']:.0f} times")
assert grids["0 is a mark"][hidden == 0].max() == 0
assert shifts["moved by S/2"] > 10 * shifts["0 is a mark"]

# %% [markdown]
# Rounding errors have both signs and nearly cancel in a sum. The error of the zeros always has the same sign, and it adds
# up.
#
# The same thought decides how ties are rounded. Our pixels are k/16. On a grid with S = 1/8 every odd k is a tie.
#
# **Predict.** Rounding up all ties makes an image brighter. By how much, and by how much does half to even?

# %%
pixels, S = digits.x.ravel(), np.float32(1 / 8)
ties = np.mean(pixels * 16 % 2 == 1)
half_up = np.floor(pixels / S + 0.5)
half_to_even = kernels.quantize(pixels, S, 0, 0, 8)
brighter = [float((q - pixels / S).mean()) for q in (half_up, half_to_even)]
print(f"{ties:.1%} of the pixels are ties; brighter by {brighter[0]:.4f} S half up, {brighter[1]:.4f} S half to even")
assert np.isclose(brighter[0], ties / 2)
assert abs(brighter[1]) < brighter[0] / 10

# %% [markdown]
# ## 4.3 Which range? Observers
#
# Inputs often have a known range; hidden activations have not. So some training data run through the model, an *observer*
# looks at what comes by, and it proposes a range. `MinMax` takes all. The others may clip what is rare: `Percentile` a
# fixed share of the values, `MSE` as much as makes the squared error smallest, `Entropy` as much as keeps the histogram's
# shape.
#
# Now someone makes a mistake: one calibration image of about a thousand is not divided by 16.
#
# **Predict.** How many of its 8 bits does `MinMax` lose? Which observers notice? (6.02 dB are one bit.)

# %%
broken = fitting.x.copy()
broken[0] = 16 * (broken[0] + centre) - centre
calibrations = {name: given_by(model, "0", x) for name, x in (("clean", fitting.x), ("broken", broken))}
observers = {
    "MinMax": quantize.MinMax,
    "Percentile, 99.99": quantize.Percentile,
    "Percentile, 99.9": partial(quantize.Percentile, percentile=99.9),
    "MSE": quantize.MSE,
    "Entropy": quantize.Entropy,
}
decibels, upper = {}, {}
for name, make in observers.items():
    for data, seen in calibrations.items():
        observer = make()
        for batch in np.array_split(seen, 8):
            observer.see(batch)
        S, Z = observer.scale()
        read = kernels.dequantize(kernels.quantize(hidden, S, Z, 0, 255), S, Z)
        decibels[name, data], upper[name, data] = quantize.signal_to_noise(hidden, read), observer.range()[1]
    print(f"{name:<18}", *(f"{d}: 0 to {upper[name, d]:5.2f}, {decibels[name, d]:.1f} dB   " for d in calibrations))
lost = (decibels["MinMax", "clean"] - decibels["MinMax", "broken"]) / 6.02
print(f"MinMax loses {lost:.1f} bits; log2(16) = {np.log2(16):.0f}")
share = np.mean(calibrations["broken"] > calibrations["clean"].max())
print(f"{share:.3%} of the values are larger than any clean one")

figure, (top, bottom) = two_panels((2, 3))
edges = np.geomspace(0.02, 50, 60)
for data, colour, chosen in (("clean", BLUE, slice(1, None)), ("broken", RED, slice(1))):
    top.hist(calibrations[data][chosen].ravel(), edges, color=colour)
label(top, f"{len(fitting) - 1:,} images", (0.03, 2e4), BLUE, (0, 0))
label(top, "the broken one", (8, 300), RED, (0, 0))
style(top, ylabel="activations", yscale="log", ylim=(0.8, 1e5))
for row, name in enumerate(observers):
    bottom.plot([upper[name, data] for data in calibrations], [row, row], color=GREY, lw=2)
    for data, colour, shift, ha in (("clean", BLUE, -12, "right"), ("broken", RED, 12, "left")):
        at = upper[name, data], row
        bottom.plot(*at, "o", ms=12, color=colour)
        label(bottom, f"{decibels[name, data]:.0f} dB", at, colour, (shift, 0), ha)
style(bottom, xlabel="activation, and the observer's upper end", xscale="log", ylim=(4.6, -0.6), xlim=(0.02, 200))
bottom.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
bottom.set_yticks(range(len(observers)), list(observers))
show(figure, "observers.png")

assert 3 < lost < 5
assert share > 0.0001 and upper["Percentile, 99.99", "broken"] > 2 * upper["Percentile, 99.99", "clean"]
assert decibels["Percentile, 99.9", "broken"] > decibels["MinMax", "broken"] + 6
assert decibels["MSE", "broken"] < decibels["MSE", "clean"] - 12
assert decibels["MinMax", "clean"] > decibels["Percentile, 99.9", "clean"] + 3
assert decibels["MinMax", "clean"] > max(decibels[name, "clean"] for name in observers) - 3

# %% [markdown]
# Read the figure twice. With clean data `MinMax` is nearly as good as anything, and a percentile of 99.9 cuts off what
# was needed. With the broken image `MSE` keeps the range wide, since for it a huge value is worth a huge error.
# Percentile 99.99 is fooled as well: the one image is more than 0.01 % of all values. No observer can know that a value
# is wrong. They only differ in what they bet on. Look at your calibration data first.
#
# ## 4.4 Weights: a scale for each column
#
# Weights are known, so no observer is needed: the grid is symmetric, Z = 0, `q` in -127..127, and the largest abs(w)
# becomes 127. But the largest of what, of the matrix or of the column?
#
# We plant a loud neuron: its incoming weights and bias times c, its outgoing weights divided by c. With `relu` the
# function of the model stays the same. `mode="weight_only"` rounds the weights and nothing else.
#
# **Predict.** One neuron of 256 is made 1, 2, 4, ... 1 024 times louder. What happens to the *other* columns, with one
# scale for the matrix and with one for each column? From which c on is the accuracy gone?


# %%
def rescaled(model, i, factors):
    """The same function, with the neurons of layer i times these factors, and undone in layer i + 1."""
    twin = model.copy()
    state = twin.state_dict()
    state[f"{i}.weight"] *= factors
    state[f"{i}.bias"] *= factors
    state[f"{i + 1}.weight"] /= factors[:, None]
    twin.load_state_dict(state)
    return twin


def loud(neuron, c, neurons=256):
    return np.where(np.arange(neurons) == neuron, c, 1).astype(np.float32)


def weight_of(model, path):
    """The weight that a quantized layer stands for."""
    layer = model.get(path)
    return np.asarray(layer.weight_q) * layer.weight_scale


factors = 2.0 ** np.arange(11)
noise, scores = {True: [], False: []}, {True: [], False: []}
others = np.arange(256) != 7
for c in factors:
    louder = rescaled(model, 0, loud(7, c))
    weight = louder.layers[0].weight.data[:, others]
    assert np.allclose(md.predict(louder, validation), md.predict(model, validation), atol=1e-4)
    for per_channel in (True, False):
        rounded = quantize.post_training(louder, mode="weight_only", per_channel=per_channel)
        noise[per_channel].append(quantize.signal_to_noise(weight, weight_of(rounded, "0")[:, others]))
        scores[per_channel].append(md.evaluate(rounded, validation)["accuracy"])

figure, (top, bottom) = two_panels()
for per_channel, name, colour in ((True, "a scale for each column", BLUE), (False, "one scale", RED)):
    top.plot(factors, noise[per_channel], "o-", color=colour, lw=2.5)
    bottom.plot(factors, 100 * np.array(scores[per_channel]), "o-", color=colour, lw=2.5)
    label(top, name, (factors[5], noise[per_channel][5]), colour, (0, 14) if per_channel else (12, 6))
style(top, ylabel="other columns, dB", ylim=(-3, 56), xscale="log")
style(bottom, ylabel="accuracy, %", ylim=(0, 106), xlabel="c: how much louder the one column is")
bottom.set_xticks(factors[::2], [f"{c:g}" for c in factors[::2]])
bottom.minorticks_off()
show(figure, "columns.png")

per_doubling = (noise[False][1] - noise[False][6]) / 5
print(f"with one scale each doubling costs the other columns {per_doubling:.1f} dB")
print("accuracy with one scale:", *(f"{a:.0%}" for a in scores[False]))
assert 5.5 < per_doubling < 6.5
assert abs(noise[False][-1]) < 0.01 and np.ptp(noise[True]) < 0.1  # 0 dB: the error is all there was
assert np.ptp(scores[True]) < 0.02
assert scores[False][5] > accuracy - 0.03 and scores[False][-1] < 0.5

# %% [markdown]
# One bit for each doubling, until nothing is left of the others but zeros. A column's scale can wait until its sum is
# complete, so a scale for each column costs no time. Note also how long the accuracy hides the damage: decibels see it at
# once.
#
# ## 4.5 The sum in integers
#
# A layer computes `x @ w + b`. Put in what the integers stand for, x = S_x (q_x - Z) and w = S_w q_w:
#
# x @ w + b = S_x S_w · ( Σ (q_x - Z) q_w + b / (S_x S_w) )
#
# In the parentheses are only integers, if the bias is stored as rint(b / (S_x S_w)).
#
# **Predict.** q_x - Z can be anything from -255 to 255: nine bits, but the processor multiplies eight. How do you get Z
# out of the loop? And how many products of 255 · 127 fit into 16 bits, into the 24 bits of a float32, into 32 bits?

# %%
integers = quantize.post_training(model, calibration=fitting.x)  # the whole model; here we look at its first layer
layer = integers.layers[0]
S_x, Z_x, S_w = layer.input_scale[0], int(layer.input_zero_point[0]), layer.weight_scale
q_x = kernels.quantize(validation.x, S_x, Z_x, 0, 255)
q_w = np.asarray(layer.weight_q)
print(f"{q_x.dtype} times {q_w.dtype}; the number 0 is stored as {Z_x}")

inside = (q_x.astype(np.int64) - Z_x) @ q_w.astype(np.int64)
start = layer.bias_q - Z_x * q_w.sum(axis=0, dtype=np.int32)  # known before any x comes
sums = q_x.astype(np.int64) @ q_w.astype(np.int64) + start
assert np.array_equal(sums, inside + layer.bias_q)
assert np.array_equal(layer.integer_sums(validation.x), sums)
assert np.array_equal(kernels.int8_matmul(q_x, q_w, Z_x), inside)

for bits, largest in ((16, 2**15 - 1), (24, 2**24), (32, 2**31 - 1)):
    print(f"products that surely fit into {bits} bits: {largest // (255 * 127):,}")
bound = 64 * 255 * 127 + np.abs(layer.bias_q).max()
print(f"this layer: bound {bound:,}, largest sum {np.abs(sums).max():,}, largest bias {np.abs(layer.bias_q).max():,}")
assert np.abs(layer.bias_q).max() > 127
assert np.abs(sums).max() <= bound <= 2**31 - 1

# %% [markdown]
# Σ (q_x - Z) q_w = Σ q_x q_w - Z Σ q_w, and the last sum belongs to the weights alone. So it is subtracted from the bias
# once, the accumulator starts there, and the loop multiplies plain `uint8` by `int8`. The accumulator has 32 bits: the
# engine refuses a layer whose sums might not fit. The bias has 32 bits too. As an `int8` at this scale it would be cut
# off at 127.
#
# ## 4.6 Back to eight bits
#
# The sum stands for S_x S_w · sum. The next layer wants `uint8` with its own S_y and Z_y. So
#
# q_y = clip(rint(sum · M) + Z_y), with one multiplier for each column, M = S_x S_w / S_y.
#
# **Predict.** Is M above or below 1? And `relu`: where has it gone?

# %%
S_y, Z_y = layer.output_scale[0], int(layer.output_zero_point[0])
M = S_x * S_w / S_y
q_y = np.clip(np.rint(sums.astype(np.float32) * M) + Z_y, Z_y, 255).astype(np.uint8)
print(f"M from {M.min():.5f} to {M.max():.5f}; S_y = {S_y:.5f}, Z_y = {Z_y}")
assert M.dtype == np.float32 and M.max() < 1

by_layer = layer(validation.x)
by_kernel = kernels.int8_dense(validation.x, layer.weight_q, start, M, source=(S_x, Z_x), target=(Z_y, Z_y))
print(by_layer, "holds", by_layer.q.dtype)
assert np.array_equal(by_layer.q, q_y)
assert np.array_equal(by_kernel, q_y)
assert by_layer.scale == S_y == integers.layers[1].input_scale[0]

# %% [markdown]
# M is small: a sum of many products becomes a byte. `relu` is the lower end of the clip, for free: Z_y stands for 0.
#
# All that was ten lines of NumPy, and the fast kernel gives *the same bytes*, all of them. That is a promise one can only
# make with integers: their sums do not depend on the order.
#
# **Predict.** Many toolkits simulate: they round x and w, but multiply and sum as floats, `x̂ @ ŵ + b`, and round that.
# Does this give the same bytes?

# %%
read_x, read_w = kernels.dequantize(q_x, S_x, Z_x), kernels.dequantize(q_w, S_w, 0)
simulated = kernels.quantize(read_x @ read_w + model.layers[0].bias.data, S_y, Z_y, Z_y, 255)
apart = np.abs(simulated.astype(int) - q_y)
print(f"{np.count_nonzero(apart)} of {apart.size:,} bytes differ, by at most {apart.max()}")
assert apart.max() <= 1

# %% [markdown]
# Nearly. A float sum may lie a hair beside the exact one, and where that is the border between two bytes, it decides.
# One step is not much; but which bytes differ depends on the machine, and a test with `==` is no longer possible.

# %%
image = 0
neuron = int(np.argmax(q_y[image]))
pixels = slice(26, 31)  # some of the 64
exact = given_by(model, "0", validation.x[:1])[0, neuron]
boxes = [
    ("x, uint8", "  ".join(map(str, q_x[image, pixels])) + "  …", (0.16, 0.84), BLUE),
    ("w, int8", "  ".join(map(str, q_w[pixels, neuron])) + "  …", (0.16, 0.28), BLUE),
    ("Σ x w, int32", f"{int(q_x[image].astype(np.int64) @ q_w[:, neuron]):,}", (0.44, 0.56), RED),
    ("bias - Z Σ w, int32", f"{start[neuron]:,}", (0.44, 0.0), RED),
    ("sum, int32", f"{sums[image, neuron]:,}", (0.665, 0.56), RED),
    ("M, float32", f"{M[neuron]:.6f}", (0.665, 0.0), GREY),
    ("y, uint8", str(q_y[image, neuron]), (0.9, 0.56), BLUE),
]
figure = Figure(figsize=(13, 3.9), layout="constrained")
axis = figure.subplots()
for name, value, (x, y), colour in boxes:
    frame = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": colour, "lw": 2.5}
    axis.text(x, y, value, ha="center", va="center", fontsize=16, bbox=frame)
    axis.text(x, y + 0.15, name, ha="center", va="bottom", fontsize=15, color=colour)
arrow = {"arrowstyle": "-|>", "color": "black", "lw": 2}
for begin, end in (
    ((0.29, 0.80), (0.375, 0.62)),
    ((0.29, 0.32), (0.375, 0.5)),
    ((0.5, 0.56), (0.605, 0.56)),
    ((0.5, 0.1), (0.605, 0.46)),
    ((0.725, 0.56), (0.865, 0.56)),
    ((0.72, 0.1), (0.865, 0.48)),
):
    axis.annotate("", end, begin, arrowprops=arrow)
axis.text(0.795, 0.62, "round, clip", ha="center", fontsize=13)
stands = f"stands for {S_y * (int(q_y[image, neuron]) - Z_y):.3f}\nfloat model: {exact:.3f}"
axis.text(0.9, 0.3, stands, ha="center", va="top", fontsize=13, color=GREY)
axis.set(xlim=(0, 1), ylim=(-0.15, 1.15))
axis.axis("off")
show(figure, "engine.png")

# %% [markdown]
# ## 4.7 A whole model
#
# `quantize.post_training` does this to every `Dense` layer. It finds the layers that feed only integer layers; these hand
# over `uint8` at the scale of the layer that takes it, and no float exists in between. Three modes:
#
# - `static`: scales come from calibration, as above;
# - `dynamic`: each row of activations finds its scale when it comes; integer products, floats in between;
# - `weight_only`: only the weights are stored as `int8`; they are multiplied as floats.
#
# **Predict.** Which layers of the three will say `output=uint8`? Then put a `sigmoid` for each `relu`: which ones then?

# %%
curved = network(256, 256, activation="sigmoid")
md.fit(curved, fitting, epochs=15, progress=False, rng=0)
curved_integers = quantize.post_training(curved, calibration=fitting.x)
print(integers)
print(curved_integers)

with quantize.integers_only():
    guarded = md.predict(integers, validation.x)
assert np.array_equal(guarded, md.predict(integers, validation.x))
try:
    with quantize.integers_only():
        md.predict(curved_integers, validation.x)
    refused = ""
except RuntimeError as error:
    refused = str(error)
print(refused)
assert "floats reached" in refused and "activation other than relu" in refused
assert ["uint8" in repr(layer) for layer in integers.layers] == [True, True, False]
assert not any("uint8" in repr(layer) for layer in curved_integers.layers)
curved_scores = [md.evaluate(m, validation)["accuracy"] for m in (curved, curved_integers)]
assert abs(curved_scores[0] - curved_scores[1]) < 0.02

# %% [markdown]
# The last layer gives floats, since logits are asked for. A sigmoid has no integer form here, so the way back to float is
# taken. The model with sigmoids is right all the same; its layers hand over floats. `integers_only` is the guard for
# those who want to know.
#
# Now the bill. The test set is touched here, once.
#
# **Predict.** How many times smaller is the file? How much accuracy is lost? Which mode is the fastest at batch 1, and
# which at batch 256?

# %%
ledger = md.Ledger(test)
ledger.add("float32", model)
ledger.add("static", integers)
ledger.add("dynamic", quantize.post_training(model, mode="dynamic"))
ledger.add("weight only", quantize.post_training(model, mode="weight_only"))
print(ledger)
exact, *small = ledger.rows

figure = Figure(figsize=(13, 4), layout="constrained")
left, right = figure.subplots(1, 2, sharey=True)
names = [row["name"] for row in ledger.rows]
colours = [GREY, BLUE, BLUE, BLUE]
sizes = [row["file_bytes"] / 1000 for row in ledger.rows]
times = [1e6 * row["latency"][256]["median"] for row in ledger.rows]
for axis, values, what in ((left, sizes, "file, kB"), (right, times, "prediction of 256 images, µs")):
    axis.barh(names, values, color=colours, height=0.65)
    for row, value in enumerate(values):
        label(axis, f"{value:.0f}", (value, row), colours[row], (8, 0))
    style(axis, xlabel=what, xlim=(0, 1.15 * max(values)))
    axis.grid(axis="y", visible=False)
left.invert_yaxis()
left.tick_params(axis="y", labelsize=15)
show(figure, "bill.png")

for row in small:
    assert row["file_bytes"] < 0.32 * exact["file_bytes"]
    assert row["memory_bytes"] < 0.32 * exact["memory_bytes"]
    assert abs(row["accuracy"] - exact["accuracy"]) < 0.015

# %% [markdown]
# A little more than a quarter: scales and biases are kept too. No assertion speaks of speed, which depends on the
# instructions of your processor; lesson 5 is about that. Read your own table. `weight_only` still multiplies floats, so
# it can save memory but no time. `dynamic` finds scales and rounds anew in every layer; your table says whether its
# integer products make up for that.
#
# ## 4.8 Which layer hurts?
#
# A deeper model, with a loud neuron in the middle: layer 1 makes it 30 times louder, layer 2 takes it back. In float
# nothing changes. The weights have a scale for each column, as 4.4 recommends.
#
# `quantize.error_report` runs both models. "Alone" gives the integer layer the *float* inputs, so it is blamed only for
# its own error; "so far" is what really arrives, after all layers before it.
#
# **Predict.** Which layers does "alone" blame? What does "so far" look like behind them? And the accuracy?

# %%
deep = network(64, 64, 64, 64)
md.fit(deep, fitting, epochs=20, progress=False, rng=0)
busiest = int(np.argmax(given_by(deep, "1", fitting.x).mean(axis=0)))
sick = rescaled(deep, 1, loud(busiest, 30, neurons=64))
assert np.allclose(md.predict(sick, validation), md.predict(deep, validation), atol=1e-4)
reports = {}
for name, patient in (("healthy", deep), ("loud neuron", sick)):
    twin = quantize.post_training(patient, calibration=fitting.x)
    reports[name] = quantize.error_report(patient, twin, validation)
    scores = [f"{md.evaluate(m, validation)['accuracy']:.1%}" for m in (patient, twin)]
    print(f"{name}: float {scores[0]}, integers {scores[1]}", reports[name], sep="\n")

alone = {name: np.array([error.alone_db for error in report]) for name, report in reports.items()}
so_far = {name: np.array([error.so_far_db for error in report]) for name, report in reports.items()}
assert reports["loud neuron"].worst.path == "2"
assert alone["healthy"][2] - alone["loud neuron"][2] > 12
assert np.abs(alone["healthy"] - alone["loud neuron"])[[0, 3, 4]].max() < 1
assert alone["healthy"][1] - alone["loud neuron"][1] > 3
assert (so_far["healthy"] - so_far["loud neuron"])[2:].min() > 10
assert abs(md.evaluate(sick, validation)["accuracy"] - md.evaluate(twin, validation)["accuracy"]) < 0.03

# %% [markdown]
# The weights of layer 2 are blameless; its *input* is. One neuron stretches the range, and activations have one scale for
# all: a scale for each input channel would have to stay inside the sum over channels. Layer 1 suffers too, from the
# same scale, since it rounds its output to it. Behind layer 2, "alone" is fine again, but the noise stays: what is lost
# is lost. The accuracy hardly shows it.
#
# The cure needs no data. Loudness is free, so choose it: balance each neuron's incoming weights against its outgoing ones
# (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction").
#
# **Predict.** We do not tell the cure which neuron is the loud one. Does layer 2 recover?

# %%
incoming = np.abs(sick.layers[1].weight.data).max(axis=0)
outgoing = np.abs(sick.layers[2].weight.data).max(axis=1)
cured = rescaled(sick, 1, np.sqrt(outgoing / incoming))
twin = quantize.post_training(cured, calibration=fitting.x)
reports["equalized"] = quantize.error_report(cured, twin, validation)
print(reports["equalized"])

figure = Figure(figsize=(10, 5), layout="constrained")
axis = figure.subplots()
shown = (("healthy", BLUE, "o", -0.14), ("loud neuron", RED, "s", 0.0), ("equalized", GREEN, "D", 0.14))
for name, colour, marker, aside in shown:
    places = np.arange(len(deep.layers)) + aside
    axis.plot(places, [e.alone_db for e in reports[name]], marker, ms=12, color=colour, label=f"{name}, alone")
    axis.plot(places, [e.so_far_db for e in reports[name]], color=colour, lw=2.5, label="so far")
style(axis, xlabel="layer", ylabel="signal to noise, dB", ylim=(15, 52))
axis.set_xticks(range(len(deep.layers)))
axis.legend(ncols=3, fontsize=13, loc="lower center", frameon=False)
show(figure, "layers.png")

assert reports["equalized"][2].alone_db > alone["loud neuron"][2] + 10
assert reports["equalized"][4].so_far_db > so_far["loud neuron"][4] + 10

# %% [markdown]
# ## What to take along
#
# - A scale, a zero point, one rounding. 0 is exact, ties go to even.
# - Rounding against clipping: calibrate with clean, typical data.
# - Weights: a scale for each column. Activations: one scale, so watch for loud neurons.
# - 8-bit products, 32-bit sums, one multiplier back to 8 bits; and the same bytes on every machine.
# - Look at decibels for each layer; accuracy is blunt.
#
# **Exercises.** 1. Round the weights of `model` to 6, 4, 3 and 2 bits with `kernels.quantize`, and load what they stand
# for into a copy, with a scale for each column and with one for all. Which tells you first that something is wrong,
# decibels or accuracy? 2. Write an observer: a class that is made from a name, with `see(x)` and `scale()`, and that
# ignores images far louder than the median one. Pass it as `observer=` with `calibration=broken`, and compare error
# reports. 3. With `post_training(..., integer_only=True)` M is an integer and a shift. How many bytes of the first layer
# differ, and by how many steps? Read `requantize_integer` and say why. 4. Cut the first layer's bias off at -127 and 127,
# as if it were `int8`, through `state_dict` and `load_state_dict`. What does `error_report` say? 5. In 4.8, quantize
# `sick` with `mode="dynamic"`. Whom does the report blame now, and why is layer 1 innocent?
