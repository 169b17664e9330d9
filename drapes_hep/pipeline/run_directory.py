"""The run directory: where each stage's files are, and the manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from drapes_hep.caller import another_output
from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import read_json, write_json
from drapes_hep.regions import Window

__all__ = ["LAYOUT_VERSION", "RunDirectory", "begin_manifest", "note", "open_run", "update_manifest"]

LAYOUT_VERSION = 1
"""Changes when files of a run directory change their meaning."""

Kind = Literal["search", "study", "applied"]
_KINDS = {"search": "a search", "study": "a study", "applied": "events that a search was applied to"}


@dataclass(frozen=True)
class RunDirectory:
    """Where everything is.

    Attributes
    ----------
    path : Path
        The directory.
    kind : {"search", "study", "applied"}
        What it holds: the last is other events that a search was applied to.
    overwrite : bool
        Whether finished stages of another configuration may be replaced.
    """

    path: Path
    kind: Kind = "search"
    overwrite: bool = False

    @property
    def events(self) -> Path:
        """The selected events."""
        return self.path / "skim" / "events.parquet"

    @property
    def truth(self) -> Path:
        """Truth labels of the selected events."""
        return self.path / "skim" / "truth.parquet"

    @property
    def labels(self) -> Path:
        """Truth labels of all events in the files, selected or not, for studies."""
        return self.path / "skim" / "labels.parquet"

    @property
    def simulation(self) -> Path:
        """Selected events of the other simulation, for Drapes MC."""
        return self.path / "skim" / "simulation.parquet"

    @property
    def skim_hists(self) -> Path:
        """Control histograms."""
        return self.path / "skim" / "hists.json"

    @property
    def skim_info(self) -> Path:
        """Accounting and cut flow."""
        return self.path / "skim" / "skim.json"

    def failures(self, stage: str) -> Path:
        """What failed in ``skim`` or ``skim.simulation``, while it is not done."""
        return self.path / "skim" / f"failures{stage.removeprefix('skim')}.json"

    def chunks(self, stage: str) -> Path:
        """Results of finished chunks of ``skim`` or ``skim.simulation``, while it is not done."""
        return self.path / "skim" / f"chunks{stage.removeprefix('skim')}"

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

    def begun(self, stage: str) -> Path:
        """What decides a stage that has begun, until its stamp is there."""
        return self.path / "stages" / f"{stage}.begun"


def open_run(path: str | Path, kind: Kind = "search", *, overwrite: bool = False) -> RunDirectory:
    """Name a run directory that can be used; nothing is written before the first stage has its inputs.

    Parameters
    ----------
    path : str or Path
        The directory; it need not exist.
    kind : {"search", "study", "applied"}
        What it holds, or is to hold.
    overwrite : bool
        Whether finished stages of another configuration may be replaced.

    Returns
    -------
    RunDirectory

    Raises
    ------
    RunDirectoryError
        If it is another version's, another kind's, no directory, or not empty but no run.
    """
    run = RunDirectory(Path(path), kind, overwrite)
    if run.path.exists() and not run.path.is_dir():
        raise RunDirectoryError(f"{path}: is a file; name {another_output()}")
    if run.manifest.exists():
        old = read_json(run.manifest)
        version = old.get("layout_version") if isinstance(old, dict) else None
        if version != LAYOUT_VERSION:
            raise RunDirectoryError(
                f"{path}: is a run directory of layout version {version}, this release writes {LAYOUT_VERSION};"
                f" choose {another_output()}"
            )
        stored_kind = str(old.get("kind", "search")) if isinstance(old, dict) else ""
        if stored_kind != kind:
            holds = f"holds {_KINDS.get(stored_kind, stored_kind)}, not {_KINDS[kind]}"
            raise RunDirectoryError(f"{path}: {holds}; choose {another_output()}")
    elif run.path.is_dir() and any(path.suffix != ".part" for path in run.path.iterdir()):
        # what a run that was killed while it wrote its first manifest leaves is no reason to refuse
        raise RunDirectoryError(f"{path}: is not empty and contains no run; choose {another_output()}")
    return run


@contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    """Keep other processes from changing the manifest inside the block.

    The lock is on the directory, so that no file is left behind. Where there are no such locks (Windows, some network
    file systems) two jobs that end at the same moment may miss each other's line, and the next stage mends it.
    """
    handle = None
    with suppress(OSError, ImportError):
        import fcntl

        run.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(run.path, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def begin_manifest(run: RunDirectory, config: Mapping[str, Any]) -> None:
    """Write the manifest of a run that has none."""
    if run.manifest.exists():
        return
    manifest = {
        "layout_version": LAYOUT_VERSION,
        "kind": run.kind,
        "name": config.get("name"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "processor": {},
        "inputs": {},
        "stages": {},
    }
    with _locked(run):
        if not run.manifest.exists():
            write_json(run.manifest, manifest)


def update_manifest(run: RunDirectory, entries_of: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Change top-level entries of the manifest; several processes may do so at the same time.

    Parameters
    ----------
    run : RunDirectory
    entries_of : callable
        Takes the manifest as it is and returns the new values of entries. If they are the old ones, nothing is written.
    """
    with _locked(run):
        manifest = read_json(run.manifest)
        changed = {**manifest, **entries_of(manifest)}
        if changed != manifest:
            write_json(run.manifest, changed)


def note(run: RunDirectory, **entries: object) -> None:
    """Set top-level entries of the manifest."""
    update_manifest(run, lambda _: entries)
