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


def label_points(axis, x, y, names):
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
