"""Pythia as a source of final-state particles: one instance a block, in batches, as flat columns."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import DrapesError, LostEventsError, counted
from drapes_hep.events.schema import offsets_of
from drapes_hep.simulation.processes import Process, pythia_settings

__all__ = ["PATIENCE", "Generator", "Particles", "import_pythia"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PATIENCE = 10_000
"""Events in a row that fail, after which a process counts as hopeless."""

_SEEDS = 900_000_000
"""Pythia takes seeds from 1 to this."""


@dataclass(frozen=True)
class Particles:
    """Final-state particles of a run of events, one after the other.

    Parameters
    ----------
    offsets : array of int64, shape (n + 1,)
        Where each event's particles start; the last is m.
    pdg : array of int64, shape (m,)
        PDG codes.
    px, py, pz, energy : array, shape (m,)
        GeV.
    x, y, z : array, shape (m,)
        Production vertex, mm.
    """

    offsets: IntArray
    pdg: IntArray
    px: FloatArray
    py: FloatArray
    pz: FloatArray
    energy: FloatArray
    x: FloatArray
    y: FloatArray
    z: FloatArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def event(self) -> IntArray:
        """Index of each particle's event, shape (m,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def where(self, chosen: npt.NDArray[np.bool_]) -> tuple[Any, ...]:
        """Return the columns of some particles, ``pdg`` to ``z``."""
        return tuple(getattr(self, field.name)[chosen] for field in fields(self)[1:])


def import_pythia() -> Any:
    """Import pythia8mc.

    Raises
    ------
    DrapesError
        It is not installed.
    """
    try:
        import pythia8mc
    except ImportError as error:
        raise DrapesError(
            "simulation needs Pythia, which is not installed; run: pip install 'drapes-hep[sim]'"
        ) from error
    return pythia8mc


class Generator:
    """Events of one process from one seed.

    Parameters
    ----------
    process : Process
        What to simulate.
    seed : int
        Non-negative; taken modulo what Pythia allows.

    Attributes
    ----------
    showered : int
        Events that came out of the parton shower so far.
    vetoed : int
        Of these, events given up there since no jet of partons was hard enough.
    requested, returned : int
        Events that :meth:`batch` was asked for, and gave, so far.
    hopeless : bool
        Whether more events in a row than :data:`PATIENCE` were given up; no more are then, so that a batch ends.

    Raises
    ------
    DrapesError
        pythia8mc is not installed, or refuses the process.
    """

    def __init__(self, process: Process, seed: int) -> None:
        pythia8 = import_pythia()
        self.requested = self.returned = 0
        lines = [*pythia_settings(process), "Random:setSeed = on", f"Random:seed = {seed % _SEEDS + 1}"]
        with _captured_output(1, 2) as output:
            self._pythia = pythia8.Pythia("", False)
            refused = [line for line in lines if not self._pythia.readString(line)]
            # kept as an attribute: Pythia holds no reference that keeps a Python object alive
            self._veto = _parton_veto(pythia8, process.parton_pt)
            self._pythia.setUserHooksPtr(self._veto)
            started = not refused and self._pythia.init()
        if not started:
            reason = refused[0] if refused else next((line for line in output if "PYTHIA" in line), "no reason given")
            raise DrapesError(f"Pythia refuses this process: {reason.strip()}")

    @property
    def showered(self) -> int:
        """See the class."""
        return int(self._veto.showered)

    @property
    def vetoed(self) -> int:
        """See the class."""
        return int(self._veto.vetoed)

    @property
    def hopeless(self) -> bool:
        """See the class."""
        return bool(self._veto.in_a_row >= PATIENCE)

    @property
    def cross_section(self) -> tuple[float, float]:
        """Generator's cross section of what is left after the veto and its error, pb."""
        info = self._pythia.infoPython()
        return 1e9 * float(info.sigmaGen()), 1e9 * float(info.sigmaErr())

    def batch(self, events: int) -> Particles:
        """Generate events that pass the veto.

        Parameters
        ----------
        events : int
            How many to ask for; those whose hadronisation fails are missing from what comes back.
        """
        # the hook's jet finder prints its banner with the first event; descriptor 2 stays open to progress bars
        with _captured_output(1):
            particles = _final(self._pythia.nextBatch(events).prt)
        self.requested += events
        self.returned += len(particles)
        return particles

    def pythias_counts(self) -> tuple[int, int]:
        """Return Pythia's own counts: hard processes that it selected, and events that it accepted."""
        info = self._pythia.infoPython()
        return int(info.nSelected()), int(info.nAccepted())

    def check(self) -> None:
        """Compare what was counted here with what Pythia counted.

        Every event that Pythia accepted was returned. Every hard process that it selected was vetoed or returned, or is
        one of those that were asked for and failed.

        Raises
        ------
        LostEventsError
            The counts differ.
        """
        selected, accepted = self.pythias_counts()
        if accepted != self.returned:
            raise LostEventsError(f"Pythia accepted {counted(accepted, 'event')}, {self.returned} of them arrived")
        if not self.vetoed + self.returned <= selected <= self.vetoed + self.requested:
            raise LostEventsError(
                f"Pythia selected {selected} hard processes, but {self.vetoed} were vetoed after the shower and"
                f" {self.returned} of {self.requested} simulated"
            )


def _final(particles: Any) -> Particles:
    """Keep the particles that nothing became of."""
    status = particles.status
    starts = offsets_of(ak.to_numpy(ak.num(status)))
    final = ak.to_numpy(ak.flatten(status)) > 0
    offsets = offsets_of(final)[starts]

    def column(values: Any) -> FloatArray:
        # a vertex that Pythia did not set is the origin
        flat = ak.to_numpy(ak.fill_none(ak.flatten(values, axis=1), 0.0))
        return np.ascontiguousarray(flat[final], dtype=np.float64)

    momentum, vertex = particles.p, particles.vProd
    pdg = ak.to_numpy(ak.flatten(particles.id))[final].astype(np.int64)
    columns = (momentum.px, momentum.py, momentum.pz, momentum.e, vertex.px, vertex.py, vertex.pz)
    return Particles(offsets, pdg, *(column(values) for values in columns))


def _parton_veto(pythia8: Any, least_pt: float) -> Any:
    """Make the hook that gives events up between shower and hadronisation, which takes half of the time."""

    class Veto(pythia8.UserHooks):  # type: ignore[misc]
        def __init__(self) -> None:
            pythia8.UserHooks.__init__(self)
            self.showered = self.vetoed = self.in_a_row = 0
            # anti-kT, R = 1, jets above a tenth of the threshold, |eta| < 5, all final partons, their masses
            self._jets = pythia8.SlowJet(-1, 1.0, 0.1 * least_pt, 5.0, 1, 1)

        def canVetoPartonLevel(self) -> bool:
            return True

        def doVetoPartonLevel(self, event: Any) -> bool:
            self.showered += 1
            if self.in_a_row >= PATIENCE:  # Pythia would ask for ever
                return False
            self._jets.analyze(event)
            soft = self._jets.sizeJet() == 0 or float(self._jets.pT(0)) < least_pt
            self.vetoed += soft
            self.in_a_row = self.in_a_row + 1 if soft else 0
            return bool(soft)

    return Veto()


@contextmanager
def _captured_output(*descriptors: int) -> Iterator[Sequence[str]]:
    """Keep what compiled code prints out of the user's terminal; the lines are there when the block has ended."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as store:
        # compiled code writes to descriptors, whatever sys.stdout is
        saved = [(number, os.dup(number)) for number in descriptors]
        try:
            for number, _ in saved:
                os.dup2(store.fileno(), number)
            yield lines
        finally:
            ctypes.CDLL(None).fflush(None)
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
            store.seek(0)
            lines += store.read().decode("utf-8", "replace").splitlines()
