"""Files that a user's processor reads beside the events: those that its class declares, and those that it only opens.

A class declares them by name: ``reads = ["golden.json", "jes.json.gz"]``.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from drapes_hep.errors import ConfigError
from drapes_hep.events.grounds import Grounds, is_users_file
from drapes_hep.remote import is_url

__all__ = ["declared_files", "modules_of", "undeclared", "warning_of"]


def declared_files(name: str, processor: type, folders: Sequence[Path]) -> dict[str, str | Path]:
    """Find the files that a processor's class and its bases declare.

    Parameters
    ----------
    name : str
        The processor, as the configuration names it.
    processor : type
    folders : sequence of Path
        Where a relative path is looked for if it is not beside the file of the class.

    Returns
    -------
    dict of str to str or Path
        By the name that the class gives; a URL is its own place.

    Raises
    ------
    ConfigError
        If ``reads`` is no list of names, or a file is not there.
    """
    places: dict[str, str | Path] = {}
    for kind in processor.__mro__:
        names = vars(kind).get("reads", ())
        if isinstance(names, (str, Path)) or not isinstance(names, Iterable):
            raise ConfigError(f"processor '{name}': reads is no list of files, such as reads = ['golden.json']")
        for one in names:
            if not isinstance(one, (str, Path)):
                raise ConfigError(f"processor '{name}': reads holds {one!r}, which names no file")
            places.setdefault(str(one), _find(name, str(one), [*_folder_of(kind), *folders]))
    return places


def _folder_of(kind: type) -> list[Path]:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return [] if file is None else [Path(file).resolve().parent]


def _find(processor: str, name: str, folders: Sequence[Path]) -> str | Path:
    if is_url(name):
        return name
    place = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if place is None:
        where = ", ".join(dict.fromkeys(map(str, folders)))
        raise ConfigError(f"processor '{processor}': reads {name}, but there is no such file; looked in {where}")
    return place


def modules_of(found: Any) -> dict[str, Path]:
    """Return the user's modules that a class or function rests on: its own, what these import, and so on.

    Parameters
    ----------
    found : type or function

    Returns
    -------
    dict of str to Path
        Files by the modules' names. Imports are read in the source, those inside functions too; what a module holds of
        others that it loaded in another way counts as well.
    """
    todo, files = [kind.__module__ for kind in getattr(found, "__mro__", (found,))], dict[str, Path]()
    while todo:
        name = todo.pop()
        path = None if name in files else _file_of(name)
        if path is None or not is_users_file(str(path)):
            continue
        files[name] = path
        held = vars(sys.modules[name]).values() if name in sys.modules else ()
        todo += [
            one.__name__ if isinstance(one, ModuleType) else str(getattr(one, "__module__", "")) for one in list(held)
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
    found = (path for place in places for path in (place.with_suffix(".py"), place / "__init__.py"))
    return next((path.resolve() for path in found if path.is_file()), None)


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


def undeclared(seen: Grounds, known: Iterable[str | Path]) -> dict[str, str | None]:
    """Return what a processor has opened and nothing else accounts for.

    Parameters
    ----------
    seen : mapping
        Hashes by path.
    known : iterable of str or Path
        Files that are accounted for: of events, of the processor's source, declared.

    Returns
    -------
    dict of str to str or None
        Without what libraries keep in hidden folders of the user's home and in ``__pycache__``.
    """
    accounted = {str(Path(one).resolve()) for one in known if not is_url(one)}
    return {
        path: state
        for path, state in sorted(seen.items())
        if str(Path(path).resolve()) not in accounted and not _of_libraries(Path(path))
    }


def _of_libraries(path: Path) -> bool:
    home = Path.home()
    hidden = path.is_relative_to(home) and path.relative_to(home).parts[:1][0].startswith(".")
    return hidden or "__pycache__" in path.parts


def warning_of(stage: str, files: Mapping[str, str | None]) -> str | None:
    """Return a line on the files that a processor has opened and does not declare; None where it is not worth one."""
    data = [path for path, state in files.items() if state is not None and not path.endswith(".py")]
    if not data:
        return None
    shown = ", ".join(data[:3]) + (f" and {len(data) - 3} more" if len(data) > 3 else "")
    names = ", ".join(f'"{Path(path).name}"' for path in data[:3])
    return (
        f"{stage}: the processor reads {shown} and does not declare {'it' if len(data) == 1 else 'them'}; the selection"
        f" runs again when that changes, and finds it elsewhere too if the class says reads = [{names}]"
    )
