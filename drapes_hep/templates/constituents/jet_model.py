"""The model of both jets' kinematics given m_JJ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drapes_hep.diffusion.denoisers import PreconditionedDenoiser
from drapes_hep.diffusion.samplers import sample
from drapes_hep.events.scaling import Scaling
from drapes_hep.rng import event_normals, event_uniforms, stage_seed
from drapes_hep.templates.constituents.kinematics import (
    Bounds,
    Chart,
    Orientation,
    coordinates,
    jets_from,
)

__all__ = ["JetModel"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
