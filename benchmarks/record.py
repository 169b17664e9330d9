"""What a benchmark gives: a record; the one timer, the one peak of memory, and the file that records are kept in.

A benchmark is a function that prepares its input and returns a :class:`Work`: what is measured, and the machine's own
limit for the same work. :func:`measure` makes a :class:`Record` of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil

from drapes_hep.pipeline.provenance import makers

T = TypeVar("T")
Clock = Callable[[], float]


def cpu() -> float:
    """Return the CPU seconds of this process, all threads, and of the processes that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes
    ----------
    name : str
        What was measured.
    parameters : mapping
        Sizes and options, as JSON values.
    seconds : float
        CPU seconds, all threads; wall time where the parameter ``clock`` says so.
    events : int
        Events that were worked on, in a training once a pass; of pseudo-experiments, fits, pages and windows of a
        search, their number.
    limit : str
        What the limit is.
    limit_seconds : float
        What the machine takes for the limit, measured in turn with the work itself.
    peak_bytes : int or None
        By how much the resident memory rose above that with the input ready; None where it was not measured.
    """

    name: str
    parameters: Mapping[str, Any]
    seconds: float
    events: int
    limit: str
    limit_seconds: float
    peak_bytes: int | None

    @property
    def ratio(self) -> float:
        """Part of the limit's speed that is reached."""
        return self.limit_seconds / self.seconds

    @property
    def cost(self) -> float:
        """Seconds an event."""
        return self.seconds / self.events

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, the ratio included."""
        return {**asdict(self), "parameters": dict(self.parameters), "ratio": self.ratio}


@dataclass(frozen=True)
class Work:
    """What a benchmark measures.

    Attributes
    ----------
    action : callable
        The work, its input ready.
    events : int
        See :class:`Record`.
    limit : str
        What the limit is.
    least : callable
        Does what the limit consists of.
    times : float
        How often that would have to be done for as much work.
    clock : callable
        CPU time by default; wall time where several processes work.
    """

    action: Callable[[], object]
    events: int
    limit: str
    least: Callable[[], object]
    times: float = 1.0
    clock: Clock = cpu


@dataclass(frozen=True)
class Sizes:
    """How large benchmarks are: numbers of events, of windows, and of working points."""

    events: tuple[int, ...]
    windows: tuple[int, ...]
    cuts: tuple[int, ...]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, and the parameters that it is run with.

    Attributes
    ----------
    name : str
    make : callable
        Prepares the work from parameters.
    grid : callable
        From sizes to the parameters of each run; those that differ in ``events`` alone by rising numbers.
    quick : bool
        Whether it is part of a quick run.
    """

    name: str
    make: Callable[..., Work]
    grid: Callable[[Sizes], Sequence[Mapping[str, Any]]]
    quick: bool = True


def by_events(sizes: Sizes) -> list[dict[str, Any]]:
    """Return the parameters of a benchmark that depends on the number of events alone."""
    return [{"events": events} for events in sizes.events]


def timed(action: Callable[[], T], clock: Clock = cpu) -> tuple[float, T]:
    """Return the seconds of one call, and its result."""
    began = clock()
    out = action()
    return clock() - began, out


def peak() -> int:
    """Return the largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss of a process that was started by a larger one is the larger one's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    # in KiB, but on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fresh_peak() -> int:
    """Let the peak of memory start from what is in use now, where the system can; return what is in use, bytes."""
    if sys.platform == "linux":
        # memory that was freed but not returned would hide what comes next
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        with suppress(OSError):  # where it may not be written, the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


LONG, SHORT = 10.0, 0.05
"""Seconds: what takes longer is measured once; what is shorter is repeated until it takes as long."""


def mean_seconds(action: Callable[[], object], clock: Clock, once: float) -> float:
    """Return the mean seconds of a call, of which one is expected to take ``once``; short calls are repeated."""
    calls = max(int(SHORT / max(once, 1e-6)), 1)
    return timed(lambda: [action() for _ in range(calls)], clock)[0] / calls


def measure(name: str, make: Callable[..., Work], parameters: Mapping[str, Any], rounds: int) -> Record:
    """Measure work and its limit in turn; the smallest of each counts, as other processes only add.

    Parameters
    ----------
    name : str
    make : callable
        Prepares the work from the parameters.
    parameters : mapping
    rounds : int
        How often each is measured, after a first call that fills caches and is measured for its memory. If that takes
        long, its time counts and is the only one.
    """
    work = make(**parameters)
    before = fresh_peak()
    first, _ = timed(work.action, work.clock)
    bytes_more = max(peak() - before, 0)
    first_least, _ = timed(work.least, work.clock)
    seconds, least = [], []
    for _ in range(rounds):
        least.append(mean_seconds(work.least, work.clock, first_least))
        seconds.append(first if first > LONG else mean_seconds(work.action, work.clock, first))
        if first > LONG:
            break
    written = dict(parameters) | ({} if work.clock is cpu else {"clock": "wall"})
    return Record(name, written, min(seconds), work.events, work.limit, work.times * min(least), bytes_more)


def machine() -> dict[str, Any]:
    """Return the code, the versions and the machine that records belong to."""
    versions = {name: metadata.version(name) for name in ("fastjet", "numba", "pyarrow", "scipy")}
    origin = makers()
    return {
        **origin,
        "versions": {**origin["versions"], **versions},
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "load": os.getloadavg()[0],
    }


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_records(path: Path, origin: Mapping[str, Any], records: list[Record], left_out: list[str]) -> None:
    """Write records with their origin, and what was not measured, each with the reason."""
    tree = {"origin": dict(origin), "records": [record.to_dict() for record in records], "left_out": left_out}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def read_records(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Read the origin and the records of a file.

    Raises
    ------
    SystemExit
        With one line, if it cannot be read or is something else.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        records = [record_of(row) for row in tree["records"]]
        return dict(tree["origin"]), records
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path}: is not a file of benchmarks/run.py ({type(error).__name__}: {error})", file=sys.stderr)
        raise SystemExit(2) from None


def record_of(row: Mapping[str, Any]) -> Record:
    """Return a record from its JSON values."""
    return Record(**{name: value for name, value in row.items() if name != "ratio"})
