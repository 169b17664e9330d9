"""YAML text to plain values, by the rules that people mean: YAML 1.2, and nothing that has two readings.

Differences from YAML 1.1, which PyYAML reads: ``yes``, ``no``, ``on`` and ``off`` are text, and so are dates and
``12:30:00``; ``1e4`` is a number; ``0123`` is refused, as it may be 123 or, octal, 83; keys are text; a duplicate key
is refused. No tag makes an object, and neither nesting nor aliases can make more than a bounded number of values.
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from drapes_hep.errors import ConfigError

__all__ = ["TRUTH", "Document", "Unquoted", "YamlError", "decode", "parse"]

_DEPTH = 50
_VALUES = 1_000_000

_PLAIN = "plain"
_PREFIX = "tag:yaml.org,2002:"
_TEXT, _LIST, _MAP = _PREFIX + "str", _PREFIX + "seq", _PREFIX + "map"

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_WHOLE = re.compile(rf"[-+]?(?:0|(?!0){_DIGITS})")
_OTHER_BASE = re.compile(r"[-+]?0(?:x[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*|o[0-7]+(?:_[0-7]+)*|b[01]+(?:_[01]+)*)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_DECIMAL = re.compile(rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?")
_LONGEST_WHOLE = 400
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **{sign + word: math.inf for sign in ("", "+") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),)
}  # fmt: skip


TRUTH = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
"""What the words of YAML 1.1 mean where true or false is asked for, in lower case."""


class Unquoted(str):
    """A word of :data:`TRUTH` that was written without quotes, and so may mean true or false."""

    __slots__ = ()


class YamlError(ConfigError):
    """Text that is not YAML, or has two readings.

    Parameters
    ----------
    line : int
        Where, from 1.
    problem : str
        What is wrong, and what to do.
    """

    def __init__(self, line: int, problem: str) -> None:
        self.line, self.problem = line, problem
        super().__init__(f"line {line}: {problem}")

    def __reduce__(self) -> tuple[type[YamlError], tuple[int, str]]:
        # exceptions travel back from worker processes: without this, unpickling calls __init__ with one argument
        return type(self), (self.line, self.problem)


@dataclass(frozen=True)
class Document:
    """What a YAML text holds.

    Attributes
    ----------
    value : object
        Dicts with text as keys, lists, text (:class:`Unquoted` where it may mean true or false), numbers, booleans and
        None.
    lines : dict of str to int
        The line of each key, from 1; keys of nested sections are joined by dots.
    """

    value: Any
    lines: dict[str, int]


def decode(content: bytes) -> str:
    """Decode the bytes of a configuration: UTF-8, or UTF-16 with a byte order mark.

    Parameters
    ----------
    content : bytes

    Returns
    -------
    str

    Raises
    ------
    YamlError
        With the line of the first byte that is not text.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError:
            raise YamlError(1, "a UTF-16 byte order mark, but not UTF-16 text; save the file as UTF-8") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the positions of utf-8-sig do not count the byte order mark, which stands in the first line anyway
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(line, f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def parse(text: str) -> Document:
    """Read one YAML document.

    Parameters
    ----------
    text : str

    Returns
    -------
    Document

    Raises
    ------
    YamlError
        If it is not YAML, has two readings, or asks for an object or for unbounded memory.
    """
    try:
        node = _Composer(text).get_single_node()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"the character U+{_code(error):04X} is not allowed in YAML; delete it") from None
    except yaml.MarkedYAMLError as error:
        raise _worded(text, error) from None
    lines: dict[str, int] = {}
    return Document(None if node is None else _construct(node, "", lines), lines)


def _code(error: ReaderError) -> int:
    return error.character if isinstance(error.character, int) else ord(error.character)


# ---- from text to nodes ----------------------------------------------------------------------------------------------


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's own grammar; what a plain scalar means is decided later, sizes are bounded on the way."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._level = 0
        # of finished nodes, by identity: how many values they expand to, and how deep they are nested
        self._sizes: dict[int, tuple[int, int]] = {}

    def resolve(self, kind: type[Node], value: str | None, implicit: Any) -> str:  # noqa: ARG002
        """Return the tag of a node that has none: a plain scalar is left to :func:`_plain`."""
        if kind is ScalarNode:
            return _PLAIN if implicit[0] else _TEXT
        return _LIST if kind is SequenceNode else _MAP

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose a node; an alias stands for as many values as what it names."""
        line: int = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise YamlError(line, "an alias refers to itself; write the values out")
            return node
        self._level += 1
        if self._level > _DEPTH:
            raise YamlError(line, f"nested more than {_DEPTH} levels deep; sections have two")
        node = super().compose_node(parent, index)
        self._level -= 1
        children = [self._sizes[id(child)] for child in _children(node)]
        size = 1 + sum(count for count, _ in children)
        depth = 1 + max((levels for _, levels in children), default=0)
        if size > _VALUES or depth > _DEPTH:
            raise YamlError(line, f"aliases expand to more than {_VALUES:,} values or {_DEPTH} levels; write them out")
        self._sizes[id(node)] = size, depth
        return node


def _children(node: Node | None) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


# ---- from nodes to values --------------------------------------------------------------------------------------------


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _construct(node: Node, place: str, lines: dict[str, int]) -> Any:
    if isinstance(node, ScalarNode):
        return _scalar(node, place)
    if node.tag not in {_LIST, _MAP}:
        _refuse_tag(node)
    if isinstance(node, SequenceNode):
        return [_construct(child, place, lines) for child in node.value]
    return _mapping(node, place, lines)


def _refuse_tag(node: Node) -> NoReturn:
    tag = str(node.tag).replace(_PREFIX, "!!")
    raise YamlError(
        _line(node), f"the tag {tag} is not supported: a configuration has plain values only; delete the tag"
    )


def _mapping(node: Node, place: str, lines: dict[str, int]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            raise YamlError(_line(key_node), "a key must be text; put text that begins with a bracket into quotes")
        key = key_node.value
        if key_node.tag == _PLAIN and key == "<<":
            sources = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            for source in sources:
                if not isinstance(source, MappingNode):
                    raise YamlError(_line(key_node), "'<<' merges sections by their aliases, such as '<<: *name'")
                merged = _mapping(source, place, lines) | merged
            continue
        if key_node.tag not in {_PLAIN, _TEXT}:
            _refuse_tag(key_node)
        if key in own:
            raise YamlError(_line(key_node), f"duplicate key '{key}': keep one")
        path = f"{place}.{key}" if place else key
        own[key] = _construct(value_node, path, lines)
        lines[path] = _line(key_node)
    return merged | own


def _scalar(node: ScalarNode, place: str) -> Any:
    text: str = node.value
    if node.tag == _TEXT:
        return text
    types = None if node.tag == _PLAIN else _TYPES.get(str(node.tag).removeprefix(_PREFIX))
    if node.tag != _PLAIN and types is None:
        _refuse_tag(node)
    try:
        value = _plain(text)
    except ValueError as error:
        raise YamlError(_line(node), f"'{place}': {error}" if place else str(error)) from None
    if types is not None and type(value) not in types:
        raise YamlError(_line(node), f"{text!r} does not fit its tag {str(node.tag).replace(_PREFIX, '!!')}")
    return value


def _plain(text: str) -> Any:
    """Return what an unquoted scalar means; raises ValueError where it has two readings or fits no number."""
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        if len(text) > _LONGEST_WHOLE:
            raise ValueError(f"a number of {len(text)} digits is too large")
        return int(text)
    if _OTHER_BASE.fullmatch(text) and len(text) <= _LONGEST_WHOLE:
        return int(text, 0)
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(f"{text} may be decimal or octal: drop the leading zero, or quote it if it is text")
    if _DECIMAL.fullmatch(text):
        value = float(text)
        if math.isinf(value) or (value == 0 and re.search("[1-9]", re.split("[eE]", text)[0])):
            size = "large" if value else "small"
            raise ValueError(f"{text} is too {size} for a number; quote it if it is text")
        return value
    return Unquoted(text) if text.lower() in TRUTH else text


# ---- errors ----------------------------------------------------------------------------------------------------------

_HINTS: tuple[tuple[str, str, bool], ...] = (
    ("mapping values are not allowed", "a second ': ', or a wrong indentation: quote a value that holds ': '", False),
    ("could not find expected ':'", "a key without ': ' and a value", True),
    ("but found another document", "a second document begins: keep one", False),
    ("expected ',' or ']'", "the list that begins with '[' is not closed by ']', or lacks a comma", True),
    ("expected ',' or '}'", "the section that begins with '{' is not closed by '}', or lacks a comma", True),
    ("expected the node content", "a value is missing before this place", False),
    ("unexpected end of stream", "the quote that begins here is never closed", True),
    (
        "expected alphabetic or numeric character",
        "a value that begins with '*' or '&', such as a pattern: quote it",
        False,
    ),
    ("undefined alias", "a value that begins with '*' names an alias that is not defined: quote a pattern", False),
    ("cannot start any token", "a value that begins with a sign of YAML's own: quote it", False),
    ("expected <block end>", "does not line up with the lines above: check the indentation", False),
    ("unknown escape character", "a backslash in double quotes: use single quotes", False),
    ("undefined tag handle", "a value that begins with '!': quote it", False),
)
"""Part of PyYAML's words, ours, and whether the line is where the problem begins rather than where it is seen."""


def _worded(text: str, error: yaml.MarkedYAMLError) -> YamlError:
    problem = " ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    line = 1 if mark is None else mark.line + 1
    rows = text.splitlines()
    around = range(line - 1 if error.context_mark is None else min(error.context_mark.line, line - 1), line)
    for row in around:
        indent = rows[row][: len(rows[row]) - len(rows[row].lstrip())] if row < len(rows) else ""
        if "\t" in indent:
            return YamlError(row + 1, "a tab in the indentation: YAML takes spaces only")
    if "'\\t'" in problem:
        return YamlError(line, "a tab where YAML takes spaces only: replace it, or quote the text that holds it")
    for words, ours, begins in _HINTS:
        if words in problem:
            return YamlError(error.context_mark.line + 1 if begins and error.context_mark else line, ours)
    return YamlError(line, f"not valid YAML ({problem})")
