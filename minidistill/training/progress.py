"""The progress bar of a run: one bar over all steps, with loss, metrics and the time left."""

from __future__ import annotations

import sys
from time import monotonic

PERIOD = 0.1  # seconds between two redraws: drawing must not cost what it reports


def is_shown(wanted):
    """Whether a bar is drawn: where it is wanted, and the error stream is a terminal. A log file gets no half-drawn lines."""
    return bool(wanted) and sys.stderr is not None and sys.stderr.isatty()


class Progress:
    """A tqdm bar, where it `is_shown`."""

    def __init__(self, wanted, epochs, steps, done):
        self.bar, self.epochs, self.waiting, self.drawn = None, epochs, 0, 0.0
        if is_shown(wanted):
            from tqdm import tqdm

            self.bar = tqdm(
                total=epochs * steps, initial=done, leave=True, dynamic_ncols=True,
                bar_format="{desc} {bar} {percentage:3.0f}% {elapsed}<{remaining} {postfix}",
            )  # fmt: skip

    def step(self, loss):
        """Count one step."""
        if self.bar is None:
            return
        self.waiting += 1
        now = monotonic()
        if now - self.drawn > PERIOD:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self.bar.update(self.waiting)
            self.waiting, self.drawn = 0, now

    def epoch(self, number, logs):
        """Show the numbers of a finished epoch."""
        if self.bar is not None:
            shown = {name.replace("validation_", "val "): value for name, value in logs.items()}
            text = "  ".join(f"{name} {value:.4f}" for name, value in shown.items() if name not in ("lr", "seconds"))
            self.bar.set_description_str(f"epoch {number}/{self.epochs}  {text}", refresh=False)
            self.bar.update(self.waiting)
            self.waiting = 0

    def close(self):
        """Leave the last line as it is."""
        if self.bar is not None:
            self.bar.set_postfix_str("")
            self.bar.close()
