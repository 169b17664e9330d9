"""Progress bars and the cost of a stage: wall time and peak memory.

A worker process draws and prints nothing: its :class:`Relay` passes lines and the states of its bars on, and one
:class:`Board` shows those of all workers.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Protocol

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from drapes_hep.errors import printable

__all__ = ["Bar", "Board", "Cost", "Line", "Progressed", "Relay", "Reporter", "board", "measured"]

_DELAY = 2.0
"""Seconds after which a bar is drawn: what is quicker needs none."""


class Progressed(Protocol):
    """Sets how many steps of a bar are done."""

    def __call__(self, done: int, of: int | None = None, /) -> None:
        """Set the steps done and, if it has changed, their number in all."""


@dataclass(frozen=True)
class Reporter:
    """Reports the progress of a stage.

    Attributes
    ----------
    quiet : bool
        Neither bars nor messages.
    """

    quiet: bool = False

    @property
    def draws(self) -> bool:
        """Whether bars are drawn, in a terminal or a notebook: not when quiet, nor into a file or a pipe."""
        return not self.quiet and ((sys.stderr is not None and sys.stderr.isatty()) or _in_notebook())

    def say(self, message: str) -> None:
        """Print one line on standard error; that nobody can read it any more does not end the work."""
        if not self.quiet:
            with suppress(OSError, ValueError):
                print(printable(message), file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def bar(self, description: str, total: int, unit: str = "") -> Iterator[Progressed]:
        """Show a bar for ``total`` steps (or ``unit="bytes"``); returns a function that sets how many are done.

        A second argument to that function replaces the total, where it becomes known on the way.
        """
        if not self.draws:
            yield lambda _done, _total=None: None
            return
        progress = _bars(unit)
        task = progress.add_task(description, total=total)
        begin, lock = time.monotonic(), threading.Lock()
        drawn = False

        def update(done: int, of: int | None = None) -> None:
            nonlocal drawn
            with lock:
                if not drawn and time.monotonic() - begin > _DELAY:
                    progress.start()
                    drawn = True
            progress.update(task, completed=done, total=of)

        try:
            yield update
        finally:
            if drawn:
                progress.stop()


def _bars(unit: str = "") -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *((DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


@dataclass(frozen=True)
class Line:
    """A line that a worker says."""

    text: str


@dataclass(frozen=True)
class Bar:
    """The state of a worker's bar.

    Attributes
    ----------
    number : int
        Of the bar, in its worker.
    description : str
    done, total : int
    open : bool
        Whether its block is still at work.
    """

    number: int
    description: str
    done: int
    total: int
    open: bool = True


_OFTEN = 0.2
"""Seconds between two states of a bar that a worker passes on: nobody reads faster."""


@dataclass(frozen=True)
class Relay(Reporter):
    """Reports in a worker: what would be drawn or printed is passed on.

    Attributes
    ----------
    drawn : bool
        Whether the parent draws bars.
    post : callable
        Takes a :class:`Line` or a :class:`Bar`.
    """

    drawn: bool = False
    post: Callable[[Line | Bar], None] = lambda _: None

    @property
    def draws(self) -> bool:
        """Whether the parent draws bars."""
        return self.drawn and not self.quiet

    def say(self, message: str) -> None:
        """Pass one line on."""
        if not self.quiet:
            self.post(Line(message))

    @contextmanager
    def bar(self, description: str, total: int, unit: str = "") -> Iterator[Progressed]:  # noqa: ARG002
        """Pass the states of a bar on; steps are counted whatever their unit."""
        if not self.draws:
            yield lambda _done, _total=None: None
            return
        state, when, lock = Bar(next(_NUMBERS), description, 0, total), time.monotonic(), threading.Lock()
        self.post(state)

        def update(done: int, of: int | None = None) -> None:
            nonlocal state, when
            with lock:
                state = replace(state, done=done, total=state.total if of is None else of)
                if time.monotonic() - when > _OFTEN:
                    when = time.monotonic()
                    self.post(state)

        try:
            yield update
        finally:
            self.post(replace(state, open=False))


_NUMBERS = itertools.count()


class Board:
    """Shows the lines and bars of several workers, a row for each bar that is open.

    Parameters
    ----------
    reporter : Reporter
        Of this process.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._progress = _bars() if reporter.draws else None
        self._begin, self._drawn = time.monotonic(), False
        self._tasks: dict[tuple[int, int], TaskID] = {}

    def hear(self, worker: int, message: Line | Bar) -> None:
        """Show what a worker passed on: a line at once, above the bars."""
        if isinstance(message, Bar):
            if self._progress is not None:
                self._show(self._progress, (worker, message.number), message)
        elif self._progress is not None and self._drawn:
            with suppress(OSError, ValueError):  # nobody able to read a line is no reason to end the work
                self._progress.console.print(Text(printable(message.text)), soft_wrap=True)
        else:
            self._reporter.say(message.text)

    def _show(self, progress: Progress, key: tuple[int, int], bar: Bar) -> None:
        if not bar.open:
            if key in self._tasks:
                progress.remove_task(self._tasks.pop(key))
            return
        if key not in self._tasks:
            self._tasks[key] = progress.add_task(bar.description, total=bar.total)
        if not self._drawn and time.monotonic() - self._begin > _DELAY:
            progress.start()
            self._drawn = True
        progress.update(self._tasks[key], completed=bar.done, total=bar.total)

    def close(self) -> None:
        """Take the bars away."""
        if self._progress is not None and self._drawn:
            self._progress.stop()


@contextmanager
def board(reporter: Reporter) -> Iterator[Board]:
    """Show the lines and bars of several workers inside the block."""
    shown = Board(reporter)
    try:
        yield shown
    finally:
        shown.close()


def _in_notebook() -> bool:
    """Whether an IPython kernel runs this that can show rich's bars, which are widgets there."""
    return Console(stderr=True).is_jupyter and find_spec("ipywidgets") is not None


@dataclass
class Cost:
    """What a block of work took.

    Attributes
    ----------
    seconds : float
        Wall time.
    peak_memory : int
        Largest resident memory of this process and its children, bytes, sampled five times a second. Memory that a
        worker shares with others, such as that of imported libraries, counts in each.
    """

    seconds: float = 0.0
    peak_memory: int = 0
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)


def _servers() -> set[int]:
    """Return the children that wait to fork workers, and their helpers: the work here is not theirs."""
    servers = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any("multiprocessing." in word for word in child.cmdline()):
                servers.add(child.pid)
    return servers


def _resident(idle: set[int]) -> int:
    process = psutil.Process()
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += 0 if member.pid in idle else member.memory_info().rss
        except psutil.Error:  # a worker that ended between being listed and being asked
            continue
    return total


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block; the result is filled when it ends."""
    cost, idle = Cost(), _servers()

    def watch() -> None:
        while True:
            cost.peak_memory = max(cost.peak_memory, _resident(idle))
            if cost._stop.wait(0.2):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    begin = time.monotonic()
    watcher.start()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - begin
        cost._stop.set()
        watcher.join()
