"""Classes that the configuration names: the package's own, a user's file, or an installed package's.

``NAME``
    One of the package's own.
``path/to/file.py:Class``
    A file, looked for in the working directory, beside the configuration, in the folder above it and in the starter.
``package.module:Class``
    What Python can import.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drapes_hep.errors import ConfigError, UsersCode, reason_of
from drapes_hep.events.loading import load_module, processor_folders, source_hashes

__all__ = ["Kind", "check_options", "load_class", "source_hashes"]


@dataclass(frozen=True)
class Kind:
    """A kind of class that a key of the configuration names.

    Attributes
    ----------
    key : str
        The key, for messages.
    noun : str
        What such a class is called.
    methods : tuple of str
        Methods that it must have.
    own : mapping of str to str
        The package's own: ``package.module:Class`` by name.
    """

    key: str
    noun: str
    methods: tuple[str, ...]
    own: Mapping[str, str] = field(default_factory=dict)


def load_class(kind: Kind, name: str, folder: Path | None = None) -> type[Any]:
    """Load a class by its name in the configuration.

    Parameters
    ----------
    kind : Kind
    name : str
        As the module's text says.
    folder : Path, optional
        Where the configuration lies.

    Returns
    -------
    type

    Raises
    ------
    ConfigError
        If there is no such file, module or class, it does not run, or lacks a method.
    """
    said = f"{kind.key} '{name}'"
    place, separator, attribute = kind.own.get(name, name).rpartition(":")
    if not separator or not place or not attribute.isidentifier():
        close = difflib.get_close_matches(name, kind.own, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"take one of {', '.join(kind.own)}"
        raise ConfigError(f"{said}: no such {kind.noun}; {hint}, or name a class as 'file.py:Class' or 'module:Class'")
    if place.endswith(".py"):
        module = load_module(said, place, processor_folders(folder))
    else:
        with UsersCode(lambda error: ConfigError(f"{said}: module {place} cannot be imported ({reason_of(error)})")):
            module = importlib.import_module(place)
    found = getattr(module, attribute, None)
    if not isinstance(found, type):
        classes = [
            key for key, one in vars(module).items() if isinstance(one, type) and one.__module__ == module.__name__
        ]
        close = difflib.get_close_matches(attribute, classes, n=1, cutoff=0.3) or classes[:1]
        hint = f"did you mean '{close[0]}'?" if close else "it defines no class"
        raise ConfigError(f"{said}: no class '{attribute}' in {place}; {hint}")
    missing = [method for method in kind.methods if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(f"{said}: a {kind.noun} needs the method {missing[0]}")
    # now, as it is imported: the file may be edited while the class is at work
    source_hashes(found)
    return found


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
