"""Imports go one way, as docs/architecture.md states; names and docstrings are plain English."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "drapes_hep"


def stated_order() -> list[str]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## Order of modules")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, those inside functions and annotations' blocks included."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from drapes_hep import plots` names a module; `from drapes_hep.spectrum.drawing import draw` does not
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "drapes_hep" else (module,)


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def drapes_units(path: Path) -> set[str]:
    units = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "drapes_hep":
            name_of_unit = parts[1] if len(parts) > 1 else "__init__"
            is_unit = (PACKAGE / name_of_unit).is_dir() or (PACKAGE / f"{name_of_unit}.py").exists()
            units.add(name_of_unit if is_unit else "__init__")
    return units


SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_a_place():
    order = stated_order()
    assert len(order) == len(set(order))
    assert set(order) == {unit(path) for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_from_below_itself(path):
    order = stated_order()
    mine = order.index(unit(path))
    below = {name for name in drapes_units(path) if order.index(name) > mine}
    assert not below, f"{unit(path)} imports {sorted(below)}, which stand below it in docs/architecture.md"


def test_no_modules_import_each_other():
    """No circles, those included that an import inside a function hides."""
    places = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
    }
    graph = {name: set() for name in places}
    for name, path in places.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = (f"{node.module}.{alias.name}" for alias in node.names)
                graph[name] |= {target if target in places else node.module for target in targets}
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
        graph[name] &= places.keys() - {name}
    # raises CycleError, which names them
    assert len(tuple(TopologicalSorter(graph).static_order())) == len(places)


def test_the_library_knows_neither_processors_nor_analysis():
    for path in SOURCES:
        assert not {name.split(".")[0] for name in imported(path)} & {"processors", "analysis"}, path
    for path in (ROOT / "processors").rglob("*.py"):
        assert "analysis" not in {name.split(".")[0] for name in imported(path)}, path


def test_training_diffusion_and_networks_know_no_physics():
    for path in SOURCES:
        if unit(path) == "networks":
            assert drapes_units(path) <= {"networks", "packed"}
        if unit(path) == "diffusion":
            assert drapes_units(path) <= {"diffusion", "errors", "files", "kernels", "packed", "training"}
        if unit(path) == "training":
            assert drapes_units(path) <= {"training", "errors", "files", "interrupts"}


PLAIN = [
    path
    for name in ("drapes_hep", "processors", "analysis", "tools", "benchmarks")
    for path in (ROOT / name).rglob("*.py")
]
VAGUE = {"found", "made", "told", "given", "known", "kept", "there", "here", "beside", "one"}
UNFINISHED: set[str] = set()
"""Modules whose names are still to be changed."""


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def stored_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each variable, argument and attribute that a file sets."""
    for node in nodes(path):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def test_no_name_is_a_bare_participle_or_adverb():
    vague = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in PLAIN
        if str(path.relative_to(ROOT)) not in UNFINISHED
        for line, name in stored_names(path)
        if name.lstrip("_") in VAGUE
    ]
    assert not vague, "a name says what the value is:\n" + "\n".join(vague)


def test_no_docstring_begins_with_give_or_say():
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    begins = [
        f"{path.relative_to(ROOT)}: {docstring.splitlines()[0]}"
        for path in PLAIN
        for node in nodes(path)
        if isinstance(node, documented) and re.match("(Give|Say)s?\\b", docstring := ast.get_docstring(node) or "")
    ]
    assert not begins, "a docstring begins with Return, Compute, Whether or another verb:\n" + "\n".join(begins)
