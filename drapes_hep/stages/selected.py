"""The files of selected events that later stages and the report read, wherever the events come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hist
import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config
from drapes_hep.events.blinding import empty_hidden_bins, measures_mjj
from drapes_hep.events.injection import choose_signal
from drapes_hep.events.outputs import json_form
from drapes_hep.events.skims import write_skim, write_truth
from drapes_hep.files import atomic_path
from drapes_hep.pipeline.context import Context

__all__ = ["not_injected", "write_account", "write_control_hists", "write_events"]


def not_injected(config: Config, signal_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Choose the signal events that are set aside before the selection.

    Parameters
    ----------
    config : Config
        Its ``signal`` section decides.
    signal_id : array of int64, shape (n,)
        Identities of all signal events.

    Returns
    -------
    array of int64
        Sorted; empty where all are kept.

    Raises
    ------
    ConfigError
        If there is less signal than wanted.
    """
    signal = config.signal
    if signal.inject is None:
        return np.empty(0, dtype=np.int64)
    return np.setdiff1d(signal_id, choose_signal(signal_id, signal.inject, signal.seed))


def write_events(
    context: Context, columns: Mapping[str, Any], label: npt.ArrayLike | None, inputs: Mapping[str, str]
) -> list[Path]:
    """Write the selected events, and their labels beside them.

    Parameters
    ----------
    context : Context
    columns : mapping of str to array
        As :func:`drapes_hep.events.skims.write_skim` takes them.
    label : array_like of int, shape (n,), optional
        None removes the labels of an earlier run.
    inputs : mapping of str to str
        What the events were read from, with its hash.

    Returns
    -------
    list of Path
    """
    run = context.run
    write_skim(run.events, columns, {"inputs": dict(inputs)})
    if label is None:
        run.truth.unlink(missing_ok=True)
        return [run.events]
    write_truth(run.truth, columns["event_id"], label)
    return [run.events, run.truth]


def write_control_hists(context: Context, hists: Mapping[str, Any]) -> Path:
    """Write the control histograms; in a blinded run, bins of m_JJ that touch a window are emptied.

    Parameters
    ----------
    context : Context
    hists : mapping of str to histogram
        Of hist or boost-histogram.

    Returns
    -------
    Path
    """
    hidden = context.hidden
    # those of boost-histogram have axes without names
    named = {
        name: histogram if isinstance(histogram, hist.Hist) else hist.Hist(histogram)
        for name, histogram in hists.items()
    }
    emptied = [name for name, histogram in named.items() if hidden and any(map(measures_mjj, histogram.axes))]
    if emptied:
        context.reporter.say(f"skim: blinded: bins that touch a window are empty in {', '.join(emptied)}")
    records = json_form({name: empty_hidden_bins(histogram, hidden) for name, histogram in named.items()}, "'hists'")
    with atomic_path(context.run.skim_hists) as temporary:
        temporary.write_text(json.dumps(records), encoding="utf-8")
    return context.run.skim_hists


def write_account(
    context: Context,
    *,
    requested: int,
    processed: int,
    flow: Mapping[str, Mapping[str, float]],
    not_applied: list[str],
    files: list[dict[str, Any]],
    accumulators: Mapping[str, Any],
    clipped_masses: int,
) -> Path:
    """Write the account of every event and the cut flow.

    Parameters
    ----------
    context : Context
    requested, processed : int
        Events in the files, and those that were given to the selection.
    flow : mapping
        ``events`` and ``weight`` of each step.
    not_applied : list of str
        Steps that are left out of the cut flow.
    files : list of dict
        ``path``, ``requested`` and ``processed`` of each file.
    accumulators : mapping
        What the processor returned besides.
    clipped_masses : int
        Masses that were a rounding error below zero.

    Returns
    -------
    Path
    """
    hidden = context.hidden

    def blinded(number: int) -> int | None:
        # of all events in the files: with the sidebands' number it would give that in the windows
        return None if hidden else number

    record = {
        "accounting": {"requested": blinded(requested), "processed": blinded(processed), "lost": requested - processed},
        "cutflow": [
            {"name": step, "events": int(numbers["events"]), "weight": float(numbers["weight"])}
            for step, numbers in flow.items()
            if step not in not_applied
        ],
        "not_applied": not_applied,
        "accumulators": accumulators,
        "files": [
            {"path": file["path"], "requested": blinded(file["requested"]), "processed": blinded(file["processed"])}
            for file in files
        ],
        "empty_files": [file["path"] for file in files if not file["requested"]],
        "clipped_masses": blinded(clipped_masses),
        "hidden": [list(edges) for edges in hidden],
    }
    with atomic_path(context.run.skim_info) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return context.run.skim_info
