"""Work in processes of their own: results as they come, no orphans, one line when a process dies.

A process is forked from a server, which has imported what the work needs: the imports are done once, and their memory
is shared. Where there is no such server (Windows), a process is a fresh interpreter. In neither does the caller's main
module run again, so a script needs no ``if __name__ == "__main__"``, and a notebook can start processes too.

Each process has a pipe of its own to this one, and nothing else: a process that is killed leaves no lock behind for
which others would wait.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil

from drapes_hep.caller import from_shell, in_shell
from drapes_hep.errors import DrapesError, exit_line, reason_of
from drapes_hep.guard import enter, on_enter, stage

__all__ = ["available_cores", "available_memory", "in_processes", "may_start_processes", "tell"]

R = TypeVar("R")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_GROUPS = Path("/sys/fs/cgroup")
"""The control groups of containers and batch jobs."""
_MEMBERSHIP = Path("/proc/self/cgroup")
"""Those of this process, as ``number:controllers:path``."""


def available_memory(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the memory in bytes that new processes can have: the machine's, or what a container's limit leaves."""
    available = int(psutil.virtual_memory().available)
    for group in _groups(groups, membership):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            # "max" is no limit, and neither is a file that is not there
            with suppress(OSError, ValueError):
                left = int((group / limit).read_text()) - int((group / used).read_text())
                # files that were read are counted, and make room where it is needed
                left += _entry(group / "memory.stat", cache)
                available = min(available, max(left, 0))
    return available


def _groups(groups: Path, membership: Path) -> set[Path]:
    """Return the folders of the control groups that this process is in, and of those around them."""
    places = {groups, groups / "memory"}
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                inner = Path(path.lstrip("/"))
                places |= {groups / controllers / part for part in (inner, *inner.parents)}
    return places


def _entry(path: Path, name: str) -> int:
    """Return a number of a file of names and numbers, 0 without it."""
    with suppress(OSError, ValueError):
        return int(dict(line.split(maxsplit=1) for line in path.read_text().splitlines()).get(name, 0))
    return 0


def may_start_processes() -> bool:
    """Whether this process may have children: a worker of a user's own ``multiprocessing.Pool`` may not."""
    return not multiprocessing.current_process().daemon


def in_processes(
    function: Callable[..., R],
    arguments: Sequence[tuple[Any, ...]],
    workers: int,
    *,
    hear: Callable[[int, Any], None] = lambda _call, _message: None,
    apart: bool = False,
    preload: str = "",
) -> Iterator[R]:
    """Call a function for each of many arguments, in processes of their own.

    If this process is interrupted, running functions get KeyboardInterrupt, so a training can write a checkpoint.

    Parameters
    ----------
    function : callable
        Of a module that can be imported; what it needs and gives is pickled, and should be small.
    arguments : sequence of tuple
        The arguments of each call, which begin in this order.
    workers : int
        Processes; with one, or for one call, all is done in this process.
    hear : callable, optional
        Called here with the number of a call and what it passes to :func:`tell`.
    apart : bool
        Whether even a single call, or a single worker, has a process of its own.
    preload : str
        The module that the processes share; that of the function by default.

    Yields
    ------
    object
        What each call gives, in the order in which they end.

    Raises
    ------
    DrapesError
        If a process dies; or as a call raises it, the first of them if several do: calls that come after it are
        stopped, those before it are finished.
    """
    if not may_start_processes() or (not apart and (workers <= 1 or len(arguments) <= 1)):
        yield from _in_turn(function, arguments, hear)
        return
    pool = _Pool(function, arguments, hear, preload or function.__module__)
    try:
        yield from pool.results(min(max(workers, 1), len(arguments)))
    finally:
        # whatever happened, nobody wants to wait for the work under way
        pool.stop()


def _in_turn(
    function: Callable[..., R], arguments: Sequence[tuple[Any, ...]], hear: Callable[[int, Any], None]
) -> Iterator[R]:
    """Call a function for each of many arguments in this process."""
    before = _Parent.ear
    try:
        for i, call in enumerate(arguments):
            _Parent.ear = functools.partial(hear, i)
            yield function(*call)
    finally:
        _Parent.ear = before


# ---- in the parent ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Message:
    """What a worker sends: something that its call tells, the stage that it enters, or how the call ended."""

    kind: str
    content: Any


@dataclass(frozen=True)
class _Failure:
    """An exception of a call, with words for a parent that cannot load its class."""

    pickled: bytes
    line: str
    trace: str
    users: bool

    def error(self) -> BaseException:
        """Return the exception, with the worker's traceback as its cause if it is a defect."""
        try:
            error: BaseException = pickle.loads(self.pickled)
        except Exception:  # a class of a user's file, or with other arguments than its message
            error = DrapesError(self.line) if self.users else RuntimeError(self.line)
        if not self.users:
            error.__cause__ = _RemoteTraceback(self.trace)
        return error


class _RemoteTraceback(Exception):
    """Shows where in a worker an exception was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(eq=False)
class _Worker:
    """A process, this end of its pipe, the number of its call, and the stage that it is in."""

    process: BaseProcess
    pipe: Connection
    call: int | None = None
    stage: str = ""


class _Pool:
    """The processes of one :func:`in_processes`."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        hear: Callable[[int, Any], None],
        preload: str,
    ) -> None:
        self._function, self._arguments, self._hear, self._preload = function, arguments, hear, preload
        self._workers: list[_Worker] = []
        self._next = 0
        self._failures: dict[int, BaseException] = {}

    def results(self, workers: int) -> Iterator[Any]:
        """Yield what the calls give, as they end."""
        for _ in range(workers):
            self._workers.append(_start(self._function, self._preload))
            self._give(self._workers[-1])
        while busy := [worker for worker in self._workers if worker.call is not None]:
            # a process that has died may have left a child of its own with its pipe: the process is asked as well
            ready = wait([item for worker in busy for item in (worker.pipe, worker.process.sentinel)])
            for worker in busy:
                # one that was stopped meanwhile has no more to say
                if worker in self._workers and (worker.pipe in ready or worker.process.sentinel in ready):
                    yield from self._receive(worker)
        if self._failures:
            raise self._failures[min(self._failures)]

    def _receive(self, worker: _Worker) -> Iterator[Any]:
        """Take one message of a worker, or find that it has died."""
        assert worker.call is not None
        try:
            if not worker.pipe.poll():
                raise EOFError  # it has ended, and has sent nothing more
            message: _Message = worker.pipe.recv()
        except (OSError, EOFError):
            raise DrapesError(_death(worker)) from None
        if message.kind == "told":
            self._hear(worker.call, message.content)
        elif message.kind == "entered":
            worker.stage = message.content
            stages = [other.stage for other in self._workers if other.stage]
            enter(_listed(stages) if stages else "")
        elif message.kind == "result":
            self._give(worker)
            yield message.content
        else:
            self._fail(worker, message.content)

    def _give(self, worker: _Worker) -> None:
        """Send a worker the next call; none where an earlier one has failed."""
        worker.call = None
        if self._next < len(self._arguments) and not self._failures:
            worker.call, self._next = self._next, self._next + 1
            with suppress(OSError):  # it has died, which is seen where it is waited for
                worker.pipe.send(self._arguments[worker.call])

    def _fail(self, worker: _Worker, failure: _Failure) -> None:
        """Stop the calls after one that has failed; a defect stops all."""
        assert worker.call is not None
        error = failure.error()
        if not failure.users:
            raise error
        self._failures[worker.call] = error
        failed, worker.call, worker.stage = worker.call, None, ""
        later = [other for other in self._workers if other.call is not None and other.call > failed]
        _stop(later)
        self._workers = [other for other in self._workers if other not in later]

    def stop(self) -> None:
        """End all workers, and wait until they have."""
        _stop(self._workers)


def _stop(workers: Sequence[_Worker]) -> None:
    """Interrupt workers, and wait until they have left; asked once more to leave, kill them."""
    try:
        for worker in workers:
            # what it sends from now on reaches nobody, and it must not wait for a reader
            worker.pipe.close()
            if worker.call is not None:
                worker.process.terminate()
        for worker in workers:
            worker.process.join()
    except BaseException:
        for worker in workers:
            worker.process.kill()
        raise


def _death(worker: _Worker) -> str:
    """Describe how a worker died."""
    worker.process.join(_PATIENCE)
    if worker.process.exitcode is None:  # it lives, and has closed its pipe
        worker.process.kill()
        worker.process.join()
    status = worker.process.exitcode or 0
    during = f" during {worker.stage}" if worker.stage else ""
    if status < 0:
        reasons = {9: " (out of memory? use fewer workers)", 11: " (a crash in compiled code)"}
        how = f"was killed by signal {-status}{reasons.get(-status, '')}{during}"
    elif status == _ENDED:
        how = f"was ended by SIGTERM{during}"
    else:
        how = f"exited{during} without a result: its code called os._exit or similar (status {status})"
    return f"a worker process {how}; finished work is kept: run the same command again to resume"


_ENDED = 128 + signal.SIGTERM
"""Status of a worker that was asked to leave."""

_PATIENCE = 5.0
"""Seconds within which a process that has closed its pipe ends."""


def _listed(names: Sequence[str]) -> str:
    """Write names of stages as a list."""
    *first, last = names if len(names) <= _LISTED else (*names[: _LISTED - 1], f"{len(names) - _LISTED + 1} more")
    return f"{', '.join(first)} and {last}" if first else last


_LISTED = 4
"""Most words in a list of stages."""


def _start(function: Callable[..., Any], preload: str) -> _Worker:
    """Start a process that waits for calls of a function."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    pipe, other_end = context.Pipe()
    # an attribute of the type of context, which the three methods of starting do not share
    process: BaseProcess = context.Process(  # type: ignore[attr-defined]
        target=_serve, args=(other_end, function, dict(os.environ), in_shell())
    )
    with _STARTING, _without_main():
        if method == "forkserver":
            _start_server(preload)
        process.start()
    other_end.close()
    return _Worker(process, pipe)


def _start_server(module: str) -> None:
    """Start the server from which processes are forked, with what a module imports, unless it runs."""
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload([module])
    with _server_environment(), _ignored_signals():
        forkserver.ensure_running()


_STARTING = threading.Lock()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module, which a new process would run again: a script without a guard would start itself anew."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _server_environment() -> Iterator[None]:
    """Let the server look for modules where this process does, and not in the working directory.

    Until Python 3.13 a server is not told of ``sys.path``.
    """
    more = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"}
    if in_shell():
        more["PYTHONWARNINGS"] = "ignore"
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _ignored_signals() -> Iterator[None]:
    """Ignore what ends a command, as a process that is started inside will.

    A signal to the whole group must not end the server: its end is that of workers which write a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# ---- in the workers --------------------------------------------------------------------------------------------------


class _Parent:
    """The worker's end of the pipe, which several threads may use; for a call in this process, what hears it."""

    pipe: Connection | None = None
    lock = threading.Lock()
    ear: Callable[[Any], None] | None = None


def tell(message: Any) -> None:
    """Send something small to the caller's ``hear``; nothing where there is none, or it has no more use for it."""
    if _Parent.ear is not None:
        _Parent.ear(message)
    else:
        _send(_Message("told", message))


def _send(message: _Message) -> None:
    if _Parent.pipe is not None:
        with _Parent.lock, suppress(OSError):
            _Parent.pipe.send(message)


def _serve(pipe: Connection, function: Callable[..., Any], environment: Mapping[str, str], shell: bool) -> None:
    """Call a function for what comes through the pipe, until it is closed."""
    os.environ.clear()
    os.environ.update(environment)
    _begin_worker()
    _Parent.pipe = pipe
    on_enter(lambda name: _send(_Message("entered", name)))
    try:
        with from_shell() if shell else nullcontext():
            while True:
                ended = _ended(function, pipe.recv())
                try:
                    _send(ended)
                except Exception as error:  # a result that cannot be pickled: nothing of it has been sent
                    _send(_Message("failure", _failure(error)))
    except (EOFError, OSError):
        return
    except KeyboardInterrupt:
        os._exit(_ENDED)


def _ended(function: Callable[..., Any], call: tuple[Any, ...]) -> _Message:
    """Call a function that may tidy up, as after Ctrl-C, where the parent has no more use for its result."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _Message("result", function(*call))
    except SystemExit as done:
        during = f"{stage()}: " if stage() else ""
        return _Message("failure", _failure(DrapesError(f"{during}{exit_line(done)}")))
    except Exception as error:
        return _Message("failure", _failure(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _failure(error: Exception) -> _Failure:
    users = isinstance(error, DrapesError)
    trace = "".join(traceback.format_exception(error))
    try:
        pickled = pickle.dumps(error)
    except Exception:  # whatever a user's exception holds
        pickled = b""
    return _Failure(pickled, str(error) if users else reason_of(error), trace, users)


def _interrupt(number: int, _: FrameType | None) -> None:
    # asked once more, it is on its way already
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _begin_worker() -> None:
    """Leave Ctrl-C and its like to the parent, and end with it: a killed parent cannot stop its workers."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # the server ignores it, and what is forked from it does
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
