"""Words of messages."""

from __future__ import annotations

import pytest

from drapes_hep.errors import counted


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
