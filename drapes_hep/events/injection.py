"""Labelled samples as data: keep a chosen number of signal events, drop the rest before anything counts them.

This and the metrics are the only places where a truth label is read.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
from coffea import processor

from drapes_hep.errors import ConfigError
from drapes_hep.events.accumulate import ColumnParts, chunk_key
from drapes_hep.events.outputs import CheckedProcessor
from drapes_hep.events.types import Events
from drapes_hep.rng import event_uniforms, stage_seed

__all__ = ["SignalInjection", "choose_signal", "collect_ids", "collect_truth"]

IntArray = npt.NDArray[np.int64]


def collect_truth(events: Events) -> dict[str, Any]:
    """Return event ids and labels of a chunk, as a processor does; for files that carry labels."""
    columns = {name: ak.to_numpy(events[name]).astype(np.int64) for name in ("event_id", "label")}
    return {"truth": ColumnParts({chunk_key(events.metadata): columns})}


def collect_ids(events: Events) -> dict[str, Any]:
    """Return event ids of a chunk, as a processor does; for files whose labels are in a sidecar."""
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
        raise ConfigError(f"signal.inject: {keep} signal events are requested, the sample has {len(signal_id)}")
    ids = np.sort(signal_id)
    order = np.argsort(event_uniforms(stage_seed(seed, "inject"), ids)[:, 0], kind="stable")
    return np.sort(ids[order[:keep]])


class SignalInjection(processor.ProcessorABC):  # type: ignore[misc]
    """A processor that receives only background and the selected signal events.

    Parameters
    ----------
    inner : CheckedProcessor
        What runs on the events that stay.
    dropped : array of int, shape (n,)
        Sorted identities of the signal events that do not stay.
    """

    def __init__(self, inner: CheckedProcessor, dropped: IntArray) -> None:
        self._inner, self._dropped = inner, dropped

    @property
    def described(self) -> str:
        """What errors call the inner processor."""
        return self._inner.described

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that define the inner processor."""
        return self._inner.modules

    def process(self, events: Events) -> dict[str, Any]:
        """Process one chunk; the cut flow counts the events that were not injected."""
        ids = ak.to_numpy(events.event_id)
        place = np.minimum(np.searchsorted(self._dropped, ids), max(len(self._dropped) - 1, 0))
        dropped = self._dropped[place] == ids if len(self._dropped) else np.zeros(len(ids), dtype=bool)
        weight = ak.to_numpy(events.weight)[dropped]
        out: dict[str, Any] = self._inner.process(events[~dropped])
        for flow in out["cutflow"].values():
            flow["not_injected"] = {"events": int(dropped.sum()), "weight": float(weight.sum())}
        return out

    def postprocess(self, accumulator: Any) -> Any:
        """As the inner processor does."""
        return self._inner.postprocess(accumulator)
