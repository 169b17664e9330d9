"""Work in processes of their own: results as they come, no orphans, one line when memory runs out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import Any, TypeVar

from drapes_hep.errors import DrapesError

__all__ = ["available_cores", "in_processes"]

R = TypeVar("R")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(function: Callable[..., R], arguments: Sequence[tuple[Any, ...]], workers: int) -> Iterator[R]:
    """Call a function for each of many arguments, in fresh processes.

    If this process is interrupted, running functions get KeyboardInterrupt, so a training can write a checkpoint.

    Parameters
    ----------
    function : callable
        Of a module that can be imported; what it needs and gives is pickled.
    arguments : sequence of tuple
        The arguments of each call.
    workers : int
        Processes; with one, or for one call, all is done in this process.

    Yields
    ------
    object
        What each call gives, in the order in which they end.

    Raises
    ------
    DrapesError
        If a process dies.
    """
    if workers <= 1 or len(arguments) <= 1:
        for call in arguments:
            yield function(*call)
        return
    # a fresh interpreter: forking a process that has threads (a progress bar, torch) may hang
    context = multiprocessing.get_context("spawn")
    strangers = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(arguments)), mp_context=context, initializer=_begin_worker)
    try:
        waiting = [pool.submit(_stoppable, function, *call) for call in arguments]
        for future in as_completed(waiting):
            yield future.result()
    except BrokenProcessPool as error:
        raise DrapesError(
            "a worker process died, most likely out of memory: use fewer workers; finished work is kept, run"
            " the same command again to resume"
        ) from error
    except BaseException:
        # whatever happened, nobody wants to wait for the work under way
        for process in set(multiprocessing.active_children()) - strangers:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _stoppable(function: Callable[..., R], *arguments: Any) -> R:
    """Call a function that may tidy up, as after Ctrl-C, where the parent has no more use for its result."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, _: FrameType | None) -> None:
    # asked once more by the pool, it is on its way already
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it: a killed parent cannot stop its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
