"""Limits and efficiencies of many simulated signals: along a line of masses, and over the masses of the daughters. GeV.

Each signal of ``study.signals`` has its limits as :mod:`drapes_hep.studies.limits` computes them, with searches of its
own. The two studies share what they have computed: in one output directory no signal is searched for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from drapes_hep.bumphunt.signal_limits import Limit
from drapes_hep.errors import ConfigError, counted
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import begin_manifest, open_run
from drapes_hep.plots.efficiency_maps import MapPoint, efficiency_maps
from drapes_hep.plots.limits import BandPoint, limit_bands
from drapes_hep.plots.style import Stamp
from drapes_hep.stages.apply import applied_config
from drapes_hep.studies.design import Measured, Row
from drapes_hep.studies.limit_results import write_limits
from drapes_hep.studies.limits import SignalLimits, compute_limits, select_signal
from drapes_hep.studies.null_searches import check_nulls

__all__ = ["SignalGridStudy", "SignalPoint", "check_line", "check_map", "draw_efficiencies", "draw_limits"]


_FAR = 0.25
"""Relative difference between a signal's median m_JJ and the mass of A that no resonance has."""
Masses = tuple[float, float, float]
"""Of a resonance A and its daughters B and C, GeV."""


@dataclass(frozen=True)
class SignalPoint:
    """A signal and its limits.

    Attributes
    ----------
    name : str
        Of its file.
    masses : tuple of three floats
        Of the resonance A and its daughters B and C, GeV.
    limits : SignalLimits
    """

    name: str
    masses: Masses
    limits: SignalLimits

    @property
    def size(self) -> float:
        """Signal events for which efficiencies are quoted: the middle one of those that were injected."""
        injected = self.limits.injected
        return injected[len(injected) // 2]

    def efficiencies(self) -> Iterator[tuple[float, float, float]]:
        """Yield each cut with the mean and the spread over trainings of the efficiency at this size."""
        place = self.limits.injected.index(self.size)
        for cut, efficiency in zip(self.limits.cuts, self.limits.efficiencies, strict=True):
            if efficiency is not None:
                values = efficiency.trained[place]
                spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
                yield cut.background_efficiency, float(values.mean()), spread


@dataclass(frozen=True)
class SignalGridStudy:
    """Limits on all signals of ``study.signals``; ``STUDY`` of a module.

    Attributes
    ----------
    title : str
        One line for ``drapes study --list``.
    draw : callable
        From the points and the stamp to the figure.
    check : callable
        Given the masses of all signals, raises ConfigError if they cannot be drawn.
    """

    title: str
    draw: Callable[[Sequence[SignalPoint], Stamp], Figure]
    check: Callable[[Sequence[Masses]], None]

    def run(self, name: str, context: Context) -> Measured:
        """Compute the limits that are missing; see :class:`drapes_hep.studies.design.AnyStudy`."""
        config = context.config
        check_nulls(config, "limits")
        names = _names(config.study.signals)
        self.check(list(config.study.signals.values()))
        if config.limits.reference is None:
            raise ConfigError(
                "limits.reference: set it, so that the efficiencies of all signals are of as many events, for example"
                " --set limits.reference=100"
            )
        begin_manifest(context.run, config.model_dump(mode="json"))
        search = replace(context, run=open_run(context.run.path / "search", overwrite=context.run.overwrite))
        samples = [
            replace(
                context,
                config=applied_config(config, {"path": path}),
                run=open_run(context.run.path / "signals" / place, "applied", overwrite=context.run.overwrite),
            )
            for place, path in zip(names, config.study.signals, strict=True)
        ]
        for (path, masses), sample in zip(config.study.signals.items(), samples, strict=True):
            # what is wrong with any of them is better said before the first search
            signal, _ = select_signal(search, sample)
            median = float(np.median(signal.mjj))
            if abs(median / masses[0] - 1.0) > _FAR:
                raise ConfigError(
                    f"study.signals: {path} has a median m_JJ of {median:.0f} GeV, and A has {masses[0]:g}; the masses"
                    " are those of A, B and C in this order"
                )
        points: list[SignalPoint] = []
        for place, masses, sample in zip(names, config.study.signals.values(), samples, strict=True):
            context.reporter.say(f"study {name}: {place} ({len(points) + 1} of {counted(len(names), 'signal')})")
            limits = compute_limits(search, sample, config.plots.lumi)
            write_limits(limits, sample.run.path, config)
            points.append(SignalPoint(place, masses, limits))
        return Measured(
            [_row(point) for point in points],
            lambda stamp: self.draw(points, stamp),
            {"signals": [{"name": point.name, "masses": list(point.masses), "size": point.size} for point in points]},
        )


def _names(signals: Mapping[str, Masses]) -> list[str]:
    """Return the folder of each signal, the name of its file."""
    if not signals:
        raise ConfigError(
            "study.signals: name the files of simulated signals and their masses in GeV, {FILE: [A, B, C], ...}"
        )
    names = [Path(path).stem for path in signals]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"study.signals: two files have the name {twice}; give one another name")
    return names


def _row(point: SignalPoint) -> Row:
    limits, best = point.limits, point.limits.best
    row: Row = {
        "signal": point.name,
        **dict(zip(("m_a", "m_b", "m_c"), point.masses, strict=True)),
        "window": limits.window.name,
        "acceptance": limits.acceptance,
        "inside": limits.inside,
        "cut": None if best is None else best.background_efficiency,
    }
    fitted = None if best is None else best.fitted
    names = ("observed", "expected_m2", "expected_m1", "expected", "expected_p1", "expected_p2")
    row |= dict(zip(names, _values(limits, fitted), strict=True))
    row["efficiency_at"] = point.size
    for cut, mean, spread in point.efficiencies():
        row |= {f"efficiency_{cut:g}": mean, f"efficiency_{cut:g}_spread": spread if np.isfinite(spread) else None}
    return row


def _values(limits: SignalLimits, limit: Limit | None) -> list[float | None]:
    """Return the observed and the expected limits, in fb where there is a luminosity; None beyond the injections."""
    if limit is None:
        return [None] * 6
    unit = limits.cross_section(1.0) or 1.0
    return [unit * y if np.isfinite(y) else None for y in (limit.observed, *limit.expected)]


def check_line(signals: Sequence[Masses]) -> None:
    """Refuse two signals of the same mass; raises ConfigError."""
    masses = [signal[0] for signal in signals]
    if len(set(masses)) < len(masses):
        raise ConfigError(
            "study.signals: two signals have the same mass of A; limits along a line need one each, the study"
            " efficiency-map draws the others"
        )


def check_map(signals: Sequence[Masses]) -> None:
    """Refuse signals of several resonances, and two of the same daughters; raises ConfigError."""
    resonances = sorted({signal[0] for signal in signals})
    if len(resonances) > 1:
        raise ConfigError(
            f"study.signals: has signals with m_A = {resonances[0]:g} and {resonances[1]:g} GeV; a map is of one, the"
            " study limits-by-mass draws a line"
        )
    if len(set(signals)) < len(signals):
        raise ConfigError("study.signals: two signals have the same masses")


def draw_limits(points: Sequence[SignalPoint], stamp: Stamp) -> Figure:
    """Draw the limits of the cut with the lowest expected one against the mass of the resonance.

    Parameters
    ----------
    points : sequence of SignalPoint
        Of one mass each.
    stamp : Stamp

    Returns
    -------
    Figure
    """
    bands = []
    for point in points:
        best = point.limits.best
        observed, *expected = (
            float("inf") if value is None else value for value in _values(point.limits, best.fitted if best else None)
        )
        bands.append(BandPoint(point.masses[0], "", observed, tuple(expected)))
    label = "Signal events after the selection" if points[0].limits.luminosity is None else r"$\sigma$ [fb]"
    return limit_bands(bands, label, stamp, x_label=r"$m_A$ [GeV]")


def draw_efficiencies(points: Sequence[SignalPoint], stamp: Stamp) -> Figure:
    """Draw the efficiency of each cut over the masses of the daughters.

    Parameters
    ----------
    points : sequence of SignalPoint
        Of one mass of A.
    stamp : Stamp

    Returns
    -------
    Figure
    """
    shown = [
        MapPoint(point.masses[1], point.masses[2], {cut: (mean, spread) for cut, mean, spread in point.efficiencies()})
        for point in points
    ]
    title = (
        rf"$m_A = \mathrm{{{points[0].masses[0]:g}}}$ GeV, {points[0].size:g} signal events; mean and spread of"
        f" {counted(points[0].limits.searches, 'training')}"
    )
    return efficiency_maps(shown, title, stamp)
