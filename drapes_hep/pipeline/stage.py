"""A stage, and its stamp on disk: what decides the stage, and what decided what is in the run directory."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import file_hash, read_json
from drapes_hep.keys import part_of
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.remote import fingerprint, is_url
from drapes_hep.user_files import FileHashes

__all__ = ["STAMP_VERSION", "Stage", "Written", "input_hash", "last_record", "read_stamp", "verb_of"]

STAMP_VERSION = 2
"""Of stamps; those before it do not say which modules a stage rests on."""

_VERBS = {"quality": "classify"}
"""Verbs of stages that have none of their own name."""


def verb_of(stage: str) -> str:
    """Return what a user types to run a stage."""
    first = stage.partition(".")[0]
    return _VERBS.get(first, first)


@dataclass(frozen=True)
class Stage:
    """A stage: what its result depends on, and earlier stages.

    Attributes
    ----------
    name : str
        E.g. ``train.3300-3700``; the verb that runs it comes first.
    config : mapping
        The whole configuration, as JSON values.
    keys : tuple of str
        Sections and keys of it that decide the result, from :func:`drapes_hep.config.keys_of`.
    reads : callable
        Finds the files and URLs that it reads: made by earlier stages, or the user's.
    code : tuple of str or Path
        Where its code begins, as :func:`drapes_hep.pipeline.code_keys.hashes_of` takes it.
    other : mapping
        What else decides it, by the name that a message gives it: the hash of user code and the like. A name
        ``KEY's ...`` is what a key of the configuration means, however that spells it.
    recorded : tuple of str
        Sections and keys that it stands for in the manifest although they decide nothing by themselves.
    after : tuple of Stage
        The earlier stages that it uses.
    cheap : bool
        Whether it is remade quickly from what the others left, and may be replaced without leave.
    """

    name: str
    config: Mapping[str, Any]
    keys: tuple[str, ...]
    reads: Callable[[], Sequence[str | Path]]
    code: tuple[str | Path, ...]
    other: Mapping[str, Any] = field(default_factory=dict)
    recorded: tuple[str, ...] = ()
    after: tuple[Stage, ...] = ()
    cheap: bool = False

    @property
    def verb(self) -> str:
        """What a user types to run it."""
        return verb_of(self.name)

    def decides(self) -> dict[str, dict[str, Any]]:
        """Return what its result depends on besides files and code: ``config`` and ``other``, as JSON values."""
        return {"config": part_of(self.config, self.keys), "other": json.loads(json.dumps(dict(self.other)))}


@dataclass(frozen=True)
class Written:
    """What a stage has left.

    Attributes
    ----------
    files : sequence of Path
        In the run directory.
    opened : mapping
        What a user's code has opened and does not declare: hashes by absolute path.
    """

    files: Sequence[Path]
    opened: FileHashes = field(default_factory=dict)


def read_stamp(run: RunDirectory, name: str) -> dict[str, Any] | None:
    """Read a stage's stamp; None if there is none or it is damaged."""
    return _read_record(run.stamp(name), {"key": str, "files": dict})


def _read_begun(run: RunDirectory, name: str) -> dict[str, Any] | None:
    """Read what decides a stage that has begun and not ended; None where there is none, or it is damaged."""
    return _read_record(run.begun(name), {})


def last_record(run: RunDirectory, name: str) -> dict[str, Any] | None:
    """Return the stamp of a stage, or what decides it if it has begun and not ended; None where there is neither."""
    return read_stamp(run, name) or _read_begun(run, name)


def _read_record(path: Path, kinds: Mapping[str, type]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except RunDirectoryError:
        return None
    if isinstance(record, dict) and "version" not in record:
        record = {**record, "version": 1, "recorded": record.get("noted"), "modules": {}, "opened": {}}
    own: dict[str, type] = dict.fromkeys(("config", "other", "recorded", "reads", "modules", "opened"), dict)
    whole = isinstance(record, dict) and all(
        isinstance(record.get(key), kind) for key, kind in (own | dict(kinds)).items()
    )
    return record if whole else None


@functools.lru_cache(4096)
def _hash_of(path: Path, *_: int) -> str:
    return file_hash(path)


def input_hash(path: str | Path) -> str:
    """Return the fingerprint of a file or URL that a stage reads; a file that did not change is hashed once."""
    if is_url(path):
        return fingerprint(path)
    path = Path(path)
    # a run asks for the same files again and again, stage by stage
    state = path.stat()
    return _hash_of(path, state.st_ino, state.st_size, state.st_mtime_ns)
