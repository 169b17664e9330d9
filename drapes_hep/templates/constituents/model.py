r"""Templates of jets as sets of constituents: Drapes on low-level variables, and the full-phase-space generators.

Two models, both trained on sidebands alone (arXiv:2312.10130, section 3.3; arXiv:2310.06897, section III):

(a) both jets' (pT, eta, phi, m, N) given m_JJ, in the coordinates of
    :mod:`drapes_hep.templates.constituents.kinematics`;
(b) the constituents of ONE jet given that jet's (pT, eta, phi, m, N). Both jets use the same model, each alone, so no
    correlation between the substructure of the two, which a resonance would have, can be learnt.

The scalings of both are fitted with them (:mod:`drapes_hep.templates.constituents.scaling`).

Memory: the constituents of the training jets (12 bytes each, in float64 while they are prepared 24), and what
:mod:`drapes_hep.diffusion.training` and ``members`` say for a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drapes_hep.diffusion.denoisers import PreconditionedDenoiser
from drapes_hep.diffusion.samplers import sample
from drapes_hep.events.features import wrapped
from drapes_hep.events.schema import offsets_of, places_of
from drapes_hep.kernels import Precision
from drapes_hep.packed import Sets, take
from drapes_hep.rng import event_normals
from drapes_hep.templates.constituents.conserve import conserve
from drapes_hep.templates.constituents.jet_model import JetModel
from drapes_hep.templates.constituents.kinematics import (
    MASS,
    N,
)
from drapes_hep.templates.constituents.packing import member_numbers
from drapes_hep.templates.constituents.scaling import ConstituentScaling

__all__ = ["ConstituentModel"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
        return self.conserves or not self.adds_up

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
        noise = member_numbers(event_normals, seed, "constituents", key, of_jet, place, 3)
        alpha, sigma = (float(part) for part in self.denoiser.schedule(times[0]))
        state = sigma * noise
        if start is not None:
            state += alpha * self.scaling.forward(take(start, torch.as_tensor(order)).values.numpy())
        condition = self.scaling.conditions_of(rows, np.repeat(mjj, 2))
        z = sample(
            self.denoiser,
            torch.as_tensor(state),
            times,
            condition[torch.as_tensor(order)],
            offsets=torch.as_tensor(offsets),
            solver=solver,
            members=members,
            precision=precision,
            device=device,
            workers=workers,
            progress=progress,
        )
        constituents = Sets(torch.as_tensor(self.scaling.inverse(z.numpy())), torch.as_tensor(offsets))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        constituents = take(constituents, torch.as_tensor(back))
        return self._absolute(constituents, rows)

    def _absolute(self, constituents: Sets, rows: FloatArray) -> Sets:
        values, offsets = constituents.values.numpy(), constituents.offsets.numpy()
        fraction, delta = np.exp(values[:, 0]), values[:, 1:]
        if self.conserves:
            fraction, delta = conserve(fraction, delta, offsets, rows[:, : MASS + 1], self.radius)
        axis = np.repeat(rows, np.diff(offsets), axis=0)
        columns = fraction * axis[:, 0], axis[:, 1] + delta[:, 0], wrapped(axis[:, 2] + delta[:, 1])
        return Sets(torch.as_tensor(np.stack(columns, axis=1)), constituents.offsets)
