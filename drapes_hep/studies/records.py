"""Records of what a study has measured: a file each, named by all that decides it, so that a killed study resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import read_json
from drapes_hep.pipeline.run_directory import RunDirectory

__all__ = ["has_record", "read_trial", "record_path"]


def record_path(run: RunDirectory, key: str) -> Path:
    """Return the place of a record."""
    return run.path / "trials" / f"{key[:20]}.json"


def has_record(path: Path) -> bool:
    """Whether a record can be read."""
    try:
        read_trial(path)
    except RunDirectoryError:
        return False
    return True


def read_trial(path: Path) -> dict[str, Any]:
    """Read a record; raises RunDirectoryError if it is missing or damaged."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise RunDirectoryError(f"{path}: is not a record of a trial; delete it and run again")
    return record
