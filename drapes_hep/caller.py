"""Who reads a message: the words of a user's next step are those of the command line, or those of Python.

The command line says so once, in :func:`drapes_hep.cli.main`; whoever calls the library is told of methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["another_output", "command", "either", "from_shell", "in_shell", "option"]

_shell = [False]


@contextmanager
def from_shell() -> Iterator[None]:
    """Word messages for the command line inside the block, in this process and in those that it forks."""
    before, _shell[0] = _shell[0], True
    try:
        yield
    finally:
        _shell[0] = before


def in_shell() -> bool:
    """Whether messages are worded for the command line."""
    return _shell[0]


def either(*, shell: str, python: str) -> str:
    """Return the words that suit who reads them."""
    return shell if _shell[0] else python


def command(verb: str) -> str:
    """Return what runs a verb of :data:`drapes_hep.stages.sequence.VERBS`."""
    return either(shell=f"`drapes {verb}`", python=f"`Search.{verb}()`")


def option(name: str, value: object = None) -> str:
    """Return how an option of :class:`drapes_hep.search.Search` is written, with its value or as a flag."""
    flag = value is None
    return either(shell=f"--{name}" if flag else f"--{name} {value}", python=f"{name}={True if flag else repr(value)}")


def another_output() -> str:
    """Return how another run directory is chosen."""
    return either(shell="another directory with -o", python="another directory as output")
