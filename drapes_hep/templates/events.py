"""Template events of jets as sets of constituents: from a plan of masses and parents to jets, features and losses."""

from __future__ import annotations

from collections.abc import Callable

import awkward as ak
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drapes_hep.config import ConstituentsConfig, TemplateConfig
from drapes_hep.diffusion.schedules import Schedule
from drapes_hep.events.chunks import Reading
from drapes_hep.events.clustering import falling_pt, subjettiness
from drapes_hep.events.features import compute_features, invariant_mass
from drapes_hep.events.schema import nested, ragged
from drapes_hep.events.types import AwkwardArray
from drapes_hep.sets import Sets, take
from drapes_hep.templates.conserve import jet_sums
from drapes_hep.templates.constituents import ConstituentModel, pack_jets, refill
from drapes_hep.templates.kinematics import N
from drapes_hep.templates.recipes import Parents, Starts, Template, levels

__all__ = ["LOSSES", "build_jets", "constituent_levels", "make_constituent_template"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_BLOCK = 10_000
"""Events made at once: some 300 MB, whatever the size of the template."""

LOSSES = ("no_such_jets", "below_threshold", "left_region", "undefined_feature")
"""Why an event that was generated is no template event: no pair of jets has its mass and the other coordinates; the
leading jet falls below the smallest pT of the training, or a jet lies beyond its largest ``|eta|``; the mass computed
again from the constituents lies outside the region; a feature is undefined (tau21 of a jet with tau1 = 0)."""


def build_jets(constituents: Sets, reading: Reading, asked: FloatArray | None = None) -> AwkwardArray:
    """Build pairs of jets from their constituents.

    Parameters
    ----------
    constituents : Sets
        2 n sets: pt (GeV), eta, phi of massless constituents.
    reading : Reading
        Its ``radius`` and ``axes`` are those of N-subjettiness.
    asked : array, shape (n, 2, 5), optional
        The jets' own kinematics, where they are not the sums of their constituents.

    Returns
    -------
    awkward.Array
        n lists of two jets with pt, eta, phi, mass, tau1, tau2, tau3 and ``constituents`` by falling pt; the jet of
        larger pT first. Jets without constituents have zeros throughout.
    """
    values, offsets = constituents.values.numpy(), constituents.offsets.numpy()
    order = falling_pt(values[:, 0], offsets)
    pt, eta, phi = values[order].T
    sums = jet_sums(pt, eta, phi, offsets)
    tau = subjettiness(pt, eta, phi, offsets, reading)
    outer = 2 * np.arange((len(offsets) - 1) // 2 + 1)
    found = [sums.pt, sums.eta, sums.phi, sums.mass] if asked is None else list(asked.reshape(-1, 5).T[:4])
    columns = dict(zip(("pt", "eta", "phi", "mass"), found, strict=True))
    columns |= {f"tau{i + 1}": tau[:, i] for i in range(3)}
    inside = {"pt": pt, "eta": eta, "phi": phi, "mass": np.zeros_like(pt)}
    lists = ak.zip({name: nested(np.ascontiguousarray(value), offsets, outer) for name, value in inside.items()})
    fields = {name: ragged(np.ascontiguousarray(np.nan_to_num(value)), outer) for name, value in columns.items()}
    jets = ak.zip({**fields, "constituents": lists}, depth_limit=2)
    return jets[ak.argsort(jets["pt"], ascending=False, stable=True)]


def constituent_levels(template: TemplateConfig, config: ConstituentsConfig, schedule: Schedule) -> Tensor:
    """Give the times of the constituents' sampler: all from noise, for a partial method those from its strength on.

    Parameters
    ----------
    template : TemplateConfig
        Method, and ``strength`` or ``steps_left``.
    config : ConstituentsConfig
        Its ``steps``.
    schedule : Schedule
        The constituents' path.

    Raises
    ------
    ConfigError
        A strength outside the levels, or more steps left than there are.
    """
    return levels(template.model_copy(update={"steps": config.steps}), schedule)


def make_constituent_template(
    model: ConstituentModel,
    template: TemplateConfig,
    config: ConstituentsConfig,
    plan: Starts,
    parents: Parents | None,
    seed: int,
    *,
    features: tuple[str, ...],
    reading: Reading,
    region: Callable[[FloatArray], npt.NDArray[np.bool_]],
    device: str = "cpu",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Template:
    """Make template events of jets with constituents, a block of events after the other.

    Parameters
    ----------
    model : ConstituentModel
    template : TemplateConfig
        Method and strength; steps and solver of the kinematics.
    config : ConstituentsConfig
        Steps and solver of the constituents, and the kinematics' own strength.
    plan : Starts
        From :func:`drapes_hep.templates.recipes.starts`.
    parents : Parents, optional
        Those that the plan was made for, with their jets.
    seed : int
    features : tuple of str
        Computed from the generated constituents.
    reading : Reading
        How N-subjettiness is computed.
    region : callable
        From masses (n,) to whether they lie where the template is wanted.
    device, workers, progress
        As for :func:`drapes_hep.diffusion.samplers.sample`.

    Returns
    -------
    Template
        In the plan's order, less the events that are counted in ``lost``; its m_JJ is computed again from the
        constituents.

    Raises
    ------
    ValueError
        If the parents carry no jets.
    """
    parts = []
    blocks = range(0, max(len(plan.event_id), 1), _BLOCK)
    for i, first in enumerate(blocks):

        def told(done: int, total: int, before: int = i) -> None:
            if progress is not None:
                progress(before * total + done, len(blocks) * total)

        parts.append(
            _block(
                model,
                template,
                config,
                plan.take(slice(first, first + _BLOCK)),
                parents,
                seed,
                features,
                reading,
                region,
                device,
                workers,
                told,
            )
        )
    names = ("event_id", "parent_id", "x", "mjj", "weight")
    joined = {name: np.concatenate([getattr(one, name) for one in parts]) for name in names}
    lost = {name: sum(one.lost[name] for one in parts) for name in LOSSES}
    return Template(**joined, jets=ak.concatenate([one.jets for one in parts]), lost=lost)


def _block(
    model: ConstituentModel,
    template: TemplateConfig,
    config: ConstituentsConfig,
    plan: Starts,
    parents: Parents | None,
    seed: int,
    features: tuple[str, ...],
    reading: Reading,
    region: Callable[[FloatArray], npt.NDArray[np.bool_]],
    device: str,
    workers: int,
    progress: Callable[[int, int], None],
) -> Template:
    start_jets: FloatArray | None = None
    start_sets: Sets | None = None
    if parents is not None:
        if parents.jets is None:
            raise ValueError("parents of a constituent template need their jets")
        start_jets, start_sets = pack_jets(parents.jets[plan.row])
    jets = _kinematics(model, template, config, plan, start_jets, parents, seed, device, workers)
    there = np.isfinite(jets).all(axis=(1, 2))
    lost = dict.fromkeys(LOSSES, 0) | {"no_such_jets": int((~there).sum())}
    rows = np.flatnonzero(there)
    pairs = np.stack([2 * rows, 2 * rows + 1], axis=1).ravel()
    if start_sets is not None:
        lengths = jets[rows][:, :, N].astype(np.int64).ravel()
        start_sets = refill(take(start_sets, torch.as_tensor(pairs)), lengths, plan.event_id[rows], seed)
    made = model.generate(
        jets[rows],
        plan.mjj[rows],
        plan.event_id[rows],
        seed,
        constituent_levels(template, config, model.denoiser.schedule),
        start=start_sets,
        solver=config.solver,
        members=config.members,
        precision=config.precision,
        device=device,
        workers=workers,
        progress=progress,
    )
    built = build_jets(made, reading, None if model.adds_up else jets[rows])
    mjj = invariant_mass(built)
    x = np.stack(list(compute_features(features, built).values()), axis=1)
    bounds = model.jets.bounds
    leading, widest = ak.to_numpy(built["pt"][:, 0]), ak.to_numpy(ak.max(abs(built["eta"]), axis=1))
    reasons = {
        # rounding: an event at the threshold itself is not below it
        "below_threshold": (leading < bounds.leading_pt * (1 - 1e-6)) | (widest > bounds.abs_eta * (1 + 1e-6)),
        "left_region": ~region(mjj),
        "undefined_feature": ~np.isfinite(x).all(axis=1),
    }
    kept = np.ones(len(rows), dtype=bool)
    for name, mask in reasons.items():
        lost[name] = int((kept & mask).sum())
        kept &= ~mask
    chosen = plan.take(rows[kept])
    return Template(chosen.event_id, chosen.parent_id, x[kept], mjj[kept], chosen.weight, built[kept], lost)


def _kinematics(
    model: ConstituentModel,
    template: TemplateConfig,
    config: ConstituentsConfig,
    plan: Starts,
    start: FloatArray | None,
    parents: Parents | None,
    seed: int,
    device: str,
    workers: int,
) -> FloatArray:
    """Give the jets that the constituents are generated for."""
    if start is not None:
        if config.kinematics_strength is None:
            return start
        template = template.model_copy(update={"strength": config.kinematics_strength, "steps_left": None})
    return model.jets.generate(
        plan.mjj,
        plan.event_id,
        seed,
        levels(template, model.jets.denoiser.schedule),
        start=start,
        start_mjj=None if parents is None else parents.mjj[plan.row],
        solver=template.solver,
        device=device,
        workers=workers,
    )
