"""Stage skim: files to selected events, control histograms, cut flow and the account of every event."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config, keys_of
from drapes_hep.errors import ConfigError, DrapesError, InputError, UsersCode, counted, reason_of
from drapes_hep.events.blinded_processor import Blinding
from drapes_hep.events.chunks import FileInfo, Reading
from drapes_hep.events.declared import declared_files, undeclared, warning_of
from drapes_hep.events.failures import FailedFilesError, Failure
from drapes_hep.events.features import check_features, function_sources, kept_columns
from drapes_hep.events.injection import SignalInjection, collect_ids, collect_truth
from drapes_hep.events.outputs import CheckedProcessor, RequiredOutput, accumulators
from drapes_hep.events.paths import expand_trees
from drapes_hep.events.processing import FirstChunk, RunReport, run, scan_fileset, try_first_chunks
from drapes_hep.events.readers import no_events, scan, shared_identities, simulation_order
from drapes_hep.events.skims import Truth, read_truth
from drapes_hep.files import file_hash, read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stage
from drapes_hep.pipeline.run_directory import note
from drapes_hep.pipeline.stage import Stage, Written, input_hash, last_record, read_stamp
from drapes_hep.plugins import NEEDS, class_sources, load_processor, package_version, processor_folders
from drapes_hep.regions import sliding_windows
from drapes_hep.remote import is_url, sampled_hash
from drapes_hep.stages.resume import check_unchanged, chunk_store, discard, inputs_of, reported
from drapes_hep.stages.selected import not_injected, write_account, write_control_hists, write_events
from drapes_hep.user_files import modules_of, watched

__all__ = [
    "FileCheck",
    "all_truth",
    "check_labels",
    "examine_files",
    "load_selection",
    "make_processor",
    "opened_by",
    "processor_of",
    "reading_of",
    "reads_of",
    "run_selection",
    "skim",
    "skim_stage",
    "try_files",
]


def load_selection(config: Config) -> Any:
    """Load the processor's class that the configuration names."""
    return load_processor(config.processor, processor_folders(config.folder))


def skim_stage(context: Context, infos: Sequence[FileInfo] | None = None, selection: Any = None) -> Stage:
    """Describe the stage: what decides the selected events.

    The descriptions of the files and the processor's class can be passed where they are at hand.
    """
    if context.table is not None:
        from drapes_hep.stages.skim_table import table_stage

        return table_stage(context)
    config = context.config
    selection = load_selection(config) if selection is None else selection
    truth = [] if config.data.truth is None else [config.data.truth]
    trees = config.data.path if isinstance(config.data.path, dict) else {}

    @functools.cache
    def opened() -> Sequence[FileInfo]:
        return scan_fileset(_fileset(config), reading_of(config, selection)) if infos is None else infos

    def reads() -> list[str | Path]:
        paths = expand_trees(config.data.path)
        # files that are gone are the caller's to complain of
        whole = all(is_url(path) or Path(path).is_file() for path in paths)
        # labels may be in a file beside one of these
        return [*paths, *(label_file for info in (opened() if whole else ()) for label_file in info.companions), *truth]

    return Stage(
        "skim",
        config.model_dump(mode="json"),
        keys_of("skim"),
        reads,
        ("stages.skim", *class_sources(selection)),
        other={
            "trees": sorted([PurePath(path).name, tree] for path, tree in trees.items()),
            "data.layout": _layouts(context, infos is not None, opened),
            # the events are the same, their histograms and numbers are not
            "hidden windows": [list(edges) for edges in context.hidden],
            **processor_of(config, selection),
        },
        recorded=("data", "processor"),
    )


def _layouts(context: Context, scanned: bool, opened: Callable[[], Sequence[FileInfo]]) -> str:
    """Return the layouts that the files are read in: ``data.layout``, or what it stands for where it is null."""
    layout = context.config.data.layout
    if layout is not None:
        return layout
    if not scanned:
        record = last_record(context.run, "skim")
        if record is None or record["recorded"].get("data", {}).get("layout") is None:
            # a later stage opens no file of events: these were found in the files whose hashes the record holds
            return "" if record is None else str(record["other"].get("data.layout", ""))
    return ", ".join(sorted({info.layout for info in opened()}))


def reads_of(config: Config, selection: Any) -> dict[str, str | Path]:
    """Find the files that a processor declares; raises ConfigError if one is not there."""
    return declared_files(config.processor, selection, processor_folders(config.folder))


def opened_by(context: Context, stage: Stage, selection: Any, report: RunReport) -> dict[str, str | None]:
    """Return what a stage's processor has opened, and declares nowhere; says so in one line."""
    config = context.config
    modules = modules_of(selection)
    read = {**report.opened.by(modules), **{str(path): file_hash(path) for path in modules.values()}}
    declared = [*stage.reads(), *class_sources(selection), *reads_of(config, selection).values()]
    files = undeclared(read, declared)
    line = warning_of(stage.name, files)
    if line is not None:
        context.reporter.say(line)
    return files


def processor_of(config: Config, selection: Any) -> dict[str, Any]:
    """Return what a processor is, wherever it is: its class, its source, and the files that it says it reads.

    Raises
    ------
    ConfigError
        If one of these is not there.
    """
    sources = class_sources(selection)
    return {
        "processor's class": config.processor.rpartition(":")[2] if sources else config.processor,
        "processor's source": [*(file_hash(path) for path in sources), *package_version(selection)],
        "feature's source": function_sources(config.definitions["define"]),
        "processor's files": {name: input_hash(place) for name, place in reads_of(config, selection).items()},
    }


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
    opened = examine_files(config, processor_class)
    if opened.problems:
        raise _joined(opened.problems)
    for remark in opened.remarks:
        context.reporter.say(remark)
    stage = skim_stage(context, opened.infos, processor_class)
    run_stage(directory, stage, lambda: _work(context, stage, processor_class, opened.infos), context.reporter)
    discard(directory, stage)
    context.reporter.say(f"processor: {sources[0] if sources else config.processor}")
    stamp = read_stamp(directory, "skim") or {"reads": {}, "opened": {}}
    entries = {
        "processor": {
            "class": config.processor,
            "files": {str(path): file_hash(path) for path in sources},
            "reads": {str(place): input_hash(place) for place in reads_of(config, processor_class).values()},
            "opened": stamp["opened"],
        },
        "inputs": {path: stamp["reads"][path] for path in expand_trees(config.data.path) if path in stamp["reads"]},
    }
    manifest = read_json(directory.manifest)
    if any(manifest.get(name) != value for name, value in entries.items()):
        note(directory, **entries)


def reading_of(config: Config, selection: Any = None) -> Reading:
    """Return how the configuration's files are read; the processor's class can be passed where it is loaded already."""
    wants = getattr(load_selection(config) if selection is None else selection, "reads_constituents", False)
    return Reading(
        config.data.layout, config.data.radius, config.data.axes, constituents=bool(wants), empty=config.data.empty,
        keep=config.selection.keep,
    )  # fmt: skip


_DATASET = "data"
"""What a processor is told of the events: the name of the search decides nothing."""


def _fileset(config: Config) -> dict[str, Any]:
    return {_DATASET: {"files": expand_trees(config.data.path)}}


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


def _joined(problems: Sequence[DrapesError]) -> DrapesError:
    """Return one error for all problems with files, or the first problem of another kind."""
    files = [problem for problem in problems if isinstance(problem, InputError)]
    if len(files) < 2:
        return problems[0]
    return FailedFilesError(
        [Failure(_DATASET, problem.path, None, None, problem.problem, problem.remedy) for problem in files]
    )


def examine_files(config: Config, selection: Any = None) -> FileCheck:
    """Open the data files without reading an event, and gather all that is wrong with them.

    Parameters
    ----------
    config : Config
    selection : type, optional
        The processor's class, where it is loaded already.

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
    reading = reading_of(config, selection)
    for path, tree in expand_trees(config.data.path).items():
        try:
            infos.append(scan(path, tree, reading))
        except InputError as error:
            problems.append(error)
    nonempty = [info for info in infos if info.entries]
    problems += shared_identities(nonempty)
    problems += _copies(nonempty)
    problems += _repeated_seeds(nonempty)
    if infos and not nonempty:
        problems.append(no_events(infos))
    if config.data.labels and config.data.truth is None:
        problems += [
            InputError(info.path, "has no column 'label'", "set data.labels to false, or name a sidecar in data.truth")
            for info in nonempty
            if not info.has_labels
        ]
    if config.data.truth and not is_url(config.data.truth) and not Path(config.data.truth).is_file():
        problems.append(InputError(config.data.truth, "no such file", "check data.truth"))
    return FileCheck(tuple(infos), tuple(problems), tuple(_remarks(infos)))


def try_files(config: Config, infos: Sequence[FileInfo], reading: Reading) -> tuple[FirstChunk, ...]:
    """Read the first chunk of each file and run the processor on it; what comes out is checked as in a skim.

    Parameters
    ----------
    config : Config
    infos : sequence of FileInfo
        The opened files.
    reading : Reading
        As the files were opened.

    Returns
    -------
    tuple of FirstChunk
    """
    hidden = [(window.lo, window.hi) for window in sliding_windows(config)] if config.blind else []
    return try_first_chunks(
        infos,
        _selection(config, load_selection(config), np.empty(0, dtype=np.int64), hidden),
        dataset=_DATASET,
        chunksize=_chunksize(config),
        reading=reading,
    )


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
                    f"is identical to {twin}",
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
            f" {'is' if len(empty) == 1 else 'are'} skipped: {_listed(empty)}"
        )
    nonempty = [info for info in infos if info.entries]
    for what, values in (
        ("layouts", [info.layout for info in nonempty]),
        ("trees", [info.object_path for info in nonempty if info.container == "root"]),
    ):
        if len(set(values)) > 1:
            each = ", ".join(f"{count} of '{value}'" for value, count in Counter(values).most_common())
            yield f"the files have several {what}: {each}; check that they belong together"


def _listed(names: Sequence[str]) -> str:
    first_names = ", ".join(names[:5])
    return f"{first_names} and {len(names) - 5} more" if len(names) > 5 else first_names


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
    paths_of: dict[str, str] = {}
    errors: list[DrapesError] = []
    for info in infos if len(infos) > 1 else []:
        order = simulation_order(info) if info.entries else None
        if order is None:
            continue
        same_events = {name: value for name, value in order.items() if name not in _SAME_EVENTS}
        other = paths_of.setdefault(json.dumps(same_events, sort_keys=True), info.path)
        if other != info.path:
            errors.append(
                InputError(
                    info.path,
                    f"was simulated with the process and the seed {order.get('seed')} of {other}: it holds the same"
                    " events",
                    "simulate more events with another --seed",
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


def all_truth(config: Config, selection: Any = None, infos: Sequence[FileInfo] = ()) -> Truth | None:
    """Read identities and labels of all events in the files, before any selection.

    Parameters
    ----------
    config : Config
    selection : type, optional
        The processor's class, where it is loaded already.
    infos : sequence of FileInfo
        Files that were opened already.

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
        reading=dataclasses.replace(reading_of(config, selection), constituents=False, jets=False),
        infos=infos,
    )
    columns = out["truth"].columns()
    order = np.argsort(columns["event_id"], kind="stable")
    ids = columns["event_id"][order]
    # a sidecar may know more events than the files hold: those must not be counted as injected
    label = columns["label"][order] if sidecar is None else sidecar.truth_for(ids)
    return Truth(config.data.truth or "data.path", ids, label)


def _dropped(config: Config, truth: Truth) -> npt.NDArray[np.int64]:
    """Choose the signal events that are not injected."""
    return not_injected(config, truth.event_id[truth.label == 1])


def make_processor(config: Config, processor_class: Any) -> CheckedProcessor:
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
    where = f"{name}: cannot be constructed with the settings"
    with UsersCode(lambda error: ConfigError(f"{where} ({reason_of(error)})")), watched():
        processor = processor_class(settings)
    return CheckedProcessor(
        processor,
        RequiredOutput(
            config.features,
            config.mass.range,
            kept_columns(config.selection.keep),
            _bounds(config),
        ),
    )


def _bounds(config: Config) -> dict[str, tuple[float, float]]:
    """Return what the features that the configuration defines may be in the data."""
    features = check_features(config.features, **config.definitions)
    filled = [] if isinstance(config.selection.undefined, str) else [config.selection.undefined]
    return {
        feature.name: (min(feature.domain[0], *filled), max(feature.domain[1], *filled)) if filled else feature.domain
        for feature in features
        if feature.name in config.define
    }


def _selection(
    config: Config,
    processor_class: Any,
    dropped: npt.NDArray[np.int64],
    hidden: Sequence[tuple[float, float]],
) -> SignalInjection | Blinding:
    """Make the processor, which meets no dropped signal and whose accumulators hold no event of a hidden window."""
    selection = SignalInjection(make_processor(config, processor_class), dropped)
    return Blinding(selection, hidden) if hidden else selection


def run_selection(
    context: Context,
    fileset: dict[str, Any],
    processor_class: Any,
    dropped: npt.NDArray[np.int64],
    reading: Reading,
    stage: Stage,
    hidden: Sequence[tuple[float, float]] = (),
    infos: Sequence[FileInfo] = (),
) -> tuple[Any, RunReport, dict[str, str]]:
    """Run a stage's selection over files, without some signal events.

    With ``hidden`` windows (GeV), all but the rows of the skim is made of the events outside them. Files that were
    opened for this reading already have their description in ``infos``.

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
    paths = [path for dataset in fileset.values() for path in dataset["files"]]
    store = chunk_store(context.run, stage, paths, dropped)
    output, report = run(
        fileset,
        _selection(context.config, processor_class, dropped, hidden),
        executor=context.executor,
        workers=context.workers,
        chunksize=_chunksize(context.config),
        progress=context.reporter.draws,
        reading=reading,
        store=store,
        infos=infos,
    )
    inputs = inputs_of(paths)
    check_unchanged(dict(store.fingerprints), inputs)
    return output, report, inputs


_SMALLEST = 1000
"""Events per chunk, at least: a chunk of one event takes a processor as long as one of some thousand."""


def _chunksize(config: Config) -> int:
    return max(config.data.chunksize, _SMALLEST)


def _work(context: Context, stage: Stage, processor_class: Any, infos: Sequence[FileInfo]) -> Written:
    config, directory = context.config, context.run
    fileset = _fileset(config)
    # with no signal to choose a sidecar serves as it is
    whole = config.data.truth is None or config.signal.inject is not None
    with reported(context, stage):
        truth = all_truth(config, processor_class, infos) if whole else read_truth(str(config.data.truth))
        dropped = np.empty(0, dtype=np.int64) if truth is None else _dropped(config, truth)
        reading = reading_of(config, processor_class)
        output, report, inputs = run_selection(
            context, fileset, processor_class, dropped, reading, stage, context.hidden, infos
        )
    columns = output["skim"].columns()
    if not len(columns["event_id"]):
        discard(directory, stage)  # other cuts have other results
        raise ConfigError("the selection keeps no events: see the cuts in 'selection' and 'mass.range'")
    label = None if truth is None else truth.truth_for(columns["event_id"])
    # the account is about what the files hold; events that were not injected were read and set aside, and say so
    written = write_events(context, columns, label, inputs)
    written.append(write_control_hists(context, output["hists"]))
    flow = output["cutflow"][_DATASET]
    unapplied = output.get("not_applied", {}).get(_DATASET, {})
    # of no event at all: of some, the counts of the step say what it did
    read = flow.get("read", {}).get("events")
    account = write_account(
        context,
        requested=report.requested,
        processed=report.processed,
        flow=flow,
        not_applied=[step for step, events in unapplied.items() if step in flow and events == read],
        files=[{"path": file.path, "requested": file.requested, "processed": file.processed} for file in report.files],
        accumulators=accumulators(output),
        clipped_masses=report.clipped_masses,
    )
    return Written([*written, account], opened_by(context, stage, processor_class, report))
