"""HDF5 files as such: opened whatever holds their lock, and datasets that hold what they promise.

HDF5 locks a file that it opens. Where the file system has no locks, that says nothing of the file, which is read
without. Where another process has it open for writing, what is on the disk is read and the user is told so. A file
whose flags say that its writer has not closed it is read only in SWMR mode, which keeps readers consistent.

A file behind a URL is a Python object to h5py, which holds its global lock while it reads from it. A thread of fsspec's
fetches the bytes. If that thread collected garbage that holds an object of h5py's, it would wait for the lock, and h5py
for the bytes: no cyclic garbage is collected in the meantime.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  importing it registers the compression filters: the official raw file is blosc-compressed

from drapes_hep.errors import InputError
from drapes_hep.remote import is_url, network_error, open_url

__all__ = ["check_stored", "open_hdf5", "unwritten"]

_LOCK_ERRORS = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
"""What locking a file answers where another process holds its lock; any other number means that there are no locks."""

_WRITING = "is open for writing in another process: its content may change"


class _Collector:
    """Python's cyclic garbage collector, paused while any thread is in the ``with`` block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._enabled = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._enabled:
                gc.enable()


_PAUSED = _Collector()


class _Uncollected(io.RawIOBase):
    """A file for reading, during whose reads no garbage is collected."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self._source = source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._source.seek(offset, whence))

    def tell(self) -> int:
        return int(self._source.tell())

    def readinto(self, buffer: Any, /) -> int:
        with _PAUSED:
            return int(self._source.readinto(buffer))


def _lock_error(error: BaseException) -> int | None:
    """Return the number of the error that locking a file ended with; None where something else went wrong."""
    match = re.search(r"unable to lock file.*?errno = (\d+)", str(error))
    return int(match[1]) if match else None


def _is_flagged(error: BaseException) -> bool:
    """Whether the file's own flags say that it is open for writing."""
    return "already open for" in str(error)


def _open_local(path: str) -> tuple[Any, tuple[str, ...]]:
    try:
        return h5py.File(path, "r"), ()
    except OSError as error:
        number, first = _lock_error(error), error
        if number is None and not _is_flagged(error):
            raise
    remarks = (_WRITING,) if number in _LOCK_ERRORS else ()
    if number is not None:
        try:
            return h5py.File(path, "r", locking=False), remarks
        except OSError as error:
            if _lock_error(error) is not None:
                raise InputError(
                    path,
                    "is locked by another process" if remarks else "cannot be locked on this file system",
                    "HDF5_USE_FILE_LOCKING in the environment asks for locks: unset it, or wait until it is closed",
                ) from first
            if not _is_flagged(error):
                if not remarks:
                    raise
                raise InputError(
                    path, "is open for writing in another process, and not complete", "wait until it is closed"
                ) from error
    try:
        return h5py.File(path, "r", locking=False, swmr=True), (_WRITING,)
    except OSError as error:
        raise InputError(
            path,
            "is open for writing in another process, or was not closed by the one that wrote it",
            "wait until it is closed; after a crash, `h5clear -s` clears its flags, and the last writes are lost",
        ) from error


@contextmanager
def open_hdf5(path: str) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Open an HDF5 file for reading; whatever HDF5 finds wrong with it is one line.

    Parameters
    ----------
    path : str
        Path or URL.

    Yields
    ------
    file : h5py.File
    remarks : tuple of str
        What a user should know of how it was opened.

    Raises
    ------
    InputError
        Damaged, locked, incomplete, or compressed by what is not installed.
    """
    remarks: tuple[str, ...] = ()
    try:
        if is_url(path):
            with open_url(path) as source, h5py.File(_Uncollected(source), "r") as file:
                yield file, ()
        else:
            file, remarks = _open_local(path)
            with file:
                yield file, remarks
    except InputError:
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, KeyError or ValueError for a damaged file
        input_error = network_error(path, error)
        if input_error is not None:
            raise input_error from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "required filter" in str(error):
            raise InputError(
                path,
                f"is compressed by a filter that is not installed ({reason})",
                "rewrite it with gzip, for example by `h5repack -f GZIP=4`",
            ) from error
        cut = "truncated" in reason
        problem = "is truncated" if cut else f"cannot be read as HDF5 ({reason})"
        remedy = "wait until its writer has closed it" if remarks else "copy or download it again"
        raise InputError(path, problem, remedy) from error


def unwritten(dataset: Any) -> bool:
    """Whether some of a dataset was never written, and would be read as its fill value.

    Parameters
    ----------
    dataset : h5py.Dataset

    Returns
    -------
    bool
    """
    if not dataset.size or dataset.is_virtual or dataset.external:
        return False
    return bool(dataset.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED)


def check_stored(path: str, dataset: Any) -> None:
    """Refuse a dataset some of whose values are in no file: HDF5 reads them as its fill value.

    Parameters
    ----------
    path : str
        The file.
    dataset : h5py.Dataset

    Raises
    ------
    InputError
        Parts that were never written, or files of a virtual or external dataset that are missing.
    """
    name = dataset.name
    if unwritten(dataset):
        raise InputError(
            path, f"holds only part of '{name}'", "its writer did not finish, or it is damaged: write or copy it again"
        )
    if dataset.is_virtual:
        sources = dataset.virtual_sources()
        for mapping in sources:
            place = _place(path, mapping.file_name)
            # '%b' stands for the numbers of as many files as there are
            if mapping.file_name != "." and "%b" not in mapping.file_name and not place.is_file():
                raise InputError(path, f"'{name}' is made of other files, and {place} is missing", "copy it, too")
            if mapping.file_name != "." and "%b" not in mapping.file_name:
                with open_hdf5(str(place)) as (source, _):
                    if mapping.dset_name not in source:
                        raise InputError(
                            str(place), f"holds no '{mapping.dset_name}', of which {path} is made", "copy it again"
                        )
                    check_stored(str(place), source[mapping.dset_name])
        if sum(mapping.vspace.get_select_npoints() for mapping in sources) < dataset.size and not any(
            "%b" in mapping.file_name for mapping in sources
        ):
            raise InputError(path, f"some of '{name}' is in none of the files that it is made of", "write it again")
    if dataset.external:
        available = 0
        for file_name, offset, size in dataset.external:
            place = Path(file_name)
            if not place.is_file():
                raise InputError(path, f"'{name}' lies in {place}, which is missing", "copy it, too")
            available += max(0, min(size, place.stat().st_size - offset))
        if available < dataset.size * dataset.dtype.itemsize:
            raise InputError(path, f"'{name}' lies in other files, which are too short for it", "copy them again")


def _place(path: str, file_name: str) -> Path:
    """Return where HDF5 looks for a file of a virtual dataset: beside the file, then in the working directory."""
    prefix = os.environ.get("HDF5_VDS_PREFIX", "")
    folder = Path(prefix.replace("${ORIGIN}", str(Path(path).parent))) if prefix else Path(path).parent
    in_folder = folder / file_name
    return in_folder if in_folder.is_file() or not Path(file_name).is_file() else Path(file_name)
