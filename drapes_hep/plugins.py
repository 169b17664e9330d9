"""Classes that the configuration names: which methods they must have, and which options they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drapes_hep.errors import ConfigError
from drapes_hep.events.loading import Kind, load_object, processor_folders

__all__ = ["check_options", "class_with", "load_class"]


def class_with(*methods: str) -> Callable[[Any], str | None]:
    """Return the rule of a :class:`~drapes_hep.events.loading.Kind`: a class that has these methods."""

    def lacks(found: Any) -> str | None:
        missing = [name for name in methods if not callable(getattr(found, name, None))]
        if not isinstance(found, type):
            return "is not a class"
        return f"needs the method {missing[0]}" if missing else None

    return lacks


def load_class(kind: Kind, name: str, folder: Path | None = None) -> Any:
    """Load a class by its name in the configuration.

    Parameters
    ----------
    kind : Kind
    name : str
        As :mod:`drapes_hep.events.loading` says.
    folder : Path, optional
        Where the configuration lies.

    Returns
    -------
    type

    Raises
    ------
    ConfigError
        As :func:`~drapes_hep.events.loading.load_object`.
    """
    return load_object(kind, name, processor_folders(folder))


def check_options(key: str, name: str, found: type[Any], options: Mapping[str, Any], reserved: Sequence[str]) -> None:
    """Refuse options that a class does not take.

    Parameters
    ----------
    key : str
        The key of the configuration that holds them.
    name : str
        Of the class.
    found : type
    options : mapping
    reserved : sequence of str
        Arguments that are not options.

    Raises
    ------
    ConfigError
        With the options that there are.
    """
    known = inspect.signature(found).parameters
    free = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    offered = [key for key, one in known.items() if key not in reserved and one.kind is not one.VAR_KEYWORD]
    strange = [option for option in options if option in reserved or (option not in known and not free)]
    if strange:
        has = f"it has {', '.join(offered)}" if offered else "it has none"
        raise ConfigError(f"{key}: {name} has no option '{strange[0]}'; {has}")
    needed = [
        option
        for option, one in known.items()
        if option in offered
        and one.default is one.empty
        and one.kind is not one.VAR_POSITIONAL
        and option not in options
    ]
    if needed:
        raise ConfigError(f"{key}: {name} needs the option '{needed[0]}'")
