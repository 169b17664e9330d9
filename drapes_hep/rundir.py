"""The run directory: where each stage's files lie, which stages are done, and the manifest.

A stage is done if its stamp holds the key that would be computed now, from its part of the configuration, the hashes of
what it reads and of the code, and if everything it wrote is still there. A stage that was killed left no stamp.
"""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import drapes_hep
from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import content_hash, file_hash, read_json, write_json
from drapes_hep.progress import Reporter, measured
from drapes_hep.regions import Window
from drapes_hep.remote import fingerprint, is_url

__all__ = ["LAYOUT_VERSION", "RunDirectory", "code_hash", "open_run", "run_stage"]

LAYOUT_VERSION = 1
"""Changes when files of a run directory change their meaning."""

_NOT_PHYSICS = {"plots", "report", "cli", "progress", "starter"}
"""Modules whose change cannot change a number."""


@dataclass(frozen=True)
class RunDirectory:
    """Where everything lies.

    Attributes
    ----------
    path : Path
        The directory.
    """

    path: Path

    @property
    def events(self) -> Path:
        """The selected events."""
        return self.path / "skim" / "events.parquet"

    @property
    def truth(self) -> Path:
        """Truth labels of the selected events."""
        return self.path / "skim" / "truth.parquet"

    @property
    def skim_hists(self) -> Path:
        """Control histograms."""
        return self.path / "skim" / "hists.json"

    @property
    def skim_info(self) -> Path:
        """Accounting and cut flow."""
        return self.path / "skim" / "skim.json"

    @property
    def hunt(self) -> Path:
        """What the figures of the hunt need."""
        return self.path / "hunt.json"

    @property
    def results(self) -> Path:
        """The results."""
        return self.path / "results.json"

    @property
    def manifest(self) -> Path:
        """Configuration, versions, costs."""
        return self.path / "manifest.json"

    def window(self, window: Window) -> Path:
        """Folder of a window."""
        return self.path / "windows" / window.name

    def stamp(self, stage: str) -> Path:
        """Stamp of a finished stage."""
        return self.path / "stages" / f"{stage}.json"


@functools.cache
def code_hash() -> str:
    """Hash of the package's source, without the modules that cannot change a number."""
    root = Path(drapes_hep.__file__).parent
    files = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    kept = [path for path in files if path.parts[0].removesuffix(".py") not in _NOT_PHYSICS]
    return content_hash([(str(path), file_hash(root / path)) for path in kept])


def _git_state() -> dict[str, Any] | None:
    root = Path(drapes_hep.__file__).resolve().parent
    if not (root.parent / ".git").exists():
        return None  # installed: whatever repository surrounds the environment is not this code's

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": git("status", "--porcelain") == ""}
    except (OSError, subprocess.SubprocessError):
        return None  # no git


def _versions() -> dict[str, str]:
    names = ("drapes-hep", "awkward", "coffea", "hist", "iminuit", "mplhep", "numpy", "scikit-learn", "torch", "uproot")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def open_run(path: str | Path, config: Mapping[str, Any]) -> RunDirectory:
    """Open a run directory, or make it, and write the manifest's head.

    Parameters
    ----------
    path : str or Path
        The directory.
    config : mapping
        The resolved configuration.

    Returns
    -------
    RunDirectory

    Raises
    ------
    RunDirectoryError
        If it is another version's, no directory, not empty but no run, or not writable.
    """
    run = RunDirectory(Path(path))
    if run.path.exists() and not run.path.is_dir():
        raise RunDirectoryError(f"{path}: is a file; name a directory with -o")
    old: dict[str, Any] = {}
    if run.manifest.exists():
        old = read_json(run.manifest)
        found = old.get("layout_version") if isinstance(old, dict) else None
        if found != LAYOUT_VERSION:
            raise RunDirectoryError(
                f"{path}: is a run directory of layout version {found}, this release writes {LAYOUT_VERSION};"
                " choose another directory with -o"
            )
    elif run.path.is_dir() and any(path.suffix != ".part" for path in run.path.iterdir()):
        # what a run that was killed while it wrote its first manifest leaves is no reason to refuse
        raise RunDirectoryError(f"{path}: is not empty and holds no run; choose another directory with -o")
    manifest = {
        "layout_version": LAYOUT_VERSION,
        "name": config.get("name"),
        "created": old.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "versions": _versions(),
        "git": _git_state(),
        "code": code_hash(),
        "platform": platform.platform(),
        "inputs": old.get("inputs") or {},
        "stages": old.get("stages") or {},
    }
    write_json(run.manifest, manifest)
    return run


def note(run: RunDirectory, **entries: object) -> None:
    """Update top-level entries of the manifest."""
    write_json(run.manifest, {**read_json(run.manifest), **entries})


def run_stage(
    run: RunDirectory,
    name: str,
    needs: object,
    reads: Sequence[str | Path],
    work: Callable[[], Sequence[Path]],
    reporter: Reporter,
) -> bool:
    """Run a stage unless it is done.

    Parameters
    ----------
    run : RunDirectory
    name : str
        Of the stage, e.g. ``train.3300-3700``.
    needs : object
        The part of the configuration that it uses, as JSON values.
    reads : sequence of str or Path
        Files and URLs that it reads, all of them made by earlier stages or the user's.
    work : callable
        Does it and gives the files that it wrote.
    reporter : Reporter

    Returns
    -------
    bool
        Whether it had to run.

    Raises
    ------
    RunDirectoryError
        If a file that it reads is missing.
    """
    for path in reads:
        if not is_url(path) and not Path(path).exists():
            raise RunDirectoryError(f"{path}: missing, {name} needs it; run the earlier stages first (drapes run)")
    key = content_hash([name, needs, code_hash(), [fingerprint(path) for path in reads]])
    stamp = run.stamp(name)
    if stamp.exists():
        try:
            found = read_json(stamp)
        except RunDirectoryError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
            found = {"files": {}}  # a damaged stamp is no stamp
        files: dict[str, int] = found["files"]
        intact = all((run.path / p).is_file() and (run.path / p).stat().st_size == n for p, n in files.items())
        if found.get("key") == key and intact:
            reporter.say(f"{name}: done before")
            return False
        stamp.unlink()
    with measured() as cost:
        written = work()
    sizes = {str(path.relative_to(run.path)): path.stat().st_size for path in written}
    write_json(stamp, {"key": key, "files": sizes, "finished": datetime.now(UTC).isoformat(timespec="seconds")})
    stages = read_json(run.manifest)["stages"]
    stages[name] = {"seconds": round(cost.seconds, 3), "peak_memory_mib": round(cost.peak_memory / 2**20, 1)}
    note(run, stages=stages)
    reporter.say(f"{name}: {cost.seconds:.1f} s, {cost.peak_memory / 2**20:.0f} MiB")
    return True
