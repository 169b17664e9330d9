"""Processors by name: ``processors/dijets.py:Dijets`` (a file that the user edits) or ``package.module:Class``."""

from __future__ import annotations

import copyreg
import dataclasses
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

import cloudpickle  # type: ignore[import-untyped, unused-ignore]
from coffea.processor import ProcessorABC

from drapes_hep.errors import ConfigError
from drapes_hep.events.types import Foreign

__all__ = ["load_processor", "starter_folder"]

# A class that travels by value is set up anew where it is unpickled, which may be this process. Its dataclass fields
# must then hold the one MISSING that dataclasses compares with, not a copy: a subclass would take it for a default.
copyreg.pickle(type(dataclasses.MISSING), lambda _: "MISSING")


def starter_folder() -> Path:
    """Give the folder that holds ``processors/`` and ``configs/``: inside the wheel, or the checkout's root."""
    package = Path(__file__).resolve().parents[1]
    starter = package / "starter"
    return starter if starter.is_dir() else package.parent


def load_processor(name: str, search: Sequence[str | Path] | None = None) -> Foreign:
    """Load a processor's class.

    A class loaded by path is registered with cloudpickle to travel by value: worker processes have no module of that
    name to import.

    Parameters
    ----------
    name : str
        ``path/to/file.py:Class`` or ``package.module:Class``.
    search : sequence of path, optional
        Where a relative path is looked for, in this order; the working directory, then the starter, by default.

    Returns
    -------
    type
        The class, not an instance.

    Raises
    ------
    ConfigError
        No such file or module, no such class, not a processor, or the file does not run.
    """
    place, separator, attribute = name.rpartition(":")
    if not separator or not place or not attribute.isidentifier():
        raise ConfigError(f"processor '{name}': expected 'path/to/file.py:Class' or 'package.module:Class'")
    module = _from_file(name, place, search) if place.endswith(".py") else _from_package(name, place)
    found = getattr(module, attribute, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if _is_processor(value) and value is not ProcessorABC]
        close = difflib.get_close_matches(attribute, classes, n=1, cutoff=0.3) or classes[:1]
        hint = f"did you mean '{close[0]}'?" if close else "it defines no processor"
        raise ConfigError(f"processor '{name}': no class '{attribute}' in {place}; {hint}")
    if not _is_processor(found):
        raise ConfigError(f"processor '{name}': '{attribute}' is not a class with a method process(events)")
    return found


def _is_processor(value: object) -> bool:
    return isinstance(value, type) and callable(getattr(value, "process", None))


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    line = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _from_package(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise ConfigError(f"processor '{name}': module {place} cannot be imported ({_reason(error)})") from error


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compile the source itself: no bytecode beside the user's files, none that an edit in the same second fools."""

    def get_code(self, fullname: str) -> CodeType:
        """Give the code of the file as it is now."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)  # type: ignore[no-any-return, unused-ignore]


def _from_file(name: str, place: str, search: Sequence[str | Path] | None) -> ModuleType:
    folders = [Path.cwd(), starter_folder()] if search is None else [Path(folder) for folder in search]
    candidates = [folder / place for folder in folders]  # an absolute place replaces the folder
    path = next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)
    if path is None:
        near = [p.name for c in candidates if c.parent.is_dir() for p in c.parent.glob("*.py")]
        close = difflib.get_close_matches(Path(place).name, near, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"looked in {', '.join(str(f) for f in folders)}"
        raise ConfigError(f"processor '{name}': no file {place}; {hint}")
    # named by content: an edited file is a new module, the same file is loaded once
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()[:12]
    key = f"_drapes_processor_{path.stem.replace('-', '_')}_{digest}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path, loader=_SourceLoader(key, str(path)))
    if spec is None or spec.loader is None:
        raise ConfigError(f"processor '{name}': {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look their module up while they are made
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[key]
        if not isinstance(error, Exception):
            raise
        raise ConfigError(f"processor '{name}': {path} does not run ({_reason(error)})") from error
    cloudpickle.register_pickle_by_value(module)
    return module
