"""Arrays of jets in plain HDF5, with or without constituents: the layout of the project's own simulation.

================  ==========================  =========================================================================
dataset           shape                       holds
================  ==========================  =========================================================================
``jets``          (n, k, 4)                   pt, eta, phi, mass of k jets (GeV, rad); all zero where there is none
``tau``           (n, k, 3)                   tau1, tau2, tau3
``label``         (n,), optional              0 or 1
``weight``        (n,), optional              of the event
``const_offset``  (n k + 1,), optional        where the constituents of each jet start, jets of an event in order
``const_pt``      (m,)                        GeV; constituents are massless
``const_deta``    (m,)                        pseudorapidity less the jet's
``const_dphi``    (m,)                        azimuth less the jet's, rad
================  ==========================  =========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import InputError
from drapes_hep.events.formats.layouts import LAYOUTS
from drapes_hep.events.types import AwkwardArray

__all__ = ["CONSTITUENT_DATASETS", "read_simulated", "scan_simulated"]

CONSTITUENT_DATASETS = ("const_offset", "const_pt", "const_deta", "const_dphi")
"""Datasets that are read together, as the column ``constituents``."""


def scan_simulated(path: str, file: Any, constituents: bool) -> tuple[int, tuple[str, ...]] | None:
    """Whether a file holds arrays of jets, and how many.

    Parameters
    ----------
    path : str
        The file.
    file : h5py.Group
        Opened.
    constituents : bool
        Whether constituents are wanted.

    Returns
    -------
    (int, tuple of str) or None
        Events, and the layout's columns that there are; None where there are no jets and tau.

    Raises
    ------
    InputError
        Shapes or types that do not fit each other; constituents wanted and absent.
    """
    layout = LAYOUTS["simulated"]
    sets = {name: file[name] for name in (*layout.required, *layout.optional, *CONSTITUENT_DATASETS) if name in file}
    sets = {name: item for name, item in sets.items() if _has_type(path, name, item)}
    if not {"jets", "tau"} <= set(sets):
        return None
    shape = sets["jets"].shape
    if len(shape) != 3 or shape[2] != 4:
        raise InputError(path, f"'jets' has shape {shape}, not (events, jets, 4)", "write pt, eta, phi, mass")
    n, k = shape[:2]
    expected = {"tau": (n, k, 3), "label": (n,), "weight": (n,), "event_id": (n,), "parent_id": (n,)}
    for name, expected_shape in expected.items():
        if name in sets and sets[name].shape != expected_shape:
            raise InputError(path, f"'{name}' has shape {sets[name].shape}, not {expected_shape}", "write it again")
    names = [name for name in (*layout.required, *layout.optional) if name in sets]
    if constituents:
        absent = [name for name in CONSTITUENT_DATASETS if name not in sets]
        if absent:
            raise InputError(path, f"holds no constituents of jets (no '{absent[0]}')", "name a file that has them")
        _check_offsets(path, sets, n * k)
    for name in (*names, *CONSTITUENT_DATASETS) if constituents else names:
        if sets[name].dtype.kind not in "fiub":
            raise InputError(path, f"'{name}' holds {sets[name].dtype}, not numbers", "write it again")
    return n, tuple(names)


def _has_type(path: str, name: str, item: Any) -> bool:
    """Whether a member of a file is a dataset; a type that NumPy has not is an error, not damage."""
    try:
        return hasattr(item, "dtype")
    except TypeError as error:
        raise InputError(path, f"'{name}' cannot be read as numbers ({error})", "convert it") from error


def _check_offsets(path: str, sets: Mapping[str, Any], jets: int) -> None:
    lengths = {name: sets[name].shape for name in CONSTITUENT_DATASETS[1:]}
    if len(set(lengths.values())) != 1 or len(lengths["const_pt"]) != 1:
        stated = ", ".join(f"{name} {shape}" for name, shape in lengths.items())
        raise InputError(path, f"its columns of constituents differ in length ({stated})", "write it again")
    offsets = sets["const_offset"]
    if offsets.dtype.kind not in "iu" or offsets.shape != (jets + 1,):
        raise InputError(
            path, f"'const_offset' is {offsets.dtype} {offsets.shape}, not integers ({jets + 1},)", "write it again"
        )
    values = offsets[:].astype(np.int64)
    total = lengths["const_pt"][0]
    if values[0] != 0 or values[-1] != total or (np.diff(values) < 0).any():
        raise InputError(
            path,
            f"'const_offset' does not increase from 0 to the {total} constituents",
            "the file is corrupt: copy it again",
        )


def read_simulated(file: Any, columns: tuple[str, ...], start: int, stop: int) -> dict[str, Any]:
    """Read some events.

    Parameters
    ----------
    file : h5py.Group
        Opened.
    columns : tuple of str
        As :func:`scan_simulated` gives them, and ``constituents`` if they are wanted.
    start, stop : int
        Events.

    Returns
    -------
    dict of str to array
        The datasets' rows; ``constituents`` as an awkward array of events of k jets of records pt, eta, phi, where eta
        and phi are relative to the jet.
    """
    out: dict[str, Any] = {name: file[name][start:stop] for name in columns if name != "constituents"}
    if "constituents" in columns:
        out["constituents"] = _constituents(file, start, stop)
    return out


def _constituents(file: Any, start: int, stop: int) -> AwkwardArray:
    import awkward as ak

    k = file["jets"].shape[1]
    offsets: npt.NDArray[np.int64] = file["const_offset"][k * start : k * stop + 1].astype(np.int64)
    begin, end = int(offsets[0]), int(offsets[-1])
    parts = [ak.contents.NumpyArray(file[name][begin:end].astype(np.float64)) for name in CONSTITUENT_DATASETS[1:]]
    record = ak.contents.RecordArray(parts, ["pt", "eta", "phi"])
    jets = ak.contents.ListOffsetArray(ak.index.Index64(offsets - begin), record)
    return ak.Array(ak.contents.RegularArray(jets, k, zeros_length=stop - start))
