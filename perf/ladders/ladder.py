"""What the ladders share: compare every rung with the first, time them against one another, print a table.

Read ``perf/harness.py`` before this file.
"""

from __future__ import annotations

import numpy as np

from minidistill.timing import compare, show
from perf.harness import keep, threads


def climb(name, title, rungs, inputs, work=None, unit="GFLOP/s", rtol=1e-4, atol=1e-5, threaded=2, more=None):
    """Check and time the rungs of one ladder on one input.

    Parameters
    ----------
    name : str
        Of the JSON under perf/results/.
    title : str
        Of the table: what is computed, and at what size.
    rungs : dict of str to callable
        Each is called with copies of the inputs and returns an array, or a tuple of arrays.
    inputs : tuple
    work : float, optional
        What one call does, in units of 1e9 per second: floating point operations or bytes.
    threaded : int
        Threads.
    more : dict of str to callable, optional
        Rungs above them that give something else, and were compared elsewhere.

    Returns
    -------
    str
        The table: time, gain over the first rung and over the one before.
    """
    check(rungs, inputs, rtol, atol)
    rungs = rungs | (more or {})
    with threads(threaded):
        times = compare({rung: _bound(function, inputs) for rung, function in rungs.items()}, seconds=0.05, settle=0.02)
    keep(f"ladder_{name}", [{"case": title, "seconds": {rung: t._asdict() for rung, t in times.items()}}])
    lines = [f"{title:<50}{'time':>18}{'over first':>12}{'over last':>11}" + (f"{unit:>10}" if work else "")]
    first = before = next(iter(times.values())).median
    for rung, t in times.items():
        speed = f"{work / t.median / 1e9:>10.1f}" if work else ""
        lines.append(f"{rung:<50}{show(t):>18}{first / t.median:>11.1f}x{before / t.median:>10.1f}x{speed}")
        before = t.median
    return "\n".join(lines)


def check(rungs, inputs, rtol=1e-4, atol=1e-5):
    """All rungs give what the first gives, or this raises and names the one that does not."""
    results = {rung: _bound(function, inputs)() for rung, function in rungs.items()}
    expected = next(iter(results.values()))
    for rung, result in results.items():
        for a, b in zip(_tuple(result), _tuple(expected)):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=rung)


def _bound(function, inputs):
    """The function on copies of its own: rungs that write in place do not disturb one another."""
    own = [a.copy() if isinstance(a, np.ndarray) else a for a in inputs]
    return lambda: function(*own)


def _tuple(result):
    return result if isinstance(result, tuple) else (result,)
