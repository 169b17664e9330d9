"""Labelled samples as data: keep a chosen number of signal events, drop the rest before anything counts them.

This and the metrics are the only places where a truth label is read.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
from coffea import processor

from drapes_hep.errors import ConfigError, DrapesError, told
from drapes_hep.events.accumulate import ColumnParts, chunk_key
from drapes_hep.events.types import Events, Foreign
from drapes_hep.rng import event_uniforms, stage_seed

__all__ = ["SignalInjection", "choose_signal", "collect_ids", "collect_truth"]

_PACKAGE = str(Path(__file__).resolve().parents[1])

IntArray = npt.NDArray[np.int64]


def collect_truth(events: Events) -> dict[str, Any]:
    """Give event ids and labels of a chunk, as a processor does; for files that carry labels."""
    columns = {name: ak.to_numpy(events[name]).astype(np.int64) for name in ("event_id", "label")}
    return {"truth": ColumnParts({chunk_key(events.metadata): columns})}


def collect_ids(events: Events) -> dict[str, Any]:
    """Give event ids of a chunk, as a processor does; for files whose labels lie in a sidecar."""
    ids = ak.to_numpy(events.event_id).astype(np.int64)
    return {"truth": ColumnParts({chunk_key(events.metadata): {"event_id": ids}})}


def choose_signal(signal_id: IntArray, keep: int, seed: int) -> IntArray:
    """Choose which signal events stay.

    Parameters
    ----------
    signal_id : array of int, shape (n,)
        Identities of all signal events.
    keep : int
        How many stay.
    seed : int
        ``signal.seed``.

    Returns
    -------
    array of int, shape (keep,)
        Sorted. A larger ``keep`` keeps the smaller choice and adds to it.

    Raises
    ------
    ConfigError
        If there are not that many.
    """
    if keep > len(signal_id):
        raise ConfigError(f"signal.inject: {keep} signal events are wanted, the sample holds {len(signal_id)}")
    ids = np.sort(signal_id)
    order = np.argsort(event_uniforms(stage_seed(seed, "inject"), ids)[:, 0], kind="stable")
    return np.sort(ids[order[:keep]])


_STRIPPED = "<dynamic-code>"


def _files(kind: type) -> dict[str, str]:
    """Give the files of all that the modules of a class and its bases define, by name; the class's own module wins."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        module = sys.modules.get(base.__module__)
        file = getattr(module, "__file__", None)
        if file is not None and "site-packages" not in file:
            own = (name for name, one in vars(module).items() if getattr(one, "__module__", None) == base.__module__)
            found |= dict.fromkeys(own, file)
    return found


class SignalInjection(processor.ProcessorABC):  # type: ignore[misc]
    """A processor that meets only background and the chosen signal events.

    Parameters
    ----------
    inner : processor
        What runs on the events that stay.
    dropped : array of int, shape (n,)
        Sorted identities of the signal events that do not stay.
    """

    def __init__(self, inner: Foreign, dropped: IntArray) -> None:
        self._inner, self._dropped = inner, dropped
        self._files = _files(type(inner))

    def process(self, events: Events) -> dict[str, Any]:
        """Process one chunk; the cut flow tells how many events were not injected."""
        ids = ak.to_numpy(events.event_id)
        place = np.minimum(np.searchsorted(self._dropped, ids), max(len(self._dropped) - 1, 0))
        gone = self._dropped[place] == ids if len(self._dropped) else np.zeros(len(ids), dtype=bool)
        weight = ak.to_numpy(events.weight)[gone]
        out = self._checked(events[~gone])
        for flow in out["cutflow"].values():
            flow["not_injected"] = {"events": int(gone.sum()), "weight": float(weight.sum())}
        return out

    def _checked(self, events: Events) -> dict[str, Any]:
        """Run the inner processor; what goes wrong in a user's own file is one line that says where."""
        name = type(self._inner).__name__
        try:
            out: dict[str, Any] = self._inner.process(events)
        except (DrapesError, MemoryError):
            raise
        except Exception as error:
            what = told(error, lambda file: "site-packages" not in file and _PACKAGE not in file, self._file_of)
            raise ConfigError(f"processor {name}: {what}") from error
        absent = [key for key in ("hists", "cutflow", "skim") if not isinstance(out, dict) or key not in out]
        if absent:
            raise ConfigError(f"processor {name}: process(events) gives no '{absent[0]}'; see processors/dijets.py")
        return out

    def _file_of(self, code: CodeType) -> str:
        # cloudpickle from 3.1.3 on strips code that travels by value of its file
        known = self._files.get(code.co_qualname.partition(".")[0]) if code.co_filename == _STRIPPED else None
        return known or code.co_filename

    def postprocess(self, accumulator: Foreign) -> Foreign:
        """As the inner processor does."""
        return self._inner.postprocess(accumulator)
