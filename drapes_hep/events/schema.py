"""The one event schema: what a processor sees, whatever the file was.

========================  =======================================================================================
``events.event_id``       int64, the event's identity, non-negative and unique in a run
``events.weight``         float64, 1 for data
``events.jets``           ragged list of Lorentz vectors ``pt, eta, phi, mass`` (GeV, rad) with ``tau1, tau2, tau3``,
                          in the file's order; ``constituents``, a ragged list of Lorentz vectors by falling
                          pt, where they were asked for
``events.label``          int64, 1 for signal; only in labelled files
``events.run``            int64, with ``events.luminosityBlock`` and ``events.event``: the experiment's own numbers,
                          where a file carries them (NanoAOD, PFNano, skims of them)
``events.row``            int64, the event's row of its file, from 0, while a processor runs over files
``events.parent_id``      int64, the data event that a template event was made from; only in templates
``events.metadata``       dataset, filename, treename, entrystart, entrystop, file_id, and the fileset's own metadata
========================  =======================================================================================
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

__all__ = [
    "CONSTITUENT_FIELDS",
    "IDENTITY_FIELDS",
    "JET_FIELDS",
    "NO_PARENT",
    "nested",
    "offsets_of",
    "places_of",
    "ragged",
]

JET_FIELDS = ("pt", "eta", "phi", "mass", "tau1", "tau2", "tau3")
"""Fields of a jet."""

CONSTITUENT_FIELDS = ("pt", "eta", "phi", "mass")
"""Fields of a jet's constituent."""

NO_PARENT = -1
"""``parent_id`` of a template event that was made from noise."""

IDENTITY_FIELDS = ("run", "luminosityBlock", "event")
"""By which an experiment numbers its events."""


def offsets_of(counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return where each list starts, from how many values each has.

    Parameters
    ----------
    counts : array_like of int or bool, shape (n,)
        Lengths of the lists; flags count as lengths of 0 and 1.

    Returns
    -------
    array of int64, shape (n + 1,)
        The last is the number of all values.
    """
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def places_of(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return the place of each value in its list, from 0, from how many values each list has.

    Parameters
    ----------
    counts : array of int, shape (n,)
        Lengths of the lists.

    Returns
    -------
    array of int64, shape (total,)
    """
    offsets = offsets_of(counts)
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)


def ragged(content: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> ak.Array:
    """Make a ragged array from flat content and offsets, without a copy.

    Parameters
    ----------
    content : array, shape (m,)
        Values of all lists, one after the other.
    offsets : array of int64, shape (n + 1,)
        Where each list starts; the last is m.

    Returns
    -------
    awkward.Array
        n lists.
    """
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), ak.contents.NumpyArray(content)))


def nested(content: np.ndarray[Any, Any], inner: np.ndarray[Any, Any], outer: np.ndarray[Any, Any]) -> ak.Array:
    """Make a doubly ragged array, such as the constituents of jets of events, without a copy.

    Parameters
    ----------
    content : array, shape (m,)
        Values of all inner lists, one after the other.
    inner : array of int64, shape (j + 1,)
        Where each inner list (a jet's constituents) starts in ``content``.
    outer : array of int64, shape (n + 1,)
        Where each outer list (an event's jets) starts among the inner ones.

    Returns
    -------
    awkward.Array
        n lists of lists.
    """
    jets = ragged(content, inner)
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(outer), jets.layout))
