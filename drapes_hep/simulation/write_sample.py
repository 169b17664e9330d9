"""Simulated samples: blocks in several processes, kept as they are finished, joined into one file.

A block is a number of events with a seed of its own, so the file is the same whatever the number of workers, and
whether the command ran through or was killed and repeated. Finished blocks are in ``FILE.parts`` until the file is
whole; what the file holds is said in ``FILE.json`` and in its own metadata.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from drapes_hep.errors import ConfigError, DrapesError, InputError, counted
from drapes_hep.events.chunks import Reading, file_key
from drapes_hep.events.clustering import cluster_events, make_particles
from drapes_hep.events.features import invariant_mass
from drapes_hep.events.formats.columns import row_ids
from drapes_hep.events.formats.writers import write_raw_hdf5
from drapes_hep.events.schema import CONSTITUENT_FIELDS, JET_FIELDS
from drapes_hep.events.skims import read_skim, write_skim, write_truth
from drapes_hep.events.types import AwkwardArray
from drapes_hep.files import atomic_path, content_hash, file_hash, read_json, write_json
from drapes_hep.parallel import in_processes, tell
from drapes_hep.progress import Reporter
from drapes_hep.simulation.blocks import MOST_OBJECTS, Account, make_block
from drapes_hep.simulation.detector import DETECTORS, Objects
from drapes_hep.simulation.processes import Process, pythia_settings
from drapes_hep.simulation.pythia import import_pythia
from drapes_hep.version import __version__

__all__ = ["FORMATS", "Order", "sidecar", "simulate", "truth_file"]

FORMATS = ("raw", "skim")
"""Raw LHC Olympics layout, or a skim with clustered jets and their constituents."""

BLOCK = 1000
"""Events of a block: some ten seconds of work."""

_COLUMNS = 3 * MOST_OBJECTS + 1
_ROWS = 500
"""Padded rows in memory at a time: 8 MB."""


@dataclass(frozen=True)
class Order:
    """What is wanted: everything that the content of the file depends on, but for its name.

    Parameters
    ----------
    process : Process
        What to simulate.
    events : int
        To write.
    seed : int
        Other seeds give other events.
    format : {"raw", "skim"}
        Of the file.
    block : int
        Events that share a seed; the largest number that a kill can lose, a process.

    Raises
    ------
    ConfigError
        Numbers out of range, an unknown format.
    """

    process: Process
    events: int
    seed: int = 1
    format: str = "raw"
    block: int = BLOCK

    def __post_init__(self) -> None:
        if self.events < 1:
            raise ConfigError(f"--events {self.events}: at least 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed}: from 0 to 2^63 - 1")
        if self.format not in FORMATS:
            raise ConfigError(f"--format '{self.format}': choose {' or '.join(FORMATS)}")

    @property
    def blocks(self) -> int:
        """Number of blocks, the last of which may be smaller."""
        return -(-self.events // self.block)

    def block_events(self, index: int) -> int:
        """Events of a block: some ten seconds of work."""
        return min(self.block, self.events - index * self.block)

    def record(self) -> dict[str, Any]:
        """Return what the content depends on as JSON values, with the versions of what makes it."""
        sources = sorted(Path(__file__).parent.glob("*.py"))
        return {
            **self.process.record(),
            "masses": list(self.process.masses) if self.process.masses else None,
            "events": self.events,
            "seed": self.seed,
            "format": self.format,
            "block": self.block,
            "versions": {
                "drapes-hep": __version__,
                **{name: metadata.version(name) for name in ("pythia8mc", "fastjet", "numpy")},
                "simulation": content_hash(file_hash(source) for source in sources)[:16],
            },
        }


def sidecar(path: str | Path) -> Path:
    """Return the place of the JSON record of a simulated file."""
    return Path(f"{path}.json")


def truth_file(path: str | Path) -> Path:
    """Return the place of the truth labels of a simulated skim."""
    return Path(path).with_suffix(".truth.parquet")


def _parts(path: Path) -> Path:
    return Path(f"{path}.parts")


def simulate(order: Order, path: str | Path, workers: int = 1, reporter: Reporter | None = None) -> dict[str, Any]:
    """Simulate a sample, unless it is done; what an earlier call left unfinished is gone on with.

    Parameters
    ----------
    order : Order
        What is wanted.
    path : str or Path
        The file; with ``.json`` appended, the record. A skim has its labels in ``STEM.truth.parquet``.
    workers : int
        Processes; 1 works in this one.
    reporter : Reporter, optional
        Where progress is shown; silent by default.

    Returns
    -------
    dict
        The record: ``order``, ``accounting``, ``cross_section_pb``, ``pythia``, ``detector``, ``file``.

    Raises
    ------
    DrapesError
        pythia8mc is missing, the place cannot be written or holds something else, no event passes the selection.
    """
    target, reporter = Path(path), reporter or Reporter(quiet=True)
    if workers < 1:
        raise ConfigError(f"--workers {workers}: at least 1")
    import_pythia()
    record = order.record()
    done = _done_before(order, record, target)
    if done is not None:
        reporter.say(f"{target}: already done")
        return done
    _open_parts(_parts(target), record)
    _make_blocks(order, _parts(target), workers, reporter)
    accounts = [_read_account(order, _parts(target), index) for index in range(order.blocks)]
    summary = _summary(order, record, Account.total(accounts))
    (_write_raw if order.format == "raw" else _write_skim)(order, target, summary)
    summary["file"] = {"name": target.name, "bytes": target.stat().st_size, "sha256": file_hash(target)}
    write_json(sidecar(target), summary)
    shutil.rmtree(_parts(target))
    reporter.say(f"{target}: {_sentence(summary)}")
    return summary


def _sentence(summary: Mapping[str, Any]) -> str:
    account, sigma = summary["accounting"], summary["cross_section_pb"]
    return (
        f"{counted(account['written'], 'event')} of {account['tried']} tried"
        f" ({account['vetoed']} vetoed after the shower, {account['failed']} failed,"
        f" {account['filtered']} not selected, {account['surplus']} surplus);"
        f" selected cross section {sigma['selected']:.4g} +- {sigma['selected_error']:.2g} pb"
    )


def _summary(order: Order, record: Mapping[str, Any], account: Account) -> dict[str, Any]:
    counts = asdict(account)
    for name in ("weighted_sigma", "weighted_variance"):
        counts.pop(name)
    return {
        "kind": "simulation",
        "schema_version": 1,
        "order": dict(record),
        "label": order.process.label,
        "accounting": counts,
        "cross_section_pb": account.cross_section(),
        "pythia": list(pythia_settings(order.process)),
        "detector": asdict(DETECTORS[order.process.shower]),
    }


# ---- what is there already ------------------------------------------------------------------------------------------


def _done_before(order: Order, record: Mapping[str, Any], target: Path) -> dict[str, Any] | None:
    """Return the record of a finished file; None if it is yet to be made, an error if something else is there."""
    if target.is_dir():
        raise InputError(target, "is a folder", "name a file")
    written = [target, *([truth_file(target)] if order.format == "skim" else [])]
    settings = _parts(target) / "settings.json"
    if sidecar(target).exists():
        summary: dict[str, Any] = read_json(sidecar(target))
        earlier_order = summary.get("order", {}) if isinstance(summary, dict) else {}
        if earlier_order != dict(record):
            names = [name for name in record if earlier_order.get(name) != record[name]]
            raise InputError(
                target,
                f"exists and was made with other settings ({', '.join(names)})",
                "name another file, or delete it",
            )
        whole = summary.get("file", {}).get("bytes")
        if all(path.exists() for path in written) and target.stat().st_size == whole:
            return summary
        raise InputError(sidecar(target), "belongs to a file that was deleted or changed", "delete both")
    # a run that was killed between its file and the record has its blocks still
    existing = next((path for path in written if path.exists()), None)
    if existing is not None and not settings.exists():
        raise InputError(existing, "exists and was not written by this command", "name another file, or delete it")
    return None


def _open_parts(folder: Path, record: Mapping[str, Any]) -> None:
    settings = folder / "settings.json"
    if settings.exists():
        before = read_json(settings)
        if before != dict(record):
            names = [name for name in record if not isinstance(before, dict) or before.get(name) != record[name]]
            raise InputError(
                folder,
                f"holds blocks of other settings ({', '.join(names)})",
                "delete this folder, or name another file",
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DrapesError(f"{folder}: cannot be written ({error.strerror or error})") from error
    write_json(settings, dict(record))


# ---- blocks ---------------------------------------------------------------------------------------------------------


def _block_file(order: Order, folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.{'npz' if order.format == 'raw' else 'parquet'}"


def _make_blocks(order: Order, folder: Path, workers: int, reporter: Reporter) -> None:
    todo = [index for index in range(order.blocks) if not _block_file(order, folder, index).exists()]
    done = order.events - sum(order.block_events(index) for index in todo)
    if done:
        reporter.say(f"already simulated: {done} of {counted(order.events, 'event')}")
    with reporter.bar("simulate", order.events) as update:
        inside = dict.fromkeys(range(len(todo)), 0)

        def hear(call: int, events: int) -> None:
            inside[call] = events
            update(done + sum(inside.values()))

        update(done)
        for _ in in_processes(_make, [(order, folder, index) for index in todo], workers, hear=hear):
            pass


def _make(order: Order, folder: Path, index: int) -> None:
    """Make one block and keep it; what is made meanwhile is told."""
    block = make_block(order.process, order.seed, index, order.block_events(index), tell)
    path, account = _block_file(order, folder, index), json.dumps(asdict(block.account))
    if order.format == "skim":
        write_skim(path, _jets(block.objects), {"account": account})
        return
    columns = {name: getattr(block.objects, name).astype(np.float32) for name in ("pt", "eta", "phi")}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, offsets=block.objects.offsets, account=np.array(account), **columns)


def _jets(objects: Objects) -> dict[str, AwkwardArray]:
    """Cluster the objects of a block into the columns of a skim, but for identities."""
    columns = cluster_events(
        make_particles(objects.offsets, objects.pt, objects.eta, objects.phi), Reading(constituents=True)
    )
    inside = ak.zip({name: columns[f"constituents_{name}"] for name in CONSTITUENT_FIELDS}, depth_limit=3)
    jets = ak.zip({**{name: columns[f"jets_{name}"] for name in JET_FIELDS}, "constituents": inside}, depth_limit=2)
    rows = np.arange(len(objects))
    return {"event_id": rows, "weight": np.ones(len(rows)), "mjj": invariant_mass(jets[:, :2]), "jets": jets}


def _read_account(order: Order, folder: Path, index: int) -> Account:
    path = _block_file(order, folder, index)
    skim = order.format == "skim"
    text = read_skim(path, ("event_id",)).metadata["account"] if skim else str(_load(path)["account"])
    account = Account(**json.loads(text))
    if account.written != order.block_events(index):
        raise InputError(path, f"holds {counted(account.written, 'event')}", "delete it and run again")
    return account


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # numpy raises OSError, ValueError, EOFError or zipfile's errors for a damaged file
        raise InputError(path, f"cannot be read ({type(error).__name__})", "delete it and run again") from error


# ---- files ----------------------------------------------------------------------------------------------------------


def _write_raw(order: Order, target: Path, summary: Mapping[str, Any]) -> None:
    def rows() -> Iterator[npt.NDArray[np.float64]]:
        for index in range(order.blocks):
            block = _load(_block_file(order, _parts(target), index))
            offsets = block["offsets"]
            for start in range(0, len(offsets) - 1, _ROWS):
                yield _padded(block, offsets[start : start + _ROWS + 1], order.process.label)

    write_raw_hdf5(target, rows(), order.events, _COLUMNS, summary)


def _padded(
    block: Mapping[str, npt.NDArray[Any]], offsets: npt.NDArray[np.int64], label: int
) -> npt.NDArray[np.float64]:
    """Rows of the raw layout: (pt, eta, phi) one object after the other, zeros, and the label last."""
    counts = np.diff(offsets)
    out = np.zeros((len(counts), _COLUMNS))
    row = np.repeat(np.arange(len(counts)), counts)
    first = 3 * (np.arange(offsets[0], offsets[-1]) - np.repeat(offsets[:-1], counts))
    for i, name in enumerate(("pt", "eta", "phi")):
        out[row, first + i] = block[name][offsets[0] : offsets[-1]]
    out[:, -1] = label
    return out


def _write_skim(order: Order, target: Path, summary: Mapping[str, Any]) -> None:
    blocks = [read_skim(_block_file(order, _parts(target), index)).columns for index in range(order.blocks)]
    columns = {name: ak.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    # the identities that the same events have in a raw file of this name
    columns["event_id"] = row_ids(file_key(str(target)), 0, order.events)
    write_skim(target, columns, {"simulation": summary})
    write_truth(truth_file(target), columns["event_id"], np.full(order.events, order.process.label))
