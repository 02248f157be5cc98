"""Observers: what they see of the activations during calibration decides the scales. Streaming, a batch at a time.

An observer answers one question: which range of floats shall 0..255 cover? A wide one rounds everything coarsely, a
narrow one clips the outliers; here are five opinions on where to stop. Read ``affine.py`` before this file.

Given up: `Percentile`, `MSE` and `Entropy` keep a histogram of at most 8193 bins of equal width, never the values. One
far outlier therefore makes it coarse for everything else, and since `MSE` and `Entropy` try no range narrower than 256
bins, they never go below 1/32 of the range seen.
"""

from __future__ import annotations

import numpy as np

from .. import checks
from ..kernels import quantize
from .affine import ACTIVATION_MAX, LARGEST, activation_scale, least

BINS = 8192  # 4096 to 8192 span the range seen: 16 to 32 for each of the 256 levels (Migacz 2017 has 16)
SMALLEST_STEP = float(np.finfo(np.float32).smallest_subnormal)  # no range of float32 but 0..0 is narrower


class Observer:
    """What all have in common: batches are checked and taken in, and the range becomes a scale and a zero point.

    Parameters
    ----------
    name : str
        What is observed, for error messages.
    """

    def __init__(self, name="a tensor"):
        self.name, self.low, self.high = name, np.inf, -np.inf

    def observe(self, x):
        """Take in one array, of any shape. An empty one is passed over.

        Raises
        ------
        ValueError
            If it holds NaN, or a number that is infinite in float32; what was seen before stays.
        """
        if x.size == 0:
            return
        low, high = float(x.min()), float(x.max())  # NaN wins in both
        if not (low >= -LARGEST and high <= LARGEST):
            raise ValueError(
                f"calibration met NaN or infinity in {self.name}.\nA range has finite ends.\n"
                "Check the weights, and calibrate with clean data."
            )
        self._take(x, low, high)

    def see(self, x):
        """The older name of `observe`."""
        self.observe(x)

    def range(self):
        """(low, high) that 0..255 shall cover; `scale` widens it to hold 0. Having seen nothing raises."""
        if self.low > self.high:
            raise ValueError(
                f"{self.name} was to be quantized, but calibration never reached it.\nA scale comes from data; there "
                "is no default.\nCalibrate with samples that pass through every layer, or remove the layer if the "
                "model never calls it."
            )
        return self._choose()

    def scale(self):
        """(scale, zero_point), a float32 and an int, for `range`."""
        return activation_scale(*self.range())

    def _take(self, x, low, high):
        """A batch that is not empty, and its ends."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def _choose(self):
        return self.low, self.high


class MinMax(Observer):
    """The smallest and the largest value seen: nothing is clipped, and a single outlier stretches the range."""


class MovingAverage(Observer):
    """An exponential moving average of each batch's minimum and maximum (Jacob et al. 2018, section 3.1).

    An outlier in one batch fades. The result depends on how the data are cut into batches, and on their order: that is
    the method. It was made for training, where ranges move; the paper's momentum is "close to 1" since it averages over
    thousands of steps, while calibration sees some tens of batches.

    Parameters
    ----------
    name : str
    momentum : float in [0, 1)
        The weight of the past: `low = momentum * low + (1 - momentum) * batch.min()`. The first batch counts whole.
    """

    def __init__(self, name="a tensor", momentum=0.9):
        super().__init__(name)
        self.momentum = checks.number("MovingAverage", "momentum", momentum, "[0, 1)", "the weight of the past", 0.9)

    def _take(self, x, low, high):
        self.low, self.high = moving_average(self.low, self.high, low, high, self.momentum)


def moving_average(low, high, batch_low, batch_high, momentum):
    """(low, high) after one more batch; the first one, where low is still above high, counts whole."""
    if low > high:
        return batch_low, batch_high
    return momentum * low + (1 - momentum) * batch_low, momentum * high + (1 - momentum) * batch_high


class HistogramObserver(Observer):
    """A histogram that grows with the range it has seen, for observers that weigh how often a value occurs.

    Bin k counts the values in [k * w, (k + 1) * w). The width w is a power of two, the smallest that cuts the range
    seen (with 0) into fewer than 8192 widths. When the range outgrows that, w doubles as often as needed and neighbours
    merge: since every edge of the wide grid is an edge of the narrow one too, the counts are those that the wide grid
    would have had from the start. They are exact, and the same for every cut into batches. Exact zeros (relu, padding)
    are counted apart, because every range represents them without error.
    """

    def __init__(self, name="a tensor"):
        super().__init__(name)
        self.zeros = 0
        self.exponent = int(np.frexp(SMALLEST_STEP / BINS)[1])  # the width is 2**exponent
        self.first = 0  # the k of counts[0]
        self.counts = np.zeros(1, np.int64)

    def _take(self, x, low, high):
        x = x.astype(np.float32, copy=False).ravel()  # what the quantizer will meet
        super()._take(x, float(np.float32(low)), float(np.float32(high)))
        self._grow()
        zeros = x.size - np.count_nonzero(x)
        # In float64 the division by a power of two is exact, also where it would underflow in float32.
        bins = np.multiply(x, 2.0**-self.exponent, dtype=np.float64)
        bins = np.floor(bins, out=bins).astype(np.int64) - self.first
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.counts[-self.first] -= zeros
        self.zeros += zeros

    def _grow(self):
        """Make room for the range seen."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        exponent = int(np.frexp(max(high - low, SMALLEST_STEP) / BINS)[1])
        first, last = (int(np.floor(end * 2.0**-exponent)) for end in (low, high))
        if (exponent, first, last - first + 1) == (self.exponent, self.first, len(self.counts)):
            return
        # The shift rounds down, as the floor that made the indices did.
        merged = (self.first + np.arange(len(self.counts))) >> (exponent - self.exponent)
        counts = np.zeros(last - first + 1, np.int64)
        np.add.at(counts, merged - first, self.counts)
        self.exponent, self.first, self.counts = exponent, first, counts

    def bins(self):
        """The bins that hold something, in order: left edges, right edges, counts, each an ndarray of shape (B,).

        The zeros are a bin without width. Edges are cut at the smallest and the largest value seen.
        """
        edges = np.ldexp(1.0, self.exponent) * np.arange(self.first, self.first + len(self.counts) + 1)
        left, right = (np.insert(e, -self.first, 0.0) for e in (edges[:-1], edges[1:]))
        counts = np.insert(self.counts, -self.first, self.zeros)
        used = counts > 0
        return (*(np.clip(e[used], self.low, self.high) for e in (left, right)), counts[used])


class Percentile(HistogramObserver):
    """Clip the rarest values at both ends (Wu et al. 2020, "Integer Quantization for Deep Learning Inference").

    The range goes from the (100 - p)th to the pth percentile of all values, each rounded outwards to its bin's edge.
    If both are 0 while something else was seen (a very sparse tensor), nothing is clipped.

    Parameters
    ----------
    name : str
    percentile : float in (50, 100]
        p. 100 is `MinMax`.
    """

    def __init__(self, name="a tensor", percentile=99.99):
        super().__init__(name)
        meaning = "the upper end of the range in per cent (the lower lies as far from 0 per cent)"
        self.percentile = checks.number("Percentile", "percentile", percentile, "(50, 100]", meaning, 99.99)

    def _choose(self):
        left, right, counts = self.bins()
        upto = np.cumsum(counts)

        def quantile(edges, percent):
            # Between two order statistics as np.percentile does, since they may be far apart.
            rank = percent / 100 * (upto[-1] - 1)
            below = int(rank)
            a, b = edges[np.searchsorted(upto, [below, min(below + 1, upto[-1] - 1)], side="right")]
            return float(a + (b - a) * (rank - below))

        low, high = quantile(left, 100 - self.percentile), quantile(right, self.percentile)
        return (low, high) if low < 0 or high > 0 else (self.low, self.high)


class LeastCost(HistogramObserver):
    """The range of least `cost`, a function of a range and of the histogram; of equal costs (`least`), the widest.

    First both ends are cut at the same distance from 0; then both, the lower and the upper are moved in turn, on ever
    finer grids around the best. Given up: every pair of ends. The tests compare with those. Zeros do not count.
    """

    def _choose(self):
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        left, right, counts = self.bins()
        some = (left != 0) | (right != 0)
        centres, counts = ((left + right) / 2)[some], counts[some]
        tried, size = [(self.cost(low, high, centres, counts), low, high)], self.size(centres, counts)
        narrowest = (ACTIVATION_MAX + 1) * 2.0**self.exponent  # below, a step would be finer than a bin

        def best_with(ranges):
            tried.extend((self.cost(a, b, centres, counts), a, b) for a, b in ranges if b - a >= narrowest)
            tried.sort(key=lambda one: one[1] - one[2])  # the widest first
            return tried[least([cost for cost, _, _ in tried], size)][1:]

        reach = max(-low, high)
        a, b = best_with([(max(low, -reach * t), min(high, reach * t)) for t in np.geomspace(1, 1 / 32, 48)])
        for most, steps in ((64, 96), (1.1, 20), (1.02, 20)):
            for i, j in ((1, 1), (1, 0), (0, 1)):
                factors = np.geomspace(most, 1 / most, steps)
                a, b = best_with([(max(low, a * t**i), min(high, b * t**j)) for t in factors])
        return float(a), float(b)


class MSE(LeastCost):
    """The range of least mean squared quantization error (Nagel et al. 2021, "A White Paper on Neural Network
    Quantization", section 3.1)."""

    @staticmethod
    def cost(low, high, centres, counts):
        """The sum of squared errors when each bin's centre is quantized as the engine does it."""
        scale, zero_point = activation_scale(low, high)
        q = quantize(centres.astype(np.float32), scale, zero_point, 0, ACTIVATION_MAX)
        # In float64, since 255 steps may be more than float32 holds, and so may squares.
        return float(np.vdot(counts, ((q.astype(np.float64) - zero_point) * float(scale) - centres) ** 2))

    @staticmethod
    def size(centres, counts):
        """The cost of a range that holds nothing but 0."""
        return float(np.vdot(counts, centres**2))


class Entropy(LeastCost):
    """The range that loses the least information (Migacz 2017, "8-bit Inference with TensorRT").

    For each candidate range, P is the histogram within it, with what lies outside added to the outermost bins that hold
    something: clipping. Q is the histogram within it *without* what lies outside, merged to the levels of the uint8
    grid and spread evenly again over the bins of each level that hold something: rounding. The range with the smallest
    Kullback-Leibler divergence KL(P ‖ Q) wins. Clipping makes P differ from Q at the ends, rounding in between.

    Migacz cuts abs(x) at one threshold, for a symmetric int8 grid; here the grid is the affine one of
    `activation_scale`, with 0 in it, and both ends move. Given up: he tries every number of bins. Zeros are left out:
    no range rounds them, and in P they would only tell how sparse the tensor is. And a divergence knows nothing of
    distances: how *often* values are clipped counts, not how far. Compare with `MSE` before you trust it.
    """

    @staticmethod
    def cost(low, high, centres, counts):
        """KL(P ‖ Q) in nats; infinite if nothing lies within the range, or a single bin of several: that equals itself."""
        start, stop = np.searchsorted(centres, low), np.searchsorted(centres, high, side="right")
        if stop - start < (2 if len(centres) > 1 else 1):
            return np.inf
        scale, zero_point = activation_scale(low, high)
        level = quantize(centres[start:stop].astype(np.float32), scale, zero_point, 0, ACTIVATION_MAX)
        inside = counts[start:stop].astype(np.float64)
        q = (np.bincount(level, inside) / np.maximum(np.bincount(level), 1))[level]
        p = inside.copy()
        p[0] += counts[:start].sum()
        p[-1] += counts[stop:].sum()
        return float(np.vdot(p, np.log(p / q))) / p.sum() + np.log(q.sum() / p.sum())

    @staticmethod
    def size(centres, counts):
        """A nat."""
        return 1.0


OBSERVERS = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MSE,
    "entropy": Entropy,
}


def make_observer(kind, name="a tensor"):
    """An observer of `name`; ``kind`` is one of `OBSERVERS`, or makes one: ``partial(Percentile, percentile=99.9)``."""
    return make(kind, name, OBSERVERS, "observer", "percentile")


def make(kind, name, known, argument, example):
    """What ``kind`` makes for `name`: the class of this name in ``known``, or anything that is called with a name."""
    if callable(kind):
        return kind(name)
    advice = f'Write {argument}="{example}", or a class of your own, which is called with a name.'
    return known[checks.choice("quantization", argument, kind, known, advice)](name)
