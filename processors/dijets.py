"""The dijet selection: two leading jets, their features, control histograms, cut flow and skim.

Copy this file into your project and edit it, or subclass :class:`Dijets` and replace a hook: the trigger, the golden
JSON, the jet identification, the corrections and the weights are methods that let everything pass here. What they
return is checked: a mask holds booleans, weights are finite, jets are those of their own events.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import awkward as ak
import hist
import numpy as np
from coffea import processor

from drapes_hep.errors import ConfigError
from drapes_hep.events.accumulate import ColumnParts, chunk_key, feature_axis, fill_checked
from drapes_hep.events.features import HLV, check_features, compute_features, invariant_mass, kept_of
from drapes_hep.events.hooks import Hooks, no_cut
from drapes_hep.events.schema import IDENTITY_FIELDS, JET_FIELDS
from drapes_hep.events.types import AwkwardArray, Column, Events

__all__ = ["DijetSettings", "Dijets"]

JETS = {
    "pt": hist.axis.Regular(150, 0, 3000, name="pt", label=r"$p_T$ [GeV]"),
    "eta": hist.axis.Regular(60, -3, 3, name="eta", label=r"$\eta$"),
    "phi": hist.axis.Regular(64, -np.pi, np.pi, name="phi", label=r"$\phi$ [rad]"),
    "mass": hist.axis.Regular(100, 0, 1000, name="mass", label=r"$m_J$ [GeV]"),
}


@dataclass(frozen=True)
class DijetSettings:
    """What the selection can be told.

    Parameters
    ----------
    leading_pt : float
        Least transverse momentum of the leading jet, GeV.
    abs_eta_max : float
        Largest absolute pseudorapidity of either jet.
    features : tuple of str
        Names in :data:`drapes_hep.events.features.FEATURES`.
    mass_range : tuple of float
        m_JJ that is kept, GeV: lower edge inclusive, upper edge exclusive.
    undefined : "drop" or float
        An event with an undefined feature (tau21 where tau1 = 0) is dropped, or the feature gets this value.
    define : mapping
        Features that the configuration defines, see :mod:`drapes_hep.events.features`.
    keep : tuple of str
        Further fields of the two jets that the skim keeps, as ``FIELD_j1`` and ``FIELD_j2``.
    """

    leading_pt: float = 1200.0
    abs_eta_max: float = 2.5
    features: tuple[str, ...] = HLV
    mass_range: tuple[float, float] = (2700.0, 6000.0)
    undefined: Literal["drop"] | float = "drop"
    define: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_features(self.features, self.define, self.keep)
        low, high = self.mass_range
        if not low < high:
            raise ConfigError(f"mass_range must rise, got {low:g} to {high:g}")
        if isinstance(self.undefined, str) and self.undefined != "drop":
            raise ConfigError(f"undefined: expected 'drop' or a number, got '{self.undefined}'")
        if not isinstance(self.undefined, str) and not np.isfinite(self.undefined):
            raise ConfigError(f"undefined: expected a finite number, got {self.undefined}")


class Dijets(processor.ProcessorABC):  # type: ignore[misc]
    """Select dijet events; without state, so that one instance serves every chunk.

    Parameters
    ----------
    settings : DijetSettings or mapping, optional
        The fields of :class:`DijetSettings` (of ``settings_class``, in a subclass that adds some).

    Notes
    -----
    The output is ``{"hists", "cutflow", "not_applied", "skim"}``, and ``"truth"`` for labelled events: labels are kept
    apart, no skim ever carries one. The hooks are called in this order: :meth:`weights`, :meth:`golden_json`,
    :meth:`trigger`, :meth:`corrections`, :meth:`jet_id`.
    """

    settings_class: type[DijetSettings] = DijetSettings
    reads: Sequence[str] = ()
    """Files that the hooks read: a golden JSON, corrections. An edited one makes the skim run again."""

    def __init__(self, settings: DijetSettings | Mapping[str, Any] | None = None) -> None:
        if isinstance(settings, DijetSettings):
            self.settings = settings
            return
        values = dict(settings or {})
        names = [field.name for field in fields(self.settings_class)]
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
                hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(names)}"
                raise ConfigError(f"selection: unknown setting '{name}'; {hint}")
        for name in ("features", "mass_range", "keep"):
            if name in values and not isinstance(values[name], str):
                values[name] = tuple(values[name])
        self.settings = self.settings_class(**values)

    # ---- hooks: replace these -------------------------------------------------------------------------------------

    def weights(self, events: Events) -> np.ndarray[Any, Any]:
        """Return each event's weight (n,): generator weights, pile-up, scale factors. Default: as the file states."""
        return ak.to_numpy(events.weight)  # type: ignore[no-any-return]

    def golden_json(self, events: Events) -> Column:
        """Return a mask (n,) of certified sections (``coffea.lumi_tools.LumiMask``). Default: not applied."""
        return no_cut(events)

    def trigger(self, events: Events) -> Column:
        """Return a mask (n,) of events that fired the trigger. Default: not applied."""
        return no_cut(events)

    def corrections(self, events: Events) -> AwkwardArray:
        """Return the jets with energy and mass corrections, lists like ``events.jets``. Default: as they are."""
        return events.jets

    def jet_id(self, events: Events, jets: AwkwardArray) -> AwkwardArray:  # noqa: ARG002
        """Return a mask of jets (lists of booleans) that pass identification and pile-up rejection. Default: all."""
        return ak.ones_like(jets.pt, dtype=bool)

    # ---- what comes out: extend these -------------------------------------------------------------------------------

    def skim_jets(self, pair: AwkwardArray) -> AwkwardArray:
        """Return the selected pairs of jets as the skim shall hold them."""
        return _plain(pair, self.settings.keep)

    def aside(
        self,
        pair: AwkwardArray,  # noqa: ARG002
        weight: np.ndarray[Any, Any],  # noqa: ARG002
        passed: np.ndarray[Any, Any],  # noqa: ARG002
    ) -> dict[str, dict[str, float]]:
        """Count what is no step of the cut flow, given all pairs (n,) and which of them are selected. Here: nothing."""
        return {}

    def histograms(
        self,
        dataset: str,
        pair: AwkwardArray,
        mjj: np.ndarray[Any, Any],
        features: Mapping[str, np.ndarray[Any, Any]],
        weight: np.ndarray[Any, Any],
        passed: np.ndarray[Any, Any],
    ) -> dict[str, hist.Hist]:
        """Fill the control histograms, of all pairs (n,) and of those that are selected."""
        values = {"mjj": mjj, **features}
        define, keep = self.settings.define, self.settings.keep
        axes = {name: feature_axis(name, define, keep) for name in values}
        out = {name: hist.Hist(*_categories(dataset), axis, storage="weight") for name, axis in axes.items()}
        out |= {
            f"jet_{name}": hist.Hist(
                *_categories(dataset),
                hist.axis.StrCategory(["leading", "subleading"], name="jet"),
                axis,
                storage="weight",
            )
            for name, axis in JETS.items()
        }
        for selection, mask in (("before", np.ones(len(mjj), dtype=bool)), ("after", passed)):
            names = {"dataset": dataset, "selection": selection}
            for name, array in values.items():
                fill_checked(out[name], weight=weight[mask], **names, **{name: array[mask]})
            for i, jet in enumerate(("leading", "subleading")):
                for name in JETS:
                    array = ak.to_numpy(pair[name][:, i])[mask]
                    fill_checked(out[f"jet_{name}"], weight=weight[mask], **names, jet=jet, **{name: array})
        return out

    # ---- the selection --------------------------------------------------------------------------------------------

    def process(self, events: Events) -> dict[str, Any]:
        """Select one chunk; see the class for what comes back."""
        settings, dataset = self.settings, str(events.metadata["dataset"])
        hooks = Hooks(self, events)
        weight = hooks.weights("weights")
        flow: dict[str, dict[str, float]] = {}

        def count(step: str, mask: np.ndarray[Any, Any]) -> None:
            flow[step] = {"events": int(mask.sum()), "weight": float(weight[mask].sum())}

        keep = np.ones(len(events), dtype=bool)
        count("read", keep)
        not_applied: dict[str, int] = {}
        for step in ("golden_json", "trigger"):
            mask, applied = hooks.event_mask(step)
            keep = keep & mask
            count(step, keep)
            not_applied[step] = 0 if applied else len(events)

        jets = _good_jets(hooks)
        keep &= ak.to_numpy(ak.num(jets)) >= 2
        count("two_jets", keep)

        # from here on only events that have a pair: masks below are of that length
        index = np.flatnonzero(keep)
        pair = ak.to_packed(jets[index][:, :2])
        pair_weight = weight[index]
        mjj = invariant_mass(pair)
        features = compute_features(settings.features, pair, settings.define, settings.keep)
        undefined = {name: ~np.isfinite(values) for name, values in features.items()}

        passed = np.ones(len(index), dtype=bool)

        def cut(step: str, mask: Column) -> None:
            nonlocal passed
            passed = passed & hooks.cut(step, mask, index)
            flow[step] = {"events": int(passed.sum()), "weight": float(pair_weight[passed].sum())}

        low, high = settings.mass_range
        cut("leading_pt", ak.to_numpy(pair.pt[:, 0]) > settings.leading_pt)
        cut("abs_eta", ak.to_numpy(ak.all(abs(pair.eta) < settings.abs_eta_max, axis=1)))
        cut("mass_range", (mjj >= low) & (mjj < high))
        for name, missing in undefined.items():
            lost = passed & missing
            # not a step of the flow: how many events each feature is undefined for, of those selected so far
            flow[f"undefined_{name}"] = {"events": int(lost.sum()), "weight": float(pair_weight[lost].sum())}
        if settings.undefined == "drop":
            cut("defined", ~np.any(list(undefined.values()), axis=0))
        else:
            features = {name: np.where(undefined[name], settings.undefined, array) for name, array in features.items()}
            cut("defined", np.ones(len(passed), dtype=bool))

        flow |= self.aside(pair, pair_weight, passed)
        chosen = {name: values[passed] for name, values in features.items()}
        return {
            "hists": self.histograms(dataset, pair, mjj, features, pair_weight, passed),
            "cutflow": {dataset: flow},
            # events that a step's hook was not applied to: the cut flow leaves out a step that was applied to none
            "not_applied": {dataset: not_applied},
            **self.skim_rows(events, index[passed], pair[passed], mjj[passed], chosen, pair_weight[passed]),
        }

    def skim_rows(
        self,
        events: Events,
        index: np.ndarray[Any, Any],
        pair: AwkwardArray,
        mjj: np.ndarray[Any, Any],
        features: Mapping[str, np.ndarray[Any, Any]],
        weight: np.ndarray[Any, Any],
    ) -> dict[str, Any]:
        """Return the rows of the skim, and the labels beside them; ``index`` says which events are selected."""
        columns: dict[str, Any] = {
            "event_id": ak.to_numpy(events.event_id)[index].astype(np.int64),
            "weight": weight,
            "mjj": mjj,
            **kept_of(pair, self.settings.keep),
            **features,
            "jets": self.skim_jets(pair),
        }
        # whose event it was: the parent of a template's, or the experiment's own numbers to trace a result back
        for name in ("parent_id", *IDENTITY_FIELDS):
            if name in events.fields:
                columns[name] = ak.to_numpy(events[name])[index].astype(np.int64)
        key = chunk_key(events.metadata)
        out: dict[str, Any] = {"skim": ColumnParts({key: columns})}
        if "label" in events.fields:
            label = ak.to_numpy(events.label)[index].astype(np.int64)
            out["truth"] = ColumnParts({key: {"event_id": columns["event_id"], "label": label}})
        return out

    def postprocess(self, accumulator: Any) -> Any:
        """Nothing is left to do."""
        return accumulator


def _good_jets(hooks: Hooks) -> AwkwardArray:
    """Jets that are corrected and pass identification, by falling transverse momentum."""
    jets = hooks.jets("corrections")
    jets = jets[hooks.jet_mask("jet_id", jets)]
    # a stable sort: jets of equal momentum stay in the file's order
    return jets[ak.argsort(jets.pt, axis=1, ascending=False, stable=True)]


def _categories(dataset: str) -> tuple[Any, Any]:
    # categories come first and every axis has flow bins: otherwise boost-histogram 1.8.1 can lose a whole chunk
    return (
        hist.axis.StrCategory([dataset], growth=True, name="dataset"),
        hist.axis.StrCategory(["before", "after"], name="selection"),
    )


def _plain(jets: AwkwardArray, keep: tuple[str, ...] = ()) -> ak.Array:
    """Jets as plain records: no behaviours and no link to the file, which would keep the whole chunk in memory."""
    counts = ak.num(jets)
    flat = {name: ak.to_numpy(ak.flatten(jets[name])).copy() for name in (*JET_FIELDS, *keep)}
    return ak.unflatten(ak.zip(flat, depth_limit=1), ak.to_numpy(counts))
