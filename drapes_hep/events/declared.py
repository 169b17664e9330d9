"""Files that a processor reads in addition to the events: declared by its class, or only opened.

A class declares them by name: ``reads = ["golden.json", "jes.json.gz"]``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from drapes_hep.errors import ConfigError
from drapes_hep.remote import is_url
from drapes_hep.user_files import FileHashes

__all__ = ["declared_files", "undeclared", "warning_of"]


def declared_files(name: str, processor: type, folders: Sequence[Path]) -> dict[str, str | Path]:
    """Find the files that a processor's class and its bases declare.

    Parameters
    ----------
    name : str
        The processor, as the configuration names it.
    processor : type
    folders : sequence of Path
        Where a relative path is looked for if it is not next to the file of the class.

    Returns
    -------
    dict of str to str or Path
        By the name that the class gives; a URL is its own place.

    Raises
    ------
    ConfigError
        If ``reads`` is not a list of names, or a file is not there.
    """
    places: dict[str, str | Path] = {}
    for kind in processor.__mro__:
        names = vars(kind).get("reads", ())
        if isinstance(names, (str, Path)) or not isinstance(names, Iterable):
            raise ConfigError(f"processor '{name}': reads must be a list of files, such as reads = ['golden.json']")
        for file in names:
            if not isinstance(file, (str, Path)):
                raise ConfigError(f"processor '{name}': reads contains {file!r}, which is not a file name")
            places.setdefault(str(file), _find(name, str(file), [*_folder_of(kind), *folders]))
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
        raise ConfigError(f"processor '{processor}': reads {name}, which does not exist; looked in {where}")
    return place


def undeclared(read: FileHashes, declared: Iterable[str | Path]) -> dict[str, str | None]:
    """Return what a processor has opened and nothing else accounts for.

    Parameters
    ----------
    read : mapping
        Hashes by path.
    declared : iterable of str or Path
        Files that are accounted for: of events, of the processor's source, declared.

    Returns
    -------
    dict of str to str or None
        Without what libraries keep in hidden folders of the user's home and in ``__pycache__``.
    """
    accounted = {str(Path(path).resolve()) for path in declared if not is_url(path)}
    return {
        path: state
        for path, state in sorted(read.items())
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
    listed = ", ".join(data[:3]) + (f" and {len(data) - 3} more" if len(data) > 3 else "")
    names = ", ".join(f'"{Path(path).name}"' for path in data[:3])
    return (
        f"{stage}: the processor reads {listed} without declaring {'it' if len(data) == 1 else 'them'}; set reads ="
        f" [{names}] in the class, so that the selection runs again when that changes and finds it elsewhere too"
    )
