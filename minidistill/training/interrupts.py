"""Ctrl-C in a run: noted at once, raised where the run is whole.

Python raises KeyboardInterrupt between any two instructions, so also in the middle of an optimizer's step, when some layers
are new and others old, or in a callback that is just giving the best weights back. A `run` therefore holds the signal until
the step that is going on has ended, with all its callbacks. The validation alone, which changes nothing, is cut short.

The exception leaves `fit`, `distill` and `mutual`, so that a loop over seeds ends with it, and no table is made of a run that
was cut short. Whoever wants what there is catches it: the model is usable, and from the first epoch on the exception has the
`History` as ``history``::

    try:
        history = md.fit(model, data, epochs=100)
    except KeyboardInterrupt as stop:  # in a notebook, after the traceback: sys.last_value
        history = stop.history

A step may be long, and a callback may hang: pressed again after `PATIENCE`, Ctrl-C breaks in wherever the run is, and the
weights may then be those of half a step. What follows an interrupt, ``on_train_end``, is held in the same way.

Read ``loop.py`` with this file.
"""

from __future__ import annotations

import signal
import threading
from time import monotonic

PATIENCE = 1.0  # seconds after a Ctrl-C from which on another one is taken for impatience, not for a key that bounced


class Interrupts:
    """The signal of Ctrl-C during a ``with`` block. Only Python's main thread ever gets it; elsewhere this does nothing.

    Parameters
    ----------
    run : Run
        Its history goes with every KeyboardInterrupt that leaves the block.
    """

    def __init__(self, run):
        self.run, self.before, self.held, self.since = run, None, True, None

    def __enter__(self):
        before = signal.getsignal(signal.SIGINT)  # of Python, of a notebook, or of a run that this one is part of
        if callable(before) and threading.current_thread() is threading.main_thread():
            self.before = before
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind, error, trace):
        try:
            if not isinstance(error, KeyboardInterrupt):
                self.check()  # it came too late to cut anything short, but a loop over seeds must hear of it
        finally:
            if self.before is not None and signal.getsignal(signal.SIGINT) == self._note:
                signal.signal(signal.SIGINT, self.before)

    def check(self):
        """Raise what was noted. Called where nothing is half done."""
        if self.since is not None:
            self._raise(None)

    def let_in(self, work):
        """Call ``work()``, which changes nothing and may be cut short."""
        try:
            self.held = False
            self.check()  # in this order: what comes between the two lines is raised already
            return work()
        finally:
            self.held = True

    def mark(self, interrupt):
        """Give a KeyboardInterrupt the history, for whoever catches it."""
        self.run.history.interrupted = True
        interrupt.history = self.run.history

    def _note(self, number, frame):
        now = monotonic()
        if self.held and (self.since is None or now - self.since < PATIENCE):
            self.since = now if self.since is None else self.since
        else:
            self._raise(frame)

    def _raise(self, frame):
        self.held, self.since = True, None
        try:
            self.before(signal.SIGINT, frame)
        except KeyboardInterrupt as interrupt:
            self.mark(interrupt)
            raise
