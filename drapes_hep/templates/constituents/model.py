r"""Templates of jets as sets of constituents: Drapes on low-level variables, and the full-phase-space generators.

Two models, both trained on sidebands alone (arXiv:2312.10130, section 3.3; arXiv:2310.06897, section III):

(a) both jets' (pT, eta, phi, m, N) given m_JJ, in the coordinates of
    :mod:`drapes_hep.templates.constituents.kinematics`;
(b) the constituents of ONE jet given that jet's (pT, eta, phi, m, N). Both jets use the same model, each alone, so no
    correlation between the substructure of the two, which a resonance would have, can be learnt.

What network (b) sees of a constituent is three numbers that follow the normal distribution over all constituents of the
training: ln(pT_i / pT_jet) mapped by its quantiles, and (eta_i - eta_jet, phi_i - phi_jet) with its length mapped to
that of a two-dimensional normal vector by its quantiles, its direction kept: nothing in the scaling prefers a
direction about the axis.

Memory: the constituents of the training jets (12 bytes each, in float64 while they are prepared 24), and what
:mod:`drapes_hep.diffusion.training` and ``members`` say for a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm
from torch import Tensor, nn

from drapes_hep.config import ConstituentsConfig, TrainingConfig
from drapes_hep.diffusion.checkpoints import CARD, WEIGHTS, load_model, save_model
from drapes_hep.diffusion.denoisers import DENOISERS, PreconditionedDenoiser
from drapes_hep.diffusion.samplers import sample
from drapes_hep.diffusion.training import TrainingResult, TrainingSettings, train
from drapes_hep.errors import FitError, RunDirectoryError
from drapes_hep.events.features import wrapped
from drapes_hep.events.ragged import KINEMATICS, low_level, pack_nested
from drapes_hep.events.scaling import Scaling, fit_scaling, scaling_from_dict
from drapes_hep.events.schema import offsets_of, places_of
from drapes_hep.events.types import AwkwardArray
from drapes_hep.fixed import JET_HEADS
from drapes_hep.kernels import Precision
from drapes_hep.networks import AttentiveDeepSets, ResidualMLP
from drapes_hep.packed import Sets, take
from drapes_hep.rng import event_normals, event_uniforms, stage_seed
from drapes_hep.templates.constituents.backbones import make_backbone
from drapes_hep.templates.constituents.conserve import conserve, jet_sums
from drapes_hep.templates.constituents.kinematics import (
    MASS,
    Bounds,
    Chart,
    N,
    Orientation,
    coordinates,
    domain,
    jets_from,
)
from drapes_hep.templates.feature_model import check_hidden, check_parts
from drapes_hep.templates.parts import TRAIN, VALIDATION
from drapes_hep.training.curves import Epoch

__all__ = [
    "ConstituentModel",
    "ConstituentScaling",
    "JetModel",
    "fit_constituents",
    "load_constituent_model",
    "pack_jets",
    "refill",
    "save_constituent_model",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LEVELS = np.linspace(-4.0, 4.0, 241)
_RADII = np.linspace(0.0, 4.5, 181)
_FITTED = 2_000_000
"""Constituents that a scaling is fitted on at most: their quantiles are then known to 1e-3 of a standard deviation."""
_CONSERVED = 0.01


def pack_jets(jets: AwkwardArray) -> tuple[FloatArray, Sets]:
    """Turn pairs of jets with constituents into arrays; the jet of larger pT comes first.

    Parameters
    ----------
    jets : awkward.Array
        n lists of two jets with pt, eta, phi, mass and ``constituents`` (pt, eta, phi); GeV, rad.

    Returns
    -------
    array, shape (n, 2, 5)
        pt, eta, phi, mass, number of constituents.
    Sets
        2 n sets, jets of an event one after the other: ln(pt fraction), delta eta, delta phi; float64.

    Raises
    ------
    ValueError
        If the jets have no constituents, or are not two an event.
    """
    if "constituents" not in ak.fields(jets):
        raise ValueError("the jets have no constituents")
    fields = [ak.to_numpy(ak.flatten(jets[name])).astype(np.float64) for name in ("pt", "eta", "phi", "mass")]
    if len(fields[0]) != 2 * len(jets):
        raise ValueError("every event needs two jets")
    sets, _ = pack_nested(jets["constituents"], KINEMATICS)
    sets = Sets(sets.values.double(), sets.offsets)
    columns = np.stack([*fields, sets.lengths.numpy().astype(np.float64)], axis=1)
    relative = low_level(sets, torch.as_tensor(columns[:, :3]))
    values = relative.values
    values[:, 0] = torch.log(values[:, 0])
    pairs = columns.reshape(-1, 2, 5)
    swap = pairs[:, 1, 0] > pairs[:, 0, 0]
    if swap.any():
        order = np.arange(2 * len(pairs)).reshape(-1, 2)
        order[swap] = order[swap, ::-1]
        relative = take(relative, torch.as_tensor(order.ravel()))
        pairs = np.where(swap[:, None, None], pairs[:, ::-1], pairs)
    return pairs, relative


@dataclass(frozen=True)
class ConstituentScaling:
    """A fitted scaling of constituents, and of what their network is told of a jet.

    Attributes
    ----------
    log_fraction : array, shape (241,)
        Quantiles of ln(pT_i / pT_jet), at the levels of a normal variable from -4 to 4.
    radius : array, shape (181,)
        Quantiles of the distance from the axis, at those of a two-dimensional normal vector's length from 0 to 4.5.
    condition : tuple of str
        Of ``constituents.condition``.
    mean, scale : array, shape (c,)
        Of the condition's logarithms and angles.
    """

    log_fraction: FloatArray
    radius: FloatArray
    condition: tuple[str, ...]
    mean: FloatArray
    scale: FloatArray

    def told(self, jets: FloatArray, mjj: FloatArray) -> Tensor:
        """Return what the network is told of jets (n, 5) of events of masses (n,): shape (n, c)."""
        return torch.as_tensor((_told(self.condition, jets, mjj) - self.mean) / self.scale, dtype=torch.float32)

    def forward(self, values: FloatArray) -> FloatArray:
        """Scale constituents (total, 3)."""
        length = np.hypot(values[:, 1], values[:, 2])
        scaled = np.interp(length, self.radius, _RADII)
        with np.errstate(divide="ignore", invalid="ignore"):
            stretch = np.where(length > 0, scaled / length, 0.0)
        return np.stack(
            [np.interp(values[:, 0], self.log_fraction, _LEVELS), values[:, 1] * stretch, values[:, 2] * stretch],
            axis=1,
        )

    def inverse(self, z: FloatArray) -> FloatArray:
        """Map back; what lies beyond the training's extremes is put there."""
        length = np.hypot(z[:, 1], z[:, 2])
        with np.errstate(divide="ignore", invalid="ignore"):
            stretch = np.where(length > 0, np.interp(length, _RADII, self.radius) / length, 0.0)
        return np.stack([np.interp(z[:, 0], _LEVELS, self.log_fraction), z[:, 1] * stretch, z[:, 2] * stretch], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Return what a model card stores; floats survive exactly."""
        found = {name: getattr(self, name).tolist() for name in ("log_fraction", "radius", "mean", "scale")}
        return {**found, "condition": list(self.condition)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ConstituentScaling:
        """Read back what :meth:`to_dict` wrote."""
        arrays = {
            name: np.asarray(record[name], dtype=np.float64) for name in ("log_fraction", "radius", "mean", "scale")
        }
        if arrays["log_fraction"].shape != _LEVELS.shape or arrays["radius"].shape != _RADII.shape:
            raise ValueError("the scaling of constituents has other knots than this version's")
        return cls(condition=tuple(record["condition"]), **arrays)


def _told(names: Sequence[str], jets: FloatArray, mjj: FloatArray) -> FloatArray:
    pt, eta, phi, mass, number = jets.T
    known = {
        "pt": np.log(pt),
        "eta": eta,
        "phi": phi,
        "mass": np.log1p(mass),
        "n": np.log1p(number),
        "mjj": np.log(mjj),
    }
    return np.stack([known[name] for name in names], axis=1)


def _fit_scaling(values: FloatArray, jets: FloatArray, mjj: FloatArray, names: Sequence[str]) -> ConstituentScaling:
    # every k-th: the constituents lie by jets and by falling momentum, so all kinds take part
    some = values[:: max(1, len(values) // _FITTED)]
    length = np.hypot(some[:, 1], some[:, 2])
    told = _told(names, jets, mjj)
    spread = told.std(axis=0)
    if len(some) < 1000 or not (np.ptp(some[:, 0]) > 0 and np.ptp(length) > 0):
        raise FitError(f"constituents: {len(values)} of them in the training jets are too few to be scaled")
    fractions = _knots(some[:, 0], norm.cdf(_LEVELS), float(some[:, 0].min()))
    # the length of a two-dimensional normal vector: P(r) = 1 - exp(-r^2 / 2)
    radii = _knots(length, 1.0 - np.exp(-0.5 * _RADII**2), 0.0)
    return ConstituentScaling(fractions, radii, tuple(names), told.mean(axis=0), np.where(spread > 1e-9, spread, 1.0))


def _knots(values: FloatArray, levels: FloatArray, lowest: float) -> FloatArray:
    """Return quantiles that rise strictly, the extremes at their ends."""
    found = np.quantile(values, levels)
    found[0], found[-1] = lowest, values.max()
    # equal quantiles (a detector's cells) are drawn apart, so that the map can be undone
    return np.asarray(found + np.arange(len(found)) * 1e-9 * (found[-1] - found[0]))


@dataclass(frozen=True)
class JetModel:
    """Model (a): both jets' kinematics given m_JJ.

    Attributes
    ----------
    denoiser : PreconditionedDenoiser
    scaling : Scaling
        Of the coordinates.
    chart : {"solved", "free"}
    bounds : Bounds
    as_set : bool
        Whether the network takes the two jets as a set of two, not as one vector.
    """

    denoiser: PreconditionedDenoiser
    scaling: Scaling
    chart: Chart
    bounds: Bounds
    as_set: bool

    def scaled(self, x: FloatArray, mjj: FloatArray) -> FloatArray:
        """Scale coordinates of n events, (n, 8) or (n, 2, 5), to rows (n, d) or, of a set of jets, (2 n, 5)."""
        if self.as_set:
            return self.scaling.forward(x.reshape(-1, x.shape[-1]), np.repeat(mjj, 2))
        return self.scaling.forward(x.reshape(len(x), -1), mjj)

    def generate(
        self,
        mjj: FloatArray,
        key: IntArray,
        seed: int,
        times: Tensor,
        *,
        start: FloatArray | None = None,
        start_mjj: FloatArray | None = None,
        solver: str = "heun",
        device: str = "cpu",
        workers: int = 1,
    ) -> FloatArray:
        """Generate pairs of jets at given masses.

        Parameters
        ----------
        mjj : array, shape (n,)
            GeV.
        key : array of int, shape (n,)
            Whose random numbers it takes.
        seed : int
        times : Tensor
            Falling times of the model's path.
        start : array, shape (n, 2, 5), optional
            Jets that the noise is added to; they keep their orientation.
        start_mjj : array, shape (n,), optional
            Their masses.
        solver, device, workers
            As for :func:`drapes_hep.diffusion.samplers.sample`.

        Returns
        -------
        array, shape (n, 2, 5)
            The leading jet first; NaN where there is none of this mass.
        """
        n = len(mjj)
        uniform = event_uniforms(stage_seed(seed, "jets"), key, size=5)
        width = self.scaling.mean.shape[0]
        noise = event_normals(stage_seed(seed, "jets' noise"), key, size=2 * width if self.as_set else width)
        alpha, sigma = (float(part) for part in self.denoiser.schedule(times[0]))
        state = sigma * noise.reshape(-1, width)
        orientation = Orientation.drawn(uniform[:, 2:])
        if start is not None and start_mjj is not None:
            x, orientation = coordinates(self.chart, start, start_mjj, self.bounds, uniform[:, :2])
            state = state + alpha * self.scaled(x, start_mjj)
        z = sample(
            self.denoiser,
            torch.as_tensor(state),
            times,
            torch.as_tensor(self.scaling.condition(mjj), dtype=torch.float32),
            offsets=torch.arange(0, 2 * n + 1, 2) if self.as_set else None,
            solver=solver,
            device=device,
            workers=workers,
        ).numpy()
        x = self.scaling.inverse(z, np.repeat(mjj, 2) if self.as_set else mjj)
        return jets_from(self.chart, x.reshape(n, 2, -1) if self.chart == "free" else x, mjj, self.bounds, orientation)


@dataclass(frozen=True)
class ConstituentModel:
    """Both models of a window.

    Attributes
    ----------
    jets : JetModel
    denoiser : PreconditionedDenoiser
        Of one jet's constituents.
    scaling : ConstituentScaling
    conserves : bool
        Whether generated constituents are brought to their jet's four-momentum.
    adds_up : bool
        Whether jets are the sums of their constituents, as nine of ten of the training are within 1%. Where they are
        not (corrected momenta, constituents cut off), generated jets keep the four-momentum that was asked for.
    radius : float
        Of the jets.
    hidden : tuple of (float, float)
        Mass intervals whose events neither model saw, GeV.
    """

    jets: JetModel
    denoiser: PreconditionedDenoiser
    scaling: ConstituentScaling
    conserves: bool
    adds_up: bool
    radius: float
    hidden: tuple[tuple[float, float], ...]

    @property
    def keeps(self) -> bool:
        """Whether jets have the four-momentum that they were generated for, not the sum of what was generated."""
        return _keeps(self.conserves, self.adds_up)

    def generate(
        self,
        jets: FloatArray,
        mjj: FloatArray,
        key: IntArray,
        seed: int,
        times: Tensor,
        *,
        start: Sets | None = None,
        solver: str = "heun",
        members: int = 8192,
        precision: Precision = "float32",
        device: str = "cpu",
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sets:
        """Generate the constituents of pairs of jets, each jet alone.

        Parameters
        ----------
        jets : array, shape (n, 2, 5)
        mjj : array, shape (n,)
            GeV; read only if the condition has it.
        key : array of int, shape (n,)
            Whose noise it is: a constituent's noise follows from its event, its jet and its place.
        seed : int
        times : Tensor
            Falling times of the model's path.
        start : Sets, optional
            Constituents that the noise is added to, 2 n sets as :func:`pack_jets` gives them, which have the jets'
            numbers; from noise alone without.
        solver, members, precision, device, workers, progress
            As for :func:`drapes_hep.diffusion.samplers.sample`.

        Returns
        -------
        Sets
            2 n sets: pt (GeV), eta, phi of massless constituents, float64.
        """
        rows = jets.reshape(-1, 5)
        lengths = rows[:, N].astype(np.int64)
        # sets of like length side by side: what attention pads is then little
        order = np.argsort(lengths, kind="stable")
        offsets = offsets_of(lengths[order])
        of_jet, place = np.repeat(order, lengths[order]), places_of(lengths[order])
        noise = _drawn(event_normals, seed, "constituents", key, of_jet, place, 3)
        alpha, sigma = (float(part) for part in self.denoiser.schedule(times[0]))
        state = sigma * noise
        if start is not None:
            state += alpha * self.scaling.forward(take(start, torch.as_tensor(order)).values.numpy())
        told = self.scaling.told(rows, np.repeat(mjj, 2))
        z = sample(
            self.denoiser,
            torch.as_tensor(state),
            times,
            told[torch.as_tensor(order)],
            offsets=torch.as_tensor(offsets),
            solver=solver,
            members=members,
            precision=precision,
            device=device,
            workers=workers,
            progress=progress,
        )
        found = Sets(torch.as_tensor(self.scaling.inverse(z.numpy())), torch.as_tensor(offsets))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        found = take(found, torch.as_tensor(back))
        return self._absolute(found, rows)

    def _absolute(self, found: Sets, rows: FloatArray) -> Sets:
        values, offsets = found.values.numpy(), found.offsets.numpy()
        fraction, delta = np.exp(values[:, 0]), values[:, 1:]
        if self.conserves:
            fraction, delta = conserve(fraction, delta, offsets, rows[:, : MASS + 1], self.radius)
        axis = np.repeat(rows, np.diff(offsets), axis=0)
        columns = fraction * axis[:, 0], axis[:, 1] + delta[:, 0], wrapped(axis[:, 2] + delta[:, 1])
        return Sets(torch.as_tensor(np.stack(columns, axis=1)), found.offsets)


def _drawn(
    draw: Callable[..., FloatArray],
    seed: int,
    purpose: str,
    key: IntArray,
    of_jet: IntArray,
    place: IntArray,
    size: int,
) -> FloatArray:
    """Draw numbers that belong to constituents: to their event, their jet and their place in it."""
    out = np.empty((len(of_jet), size))
    for jet in (0, 1):
        mine = of_jet % 2 == jet
        out[mine] = draw(stage_seed(seed, purpose, jet), key[of_jet[mine] // 2], place[mine], size=size)
    return out


def refill(start: Sets, lengths: IntArray, key: IntArray, seed: int) -> Sets:
    """Return parents' constituents in the numbers that are wanted.

    Parameters
    ----------
    start : Sets
        2 n sets by falling momentum.
    lengths : array of int, shape (2 n,)
        How many each is to have.
    key : array of int, shape (n,)
        Whose random numbers decide.
    seed : int

    Returns
    -------
    Sets
        Too many: the softest are left out. Too few: members chosen at random stand twice; noise parts them. A set
        without any member is filled with its axis, at the momentum of an even share.
    """
    have = start.lengths.numpy()
    offsets = offsets_of(lengths)
    of_jet, place = np.repeat(np.arange(len(lengths)), lengths), places_of(lengths)
    more = place >= have[of_jet]
    row = start.offsets.numpy()[of_jet] + place
    which = of_jet[more]
    uniform = _drawn(event_uniforms, seed, "refill", key, which, place[more], 1)[:, 0]
    row[more] = start.offsets.numpy()[which] + np.floor(uniform * have[which]).astype(np.int64)
    empty = have[of_jet] == 0
    values = np.zeros((len(row), 3))
    values[~empty] = start.values.numpy()[row[~empty]]
    values[empty, 0] = -np.log(lengths[of_jet[empty]])
    return Sets(torch.as_tensor(values), torch.as_tensor(offsets))


# ---- training --------------------------------------------------------------------------------------------------------


def _settings(section: TrainingConfig | ConstituentsConfig, **more: Any) -> TrainingSettings:
    names = ("epochs", "batch", "rate", "warmup", "ema", "patience")
    return TrainingSettings(**{name: getattr(section, name) for name in names}, **more)


def _conserved(jets: FloatArray, sets: Sets) -> float:
    """Return the part of jets whose constituents add up to their transverse momentum and mass within 1%."""
    values, offsets = sets.values.numpy(), sets.offsets.numpy()
    sums = jet_sums(np.exp(values[:, 0]), values[:, 1], values[:, 2], offsets)
    # the mass is compared with the energy scale of the jet: small masses round
    mass = np.abs(sums.mass * jets[:, 0] - jets[:, MASS]) < _CONSERVED * (jets[:, MASS] + 1.0)
    return float(np.mean((np.abs(sums.pt - 1.0) < _CONSERVED) & mass))


def fit_constituents(
    jets: AwkwardArray,
    event_id: IntArray,
    mjj: FloatArray,
    weight: FloatArray,
    part: IntArray,
    *,
    hidden: Sequence[tuple[float, float]],
    config: ConstituentsConfig,
    training: TrainingConfig,
    scaling: str,
    radius: float,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[str, Epoch], None] | None = None,
) -> tuple[ConstituentModel, dict[str, TrainingResult]]:
    """Train both models of one window on its sidebands.

    Parameters
    ----------
    jets : awkward.Array
        n lists of two jets with constituents, of sideband events.
    event_id : array of int, shape (n,)
    mjj, weight : array, shape (n,)
        Masses in GeV, and weights.
    part : array of int, shape (n,)
        From :func:`drapes_hep.templates.parts.split_sidebands`.
    hidden : sequence of (float, float)
        Mass intervals that the models must not see.
    config : ConstituentsConfig
    training : TrainingConfig
        Of the jets' kinematics.
    scaling : {"quantile", "standard"}
        Of their coordinates.
    radius : float
        Of the jets.
    seed : int
    device : str
    checkpoint : Path, optional
        Stem of two files that are written as the trainings go, and gone on from where they exist, on any device.
    progress : callable, optional
        Called with "jets" or "constituents" and each epoch.

    Returns
    -------
    model : ConstituentModel
    results : dict of str to TrainingResult
        Of "jets" and "constituents".

    Raises
    ------
    LeakError
        If an event lies in a hidden interval.
    FitError
        If a part has no events, or there are too few to be scaled.
    """
    check_hidden(mjj, hidden)
    check_parts(part, weight)
    pairs, sets = pack_jets(jets)
    fitted, held = part == TRAIN, part == VALIDATION

    def watched(name: str) -> Callable[[Epoch], None] | None:
        return None if progress is None else lambda epoch: progress(name, epoch)

    def kept(name: str) -> Path | None:
        return None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{name}.checkpoint")

    # ---- (a) the jets' kinematics
    chart, as_set = config.kinematics, config.kinematics_network == "deepsets"
    bounds = Bounds.of(pairs[fitted])
    uniform = event_uniforms(stage_seed(seed, "spread"), event_id, size=2)
    x, _ = coordinates(chart, pairs, mjj, bounds, uniform)
    flat = x.reshape(-1, 5) if as_set else x.reshape(len(x), -1)
    copies = 2 if as_set else 1
    limits = domain(chart, bounds)
    limits = limits if flat.shape[1] == len(limits) else np.concatenate([limits, limits])
    rows = np.repeat(fitted, copies)
    masses, weights = np.repeat(mjj, copies), np.repeat(weight, copies)
    scale = fit_scaling(scaling, flat[rows], masses[rows], weights[rows], limits)  # type: ignore[arg-type]
    if as_set:
        backbone: nn.Module = AttentiveDeepSets(
            5, 1, width=training.width, depth=training.depth, heads=JET_HEADS, seed=stage_seed(seed, "jets' weights")
        )
    else:
        backbone = ResidualMLP(
            flat.shape[1], 1, width=training.width, depth=training.depth, seed=stage_seed(seed, "jets' weights")
        )
    jet_model = JetModel(DENOISERS[training.path](backbone), scale, chart, bounds, as_set)
    z = torch.as_tensor(jet_model.scaled(x, mjj), dtype=torch.float32)
    told = torch.as_tensor(scale.condition(mjj), dtype=torch.float32)
    everything: Tensor | Sets = Sets(z, torch.arange(0, len(z) + 1, 2)) if as_set else z

    def chosen(mask: npt.NDArray[np.bool_]) -> tuple[Tensor | Sets, Tensor, Tensor]:
        keep = torch.as_tensor(mask)
        some = take(everything, keep) if isinstance(everything, Sets) else everything[keep]
        return some, told[keep], torch.as_tensor(weight[mask])

    results = {
        "jets": train(
            jet_model.denoiser,
            *chosen(fitted),
            *chosen(held),
            _settings(training),
            seed=stage_seed(seed, "train jets"),
            device=device,
            checkpoint=kept("jets"),
            progress=watched("jets"),
        )
    }

    # ---- (b) the constituents of one jet
    rows = np.repeat(fitted, 2)
    jet_rows, jet_mjj, jet_weight = pairs.reshape(-1, 5), np.repeat(mjj, 2), np.repeat(weight, 2)
    trained = take(sets, torch.as_tensor(rows))
    set_scaling = _fit_scaling(trained.values.numpy(), jet_rows[rows], jet_mjj[rows], config.condition)
    adds_up = _conserved(jet_rows[rows], trained) >= 0.9
    conserves = adds_up if config.conserve is None else config.conserve
    backbone = make_backbone(config, stage_seed(seed, "weights"))
    denoiser = DENOISERS[config.path](backbone)

    def of(mask: npt.NDArray[np.bool_]) -> tuple[Sets, Tensor, Tensor]:
        # a jet without constituents teaches nothing
        mask = mask & (jet_rows[:, N] > 0)
        some = take(sets, torch.as_tensor(mask))
        values = torch.as_tensor(set_scaling.forward(some.values.numpy()), dtype=torch.float32)
        conditions = set_scaling.told(jet_rows[mask], jet_mjj[mask])
        return Sets(values, some.offsets), conditions, torch.as_tensor(jet_weight[mask])

    results["constituents"] = train(
        denoiser,
        *of(rows),
        *of(np.repeat(held, 2)),
        _settings(config, validation_draws=2, precision=config.precision),
        seed=stage_seed(seed, "train constituents"),
        device=device,
        # sets give kernels enough to do for several threads
        threads=None,
        checkpoint=kept("constituents"),
        progress=watched("constituents"),
    )
    intervals = tuple((float(a), float(b)) for a, b in hidden)
    return ConstituentModel(jet_model, denoiser, set_scaling, conserves, adds_up, radius, intervals), results


# ---- on disk ---------------------------------------------------------------------------------------------------------

_PARTS = ("jets", "constituents")


def save_constituent_model(folder: Path, model: ConstituentModel) -> list[Path]:
    """Write both models with their cards, into ``folder/jets`` and ``folder/constituents``; return the files."""
    hidden = [list(interval) for interval in model.hidden]
    jets = {
        "scaling": model.jets.scaling.to_dict(),
        "chart": model.jets.chart,
        "bounds": asdict(model.jets.bounds),
        "as_set": model.jets.as_set,
        "hidden": hidden,
    }
    constituents = {
        "scaling": model.scaling.to_dict(),
        "conserves": model.conserves,
        "adds_up": model.adds_up,
        "radius": model.radius,
        "hidden": hidden,
    }
    save_model(folder / "jets", model.jets.denoiser, jets)
    save_model(folder / "constituents", model.denoiser, constituents)
    return [folder / part / name for part in _PARTS for name in (CARD, WEIGHTS)]


def _keeps(conserves: bool, adds_up: bool) -> bool:
    return conserves or not adds_up


def load_constituent_model(
    folder: Path, device: str = "cpu", network: type[nn.Module] | None = None
) -> ConstituentModel:
    """Read a window's models back.

    Parameters
    ----------
    folder : Path
    device : str
    network : type, optional
        The class that the configuration names for the constituents, where it is none of this package.

    Raises
    ------
    RunDirectoryError
        If card and weights are damaged or do not belong together.
    """
    denoisers, cards = {}, {}
    for part in _PARTS:
        denoisers[part], card = load_model(folder / part, device, network)
        cards[part] = card.get("extra", {})
    try:
        jets, constituents = cards["jets"], cards["constituents"]
        hidden = tuple((float(a), float(b)) for a, b in jets["hidden"])
        if hidden != tuple((float(a), float(b)) for a, b in constituents["hidden"]):
            raise ValueError("the two models were trained without different windows")
        jet_model = JetModel(
            denoisers["jets"],
            scaling_from_dict(jets["scaling"]),
            jets["chart"],
            Bounds.from_dict(jets["bounds"]),
            bool(jets["as_set"]),
        )
        scaling = ConstituentScaling.from_dict(constituents["scaling"])
        return ConstituentModel(
            jet_model,
            denoisers["constituents"],
            scaling,
            bool(constituents["conserves"]),
            bool(constituents["adds_up"]),
            float(constituents["radius"]),
            hidden,
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunDirectoryError(
            f"{folder}: is not a checkpoint of a constituent model ({type(error).__name__}: {reason}); train again"
        ) from error
