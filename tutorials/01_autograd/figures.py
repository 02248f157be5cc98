"""A figure of lesson 1: the tape as a graph."""

from __future__ import annotations

from minidistill.plot.style import BLUE, GREY, ORANGE, finish, new_figure
from minidistill.tensor import Node, Tensor

LARGEST_TAPE = 60  # nodes that can still be read on one page


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
    figure, (axis,) = new_figure(1, width=max(5, 2.4 * len(columns)), height=max(3, 1.15 * max(map(len, columns))))
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
    return finish(figure, path)


def _recorded(tensor):
    """Leaves and nodes that a result depends on, each after what it was computed from."""
    found, stack = {}, [tensor._node or tensor]
    while stack:
        end = stack.pop()
        if id(end) not in found:
            found[id(end)] = end
            stack.extend(parent for parent in getattr(end, "parents", ()) if parent is not None)
    return sorted(found.values(), key=lambda end: end.number if isinstance(end, Node) else -1)
