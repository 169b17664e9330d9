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
from drapes_hep.kernels import Precision, in_torch
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
from drapes_hep.templates.constituents.tensors import (
    absolute_tensors,
    inverse_tensors,
    member_normal_tensors,
    scale_tensors,
)

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
        target = torch.device(device)
        state = self._start(lengths, order, key, seed, times, start, target)
        condition = self.scaling.conditions_of(rows, np.repeat(mjj, 2))
        z = sample(
            self.denoiser,
            state,
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
        back = torch.as_tensor(np.argsort(order))
        if not in_torch(target):
            constituents = Sets(torch.as_tensor(self.scaling.inverse(z.numpy())), torch.as_tensor(offsets))
            return self._absolute(take(constituents, back), rows)
        constituents = Sets(inverse_tensors(self.scaling, z.to(target)), torch.as_tensor(offsets).to(target))
        radius = self.radius if self.conserves else None
        absolute = absolute_tensors(take(constituents, back), torch.tensor(rows, device=target), radius)
        return Sets(absolute.values.cpu(), absolute.offsets.cpu())

    def _start(
        self,
        lengths: IntArray,
        order: IntArray,
        key: IntArray,
        seed: int,
        times: Tensor,
        start: Sets | None,
        target: torch.device,
    ) -> Tensor:
        """Return the starting states of sets in this order, on the CPU or where the network is."""
        of_jet, place = np.repeat(order, lengths[order]), places_of(lengths[order])
        alpha, sigma = (float(part) for part in self.denoiser.schedule(times[0]))
        before = None if start is None else take(start, torch.as_tensor(order)).values
        if not in_torch(target):
            state = sigma * member_numbers(event_normals, seed, "constituents", key, of_jet, place, 3)
            if before is not None:
                state += alpha * self.scaling.forward(before.numpy())
            return torch.as_tensor(state)
        numbers = (torch.tensor(array, device=target) for array in (key, of_jet, place))
        noise = sigma * member_normal_tensors(seed, "constituents", *numbers)
        return noise if before is None else noise + alpha * scale_tensors(self.scaling, before.to(target))

    def _absolute(self, constituents: Sets, rows: FloatArray) -> Sets:
        values, offsets = constituents.values.numpy(), constituents.offsets.numpy()
        fraction, delta = np.exp(values[:, 0]), values[:, 1:]
        if self.conserves:
            fraction, delta = conserve(fraction, delta, offsets, rows[:, : MASS + 1], self.radius)
        axis = np.repeat(rows, np.diff(offsets), axis=0)
        columns = fraction * axis[:, 0], axis[:, 1] + delta[:, 0], wrapped(axis[:, 2] + delta[:, 1])
        return Sets(torch.as_tensor(np.stack(columns, axis=1)), constituents.offsets)
