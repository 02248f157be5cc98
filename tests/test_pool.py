"""The pool of threads: every row once, errors to the caller, many callers at once, a fork, and no fight with BLAS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from kernel_checks import jit_only

import minidistill as md
from minidistill.kernels import pool, spin


@pytest.fixture(autouse=True)
def threads_as_before():
    before = md.get_threads()
    yield
    md.set_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 100])
def test_the_ranges_cover_every_row_once(threads, rows):
    md.set_threads(threads)
    ranges = []
    pool.split(lambda name, lo, hi: ranges.append((name, lo, hi)), ("x",), rows)
    assert sorted(row for _, lo, hi in ranges for row in range(lo, hi)) == list(range(rows))
    assert {name for name, _, _ in ranges} == {"x"} and len(ranges) <= threads


def test_ranges_run_on_threads_of_their_own():
    md.set_threads(3)
    meeting = threading.Barrier(3, timeout=10)  # passed only if three are there at once
    pool.split(lambda lo, hi: meeting.wait(), (), 3)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_any_range_is_raised_after_all_have_ended(failing):
    md.set_threads(3)
    ended = []

    def work(lo, hi):
        if lo == failing:
            raise KeyError(f"row {lo}")
        time.sleep(0.02)
        ended.append(lo)

    with pytest.raises(KeyError, match=f"row {failing}"):
        pool.split(work, (), 3)
    assert sorted(ended) == [row for row in range(3) if row != failing]
    rows = []
    pool.split(lambda lo, hi: rows.append((lo, hi)), (), 3)  # and the pool still works
    assert sorted(rows) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("looks", [0, 1, spin.LOOKS])
def test_watching_is_a_hint_and_nothing_depends_on_it(looks, monkeypatch):
    """Threads that find nothing go to sleep on their locks, whenever that is."""
    monkeypatch.setattr(spin, "LOOKS", looks)
    monkeypatch.setattr(spin, "LET_GO", looks)
    md.set_threads(1)
    md.set_threads(3)
    for pause in (0, 0.001, 0):
        rows = []
        for _ in range(50):
            pool.split(lambda rows, lo, hi: rows.append((lo, hi)), (rows,), 3)
        assert sorted(rows) == [(0, 1)] * 50 + [(1, 2)] * 50 + [(2, 3)] * 50
        time.sleep(pause)


@jit_only
def test_watching_ends_with_the_news_or_after_a_while():
    counters = np.zeros(1, np.int64)
    began = time.perf_counter()
    spin.watch(counters, 0, known=0)
    alone = time.perf_counter() - began
    threading.Timer(0.05, lambda: counters.__setitem__(0, 1)).start()
    before = time.process_time()
    while counters[0] == 0:
        spin.watch(counters, 0, known=0)
    began = time.perf_counter()
    spin.watch(counters, 0, known=0)  # news already: no more than the moment in which locks are given back
    assert time.process_time() - before > 0 and alone < 0.1 and time.perf_counter() - began < 0.05


@pytest.fixture
def interrupts():
    """Ctrl-C raises, as in a terminal: a job that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("looks", [0, 100_000_000])
def test_an_interrupt_while_waiting_is_raised_after_the_workers_have_ended(looks, monkeypatch):
    """Ctrl-C must not hand arrays back to the caller that a worker still writes to, nor leave the pool out of step.

    It may come while the caller sleeps on a lock, and while it still watches.
    """
    import _thread

    monkeypatch.setattr(spin, "LOOKS", looks)
    md.set_threads(2)
    written = []

    def work(lo, hi):
        if lo == 0:  # the worker's part: the caller is waiting for it by then
            time.sleep(0.05)
            _thread.interrupt_main()
            time.sleep(0.1)
            written.append(lo)

    with pytest.raises(KeyboardInterrupt):
        pool.split(work, (), 2)
    assert written == [0]
    rows = []
    for _ in range(20):
        pool.split(lambda lo, hi: rows.append((lo, hi)), (), 2)
    assert sorted(rows) == [(0, 1)] * 20 + [(1, 2)] * 20
    assert pool._pool.workers[0].inbox.empty()


@pytest.mark.parametrize("after", [True, False])
def test_an_interrupt_while_parts_are_handed_out_leaves_the_pool_in_step(after, monkeypatch):
    """Wherever Ctrl-C comes: before the second worker has its part, or just after it."""
    md.set_threads(3)
    start, calls, late = pool._Worker.start, [], []

    def interrupted(worker, part):
        calls.append(worker)
        if after or len(calls) < 2:
            start(worker, part)
        if len(calls) == 2:
            raise KeyboardInterrupt

    def work(lo, hi):
        time.sleep(0.05)
        late.append(lo)

    monkeypatch.setattr(pool._Worker, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.split(work, (), 3)
    ended = list(late)
    monkeypatch.setattr(pool._Worker, "start", start)
    for _ in range(20):
        rows = []
        pool.split(lambda rows, lo, hi: rows.append((lo, hi)), (rows,), 3)
        assert sorted(rows) == [(0, 1), (1, 2), (2, 3)]
    assert late == ended and 2 not in late  # nobody worked on after the error was raised


def test_a_busy_pool_and_a_nested_call_run_alone():
    md.set_threads(2)
    seen = []

    def inner(lo, hi):
        seen.append((lo, hi, threading.current_thread()))

    def outer(lo, hi):
        pool.split(inner, (), 10)

    pool.split(outer, (), 2)
    assert sorted((lo, hi) for lo, hi, _ in seen) == [(0, 10), (0, 10)]
    assert len({thread for _, _, thread in seen}) == 2  # each in the thread that asked


def test_many_python_threads_at_once():
    """Training in several threads of one process, sizes large enough for the pool: all get what one alone gets."""
    md.set_threads(2)
    a = np.random.default_rng(0).normal(size=(300, 500)).astype(np.float32)
    expected = md.kernels.products([(a, a.T), (a.T, a)])
    wrong = []

    def work():
        for _ in range(20):
            for mine, theirs in zip(md.kernels.products([(a, a.T), (a.T, a)]), expected):
                if not np.allclose(mine, theirs, rtol=1e-4, atol=1e-3):
                    wrong.append(mine)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not wrong and not any(worker.is_alive() for worker in workers)


def test_changing_the_number_while_another_thread_works():
    stop, rows = threading.Event(), []

    def work():
        while not stop.is_set():
            seen = []
            pool.split(lambda seen, lo, hi: seen.append(hi - lo), (seen,), 12)
            rows.append(sum(seen))

    worker = threading.Thread(target=work)
    worker.start()
    for count in [1, 4, 2, 3] * 10:
        md.set_threads(count)
    stop.set()
    worker.join(timeout=10)
    assert set(rows) == {12} and not worker.is_alive()


def test_workers_of_an_old_number_end():
    md.set_threads(4)
    pool.split(lambda lo, hi: None, (), 8)
    md.set_threads(1)
    for _ in range(100):
        if not [thread for thread in threading.enumerate() if thread.name == "minidistill"]:
            return
        time.sleep(0.02)
    pytest.fail("threads of the old pool are still there")


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True, None])
def test_a_number_of_threads_that_makes_no_sense_is_refused(count):
    before = md.get_threads()
    told = r"set_threads got count = .*\nIt is how many threads compute, .*in \[1, inf\)\."
    with pytest.raises((TypeError, ValueError), match=told):
        md.set_threads(count)
    assert md.get_threads() == before


def test_one_call_sets_blas_too_and_no_environment_variable():
    from threadpoolctl import threadpool_info

    environment = dict(os.environ)
    for count in (1, 2):
        md.set_threads(count)
        assert md.get_threads() == count
        assert {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"} == {count}
    assert dict(os.environ) == environment


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
@pytest.mark.parametrize("started", [0, 1])
def test_where_no_thread_can_be_started_the_others_do_the_work(monkeypatch, error, started):
    start, tries = threading.Thread.start, []

    def limited(thread):
        tries.append(thread)
        if len(tries) > started:
            raise error
        start(thread)

    md.set_threads(1)
    md.set_threads(3)
    monkeypatch.setattr(threading.Thread, "start", limited)
    for _ in range(3):
        rows = []
        pool.split(lambda rows, lo, hi: rows.append((lo, hi)), (rows,), 6)
        assert sorted(rows) == [(0, 6)] if not started else [(0, 3), (3, 6)]
    assert len(tries) == started + 1 and md.get_threads() == started + 1  # it does not try again at every call
    monkeypatch.undo()
    md.set_threads(3)  # asked to, it does
    rows = []
    pool.split(lambda lo, hi: rows.append((lo, hi)), (), 6)
    assert sorted(rows) == [(0, 2), (2, 4), (4, 6)]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NPROC counts threads on Linux")
def test_training_under_a_limit_of_threads():
    """As under ``ulimit -u``; root has no such limit, so the process becomes nobody."""
    code = """
import os, resource, sys
import numpy as np
import minidistill as md
a = np.arange(250_000, dtype=np.float32).reshape(500, 500) % 7
expected = a.astype(np.int64) @ a.astype(np.int64)
md.set_threads(2)
md.kernels.product(a[:10], a)  # BLAS has its threads by now
if os.getuid() == 0:
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
print((md.kernels.product(a, a) == expected).all(), md.get_threads())
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.split() == ["True", "1"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own():
    """In a process of its own: the parent's workers sleep, and the child must not wait for them."""
    code = """
import os, threading, warnings
warnings.simplefilter("ignore")
import numpy as np, minidistill as md
from minidistill.kernels import pool, spin
md.set_threads(2)
pool.split(lambda lo, hi: None, (), 2)
held = threading.Event()
def hold(lo, hi):
    if lo == 0: held.set(); release.wait(5)
release = threading.Event()
user = threading.Thread(target=pool.split, args=(hold, (), 2)); user.start(); held.wait()
child = os.fork()  # while the pool is in use
if child == 0:
    seen = []
    pool.split(lambda lo, hi: seen.append(threading.current_thread().name), (), 2)
    a = np.ones((600, 600), np.float32)
    good = (md.kernels.product(a, a) == 600).all()
    os._exit(0 if sorted(set(seen)) == ["MainThread", "minidistill"] and good else 1)
release.set(); user.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0", done.stderr


def test_a_product_and_a_kernel_in_turn_do_not_fight_for_the_cores():
    """The trap that the pool is there for: with OpenMP's default waiting this pair took 7 400 µs, 184 without the fight.

    A bound that a fight exceeds tenfold, on the fastest of many rounds, so that a busy machine does not matter.
    """
    a = np.random.default_rng(0).normal(size=(128, 512)).astype(np.float32)
    b = np.random.default_rng(1).normal(size=(512, 512)).astype(np.float32)
    params = [np.zeros(300_000, np.float32) for _ in range(4)]
    md.set_threads(2)

    def pair():
        md.kernels.product(a, b)
        md.kernels.adam_step(*params, None, None, 1, 0.1, 0.9, 0.999, 1e-8, 0.0, False)

    def fastest(function):
        times = []
        for _ in range(60):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return sorted(times)[10]

    pair()
    together = fastest(pair)
    md.set_threads(1)
    pair()
    assert together < 2 * fastest(
        pair
    )  # two threads may be no faster where cores are busy, but never many times slower
