"""Threads: one small pool that splits the rows of a kernel, and the one call that says how many there are.

A kernel is a serial loop over rows ``[lo, hi)`` that holds no interpreter lock (`_jit.py`), so two of them run at once on
two Python threads. `split` wakes the workers, gives each a range, and works on the last one itself. Every row is computed by
the same instructions whoever computes it, so the bits do not depend on the number of threads.

Why not Numba's ``prange``: its OpenMP threads and those of BLAS wait for work by spinning, each on the core that the other
needs, which made a training step nine times slower; its "workqueue" aborts the process when two Python threads enter it; and
OpenMP kills a forked child. A worker here watches for work for a tenth of a millisecond (`spin.py`), then sleeps on a lock. A
`split` costs about 8 µs if it finds the workers watching and twice that if they sleep (``perf/LOG.md``), so a kernel asks for
threads only above a size at which this is little.

Read ``_jit.py`` before this file. Given up for simplicity: no queue that workers share, and no stealing. A caller who finds
the pool busy (another Python thread uses it) runs alone, and so does a kernel that was called from inside a worker, and
everyone where the system lets no thread be started.
"""

import os
import threading
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np
from threadpoolctl import ThreadpoolController, threadpool_limits

from minidistill.kernels.spin import watch


class _Part:
    """A range of rows for a worker. It is claimed before it is begun, so a caller who is interrupted can claim it back."""

    __slots__ = ("call", "claim", "end", "ended", "error")

    def __init__(self, function, arguments):
        self.call, self.error, self.ended = (function, arguments), None, False
        self.claim, self.end = threading.Lock(), threading.Lock()
        self.end.acquire()

    def run(self):
        if not self.claim.acquire(blocking=False):
            return
        function, arguments = self.call
        try:
            function(*arguments)
        except BaseException as error:  # it belongs to the caller, who waits for it
            self.error = error
        self.call = function = arguments = None  # a worker that sleeps keeps no array alive
        self.ended = True
        self.end.release()


class _Worker:
    """A thread that sleeps until it is given a part. The counters are hints for `watch`, a cache line for each."""

    def __init__(self):
        self.inbox, self.counters, self.number = SimpleQueue(), np.zeros(16, np.int64), 0
        threading.Thread(target=self._serve, name="minidistill", daemon=True).start()

    def _serve(self):
        number = 0
        while True:
            watch(self.counters, 0, number, say=8)
            number, part = self.inbox.get()
            if part is None:
                return
            part.run()
            part = None

    def start(self, part):
        self.number += 1
        self.inbox.put((self.number, part))
        self.counters[0] = self.number

    def wait(self, part):
        watch(self.counters, 8, self.number - 1, let_go=False)
        if not part.ended:
            part.end.acquire()

    def stop(self):
        self.inbox.put((0, None))
        self.counters[0] = -1


class _Pool:
    """The workers, made when they are first needed."""

    def __init__(self, threads):
        self.threads, self.workers, self.in_use = threads, [], threading.Lock()

    def split(self, function, arguments, rows):
        if self.threads == 1 or rows < 2 or not self.in_use.acquire(blocking=False):
            function(*arguments, 0, rows)
            return
        try:
            if len(self.workers) < self.threads - 1:
                self._hire()
            self._split(function, arguments, rows)
        finally:
            self.in_use.release()

    def _hire(self):
        """Start the workers; where no more threads can be had, those that there are must do."""
        try:
            while len(self.workers) < self.threads - 1:
                self.workers.append(_Worker())
        except (RuntimeError, MemoryError):  # a limit of the system (ulimit -u), or the interpreter is about to end
            self.threads = len(self.workers) + 1

    def _split(self, function, arguments, rows):
        count = min(self.threads, rows)
        cuts = [rows * i // count for i in range(count + 1)]
        parts = [_Part(function, (*arguments, lo, hi)) for lo, hi in zip(cuts, cuts[1:-1])]
        pairs = list(zip(self.workers, parts))
        all_started = False
        try:
            for worker, part in pairs:
                worker.start(part)
            all_started = True
            function(*arguments, cuts[-2], cuts[-1])
        finally:  # whatever happened here, nobody may write to the caller's arrays after it returned
            errors = _wait_for(pairs, all_started)
        if errors:
            raise errors[0]

    def close(self):
        for worker in self.workers:
            worker.stop()
        self.workers = []


def _wait_for(pairs, all_started):
    """The errors of all parts, after their end. An interrupt (Ctrl-C) is one of them: it does not end the waiting.

    If not all were started, because an interrupt came, what no worker has begun is claimed back and left undone.
    """
    errors, waiting = [], list(pairs)
    while waiting:
        worker, part = waiting[0]
        try:
            if all_started or not part.claim.acquire(blocking=False):
                while not part.ended:  # so asked, an interrupt may come before or after the end
                    worker.wait(part)
            del waiting[0]
        except KeyboardInterrupt as interrupt:
            errors.append(interrupt)
    return errors + [part.error for _, part in pairs if part.error is not None]


def _available():
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_pool, _making = _Pool(_available()), threading.Lock()


def split(function, arguments, rows):
    """Call ``function(*arguments, lo, hi)`` for ranges that cover ``[0, rows)``, on all threads at once.

    The function releases the interpreter lock (a `kernel`) and writes to its own rows only. What it raises is raised here,
    after all ranges have ended.
    """
    _pool.split(function, arguments, rows)


def share(function, arguments, rows, work, worth):
    """As `split` where there is so much ``work`` that a second thread is ``worth`` waking; else here, alone.

    The smallest kernels spell this out: a call of this function would take a tenth of their time.
    """
    if work < worth:
        function(*arguments, 0, rows)
    else:
        _pool.split(function, arguments, rows)


def get_threads():
    """Threads that a kernel may use."""
    return _pool.threads


def set_threads(count):
    """Use this many threads from now on, in the kernels and in the BLAS that NumPy multiplies matrices with.

    Parameters
    ----------
    count : int
        At least 1. At first, kernels use as many as the process has processors, and BLAS what it chose itself.

    Raises
    ------
    TypeError, ValueError
        If it is not a whole number of at least 1.

    Notes
    -----
    Nothing is written to the environment, so children and other libraries are left alone; but a BLAS is shared by everything
    in the process that multiplies with NumPy. The number changes the speed, and products by float rounding.
    """
    from minidistill import checks  # here, since nothing else in this folder needs the package around it

    checks.whole("set_threads", "count", count, "[1, inf)", "how many threads compute", _available())
    _make_pool(int(count))
    ThreadpoolController().select(user_api="blas").limit(limits=int(count))


@contextmanager
def threads(count):
    """Use this many threads inside this block, as by `set_threads`, and as many as before after it."""
    before = _pool.threads
    with threadpool_limits(count, user_api="blas"):
        _make_pool(count)
        try:
            yield
        finally:
            _make_pool(before)


def _make_pool(count):
    global _pool
    with _making:
        old = _pool
        if old.threads == count:
            return
        with old.in_use:  # wait for a caller who is at work
            _pool = _Pool(count)
            old.threads = 1  # whoever still holds the old one runs alone
            old.close()


def _after_fork():
    """A forked child has none of its parent's threads, and maybe a lock that was held: it begins anew."""
    global _pool, _making
    _pool, _making = _Pool(_pool.threads), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
