"""Count lines, branches and arguments of every function, and print those over the limits.

``ruff`` has no rule for lines, and its complexity (C901) leaves out boolean operators, conditional expressions and
comprehensions, in which a function can hide most of its branches; hence this script. Branches are counted as radon
does: 1, and 1 for each ``if``, loop, ``except``, ``assert``, ``case``, comprehension, condition of a comprehension,
conditional expression and further operand of ``and`` or ``or``. Inner functions count as part of the outer one, too.

    python tools/counts.py [FOLDER ...]
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("drapes_hep", "processors", "analysis")

MAX_LINES, MAX_BRANCHES, MAX_ARGUMENTS = 60, 20, 8

_BRANCHES = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case,
    ast.comprehension,
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """The counts of one function.

    Attributes
    ----------
    name : str
        The file from the repository's root, a colon, and the function with the classes and functions around it.
    line : int
        Where it begins.
    lines : int
        From ``def`` to its end, without the docstring.
    branches : int
    arguments : int
        Without ``self`` and ``cls``.
    """

    name: str
    line: int
    lines: int
    branches: int
    arguments: int

    @property
    def over(self) -> bool:
        """Whether it is over a limit."""
        return self.lines > MAX_LINES or self.branches > MAX_BRANCHES or self.arguments > MAX_ARGUMENTS


def functions(text: str, path: str) -> list[Counts]:
    """Count every function of a module.

    Parameters
    ----------
    text : str
        Its source.
    path : str
        For the names.

    Returns
    -------
    list of Counts
    """
    return list(_functions(ast.parse(text), f"{path}:"))


def _functions(node: ast.AST, prefix: str) -> Iterator[Counts]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Counts(prefix + child.name, child.lineno, _lines(child), _branches(child), _arguments(child.args))
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _functions(child, f"{prefix}{child.name}." if named else prefix)


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    without = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - without


def _branches(function: ast.AST) -> int:
    return 1 + sum(
        isinstance(node, _BRANCHES)
        + (len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0)
        + (len(node.ifs) if isinstance(node, ast.comprehension) else 0)
        for node in ast.walk(function)
    )


def _arguments(arguments: ast.arguments) -> int:
    positional = [*arguments.posonlyargs, *arguments.args]
    bound = bool(positional) and positional[0].arg in {"self", "cls"}
    starred = (arguments.vararg is not None) + (arguments.kwarg is not None)
    return len(positional) - bound + len(arguments.kwonlyargs) + starred


def count(folders: Sequence[str] = FOLDERS, root: Path = ROOT) -> list[Counts]:
    """Count every function below some folders.

    Parameters
    ----------
    folders : sequence of str
        From ``root``.
    root : Path

    Returns
    -------
    list of Counts
        By file and line.
    """
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    return [
        function
        for path in paths
        for function in functions(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix())
    ]


def main() -> None:
    """Print the functions over a limit, and the totals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", default=FOLDERS)
    counts = count(parser.parse_args().folders)
    print(f"{'lines':>5} {'branches':>8} {'arguments':>9}")  # noqa: T201 - what it is for
    for function in counts:
        if function.over:
            numbers = f"{function.lines:5} {function.branches:8} {function.arguments:9}"
            print(f"{numbers}  {function.name} (line {function.line})")  # noqa: T201
    long, branched, wide = (
        sum(getattr(function, what) > limit for function in counts)
        for what, limit in (("lines", MAX_LINES), ("branches", MAX_BRANCHES), ("arguments", MAX_ARGUMENTS))
    )
    print(  # noqa: T201
        f"{len(counts)} functions: {long} over {MAX_LINES} lines, {branched} over {MAX_BRANCHES} branches,"
        f" {wide} over {MAX_ARGUMENTS} arguments"
    )


if __name__ == "__main__":
    main()
