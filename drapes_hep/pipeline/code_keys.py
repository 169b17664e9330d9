"""Which code a stage's result rests on: the modules that it imports, by hashes of what they do.

The closure is found in the source, without importing it: imports at the head of a module and inside functions, and
names of modules in text (``"drapes_hep.cwola.perceptron:Mlp"``, as registries hold them), not what is imported for
annotations alone. A module's hash is one of its syntax tree without docstrings and positions, so that words, comments
and line breaks do not count. Three kinds of import are not followed:

- a package's ``__init__`` on the way to one of its modules; a name that it re-exports leads to the module that has it;
- descriptions of other stages (``*_stage``), since stages pass files to each other, and those are hashed;
- modules that can change no number, :data:`CHANGE_NO_NUMBER`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drapes_hep.files import content_hash

__all__ = ["CHANGE_NO_NUMBER", "PACKAGE", "code_hash", "hashes_of", "module_hashes"]

PACKAGE = Path(__file__).resolve().parents[1]

CHANGE_NO_NUMBER = {
    "caller": "words",
    "config": "its values are in the keys themselves, each with the stages that it decides",
    "errors": "words",
    "events.declared": "finds the keys",
    "guard": "watches the process",
    "interrupts": "ends the process",
    "pipeline.provenance": "recorded, and compared nowhere",
    "keys": "finds the keys",
    "parallel": "where the work is done",
    "pipeline.code_keys": "finds the keys",
    "progress": "words and clocks",
    "pipeline.stage": "decides what is run, not what comes out",
    "pipeline.run_directory": "where files lie",
    "pipeline.execution": "decides what is run, not what comes out",
}
"""Modules that are in no stage's code, and why."""

_NAME = re.compile(r"(drapes_hep(?:\.\w+)+)(?::\w+)?")
_WORDS_ALONE = {"kind", "type_comment", "ctx"}
"""Fields of syntax trees that no result follows from."""
_IMPORTING = (ast.Import, ast.ImportFrom, ast.Constant)


def hashes_of(code: Sequence[str | Path], root: Path = PACKAGE) -> dict[str, str]:
    """Return the hashes of all modules that some code rests on.

    Parameters
    ----------
    code : sequence of str or Path
        Modules of the package, dotted, without its name (``stages.skim``); and files of a user's, of which only the
        imports count: the files themselves are hashed elsewhere.
    root : Path
        The package's folder.

    Returns
    -------
    dict of str to str
        By file (``drapes_hep/spectrum/fit.py``).

    Raises
    ------
    ValueError
        If there is no such module.
    """
    hashes: dict[str, str] = {}
    todo = [
        target
        for module_path in code
        for target in (_users(module_path, root) if isinstance(module_path, Path) else [module_path])
    ]
    if absent := [name for name in todo if _file(name, root) is None]:
        raise ValueError(f"no module drapes_hep.{absent[0]}")
    visited = set(todo)
    while todo:
        path = _file(todo.pop(), root)
        assert path is not None
        module = _module(path, root, path.stat().st_mtime_ns)
        hashes[f"drapes_hep/{path.relative_to(root).as_posix()}"] = module.hash
        new = set(module.imports) - visited
        visited |= new
        todo += new
    return dict(sorted(hashes.items()))


@functools.cache
def module_hashes(code: tuple[str | Path, ...]) -> Mapping[str, str]:
    """Return :func:`hashes_of` as this process first saw the files."""
    return hashes_of(code)


def code_hash(*code: str | Path) -> str:
    """Return one hash for all modules that some code rests on, as this process first saw them."""
    return content_hash(module_hashes(code).items())


@dataclass(frozen=True)
class _Module:
    """The hash of what a module does, and the modules that it imports."""

    hash: str
    imports: tuple[str, ...]


@functools.lru_cache(1024)
def _module(path: Path, root: Path, _: int) -> _Module:
    text, importing = _read(path)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    package = ("drapes_hep", *path.relative_to(root).parent.parts)
    return _Module(digest, tuple(sorted(set(_imports(importing, package, root)))))


def _users(path: Path, root: Path) -> list[str]:
    """Return the modules of the package that a user's file imports."""
    return sorted(set(_imports(_read(path)[1], (), root)))


def _file(name: str, root: Path) -> Path | None:
    """Find a module's file; None where there is no such module."""
    place = root.joinpath(*name.split(".")) if name else root
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


# ---- syntax trees ----------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[str, list[ast.AST]]:
    """Return the text of a file's tree, and its nodes that may import, without what is imported for annotations."""
    tree = ast.parse(path.read_bytes(), str(path))
    _prune(tree)
    text: list[str] = []
    importing: list[ast.AST] = []
    _write(tree, text.append, importing.append)
    return "".join(text), importing


def _prune(node: ast.AST) -> None:
    """Remove docstrings, and what is imported for annotations alone."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        block = getattr(node, field, None)
        if isinstance(block, list):
            statements = [statement for whole in block for statement in _without_words(whole)]
            setattr(node, field, statements)
            for statement in statements:
                _prune(statement)


def _without_words(statement: ast.AST) -> Sequence[ast.AST]:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return []  # a docstring, of a class or of a constant
    if isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
        return statement.orelse
    return [statement]


def _write(node: object, add: Callable[[str], None], importing: Callable[[ast.AST], None]) -> None:
    """Write a syntax tree as text that is the same in every release of Python: empty fields come and go."""
    if isinstance(node, ast.AST):
        if isinstance(node, _IMPORTING):
            importing(node)
        add(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is not None and name not in _WORDS_ALONE and value != []:
                add(f"{name}=")
                _write(value, add, importing)
        add(")")
    elif isinstance(node, list):
        add("[")
        for item in node:
            _write(item, add, importing)
        add("]")
    else:
        add(f"{node!r},")


def _imports(nodes: Sequence[ast.AST], package: tuple[str, ...], root: Path) -> Iterator[str]:
    """Yield the modules of the package that nodes import or name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (target for alias in node.names for target in _target(alias.name, None, root))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            yield from (target for alias in node.names for target in _target(module, alias.name, root))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = _NAME.fullmatch(node.value)
            if named:
                yield from _target(named[1], None, root)


def _target(module: str, name: str | None, root: Path) -> list[str]:
    """Return the module that an import leads to, without the package's name; nothing for what is not followed."""
    package, _, place = module.partition(".")
    if package != "drapes_hep" or place in CHANGE_NO_NUMBER or (name or "").endswith("_stage"):
        return []
    if name is None:
        return [place] if _file(place, root) else []
    inner = f"{place}.{name}".strip(".")
    if inner in CHANGE_NO_NUMBER:
        return []
    if _file(inner, root):
        return [inner]
    path = _file(place, root)
    if path is None or (not place and name.startswith("__")):
        return []
    if path.name == "__init__.py" and (source := _reexports(path, path.stat().st_mtime_ns).get(name)):
        return _target(*source, root)
    return [place]


@functools.lru_cache(64)
def _reexports(path: Path, _: int) -> dict[str, tuple[str, str]]:
    """Find from where a package's ``__init__`` has its names, those that it imports when they are first used too."""
    # a lazy name stands in the imports for type checkers, which the pruned tree has not
    nodes = ast.walk(ast.parse(path.read_bytes(), str(path)))
    statements = [statement for statement in nodes if isinstance(statement, ast.ImportFrom) and not statement.level]
    return {
        alias.asname or alias.name: (statement.module or "", alias.name)
        for statement in statements
        for alias in statement.names
    }
