"""Blinding by data: a processor whose accumulators never hold a selected event of a hidden window.

:class:`Blinding` wraps any processor. Each chunk is processed as it is, which gives the rows of the skim, and a second
time without the selected events that are in a hidden window. Histograms, cut flow and all other accumulators come from
the second pass, so no sum, mean or difference of theirs holds a hidden event. Each pass runs on a copy of the processor
as it was at first, so nothing that one pass stores in it reaches the other, and a pass that stores something in an
imported module is refused (:mod:`drapes_hep.events.module_state`). Both passes must select the same visible events with
the same masses and weights; otherwise the outputs would describe other events than the skim.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import cloudpickle  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt
from coffea import processor

from drapes_hep.errors import ConfigError
from drapes_hep.events.module_state import changed_name, module_state
from drapes_hep.events.ranges import Ranges, in_ranges
from drapes_hep.events.types import Column, Events

__all__ = ["Blinding"]

BoolArray = npt.NDArray[np.bool_]

_RAW = ("skim", "truth")
"""Outputs of a processor that are one row per event."""
_SAME = 1e-9
"""Relative difference of masses and weights between the two passes that rounding explains."""


class Blinding(processor.ProcessorABC):  # type: ignore[misc]
    """A processor whose accumulators never hold a selected event of a hidden window.

    Parameters
    ----------
    inner : processor
        Gives ``skim`` (with the columns ``event_id`` and ``mjj``) and anything that coffea accumulates.
    ranges : sequence of tuple of float
        The hidden windows, GeV.
    """

    def __init__(self, inner: Any, ranges: Ranges) -> None:
        self._inner, self._ranges = inner, tuple(ranges)
        self._fresh = cloudpickle.dumps(inner)

    @property
    def described(self) -> str:
        """What errors call the inner processor."""
        return str(self._inner.described)

    def process(self, events: Events) -> dict[str, Any]:
        """Process one chunk; rows come from all of its events, the rest from those that are visible.

        Raises
        ------
        ConfigError
            The visible events differ from those that are selected without the hidden ones in the chunk.
        """
        out = self._first_pass(events)
        columns = out["skim"].columns()
        if not columns:
            return out
        hidden = np.asarray(columns["event_id"])[in_ranges(columns["mjj"], self._ranges)]
        if not len(hidden):
            return out
        visible = ~np.isin(np.asarray(events.event_id), hidden)
        rows = {name: out[name] for name in _RAW if name in out}
        # a user's processor need not cope with a chunk without events
        if not visible.any():
            return rows
        second: dict[str, Any] = pickle.loads(self._fresh).process(events[visible])
        self._check_passes(columns, ~np.isin(np.asarray(columns["event_id"]), hidden), second["skim"].columns())
        return {**second, **rows}

    def _first_pass(self, events: Events) -> dict[str, Any]:
        """Process all events, and make sure that nothing but the output remembers them.

        Raises
        ------
        ConfigError
            The code keeps something in a module, where the second pass or another chunk would find it.
        """
        modules = getattr(self._inner, "modules", ())
        before = module_state(modules)
        while True:
            out: dict[str, Any] = pickle.loads(self._fresh).process(events)
            after = module_state(modules)
            changed = changed_name(before, after)
            if changed is not None:
                file, name = changed
                raise ConfigError(
                    f"{self.described}: process(events) changes '{name}' of {file}, which could carry information"
                    " from hidden events to others; keep it in self, return it in the output, or compute it when the"
                    " module is imported (for files: functools.cache)"
                )
            # of a module that this pass imported, one cannot tell what it was like before
            if {file for file, _ in after} <= {file for file, _ in before}:
                return out
            before = after

    def _check_passes(self, columns: Mapping[str, Column], visible: BoolArray, second: Mapping[str, Column]) -> None:
        ids = np.asarray(columns["event_id"])[visible]
        same = np.array_equal(ids, np.asarray(second["event_id"]))
        for name in ("mjj", "weight"):
            if same and name in columns:
                first, again = np.asarray(columns[name])[visible], np.asarray(second[name])
                same = np.allclose(first, again, rtol=_SAME, atol=0)
        if not same:
            raise ConfigError(
                f"{self.described}: the result for an event changes when the events of the hidden windows are left"
                " out, so a hook depends on which other events are in the chunk; draw random numbers from each event's"
                " own event_id (drapes_hep.rng)"
            )

    def postprocess(self, accumulator: Any) -> Any:
        """Postprocess as the inner processor does.

        Raises
        ------
        ConfigError
            If every event of the files is hidden.
        """
        if "hists" not in accumulator or "cutflow" not in accumulator:
            raise ConfigError("blind: every event is in a hidden window, none in the sidebands; see 'windows'")
        return self._inner.postprocess(accumulator)
