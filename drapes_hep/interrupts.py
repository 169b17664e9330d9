"""Ctrl-C, SIGTERM and SIGHUP: one way out of the work, which lets it keep what it has."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["catch_signals", "received", "uninterrupted"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_SAME = 1.0
"""Seconds within which a further signal is taken for the same one, sent to the process and to its group."""


class _State:
    owner = 0
    number: int | None = None
    when = 0.0


def catch_signals() -> None:
    """Let each of the signals raise KeyboardInterrupt in this process; one that is ignored (nohup) stays ignored."""
    _State.owner, _State.number = os.getpid(), None
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def received() -> int:
    """Return the signal that ended the work: SIGINT unless :func:`catch_signals` saw another."""
    return signal.SIGINT if _State.number is None else _State.number


def _interrupt(number: int, _: FrameType | None) -> None:
    if os.getpid() != _State.owner:
        # a forked worker ends as if nothing were caught: its parent has the say
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        return
    now = time.monotonic()
    if _State.number is None or now - _State.when > _SAME:
        _State.number, _State.when = number, now
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and its like until the block has ended, as for a step that must be whole.

    Outside of the main thread this does nothing: signals never arrive there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    caught = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in caught:
            signal.signal(number, lambda number, _: late.append(number))
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
        if late:
            signal.raise_signal(late[0])
