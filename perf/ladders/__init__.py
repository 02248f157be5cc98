"""Kernel ladders: one kernel a file, from the obvious loop to the one that the engine runs, a rung an idea.

Every rung is compared with the first before it is timed. Start with ``matmul.py``. Each runs alone too:
``python -m perf.ladders.matmul``.
"""

from importlib import import_module

LADDERS = ("matmul", "distillation", "adam", "scatter_add", "int8", "low_bits", "sparse")


def main():
    """The tables of all of them."""
    return "\n\n".join(import_module(f"perf.ladders.{name}").main() for name in LADDERS)
