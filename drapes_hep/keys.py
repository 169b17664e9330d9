"""Which keys of a configuration decide the result of which stage: the one declaration is at the keys themselves.

A field of a section says so in its type, ``epochs: Annotated[int, Decides("train")]``. One that decides nothing by
itself says that too, with ``Decides()``: what a figure is labelled with, where a file lies whose content counts, or
what only matters through something derived from it, which then belongs to ``Stage.other``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["Decides", "decided", "leaves", "part_of", "section_of"]


@dataclass(frozen=True, init=False)
class Decides:
    """The stages whose result a field decides, by name.

    Attributes
    ----------
    stages : tuple of str
        Such as ``train``. None for a field that is only recorded.
    """

    stages: tuple[str, ...]

    def __init__(self, *stages: str) -> None:
        object.__setattr__(self, "stages", stages)


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a field holds, also one that may be left out; None for a value."""
    for kind in (info.annotation, *get_args(info.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def leaves(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every value of a configuration by its dotted key, sections opened."""
    for name, info in model.model_fields.items():
        section = section_of(info)
        if section is None:
            yield name, info
        else:
            yield from ((f"{name}.{key}", one) for key, one in leaves(section))


def decided(model: type[BaseModel], stage: str) -> tuple[str, ...]:
    """Return the dotted keys that decide a stage's result.

    Parameters
    ----------
    model : type
        The configuration.
    stage : str
        As the fields name it.

    Raises
    ------
    ValueError
        If no field names it.
    """
    keys = tuple(
        key for key, info in leaves(model) for one in info.metadata if isinstance(one, Decides) and stage in one.stages
    )
    if not keys:
        raise ValueError(f"no key of the configuration says that it decides '{stage}'")
    return keys


def part_of(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return a part of a configuration.

    Parameters
    ----------
    config : mapping
        The whole configuration, as JSON values.
    keys : sequence of str
        Sections, or ``section.key``.

    Returns
    -------
    dict
        Nested as the configuration is; a section that is left out is None.
    """
    part: dict[str, Any] = {}
    for key in keys:
        name, _, inner = key.partition(".")
        if not inner or config[name] is None:
            part[name] = config[name]
        else:
            part.setdefault(name, {})[inner] = config[name][inner]
    return part
