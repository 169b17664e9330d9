"""Tasks to workers, and what comes of each: results as they come, and a name for every task whose worker died.

coffea's executors say where the work runs. Its own loops merge results in the order in which they arrive, hold all of
them until the end, and give up everything when one worker dies; here tasks are submitted a bounded number ahead, and a
task that kills its worker is told apart from those that ran beside it.
"""

from __future__ import annotations

import concurrent.futures
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from coffea.processor import DaskExecutor, FuturesExecutor, IterativeExecutor

__all__ = ["Lost", "Raised", "dispatch"]

_AHEAD = 4
"""Tasks per worker that are submitted beyond the first one that is not finished."""
_LEAST = 32
_DEATHS = 3
"""Tasks that may kill their worker before the rest is not tried any more."""
_NOT_TRIED = "not tried, for too many workers had died"
_NO_WORKER = 120.0
"""Seconds without any worker of a cluster after which it counts as lost."""


@dataclass(frozen=True)
class Lost:
    """A task without a result, because of what happened to its worker.

    Parameters
    ----------
    problem : str
        What happened.
    """

    problem: str


@dataclass(frozen=True)
class Raised:
    """A task that raised.

    Parameters
    ----------
    error : BaseException
        What the task raised.
    """

    error: BaseException


def dispatch(
    executor: Any, tasks: Sequence[Any], work: Callable[[bytes, Any], Any], payload: bytes
) -> Iterator[tuple[int, Any]]:
    """Run tasks on an executor.

    Parameters
    ----------
    executor : coffea executor
        Where. Executors that are not coffea's own get groups of tasks through coffea's protocol.
    tasks : sequence
        In the order in which results are wanted.
    work : callable
        ``work(payload, task)``, of a module that workers can import; returns ``{key: result}``.
    payload : bytes
        What all tasks share.

    Yields
    ------
    index : int
        Of the task.
    outcome : dict, Lost or Raised
        In the order in which tasks end, which is never far from their own.
    """
    if not tasks:
        return
    if type(executor) is IterativeExecutor:
        for index, task in enumerate(tasks):
            yield index, work(payload, task)
    elif type(executor) is FuturesExecutor:
        yield from _in_pool(executor, tasks, work, payload)
    elif isinstance(executor, DaskExecutor):
        yield from _on_cluster(executor, tasks, work, payload)
    else:
        yield from _in_groups(executor, tasks, work, payload)


def _window(workers: int) -> int:
    return max(_LEAST, _AHEAD * workers)


class _Submissions:
    """Which tasks may be submitted: a bounded number beyond the first that is not finished."""

    def __init__(self, tasks: int, window: int) -> None:
        self._tasks, self._window = tasks, window
        self._next, self._first = 0, 0
        self._done: set[int] = set()

    def ready(self) -> Iterator[int]:
        while self._next < min(self._tasks, self._first + self._window):
            yield self._next
            self._next += 1

    def finish(self, index: int) -> None:
        self._done.add(index)
        while self._first in self._done:
            self._done.remove(self._first)
            self._first += 1

    @property
    def remaining(self) -> range:
        """Tasks that were not submitted."""
        return range(self._next, self._tasks)


def _signal(error: BaseException) -> str:
    """Name how a worker ended, where the pool says so."""
    codes = re.search(r"\{([^{}]+)\}", str(error))
    return f" ({codes[1]})" if codes else ""


def _submit(
    pool: concurrent.futures.Executor,
    ahead: _Submissions,
    running: dict[Any, int],
    tasks: Sequence[Any],
    work: Callable[[bytes, Any], Any],
    payload: bytes,
) -> dict[int, BaseException]:
    """Submit what is ready; returns the tasks that a broken pool refused."""
    refused: dict[int, BaseException] = {}
    for index in ahead.ready():
        try:
            running[pool.submit(work, payload, tasks[index])] = index
        except concurrent.futures.BrokenExecutor as error:
            refused[index] = error
    return refused


def _settle(
    futures: Iterable[Any], running: dict[Any, int], suspects: dict[int, BaseException], ahead: _Submissions
) -> Iterator[tuple[int, Any]]:
    """Return what came of futures that ended; those that a broken pool ended join the suspects."""
    for future in futures:
        index, raised = running.pop(future), future.exception()
        if isinstance(raised, concurrent.futures.BrokenExecutor):
            suspects[index] = raised
            continue
        ahead.finish(index)
        yield index, future.result() if raised is None else Raised(raised)


def _in_pool(
    executor: Any, tasks: Sequence[Any], work: Callable[[bytes, Any], Any], payload: bytes
) -> Iterator[tuple[int, Any]]:
    """Worker processes of this machine; a new pool where one broke."""
    shared = executor.pool if isinstance(executor.pool, concurrent.futures.Executor) else None
    pool = shared or executor.pool(max_workers=executor.workers)
    workers = getattr(pool, "_max_workers", executor.workers)
    ahead, deaths = _Submissions(len(tasks), _window(workers)), 0
    running: dict[Any, int] = {}
    finished = False
    try:
        while True:
            suspects = _submit(pool, ahead, running, tasks, work, payload)
            if not running and not suspects:
                break
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            yield from _settle(done, running, suspects, ahead)
            if not suspects:
                continue
            # a broken pool says which worker died, not on which task: all that were under way are tried alone
            concurrent.futures.wait(running)
            yield from _settle(list(running), running, suspects, ahead)
            with _OneWorker(executor) as alone:
                for index in sorted(suspects):
                    if deaths >= _DEATHS or shared is not None:
                        outcome: Any = Lost(
                            f"a worker process died{_signal(suspects[index])}, and this was not tried again"
                        )
                    else:
                        outcome = alone.run(work, payload, tasks[index])
                        deaths += isinstance(outcome, Lost)
                    ahead.finish(index)
                    yield index, outcome
            if deaths >= _DEATHS or shared is not None:
                for index in ahead.remaining:
                    yield index, Lost(_NOT_TRIED)
                break
            _end(pool, kill=False)
            pool = executor.pool(max_workers=executor.workers)
        finished = True
    finally:
        if shared is None:
            _end(pool, kill=not finished)
        else:
            for future in running:
                future.cancel()


class _OneWorker:
    """A pool of one worker, which has one task at a time; a new one after a death, for starting one takes seconds."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._pool: Any = None

    def __enter__(self) -> _OneWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(kill=kind is not None)

    def _close(self, *, kill: bool) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            _end(pool, kill=kill)

    def run(self, work: Callable[[bytes, Any], Any], payload: bytes, task: Any) -> Any:
        """Return what came of a task."""
        if self._pool is None:
            self._pool = self._executor.pool(max_workers=1)
        try:
            return self._pool.submit(work, payload, task).result()
        except concurrent.futures.BrokenExecutor as error:
            self._close(kill=False)
            return Lost(f"its worker process died{_signal(error)}")
        except Exception as error:
            return Raised(error)


def _end(pool: Any, *, kill: bool) -> None:
    """End a pool; at once where its results are not wanted any more."""
    if kill:
        try:
            pool.shutdown(wait=True, kill_workers=True)  # loky's
        except TypeError:
            pool.shutdown(wait=True, cancel_futures=True)
    else:
        pool.shutdown(wait=True)


def _on_cluster(
    executor: Any, tasks: Sequence[Any], work: Callable[[bytes, Any], Any], payload: bytes
) -> Iterator[tuple[int, Any]]:
    """Workers of a Dask cluster, which come and go.

    The payload goes with each task: a worker that holds scattered data and dies takes them along (coffea issue 465).
    """
    import distributed

    client: Any = executor.client
    if client is None:
        client = distributed.Client(threads_per_worker=1)
    options = {"pure": False, "priority": executor.priority, "retries": executor.retries}
    ahead, running = _Submissions(len(tasks), _window(sum(client.ncores().values()))), {}
    suspects: list[int] = []
    alone: list[int] = []
    deaths = 0
    last_seen, wait = time.monotonic(), distributed.wait
    try:
        while True:
            for index in ahead.ready():
                running[client.submit(work, payload, tasks[index], **options)] = index
            if not running and suspects:
                # a cluster blames all that a dead worker had been given: each is tried with nothing beside it
                alone.append(suspects.pop(0))
                running[client.submit(work, payload, tasks[alone[-1]], **options)] = alone[-1]
            if not running:
                return
            try:
                done = wait(list(running), timeout=2, return_when="FIRST_COMPLETED").done
            except (TimeoutError, distributed.TimeoutError):
                done = set()
                if client.status != "running":
                    problem = "the connection to the cluster's scheduler was lost"
                elif client.ncores():
                    last_seen, problem = time.monotonic(), ""
                else:
                    problem = "the cluster has no worker left" if time.monotonic() - last_seen > _NO_WORKER else ""
                if problem:
                    for index in sorted([*suspects, *running.values(), *ahead.remaining]):
                        yield index, Lost(problem)
                    return
            for future in done:
                index, outcome = running.pop(future), _outcome(future)
                future.release()
                if isinstance(outcome, Lost) and index not in alone:
                    suspects.append(index)
                    continue
                deaths += isinstance(outcome, Lost)
                ahead.finish(index)
                yield index, outcome
            if deaths >= _DEATHS:
                for index in sorted([*suspects, *running.values(), *ahead.remaining]):
                    yield index, Lost(_NOT_TRIED)
                return
    finally:
        with suppress(Exception):
            client.cancel(list(running))
        if executor.client is None:
            client.close()


def _outcome(future: Any) -> Any:
    """Return what came of a task on a cluster."""
    import distributed

    try:
        return future.result()
    except distributed.KilledWorker as error:
        worker = getattr(error.last_worker, "address", "")
        return Lost(f"its workers died, the last one at {worker}" if worker else "its workers died")
    except (distributed.client.FuturesCancelledError, concurrent.futures.CancelledError):
        return Lost("the cluster cancelled it")
    except Exception as error:
        return Raised(error)


def _in_groups(
    executor: Any, tasks: Sequence[Any], work: Callable[[bytes, Any], Any], payload: bytes
) -> Iterator[tuple[int, Any]]:
    """Any other executor: a group of tasks at a time, so that no more results than these are held."""
    size = _window(getattr(executor, "workers", None) or 1)
    call = _Call(work, payload)
    for first in range(0, len(tasks), size):
        results, error = executor.copy(unit="chunk")(list(enumerate(tasks[first : first + size], first)), call, None)
        if error:
            raise error
        yield from (results or {}).items()


@dataclass(frozen=True)
class _Call:
    """What an executor of coffea's protocol calls: an accumulator of a task's index and its outcome."""

    work: Callable[[bytes, Any], Any]
    payload: bytes

    def __call__(self, numbered: tuple[int, Any]) -> dict[int, Any]:
        index, task = numbered
        return {index: self.work(self.payload, task)}
