"""The figure of a search for bits: what is lost for the bytes that are left, and where the bits go.

Read ``plot/style.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from ..plot.style import BLUE, ORANGE, finish, new_figure, plain_log_ticks


def bits(front, path=None):
    """Searched plans as a line over bytes, uniform bits as points beside it; and what each layer is stored in along the line.

    Parameters
    ----------
    front : Front
        What ``deploy.Sensitivity.front`` returned. The second panel is drawn where the points have their plans.
    path : path, optional
    """
    if not front.searched:
        raise ValueError(
            "bits got a front without plans.\nEach plan is a point of its line.\n"
            "Pass deploy.sensitivity(model, ...).front()."
        )
    plans = [point.plan for point in front.searched if point.plan is not None]
    panels = 2 if plans else 1
    figure, axes = new_figure(panels, width=[8, 15][panels - 1], height=5.2, width_ratios=[1, 1.05][:panels])
    _trade_off(axes[0], front)
    if plans:
        _where_bits_go(axes[1], plans)
    return finish(figure, path)


def _trade_off(axis, front):
    from matplotlib.ticker import FixedLocator, NullLocator

    sides = (front.uniform, ORANGE, "s", 13, "uniform"), (front.searched, BLUE, "o-", 7, "searched")
    for points, colour, form, size, text in sides:
        x, y = [point.bytes / 1000 for point in points], [point.value for point in points]
        axis.plot(x, y, form, color=colour, lw=2.5, ms=size, mec="white", mew=1.2, label=text)
    for point in front.uniform:
        place = {"xytext": (9, 9), "textcoords": "offset points"}
        axis.annotate(point.name, (point.bytes / 1000, point.value), **place, fontsize=12, color="#8A5F00")
    sizes, values = np.array([(point.bytes / 1000, point.value) for point in (*front.searched, *front.uniform)]).T
    axis.set_xscale("log")
    plain_log_ticks(axis)
    if sizes.max() < 10 * sizes.min():  # room for more than 1, 2 and 5
        steps = np.outer(10.0 ** np.arange(-3, 7), (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)).ravel()
        axis.xaxis.set_major_locator(FixedLocator(steps))
        axis.xaxis.set_minor_locator(NullLocator())
    if values.min() > 0 and values.max() > 5 * values.min():
        _log_values(axis, values.max() / values.min())
    axis.margins(x=0.1, y=0.1)
    axis.set(xlabel="bytes of the model, kB", ylabel=front.label)
    axis.legend(frameon=False, fontsize=13)


def _log_values(axis, ratio):
    """Numbers such as 2 and 5 on a logarithmic axis where there is room for them, else powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    if ratio < 300:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _where_bits_go(axis, plans):
    """A row for each layer, a column for each plan: darker where a weight takes more bits."""
    layers = list(plans[0].layers)
    each = np.array([[_left(plan.layers[path]) for plan in plans] for path in layers])
    axis.imshow(each, cmap="Blues", vmin=0, vmax=13, aspect="auto")
    for row, path in enumerate(layers):
        for column, plan in enumerate(plans):
            choice = plan.layers[path]
            text = f"{100 * (1 - choice.sparsity):.3g}%" if choice.sparsity else str(choice.bits)
            axis.text(
                column, row, text, ha="center", va="center", fontsize=12 if choice.sparsity else 14, color="#222222"
            )
    axis.set_xticks(range(len(plans)), [f"{plan.bytes / 1000:.3g}" for plan in plans], rotation=45)
    axis.set_yticks(range(len(layers)), [f"layer {path!r}" for path in layers])
    axis.set_xticks(np.arange(0.5, len(plans) - 1), minor=True)
    axis.set_yticks(np.arange(0.5, len(layers) - 1), minor=True)
    axis.grid(False)
    axis.grid(which="minor", color="white", lw=3)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    sparse = any(plan.sparsity for plan in plans)
    axis.set(
        xlabel="bytes of the searched plan, kB", title="bits of a weight" + ", or share of 8-bit weights left" * sparse
    )


def _left(choice):
    """Bits for each weight of the dense layer."""
    return choice.bits * (1 - choice.sparsity)
