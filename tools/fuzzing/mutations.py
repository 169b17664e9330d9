"""Mutations as data: a recipe is a base and a list of these, and replays to the same input.

A mutation is a list whose first word is its name, so that a recipe is JSON. Positions are taken modulo what is there:
every mutation applies to every base.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "BYTES",
    "NUMBERS",
    "TYPES",
    "Mutation",
    "mutate_bytes",
    "mutate_table",
    "mutate_text",
    "mutate_tree",
]

Mutation = Sequence[Any]

NUMBERS: Mapping[str, float | int] = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "0": 0,
    "-0.0": -0.0,
    "-1": -1,
    "0.5": 0.5,
    "2": 2,
    "tiny": 5e-324,
    "small": 1e-30,
    "1e5": 1e5,
    "1e7": 1e7,
    "huge": 1e300,
    "-huge": -1e300,
    "2**31": 2**31,
    "2**53": 2**53,
    "2**63-1": 2**63 - 1,
    "-2**63": -(2**63),
}
"""Values that are put instead of others, by name: JSON has no NaN."""

TYPES = (
    "bool",
    "int8",
    "uint8",
    "int16",
    "int32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "text",
    "bytes",
    "datetime",
)
"""Types that a column is converted to."""

INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
"""Lengths and offsets that are written over others."""


BYTES = frozenset(
    {"flip", "byte", "integer", "truncate", "zero", "swap", "copy", "insert", "delete", "append"},
)
"""Mutations of a file's bytes, whatever it holds."""


def mutate_bytes(data: bytes, mutations: Iterable[Mutation]) -> bytes:
    """Apply the mutations of bytes, in their order; those of other kinds are skipped.

    Parameters
    ----------
    data : bytes
        Of a file.
    mutations : iterable of mutation
        ``flip`` (place, bit), ``byte`` (place, value), ``integer`` (place, index in :data:`INTEGERS`, size, byte
        order), ``truncate`` (length), ``zero`` (place, length), ``swap`` (place, place, length), ``copy`` (from, to,
        length), ``insert`` (place, length), ``delete`` (place, length), ``append`` (length).

    Returns
    -------
    bytes
    """
    out = bytearray(data)
    for name, *arguments in mutations:
        if not out or name not in BYTES:
            continue
        at, *rest = arguments[0] % len(out), *arguments[1:]
        match name:
            case "flip":
                out[at] ^= 1 << (rest[0] % 8)
            case "byte":
                out[at] = rest[0] % 256
            case "integer":
                size = (1, 2, 4, 8)[rest[1] % 4]
                value = INTEGERS[rest[0] % len(INTEGERS)] % (1 << (8 * size))
                out[at : at + size] = value.to_bytes(size, "little" if rest[2] else "big")
            case "truncate":
                del out[at:]
            case "zero":
                length = min(rest[0], len(out) - at)
                out[at : at + length] = bytes(length)
            case "swap":
                first, second = sorted((at, rest[0] % len(out)))
                length = min(rest[1], second - first, len(out) - second)
                a, b = out[first : first + length], out[second : second + length]
                out[first : first + length], out[second : second + length] = b, a
            case "copy":
                piece = out[at : at + rest[1]]
                to = rest[0] % len(out)
                out[to : to + len(piece)] = piece
            case "insert":
                out[at:at] = bytes(rest[0])
            case "delete":
                del out[at : at + rest[0]]
            case "append":
                out += out[: arguments[0] % 4096]
    return bytes(out)


def mutate_table(table: Mapping[str, Any], mutations: Iterable[Mutation]) -> dict[str, Any]:
    """Apply the mutations of columns, in their order; those of other kinds are skipped.

    Parameters
    ----------
    table : mapping of str to array, or list of lists
        Columns of one length; a ragged column is a list.
    mutations : iterable of mutation
        ``value`` (column, row, name of a number), ``type`` (column, index in :data:`TYPES`), ``drop`` (column),
        ``rename`` (column, text), ``over`` (column, column), ``rows`` (number), ``lists`` (column, length),
        ``shorter`` (column, rows), ``column`` (text, column).

    Returns
    -------
    dict of str to array or list
    """
    out = {name: copy.deepcopy(values) for name, values in table.items()}
    for name, *arguments in mutations:
        if not out or name not in _TABLE:
            continue
        names = list(out)
        if name == "rows":
            out = {key: values[: arguments[0]] for key, values in out.items()}
            continue
        column = names[arguments[0] % len(names)]
        values, rest = out[column], arguments[1:]
        match name:
            case "value":
                out[column] = _with_value(values, *rest)
            case "type":
                out[column] = _as_type(values, TYPES[rest[0] % len(TYPES)])
            case "drop":
                del out[column]
            case "rename":
                out = {(rest[0] if key == column else key): column_values for key, column_values in out.items()}
            case "over":
                out[column] = copy.deepcopy(out[names[rest[0] % len(names)]])
            case "lists":
                out[column] = [[value] * (i % (rest[0] + 1)) for i, value in enumerate(_plain(values))]
            case "shorter":
                out[column] = values[: max(0, len(values) - rest[0])]
            case "column":
                out[rest[0]] = copy.deepcopy(values)
    return out


_TABLE = {"value", "type", "drop", "rename", "over", "rows", "lists", "shorter", "column"}


def _plain(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _with_value(values: Any, row: int, number: str) -> Any:
    value = NUMBERS[number]
    if not len(values):
        return values
    if isinstance(values, np.ndarray):
        flat = values.reshape(-1)
        if flat.dtype.kind in "iu" and (value != value or value in (math.inf, -math.inf) or value != int(value)):
            flat = flat.astype(np.float64)
        with np.errstate(over="ignore"):
            try:
                flat[row % len(flat)] = value
            except (OverflowError, ValueError):  # no such number in this type
                return values
        return flat.reshape(values.shape)
    target, steps = values, row
    while target:
        place = steps % len(target)
        if isinstance(target[place], list):
            target, steps = target[place], steps // len(target)
        elif isinstance(target[place], dict):
            keys = list(target[place])
            target[place][keys[steps // len(target) % len(keys)]] = value
            break
        else:
            target[place] = value
            break
    return values


def _as_type(values: Any, kind: str) -> Any:
    if not isinstance(values, np.ndarray):
        return [None if i % 7 == 3 else value for i, value in enumerate(values)] if kind == "text" else values
    with np.errstate(all="ignore"):
        match kind:
            case "text":
                return np.array([f"{value}" for value in values.reshape(len(values), -1)[:, 0]], dtype=object)
            case "bytes":
                return values.reshape(len(values), -1)[:, 0].astype("S8")
            case "datetime":
                return np.zeros(values.shape, dtype="datetime64[ns]")
            case _:
                return values.astype(kind)


def mutate_text(text: str, mutations: Iterable[Mutation]) -> str:
    """Apply the mutations of text, in their order; those of other kinds are skipped.

    Parameters
    ----------
    text : str
        Lines.
    mutations : iterable of mutation
        ``line`` (place, text; replaces), ``new line`` (place, text), ``no line`` (place), ``twice`` (place), ``words``
        (place, text; inserted at a character), ``after colon`` (place, text; the value of a line).

    Returns
    -------
    str
    """
    for name, *arguments in mutations:
        lines = text.splitlines()
        if not lines:
            break
        at = arguments[0] % len(lines) if arguments and isinstance(arguments[0], int) else 0
        match name:
            case "line":
                lines[at] = arguments[1]
            case "new line":
                lines.insert(at, arguments[1])
            case "no line":
                del lines[at]
            case "twice":
                lines.insert(at, lines[at])
            case "after colon":
                lines[at] = f"{lines[at].partition(':')[0]}: {arguments[1]}"
            case "words":
                place = arguments[0] % len(text)
                text = text[:place] + arguments[1] + text[place:]
                continue
            case _:
                continue
        text = "\n".join(lines) + "\n"
    return text


def mutate_tree(tree: Any, mutations: Iterable[Mutation]) -> Any:
    """Apply the mutations of a JSON tree, in their order; those of other kinds are skipped.

    Parameters
    ----------
    tree : JSON value
        Of a configuration or a record.
    mutations : iterable of mutation
        ``set`` (place, value), ``remove`` (place), ``key`` (place, text), ``number`` (place, name of a number).

    Returns
    -------
    JSON value
    """
    tree = copy.deepcopy(tree)
    for name, *arguments in mutations:
        if name not in {"set", "remove", "key", "number"}:
            continue
        places = _places(tree)
        if not places:
            return arguments[1] if name == "set" else tree
        holder, key = places[arguments[0] % len(places)]
        match name:
            case "set":
                holder[key] = copy.deepcopy(arguments[1])
            case "number":
                holder[key] = NUMBERS[arguments[1]]
            case "remove":
                del holder[key]
            case "key" if isinstance(holder, dict):
                holder[arguments[1]] = holder.pop(key)
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """List every place of a tree, as what holds it and its key there."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    out = []
    for key in keys:
        out.append((tree, key))
        out += _places(tree[key])
    return out
