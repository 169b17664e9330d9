"""What a background method offers: ``template.method`` names one, and a class of the user's may be one.

A method fits a model on the sidebands of a window and makes template events of a plan
(:mod:`drapes_hep.templates.plan`). Those of Drapes are in :mod:`drapes_hep.templates.drapes` (features) and
:mod:`drapes_hep.templates.constituents.method` (constituents).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config
from drapes_hep.events.features import domains
from drapes_hep.folds import Fold
from drapes_hep.regions import Window
from drapes_hep.rng import event_normals, stage_seed
from drapes_hep.templates.drapes_family import Source
from drapes_hep.templates.tables import EventTable, Plan, Template
from drapes_hep.training.curves import Epoch, TrainingCurve

if TYPE_CHECKING:
    from drapes_hep.events.scaling import Scaling
    from drapes_hep.templates.feature_model import Tensors

__all__ = ["BackgroundMethod", "FitTask", "SampleTask", "Training"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FitTask:
    """What a model is fitted on.

    Attributes
    ----------
    events : EventTable
        n sideband events; with their jets if the method's ``columns`` name them.
    part : array of int, shape (n,)
        :data:`~drapes_hep.templates.parts.TRAIN` or ``VALIDATION``; a method is given no closure event.
    hidden : tuple of (float, float)
        Mass intervals without events: the window, and a pseudo-window, GeV.
    seed : int
        Of weights, order and noise.
    device : str
        "cpu" or "cuda".
    checkpoint : Path, optional
        Stem of the files that an interrupted training may leave: ``STEM.checkpoint`` or ``STEM.NAME.checkpoint``.
    progress : callable, optional
        Called with the training's name and each epoch.
    unseen : Fold, optional
        With cross-fitting, the fold of which no event is among these.
    """

    events: EventTable
    part: IntArray
    hidden: tuple[tuple[float, float], ...]
    seed: int
    device: str = "cpu"
    checkpoint: Path | None = None
    progress: Callable[[str, Epoch], None] | None = None
    unseen: Fold | None = None

    def scaled(self, config: Config) -> tuple[Scaling, Tensors, Tensors]:
        """Scale the features as ``template.scaling`` says: the scaling, and what is trained and stopped on.

        Returns
        -------
        scaling : Scaling
            Fitted on the training part.
        train, validation : tuple of Tensor
            float32: scaled features (k, d), scaled masses (k, 1), weights (k,).
        """
        # torch takes seconds to load, and a method that is only named and checked needs none
        from drapes_hep.templates.feature_model import scaled_parts

        return scaled_parts(
            self.events.x,
            self.events.mjj,
            self.events.weight,
            self.part,
            features=config.features,
            domain=domains(config.features, **config.definitions),
            scaling=config.template.scaling,
            hidden=self.hidden,
        )


@dataclass(frozen=True)
class SampleTask:
    """How template events are made.

    Attributes
    ----------
    seed : int
        Of the noise.
    region : callable
        From masses (n,) to whether they lie where the template is wanted.
    device : str
        "cpu" or "cuda".
    workers : int
        Threads or processes that may be used.
    progress : callable, optional
        Called with what is done, and all there is to do.
    """

    seed: int
    region: Callable[[FloatArray], BoolArray]
    device: str = "cpu"
    workers: int = 1
    progress: Callable[[int, int], None] | None = None

    def normals(self, plan: Plan, size: int) -> FloatArray:
        """Draw standard normal numbers that belong to the events of a plan, shape (n, size)."""
        return event_normals(stage_seed(self.seed, "noise"), plan.root, plan.copy, size=size)


@dataclass(frozen=True)
class Training:
    """One training of a method, as the progress bar and the report show it.

    Attributes
    ----------
    epochs : int
        At most so many.
    title, caption : str
        Of its figure.
    unit : str
        What the loss is a mean over: "event", "constituent".
    """

    epochs: int
    title: str = "Training of the background model"
    caption: str = ""
    unit: str = "event"


class BackgroundMethod(Protocol):
    """A way to make background templates; subclass it, and ``template.method`` may name your class.

    It is made with the configuration and, as keywords, ``template.options``.

    Attributes
    ----------
    title : str
        What legends and the report call it.
    source : {"noise", "window", "sidebands", "simulation"}
        Where the parents of template events come from (:mod:`drapes_hep.templates.plan`).
    own_mass : bool
        Whether a template event has its parent's m_JJ, or one drawn in the window.
    partial : bool
        Whether it takes ``template.strength`` or ``template.steps_left``: how far its parents are noised.
    cross_fits : bool
        Whether each fold gets a model of its own (:mod:`drapes_hep.templates.division`); not where nothing is fitted.
    columns : tuple of str
        Columns of the skim that it needs beside the features: ``("jets",)`` for jets with constituents.
    """

    title: str
    source: Source = "noise"
    own_mass: bool = False
    partial: bool = False
    cross_fits: bool = True
    columns: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None: ...

    def fit(self, task: FitTask) -> tuple[Any, Mapping[str, TrainingCurve]]:
        """Fit a model on sideband events.

        Returns
        -------
        model
            Whatever :meth:`save` and :meth:`sample` take.
        curves : mapping of str to TrainingCurve
            The trainings by name, for the report; empty if nothing is trained epoch by epoch.
        """
        ...

    def save(self, folder: Path, model: Any) -> Sequence[Path]:
        """Write a model into a folder that exists, never as a pickle, and return its files."""
        ...

    def load(self, folder: Path, device: str) -> Any:
        """Read back what :meth:`save` wrote."""
        ...

    def sample(self, model: Any, plan: Plan, parents: EventTable | None, task: SampleTask) -> Template:
        """Make the events of a plan; ``plan.template(x)`` is the template of features x, shape (n, d).

        Random numbers belong to an event (:mod:`drapes_hep.rng`, with ``task.seed``, ``plan.root``, ``plan.copy``), so
        that a chunk of a plan gives what the whole gives.

        Of the plan stay ``event_id`` and ``parent_id``, which decide the folds, the order, and ``mjj``. A method may
        choose the features, the jets and the weights (finite, at least 0, not all 0), and leave out events that it
        cannot make: those are counted in ``lost``, by reason. A method with a :meth:`reach` of its own may also return
        other masses than the plan's, inside ``task.region``: its events migrate.
        """
        ...

    # ---- what may stay as it is --------------------------------------------------------------------------------------

    def fit_many(self, tasks: Sequence[FitTask]) -> list[tuple[Any, Mapping[str, TrainingCurve]]]:
        """Fit the models of several tasks: one after the other, unless a method does better.

        Parameters
        ----------
        tasks : sequence of FitTask
            At least one, all on one device.

        Returns
        -------
        list
            What :meth:`fit` returns for each; it must not depend on the others.
        """
        return [self.fit(task) for task in tasks]

    def together(self, device: str, models: int) -> int:  # noqa: ARG002 - the method's own
        """Return how many of so many models are best fitted at once by :meth:`fit_many`."""
        return 1

    def check(self) -> None:
        """Raise ConfigError if the configuration does not fit; called before anything is run."""
        return

    def settings(self) -> Mapping[str, Any]:
        """Return what decides a model, as JSON values, beside its class, its options and the keys of a training."""
        return {}

    def trainings(self) -> Mapping[str, Training]:
        """Return what the trainings that :meth:`fit` reports are, by name."""
        return {}

    def summary(self) -> str:
        """Return a sentence for the report on what makes the template; nothing by default."""
        return ""

    def describe(self, model: Any) -> Mapping[str, Any]:  # noqa: ARG002 - the method's own
        """Return what is recorded with a template, as JSON values: ``strength``, ``steps``, ``evaluations``.

        A ``partial`` method returns the first two: the noise of the parents, and the steps that are left.
        """
        return {}

    def kept(self, model: Any) -> tuple[str, ...]:  # noqa: ARG002 - the method's own
        """Name what events take over from their parents, of :data:`drapes_hep.templates.quantities.QUANTITIES`."""
        return ()

    def remarks(self, model: Any) -> tuple[str, ...]:  # noqa: ARG002 - the method's own
        """Return sentences that the run says and the report points out: what weakens a template of this model."""
        return ()

    def reach(self, region: tuple[float, float]) -> tuple[float, float]:
        """Return where masses are drawn, GeV, if events migrate between the region and its surroundings."""
        return region

    def check_windows(self, windows: Sequence[Window]) -> None:  # noqa: ARG002 - the method's own
        """Raise a DrapesError if there can be no template of a window; called by ``drapes validate --files``."""
        return
