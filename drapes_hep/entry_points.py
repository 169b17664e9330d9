"""Names that installed packages add: entry points of the group ``drapes_hep``.

A package offers a class as ``KIND.NAME``, for example ``classifier.lightgbm = my_package.trees:LightGBM``; its name in
a configuration is then ``lightgbm``. Nothing is imported until a configuration names it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import metadata

__all__ = ["GROUP", "entry_points_by_name", "unknown_name"]

GROUP = "drapes_hep"
"""The group, in a package's ``[project.entry-points.drapes_hep]``."""


def entry_points_by_name(kind: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Return the entry points of a kind, by name.

    Parameters
    ----------
    kind : str
        The part before the dot: ``processor``, ``method``, ``classifier``, ``network``, ``feature`` or ``shape``.

    Returns
    -------
    dict of str to tuple of EntryPoint
        Several where several packages offer one name for different classes.
    """
    out: dict[str, dict[str, metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        before, dot, name = point.name.partition(".")
        if dot and before == kind and name:
            # a package that is installed twice offers the same class twice
            out.setdefault(name, {})[point.value] = point
    return {name: tuple(points.values()) for name, points in sorted(out.items())}


def unknown_name(noun: str, name: str, names: Iterable[str]) -> str:
    """Return a line on a name that nothing has.

    Parameters
    ----------
    noun : str
        What it should be, such as ``classifier``.
    name : str
    names : iterable of str
        All there are.
    """
    available = list(names)
    close = difflib.get_close_matches(name, available, n=2)
    hint = f"; did you mean {' or '.join(repr(item) for item in close)}?" if close else ";"
    listed = f" Available: {', '.join(available)};" if close and available else ""
    listed = listed or (f" available: {', '.join(available)};" if available else "")
    form = "name your own as 'file.py:Class' or 'package.module:Class'"
    return f"no {noun} {name!r}{hint}{listed} {'or ' if listed else ''}{form}"
