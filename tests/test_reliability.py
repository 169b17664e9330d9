"""The promises of docs/reliability.md: each has its tests, and those that nothing else tests are tested here."""

from __future__ import annotations

import ast
import json
import pickle
import re
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, make_columns

from drapes_hep.config import load_config
from drapes_hep.data.inspection import inspect_file
from drapes_hep.diffusion.checkpoints import CARD, WEIGHTS, load_model, read_card, save_model
from drapes_hep.diffusion.denoisers import EDMDenoiser
from drapes_hep.diffusion.training import TrainingSettings, train
from drapes_hep.errors import ConfigError, DrapesError, RunDirectoryError
from drapes_hep.events.formats.writers import write_feature_hdf5
from drapes_hep.events.processing import run
from drapes_hep.events.skims import read_skim, write_skim
from drapes_hep.networks.mlp import ResidualMLP
from drapes_hep.report.run_files import read_columns

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise |")]
NAMED = sorted(set(re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE)))
SOURCES = sorted(path for name in ("drapes_hep", "processors", "analysis") for path in (ROOT / name).rglob("*.py"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all that a source is made of."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def collected(file: str, session: pytest.Session) -> dict[str, pytest.Function]:
    """Return the tests of a file by name, one of each parametrised one."""
    module = pytest.Module.from_parent(session, path=ROOT / file)
    return {item.originalname: item for item in module.collect() if isinstance(item, pytest.Function)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:50])
def test_every_promise_names_a_test(row):
    assert re.search(r"`tests/\w+\.py::\w+`", row.split("|")[2])


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_is_named_is_collected(file, name, request):
    item = collected(file, request.session).get(name)
    assert item is not None, f"docs/reliability.md names {file}::{name}, which pytest does not collect"
    marks = {mark.name for mark in item.iter_markers()}
    assert not marks & {"slow", "skip", "xfail"}


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_read_by_injection_metrics_and_studies_alone():
    readers = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and "read_truth" in {alias.name for alias in node.names}
    }
    assert readers == {
        "drapes_hep/stages/skim.py",  # signal.inject
        "drapes_hep/stages/classify.py",  # the metrics
        "drapes_hep/studies/null_folder.py",  # background of which nulls are generated
        "drapes_hep/products.py",  # handed to who asks for them
        "drapes_hep/studies/sample.py",
        "drapes_hep/studies/runner.py",
        "analysis/null_bootstraps.py",  # takes the signal out
        "analysis/null_searches.py",  # likewise
    }


# ---- nothing of a file is executed -----------------------------------------------------------------------------------

UNSAFE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "torch.load"),
    *("marshal.load", "marshal.loads", "shelve.open", "joblib.load", "pd.read_pickle", "pd.read_hdf", "os.system"),
    *("yaml.unsafe_load", "yaml.full_load", "eval", "exec", "compile", "np.load", "yaml.load"),
}


def calls() -> set[tuple[str, str, str]]:
    """List calls of what could execute a file's content: file, what is called, and the arguments that matter."""
    out = set()
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE:
                words = ", ".join(ast.unparse(keyword) for keyword in node.keywords)
                out.add((str(path.relative_to(ROOT)), ast.unparse(node.func), words))
    return out


def test_no_module_reads_pickles():
    assert calls() == {
        # what a process sends to its own workers, never a file
        ("drapes_hep/events/processing.py", "pickle.loads", ""),
        # an exception of a worker, from the pipe to it
        ("drapes_hep/parallel.py", "pickle.loads", ""),
        # the check that an output can travel, of what was pickled a line before
        ("drapes_hep/events/outputs.py", "pickle.loads", ""),
        # the same, for a fresh copy of a processor in each pass over a blinded chunk
        ("drapes_hep/events/blinded_processor.py", "pickle.loads", ""),
        ("drapes_hep/events/chunk_store.py", "np.load", "allow_pickle=False"),
        ("drapes_hep/simulation/write_sample.py", "np.load", "allow_pickle=False"),
    }


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path) -> Path:
    """What exists once a pickle was loaded; that the pickle works is checked first."""
    path = tmp_path / "loaded"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    return path


def pandas_frame(path: Path, payload: bytes) -> None:
    """Write a frame with a column of text, which PyTables stores as a pickle, and pickled attributes."""
    write_feature_hdf5(path, make_columns(50))
    with h5py.File(path, "r+") as file:
        frame = file["df"]
        number = int(frame.attrs["nblocks"])
        frame.attrs["nblocks"] = number + 1
        frame[f"block{number}_items"] = np.array([b"remark"])
        values = frame.create_dataset(f"block{number}_values", (1,), h5py.vlen_dtype(np.uint8))
        values[0] = np.frombuffer(payload, dtype=np.uint8)
        values.attrs["PSEUDOATOM"] = np.bytes_(b"object")
        frame.attrs["info"] = frame["axis1"].attrs["FIELD_0_FILL"] = np.bytes_(payload)


def parquet_table(path: Path, payload: bytes) -> None:
    """Write a column of the extension type whose description Arrow once unpickled."""
    columns = make_columns(50)
    fields = [pa.field(name, pa.array(values).type) for name, values in columns.items()]
    told = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    fields.append(pa.field("remark", pa.int64(), metadata=told))
    arrays = [pa.array(values) for values in columns.values()] + [pa.array(np.arange(50))]
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), path)


@pytest.mark.parametrize("write", [pandas_frame, parquet_table])
def test_a_pickle_in_a_file_of_events_is_not_loaded(tmp_path, mark, write):
    path = tmp_path / "events"
    write(path, pickle.dumps(Bomb(mark)))
    inspect_file(path)
    out, _ = run({"a": path}, lambda events: {"n": len(events)})
    assert out == {"n": 50}
    assert not mark.exists()


def small() -> EDMDenoiser:
    return EDMDenoiser(ResidualMLP(2, 1, width=8, depth=1, embedding=4, seed=1))


def fit(checkpoint: Path) -> None:
    x = torch.linspace(-1, 1, 64).reshape(32, 2)
    settings = TrainingSettings(epochs=2, batch=16, validation_draws=1, checkpoint_seconds=0.0, patience=None)
    train(small(), x, x[:, :1], None, x, x[:, :1], None, settings, seed=1, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (WEIGHTS, lambda path: load_model(path.parent)),
        ("checkpoint.safetensors", fit),
        ("events.parquet", read_skim),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["torch's own", "plain"])
def test_a_pickle_in_the_place_of_weights_is_not_loaded(tmp_path, mark, name, read, zipped):
    save_model(tmp_path, small())
    if zipped:
        torch.save(Bomb(mark), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DrapesError):
        read(tmp_path / name)
    assert not mark.exists()


def test_a_card_imports_no_module(tmp_path, mark, monkeypatch):
    (tmp_path / "somebody.py").write_text(
        "from pathlib import Path\nfrom drapes_hep.networks.mlp import ResidualMLP as Net\n"
        f"Path({str(mark)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    save_model(tmp_path, small())
    card = read_card(tmp_path)
    card["architecture"]["backbone"] = "somebody:Net"
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(RunDirectoryError, match="somebody:Net is not a network of this package"):
        load_model(tmp_path)
    assert not mark.exists()


class Own(ResidualMLP):
    """A network that is none of the package."""


class Other(ResidualMLP):
    """Another one."""


def test_a_network_of_the_users_is_loaded_where_it_is_named(tmp_path):
    save_model(tmp_path, EDMDenoiser(Own(2, 1, width=8, depth=1, embedding=4, seed=1)))
    denoiser, _ = load_model(tmp_path, network=Own)
    assert type(denoiser.backbone) is Own
    with pytest.raises(RunDirectoryError, match=r"Own is not a network of this package, and not the .*:Other"):
        load_model(tmp_path, network=Other)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/name:os.system", "!!python/tuple"]
)
def test_a_tag_in_a_configuration_makes_no_object(tmp_path, mark, tag):
    path = tmp_path / "a.yaml"
    path.write_text(f"name: x\ndata: {{path: x}}\nseed: {tag} [{mark}]\n")
    with pytest.raises(ConfigError, match="is not supported: a configuration has plain values"):
        load_config(path)
    assert not mark.exists()


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    fit(path)
    fit(path)  # as it is, it is read back
    content = bytearray(path.read_bytes())
    content[-10] ^= 4  # in the tensors, behind the header
    path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"damaged checkpoint \(sha256 differs\); delete it to retrain"):
        fit(path)


def test_a_flipped_bit_in_a_skim_is_never_another_value(tmp_path):
    """In the middle of each column: random numbers do not compress, and zstd alone would not notice."""
    path = tmp_path / "events.parquet"
    random = np.random.default_rng(1)
    write_skim(path, {"event_id": np.arange(500), **{name: random.random(500) for name in ("weight", "mjj", "tau21")}})
    content = path.read_bytes()
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
    for column in columns:
        flipped = bytearray(content)
        flipped[column.data_page_offset + column.total_compressed_size // 2] ^= 4
        path.write_bytes(flipped)
        for read in (read_skim, lambda path, name=column.path_in_schema: read_columns(path, [name])):
            with pytest.raises(DrapesError, match="checksum verification failed"):
                read(path)
