"""What a processor's hooks may return: one rule per kind of result, and one line where it is broken.

A mask has one boolean per event, a mask of jets one per jet, weights are finite numbers, and corrected jets are jets
that their own event can have. NumPy and awkward silently accept many other values: integers 0 and 1 select by index,
NaN counts as true, a mask of another length is broadcast. Whatever has exactly one meaning is accepted (lists of
booleans, option types without a missing value, masked arrays without a masked one); everything else is refused with
the hook, its file, and the first event at fault.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NoReturn

import awkward as ak
import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from drapes_hep.errors import ConfigError, counted
from drapes_hep.events.features import wrapped
from drapes_hep.events.formats.columns import impossible, impossible_taus, impossible_weights
from drapes_hep.events.hook_calls import Hook
from drapes_hep.events.schema import CONSTITUENT_FIELDS, IDENTITY_FIELDS, JET_FIELDS, offsets_of, ragged
from drapes_hep.events.types import AwkwardArray, Events

__all__ = ["Hooks", "NoCut", "first_of", "flat_jets", "name_event", "no_cut", "protect"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Refuse = Callable[..., NoReturn]
"""Called with the problem, the remedy, and optionally one flag per event that is at fault."""

_ORIGIN = "_origin"
"""Hidden field of the jets that :meth:`Hooks.jets` hands out: each jet's place in the chunk."""

_SAME_JET = 1.0
"""Largest distance (eta, phi) at which a rebuilt leading jet can still be one of its event's: a jet's radius."""

_STRAY_EVENTS = 0.1
"""Fraction of events whose rebuilt leading jet may be farther away, as when jets are reclustered."""

_MOVED, _SCALED, _CORRECTED = 0.5, 5.0, 0.01
"""Shift in eta or phi and factor in pt that no correction exceeds in more than this fraction of jets."""

_UNIT, _ENOUGH_JETS = 100.0, 10
"""Factor in the masses of all jets, of this many or more, that is another unit."""

_TAKEN = 0.5
"""Fraction of the changed values of a field that are another jet's: far above what rounding to few digits gives."""

_RESERVED = ("event_id", "row", "label", "parent_id", *IDENTITY_FIELDS)
"""Event ids and labels, which hooks cannot set."""

_NEAR = 0.1
"""Distance (eta, phi) within which a rebuilt jet is one of its event's: above the resolution, below a jet's radius."""

_ROUNDED, _BETTER = 0.02, 0.3
"""Spread of log(pt after / pt before) that no order explains, and the fraction of it that the right order leaves."""

_ENOUGH_EVENTS, _UNRELATED = 100, 0.25
"""Events from which on the rank correlation of leading pt is taken, and the value below which none is left."""

_KINDS = {
    "b": "booleans",
    "i": "integers",
    "u": "integers",
    "f": "floating-point numbers",
    "c": "complex numbers",
    "S": "text",
    "U": "text",
    "O": "Python objects",
    "M": "dates",
    "m": "time differences",
    "V": "records",
}


class NoCut(NDArrayOperatorsMixin):
    """A mask (n,) that lets every event pass because its hook is not applied.

    It stands for ``np.ones(n, dtype=bool)`` in every operation, and what comes out of one is an ordinary array. The cut
    flow leaves out the step of a hook that returns it.

    Parameters
    ----------
    events : int
        n.
    """

    def __init__(self, events: int) -> None:
        self._events = events

    def __len__(self) -> int:
        return self._events

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.ones(self._events, dtype=bool if dtype is None else dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [np.asarray(value) if isinstance(value, NoCut) else value for value in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __getitem__(self, rows: Any) -> Any:
        return np.asarray(self)[rows]


# awkward needs to be told how to operate on other types
ak.behavior["__cast__", NoCut] = np.asarray


def no_cut(events: Events) -> NoCut:
    """Return the mask of a hook that is not applied.

    Parameters
    ----------
    events : NanoEvents
        n events.

    Returns
    -------
    NoCut
        Of length n.
    """
    return NoCut(len(events))


def protect(array: AwkwardArray) -> None:
    """Make the memory of an array read-only, so that code which writes into it fails instead of changing events.

    Parameters
    ----------
    array : awkward.Array
        All its buffers are protected, also where other arrays share them.
    """
    for buffer in ak.to_buffers(array)[2].values():
        buffer.flags.writeable = False


def name_event(events: Events, row: int) -> str:
    """Return a text that identifies an event.

    Parameters
    ----------
    events : NanoEvents
        In :class:`~drapes_hep.events.nano_events.DijetSchema`.
    row : int
        Its place in ``events``.

    Returns
    -------
    str
        Run, luminosity section and event number where the file has them, or else the event's identity; and the row of
        the file where it is known.
    """
    if set(IDENTITY_FIELDS) <= set(events.fields):
        name = "run:lumi:event " + ":".join(str(int(events[field][row])) for field in IDENTITY_FIELDS)
    else:
        name = f"event_id {int(events.event_id[row])}"
    if "row" in events.fields:
        name += f" (row {int(events.row[row])} of {events.metadata['filename']}, counted from 0)"
    return name


def first_of(flags: BoolArray) -> int:
    """Return the place of the first true flag."""
    return int(np.argmax(flags))


class Hooks:
    """Calls the hooks of a processor for one chunk, and checks what they return.

    Hooks get a shallow copy of the events: fields that one adds are there for the next. The columns of the events
    themselves cannot be changed in place.

    Parameters
    ----------
    processor : object
        Whose methods are called.
    events : NanoEvents
        The chunk, n events.
    """

    def __init__(self, processor: Any, events: Events) -> None:
        if not isinstance(events.layout, ak.contents.RecordArray):
            # a selection of events is an index into all of them, which each use of a column would follow again
            events = ak.to_packed(events)
        protect(events)
        self._processor, self._events, self._copy = processor, events, copy.copy(events)

    def weights(self, hook: str) -> FloatArray:
        """Return the weights (n,) that a hook computes.

        Parameters
        ----------
        hook : str
            Name of a method that takes the events.

        Returns
        -------
        array of float64, shape (n,)

        Raises
        ------
        ConfigError
            They are not one finite real number per event.
        """
        place, value = self._call(hook)
        refuse = self._refuse(place)
        weight = _one_per_event(value, len(self._events), _WEIGHTS, refuse)
        if not len(weight):  # of no type in particular
            return np.empty(0)
        if weight.dtype.kind == "b":
            refuse("returned booleans", "return numbers: `np.where(result, 1.0, 0.0)`")
        if weight.dtype.kind not in "iuf":
            refuse(f"returned {_KINDS[weight.dtype.kind]}", f"return {_WEIGHTS.what}")
        weight = np.ascontiguousarray(weight, dtype=np.float64)
        bad = ~np.isfinite(weight)
        if bad.any():
            refuse("returned NaN or infinity", "give every event a finite weight", bad)
        for bad, kind in impossible_weights(weight):
            if bad.any():
                refuse(f"returned {kind}", "check their unit", bad)
        return weight

    def event_mask(self, hook: str) -> tuple[BoolArray, bool]:
        """Return the mask (n,) of events that pass a hook.

        Parameters
        ----------
        hook : str
            Name of a method that takes the events.

        Returns
        -------
        mask : array of bool, shape (n,)
        applied : bool
            False where the hook returned :func:`no_cut`.

        Raises
        ------
        ConfigError
            It is not one boolean per event.
        """
        place, value = self._call(hook)
        mask = _event_mask(value, len(self._events), self._refuse(place))
        return mask, not isinstance(value, NoCut)

    def cut(self, step: str, mask: Any, rows: IntArray) -> BoolArray:
        """Return the mask (m,) of a cut on some of the events.

        Parameters
        ----------
        step : str
            What the cut flow calls it.
        mask : array_like of bool, shape (m,)
            As the processor computed it.
        rows : array of int, shape (m,)
            Which events it is about.

        Returns
        -------
        array of bool, shape (m,)

        Raises
        ------
        ConfigError
            It is not one boolean per event.
        """
        place = Hook.of(self._processor, "process")
        return _event_mask(mask, len(rows), self._refuse(place, f"cut '{step}'", rows))

    def jets(self, hook: str) -> AwkwardArray:
        """Return the jets (n lists) that a hook corrects.

        Parameters
        ----------
        hook : str
            Name of a method that takes the events. It may change, drop, reorder, and recluster the jets of an event.

        Returns
        -------
        awkward.Array
            n lists of jets, fields of :data:`~drapes_hep.events.schema.JET_FIELDS` in float64; a mass that is a
            rounding error below zero is zero, as in the readers.

        Raises
        ------
        ConfigError
            They are not such lists, hold values that no jet can have, are those of other events, or one jet twice.
        """
        place = Hook.of(self._processor, hook)
        before = self._copy.jets
        argument = copy.copy(self._copy)
        counts = ak.to_numpy(ak.num(before)).astype(np.int64)
        argument["jets", _ORIGIN] = ragged(np.arange(counts.sum()), offsets_of(counts))
        handed = argument.jets
        value = place.call(argument)
        refuse = self._refuse(place)
        self._unchanged(place, argument, except_for="jets")
        for field in set(argument.fields) - set(self._copy.fields):
            self._copy[field] = argument[field]
        if isinstance(value, ak.Array) and value.layout is handed.layout:
            if not _same_jets(handed, argument.jets):
                refuse("changes 'jets' of the events but returns them as they were", "return events.jets")
            return before
        return _jets(value, before, refuse)

    def jet_mask(self, hook: str, jets: AwkwardArray) -> AwkwardArray:
        """Return the mask (n lists) of jets that pass a hook.

        Parameters
        ----------
        hook : str
            Name of a method that takes the events and the jets.
        jets : awkward.Array
            n lists of jets.

        Returns
        -------
        awkward.Array
            Lists of booleans as long as those of ``jets``.

        Raises
        ------
        ConfigError
            It is not one boolean per jet.
        """
        protect(jets)
        handed = copy.copy(jets)
        place, value = self._call(hook, jets=handed)
        if handed.layout is not jets.layout and not _same_jets(jets, handed):
            self._refuse(place)("changes its input jets", "change a copy, or correct jets in `corrections`")
        return _jet_mask(value, ak.to_numpy(ak.num(jets)).astype(np.int64), self._refuse(place))

    def _call(self, hook: str, **arguments: AwkwardArray) -> tuple[Hook, Any]:
        place = Hook.of(self._processor, hook, ("events", *arguments))
        value = place.call(self._copy, *arguments.values())
        self._unchanged(place, self._copy)
        return place, value

    def _unchanged(self, place: Hook, argument: Events, except_for: str = "") -> None:
        """Refuse a hook that replaced a column of the events: what it meant to change would be forgotten.

        So would be a column of the schema that the file does not hold.
        """
        for name in _RESERVED:
            if name in argument.fields and name not in self._events.fields:
                self._refuse(place)(
                    f"adds '{name}' to the events, a name reserved for columns of the file", "choose another name"
                )
        for name in self._events.fields:
            before = self._events.layout.content(name)
            if name == except_for or (name in argument.fields and argument.layout.content(name) is before):
                continue
            same = name in argument.fields and len(argument) == len(self._events)
            if same and name == "jets":
                same = _same_jets(self._events.jets, argument.jets)
            elif same:
                same = np.array_equal(ak.to_numpy(self._events[name]), ak.to_numpy(argument[name]))
            if not same:
                self._refuse(place)(
                    f"changes '{name}' of its input events",
                    "keep identities, labels and rows as in the file"
                    if name in _RESERVED
                    else "change a copy and return it",
                )

    def _refuse(self, place: Hook, part: str = "", rows: IntArray | None = None) -> Refuse:
        def refuse(problem: str, remedy: str, bad: BoolArray | None = None) -> NoReturn:
            says = f"{part}: {problem.removeprefix('returned ')}" if part else problem
            if bad is None:
                raise ConfigError(f"{place}: {says}; {remedy}")
            row = first_of(bad) if rows is None else int(rows[first_of(bad)])
            count = int(np.count_nonzero(bad))
            events = "1 event" if count == 1 else f"{count} events"
            raise ConfigError(f"{place}: {says} in {events}, first {name_event(self._events, row)}; {remedy}")

        return refuse


# ---- any array -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """What a hook returns, in words, and how it is made of something else, which is called ``result``.

    Parameters
    ----------
    what : str
        What is expected.
    of_one : str
        Expression that makes it of a single value.
    of_many : str
        Expression that makes it of several values per event; empty where there is none.
    fill : str
        What a missing value may be replaced by.
    """

    what: str
    of_one: str
    of_many: str
    fill: str


_MASK = _Form("one boolean per event", "np.full(len(events), bool(result))", "ak.any(result, axis=1)", "False")
_WEIGHTS = _Form("one real number per event", "np.full(len(events), float(result))", "ak.prod(result, axis=1)", "1.0")
_JET_MASK = _Form("one boolean per jet, in lists", "ak.full_like(jets.pt, bool(result), dtype=bool)", "", "False")
_JETS = _Form("jets as events.jets holds them", "", "", "")


def _array(value: Any, form: _Form, refuse: Refuse) -> npt.NDArray[Any] | AwkwardArray:
    """Return a value as the array that it can only mean; missing values are still in an awkward array."""
    kind = type(value).__name__
    if value is None:
        refuse("returned None", f"return {form.what} (does it end without a return?)")
    if type(value).__module__.partition(".")[0] in {"dask", "dask_awkward"}:
        refuse("returned a lazy dask array", "compute it: `result.compute()`")
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # or Python warns that nobody waits for it
        refuse(f"returned a {kind}", f"return {form.what}: define it with def, not async def")
    if isinstance(value, Iterator):
        refuse(f"returned a {kind}", f"return {form.what} (does it contain a yield?)")
    if isinstance(value, ak.Array):
        return value
    if isinstance(value, str | bytes | Mapping | Set | slice | ak.Record) or callable(value):
        refuse(f"returned a {kind}", f"return {form.what}")
    if isinstance(value, np.ma.MaskedArray):
        missing = np.ma.getmaskarray(value)
        if missing.any():
            rows = missing.reshape(len(missing), -1).any(axis=1)
            fill = f"fill them: `result.filled({form.fill})`" if form.fill else f"return {form.what}"
            refuse("returned missing (masked) values", fill, rows)
        return np.asarray(value.data)
    if hasattr(value, "to_numpy") and hasattr(value, "index"):
        return _of_pandas(value, form, refuse)
    if isinstance(value, list | tuple):
        _refuse_several(value, form, refuse)
        return _of_list(value, f"a {kind} of objects", form, refuse)
    array = np.asarray(value)
    if array.ndim == 0:
        plain = array.dtype.kind in "biuf" and form.of_one
        refuse(f"returned a single {kind}", f"return {form.what}" + (f": `{form.of_one}`" if plain else ""))
    if array.dtype.kind == "O":
        return _of_list(array.tolist(), f"Python objects, e.g. {str(array[:1])[:40]}", form, refuse)
    return array


def _of_pandas(value: Any, form: _Form, refuse: Refuse) -> npt.NDArray[Any]:
    kind = type(value).__name__
    if value.ndim != 1:
        refuse(f"returned a {kind} of {counted(value.shape[1], 'column')}",
               f"return {form.what}: `result.iloc[:, 0].to_numpy()` is the first column")  # fmt: skip
    if not np.array_equal(np.asarray(value.index), np.arange(len(value))):
        refuse(f"returned a {kind} with an index other than 0 to n-1",
               "return the values in the order of the events: `result.to_numpy()` if it is theirs")  # fmt: skip
    array = np.asarray(value.to_numpy())
    # in a NumPy column of numbers NaN is a value, which other checks are about
    plain = isinstance(value.dtype, np.dtype) and array.dtype.kind != "O"
    missing = np.zeros(len(value), dtype=bool) if plain else np.asarray(value.isna())
    if missing.any():
        dtype = {"False": "bool", "1.0": "float"}.get(form.fill)
        fill = f"fill them: `result.fillna({form.fill}).to_numpy(dtype={dtype})`" if dtype else f"return {form.what}"
        refuse("returned missing values (NA)", fill, missing)
    return array


def _of_list(values: Sequence[Any], returned: str, form: _Form, refuse: Refuse) -> AwkwardArray:
    try:
        return ak.Array(list(values))
    except Exception:  # awkward raises TypeError, ValueError and others for what it cannot hold
        refuse(f"returned {returned}", f"return {form.what}, in an array")


def _refuse_several(value: Sequence[Any], form: _Form, refuse: Refuse) -> None:
    """Refuse several results in one: a return with a comma."""
    if value and all(isinstance(part, np.ndarray | ak.Array) for part in value):
        refuse(f"returned a {type(value).__name__} of {counted(len(value), 'array')}",
               f"return {form.what}: `result[0]` is the first")  # fmt: skip


def _without_options(array: AwkwardArray, axis: int, form: _Form, refuse: Refuse) -> AwkwardArray:
    """Return an array without its option type at an axis, 0 or 1; values that are missing there are refused."""
    flat = array if axis == 0 else ak.flatten(array)
    # not ak.is_none, which goes into the fields of records
    if not flat.layout.is_option:
        return array
    missing = np.asarray(flat.layout.mask_as_bool(valid_when=False))
    if missing.any():
        rows = missing
        if axis == 1:
            rows = np.zeros(len(array), dtype=bool)
            rows[np.repeat(np.arange(len(array)), ak.to_numpy(ak.num(array)))[missing]] = True
        refuse("returned missing values (None)", _fill(array, axis, form), rows)
    return ak.drop_none(array, axis=axis)


def _fill(array: AwkwardArray, axis: int, form: _Form) -> str:
    """Return how missing values at an axis are corrected."""
    if form is _JETS:
        return "drop them: `ak.drop_none(result, axis=1)`" if axis else "give every event a list of jets"
    if axis == 0 and array.ndim > 1:
        return "give every event a list"
    return f"fill them: `ak.fill_none(ak.Array(list(result)), {form.fill})`"


def _leaf(array: AwkwardArray, form: _Form, refuse: Refuse) -> npt.NDArray[Any]:
    try:
        return np.asarray(ak.to_numpy(array, allow_missing=False))
    except Exception:  # unions and whatever else is not a plain column
        refuse(f"returned values of type {str(array.type)[:80]}", f"return {form.what}")


def _refuse_records(array: AwkwardArray, form: _Form, refuse: Refuse) -> None:
    if array.fields:
        hint = ", the mask itself and not what passes it" if form.fill == "False" else ""
        refuse(f"returned records ({', '.join(array.fields[:4])})", f"return {form.what}{hint}")


def _one_per_event(value: Any, count: int, form: _Form, refuse: Refuse) -> npt.NDArray[Any]:
    """Return a result as an array (count,) of any type but objects."""
    if isinstance(value, NoCut):
        value = np.asarray(value)
    array = _array(value, form, refuse)
    if isinstance(array, ak.Array):
        _refuse_records(array, form, refuse)
        if array.ndim == 1:
            array = _leaf(_without_options(array, 0, form, _only_of(refuse, len(array) == count)), form, refuse)
    if array.ndim != 1:
        lists = "lists" if isinstance(array, ak.Array) else f"an array of shape {array.shape}"
        hint = f": `{form.of_many}` makes one of many" if array.ndim == 2 and _is_plain(array) else ""
        refuse(f"returned {lists}", f"return {form.what}{hint}")
    if len(array) != count:
        refuse(f"returned {len(array)} values for {count} events",
               f"return {form.what}, also for events that other cuts reject")  # fmt: skip
    return array


def _is_plain(array: npt.NDArray[Any] | AwkwardArray) -> bool:
    """Whether an array holds numbers or booleans."""
    try:
        return np.asarray(ak.to_numpy(ak.flatten(array, axis=None))).dtype.kind in "biuf"
    except Exception:  # unions and whatever else is not a plain column
        return False


def _only_of(refuse: Refuse, matches: bool) -> Refuse:
    """Leave the event out of a complaint whose rows are not the events'."""
    return refuse if matches else lambda problem, remedy, _=None: refuse(problem, remedy)


def _event_mask(value: Any, count: int, refuse: Refuse) -> BoolArray:
    mask = _one_per_event(value, count, _MASK, refuse)
    if not count:  # of no type in particular
        return np.zeros(0, dtype=bool)
    if mask.dtype.kind != "b":
        _refuse_mask(mask, np.ones(count, dtype=bool), np.arange(count), _MASK, refuse)
    return mask


def _refuse_mask(flat: npt.NDArray[Any], rows: BoolArray, owner: IntArray, form: _Form, refuse: Refuse) -> NoReturn:
    """Refuse a mask of other values than booleans, with the events that hold NaN where there are such."""
    kind = _KINDS.get(flat.dtype.kind, str(flat.dtype))
    array = "ak.Array(result)" if form is _JET_MASK else "np.asarray(result)"
    if flat.dtype.kind in "iu":
        refuse(f"returned {kind}, which select by index",
               f"return {form.what}: `{array} != 0`, or compare with the wanted value", rows)  # fmt: skip
    if flat.dtype.kind == "f":
        bad, nan = rows, ""
        if np.isnan(flat).any():
            bad, nan = np.zeros(len(rows), dtype=bool), " with NaN, which counts as true"
            bad[owner[np.isnan(flat)]] = True
        refuse(f"returned {kind}{nan}", f"return {form.what}: `{array} > 0.5`, or another comparison", bad)
    refuse(f"returned {kind}", f"return {form.what}: compare with the wanted value", rows)


def _jet_mask(value: Any, counts: IntArray, refuse: Refuse) -> AwkwardArray:
    form, events, offsets = _JET_MASK, len(counts), offsets_of(counts)
    if isinstance(value, NoCut):
        refuse("returned no_cut(events), which has one value per event",
               f"return {form.what}: `ak.ones_like(jets.pt, dtype=bool)`")  # fmt: skip
    array = _array(value, form, refuse)
    if isinstance(array, np.ndarray) and array.ndim == 2:
        array = ak.Array(array)
    if isinstance(array, ak.Array):
        _refuse_records(array, form, refuse)
        array = _without_options(array, 0, form, _only_of(refuse, len(array) == events))
    if array.ndim == 1 and len(array):
        _refuse_flat(array, counts, refuse)
    if len(array) != events:
        refuse(f"returned lists of {len(array)} events for {events}", f"return {form.what}, one list per event")
    if not events:
        return ragged(np.zeros(0, dtype=bool), offsets)
    if not isinstance(array, ak.Array) or array.ndim != 2:
        refuse(f"returned an array of {array.ndim} dimensions", f"return {form.what}")
    array = _without_options(ak.from_regular(array), 1, form, refuse)
    bad = ak.to_numpy(ak.num(array)) != counts
    if bad.any():
        first = first_of(bad)
        refuse(f"returned lists of different lengths than the jets' ({len(array[first])} for {counts[first]})",
               "return one boolean for each of `jets`, which `corrections` may have changed", bad)  # fmt: skip
    flat = _leaf(ak.flatten(array), form, refuse)
    if len(flat) and flat.dtype.kind != "b":
        _refuse_mask(flat, counts > 0, np.repeat(np.arange(events), counts), form, refuse)
    return ragged(flat.astype(bool), offsets)


def _refuse_flat(array: npt.NDArray[Any] | AwkwardArray, counts: IntArray, refuse: Refuse) -> NoReturn:
    total = int(counts.sum())
    if len(array) == total and total != len(counts):
        refuse("returned a flat array", f"return {_JET_MASK.what}: `ak.unflatten(result, ak.num(jets))`")
    spread = ": `ak.broadcast_arrays(result, jets.pt)[0]` gives all jets of an event the same"
    refuse(f"returned one value per event or a flat array ({len(array)} values, {total} jets, {len(counts)} events)",
           f"return {_JET_MASK.what}{spread if len(array) == len(counts) else ', e.g. jets.pt > 200'}")  # fmt: skip


# ---- jets ------------------------------------------------------------------------------------------------------------


def flat_jets(jets: AwkwardArray, refuse: Refuse) -> tuple[dict[str, FloatArray], IntArray]:
    """Return the fields of jets, one value per jet, after a check of what a jet can have.

    Parameters
    ----------
    jets : awkward.Array
        n lists of records with :data:`~drapes_hep.events.schema.JET_FIELDS`.
    refuse : callable
        Called with the problem, the remedy and flags (n,) of the events at fault.

    Returns
    -------
    columns : dict of str to array of float64, shape (m,)
        A mass that is a rounding error below zero is zero.
    counts : array of int64, shape (n,)
    """
    counts = ak.to_numpy(ak.num(jets)).astype(np.int64)
    flag = _flags("jets", counts, refuse)
    flat: dict[str, FloatArray] = {}
    for name in JET_FIELDS:
        values = ak.flatten(jets[name])
        if ak.fields(values) or values.ndim != 1:
            refuse(f"returned jets whose '{name}' is not a single number", "give every jet one")
        if values.layout.is_option:
            flag(name, np.asarray(values.layout.mask_as_bool(valid_when=False)), "missing values (None)")
        array = _leaf(values, _JETS, refuse)
        if len(array) and array.dtype.kind not in "iuf":
            refuse(f"returned jets whose '{name}' holds {_KINDS.get(array.dtype.kind, array.dtype)}", "give numbers")
        flat[name] = np.asarray(array, dtype=np.float64)
        flag(name, ~np.isfinite(flat[name]), "NaN or infinity")
    _vectors(flat, flag)
    for name in ("tau1", "tau2", "tau3"):
        for wrong, kind in impossible_taus(flat[name]):
            flag(name, wrong, kind)
    flat["mass"] = np.maximum(flat["mass"], 0.0)
    return flat, counts


Flag = Callable[[str, BoolArray, str], None]
"""Called with a field, one flag per jet or constituent, and what is wrong."""


def _flags(what: str, counts: IntArray, refuse: Refuse) -> Flag:
    owner = np.repeat(np.arange(len(counts)), counts)

    def flag(name: str, wrong: BoolArray, kind: str) -> None:
        if wrong.any():
            rows = np.zeros(len(counts), dtype=bool)
            rows[owner[wrong]] = True
            refuse(f"returned {what} with {kind} in '{name}'", f"correct or drop these {what}", rows)

    return flag


def _vectors(flat: Mapping[str, FloatArray], flag: Flag) -> None:
    flag("pt", flat["pt"] <= 0, "a transverse momentum that is not positive")
    for name, wrong, kind in impossible(*(flat[name] for name in CONSTITUENT_FIELDS)):
        flag(name, wrong, kind)


def _lists_of_jets(value: Any, before: AwkwardArray, refuse: Refuse) -> AwkwardArray:
    """Return what a hook returned as lists of jets with fields, one list per event."""
    events = len(before)
    if not isinstance(value, ak.Array):
        if isinstance(value, list | tuple):
            _refuse_several(value, _JETS, refuse)
        else:
            _array(value, _JETS, refuse)
        refuse(f"returned a {type(value).__name__}", f"return {_JETS.what}, an awkward array")
    jets = _without_options(value, 0, _JETS, _only_of(refuse, len(value) == events))
    if "jets" in jets.fields:
        refuse("returned the events", "return their jets: `result.jets`")
    total = int(ak.sum(ak.num(before)))
    if jets.ndim == 1 and jets.fields and len(jets) == total != events:
        refuse(f"returned a flat array of {total} jets",
               "return one list of jets per event: `ak.unflatten(result, ak.num(events.jets))`")  # fmt: skip
    if len(jets) != events:
        refuse(f"returned jets of {len(jets)} events for {events}", "return one list of jets per event")
    if jets.ndim == 1 and jets.fields:
        refuse("returned one jet per event", "return one list of jets per event: `result[:, np.newaxis]`")
    if jets.ndim != 2 or not jets.fields:
        refuse(f"returned values of type {str(jets.type)[:80]}",
               'return one list of jets per event, e.g. ak.with_field(events.jets, pt, "pt")')  # fmt: skip
    return _without_options(jets, 1, _JETS, refuse)


def _jets(value: Any, before: AwkwardArray, refuse: Refuse) -> AwkwardArray:
    """Return corrected jets in float64, checked against those of the file."""
    jets = _lists_of_jets(value, before, refuse)
    required = [*JET_FIELDS, *(["constituents"] if "constituents" in before.fields else [])]
    absent = [name for name in required if name not in jets.fields]
    if absent:
        refuse(f"returned jets without the field '{absent[0]}'",
               f"change the fields of events.jets: jets keep {', '.join(required)}")  # fmt: skip
    flat, counts = flat_jets(jets, refuse)
    if "constituents" in required:
        _check_constituents(jets["constituents"], refuse)
    origin = _origins(jets, int(ak.to_numpy(ak.num(before)).sum()))
    if origin is None:
        origin, same = _match(flat, counts, before, refuse)
    else:
        _trace(origin, counts, before, refuse)
        same = np.ones(len(origin), dtype=bool)
    owner = np.repeat(np.arange(len(counts)), counts)[same]
    _compare({name: values[same] for name, values in flat.items()}, origin[same], owner, before, refuse)
    offsets = offsets_of(counts)
    fields = {name: ragged(values, offsets) for name, values in flat.items()}
    others = {name: jets[name] for name in jets.fields if name not in fields and name != _ORIGIN}
    return ak.zip(fields | others, depth_limit=2, with_name="PtEtaPhiMLorentzVector", behavior=before.behavior)


def _check_constituents(inside: AwkwardArray, refuse: Refuse) -> None:
    if inside.ndim != 3 or not set(CONSTITUENT_FIELDS) <= set(inside.fields):
        refuse("returned jets whose 'constituents' are not lists of pt, eta, phi, mass", "keep them as they were")
    counts = ak.to_numpy(ak.sum(ak.num(inside, axis=2), axis=1)).astype(np.int64)
    flag = _flags("constituents", counts, refuse)
    flat = {}
    for name in CONSTITUENT_FIELDS:
        flat[name] = np.asarray(_leaf(ak.flatten(inside[name], axis=None), _JETS, refuse), dtype=np.float64)
        if len(flat[name]) != counts.sum():
            refuse(f"returned constituents with missing values (None) in '{name}'", "fill or drop them")
        flag(name, ~np.isfinite(flat[name]), "NaN or infinity")
    _vectors(flat, flag)


_ORDER = "keep the order of jets and events: sort and select whole jets, never one of their fields"
_STRANGE = "returned the jets of other events"
_IN_PLACE = "select and reorder jets within events, not the events"


def _origins(jets: AwkwardArray, limit: int) -> IntArray | None:
    """Return the position that each jet had in the chunk; None if it is no longer known."""
    if _ORIGIN not in jets.fields:
        return None
    try:
        places = np.asarray(ak.to_numpy(ak.flatten(jets[_ORIGIN])), dtype=np.float64)
    except Exception:  # whatever became of the field
        return None
    whole = np.isfinite(places) & (places >= 0) & (places < limit) & (places == np.floor(places))
    return places.astype(np.int64) if whole.all() else None


def _trace(origin: IntArray, counts: IntArray, before: AwkwardArray, refuse: Refuse) -> None:
    offsets = offsets_of(ak.to_numpy(ak.num(before)))
    owner = np.repeat(np.arange(len(counts)), counts)
    bad = np.zeros(len(counts), dtype=bool)
    bad[owner[np.searchsorted(offsets, origin, side="right") - 1 != owner]] = True
    if bad.any():
        refuse(_STRANGE, _IN_PLACE, bad)
    ordered = np.sort(origin)
    twice = np.isin(origin, ordered[1:][ordered[1:] == ordered[:-1]])
    bad[owner[twice]] = True
    if bad.any():
        refuse("returned the same jet twice", "return each jet once", bad)


def _compare(
    flat: Mapping[str, FloatArray], origin: IntArray, owner: IntArray, before: AwkwardArray, refuse: Refuse
) -> None:
    """Compare corrected jets (m,) of some events with what they were in the file."""
    every = {name: np.asarray(ak.to_numpy(ak.flatten(before[name])), dtype=np.float64) for name in CONSTITUENT_FIELDS}
    old = {name: values[origin] for name, values in every.items()}

    def complain(wrong: BoolArray, problem: str, remedy: str) -> None:
        bad = np.zeros(len(before), dtype=bool)
        bad[owner[wrong]] = True
        refuse(problem, remedy, bad)

    ratio = flat["pt"] / old["pt"]
    shift = f"by more than {_MOVED:g}"
    for name, wrong, change in (
        ("eta", np.abs(flat["eta"] - old["eta"]) > _MOVED, shift),
        ("phi", np.abs(wrapped(flat["phi"] - old["phi"])) > _MOVED, shift),
        ("pt", (ratio > _SCALED) | (ratio < 1 / _SCALED), f"by a factor above {_SCALED:g}"),
    ):
        if np.count_nonzero(wrong) > max(1.0, _CORRECTED * len(wrong)):
            complain(wrong, f"returned jets whose '{name}' changed {change}",
                     "no correction is that large: check units, and that values are those of the same jet")  # fmt: skip
    for name in ("pt", "mass"):
        # single precision: a value that was rounded on its way is still the same
        new, own = flat[name].astype(np.float32), old[name].astype(np.float32)
        changed = new != own
        copied = changed & (new > 0) & np.isin(new, every[name].astype(np.float32))
        if np.count_nonzero(copied) > max(1.0, _TAKEN * np.count_nonzero(changed)):
            complain(copied, f"returned jets with the '{name}' of other jets", _ORDER)
    wrong = _reordered(flat["pt"], old["pt"], owner)
    if wrong.any():
        complain(wrong, "returned jets with the 'pt' of other jets of their events", _ORDER)
    wrong = _unrelated(flat["pt"], old["pt"], owner)
    if wrong.any():
        complain(wrong, "returned jets whose 'pt' does not follow from their own", _ORDER)
    massive = old["mass"] > 0
    masses, theirs = flat["mass"][massive], old["mass"][massive]
    if len(masses) >= _ENOUGH_JETS and (np.all(masses > _UNIT * theirs) or np.all(_UNIT * masses < theirs)):
        complain(massive, f"returned jets whose 'mass' changed by a factor above {_UNIT:g}", "masses are in GeV")


def _reordered(new: FloatArray, old: FloatArray, owner: IntArray) -> BoolArray:
    """Whether each jet's momentum is that of another jet of its event, times a correction.

    A correction smears the ratio of momenta after and before. If jets ordered by momentum, after and before, agree much
    better than each jet with itself, it is the order that changed. What a correction that changes the order of some
    jets does to the spread is far less.

    Parameters
    ----------
    new, old : array, shape (m,)
        Transverse momenta, GeV.
    owner : array of int, shape (m,)
        The event of each jet.

    Returns
    -------
    array of bool, shape (m,)
    """
    several = np.bincount(owner)[owner] > 1
    wrong = np.zeros(len(owner), dtype=bool)
    if np.count_nonzero(several) < _ENOUGH_JETS:
        return wrong
    new, old, owner = np.log(new[several]), np.log(old[several]), owner[several]
    own = new - old
    ranked = new[np.lexsort((new, owner))] - old[np.lexsort((old, owner))]
    if _spread(own) > _ROUNDED and _spread(ranked) < _BETTER * _spread(own):
        wrong[np.flatnonzero(several)[np.abs(own - np.median(ranked)) > _spread(own) / 2]] = True
    return wrong


def _unrelated(new: FloatArray, old: FloatArray, owner: IntArray) -> BoolArray:
    """Whether leading momenta have nothing to do with what they were, as when events are mixed up.

    Smearing that is as wide as the spectrum itself leaves a rank correlation of 0.7, and twice as wide of 0.4; where
    the spectrum is narrower than half of the smearing, no conclusion is possible.

    Parameters
    ----------
    new, old : array, shape (m,)
        Transverse momenta, GeV.
    owner : array of int, shape (m,)
        The event of each jet.

    Returns
    -------
    array of bool, shape (m,)
        True for all leading jets, or for none.
    """
    wrong = np.zeros(len(owner), dtype=bool)
    order = np.lexsort((-old, owner))
    first = order[np.unique(owner[order], return_index=True)[1]]
    if len(first) < _ENOUGH_EVENTS:
        return wrong
    own = _spread(np.log(new[first] / old[first]))
    if own > _ROUNDED and 2 * _spread(np.log(old[first])) > own:
        ranks = [np.argsort(np.argsort(values[first], kind="stable"), kind="stable") for values in (new, old)]
        wrong[first] = float(np.corrcoef(ranks[0], ranks[1])[0, 1]) < _UNRELATED
    return wrong


def _spread(values: FloatArray) -> float:
    """Return the distance from the median that 68 % of the values keep."""
    return float(np.quantile(np.abs(values - np.median(values)), 0.68))


def _match(
    flat: Mapping[str, FloatArray], counts: IntArray, before: AwkwardArray, refuse: Refuse
) -> tuple[IntArray, BoolArray]:
    """Match jets that were rebuilt with those of their events, by direction.

    Returns
    -------
    origin : array of int64, shape (m,)
        Place of each jet's nearest one in the chunk; 0 where its event had none.
    same : array of bool, shape (m,)
        Whether it is near enough to be that jet.
    """
    old_counts = ak.to_numpy(ak.num(before)).astype(np.int64)
    old = {name: np.asarray(ak.to_numpy(ak.flatten(before[name])), dtype=np.float64) for name in CONSTITUENT_FIELDS}
    bad = _twins(flat, counts) & ~_twins(old, old_counts)
    if bad.any():
        refuse("returned the same jet twice", "return each jet once", bad)
    owner, old_owner = (np.repeat(np.arange(len(counts)), number) for number in (counts, old_counts))
    near, origin = _nearest(flat, counts, old, old_counts)
    strange = np.isin(_direction(flat), _direction(old)) & (near > _NEAR)
    bad[owner[strange]] = True
    if bad.any():
        refuse(_STRANGE, _IN_PLACE, bad)
    leading = np.zeros(len(counts), dtype=bool)
    order = np.lexsort((-flat["pt"], owner))
    first = order[offsets_of(counts)[:-1][counts > 0]]
    leading[owner[first]] = near[first] > _SAME_JET
    comparable = (counts > 0) & (np.bincount(old_owner, minlength=len(counts)) > 0)
    if np.count_nonzero(leading & comparable) > _STRAY_EVENTS * np.count_nonzero(comparable):
        refuse(_STRANGE + f" (no jet of the event is within {_SAME_JET:g} of the leading one)", _IN_PLACE,
               leading & comparable)  # fmt: skip
    return origin, near <= _NEAR


def _direction(flat: Mapping[str, FloatArray]) -> npt.NDArray[np.complex128]:
    """Return directions as single precision keeps them, as one number each."""
    eta, phi = (np.asarray(flat[name], dtype=np.float32).astype(np.float64) for name in ("eta", "phi"))
    return eta + 1j * phi


def _nearest(
    new: Mapping[str, FloatArray], counts: IntArray, old: Mapping[str, FloatArray], old_counts: IntArray
) -> tuple[FloatArray, IntArray]:
    """Return each new jet's distance to the nearest old one of its event, infinite without one, and its place."""
    offsets, owner = offsets_of(old_counts), np.repeat(np.arange(len(counts)), counts)
    near, origin = np.full(len(owner), np.inf), np.zeros(len(owner), dtype=np.int64)
    for place in range(int(old_counts.max(initial=0))):
        rows = np.flatnonzero(old_counts[owner] > place)
        at = offsets[owner[rows]] + place
        eta, phi = new["eta"][rows] - old["eta"][at], wrapped(new["phi"][rows] - old["phi"][at])
        distance = np.hypot(eta, phi)
        nearer = distance < near[rows]
        near[rows[nearer]], origin[rows[nearer]] = distance[nearer], at[nearer]
    return near, origin


def _twins(flat: Mapping[str, FloatArray], counts: IntArray) -> BoolArray:
    """Whether each event holds two jets of the same four-momentum."""
    owner = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((*(flat[name] for name in CONSTITUENT_FIELDS), owner))
    same = owner[order][1:] == owner[order][:-1]
    for name in CONSTITUENT_FIELDS:
        same &= flat[name][order][1:] == flat[name][order][:-1]
    twins = np.zeros(len(counts), dtype=bool)
    twins[owner[order][1:][same]] = True
    return twins


def _same_jets(before: AwkwardArray, after: AwkwardArray) -> bool:
    """Whether all fields that jets had still hold the same values; new fields do not matter."""
    if not set(before.fields) <= set(after.fields) or len(before) != len(after):
        return False
    if not np.array_equal(ak.to_numpy(ak.num(before)), ak.to_numpy(ak.num(after))):
        return False
    return all(
        bool(ak.array_equal(before[name], after[name], equal_nan=True, check_parameters=False))
        for name in before.fields
    )
