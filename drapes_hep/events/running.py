"""Run a processor over files, with coffea's executors, and account for every event.

TTrees go through coffea's ``Runner``; RNTuples, HDF5 and Parquet go through the same executors with our chunk readers.
Either way a processor gets events in one schema, results are merged in one order (dataset, file, row) whatever the
executor, and the run fails unless exactly the requested events were processed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import glob
import pickle
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import awkward as ak
import cloudpickle  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt
from coffea.processor import FuturesExecutor, IterativeExecutor, Runner, accumulate
from coffea.processor.executor import ExecutorBase, WorkItem
from coffea.util import coffea_console

from drapes_hep.errors import ConfigError, DrapesError, InputError, LostEventsError, counted, reason_of
from drapes_hep.events.checks import BadValuesError, row_ids
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading, split, states_ids
from drapes_hep.events.readers import (
    convert,
    no_events,
    plain_column,
    read,
    read_columns,
    scan,
    shared_identities,
)
from drapes_hep.events.schema import IDENTITY_FIELDS, DijetSchema
from drapes_hep.events.types import AwkwardArray, Events, Foreign
from drapes_hep.remote import one_line

__all__ = ["FileReport", "RunReport", "run", "scan_fileset"]

Fileset = Mapping[str, Any]
Key = tuple[str, int, str, int]


@dataclass(frozen=True)
class FileReport:
    """One file's part of the account.

    Parameters
    ----------
    dataset, path : str
        What it is.
    requested, processed : int
        Events.
    """

    dataset: str
    path: str
    requested: int
    processed: int


@dataclass(frozen=True)
class RunReport:
    """The account of a run.

    Parameters
    ----------
    requested : int
        Events in the fileset, by a scan that the run itself has no part in.
    processed : int
        Events that reached the processor.
    failed : tuple of str
        What went wrong, a line each; empty after a run that returned.
    files : tuple of FileReport
        In the order of the fileset.
    seconds : float
        Wall time, scan included.
    clipped_masses : int
        Jets and constituents whose mass was a rounding error below zero and was set to zero.
    """

    requested: int
    processed: int
    failed: tuple[str, ...]
    files: tuple[FileReport, ...]
    seconds: float
    clipped_masses: int


@dataclass(frozen=True)
class _Requested:
    dataset: str
    info: FileInfo
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class _Result:
    """What a worker sends back for a chunk; a user's mistake as a value, for an executor would retry and print it."""

    entries: int = 0
    out: Any = None
    error: DrapesError | None = None
    event_ids: npt.NDArray[np.int64] | None = None
    clipped_masses: int = 0

    def __add__(self, other: object) -> _Result:
        raise LostEventsError("a chunk was processed twice")

    def __deepcopy__(self, memo: dict[int, Any]) -> _Result:
        return self  # coffea's accumulate copies what it meets first; results are frozen


def _files(dataset: str, value: Foreign) -> tuple[list[tuple[str, str | None]], dict[str, Any]]:
    metadata: dict[str, Any] = {}
    if isinstance(value, Mapping) and "files" in value:
        unknown = set(value) - {"files", "metadata"}
        if unknown:
            raise ConfigError(f"dataset '{dataset}': unknown key '{min(unknown)}'; expected 'files' and 'metadata'")
        metadata, value = dict(value.get("metadata") or {}), value["files"]
    if isinstance(value, (str, Path)):
        return [(str(value), None)], metadata
    if isinstance(value, Mapping):
        return [(str(path), None if tree is None else str(tree)) for path, tree in value.items()], metadata
    if isinstance(value, Sequence):
        return [(str(path), None) for path in value], metadata
    raise ConfigError(f"dataset '{dataset}': expected a path, a list of paths, or {{path: tree}}")


def _scan(fileset: Fileset, reading: Reading) -> list[_Requested]:
    requested = []
    for dataset, value in fileset.items():
        files, metadata = _files(str(dataset), value)
        requested += [_Requested(str(dataset), scan(path, tree, reading), metadata) for path, tree in files]
    if not requested:
        raise ConfigError("the fileset names no file")
    for error in shared_identities([one.info for one in requested]):
        raise error
    for dataset in dict.fromkeys(one.dataset for one in requested):
        infos = [one.info for one in requested if one.dataset == dataset]
        if not any(info.entries for info in infos):
            raise no_events(infos)
    return requested


def scan_fileset(fileset: Fileset, reading: Reading = DEFAULT_READING) -> list[FileInfo]:
    """Describe every file of a fileset, and refuse two that would share event identities.

    Parameters
    ----------
    fileset : mapping
        As for :func:`run`.
    reading : Reading
        Choices of the readers.

    Returns
    -------
    list of FileInfo
        In the order of the fileset.

    Raises
    ------
    InputError, ConfigError
        As for :func:`run`.
    """
    return [one.info for one in _scan(fileset, reading)]


def _executor(executor: str | ExecutorBase, workers: int, progress: bool) -> Foreign:
    if isinstance(executor, ExecutorBase):
        return executor.copy(status=progress)
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    # no retries: a local file or a processor that fails once fails again, and coffea does not wait in between
    if executor == "iterative":
        return IterativeExecutor(status=progress, retries=0)
    if executor == "futures":
        # no compression: coffea packs results in the worker, and unpacks and packs them in the parent for each merge,
        # which costs more than the work where results are columns; between processes of one machine it buys nothing
        return FuturesExecutor(status=progress, retries=0, workers=workers, compression=None)
    raise ConfigError(f"unknown executor '{executor}'; expected 'iterative', 'futures' or a coffea executor")


def _process(events: Events, processor: Foreign, chunk: EventChunk) -> _Result:
    # a part of the chunk, such as the events outside hidden windows, keeps its rows
    events["row"] = np.arange(chunk.start, chunk.stop)
    out = processor.process(events) if hasattr(processor, "process") else processor(events)
    if out is None:
        raise ConfigError(f"processor {type(processor).__name__} returned nothing for {chunk.path}")
    # identities made of file and row are unique already: only those that files state have to be compared
    stated = np.asarray(ak.to_numpy(events.event_id)) if states_ids(chunk.columns) else None
    return _Result(len(events), out, None, stated, int(events.metadata["clipped_masses"]))


def _guarded(function: Foreign, *arguments: Foreign) -> _Result:
    try:
        result: _Result = function(*arguments)
    except DrapesError as error:
        return _Result(error=error)
    return result


def _read_and_process(processor: Foreign, chunk: EventChunk) -> _Result:
    return _process(_readable(read, chunk, chunk), processor, chunk)


def _readable(function: Foreign, chunk: EventChunk, *arguments: Foreign) -> Foreign:
    """Call what reads; a failure names the file and the rows."""
    try:
        return function(*arguments)
    except (DrapesError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything from zlib.error to IndexError for damaged data
        told = one_line(chunk.path, error)
        if told is not None:
            raise told from error
        line = (str(error).splitlines() or [""])[0][:120]
        raise InputError(
            chunk.path,
            f"rows {chunk.start} to {chunk.stop} cannot be read ({type(error).__name__}: {line})",
            "the file is damaged: copy or make it again",
        ) from error


def _work(pickled: bytes, chunk: EventChunk) -> dict[Key, _Result]:
    """One task of an executor. By value, because classes loaded by path cannot be imported in a worker."""
    return {chunk.key: _guarded(_read_and_process, pickle.loads(pickled), chunk)}


@dataclass(frozen=True)
class _RunnerWork:
    """What coffea's Runner calls with the columns of a chunk of a TTree, still in the file's spelling."""

    processor: Any

    def __call__(self, raw: AwkwardArray) -> dict[Key, _Result]:
        meta = raw.metadata
        chunk = EventChunk(
            dataset=meta["dataset"],
            path=meta["filename"],
            container="root",
            layout=meta["layout"],
            object_path=meta["treename"],
            start=meta["entrystart"],
            stop=meta["entrystop"],
            file_id=meta["file_id"],
            columns=tuple(meta["columns"]),
            metadata=meta["user"],
            reading=Reading(**meta["reading"]),
            tree=True,
        )
        return {chunk.key: _guarded(self._convert_and_process, raw, chunk)}

    def _convert_and_process(self, raw: AwkwardArray, chunk: EventChunk) -> _Result:
        # a part of a branch is called by its path, as EFlowTrack/EFlowTrack.PT; layouts name it without
        paths = {path.rpartition("/")[2]: path for path in raw.fields}
        columns = _readable(
            lambda: {name: plain_column(raw[paths[name]], chunk.path, name) for name in chunk.columns}, chunk
        )
        return _process(convert(columns, chunk), self.processor, chunk)


def _run_trees(chunks: Sequence[EventChunk], processor: Foreign, executor: Foreign) -> dict[Key, _Result]:
    # work items of our own making: Runner.preprocess would count the events by itself, drop files that do not open
    # where it is told to skip, and remember files that have changed since
    items = [
        WorkItem(
            dataset=chunk.dataset,
            filename=chunk.path,
            treename=chunk.object_path,
            entrystart=chunk.start,
            entrystop=chunk.stop,
            fileuuid=b"",  # type: ignore[arg-type, unused-ignore]
            usermeta={
                "layout": chunk.layout,
                "file_id": chunk.file_id,
                "columns": list(chunk.columns),
                "reading": dataclasses.asdict(chunk.reading),
                "user": dict(chunk.metadata),
            },
        )
        for chunk in chunks
    ]
    runner = Runner(executor=executor, schema=DijetSchema, savemetrics=False, metadata_cache={})
    # escaped, because uproot takes names for patterns: Tau[5] would match Tau5 alone
    names = sorted({glob.escape(name) for chunk in chunks for name in chunk.columns})
    result = runner.run(items, _RunnerWork(processor), iteritems_options={"filter_name": names})
    out: dict[Key, _Result] = result["out"]
    return out


def _run_chunks(chunks: Sequence[EventChunk], processor: Foreign, executor: Foreign) -> dict[Key, _Result]:
    work = partial(_work, cloudpickle.dumps(processor))
    out, error = executor.copy(unit="chunk", function_name=type(processor).__name__)(list(chunks), work, None)
    if error:
        raise error
    results: dict[Key, _Result] = out or {}
    return results


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Silence coffea's console: ``status=False`` stops none of its progress bars."""
    before = coffea_console.quiet
    coffea_console.quiet = before or not progress
    try:
        yield
    finally:
        coffea_console.quiet = before


def _execute(chunks: Sequence[EventChunk], processor: Foreign, executor: Foreign) -> dict[Key, _Result]:
    results: dict[Key, _Result] = {}
    # the Runner lists the types of all fields for every chunk, which for an RNTuple of 2451 fields (PFNano) took uproot
    # 5.7 half a minute: RNTuples are read by our own reader, on the same executor
    trees = [chunk for chunk in chunks if chunk.tree]
    rest = [chunk for chunk in chunks if not chunk.tree]
    for function, part in ((_run_trees, trees), (_run_chunks, rest)):
        if not part:
            continue
        try:
            results.update(function(part, processor, executor))
        except concurrent.futures.BrokenExecutor as error:
            raise LostEventsError(
                f"a worker process died, most likely for lack of memory ({type(error).__name__}): use fewer workers or"
                " smaller chunks"
            ) from error
        except Exception as error:
            text = str(error)
            if text.startswith("Failed to open file"):  # coffea's wrapping loses the type
                path = next((chunk.path for chunk in part if repr(chunk.path) in text), "a file")
                told = one_line(path, error)
                if told is not None:
                    raise told from error
                raise InputError(path, "could not be opened by a worker", "do not move files during a run") from error
            if text.startswith("Failed processing file") and isinstance(error.__cause__, Exception):
                # what the processor raised itself, as with chunks that do not go through the Runner
                raise error.__cause__ from None
            raise
    return results


def _raise_first(chunks: Sequence[EventChunk], results: Mapping[Key, _Result]) -> None:
    errors = [(chunk, results[chunk.key].error) for chunk in chunks if chunk.key in results]
    raised = [(chunk, error) for chunk, error in errors if error is not None]
    if not raised:
        return
    path, first = raised[0][0].path, raised[0][1]
    if isinstance(first, BadValuesError):
        # counts of the whole file, whatever the chunks were
        same = [error for chunk, error in raised if chunk.path == path and isinstance(error, BadValuesError)]
        raise BadValuesError(first.path, [bad for error in same for bad in error.bad])
    raise first


def _check_account(chunks: Sequence[EventChunk], results: Mapping[Key, _Result]) -> None:
    requested = sum(len(chunk) for chunk in chunks)
    processed = sum(result.entries for result in results.values())
    short = [chunk for chunk in chunks if results.get(chunk.key, _Result()).entries != len(chunk)]
    if processed != requested or short or len(results) != len(chunks):
        where = f", e.g. rows {short[0].start} to {short[0].stop} of {short[0].path}" if short else ""
        raise LostEventsError(
            f"{counted(requested, 'event was', 'events were')} requested but {processed} processed"
            f" ({requested - processed} lost{where})"
        )


def _check_unique(
    requested: Sequence[_Requested], chunks: Sequence[EventChunk], results: Mapping[Key, _Result]
) -> None:
    """Compare all identities: 8 bytes an event, twice, for the files that state them."""
    stated = [(chunk, ids) for chunk in chunks if (ids := results[chunk.key].event_ids) is not None]
    if not stated:
        return
    every = [ids for _, ids in stated]
    every += [row_ids(one.info.id, 0, one.info.entries) for one in requested if not one.info.has_event_ids]
    joined = np.sort(np.concatenate(every))
    repeated = joined[1:][joined[1:] == joined[:-1]]
    if len(repeated):
        first = int(repeated[0])
        path = next((chunk.path for chunk, ids in stated if (ids == first).any()), requested[0].info.path)
        raise InputError(
            path,
            f"event_id {first}{_numbers(stated, first)} stands for more than one event"
            f" ({len(repeated)} repeated in all files)",
            "give every event an identity of its own, and list no event twice",
        )


def _numbers(stated: Iterable[tuple[EventChunk, npt.NDArray[np.int64]]], event_id: int) -> str:
    """Say which run, luminosity section and event an identity was made of, by reading its columns once more."""
    for chunk, ids in stated:
        rows = np.flatnonzero(ids == event_id)
        if len(rows) and set(IDENTITY_FIELDS) <= set(chunk.columns):
            only = dataclasses.replace(chunk, columns=IDENTITY_FIELDS)
            columns = read_columns(only)
            return f" (run:lumi:event {':'.join(str(int(columns[name][rows[0]])) for name in IDENTITY_FIELDS)})"
    return ""


def run(
    fileset: Fileset,
    processor: Foreign,
    *,
    executor: str | ExecutorBase = "iterative",
    workers: int = 1,
    chunksize: int = 50_000,
    progress: bool = False,
    reading: Reading = DEFAULT_READING,
) -> tuple[Any, RunReport]:
    """Run a processor over a fileset.

    Parameters
    ----------
    fileset : mapping
        Dataset to ``path``, ``[path, ...]``, ``{path: tree}``, or ``{"files": any of these, "metadata": {...}}``.
        ROOT, HDF5 and Parquet may be mixed.
    processor : coffea.processor.ProcessorABC or callable
        Gets events in :class:`~drapes_hep.events.schema.DijetSchema`, returns what coffea can accumulate.
    executor : {"iterative", "futures"} or coffea executor
        An executor of one's own keeps its number of retries and its workers.
    workers : int
        Processes, for "futures".
    chunksize : int
        Events a task.
    progress : bool
        Whether to draw coffea's progress bars.
    reading : Reading
        Choices of the readers: layout, jet clustering, constituents.

    Returns
    -------
    output : object
        The chunks' results, merged in the order (dataset, file's key, row), then postprocessed.
    report : RunReport
        The account.

    Raises
    ------
    InputError
        A file that cannot be read as events, or repeated event identities.
    LostEventsError
        The events processed are not those requested, or a worker died.
    ConfigError
        An unknown executor, an empty fileset.

    Notes
    -----
    Results are held a chunk each until the end, so that they merge in one order: the memory is that of the selected
    columns, plus the histograms times the number of chunks.
    """
    begin = time.perf_counter()
    if chunksize < 1:
        raise ConfigError(f"chunksize must be at least 1, got {chunksize}")
    pool = _executor(executor, workers, progress)
    requested = _scan(fileset, reading)
    chunks = [chunk for one in requested for chunk in split(one.info, one.dataset, chunksize, one.metadata, reading)]
    with _quiet(progress):
        results = _execute(chunks, processor, pool)
    _raise_first(chunks, results)
    _check_account(chunks, results)
    _check_unique(requested, chunks, results)
    output = _merged(processor, [results[key].out for key in sorted(results)])
    if callable(getattr(processor, "postprocess", None)):
        replaced = processor.postprocess(output)
        output = output if replaced is None else replaced
    return output, _report(requested, chunks, results, time.perf_counter() - begin)


def _merged(processor: Foreign, outputs: Sequence[Foreign]) -> Foreign:
    try:
        return accumulate(outputs)
    except (DrapesError, MemoryError):
        raise
    except Exception as error:  # accumulators of a user's may raise anything
        name = getattr(processor, "described", f"processor {type(processor).__name__}")
        raise ConfigError(f"{name}: the results of two chunks cannot be merged ({reason_of(error)})") from error


def _report(
    requested: Iterable[_Requested], chunks: Iterable[EventChunk], results: Mapping[Key, _Result], seconds: float
) -> RunReport:
    processed: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    for chunk in chunks:
        processed[(chunk.dataset, chunk.path, chunk.object_path)] += results[chunk.key].entries
    files = tuple(
        FileReport(
            one.dataset, one.info.path, one.info.entries, processed[(one.dataset, one.info.path, one.info.object_path)]
        )
        for one in requested
    )
    return RunReport(
        requested=sum(one.requested for one in files),
        processed=sum(result.entries for result in results.values()),
        failed=(),
        files=files,
        seconds=seconds,
        clipped_masses=sum(result.clipped_masses for result in results.values()),
    )
