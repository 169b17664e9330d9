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
in each toy the expectations miss the background by a standard normal number of spurious signals, the same in all
windows and at all cuts. Errors alone would not do: with one window they shrink the excesses of data and toys alike, and
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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from drapes_hep.bumphunt.background import SpuriousSignal, with_spurious
from drapes_hep.bumphunt.efficiency import (
    InclusiveSpectra,
    inclusive_expectations,
    quotable,
    selected_expectations,
    window_bins,
)
from drapes_hep.bumphunt.expectation import WindowHunt
from drapes_hep.bumphunt.extrapolation import Extrapolation, extrapolate
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.errors import FitError, counted
from drapes_hep.regions import Window
from drapes_hep.spectrum.fit import GOOD_FIT_P_VALUE, SpectrumFit, bin_model, fit_spectrum
from drapes_hep.spectrum.poisson import deviance_p_value, fit_poisson
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

CHUNK = 500
"""Toys held at once: with 165 bins and 22 counts a bin, 15 MB an array."""


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


@dataclass(frozen=True)
class _Table:
    """A Poisson distribution function from its first to its last count that can matter."""

    first: int
    cdf: FloatArray


def _tables(means: FloatArray) -> list[_Table]:
    tables = []
    for mu in means:
        low = max(0.0, np.floor(mu - 9.0 * np.sqrt(mu) - 2.0))
        k = np.arange(low, np.ceil(mu + 10.0 * np.sqrt(mu) + 12.0))
        tables.append(_Table(int(low), np.asarray(special.pdtr(k, mu))))
    return tables


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
    means = np.concatenate([model.inclusive[None], model.selected.reshape(-1, len(model.inclusive))])
    sets, bins = means.shape
    tables = _tables(means.ravel())
    for start in range(0, toys, chunk):
        n = min(chunk, toys - start)
        # toy by toy in the generator's stream, so that the chunk's size does not matter
        z = rng.standard_normal((n, bins * sets)).reshape(n * bins, sets)
        u = special.ndtr((z @ model.factor.T).reshape(n, bins, sets).transpose(2, 1, 0).reshape(sets * bins, n))
        drawn = np.empty((sets * bins, n))
        for i, table in enumerate(tables):  # over bins, not toys
            drawn[i] = table.first + np.searchsorted(table.cdf, u[i])
        out = np.ascontiguousarray(drawn.reshape(sets, bins, n).transpose(0, 2, 1))
        yield out[0], out[1:].reshape(*model.selected.shape[:2], n, bins)


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
    n = len(inclusive)
    nested = selected[:, ::-1].cumsum(axis=1)[:, ::-1]
    log_p = np.full((len(model.windows), len(model.efficiencies), n), np.nan)
    log_mu = np.log(np.maximum(model.inclusive, 1e-300))
    for w, window in enumerate(model.windows):
        bins = window_bins(model.edges, window)
        inside, outside = bins.inside, bins.outside
        # the basis in which the expected information is the identity: Newton starts at its minimum, well conditioned
        _, r = np.linalg.qr(np.sqrt(model.inclusive[outside])[:, None] * model.gradient[outside])
        gradient = model.gradient @ np.linalg.inv(r)
        fit = fit_poisson(inclusive, gradient, log_mu, fitted=outside)
        p_fit = deviance_p_value(fit.deviance, model.inclusive[outside], gradient.shape[1])
        good = fit.converged & (p_fit >= GOOD_FIT_P_VALUE) & (inclusive[:, outside].sum(axis=1) >= model.min_events)
        spectra = InclusiveSpectra(fit.expected, gradient, fit.covariance)
        value, error = inclusive_expectations(spectra, bins)
        # a factor, and one that is never negative: at a cut the spurious signal has the efficiency of the background
        missed = np.ones(n) if variation is None else np.exp(variation * model.spurious[w] / np.maximum(value, 1e-300))
        total = with_spurious(error, value, value, model.spurious[w])
        quoted = good & quotable(value, error)
        log_p[w, 0] = local_significance(inclusive[:, inside].sum(axis=1), missed * value, total, quoted).log_p
        for b in range(nested.shape[1]):
            part = selected_expectations(
                nested[w, b], spectra, bins, min_events=model.min_events, share=model.shares[w]
            )
            observed = nested[w, b][:, inside].sum(axis=1)
            quoted = good & quotable(part.expected, part.error)
            total = with_spurious(part.error, part.expected, value, model.spurious[w])
            log_p[w, b + 1] = local_significance(observed, missed * part.expected, total, quoted).log_p
    return log_p


def global_significance(
    hunts: Sequence[WindowHunt],
    model: ToyModel,
    toys: int,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    chunk: int = CHUNK,
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
        Toys held at once; does not change the result.
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
    smallest = np.empty(toys)
    # a stream of its own: the counts are the same with and without
    variation = rng.spawn(1)[0].standard_normal(toys) if any(model.spurious) else np.zeros(toys)
    done = 0
    for inclusive, selected in draw_toys(model, toys, rng, chunk):
        n = len(inclusive)
        log_p = toy_local_p(model, inclusive, selected, variation[done : done + n])
        smallest[done : done + n] = np.where(np.isnan(log_p), 0.0, log_p).min(axis=(0, 1))
        done += n
        if progress is not None:
            progress(done, toys)
    # equal p-values (counts are discrete) are as extreme; the tolerance is that between MIGRAD and Newton
    k = int((smallest <= observed + 1e-9 * abs(observed)).sum())
    p = (k + 1) / (toys + 1)
    tail = 0.5 * (1.0 - level)
    low = float(stats.beta.ppf(tail, k, toys - k + 1)) if k > 0 else 0.0
    high = float(stats.beta.ppf(1.0 - tail, k + 1, toys - k)) if k < toys else 1.0
    return GlobalSignificance(
        p_global=p, p_global_interval=(low, high), z_global=float(stats.norm.isf(p)), bound=k == 0, toys=toys,
        exceeding=k, level=level, p_smallest=float(max(np.exp(observed), np.finfo(np.float64).tiny)),
        best_window=window, best_efficiency=efficiency, toy_log_p=smallest,
        extrapolated=extrapolate(smallest, observed),
    )  # fmt: skip
