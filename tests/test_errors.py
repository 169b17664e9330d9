"""Words of messages."""

from __future__ import annotations

import pytest

from drapes_hep.errors import DrapesError, InputError, counted, printable, reason_of


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (0, ("window",), "0 windows"),
        (1, ("window",), "1 window"),
        (2, ("window",), "2 windows"),
        (1, ("event was", "events were"), "1 event was"),
        (2, ("event was", "events were"), "2 events were"),
    ],
)
def test_a_number_agrees_with_its_noun(number, words, said):
    assert counted(number, *words) == said


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pT of \u03b3, 5 \u00b5m: 100 %", "pT of \u03b3, 5 \u00b5m: 100 %"),
        ("C:\\new\\file", "C:\\new\\file"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("a\x07\x00\t\x7f", "a\\x07\\x00\\t\\x7f"),
        ("\u202eslej\u2028", "\\u202eslej\\u2028"),
        ("name\udcff.root", "name\\udcff.root"),
        ("\nis wrong\n  Traceback\r\n", "is wrong Traceback"),
        ("a" * 255, "a" * 255),
        ("/".join(["a" * 255] * 3), "/".join(["a" * 255] * 3)),
        ("a" * 100 + "b" * 400, "a" * 84 + "... ..." + "b" * 43),
    ],
)
def test_text_of_any_origin_is_one_printable_line(text, line):
    assert printable(text) == line
    assert printable(line) == line


def test_an_error_is_a_line_of_bounded_length_whatever_it_quotes():
    assert str(InputError("a.root", "lacks 'b\x1b'", "add it")) == "a.root: lacks 'b\\x1b'; add it"
    line = str(InputError("a.root", f"lacks '{'b c ' * 1000}'", "add it"))
    assert len(line) == 1007
    assert line.startswith("a.root: lacks 'b c b c")
    assert line.endswith("b c '; add it")
    assert str(DrapesError()) == ""


def test_a_reason_is_the_first_line_that_says_something():
    assert reason_of(RuntimeError("\n  is wrong\nbecause")) == "RuntimeError: is wrong"
