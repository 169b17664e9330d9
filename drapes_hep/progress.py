"""Progress bars and the cost of a stage: wall time and peak memory."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Protocol

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from drapes_hep.errors import printable

__all__ = ["Cost", "Progressed", "Reporter", "measured"]

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
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            *((DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        progress = Progress(*columns, console=Console(stderr=True), transient=True)
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
        Largest resident memory of this process and its children, bytes, sampled five times a second.
    """

    seconds: float = 0.0
    peak_memory: int = 0
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)


def _resident() -> int:
    process = psutil.Process(os.getpid())
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_info().rss
        except psutil.Error:  # a worker that ended between being listed and being asked
            continue
    return total


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block; the result is filled when it ends."""
    cost = Cost()

    def watch() -> None:
        while True:
            cost.peak_memory = max(cost.peak_memory, _resident())
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
