"""``loss.explain()``: the tape as a table, to see what a computation did, what it keeps, and where gradients vanish.

Read ``tensor.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from .tensor import Node, RowSparse, Tensor, gradients, memory_of


class Table(str):
    """Text that shows itself as a table at a prompt, in a notebook and in print alike."""

    __repr__ = str.__str__

    @classmethod
    def of(cls, rows, left=(0,), notes=()):
        """Rows of texts in columns, two blanks between them.

        Parameters
        ----------
        rows : list of (sequence of str, or None)
            The header is the first; None draws a rule over the whole width.
        left : tuple of int
            The columns that are flush left; the others, usually numbers, are flush right.
        notes : sequence of str
            Lines below the table.
        """
        widths = [max(map(len, column)) for column in zip(*filter(None, rows))]

        def line(row):
            cells = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
            return "  ".join(cells).rstrip()

        rule = "-" * max(len(line(row)) for row in rows if row)
        return cls("\n".join([*(line(row) if row else rule for row in rows), *notes]))


def explain(self):
    """The tape in the order it was recorded, as a printable table. Leaves ``.grad`` alone.

    Returns
    -------
    str
        One line for each leaf and operation: name, shape of the result, bytes that only its VJP keeps alive for the
        backward pass (each array counted once, at the first operation that holds it; leaves are not counted), and
        the norm of the gradient.
    """
    visited = list(gradients(self, np.ones_like(self.data)))[::-1]
    seen = {id(memory_of(end.data)) for end, _ in visited if isinstance(end, Tensor)}
    lines = [f"{'':>4} {'op':<24} {'shape':<18} {'kept for backward':>18} {'gradient norm':>14}"]
    for number, (end, g) in enumerate(visited):
        is_leaf = isinstance(end, Tensor)
        kept = "-" if is_leaf else f"{sum(a.nbytes for a in _captured(end.vjp, seen)):,} B"
        name = f"leaf {type(end).__name__}" if is_leaf else end.op
        values = g.values if isinstance(g, RowSparse) else g
        norm = np.sqrt(np.vdot(values, values))
        lines.append(f"{number:>4} {name:<24} {end.shape!s:<18} {kept:>18} {norm:>14.4g}")
    return Table("\n".join(lines))


def first_not_finite(output, upstream=None):
    """The operation whose backward pass was the first to make NaN or infinity of finite gradients.

    Parameters
    ----------
    output : Tensor
    upstream : array_like, optional
        As in ``Tensor.backward``.

    Returns
    -------
    str or None
        Its name; None if every gradient is finite.
    """
    done = []
    with np.errstate(all="ignore"):
        for end, g in gradients(output, upstream):
            if not _is_finite(g):
                users = [(node, g) for node, g in done if any(parent is end for parent in node.parents)]
                guilty = [node for node, g in users if not all(map(_is_finite, node.input_gradients(g)))]
                return (guilty or [node for node, _ in users])[0].op
            if isinstance(end, Node):
                done.append((end, g))
    return None


def _is_finite(g):
    return g is None or bool(np.isfinite(g.values if isinstance(g, RowSparse) else g).all())


def _captured(vjp, seen):
    """The arrays that a VJP holds in its closure, each piece of memory once: ``seen`` is updated."""
    found, stack = [], [vjp]
    while stack:
        value = stack.pop()
        if isinstance(value, (tuple, list)):
            stack.extend(value)
        elif isinstance(value, np.ndarray):
            memory = memory_of(value)
            if id(memory) not in seen:
                seen.add(id(memory))
                found.append(memory)
        elif getattr(value, "__closure__", None):
            stack.extend(cell.cell_contents for cell in value.__closure__)
    return found


Tensor.explain = explain
