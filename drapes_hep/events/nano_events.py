"""NanoEvents in the one schema, made from columns in memory.

This is the module that imports coffea's events, which take a second to load: names of columns and ragged arrays are in
:mod:`drapes_hep.events.schema`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import awkward as ak
from coffea.nanoevents import NanoEventsFactory
from coffea.nanoevents.mapping import SimplePreloadedColumnSource
from coffea.nanoevents.methods import base, vector
from coffea.nanoevents.schemas.base import BaseSchema, zip_forms

from drapes_hep.events.types import Events

__all__ = ["DijetSchema", "build_events"]

_PREFIX, _INNER = "jets_", "constituents_"


class DijetSchema(BaseSchema):  # type: ignore[misc]
    """Zip the ragged columns ``jets_*`` into ``jets``, doubly ragged ``constituents_*`` into ``jets.constituents``.

    Every other column is left as it is.
    """

    __dask_capable__ = False

    def __init__(self, base_form: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(base_form, *args, **kwargs)
        forms = dict(zip(self._form["fields"], self._form["contents"], strict=True))
        jets = {name.removeprefix(_PREFIX): forms.pop(name) for name in list(forms) if name.startswith(_PREFIX)}
        inner = {name.removeprefix(_INNER): forms.pop(name) for name in list(forms) if name.startswith(_INNER)}
        if jets and inner:
            outer = dict(next(iter(inner.values())))
            lists = {name: form["content"] for name, form in inner.items()}
            outer["content"] = zip_forms(lists, "constituents", "PtEtaPhiMLorentzVector")
            jets["constituents"] = outer
        if jets:
            forms["jets"] = zip_forms(jets, "jets", "PtEtaPhiMLorentzVector")
        self._form["fields"], self._form["contents"] = list(forms), list(forms.values())

    @classmethod
    def behavior(cls) -> dict[Any, Any]:
        """Return the behaviours of coffea's base events and of its vectors."""
        return {**base.behavior, **vector.behavior}


def build_events(columns: Mapping[str, Any], metadata: Mapping[str, Any]) -> Events:
    """Make NanoEvents from columns in memory: files, generated events and templates all end here.

    Parameters
    ----------
    columns : mapping of str to array
        ``event_id``, ``weight`` (n,), ragged ``jets_*`` of one set of offsets, optionally ``label``, ``parent_id``, the
        three of :data:`~drapes_hep.events.schema.IDENTITY_FIELDS`, and doubly ragged ``constituents_*`` whose outer
        offsets are the jets'.
    metadata : mapping
        Becomes ``events.metadata``; plain JSON values.

    Returns
    -------
    NanoEvents
        n events in :class:`DijetSchema`.
    """
    source = SimplePreloadedColumnSource(
        {name: ak.Array(values) for name, values in columns.items()},
        uuid=str(uuid.uuid4()),
        num_rows=len(columns["event_id"]),
        object_path="events",
    )
    return NanoEventsFactory.from_preloaded(source, schemaclass=DijetSchema, metadata=dict(metadata)).events()
