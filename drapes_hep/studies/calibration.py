r"""Are local and global p-values what they say? Whole searches without a signal, everything trained anew.

Every null is generated anew (:mod:`drapes_hep.studies.null_events`) and searched as the data are, without
pseudo-windows and spurious signal. The pull of a window and cut is

.. math:: t = \frac{n - \mu}{\sqrt{\mu + s^2}}

of the observed count n, and the expectation :math:`\mu` with its error s. Its width over nulls is :math:`\kappa`, its
mean b. What calibrated p-values make of both
is in :mod:`drapes_hep.bumphunt.calibrated`.

Half of the nulls measure :math:`\kappa` and b; on the other half the p-values are compared with a uniform distribution
(Kolmogorov and Smirnov), each less half of the probability of its own count, as counts are whole. Each half has nulls
of each of the generator's models.

The whole search's smallest p-value is one of :math:`N_{eff}` independent ones if

.. math:: p_{global} = 1 - (1 - p_{min})^{N_{eff}}, \quad
    N_{eff} = \frac{-m}{\sum_i \ln(1 - p_{min, i})}

with the m nulls of the first half; the other half tests it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy import stats
from threadpoolctl import threadpool_limits

from drapes_hep.bumphunt.calibrated import added_variance
from drapes_hep.bumphunt.expectation import quotable
from drapes_hep.bumphunt.significance import local_log_p
from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, counted
from drapes_hep.files import write_json
from drapes_hep.kernels import kernel_threads
from drapes_hep.pipeline.context import Context
from drapes_hep.plots.studies import Band, Panel, study_panels
from drapes_hep.plots.style import Stamp
from drapes_hep.studies.design import Measured, Row
from drapes_hep.studies.null_events import NullGenerator, source_of
from drapes_hep.studies.null_folder import NullFolder, load_generator, null_folder, search_missing
from drapes_hep.studies.null_searches import CHECKS, check_nulls, search_null
from drapes_hep.studies.records import has_record, read_trial
from drapes_hep.studies.runner import select_events

__all__ = ["CALIBRATION_CODE", "Calibration", "CalibrationStudy", "Nulls", "calibrate", "mid_p", "nulls_of"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

CALIBRATION_CODE = ("studies.null_searches", "studies.null_events")
"""Where the code of a null search begins."""

_LEAST = 20
"""Nulls of each half below which nothing is calibrated."""
_CHECK_COLUMNS = ("observed", "expected", "error")
_FURTHER = 10**6
"""Whole periods of the generator before the first further events: beyond any null's."""


# ---- what nulls are summed up to -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nulls:
    """What null searches gave; arrays of shape (nulls, points), NaN where nothing is quoted.

    Attributes
    ----------
    points : tuple of (str, float)
        Window and cut.
    number : array of int, shape (nulls,)
    observed, expected, error : array
    efficiency, curve : array
        With further events: the fraction inside the window that passes, and that of the curve through those outside.
    checks : mapping of str to array, shape (nulls, points)
        Of the cross-checks: ``direct_observed``, ``direct_expected``, ``direct_error``, and the same of ``conformal``.
    """

    points: tuple[tuple[str, float], ...]
    number: npt.NDArray[np.int64]
    observed: FloatArray
    expected: FloatArray
    error: FloatArray
    efficiency: FloatArray
    curve: FloatArray
    checks: Mapping[str, FloatArray]

    @property
    def pulls(self) -> FloatArray:
        """(observed - expected) / sqrt(expected + error^2)."""
        return np.asarray((self.observed - self.expected) / np.sqrt(self.expected + self.error**2))

    def check_pulls(self, check: str) -> FloatArray:
        """Return those of a cross-check, of which the number of events in the window is given: counts are binomial."""
        observed, expected, error = (self.checks[f"{check}_{name}"] for name in _CHECK_COLUMNS)
        fails = 1.0 - np.array([cut for _, cut in self.points])
        return np.asarray((observed - expected) / np.sqrt(expected * fails + error**2))

    def take(self, rows: BoolArray) -> Nulls:
        """Return some of the nulls."""
        arrays = {name: value[rows] for name, value in vars(self).items() if name not in {"points", "checks"}}
        return Nulls(self.points, **arrays, checks={name: value[rows] for name, value in self.checks.items()})


def nulls_of(records: Sequence[Sequence[dict[str, Any]]]) -> Nulls:
    """Return the rows of many nulls as arrays.

    Parameters
    ----------
    records : sequence of sequences of dict
        Rows of each null, from :func:`~drapes_hep.studies.null_searches.search_null`, with its ``null``.

    Returns
    -------
    Nulls
    """
    points = tuple(dict.fromkeys((str(row["window"]), float(row["cut"])) for record in records for row in record))
    places = [{(row["window"], row["cut"]): row for row in record} for record in records]

    def column(name: str) -> FloatArray:
        return np.array([[place.get(point, {}).get(name) for point in points] for place in places], dtype=np.float64)

    columns = {name: column(name) for name in ("observed", "expected", "error", "efficiency", "curve")}
    checks = {f"{check}_{name}": column(f"{check}_{name}") for check in CHECKS for name in _CHECK_COLUMNS}
    silent = ~(np.isfinite(columns["observed"]) & np.isfinite(columns["expected"]) & np.isfinite(columns["error"]))
    for name in ("observed", "expected", "error"):
        columns[name] = np.where(silent, np.nan, columns[name])
    return Nulls(points, np.array([record[0]["null"] for record in records], dtype=np.int64), **columns, checks=checks)


def mid_p(observed: FloatArray, expected: FloatArray, error: FloatArray) -> FloatArray:
    """Compute local p-values less half the probability of the count itself: uniform on average for whole counts.

    Parameters
    ----------
    observed, expected, error : array
        NaN gives NaN.

    Returns
    -------
    array
    """
    quoted = np.isfinite(observed) & quotable(expected, error)
    at_least, more = (np.exp(local_log_p(observed + extra, expected, error, quoted)) for extra in (0.0, 1.0))
    return np.asarray(0.5 * (at_least + more))


@dataclass(frozen=True)
class Calibration:
    """What half of the nulls say of the p-values, and the other half of that; arrays of shape (points,).

    Attributes
    ----------
    points : tuple of (str, float)
        Window and cut.
    quoted : array of int
        Nulls with an expectation, of both halves.
    mean, kappa : array
        Of the pulls of the first half.
    test_kappa : array
        Width of the pulls of the second half.
    local, calibrated : array, shape (tests, points)
        Mid-p values of the second half, as they are and calibrated.
    local_ks, calibrated_ks : array
        p-values that these are uniform.
    trials, calibrated_trials : float
        Effective number of independent points, from the first half.
    whole, calibrated_whole : array, shape (tests,)
        p-values of the whole search of the second half.
    whole_ks, calibrated_whole_ks : float
    correlation : array, shape (points, points)
        Of the pulls of all nulls in which both are quoted.
    """

    points: tuple[tuple[str, float], ...]
    quoted: npt.NDArray[np.int64]
    mean: FloatArray
    kappa: FloatArray
    test_kappa: FloatArray
    local: FloatArray
    calibrated: FloatArray
    local_ks: FloatArray
    calibrated_ks: FloatArray
    trials: float
    calibrated_trials: float
    whole: FloatArray
    calibrated_whole: FloatArray
    whole_ks: float
    calibrated_whole_ks: float
    correlation: FloatArray

    @property
    def kappa_error(self) -> FloatArray:
        """Standard error of ``kappa``: of a normal distribution, with half of the nulls."""
        return np.asarray(self.kappa / np.sqrt(np.maximum(self.quoted, 1)))


def calibrate(nulls: Nulls, models: int = 1) -> Calibration:
    """Measure the pulls of one half of the nulls, and test the calibrated p-values on the other.

    Parameters
    ----------
    nulls : Nulls
    models : int
        Models of the generator: null n has the truth of model n modulo their number.

    Returns
    -------
    Calibration

    Raises
    ------
    ConfigError
        If a half has fewer than 20 nulls.
    """
    # each half has nulls of each of the generator's models
    even = nulls.number // models % 2 == 0
    first, second = nulls.take(even), nulls.take(~even)
    if min(len(first.number), len(second.number)) < _LEAST:
        raise ConfigError(f"study.nulls: {len(nulls.number)} nulls calibrate nothing; at least {2 * _LEAST}")
    mean, kappa = _moments(first.pulls)
    both = {}
    for name in ("local", "calibrated"):
        halves = []
        for half in (first, second):
            added = added_variance(half.expected, half.error, kappa, mean) if name == "calibrated" else 0.0
            halves.append(mid_p(half.observed, half.expected, np.sqrt(half.error**2 + added)))
        both[name] = halves
    whole = {name: _whole_search(*halves) for name, halves in both.items()}
    return Calibration(
        points=nulls.points, quoted=np.isfinite(nulls.pulls).sum(axis=0), mean=mean, kappa=kappa,
        test_kappa=_moments(second.pulls)[1], local=both["local"][1], calibrated=both["calibrated"][1],
        local_ks=_uniform(both["local"][1]), calibrated_ks=_uniform(both["calibrated"][1]),
        trials=whole["local"][0], calibrated_trials=whole["calibrated"][0], whole=whole["local"][1],
        calibrated_whole=whole["calibrated"][1], whole_ks=float(_uniform(whole["local"][1][:, None])[0]),
        calibrated_whole_ks=float(_uniform(whole["calibrated"][1][:, None])[0]), correlation=_correlation(nulls.pulls),
    )  # fmt: skip


def _moments(pulls: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute mean and width of each point that enough nulls quote; NaN of others."""
    out = np.full((2, pulls.shape[1]), np.nan)
    for i, column in enumerate(pulls.T):
        quoted = column[np.isfinite(column)]
        if len(quoted) >= _LEAST // 2:
            out[:, i] = quoted.mean(), quoted.std(ddof=1)
    return out[0], out[1]


def _uniform(p: FloatArray) -> FloatArray:
    """Compute the p-value that each column is uniform; NaN of none."""
    columns = [column[np.isfinite(column)] for column in p.T]
    return np.array([float(stats.kstest(c, "uniform").pvalue) if len(c) else np.nan for c in columns])


def _whole_search(first: FloatArray, second: FloatArray) -> tuple[float, FloatArray]:
    """Return the effective trials of the first half, and the p-values of the whole searches of the second."""
    # a null that quotes nothing has found nothing
    least = [np.where(np.isfinite(half), half, 1.0 - 1e-9).min(axis=1) for half in (first, second)]
    # one search is at least one trial
    trials = max(-len(least[0]) / float(np.log1p(-least[0]).sum()), 1.0)
    return trials, -np.expm1(trials * np.log1p(-least[1]))


def _correlation(pulls: FloatArray) -> FloatArray:
    whole = np.ma.masked_invalid(pulls)
    # numpy's masked arrays have no types
    correlation: Any = np.ma.corrcoef
    return np.asarray(correlation(whole, rowvar=False).filled(np.nan))


# ---- the study -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationStudy:
    """Null searches of the configuration's windows, and the calibration of its p-values; ``STUDY`` of a module.

    Attributes
    ----------
    title : str
        One line for ``drapes study --list``.
    """

    title: str

    def run(self, name: str, context: Context) -> Measured:
        """Search the nulls that are missing; see :class:`drapes_hep.studies.design.AnyStudy`."""
        config = context.config
        check_nulls(config)
        select_events(context, labels=config.data.labels)
        place = null_folder(context, CALIBRATION_CODE, config.study.further)
        nulls = range(config.study.nulls)
        in_turn: Sequence[int] = nulls
        if config.study.further > 0:
            # those of one truth after each other: a process keeps the further events of one
            windows, models = len(place.windows), config.study.null_models
            in_turn = sorted(nulls, key=lambda number: source_of(number, windows, models))
        search_missing(
            place,
            context,
            _search,
            [(place, number) for number in in_turn if not has_record(place.null(number))],
            f"study {name}: {counted(len(nulls), 'null')}",
        )
        measured = nulls_of([read_trial(place.null(number))["rows"] for number in nulls])
        calibration = calibrate(measured, config.study.null_models)
        return Measured(
            _table(measured, calibration),
            lambda stamp: _figure(calibration, stamp),
            _facts(calibration, config, _mean_events(measured)),
        )


def _mean_events(nulls: Nulls) -> float:
    """Return the events of a null inside the first window, on average."""
    return float(np.nanmean(nulls.observed[:, 0]))


_FURTHER_EVENTS: dict[tuple[Path, int, int], dict[str, FloatArray]] = {}


def _further_events(place: NullFolder, generator: NullGenerator, number: int) -> dict[str, FloatArray] | None:
    """Return many events of the truth of a null; a process keeps those of the last one."""
    study = place.config.study
    if study.further == 0:
        return None
    key = place.folder, *generator.model(number)
    if key not in _FURTHER_EVENTS:
        mean = study.null_events or float(generator.fit.expected.sum())
        alike = _FURTHER * generator.period + number % generator.period
        _FURTHER_EVENTS.clear()
        _FURTHER_EVENTS[key] = generator.events(alike, study.further * mean)
    return _FURTHER_EVENTS[key]


def _search(place: NullFolder, number: int) -> None:
    with threadpool_limits(limits=1), kernel_threads(1):
        generator = load_generator(place)
        events = generator.events(number, place.config.study.null_events)
        rows = search_null(place.config, number, events, _further_events(place, generator, number), place.device)
    window, model = generator.model(number)
    source = {"null": number, "window_hidden": place.windows[window].name, "model": model}
    write_json(place.null(number), {"rows": [{**source, **row} for row in rows]})


def _table(nulls: Nulls, calibration: Calibration) -> list[Row]:
    """Return a line for each window and cut."""
    checks = {name: nulls.check_pulls(name) for name in CHECKS}
    return [
        {
            "window": window,
            "cut": cut,
            "nulls": int(calibration.quoted[i]),
            "mean_pull": _number(calibration.mean[i]),
            "kappa": _number(calibration.kappa[i]),
            "kappa_error": _number(calibration.kappa_error[i]),
            "kappa_other_half": _number(calibration.test_kappa[i]),
            "ks_local": _number(calibration.local_ks[i]),
            "ks_calibrated": _number(calibration.calibrated_ks[i]),
            **{key: value for name, pulls in checks.items() for key, value in _of_check(name, pulls[:, i]).items()},
            **_sources(nulls, i),
        }
        for i, (window, cut) in enumerate(calibration.points)
    ]


def _of_check(name: str, pulls: FloatArray) -> Row:
    """Return mean and width of the pulls of a cross-check, over all nulls that have one."""
    mean, kappa = _moments(pulls[:, None])
    return {
        f"{name}_nulls": int(np.isfinite(pulls).sum()),
        f"{name}_mean_pull": _number(mean[0]),
        f"{name}_kappa": _number(kappa[0]),
    }


def _sources(nulls: Nulls, i: int) -> Row:
    """Tell where the pulls of a window and cut come from: mean and width of each source, in its own error."""
    good = np.isfinite(nulls.pulls[:, i]) & np.isfinite(nulls.curve[:, i])
    if good.sum() < _LEAST or nulls.points[i][1] == 1.0:
        return {}
    observed, expected, error, efficiency, curve = (
        values[good, i] for values in (nulls.observed, nulls.expected, nulls.error, nulls.efficiency, nulls.curve)
    )
    inclusive = next(j for j, (window, cut) in enumerate(nulls.points) if window == nulls.points[i][0] and cut == 1.0)
    inside = nulls.observed[good, inclusive]
    sources = {
        "count": (observed - inside * efficiency) / np.sqrt(inside * efficiency),
        "curve": inside * (efficiency - curve) / error,
        "fit": (inside * curve - expected) / error,
    }
    out: Row = {"efficiency_of_name": float(np.mean(efficiency) / nulls.points[i][1])}
    for name, values in sources.items():
        out |= {f"{name}_mean": float(values.mean()), f"{name}_width": float(values.std(ddof=1))}
    return out


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _facts(calibration: Calibration, config: Config, events: float) -> dict[str, Any]:
    """Return what the record of the study holds: all that calibrates a search, and what tests it."""
    return {
        "nulls": config.study.nulls,
        "events": events,
        "points": [
            {
                "window": window,
                "cut": cut,
                "mean_pull": _number(mean),
                "kappa": _number(kappa),
                "kappa_error": _number(error),
            }
            for (window, cut), mean, kappa, error in zip(
                calibration.points, calibration.mean, calibration.kappa, calibration.kappa_error, strict=True
            )
        ],
        "trials": calibration.trials,
        "calibrated_trials": calibration.calibrated_trials,
        "ks_global": calibration.whole_ks,
        "ks_global_calibrated": calibration.calibrated_whole_ks,
        "correlation": [[_number(x) for x in row] for row in calibration.correlation],
    }


def _figure(calibration: Calibration, stamp: Stamp) -> Figure:
    windows = tuple(dict.fromkeys(window for window, _ in calibration.points))
    cuts = sorted({cut for _, cut in calibration.points}, reverse=True)
    widths, quantiles = [], []
    for window in windows:
        mine = [i for i, (name, _) in enumerate(calibration.points) if name == window]
        place = np.array([float(cuts.index(calibration.points[i][1])) for i in mine])
        kappa, error = calibration.kappa[mine], calibration.kappa_error[mine]
        widths.append(Band(f"{window} GeV", place, kappa, kappa - error, kappa + error))
    for label, p in (("As they are", calibration.local), ("Calibrated", calibration.calibrated)):
        ordered = np.sort(p[np.isfinite(p)])
        uniform = (np.arange(len(ordered)) + 0.5) / len(ordered)
        quantiles.append(Band(label, ordered, uniform, uniform, uniform, marked=False))
    return study_panels(
        [
            Panel(
                "Background efficiency",
                r"Width $\kappa$ of the pulls",
                widths,
                level=1.0,
                meaning="As the errors say",
                names=tuple(f"{cut:g}" for cut in cuts),
            ),
            Panel("Local p-value of the other half of the nulls", "Part of the nulls below", quantiles),
        ],
        stamp,
    )
