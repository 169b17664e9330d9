"""Imports go one way: the order that docs/architecture.md states."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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
    found = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "drapes_hep":
            here = parts[1] if len(parts) > 1 else "__init__"
            known = (PACKAGE / here).is_dir() or (PACKAGE / f"{here}.py").exists()
            found.add(here if known else "__init__")
    return found


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
