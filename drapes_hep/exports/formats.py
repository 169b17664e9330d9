"""The formats of ``drapes export``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from drapes_hep.errors import ConfigError
from drapes_hep.exports.datacards import write_datacards
from drapes_hep.exports.hepdata import write_submission
from drapes_hep.exports.hs3 import write_documents
from drapes_hep.exports.workspaces import write_workspaces

__all__ = ["WRITERS", "find_writer"]

Writer = Callable[[Path, Path], list[Path]]

WRITERS: dict[str, Writer] = {
    "pyhf": write_workspaces,
    "combine": write_datacards,
    "hs3": write_documents,
    "hepdata": write_submission,
}
"""By the names that the command line takes: from a run directory and an output directory to the files."""


def find_writer(name: str) -> Writer:
    """Return what writes a format; raises ConfigError if there is none of this name."""
    if name not in WRITERS:
        raise ConfigError(f"export: no format '{name}'; choose {', '.join(WRITERS)}")
    return WRITERS[name]
