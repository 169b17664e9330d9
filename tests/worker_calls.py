"""What tests let worker processes do: functions of a module that imports little."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from drapes_hep.errors import DrapesError, FitError, InputError
from drapes_hep.guard import enter
from drapes_hep.parallel import in_processes, tell
from drapes_hep.pipeline.run_directory import open_run, update_manifest


def answer(number: int) -> tuple[int, int]:
    """Return the number, and which process was asked."""
    return number, os.getpid()


def answers(number: int) -> list[tuple[int, int]]:
    """Return the number and who was asked, twice, from processes of its own."""
    return list(in_processes(answer, [(number,), (number,)], 2))


def pause(folder: Path, number: int) -> None:
    """Leave a file if it is interrupted."""
    (folder / f"began.{number}").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / f"kept.{number}").touch()
        raise


class Odd(Exception):
    """Cannot be loaded again from its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def fail(folder: Path, number: int) -> int:
    """Fail in the first call after the second has failed; the third waits to be stopped."""
    if number == 0:
        while not (folder / "failed").exists():
            time.sleep(0.01)
        raise InputError("first.root", "is not whole", "copy it again")
    if number == 1:
        while not (folder / "began.2").exists():
            time.sleep(0.01)
        (folder / "failed").touch()
        raise FitError("the second one")
    pause(folder, number)
    return number


def unpicklable(number: int) -> object:
    """Return what no other process can be given."""
    return lambda: number


def leave(how: str) -> None:
    """Leave in one of many ways."""
    enter("classify.A")
    if how == "ended":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    if how == "defect":
        raise Odd("this", "that")
    if how == "exit":
        sys.exit(3)
    if how == "user's":
        raise DrapesError("one line")
    tell("x" * 10_000_000 if how == "while it sends" else "a word")
    if how == "os._exit":
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def speak(number: int) -> int:
    """Tell three words in a stage."""
    enter(f"stage {number}")
    for word in range(3):
        tell(word)
    enter("")
    return number


def add_entries(path: Path, number: int) -> None:
    """Add twenty entries to a manifest, one by one."""
    run = open_run(path)
    for entry in range(20):
        update_manifest(run, lambda old, name=f"{number}.{entry}": {"inputs": {**old["inputs"], name: 1}})
