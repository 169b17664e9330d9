"""Fixtures: the data that are not ours, and small generated samples."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # the processes share the cores, and kernels on several threads would wait for each other; NumPy reads it on import
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("DRAPES_HEP_DATA", ROOT.parent / "shared" / "data"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Take the cores that this process may use, not all that the machine has; a process takes up to 2 GB."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the studies of minutes")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--run-slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a study of minutes: give --run-slow"))


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own():
    """Forget what the processors of other tests have read: it would decide which chunks are kept."""
    grounds = sys.modules.get("drapes_hep.user_files")
    for record in () if grounds is None else (grounds._opened, grounds._openers, grounds._modules, grounds._unclear):
        record.clear()


@pytest.fixture(scope="session", autouse=True)
def windows_in_this_process():
    """Let a search have one worker unless a test names a number: patches do not reach other processes."""
    from drapes_hep.pipeline import context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "available_cores", lambda: 1)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real events that may not be committed: DRAPES_HEP_DATA, or the folder beside the checkout."""
    if not (DATA / "lhco").is_dir():
        reason = f"no data in {DATA}: set DRAPES_HEP_DATA"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return DATA


@pytest.fixture(scope="module")
def real_files_stay_open():
    """Open a ROOT file that is not ours once, as a worker does for its chunks: its tree takes uproot a second."""
    from drapes_hep.events.formats import root

    plain, files = root._open, {}

    @contextlib.contextmanager
    def once(path):
        source = Path(path).resolve()
        if DATA.resolve() not in source.parents:
            with plain(path) as file:
                yield file
        else:
            if source not in files:
                files[source] = stack.enter_context(plain(path))
            yield files[source]

    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(root, "_open", once)
        yield


@pytest.fixture(scope="module")
def few_trees():
    """Small ensembles, for modules that test no classifier's strength."""
    from drapes_hep.cwola.trees import Trees
    from drapes_hep.stages import classify
    from drapes_hep.studies import measures

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Trees.__init__.__kwdefaults__, "iterations", 8)
        patch.setattr(classify, "QUALITY_ENSEMBLE", 1)
        patch.setattr(measures, "QUALITY_ENSEMBLE", 1)
        yield


@pytest.fixture(scope="session")
def worker_processes():
    """Two worker processes for all tests that only need some: each takes seconds to import what it works with."""
    import loky

    pool = loky.ProcessPoolExecutor(max_workers=2)
    yield pool
    pool.shutdown(kill_workers=True)


@pytest.fixture
def warm_workers(monkeypatch, worker_processes):
    """Let the executor "futures" use workers that other tests have used: none may die, nor rest on the directory."""
    from drapes_hep.events import processing

    plain = processing._executor

    def warm(executor, *more):
        made = plain(executor, *more)
        return made.copy(pool=worker_processes) if executor == "futures" else made

    monkeypatch.setattr(processing, "_executor", warm)


def make_columns(n: int = 3000, seed: int = 1, labels: bool = True) -> dict[str, np.ndarray]:
    """Dijet events in the feature layout: a falling spectrum, back to back, some with tau1 = 0."""
    rng = np.random.default_rng(seed)
    pt = 1150 + rng.exponential(250, n)
    eta = rng.normal(0, 1.0, (2, n))
    phi = rng.uniform(-np.pi, np.pi, n)
    columns: dict[str, np.ndarray] = {}
    for i, jet in enumerate(("j1", "j2")):
        this_pt = pt * (1 if i == 0 else rng.uniform(0.8, 1.05, n))
        this_phi = phi + i * (np.pi + rng.normal(0, 0.1, n))
        columns["px" + jet] = this_pt * np.cos(this_phi)
        columns["py" + jet] = this_pt * np.sin(this_phi)
        columns["pz" + jet] = this_pt * np.sinh(eta[i])
        columns["m" + jet] = rng.gamma(2, 60, n)
        tau1 = rng.uniform(0.05, 0.5, n)
        tau1[rng.random(n) < 0.005] = 0
        columns["tau1" + jet] = tau1
        columns["tau2" + jet] = tau1 * rng.beta(4, 3, n)
        columns["tau3" + jet] = columns["tau2" + jet] * rng.beta(6, 3, n)
    if labels:
        columns["label"] = (rng.random(n) < 0.1).astype(np.int64)
    return columns


def unrender(patch: pytest.MonkeyPatch) -> None:
    """Let reports make and write their figures, but of a few bytes: rendering takes most of a report's time."""
    from drapes_hep.plots.style import HepFigure

    patch.setattr(HepFigure, "savefig", lambda _, file, **how: file.write(how["format"].encode()))


@pytest.fixture
def unrendered(monkeypatch):
    """Reports whose figures are made and written, but not rendered."""
    unrender(monkeypatch)


@pytest.fixture
def drapes(monkeypatch, capsys):
    """Run the command line in this process; returns status, standard output and error."""
    from drapes_hep.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["drapes", *map(str, words)])
        try:
            main()
            status = 0
        except SystemExit as done:
            status = int(done.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture(scope="session")
def columns() -> dict[str, np.ndarray]:
    return make_columns()


@pytest.fixture(scope="session")
def samples(columns, tmp_path_factory) -> dict[str, Path]:
    """The same events in every kind of file, all of one stem."""
    import awkward as ak

    from drapes_hep.events.chunks import split
    from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
    from drapes_hep.events.readers import read, scan
    from drapes_hep.events.schema import JET_FIELDS
    from drapes_hep.events.skims import write_skim

    folder = tmp_path_factory.mktemp("samples")
    files = {
        "ttree": folder / "ttree" / "events.root",
        "rntuple": folder / "rntuple" / "events.root",
        "hdf5": folder / "hdf5" / "events.h5",
        "skim": folder / "skim" / "events.parquet",
    }
    write_feature_root(files["ttree"], columns, "ttree", step=700)
    write_feature_root(files["rntuple"], columns, "rntuple", step=700)
    write_feature_hdf5(files["hdf5"], columns)
    (chunk,) = split(scan(files["hdf5"]))
    events = read(chunk)
    jets = ak.zip({name: ak.Array(events.jets[name]) for name in JET_FIELDS}, depth_limit=None)
    write_skim(files["skim"], {"event_id": events.event_id, "weight": events.weight, "jets": jets})
    return files
