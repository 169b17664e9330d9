"""Which files the paths and patterns of a configuration name; no file is opened, and no reader loaded."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path

from drapes_hep.errors import ConfigError, InputError
from drapes_hep.events.chunks import file_key
from drapes_hep.remote import Alternatives, expand_url, is_url

__all__ = ["expand", "expand_trees"]

Paths = str | Path | Iterable[str | Path | Iterable[str | Path]]
"""Files and patterns, or lists of places of one file."""


def _alternatives(places: Iterable[str | Path]) -> Alternatives:
    """Check the places of one file: its name identifies its events, and a pattern names no single file."""
    texts = [str(place) for place in places]
    if not texts:
        raise ConfigError("data.path: an empty list in the list of files: name the places of a file in it")
    for text in texts:
        if "*" in text or (not is_url(text) and glob.has_magic(text) and not Path(text).exists()):
            raise InputError(text, "is a pattern among the places of one file", "name each file with its places")
        if file_key(text) != file_key(texts[0]):
            raise InputError(text, f"has another name than {texts[0]}", "places of one file share its name")
    return Alternatives(texts)


def expand(paths: Paths) -> list[str]:
    """Turn paths and patterns into the sorted list of files that they name.

    Parameters
    ----------
    paths : str, Path or iterable of them
        An iterable inside that one names places of one file, see :class:`drapes_hep.remote.Alternatives`. ``*``, ``?``
        and ``[...]`` are patterns where no file has literally that name; in a URL only ``*``, and not over http(s),
        which cannot list files.

    Returns
    -------
    list of str
        Each once; a plain path need not exist, its reader will say so.

    Raises
    ------
    InputError
        A pattern that matches nothing.
    """
    files: set[str] = set()
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        if not isinstance(path, (str, Path)):
            files.add(_alternatives(path))
            continue
        text = str(path)
        if is_url(text):
            files.update(expand_url(text))
            continue
        if not glob.has_magic(text) or Path(text).exists():
            files.add(text)
            continue
        matches = glob.glob(text, recursive=True)  # noqa: PTH207  Path.glob refuses absolute patterns
        if not matches:
            raise InputError(text, "no file matches this pattern", "check the folder and the suffix")
        files.update(matches)
    return sorted(files)


def expand_trees(paths: Paths | Mapping[str, str]) -> dict[str, str | None]:
    """Turn paths and patterns into the files that they name, each with the tree to read.

    Parameters
    ----------
    paths : str, Path, iterable of them, or mapping of str to str
        As for :func:`expand`; a mapping names the tree or HDF5 key of each.

    Returns
    -------
    dict of str to str or None
        Sorted; None where the columns shall tell the tree.

    Raises
    ------
    InputError
        A pattern that matches nothing, or a file that two patterns give two trees.
    """
    if not isinstance(paths, Mapping):
        return dict.fromkeys(expand(paths))
    trees: dict[str, str | None] = {}
    for pattern, tree in paths.items():
        for path in expand(pattern):
            if trees.setdefault(path, tree) != tree:
                raise InputError(path, f"is given two trees, {trees[path]} and {tree}", "name one")
    return dict(sorted(trees.items()))
