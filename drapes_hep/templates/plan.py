r"""The plan of a template: which events it starts from, at which masses, and how often each.

This is the only place of the rule, for a window's template, its closure sample, its pseudo-window, a chunk of a
finished run and the trials of a study. A method says where it starts from; all else follows from the events:

============  ==================================================  ==================================================
source        parents of the template of a region [a, b)          parents of the closure sample
============  ==================================================  ==================================================
noise         none                                                none
window        data in [a, b)                                      the closure events themselves
sidebands     sideband events of the training, none in [a, b)     sideband events of the training
simulation    simulated events in [a, b)                          simulated events in the sidebands
============  ==================================================  ==================================================

With cross-fitting, model f never sees fold f of the sidebands, which are its closure events. The template that
classifier f is trained against starts from events of the other folds; the calibration sample, which sets the cuts of
fold f, starts from events of fold f: data in [a, b), closure events, or simulated events. Parents of either are never
those of the other, or the classifier would have seen copies of what sets its cuts.

Masses are the parents' own (``own_mass``), or drawn inside the region from a fit of the spectrum that leaves the window
out, and the pseudo-window where that is the region. The closure sample has the masses of the closure events.

Identities. A template event is known by its parent and its copy (or by its number, from noise): its own identity, its
noise and, where it is drawn, its mass follow from those alone. A chunk of parents therefore gives the events that all
parents at once would have given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.config import MassConfig
from drapes_hep.errors import DrapesError
from drapes_hep.events.schema import NO_PARENT, places_of
from drapes_hep.folds import Fold
from drapes_hep.regions import Window
from drapes_hep.rng import event_keys, event_uniforms, stage_seed
from drapes_hep.spectrum.drawing import draw, draw_kernels
from drapes_hep.spectrum.fit import Density, SpectrumFit, expected, fit_spectrum
from drapes_hep.spectrum.shapes import find_shape
from drapes_hep.templates.division import Division
from drapes_hep.templates.drapes_family import Origin
from drapes_hep.templates.parts import CLOSURE
from drapes_hep.templates.tables import EventTable, Plan, Planned

__all__ = [
    "Pool",
    "between",
    "copies_of",
    "fit_masses",
    "parents_in",
    "plan_at",
    "plan_chunk",
    "plan_closure",
    "plan_region",
    "pool_of",
    "starts",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Pool:
    """The events that templates of a window may start from.

    Attributes
    ----------
    window : Window
    events : EventTable
        Data, n events.
    part : array of int, shape (n,)
        From :func:`drapes_hep.templates.parts.split_sidebands`; read in the sidebands alone.
    simulation : EventTable, optional
        Of another simulation.
    unseen, simulation_unseen : array of bool, shape (n,), optional
        With cross-fitting, the events of the fold that the model never sees, wherever they are.
    calibrates : bool
        Whether a template is to set cuts, with cross-fitting; else it is to train a classifier.
    """

    window: Window
    events: EventTable
    part: IntArray
    simulation: EventTable | None = None
    unseen: BoolArray | None = None
    simulation_unseen: BoolArray | None = None
    calibrates: bool = False

    @functools.cached_property
    def closing(self) -> BoolArray:
        """Sideband events that measure how often a cut passes: the model never sees them."""
        return np.asarray(self.window.in_sidebands(self.events.mjj) & (self.part == CLOSURE))

    @functools.cached_property
    def training(self) -> BoolArray:
        """Sideband events that a model is trained and validated on."""
        return np.asarray(self.window.in_sidebands(self.events.mjj) & (self.part != CLOSURE))


def pool_of(
    window: Window, events: EventTable, division: Division, fold: Fold | None, simulation: EventTable | None = None
) -> Pool:
    """Return what the templates of one model may start from.

    Parameters
    ----------
    window : Window
    events : EventTable
        Data.
    division : Division
        Of these events.
    fold : Fold, optional
        That the model never sees.
    simulation : EventTable, optional

    Returns
    -------
    Pool
    """
    part = division.of_model(fold)
    if fold is None:
        return Pool(window, events, part, simulation)
    apart = None if simulation is None else fold.holds(simulation.event_id)
    return Pool(window, events, part, simulation, fold.holds(events.event_id), apart)


def between(mjj: FloatArray, region: Interval) -> BoolArray:
    """Whether masses are in an interval, lower edge inclusive and upper edge exclusive."""
    return np.asarray((mjj >= region[0]) & (mjj < region[1]))


def fit_masses(
    config: MassConfig,
    mjj: FloatArray,
    weight: FloatArray,
    edges: FloatArray,
    window: Window,
    pseudo: Interval | None = None,
) -> SpectrumFit:
    """Fit the spectrum that template masses are drawn from, outside the window and, for its own, the pseudo-window.

    Parameters
    ----------
    config : MassConfig
        Shape and centre-of-mass energy.
    mjj, weight : array, shape (n,)
        Of the data, GeV.
    edges : array, shape (bins + 1,)
        GeV.
    window : Window
    pseudo : (float, float), optional
        GeV.

    Returns
    -------
    SpectrumFit

    Raises
    ------
    FitError
        If too few bins or events are left.
    """
    counts = np.histogram(mjj, edges, weights=weight)[0]
    variance = np.histogram(mjj, edges, weights=weight**2)[0]
    fitted = None
    if pseudo is not None:
        fitted = (edges[1:] <= pseudo[0]) | (edges[:-1] >= pseudo[1])
    return fit_spectrum(
        counts, edges, (window.lo, window.hi), find_shape(config), config.sqrt_s, variance=variance, fitted=fitted
    )


def parents_in(origin: Origin, pool: Pool, region: Interval) -> EventTable | None:
    """Return the events that a template of a mass region starts from.

    Parameters
    ----------
    origin : Origin
    pool : Pool
    region : (float, float)
        The window or a pseudo-window, GeV.

    Returns
    -------
    EventTable or None
        None from noise.

    Raises
    ------
    DrapesError
        If there is none to start from.
    """
    chosen = _parents(origin, pool, region)
    if chosen is not None and not len(chosen):
        where = "template.source" if origin.source == "simulation" else "the skim"
        raise DrapesError(
            f"{origin.title} has no events to start from between {region[0]:g} and {region[1]:g} GeV; see {where}"
        )
    return chosen


def _parents(origin: Origin, pool: Pool, region: Interval) -> EventTable | None:
    if origin.source == "noise":
        return None
    if origin.source == "simulation":
        simulation = _simulation(origin, pool)
        return simulation.take(between(simulation.mjj, region) & _folds(pool, pool.simulation_unseen))
    if origin.source == "window":
        return pool.events.take(between(pool.events.mjj, region) & _folds(pool, pool.unseen))
    return pool.events.take((pool.closing if pool.calibrates else pool.training) & ~between(pool.events.mjj, region))


def _folds(pool: Pool, unseen: BoolArray | None) -> BoolArray | np.bool_:
    """Return which events are in the folds of a template's parents; all without cross-fitting."""
    if unseen is None:
        return np.True_
    return unseen if pool.calibrates else ~unseen


def _simulation(origin: Origin, pool: Pool) -> EventTable:
    if pool.simulation is None:
        raise ValueError(f"{origin.title} starts from a simulation")
    return pool.simulation


def plan_region(
    origin: Origin,
    config: MassConfig,
    pool: Pool,
    region: Interval,
    size: float,
    seed: int,
    fit: SpectrumFit | None,
    reach: Interval | None = None,
) -> Planned:
    """Plan the template of a window or pseudo-window.

    Parameters
    ----------
    origin : Origin
    config : MassConfig
        Its ``draw`` says whether masses follow the fit or the data.
    pool : Pool
    region : (float, float)
        GeV.
    size : float
        Mean number of events in the region.
    seed : int
    fit : SpectrumFit, optional
        From :func:`fit_masses`; not needed where masses are the parents' own.
    reach : (float, float), optional
        Where masses are drawn, GeV, if events migrate out of the region and into it; the region by default. So many
        more events are planned.

    Returns
    -------
    Planned

    Raises
    ------
    DrapesError
        If there is no event to start from.
    """
    parents = parents_in(origin, pool, region)
    draw_mass = None
    if not origin.own_mass:
        if fit is None:
            raise ValueError(f"{origin.title} draws masses")
        low, high = reach or region
        draw_mass, more = _mass_source(config, fit, pool.events.mjj, region, (low, high))
        size *= more
    rate = size if parents is None else size / len(parents)
    return Planned(starts(origin, parents, rate, seed, draw_mass), parents, seed, rate)


def _mass_source(
    config: MassConfig, fit: SpectrumFit, masses: FloatArray, region: Interval, reach: Interval
) -> tuple[Callable[[FloatArray], FloatArray], float]:
    """Return what turns uniform numbers into masses, and how many events it takes for one in the region."""
    if config.draw == "kde":
        inside, around = (int(between(masses, interval).sum()) for interval in (region, reach))
        return functools.partial(draw_kernels, masses, config.kde_bandwidth, *reach), float(around) / max(inside, 1)
    more = expected(fit, *reach)[0] / expected(fit, *region)[0] if reach != region else 1.0
    return functools.partial(draw, fit, *reach), more


def plan_closure(origin: Origin, pool: Pool, seed: int) -> Planned:
    """Plan the template of the closure events, which the model has never seen: as many, at their masses.

    Parameters
    ----------
    origin : Origin
    pool : Pool
    seed : int

    Returns
    -------
    Planned
    """
    mjj = pool.events.mjj[pool.closing]
    if origin.source == "noise":
        return plan_at(origin, mjj, seed)
    if origin.source == "window":
        parents = pool.events.take(pool.closing)
        return Planned(starts(origin, parents, 1.0, seed, lambda _: mjj), parents, seed, 1.0)
    if origin.source == "sidebands":
        parents = pool.events.take(pool.training)
    else:
        simulation = _simulation(origin, pool)
        parents = simulation.take(pool.window.in_sidebands(simulation.mjj))
    if not len(parents):
        raise DrapesError(f"{origin.title} has no events in the sidebands to start from; see template.source")
    rate = len(mjj) / len(parents)
    # the masses themselves: what is interpolated between them is in the window, now and then
    masses = functools.partial(np.quantile, mjj, method="inverted_cdf")
    return Planned(starts(origin, parents, rate, seed, masses), parents, seed, rate)


def plan_at(origin: Origin, mjj: FloatArray, seed: int) -> Planned:
    """Plan template events from noise at masses that are there already, shape (n,), GeV."""
    return Planned(starts(origin, None, len(mjj), seed, lambda _: mjj), None, seed, float(len(mjj)))


def plan_chunk(origin: Origin, pool: Pool, rate: float, seed: int, density: Density | None) -> Planned:
    """Plan what a finished run's template makes of a chunk of events.

    Parameters
    ----------
    origin : Origin
        Not from noise.
    pool : Pool
        Of the chunk; for a template from simulation the chunk is ``simulation``.
    rate, seed : float, int
        Of the run's :class:`Planned`.
    density : Density, optional
        What its masses were drawn from, where they were drawn.

    Returns
    -------
    Planned
    """
    window = pool.window
    parents = _parents(origin, pool, (window.lo, window.hi))
    drawn = None if density is None else functools.partial(draw, density, window.lo, window.hi)
    return Planned(starts(origin, parents, rate, seed, drawn), parents, seed, rate)


def copies_of(event_id: IntArray, rate: float, seed: int) -> IntArray:
    """Compute how many template events each parent has.

    Parameters
    ----------
    event_id : array of int, shape (n,)
    rate : float
        Mean number per parent.
    seed : int

    Returns
    -------
    array of int, shape (n,)
        The whole part of the rate, and one more with the probability of the rest: a function of the identity alone, so
        that a chunk decides as the whole does; the total is the rate times n within sqrt(n) / 2.
    """
    whole = int(np.floor(rate))
    more = event_uniforms(stage_seed(seed, "copies"), event_id)[:, 0] < rate - whole
    return whole + more.astype(np.int64)


def starts(
    origin: Origin,
    parents: EventTable | None,
    size: float,
    seed: int,
    draw_mass: Callable[[FloatArray], FloatArray] | None,
) -> Plan:
    """List the template events that are to be made.

    Parameters
    ----------
    origin : Origin
    parents : EventTable, optional
        Needed by all but those from noise.
    size : float
        From noise the number of events; else the mean number of copies of each parent.
    seed : int
    draw_mass : callable, optional
        From uniform numbers (n,) to masses in the window, where masses are drawn.

    Returns
    -------
    Plan
    """
    if origin.source == "noise":
        number = np.arange(round(size), dtype=np.int64)
        row, root, copy = np.full(len(number), -1, dtype=np.int64), number, np.zeros(len(number), dtype=np.int64)
        parent = np.full(len(number), NO_PARENT, dtype=np.int64)
        weight = np.ones(len(number))
    else:
        if parents is None:
            raise ValueError(f"{origin.title} starts from events")
        counts = copies_of(parents.event_id, size, seed)
        row = np.repeat(np.arange(len(counts)), counts)
        copy = places_of(counts)
        root = parent = parents.event_id[row]
        weight = parents.weight[row]
    if origin.own_mass and parents is not None:
        mjj = parents.mjj[row]
    elif draw_mass is None:
        raise ValueError(f"{origin.title} draws masses")
    else:
        mjj = draw_mass(event_uniforms(stage_seed(seed, "mass"), root, copy)[:, 0])
    return Plan(event_keys(stage_seed(seed, "template"), root, copy), parent, row, root, copy, mjj, weight)
