"""YAML text: what people mean, or one line that says where and why not."""

from __future__ import annotations

import pickle

import pytest

from drapes_hep.yaml_text import Unquoted, YamlError, decode, parse

BOMB = "\n".join(
    f"{name}: &{name} [{', '.join([value] * 10)}]"
    for name, value in zip("abcdefgh", ["x", "*a", "*b", "*c", "*d", "*e", "*f", "*g"], strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "\n".join(
    f"{name}: &{name} {{{name}: &m{name} {{<<: [{', '.join([value] * 10)}]}}}}"
    for name, value in zip("bcdefgh", ["*a", "*mb", "*mc", "*md", "*me", "*mf", "*mg"], strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e4", 1e4),
        ("1.5e3", 1500.0),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("-.5e-1", -0.05),
        ("1.", 1.0),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("+7", 7),
        ("-0", 0),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", 3),
        ("10000000000000000000000000000", 10**28),
        ("12:30:00", "12:30:00"),
        ("22:22", "22:22"),
        ("2016-01-02", "2016-01-02"),
        ("2016-01-02T12:00:00Z", "2016-01-02T12:00:00Z"),
        ("no", Unquoted("no")),
        ("Yes", Unquoted("Yes")),
        ("on", Unquoted("on")),
        ("off", Unquoted("off")),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        (".inf", float("inf")),
        ("-.INF", -float("inf")),
        ("nan", "nan"),
        ("1__0", "1__0"),
        ("'0123'", "0123"),
        ('"1e4"', "1e4"),
        ("!!str 0123", "0123"),
        ("!!float 3", 3),
        ("a\\b", "a\\b"),
        ("[a, 1]", ["a", 1]),
    ],
)
def test_a_scalar_is_what_is_meant(text, value):
    parsed = parse(f"key: {text}\n").value["key"]
    assert (parsed, type(parsed)) == (value, type(value))


def test_not_a_number_is_read_for_the_key_to_refuse():
    assert str(parse("key: .NaN").value["key"]) == "nan"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nseed: 0123", 2, "'seed': 0123 may be decimal or octal: drop the leading zero"),
        ("a: {b: -08}", 1, "'a.b': -08 may be decimal or octal"),
        ("a: [1,000]", 1, "000 may be decimal or octal"),
        ("a: 1e400", 1, "1e400 is too large for a number"),
        ("a: 1e-400", 1, "1e-400 is too small for a number"),
        ("a: " + "9" * 5000, 1, "a number of 5000 digits is too large"),
        ("a: 1\nb:\n\tc: 1", 3, "a tab in the indentation: YAML takes spaces only"),
        ("\ta: 1", 1, "a tab in the indentation"),
        ("a: 1\nb:\t1", 2, "a tab where YAML takes spaces only"),
        ("a: 1\nb: x\ty", 2, "a tab where YAML takes spaces only"),
        ("a: 1\na: 2", 2, "duplicate key 'a': keep one"),
        ("m:\n  1: 2\n  '1': 3", 3, "duplicate key '1'"),
        ("a: b: c", 1, "quote a value that holds ': '"),
        ("a: 1\n  b: 2", 2, "a wrong indentation"),
        ("a:\n  b: 1\n c: 2", 3, "does not line up"),
        ("a:\n- [1\nb: 2", 2, "is not closed by ']'"),
        ("a: {b: 1\nc", 1, "is not closed by '}'"),
        ("a: 1\nb: 'x\nc: 2", 2, "the quote that begins here is never closed"),
        ("a: 1\nb\nc: 1", 2, "a key without ': '"),
        ("a: *.root", 1, "such as a pattern: quote it"),
        ("a: *x", 1, "names an alias that is not defined"),
        ("a: @x", 1, "a sign of YAML's own: quote it"),
        ('a: "C:\\d"', 1, "a backslash in double quotes"),
        ("a: 1\n---\nb: 2", 2, "a second document begins"),
        ("a: [1,,2]", 1, "a value is missing"),
        ("a: 1\nb: \x01", 2, "the character U+0001 is not allowed in YAML"),
        ("a: !!python/object/apply:os.system [ls]", 1, "the tag !!python/object/apply:os.system is not supported"),
        ("a: !!python/name:os.system", 1, "the tag !!python/name:os.system is not supported"),
        ("a: !mine x", 1, "the tag !mine is not supported"),
        ("a: !!timestamp 2016-01-02", 1, "the tag !!timestamp is not supported"),
        ("!!set {a, b}", 1, "the tag !!set is not supported"),
        ("a: !!int x", 1, "'x' does not fit its tag !!int"),
        ("? [a]\n: 1", 1, "a key must be text"),
        ("a: &a [*a]", 1, "an alias refers to itself"),
        ("a: 1\nb: {<<: 3}", 2, "'<<' merges sections by their aliases"),
        ("[" * 5000, 1, "nested more than 50 levels deep"),
        ("a: &a0 [x]\n" + "\n".join(f"b{i}: &a{i + 1} [*a{i}]" for i in range(60)), 50, "or 50 levels"),
        (BOMB, 6, "aliases expand to more than 1,000,000 values"),
        (MERGE_BOMB, 7, "aliases expand to more than 1,000,000 values"),
    ],
)
def test_what_has_no_one_meaning_is_refused(text, line, words):
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert words in caught.value.problem
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


def test_keys_are_text_as_they_stand():
    assert parse("1: a\n0x1: b\non: c\n~: d\n0123: e\n").value == {
        "1": "a",
        "0x1": "b",
        "on": "c",
        "~": "d",
        "0123": "e",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{t: &b {x: 1}, m: {<<: *b, x: 2}}", {"t": {"x": 1}, "m": {"x": 2}}),
        ("{t: &b {x: 1}, m: {x: 2, <<: *b, y: 3}}", {"t": {"x": 1}, "m": {"x": 2, "y": 3}}),
        (
            "{b: &b {x: 1}, c: &c {x: 3, y: 1}, d: {<<: [*b, *c]}}",
            {"b": {"x": 1}, "c": {"x": 3, "y": 1}, "d": {"x": 1, "y": 1}},
        ),
        ("{b: &b {x: 1}, c: &c {y: 1}, d: {<<: *b, <<: *c}}", {"b": {"x": 1}, "c": {"y": 1}, "d": {"x": 1, "y": 1}}),
        ("{'<<': 3}", {"<<": 3}),
    ],
)
def test_sections_are_merged(text, value):
    assert parse(text).value == value


def test_what_an_alias_gives_is_a_copy():
    value = parse("a: &a {x: [1]}\nb: *a").value
    value["b"]["x"].append(2)
    assert value["a"] == {"x": [1]}


def test_keys_have_their_lines():
    assert parse("a: 1\nb:\n  c: 2\n  d: {e: 3}\n").lines == {"a": 1, "b": 2, "b.c": 3, "b.d": 4, "b.d.e": 4}


@pytest.mark.parametrize("text", ["", "# a comment\n", "---\n", "\ufeff"])
def test_no_document_is_none(text):
    assert parse(text).value is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_of_the_byte_order_are_read(encoding):
    assert parse(decode("a: η\n".encode(encoding))).value == {"a": "η"}


@pytest.mark.parametrize(("content", "line"), [(b"a: 1\nb: \xe9", 2), (b"\xff\xfea", 1)])
def test_bytes_that_are_no_text_are_refused(content, line):
    with pytest.raises(YamlError, match="save the file as UTF-8") as caught:
        decode(content)
    assert caught.value.line == line


def test_an_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(YamlError(3, "a tab")))
    assert (str(error), error.line) == ("line 3: a tab", 3)
