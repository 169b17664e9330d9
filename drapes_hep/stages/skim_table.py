"""Stage skim for events that are a table in memory: mass range, features, cut flow and control histograms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hist
import numpy as np
import numpy.typing as npt

from drapes_hep.config import keys_of
from drapes_hep.errors import ConfigError
from drapes_hep.events.accumulate import feature_axis, fill_checked
from drapes_hep.events.ranges import in_ranges
from drapes_hep.events.table import PLACE, Table
from drapes_hep.files import read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stage
from drapes_hep.pipeline.run_directory import note
from drapes_hep.pipeline.stage import Stage
from drapes_hep.stages.selected import not_injected, write_account, write_control_hists, write_events

__all__ = ["skim_table", "table_stage"]

BoolArray = npt.NDArray[np.bool_]

_NO_JETS = ["leading_pt", "abs_eta"]
"""Steps of the selection on jets, which a table has not."""


def table_stage(context: Context) -> Stage:
    """Describe the stage: what decides the selected events."""
    return Stage(
        "skim",
        context.config.model_dump(mode="json"),
        keys_of("skim"),
        list,
        ("stages.skim_table",),
        other={"table": _table(context).hash, "hidden windows": [list(edges) for edges in context.hidden]},
        recorded=("data",),
    )


def skim_table(context: Context) -> None:
    """Select the events of a table, unless it is done.

    Raises
    ------
    ConfigError
        If no event is selected, or there is less signal than wanted.
    """
    run_stage(context.run, table_stage(context), lambda: _work(context), context.reporter)
    entries: dict[str, Any] = {"processor": {}, "inputs": {PLACE: _table(context).hash}}
    manifest = read_json(context.run.manifest)
    if any(manifest.get(name) != value for name, value in entries.items()):
        note(context.run, **entries)


def _table(context: Context) -> Table:
    if context.table is None:
        raise ValueError("the events of this search are files")
    return context.table


def _work(context: Context) -> list[Path]:
    config, table = context.config, _table(context)
    ids, mjj, label = table.columns["event_id"], table.columns["mjj"], table.columns.get("label")
    aside = np.zeros(len(ids), dtype=bool) if label is None else np.isin(ids, not_injected(config, ids[label == 1]))
    low, high = config.mass.range
    inside = ~aside & (mjj >= low) & (mjj < high)
    undefined = {name: ~np.isfinite(table.columns[name]) for name in config.features}
    features = dict(table.columns)
    defined = np.ones(len(ids), dtype=bool)
    if config.selection.undefined == "drop":
        defined = ~np.any(list(undefined.values()), axis=0)
    else:
        value = config.selection.undefined
        features |= {name: np.where(bad, value, features[name]) for name, bad in undefined.items()}
    passed = inside & defined
    if not passed.any():
        raise ConfigError(
            f"the selection keeps no events: m_JJ of the table is between {mjj.min():g} and {mjj.max():g} GeV,"
            f" mass.range is {low:g} to {high:g} GeV"
        )
    # no number or histogram holds an event of a hidden window
    visible = ~(passed & in_ranges(mjj, context.hidden))
    if not (passed & visible).any():
        raise ConfigError("blind: every event is in a hidden window, none in the sidebands; see 'windows'")
    steps = {
        "read": ~aside,
        "mass_range": inside,
        **{f"undefined_{name}": inside & bad for name, bad in undefined.items()},
        "defined": passed,
        "not_injected": aside,
    }
    counts = {name: int((mask & visible).sum()) for name, mask in steps.items()}
    columns = {"event_id": ids[passed], "weight": np.ones(int(passed.sum())), "mjj": mjj[passed]}
    columns |= {name: features[name][passed] for name in config.features}
    written = write_events(context, columns, None if label is None else label[passed], {PLACE: table.hash})
    filled = {"mjj": mjj, **{name: features[name] for name in config.features}}
    account = write_account(
        context,
        requested=len(table),
        processed=len(table),
        flow={name: {"events": number, "weight": float(number)} for name, number in counts.items()},
        not_applied=_NO_JETS,
        files=[{"path": PLACE, "requested": len(table), "processed": len(table)}],
        accumulators={},
        clipped_masses=0,
    )
    axes = {name: feature_axis(name, **config.definitions) for name in filled}
    hists = _histograms(filled, axes, ~aside & visible, passed & visible)
    return [*written, write_control_hists(context, hists), account]


def _histograms(
    values: Mapping[str, npt.NDArray[Any]], axes: Mapping[str, Any], read: BoolArray, passed: BoolArray
) -> dict[str, hist.Hist]:
    """Fill the control histograms, of all events that were read and of those that are selected."""
    out = {}
    for name, array in values.items():
        # categories first, and flow bins everywhere: see fill_checked
        out[name] = hist.Hist(
            hist.axis.StrCategory(["data"], growth=True, name="dataset"),
            hist.axis.StrCategory(["before", "after"], name="selection"),
            axes[name],
            storage="weight",
        )
        for selection, mask in (("before", read), ("after", passed)):
            chosen = array[mask]
            fill_checked(out[name], weight=np.ones(len(chosen)), dataset="data", selection=selection, **{name: chosen})
    return out
