"""Results of chunks that a run with failures leaves in its directory, and its report of what failed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import DrapesError, InputError
from drapes_hep.events.chunk_store import ChunkStore
from drapes_hep.events.failures import FailedFilesError
from drapes_hep.files import content_hash, write_json
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.provenance import makers
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.pipeline.stage import Stage, input_hash
from drapes_hep.remote import is_url

__all__ = ["check_unchanged", "chunk_store", "discard", "inputs_of", "reported"]


def chunk_store(run: RunDirectory, stage: Stage, paths: Iterable[str], dropped: npt.NDArray[np.int64]) -> ChunkStore:
    """Describe where finished chunks of a stage are kept, and what decides their results.

    Parameters
    ----------
    run : RunDirectory
    stage : Stage
        Its part of the configuration and its other grounds count; a file counts by its content, for its own chunks.
    paths : iterable of str
        The files of events.
    dropped : array of int64, shape (n,)
        Identities of signal events that are not injected.

    Returns
    -------
    ChunkStore
    """
    decides = {
        **stage.decides(),
        "code": code_hash(*stage.code),
        "versions": makers()["versions"],
        "dropped": content_hash([dropped.tolist()]),
    }
    return ChunkStore(run.chunks(stage.name), decides, inputs_of(paths))


def inputs_of(paths: Iterable[str]) -> dict[str, str]:
    """Return the fingerprints of files, by absolute path or URL."""
    places = (path if is_url(path) else str(Path(path).absolute()) for path in paths)
    return {place: input_hash(place) for place in places}


def check_unchanged(before: dict[str, str], after: dict[str, str]) -> None:
    """Refuse results of files that are not what they were when the first chunk was read.

    Raises
    ------
    InputError
        The first file whose content differs.
    """
    for path, then in before.items():
        if after.get(path) != then:
            raise InputError(path, "changed while it was read", "run the same command again")


def discard(run: RunDirectory, stage: Stage) -> None:
    """Remove what a run with failures left of a stage that is done by now."""
    run.failures(stage.name).unlink(missing_ok=True)
    ChunkStore(run.chunks(stage.name), {}).clear()


def _command() -> str:
    """Return the command that is running, for a reader to type again."""
    name = Path(sys.argv[0] or "").name
    return shlex.join(["drapes", *sys.argv[1:]]) if name in {"drapes", "__main__.py"} else "the same call"


@contextmanager
def reported(context: Context, stage: Stage) -> Iterator[None]:
    """Write the report of what failed inside the block, where it says more than the error.

    One failure without any finished chunk is the error's own line, and leaves nothing behind.

    Raises
    ------
    FailedFilesError
        As raised inside, with the place of the report and the command that takes up what failed.
    """
    try:
        yield
    except FailedFilesError as error:
        finished = any(context.run.chunks(stage.name).glob("*.npz"))
        several = len(error.failures) > 1
        if several:
            for failure in error.failures:
                context.reporter.say(f"failed: {failure.line}")
        if not (finished or several):
            discard(context.run, stage)
            raise
        place = context.run.failures(stage.name)
        try:
            write_json(place, {"command": _command(), "failures": [failure.to_json() for failure in error.failures]})
        except DrapesError:  # a full disk must not hide what failed
            raise error from None
        resumes = f"; `{_command()}` repeats only what failed" if finished else ""
        raise FailedFilesError(error.failures, f"listed in {place}{resumes}") from error
