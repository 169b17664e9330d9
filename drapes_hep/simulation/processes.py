r"""What is simulated, in Pythia's words: QCD dijets, a resonance A -> B C, two showers.

Proton collisions at 13 TeV, Monash tune, NNPDF2.3 LO, without multiple parton interactions and without pile-up, as the
LHC Olympics R&D data were made. Particles of c tau above 10 mm do not decay in the generator but reach the detector.

The resonance is Pythia's W' -> W Z with the masses of W' (A), W (B) and Z (C) replaced, since this process comes with
the spin correlations of the decay chain. Two prongs are the W's and Z's own decays to quarks other than top. Three
prongs are decays to a light quark, an antiquark and a gluon, uniform in phase space: of all ways to three partons, the
one that both showers know how to radiate from (from three quarks, whose colours meet in a junction, Vincia does not).

The alternative is Vincia's antenna shower (global, without helicities) instead of Pythia's simple shower.

References
----------
C. Bierlich et al., arXiv:2203.11601 (Pythia 8.3); H. Brooks, C. T. Preuss, P. Skands, arXiv:2003.00702 (Vincia);
P. Skands, S. Carrazza, J. Rojo, arXiv:1404.5630 (Monash); G. Kasieczka et al., arXiv:2101.08320 (LHC Olympics).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from drapes_hep.errors import ConfigError

__all__ = ["PROCESSES", "PRONGS", "SHOWERS", "SQRT_S", "Process", "pythia_settings"]

PROCESSES = ("qcd", "resonance")
"""Known processes."""

SHOWERS = ("default", "alternative")
"""Known showers, each with a detector of its own."""

PRONGS = (2, 3)
"""Partons that B and C may decay to."""

SQRT_S = 13_000.0
"""GeV."""

LIGHTEST = 10.0
"""GeV. The least mass of B and C: they decay to b quarks, too."""

_TOP = 172.5
_WIDTH = 0.01
"""Of A, as a fraction of its mass."""
_PRONG_WIDTH = 0.026
"""Of B and C in decays to three partons, as a fraction of the mass: about what two-quark decays give them."""


@dataclass(frozen=True)
class Process:
    """One process, its shower, and the jet that every event must have.

    Parameters
    ----------
    kind : {"qcd", "resonance"}
        Background or signal.
    masses : tuple of three floats, optional
        Of A, B and C, GeV; only for a resonance, and needed there.
    prongs : int, optional
        Partons that B and C decay to each, 2 or 3; only for a resonance, 2 by default.
    width : float, optional
        Of A, GeV; only for a resonance, 1% of its mass by default.
    shower : {"default", "alternative"}
        Which shower; the detector goes with it.
    leading_pt : float
        GeV. Events whose leading jet has less are not written.

    Raises
    ------
    ConfigError
        What cannot be simulated: unknown words, impossible masses, an option that means nothing to the process.
    """

    kind: str
    masses: tuple[float, float, float] | None = None
    prongs: int | None = None
    width: float | None = None
    shower: str = "default"
    leading_pt: float = 1200.0

    def __post_init__(self) -> None:
        for name, value, choices in (("process", self.kind, PROCESSES), ("--shower", self.shower, SHOWERS)):
            if value not in choices:
                raise ConfigError(f"{name} '{value}': choose {' or '.join(choices)}")
        if not 100 <= self.leading_pt < SQRT_S / 2:
            raise ConfigError(f"--leading-pt {self.leading_pt:g}: from 100 to below {SQRT_S / 2:g} GeV")
        if self.kind == "qcd":
            for name in ("masses", "prongs", "width"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"--{name} is not used by qcd, only by resonance")
            return
        if self.masses is None:
            raise ConfigError("a resonance needs --masses A B C, GeV, e.g. --masses 3500 500 100")
        _check_masses(self.masses)
        object.__setattr__(self, "prongs", 2 if self.prongs is None else self.prongs)
        object.__setattr__(self, "width", _WIDTH * self.masses[0] if self.width is None else self.width)
        if self.prongs not in PRONGS:
            raise ConfigError(f"--prongs {self.prongs}: choose {' or '.join(map(str, PRONGS))}")
        if not 0 < (self.width or 0) <= 0.2 * self.masses[0]:
            raise ConfigError(f"--width {self.width:g}: above 0 and at most a fifth of A's mass")

    @property
    def label(self) -> int:
        """Truth label of its events: 1 for signal, 0 for background."""
        return int(self.kind == "resonance")

    @property
    def parton_pt(self) -> float:
        """GeV. Events whose leading jet of partons has less are given up before hadronisation.

        At 7/8 of the cut on the final jet, 0.2% of what passes that cut is lost.
        """
        return 0.875 * self.leading_pt

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def _check_masses(masses: tuple[float, float, float]) -> None:
    a, b, c = masses
    text = f"--masses {a:g} {b:g} {c:g}"
    if not all(math.isfinite(m) and m > 0 for m in masses):
        raise ConfigError(f"{text}: masses must be positive, in GeV")
    if b + c >= a:
        raise ConfigError(f"{text}: impossible, A of {a:g} GeV cannot decay to B and C of {b + c:g} GeV together")
    if a >= SQRT_S:
        raise ConfigError(f"{text}: impossible, the protons collide with {SQRT_S:g} GeV")
    if min(b, c) < LIGHTEST:
        raise ConfigError(f"{text}: B and C must have at least {LIGHTEST:g} GeV")


def pythia_settings(process: Process) -> tuple[str, ...]:
    """Return Pythia's settings of a process, without the seed.

    Parameters
    ----------
    process : Process
        What to simulate.

    Returns
    -------
    tuple of str
        Lines for ``Pythia.readString``.
    """
    lines = [
        f"Beams:eCM = {SQRT_S}",
        "Print:quiet = on",
        "PartonLevel:MPI = off",
        "ParticleDecays:limitTau0 = on",
        "ParticleDecays:tau0Max = 10.",
    ]
    if process.kind == "qcd":
        # at 3/4 of the cut on the leading jet: m_JJ is complete from 2.25 times the cut on, and sculpted below
        lines += ["HardQCD:all = on", f"PhaseSpace:pTHatMin = {0.75 * process.leading_pt}"]
    else:
        lines += _resonance(process)
    if process.shower == "alternative":
        # the global shower is four times as fast as the sector shower
        lines += ["PartonShowers:model = 2", "Vincia:sectorShower = off", "Vincia:helicityShower = off"]
    return tuple(lines)


def _resonance(process: Process) -> list[str]:
    assert process.masses is not None
    a, b, c = process.masses
    lines = [
        "NewGaugeBoson:ffbar2Wprime = on",
        "Wprime:coup2WZ = 1.",
        f"PhaseSpace:mHatMin = {max(0.3 * a, b + c)}",
        f"34:m0 = {a}",
        "34:doForceWidth = on",
        f"34:mWidth = {process.width}",
        "34:onMode = off",
        "34:onIfAll = 23 24",
    ]
    for code, mass, partons in ((24, b, "2 -1 21"), (23, c, "1 -1 21")):
        lines += [f"{code}:m0 = {mass}", f"{code}:mMin = {min(10.0, 0.5 * mass)}"]
        if process.prongs == 2:
            lines += [f"{code}:onMode = off", f"{code}:onIfAny = 1 2 3 4 5"]
        else:
            # mode 103: the branching fraction is taken as given, for no matrix element of this decay is known
            lines += [
                f"{code}:oneChannel = 1 1. 103 {partons}",
                f"{code}:doForceWidth = on",
                f"{code}:mWidth = {_PRONG_WIDTH * mass}",
            ]
    if process.shower == "alternative" and b + LIGHTEST > _TOP:
        # a top quark that cannot decay to the W crashes Vincia when it starts; no top is produced here anyway
        lines.append(f"6:m0 = {b + 100}")
    return lines
