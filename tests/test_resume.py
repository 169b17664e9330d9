"""Failures for good: all are named, finished chunks are kept, and the same command takes up only what failed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import awkward as ak
import hist
import numpy as np
import pytest
from coffea.processor import FuturesExecutor
from conftest import ROOT, make_columns

from drapes_hep import user_files as grounds
from drapes_hep.errors import DrapesError, InputError, LostEventsError
from drapes_hep.events import dispatch
from drapes_hep.events.accumulate import ColumnParts
from drapes_hep.events.chunk_store import ChunkStore, UnstorableError, pack, unpack
from drapes_hep.events.chunks import split
from drapes_hep.events.failures import FailedFilesError, Failure, join_failures
from drapes_hep.events.formats.writers import write_feature_hdf5
from drapes_hep.events.processing import run
from drapes_hep.events.readers import scan
from drapes_hep.events.skims import write_skim
from drapes_hep.files import atomic_path, read_json
from drapes_hep.plugins import load_processor

SETTINGS = {"leading_pt": 1200, "mass_range": (2000, 8000)}


def counted(events):
    """Leaves a line per chunk, so that a test sees what was processed."""
    with Path(events.metadata["log"]).open("a") as log:
        log.write(f"{Path(events.metadata['filename']).stem} {events.metadata['entrystart']}\n")
    return {"n": len(events)}


class Counted:
    """The dijet selection, which leaves a line per chunk."""

    def __init__(self, log):
        self.log, self.inner = log, load_processor("processors/dijets.py:Dijets", [ROOT])(SETTINGS)

    def process(self, events):
        with self.log.open("a") as log:
            log.write(f"{Path(events.metadata['filename']).stem} {events.metadata['entrystart']}\n")
        return self.inner.process(events)


def lines(log):
    found = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


@pytest.fixture
def three(tmp_path):
    """Three files, of which the second has a bad value in its last chunk, and how it should be."""
    paths, good = [tmp_path / f"part{i}.h5" for i in range(3)], make_columns(300, seed=1)
    for i, path in enumerate(paths):
        columns = make_columns(300, seed=i)
        if i == 1:
            columns["mj2"] = columns["mj2"].copy()
            columns["mj2"][250] = np.nan
        write_feature_hdf5(path, columns)
    return paths, good


def store_of(folder, paths, decides="a"):
    return ChunkStore(folder, {"it": decides}, {str(path): path.name for path in paths})


def skim_bytes(out, folder):
    write_skim(folder / "skim.parquet", out["skim"].columns())
    hists = json.dumps({name: one.values(flow=True).tolist() for name, one in out["hists"].items()})
    return (folder / "skim.parquet").read_bytes(), hists, out["cutflow"]


@pytest.mark.parametrize("executor", ["iterative", "futures"])
def test_only_what_failed_is_processed_again_and_nothing_differs(three, tmp_path, warm_workers, executor):
    """Byte for byte what one run without a failure gives."""
    paths, good = three
    log, store = tmp_path / "log", store_of(tmp_path / "chunks", paths)
    how = {"executor": executor, "workers": 2, "chunksize": 100}
    with pytest.raises(FailedFilesError) as caught:
        run({"a": paths}, Counted(log), store=store, **how)
    (failure,) = caught.value.failures
    assert (failure.path, failure.start, failure.stop) == (str(paths[1]), 200, 300)
    assert "column 'mj2' holds NaN" in failure.problem
    assert len(lines(log)) == 8
    write_feature_hdf5(paths[1], good)
    out, report = run({"a": paths}, Counted(log), store=store, **how)
    assert lines(log) == ["part1 200"]
    assert report.processed == 900
    whole, _ = run({"a": paths}, Counted(log), chunksize=100)
    assert skim_bytes(out, tmp_path) == skim_bytes(whole, tmp_path)


def test_all_files_that_cannot_be_opened_are_named_at_once(three, tmp_path):
    paths, _ = three
    paths[0].write_bytes(b"")
    paths[2].unlink()
    with pytest.raises(FailedFilesError) as caught:
        run({"a": paths}, counted)
    assert [Path(one.path).name for one in caught.value.failures] == ["part0.h5", "part2.h5"]
    assert "\n" not in str(caught.value)
    assert "part0.h5: is empty" in str(caught.value)
    assert "part2.h5: no such file" in str(caught.value)


@pytest.mark.parametrize("change", ["decides", "content", "chunksize", "metadata"])
def test_results_of_something_else_are_not_taken(three, tmp_path, change):
    paths, _ = three
    log, paths = tmp_path / "log", [three[0][0]]

    def read(decides="a", content="x", chunksize=100, metadata=1):
        store = ChunkStore(tmp_path / "chunks", {"it": decides}, {str(paths[0]): content})
        fileset = {"a": {"files": paths, "metadata": {"log": str(log), "it": metadata}}}
        run(fileset, counted, store=store, chunksize=chunksize)
        return lines(log)

    assert len(read()) == 3
    assert read() == []
    other = {"decides": "b", "content": "y", "chunksize": 150, "metadata": 2}[change]
    assert len(read(**{change: other})) == (2 if change == "chunksize" else 3)


def test_a_damaged_result_is_made_again(three, tmp_path):
    paths, _ = three
    log, store = tmp_path / "log", store_of(tmp_path / "chunks", paths)
    fileset = {"a": {"files": paths[0], "metadata": {"log": str(log)}}}
    expected = run(fileset, counted, store=store, chunksize=100)[0]
    lines(log)
    first, second, _ = sorted((tmp_path / "chunks").iterdir())
    first.write_bytes(first.read_bytes()[:-30])
    second.write_bytes(pickle.dumps({"n": 10**6}))
    assert run(fileset, counted, store=store, chunksize=100)[0] == expected
    assert len(lines(log)) == 2


def test_what_would_need_a_pickle_is_not_kept(three, tmp_path):
    class Own(dict):
        pass

    paths, _ = three
    store = store_of(tmp_path / "chunks", paths)
    run({"a": paths[0]}, lambda events: Own(n=len(events)), store=store)
    assert not (tmp_path / "chunks").exists()


def values():
    grown = hist.Hist.new.StrCat(["b"], growth=True, name="d").Reg(3, 0, 1, name="x", label="X [GeV]").Weight()
    grown.fill(d="a", x=[0.1, 0.2, 7], weight=[0.1, 0.2, 0.3])
    jets = ak.zip({"pt": ak.Array([[1.5], [], [2.5, 3.5]])}, depth_limit=1)
    return {
        "hists": {"one": grown, "mean": hist.Hist.new.Reg(2, 0, 1).Mean()},
        "numbers": [1, 2**70, -0.0, 0.1, float("inf"), True, None, "é", np.float32(0.1), np.int8(-3)],
        "set": {"b", "a"},
        "tuple": (1, (2,)),
        "array": np.arange(6.0).reshape(2, 3),
        "columns": ColumnParts({("a", 1, "f", 0): {"x": np.arange(3), "jets": jets}}),
        7: "a key that is no text",
    }


def test_what_is_kept_comes_back_the_same(tmp_path):
    arrays = {}
    tree = json.loads(json.dumps(pack(values(), arrays)))
    found, expected = unpack(tree, arrays), values()
    assert list(found) == list(expected)
    assert found["hists"] == expected["hists"]
    assert found["hists"]["one"].axes[1].label == "X [GeV]"
    assert [(type(one), repr(one)) for one in found["numbers"]] == [(type(o), repr(o)) for o in expected["numbers"]]
    assert (found["set"], found["tuple"], found[7]) == (expected["set"], expected["tuple"], expected[7])
    np.testing.assert_array_equal(found["array"], expected["array"])
    for name, column in expected["columns"].columns().items():
        assert ak.array_equal(found["columns"].columns()[name], column, dtype_exact=True)


@pytest.mark.parametrize("value", [object(), np.array([object()]), {"x": print}, np.ma.masked, b"bytes", 1j])
def test_what_cannot_come_back_the_same_is_refused(value):
    with pytest.raises(UnstorableError):
        pack({"it": value}, {})


def test_neighbouring_rows_are_one_failure():
    def rows(start, stop, problem="is busy (6 attempts in 3 s)", path="p"):
        return Failure("a", path, start, stop, problem, "wait")

    joined = join_failures([rows(0, 10), rows(10, 20, "is busy (1 attempt in 0 s)"), rows(30, 40), rows(40, 50, "x")])
    assert [(one.start, one.stop) for one in joined] == [(0, 20), (30, 40), (40, 50)]
    assert len(join_failures([rows(0, 10), rows(10, 20, path="q")])) == 2


# ---- the stage -------------------------------------------------------------------------------------------------------

SEARCH = """
name: parts
data: {path: "*.h5", chunksize: 1}
selection: {leading_pt: 1200}
mass: {range: [2000, 8000]}
blind: false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SEARCH)
    for i in range(3):
        write_feature_hdf5(tmp_path / f"part{i}.h5", make_columns(1200, seed=i))
    return tmp_path


def test_the_report_and_the_command_that_takes_up_what_failed(folder, drapes, monkeypatch):
    assert drapes("skim", "tiny.yaml", "-o", "whole", "--quiet")[0] == 0
    good = (folder / "part1.h5").read_bytes()
    columns = make_columns(1200, seed=1)
    columns["mj2"][1100] = np.nan
    write_feature_hdf5(folder / "part1.h5", columns)
    status, _, said = drapes("skim", "tiny.yaml", "-o", "parts")
    assert status == 2
    report = read_json(folder / "parts" / "skim" / "failures.json")
    assert report["command"] == "drapes skim tiny.yaml -o parts"
    assert [(Path(one["path"]).name, one["start"], one["stop"]) for one in report["failures"]] == [
        ("part1.h5", 1000, 1200)
    ]
    # a single failure is the line of the error, which stands once
    assert said.count("column 'mj2' holds NaN") == 1
    assert "failed: " not in said
    assert "listed in parts/skim/failures.json; `drapes skim tiny.yaml -o parts` takes up only what failed" in said
    assert not (folder / "parts" / "skim" / "events.parquet").exists()
    assert not (folder / "parts" / "stages" / "skim.json").exists()

    (folder / "part1.h5").write_bytes(good)
    os.utime(folder / "part1.h5")
    read = []
    from drapes_hep.events import processing as running

    monkeypatch.setattr(running, "_process", lambda *a, before=running._process: read.append(a[2]) or before(*a))
    assert drapes("skim", "tiny.yaml", "-o", "parts")[0] == 0
    # the file is another one now: both of its chunks, and none of the others
    assert [(Path(one.path).name, one.start) for one in read] == [("part1.h5", 0), ("part1.h5", 1000)]
    for name in ("events.parquet", "hists.json", "skim.json"):
        assert (folder / "parts/skim" / name).read_bytes() == (folder / "whole/skim" / name).read_bytes(), name
    assert sorted(p.name for p in (folder / "parts/skim").iterdir()) == ["events.parquet", "hists.json", "skim.json"]


def spoil(path, seed):
    columns = make_columns(1200, seed=seed)
    columns["mj2"][[100, 1100]] = np.nan
    write_feature_hdf5(path, columns)


def test_several_failures_have_a_line_each_before_the_error(folder, drapes):
    for i in (0, 2):
        spoil(folder / f"part{i}.h5", i)
    status, _, said = drapes("skim", "tiny.yaml", "-o", "parts")
    *lines, last = said.splitlines()
    assert status == 2
    assert sorted(line.partition(" in 2 rows")[0] for line in lines) == [
        f"failed: {folder / name}, rows 0 to 1200: column 'mj2' holds NaN or infinity"
        for name in ("part0.h5", "part2.h5")
    ]
    assert last.startswith(f"drapes: {folder}/part")
    assert last.endswith(
        "listed in parts/skim/failures.json; `drapes skim tiny.yaml -o parts` takes up only what failed"
    )


def test_one_failure_with_nothing_finished_leaves_nothing(folder, drapes):
    """Not even the report of a command before it."""
    for i in range(3):
        spoil(folder / f"part{i}.h5", i)
    report = folder / "parts" / "skim" / "failures.json"
    status, _, said = drapes("skim", "tiny.yaml", "-o", "parts")
    assert status == 2
    assert len(read_json(report)["failures"]) == 3
    assert said.endswith("; listed in parts/skim/failures.json\n")
    status, _, said = drapes("skim", "tiny.yaml", "-o", "parts", "--set", "data.path=part1.h5")
    assert status == 2
    assert said == (
        f"drapes: {folder / 'part1.h5'}: column 'mj2' holds NaN or infinity in 2 rows, first in row 100 (counted from"
        " 0); correct or remove these events\n"
    )
    assert not report.exists()


@pytest.mark.parametrize("what", ["chunks", "failures.json"])
def test_what_cannot_be_kept_does_not_hide_what_failed(folder, drapes, monkeypatch, what):
    """On a full disk, or in a folder that is not the user's."""
    spoil(folder / "part1.h5", 1)

    @contextmanager
    def full(path):
        if what in Path(path).parts:
            raise DrapesError(f"{path}: cannot be written (No space left on device)")
        with atomic_path(path) as temporary:
            yield temporary

    for module in ("events.chunk_store", "files"):
        monkeypatch.setattr(f"drapes_hep.{module}.atomic_path", full)
    status, _, said = drapes("skim", "tiny.yaml", "-o", "parts")
    assert status == 2
    assert said == (
        f"drapes: {folder / 'part1.h5'}: column 'mj2' holds NaN or infinity in 2 rows, first in row 100 (counted from"
        " 0); correct or remove these events\n"
    )


OWN = """
import json
from pathlib import Path

from drapes_hep.plugins import load_processor

{top}
Dijets = load_processor("processors/dijets.py:Dijets", [{root!r}])


class Own(Dijets):
    def trigger(self, events):
        return events.jets.pt[:, 0] > ({cut})
"""
WAYS = {
    "opened while it runs": ("", 'json.load(open("golden.json"))["cut"]'),
    "opened when loaded": ('CUT = json.load(open("golden.json"))["cut"]', "CUT"),
    "held by a helper": ("import {helper}", "{helper}.golden()"),
    "helper": ("import {helper}", "{helper}.CUT"),
    "looked for": ("", 'json.load(open("golden.json"))["cut"] if absent("more.json") else 1400'),
}
LOOK = """
def absent(name):
    try:
        open(name).close()
    except OSError:
        return True
    return False
"""
HELPER = """
import functools
import json

CUT = {cut}


@functools.cache
def golden():
    return json.load(open("golden.json"))["cut"]
"""


def ground(folder, how, cut):
    top, expression = (text.replace("{helper}", "helper_of_own") for text in WAYS[how])
    own = OWN.format(top=top + LOOK * (how == "looked for"), root=str(ROOT), cut=expression)
    (folder / "own.py").write_text(own)
    (folder / "helper_of_own.py").write_text(HELPER.format(cut=cut if how == "helper" else 0))
    (folder / "golden.json").write_text(json.dumps({"cut": 0 if how in {"helper", "looked for"} else cut}))
    if how == "looked for" and cut:
        (folder / "more.json").write_text("")


@pytest.fixture
def processed(folder, drapes, monkeypatch):
    """Skim in this process as a new one would; returns the chunks that were processed."""
    from drapes_hep.events import processing as running

    read = []
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(running, "_process", lambda *a, before=running._process: read.append(a[2]) or before(*a))

    def forget():
        read.clear()
        for name in [name for name in sys.modules if name.startswith(("helper_of_own", "_drapes_processor_"))]:
            del sys.modules[name]
        for record in (grounds._opened, grounds._modules, grounds._unclear):
            record.clear()

    def skim():
        forget()
        status = drapes("skim", "tiny.yaml", "-o", "parts", "--set", "processor=own.py:Own", "--quiet")[0]
        return status, sorted((Path(one.path).name, one.start) for one in read)

    yield skim
    forget()


CHUNKS = [(f"part{i}.h5", start) for i in range(3) for start in (0, 1000)]


@pytest.mark.parametrize("changed", [True, False], ids=["changed", "unchanged"])
@pytest.mark.parametrize("how", WAYS)
def test_files_that_the_processor_reads_decide_what_is_taken_up(folder, processed, how, changed):
    good = (folder / "part1.h5").read_bytes()
    spoil(folder / "part1.h5", 1)
    ground(folder, how, 0)
    assert processed()[0] == 2
    (folder / "part1.h5").write_bytes(good)
    ground(folder, how, 100 if changed else 0)
    assert processed() == (0, CHUNKS if changed else CHUNKS[2:4])


def test_what_a_process_or_a_folder_says_keeps_no_chunk(folder, processed):
    """No hook sees whether it would be the same again."""
    spoil(folder / "part1.h5", 1)
    ground(folder, "opened while it runs", 0)
    own = (folder / "own.py").read_text()
    (folder / "own.py").write_text(
        own.replace('json.load(open("golden.json"))["cut"]', 'len(list(Path(".").iterdir()))')
    )
    assert processed()[0] == 2
    assert not (folder / "parts/skim/chunks").exists()


def test_tiny_chunks_are_merged(folder, drapes, monkeypatch):
    from drapes_hep.events import processing as running

    sizes = []
    monkeypatch.setattr(running, "_process", lambda *a, before=running._process: sizes.append(len(a[2])) or before(*a))
    assert drapes("skim", "tiny.yaml", "-o", "r", "--quiet")[0] == 0
    assert sizes == [1000, 200] * 3


# ---- workers that die ------------------------------------------------------------------------------------------------


class Deadly:
    """Kills its worker at one chunk of one file."""

    def __init__(self, starts=(100,), how="kill"):
        self.starts, self.how = starts, how

    def process(self, events):
        if events.metadata["entrystart"] in self.starts and events.metadata["filename"].endswith("part1.h5"):
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        return {"n": len(events)}


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_the_chunk_that_kills_its_worker_is_named_and_the_others_are_kept(three, tmp_path, how, capfd):
    paths, good = three
    write_feature_hdf5(paths[1], good)
    store = store_of(tmp_path / "chunks", paths)
    with pytest.raises(LostEventsError) as caught:
        run({"a": paths}, Deadly(how=how), executor="futures", workers=2, chunksize=100, store=store)
    (failure,) = caught.value.failures
    assert (Path(failure.path).name, failure.start, failure.stop) == ("part1.h5", 100, 200)
    assert failure.problem.startswith("its worker process died (")
    assert failure.remedy == "use fewer workers or smaller chunks, if memory ran out"
    assert len(list((tmp_path / "chunks").iterdir())) == 8
    assert "Traceback" not in "".join(capfd.readouterr())


def die(payload, task):
    os._exit(3)


def double(payload, task):
    return 2 * task


def test_workers_that_die_again_and_again_end_the_run():
    found = dict(dispatch.dispatch(FuturesExecutor(workers=1, status=False), list(range(50)), die, b""))
    assert sorted(found) == list(range(50))
    assert all(isinstance(one, dispatch.Lost) for one in found.values())
    assert "its worker process died" in found[0].problem
    assert "not tried" in found[49].problem


def dies_at_two(payload, task):
    if task == 2:
        raise BrokenExecutor
    return task


def test_tasks_that_are_tried_alone_share_a_worker_until_it_dies():
    pools = []

    def pool(max_workers):
        pools.append(ThreadPoolExecutor(max_workers))
        return pools[-1]

    with dispatch._OneWorker(SimpleNamespace(pool=pool)) as alone:
        found = [alone.run(dies_at_two, b"", task) for task in range(5)]
    assert found == [0, 1, dispatch.Lost("its worker process died"), 3, 4]
    assert len(pools) == 2


def test_tasks_are_not_far_ahead(monkeypatch):
    """The first task not finished bounds what is submitted: results that wait for it are few."""
    ahead = dispatch._Submissions(1000, 8)
    assert list(ahead.ready()) == list(range(8))
    for index in range(1, 8):
        ahead.finish(index)
    assert list(ahead.ready()) == []
    ahead.finish(0)
    assert list(ahead.ready()) == list(range(8, 16))


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    import dask

    # on a busy machine a worker takes long to come back: until then the cluster must not give it up
    settings = {"distributed.scheduler.allowed-failures": 0, "distributed.deploy.lost-worker-timeout": "120s"}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as one,
    ):
        yield one


@pytest.mark.parametrize("how", ["kill"])
def test_a_chunk_that_kills_workers_of_a_cluster_is_named(client, three, tmp_path, how):
    from coffea.processor import DaskExecutor

    paths, good = three
    write_feature_hdf5(paths[1], good)
    store = store_of(tmp_path / "chunks", paths)
    executor = DaskExecutor(client=client, status=False)
    with pytest.raises(FailedFilesError) as caught:
        run({"a": paths}, Deadly(how=how), executor=executor, chunksize=100, store=store)
    (failure,) = caught.value.failures
    assert (Path(failure.path).name, failure.start, failure.stop) == ("part1.h5", 100, 200)
    assert failure.problem.startswith("its workers died, the last one at tcp://127.0.0.1:")
    out, _ = run({"a": paths}, lambda events: {"n": len(events)}, executor=executor, chunksize=100)
    assert out == {"n": 900}


def test_an_error_on_a_cluster_is_the_same_report(client, three):
    from coffea.processor import DaskExecutor

    paths, _ = three
    with pytest.raises(InputError) as caught:
        run({"a": paths}, lambda events: {"n": len(events)}, executor=DaskExecutor(client=client, status=False))
    assert isinstance(caught.value, FailedFilesError)
    assert "part1.h5: column 'mj2' holds NaN or infinity in 1 row" in str(caught.value)


def test_a_cluster_without_workers_does_not_wait_for_ever(monkeypatch):
    distributed = pytest.importorskip("distributed")
    from coffea.processor import DaskExecutor

    monkeypatch.setattr(dispatch, "_NO_WORKER", 0.5)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0", processes=False) as cluster,
        distributed.Client(cluster) as one,
    ):
        found = dict(dispatch.dispatch(DaskExecutor(client=one, status=False), [1, 2, 3], double, b""))
    assert {index: outcome.problem for index, outcome in found.items()} == dict.fromkeys(
        range(3), "the cluster has no worker left"
    )


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_columns_of_many_chunks_are_joined(tmp_path):
    write_feature_hdf5(tmp_path / "a.h5", make_columns(400))

    def columns(events):
        key = ("a", 0, "f", events.metadata["entrystart"])
        return {"skim": ColumnParts({key: {"event_id": np.asarray(events.event_id)}})}

    out, _ = run({"a": tmp_path / "a.h5"}, columns, chunksize=2)
    assert len(out["skim"].parts) == 3 + 200 % 64
    np.testing.assert_array_equal(out["skim"].columns()["event_id"], scan_ids(tmp_path / "a.h5"))


def scan_ids(path):
    from drapes_hep.events.readers import read

    (chunk,) = split(scan(path))
    return np.asarray(read(chunk).event_id)


class Tracked:
    """A result that counts how many of its kind are alive."""

    alive = most = 0

    def __init__(self, n=1):
        self.n = n
        Tracked.alive += 1
        Tracked.most = max(Tracked.most, Tracked.alive)

    def __del__(self):
        Tracked.alive -= 1

    def __add__(self, other):
        return Tracked(self.n + other.n)


def track(events):
    from test_resume import Tracked as Shared

    return {"n": Shared(len(events))}


def test_results_are_not_held_until_the_end(tmp_path):
    import test_resume

    write_feature_hdf5(tmp_path / "a.h5", make_columns(300))
    out, _ = run({"a": tmp_path / "a.h5"}, track, chunksize=1)
    assert out["n"].n == 300
    assert test_resume.Tracked.most <= 4
