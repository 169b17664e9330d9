"""The benchmarks run, their records are whole, and a comparison says what became slower."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """Modules of the benchmarks, which import one another by their plain names."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: import_module(name) for name in ("record", "run", "compare")})
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_has_what_it_imports(bench, name):
    import_module(name)


def test_run_writes_records_with_all_fields(bench, tmp_path, capsys):
    path = tmp_path / "now.json"
    words = ["--quick", "--only", "noise", "--events", "200", "--rounds", "1", "-o", str(path)]
    assert bench.run.main(words) == 0
    tree = json.loads(path.read_text())
    fields = {field.name for field in dataclasses.fields(bench.record.Record)}
    assert [row.keys() for row in tree["records"]] == [fields | {"ratio"}]
    assert tree["records"][0]["parameters"] == {"events": 200}
    assert not tree["left_out"]
    assert {"python", "torch", "numpy", "lightgbm", "drapes-hep"} <= tree["origin"]["versions"].keys()
    assert tree["origin"].keys() >= {"git", "code", "cpu", "cores"}
    assert "noise" in capsys.readouterr().out


TINY = {
    "skim": {"events": 500},
    "cluster": {"events": 10},
    "constituents to torch": {"events": 50},
    "noise": {"events": 100},
    "scaling": {"events": 100, "inverse": False},
    "scaling back": {"events": 100, "inverse": True},
    "count": {"events": 100, "cuts": 2},
    "train": {"events": 500},
    "denoiser evaluation": {"limit": "activations"},
    "training step": {"limit": "sgemm", "steps": 2},
    "generate": {"events": 100},
    "classify": {"events": 400},
    "quality": {"events": 400},
    "resonance scan": {"windows": 1, "cuts": 1, "events": 20_000, "masses": 10},
    "pseudo-experiments": {"windows": 1, "cuts": 1, "toys": 20},
}


@pytest.mark.parametrize("name", TINY)
def test_every_stage_has_a_record(bench, name):
    benchmark = bench.run.named_in(bench.run.MODULES)[name]
    record = bench.record.measure(name, benchmark.make, TINY[name], 1)
    assert record.events > 0
    assert record.limit
    assert record.peak_bytes >= 0
    assert 0 < record.ratio < math.inf


def test_only_the_report_is_measured_by_no_test(bench):
    quick = {name for name, benchmark in bench.run.named_in(bench.run.MODULES).items() if benchmark.quick}
    assert quick - TINY.keys() == {"report"}  # minutes


def test_parameters_of_every_grid_are_taken(bench):
    for benchmark in bench.run.named_in(bench.run.MODULES).values():
        code = benchmark.make.__code__
        names = set(code.co_varnames[: code.co_argcount])
        grid = benchmark.grid(bench.run.FULL)
        assert grid
        assert all(parameters.keys() <= names for parameters in grid), benchmark.name


def test_first_call_that_takes_long_is_the_only_one(bench):
    now, calls = [0.0], []

    def work() -> None:
        now[0] += 20.0
        calls.append("work")

    def least() -> None:
        now[0] += 5.0
        calls.append("least")

    record = bench.record.measure("x", lambda: bench.record.Work(work, 1, "x", least, clock=lambda: now[0]), {}, 3)
    assert (record.seconds, record.limit_seconds, record.ratio) == (20.0, 5.0, 0.25)
    # the limit once to fill caches, and once
    assert calls == ["work", "least", "least"]


def record_of(bench, seconds=1.0, limit=0.5, peak=10, **parameters):
    return bench.record.Record("x", {"events": 10, **parameters}, seconds, 10, "copy", limit, peak)


def test_larger_number_of_events_is_left_out(bench):
    before = record_of(bench, seconds=10.0)
    assert not bench.run.reason_to_leave_out(before, {"events": 20}, 20.0)
    assert "20 s" in bench.run.reason_to_leave_out(before, {"events": 20}, 19.0)
    assert "GiB" in bench.run.reason_to_leave_out(record_of(bench, peak=2**60), {"events": 20}, 20.0)
    # another number of cuts says nothing
    assert not bench.run.reason_to_leave_out(record_of(bench, 10.0, cuts=1), {"events": 20, "cuts": 2}, 1.0)


def test_benchmark_that_fails_is_said(bench, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(bench.run, "in_child", fail)
    path = tmp_path / "now.json"
    assert bench.run.main(["--only", "noise", "--events", "10", "-o", str(path)]) == 1
    assert json.loads(path.read_text())["left_out"] == ["noise, events 10: failed: no such thing"]
    assert "no such thing" in capsys.readouterr().out


def compared(bench, folder, new, cpus=("a", "a"), words=()):
    paths = [folder / "old.json", folder / "new.json"]
    for path, record, cpu in zip(paths, (record_of(bench), new), cpus, strict=True):
        bench.record.write_records(path, {"cpu": cpu}, [record], [])
    return bench.compare.main([*map(str, paths), *words])


def test_same_records_are_not_slower(bench, tmp_path):
    assert compared(bench, tmp_path, record_of(bench)) == 0


def test_slower_work_is_refused(bench, tmp_path, capsys):
    assert compared(bench, tmp_path, record_of(bench, seconds=1.3)) == 1
    assert "1 of 1 measurements slower by more than 20%" in capsys.readouterr().out


def test_tolerance_is_the_callers(bench, tmp_path):
    assert compared(bench, tmp_path, record_of(bench, seconds=1.19)) == 0
    assert compared(bench, tmp_path, record_of(bench, seconds=1.3), words=["--tolerance", "0.4"]) == 0


def test_busy_machine_is_not_slower_work(bench, tmp_path):
    assert compared(bench, tmp_path, record_of(bench, seconds=2.0, limit=1.0)) == 0


def test_faster_limit_is_not_slower_work_on_the_same_processor(bench, tmp_path):
    assert compared(bench, tmp_path, record_of(bench, limit=0.25)) == 0


def test_another_processor_is_compared_by_its_limit(bench, tmp_path):
    assert compared(bench, tmp_path, record_of(bench, seconds=0.9, limit=0.25), cpus=("a", "b")) == 1
    assert compared(bench, tmp_path, record_of(bench, seconds=2.0, limit=1.0), cpus=("a", "b")) == 0


def test_records_without_a_common_measurement_are_refused(bench, tmp_path, capsys):
    assert compared(bench, tmp_path, record_of(bench, windows=3)) == 2
    assert "no measurement in common" in capsys.readouterr().err


def test_file_of_something_else_is_refused(bench, tmp_path, capsys):
    path = tmp_path / "old.json"
    path.write_text("[]")
    with pytest.raises(SystemExit) as raised:
        bench.compare.main([str(path), str(path)])
    assert raised.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
