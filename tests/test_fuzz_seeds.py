"""What fuzzing once found, as recipes: a base and the mutations that it needs. ``python tools/fuzz.py`` finds more."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from conftest import ROOT

from tools.fuzzing.bases import BASES
from tools.fuzzing.mutations import mutate_bytes, mutate_tree
from tools.fuzzing.targets import execute, list_bases

SEEDS = json.loads((Path(__file__).parent / "data" / "fuzz_seeds.json").read_text(encoding="utf-8"))
QUICK = ("hdf5", "raw", "simulated", "parquet", "truth", "model", "checkpoint", "config")


def name_of(seed):
    return f"{seed['recipe']['target']}-{seed['name']}"


@pytest.mark.parametrize("seed", SEEDS, ids=name_of)
def test_what_once_failed_is_one_line(seed, tmp_path):
    outcome = execute(seed["recipe"], tmp_path)
    assert (outcome.kind, outcome.signature) == ("refused", "")
    assert seed["line"] in outcome.text


# ---- the fuzzing itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", QUICK)
def test_an_unchanged_base_is_read(target, tmp_path):
    for base in list_bases(target, tmp_path):
        # whether pandas' table format is read is another test's question
        if base != "table":
            assert execute({"target": target, "base": base, "mutations": []}, tmp_path).kind == "result", base


def test_a_changed_value_is_seen_to_be_another(tmp_path):
    """What is read without complaint although bytes were changed must be counted as such."""
    recipe = {"target": "simulated", "base": "arrays", "mutations": []}
    assert execute(recipe, tmp_path).kind == "result"
    content = (tmp_path / "events.h5").read_bytes()
    # the last byte but one of a double: its value moves by some per cent, and stays physical
    place = content.index(struct.pack("<d", 1300.0)) + 6
    changed = execute({**recipe, "mutations": [["flip", place, 0]]}, tmp_path)
    assert changed.kind == "changed"


def test_a_traceback_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("drapes_hep.events.skims.missing_columns", lambda *_: 1 / 0)
    outcome = execute({"target": "truth", "base": "truth", "mutations": []}, tmp_path)
    assert outcome.kind == "failure"
    assert outcome.signature.startswith("ZeroDivisionError")


def test_a_message_of_two_lines_is_a_failure(tmp_path, monkeypatch):
    from drapes_hep.errors import DrapesError

    class TwoLinesError(DrapesError):
        def __str__(self) -> str:
            return "is wrong\nTraceback"

    def refuse(*_, **__):
        raise TwoLinesError

    monkeypatch.setattr("drapes_hep.events.skims.read_truth", refuse)
    assert execute({"target": "truth", "base": "truth", "mutations": []}, tmp_path).signature == "message: not one line"


def test_mutations_apply_to_anything():
    assert mutate_bytes(b"", [["flip", 3, 1]]) == b""
    assert mutate_bytes(b"abcd", [["truncate", 2], ["flip", 5, 0]]) == b"ac"
    assert mutate_bytes(b"abcd", [["swap", 0, 2, 2]]) == b"cdab"
    assert mutate_bytes(b"abcd", [["integer", 1, 1, 1, True]]) == b"a\x01\x00d"
    assert mutate_bytes(b"abcd", [["set", 1, 1], ["value", 0, 0, "nan"]]) == b"abcd"
    assert mutate_tree({"a": [1, 2]}, [["set", 2, 7], ["remove", 1]]) == {"a": [7]}
    assert mutate_tree({"a": 1}, [["key", 0, "b"]]) == {"b": 1}


def test_recipes_are_small_and_of_generated_bases():
    for seed in SEEDS:
        assert len(json.dumps(seed)) < 4096
        bases = {*BASES.get(seed["recipe"]["target"], ()), *(path.name for path in (ROOT / "configs").glob("*.yaml"))}
        assert seed["recipe"]["base"] in {*bases, "killed.safetensors", "card.json", "model.safetensors"}
