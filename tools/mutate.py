"""Whether the tests hold the rules of the physics: break each rule in a copy of the tree, and demand that its test fails.

``tests/mutations.toml`` is the table: a rule, a file, the text that states the rule there, the text that breaks it, and
the test that must notice. First all tests of the table run on the copy as it is and must pass; then each mutation is
made, its test is run and must fail by an assertion or an error of the test itself, and the mutation is undone::

    python tools/mutate.py
    python tools/mutate.py --only toys --only masses

The exit status is 0 where all of this holds, 1 where a mutation survives, 2 where the table is out of date or a test
does not pass to begin with.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "mutations.toml"
COPIED = ("drapes_hep", "processors", "analysis", "configs", "tests", "tools", "docs", "pyproject.toml", "README.md")


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
        What pytest is given: ``file::test``, of a parametrised test ``file::test[case]``.
    """

    rule: str
    file: str
    old: str
    new: str
    test: str


def read_table(path: Path = TABLE) -> list[Mutation]:
    """Return the lines of the table.

    Raises
    ------
    SystemExit
        If a line lacks a field or has an unknown one.
    """
    lines = tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    try:
        return [Mutation(**line) for line in lines]
    except TypeError as error:
        raise SystemExit(f"{path.name}: {error}") from error


def outdated(mutation: Mutation, root: Path) -> str | None:
    """Return why a mutation cannot be made in a tree, or None if it can."""
    path = root / mutation.file
    count = path.read_text(encoding="utf-8").count(mutation.old) if path.is_file() else 0
    if count == 1 and mutation.old != mutation.new:
        return None
    first = mutation.old.strip().splitlines()[0]
    what = "old and new are the same" if count == 1 else f"'{first}' occurs {count} times, not once"
    elsewhere = [
        str(other.relative_to(root))
        for other in sorted((root / "drapes_hep").rglob("*.py"))
        if other != path and mutation.old in other.read_text(encoding="utf-8")
    ]
    return f"{mutation.file}: {what}" + (f"; it is in {', '.join(elsewhere)}" if elsewhere else "")


def run_tests(tree: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run tests in a tree; the package is imported from there."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("DRAPES_HEP_DATA", str(ROOT.parent / "shared" / "data"))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def verdict(outcome: subprocess.CompletedProcess[str]) -> str:
    """Return ``killed``, ``survived``, or what kept the test from being run."""
    if outcome.returncode == 0:
        return "survived"
    # 1: tests ran and failed; anything else is pytest's own trouble, as is code that cannot be imported
    if outcome.returncode == 1 and re.search(r"^FAILED ", outcome.stdout, flags=re.MULTILINE):
        return "killed"
    lines = (outcome.stdout + outcome.stderr).strip().splitlines()
    return f"not run: {lines[-1] if lines else f'exit status {outcome.returncode}'}"


def main() -> int:
    """Run the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="TEXT", help="rules, files or tests that contain this text")
    parser.add_argument("--list", action="store_true", help="print the table and stop")
    arguments = parser.parse_args()
    table = [
        one
        for one in read_table()
        if not arguments.only or any(text in f"{one.rule} {one.file} {one.test}" for text in arguments.only)
    ]
    if not table:
        print("no mutation contains this text", file=sys.stderr)
        return 2
    if arguments.list:
        for one in table:
            print(f"{one.rule}\n    {one.file}\n    {one.test}")
        return 0
    if problems := [problem for one in table if (problem := outdated(one, ROOT))]:
        print("\n".join(f"tests/mutations.toml is out of date: {problem}" for problem in problems), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / name)
        tests = sorted({one.test for one in table})
        print(f"{len(tests)} tests without a mutation ...", flush=True)
        outcome = run_tests(tree, tests)
        if outcome.returncode != 0:
            print(outcome.stdout[-4000:] + outcome.stderr[-2000:], file=sys.stderr)
            return 2
        survivors = 0
        for number, one in enumerate(table, start=1):
            path = tree / one.file
            whole = path.read_text(encoding="utf-8")
            path.write_text(whole.replace(one.old, one.new), encoding="utf-8")
            result = verdict(run_tests(tree, [one.test]))
            path.write_text(whole, encoding="utf-8")
            survivors += result != "killed"
            print(f"[{number}/{len(table)}] {result}: {one.rule} ({one.test})", flush=True)
    print(f"{len(table) - survivors} of {len(table)} mutations are noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
