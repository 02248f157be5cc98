# %% [markdown]
# # 8. Deep Compression
#
# **Goal.** Make the file of a network 30 to 40 times smaller, as Han, Mao & Dally did (2016, "Deep Compression").
# Be able to say where each of these times comes from, and to check it: by hand, bit by bit.
#
# **Prerequisites.** Lesson 7. **Time.** 90 minutes to work through; the script runs in under a minute.
#
# Files to read along, all in `lab/`: `gaps.py` (where weights are), `sharing.py` (what they are), `huffman.py`
# (how both are written), `compression.py` (the file). Accuracies are those of validation images, over seeds; the
# test set is for the end.

# %%
import heapq
from pathlib import Path

import crossover  # beside this file
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import minidistill as md
from minidistill import datasets, deploy, nn, ops, optim, prune
from minidistill.lab.gaps import to_gaps
from minidistill.lab.huffman import code_lengths, encode
from minidistill.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, new_figure

FOLDER = Path("runs/lessons/08_deep_compression")
md.set_threads(1)  # these models are small: a second thread would mostly be waited for


def label(axis, text, at, colour, shift=(10, 0), ha="left"):
    """Text beside a point, in the colour of its curve."""
    axis.annotate(text, at, xytext=shift, textcoords="offset points", color=colour, fontsize=15, va="center", ha=ha,
                  annotation_clip=False)  # fmt: skip


def show(figure, name):
    """Write the figure into runs/lessons/08_deep_compression/, and show it if this is a notebook."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=120)
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(str(FOLDER / name)))


SEEDS, SPARSITY = range(5), 0.95
train, test = datasets.load_digits()
fitting, validation = train.split(0.8, rng=0)
STEPS = -(-len(fitting) // 32)  # of an epoch


def network(seed, inputs=64):
    """The hidden layers of LeNet-300-100, with which the paper begins."""
    hidden = [nn.Dense(inputs, 300, activation="relu"), nn.Dense(300, 100, activation="relu")]
    return nn.Sequential(*hidden, nn.Dense(100, 10), rng=seed)


def trained(model, seed, epochs, **options):
    md.fit(model, fitting, epochs=epochs, progress=False, rng=seed, **options)
    return model


def points(models):
    """Validation accuracy of each model, in percent."""
    return np.array([100 * md.evaluate(model, validation)["accuracy"] for model in models])


def told(values):
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def pruned_from(model, seed):
    """95 % of the weights go, gradually, while it trains (lesson 7)."""
    return trained(model.copy(), seed, 24, callbacks=[prune.Gradual(SPARSITY, begin=0, end=16 * STEPS, every=22)])


dense_models = [trained(network(seed), seed, 12) for seed in SEEDS]
pruned_models = [pruned_from(model, seed) for seed, model in enumerate(dense_models)]
pruned = pruned_models[0]
print(f"dense {told(points(dense_models))} %, 95 % pruned {told(points(pruned_models))} %")
print(prune.sparsity(pruned))

# %% [markdown]
# ## 8.1 Where the bytes of a pruned file are
#
# A pruned file holds what the weights are and *where* they are. Here is a row of 16 weights of which three are
# left, as in figure 2 of the paper. Two ways to say where:
#
# - *csr* (lesson 7): the position of each, in a whole number of bytes.
# - *relative*: the number of zeros since the one before, in so few bits as one likes. Where a gap does not fit, a
#   *filler* stands in it: an entry whose weight is 0. It takes the place of the zero that did not fit.
#
# **Predict.** Gaps have three bits, so they go up to 7. Write down the entries (weight, zeros before it). Where
# does the filler stand? Then count bits: with float32 weights, which is smaller, and with how many bits for a gap?

# %%
row = np.zeros(16, np.float32)
row[[1, 4, 15]] = 3.4, 0.9, 1.7


def relative(row, bits):
    """[(weight, zeros before it)], fillers included."""
    entries, zeros = [], 0
    for weight in row:
        if weight != 0 or zeros == 2**bits - 1:
            entries.append((float(weight), zeros))
            zeros = 0
        else:
            zeros += 1
    return entries


entries = relative(row, bits=3)
print([(round(weight, 1), zeros) for weight, zeros in entries])
assert [zeros for _, zeros in entries] == [1, 2, 7, 2] and entries[2][0] == 0
gaps, is_weight = to_gaps(np.flatnonzero(row), 3)  # the engine's
assert gaps.tolist() == [1, 2, 7, 2] and is_weight.tolist() == [True, True, False, True]
places = np.cumsum(gaps + 1) - 1  # the way back
assert places.tolist() == [1, 4, 12, 15]

needs = {"dense": 16 * 32, "csr": 3 * (32 + 8)}  # and where the row ends
needs |= {f"gaps of {bits} bits": len(relative(row, bits)) * (32 + bits) for bits in range(1, 6)}
print("bits:", needs)
assert needs["gaps of 4 bits"] < needs["csr"] < needs["gaps of 3 bits"]
assert min(needs, key=needs.get) == "gaps of 4 bits"

figure = Figure(figsize=(12, 3.6), layout="constrained")
axis = figure.subplots()
for place, weight in enumerate(row):
    filler = place == 12
    colour = RED if filler else BLUE if weight else GREY
    axis.add_patch(Rectangle(
        (place - 0.46, 0), 0.92, 0.8, fc="white" if not weight else "#D6E8F5", ec=colour, lw=3 if weight or filler else 1,
        ls="--" if filler else "-"))  # fmt: skip
    axis.text(
        place, 0.4, f"{weight:.1f}" if weight or filler else "0", ha="center", va="center", color=colour, fontsize=17
    )
    axis.text(place, -0.12, place, ha="center", va="top", color=GREY, fontsize=12)
before = -1
for place, gap in zip(places, gaps):
    colour = RED if place == 12 else BLUE
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2.5, "connectionstyle": "arc3,rad=-0.3"}
    axis.annotate("", (place, 0.86), (before + (0.06 if before >= 0 else 0), 0.86), arrowprops=arrow)
    axis.text((place + before) / 2, 1.05 + 0.1 * gap, gap, ha="center", color=colour, fontsize=19, weight="bold")
    before = place
axis.text(12, -0.5, "filler", ha="center", va="top", color=RED, fontsize=15)
axis.set(xlim=(-1.2, 15.7), ylim=(-0.8, 2.1))
axis.axis("off")
show(figure, "row.png")

# %% [markdown]
# A filler costs as much as a weight. With three bits it eats up what the short gaps saved; with four there is none.
# So the number of bits is chosen by counting, layer by layer. The engine tries all of them from 1 to 12.
#
# Now a real layer: the second one of our pruned network, 300 x 100. A position in it takes 15 bits if one just
# numbers them.
#
# **Predict.** Two or three weights in a hundred are left. How large is the usual gap, and how many bits would you
# give it? If the weights themselves took 5 bits and not 32, would you give more or fewer?

# %%
layer = pruned.layers[1]
positions = np.flatnonzero(layer.weight.data)
assert np.array_equal(positions, np.flatnonzero(layer.weight.constraints[0].kept))
kept = len(positions)
print(f"{kept} of {layer.weight.size:,} weights are left: one in {layer.weight.size / kept:.0f}")
gap_bits = np.arange(3, 13)
entries = np.array([len(to_gaps(positions, bits)[0]) for bits in gap_bits])
# Of a position, with its share of fillers.
price = {bits: (entries * (bits + gap_bits)) / kept - bits for bits in (32, 5)}
best = {bits: int(gap_bits[np.argmin(cost)]) for bits, cost in price.items()}
for bits, cost in price.items():
    print(f"values of {bits} bits: gaps of {best[bits]} bits are best; a position costs {cost.min():.1f} bits")
csr = prune.SparseDense.from_dense(layer)
csr_price = 8 * (csr.index.nbytes + csr.row_starts.nbytes) / kept
print(f"csr, with its row starts: {csr_price:.1f} bits for a position")
print("fillers:", {int(bits): int(count) - kept for bits, count in zip(gap_bits, entries)})

figure, (axis,) = new_figure(1, 9, 4.8)
axis.axhline(15, color=GREY, lw=2, ls=":")
label(axis, "numbered from 0 to 29 999", (12, 15), GREY, (0, 13), ha="right")
for bits, colour in ((32, RED), (5, BLUE)):
    axis.plot(gap_bits, price[bits], "o-", color=colour, lw=3, ms=9)
    axis.plot(best[bits], price[bits].min(), "o", ms=18, mfc="none", mec=colour, mew=2.5)
label(axis, "a value takes 32 bits", (6, price[32][3]), RED, (12, 10))
label(axis, "a value takes 5 bits", (6, price[5][3]), BLUE, (-8, -18), ha="right")
axis.set(xlabel="bits of a gap", ylabel="bits that a position costs,\nfillers included", ylim=(0, 40))
show(figure, "gaps.png")

assert best[5] <= best[32] and price[5].min() < price[32].min() < 15 < csr_price
assert np.all(np.diff(entries) <= 0) and entries[-1] == kept

# %% [markdown]
# Too few bits: fillers. Too many: every gap pays for the longest. And the cheaper a filler, the shorter the gaps
# may be: the stages help each other.
#
# So this is what pruning alone makes of the layer: 32 bits for what a weight is, and a few for where it is. The
# values are the larger part by far. They come next.
#
# ## 8.2 A few values for all weights
#
# Cluster the weights of a layer, and let each take the mean of its cluster, the *centroid*. Then a file needs a
# short list of centroids, the *codebook*, and for each weight the number of its cluster. With 16 clusters that is 4
# bits for 32.
#
# The clusters come from k-means (Lloyd 1982), in one dimension: give each weight to the nearest centroid; move each
# centroid to the mean of its weights; repeat until no weight changes its cluster. It matters where the centroids
# start:
#
# - *linear*: evenly between the smallest and the largest weight;
# - *density*: evenly in number, each centroid begins with as many weights.
#
# **Predict.** Sketch the histogram of the weights that magnitude pruning has left, and mark the starts of both
# kinds. Where does linear have more of them? What becomes of starts that are nearest to no weight?


# %%
def lloyd(values, centroids):
    """Centroids and clusters, when nothing moves any more."""
    codes = None
    while True:
        nearest = np.abs(values[:, None] - centroids).argmin(axis=1)
        if codes is not None and np.array_equal(nearest, codes):
            return centroids, codes
        codes = nearest
        members = [values[codes == c] for c in range(len(centroids))]
        centroids = np.array([m.mean() if len(m) else c for m, c in zip(members, centroids)])


BITS = 4
weights = pruned.layers[0].weight.data
left = weights[weights != 0].astype(np.float64)
starts = {
    "linear": np.linspace(left.min(), left.max(), 2**BITS),
    "density": np.quantile(left, np.linspace(0, 1, 2**BITS)),
}
ends = {}
for init, start in starts.items():
    centroids, codes = lloyd(left, start)
    used = np.unique(codes)  # a centroid that no weight is nearest to is dropped
    ends[init] = centroids[used]
    by_engine, engine_codes = deploy.k_means(left, 2**BITS, init)
    assert np.allclose(by_engine, centroids[used]) and np.array_equal(engine_codes, np.searchsorted(used, codes))
    print(f"{init:<8} {len(used)} centroids:", centroids[used].round(2))

figure, axes = new_figure(2, 13, 4.8, sharey=True)
top = 1.08 * np.histogram(left, 70)[0].max()
for axis, init, colour in zip(axes, starts, (BLUE, ORANGE)):
    axis.hist(left, 70, color="#C8C8C8")
    axis.vlines(ends[init], 0, top, color=colour, lw=1.5)
    axis.plot(starts[init], np.full(2**BITS, 1.14 * top), "o", ms=9, mfc="white", mec=colour, mew=2)
    axis.plot(ends[init], np.full(len(ends[init]), top), "o", ms=9, color=colour)
    axis.set(xlabel="weight", title=init, ylim=(0, 1.22 * top))
for text, height in (("start", 1.14), ("end", 1)):
    label(axes[1], text, (0, height * top), ORANGE, (0, 0), ha="center")
axes[0].set_ylabel("weights")
show(figure, "starts.png")

outer = dict.fromkeys(starts, 0)
for model in pruned_models:
    for layer in model.layers[:2]:
        left = layer.weight.data[layer.weight.data != 0]
        for init in outer:
            outer[init] += int((np.abs(deploy.k_means(left, 2**BITS, init)[0]) > np.quantile(np.abs(left), 0.95)).sum())
print(f"all seeds, two layers: centroids among the largest 5 % of the weights: {outer}")
assert outer["linear"] > outer["density"]

# %% [markdown]
# The small weights are gone, so the histogram has a hole in the middle and two peaks beside it. Density puts its
# centroids into the peaks. Linear has them everywhere, and k-means moves a centroid only as far as its own weights
# reach: it ends near where it started. So far out a centroid has few weights to speak for, and they stay nearly
# what they were. The price: linear starts in the hole stand for nothing. They are dropped, and the codebook is
# shorter than 2**BITS.
#
# **Predict.** Now with 5 bits, for all seeds and layers. Which start has the smaller squared error over all
# weights? Which over the largest 5 %? Nothing is trained yet: which is the most accurate?

# %%
BITS = 5


def errors(model, shared):
    """Root mean square of what sharing changed, over all weights that are left and over the largest 5 % of each layer."""
    changes, large = [], []
    for before, after in zip(model.layers, shared.layers):
        where = before.weight.data != 0
        weight, change = before.weight.data[where], (after.weight - before.weight.data)[where]
        changes.append(change)
        large.append(change[np.abs(weight) > np.quantile(np.abs(weight), 0.95)])
    return [np.sqrt(np.mean(np.concatenate(parts) ** 2)) for parts in (changes, large)]


shared_models = {
    init: [deploy.share_weights(model, BITS, init=init, rng=seed) for seed, model in enumerate(pruned_models)]
    for init in ("linear", "density", "random")
}
off = {
    init: np.mean([errors(*pair) for pair in zip(pruned_models, group)], axis=0)
    for init, group in shared_models.items()
}
at_once = {init: points(group) for init, group in shared_models.items()}
for init, (everywhere, large) in off.items():
    print(f"{init:<8} off by {everywhere:.4f}, the largest 5 % by {large:.4f}; accuracy {told(at_once[init])} %")
print(f"not shared: {told(points(pruned_models))} %")
assert off["linear"][1] < 0.8 * off["density"][1]
assert off["density"][0] < off["linear"][0]
assert max(abs(values.mean() - points(pruned_models).mean()) for values in at_once.values()) < 1.5

# %% [markdown]
# Density has the smaller error over all; linear the smaller one where weights are large. The paper's argument for
# linear is that large weights matter more. Look at the accuracies: does this small network tell the three apart, by
# more than their spread? Section 8.4 finds another reason for linear, and that one is plain.
#
# ## 8.3 The gradient of a shared value
#
# The centroids were fitted to the weights; nobody asked the loss. So they are trained: the clusters stay, the
# values move. A centroid c stands in many places of the matrix W, and by the chain rule it answers for all of them:
#
# dL/dc = Σ dL/dW[k, m], over the places (k, m) whose weight is c.
#
# **Predict.** Below is a matrix of 3 x 2 with two shared values, a = 2 and b = -1, and the gradient by each of its
# weights. What are dL/da and dL/db? What becomes of the gradient at the places that are pruned?

# %%
codebook = md.Tensor(np.array([2.0, -1.0]), requires_grad=True)
codes, positions = np.array([0, 1, 0, 0]), np.array([0, 2, 3, 5])  # row by row
W = ops.shared_weight(codebook, codes, positions, (3, 2))
upstream = np.array([[0.1, 9.0], [0.2, 0.3], [9.0, 0.4]])
W.backward(upstream)
print(W.numpy(), "\ngradient of a and b:", codebook.grad.round(3))
assert np.array_equal(W.numpy(), [[2, 0], [-1, 2], [0, 2]])
assert np.allclose(codebook.grad, [0.1 + 0.3 + 0.4, 0.2])

# %% [markdown]
# The nines are ignored: a pruned place is a 0 that no centroid stands in.
#
# The same for a whole network. `SharedDense` is the layer; `to_dense` gives its twin, with a number of its own for
# each weight.
#
# **Predict.** After one step of an optimizer, how many different numbers are in the weight matrix of each of the
# two?

# %%
shared = deploy.share_weights(pruned, BITS).astype(np.float64)
layer, batch = shared.layers[0], fitting[:64]
twin = nn.Sequential(*(part.to_dense() for part in shared.layers))
x = batch.x.astype(np.float64)
for model in (shared, twin):
    md.losses.cross_entropy(model(x), batch.y).backward()
of_weights = twin.layers[0].weight.grad.reshape(-1)[layer.positions]
by_hand = np.zeros(len(layer.codebook))
for code, gradient in zip(layer.codes, of_weights):
    by_hand[code] += gradient
print("largest difference:", np.abs(by_hand - layer.codebook.grad).max())
assert np.allclose(by_hand, layer.codebook.grad, rtol=1e-9, atol=1e-12)


most = int(np.bincount(layer.codes).argmax())


def loss_with(step):
    """The loss when one centroid is moved: the same step for all weights that share it."""
    moved = shared.copy()
    values = moved.layers[0].codebook.data.copy()
    values[most] += step
    moved.layers[0].codebook.assign(values)
    return md.losses.cross_entropy(moved(x), batch.y).item()


slope = (loss_with(1e-7) - loss_with(-1e-7)) / 2e-7
shared_by = np.sum(layer.codes == most)
print(f"centroid {most}, which {shared_by} weights share: slope measured {slope:.8f}, gradient {by_hand[most]:.8f}")
assert np.isclose(slope, by_hand[most], rtol=1e-4, atol=1e-7)

different = {}
for name, model in (("shared", shared), ("twin", twin)):
    optim.SGD(model.parameters(), lr=0.1).step()
    weight = np.asarray(model.layers[0].weight)
    different[name] = len(np.unique(weight[weight != 0]))
print(f"different numbers after one step: {different}; weights that are left: {len(layer.positions)}")
assert different["shared"] <= 2**BITS < different["twin"]

# %% [markdown]
# One step of ordinary training and nothing is shared any more. With shared values a layer learns at most 2**BITS
# numbers and its biases, and training cannot change the size of the file: every weight keeps its code and its
# place.
#
# **Predict.** A few epochs for the codebooks and biases of the networks of 8.2. Which of the three starts ends up
# best? A control: the pruned network, not shared, trained on for as long.

# %%


def tuned(model, seed, epochs=4):
    """Values and biases trained on, slowly; the model itself is changed."""
    return trained(model, seed, epochs, optimizer=optim.Adam(model.parameters(), lr=1e-3))


def mean_loss(models):
    return np.array([md.evaluate(model, validation)["loss"] for model in models])


untuned_loss = {init: mean_loss(group) for init, group in shared_models.items()}
for group in shared_models.values():
    for seed, model in enumerate(group):
        tuned(model, seed)
control = [tuned(model.copy(), seed) for seed, model in enumerate(pruned_models)]
later = {init: points(group) for init, group in shared_models.items()}
for init, group in shared_models.items():
    print(f"{init:<8} accuracy {told(at_once[init])} -> {told(later[init])} %, "
          f"loss {untuned_loss[init].mean():.3f} -> {mean_loss(group).mean():.3f}")  # fmt: skip
print(f"control  accuracy {told(points(pruned_models))} -> {told(points(control))} %, "
      f"loss {mean_loss(pruned_models).mean():.3f} -> {mean_loss(control).mean():.3f}")  # fmt: skip
assert all(abs(values.mean() - points(control).mean()) < 1.5 for values in later.values())

# %% [markdown]
# With 5 bits there is hardly anything to repair: look at the spreads before you call a start the best, and at the
# control. For this network the start does not decide the accuracy. In section 8.7 there is more to repair.
#
# ## 8.4 Huffman: frequent symbols, short codes
#
# Codes and gaps are still written in a fixed number of bits each. Huffman (1952): take the two rarest symbols, make
# them the children of a new node that counts for both, and repeat until one node is left. The depth of a symbol is
# the length of its code.
#
# **Predict.** Five symbols come 5, 20, 4, 7 and 6 times. Draw the tree, and count the bits of all 42. A fixed
# length needs 3 bits each. The lower bound for any code is the entropy, -Σ p log2(p). How close do you come?

# %%
counts = {"a": 5, "b": 20, "c": 4, "d": 7, "e": 6}


def huffman_tree(counts):
    """Nested pairs, and the merges as they were made: (count of the left, of the right)."""
    heap = [(count, i, symbol) for i, (symbol, count) in enumerate(counts.items())]  # i decides between equals
    heapq.heapify(heap)
    while len(heap) > 1:
        left, right = heapq.heappop(heap), heapq.heappop(heap)
        print(f"  {left[0]} + {right[0]} = {left[0] + right[0]}")
        heapq.heappush(heap, (left[0] + right[0], len(counts) + len(heap), (left, right)))
    return heap[0]


def depths(node, depth=0):
    """{symbol: length of its code}."""
    if isinstance(node[2], str):
        return {node[2]: depth}
    return depths(node[2][0], depth + 1) | depths(node[2][1], depth + 1)


def entropy(counts):
    """Bits a symbol that no code can do without, if the symbols come in no order."""
    p = np.array([count for count in counts if count]) / sum(counts)
    return float(-(p * np.log2(p)).sum())


tree = huffman_tree(counts)
lengths = depths(tree)
bits = sum(counts[s] * lengths[s] for s in counts)
mean = bits / sum(counts.values())
print(f"lengths {lengths}: {bits} bits; mean {mean:.3f}, entropy {entropy(counts.values()):.3f}, fixed 3")
by_engine = code_lengths(list(counts.values()))
assert [lengths[s] for s in sorted(lengths)] == by_engine.tolist()
assert entropy(counts.values()) <= mean < entropy(counts.values()) + 1

# %% [markdown]
# Many trees have these lengths: left and right can be exchanged at every node. So nobody stores a tree. The
# *canonical* code (as in RFC 1951, of gzip) sorts the symbols by length, then by name, and counts upwards in
# binary: the next code is the one before plus 1, with zeros appended where the length grows. A file holds the
# lengths alone, one byte a symbol.
#
# **Predict.** Write down the canonical codes of a to e. Then read 0100101 back, without any marks between the
# codes.


# %%
def canonical(lengths):
    """{symbol: its code, as a text of 0 and 1}."""
    codes, code, before = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items() if length):
        code <<= length - before  # zeros appended
        codes[symbol], before = f"{code:0{length}b}", length
        code += 1
    return codes


def read(bits, codes):
    """The symbols, bit by bit: as soon as a code is complete, it can be no other."""
    symbols, word, meaning = [], "", {code: symbol for symbol, code in codes.items()}
    for bit in bits:
        word += bit
        if word in meaning:
            symbols.append(meaning[word])
            word = ""
    return symbols


codes = canonical(lengths)
print(codes, "".join(read("0100101", codes)))
assert codes == {"b": "0", "a": "100", "c": "101", "d": "110", "e": "111"}
assert read("0100101", codes) == ["b", "a", "c"]
word = "babedabcebb"
written = "".join(codes[symbol] for symbol in word)
stream = encode(np.array([ord(symbol) - ord("a") for symbol in word]), by_engine)
assert "".join(f"{byte:08b}" for byte in stream).startswith(written) and len(stream) == -(-len(written) // 8)
assert "".join(read(written, codes)) == word

figure = Figure(figsize=(11, 5), layout="constrained")
axis = figure.subplots()
places, height = {}, {}


def draw(code, low, high, depth):
    """The canonical tree: the node for the bits ``code``, and all beneath it."""
    below = {s: c for s, c in codes.items() if c.startswith(code)}
    count, x = sum(counts[s] for s in below), (low + high) / 2
    if len(below) > 1:
        middle = low + (high - low) * (0.25 if depth == 0 else 0.5)
        for bit, (a, b) in zip("01", ((low, middle), (middle, high))):
            at = (a + b) / 2, -depth - 1
            axis.plot([x, at[0]], [-depth, at[1]], color=GREY, lw=2.5, zorder=0)
            axis.text(x + 0.5 * (at[0] - x), -depth - 0.5, bit, fontsize=17, color=RED, weight="bold", ha="center",
                      va="center", bbox={"fc": "white", "ec": "none", "pad": 3})  # fmt: skip
            draw(code + bit, a, b, depth + 1)
    leaf = len(below) == 1
    letters, inside, edge = ("white", BLUE, BLUE) if leaf else ("black", "white", GREY)
    circle = {"boxstyle": "circle,pad=0.35", "fc": inside, "ec": edge, "lw": 2}
    axis.text(x, -depth, count, ha="center", va="center", fontsize=17, color=letters, bbox=circle)
    if leaf:
        axis.text(x, -depth - 0.32, f"{next(iter(below))}: {code}", ha="center", va="top", fontsize=17, color=BLUE)


draw("", 0, 10, 0)
axis.set(xlim=(0, 10), ylim=(-3.8, 0.4))
axis.axis("off")
show(figure, "tree.png")

# %% [markdown]
# No code is the beginning of another one: that is why no marks are needed. And the mean length is at most one bit
# above the entropy, most often much less.
#
# So Huffman saves where symbols come unequally often. Codes: density gives each centroid about as many weights,
# linear does not. Gaps: short ones are more frequent than long ones.
#
# And how short can positions become? If lots had decided which weights are left, a share p of all, then no code
# could tell their positions in less than H(p) / p bits each, where H(p) = -p log2(p) - (1 - p) log2(1 - p).
#
# **Predict.** For which start are the codes shorter? Do the positions in a trained network cost more than H(p) / p,
# or less?


# %%
def drawn_lots(p):
    """Bits that a position costs at least, if a share p is left and which ones is pure chance."""
    return (-p * np.log2(p) - (1 - p) * np.log2(1 - p)) / p


def mean_length(symbols):
    """(bits of a symbol in its Huffman code, entropy)."""
    found = np.bincount(symbols)
    return float(found @ code_lengths(found)) / found.sum(), entropy(found.tolist())


code_bits, place_bits = {}, {}
for init, group in shared_models.items():
    found = np.array([[mean_length(layer.codes) for layer in model.layers[:2]] for model in group])  # (seed, layer, 2)
    assert np.all(found[..., 0] >= found[..., 1] - 1e-9) and np.all(found[..., 0] < found[..., 1] + 1)
    code_bits[init] = found[..., 0]
    print(f"{init:<8} codes: {found[..., 0].mean():.2f} bits, entropy {found[..., 1].mean():.2f}; fixed length {BITS}")
reports = [deploy.compression_report(model) for model in shared_models["linear"]]
for number in range(3):
    p = np.mean([(model.layers[number].weight.data != 0).mean() for model in pruned_models])
    place_bits[number] = np.mean([r.layers[str(number)].huffman_gap_bits for r in reports]), drawn_lots(p)
    print(f"layer {number}: {p:.1%} left; a position costs {place_bits[number][0]:.2f} bits, fillers included; "
          f"drawn lots at least {place_bits[number][1]:.2f}")  # fmt: skip
assert code_bits["linear"].mean() < code_bits["density"].mean() - 0.3
assert (
    all(abs(cost - bound) < 0.15 * bound for cost, bound in place_bits.values()) and place_bits[1][0] < place_bits[1][1]
)

shown = deploy.share_weights(pruned, 4).layers[0]
gaps, _ = to_gaps(shown.positions, 5)
figure, axes = new_figure(2, 13, 4.6)
found = np.bincount(shown.codes)
axes[0].vlines(shown.codebook.data, 0, found, color=BLUE, lw=9)
for value, count, length in zip(shown.codebook.data, found, code_lengths(found)):
    axes[0].text(value, count + 0.02 * found.max(), length, ha="center", fontsize=13, color=RED)
axes[0].set(xlabel="centroid", ylabel="weights", title="codes: which value", ylim=(0, 1.12 * found.max()))
found = np.bincount(gaps, minlength=32)
axes[1].bar(range(32), found, color=BLUE)
for gap, (count, length) in enumerate(zip(found, code_lengths(found))):
    axes[1].text(gap, count + 0.02 * found.max(), length, ha="center", fontsize=11, color=RED)
axes[1].set(
    xlabel="zeros before it", ylabel="entries", title="gaps: where (31: mostly fillers)", ylim=(0, 1.12 * found.max())
)
label(axes[1], "red: bits of the code", (18, 0.6 * found.max()), RED, (0, 0), ha="center")
show(figure, "symbols.png")

# %% [markdown]
# With linear, many centroids stand for few weights and a few for many: bad for a fixed length, good for Huffman. That
# is the plain reason for it: the file gets smaller.
#
# Positions are close to the bound of drawn lots, and lots are what a code by frequency alone cannot beat. Where a
# trained network stays below it, its pruning has a pattern: pixels that are always 0, neurons that lost all their
# weights. Compare the layers.
#
# ## 8.5 All of it, stage by stage
#
# Prune, share, train the values, Huffman. `deploy.compression_report` writes real streams after each stage and
# counts their bytes. A control again: dense networks that were trained for as many epochs as all of that.
#
# **Predict.** 95 % of the weights go; codes have 5 bits, gaps 4 to 8. Work out by how many times pruning, sharing,
# and Huffman make it smaller, each. What does not get smaller at all?

# %%
final_models, report = shared_models["linear"], reports[0]
print(report)

as_long = [trained(model.copy(), seed, 24 + 4) for seed, model in enumerate(dense_models)]
stages = {
    "dense": (points(as_long), "dense"),
    "pruned": (points(pruned_models), "pruned"),
    "shared": (at_once["linear"], "shared"),
    "values trained": (points(final_models), "shared"),
    "Huffman coded": (points([deploy.compress(model) for model in final_models]), "huffman"),
}
for name, (accuracy, key) in stages.items():
    size = np.array([getattr(r.total, key) for r in reports])
    print(f"{name:<15} accuracy {told(accuracy)} %, {size.mean():9,.0f} ± {size.std(ddof=1):3.0f} bytes, "
          f"{reports[0].total.dense / size.mean():.1f}x")  # fmt: skip
files = np.array([r.file_bytes for r in reports])
cost = stages["values trained"][0] - stages["dense"][0]
print(f"the file        {files.mean():,.0f} ± {files.std(ddof=1):.0f} bytes, {report.total.dense / files.mean():.1f}x; "
      f"accuracy against dense, seed by seed: {cost.mean():+.1f} ± {cost.std(ddof=1):.1f} points")  # fmt: skip
assert np.array_equal(stages["values trained"][0], stages["Huffman coded"][0])
assert cost.mean() > -2
assert all(r.total.dense > 30 * r.total.huffman for r in reports) and all(
    r.file_bytes * 24 < r.total.dense for r in reports
)

# %% [markdown]
# Now count it yourself. Everything but the Huffman streams can be worked out from four numbers of each layer:
# weights that are left, entries (fillers included), bits of a gap, values in the codebook. A fixed code must tell
# fillers from all values, so it has to number one symbol more than the codebook holds.
#
# **Predict.** After all stages: what share of the bytes is what the weights are, what share is where they are, and
# what is the rest?

# %%
WHAT = {"what": BLUE, "where": RED, "codebooks": GREEN, "biases": ORANGE, "code lengths, numbers": PURPLE}


def counted(layer):
    """{stage: {part: bytes}} of a `SharedDense`, by hand but for the number of bits of each gap, which is tried."""
    kept, values, biases = len(layer.positions), len(layer.codebook), 4 * layer.out_features
    code = int(values).bit_length()  # of values + 1 symbols, 0 to values
    found = {}
    for stage, size in (("pruned", 32), ("shared", code)):
        tried = []
        for bits in range(1, 13):
            count = len(to_gaps(layer.positions, bits)[0])
            tried.append((-(-count * size // 8), -(-count * bits // 8)))
        what, where = min(tried, key=sum)
        books = 4 * values if stage == "shared" else 0
        found[stage] = {"what": what, "where": where, "codebooks": books, "biases": biases, "code lengths, numbers": 0}
    of_report = deploy.compression_report(nn.Sequential(layer)).layers["0"]
    what, where = (round(kept * bits / 8) for bits in (of_report.huffman_code_bits, of_report.huffman_gap_bits))
    rest = of_report.huffman - what - where - 4 * values - biases
    found["Huffman"] = {
        "what": what,
        "where": where,
        "codebooks": 4 * values,
        "biases": biases,
        "code lengths, numbers": rest,
    }
    assert sum(found["pruned"].values()) == of_report.pruned and sum(found["shared"].values()) == of_report.shared
    return found


by_layer = [counted(layer) for layer in final_models[0].layers]
total = {stage: {part: sum(layer[stage][part] for layer in by_layer) for part in WHAT} for stage in by_layer[0]}
for stage, parts in total.items():
    print(f"{stage:<8}", *(f"{part}: {size:,}  " for part, size in parts.items()))
assert [sum(parts.values()) for parts in total.values()] == [
    report.total.pruned,
    report.total.shared,
    report.total.huffman,
]

sizes = {
    "dense": report.total.dense,
    **{stage: sum(parts.values()) for stage, parts in total.items()},
    "file": report.file_bytes,
}
assert report.layers["2"].huffman > report.layers["2"].shared
print(
    "times smaller than the stage before:", {b: round(sizes[a] / sizes[b], 2) for a, b in zip(sizes, list(sizes)[1:])}
)
figure, axes = new_figure(2, 13, 4.8, width_ratios=[2, 3])
axes[0].barh(list(sizes), [size / 1000 for size in sizes.values()], color=GREY, height=0.65)
for name, size in sizes.items():
    label(axes[0], f"{size / 1000:.1f} kB", (size / 1000, name), GREY, (8, 0))
axes[0].set(xlabel="kB", xlim=(0, 1.28 * sizes["dense"] / 1000))
for stage, parts in {**total, "file": {**total["Huffman"], "description": sizes["file"] - sizes["Huffman"]}}.items():
    at = 0
    for part, size in parts.items():
        axes[1].barh(stage, size / 1000, left=at / 1000, color=WHAT.get(part, "#C8C8C8"), height=0.65)
        at += size
    label(axes[1], f"{sizes['dense'] / at:.1f}x", (at / 1000, stage), "black", (8, 0))
for part, colour in {**WHAT, "description of the file": "#C8C8C8"}.items():
    axes[1].bar(0, 0, color=colour, label={"what": "what it is", "where": "where it is"}.get(part, part))
axes[1].legend(loc="lower right", bbox_to_anchor=(1.02, 0.1), fontsize=14, frameon=False)
axes[1].set(xlabel="kB, without the dense arrays", xlim=(0, 1.25 * sizes["pruned"] / 1000))
for axis in axes:
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", labelsize=15)
show(figure, "stages.png")

# %% [markdown]
# Multiply the factors and you have the whole ratio. Pruning gives most, sharing the next. Huffman gives little
# *here*: each code has to bring its lengths along, and for the last layer of the report they cost more than they
# save.
#
# And there is a floor. Biases and codebooks are float32 and stay float32; every file describes its layers, with
# checksums. In a small network they are a large part of what is left. So small networks are never compressed as
# many times as large ones.
#
# ## 8.6 Take the file apart
#
# Is it really all in there? We open the file as what it is, an archive of arrays, and decode its first layer with
# the two functions of 8.4. The head of `lab/compression.py` says in which order the bytes come.
#
# **Predict.** Codes and gaps are two streams of bits without marks. What must stand before them so that they can be
# read?

# %%
path = FOLDER / "small.npz"
FOLDER.mkdir(parents=True, exist_ok=True)
deploy.save_compressed(final_models[0], path)
with np.load(path, allow_pickle=False) as archive:
    stored = archive["0.stored"].tobytes()
    print({name: archive[name].nbytes for name in archive.files})


def take(kind, count):
    """The next numbers of the layer."""
    global at
    part = np.frombuffer(stored, kind, count, at)
    at += part.nbytes
    return part


def bits_of(part):
    return "".join(f"{byte:08b}" for byte in part)


at = 0
_, _, values, gap_bits, kept, entries, code_bytes = take("<u4", 7).tolist()
codebook, bias = take("<f4", values), take("<f4", 300)
code_lengths_read, gap_lengths = take("u1", values + 1), take("u1", 2**gap_bits)
codes = np.array(
    read(bits_of(take("u1", code_bytes)), canonical(dict(enumerate(code_lengths_read.tolist()))))[:entries]
)
gaps = np.array(read(bits_of(take("u1", len(stored) - at)), canonical(dict(enumerate(gap_lengths.tolist()))))[:entries])
places = np.cumsum(gaps + 1) - 1
decoded = np.zeros(64 * 300, np.float32)
decoded[places[codes > 0]] = codebook[codes[codes > 0] - 1]  # code 0 is the filler
print(f"{kept} weights, {entries - kept} fillers, gaps of up to {gap_bits} bits, {values} values; all {at} bytes read")
assert at == len(stored) and kept == np.count_nonzero(codes)
assert np.array_equal(decoded.reshape(64, 300), final_models[0].layers[0].weight)
assert np.array_equal(bias, final_models[0].layers[0].bias.data)

again = deploy.load_compressed(path)
assert path.stat().st_size == report.file_bytes
assert np.array_equal(md.predict(again, validation), md.predict(final_models[0], validation))
path.unlink()
print(f"loaded again: the same {validation.y.size * 10:,} numbers, bit for bit")

# %% [markdown]
# Lossless, to the bit: after the values are trained, nothing is lost any more. That is why accuracies need not be
# measured again after Huffman.
#
# Now the forty times of the paper. LeNet-300-100 on MNIST has 784 inputs; 8, 9 and 26 % of its weights are left,
# with 6 bits for a code and 5 for a gap. The paper's own stages are 12x, 32x and 40x. Bytes need no training to be
# counted: normal numbers for weights will do, pruned to the same shares. (The trained network is `python -m perf
# deep_compression`, ten minutes.)
#
# **Predict.** 8 % of 32 bits become 8 % of 6 + 5 bits: how many times is that? The codes shrink by a fifth when
# Huffman coded, say. How far do you come? Then: at 8 %, what does a position cost at least, if lots decide?

# %%
lenet = network(0, inputs=784)
rng = np.random.default_rng(0)
for layer in lenet.layers:
    layer.weight.assign(rng.normal(size=layer.weight.shape))
prune.magnitude(lenet, {"0": 0.92, "1": 0.91, "2": 0.74})
lenet_reports = {}
for init in ("linear", "density"):
    lenet_reports[init] = deploy.compression_report(deploy.share_weights(lenet, 6, init=init))
    print(f"{init}\n{lenet_reports[init]}\n")
first, whole = lenet_reports["linear"].layers["0"], lenet_reports["linear"]
print(f"by the formula: sharing {32 / (0.08 * (6 + 5)):.0f}x, with the measured bits of Huffman's codes "
      f"{32 / (0.08 * (first.huffman_code_bits + first.huffman_gap_bits)):.0f}x; first layer counted: "
      f"{first.dense / first.huffman:.0f}x")  # fmt: skip
print(f"lots: {drawn_lots(0.08):.2f} bits for a position; counted {first.huffman_gap_bits:.2f}")
print("factors:", [round(a / b, 2) for a, b in zip(whole.total[2:5], whole.total[3:6])])
assert whole.total.dense / whole.file_bytes > 33
assert lenet_reports["density"].layers["0"].code_bits >= 7 > whole.layers["0"].code_bits
assert lenet_reports["density"].total.huffman > 1.1 * whole.total.huffman
assert drawn_lots(0.08) <= first.huffman_gap_bits < 1.06 * drawn_lots(0.08)

# %% [markdown]
# So forty times is three plain facts: one weight of twelve is left; 4 to 5 bits, with Huffman, say which value it
# has; and about 5 say where it is. 12 x 32 / 10 is nearly forty. The three stages are one bill: pruning does not
# give its whole twelve, since it has to pay for positions, and these are the larger part of the bill once values
# are shared and coded.
#
# Note the two starts once more: density makes the larger file. Its 64 values and the filler are 65 symbols, one too
# many for a fixed length of 6 bits; linear has dropped some of its own. Huffman does not mind. And the file is nearer
# to its forty times than ours was: biases, lengths and description are spread over more weights.
#
# ## 8.7 Bits against accuracy
#
# How many bits does a value need? We sweep them, with the centroids as k-means left them and with the centroids
# trained.
#
# **Predict.** With 1 bit a layer has two values. What is the accuracy, before and after training? From how many
# bits on can you not tell the networks from the control? And by how much does the file shrink from 6 bits to 2?

# %%
sweep = range(1, 7)
plain, repaired, file_sizes, fitted = [], [], [], []
for bits in sweep:
    group = [deploy.share_weights(model, bits) for model in pruned_models]
    plain.append(points(group))
    file_sizes.append([deploy.compression_report(model).file_bytes for model in group])
    before = [md.evaluate(model, fitting)["loss"] for model in group]
    repaired.append(points([tuned(model, seed) for seed, model in enumerate(group)]))
    fitted.append([before, [md.evaluate(model, fitting)["loss"] for model in group]])
plain, repaired, file_sizes = map(np.array, (plain, repaired, file_sizes))
reference = points(control)
for row, bits in enumerate(sweep):
    gain = repaired[row] - plain[row]
    losses = "{:.3f} -> {:.3f}".format(*np.mean(fitted[row], axis=1))
    print(f"{bits} bits: {told(plain[row])} -> {told(repaired[row])} %, gain {told(gain)}; training loss {losses}; "
          f"file {file_sizes[row].mean():,.0f}")  # fmt: skip
print(f"control, not shared: {told(reference)} %")

figure, axes = new_figure(2, 13, 4.6)
for values, colour, aside, text in (
    (plain, RED, -0.06, "as k-means left them"),
    (repaired, BLUE, 0.06, "centroids trained"),
):
    axes[0].errorbar(np.array(sweep) + aside, values.mean(axis=1), values.std(axis=1, ddof=1), fmt="o-", color=colour, lw=3,
                     ms=9, elinewidth=1.5, capsize=5, label=text)  # fmt: skip
axes[0].axhline(reference.mean(), color=GREY, lw=2, ls=":", label="not shared")
axes[0].legend(loc="lower right", fontsize=14, frameon=False)
axes[0].set(xlabel="bits of a code", ylabel="validation accuracy, %")
axes[1].plot(sweep, file_sizes.mean(axis=1) / 1000, "o-", color=BLUE, lw=3, ms=9)
for bits, size in zip(sweep, file_sizes.mean(axis=1) / 1000):
    label(axes[1], f"{size:.1f}", (bits, size), BLUE, (0, 18), ha="center")
axes[1].set(xlabel="bits of a code", ylabel="file, kB", ylim=(0, 1.25 * file_sizes.max() / 1000))
show(figure, "bits.png")

assert plain[0].mean() < plain[3:].mean() - 0.2
assert all(after < before for before, after in zip(*fitted[0]))
assert abs(repaired[3:].mean() - reference.mean()) < 1
assert file_sizes[1].mean() > 0.6 * file_sizes[5].mean()

# %% [markdown]
# With two values in a layer something is lost. Training lowers the training loss in every seed, and on average it
# gives some of the accuracy back; compare the gain with its spread. With a few bits more the curves lie within their
# own spread, and nothing can be said for training or against it: digits do not need the paper's 6 bits. Another task
# may. Sweep it for yours, on validation data.
#
# Now the right panel. A third of the bits for values is not a third of the file, since positions, biases and
# descriptions do not know how many values there are. To go on from here, one would have to make positions cheaper:
# that is what whole neurons and blocks are for (lesson 7).
#
# ## 8.8 Small is not fast
#
# The network that is left does a twentieth of the products. The test set is touched here, once.
#
# **Predict.** For each row: its file, its memory while it runs, its time for 1, 32 and 256 images, beside the dense
# network. Which one wins each column?

# %%
final = final_models[0]
ledger = md.Ledger(test)
ledger.add("dense", as_long[0])
ledger.add("pruned, masked", control[0])
ledger.add("Huffman coded", deploy.compress(final))
ledger.add("the same, csr", prune.to_sparse(deploy.decompress(deploy.compress(final))))
print(ledger)
rows = {row["name"]: row for row in ledger.rows}
assert rows["Huffman coded"]["file_bytes"] < 0.5 * rows["the same, csr"]["file_bytes"]
assert rows["Huffman coded"]["memory_bytes"] > rows["dense"]["memory_bytes"] > 5 * rows["the same, csr"]["memory_bytes"]
assert abs(rows["Huffman coded"]["accuracy"] - rows["dense"]["accuracy"]) < 0.05

# %% [markdown]
# The smallest file is no faster, and in memory it is not small. A stream of bits without marks can only be read
# from its beginning, so it is decoded when it is loaded, and from then on runs as an ordinary matrix full of zeros.
# Huffman is for the disk, the wire and the download. (To compute on shared values and relative positions directly,
# authors of the paper designed a chip: EIE, Han et al. 2016.)
#
# What runs fast is another question, and it has no answer in general: look at the csr row for batch 1, and for 256.
# So measure: `deploy.choose` times the model in every form, for each batch size, and keeps the winner. We allow int8,
# too, which changes the answers a little (lesson 4).
#
# **Predict.** Three layers: 64 x 300, 300 x 100, 100 x 10. For one image and for 256, which of dense, sparse and
# int8 do you expect?

# %%
chosen = deploy.choose(deploy.decompress(deploy.compress(final)), fitting, int8=True, rounds=3)
print(chosen.table())
print(chosen)
for size in (1, 256):
    answers = md.predict(chosen, validation, size).argmax(axis=1)
    assert np.mean(answers == md.predict(final, validation).argmax(axis=1)) > 0.97
assert chosen.batch_sizes == [1, 32, 256] and len(chosen.measured) >= 9

# %% [markdown]
# Read your own table: the star says what runs. "shrunk" is the network without the neurons that pruning has
# emptied, which changes no answer. "single" is sparse with the weights held once more, in an order for one or two
# images. The table is stored with the model: a measurement of one machine, not a law.
#
# How sparse must a layer be before it pays? `crossover.py`, beside this file, measures a map, here of LeNet's first
# layer. Expect another one from another machine.
#
# **Predict.** Colour twelve squares: 50, 80, 90 and 95 % sparse, batch 1, 32 and 256; dense or sparse?

# %%
measured = crossover.measure(784, 300, sparsities=(0.5, 0.8, 0.9, 0.95), batch_sizes=(1, 32, 256))
for way, seconds in measured.seconds.items():
    print(f"{way:<7} µs, by sparsity and batch size:", (1e6 * seconds).round(1).tolist())
show(crossover.draw(measured), "crossover.png")
assert all(seconds.shape == (4, 3) and np.all(seconds > 0) for seconds in measured.seconds.values())

# %% [markdown]
# Look for three things. Does dense take the same time at every sparsity? It multiplies zeros like anything else.
# Where does sparse cross it, for each batch size? And is the largest gain where you expected it? No assertion
# speaks of these times: they are yours.
#
# ## What to take along
#
# - A pruned file says what and where. Where costs about H(p) / p bits at best, if there is no pattern; what costs
#   the logarithm of the codebook, or less.
# - Forty times = twelve by pruning, times 32 bits over about ten. Count it for your own network before you train.
# - Shared values are trained: the gradient of a value is the sum over its weights.
# - Huffman: the more unequal, the shorter. It brings its lengths along, which small layers do not earn back.
# - A small network has a floor: biases, codebooks, the description of the file.
# - Small and fast are two goals. Huffman makes files small. What runs fast is found by measuring: `deploy.choose`.
#
# **Exercises.** 1. Code all three layers with one common pair of Huffman codes. How many bytes of lengths are
# saved, and how many bits of the streams are lost? 2. Round biases and codebooks to float16 (`assign`). Does the
# accuracy notice? Work out the file. What is the ratio of the digits' network then? 3. Prune the first layer by
# whole blocks (`prune.blocks`) to the same sparsity. What does a position cost now, and how far below H(p) / p is
# it? 4. A symbol that comes 95 times of 100 has an entropy far below one bit. Show that Huffman cannot follow, then
# code *pairs* of symbols. 5. Write the best clustering of sorted numbers by dynamic programming. By how much is
# k-means from a linear start off it, and is the network any better after training? 6. Compress the csr file of
# lesson 7 with `gzip`, which is Huffman too. Why does it save so little of the values? 7. Repeat the map of 8.8
# with `int8=True`. What is left of sparse?
#
# **Read on.** `lab/compression.py` is the file format in a page; `tests/test_deep_compression.py` flips every
# kind of bit in it.
