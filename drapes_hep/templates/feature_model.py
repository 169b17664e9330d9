"""A window's background model: a denoiser, its scaling, and the window that it never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from drapes_hep.config import TrainingConfig
from drapes_hep.diffusion.checkpoints import CARD, WEIGHTS, load_model, save_model
from drapes_hep.diffusion.denoisers import DENOISERS, PreconditionedDenoiser
from drapes_hep.diffusion.samplers import Sampler, sample
from drapes_hep.diffusion.training import DenoiserTraining, TrainingResult, TrainingSettings, train_together
from drapes_hep.errors import RunDirectoryError
from drapes_hep.events.scaling import Scaling, fit_scaling, scaling_from_dict
from drapes_hep.events.scaling_tensors import condition_tensor, inverse_tensor, scale_tensor
from drapes_hep.kernels import in_torch
from drapes_hep.networks.mlp import ResidualMLP
from drapes_hep.rng import event_normals, stage_seed
from drapes_hep.rng_tensors import normal_tensor
from drapes_hep.templates.parts import TRAIN, VALIDATION
from drapes_hep.training.curves import Epoch

__all__ = [
    "BackgroundModel",
    "FeatureTraining",
    "fit_models",
    "load_background_model",
    "save_background_model",
    "scaled_parts",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


Parents = Callable[[slice], tuple[FloatArray, FloatArray]]
"""From a slice of template events to features and masses of their parents."""

_BLOCK = 1 << 18
"""Events that are made at once: a batch of a GPU's, 128 of a CPU's."""


class _Events(NamedTuple):
    """A block of template events: masses, identities, copies, and features and masses of their parents."""

    mjj: FloatArray
    event_id: IntArray
    copy: IntArray
    parents: tuple[FloatArray, FloatArray] | None


@dataclass(frozen=True)
class BackgroundModel:
    """A trained model of the background's features given m_JJ.

    Attributes
    ----------
    denoiser : PreconditionedDenoiser
    scaling : Scaling
        Fitted on the training part alone.
    features : tuple of str
    hidden : tuple of (float, float)
        Mass intervals whose events the model never saw, GeV.
    """

    denoiser: PreconditionedDenoiser
    scaling: Scaling
    features: tuple[str, ...]
    hidden: tuple[tuple[float, float], ...]

    def generate(
        self,
        mjj: FloatArray,
        event_id: IntArray,
        seed: int,
        levels: torch.Tensor,
        *,
        copy: npt.ArrayLike = 0,
        parents: Parents | None = None,
        solver: str | Sampler = "heun",
        device: str = "cpu",
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> FloatArray:
        """Generate features: the flow from the first time to the last, under given masses.

        Events are made in blocks, which bounds the memory: beyond the result, a block of 262,144 events takes some
        60 MB for five features, whatever their number. Noise and scalings are computed where the network
        is: in compiled loops on a CPU, in torch on a GPU.

        Parameters
        ----------
        mjj : array, shape (n,)
            The masses to generate at, GeV.
        event_id : array of int, shape (n,)
            Whose noise it is: an event's noise follows from its identity, not from its place in a batch.
        seed : int
        levels : Tensor, shape (m + 1,)
            Falling times of the model's path, from :func:`drapes_hep.diffusion.schedules.karras_steps` or its end.
        copy : array_like of int, broadcastable to (n,)
            Which copy of the event.
        parents : callable, optional
            From a slice of the events to what noise is added to (partial diffusion): features (k, d) and their own
            masses (k,) in GeV. From noise alone without.
        solver, device, workers, progress
            As for :func:`drapes_hep.diffusion.samplers.sample`.

        Returns
        -------
        array, shape (n, d)
            Inside the features' domain.
        """
        copies = np.broadcast_to(np.asarray(copy), (len(mjj),))
        out = np.empty((len(mjj), len(self.features)))
        blocks = range(0, len(mjj), _BLOCK)
        for i, first in enumerate(blocks):
            part = slice(first, first + _BLOCK)
            events = _Events(mjj[part], event_id[part], copies[part], None if parents is None else parents(part))

            def advance(done: int, total: int, before: int = i) -> None:
                if progress is not None:
                    progress(before * total + done, len(blocks) * total)

            out[part] = self._block(events, seed, levels, solver=solver, device=device, workers=workers, tick=advance)
        return out

    def _block(
        self,
        events: _Events,
        seed: int,
        levels: torch.Tensor,
        *,
        solver: str | Sampler,
        device: str,
        workers: int,
        tick: Callable[[int, int], None],
    ) -> FloatArray:
        place = torch.device(device)
        masses = torch.tensor(events.mjj, dtype=torch.float64, device=place) if in_torch(place) else None
        alpha, sigma = (float(part) for part in self.denoiser.schedule(levels[0]))
        state, condition = (
            self._start(events, seed, alpha, sigma)
            if masses is None
            else self._start_tensors(events, masses, seed, alpha, sigma)
        )
        z = sample(
            self.denoiser,
            state,
            levels,
            condition,
            solver=solver,
            device=device,
            workers=workers,
            progress=tick,
        )
        if masses is None:
            return self.scaling.inverse(z.numpy(), events.mjj)
        return np.asarray(inverse_tensor(self.scaling, z.to(place), masses).cpu().numpy())

    def _start(self, events: _Events, seed: int, alpha: float, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the starting states, and the condition in float32."""
        state = event_normals(stage_seed(seed, "noise"), events.event_id, events.copy, size=len(self.features))
        state *= sigma
        if events.parents is not None:
            state += alpha * self.scaling.forward(*events.parents)
        return torch.as_tensor(state), torch.as_tensor(self.scaling.condition(events.mjj), dtype=torch.float32)

    def _start_tensors(
        self, events: _Events, masses: torch.Tensor, seed: int, alpha: float, sigma: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute :meth:`_start` where the masses are."""
        # copies: an array may be one that must not be written to
        ids, copies = (
            torch.tensor(array, dtype=torch.int64, device=masses.device) for array in (events.event_id, events.copy)
        )
        state = normal_tensor(stage_seed(seed, "noise"), ids, copies, len(self.features))
        state *= sigma
        if events.parents is not None:
            x, own = (torch.tensor(array, dtype=torch.float64, device=masses.device) for array in events.parents)
            state += alpha * scale_tensor(self.scaling, x, own)
        return state, condition_tensor(self.scaling, masses).float()


Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Scaled features (n, d), scaled masses (n, 1), weights (n,)."""


def scaled_parts(
    x: FloatArray,
    mjj: FloatArray,
    weight: FloatArray,
    part: IntArray,
    *,
    features: Sequence[str],
    domain: npt.ArrayLike,
    scaling: str,
    hidden: Sequence[tuple[float, float]],
) -> tuple[Scaling, Tensors, Tensors]:
    """Fit a scaling on the training part of the sidebands, and scale what a model is trained and stopped on.

    Parameters
    ----------
    x : array, shape (n, d)
        Features of sideband events.
    mjj, weight : array, shape (n,)
        Masses in GeV, and weights.
    part : array of int, shape (n,)
        From :func:`drapes_hep.templates.parts.split_sidebands`.
    features : sequence of str
        Their names.
    domain : array_like, shape (d, 2)
        Their natural bounds.
    scaling : {"quantile", "standard"}
    hidden : sequence of (float, float)
        Mass intervals of which no event is among these, GeV.

    Returns
    -------
    scaling : Scaling
    train, validation : tuple of Tensor
        float32: scaled features (k, d), scaled masses (k, 1), weights (k,).
    """
    fitted = part == TRAIN
    kind: Any = scaling
    scale = fit_scaling(kind, x[fitted], mjj[fitted], weight[fitted], domain, features, hidden)

    def tensors(chosen: npt.NDArray[np.bool_]) -> Tensors:
        z = scale.forward(x[chosen], mjj[chosen])
        arrays = (z, scale.condition(mjj[chosen]), weight[chosen])
        z_t, c_t, w_t = (torch.as_tensor(np.ascontiguousarray(a), dtype=torch.float32) for a in arrays)
        return z_t, c_t, w_t

    return scale, tensors(fitted), tensors(part == VALIDATION)


@dataclass(frozen=True, kw_only=True)
class FeatureTraining:
    """What the model of one window is trained on.

    Attributes
    ----------
    x : array, shape (n, d)
        Features of sideband events.
    mjj, weight : array, shape (n,)
        Masses in GeV, and weights.
    part : array of int, shape (n,)
        From :func:`drapes_hep.templates.parts.split_sidebands`.
    hidden : sequence of (float, float)
        Mass intervals of which no event is among these, for the card: the window, and a closure test's pseudo-window.
    seed : int
        Of weights, order and noise; every window starts afresh.
    checkpoint : Path, optional
        As for :func:`drapes_hep.diffusion.training.train`.
    progress : callable, optional
        Called with each epoch.
    """

    x: FloatArray
    mjj: FloatArray
    weight: FloatArray
    part: IntArray
    hidden: Sequence[tuple[float, float]]
    seed: int
    checkpoint: Path | None = None
    progress: Callable[[Epoch], None] | None = None


def fit_models(
    windows: Sequence[FeatureTraining],
    *,
    features: Sequence[str],
    domain: npt.ArrayLike,
    training: TrainingConfig,
    scaling: str,
    device: str = "cpu",
) -> list[tuple[BackgroundModel, TrainingResult]]:
    """Train the models of windows on their sidebands, in stacks.

    Parameters
    ----------
    windows : sequence of FeatureTraining
    features : sequence of str
        Names of the features.
    domain : array_like, shape (d, 2)
        Their natural bounds.
    training : TrainingConfig
    scaling : {"quantile", "standard"}
    device : str

    Returns
    -------
    list of (BackgroundModel, TrainingResult)
        In their order; none depends on the others (:func:`drapes_hep.diffusion.training.train_together`).
    """
    settings = TrainingSettings(
        epochs=training.epochs,
        batch=training.batch,
        rate=training.rate,
        warmup=training.warmup,
        ema=training.ema,
        patience=training.patience,
    )
    scales, trainings = [], []
    for window in windows:
        scale, fitted, validation_parts = scaled_parts(
            window.x,
            window.mjj,
            window.weight,
            window.part,
            features=features,
            domain=domain,
            scaling=scaling,
            hidden=window.hidden,
        )
        seed = stage_seed(window.seed, "weights")
        backbone = ResidualMLP(window.x.shape[1], 1, width=training.width, depth=training.depth, seed=seed)
        scales.append(scale)
        trainings.append(
            DenoiserTraining(
                DENOISERS[training.path](backbone),
                *fitted,
                *validation_parts,
                settings,
                seed=stage_seed(window.seed, "train"),
                checkpoint=window.checkpoint,
                progress=window.progress,
            )
        )
    results = train_together(trainings, device=device)
    return [
        (
            BackgroundModel(
                result.denoiser, scale, tuple(features), tuple((float(a), float(b)) for a, b in window.hidden)
            ),
            result,
        )
        for window, scale, result in zip(windows, scales, results, strict=True)
    ]


def save_background_model(folder: Path, model: BackgroundModel) -> list[Path]:
    """Write a model with its card; return its files."""
    card = {
        "scaling": model.scaling.to_dict(),
        "features": list(model.features),
        "hidden": [list(interval) for interval in model.hidden],
    }
    save_model(folder, model.denoiser, card)
    return [folder / WEIGHTS, folder / CARD]


def load_background_model(folder: Path, device: str = "cpu") -> BackgroundModel:
    """Read a model back.

    Raises
    ------
    RunDirectoryError
        If card and weights are damaged or do not belong together.
    """
    denoiser, card = load_model(folder, device)
    try:
        extra = card["extra"]
        hidden = tuple((float(a), float(b)) for a, b in extra["hidden"])
        return BackgroundModel(denoiser, scaling_from_dict(extra["scaling"]), tuple(extra["features"]), hidden)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunDirectoryError(
            f"{folder / CARD}: is not a model checkpoint ({type(error).__name__}: {reason}); train again"
        ) from error
