"""Training of both models of a window, on its sidebands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drapes_hep.config import ConstituentsConfig, TrainingConfig
from drapes_hep.diffusion.denoisers import DENOISERS, PreconditionedDenoiser
from drapes_hep.diffusion.training import TrainingResult, TrainingSettings, train
from drapes_hep.errors import ConfigError
from drapes_hep.events.scaling import fit_scaling
from drapes_hep.fixed import JET_HEADS
from drapes_hep.networks.deepsets import AttentiveDeepSets
from drapes_hep.networks.mlp import ResidualMLP
from drapes_hep.packed import Sets, take
from drapes_hep.rng import event_uniforms, stage_seed
from drapes_hep.templates.constituents.backbones import make_backbone
from drapes_hep.templates.constituents.conserve import jet_sums
from drapes_hep.templates.constituents.jet_model import JetModel
from drapes_hep.templates.constituents.kinematics import (
    MASS,
    Bounds,
    N,
    coordinates,
    domain,
)
from drapes_hep.templates.constituents.model import ConstituentModel
from drapes_hep.templates.constituents.packing import pack_jets
from drapes_hep.templates.constituents.scaling import ConstituentScaling, fit_constituent_scaling
from drapes_hep.templates.methods import FitTask
from drapes_hep.templates.parts import TRAIN, VALIDATION
from drapes_hep.training.curves import Epoch

__all__ = ["fit_constituents"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
ScalingName = Literal["quantile", "standard"]
_CONSERVED = 0.01
"""Relative difference up to which constituents add up to their jet."""
_MOST = 0.9
"""Fraction of jets that must be the sums of their constituents, for all to be taken for it."""


def _settings(section: TrainingConfig | ConstituentsConfig, **more: Any) -> TrainingSettings:
    names = ("epochs", "batch", "rate", "warmup", "ema", "patience")
    return TrainingSettings(**{name: getattr(section, name) for name in names}, **more)


def _conserved(jets: FloatArray, sets: Sets) -> float:
    """Return the fraction of jets whose constituents add up to their transverse momentum and mass within 1%."""
    values, offsets = sets.values.numpy(), sets.offsets.numpy()
    sums = jet_sums(np.exp(values[:, 0]), values[:, 1], values[:, 2], offsets)
    # the mass is compared with the energy scale of the jet: small masses round
    mass = np.abs(sums.mass * jets[:, 0] - jets[:, MASS]) < _CONSERVED * (jets[:, MASS] + 1.0)
    return float(np.mean((np.abs(sums.pt - 1.0) < _CONSERVED) & mass))


def fit_constituents(
    task: FitTask, config: ConstituentsConfig, training: TrainingConfig, scaling: ScalingName, radius: float
) -> tuple[ConstituentModel, dict[str, TrainingResult]]:
    """Train both models of one window on its sidebands.

    Parameters
    ----------
    task : FitTask
        Events with their jets. Its checkpoint is the stem of two files, ``STEM.jets.checkpoint`` and
        ``STEM.constituents.checkpoint``; its ``progress`` is called with "jets" or "constituents" and each epoch.
    config : ConstituentsConfig
    training : TrainingConfig
        Of the jets' kinematics.
    scaling : {"quantile", "standard"}
        Of their coordinates.
    radius : float
        Of the jets.

    Returns
    -------
    model : ConstituentModel
    results : dict of str to TrainingResult
        Of "jets" and "constituents".

    Raises
    ------
    ConfigError
        If the events hold no jets.
    FitError
        If there are too few events to be scaled.
    """
    if task.events.jets is None:
        raise ConfigError(
            "constituents: the selected events hold no constituents; set processor:"
            " processors/constituents.py:Constituents"
        )
    pairs, sets = pack_jets(task.events.jets)
    jets, of_jets = _fit_jets(task, pairs, config, training, scaling)
    denoiser, set_scaling, adds_up, of_constituents = _fit_sets(task, pairs, sets, config)
    conserves = adds_up if config.conserve is None else config.conserve
    hidden = tuple((float(a), float(b)) for a, b in task.hidden)
    model = ConstituentModel(jets, denoiser, set_scaling, conserves, adds_up, radius, hidden)
    return model, {"jets": of_jets, "constituents": of_constituents}


def _fit_jets(
    task: FitTask, pairs: FloatArray, config: ConstituentsConfig, training: TrainingConfig, scaling: ScalingName
) -> tuple[JetModel, TrainingResult]:
    """Train the model of both jets' kinematics."""
    mjj, weight, part = task.events.mjj, task.events.weight, task.part
    fitted = part == TRAIN
    chart, as_set = config.kinematics, config.kinematics_network == "deepsets"
    bounds = Bounds.of(pairs[fitted])
    uniform = event_uniforms(stage_seed(task.seed, "spread"), task.events.event_id, size=2)
    x, _ = coordinates(chart, pairs, mjj, bounds, uniform)
    flat = x.reshape(-1, 5) if as_set else x.reshape(len(x), -1)
    copies = 2 if as_set else 1
    limits = domain(chart, bounds)
    limits = limits if flat.shape[1] == len(limits) else np.concatenate([limits, limits])
    rows = np.repeat(fitted, copies)
    masses, weights = np.repeat(mjj, copies), np.repeat(weight, copies)
    scale = fit_scaling(scaling, flat[rows], masses[rows], weights[rows], limits, hidden=task.hidden)
    backbone = _jet_backbone(flat.shape[1], as_set, training, stage_seed(task.seed, "jets' weights"))
    model = JetModel(DENOISERS[training.path](backbone), scale, chart, bounds, as_set)
    z = torch.as_tensor(model.scaled(x, mjj), dtype=torch.float32)
    condition = torch.as_tensor(scale.condition(mjj), dtype=torch.float32)
    everything: Tensor | Sets = Sets(z, torch.arange(0, len(z) + 1, 2)) if as_set else z

    def chosen(mask: BoolArray) -> tuple[Tensor | Sets, Tensor, Tensor]:
        keep = torch.as_tensor(mask)
        some = take(everything, keep) if isinstance(everything, Sets) else everything[keep]
        return some, condition[keep], torch.as_tensor(weight[mask])

    result = train(
        model.denoiser,
        *chosen(fitted),
        *chosen(part == VALIDATION),
        _settings(training),
        seed=stage_seed(task.seed, "train jets"),
        device=task.device,
        checkpoint=_file(task, "jets"),
        progress=_watched(task, "jets"),
    )
    return model, result


def _jet_backbone(columns: int, as_set: bool, training: TrainingConfig, seed: int) -> nn.Module:
    if as_set:
        return AttentiveDeepSets(5, 1, width=training.width, depth=training.depth, heads=JET_HEADS, seed=seed)
    return ResidualMLP(columns, 1, width=training.width, depth=training.depth, seed=seed)


def _fit_sets(
    task: FitTask, pairs: FloatArray, sets: Sets, config: ConstituentsConfig
) -> tuple[PreconditionedDenoiser, ConstituentScaling, bool, TrainingResult]:
    """Train the model of one jet's constituents; also whether the jets of the training are sums of theirs."""
    jets, mjj, weight = pairs.reshape(-1, 5), np.repeat(task.events.mjj, 2), np.repeat(task.events.weight, 2)
    rows = np.repeat(task.part == TRAIN, 2)
    trained = take(sets, torch.as_tensor(rows))
    scaling = fit_constituent_scaling(trained.values.numpy(), jets[rows], mjj[rows], config.condition)
    denoiser = DENOISERS[config.path](make_backbone(config, stage_seed(task.seed, "weights")))

    def chosen(mask: BoolArray) -> tuple[Sets, Tensor, Tensor]:
        # a jet without constituents teaches nothing
        mask = mask & (jets[:, N] > 0)
        some = take(sets, torch.as_tensor(mask))
        values = torch.as_tensor(scaling.forward(some.values.numpy()), dtype=torch.float32)
        return Sets(values, some.offsets), scaling.conditions_of(jets[mask], mjj[mask]), torch.as_tensor(weight[mask])

    result = train(
        denoiser,
        *chosen(rows),
        *chosen(np.repeat(task.part == VALIDATION, 2)),
        _settings(config, validation_draws=2, precision=config.precision),
        seed=stage_seed(task.seed, "train constituents"),
        device=task.device,
        # sets give kernels enough to do for several threads
        threads=None,
        checkpoint=_file(task, "constituents"),
        progress=_watched(task, "constituents"),
    )
    return denoiser, scaling, _conserved(jets[rows], trained) >= _MOST, result


def _watched(task: FitTask, name: str) -> Callable[[Epoch], None] | None:
    progress = task.progress
    return None if progress is None else lambda epoch: progress(name, epoch)


def _file(task: FitTask, name: str) -> Path | None:
    stem = task.checkpoint
    return None if stem is None else stem.with_name(f"{stem.name}.{name}.checkpoint")
