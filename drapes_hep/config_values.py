"""A value of YAML or JSON as a key's type takes it: what is exactly meant passes, everything else is one line.

A whole number may be written ``1e4``; true is not a number, 1 is not true, and text in quotes is neither a number nor a
boolean, however it looks.
"""

from __future__ import annotations

import difflib
import math
import numbers
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from drapes_hep.yaml_text import TRUTH, Unquoted

__all__ = ["plain_value"]

_LARGEST = 2**63
"""Whole numbers are below it in size: random generators, files and libraries take no larger ones."""

_EXACT = 2**53
"""From here on, a number with an exponent is not exactly what was written."""


def plain_value(annotation: Any, value: Any) -> Any:
    """Turn a value into one of a type's, without changing what it says.

    Parameters
    ----------
    annotation : type
        Of the key: int, float, bool, str, literals, tuples, dicts, None, and unions of them.
    value : object
        As YAML or JSON gave it.

    Returns
    -------
    object
        Ranges and lengths are left to pydantic.

    Raises
    ------
    ValueError
        With what is expected, and what the value is.
    """
    kinds = _alternatives(annotation)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, (list, tuple)):
        lists = [kind for kind in kinds if get_origin(kind) is tuple]
        if not lists:
            raise ValueError(f"expected {_expected(kinds)}, got a list")
        return _list(lists, tuple(value))
    if isinstance(value, Mapping):
        mappings = [kind for kind in kinds if get_origin(kind) is dict]
        if not mappings:
            raise ValueError(f"expected {_expected(kinds)}, got keys and values")
        return {key: _item(get_args(mappings[0])[1], key, item) for key, item in value.items()}
    return _scalar(kinds, value)


def _alternatives(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in {Union, types.UnionType}:
        return [kind for argument in get_args(annotation) for kind in _alternatives(argument)]
    return [type(None) if annotation is None else annotation]


def _list(kinds: list[Any], values: tuple[Any, ...]) -> tuple[Any, ...]:
    errors: list[ValueError] = []
    for kind in kinds:
        of = get_args(kind)
        repeated = len(of) == 2 and of[1] is Ellipsis
        if not repeated and len(of) != len(values):
            errors.append(ValueError(f"expected a list of {len(of)}, got {len(values)}"))
            continue
        try:
            return tuple(_item(of[0 if repeated else i], i + 1, item) for i, item in enumerate(values))
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _item(annotation: Any, name: object, value: Any) -> Any:
    try:
        return plain_value(annotation, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _scalar(kinds: list[Any], value: Any) -> Any:
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    converted: Any = None
    if isinstance(value, str):
        converted = _from_text(kinds, words, value)
    elif isinstance(value, bool):
        converted = value if bool in kinds else None
    elif isinstance(value, numbers.Integral):
        converted = _from_integer(kinds, value)
    elif isinstance(value, numbers.Real) and math.isfinite(value):
        converted = _from_number(kinds, value)
    if converted is None:
        raise ValueError(_error_message(kinds, words, value))
    return converted


def _from_text(kinds: list[Any], words: list[str], value: str) -> str | bool | None:
    if value in words:
        return str(value)
    truth = TRUTH.get(value.lower()) if isinstance(value, Unquoted) else None
    if bool in kinds and truth is not None:
        if str in kinds:
            raise ValueError(f"{value} may be text or {str(truth).lower()}: write true or false, or quote it")
        return truth
    return str(value) if str in kinds else None


def _from_integer(kinds: list[Any], value: numbers.Integral) -> int | float | None:
    if (int in kinds or float in kinds) and abs(int(value)) >= _LARGEST:
        raise ValueError(f"{_value_text(value)} is too large: at most {_LARGEST - 1}")
    if int in kinds:
        return int(value)
    return float(value) if float in kinds else None


def _from_number(kinds: list[Any], value: numbers.Real) -> int | float | None:
    number = float(value)
    if float in kinds:
        return number
    if int not in kinds or not number.is_integer():
        return None
    if abs(number) >= _EXACT:
        raise ValueError(f"{_value_text(value)} is not exact: write all of its digits")
    return int(number)


def _error_message(kinds: list[Any], words: list[str], value: Any) -> str:
    message = f"expected {_expected(kinds, isinstance(value, float) and not math.isfinite(value))}"
    if value is None:
        return f"{message}, got nothing; remove the key to use its default"
    lists = [kind for kind in kinds if get_origin(kind) is tuple]
    if lists and len(kinds) == 1:
        return f"{message} in brackets, such as [{_value_text(value)}]"
    kind = "" if isinstance(value, bool) else "the text " if isinstance(value, str) else "the number "
    text = repr(str(value)) if isinstance(value, str) and len(value) <= 40 else _value_text(value)
    message += f", got {kind}{text}"
    if isinstance(value, str):
        if bool in kinds and value.lower() in TRUTH:
            return f"{message} in quotes: remove them"
        close = difflib.get_close_matches(value.lower(), words, n=1, cutoff=0.6)
        return f"{message}; did you mean '{close[0]}'?" if close else message
    return f"{message}; quote it if it is text" if str in kinds else message


def _expected(kinds: list[Any], infinite: bool = False) -> str:
    names = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            names += [f"'{word}'" for word in get_args(kind)]
        elif get_origin(kind) is tuple:
            names.append("a list")
        elif get_origin(kind) is dict:
            names.append("keys and values")
        elif kind is not type(None):
            names.append(
                {
                    int: "a whole number",
                    float: "a finite number" if infinite else "a number",
                    bool: "true or false",
                    str: "text",
                }[kind]
            )
    return " or ".join(dict.fromkeys(names))


def _value_text(value: object) -> str:
    text = "true" if value is True else "false" if value is False else str(value)
    return text if len(text) <= 40 else f"{text[:30]}... ({len(text)} characters)"
