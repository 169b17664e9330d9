"""Histograms of a run as files hold them: uhi JSON, one entry per histogram."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hist
import uhi.io.json

from drapes_hep.caller import command
from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import read_json

__all__ = ["read_hists"]


def read_hists(path: str | Path, verb: str) -> dict[str, hist.Hist]:
    """Read all histograms of a file.

    Parameters
    ----------
    path : str or Path
        ``skim/hists.json`` or ``hists.json`` of a run directory.
    verb : str
        What writes the file again, for the message.

    Returns
    -------
    dict of str to hist.Hist

    Raises
    ------
    RunDirectoryError
        If the file is missing or damaged.
    """
    records = read_json(path)
    if not isinstance(records, dict):
        raise RunDirectoryError(f"{path}: holds no histograms; delete it and run {command(verb)} again")
    return {name: _histogram(path, name, record, verb) for name, record in records.items()}


def _histogram(path: str | Path, name: str, record: Mapping[str, Any], verb: str) -> hist.Hist:
    try:
        return hist.Hist(json.loads(json.dumps(record), object_hook=uhi.io.json.object_hook))
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{path}: '{name}' is not a histogram; delete it and run {command(verb)} again"
        ) from error
