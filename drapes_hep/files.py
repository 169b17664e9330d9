"""Files: atomic writes, JSON that is read back with a clear error, content hashes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from drapes_hep.errors import DrapesError, RunDirectoryError

__all__ = ["atomic_path", "content_hash", "file_hash", "parse_json", "read_json", "write_bytes", "write_json"]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Return a temporary file in the same folder that becomes ``path`` when the block ends well.

    Parameters
    ----------
    path : str or Path
        The file to make; its folder is made where it is missing.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    DrapesError
        Full disk, no permission and the like; nothing is left behind, an older file stays.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files that only their owner can read
        temporary.replace(target)
        temporary = None
    except OSError as error:
        raise DrapesError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has neither."""
    text = json.dumps(value, indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; unlike :func:`json.loads`, all that is wrong with it is a ValueError.

    Raises
    ------
    ValueError
        Not JSON, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | Path) -> Any:
    """Read JSON that this project wrote.

    Raises
    ------
    RunDirectoryError
        If the file is missing or damaged.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: missing; run the stage that writes it") from None
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: cannot be read as JSON ({error}); delete it and run again") from error


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(parts: Iterable[object]) -> str:
    """SHA-256 of the JSON text of some values, whatever the order of their keys."""
    text = json.dumps(list(parts), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
