"""Tables of the events that a template starts from, of its plan, and of the template itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.events.types import AwkwardArray

__all__ = ["EventTable", "Plan", "Planned", "Template", "joined"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EventTable:
    """Events that a template starts from.

    Attributes
    ----------
    x : array, shape (n, d)
        Features.
    mjj, weight : array, shape (n,)
        GeV, and the weight that each copy inherits.
    event_id : array of int, shape (n,)
    jets : awkward.Array, optional
        n lists of two jets with constituents, where templates are made of them.
    """

    x: FloatArray
    mjj: FloatArray
    weight: FloatArray
    event_id: IntArray
    jets: AwkwardArray | None = None

    def __len__(self) -> int:
        return len(self.event_id)

    def take(self, chosen: npt.NDArray[Any]) -> EventTable:
        """Return some of them, by a mask or by rows."""
        jets = None if self.jets is None else self.jets[chosen]
        return EventTable(self.x[chosen], self.mjj[chosen], self.weight[chosen], self.event_id[chosen], jets)


@dataclass(frozen=True)
class Plan:
    """Template events before they are made; arrays of shape (n,).

    Attributes
    ----------
    event_id, parent_id : array of int
        ``parent_id`` is :data:`~drapes_hep.events.schema.NO_PARENT` from noise.
    row : array of int
        Row of the parent in :class:`EventTable`; -1 from noise.
    root, copy : array of int
        What its random numbers belong to.
    mjj : array
        The mass to generate at, GeV.
    weight : array
    """

    event_id: IntArray
    parent_id: IntArray
    row: IntArray
    root: IntArray
    copy: IntArray
    mjj: FloatArray
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.event_id)

    def take(self, chosen: slice | npt.NDArray[Any]) -> Plan:
        """Return some of them."""
        return replace(self, **{column.name: getattr(self, column.name)[chosen] for column in fields(self)})

    def template(self, x: FloatArray, weight: FloatArray | None = None) -> Template:
        """Return the template that has these features, shape (n, d), in the plan's order.

        ``weight``, shape (n,), multiplies the weight of the plan.
        """
        weights = self.weight if weight is None else self.weight * weight
        return Template(self.event_id, self.parent_id, x, self.mjj, weights)


@dataclass(frozen=True)
class Template:
    """Template events; arrays of shape (n,) but ``x``, (n, d). ``parent_id`` decides their folds.

    ``jets`` are those of a template of constituents; ``lost`` counts the events of the plan that are not among these,
    by reason; ``model`` is the fold that the model of an event never saw, where templates of several are joined.
    """

    event_id: IntArray
    parent_id: IntArray
    x: FloatArray
    mjj: FloatArray
    weight: FloatArray
    jets: AwkwardArray | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    model: IntArray | None = None


def joined(templates: Sequence[Template]) -> Template:
    """Return the events of several templates as one, without their models."""
    jets = None
    if templates[0].jets is not None:
        import awkward as ak

        jets = ak.concatenate([template.jets for template in templates])
    lost = {reason: sum(t.lost.get(reason, 0) for t in templates) for template in templates for reason in template.lost}
    columns = {
        name: np.concatenate([getattr(template, name) for template in templates])
        for name in ("event_id", "parent_id", "x", "mjj", "weight")
    }
    return Template(**columns, jets=jets, lost=lost)


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made of.

    Attributes
    ----------
    starts : Plan
    parents : EventTable or None
        Those that the rows of ``starts`` count in; None from noise.
    seed : int
        Of the plan, and of the noise.
    rate : float
        Template events per parent; from noise their number.
    """

    starts: Plan
    parents: EventTable | None
    seed: int
    rate: float
