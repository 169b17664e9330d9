"""Files behind URLs: opened through fsspec, in parts, with one line for whatever the network does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from drapes_hep.errors import InputError
from drapes_hep.files import file_hash

__all__ = [
    "NotThereError",
    "expand_url",
    "fingerprint",
    "is_url",
    "one_line",
    "open_url",
    "sampled_hash",
    "sibling",
    "url_stem",
]

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
_NO_RANGES = ("range requests", "not support seeking", "Cannot seek streaming")


class NotThereError(InputError):
    """The server answers, and has no such file."""


def is_url(path: object) -> bool:
    """Tell a URL from a path.

    Parameters
    ----------
    path : object
        Compared by its text.

    Returns
    -------
    bool
    """
    return "://" in str(path)


def url_stem(url: str) -> str:
    """Give the name of what a URL names, without folder, last suffix and query.

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
    """Give the URL of a file beside another, of the same name but for the last suffix.

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


def one_line(url: str, error: BaseException) -> InputError | None:
    """Word what the network did; None where it was not the network.

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
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    # the innermost says most: fsspec calls whatever happens while it opens a file "not found"
    for one in reversed(chain):
        status = getattr(one, "status", None)
        if isinstance(one, InputError):
            return one
        if status in (401, 403) or isinstance(one, PermissionError):
            return InputError(url, "the server refuses it", "it needs a login or a token: download it yourself")
        if isinstance(one, FileNotFoundError) or status in (404, 410):
            return NotThereError(url, "no such file on the server", "check the address")
        if any(words in str(one) for words in _NO_RANGES):
            return InputError(url, "the server does not serve parts of files", "download it first")
        if type(one).__module__.startswith("aiohttp") and isinstance(status, int) and status >= 400:
            return InputError(url, f"the server answers with status {status}", "try again later")
        if isinstance(one, (ConnectionError, TimeoutError)) or type(one).__module__.startswith("aiohttp"):
            problem = f"the server cannot be reached or broke off ({type(one).__name__})"
            return InputError(url, problem, "try again, or download it first")
    return None


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = urlsplit(url).scheme
    if scheme in {"root", "roots", "xroot"} and importlib.util.find_spec("fsspec_xrootd") is None:
        raise InputError(url, "needs XRootD, which is not installed", "pip install 'drapes-hep[xrootd]'")
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(url, f"'{scheme}://' cannot be opened ({reason})", "use root://, https:// or a path") from None
    return filesystem, path


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn what the network does inside the block into its one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each kind of server has its own
        told = one_line(url, error)
        if told is not None:
            raise told from error
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
    with _told(url):
        filesystem, path = _filesystem(url)
        with filesystem.open(path, "rb", block_size=block) as file:
            yield file


def fingerprint(path: str | Path) -> str:
    """Tell whether a file is the one that was read before.

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
    if not is_url(path) or urlsplit(str(path)).scheme in _LOCAL:
        return sampled_hash(path)
    told = _validators(str(path))
    return f"ends:{_blocks_hash(str(path), 0, told)}" if told else sampled_hash(path)


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
        seen.

    Raises
    ------
    InputError
        As for :func:`fingerprint`.
    """
    if not is_url(path):
        return file_hash(path)
    if urlsplit(str(path)).scheme in _LOCAL:
        with open_url(str(path)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return f"blocks:{_blocks_hash(str(path), _SAMPLES)}"


def _validators(url: str) -> list[tuple[str, str]]:
    with _told(url):
        filesystem, path = _filesystem(url)
        info = filesystem.info(path)
    return sorted((name, str(value)) for name, value in info.items() if name.lower() in _VALIDATORS and value)


def _blocks_hash(url: str, between: int, told: Sequence[tuple[str, str]] = ()) -> str:
    """Hash the size, what the server told, both ends and some blocks between."""
    with open_url(url, _ENDS) as file:
        size = getattr(file, "size", None)
        if size is None:
            raise InputError(url, "the server does not say how large it is", "download it first")
        digest = hashlib.sha256(json.dumps([size, *told]).encode())
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
    try:
        found = sorted(filesystem.unstrip_protocol(one) for one in filesystem.glob(path))
    except Exception as error:  # as above
        raise one_line(url, error) or InputError(
            url, f"cannot be listed ({type(error).__name__})", "name the files one by one"
        ) from error
    if not found:
        raise InputError(url, "no file matches this pattern", "check the folder and the suffix")
    return found
