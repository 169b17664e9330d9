"""Run a processor over files, with coffea's executors, and account for every event.

Every kind of file is read by its reader, in chunks; a processor gets events in one schema. Results are merged one after
the other in one order (dataset, file, row) whatever the executor, and the run fails unless exactly the requested events
were processed. What fails for good is set aside while the rest goes on, so that one run names all failures, and results
of finished chunks can be kept for the next.
"""

from __future__ import annotations

import dataclasses
import pickle
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import cloudpickle  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt
from coffea.processor import FuturesExecutor, IterativeExecutor, accumulate
from coffea.processor.executor import ExecutorBase
from coffea.util import coffea_console

from drapes_hep.errors import ConfigError, DrapesError, InputError, LostEventsError, counted, reason_of
from drapes_hep.events.accumulate import ColumnParts
from drapes_hep.events.chunk_store import ChunkStore
from drapes_hep.events.chunks import DEFAULT_READING, EventChunk, FileInfo, Reading, split, states_ids
from drapes_hep.events.dispatch import Lost, Raised, dispatch
from drapes_hep.events.failures import FailedFilesError, Failure, join_failures
from drapes_hep.events.formats.columns import BadValuesError, row_ids
from drapes_hep.events.formats.open_files import share_files
from drapes_hep.events.readers import is_current, narrowed, no_events, read, read_columns, scan, shared_identities
from drapes_hep.events.schema import IDENTITY_FIELDS
from drapes_hep.events.types import Events
from drapes_hep.progress import Reporter
from drapes_hep.remote import UnreachableError, is_url, network_error
from drapes_hep.user_files import FileHashes, OpenedFiles, current_hashes, join_hashes, opened, watched

__all__ = ["FileReport", "FirstChunk", "RunReport", "run", "scan_fileset", "try_first_chunks"]

Fileset = Mapping[str, Any]


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
    opened : Opened
        Files that users' code has opened; known where results are stored.
    """

    requested: int
    processed: int
    failed: tuple[str, ...]
    files: tuple[FileReport, ...]
    seconds: float
    clipped_masses: int
    opened: OpenedFiles = dataclasses.field(default_factory=OpenedFiles)


@dataclass(frozen=True)
class FirstChunk:
    """What became of the first chunk of a file.

    Parameters
    ----------
    info : FileInfo
        The file.
    entries : int
        Events that were read; 0 where there was an error.
    selected : int
        Events that the processor selected.
    error : DrapesError or None
        Why the chunk could not be read or processed.
    """

    info: FileInfo
    entries: int
    selected: int
    error: DrapesError | None


@dataclass(frozen=True)
class _Requested:
    dataset: str
    info: FileInfo
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class _Result:
    """What a worker sends back for a chunk; a user's mistake as a value, since an executor would retry and print it."""

    entries: int = 0
    out: Any = None
    error: DrapesError | None = None
    event_ids: npt.NDArray[np.int64] | None = None
    clipped_masses: int = 0
    unread: bool = False
    """Whether the error came up while the chunk was read, not while it was processed."""
    hashes: FileHashes | None = None
    """Other files read by the processor; None if they are not known."""
    opened: OpenedFiles = dataclasses.field(default_factory=OpenedFiles)
    """The files among it, in any case."""

    def __add__(self, other: object) -> _Result:
        raise LostEventsError("a chunk was processed twice")

    def __deepcopy__(self, memo: dict[int, Any]) -> _Result:
        return self  # coffea's accumulate copies what it meets first; results are frozen


def _files(dataset: str, value: Any) -> tuple[list[tuple[str, str | None]], dict[str, Any]]:
    metadata: dict[str, Any] = {}
    if isinstance(value, Mapping) and "files" in value:
        unknown = set(value) - {"files", "metadata"}
        if unknown:
            raise ConfigError(f"dataset '{dataset}': unknown key '{min(unknown)}'; expected 'files' and 'metadata'")
        metadata, value = dict(value.get("metadata") or {}), value["files"]
    if isinstance(value, (str, Path)):
        return [(_place(value), None)], metadata
    if isinstance(value, Mapping):
        return [(_place(path), None if tree is None else str(tree)) for path, tree in value.items()], metadata
    if isinstance(value, Sequence):
        return [(_place(path), None) for path in value], metadata
    raise ConfigError(f"dataset '{dataset}': expected a path, a list of paths, or {{path: tree}}")


def _place(path: str | Path) -> str:
    return path if isinstance(path, str) else str(path)  # Alternatives are text, and more than that


def _scan(fileset: Fileset, reading: Reading, infos: Iterable[FileInfo] = ()) -> list[_Requested]:
    requested, failures = [], []
    scanned = {info.path: info for info in infos if is_current(info)}
    for dataset, value in fileset.items():
        files, metadata = _files(str(dataset), value)
        for path, tree in files:
            try:
                info = scanned.get(path if is_url(path) else str(Path(path).absolute()))
                info = scan(path, tree, reading) if info is None else narrowed(info, reading)
                requested.append(_Requested(str(dataset), info, metadata))
            except InputError as error:
                failures.append(Failure(str(dataset), error.path, None, None, error.problem, error.remedy))
    if failures:
        raise FailedFilesError(failures)
    if not requested:
        raise ConfigError("no input file: see data.path")
    shared = shared_identities([file.info for file in requested])
    if shared:
        raise shared[0]
    for dataset in dict.fromkeys(file.dataset for file in requested):
        infos = [file.info for file in requested if file.dataset == dataset]
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
    return [file.info for file in _scan(fileset, reading)]


def _executor(executor: str | ExecutorBase, workers: int, progress: bool) -> Any:
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


def _process(events: Events, processor: Any, chunk: EventChunk) -> _Result:
    # a part of the chunk, such as the events outside hidden windows, keeps its rows
    events["row"] = np.arange(chunk.start, chunk.stop)
    out = processor.process(events) if hasattr(processor, "process") else processor(events)
    if out is None:
        raise ConfigError(f"processor {type(processor).__name__} returned nothing for {chunk.path}")
    # identities made of file and row are unique already: only those that files state have to be compared
    stated = np.asarray(ak.to_numpy(events.event_id)) if states_ids(chunk.columns) else None
    return _Result(len(events), out, None, stated, int(events.metadata["clipped_masses"]))


@dataclass(frozen=True)
class _Payload:
    """What all tasks of a run share."""

    processor: Any
    run: str
    sharing: bool
    storing: bool
    """Whether results are kept, so that what they rest on must be known."""


_UNREACHABLE: dict[str, set[str]] = {}
"""Of the run that this process works for: files that could not be reached in spite of all attempts."""


def _work(pickled: bytes, chunk: EventChunk) -> _Result:
    """One task of an executor.

    The processor comes by value, because classes loaded by path cannot be imported in a worker, and again for each
    task, because one that keeps state must not count a chunk's events in the next.
    """
    with watched():  # modules of the user's are imported
        payload: _Payload = pickle.loads(pickled)
    if payload.sharing:
        share_files(True)
    if payload.run not in _UNREACHABLE:
        _UNREACHABLE.clear()
    unreachable = _UNREACHABLE.setdefault(payload.run, set())
    try:
        # nobody wants to wait for the same server again for each chunk of a file
        events = _read_chunk(chunk, attempts=1 if chunk.path in unreachable else None)
    except DrapesError as error:
        if isinstance(error, UnreachableError):
            unreachable.add(chunk.path)
        return _Result(error=error, unread=True)
    try:
        with watched(chunk.path):
            result = _process(events, payload.processor, chunk)
        return dataclasses.replace(result, hashes=current_hashes(), opened=opened()) if payload.storing else result
    except DrapesError as error:
        return _Result(error=error)


def _read_chunk(chunk: EventChunk, attempts: int | None) -> Events:
    """Read a chunk; a failure names the file and the rows."""
    try:
        return read(chunk, attempts=attempts)
    except (DrapesError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything from zlib.error to IndexError for damaged data
        input_error = network_error(chunk.path, error)
        if input_error is not None:
            raise input_error from error
        line = (str(error).splitlines() or [""])[0][:120]
        raise InputError(
            chunk.path,
            f"rows {chunk.start} to {chunk.stop} cannot be read ({type(error).__name__}: {line})",
            "the file is damaged: copy or make it again",
        ) from error


@contextmanager
def _silence_coffea(progress: bool) -> Iterator[None]:
    """Silence coffea's console: ``status=False`` stops none of its progress bars."""
    before = coffea_console.quiet
    coffea_console.quiet = before or not progress
    try:
        yield
    finally:
        coffea_console.quiet = before


_BLOCK = 64
"""Chunks after which their columns are joined: many small arrays take more memory than what is in them."""


Outcome = _Result | Lost | Raised | ChunkStore
"""The result of a chunk, or its path on disk, from which it is read when needed."""


class _Merged:
    """Results, merged in the order of the chunks; only those that came before their turn are held.

    Once a chunk has failed, nothing is merged any more: what comes later is only looked at for further failures.
    """

    def __init__(self, chunks: Sequence[EventChunk], name: str) -> None:
        self.output: Any = None
        self.event_ids: list[tuple[EventChunk, npt.NDArray[np.int64]]] = []
        self.processed: dict[EventChunk, int] = {}
        self.failed: list[tuple[EventChunk, InputError]] = []
        self.clipped_masses = 0
        self.opened = OpenedFiles()
        self._chunks, self._name, self._next, self._count = chunks, name, 0, 0
        self._waiting: dict[int, Outcome] = {}
        self._histograms: dict[str, frozenset[str]] = {}

    def take(self, index: int, outcome: Outcome) -> None:
        """Take what came of a chunk; raises what ends the run: whatever the processor raised."""
        if index in self._waiting or index < self._next:
            raise LostEventsError("a chunk was processed twice")
        self._waiting[index] = outcome
        while self._next in self._waiting:
            self._merge(self._chunks[self._next], self._waiting.pop(self._next))
            self._next += 1

    def finish(self) -> None:
        """Merge what waits for chunks that never came."""
        for index in sorted(self._waiting):
            self._merge(self._chunks[index], self._waiting.pop(index))

    def _merge(self, chunk: EventChunk, outcome: Outcome) -> None:
        if isinstance(outcome, ChunkStore):
            outcome = _load_result(outcome, chunk) or Lost("its result is missing on disk")
        if isinstance(outcome, Raised):
            raise outcome.error
        if isinstance(outcome, Lost):
            error = InputError(chunk.path, outcome.problem, "use fewer workers or smaller chunks, if memory ran out")
            self.failed.append((chunk, error))
        elif outcome.unread and isinstance(outcome.error, InputError):
            self.failed.append((chunk, outcome.error))
        elif outcome.error is not None:
            raise outcome.error
        else:
            self.processed[chunk] = outcome.entries
            self.clipped_masses += outcome.clipped_masses
            self.opened |= outcome.opened
            if not self.failed:
                self._add(chunk, outcome)

    def _add(self, chunk: EventChunk, result: _Result) -> None:
        if result.event_ids is not None:
            self.event_ids.append((chunk, result.event_ids))
        self._check_histograms(chunk, result.out)
        # the first two make a new accumulator, as coffea's own merging does: a processor's is never changed
        parts = [result.out] if self._count == 0 else [self.output, result.out]
        try:
            self.output = accumulate(parts) if self._count < 2 else accumulate([result.out], self.output)
        except (DrapesError, MemoryError):
            raise
        except Exception as error:  # accumulators of a user's may raise anything
            raise ConfigError(
                f"{self._name}: the results of two chunks cannot be merged ({reason_of(error)})"
            ) from error
        self._count += 1
        if self._count % _BLOCK == 0:
            _join(self.output)

    def _check_histograms(self, chunk: EventChunk, out: Any) -> None:
        """Refuse a histogram that some chunks of a dataset lack: its sum would be short of their events."""
        hists = out.get("hists") if isinstance(out, Mapping) else None
        if not isinstance(hists, Mapping):
            return  # a chunk whose events are all hidden has rows only
        names = frozenset(map(str, hists))
        odd = names ^ self._histograms.setdefault(chunk.dataset, names)
        if odd:
            raise ConfigError(
                f"{self._name}: histogram '{min(odd)}' is not in all chunks: that from row {chunk.start} of"
                f" {chunk.path} {'has' if min(odd) in names else 'lacks'} it; return it for every chunk"
            )


def _join(output: Any) -> None:
    """Join the columns of the latest chunks, wherever they are in an accumulator."""
    if isinstance(output, ColumnParts):
        output.join()
    elif isinstance(output, Mapping):
        for value in output.values():
            _join(value)


def _failures(failed: Sequence[tuple[EventChunk, InputError]]) -> tuple[Failure, ...]:
    """Describe what failed; impossible values are counted in the whole file, whatever the chunks were."""
    bad: defaultdict[str, list[Any]] = defaultdict(list)
    for chunk, error in failed:
        if isinstance(error, BadValuesError):
            bad[chunk.path] += error.bad
    failures = []
    for chunk, error in failed:
        reported = BadValuesError(error.path, bad[chunk.path]) if isinstance(error, BadValuesError) else error
        failures.append(Failure(chunk.dataset, chunk.path, chunk.start, chunk.stop, reported.problem, reported.remedy))
    return join_failures(failures)


def _check_account(chunks: Sequence[EventChunk], merged: _Merged) -> None:
    requested = sum(len(chunk) for chunk in chunks)
    processed = sum(merged.processed.values())
    short = [chunk for chunk in chunks if merged.processed.get(chunk) != len(chunk)]
    if processed != requested or short:
        where = f", e.g. rows {short[0].start} to {short[0].stop} of {short[0].path}" if short else ""
        raise LostEventsError(
            f"{counted(requested, 'event was', 'events were')} requested but {processed} processed"
            f" ({requested - processed} lost{where})"
        )


def _check_unique(requested: Sequence[_Requested], stated: Sequence[tuple[EventChunk, npt.NDArray[np.int64]]]) -> None:
    """Compare all identities: 8 bytes per event, twice, for the files that state them."""
    if not stated:
        return
    every = [ids for _, ids in stated]
    every += [row_ids(file.info.id, 0, file.info.entries) for file in requested if not file.info.has_event_ids]
    joined = np.sort(np.concatenate(every))
    repeated = joined[1:][joined[1:] == joined[:-1]]
    if len(repeated):
        first = int(repeated[0])
        path = next((chunk.path for chunk, ids in stated if (ids == first).any()), requested[0].info.path)
        raise InputError(
            path,
            f"event_id {first}{_numbers(stated, first)} belongs to more than one event"
            f" ({len(repeated)} repeated in all files)",
            "give each event a unique identity, and list each event once",
        )


def _numbers(stated: Iterable[tuple[EventChunk, npt.NDArray[np.int64]]], event_id: int) -> str:
    """Return which run, luminosity section and event an identity was made of, by reading its columns once more."""
    for chunk, ids in stated:
        rows = np.flatnonzero(ids == event_id)
        if len(rows) and set(IDENTITY_FIELDS) <= set(chunk.columns):
            only = dataclasses.replace(chunk, columns=IDENTITY_FIELDS)
            columns = read_columns(only)
            return f" (run:lumi:event {':'.join(str(int(columns[name][rows[0]])) for name in IDENTITY_FIELDS)})"
    return ""


def run(
    fileset: Fileset,
    processor: Any,
    *,
    executor: str | ExecutorBase = "iterative",
    workers: int = 1,
    chunksize: int = 50_000,
    progress: bool = False,
    reading: Reading = DEFAULT_READING,
    store: ChunkStore | None = None,
    infos: Sequence[FileInfo] = (),
) -> tuple[Any, RunReport]:
    """Run a processor over a fileset.

    Parameters
    ----------
    fileset : mapping
        Dataset to ``path``, ``[path, ...]``, ``{path: tree}``, or ``{"files": any of these, "metadata": {...}}``.
        ROOT, HDF5 and Parquet may be mixed.
    processor : coffea.processor.ProcessorABC or callable
        Gets events in :class:`~drapes_hep.events.nano_events.DijetSchema`, returns what coffea can accumulate.
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
    store : ChunkStore, optional
        Keeps the results of finished chunks; those that it holds already are not processed again.
    infos : sequence of FileInfo
        Files that were scanned already, for this reading or for one of more: they are scanned anew only if they have
        changed since.

    Returns
    -------
    output : object
        The chunks' results, merged in the order (dataset, file's key, row), then postprocessed.
    report : RunReport
        The account.

    Raises
    ------
    FailedFilesError
        Files that cannot be read as events, or chunks whose worker died; all others were processed, and are in the
        store where there is one.
    InputError
        Repeated event identities.
    LostEventsError
        The events processed are not those requested.
    ConfigError
        An unknown executor, an empty fileset.

    Notes
    -----
    A chunk's result is merged as soon as those before it are, and dropped: the memory is that of the selected columns
    and of the histograms, plus a bounded number of results that came before their turn.
    """
    begin = time.perf_counter()
    if chunksize < 1:
        raise ConfigError(f"chunksize must be at least 1, got {chunksize}")
    pool = _executor(executor, workers, progress)
    requested = _scan(fileset, reading, infos)
    chunks = [
        chunk for file in requested for chunk in split(file.info, file.dataset, chunksize, file.metadata, reading)
    ]
    chunks.sort(key=lambda chunk: chunk.key)
    with _silence_coffea(progress):
        merged = _execute(chunks, processor, pool, progress, store)
    if merged.failed:
        raise FailedFilesError(_failures(merged.failed))
    _check_account(chunks, merged)
    _check_unique(requested, merged.event_ids)
    output = merged.output
    if callable(getattr(processor, "postprocess", None)):
        replaced = processor.postprocess(output)
        output = output if replaced is None else replaced
    return output, _report(requested, merged, time.perf_counter() - begin)


def try_first_chunks(
    infos: Iterable[FileInfo],
    processor: Any,
    *,
    dataset: str,
    chunksize: int = 50_000,
    reading: Reading = DEFAULT_READING,
) -> tuple[FirstChunk, ...]:
    """Read and process the first chunk of each file as :func:`run` does, and drop the results.

    Parameters
    ----------
    infos : iterable of FileInfo
        Files without events are left out.
    processor : coffea.processor.ProcessorABC
        Returns ``skim``, among others.
    dataset : str
        Name in the fileset.
    chunksize, reading
        As for :func:`run`.

    Returns
    -------
    tuple of FirstChunk
        In the order of the files. Event identities that the files state are compared with each other, too: the file
        that holds a repeated one has the error.
    """
    payload = cloudpickle.dumps(_Payload(processor, uuid.uuid4().hex, sharing=False, storing=False))
    tried: list[FirstChunk] = []
    stated: list[tuple[EventChunk, npt.NDArray[np.int64]]] = []
    requested = [_Requested(dataset, info, {}) for info in infos if info.entries]
    for file in requested:
        chunk = split(file.info, dataset, chunksize, reading=reading)[0]
        result = _work(payload, chunk)
        if result.error is not None:
            tried.append(FirstChunk(file.info, 0, 0, result.error))
            continue
        if result.event_ids is not None:
            stated.append((chunk, result.event_ids))
        selected = len(result.out["skim"].columns().get("event_id", ()))
        tried.append(FirstChunk(file.info, result.entries, selected, None))
    try:
        _check_unique(requested, stated)
    except InputError as error:
        return tuple(
            dataclasses.replace(first, error=error) if first.error is None and first.info.path == error.path else first
            for first in tried
        )
    return tuple(tried)


def _execute(
    chunks: Sequence[EventChunk], processor: Any, executor: Any, progress: bool, store: ChunkStore | None
) -> _Merged:
    """Process what is not in the store, in the order of the chunks or nearly so."""
    in_process = type(executor) is IterativeExecutor
    sharing = in_process or type(executor) is FuturesExecutor
    payload = cloudpickle.dumps(_Payload(processor, uuid.uuid4().hex, sharing, store is not None))
    name = getattr(processor, "described", f"processor {type(processor).__name__}")
    merged, done = _Merged(chunks, name), 0
    todo: list[int] = []
    with Reporter(quiet=not progress).bar("Processing", len(chunks)) as update:
        for index, chunk in enumerate(chunks):
            # read twice, since one that cannot be read must be processed again
            if store is not None and _load_result(store, chunk) is not None:
                merged.take(index, store)
                done += 1
            else:
                todo.append(index)
        try:
            for position, outcome in dispatch(executor, [chunks[index] for index in todo], _work, payload):
                index = todo[position]
                if store is not None and isinstance(outcome, _Result) and outcome.error is None:
                    # the processor was loaded here, and it may have read files then
                    hashes = join_hashes(current_hashes(), outcome.hashes)
                    if hashes is not None:
                        store.save(chunks[index], _to_store(outcome), hashes)
                merged.take(index, outcome)
                done += 1
                update(done)
        finally:
            if in_process:
                share_files(False)
    merged.finish()
    if store is not None:
        # the processor was loaded and made here
        merged.opened |= opened()
    return merged


def _to_store(result: _Result) -> dict[str, Any]:
    fields = {name: getattr(result, name) for name in _STORED if name != "opened"}
    return {**fields, "opened": {name: dict(items) for name, items in vars(result.opened).items()}}


_STORED = ("entries", "out", "event_ids", "clipped_masses", "opened")


def _load_result(store: ChunkStore, chunk: EventChunk) -> _Result | None:
    stored = store.load(chunk)
    if stored is None or set(stored) != set(_STORED) or stored["entries"] != len(chunk):
        return None
    return _Result(**{**stored, "opened": OpenedFiles(**stored["opened"])})


def _report(requested: Iterable[_Requested], merged: _Merged, seconds: float) -> RunReport:
    processed: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    for chunk, entries in merged.processed.items():
        processed[(chunk.dataset, chunk.path, chunk.object_path)] += entries
    files = tuple(
        FileReport(
            file.dataset,
            file.info.path,
            file.info.entries,
            processed[(file.dataset, file.info.path, file.info.object_path)],
        )
        for file in requested
    )
    return RunReport(
        requested=sum(file.requested for file in files),
        processed=sum(merged.processed.values()),
        failed=(),
        files=files,
        seconds=seconds,
        clipped_masses=merged.clipped_masses,
        opened=merged.opened,
    )
