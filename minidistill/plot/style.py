"""The style of all figures: large letters, colours that colour-blind readers can tell apart, labels beside the things.

And how a mean over seeds is written, in figures and tables: with its spread, if there is one.

Nothing needs to be read before this file.
"""

from __future__ import annotations

import numpy as np

from ..files import as_path, atomic_write

# Okabe & Ito 2008, "Color Universal Design".
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#767676"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)


def new_figure(panels, width, height=4.2, columns=None, **options):
    """A new figure and the list of its axes, in the style of the house. ``height`` is that of a row; one row by default."""
    from matplotlib.figure import Figure

    columns = columns or panels
    rows = -(-panels // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, **options))
    for axis in axes[panels:]:
        axis.remove()
    axes = axes[:panels]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#E5E5E5", lw=1)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=13, color=GREY)
        axis.xaxis.label.set_size(14)
        axis.yaxis.label.set_size(14)
        axis.title.set_size(15)
    return figure, list(axes)


def finish(figure, path):
    """The figure itself, written to ``path`` if one is given, in the format that the name ends with (PNG if with none)."""
    if path is not None:
        with atomic_write(path) as file:
            figure.savefig(file, format=as_path(path).suffix[1:] or "png", dpi=150, facecolor="white")
    return figure


DOT = 13  # points, the size of a dot


def mark_points(axis, x, y, names, bars=None):
    """A dot and a name for each point, the name at the nearest place where it covers no dot, no bar and no other name.

    Points of which one would hide the other are one dot, with both names. The axis has its limits already.

    Parameters
    ----------
    axis : Axes
    x, y : ndarray, shape (N,)
    names : list of str
    bars : ndarray, shape (N, 2), optional
        From where to where in x a bar is drawn through each point.
    """
    axis.figure.draw_without_rendering()
    points = axis.transData.transform(np.column_stack([x, y]))
    radius = DOT / 2 * axis.figure.dpi / 72
    groups = []  # of indices; the dot is that of the first
    for i in range(len(points)):
        near = (group for group in groups if np.hypot(*(points[i] - points[group[0]])) < radius)
        group = next(near, None)
        groups.append([i]) if group is None else group.append(i)
    taken = [(px - radius, py - radius, px + radius, py + radius) for px, py in points[[group[0] for group in groups]]]
    for i, (low, high) in enumerate([] if bars is None else bars):
        ends = axis.transData.transform([(low, y[i]), (high, y[i])])
        taken.append((ends[0, 0] - 3, ends[0, 1] - 2, ends[1, 0] + 3, ends[1, 1] + 2))
    for group in sorted(groups, key=lambda group: -y[group[0]]):
        i = group[0]
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(x[i], y[i], "o", ms=DOT, color=colour, mec="white", mew=1.5, zorder=3)
        box = _label(axis, "\n= ".join(names[j] for j in group), (x[i], y[i]), colour, taken)
        taken.append((box.x0, box.y0, box.x1, box.y1))


def _label(axis, name, point, colour, taken):
    """Write a name where nothing is taken, else beside the point; returns the box it fills."""
    inside = axis.get_window_extent()
    for dx, dy, side in (*_places(), (12, 0, "left")):
        text = axis.annotate(name, point, xytext=(dx, dy), textcoords="offset points", ha=side, va="center", fontsize=12,
                             color=colour)  # fmt: skip
        box = text.get_window_extent()
        free = all(box.x1 < a or box.x0 > c or box.y1 < b or box.y0 > d for a, b, c, d in taken)
        if free and inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1:
            return box
        text.remove()
    axis.add_artist(text)
    return box


def _places():
    """Offsets to try for a label, in points, nearest first: beside the point, then above and below it in rings."""
    yield from ((12, 0, "left"), (-12, 0, "right"))
    for ring in range(1, 6):
        for dy in (18 * ring, -18 * ring):
            yield from ((0, dy, "center"), (12, dy, "left"), (-12, dy, "right"))


def mean_and_spread(values, form=".1f", unit=""):
    """The mean of numbers, one for each seed, as text: with their standard deviation, which one number does not have.

    Parameters
    ----------
    values : sequence of float
    form : str
        Format of both numbers. A sign or width, "+.1f" or "5.1f", is that of the mean.
    unit : str
        Stands after the mean.
    """
    text = f"{np.mean(values):{form}}{unit}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):{form.lstrip('+0123456789')}}"


def plain_log_ticks(axis):
    """Numbers such as 20 and 50 on a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def wrapped(text, width=46):
    """The text in lines of at most ``width`` letters, broken between words."""
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
