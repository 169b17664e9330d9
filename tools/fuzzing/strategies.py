"""How recipes are drawn: hypothesis strategies for the mutations of each target."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tools.fuzzing.bases import DATASETS
from tools.fuzzing.mutations import NUMBERS

__all__ = ["NASTY_TEXT", "recipes"]

NASTY_TEXT = (
    "",
    "~",
    "null",
    "[]",
    "{}",
    "[[]]",
    "0123",
    "1e4",
    "0x1F",
    "1_000",
    "1:30",
    "-1",
    "0",
    "1e400",
    ".nan",
    ".inf",
    "-.inf",
    "9" * 400,
    "yes",
    "'",
    '"',
    "*a",
    "&a [*a]",
    "&a {b: *a}",
    "!!python/object/apply:os.getcwd []",
    "!!binary YQ==",
    "!!set {a, b}",
    "!!timestamp 2001-01-01",
    "2001-01-01",
    "2001-01-01T00:00:00Z",
    "!unknown x",
    "{a: 1, a: 2}",
    "{1: 2}",
    "{[1, 2]: 3}",
    "{? {a: 1} : 2}",
    "<<: 1",
    "{<<: [1]}",
    "\t",
    "\t- a",
    "a: b: c",
    "@x",
    "`x`",
    "%YAML 1.1",
    "---",
    "...",
    "# only a comment",
    "\u0000",
    "\x1b[31m",
    "\ufeff",
    "\u2028",
    "\ud800",
    "é",
    "x" * 3000,
    "[" * 2000,
    "{a: " * 300,
    "- " * 300,
    "../../etc",
    "~root",
    "file:///x",
    "http://",
    "https://localhost:1/x",
    "*.root",
    "[1",
    "package.module:Class",
    "os:system",
    "builtins:exec",
    "json:JSONDecoder",
    "x.py:Class",
)
"""Values of a configuration that no one would write, but somebody did."""

PLACE = st.integers(0, 1 << 24)
NEAR = st.integers(0, 400)
LENGTH = st.integers(1, 600)
SMALL = st.integers(0, 50)
NUMBER = st.sampled_from(sorted(NUMBERS))

SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2, 1e4, 0.5, 1e-9, 1e300, -1e300, 2**63, 10**40])
    | st.sampled_from(NASTY_TEXT[:40])
)
TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _one(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.tuples(*arguments).map(lambda values: [name, *values])


BYTES = st.one_of(
    _one("flip", PLACE, st.integers(0, 7)),
    _one("flip", NEAR, st.integers(0, 7)),
    _one("byte", PLACE, st.integers(0, 255)),
    _one("integer", PLACE, SMALL, st.integers(0, 3), st.booleans()),
    _one("integer", NEAR, SMALL, st.integers(0, 3), st.booleans()),
    _one("truncate", PLACE),
    _one("zero", PLACE, LENGTH),
    _one("swap", PLACE, PLACE, LENGTH),
    _one("copy", PLACE, PLACE, LENGTH),
    _one("insert", PLACE, LENGTH),
    _one("delete", PLACE, LENGTH),
    _one("append", LENGTH),
)

TABLE = st.one_of(
    _one("value", SMALL, PLACE, NUMBER),
    _one("value", SMALL, PLACE, NUMBER),
    _one("type", SMALL, SMALL),
    _one("drop", SMALL),
    _one(
        "rename", SMALL, st.sampled_from(["x", "label", "event_id", "weight", "jets", "", "a/b", "pxj1;2", "\x1b[31m"])
    ),
    _one("over", SMALL, SMALL),
    _one("rows", st.integers(0, 45)),
    _one("lists", SMALL, st.integers(0, 3)),
    _one("shorter", SMALL, st.integers(1, 40)),
    _one("column", st.sampled_from(["label", "parent_id", "run", "FatJet_pt", "pxj1 ", "é", "mjj"]), SMALL).map(
        lambda parts: [parts[0], parts[2], parts[1]]
    ),
)

HDF5 = st.one_of(
    _one("attribute", SMALL, SMALL, SMALL),
    _one("no attribute", SMALL, SMALL),
    _one("no object", SMALL),
    _one("dataset", SMALL, st.sampled_from(sorted(DATASETS))),
    _one("link", SMALL, st.sampled_from(["nowhere", "itself", "root", "outside", "this file"])),
)

METADATA = _one(
    "metadata",
    st.sampled_from(
        [
            "",
            "[]",
            "null",
            "1",
            "{",
            '{"schema_version": 2}',
            '{"schema_version": "1"}',
            '{"schema_version": null}',
            '{"schema_version": true}',
            '{"schema_version": -1}',
            '{"kind": [1]}',
            '{"simulation": {"order": 1}}',
            "deep",
        ]
    ),
)

TEXT = st.one_of(
    _one("line", PLACE, st.sampled_from(NASTY_TEXT)),
    _one("new line", PLACE, st.sampled_from(NASTY_TEXT)),
    _one("no line", PLACE),
    _one("twice", PLACE),
    _one("words", PLACE, st.sampled_from(NASTY_TEXT) | st.text(max_size=3)),
    _one("after colon", PLACE, st.sampled_from(NASTY_TEXT)),
)

TREE = st.one_of(
    _one("set", PLACE, TREES),
    _one("set", PLACE, SCALARS),
    _one("remove", PLACE),
    _one(
        "key",
        PLACE,
        st.sampled_from(["", "x", "data", "path", "mass.range", "é", "\n", "__class__"]) | st.text(max_size=4),
    ),
    _one("number", PLACE, NUMBER),
)

_KINDS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "ttree": (BYTES, TABLE),
    "rntuple": (BYTES, TABLE),
    "hdf5": (BYTES, TABLE, HDF5),
    "raw": (BYTES, TABLE, HDF5, TEXT),
    "simulated": (BYTES, TABLE, HDF5),
    "parquet": (BYTES, TABLE, METADATA),
    "truth": (BYTES, TABLE, METADATA),
    "config": (BYTES, TEXT, TREE),
    "assign": (_one("assign", st.sampled_from(NASTY_TEXT)),),
    "run": (BYTES, TREE, TABLE),
    "model": (BYTES, TREE),
    "checkpoint": (BYTES, TREE),
}


def recipes(target: str, bases: tuple[str, ...], keys: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for the recipes of a target.

    Parameters
    ----------
    target : str
        Its name.
    bases : tuple of str
        What is mutated.
    keys : tuple of str
        Keys of the configuration, for assignments.

    Returns
    -------
    strategy of dict
        ``{"target", "base", "mutations"}``.
    """
    if target == "assign":
        key = (
            st.sampled_from(keys)
            | st.text(max_size=8)
            | st.sampled_from(["", ".", "data.", ".data", "data..path", "=", "seed.x"])
        )
        value = st.sampled_from(NASTY_TEXT) | st.text(max_size=6)
        words = st.tuples(key, st.sampled_from(["=", "=", "=", "", "==", " = "]), value).map("".join)
        mutations = st.lists(_one("assign", words), min_size=1, max_size=3)
    else:
        # mostly of one kind: a damaged file with a changed column fails for the damage
        kinds = _KINDS[target]
        alone = st.one_of([st.lists(kind, min_size=1, max_size=4) for kind in kinds])
        mutations = alone if len(kinds) == 1 else alone | st.lists(st.one_of(kinds), min_size=2, max_size=5)
    return st.fixed_dictionaries({"target": st.just(target), "base": st.sampled_from(bases), "mutations": mutations})
