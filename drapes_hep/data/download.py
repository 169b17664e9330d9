"""Public samples from Zenodo: what a record holds, and files that arrive whole, verified and resumable.

Names, sizes, checksums and addresses of files are read from the record when they are needed; only the records' numbers
stand here. pooch holds the registry, compares checksums and puts a file in its place; what it lacks, going on with a
part of a file by HTTP range requests, is :class:`ResumingDownloader`.
"""

from __future__ import annotations

import difflib
import fcntl
import fnmatch
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any

from drapes_hep.errors import ConfigError, DrapesError
from drapes_hep.progress import Reporter
from drapes_hep.remote import TRANSIENT, UnreachableError, longest_wait, next_wait, retried, retry_after

__all__ = [
    "KINDS",
    "SAMPLES",
    "RemoteFile",
    "ResumingDownloader",
    "Sample",
    "choose",
    "fetch",
    "list_files",
    "size_text",
]

API = "https://zenodo.org/api/records"
"""Where records are described, as JSON."""

KINDS = ("features", "raw", "labels", "all")
"""Groups of files that can be selected by one name."""

_TIMEOUT = (15.0, 60.0)
"""Seconds to connect, and without a byte."""
_ATTEMPTS = 5
"""Failures in a row, none of which brought a byte, after which a download is given up."""
_BLOCK = 1 << 14
"""Bytes asked for at once: what arrived of a block before the connection broke is lost."""


@dataclass(frozen=True)
class Sample:
    """A public sample: one record.

    Parameters
    ----------
    name : str
        What the command line calls it.
    record : int
        Its number at Zenodo.
    title : str
        What it is.
    """

    name: str
    record: int
    title: str

    @property
    def doi(self) -> str:
        """The record's DOI."""
        return f"10.5281/zenodo.{self.record}"

    @property
    def page(self) -> str:
        """The record's page, for a browser."""
        return f"https://zenodo.org/records/{self.record}"


SAMPLES: Mapping[str, Sample] = MappingProxyType(
    {
        sample.name: sample
        for sample in (
            Sample("lhco-rd", 4536377, "LHC Olympics 2020 R&D dataset, with labels"),
            Sample("lhco-blackboxes", 4536624, "LHC Olympics 2020 black boxes, their labels, and simulated background"),
            Sample("lhco-extra-qcd", 8370758, "more background like the R&D dataset's, in its signal region"),
        )
    }
)
"""Known samples by name."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a record, as the record describes it.

    Parameters
    ----------
    name : str
        Without any folder.
    size : int
        Bytes.
    checksum : str
        ``algorithm:hexadecimal digits``.
    url : str
        Where it is.
    """

    name: str
    size: int
    checksum: str
    url: str

    @property
    def kind(self) -> str:
        """One of :data:`KINDS` by the record's habits of naming, or ``other``."""
        if self.name.endswith(".masterkey"):
            return "labels"
        if not self.name.endswith((".h5", ".hdf5")):
            return "other"
        # "4vecs_and_features" holds all particles too
        return "features" if "features" in self.name and "4vecs" not in self.name else "raw"


def size_text(size: int) -> str:
    """Write a number of bytes in decimal units, as disks and records do."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value / 1000:.3g} TB"


def list_files(sample: Sample) -> tuple[RemoteFile, ...]:
    """Ask the record which files it holds.

    Parameters
    ----------
    sample : Sample
        One of :data:`SAMPLES`.

    Returns
    -------
    tuple of RemoteFile
        By name.

    Raises
    ------
    DrapesError
        No network, an answer that is not a description of a record, no checksums.
    """
    url = f"{API}/{sample.record}"
    response = retried(lambda: _ask(sample, url))
    try:
        return _parse(response.json()["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise DrapesError(
            f"{sample.name}: {url} does not describe a record's files as expected ({type(error).__name__}: {error}); "
            f"take the files from {sample.page}, and upgrade drapes-hep"
        ) from error


def _ask(sample: Sample, url: str) -> Any:
    """Ask once; what may pass is an UnreachableError."""
    import requests

    try:
        response = requests.get(url, timeout=_TIMEOUT, headers=_headers())
    except requests.RequestException as error:
        raise UnreachableError(
            sample.name,
            f"{url} cannot be reached ({_cause(error)})",
            f"check the network, or take the files from {sample.page} on a machine that has one",
        ) from error
    if response.status_code == 200:
        return response
    answer = f"{url} answers {response.status_code} {response.reason}"
    if response.status_code not in TRANSIENT:
        raise DrapesError(f"{sample.name}: {answer}; try again later, or see {sample.page}")
    busy = UnreachableError(sample.name, answer, f"try again later, or see {sample.page}")
    busy.wait = retry_after(response.headers)
    raise busy


def _parse(entries: Any) -> tuple[RemoteFile, ...]:
    files = []
    for entry in entries:
        name, checksum, url = str(entry["key"]), str(entry["checksum"]), str(entry["links"]["self"])
        # a name is written below the user's folder, and an address is opened: neither is taken on trust
        if PurePosixPath(name).name != name or name.startswith("."):
            raise ValueError(f"file name '{name}'")
        if not url.startswith(("https://", "http://")):
            raise ValueError(f"address '{url}'")
        algorithm, _, digits = checksum.partition(":")
        if algorithm not in hashlib.algorithms_available or not digits:
            raise ValueError(f"checksum '{checksum}'")
        files.append(RemoteFile(name, int(entry["size"]), checksum, url))
    if not files:
        raise ValueError("no files")
    return tuple(sorted(files, key=lambda file: file.name))


def choose(sample: Sample, files: Sequence[RemoteFile], words: Sequence[str]) -> tuple[RemoteFile, ...]:
    """Pick files by kind, name or pattern.

    Parameters
    ----------
    sample : Sample
        For messages.
    files : sequence of RemoteFile
        From :func:`list_files`.
    words : sequence of str
        Words of :data:`KINDS`, names, or patterns with ``*``.

    Returns
    -------
    tuple of RemoteFile
        Each once, in the order of ``files``.

    Raises
    ------
    ConfigError
        A word that picks nothing.
    """
    chosen: set[str] = set()
    for word in words:
        picked = {file.name for file in files if word in ("all", file.kind) or fnmatch.fnmatchcase(file.name, word)}
        if not picked:
            close = difflib.get_close_matches(word, [*KINDS, *(file.name for file in files)], n=1, cutoff=0.6)
            hint = (
                f"did you mean '{close[0]}'?"
                if close and close[0] != word
                else "it has " + ", ".join(f"{file.name} ({file.kind})" for file in files)
            )
            raise ConfigError(f"{sample.name}: --files {word} matches no file of record {sample.record}; {hint}")
        chosen |= picked
    return tuple(file for file in files if file.name in chosen)


def fetch(files: Sequence[RemoteFile], folder: str | Path, reporter: Reporter | None = None) -> list[Path]:
    """Download files that are not here yet.

    Parameters
    ----------
    files : sequence of RemoteFile
        From :func:`choose`.
    folder : str or Path
        Made where it is missing.
    reporter : Reporter, optional
        Gets one line per file and a bar; silent by default.

    Returns
    -------
    list of Path
        One a file, each with the record's checksum.

    Raises
    ------
    DrapesError
        Too little space, a broken line, a refusal, a wrong checksum, a different file of that name, a folder that
        cannot be written. A partial file is kept as ``NAME.part`` to resume from.
    """
    import pooch

    reporter, folder = reporter or Reporter(quiet=True), Path(folder)
    pooch.get_logger().setLevel("CRITICAL")  # its messages repeat ours
    store = pooch.create(
        path=folder.absolute(),
        base_url="",
        registry={file.name: file.checksum for file in files},
        urls={file.name: file.url for file in files},
        allow_updates=False,
    )
    try:
        missing = [file for file in files if not _verified(folder / file.name, file)]
        _check_space(folder, missing)
        for file in files:
            if file in missing:
                _fetch(store, file, folder / file.name, reporter)
            else:
                reporter.say(f"{folder / file.name}: already downloaded, checksum verified")
    except OSError as error:
        where = error.filename or folder
        raise DrapesError(f"{where}: cannot be written ({error.strerror or error})") from error
    return [folder / file.name for file in files]


def _fetch(store: Any, file: RemoteFile, target: Path, reporter: Reporter) -> None:
    begin = _length(_part(target))
    if begin:
        reporter.say(f"{target}: resuming at {size_text(begin)} of {size_text(file.size)}")
    try:
        with reporter.bar(file.name, file.size, unit="bytes") as update:
            store.fetch(file.name, downloader=ResumingDownloader(_part(target), file.size, update))
    except ValueError as error:  # what pooch raises for a checksum that does not match
        raise DrapesError(
            f"{file.url}: the download does not match the checksum {file.checksum} of the record and was deleted; run"
            " the same command again"
        ) from error
    reporter.say(f"{target}: {size_text(file.size)}, checksum verified")


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _verified(target: Path, file: RemoteFile) -> bool:
    """Whether the file is here; another file of its name is the user's, and never replaced."""
    import pooch

    if not target.exists():
        return False
    algorithm, _, digits = file.checksum.partition(":")
    if (
        target.is_file()
        and target.stat().st_size == file.size
        and pooch.file_hash(str(target), alg=algorithm).lower() == digits.lower()
    ):
        return True
    raise DrapesError(f"{target}: exists and is not the record's file of that name; move it away, or choose another -o")


def _check_space(folder: Path, missing: Sequence[RemoteFile]) -> None:
    need = sum(max(file.size - _length(_part(folder / file.name)), 0) for file in missing)
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise DrapesError(
            f"{folder}: {size_text(need)} are needed but {size_text(free)} are free; free some space, choose fewer"
            " --files, or another -o"
        )


def _headers() -> dict[str, str]:
    from drapes_hep.version import __version__

    # not compressed: a range of a compressed stream is not a range of the file
    return {"User-Agent": f"drapes-hep/{__version__}", "Accept-Encoding": "identity"}


def _cause(error: BaseException) -> str:
    """The innermost reason of a network error: the outer ones repeat addresses and object names."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:120]


class _Interruption(Exception):
    """A failure that may pass, after so many seconds as the server asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class ResumingDownloader:
    """A pooch downloader that resumes where an earlier one stopped.

    Bytes are appended to a part next to the file's place. Where the connection breaks, a range request asks for the
    rest, in this call or in a later one; a server without range requests starts again. When all bytes are there, the
    part becomes the file that pooch verifies and moves to its place.

    Parameters
    ----------
    part : Path
        Where bytes are gathered.
    size : int
        Bytes of the whole file.
    report : callable, optional
        Called with the number of bytes received.
    """

    def __init__(self, part: Path, size: int, report: Callable[[int], None] = lambda _: None) -> None:
        self.part, self.size, self.report = part, size, report

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:  # noqa: ARG002  pooch's protocol
        """Download ``url`` to ``output_file``; see the class for what is raised."""
        # pooch has made this file empty: killed in the middle, we would leave it behind
        Path(output_file).unlink(missing_ok=True)
        with self._locked() as stream:
            failures = 0
            while (have := stream.seek(0, os.SEEK_END)) != self.size:
                if have > self.size:
                    stream.truncate(0)
                    continue
                requested_wait = None
                try:
                    self._continue(url, stream, have)
                    reason = "the connection was closed early"
                except _Interruption as error:
                    reason, requested_wait = str(error), error.wait
                stream.flush()
                now = stream.seek(0, os.SEEK_END)
                if now == self.size:
                    break
                failures = 0 if now > have else failures + 1
                wait = next_wait(max(failures, 1), requested_wait)
                if failures >= _ATTEMPTS or wait > longest_wait():
                    raise DrapesError(
                        f"{url}: stopped at {size_text(now)} of {size_text(self.size)} ({reason}); run the same "
                        "command again to resume"
                    )
                time.sleep(wait)
            os.fsync(stream.fileno())
            self.part.replace(output_file)

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        with self.part.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DrapesError(f"{self.part}: another download is writing this file; wait for it") from None
            yield stream

    def _continue(self, url: str, stream: IO[bytes], have: int) -> None:
        """Ask for the rest and append what comes."""
        import requests

        headers = _headers() | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with requests.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as response:
                self._check_status(url, response)
                if have and not _continues(response, have):
                    stream.truncate(0)
                    have = 0
                for block in response.iter_content(_BLOCK):
                    have += len(block)
                    if have > self.size:
                        self._refuse(url, "sends more bytes than the record states")
                    stream.write(block)
                    self.report(have)
        except requests.exceptions.ChunkedEncodingError as error:
            raise _Interruption("the connection broke") from error
        except requests.RequestException as error:
            raise _Interruption(_cause(error)) from error

    def _check_status(self, url: str, response: Any) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status in TRANSIENT:
            requested_wait = retry_after(response.headers)
            raise _Interruption(f"the server answers {status} {response.reason}", requested_wait)
        if status == 416:  # the server has no byte at the position to resume from
            self._refuse(url, "has fewer bytes than the record states")
        self._discard_empty()
        raise DrapesError(f"{url}: the server answers {status} {response.reason}; see the record's page")

    def _refuse(self, url: str, problem: str) -> None:
        self.part.unlink(missing_ok=True)
        raise DrapesError(f"{url}: {problem}; the partial file was deleted, run the same command again")

    def _discard_empty(self) -> None:
        if _length(self.part) == 0:
            self.part.unlink(missing_ok=True)


def _continues(response: Any, have: int) -> bool:
    """Whether an answer begins at the byte that was asked for."""
    begin = str(response.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    return response.status_code == 206 and begin == str(have)
