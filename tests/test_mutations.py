"""The table of mutations: that it is up to date, and what the script that runs it says. The mutations are not run."""

from __future__ import annotations

import ast
import importlib.util
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def mutate():
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutate"]


def test_every_mutation_can_be_made(mutate):
    assert [problem for mutation in mutate.read_table() if (problem := mutate.outdated(mutation))] == []


def test_every_mutation_is_code(mutate):
    for mutation in mutate.read_table():
        ast.parse((ROOT / mutation.file).read_text(encoding="utf-8").replace(mutation.old, mutation.new))


def test_every_mutation_has_its_test(mutate):
    tests = {mutation.test.partition("[")[0] for mutation in mutate.read_table()}
    defined = set()
    for file in {test.partition("::")[0] for test in tests}:
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        defined |= {f"{file}::{node.name}" for node in body if isinstance(node, ast.FunctionDef)}
    assert tests - defined == set()


def test_a_text_that_has_moved_is_named_with_its_new_file(mutate):
    moved = mutate.Mutation("toys: a rule", "drapes_hep/rng.py", "p = (k + 1) / (toys + 1)", "p = 1", "tests/x.py::y")
    assert mutate.outdated(moved) == (
        "drapes_hep/rng.py: the text of 'toys: a rule' occurs 0 times, not once: p = (k + 1) / (toys + 1);"
        " found in drapes_hep/bumphunt/exceedance.py"
    )


@pytest.mark.parametrize(("status", "said"), [(0, "SURVIVED"), (1, "noticed"), (2, "NOT RUN"), (4, "NOT RUN")])
def test_only_a_test_that_fails_notices_a_mutation(mutate, status, said):
    assert mutate.verdict(status) == said
