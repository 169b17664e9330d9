"""Stage skim: files to selected events, control histograms, cut flow and the account of every event."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import uhi.io.json

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, DrapesError, InputError
from drapes_hep.events.chunks import FileInfo, Reading
from drapes_hep.events.injection import SignalInjection, choose_signal, collect_ids, collect_truth
from drapes_hep.events.loading import class_sources, load_processor, processor_folders
from drapes_hep.events.readers import expand_trees, simulation_order
from drapes_hep.events.running import RunReport, run, scan_fileset
from drapes_hep.events.skims import Truth, read_truth, write_skim, write_truth
from drapes_hep.events.types import Foreign
from drapes_hep.files import atomic_path, file_hash, read_json
from drapes_hep.remote import is_url, sampled_hash
from drapes_hep.rundir import note
from drapes_hep.stages.context import Context
from drapes_hep.stages.resume import check_unchanged, chunk_store, discard, inputs_of, reported
from drapes_hep.stamps import Stage, read_stamp, run_stage

__all__ = [
    "all_truth",
    "check_files",
    "check_labels",
    "load_selection",
    "make_processor",
    "reading_of",
    "run_selection",
    "skim",
    "skim_stage",
]


def load_selection(config: Config) -> Foreign:
    """Load the processor's class that the configuration names."""
    return load_processor(config.processor, processor_folders(config.folder))


def skim_stage(context: Context, infos: Sequence[FileInfo] | None = None) -> Stage:
    """Describe the stage: what decides the selected events; ``infos`` are the files' if they were opened already."""
    config = context.config
    truth = [] if config.data.truth is None else [config.data.truth]

    def reads() -> list[str | Path]:
        paths = expand_trees(config.data.path)
        found = infos
        if found is None:
            # files that are gone are the caller's to complain of
            there = all(is_url(path) or Path(path).is_file() for path in paths)
            found = scan_fileset(_fileset(config), reading_of(config)) if there else []
        # labels may lie in a file beside one of these
        return [*paths, *(one for info in found for one in info.beside), *truth]

    trees = config.data.path if isinstance(config.data.path, dict) else {}
    return Stage(
        "skim",
        config.model_dump(mode="json"),
        (
            *("name", "signal", "processor", "selection", "features", "mass.range"),
            *("data.labels", "data.layout", "data.radius", "data.axes"),
        ),
        reads,
        other={
            "trees": sorted(trees.values()),
            "processor's source": [file_hash(path) for path in class_sources(load_selection(config))],
        },
        noted=("data",),
    )


def skim(context: Context) -> None:
    """Select events, unless it is done.

    Raises
    ------
    DrapesError
        If an input is bad, or not every requested event was processed.
    """
    config, directory = context.config, context.run
    processor_class = load_selection(config)
    sources = class_sources(processor_class)
    infos = check_files(config)
    stage = skim_stage(context, infos)
    run_stage(directory, stage, lambda: _work(context, stage, processor_class), context.reporter)
    discard(directory, stage)
    context.reporter.say(f"processor: {sources[0] if sources else config.processor}")
    reads = (read_stamp(directory, "skim") or {}).get("reads", {})
    found = {
        "processor": {"class": config.processor, "files": {str(path): file_hash(path) for path in sources}},
        "inputs": {path: reads[path] for path in expand_trees(config.data.path) if path in reads},
    }
    manifest = read_json(directory.manifest)
    if any(manifest.get(name) != value for name, value in found.items()):
        note(directory, **found)


def reading_of(config: Config) -> Reading:
    """Say how the configuration's files are read."""
    wants = getattr(load_selection(config), "reads_constituents", False)
    return Reading(config.data.layout, config.data.radius, config.data.axes, constituents=bool(wants))


def _fileset(config: Config) -> dict[str, Any]:
    return {config.name: {"files": expand_trees(config.data.path)}}


def check_files(config: Config) -> list[FileInfo]:
    """Open the data files without reading an event.

    Parameters
    ----------
    config : Config

    Returns
    -------
    list of FileInfo

    Raises
    ------
    DrapesError
        If one cannot be read, is there twice, holds the simulated events of another, or lacks the labels that are
        promised.
    """
    fileset = _fileset(config)
    paths = list(fileset[config.name]["files"])
    infos = scan_fileset(fileset, reading_of(config))
    hashes: dict[str, str] = {}
    for path in paths if len(paths) > 1 else []:
        twin = hashes.setdefault(sampled_hash(path), path)
        if twin != path:
            raise InputError(path, f"holds the same bytes as {twin}", "list a file once: its events would count twice")
    check_seeds(infos)
    if sum(info.entries for info in infos) == 0:
        raise InputError(paths[0], "holds no events", "check data.path")
    if config.data.labels and config.data.truth is None:
        for info in infos:
            if not info.has_labels:
                raise InputError(
                    info.path, "carries no column 'label'", "set data.labels to false, or name a sidecar in data.truth"
                )
    if config.data.truth and not is_url(config.data.truth) and not Path(config.data.truth).is_file():
        raise InputError(config.data.truth, "no such file", "check data.truth")
    return infos


_SAME_EVENTS = {"events", "block", "format", "versions"}
"""Entries of a simulation's order that may differ between two files of the same events."""


def check_seeds(infos: Sequence[FileInfo]) -> None:
    """Refuse simulated files of one process and seed: the shorter one's events are those of the longer one again."""
    seen: dict[str, str] = {}
    for info in infos if len(infos) > 1 else []:
        order = simulation_order(info)
        if order is None:
            continue
        made = {name: value for name, value in order.items() if name not in _SAME_EVENTS}
        other = seen.setdefault(json.dumps(made, sort_keys=True), info.path)
        if other != info.path:
            raise InputError(
                info.path,
                f"was simulated with the process and the seed {order.get('seed')} of {other}: it holds the same events",
                "make more events with another --seed",
            )


def check_labels(config: Config) -> tuple[int, int] | None:
    """Read identities and labels of all events, and see whether the signal can be injected.

    Parameters
    ----------
    config : Config

    Returns
    -------
    tuple of int or None
        Background and signal events; None if the configuration promises no labels.

    Raises
    ------
    DrapesError
        If there is less signal than wanted, or a truth sidecar is not of these events.
    """
    truth = all_truth(config)
    if truth is None:
        return None
    _dropped(config, truth)
    signal = int((truth.label == 1).sum())
    return len(truth) - signal, signal


def all_truth(config: Config) -> Truth | None:
    """Read identities and labels of all events in the files, before any selection.

    Parameters
    ----------
    config : Config

    Returns
    -------
    Truth or None
        None if the configuration promises no labels.
    """
    if not config.data.labels:
        return None
    sidecar = None if config.data.truth is None else read_truth(config.data.truth)
    out, _ = run(
        _fileset(config),
        collect_truth if sidecar is None else collect_ids,
        chunksize=_chunksize(config),
        reading=dataclasses.replace(reading_of(config), constituents=False, jets=False),
    )
    columns = out["truth"].columns()
    order = np.argsort(columns["event_id"], kind="stable")
    ids = columns["event_id"][order]
    # a sidecar may know more events than the files hold: those must not be counted as injected
    label = columns["label"][order] if sidecar is None else sidecar.truth_for(ids)
    return Truth(config.data.truth or "data.path", ids, label)


def _dropped(config: Config, truth: Truth) -> npt.NDArray[np.int64]:
    """Choose the signal events that are not injected."""
    if config.signal.inject is None:
        return np.empty(0, dtype=np.int64)
    signal = truth.event_id[truth.label == 1]
    return np.setdiff1d(signal, choose_signal(signal, config.signal.inject, config.signal.seed))


def make_processor(config: Config, processor_class: Foreign) -> Foreign:
    """Make the processor with the configuration's settings.

    Raises
    ------
    ConfigError
        If its class refuses them.
    """
    settings = {
        "leading_pt": config.selection.leading_pt,
        "abs_eta_max": config.selection.abs_eta_max,
        "undefined": config.selection.undefined,
        "features": config.features,
        "mass_range": config.mass.range,
    }
    if config.selection.max_constituents is not None:
        # only if given: a processor without constituents knows no such setting, and says so
        settings["max_constituents"] = config.selection.max_constituents
    try:
        return processor_class(settings)
    except DrapesError:
        raise
    except Exception as error:  # a user's class may take anything else
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"processor '{config.processor}': cannot be made with the settings ({type(error).__name__}: {reason})"
        ) from error


def run_selection(
    context: Context,
    fileset: dict[str, Any],
    processor_class: Foreign,
    dropped: npt.NDArray[np.int64],
    reading: Reading,
    stage: Stage,
) -> tuple[Foreign, RunReport, dict[str, str]]:
    """Run a stage's selection over files, without some signal events.

    Returns
    -------
    output : object
        As the processor returns it.
    report : RunReport
        The account.
    inputs : dict of str to str
        Fingerprints of the files, the same before and after.

    Raises
    ------
    FailedFilesError
        With what failed written to the run directory; finished chunks are kept there.
    """
    paths = [path for one in fileset.values() for path in one["files"]]
    store = chunk_store(context.run, stage, paths, dropped)
    output, report = run(
        fileset,
        SignalInjection(make_processor(context.config, processor_class), dropped),
        executor=context.executor,
        workers=context.workers,
        chunksize=_chunksize(context.config),
        progress=context.reporter.draws,
        reading=reading,
        store=store,
    )
    inputs = inputs_of(paths)
    check_unchanged(dict(store.fingerprints), inputs)
    return output, report, inputs


_SMALLEST = 1000
"""Events per chunk, at least: a chunk of one event takes a processor as long as one of some thousand."""


def _chunksize(config: Config) -> int:
    return max(config.data.chunksize, _SMALLEST)


def _work(context: Context, stage: Stage, processor_class: Foreign) -> list[Path]:
    config, directory = context.config, context.run
    fileset = _fileset(config)
    # with no signal to choose a sidecar serves as it is
    whole = config.data.truth is None or config.signal.inject is not None
    with reported(context, stage):
        truth = all_truth(config) if whole else read_truth(str(config.data.truth))
        dropped = np.empty(0, dtype=np.int64) if truth is None else _dropped(config, truth)
        output, report, inputs = run_selection(context, fileset, processor_class, dropped, reading_of(config), stage)
    columns = output["skim"].columns()
    if not len(columns["event_id"]):
        raise ConfigError("the selection keeps no event: see the cuts in 'selection' and 'mass.range'")
    label = None if truth is None else truth.truth_for(columns["event_id"])
    # the account is about what the files hold; events that were not injected were read and set aside, and say so
    write_skim(directory.events, columns, {"inputs": inputs, "name": config.name})
    written = [directory.events]
    if label is not None:
        write_truth(directory.truth, columns["event_id"], label)
        written.append(directory.truth)
    else:
        directory.truth.unlink(missing_ok=True)  # of an earlier run that had labels
    hists = {name: json.loads(json.dumps(one, default=uhi.io.json.default)) for name, one in output["hists"].items()}
    with atomic_path(directory.skim_hists) as temporary:
        temporary.write_text(json.dumps(hists), encoding="utf-8")
    flow = output["cutflow"][config.name]
    record = {
        "accounting": {
            "requested": report.requested,
            "processed": report.processed,
            "lost": report.requested - report.processed,
        },
        "cutflow": [{"name": step, **numbers} for step, numbers in flow.items()],
        "files": [{"path": one.path, "requested": one.requested, "processed": one.processed} for one in report.files],
        "clipped_masses": report.clipped_masses,
    }
    with atomic_path(directory.skim_info) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return [*written, directory.skim_hists, directory.skim_info]
