"""Files behind URLs: opened through fsspec, in parts, with one line for whatever the network does.

What may pass is tried again: a connection that cannot be made or breaks off, a timeout, an answer that is too short, a
server that is busy. Waits grow from one attempt to the next and have a random part, so that many workers do not come
back at the same moment. What will not pass (no such file, no permission, no parts of files) is an error at once.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import io
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from drapes_hep.errors import InputError, counted
from drapes_hep.files import file_hash

__all__ = [
    "TRANSIENT",
    "Alternatives",
    "NotThereError",
    "Patience",
    "UnreachableError",
    "expand_url",
    "file_version",
    "filesystem_options",
    "fingerprint",
    "first_of",
    "is_url",
    "longest_wait",
    "network_error",
    "next_wait",
    "open_url",
    "retried",
    "retry_after",
    "sampled_hash",
    "sibling",
    "url_stem",
]

R = TypeVar("R")

_LOG = logging.getLogger(__name__)
_JITTER = random.SystemRandom()
"""Of the operating system: waits must not advance a generator that decides a result."""

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of HTTP that may pass: the server is busy, restarts, or waits for another one."""

_XROOTD_REFUSED = {3010, 3030}
_XROOTD_MISSING = {3011}
_XROOTD_TRANSIENT = {3003, 3005, 3007, 3008, 3012, 3014, 3017, 3020, 3024, 3033, 3034, 3035}
"""XRootD's numbers for: locked, file system, input and output, memory, server, no server, cancelled, in progress,
overloaded, too many errors, and two timeouts."""
_XROOTD_CLIENT = re.compile(
    r"operation expired|socket (?:error|timeout|disconnected)|(?:connection|stream|auth\w*) (?:error|timeout)"
    r"|operation interrupted|invalid session|redirect limit|stream disconnect",
    re.IGNORECASE,
)
"""What XRootD's client says of a connection."""


@dataclass(frozen=True)
class Patience:
    """How often and how long to try again.

    Parameters
    ----------
    attempts : int
        Of one operation, the first included.
    first : float
        Seconds before the second attempt; doubled before each further one.
    longest : float
        Seconds of one wait.
    total : float
        Seconds of all waits of one operation.
    loud : float
        Seconds of a wait from which on it is announced.
    """

    attempts: int = 6
    first: float = 1.0
    longest: float = 30.0
    total: float = 120.0
    loud: float = 5.0


PATIENCE = Patience()
"""The rule for all that reads from URLs."""

_ENDS = 1 << 16
_SAMPLES = 32
"""Blocks of 64 KiB, evenly spread between the two at the ends: 2 MiB of a file, or all of a smaller one."""
_LOCAL = {"file", "local", "memory"}
"""Schemes whose bytes cost nothing to read."""
_VALIDATORS = {
    *("etag", "content-md5", "md5hash", "digest", "checksum"),
    *("last-modified", "last_modified", "lastmodified", "modified", "updated", "mtime"),
}
"""What servers, in fsspec's words, say of a file's content without sending it."""
_BLOCK = 1 << 20
_CONNECT, _SILENCE = 15.0, 60.0
"""Seconds to connect, and without a byte."""
_NO_RANGES = ("range requests", "not support seeking", "Cannot seek streaming")


class NotThereError(InputError):
    """The server answers, and has no such file."""


class UnreachableError(InputError):
    """A failure that may pass.

    Attributes
    ----------
    wait : float or None
        Seconds that the server asks to wait.
    """

    wait: float | None = None


class Alternatives(str):
    """Several places of one file, in the order in which they are tried; as text, the first.

    Parameters
    ----------
    places : sequence of str
        Paths and URLs, at least one.
    """

    places: tuple[str, ...]

    def __new__(cls, places: Sequence[str]) -> Alternatives:
        """Make one; see the class."""
        path = super().__new__(cls, str(places[0]))
        path.places = tuple(dict.fromkeys(map(str, places)))
        return path

    def __getnewargs__(self) -> tuple[tuple[str, ...]]:  # type: ignore[override]  # what __new__ takes
        return (self.places,)


def is_url(path: object) -> bool:
    """Whether a path is a URL, or stands for several places of which one may be.

    Parameters
    ----------
    path : object
        Compared by its text.

    Returns
    -------
    bool
    """
    return isinstance(path, Alternatives) or "://" in str(path)


def url_stem(url: str) -> str:
    """Return the name of what a URL names, without folder, last suffix and query.

    Parameters
    ----------
    url : str
        The URL.

    Returns
    -------
    str
    """
    return PurePosixPath(urlsplit(url).path).stem


def sibling(url: str, suffix: str) -> str:
    """Return the URL of a file beside another, of the same name but for the last suffix.

    Parameters
    ----------
    url : str
        The other's; its query (a token, say) is kept.
    suffix : str
        With the dot.

    Returns
    -------
    str
    """
    # by text: what urlunsplit makes of schemes that it does not know loses slashes
    end = min((place for mark in "?#" if (place := url.find(mark)) >= 0), default=len(url))
    folder, slash, name = url[:end].rpartition("/")
    return f"{folder}{slash}{PurePosixPath(name).stem}{suffix}{url[end:]}"


def network_error(url: str, error: BaseException) -> InputError | None:
    """Describe a failure of the network; None for any other error.

    Parameters
    ----------
    url : str
        What was read.
    error : BaseException
        As any library raised it; its causes are looked at, too.

    Returns
    -------
    InputError or None
    """
    if not is_url(url):
        return None
    # the innermost says most: fsspec calls whatever happens while it opens a file "not found"
    for cause in reversed(_causes(error)):
        answer = _refusal(url, cause) or _broken(url, cause) or _xrootd_error(url, cause)
        if answer is not None:
            return answer
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what it came from, outermost first."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _refusal(url: str, error: BaseException) -> InputError | None:
    """Word what a server answers, and what was worded before."""
    status = getattr(error, "status", None)
    if isinstance(error, InputError):
        return error
    if status in (401, 403) or isinstance(error, PermissionError):
        return InputError(url, "the server refuses it", "it needs a login or a token: download it yourself")
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        where = "" if url.startswith(("file:", "local:")) else " on the server"
        return NotThereError(url, f"no such file{where}", "check the address")
    if any(words in str(error) for words in _NO_RANGES):
        return InputError(url, "the server does not serve parts of files", "download it first")
    if type(error).__module__.startswith("aiohttp") and isinstance(status, int) and status >= 400:
        kind = UnreachableError if status in TRANSIENT else InputError
        answer = kind(url, f"the server answers with status {status}", "try again later")
        if isinstance(answer, UnreachableError):
            answer.wait = retry_after(getattr(error, "headers", None))
        return answer
    return None


def _broken(url: str, error: BaseException) -> InputError | None:
    """Word why there is no whole answer."""
    name = type(error).__name__
    if "CertificateError" in name or "SSLCertVerificationError" in name:
        return InputError(url, "the server's certificate cannot be verified", "check the address")
    if name in {"InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError", "TooManyRedirects"}:
        return InputError(url, f"the address leads nowhere ({name})", "check the address")
    broken = (ConnectionError, TimeoutError, http.client.HTTPException)
    if isinstance(error, broken) or type(error).__module__.startswith("aiohttp") or _is_truncated(error):
        problem = f"the server cannot be reached or broke off ({name})"
        return UnreachableError(url, problem, "try again, or download it first")
    return None


def _is_truncated(error: BaseException) -> bool:
    """Whether uproot got fewer bytes than it asked for; that the file is cut short is told by its header."""
    return isinstance(error, OSError) and str(error).startswith("expected Chunk of length")


def _xrootd_error(url: str, error: BaseException) -> InputError | None:
    """Describe an error of XRootD, by its protocol's number or its client's text."""
    if not url.startswith(("root:", "roots:", "xroot:", "xroots:")) or not isinstance(error, OSError):
        return None
    text = str(error)
    code = int(number[1]) if (number := re.search(r"\[(3\d\d\d)\]", text)) else None
    if code in _XROOTD_REFUSED:
        return InputError(url, "the server refuses it", "it needs a login or a token: download it yourself")
    if code in _XROOTD_MISSING:
        return NotThereError(url, "no such file on the server", "check the address")
    if code in _XROOTD_TRANSIENT or _XROOTD_CLIENT.search(text):
        reason = " ".join(text.split())[:100]
        return UnreachableError(url, f"the server cannot be reached or broke off ({reason})", "try again later")
    return None


def retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Return how long a server asks to wait.

    Parameters
    ----------
    headers : mapping or None
        Of its answer.

    Returns
    -------
    float or None
        Seconds, not below 0; None where it asks for nothing that can be understood.
    """
    text = str((headers or {}).get("Retry-After", "")).strip()
    if text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def next_wait(failures: int, requested: float | None = None) -> float:
    """Return how long to wait after some failures in a row.

    Parameters
    ----------
    failures : int
        At least 1.
    requested : float, optional
        Seconds that the server asked for.

    Returns
    -------
    float
        Seconds: between half and all of a length that doubles with each failure up to a bound; not less than the
        server wants.
    """
    length = min(PATIENCE.first * 2.0 ** min(failures - 1, 30), PATIENCE.longest)
    return max(length * _JITTER.uniform(0.5, 1.0), requested or 0.0)


def longest_wait() -> float:
    """Return the seconds that a wait may take, whatever a server asks for."""
    return PATIENCE.total


def retried(function: Callable[[], R], *, attempts: int | None = None) -> R:
    """Call what reads from a URL, again where the failure may pass.

    Parameters
    ----------
    function : callable
        Must be repeatable, and open what it reads anew.
    attempts : int, optional
        At most; by default what :data:`PATIENCE` says.

    Returns
    -------
    object
        What it returned.

    Raises
    ------
    UnreachableError
        The last failure, with the number of attempts and their time; also where the server asks for more time than
        there is.
    """
    attempts_allowed, waited, begin, failures = attempts or PATIENCE.attempts, 0.0, time.monotonic(), 0
    while True:
        try:
            return function()
        except UnreachableError as error:
            failures += 1
            wait = next_wait(failures, error.wait)
            if failures >= attempts_allowed or waited + wait > PATIENCE.total:
                if attempts == 1:
                    raise
                times = "1 attempt" if failures == 1 else f"{failures} attempts"
                asks = f", it asks to wait {error.wait:.0f} s" if error.wait else ""
                problem = f"{error.problem} ({times} in {time.monotonic() - begin:.0f} s{asks})"
                raise UnreachableError(error.path, problem, error.remedy) from error
            if wait >= PATIENCE.loud:
                _LOG.warning(
                    "%s: %s; attempt %d of %d in %.0f s",
                    error.path,
                    error.problem,
                    failures + 1,
                    attempts_allowed,
                    wait,
                )
        waited += wait
        time.sleep(wait)


def filesystem_options(url: str) -> dict[str, Any]:
    """Return what fsspec is to open a URL with.

    Parameters
    ----------
    url : str
        Path or URL.

    Returns
    -------
    dict
        For HTTP, limits on the time to connect and on the time without a byte in place of one on the whole transfer,
        which a large read over a slow line would exceed.
    """
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)}}


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = urlsplit(url).scheme
    if scheme in {"root", "roots", "xroot"} and importlib.util.find_spec("fsspec_xrootd") is None:
        raise InputError(url, "needs XRootD, which is not installed", "pip install 'drapes-hep[xrootd]'")
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **filesystem_options(url))
    except (ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(url, f"'{scheme}://' cannot be opened ({reason})", "use root://, https:// or a path") from None
    return filesystem, path


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Raise a failure of the network inside the block as an :class:`InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each kind of server has its own
        input_error = network_error(url, error)
        if input_error is not None:
            raise input_error from error
        raise


@contextmanager
def open_url(url: str, block: int = _BLOCK) -> Iterator[Any]:
    """Open what a URL names, as a file that can be read anywhere.

    Parameters
    ----------
    url : str
        Of any scheme that fsspec knows.
    block : int
        Bytes that are asked for at a time, at least.

    Yields
    ------
    file object
        Binary.

    Raises
    ------
    InputError
        Missing, refused, unreachable, or served only from its beginning.
    """
    with _network_errors(url):
        filesystem, path = _filesystem(url)
        with filesystem.open(path, "rb", block_size=block) as file:
            yield _Exact(file)


class _Exact(io.RawIOBase):
    """A file whose reads are as long as they should be, or an error: a server may end an answer early, unsaid."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file

    @property
    def size(self) -> int | None:
        """Bytes of the file, None where the server does not say."""
        size: int | None = getattr(self._file, "size", None)
        if size is None and hasattr(self._file, "getbuffer"):
            size = len(self._file.getbuffer())  # of fsspec's memory
        return size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int | None = -1, /) -> bytes:
        place = self.tell()
        content = bytes(self._file.read(-1 if size is None else size))
        if self.size is not None:
            remaining = max(self.size - place, 0)
            due = remaining if size is None or size < 0 else min(size, remaining)
            if len(content) < due:
                raise ConnectionError(f"{len(content)} of {due} bytes came")
        return content

    def readinto(self, buffer: Any, /) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def fingerprint(path: str | Path) -> str:
    """Whether a file is the one that was read before.

    Parameters
    ----------
    path : str or Path
        Path or URL.

    Returns
    -------
    str
        SHA-256 of a file's bytes, also of ``file://`` and ``memory://``. Nobody wants to download other files in order
        to see that they are the same: where the server tells an ETag, a checksum or the time of the last change,
        ``ends:`` and the SHA-256 of these, the size, and the first and last 64 KiB (the first hold the identifier that
        ROOT gives each file it writes, the last the footer of Parquet). Where it tells nothing, :func:`sampled_hash`.

    Raises
    ------
    InputError
        A URL that cannot be read, or whose size the server does not tell.
    """
    if isinstance(path, Alternatives) or not is_url(path) or urlsplit(str(path)).scheme in _LOCAL:
        return sampled_hash(path)

    def ends() -> str | None:
        validators, _ = _validators(str(path))
        return f"ends:{_blocks_hash(str(path), 0, validators)}" if validators else None

    return retried(ends) or sampled_hash(path)


def file_version(path: str | Path) -> str:
    """Return what tells one content behind a URL from a later one, without reading it.

    Parameters
    ----------
    path : str or Path
        Path or URL.

    Returns
    -------
    str
        A hash of the size and of what the server says of the content (ETag, checksum, time of the last change). Empty
        for what is no URL.

    Raises
    ------
    InputError
        As for :func:`open_url`. It is tried once: wrap it in :func:`retried`.
    """
    if not is_url(path):
        return ""
    validators, size = _validators(str(path))
    return hashlib.sha256(json.dumps([size, *validators]).encode()).hexdigest()


def sampled_hash(path: str | Path) -> str:
    """Hash what a file holds, whatever its server says of it: two copies of one file have the same.

    Parameters
    ----------
    path : str or Path
        Path or URL.

    Returns
    -------
    str
        SHA-256 of a file's bytes, also of ``file://`` and ``memory://``. Of another URL, ``blocks:`` and the SHA-256 of
        its size, its first and last 64 KiB and 32 blocks of 64 KiB that are evenly spread between these: of files up to
        2.1 MiB that is every byte. A change that keeps the size and falls between the blocks of a larger one is not
        seen. Of :class:`Alternatives` the same, of the first place that answers, local ones included.

    Raises
    ------
    InputError
        As for :func:`fingerprint`.
    """
    if isinstance(path, Alternatives):
        return first_of(path, lambda place: f"blocks:{_blocks_hash(_as_url(place), _SAMPLES)}")
    if not is_url(path):
        return file_hash(path)
    if urlsplit(str(path)).scheme in _LOCAL:
        with open_url(str(path)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return f"blocks:{retried(lambda: _blocks_hash(str(path), _SAMPLES))}"


def _as_url(place: str) -> str:
    return place if is_url(place) else Path(place).absolute().as_uri()


def first_of(path: str, function: Callable[[str], R], attempts: int | None = None) -> R:
    """Call a function for the places of a file, one after the other, until it succeeds.

    Parameters
    ----------
    path : str
        :class:`Alternatives`, or one place.
    function : callable
        Of a place; must be repeatable.
    attempts : int, optional
        At each place, as for :func:`retried`; by default half of the usual where there is another place.

    Returns
    -------
    object

    Raises
    ------
    InputError
        What went wrong at the first place, and at how many others something did.
    """
    places = path.places if isinstance(path, Alternatives) else (str(path),)
    first: InputError | None = None
    for number, place in enumerate(places, 1):
        fewer = max(PATIENCE.attempts // 2, 1) if number < len(places) else None
        try:
            return retried(lambda place=place: function(place), attempts=attempts or fewer)  # type: ignore[misc]
        except InputError as error:
            first = first or error
            if number < len(places):
                _LOG.warning("%s: %s; taking %s", place, error.problem, places[number])
        except OSError as error:  # a local place
            if len(places) == 1:
                raise
            first = first or InputError(place, f"cannot be read ({error.strerror or error})", "check the path")
    assert first is not None
    if len(places) == 1:
        raise first
    others = counted(len(places) - 1, "other place")
    raise type(first)(first.path, f"{first.problem}, and so did {others}", first.remedy)


def _validators(url: str) -> tuple[list[tuple[str, str]], int | None]:
    """Ask the server what it says of the content, and the size."""
    with _network_errors(url):
        filesystem, path = _filesystem(url)
        info = filesystem.info(path)
    validators = sorted((name, str(value)) for name, value in info.items() if name.lower() in _VALIDATORS and value)
    return validators, info.get("size")


def _blocks_hash(url: str, between: int, validators: Sequence[tuple[str, str]] = ()) -> str:
    """Hash the size, what the server told, both ends and some blocks between."""
    with open_url(url, _ENDS) as file:
        size = getattr(file, "size", None)
        if size is None:
            raise InputError(url, "the server does not say how large it is", "download it first")
        digest = hashlib.sha256(json.dumps([size, *validators]).encode())
        last = max(0, size - _ENDS)
        position = 0
        for i in range(between + 2):
            # never back: blocks of a small file touch or overlap
            position = max(position, last * i // (between + 1))
            file.seek(position)
            block = file.read(min(last * i // (between + 1) + _ENDS, size) - position)
            digest.update(block)
            position += len(block)
    return digest.hexdigest()


def expand_url(url: str) -> list[str]:
    """Turn a URL with ``*`` into those that it names, where its kind of server can list files.

    Parameters
    ----------
    url : str
        The URL. ``http://`` and ``https://`` list nothing and are taken as they are.

    Returns
    -------
    list of str
        Sorted.

    Raises
    ------
    InputError
        A pattern that matches nothing, or a server that cannot be asked.
    """
    if "*" not in url or urlsplit(url).scheme in {"http", "https"}:
        return [url]
    filesystem, path = _filesystem(url)

    def listed() -> list[str]:
        try:
            return sorted(filesystem.unstrip_protocol(place) for place in filesystem.glob(path))
        except Exception as error:  # as above
            raise network_error(url, error) or InputError(
                url, f"cannot be listed ({type(error).__name__})", "name the files one by one"
            ) from error

    paths = retried(listed)
    if not paths:
        raise InputError(url, "no file matches this pattern", "check the folder and the suffix")
    return paths
