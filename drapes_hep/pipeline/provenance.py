"""What made a number, recorded and compared nowhere: the code's bytes, the repository's state, versions, platform."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from drapes_hep.files import content_hash, file_hash

__all__ = ["makers"]

_PACKAGE = Path(__file__).resolve().parents[1]


@functools.cache
def _package_hash() -> str:
    """Return a hash of the package's source by its bytes."""
    files = sorted(_PACKAGE.rglob("*.py"))
    return content_hash([(path.relative_to(_PACKAGE).as_posix(), file_hash(path)) for path in files])


@functools.cache
def _git_state() -> dict[str, Any] | None:
    root = _PACKAGE
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
    names = (
        *("drapes-hep", "awkward", "coffea", "hist", "iminuit", "lightgbm", "mplhep", "numpy", "scikit-learn", "torch"),
        "uproot",
    )
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def makers() -> dict[str, Any]:
    """Return the hash of the package's source, the repository's state, versions and platform."""
    return {
        "code": _package_hash(),
        "git": _git_state(),
        "versions": _versions(),
        "platform": platform.platform(),
    }
