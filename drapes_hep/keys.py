"""Which keys of a configuration decide the result of which stage: the one declaration is at the keys themselves.

A field of a section says so in its type, ``epochs: Annotated[int, Decides("train")]``. One that decides nothing by
itself says that too, with ``Decides()``: what a figure is labelled with, where a file is whose content counts, or
what only matters through something derived from it, which then belongs to ``Stage.other``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = [
    "Decides",
    "Difference",
    "decided",
    "differences",
    "first_difference",
    "leaves",
    "part_of",
    "put_part",
    "section_of",
    "value_text",
]

Difference = tuple[str, Any, Any]
"""A dotted key, its value then and its value now."""


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
    # a mapping of a user's own names is a value
    kinds = () if get_origin(info.annotation) is dict else get_args(info.annotation)
    for kind in (info.annotation, *kinds):
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
            yield from ((f"{name}.{key}", info) for key, info in leaves(section))


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
        key for key, info in leaves(model) for tag in info.metadata if isinstance(tag, Decides) and stage in tag.stages
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
        Sections, or keys in them: ``section.key``, or ``section.inner.key`` where a section holds another.

    Returns
    -------
    dict
        Nested as the configuration is; a section that is left out is None.
    """
    part: dict[str, Any] = {}
    put_part(part, config, keys)
    return part


def put_part(tree: dict[str, Any], config: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Put a part of a configuration, as for :func:`part_of`, into another one, in its place."""
    for key in keys:
        name, _, inner = key.partition(".")
        if not inner or config[name] is None:
            tree[name] = config[name]
            continue
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        put_part(tree[name], config[name], [inner])


def _values(part: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in part.items():
        # what is deeper than two levels is compared, and worded, as a value
        out |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return out


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield the keys, dotted, whose value in a part of a configuration is another than it was, with both values."""
    then, present = _values(was), _values(now)
    yield from ((key, then.get(key), value) for key, value in present.items() if then.get(key) != value)
    # a section that was left out since has no keys to differ
    left_out = [key for key, value in was.items() if isinstance(value, dict) and key in now and now[key] is None]
    yield from ((key, "a section", None) for key in left_out)


def first_difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
    """Return the first key, dotted, that two parts of configurations do not share, with both values."""
    return next(differences(was, now), None)


def value_text(value: object) -> str:
    """Write a configuration's value into a line of text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}"
