"""Stage skim: files to selected events, control histograms, cut flow and the account of every event."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import hist
import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, DrapesError, InputError, UsersCode, counted, reason_of
from drapes_hep.events.blinding import Blinding, empty_hidden_bins, measures_mjj
from drapes_hep.events.chunks import FileInfo, Reading
from drapes_hep.events.failures import FailedFilesError, Failure
from drapes_hep.events.features import check_features, function_sources, kept_columns
from drapes_hep.events.injection import SignalInjection, choose_signal, collect_ids, collect_truth
from drapes_hep.events.loading import NEEDS, class_sources, load_processor, processor_folders
from drapes_hep.events.outputs import CheckedProcessor, Wanted, accumulators, json_form
from drapes_hep.events.readers import expand_trees, no_events, scan, shared_identities, simulation_order
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
    "FileCheck",
    "all_truth",
    "check_files",
    "check_labels",
    "examine_files",
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
            *("name", "signal", "processor", "selection", "features", "define", "mass.range"),
            *("data.labels", "data.layout", "data.radius", "data.axes"),
        ),
        reads,
        other={
            "trees": sorted([PurePath(path).name, tree] for path, tree in trees.items()),
            # the events are the same, their histograms and numbers are not
            "hidden windows": [list(edges) for edges in context.hidden],
            "features' sources": function_sources(config.definitions["define"]),
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
    opened = examine_files(config)
    if opened.problems:
        raise _joined(config.name, opened.problems)
    for remark in opened.remarks:
        context.reporter.say(remark)
    stage = skim_stage(context, opened.infos)
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
    return Reading(
        config.data.layout, config.data.radius, config.data.axes, constituents=bool(wants), empty=config.data.empty,
        keep=config.selection.keep,
    )  # fmt: skip


def _fileset(config: Config) -> dict[str, Any]:
    return {config.name: {"files": expand_trees(config.data.path)}}


@dataclass(frozen=True)
class FileCheck:
    """What opening the files of a data set says, without reading an event.

    Parameters
    ----------
    infos : tuple of FileInfo
        Files that can be read.
    problems : tuple of DrapesError
        What a run would stop with, in the order of the files.
    remarks : tuple of str
        What a user should know, a line each: files without events, several layouts or trees.
    """

    infos: tuple[FileInfo, ...]
    problems: tuple[DrapesError, ...]
    remarks: tuple[str, ...]


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
        With the problems of :func:`examine_files`.
    """
    found = examine_files(config)
    if found.problems:
        raise _joined(config.name, found.problems)
    return list(found.infos)


def _joined(dataset: str, problems: Sequence[DrapesError]) -> DrapesError:
    """Return one error for all problems with files, or the first problem of another kind."""
    files = [one for one in problems if isinstance(one, InputError)]
    if len(files) < 2:
        return problems[0]
    return FailedFilesError([Failure(dataset, one.path, None, None, one.problem, one.remedy) for one in files])


def examine_files(config: Config) -> FileCheck:
    """Open the data files without reading an event, and gather all that is wrong with them.

    Parameters
    ----------
    config : Config

    Returns
    -------
    FileCheck
        Problems are files that cannot be read, are listed twice, share identities or the simulated events with
        another, or lack the labels that are promised; and a data set without events.

    Raises
    ------
    DrapesError
        If the list of files itself cannot be made.
    """
    infos: list[FileInfo] = []
    problems: list[DrapesError] = []
    reading = reading_of(config)
    for path, tree in expand_trees(config.data.path).items():
        try:
            infos.append(scan(path, tree, reading))
        except InputError as error:
            problems.append(error)
    held = [info for info in infos if info.entries]
    problems += shared_identities(held)
    problems += _copies(held)
    problems += _repeated_seeds(held)
    if infos and not held:
        problems.append(no_events(infos))
    if config.data.labels and config.data.truth is None:
        problems += [
            InputError(
                info.path, "carries no column 'label'", "set data.labels to false, or name a sidecar in data.truth"
            )
            for info in held
            if not info.has_labels
        ]
    if config.data.truth and not is_url(config.data.truth) and not Path(config.data.truth).is_file():
        problems.append(InputError(config.data.truth, "no such file", "check data.truth"))
    return FileCheck(tuple(infos), tuple(problems), tuple(_remarks(infos)))


def _copies(infos: Sequence[FileInfo]) -> list[DrapesError]:
    """Return an error for each file that holds the bytes of an earlier one."""
    hashes: dict[str, str] = {}
    errors: list[DrapesError] = []
    for info in infos if len(infos) > 1 else []:
        twin = hashes.setdefault(sampled_hash(info.path), info.path)
        if twin != info.path:
            errors.append(
                InputError(
                    info.path,
                    f"holds the same bytes as {twin}",
                    "list a file once: its events would count twice",
                )
            )
    return errors


def _remarks(infos: Sequence[FileInfo]) -> Iterator[str]:
    for info in infos:
        yield from (f"{info.path}: {remark}" for remark in info.remarks)
    empty = [info.path for info in infos if not info.entries]
    if empty:
        yield (
            f"{len(empty)} of {counted(len(infos), 'file')} {'holds' if len(empty) == 1 else 'hold'} no events and"
            f" {'is' if len(empty) == 1 else 'are'} passed over: {_listed(empty)}"
        )
    held = [info for info in infos if info.entries]
    for what, values in (
        ("layouts", [info.layout for info in held]),
        ("trees", [info.object_path for info in held if info.container == "root"]),
    ):
        if len(set(values)) > 1:
            each = ", ".join(f"{count} of '{value}'" for value, count in Counter(values).most_common())
            yield f"the files are of several {what}: {each}; check that they belong together"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


_SAME_EVENTS = {"events", "block", "format", "versions"}
"""Entries of a simulation's order that may differ between two files of the same events."""


def check_seeds(infos: Sequence[FileInfo]) -> None:
    """Refuse simulated files of one process and seed: the shorter one's events are those of the longer one again.

    Parameters
    ----------
    infos : sequence of FileInfo

    Raises
    ------
    InputError
        The first such file.
    """
    for error in _repeated_seeds(infos):
        raise error


def _repeated_seeds(infos: Sequence[FileInfo]) -> list[DrapesError]:
    seen: dict[str, str] = {}
    errors: list[DrapesError] = []
    for info in infos if len(infos) > 1 else []:
        order = simulation_order(info) if info.entries else None
        if order is None:
            continue
        made = {name: value for name, value in order.items() if name not in _SAME_EVENTS}
        other = seen.setdefault(json.dumps(made, sort_keys=True), info.path)
        if other != info.path:
            errors.append(
                InputError(
                    info.path,
                    f"was simulated with the process and the seed {order.get('seed')} of {other}: it holds the same"
                    " events",
                    "make more events with another --seed",
                )
            )
    return errors


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


def make_processor(config: Config, processor_class: Foreign) -> CheckedProcessor:
    """Make the processor with the configuration's settings; what it returns is checked.

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
    # likewise: a processor of one's own may know neither
    settings |= {name: value for name, value in config.definitions.items() if value}
    name = f"processor '{config.processor}'"
    try:
        inspect.signature(processor_class).bind(settings)
    except TypeError:
        raise ConfigError(f"{name}: takes no settings: {NEEDS}") from None
    except ValueError:  # a class that shows no signature
        pass
    with UsersCode(lambda error: ConfigError(f"{name}: cannot be made with the settings ({reason_of(error)})")):
        made = processor_class(settings)
    return CheckedProcessor(
        made,
        Wanted(
            config.features,
            config.mass.range,
            kept_columns(config.selection.keep),
            _bounds(config),
        ),
    )


def _bounds(config: Config) -> dict[str, tuple[float, float]]:
    """Return what the features that the configuration defines may be in the data."""
    found = check_features(config.features, **config.definitions)
    filled = [] if isinstance(config.selection.undefined, str) else [config.selection.undefined]
    return {
        one.name: (min(one.domain[0], *filled), max(one.domain[1], *filled)) if filled else one.domain
        for one in found
        if one.name in config.define
    }


def run_selection(
    context: Context,
    fileset: dict[str, Any],
    processor_class: Foreign,
    dropped: npt.NDArray[np.int64],
    reading: Reading,
    stage: Stage,
    hidden: Sequence[tuple[float, float]] = (),
) -> tuple[Foreign, RunReport, dict[str, str]]:
    """Run a stage's selection over files, without some signal events.

    With ``hidden`` windows (GeV), all but the rows of the skim is made of the events outside them.

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
    selection = SignalInjection(make_processor(context.config, processor_class), dropped)
    output, report = run(
        fileset,
        Blinding(selection, hidden) if hidden else selection,
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
    hidden = context.hidden
    with reported(context, stage):
        truth = all_truth(config) if whole else read_truth(str(config.data.truth))
        dropped = np.empty(0, dtype=np.int64) if truth is None else _dropped(config, truth)
        output, report, inputs = run_selection(
            context, fileset, processor_class, dropped, reading_of(config), stage, hidden
        )
    columns = output["skim"].columns()
    if not len(columns["event_id"]):
        discard(directory, stage)  # other cuts have other results
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
    # those of boost-histogram have axes without names
    hists = {name: one if isinstance(one, hist.Hist) else hist.Hist(one) for name, one in output["hists"].items()}
    emptied = [name for name, one in hists.items() if hidden and any(map(measures_mjj, one.axes))]
    if emptied:
        context.reporter.say(f"skim: blinded: bins that touch a window are empty in {', '.join(emptied)}")
    shown_hists = json_form({name: empty_hidden_bins(one, hidden) for name, one in hists.items()}, "'hists'")
    with atomic_path(directory.skim_hists) as temporary:
        temporary.write_text(json.dumps(shown_hists), encoding="utf-8")
    flow = output["cutflow"][config.name]
    unapplied = output.get("not_applied", {}).get(config.name, {})
    # of no event at all: of some, the counts of the step say what it did
    read = flow.get("read", {}).get("events")
    not_applied = [step for step, events in unapplied.items() if step in flow and events == read]
    lost = report.requested - report.processed

    def shown(number: int) -> int | None:
        # of all events in the files: with the sidebands' number it would give that in the windows
        return None if hidden else number

    record = {
        "accounting": {"requested": shown(report.requested), "processed": shown(report.processed), "lost": lost},
        "cutflow": [
            {"name": step, "events": int(numbers["events"]), "weight": float(numbers["weight"])}
            for step, numbers in flow.items()
            if step not in not_applied
        ],
        "not_applied": not_applied,
        "accumulators": accumulators(output),
        "files": [
            {"path": one.path, "requested": shown(one.requested), "processed": shown(one.processed)}
            for one in report.files
        ],
        "empty_files": [one.path for one in report.files if not one.requested],
        "clipped_masses": shown(report.clipped_masses),
        "hidden": [list(edges) for edges in hidden],
    }
    with atomic_path(directory.skim_info) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return [*written, directory.skim_hists, directory.skim_info]
