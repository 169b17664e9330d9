"""Words of messages."""

from __future__ import annotations

import pytest

from drapes_hep.errors import DrapesError, InputError, counted, printable, reason_of, without_secrets


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:word@host.org/a.root: missing", "https://...@host.org/a.root: missing"),
        ("https://me@host.org:80//a.root", "https://...@host.org:80//a.root"),
        ("root://host//store/a@b.root?authz=Bearer%20x.y.z: missing", "root://host//store/a@b.root?authz=...: missing"),
        ("('https://h/a?X-Amz-Signature=ab/c:d&n=1')", "('https://h/a?X-Amz-Signature=...&n=1')"),
        ("https://h/a?download=1&file=b.root, row 3", "https://h/a?download=1&file=b.root, row 3"),
        (f"https://h/a?x={'z' * 20}; copy it", "https://h/a?x=...; copy it"),
        (
            "https://h/a?apiKey=1&token=2 https://h/b?PASSWD=3",
            "https://h/a?apiKey=...&token=... https://h/b?PASSWD=...",
        ),
        ("a@b.org?token=1", "a@b.org?token=1"),
    ],
)
def test_what_opens_a_url_is_left_out(text, shown):
    assert without_secrets(text) == printable(text) == shown


def test_an_error_is_a_line_of_bounded_length_whatever_it_quotes():
    assert str(InputError("a.root", "lacks 'b\x1b'", "add it")) == "a.root: lacks 'b\\x1b'; add it"
    line = str(InputError("a.root", f"lacks '{'b c ' * 1000}'", "add it"))
    assert len(line) == 1007
    assert line.startswith("a.root: lacks 'b c b c")
    assert line.endswith("b c '; add it")
    assert str(DrapesError()) == ""


def test_a_reason_is_the_first_line_that_says_something():
    assert reason_of(RuntimeError("\n  is wrong\nbecause")) == "RuntimeError: is wrong"
