"""Data that the modules of a user's code hold: whether running the code changed any.

A processor travels by value, and each pass of a blinded run gets a new copy. What its code keeps in a module that is
imported (a list, a counter, an attribute of a class or of a function, a mutable default) outlives the copy.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import random
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from types import CellType, FunctionType
from typing import Any

import awkward as ak
import boost_histogram
import numpy as np
from coffea import processor

from drapes_hep.user_files import users_modules

__all__ = ["changed_name", "module_state"]

ModuleState = Mapping[tuple[str, str], str]
"""Digests of data by file and name."""


def module_state(more: Iterable[str] = ()) -> ModuleState:
    """Compute digests of the data in the user's modules.

    Data are numbers, text, arrays, histograms, random generators, containers of them, and the attributes of the
    module's own classes, functions and their instances. Whatever else a module holds, such as an object of a library or
    the cache of ``functools.cache``, is left out.

    Parameters
    ----------
    more : iterable of str
        Names of modules that count as the user's though they are installed.

    Returns
    -------
    mapping of (str, str) to str
    """
    modules = dict(users_modules())
    modules |= {name: str(getattr(sys.modules[name], "__file__", name)) for name in more if name in sys.modules}
    state: dict[tuple[str, str], str] = {}
    for module, file in modules.items():
        for name, value in list(vars(sys.modules[module]).items()):
            if not name.startswith("__"):
                digest = _Digest(modules)
                digest.add(value)
                state[(file, name)] = digest.value
    return state


def changed_name(before: ModuleState, after: ModuleState) -> tuple[str, str] | None:
    """Return the file and name of the first data that changed.

    Parameters
    ----------
    before, after : mapping
        From :func:`module_state`.

    Returns
    -------
    tuple of str or None
        None where nothing changed in the modules that were there before.
    """
    files = {file for file, _ in before}
    names = {key for key in before.keys() | after.keys() if key[0] in files}
    return min((key for key in names if before.get(key, _NOTHING) != after.get(key, _NOTHING)), default=None)


class _Digest:
    """Hash of a value and of all that hangs on it."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules, self._hash, self._visited = modules, hashlib.blake2b(digest_size=16), set[int]()

    @property
    def value(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        if id(value) in self._visited:
            return
        if isinstance(value, np.ndarray) and value.dtype != object:
            self._bytes(f"{value.dtype}{value.shape}".encode(), np.ascontiguousarray(value).tobytes())
        elif isinstance(value, str | bytes | bytearray | int | float | complex | np.generic | itertools.count):
            self._bytes(type(value).__name__.encode(), repr(value).encode())
        elif isinstance(value, np.random.Generator):
            self._bytes(pickle.dumps(value.bit_generator.state))
        elif isinstance(value, random.Random | np.random.RandomState):
            self._bytes(pickle.dumps(value))
        elif isinstance(value, ak.Array):
            form, length, buffers = ak.to_buffers(value)
            self._bytes(form.to_json().encode(), str(length).encode())
            self._several(buffers.values())
        elif isinstance(value, boost_histogram.Histogram):
            self._bytes(np.asarray(value.view(flow=True)).tobytes())
        else:
            self._visited.add(id(value))
            self._object(value)

    def _object(self, value: Any) -> None:
        own = getattr(value, "__module__", None) in self._modules
        if isinstance(value, Mapping):
            self._several(itertools.chain.from_iterable(value.items()))
        elif isinstance(value, np.ndarray):
            self._several(value.ravel().tolist())
        elif isinstance(value, list | tuple | deque | Set):
            self._several(value)
        elif isinstance(value, CellType):
            with suppress(ValueError):  # an empty one
                self.add(value.cell_contents)
        elif isinstance(value, FunctionType) and own:
            self._several([value.__defaults__, value.__kwdefaults__, vars(value), value.__closure__])
        elif isinstance(value, staticmethod | classmethod):
            self.add(value.__func__)
        elif isinstance(value, processor.AccumulatorABC) or own:
            attributes = {
                name: attribute for name, attribute in getattr(value, "__dict__", {}).items() if name[:2] != "__"
            }
            self._several(itertools.chain.from_iterable(attributes.items()))
        else:
            # None too: what is loaded when it is first needed takes the place of None
            self._bytes(b"left out")

    def _several(self, values: Iterable[Any]) -> None:
        values = list(values)
        self._bytes(str(len(values)).encode())
        for value in values:
            self.add(value)

    def _bytes(self, *parts: bytes) -> None:
        for part in parts:
            self._hash.update(len(part).to_bytes(8, "little") + part)


def _nothing() -> str:
    digest = _Digest({})
    digest.add(None)
    return digest.value


_NOTHING = _nothing()
