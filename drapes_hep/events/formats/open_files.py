"""Open files that the chunks of a worker share: what a file costs to open is paid once, not once per chunk."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from drapes_hep.remote import is_url

__all__ = ["close_shared", "share_files", "shared"]

_MOST = 4
"""Files that a worker holds open."""

Opener = Callable[[str], AbstractContextManager[Any]]


class _State(threading.local):
    """Of one thread: libraries do not promise that two may read from one open file."""

    def __init__(self) -> None:
        self.sharing = False
        self.files: OrderedDict[tuple[Any, ...], tuple[AbstractContextManager[Any], Any]] = OrderedDict()


_STATE = _State()


def share_files(sharing: bool) -> None:
    """Start or stop sharing files in this thread; stopping closes them.

    Parameters
    ----------
    sharing : bool
        Whether files stay open between two calls of :func:`shared`.
    """
    _STATE.sharing = sharing
    if not sharing:
        close_shared()


def close_shared() -> None:
    """Close the files that are open in this thread."""
    while _STATE.files:
        _, (manager, _) = _STATE.files.popitem()
        manager.__exit__(None, None, None)


def _identity(path: str) -> tuple[Any, ...]:
    if is_url(path):
        return ()  # a chunk's own version is compared after it was read
    state = Path(path).stat()
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)


@contextmanager
def shared(opener: Opener, path: str) -> Iterator[Any]:
    """Open a file, or take it as an earlier chunk left it.

    Parameters
    ----------
    opener : callable
        Opens the file as a context manager, with clear errors.
    path : str
        Path or URL.

    Yields
    ------
    object
        What ``opener`` yields. After an error it is closed, and the next call opens the file again.
    """
    if not _STATE.sharing:
        with opener(path) as file:
            yield file
        return
    try:
        key = (opener, path, *_identity(path))
    except OSError:
        key = (opener, path)  # gone: the opener says so
    if key not in _STATE.files:
        manager = opener(path)
        _STATE.files[key] = (manager, manager.__enter__())
        while len(_STATE.files) > _MOST:
            _, (oldest, _) = _STATE.files.popitem(last=False)
            oldest.__exit__(None, None, None)
    _STATE.files.move_to_end(key)
    manager, file = _STATE.files[key]
    try:
        yield file
    except BaseException:
        _STATE.files.pop(key, None)
        # the opener's own words for the error, as if it had been opened for this chunk alone
        if not manager.__exit__(*sys.exc_info()):
            raise
