"""A second process that outlives the work and reports how it ended.

A user's code, or a library's, may leave by ``os._exit``, crash in compiled code or be killed for its memory: then no
line of Python is left to complain, and the status may be 0. So the command forks at once, before anything large is
imported. The child works, and at its end leaves its status in memory that both share; the parent waits, passes signals
on, and has a line and a status for a child that ended without leaving one.

``DRAPES_HEP_GUARD=0`` in the environment leaves the fork out, for debuggers and profilers.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from drapes_hep.errors import printable
from drapes_hep.interrupts import catch_signals, received

__all__ = ["complain", "enter", "guarded", "on_enter", "stage"]

_PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_SIZE = 256


class _Shared:
    """What child and parent share: byte 0 whether the child ended regularly, 1 its status, then the stage's name."""

    memory: mmap.mmap | None = None
    stage = ""
    listener: Callable[[str], None] | None = None


def enter(name: str) -> None:
    """Return which stage runs now; an empty name if none does."""
    _Shared.stage = name
    if _Shared.listener is not None:
        _Shared.listener(name)
    if _Shared.memory is not None:
        _Shared.memory[2:] = name.encode()[: _SIZE - 2].ljust(_SIZE - 2, b"\0")


def on_enter(listener: Callable[[str], None]) -> None:
    """Let a function hear of each stage that is entered, as in a worker, whose parent has the watched process."""
    _Shared.listener = listener


def stage() -> str:
    """Return the stage that runs, or in which the work ended."""
    return _Shared.stage


def complain(message: str) -> None:
    """Write one line to standard error, if anybody can read it."""
    with suppress(OSError, ValueError):
        print(f"drapes: {printable(message)}", file=sys.stderr, flush=True)  # noqa: T201


def guarded(work: Callable[[], None]) -> NoReturn:
    """Do the work in a process of its own, and leave with its status.

    Parameters
    ----------
    work : callable
        Ends by returning, which is status 0, or by SystemExit with its status.
    """
    _open_streams()
    if os.environ.get("DRAPES_HEP_GUARD") == "0" or not hasattr(signal, "sigwaitinfo"):
        catch_signals()
        sys.exit(_status_of(work))
    # from here on, no signal is lost: the parent takes them one by one, the child when it is ready
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    watched = {number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    watched |= {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    parent = os.getpid()
    _Shared.memory = mmap.mmap(-1, _SIZE)
    child = os.fork()
    if child == 0:
        _end_with(parent)
        catch_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        status = _status_of(work)
        _Shared.memory[:2] = bytes([1, status & 0xFF])
        sys.exit(status)
    sys.exit(_watch(child, watched, _Shared.memory))


def _open_streams() -> None:
    """Open what the caller closed (``2>&-``) to nowhere: else the next file that is opened gets its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _end_with(parent: int) -> None:
    """Let the kernel end this process with its parent: a killed command must not go on unseen."""
    if sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _status_of(work: Callable[[], None]) -> int:
    status = 0
    try:
        work()
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        # before the command line could take it, or while it was ending
        status = 128 + received()
        complain("interrupted; run the same command again to resume")
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            status = status or 128 + signal.SIGPIPE
        elif not status:
            status = 2
            complain(f"standard output: cannot be written ({error.strerror})")
    except ValueError:
        pass  # somebody closed it
    _silence_failed()
    return status


def _silence_failed() -> None:
    """Send what cannot be written to nowhere: Python tries once more when it ends, and complains."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


# ---- in the parent ---------------------------------------------------------------------------------------------------


def _watch(child: int, watched: set[signal.Signals], memory: mmap.mmap) -> int:
    """Wait for the child and pass signals on; return its status."""
    while True:
        received = signal.sigwaitinfo(watched)
        if received.si_signo == signal.SIGCHLD:
            ended, how = os.waitpid(child, os.WNOHANG)
            if ended:
                break
        elif received.si_code <= 0:
            # sent by a process; what a key of the terminal sends (a positive code) the child has got too
            with suppress(ProcessLookupError):
                os.kill(child, received.si_signo)
    if memory[0]:
        return memory[1]
    name = memory[2:].rstrip(b"\0").decode(errors="replace")
    during = f" during {name}" if name else ""
    resume_hint = "; finished work is kept: run the same command again to resume"
    if os.WIFSIGNALED(how):
        number = os.WTERMSIG(how)
        reasons = {signal.SIGKILL: "out of memory?", signal.SIGSEGV: "a crash in compiled code"}
        reason = f" ({reasons[signal.Signals(number)]})" if number in reasons else ""
        complain(f"the process was killed by signal {number}{reason}{during}{resume_hint}")
        return 128 + number
    complain(
        f"the process exited{during} without a result: its code called os._exit or similar"
        f" (status {os.WEXITSTATUS(how)}){resume_hint}"
    )
    return 2
