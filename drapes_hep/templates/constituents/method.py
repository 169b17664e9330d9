"""Drapes on constituents: from a plan of masses and parents to jets, features and losses.

Memory: some 300 MB for a block of 10,000 events, whatever the size of the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drapes_hep.config import NETWORKS, Config, ConstituentsConfig, TemplateConfig, TrainingConfig
from drapes_hep.diffusion.schedules import Schedule
from drapes_hep.errors import ConfigError
from drapes_hep.events.chunks import Reading
from drapes_hep.events.clustering import falling_pt, subjettiness
from drapes_hep.events.features import compute_features, invariant_mass, kept_fields
from drapes_hep.events.schema import nested, ragged
from drapes_hep.events.types import AwkwardArray
from drapes_hep.packed import Sets, take
from drapes_hep.plugins import source_hashes
from drapes_hep.templates.constituents.backbones import check_backbone, find_backbone
from drapes_hep.templates.constituents.conserve import jet_sums
from drapes_hep.templates.constituents.fit import fit_constituents
from drapes_hep.templates.constituents.kinematics import QUANTITIES, N
from drapes_hep.templates.constituents.model import ConstituentModel
from drapes_hep.templates.constituents.packing import pack_jets, refill
from drapes_hep.templates.constituents.saved import load_constituent_model, save_constituent_model
from drapes_hep.templates.drapes_family import RECIPES
from drapes_hep.templates.feature_templates import describe_sampler, levels
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask, Training
from drapes_hep.templates.tables import EventTable, Plan, Template
from drapes_hep.training.curves import TrainingCurve

__all__ = ["LOSSES", "DrapesConstituents", "build_jets", "constituent_levels"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_BLOCK = 10_000
"""Events that are made at once."""

LOSSES = ("no_such_jets", "below_threshold", "left_region", "undefined_feature")
"""Why an event that was generated is not a template event: no pair of jets has its mass and the other coordinates; the
leading jet falls below the smallest pT of the training, or a jet is outside its largest ``|eta|``; the mass computed
again from the constituents is outside the region; a feature is undefined (tau21 of a jet with tau1 = 0)."""


def build_jets(constituents: Sets, reading: Reading, kinematics: FloatArray | None = None) -> AwkwardArray:
    """Build pairs of jets from their constituents.

    Parameters
    ----------
    constituents : Sets
        2 n sets: pt (GeV), eta, phi of massless constituents.
    reading : Reading
        Its ``radius`` and ``axes`` are those of N-subjettiness.
    kinematics : array, shape (n, 2, 5), optional
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
    columns_of_jets = (
        [sums.pt, sums.eta, sums.phi, sums.mass] if kinematics is None else list(kinematics.reshape(-1, 5).T[:4])
    )
    columns = dict(zip(("pt", "eta", "phi", "mass"), columns_of_jets, strict=True))
    columns |= {f"tau{i + 1}": tau[:, i] for i in range(3)}
    inside = {"pt": pt, "eta": eta, "phi": phi, "mass": np.zeros_like(pt)}
    lists = ak.zip({name: nested(np.ascontiguousarray(value), offsets, outer) for name, value in inside.items()})
    fields = {name: ragged(np.ascontiguousarray(np.nan_to_num(value)), outer) for name, value in columns.items()}
    jets = ak.zip({**fields, "constituents": lists}, depth_limit=2)
    return jets[ak.argsort(jets["pt"], ascending=False, stable=True)]


def constituent_levels(template: TemplateConfig, config: ConstituentsConfig, schedule: Schedule) -> Tensor:
    """Return the times of the constituents' sampler: all from noise, for a partial method those from its strength on.

    Parameters
    ----------
    template : TemplateConfig
        Method, and ``strength`` or ``steps_left``.
    config : ConstituentsConfig
        Its ``steps`` and ``solver``.
    schedule : Schedule
        The constituents' path.

    Raises
    ------
    ConfigError
        A strength outside the levels, or more steps left than there are.
    """
    return levels(template.model_copy(update={"steps": config.steps, "solver": config.solver}), schedule)


class DrapesConstituents(BackgroundMethod):
    """Drapes 0, SR, SB and MC, of jets with constituents (arXiv:2312.10130, section 3.3; arXiv:2310.06897).

    Parameters
    ----------
    config : Config
        With the section ``constituents``; its ``template.method`` is one of
        :data:`~drapes_hep.templates.drapes_family.RECIPES`.
    """

    columns = ("jets",)

    def __init__(self, config: Config) -> None:
        if config.constituents is None:
            raise ConfigError("constituents: the section is missing")
        self.config, self.section = config, config.constituents
        kept_columns = kept_fields(config.features, **config.definitions)
        if kept_columns:
            raise ConfigError(
                f"constituents: a feature needs '{kept_columns[0]}' of selection.keep, which generated jets do not have"
            )
        self.reading = Reading(radius=config.data.radius, axes=config.data.axes)
        recipe = RECIPES[config.template.method]
        self.title, self.source = recipe.title, recipe.source
        self.own_mass, self.partial = recipe.own_mass, recipe.partial

    def check(self) -> None:
        """Build, train, save and load the network on a handful of numbers."""
        check_backbone(self.section)

    def settings(self) -> Mapping[str, Any]:
        """Return the hash of the user's network: an edited file is another network."""
        return {"network's source": list(source_hashes(find_backbone(self.section.network, self.section.folder)))}

    def fit(self, task: FitTask) -> tuple[ConstituentModel, Mapping[str, TrainingCurve]]:
        """Train the models of the jets' kinematics and of one jet's constituents."""
        config = self.config
        return fit_constituents(task, self.section, config.training, config.template.scaling, config.data.radius)

    def trainings(self) -> Mapping[str, Training]:
        """Return both trainings."""
        return {
            "jets": Training(
                self.config.training.epochs,
                "Training on the jets' kinematics",
                "The kinematics of both jets, given their mass.",
            ),
            "constituents": Training(
                self.section.epochs,
                "Training on the constituents",
                "The constituents of one jet, given the jet.",
                "constituent",
            ),
        }

    def summary(self) -> str:
        """Return what makes the jets, and what their constituents."""
        section, training = self.section, self.config.training
        if self.partial and section.kinematics_strength is None:
            jets = "The kinematics of both jets are those of the events that the template starts from"
        else:
            network = "DeepSets with attention" if section.kinematics_network == "deepsets" else "a residual network"
            jets = f"The kinematics of both jets are generated by {network} from their mass ({_budget(training)})"
        # the user's class has a width or has none
        own = f"at most {section.epochs} passes" if section.network not in NETWORKS else _budget(section)
        return (
            f"Templates consist of constituents. {jets}; the constituents of a jet are generated by the network"
            f" {section.network} from the jet ({own} in batches of {section.batch} jets; {section.steps} steps of"
            f" {section.solver}). Features are computed from the generated constituents."
        )

    def save(self, folder: Path, model: ConstituentModel) -> Sequence[Path]:
        """Write both models."""
        return save_constituent_model(folder, model)

    def load(self, folder: Path, device: str) -> ConstituentModel:
        """Read both models."""
        # the configuration may name the user's network, a model checkpoint may not
        return load_constituent_model(folder, device, find_backbone(self.section.network, self.section.folder))

    def describe(self, model: ConstituentModel) -> Mapping[str, Any]:
        """Return strength, steps and evaluations of the constituents' sampler."""
        schedule = model.denoiser.schedule
        return describe_sampler(self._levels(model), schedule, self.section.solver)

    def kept(self, model: ConstituentModel) -> tuple[str, ...]:
        """Name what jets take over from their parents: kinematics that are not made, as far as they are kept."""
        if not self.partial or self.section.kinematics_strength is not None:
            return ()
        return QUANTITIES if model.keeps else ("n",)

    def reach(self, region: tuple[float, float]) -> tuple[float, float]:
        """Widen the region by ``constituents.margin`` where free kinematics let events migrate."""
        if self.section.kinematics != "free":
            return region
        mass = self.config.mass
        # masses are drawn from the fit, or from the data
        least, largest = mass.fitted if mass.draw == "fit" else mass.range
        (low, high), margin = region, self.section.margin
        return max(low * (1 - margin), least), min(high * (1 + margin), largest)

    def sample(self, model: ConstituentModel, plan: Plan, parents: EventTable | None, task: SampleTask) -> Template:
        """Make jets with constituents, a block of events after the other.

        m_JJ is computed again from the constituents; events that leave the region are among those that are lost.

        Raises
        ------
        ValueError
            If the parents carry no jets.
        """
        parts = []
        blocks = range(0, max(len(plan), 1), _BLOCK)
        for i, first in enumerate(blocks):

            def advance(done: int, total: int, before: int = i) -> None:
                if task.progress is not None:
                    task.progress(before * total + done, len(blocks) * total)

            parts.append(
                self._block(model, plan.take(slice(first, first + _BLOCK)), parents, replace(task, progress=advance))
            )
        names = ("event_id", "parent_id", "x", "mjj", "weight")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        lost = {name: sum(part.lost[name] for part in parts) for name in LOSSES}
        return Template(**joined, jets=ak.concatenate([part.jets for part in parts]), lost=lost)

    def _levels(self, model: ConstituentModel) -> Tensor:
        return constituent_levels(self.config.template, self.section, model.denoiser.schedule)

    def _block(self, model: ConstituentModel, plan: Plan, parents: EventTable | None, task: SampleTask) -> Template:
        section = self.section
        start_jets: FloatArray | None = None
        start_sets: Sets | None = None
        if parents is not None:
            if parents.jets is None:
                raise ValueError("parents of a constituent template need their jets")
            start_jets, start_sets = pack_jets(parents.jets[plan.row])
        jets = self._kinematics(model, plan, start_jets, parents, task)
        solved = np.isfinite(jets).all(axis=(1, 2))
        lost = dict.fromkeys(LOSSES, 0) | {"no_such_jets": int((~solved).sum())}
        rows = np.flatnonzero(solved)
        pairs = np.stack([2 * rows, 2 * rows + 1], axis=1).ravel()
        if start_sets is not None:
            lengths = jets[rows][:, :, N].astype(np.int64).ravel()
            start_sets = refill(take(start_sets, torch.as_tensor(pairs)), lengths, plan.event_id[rows], task.seed)
        constituents = model.generate(
            jets[rows],
            plan.mjj[rows],
            plan.event_id[rows],
            task.seed,
            self._levels(model),
            start=start_sets,
            solver=section.solver,
            members=section.members,
            precision=section.precision,
            device=task.device,
            workers=task.workers,
            progress=task.progress,
        )
        built = build_jets(constituents, self.reading, None if model.adds_up else jets[rows])
        mjj = invariant_mass(built)
        x = np.stack(list(compute_features(self.config.features, built, **self.config.definitions).values()), axis=1)
        bounds = model.jets.bounds
        leading, widest = ak.to_numpy(built["pt"][:, 0]), ak.to_numpy(ak.max(abs(built["eta"]), axis=1))
        reasons = {
            # rounding: an event at the threshold itself is not below it
            "below_threshold": (leading < bounds.leading_pt * (1 - 1e-6)) | (widest > bounds.abs_eta * (1 + 1e-6)),
            "left_region": ~task.region(mjj),
            "undefined_feature": ~np.isfinite(x).all(axis=1),
        }
        passing = np.ones(len(rows), dtype=bool)
        for name, mask in reasons.items():
            lost[name] = int((passing & mask).sum())
            passing &= ~mask
        chosen = plan.take(rows[passing])
        return Template(
            chosen.event_id, chosen.parent_id, x[passing], mjj[passing], chosen.weight, built[passing], lost
        )

    def _kinematics(
        self,
        model: ConstituentModel,
        plan: Plan,
        start: FloatArray | None,
        parents: EventTable | None,
        task: SampleTask,
    ) -> FloatArray:
        """Return the jets that the constituents are generated for, shape (n, 2, 5)."""
        template, strength = self.config.template, self.section.kinematics_strength
        if start is not None:
            if strength is None:
                return start
            template = template.model_copy(update={"strength": strength, "steps_left": None})
        return model.jets.generate(
            plan.mjj,
            plan.event_id,
            task.seed,
            levels(template, model.jets.denoiser.schedule),
            start=start,
            start_mjj=None if parents is None else parents.mjj[plan.row],
            solver=template.sampler[0],
            device=task.device,
            workers=task.workers,
        )


def _budget(section: TrainingConfig | ConstituentsConfig) -> str:
    return f"width {section.width}, depth {section.depth}; at most {section.epochs} passes"
