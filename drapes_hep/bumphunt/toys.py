r"""The global p-value: the hunt repeated on pseudo-experiments under background alone. Masses in GeV.

Repeated are counts, fits and the choice of the best point, with each window's selection held fixed: neither model nor
classifier is trained anew, so the fluctuations that a new training would add are not in the toys.

A toy has, in every mass bin, the inclusive count and, for each window and tight disjoint score bin, the count of its
selected events. Marginally these are Poisson; jointly they share events, since the windows' classifiers select partly
the same ones and every selected event is also inclusive. A Gaussian copula joins them: normal variables with the
correlation :math:`\mu_{A \cap B} / \sqrt{\mu_A \mu_B}` that Poisson counts of overlapping sets have, measured on the
data (:func:`drapes_hep.bumphunt.selection.set_overlaps`), are mapped through :math:`\Phi` and each Poisson's inverse
distribution function. The copula reproduces the correlation where means are large and somewhat weakens it below one
event; the weaker correlation makes the trials factor larger, that is p_global larger.

The spurious signal (:mod:`drapes_hep.bumphunt.background`) is that of the data in every toy. It is in the errors, and
in each toy the expectations miss the background by a standard normal number of spurious signals, to first order: by
the factor exp(number times S / expectation), which is never negative. The number is the same in all windows and at all
cuts. Errors alone would not do: with one window they shrink the excesses of data and toys alike, and
p_global would be what it is without them.

Means: the inclusive fit of the full spectrum, no window left out, times each score bin's efficiency as fitted outside
its window. Where that fit is poor, because of a strong resonance perhaps, the best of the fits with one window left
out takes its place; where all are poor, no toys are drawn. Every toy is then analysed as the data are: inclusive fit
with the window left out and its goodness, efficiency fit with the degree chosen anew, the same rule on few events,
p_local. The statistic is the smallest p_local over windows and working points, and

.. math:: p_{global} = (k + 1) / (n + 1)

with k of n toys at least as extreme as the data (Davison and Hinkley, 1997, ch. 4): never zero, and never smaller for
data that are less extreme. With k = 0 it is 1/(n + 1) however extreme the data are, an upper bound. What lies beyond is
extrapolated from the distribution of the toys' smallest p_local (:mod:`drapes_hep.bumphunt.extrapolation`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from drapes_hep.bumphunt.background import SpuriousSignal, with_spurious
from drapes_hep.bumphunt.exceedance import Exceedance, exceedance
from drapes_hep.bumphunt.expectation import (
    EfficiencyGuess,
    InclusiveSpectra,
    WindowBins,
    efficiency_guess,
    inclusive_expectations,
    quotable,
    selected_expectations,
    window_bins,
)
from drapes_hep.bumphunt.extrapolation import Extrapolation, extrapolate
from drapes_hep.bumphunt.quantiles import PoissonQuantiles, poisson_quantiles
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.significance import local_log_p, local_significance
from drapes_hep.bumphunt.working_points import WindowHunt
from drapes_hep.errors import FitError, counted
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import GOOD_FIT_P_VALUE, SpectrumFit, bin_model, fit_spectrum
from drapes_hep.spectrum.poisson import Expansion, deviance_p_value, expand_poisson, fit_poisson, well_conditioned
from drapes_hep.spectrum.shapes import SpectrumShape

__all__ = [
    "GlobalSignificance",
    "ToyModel",
    "background_model",
    "best_working_point",
    "draw_toys",
    "global_significance",
    "toy_local_p",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_MOST_MISSED = 20.0
"""Bound on the logarithm of the factor by which an expectation misses the background."""

CHUNK = 256
"""Toys held at once: with 165 bins and 25 counts a bin, 8 MB an array."""


@dataclass(frozen=True)
class ToyModel:
    """Background-only model of all counts of a search.

    Attributes
    ----------
    edges : array, shape (bins + 1,)
        GeV.
    windows : tuple of Window
    efficiencies : tuple of float
        Working points from loose to tight; the first is 1.
    inclusive : array, shape (bins,)
        Mean of the inclusive count.
    selected : array, shape (windows, working points - 1, bins)
        Means of the tight disjoint score bins.
    factor : array, shape (counts, counts)
        Turns independent normals into correlated ones; counts as in ``set_overlaps``.
    gradient : array, shape (bins, k)
        Of ln inclusive in the spectrum's parameters.
    min_events : int
        The search's rule on few events.
    shares : tuple of float
        Part of the events outside each window that its tight counts are taken from.
    spurious : tuple of float
        Events of each window's spurious signal, with their sign, from the data.
    """

    edges: FloatArray
    windows: tuple[Window, ...]
    efficiencies: tuple[float, ...]
    inclusive: FloatArray
    selected: FloatArray
    factor: FloatArray
    gradient: FloatArray
    min_events: int
    shares: tuple[float, ...]
    spurious: tuple[float, ...]

    def prepare(self) -> None:
        """Compute what all toys share, before threads do."""
        _ = self.quantiles, self.plans

    @cached_property
    def quantiles(self) -> PoissonQuantiles:
        """Of all means: the inclusive ones, then those of each window's working points."""
        return poisson_quantiles(np.concatenate([self.inclusive[None], self.selected.reshape(-1, len(self.inclusive))]))

    @cached_property
    def plans(self) -> tuple[_WindowPlan, ...]:
        """What the analysis of each window has in common for all toys."""
        return tuple(_plan(self, w) for w in range(len(self.windows)))


@dataclass(frozen=True)
class GlobalSignificance:
    """The significance of a whole search.

    Attributes
    ----------
    p_global : float
        (exceeding + 1) / (toys + 1).
    p_global_interval : tuple of two floats
        Clopper-Pearson interval of exceeding / toys, at ``level``.
    z_global : float
        One-sided standard deviations of ``p_global``.
    bound : bool
        No toy was as extreme: ``p_global`` is an upper bound that the number of toys sets, ``z_global`` a lower one.
    toys, exceeding : int
    level : float
        Confidence level of the interval.
    p_smallest : float
        The data's smallest p_local.
    best_window : Window
        Where it is.
    best_efficiency : float
        At which working point.
    toy_log_p : array, shape (toys,)
        ln of each toy's smallest p_local, for the figure; 0 where a toy had nothing to quote.
    extrapolated : Extrapolation or None
        What the distribution of ``toy_log_p`` says of the data's; None where no toy has anything to quote.
    """

    p_global: float
    p_global_interval: tuple[float, float]
    z_global: float
    bound: bool
    toys: int
    exceeding: int
    level: float
    p_smallest: float
    best_window: Window
    best_efficiency: float
    toy_log_p: FloatArray
    extrapolated: Extrapolation | None

    @property
    def of_toys(self) -> Exceedance:
        """The part of the pseudo-experiments that are as extreme."""
        return Exceedance(
            exceeding=self.exceeding,
            toys=self.toys,
            p=self.p_global,
            interval=self.p_global_interval,
            z=self.z_global,
            bound=self.bound,
        )


def best_working_point(hunts: Sequence[WindowHunt]) -> tuple[Window, float, float] | None:
    """Find the smallest p_local of a search.

    Parameters
    ----------
    hunts : sequence of WindowHunt

    Returns
    -------
    tuple of Window, background efficiency, ln p_local; or None if nothing has a p_local
    """
    best: tuple[Window, float, float] | None = None
    for hunt in hunts:
        for point in hunt.working_points:
            if point.p_local is None:
                continue
            # from the counts, not from p_local, which cannot go below the smallest double
            log_p = float(local_significance(point.observed, point.expected, point.expected_error).log_p)  # type: ignore[arg-type]
            if best is None or log_p < best[2]:
                best = hunt.sr, point.background_efficiency, log_p
    return best


def background_model(
    windows: Sequence[Window],
    counts: Sequence[SelectedCounts],
    overlaps: npt.ArrayLike,
    *,
    shape: str | SpectrumShape = "dijet4",
    sqrt_s: float = 13_000.0,
    min_events: int = 10,
    spurious: Sequence[SpuriousSignal] = (),
) -> ToyModel:
    """Make the background-only model of a search from its data.

    Parameters
    ----------
    windows : sequence of Window
    counts : sequence of SelectedCounts
        One a window, same bins and working points, nothing hidden.
    overlaps : array_like, shape (1 + windows * (working points - 1),) * 2
        From :func:`drapes_hep.bumphunt.selection.set_overlaps`.
    shape, sqrt_s, min_events
        As the search has them.
    spurious : sequence of SpuriousSignal
        One a window, as the search has them; none if it does without.

    Returns
    -------
    ToyModel

    Raises
    ------
    FitError
        If the counts disagree in bins or working points, hide bins (a blinded search has no p-value), or the shape
        describes the spectrum neither whole nor outside any window.
    """
    if len(windows) == 0 or len(windows) != len(counts):
        raise FitError(
            f"{counted(len(windows), 'window')} and {counted(len(counts), 'selection')} do not belong together"
        )
    if spurious and [signal.sr for signal in spurious] != list(windows):
        raise FitError("the spurious signals are not those of the windows")
    first = counts[0]
    for other in counts:
        if other.efficiencies != first.efficiencies or not np.array_equal(other.edges, first.edges):
            raise FitError("the windows' selections differ in bins or working points")
        if other.hidden.any():
            raise FitError("a blinded search has no p-value: counts inside the windows are hidden")
    edges, tight = first.edges, len(first.efficiencies) - 1
    fit = _background_fit(first.nested[0], edges, windows, shape, sqrt_s)
    _, gradient = bin_model(shape, sqrt_s, edges, fit.parameters)
    spectra = InclusiveSpectra(fit.expected[None], gradient, fit.covariance[None])
    selected = np.zeros((len(windows), tight, len(edges) - 1))
    for w, (window, count) in enumerate(zip(windows, counts, strict=True)):
        bins = window_bins(edges, window)
        for b in range(tight):
            # one event is enough for a mean here: a set that the search will not quote still fluctuates upwards
            part = selected_expectations(count.counts[b + 1][None], spectra, bins, min_events=1, share=count.share)
            if part.degree[0] >= 0:
                selected[w, b] = part.spectrum[0] * np.where(bins.inside, 1.0, count.share)
    gram = np.asarray(overlaps, dtype=np.float64)
    size = 1 + len(windows) * tight
    if gram.shape != (size, size):
        raise FitError(f"overlaps of shape {gram.shape} do not fit {size} sets of events")
    value, vector = np.linalg.eigh(gram)
    if value[0] < -1e-6 * size:
        raise FitError("the overlaps of the event sets are not positive semi-definite")
    factor = vector * np.sqrt(np.maximum(value, 0.0))
    factor /= np.linalg.norm(factor, axis=1, keepdims=True)
    misses = tuple(signal.events or 0.0 for signal in spurious) or (0.0,) * len(windows)
    return ToyModel(
        edges, tuple(windows), first.efficiencies, fit.expected, selected, factor, gradient, int(min_events),
        tuple(count.share for count in counts), misses,
    )  # fmt: skip


def _background_fit(
    counts: FloatArray, edges: FloatArray, windows: Sequence[Window], shape: str | SpectrumShape, sqrt_s: float
) -> SpectrumFit:
    """Fit the spectrum that the pseudo-experiments have: the whole one, or without the window that spoils the fit."""
    fit = fit_spectrum(counts, edges, None, shape, sqrt_s)
    if not fit.good:
        # a strong resonance must not take away the significance that it has
        fits = [fit_spectrum(counts, edges, (window.lo, window.hi), shape, sqrt_s) for window in windows]
        fit = max(fits, key=lambda outside: outside.p_value if outside.good else -1.0)
    if not fit.good:
        raise FitError(
            "the mass shape describes neither the full spectrum nor that outside any window (p-value of the fit below"
            f" {GOOD_FIT_P_VALUE:g}): no pseudo-experiments can be made from it"
        )
    return fit


def draw_toys(
    model: ToyModel, toys: int, rng: np.random.Generator, chunk: int = CHUNK
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Draw pseudo-experiments, a chunk at a time; they are the same whatever the chunk.

    Parameters
    ----------
    model : ToyModel
    toys : int
    rng : Generator
    chunk : int
        Toys held at once.

    Yields
    ------
    inclusive : array, shape (n, bins)
    selected : array, shape (windows, working points - 1, n, bins)
        Disjoint score bins.
    """
    for z in _normals(model, toys, rng, chunk):
        yield _counts(model, z)


def _normals(model: ToyModel, toys: int, rng: np.random.Generator, chunk: int) -> Iterator[FloatArray]:
    """Draw independent normals, shape (n, bins, sets): toy by toy in the generator's stream, whatever the chunk."""
    bins = len(model.inclusive)
    for start in range(0, toys, chunk):
        yield rng.standard_normal((min(chunk, toys - start), bins, len(model.factor)))


def _counts(model: ToyModel, z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Turn independent normals into the counts of toys."""
    n, bins, sets = z.shape
    correlated = (model.factor @ z.reshape(n * bins, sets).T).reshape(sets, n, bins)
    counts = model.quantiles.counts(correlated)
    return counts[0], counts[1:].reshape(*model.selected.shape[:2], n, bins)


@dataclass(frozen=True)
class _WindowPlan:
    """What the analysis of a window has in common for all toys.

    Attributes
    ----------
    bins : WindowBins
    gradient : array, shape (bins, k)
        The model's, in the basis in which the expected information is the identity.
    fit : Expansion
        Of the inclusive fit.
    guess : EfficiencyGuess or None
        Of the tight working points; None without any.
    """

    bins: WindowBins
    gradient: FloatArray
    fit: Expansion
    guess: EfficiencyGuess | None


def _plan(model: ToyModel, w: int) -> _WindowPlan:
    bins = window_bins(model.edges, model.windows[w])
    outside, mu = bins.outside, model.inclusive
    gradient = well_conditioned(model.gradient, mu, outside)
    k = gradient.shape[1]
    expansion = expand_poisson(gradient[outside], mu[None, outside], np.zeros((1, k)), np.eye(k)[None])
    nested = model.selected[w, ::-1].cumsum(axis=0)[::-1]
    guess = efficiency_guess(nested, mu, bins, share=model.shares[w]) if len(nested) else None
    return _WindowPlan(bins, gradient, expansion, guess)


def toy_local_p(
    model: ToyModel, inclusive: FloatArray, selected: FloatArray, variation: FloatArray | None = None
) -> FloatArray:
    """Analyse pseudo-experiments as the data are.

    Parameters
    ----------
    model : ToyModel
    inclusive, selected : arrays
        From :func:`draw_toys`.
    variation : array, shape (n,), optional
        By how many spurious signals the expectations of each toy miss its background; none by default.

    Returns
    -------
    array, shape (windows, working points, n)
        ln p_local; NaN where the search would quote nothing.
    """
    off = np.zeros(len(inclusive)) if variation is None else variation
    parts = [_of_window(model, w, inclusive, selected[w], off) for w in range(len(model.windows))]
    return local_log_p(*(np.stack(part) for part in zip(*parts, strict=True)))


def _of_window(
    model: ToyModel, w: int, counts: FloatArray, disjoint: FloatArray, variation: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, BoolArray]:
    """Return counts, expectations, errors and whether they are quoted in one window, shape (working points, n)."""
    plan, spurious = model.plans[w], model.spurious[w]
    bins, gradient, outside = plan.bins, plan.gradient, plan.bins.outside
    start = plan.fit.start(((counts - model.inclusive) @ (gradient * outside[:, None]))[None])[0]
    fit = fit_poisson(counts, gradient, np.log(np.maximum(model.inclusive, 1e-300)), fitted=outside, start=start)
    p_fit = deviance_p_value(fit.deviance, model.inclusive[outside], gradient.shape[1])
    good = fit.converged & (p_fit >= GOOD_FIT_P_VALUE) & (counts @ outside.astype(np.float64) >= model.min_events)
    spectra = InclusiveSpectra(fit.expected, gradient, fit.covariance)
    inclusive, inclusive_error = inclusive_expectations(spectra, bins)
    nested = np.concatenate([counts[None], disjoint])
    for b in range(len(disjoint) - 1, 0, -1):
        nested[b] += nested[b + 1]
    expected, error = np.empty((2, *nested.shape[:2]))
    expected[0], error[0] = inclusive, inclusive_error
    if plan.guess is not None:
        # all working points at once, one after another
        passed, starts = nested[1:], plan.guess.start(nested[1:], fit.expected)
        part = selected_expectations(
            passed.reshape(-1, passed.shape[2]), spectra, bins, min_events=model.min_events, share=model.shares[w],
            start=starts.reshape(-1, starts.shape[2]),
        )  # fmt: skip
        expected[1:], error[1:] = part.expected.reshape(passed.shape[:2]), part.error.reshape(passed.shape[:2])
    # a factor, and one that is never negative: at a cut the spurious signal has the efficiency of the background. A toy
    # that expects next to nothing may have any factor; bounded, the expectation stays a number
    missed = np.exp(np.clip(variation * spurious / np.maximum(inclusive, 1e-300), -_MOST_MISSED, _MOST_MISSED))
    total = with_spurious(error, expected, inclusive, spurious)
    observed = nested @ bins.inside.astype(np.float64)
    return observed, missed * expected, total, good & quotable(expected, error)


def _analysed(
    model: ToyModel, variation: FloatArray, rng: np.random.Generator, chunk: int, threads: int
) -> Iterator[tuple[slice, FloatArray]]:
    """Draw and analyse a toy for each variation, in chunks side by side; yields which toys, and their ln p_local."""
    toys = len(variation)
    waiting = enumerate(_normals(model, toys, rng, chunk))
    lock = threading.Lock()

    def analyse(_: int) -> tuple[slice, FloatArray]:
        with lock:  # the generator's numbers in the order of the toys, whoever analyses them
            i, z = next(waiting)
        rows = slice(i * chunk, min(toys, (i + 1) * chunk))
        return rows, toy_local_p(model, *_counts(model, z), variation[rows])

    chunks = range(-(-toys // chunk))
    model.prepare()
    # a thread inside a product of small matrices waits longer than it works
    with threadpool_limits(limits=1, user_api="blas"):
        if threads <= 1:
            yield from map(analyse, chunks)
            return
        pool = ThreadPoolExecutor(min(threads, len(chunks)))
        try:
            for future in as_completed([pool.submit(analyse, i) for i in chunks]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def global_significance(
    hunts: Sequence[WindowHunt],
    model: ToyModel,
    toys: int,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    chunk: int = CHUNK,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> GlobalSignificance | None:
    """Return how often background alone gives a smallest p_local like the data's.

    Parameters
    ----------
    hunts : sequence of WindowHunt
        The search on the data.
    model : ToyModel
        From :func:`background_model`.
    toys : int
        Pseudo-experiments, at least one.
    rng : Generator
    level : float
        Confidence level of the interval of p_global.
    chunk : int
        Toys that a thread holds at once; does not change the result.
    threads : int
        Chunks analysed side by side; does not change the result.
    progress : callable, optional
        Called with (toys done, toys).

    Returns
    -------
    GlobalSignificance or None
        None where the data have no p_local at all (blind, poor fits, too few events), or no toy is asked for.
    """
    best = best_working_point(hunts)
    if best is None or toys < 1:
        return None
    window, efficiency, observed = best
    # a stream of its own: the counts are the same with and without
    variation = rng.spawn(1)[0].standard_normal(toys) if any(model.spurious) else np.zeros(toys)
    smallest, done = np.empty(toys), 0
    for rows, log_p in _analysed(model, variation, rng, chunk, threads):
        smallest[rows] = np.where(np.isnan(log_p), 0.0, log_p).min(axis=(0, 1))
        done += rows.stop - rows.start
        if progress is not None:
            progress(done, toys)
    of_toys = exceedance(smallest, observed, level)
    return GlobalSignificance(
        p_global=of_toys.p, p_global_interval=of_toys.interval, z_global=of_toys.z, bound=of_toys.bound, toys=toys,
        exceeding=of_toys.exceeding, level=level, p_smallest=float(max(np.exp(observed), np.finfo(np.float64).tiny)),
        best_window=window, best_efficiency=efficiency, toy_log_p=smallest,
        extrapolated=extrapolate(smallest, observed),
    )  # fmt: skip
