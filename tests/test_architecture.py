"""Imports go one way, as docs/architecture.md states; functions are small; names are plain English."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import module_from_spec, spec_from_file_location
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


def test_the_report_needs_no_torch():
    """Whatever the report imports, inside functions too: a page is drawn from files, without loading a model."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    # the package itself imports what it offers when that is used
    modules.pop("drapes_hep")
    rest = [name for name in modules if name.startswith("drapes_hep.report")] + ["drapes_hep.stages.report"]
    reached: set[str] = set()
    while rest:
        name = rest.pop()
        if name in modules and name not in reached:
            reached.add(name)
            # a module runs after the packages that hold it
            rest += [*imported(modules[name]), name.rpartition(".")[0]]
    assert "drapes_hep.spectrum.poisson" in reached
    users = {name for name in reached if any(one.split(".")[0] == "torch" for one in imported(modules[name]))}
    assert not users


def borrowed(path: Path) -> Iterator[str]:
    """Names with an underscore that a file takes from another module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names if is_private(alias.name))
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        private = isinstance(node, ast.Attribute) and is_private(node.attr)
        if private and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield f"{modules[node.value.id]}.{node.attr}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


PRIVATE_OF_OTHERS = {
    "os._exit": "documented",
    "sys._getframe": "documented",
    "fastjet._swig": "the one way to fastjet's own pseudo-jets, see events/clustering.py",
}


@pytest.mark.parametrize("folder", ["drapes_hep", "processors", "analysis", "benchmarks", "tools"])
def test_no_module_uses_a_private_name_of_another(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    found = {(path.relative_to(ROOT).as_posix(), name) for path in paths for name in borrowed(path)}
    assert not {(path, name) for path, name in found if name not in PRIVATE_OF_OTHERS}


def load_counts():
    spec = spec_from_file_location("counts", ROOT / "tools" / "counts.py")
    module = sys.modules["counts"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OPTIONS = "keyword-only options, each with a default or a name where it is called"
COMMAND = "typer makes an option of the command line of each argument"
OVER = {
    "drapes_hep/cli.py:_stage.command": COMMAND,
    "drapes_hep/cli.py:apply_run": COMMAND,
    "drapes_hep/cli.py:limit_signal": COMMAND,
    "drapes_hep/cli.py:study": COMMAND,
    "drapes_hep/cli.py:simulate": COMMAND,
    "drapes_hep/cwola/scores.py:equal_size_auc": OPTIONS,
    "drapes_hep/cwola/scores.py:out_of_fold_scores": OPTIONS,
    "drapes_hep/cwola/set_classifiers.py:DijetTransformer.__init__": OPTIONS,
    "drapes_hep/cwola/set_classifiers.py:_SetClassifier.__init__": OPTIONS,
    "drapes_hep/diffusion/samplers.py:sample": OPTIONS,
    "drapes_hep/diffusion/training.py:train": OPTIONS,
    "drapes_hep/events/processing.py:run": OPTIONS,
    "drapes_hep/networks/transformer.py:SetTransformer.__init__": OPTIONS,
    "drapes_hep/plots/style.py:canvas": OPTIONS,
    "drapes_hep/templates/constituents/model.py:ConstituentModel.generate": OPTIONS,
    "drapes_hep/templates/constituents/jet_model.py:JetModel.generate": OPTIONS,
    "drapes_hep/templates/feature_model.py:BackgroundModel.generate": OPTIONS,
}
"""Functions over 60 lines, 20 branches or 8 arguments, each with the reason."""


def test_functions_are_small():
    over = {one.name: one for one in load_counts().count() if one.over}
    assert not over.keys() - OVER.keys(), [over[name] for name in over.keys() - OVER.keys()]
    assert not OVER.keys() - over.keys(), "these are small by now: take them out of the table"


def test_only_arguments_may_be_many_for_options():
    counts = load_counts()
    for one in counts.count():
        if OVER.get(one.name) in (OPTIONS, COMMAND):
            assert one.lines <= counts.MAX_LINES
            assert one.branches <= counts.MAX_BRANCHES


def test_counts_of_a_function():
    text = """
def outer(a, b=1, *c, d, **e):
    '''Docs
    of two lines.'''
    if a and b or c:
        return [x for x in c if x]
    def inner(self, y): return y if y else 0
"""
    outer, inner = load_counts().functions(text, "x.py")
    assert (outer.name, outer.line, outer.lines, outer.arguments) == ("x.py:outer", 2, 4, 5)
    # if, and, or, comprehension and its condition, and the conditional expression of the inner function
    assert outer.branches == 1 + 3 + 2 + 1
    assert (inner.name, inner.lines, inner.branches, inner.arguments) == ("x.py:outer.inner", 1, 2, 1)


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
