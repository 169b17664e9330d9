"""Running processors: every file kind, executor and chunk size gives the same bytes, and no event is lost unseen."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from coffea.processor import FuturesExecutor, IterativeExecutor, ProcessorABC
from conftest import ROOT, make_columns

from drapes_hep.errors import ConfigError, InputError, LostEventsError
from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
from drapes_hep.events.processing import run
from drapes_hep.events.readers import scan
from drapes_hep.events.skims import write_skim
from drapes_hep.plugins import load_processor

SETTINGS = {"leading_pt": 1200, "mass_range": (2000, 8000)}


@pytest.fixture(scope="module")
def dijets():
    return load_processor("processors/dijets.py:Dijets", [ROOT])


def result(fileset, processor, folder, **kwargs):
    """Histograms, cut flow and the bytes of the skim."""
    out, report = run(fileset, processor, **kwargs)
    assert report.requested == report.processed > 0
    write_skim(folder / "skim.parquet", out["skim"].columns())
    return out["hists"], out["cutflow"], (folder / "skim.parquet").read_bytes(), out


@pytest.fixture(scope="module")
def reference(samples, dijets, tmp_path_factory):
    return result({"qcd": samples["hdf5"]}, dijets(SETTINGS), tmp_path_factory.mktemp("reference"))


def assert_same(found, reference):
    assert found[0].keys() == reference[0].keys()
    for name, histogram in reference[0].items():
        assert found[0][name] == histogram, name
    assert found[1] == reference[1]
    assert found[2] == reference[2]


@pytest.mark.parametrize("chunksize", [50_000, 1000, 777])
@pytest.mark.parametrize("kind", ["ttree", "rntuple", "hdf5", "skim"])
def test_every_file_and_chunk_size_gives_the_same_bytes(samples, dijets, reference, tmp_path, kind, chunksize):
    found = result({"qcd": samples[kind]}, dijets(SETTINGS), tmp_path, chunksize=chunksize)
    assert_same(found, reference)
    assert ("truth" in found[3]) == (kind != "skim")


@pytest.mark.parametrize("kind", ["ttree", "hdf5"])
def test_two_worker_processes_give_the_same_bytes(samples, dijets, reference, tmp_path, warm_workers, kind):
    """The processor is loaded by path: no worker could import it."""
    found = result({"qcd": samples[kind]}, dijets(SETTINGS), tmp_path, executor="futures", workers=2, chunksize=1000)
    assert_same(found, reference)


def test_order_of_files_does_not_matter(tmp_path, dijets):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"part{i}.{'h5' if i else 'root'}")
        if i:
            write_feature_hdf5(paths[-1], make_columns(500, seed=i))
        else:
            write_feature_root(paths[-1], make_columns(500, seed=i))
    forward = result({"a": paths}, dijets(SETTINGS), tmp_path)
    backward = result({"a": paths[::-1]}, dijets(SETTINGS), tmp_path, chunksize=99)
    assert_same(backward, forward)


def test_weights_reach_the_histograms(tmp_path, columns, dijets):
    weight = np.random.default_rng(0).uniform(0, 2, 3000)
    write_feature_hdf5(tmp_path / "a.h5", {**columns, "weight": weight})
    out, _ = run({"a": tmp_path / "a.h5"}, dijets(SETTINGS), chunksize=500)
    before = out["hists"]["mjj"][{"selection": "before"}].sum(flow=True)
    assert before.value == pytest.approx(weight.sum(), rel=1e-12)
    assert before.variance == pytest.approx((weight**2).sum(), rel=1e-12)
    assert out["cutflow"]["a"]["read"]["weight"] == pytest.approx(weight.sum(), rel=1e-12)


def test_histograms_hold_every_event(samples, dijets, reference):
    for name, histogram in reference[0].items():
        jets = 2 if name.startswith("jet_") else 1
        for step, selection in (("two_jets", "before"), ("defined", "after")):
            total = histogram[{"selection": selection}].sum(flow=True).value
            assert total == jets * reference[1]["qcd"][step]["events"], name


def test_truth_is_apart(samples, columns, dijets):
    out, _ = run({"qcd": samples["ttree"]}, dijets(SETTINGS))
    skim, truth = out["skim"].columns(), out["truth"].columns()
    assert "label" not in skim
    np.testing.assert_array_equal(truth["event_id"], skim["event_id"])
    np.testing.assert_array_equal(truth["label"], columns["label"][skim["event_id"] & 0xFFFFFFFF])


def test_undefined_features_get_the_stated_value(samples, dijets):
    dropped, _ = run({"a": samples["hdf5"]}, dijets(SETTINGS))
    kept, _ = run({"a": samples["hdf5"]}, dijets({**SETTINGS, "undefined": -1.0}))
    skim, flow = kept["skim"].columns(), kept["cutflow"]["a"]
    undefined = sum(flow[f"undefined_{name}"]["events"] for name in ("tau21_j1", "tau21_j2"))
    assert undefined > 0
    assert (skim["tau21_j1"] == -1).sum() + (skim["tau21_j2"] == -1).sum() == undefined
    assert len(kept["skim"]) == flow["mass_range"]["events"] > len(dropped["skim"])


def test_fewer_than_two_jets_are_counted(tmp_path, dijets):
    columns = make_columns(100)
    for q in ("px", "py", "pz", "m"):
        columns[f"{q}j2"][:7] = 0
    write_feature_hdf5(tmp_path / "a.h5", columns)
    out, _ = run({"a": tmp_path / "a.h5"}, dijets(SETTINGS), chunksize=7)
    assert out["cutflow"]["a"]["two_jets"]["events"] == 93


def test_every_hook_is_called(samples, dijets):
    calls = []

    class Hooked(dijets):
        def weights(self, events):
            calls.append("weights")
            return 2 * super().weights(events)

        def golden_json(self, events):
            calls.append("golden_json")
            return np.arange(len(events)) % 2 == 0

        def trigger(self, events):
            calls.append("trigger")
            return np.arange(len(events)) % 4 == 0

        def corrections(self, events):
            calls.append("corrections")
            jets = events.jets
            jets["pt"] = jets.pt * 1.01
            return jets

        def jet_id(self, events, jets):  # noqa: ARG002
            calls.append("jet_id")
            return abs(jets.eta) < 2

    out, _ = run({"a": samples["hdf5"]}, _Here(Hooked(SETTINGS)))
    assert sorted(calls) == ["corrections", "golden_json", "jet_id", "trigger", "weights"]
    flow = out["cutflow"]["a"]
    assert flow["read"]["weight"] == 6000
    assert (flow["golden_json"]["events"], flow["trigger"]["events"]) == (1500, 750)
    assert flow["two_jets"]["events"] < 750


class _Here:
    """Keeps a processor in this process, where pickling would give the calls to a copy."""

    kept: ClassVar[dict] = {}

    def __init__(self, processor):
        _Here.kept["it"] = processor

    def process(self, events):
        return _Here.kept["it"].process(events)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"leading_tp": 1}, "unknown setting 'leading_tp'; did you mean 'leading_pt'?"),
        ({"features": ["m_jj"]}, "resonant mass"),
        ({"mass_range": [6000, 2700]}, "mass_range must rise"),
        ({"undefined": "keep"}, "expected 'drop' or a number"),
    ],
)
def test_bad_settings(dijets, settings, message):
    with pytest.raises(ConfigError) as caught:
        dijets(settings)
    assert message in str(caught.value)


# ---- the account -----------------------------------------------------------------------------------------------------


class Forgetful(IterativeExecutor):
    """Loses a task, as coffea's ``skipbadfiles`` does."""

    def __call__(self, items, function, accumulator):
        return super().__call__(items[:-1], function, accumulator)


class Twice(IterativeExecutor):
    def __call__(self, items, function, accumulator):
        return super().__call__([*items, items[0]], function, accumulator)


@pytest.mark.parametrize("kind", ["ttree", "hdf5"])
def test_lost_events_raise(samples, kind):
    with pytest.raises(
        LostEventsError, match=r"3000 events were requested but 2000 processed \(1000 lost, e.g. rows 2000"
    ):
        run({"a": samples[kind]}, len_of, executor=Forgetful(), chunksize=1000)


@pytest.mark.parametrize("kind", ["ttree", "hdf5"])
def test_events_counted_twice_raise(samples, kind):
    with pytest.raises(LostEventsError, match="processed twice"):
        run({"a": samples[kind]}, len_of, executor=Twice(retries=0), chunksize=1000)


def len_of(events):
    return {"n": len(events)}


def test_report(samples, tmp_path, capfd):
    write_feature_root(tmp_path / "other.root", make_columns(120))
    fileset = {
        "a": {"files": {str(samples["rntuple"]): "events"}, "metadata": {"xsec": 2.5}},
        "b": [tmp_path / "other.root"],
    }
    out, report = run(fileset, lambda events: {events.metadata["dataset"]: len(events)}, chunksize=100)
    assert out == {"a": 3000, "b": 120}
    assert [(f.dataset, f.requested, f.processed) for f in report.files] == [("a", 3000, 3000), ("b", 120, 120)]
    assert (report.requested, report.processed, report.failed) == (3120, 3120, ())
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_own_metadata_reaches_the_processor(samples):
    for kind in ("ttree", "hdf5"):
        fileset = {"a": {"files": samples[kind], "metadata": {"xsec": 2.5, "tags": ["x"]}}}
        out, _ = run(fileset, lambda events: {"sum": events.metadata["xsec"] * len(events)})
        assert out == {"sum": 7500.0}


def test_processor_errors_pass_unchanged_and_once(samples, tmp_path):
    class Broken(ProcessorABC):
        def process(self, events):  # noqa: ARG002
            with (tmp_path / "calls").open("a") as file:
                file.write("x")
            raise ZeroDivisionError("mine")

        def postprocess(self, accumulator):
            return accumulator

    for kind in ("hdf5", "ttree"):
        with pytest.raises(ZeroDivisionError, match="mine"):
            run({"a": samples[kind]}, Broken())
    assert (tmp_path / "calls").read_text() == "xx"


def test_a_processor_that_returns_nothing(samples):
    with pytest.raises(ConfigError, match="returned nothing"):
        run({"a": samples["ttree"]}, lambda _: None)


def test_errors_of_workers_come_back_as_they_were(tmp_path, columns, capfd):
    bad = {**columns, "mj2": columns["mj2"].copy()}
    bad["mj2"][[1500, 2500]] = np.nan
    write_feature_hdf5(tmp_path / "a.h5", bad)
    with pytest.raises(InputError) as caught:
        run({"a": tmp_path / "a.h5"}, len_of, executor=FuturesExecutor(workers=2), chunksize=1000)
    assert "column 'mj2' holds NaN or infinity in 2 rows, first in row 1500 " in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_urls_are_read_as_root(samples):
    _, report = run({"a": f"file://{samples['ttree']}"}, len_of)
    assert report.processed == 3000


def test_files_that_were_scanned_are_not_scanned_again(samples, monkeypatch):
    infos = [scan(samples["ttree"])]
    monkeypatch.setattr("drapes_hep.events.processing.scan", lambda *_: pytest.fail("scanned again"))
    _, report = run({"a": samples["ttree"]}, len_of, infos=infos)
    assert report.processed == 3000


def test_a_file_that_changed_after_its_scan_is_scanned_again(tmp_path):
    path = tmp_path / "a.root"
    write_feature_root(path, make_columns(300))
    infos = [scan(path)]
    write_feature_root(path, make_columns(400))
    _, report = run({"a": path}, len_of, infos=infos)
    assert report.processed == report.requested == 400


# ---- loading ---------------------------------------------------------------------------------------------------------

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
from coffea import processor

@dataclass(frozen=True)
class Settings:
    factor: int = 3

class Mine(processor.ProcessorABC):
    def __init__(self, settings=None):
        self.settings = Settings(**(settings or {}))
    def process(self, events):
        return {"n": self.settings.factor * len(events)}
    def postprocess(self, accumulator):
        return {"total": accumulator["n"]}
"""


def test_a_processor_by_path_reaches_workers(samples, tmp_path, warm_workers):
    (tmp_path / "mine.py").write_text(SOURCE)
    mine = load_processor("mine.py:Mine", [tmp_path / "nowhere", tmp_path])
    out, _ = run({"a": samples["rntuple"]}, mine({"factor": 5}), executor="futures", workers=2, chunksize=2000)
    assert out == {"total": 15000}


def test_settings_can_be_extended_after_a_run(samples, tmp_path):
    """A run sends the class by value through this very process: its dataclass must stay what it was."""
    (tmp_path / "mine.py").write_text(SOURCE.replace("class Settings:", "class Settings:\n    name: str"))
    mine = load_processor("mine.py:Mine", [tmp_path])
    for kind in ("ttree", "hdf5"):
        run({"a": samples[kind]}, mine({"name": "x", "factor": 2}))
    settings = type(mine({"name": "x"}).settings)

    @dataclasses.dataclass(frozen=True)
    class More(settings):
        extra: int = 1

    assert More("y") == More(name="y", factor=3, extra=1)
    with pytest.raises(TypeError, match="name"):
        More()


def test_an_edited_processor_is_loaded_anew(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    first = load_processor(f"{tmp_path}/mine.py:Mine")
    assert load_processor(f"{tmp_path}/mine.py:Mine") is first
    (tmp_path / "mine.py").write_text(SOURCE.replace("= 3", "= 4"))
    assert load_processor(f"{tmp_path}/mine.py:Mine")().settings.factor == 4


def test_a_processor_of_a_package():
    assert load_processor("coffea.processor:ProcessorABC") is ProcessorABC


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dijets", "no processor 'dijets'; name your own as 'file.py:Class' or 'package.module:Class'"),
        ("mime.py:Mine", "no file mime.py; did you mean 'mine.py'?"),
        ("mine.py:Mien", "no class 'Mien' in mine.py; did you mean 'Mine'?"),
        ("mine.py:dataclass", "'dataclass' is not a processor: it is a function, not a class"),
        ("syntax.py:Mine", "syntax.py does not run (line 1: "),
        ("imports.py:Mine", "does not run (ModuleNotFoundError: No module named 'nosuchmodule')"),
        ("no.such.module:Mine", "module no.such.module cannot be imported (ModuleNotFoundError"),
    ],
)
def test_processors_that_cannot_be_loaded(tmp_path, name, message):
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "syntax.py").write_text("class Mine(:\n")
    (tmp_path / "imports.py").write_text("import nosuchmodule\n")
    with pytest.raises(ConfigError) as caught:
        load_processor(name, [tmp_path])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"executor": "spark"}, "unknown executor 'spark'"),
        ({"executor": "futures", "workers": 0}, "workers must be at least 1"),
        ({"chunksize": 0}, "chunksize must be at least 1"),
    ],
)
def test_bad_arguments(samples, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        run({"a": samples["hdf5"]}, len_of, **kwargs)


def test_empty_fileset():
    with pytest.raises(ConfigError, match="no input file"):
        run({"a": []}, len_of)
