"""Files that a user's code reads: what else decides a chunk's result than the configuration and the events.

A processor may open a list of good runs, or import a user's module. While such code is loaded or runs, an audit
hook records what it opens. The record is of the whole process, for a module may hold what it read for an earlier chunk.
What no hook sees (files that a compiled library opens by itself, environment variables) is not in it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import stat
import sys
import sysconfig
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from drapes_hep.files import file_hash

__all__ = [
    "CHANGED",
    "FileHashes",
    "OpenedFiles",
    "all_unchanged",
    "changed",
    "current_hashes",
    "is_users_file",
    "join_hashes",
    "modules_of",
    "opened",
    "unwatched",
    "users_modules",
    "watched",
]

FileHashes = Mapping[str, str | None]
"""SHA-256 of files by absolute path; None for a file that was looked for in vain."""

_Version = tuple[int, int, int] | None
"""Inode, size and time of change; None where there is no file."""

_UNCLEAR = {
    "_thread.start_joinable_thread",
    "_thread.start_new_thread",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.listdir",
    "os.posix_spawn",
    "os.scandir",
    "os.spawn",
    "os.system",
    "pty.spawn",
    "socket.connect",
    "sqlite3.connect",
    "subprocess.Popen",
}
"""Events of code whose result may rest on more than the files that this thread opens."""

_PACKAGE = Path(__file__).resolve().parent
_STARTER = str(_PACKAGE / "starter") + os.sep
_LIBRARIES = tuple(
    str(Path(place).resolve()) + os.sep
    for place in {*sysconfig.get_paths().values(), str(_PACKAGE), "/proc", "/sys", "/dev"}
    if place not in {sys.prefix, sys.base_prefix}
)
_LOADED_BY_PATH = "_drapes_processor_"

_THREAD = threading.local()
_opened: dict[str, set[_Version]] = {}
_openers: dict[str, set[str]] = {}
"""Names of the modules whose code opened a file, by path."""
_modules: dict[str, tuple[Any, str, _Version]] = {}
_unclear: set[str] = set()


@functools.lru_cache(None)
def is_users_file(path: str) -> bool:
    """Whether a file is the user's: neither of this package nor installed."""
    place = os.path.realpath(path)
    if {"site-packages", "dist-packages"} & set(Path(place).parts):
        return False
    return place.startswith(_STARTER) or not place.startswith(_LIBRARIES)


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100  a link that is set again is another file: it must not be resolved


def _version(path: str) -> _Version:
    try:
        state = Path(path).stat()
    except OSError:
        return None
    return (state.st_ino, state.st_size, state.st_mtime_ns)


def _is_import() -> bool:
    """Whether Python's import system, and not the code that imports, does what an event tells of."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib") or f"{os.sep}importlib{os.sep}" in file:
            return True
        if frame.f_globals.get("__name__") == __name__ or (Path(file).is_absolute() and is_users_file(file)):
            return False
        frame = frame.f_back  # type: ignore[assignment]  # the last one has none
    return False


def _hook(event: str, details: tuple[Any, ...]) -> None:
    if not getattr(_THREAD, "watching", False):
        return
    if event == "open":
        _note_open(*details)
    elif event in _UNCLEAR and not _is_import():
        _unclear.add(event)


def _note_open(name: object, _: object, flags: int) -> None:
    if not isinstance(name, (str, bytes, os.PathLike)) or flags & os.O_ACCMODE == os.O_WRONLY:
        return
    path = _absolute(os.fsdecode(name))
    if path.endswith(".pyc"):
        with suppress(ValueError):  # a module without source
            path = importlib.util.source_from_cache(path)
    try:
        regular = stat.S_ISREG(Path(path).stat().st_mode)
    except OSError:
        regular = True  # looked for in vain: it may be there the next time
    if regular and path not in _THREAD.apart and is_users_file(path):
        _opened.setdefault(path, set()).add(_version(path))
        _openers.setdefault(path, set()).add(_running_module())


def _running_module() -> str:
    """Return the user's module whose code, or a library that it calls, runs just now."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name, file = str(frame.f_globals.get("__name__")), frame.f_code.co_filename
        # a class that travels by value keeps its module's name, and not always its file
        if name == "__main__" or name.startswith(_LOADED_BY_PATH) or (Path(file).is_absolute() and is_users_file(file)):
            return name
        frame = frame.f_back
    return ""


@functools.cache
def _install() -> None:
    """Install the hook, which cannot be removed: once a process."""
    sys.addaudithook(_hook)


@contextmanager
def watched(*apart: str) -> Iterator[None]:
    """Record what a user's code reads inside the block, in this thread.

    Parameters
    ----------
    *apart : str
        Files to leave out, such as the chunk's own.
    """
    _install()
    before = getattr(_THREAD, "watching", False), getattr(_THREAD, "apart", ())
    _THREAD.apart, _THREAD.watching = apart, True
    try:
        yield
    finally:
        _THREAD.watching, _THREAD.apart = before


@contextmanager
def unwatched() -> Iterator[None]:
    """Record nothing inside the block: what this package opens for a user's code is accounted for elsewhere."""
    before, _THREAD.watching = getattr(_THREAD, "watching", False), False
    try:
        yield
    finally:
        _THREAD.watching = before


def users_modules() -> Iterator[tuple[str, str]]:
    """Yield the names and files of the user's modules that this process has imported."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and is_users_file(file):
            yield name, file


def _note_modules() -> None:
    for name, file in users_modules():
        module = sys.modules[name]
        if name not in _modules or _modules[name][0] is not module:
            path = _absolute(file)
            _modules[name] = (module, path, _version(path))


@functools.lru_cache(4096)
def _hash_of(path: str, _: _Version) -> str:
    return file_hash(path)


def current_hashes() -> FileHashes | None:
    """Return what the user's code of this process has read; None where that cannot be told.

    Returns
    -------
    mapping of str to str, or None
        None if a file is no longer what it was when it was read, or if the code started a process or a thread, asked a
        server or listed a folder.
    """
    _note_modules()
    versions = {path: set(versions_read) for path, versions_read in _opened.items()}
    # a processor's file that was edited since is loaded again: the last module of a path is the one at work
    by_path = {path: {version} for name, (_, path, version) in _modules.items() if name.startswith(_LOADED_BY_PATH)}
    for name, (_, path, version) in _modules.items():
        if not name.startswith(_LOADED_BY_PATH):
            versions.setdefault(path, set()).add(version)
    for path, path_versions in by_path.items():
        versions.setdefault(path, set()).update(path_versions)
    if _unclear or any(path_versions != {_version(path)} for path, path_versions in versions.items()):
        return None
    try:
        return {
            path: None if None in path_versions else _hash_of(path, *path_versions)
            for path, path_versions in versions.items()
        }
    except OSError:
        return None


@dataclass(frozen=True)
class OpenedFiles:
    """Files that users' code has opened, whatever else its results may rest on.

    Attributes
    ----------
    files : mapping of str to str
        SHA-256 by absolute path; None for a file that was not there, :data:`CHANGED` for one that is no longer what it
        was then.
    modules : mapping of str to tuple of str
        By path, the modules whose code has opened it: a process may have run more than one processor.
    """

    files: FileHashes = field(default_factory=dict)
    modules: Mapping[str, Collection[str]] = field(default_factory=dict)

    def by(self, modules: Collection[str]) -> dict[str, str | None]:
        """Return the files that code of some modules has opened."""
        return {path: state for path, state in self.files.items() if set(self.modules[path]) & set(modules)}

    def __or__(self, other: OpenedFiles) -> OpenedFiles:
        # two processes that met two states of a file: none of them is the state of all results
        files = {
            path: state if self.files.get(path, state) == state else CHANGED for path, state in other.files.items()
        }
        names = {path: sorted({*self.modules.get(path, ()), *more}) for path, more in other.modules.items()}
        return OpenedFiles({**self.files, **files}, {**self.modules, **names})


def opened() -> OpenedFiles:
    """Return what users' code of this process has opened."""
    files = {path: _state(path, set(versions_read)) for path, versions_read in _opened.items()}
    return OpenedFiles(files, {path: sorted(_openers.get(path, ())) for path in files})


def _state(path: str, versions_read: set[_Version]) -> str | None:
    if versions_read != {_version(path)}:
        return CHANGED
    try:
        return None if None in versions_read else _hash_of(path, *versions_read)
    except OSError:
        return CHANGED


CHANGED = "changed while it was read"
"""Instead of a hash; no later state of the file is that."""


def join_hashes(*parts: FileHashes | None) -> FileHashes | None:
    """Join what several processes have read; None where one cannot tell, or two differ."""
    joined: dict[str, str | None] = {}
    for part in parts:
        if part is None or any(joined.get(path, then) != then for path, then in part.items()):
            return None
        joined |= part
    return joined


def changed(hashes: Mapping[str, str | None]) -> list[str]:
    """Return the files that are not what they were when a result was made of them."""
    return [path for path, then in hashes.items() if _current_hash(path) != then]


def _current_hash(path: str) -> str | None:
    return _state(path, {_version(path)})


def all_unchanged(hashes: object) -> bool:
    """Whether all files are what they were when a result was made of them."""
    return isinstance(hashes, dict) and not changed(hashes)


def modules_of(target: Any) -> dict[str, Path]:
    """Return the user's modules that a class or function rests on: its own, what these import, and so on.

    Parameters
    ----------
    target : type or function

    Returns
    -------
    dict of str to Path
        Files by the modules' names. Imports are read in the source, those inside functions too; what a module holds of
        others that it loaded in another way counts as well.
    """
    todo, files = [kind.__module__ for kind in getattr(target, "__mro__", (target,))], dict[str, Path]()
    while todo:
        name = todo.pop()
        path = None if name in files else _file_of(name)
        if path is None or not is_users_file(str(path)):
            continue
        files[name] = path
        values = vars(sys.modules[name]).values() if name in sys.modules else ()
        todo += [
            item.__name__ if isinstance(item, ModuleType) else str(getattr(item, "__module__", ""))
            for item in list(values)
        ]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        todo += _imports(path, package, path.stat().st_mtime_ns)
    return files


def _file_of(name: str) -> Path | None:
    """Find the source of a module, imported or not, without importing it."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        return (
            Path(file).resolve() if file is not None and Path(file).suffix == ".py" and Path(file).is_file() else None
        )
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
    except (ImportError, ValueError):
        return None
    if spec is None or not inner:
        origin = None if spec is None else spec.origin
        return Path(origin).resolve() if origin and origin.endswith(".py") and Path(origin).is_file() else None
    places = [Path(folder).joinpath(*inner) for folder in spec.submodule_search_locations or ()]
    candidates = (path for place in places for path in (place.with_suffix(".py"), place / "__init__.py"))
    return next((path.resolve() for path in candidates if path.is_file()), None)


@functools.lru_cache(256)
def _imports(path: Path, package: str, _: int) -> tuple[str, ...]:
    """Return the names that a file's imports may lead to, modules and what they hold alike."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # it was edited since it was loaded
        return ()
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    # a module inside a package runs the package's own first
    return tuple(dict.fromkeys(".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)))
