"""Names for what has no static type: awkward, coffea, h5py, pyarrow and uproot publish none that a checker can use."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["AwkwardArray", "Column", "Events"]

Events: TypeAlias = Any
"""NanoEvents in :class:`drapes_hep.events.nano_events.DijetSchema`."""

AwkwardArray: TypeAlias = Any
"""An awkward array, such as jets."""

Column: TypeAlias = Any
"""One value an event: numpy, or awkward where it is ragged."""
