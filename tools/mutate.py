"""Break each rule of the physics in a copy of the tree, and demand that its test fails.

    python tools/mutate.py
    python tools/mutate.py --only toys --only masses --workers 2

``tests/mutations.toml`` is the table: a rule, a file, the text that states the rule there, the text that breaks it, and
the test that must notice. First the tests of the table run on a copy as it is, and must pass. Then each mutation is
made in the copy, its test is run and must fail, and the mutation is undone. The working tree is never changed.

The exit status is 0 where all of this holds, 1 where a mutation survives, and 2 where the table is out of date, a test
does not pass to begin with, or one cannot be run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "mutations.toml"
FOLDERS = ("drapes_hep", "processors", "analysis", "configs", "tests", "tools", "docs")


@dataclass(frozen=True)
class Mutation:
    """One line of the table.

    Attributes
    ----------
    rule : str
        What holds of the unbroken code.
    file : str
        Path from the root of the repository.
    old, new : str
        Text that occurs exactly once in the file, and what replaces it.
    test : str
        What pytest is given: ``file::test``, for one case of a parametrised test ``file::test[case]``.
    """

    rule: str
    file: str
    old: str
    new: str
    test: str


def read_table(path: Path = TABLE) -> list[Mutation]:
    """Return the lines of the table."""
    return [Mutation(**line) for line in tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]]


def outdated(mutation: Mutation, root: Path = ROOT) -> str | None:
    """Return why a mutation cannot be made in a tree, in one line; None if it can."""
    path = root / mutation.file
    count = path.read_text(encoding="utf-8").count(mutation.old) if path.is_file() else 0
    if count == 1:
        return None if mutation.old != mutation.new else f"{mutation.file}: '{mutation.rule}' changes nothing"
    first = mutation.old.strip().splitlines()[0].strip()
    elsewhere = [
        other.relative_to(root).as_posix()
        for other in sorted((root / "drapes_hep").rglob("*.py"))
        if other != path and mutation.old in other.read_text(encoding="utf-8")
    ]
    hint = f"; found in {', '.join(elsewhere)}" if elsewhere else ""
    return f"{mutation.file}: the text of '{mutation.rule}' occurs {count} times, not once: {first}{hint}"


def copy_tree(folder: Path) -> Path:
    """Copy what the tests need of the repository into a folder; returns the copy."""
    tree = folder / "tree"
    tree.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (ROOT / "pyproject.toml", *ROOT.glob("*.md")):
        shutil.copy(file, tree)
    return tree


def run_tests(tree: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run tests in a tree; the package is imported from there."""
    # no bytecode: a file that changes twice within a second would be taken for unchanged
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("DRAPES_HEP_DATA", str(ROOT.parent / "shared" / "data"))
    environment.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def verdict(status: int) -> str:
    """Return what the exit status of pytest says of a mutation: noticed, survived or not run."""
    # 1: tests ran and failed; 2 to 5 are pytest's own trouble, such as code that cannot be imported
    return {0: "SURVIVED", 1: "noticed"}.get(status, "NOT RUN")


def mutate(mutation: Mutation, tree: Path) -> str:
    """Make a mutation in a tree, run its test, and undo it; returns the verdict."""
    path = tree / mutation.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return verdict(run_tests(tree, [mutation.test]).returncode)
    finally:
        path.write_text(whole, encoding="utf-8")


def main(
    only: Annotated[list[str] | None, typer.Option(help="Rules, files or tests that contain this text.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Mutations tested at the same time.")] = 1,
    show: Annotated[bool, typer.Option("--list", help="Print the table and stop.")] = False,
) -> None:
    """Break each rule of tests/mutations.toml in a copy of the tree, and demand that its test fails."""
    table = [
        mutation
        for mutation in read_table()
        if not only or any(text in f"{mutation.rule} {mutation.file} {mutation.test}" for text in only)
    ]
    if not table:
        typer.echo("no line of tests/mutations.toml contains this text", err=True)
        raise typer.Exit(2)
    if show:
        typer.echo("\n".join(f"{mutation.rule}\n    {mutation.file}\n    {mutation.test}" for mutation in table))
        return
    if problems := [problem for mutation in table if (problem := outdated(mutation))]:
        typer.echo("\n".join(f"tests/mutations.toml is out of date: {problem}" for problem in problems), err=True)
        raise typer.Exit(2)
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(workers):
            place = Path(folder) / str(number)
            place.mkdir()
            trees.put(copy_tree(place))
        tests = sorted({mutation.test for mutation in table})
        typer.echo(f"{len(tests)} tests on the tree as it is")
        clean = trees.get()
        outcome = run_tests(clean, tests)
        trees.put(clean)
        if outcome.returncode != 0:
            typer.echo(f"{outcome.stdout}{outcome.stderr}they must pass before a rule is broken", err=True)
            raise typer.Exit(2)

        def one_of(mutation: Mutation) -> str:
            tree = trees.get()
            try:
                return mutate(mutation, tree)
            finally:
                trees.put(tree)

        verdicts = []
        with ThreadPoolExecutor(workers) as pool:
            for mutation, verdict in zip(table, pool.map(one_of, table), strict=True):
                verdicts.append(verdict)
                typer.echo(f"[{len(verdicts)}/{len(table)}] {verdict}: {mutation.rule} ({mutation.test})")
    typer.echo(f"{verdicts.count('noticed')} of {len(table)} mutations are noticed")
    if set(verdicts) != {"noticed"}:
        raise typer.Exit(2 if "NOT RUN" in verdicts else 1)


if __name__ == "__main__":
    typer.run(main)
