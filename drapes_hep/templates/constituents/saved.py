"""Both models of a window on disk: weights, and cards with the scalings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from drapes_hep.diffusion.checkpoints import CARD, WEIGHTS, load_model, save_model
from drapes_hep.errors import RunDirectoryError
from drapes_hep.events.scaling import scaling_from_dict
from drapes_hep.templates.constituents.jet_model import JetModel
from drapes_hep.templates.constituents.kinematics import (
    Bounds,
)
from drapes_hep.templates.constituents.model import ConstituentModel
from drapes_hep.templates.constituents.scaling import ConstituentScaling

__all__ = ["load_constituent_model", "save_constituent_model"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
            f"{folder}: its cards are none of a constituent model ({type(error).__name__}: {reason}); train again"
        ) from error
