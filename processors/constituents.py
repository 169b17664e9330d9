"""The dijet selection with the jets' constituents in the skim: what the low-level models are trained on.

The selection and the high-level features are those of ``dijets.py``, in the same folder. Copy both, or
subclass :class:`Constituents`; a hook that corrects jets may correct ``jets.constituents`` too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import hist
import numpy as np

from drapes_hep.errors import ConfigError
from drapes_hep.events.accumulate import fill_checked
from drapes_hep.events.clustering import falling_pt
from drapes_hep.events.features import wrapped
from drapes_hep.events.schema import CONSTITUENT_FIELDS, nested, offsets_of, places_of
from drapes_hep.events.types import AwkwardArray, Events
from drapes_hep.plugins import load_processor

__all__ = ["ConstituentSettings", "Constituents"]

Dijets = load_processor(f"{Path(__file__).with_name('dijets.py')}:Dijets")

NUMBERS = {
    "jet_constituents": hist.axis.Regular(150, -0.5, 299.5, name="constituents", label="constituents"),
    "jet_cut_off": hist.axis.Regular(200, -0.5, 199.5, name="cut_off", label="constituents cut off"),
}
SHAPES = {
    "pt_fraction": hist.axis.Regular(100, 0, 1, name="pt_fraction", label=r"$p_{T,i} / p_{T,J}$"),
    "delta_eta": hist.axis.Regular(100, -1.25, 1.25, name="delta_eta", label=r"$\eta_i - \eta_J$"),
    "delta_phi": hist.axis.Regular(100, -1.25, 1.25, name="delta_phi", label=r"$\phi_i - \phi_J$ [rad]"),
}


@dataclass(frozen=True)
class ConstituentSettings(Dijets.settings_class):  # type: ignore[misc, name-defined]
    """Settings of the selection: those of :class:`DijetSettings` and one more.

    Parameters
    ----------
    max_constituents : int, optional
        Constituents per jet kept in the skim, leading in pT; all by default.
    """

    max_constituents: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_constituents is not None and self.max_constituents < 1:
            raise ConfigError(f"max_constituents must be at least 1, got {self.max_constituents}")


@dataclass(frozen=True)
class _Content:
    """Constituents of m jets: flat columns ordered by pT within each jet."""

    columns: Mapping[str, np.ndarray[Any, Any]]
    counts: np.ndarray[Any, Any]

    @classmethod
    def of(cls, pair: AwkwardArray) -> _Content:
        inside = ak.flatten(pair["constituents"])
        counts = ak.to_numpy(ak.num(inside)).astype(np.int64)
        columns = {name: ak.to_numpy(ak.flatten(inside[name])) for name in CONSTITUENT_FIELDS}
        pt = columns["pt"]
        rises = pt[1:] > pt[:-1]
        first = np.cumsum(counts)[:-1]
        rises[first[(first > 0) & (first < len(pt))] - 1] = False  # from one jet to the next
        if rises.any():
            order = falling_pt(pt, offsets_of(counts))
            columns = {name: values[order] for name, values in columns.items()}
        return cls(columns, counts)

    def leading(self, limit: int | None) -> _Content:
        if limit is None or not (self.counts > limit).any():
            return self
        columns = self._ordered_at(limit)
        keep = places_of(self.counts) < limit
        return _Content({name: values[keep] for name, values in columns.items()}, np.minimum(self.counts, limit))

    def _ordered_at(self, limit: int) -> Mapping[str, np.ndarray[Any, Any]]:
        """Return the columns, with the members of jets that the cut parts at equal momenta ordered by eta and phi.

        Otherwise the result of the cut would depend on the order of the file.
        """
        pt, begins = self.columns["pt"], offsets_of(self.counts)[:-1]
        longer = np.flatnonzero(self.counts > limit)
        tied = np.zeros(len(self.counts), dtype=bool)
        tied[longer] = pt[begins[longer] + limit - 1] == pt[begins[longer] + limit]
        if not tied.any():
            return self.columns
        rows = np.flatnonzero(np.repeat(tied, self.counts))
        eta, phi = (self.columns[name][rows] for name in ("eta", "phi"))
        order = np.arange(len(pt))
        order[rows] = rows[falling_pt(pt[rows], offsets_of(self.counts[tied]), eta, phi)]
        return {name: values[order] for name, values in self.columns.items()}


class Constituents(Dijets):  # type: ignore[misc, valid-type]
    """Select dijet events and keep their jets' constituents.

    Parameters
    ----------
    settings : ConstituentSettings or mapping, optional
        The fields of :class:`ConstituentSettings`.

    Notes
    -----
    The output is that of ``Dijets``; in the skim, ``jets`` have a field ``constituents``, a list of pt, eta, phi, mass
    (GeV, rad) by falling pt. If a jet has more than ``max_constituents``, its event is counted in the cut flow under
    ``cut_off_constituents``, and how many were cut off is in the histogram ``jet_cut_off``. A selected event in which
    one of the two jets, or both, has no constituents stays in, and is counted under ``no_constituents``. Histograms
    of constituents hold all of them before the selection, and those that the skim keeps after it; ``jet_constituents``
    counts them before any is cut off.
    """

    reads_constituents = True
    settings_class = ConstituentSettings

    def process(self, events: Events) -> dict[str, Any]:
        """Select one chunk; see the class for the output."""
        if "constituents" not in events.jets.fields:
            raise ConfigError(
                f"processor {type(self).__name__} needs constituents: run it with Reading(constituents=True)"
            )
        out: dict[str, Any] = super().process(events)
        return out

    def skim_jets(self, pair: AwkwardArray) -> AwkwardArray:
        """Return the selected pairs with their constituents, as plain records."""
        leading = _Content.of(pair).leading(self.settings.max_constituents)
        inner = offsets_of(leading.counts)
        outer = 2 * np.arange(len(pair) + 1, dtype=np.int64)
        # copies: views would keep the whole chunk in memory
        lists = {name: nested(values.copy(), inner, outer) for name, values in leading.columns.items()}
        return ak.with_field(super().skim_jets(pair), ak.zip(lists), "constituents")

    def aside(
        self, pair: AwkwardArray, weight: np.ndarray[Any, Any], passed: np.ndarray[Any, Any]
    ) -> dict[str, dict[str, float]]:
        """Count the selected events in which a jet loses constituents, and those in which one has none at all."""
        limit = self.settings.max_constituents
        counts = ak.to_numpy(ak.num(pair["constituents"], axis=2))
        lost = passed & (np.zeros(len(passed), dtype=bool) if limit is None else (counts > limit).any(axis=1))
        without = passed & (counts == 0).any(axis=1)
        flows = {
            name: {"events": int(mask.sum()), "weight": float(weight[mask].sum())}
            for name, mask in (("no_constituents", without), ("cut_off_constituents", lost))
        }
        return {**super().aside(pair, weight, passed), **flows}

    def histograms(
        self,
        dataset: str,
        pair: AwkwardArray,
        mjj: np.ndarray[Any, Any],
        features: Mapping[str, np.ndarray[Any, Any]],
        weight: np.ndarray[Any, Any],
        passed: np.ndarray[Any, Any],
    ) -> dict[str, hist.Hist]:
        """Fill those of ``Dijets``, and the constituents' numbers and positions in the leading and subleading jet."""
        out: dict[str, hist.Hist] = super().histograms(dataset, pair, mjj, features, weight, passed)
        categories = list(out["jet_pt"].axes)[:3]  # dataset, selection, jet
        axes = {**NUMBERS, **{f"constituent_{name}": axis for name, axis in SHAPES.items()}}
        for name, axis in axes.items():
            what = "Constituents" if name.startswith("constituent") else "Jets"
            out[name] = hist.Hist(*categories, axis, storage="weight", label=what)
        every = _Content.of(pair)
        leading = every.leading(self.settings.max_constituents)
        jets = {name: ak.to_numpy(ak.flatten(pair[name])) for name in ("pt", "eta", "phi")}
        is_leading = np.arange(len(every.counts)) % 2 == 0
        jet_weight, jet_passed = np.repeat(weight, 2), np.repeat(passed, 2)
        numbers = {"constituents": every.counts, "cut_off": every.counts - leading.counts}
        for selection, content in (("before", every), ("after", leading)):
            shapes = _relative(content, jets)
            for position in ("leading", "subleading"):
                names = {"dataset": dataset, "selection": selection, "jet": position}
                mask = is_leading == (position == "leading")
                if selection == "after":
                    mask &= jet_passed
                for name, values in numbers.items():
                    fill_checked(out[f"jet_{name}"], weight=jet_weight[mask], **names, **{name: values[mask]})
                inside = np.repeat(mask, content.counts)
                inside_weight = np.repeat(jet_weight, content.counts)[inside]
                for name, values in shapes.items():
                    histogram = out[f"constituent_{name}"]
                    fill_checked(histogram, weight=inside_weight, **names, **{name: values[inside]})
        return out


def _relative(content: _Content, jets: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The low-level variables of every constituent."""
    pt, eta, phi = (np.repeat(jets[name], content.counts) for name in ("pt", "eta", "phi"))
    return {
        "pt_fraction": content.columns["pt"] / pt,
        "delta_eta": content.columns["eta"] - eta,
        "delta_phi": wrapped(content.columns["phi"] - phi),
    }
