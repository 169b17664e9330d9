"""One block: events of one seed, generated until it is full, and the account of what became of every event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import DrapesError, LostEventsError
from drapes_hep.events.chunks import Reading
from drapes_hep.events.clustering import cluster_events, make_particles
from drapes_hep.events.schema import offsets_of
from drapes_hep.rng import stage_seed
from drapes_hep.simulation.detector import DETECTORS, Objects, respond
from drapes_hep.simulation.processes import Process
from drapes_hep.simulation.pythia import PATIENCE, Generator

__all__ = ["MOST_OBJECTS", "Account", "Block", "block_seeds", "leading_objects", "make_block"]

IntArray = npt.NDArray[np.int64]

MOST_OBJECTS = 700
"""Objects of an event that are kept, the hardest: the raw layout has no room for more."""

_BATCH = 400
"""Events that Pythia makes at a time."""
_STEP = 104_729
"""Between the seeds of successive blocks, so that no two blocks share one; a prime."""
_BELOW_PI = float(np.nextafter(np.float32(np.pi), np.float32(0)))


@dataclass(frozen=True)
class Account:
    """What became of every event; sums of blocks are accounts, too.

    Each number is counted where it happens, but for ``failed``, which is what the generator is left with; that no more
    is lost there, Pythia's own counts tell (:meth:`~drapes_hep.simulation.pythia.Generator.check`).

    Parameters
    ----------
    tried : int
        Events that came out of the parton shower. The sum of the next five.
    vetoed : int
        Given up there: no jet of partons within reach of the cut.
    failed : int
        Lost in hadronisation (Pythia shows such an event to the veto once more when it tries again).
    filtered : int
        Simulated, but without two jets of which the leading one passes the cut.
    surplus : int
        Passed after the block was full, and dropped.
    written : int
        In the file.
    truncated : int
        Of those written, events that lost objects beyond the 700 hardest.
    dropped_objects : int
        Objects that these lost.
    weighted_sigma, weighted_variance : float
        Sums over blocks of the generator's cross section after the veto (pb) times the events it stands for, and of
        the square of its error times these.
    """

    tried: int = 0
    vetoed: int = 0
    failed: int = 0
    filtered: int = 0
    surplus: int = 0
    written: int = 0
    truncated: int = 0
    dropped_objects: int = 0
    weighted_sigma: float = 0.0
    weighted_variance: float = 0.0

    def check(self) -> Account:
        """Return the account back if it adds up.

        Raises
        ------
        LostEventsError
            It does not.
        """
        parts = self.vetoed + self.failed + self.filtered + self.surplus + self.written
        if parts != self.tried or min(asdict(self).values()) < 0:
            raise LostEventsError(f"of {self.tried} simulated events, {parts} are accounted for")
        return self

    @classmethod
    def total(cls, accounts: Iterable[Account]) -> Account:
        """Add accounts."""
        every = list(accounts)
        return cls(*(sum(getattr(account, field.name) for account in every) for field in fields(cls))).check()

    @property
    def simulated(self) -> int:
        """Events that went through the detector."""
        return self.filtered + self.surplus + self.written

    def cross_section(self) -> dict[str, float]:
        """Return cross sections and their errors.

        Returns
        -------
        dict of str to float
            ``after_veto``, the generator's own; ``selected``, times the fraction of events that pass, with its binomial
            error; pb.
        """
        n = self.simulated
        sigma, error = self.weighted_sigma / n, float(np.sqrt(self.weighted_variance)) / n
        passed = (self.written + self.surplus) / n
        spread = np.hypot(error * passed, sigma * np.sqrt(passed * (1 - passed) / n))
        return {
            "after_veto": sigma,
            "after_veto_error": error,
            "selected": sigma * passed,
            "selected_error": float(spread),
        }


@dataclass(frozen=True)
class Block:
    """A full block.

    Parameters
    ----------
    objects : Objects
        Of the events that passed, in single precision.
    account : Account
        Of all events.
    """

    objects: Objects
    account: Account


def block_seeds(seed: int, process: Process, index: int) -> tuple[int, int]:
    """Return the seeds of a block, for the generator and for the detector.

    Parameters
    ----------
    seed : int
        The user's.
    process : Process
        Part of the seed: no two processes share random numbers.
    index : int
        Which block.

    Returns
    -------
    generator, detector : int
    """
    name = sorted(process.record().items())
    return stage_seed(seed, "simulate", name) + _STEP * index, stage_seed(seed, "detector", name, index)


def leading_objects(objects: Objects, limit: int = MOST_OBJECTS) -> tuple[Objects, IntArray]:
    """Keep the hardest objects of each event, rounded to single precision.

    Parameters
    ----------
    objects : Objects
        By falling transverse momentum.
    limit : int
        Objects to keep.

    Returns
    -------
    objects : Objects
        What is left; float64 arrays of single-precision values, azimuths inside (-pi, pi).
    dropped : array of int64, shape (n,)
        Objects that each event lost.
    """
    counts = np.diff(objects.offsets)
    rank = np.arange(objects.offsets[-1]) - np.repeat(objects.offsets[:-1], counts)
    keep = rank < limit
    offsets = offsets_of(np.minimum(counts, limit))
    pt, eta, phi = (getattr(objects, name)[keep].astype(np.float32).astype(np.float64) for name in ("pt", "eta", "phi"))
    # pi itself is larger in single than in double precision, and no azimuth
    return Objects(offsets, pt, eta, np.clip(phi, -_BELOW_PI, _BELOW_PI)), np.maximum(counts - limit, 0)


def passes(jets: Mapping[str, Any], leading_pt: float) -> npt.NDArray[np.bool_]:
    """Return which events have two jets of which the leading one is hard enough.

    Parameters
    ----------
    jets : mapping
        From :func:`drapes_hep.events.clustering.cluster_events`: ragged ``jets_pt``, falling.
    leading_pt : float
        GeV.

    Returns
    -------
    array of bool, shape (n,)
    """
    pt = jets["jets_pt"]
    leading = ak.to_numpy(ak.fill_none(ak.firsts(pt), 0.0))
    return np.asarray((ak.to_numpy(ak.num(pt)) >= 2) & (leading > leading_pt))


def _select(objects: Objects, chosen: IntArray) -> Objects:
    """Some events, in the order given."""
    counts = np.diff(objects.offsets)[chosen]
    offsets = offsets_of(counts)
    place = np.arange(offsets[-1]) + np.repeat(objects.offsets[:-1][chosen] - offsets[:-1], counts)
    return Objects(offsets, objects.pt[place], objects.eta[place], objects.phi[place])


def join(parts: Iterable[Objects]) -> Objects:
    """Put runs of events one after the other.

    Parameters
    ----------
    parts : iterable of Objects
        At least one.

    Returns
    -------
    Objects
    """
    every = list(parts)
    counts = np.concatenate([np.diff(block_objects.offsets) for block_objects in every])
    columns = (
        np.concatenate([getattr(block_objects, name) for block_objects in every]) for name in ("pt", "eta", "phi")
    )
    return Objects(offsets_of(counts), *columns)


def make_block(
    process: Process, seed: int, index: int, events: int, progress: Callable[[int], None] = lambda _: None
) -> Block:
    """Simulate until a block is full.

    Parameters
    ----------
    process : Process
        What to simulate.
    seed : int
        The user's.
    index : int
        Which block.
    events : int
        To write, at least 1.
    progress : callable
        Told how many events the block holds so far.

    Returns
    -------
    Block

    Raises
    ------
    DrapesError
        No event passes.
    LostEventsError
        The account does not add up, or differs from Pythia's own.
    """
    generator_seed, detector_seed = block_seeds(seed, process, index)
    generator, rng = Generator(process, generator_seed), np.random.default_rng(detector_seed)
    detector, reading = DETECTORS[process.shower], Reading()
    selected_objects: list[Objects] = []
    simulated = passed = filtered = surplus = written = truncated = dropped = 0
    while written < events:
        # just enough for what is missing, as the block's own events foretell it
        share = passed / simulated if passed else 1.0
        particles = generator.batch(int(np.clip(np.ceil(1.1 * (events - written) / share), 10, _BATCH)))
        objects, lost = leading_objects(respond(particles, detector, rng))
        simulated += len(objects)
        jets = cluster_events(make_particles(objects.offsets, objects.pt, objects.eta, objects.phi), reading)
        selected = passes(jets, process.leading_pt)
        good = np.flatnonzero(selected)
        passed += len(good)
        filtered += int(np.count_nonzero(~selected))
        chosen, spare = np.split(good, [events - written])
        surplus += len(spare)
        written += len(chosen)
        truncated += int(np.count_nonzero(lost[chosen]))
        dropped += int(lost[chosen].sum())
        selected_objects.append(_select(objects, chosen))
        progress(written)
        if generator.hopeless or (passed == 0 and generator.showered >= PATIENCE):
            raise DrapesError(
                f"hardly any of {generator.showered} simulated events has a jet above {process.leading_pt:g} GeV;"
                " lower --leading-pt or choose a heavier A"
            )
    generator.check()
    sigma, error = generator.cross_section
    account = Account(
        tried=generator.showered,
        vetoed=generator.vetoed,
        failed=generator.showered - generator.vetoed - generator.returned,
        filtered=filtered,
        surplus=surplus,
        written=written,
        truncated=truncated,
        dropped_objects=dropped,
        weighted_sigma=sigma * simulated,
        weighted_variance=(error * simulated) ** 2,
    )
    return Block(join(selected_objects), account.check())
