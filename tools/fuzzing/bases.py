"""Base files of the fuzzing: small, generated, of every kind that is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import uproot

from drapes_hep.events.formats.writers import write_feature_hdf5
from tools.fuzzing.mutations import Mutation, mutate_bytes, mutate_table, mutate_text

__all__ = ["BASES", "EVENTS", "UnwritableError", "build"]

EVENTS = 40
"""Events of a base file."""

Table = Mapping[str, Any]


class UnwritableError(Exception):
    """The library that writes refuses a mutation: nothing to read."""


def feature_table() -> dict[str, Any]:
    """Return dijet events in the feature layout, by a rule without random numbers."""
    i = np.arange(EVENTS, dtype=np.float64)
    out: dict[str, Any] = {}
    for jet, turn in (("j1", 0.0), ("j2", np.pi)):
        pt, eta, phi = 1250 + 37 * (i % 19), 0.1 * (i % 13) - 0.6, 0.15 * i + turn
        out |= {f"px{jet}": pt * np.cos(phi), f"py{jet}": pt * np.sin(phi), f"pz{jet}": pt * np.sinh(eta)}
        out[f"m{jet}"] = 60 + 11 * (i % 23)
        out |= {f"tau{n}{jet}": (0.2 + 0.01 * (i % 7)) / n for n in (1, 2, 3)}
    out["label"] = (i % 5 == 0).astype(np.int64)
    return out | {"weight": np.ones(EVENTS), "event_id": np.arange(EVENTS) + 1000}


def jet_lists() -> tuple[list[int], dict[str, list[list[float]]]]:
    """Return how many jets each event has, and their fields."""
    counts = [1 + i % 3 for i in range(EVENTS)]
    rules: dict[str, Callable[[int, int], float]] = {
        "pt": lambda event, jet: 1300.0 - 50 * jet + event,
        "eta": lambda event, jet: 0.2 * jet - 0.03 * (event % 9),
        "phi": lambda event, jet: 0.1 * (event % 20) + 1.5 * jet - 1,
        "mass": lambda event, jet: 80.0 + event + jet,
        "tau1": lambda event, jet: 0.4 + 0.001 * (event + jet),
        "tau2": lambda event, jet: 0.3 + 0.001 * (event + jet),
        "tau3": lambda event, jet: 0.2 + 0.001 * (event + jet),
    }
    return counts, {
        name: [[rule(i, k) for k in range(n)] for i, n in enumerate(counts)] for name, rule in rules.items()
    }


def nanoaod_table() -> dict[str, Any]:
    """Return events as NanoAOD spells them."""
    counts, fields = jet_lists()
    numbers = {"run": 1, "luminosityBlock": 7}
    out: dict[str, Any] = {name: np.full(EVENTS, value, dtype=np.uint32) for name, value in numbers.items()}
    out |= {"event": np.arange(EVENTS, dtype=np.uint64) + 11, "nFatJet": np.array(counts, dtype=np.int32)}
    return out | {f"FatJet_{name}": values for name, values in fields.items()}


def skim_table() -> dict[str, Any]:
    """Return events as a skim holds them, jets as lists of records."""
    counts, fields = jet_lists()
    jets = [[{name: values[i][k] for name, values in fields.items()} for k in range(n)] for i, n in enumerate(counts)]
    plain = {"event_id": np.arange(EVENTS) + 5, "weight": np.ones(EVENTS), "mjj": np.full(EVENTS, 3000.0)}
    return {**plain, "jets": jets}


def raw_table() -> dict[str, Any]:
    """Return raw events: a row of 12 particles, zero padded, and the label."""
    rows = np.zeros((EVENTS, 37))
    for i in range(EVENTS):
        for k in range(4 + i % 8):
            rows[i, 3 * k : 3 * k + 3] = 400 - 30 * k + i, 0.1 * k - 0.3, (3.1 if k % 2 else 0.0) + 0.02 * k
    rows[:, -1] = np.arange(EVENTS) % 2
    return {"values": rows, "axis1": np.arange(EVENTS), "items": np.arange(37)}


def simulated_table() -> dict[str, Any]:
    """Return arrays of two jets with three constituents each."""
    i = np.arange(EVENTS, dtype=np.float64)
    jets = np.stack([[1300 + i, 0.01 * i, 0.05 * i, 80 + i], [1200 + i, -0.01 * i, 0.05 * i + 3, 60 + i]])
    parts = 6 * EVENTS
    return {
        "jets": np.ascontiguousarray(jets.transpose(2, 0, 1)),
        "tau": np.full((EVENTS, 2, 3), 0.3),
        "label": (i % 2).astype(np.int8),
        "weight": np.ones(EVENTS),
        "const_offset": np.arange(0, parts + 1, 3),
        "const_pt": np.full(parts, 400.0),
        "const_deta": 0.01 * (np.arange(parts) % 5),
        "const_dphi": 0.01 * (np.arange(parts) % 7),
    }


def truth_table() -> dict[str, Any]:
    """Return truth labels by identity."""
    return {"event_id": np.arange(EVENTS) + 1000, "label": (np.arange(EVENTS) % 3 == 0).astype(np.int8)}


def _awkward(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.dtype == object:
        return ak.Array(values.tolist())
    return values if isinstance(values, np.ndarray) else ak.Array(values)


def write_root(path: Path, table: Table, kind: str, compression: object) -> None:
    """Write a tree in two baskets or clusters; columns may be lists."""
    columns = {name: _awkward(values) for name, values in table.items()}
    types = {n: v.dtype if isinstance(v, np.ndarray) else ak.type(v).content for n, v in columns.items()}
    with uproot.recreate(path, compression=compression) as file:
        out = file.mktree("events", types) if kind == "ttree" else file.mkrntuple("events", types)
        half = EVENTS // 2
        for part in (slice(0, half), slice(half, EVENTS)):
            out.extend({name: values[part] for name, values in columns.items()})


def write_pandas(path: Path, table: Table, form: str) -> None:
    """Write a frame as pandas does, with a column of text."""
    frame = pd.DataFrame({name: list(v) if v.ndim > 1 else v for name, v in table.items() if isinstance(v, np.ndarray)})
    frame.assign(remark="none").to_hdf(path, key="df", format=form)


def write_raw(path: Path, table: Table) -> None:
    """Write numbered columns as a frame of one block."""
    values = np.asarray(table.get("values", np.zeros((1, 1))))
    write_feature_hdf5(path, {str(i): column for i, column in enumerate(np.atleast_2d(values).T)})
    with h5py.File(path, "r+") as file:
        for place, name in (("axis0", "items"), ("axis1", "axis1"), ("block0_items", "items")):
            if name in table:
                del file["df"][place]
                file["df"][place] = table[name]


def write_arrays(path: Path, table: Table) -> None:
    """Write plain datasets."""
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            file[name] = values


def write_parquet(path: Path, table: Table, kind: str | None, mutations: Iterable[Mutation], **options: Any) -> None:
    """Write a table with the metadata of the project, which mutations may replace."""
    texts = [str(rest[0]) for name, *rest in mutations if name == "metadata"]
    metadata = json.dumps({"schema_version": 1, "kind": kind}) if not texts else texts[-1]
    metadata = "[" * 3000 if metadata == "deep" else metadata
    columns = {name: pa.array(list(v) if getattr(v, "ndim", 1) > 1 else v) for name, v in table.items()}
    written = pa.table(columns).replace_schema_metadata({"drapes_hep": metadata})
    pq.write_table(written, path, row_group_size=16, **options)


ATTRIBUTES: Sequence[Any] = (0, 1, 7, -1, 2**40, 1.5, "frame", "frame_table", "series", "", b"\xff\xfe", [1, 2, 3])
"""Values that are put into attributes of HDF5."""

DATASETS: Mapping[str, Callable[[], Any]] = {
    "scalar": lambda: np.float64(1),
    "empty": lambda: np.zeros((0,)),
    "flat": lambda: np.zeros(EVENTS),
    "wide": lambda: np.zeros((EVENTS, 3)),
    "deep": lambda: np.zeros((EVENTS, 2, 2, 2)),
    "long": lambda: np.zeros((EVENTS + 1, 14)),
    "text": lambda: np.array([b"x"] * EVENTS),
    "objects": lambda: np.array(["a"] * EVENTS, dtype=h5py.string_dtype()),
    "records": lambda: np.zeros(EVENTS, dtype=[("a", "f8"), ("b", "i4")]),
    "complex": lambda: np.zeros((EVENTS, 14), dtype=complex),
    "enum": lambda: np.zeros(EVENTS, dtype=h5py.enum_dtype({"A": 0, "B": 1}, basetype="i1")),
    "null": lambda: h5py.Empty("f8"),
    "references": lambda: np.zeros(EVENTS, dtype=h5py.ref_dtype),
    "lists": lambda: np.zeros(EVENTS, dtype=h5py.vlen_dtype(np.dtype("f8"))),
}
"""Datasets that are put in the place of others."""


def mutate_hdf5(path: Path, mutations: Iterable[Mutation]) -> None:
    """Apply the mutations of an HDF5 file's objects, in place; those of other kinds are passed over.

    Parameters
    ----------
    path : Path
    mutations : iterable of mutation
        ``attribute`` (object, attribute, index in :data:`ATTRIBUTES`), ``no attribute`` (object, attribute), ``no
        object`` (object), ``dataset`` (object, name in :data:`DATASETS`), ``link`` (object, kind).
    """
    chosen = [
        mutation
        for mutation in mutations
        if mutation[0] in {"attribute", "no attribute", "no object", "dataset", "link"}
    ]
    if not chosen:
        return
    with h5py.File(path, "r+") as file:
        for name, *arguments in chosen:
            names: list[str] = []
            file.visit(names.append)
            if not names:
                return
            place = names[arguments[0] % len(names)]
            attributes = list(file[place].attrs)
            attribute = attributes[arguments[1] % len(attributes)] if attributes and name.endswith("attribute") else ""
            match name:
                case "attribute" if attribute:
                    file[place].attrs[attribute] = ATTRIBUTES[arguments[2] % len(ATTRIBUTES)]
                case "no attribute" if attribute:
                    del file[place].attrs[attribute]
                case "no object":
                    del file[place]
                case "dataset":
                    stored_attributes = dict(file[place].attrs)
                    del file[place]
                    file[place] = DATASETS[arguments[1]]()
                    for key, value in stored_attributes.items():
                        file[place].attrs[key] = value
                case "link":
                    del file[place]
                    file[place] = {
                        "nowhere": h5py.SoftLink("/nowhere"),
                        "itself": h5py.SoftLink(f"/{place}"),
                        "root": h5py.SoftLink("/"),
                        "outside": h5py.ExternalLink("other.h5", "/x"),
                        "this file": h5py.ExternalLink(path.name, f"/{place}"),
                    }[arguments[1]]


_ROOT: Mapping[str, tuple[Callable[[], dict[str, Any]], object]] = {
    "features": (feature_table, uproot.ZSTD(1)),
    "features-zlib": (feature_table, uproot.ZLIB(1)),
    "features-lz4": (feature_table, uproot.LZ4(1)),
    "features-plain": (feature_table, None),
    "nanoaod": (nanoaod_table, uproot.LZMA(1)),
    "nanoaod-plain": (nanoaod_table, None),
}

BASES: Mapping[str, tuple[str, ...]] = {
    "ttree": tuple(_ROOT),
    "rntuple": tuple(_ROOT),
    "hdf5": ("fixed", "pandas", "table"),
    "raw": ("label", "masterkey"),
    "simulated": ("arrays",),
    "parquet": ("skim", "skim-snappy", "features"),
    "truth": ("truth",),
}
"""Bases of each kind of file."""


def _write(kind: str, base: str, path: Path, mutations: Sequence[Mutation]) -> None:
    tables: Mapping[str, Callable[[], dict[str, Any]]] = {
        "hdf5": feature_table,
        "raw": raw_table,
        "simulated": simulated_table,
        "truth": truth_table,
    }
    if kind in {"ttree", "rntuple"}:
        make, compression = _ROOT[base]
        write_root(path, mutate_table(make(), mutations), kind, compression)
        return
    if kind == "parquet":
        table = mutate_table(skim_table() if base.startswith("skim") else feature_table(), mutations)
        checked = {"compression": "snappy", "write_page_checksum": True, "data_page_version": "2.0"}
        options = checked if base == "skim-snappy" else {"compression": "zstd", "use_dictionary": False}
        write_parquet(path, table, "skim", mutations, **options)
        return
    table = mutate_table(tables[kind](), mutations)
    if kind == "truth":
        write_parquet(path, table, "truth", mutations)
    elif kind == "hdf5" and base == "fixed":
        write_feature_hdf5(path, table)
    elif kind == "hdf5":
        write_pandas(path, table, "fixed" if base == "pandas" else "table")
    elif kind == "raw":
        if base == "masterkey" and "values" in table:
            table = {**table, "values": table["values"][:, :-1], "items": table.get("items", np.arange(37))[:-1]}
        write_raw(path, table)
        if base == "masterkey":
            lines = mutate_text("".join(f"{i % 3}.0\n" for i in range(EVENTS)), mutations)
            path.with_suffix(".masterkey").write_bytes(lines.encode("utf-8", "surrogatepass"))
    else:
        write_arrays(path, table)


SUFFIX = {"ttree": ".root", "rntuple": ".root", "parquet": ".parquet", "truth": ".parquet"}


def build(kind: str, base: str, mutations: Sequence[Mutation], folder: Path) -> Path:
    """Write the file of a recipe.

    Parameters
    ----------
    kind, base : str
        A key of :data:`BASES`, and one of its bases; or the path of a file of the user's.
    mutations : sequence of mutation
    folder : Path
        Where to write.

    Returns
    -------
    Path

    Raises
    ------
    UnwritableError
        If the writing library refuses the mutation.
    """
    path = folder / f"events{SUFFIX.get(kind, '.h5')}"
    for old in folder.iterdir():
        if old.is_file():
            old.unlink()
    if base not in BASES[kind]:
        path.write_bytes(mutate_bytes(Path(base).read_bytes(), mutations))
        return path
    try:
        _write(kind, base, path, mutations)
        if SUFFIX.get(kind) is None:
            mutate_hdf5(path, mutations)
    except Exception as error:  # any library, any mutation
        raise UnwritableError(f"{type(error).__name__}: {error}") from error
    path.write_bytes(mutate_bytes(path.read_bytes(), mutations))
    return path
