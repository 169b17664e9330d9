"""A trial: one template or reference, in one repetition; and the models and templates that trials share.

Trials that train the same model share it on disk: its place is the hash of all that decides it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config, keys_of
from drapes_hep.errors import ConfigError, FitError
from drapes_hep.events.schema import NO_PARENT
from drapes_hep.files import content_hash, write_json
from drapes_hep.keys import part_of
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.regions import Window
from drapes_hep.rng import event_keys, event_uniforms, stage_seed
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.fit import SpectrumFit
from drapes_hep.studies.sample import Draw, StudySample, draw_data, study_window
from drapes_hep.templates.methods import BackgroundMethod, FitTask, SampleTask
from drapes_hep.templates.parts import split_sidebands
from drapes_hep.templates.plan import Pool, fit_masses, plan_at, plan_region
from drapes_hep.templates.registry import method_of, method_settings
from drapes_hep.templates.tables import EventTable, Plan, Planned, Template
from drapes_hep.templates.window_models import (
    checkpoints,
    fit_window_model,
    has_model,
    load_window_model,
    sample_template,
    save_window_model,
    training_record,
)
from drapes_hep.training.curves import Epoch

__all__ = ["REFERENCES", "SampleKeys", "Trial", "TrialContext", "draw_key", "from_noise", "model_folder", "model_key"]

REFERENCES: dict[str, str] = {
    "supervised": "Supervised",
    "over_idealised": "Over-idealised",
    "idealised": "Idealised",
    "cwola_hunting": "CWoLa hunting",
}
"""What a template is held against: labels, true background of the window, neighbouring data."""

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

Kind = Literal["search", "quality", "displacement", "sculpting", "jets", "mass_halves"]


@dataclass(frozen=True)
class Trial:
    """One measurement.

    Attributes
    ----------
    kind : {"search", "quality", "displacement", "sculpting", "jets", "mass_halves"}
        A function of :mod:`drapes_hep.studies.measures`.
    config : Config
        All that decides it: seeds, injection, template, training, classifier.
    subject : str
        A template method, which is then ``config.template.method``, or a key of :data:`REFERENCES`.
    gensr : bool
        Whether the *data* class is oversampled by a second model that saw the window.
    unseen : bool
        Whether the metrics use only events that no model of the trial ever saw.
    in_sidebands : bool
        Whether quality and jets compare in the sidebands, with background that trained nothing, not in the window.
    """

    kind: Kind
    config: Config
    subject: str
    gensr: bool = False
    unseen: bool = False
    in_sidebands: bool = False

    def __post_init__(self) -> None:
        if self.subject not in REFERENCES and self.subject != self.config.template.method:
            raise ValueError(f"a trial of {self.subject} whose configuration makes {self.config.template.method}")
        if self.gensr and not self.unseen:
            raise ValueError("GenSR's model saw the data: only events that it never saw may judge it")
        if self.gensr and self.config.template.method == "file":
            raise ConfigError("gensr: a template file holds no model that could oversample the data")
        if self.kind == "jets" and "jets" not in method_of(self.config).columns:
            raise ConfigError("this study compares jets: its configuration needs the section constituents")
        if self.in_sidebands and (self.kind not in {"quality", "jets"} or method_of(self.config).source != "noise"):
            raise ValueError("only the quality and jets of templates from noise are compared in the sidebands")

    @property
    def trainings(self) -> int:
        """How often the classifier is trained on the same events: of a search alone."""
        return self.config.study.trainings if self.kind == "search" else 1

    @property
    def models(self) -> tuple[bool, ...]:
        """Which models it needs: False for the template's, True for one that saw the window."""
        template = () if self.subject in REFERENCES else (False,)
        return (*template, True) if self.gensr else template


class SampleKeys(NamedTuple):
    """What decides the selected events: of the data, and of the other simulation."""

    data: str
    simulation: str | None = None


def draw_key(config: Config, keys: SampleKeys) -> list[Any]:
    """Return what decides the use of the events."""
    window = study_window(config)
    return [[window.lo, window.hi], part_of(config.model_dump(mode="json"), keys_of("study.draw")), keys.data]


def model_key(config: Config, keys: SampleKeys, saw_window: bool) -> str:
    """Name a model by all that decides it."""
    part = part_of(config.model_dump(mode="json"), keys_of("train"))
    code = code_hash("studies.trials")
    return content_hash([part, method_settings(config), saw_window, *draw_key(config, keys), code])


def model_folder(models: Path, key: str) -> Path:
    """Return the place of a model, by its key."""
    return models / key[:20]


class TrialContext:
    """What the trials of one configuration are made of; data and models are read once and kept.

    Parameters
    ----------
    sample : StudySample
    config : Config
        Of the trial.
    folder : Path
        Where models are.
    keys : SampleKeys
    device : str
    """

    def __init__(
        self, sample: StudySample, config: Config, folder: Path, keys: SampleKeys, device: str = "cpu"
    ) -> None:
        self.sample, self.config, self.folder = sample, config, folder
        self.keys, self.device = keys, device
        self.window: Window = study_window(config)
        self.method: BackgroundMethod = method_of(config)
        self._models: dict[bool, Any] = {}

    @functools.cached_property
    def draw(self) -> Draw:
        """The use of the events."""
        return draw_data(self.sample, self.config)

    @functools.cached_property
    def inside(self) -> BoolArray:
        """Which events are in the window."""
        return self.window.in_signal_region(self.sample.events.mjj)

    @functools.cached_property
    def outside(self) -> BoolArray:
        """Which events are in the sidebands."""
        return self.window.in_sidebands(self.sample.events.mjj)

    @functools.cached_property
    def part(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Part of each event, were it a sideband event: train, validation or closure."""
        return split_sidebands(self.sample.events.event_id, self.config.seed, self.config.training)

    def chosen(self, mask: BoolArray) -> EventTable:
        """Return some of the events; raises FitError if there is none."""
        events = self.sample.events.take(mask)
        if not len(events):
            raise FitError(f"window {self.window.name}: the study's sample has no events left to compare")
        return events

    def thinned(self, mask: BoolArray, limit: int, purpose: str) -> BoolArray:
        """Keep at most so many of the masked events, by their identities."""
        rows = np.flatnonzero(mask)
        if len(rows) <= limit:
            return mask
        uniform = event_uniforms(stage_seed(self.config.seed, purpose), self.sample.events.event_id[rows])[:, 0]
        out = np.zeros_like(mask)
        out[rows[np.argsort(uniform, kind="stable")[:limit]]] = True
        return out

    @functools.cached_property
    def _data(self) -> EventTable:
        return self.chosen(self.draw.data & self.inside)

    def data(self) -> EventTable:
        """Return the data in the window; raises FitError if there is none."""
        return self._data

    # ---- models ---------------------------------------------------------------------------------------------------

    def model_folder(self, saw_window: bool) -> Path:
        """Return the place of a model."""
        return model_folder(self.folder, model_key(self.config, self.keys, saw_window))

    def train(self, saw_window: bool, progress: Callable[[str, Epoch], None] | None = None) -> None:
        """Train a model unless it is there; a killed training resumes."""
        folder = self.model_folder(saw_window)
        config, window = self.config, self.window
        if has_model(folder):
            return
        region = self.outside | self.inside if saw_window else self.outside
        rows = np.flatnonzero(self.draw.data & region)
        hidden = () if saw_window else ((window.lo, window.hi),)
        task = FitTask(
            self.chosen(self.draw.data & region),
            self.part[rows],
            hidden,
            stage_seed(config.seed, "study", "gensr" if saw_window else "model", window.name),
            device=self.device,
            checkpoint=folder,
            progress=progress,
        )
        model, results = fit_window_model(self.method, task)
        write_json(folder / "training.json", {name: training_record(result) for name, result in results.items()})
        save_window_model(self.method, folder, model, hidden, {"seed": config.seed})
        for old in checkpoints(folder):
            old.unlink()

    def model(self, saw_window: bool = False) -> Any:
        """Read a model, trained now if it is not there."""
        if saw_window not in self._models:
            self.train(saw_window)
            place = self.model_folder(saw_window)
            self._models[saw_window] = load_window_model(
                self.method, place, self.window, self.device, saw_window=saw_window
            )
        return self._models[saw_window]

    # ---- templates ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def mass_fit(self) -> SpectrumFit:
        """The fit of the data's masses outside the window."""
        config, events = self.config, self.sample.events.take(self.draw.data)
        edges = spectrum_edges(config.mass.fitted, config.mass.bin_width, (self.window,))
        return fit_masses(config.mass, events.mjj, events.weight, edges, self.window)

    @functools.cached_property
    def pool(self) -> Pool:
        """The data, and the simulation, that templates may start from."""
        if self.method.source == "simulation" and self.sample.simulation is None:
            raise ConfigError(f"study.source names no other simulation for {self.config.template.method}")
        data = self.draw.data
        return Pool(self.window, self.sample.events.take(data), self.part[data], self.sample.simulation)

    def template(self) -> Template:
        """Make the configured template."""
        config, window = self.config, self.window
        size, region = config.template.oversample * len(self.data()), (window.lo, window.hi)
        seed = stage_seed(config.seed, "study", "template", window.name)
        fit = None if self.method.own_mass else self.mass_fit
        reach = self.method.reach(region)
        planned = plan_region(self.method, config.mass, self.pool, region, size, seed, fit, reach)
        return self._sampled(planned, window.in_signal_region)

    @functools.cached_property
    def sideband_truth(self) -> EventTable:
        """Background of the sidebands that no model of a trial saw; at most as many as the data in the window."""
        mask = self.draw.background & self.outside
        if not mask.any():
            raise FitError(f"window {self.window.name}: no background is left in the sidebands; lower study.data_share")
        return self.chosen(self.thinned(mask, int((self.draw.data & self.inside).sum()), "beside"))

    def sideband_template(self) -> Template:
        """Make a template from noise at the masses of :attr:`sideband_truth`, one event each."""
        mjj = self.sideband_truth.mjj
        seed = stage_seed(self.config.seed, "study", "beside", self.window.name)
        return self._sampled(plan_at(self.method, mjj, seed), self.window.in_sidebands)

    def _sampled(self, planned: Planned, region: Callable[[FloatArray], BoolArray]) -> Template:
        task = SampleTask(planned.seed, region, device=self.device)
        return sample_template(self.method, self.model(), planned, task, self.pool.events)

    def oversampled(self) -> EventTable:
        """Make GenSR: events like the window's data, at their masses, from the model that saw them."""
        config, data = self.config, self.data()
        method = self.method if self.method.source == "noise" else method_of(from_noise(config))
        copies = max(1, round(config.template.oversample))
        root, copy = np.repeat(data.event_id, copies), np.tile(np.arange(copies), len(data))
        seed = stage_seed(config.seed, "study", "gensr", self.window.name)
        identity, nobody = event_keys(stage_seed(seed, "identity"), root, copy), np.full(len(root), NO_PARENT)
        mjj, weight = np.repeat(data.mjj, copies), np.ones(len(root))
        plan = Plan(identity, nobody, np.full(len(root), -1), root, copy, mjj, weight)
        task = SampleTask(seed, self.window.in_signal_region, device=self.device)
        generated = method.sample(self.model(True), plan, None, task)
        return EventTable(generated.x, generated.mjj, generated.weight, generated.event_id, generated.jets)


def from_noise(config: Config) -> Config:
    """Return the configuration of the same model's templates from noise."""
    changes = {"method": "from_noise", "strength": None, "steps_left": None, "source": None}
    return config.model_copy(update={"template": config.template.model_copy(update=changes)})
