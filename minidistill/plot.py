"""Figures, in one style: large letters, colours that colour-blind readers can tell apart, labels beside the things.

Every function returns a matplotlib ``Figure`` and writes it to ``path`` as a PNG if one is given. No window is opened and
no global state of pyplot is touched; matplotlib is imported on the first figure. Nothing needs to be read before this file.
"""

from __future__ import annotations

import numpy as np

from .nn import Mask
from .tensor import Node, Tensor
from .timing import Times
from .training import predict

# Okabe & Ito 2008, "Color Universal Design".
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#767676"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
LARGEST_TAPE = 60  # nodes that can still be read on one page


def training_curves(history, path=None):
    """Loss and, where there is one, accuracy over the epochs; training and validation in one panel each.

    Parameters
    ----------
    history : History
    path : path, optional
    """
    if not len(history.epochs):
        raise ValueError(
            "training_curves got a history without epochs.\nThere is nothing to draw.\nPass what md.fit returned."
        )
    kinds = [k for k in ("loss", "accuracy") if any(k in name for logs in history.epochs for name in logs)]
    figure, axes = _figure(len(kinds), width=5.5 * len(kinds))
    epochs = np.arange(1, len(history.epochs) + 1)
    for axis, kind in zip(axes, kinds):
        curves = [(n, c) for n, c in ((kind, BLUE), (f"validation_{kind}", ORANGE)) if n in history]
        curves.sort(key=lambda curve: history[curve[0]][-1])
        for place, (name, colour) in enumerate(curves):
            values = np.array(history[name])
            axis.plot(epochs[: len(values)], values, color=colour, lw=2.5, marker="o", ms=4 if len(values) < 40 else 0)
            axis.annotate("validation" if "validation" in name else "training", (len(values), values[-1]),
                          xytext=(8, 18 * (place - (len(curves) - 1) / 2)), textcoords="offset points", color=colour,
                          va="center", fontsize=13)  # fmt: skip
        if history.best_epoch:
            axis.axvline(history.best_epoch, color=GREY, lw=1.5, ls=":")
            axis.set_title(f"best epoch {history.best_epoch}", color=GREY, fontsize=13, loc="right")
        axis.set(xlabel="epoch", ylabel=kind)
        axis.margins(x=0.02)
    return _finish(figure, path)


def softened_probabilities(logits, temperatures=(1, 2, 4, 8), classes=None, path=None):
    """What a temperature does to one sample's class probabilities: one panel for each.

    Parameters
    ----------
    logits : array_like, shape (C,)
    temperatures : sequence of float
    classes : sequence of str, optional
        Names; numbers by default.
    path : path, optional
    """
    logits = np.asarray(logits, float)
    if logits.ndim != 1 or len(logits) < 2:
        raise ValueError(
            f"softened_probabilities got logits of shape {logits.shape}.\nIt draws one sample: a vector, one logit for each "
            "class.\nPass one row: logits[0]."
        )
    figure, axes = _figure(len(temperatures), width=3.6 * len(temperatures), height=3.8, sharey=True)
    names = [str(c) for c in (range(len(logits)) if classes is None else classes)]
    for axis, t in zip(axes, temperatures):
        p = np.exp((logits - logits.max()) / t)
        p /= p.sum()
        axis.bar(names, p, color=[RED if i == logits.argmax() else BLUE for i in range(len(p))], width=0.75)
        axis.set(title=f"T = {t:g}", xlabel="class", ylim=(0, 1))
    axes[0].set_ylabel("probability")
    return _finish(figure, path)


def weight_histogram(model, path=None):
    """The weights of each matrix, and what its mask has set to zero.

    Parameters
    ----------
    model : Module
    path : path, optional
    """
    weights = [(name, p) for name, p in model.named_parameters() if p.ndim == 2]
    if not weights:
        raise ValueError(
            "weight_histogram found no weight matrices.\nIt draws float parameters with two axes.\n"
            "Draw the float model, before quantizing it."
        )
    figure, axes = _figure(len(weights), width=5 * len(weights))
    for axis, (name, parameter) in zip(axes, weights):
        kept = np.ones(parameter.shape, bool)
        for constraint in parameter.constraints:
            kept &= constraint.kept if isinstance(constraint, Mask) else True
        values = parameter.data[kept]
        axis.hist(values, bins=60, color=BLUE)
        text = f"{kept.sum():,} weights"
        if not kept.all():
            text += f"\n{(~kept).sum():,} masked ({1 - kept.mean():.0%})"
            axis.axvline(0, color=RED, lw=2.5)
            axis.annotate("masked: exactly 0", (0, 0.97), xycoords=("data", "axes fraction"), xytext=(6, 0),
                          textcoords="offset points", color=RED, va="top", fontsize=12)  # fmt: skip
        axis.set(title=f"{name}: {text}", xlabel="value")
        axis.title.set_fontsize(13)
    axes[0].set_ylabel("weights")
    return _finish(figure, path)


def quantization_grid(weights, bits=8, path=None):
    """The staircase of symmetric quantization over the range of some weights, and its rounding error.

    Parameters
    ----------
    weights : array_like
        Their largest absolute value sets the scale.
    bits : int in [2, 8]
    path : path, optional
    """
    w = np.ravel(np.asarray(weights, np.float32))
    if not 2 <= bits <= 8 or not w.size or not np.isfinite(w).all() or not w.any():
        raise ValueError(
            f"quantization_grid got {w.size} weights and bits = {bits}.\nIt needs finite weights, not all 0, and 2 to "
            "8 bits.\nWrite plot.quantization_grid(layer.weight, bits=4)."
        )
    steps = 2 ** (bits - 1) - 1
    scale = np.abs(w).max() / steps
    x = np.linspace(-np.abs(w).max(), np.abs(w).max(), 4001)
    figure, axes = _figure(2, width=12)
    axes[0].plot(x, x, color=GREY, lw=1.5, ls=":")
    axes[0].plot(x, np.rint(x / scale) * scale, color=BLUE, lw=2)
    axes[0].plot(
        w[:400], np.full(w[:400].size, axes[0].get_ylim()[0]), "|", color=ORANGE, ms=12, alpha=0.5, clip_on=False
    )
    axes[0].set(title=f"{bits} bits: {2 * steps + 1} levels, scale {scale:.3g}", xlabel="weight", ylabel="stored value")
    error = np.rint(w / scale) * scale - w
    axes[1].scatter(w, error, s=6, color=BLUE, alpha=min(1, 2000 / w.size), linewidths=0)
    for side in (-0.5, 0.5):
        axes[1].axhline(side * scale, color=RED, lw=1.5)
    axes[1].annotate("half a step", (0.02, 0.5 * scale), xycoords=("axes fraction", "data"), xytext=(0, 5),
                     textcoords="offset points", color=RED)  # fmt: skip
    snr = 10 * np.log10(np.mean(w.astype(float) ** 2) / max(np.mean(error.astype(float) ** 2), 1e-300))
    axes[1].set(title=f"rounding error: signal to noise {snr:.1f} dB", xlabel="weight", ylabel="error")
    axes[1].set_ylim(-0.75 * scale, 0.75 * scale)
    return _finish(figure, path)


def confusion_matrix(model, data, path=None):
    """How often each class (row) is taken for each (column). Mistakes are coloured, the diagonal is not.

    Parameters
    ----------
    model : Module
    data : Dataset
        With class ids.
    path : path, optional
    """
    classes = data.num_classes
    decided = predict(model, data).argmax(axis=1)
    counts = np.zeros((max(classes, decided.max() + 1),) * 2, int)
    np.add.at(counts, (data.y, decided), 1)
    mistakes = counts * (1 - np.eye(len(counts), dtype=int))
    figure, (axis,) = _figure(1, width=6.5, height=6.2)
    axis.imshow(np.ma.masked_equal(mistakes, 0), cmap="Oranges", vmin=0, vmax=max(2, mistakes.max() * 1.5))
    for (row, column), n in np.ndenumerate(counts):
        colour = GREY if row == column else ("black" if n else "#DDDDDD")
        axis.text(column, row, n or "·", ha="center", va="center", color=colour, fontsize=13)
    axis.set(xlabel="decided", ylabel="true class", xticks=range(len(counts)), yticks=range(len(counts)))
    axis.set_title(f"{mistakes.sum()} mistakes in {len(data)}")
    axis.grid(False)
    return _finish(figure, path)


def pareto(ledger, path=None):
    """Quality against the bytes of the file and against latency: what is up and to the left is better.

    Parameters
    ----------
    ledger : Ledger
    path : path, optional
    """
    rows = list(ledger.rows)
    if not rows:
        raise ValueError(
            "pareto got an empty ledger.\nEach model is a point.\nAdd models first: ledger.add(name, model)."
        )
    quality = "accuracy" if "accuracy" in rows[0] else "loss"
    batch = max(rows[0]["latency"])
    figure, axes = _figure(2, width=13, height=5.2, sharey=True)
    y = np.array([row[quality] for row in rows]) * (100 if quality == "accuracy" else 1)
    size = np.array([row["file_bytes"] for row in rows]) / 1000
    times = [Times(**row["latency"][batch]) for row in rows]
    for axis, x, label in ((axes[0], size, "file, kB"), (axes[1], np.array([t.median for t in times]) * 1e6,
                                                         f"one prediction of {batch} samples, µs")):  # fmt: skip
        for i in range(len(rows)):
            axis.plot(x[i], y[i], "o", ms=13, color=COLOURS[i % len(COLOURS)], mec="white", mew=1.5, zorder=3)
        axis.set_xscale("log")
        axis.set_xlim(x.min() / 1.5, x.max() * 1.5)
        _plain_log_ticks(axis)
        axis.set_xlabel(label)
    axes[1].errorbar([t.median * 1e6 for t in times], y, fmt="none", ecolor=GREY, lw=1.5, zorder=2,
                     xerr=1e6 * np.array([[t.median - t.low, t.high - t.median] for t in times]).T)  # fmt: skip
    axes[0].set_ylabel("test accuracy, %" if quality == "accuracy" else "test loss")
    room = max(0.2 * (y.max() - y.min()), 0.5 if quality == "accuracy" else 0.05 * abs(y.max()))
    axes[0].set_ylim(y.min() - room, min(y.max() + room, 100.5) if quality == "accuracy" else y.max() + room)
    for axis, x in zip(axes, (size, np.array([t.median for t in times]) * 1e6)):
        _label_points(axis, x, y, [row["name"] for row in rows])
    return _finish(figure, path)


def label_study(accuracies, cases, path=None):
    """One dot for each seed and a bar at the mean, a row for each case.

    Parameters
    ----------
    accuracies : dict of str to sequence of float
        Fractions, one for each seed.
    cases : dict of str to str
        What to write beside each row, in order from top to bottom.
    path : path, optional
    """
    figure, (axis,) = _figure(1, width=13, height=0.75 * len(cases) + 1.2)
    for row, case in enumerate(cases):
        values, colour = 100 * np.asarray(accuracies[case]), COLOURS[row % len(COLOURS)]
        axis.plot(values, np.full(len(values), row), "o", ms=9, color=colour, alpha=0.55, mew=0)
        axis.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, lw=4)
        axis.text(
            values.mean(), row - 0.36, f"{values.mean():.1f}", ha="center", va="bottom", color=colour, fontsize=13
        )
    axis.set_yticks(range(len(cases)), [_wrapped(text) for text in cases.values()], fontsize=12)
    axis.set(xlabel="test accuracy, %", ylim=(len(cases) - 0.4, -0.9))
    axis.grid(axis="y", visible=False)
    return _finish(figure, path)


def tape(tensor, path=None):
    """The tape behind a tensor as a graph: leaves on the left, each operation right of everything that it uses.

    Parameters
    ----------
    tensor : Tensor
        A result that records, such as a loss; at most 60 leaves and operations.
    path : path, optional
    """
    if not isinstance(tensor, Tensor) or not tensor.requires_grad:
        raise ValueError(
            "tape got something that records nothing.\nIt draws how a Tensor was computed.\n"
            "Pass a loss that was computed outside of md.no_grad()."
        )
    ends = _recorded(tensor)
    if len(ends) > LARGEST_TAPE:
        raise ValueError(
            f"tape got a computation of {len(ends)} leaves and operations.\nMore than {LARGEST_TAPE} cannot be "
            "read on a page.\n"
            "Draw a smaller batch or model, or print(loss.explain())."
        )
    sources = {id(end): [p for p in getattr(end, "parents", ()) if p is not None] for end in ends}
    depth = {}
    for end in ends:
        depth[id(end)] = 1 + max((depth[id(p)] for p in sources[id(end)]), default=-1)
    for end in ends[::-1]:  # a leaf stands right before its first use
        uses = [depth[k] for k, parents in sources.items() if any(p is end for p in parents)]
        depth[id(end)] = min(uses) - 1 if uses and not sources[id(end)] else depth[id(end)]
    columns = [[end for end in ends if depth[id(end)] == d] for d in range(max(depth.values()) + 1)]
    place = {
        id(end): (d, i - (len(column) - 1) / 2) for d, column in enumerate(columns) for i, end in enumerate(column)
    }
    figure, (axis,) = _figure(1, width=max(5, 2.4 * len(columns)), height=max(3, 1.15 * max(map(len, columns))))
    boxes = {}
    for end in ends:
        leaf = isinstance(end, Tensor)
        text = f"{type(end).__name__ if leaf else end.op.replace(' ', chr(10))}\n{end.shape}"
        colour = ORANGE if leaf else BLUE
        box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": colour, "lw": 2}
        boxes[id(end)] = axis.text(
            *place[id(end)], text, ha="center", va="center", fontsize=11, color="black", bbox=box, zorder=3
        )
    for end in ends:
        for parent in sources[id(end)]:
            ends_at = {"patchA": boxes[id(parent)].get_bbox_patch(), "patchB": boxes[id(end)].get_bbox_patch()}
            axis.annotate("", place[id(end)], place[id(parent)], zorder=1,
                          arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.5, "shrinkB": 3, **ends_at})  # fmt: skip
    heights = [y for _, y in place.values()]
    axis.set(xlim=(-0.6, len(columns) - 0.4), ylim=(min(heights) - 0.7, max(heights) + 0.7))
    axis.axis("off")
    figure.draw_without_rendering()  # the boxes get their sizes, which the arrows end at
    return _finish(figure, path)


# ---- style -----------------------------------------------------------------------------------------------------------
def _recorded(tensor):
    """Leaves and nodes that a result depends on, each after what it was computed from."""
    found, stack = {}, [tensor._node or tensor]
    while stack:
        end = stack.pop()
        if id(end) not in found:
            found[id(end)] = end
            stack.extend(parent for parent in getattr(end, "parents", ()) if parent is not None)
    return sorted(found.values(), key=lambda end: end.number if isinstance(end, Node) else -1)


def _figure(panels, width, height=4.2, **options):
    """A new figure and the list of its axes, in the style of the house."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels, **options))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#E5E5E5", lw=1)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=13, color=GREY)
        axis.xaxis.label.set_size(14)
        axis.yaxis.label.set_size(14)
        axis.title.set_size(15)
    return figure, list(axes)


def _finish(figure, path):
    if path is not None:
        figure.savefig(path, dpi=150, facecolor="white")
    return figure


def _label_points(axis, x, y, names):
    """Names beside the points, each at the nearest place where it covers no other name and no point."""
    figure = axis.figure
    figure.draw_without_rendering()
    points = axis.transData.transform(np.column_stack([x, y]))
    taken = [(px - 9, py - 9, px + 9, py + 9) for px, py in points]
    inside = axis.get_window_extent()
    for i in np.argsort(-y):
        for dx, dy, side in _places():
            text = axis.annotate(names[i], (x[i], y[i]), xytext=(dx, dy), textcoords="offset points", ha=side, va="center",
                                 fontsize=12, color=COLOURS[i % len(COLOURS)])  # fmt: skip
            box = text.get_window_extent()
            free = all(box.x1 < a or box.x0 > c or box.y1 < b or box.y0 > d for a, b, c, d in taken)
            if free and box.x0 >= inside.x0 and box.x1 <= inside.x1:
                break
            text.remove()
        else:
            axis.annotate(names[i], (x[i], y[i]), xytext=(12, 0), textcoords="offset points", fontsize=12)
        taken.append((box.x0, box.y0, box.x1, box.y1))


def _places():
    """Offsets to try for a label, in points, nearest first: beside the point, then above and below it in rings."""
    yield from ((12, 0, "left"), (-12, 0, "right"))
    for ring in range(1, 6):
        for dy in (18 * ring, -18 * ring):
            yield from ((0, dy, "center"), (12, dy, "left"), (-12, dy, "right"))


def _plain_log_ticks(axis):
    """Numbers such as 20 and 50 on a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _wrapped(text, width=46):
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
