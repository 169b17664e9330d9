"""What a search needs of any processor's output, and what becomes of a user's code that goes wrong."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import sys
from collections import Counter, defaultdict

import awkward as ak
import boost_histogram as bh
import hist
import numpy as np
import pytest
import yaml
from coffea import processor
from conftest import ROOT, make_columns

from drapes_hep.config import load_config
from drapes_hep.cwola.classifiers import load_classifier
from drapes_hep.errors import ConfigError, LostEventsError, UsersCode
from drapes_hep.events.accumulate import ColumnParts, fill_checked
from drapes_hep.events.chunks import split
from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
from drapes_hep.events.outputs import CheckedProcessor, RequiredOutput, json_form
from drapes_hep.events.processing import run
from drapes_hep.events.readers import read, scan
from drapes_hep.files import file_hash, read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.plugins import load_processor
from drapes_hep.progress import Reporter
from drapes_hep.stages.skim import skim
from drapes_hep.templates.constituents.backbones import find_backbone

FEATURES = ("m_j1", "tau21_j1")
RANGE = (2000.0, 8000.0)
SETTINGS = {"features": FEATURES, "mass_range": RANGE}
WANTED = RequiredOutput(FEATURES, RANGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    columns = make_columns(600, seed=4)
    write_feature_hdf5(folder / "events.h5", columns)
    write_feature_root(folder / "events.root", columns)
    return folder


@pytest.fixture(scope="module")
def events(folder):
    return read(split(scan(folder / "events.h5"))[0])


@pytest.fixture(scope="module")
def dijets():
    return load_processor("processors/dijets.py:Dijets", [ROOT])


def checked(dijets, change, wanted=WANTED):
    """A processor that is no subclass of ours, whose output is that of ours with a change."""

    class Mine(processor.ProcessorABC):
        def process(self, events):
            out = dijets(SETTINGS).process(events)
            return change(out)

        def postprocess(self, accumulator):
            return accumulator

    return CheckedProcessor(Mine(), wanted)


def message(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def column(name, change, part="skim"):
    """Change one column of the chunk's events; None takes it away."""

    def changed(out):
        (columns,) = out[part].parts.values()
        columns[name] = change(columns.get(name))
        return out

    return changed


def first(value):
    def changed(values):
        values = np.array(values)
        values[0] = value
        return values

    return changed


def without(key):
    return lambda out: {name: value for name, value in out.items() if name != key}


def dropped(name):
    def changed(out):
        (columns,) = out["skim"].parts.values()
        del columns[name]
        return out

    return changed


def with_key(**extra):
    return lambda out: out | extra


def flow_of(value):
    return lambda out: out | {"cutflow": value}


def nan_histogram():
    return hist.Hist(hist.axis.Regular(3, 0, 1, name="x"), storage="weight").fill(x=[0.5], weight=[np.nan])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: None, "process(events) returned nothing: a processor needs three things for a search"),
        (lambda out: (x for x in out), "process(events) returned a generator: a processor needs three things"),
        (
            without("hists"),
            "returned no 'hists': a processor needs three things for a search: __init__(self, settings)",
        ),
        (without("cutflow"), "returned no 'cutflow'"),
        (without("skim"), "returned no 'skim'"),
        (with_key(skim={"event_id": [1]}), "'skim' is a dict, not drapes_hep.events.accumulate.ColumnParts"),
        (with_key(hists=[1]), "'hists' is a list, not a dict"),
        (with_key(hists={"a": np.ones(3)}), "hists['a'] is a ndarray, not a hist.Hist"),
        (with_key(hists={3: hist.Hist.new.Reg(3, 0, 1).Double()}), "hists[3] is a Hist, not a hist.Hist under a name"),
        (with_key(hists={"a": nan_histogram()}), "hists['a'] holds NaN or infinity"),
        (with_key(hists={"a": bh.Histogram(bh.axis.Regular(3, 0, 1, metadata={1, 2}))}), "cannot be written as JSON"),
        (flow_of({"all": 600}), "'cutflow' has the keys ['all'], not ['']"),
        (flow_of({"": {"all": 600}}), "cutflow['']['all'] is 600; expected {dataset: {step: {'events': N, 'weight'"),
        (flow_of({"": {"all": {"events": 3, "weight": math.nan}}}), "finite numbers"),
        (column("event_id", lambda x: x + 1_000_000), "selected events are not in the chunk, e.g. event_id"),
        (column("event_id", lambda x: x.astype(np.float64)), "is not a column of integers"),
        (column("event_id", lambda x: np.r_[x[1], x[1:]]), "1 events are selected twice, e.g. event_id"),
        (column("weight", first(np.nan)), "the skim's 'weight' holds NaN or infinity in 1 events, first event_id"),
        (column("m_j1", first(np.inf)), "the skim's 'm_j1' holds NaN or infinity in 1 events"),
        (column("m_j1", lambda x: x.astype(str)), "the skim's 'm_j1' holds <U"),
        (column("m_j1", lambda x: x.astype(object)), "the skim's 'm_j1' is not a plain column"),
        (column("m_j1", lambda x: x[:-1]), "rows for"),
        (column("m_j1", lambda x: x[:, None]), "is not a plain column"),
        (column("m_j1", lambda x: x.tolist()), "the skim's 'm_j1' is a list, not an array"),
        (dropped("tau21_j1"), "the skim has no column 'tau21_j1'; it needs event_id, weight, mjj, m_j1, tau21_j1"),
        (column("label", lambda _: np.zeros(3)), "the skim has a column 'label'"),
        (column("mjj", first(9000.0)), "holds values outside mass.range (2000 to 8000 GeV) in 1 events"),
        (column("mjj", lambda x: np.minimum(1.001 * x, 7999)), "holds a mass different from that of the two jets"),
        (column("jets", lambda x: x[:, ::-1][:, :1]), "the skim's 'jets' holds a number of jets other than two"),
        (column("jets", lambda x: ak.with_field(x, -x.pt, "pt")), "transverse momentum that is not positive in 'pt'"),
        (column("jets", lambda x: x[["pt", "eta"]]), "the skim's 'jets' must be lists of jets with pt, eta, phi"),
        (column("extra", lambda _: ak.Array([[1], None] * 300)[: 0]), "rows for"),
        (lambda out: out | {"skim": ColumnParts({("a", 1, "b", 0): {}})}, "chunk_key(events.metadata)"),
        (with_key(mine="2018"), "'mine' is a str, which cannot be merged"),
        (with_key(mine=None), "'mine' is a NoneType, which cannot be merged"),
        (with_key(mine=lambda: 3), "'mine' (function) cannot be sent and merged"),
        (lambda out: out | {"mine": (x for x in out)}, "'mine' (generator) cannot be sent and merged"),
        (with_key(mine={"a": object()}), "cannot be sent and merged"),
        (with_key(mine={"a": [1j]}), "'mine'['a'] holds a complex, which cannot be written as JSON"),
        (with_key(mine=math.nan), "'mine' is nan, which JSON cannot represent"),
        (with_key(mine={frozenset(): 1}), "which cannot be written as JSON"),
        (with_key(mine={1: 1, "1": 2}), "keys that are the same in JSON"),
        (lambda out: out | {3: 1}, "the output has the key 3, which is not text"),
        (column("label", lambda x: x + 2, "truth"), "'truth' must hold event_id and label, which is 0 or 1"),
    ],
)  # fmt: skip
def test_an_output_that_cannot_be_searched_is_refused(dijets, events, change, said):
    text = message(checked(dijets, change).process, events)
    assert said in text
    assert __file__ in text


def test_the_processors_of_the_package_pass(dijets, events):
    out = CheckedProcessor(dijets(SETTINGS), WANTED).process(events)
    assert len(out["skim"]) > 100


# ---- histograms and accumulators that are the user's own -------------------------------------------------------------

STRANGE = {
    "no_selection": hist.Hist.new.Reg(5, 0, 1, name="x").Double().fill([0.1, 0.2]),
    "systematics": hist.Hist.new.StrCat(["up", "down"], name="syst").Reg(5, 0, 1, name="x").Weight(),
    "plane": hist.Hist.new.Reg(5, 0, 1, name="x").Reg(5, 0, 1, name="y").Int64(),
    "log": hist.Hist.new.Log(5, 1, 10, name="x").Double(),
    "categories": hist.Hist.new.IntCat([1, 5], growth=True, name="n").Bool(name="b").Double(),
    "profile": hist.Hist.new.Reg(5, 0, 1, name="x").Mean(),
    "nameless": bh.Histogram(bh.axis.Integer(0, 3)),
}
OWN = {
    "number": (3, 6),
    "numpy": (np.float32(0.5), 1.0),
    "counter": (Counter(a=1), {"a": 2}),
    "nested": (defaultdict(dict, {("x", 2): {"n": 1}}), {"x:2": {"n": 2}}),
    "set": ({10, 9}, [9, 10]),
    "array": (np.array([1, 2]), [2, 4]),
    "ragged": (ak.Array([[1], [2, 3]]), [[2], [4, 6]]),
    "columns": (processor.column_accumulator(np.array([1.5])), [1.5, 1.5]),
    "value": (processor.value_accumulator(int, 2), 4),
    "list": (["a"], ["a", "a"]),
}


class Kept(processor.ProcessorABC):
    """Adds histograms and accumulators of every kind to what the selection returns."""

    def __init__(self, settings):
        self.inner = load_processor("processors/dijets.py:Dijets", [ROOT])(settings)

    def process(self, events):
        out = self.inner.process(events)
        out["hists"] |= STRANGE
        return out | {name: value for name, (value, _) in OWN.items()}

    def postprocess(self, accumulator):
        return accumulator


SEARCH = {
    "name": "own",
    "data": {"path": "events.h5", "chunksize": 300},
    "mass": {"range": [2000, 8000]},
    "features": [*FEATURES],
    "windows": {"width": 400, "step": 400, "first": 3300, "last": 3300},
}


@pytest.fixture
def project(folder, tmp_path, monkeypatch):
    """A configuration beside the events, of two chunks; its processor is the test's to write."""
    monkeypatch.setattr("drapes_hep.stages.skim._SMALLEST", 1)
    (tmp_path / "events.h5").symlink_to(folder / "events.h5")
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({**SEARCH, "processor": "mine.py:Mine"}))
    return tmp_path


def context_of(project, *changes, **options):
    return Context.of(load_config(project / "search.yaml", changes), open_run(project / "run"), device="cpu", **options)


def test_every_histogram_and_accumulator_is_kept(project):
    skim(context_of(project, "processor=test_outputs:Kept"))
    record = read_json(project / "run" / "skim" / "skim.json")
    assert record["accumulators"] == {name: merged for name, (_, merged) in OWN.items()}
    assert STRANGE.keys() <= read_json(project / "run" / "skim" / "hists.json").keys()


def test_what_json_has_no_word_for_is_named():
    assert (
        message(json_form, {"a": {"b": [b"x"]}}, "'mine'")
        == "'mine'['a']['b'] holds a bytes, which cannot be written as JSON"
    )


# ---- the cut flow ----------------------------------------------------------------------------------------------------

SUBCLASS = """
import numpy as np
from drapes_hep.plugins import load_processor

class Mine(load_processor("processors/dijets.py:Dijets")):
    def trigger(self, events):
        return np.ones(len(events), dtype=bool)
"""


def edited():
    source = (ROOT / "processors" / "dijets.py").read_text().replace("class Dijets(", "class Mine(")
    head, place, tail = source.partition("def trigger")
    return head + place + tail.replace("return no_cut(events)", "return np.ones(len(events), dtype=bool)", 1)


@pytest.mark.parametrize("source", [SUBCLASS, edited()], ids=["subclass", "edited copy"])
def test_a_step_is_left_out_where_its_hook_is_not_set(project, source):
    (project / "mine.py").write_text(source)
    skim(context_of(project))
    record = read_json(project / "run" / "skim" / "skim.json")
    steps = [step["name"] for step in record["cutflow"]]
    assert (record["not_applied"], steps[:3]) == (["golden_json"], ["read", "trigger", "two_jets"])


GOLDEN = """
import json
import numpy as np
from pathlib import Path
from drapes_hep.plugins import load_processor

class Mine(load_processor("processors/dijets.py:Dijets")):
    def golden_json(self, events):
        lowest = json.loads(Path(__file__).with_name("golden.json").read_text())
        return (events.event_id & 0xFFFFFFFF) >= lowest
"""


def test_an_edited_golden_json_reruns_the_skim(project):
    (project / "mine.py").write_text(GOLDEN.replace("Path(__file__)", f"Path({str(project / 'mine.py')!r})"))
    counts = []
    for lowest in (0, 100):
        (project / "golden.json").write_text(json.dumps(lowest))
        skim(context_of(project, "blind=false"))
        flow = read_json(project / "run" / "skim" / "skim.json")["cutflow"]
        counts.append({step["name"]: step["events"] for step in flow}["golden_json"])
    assert counts == [600, 500]


DECLARED = GOLDEN.replace("    def golden", '    reads = ["golden.json"]\n\n    def golden', 1)


def selected(project, *changes) -> str:
    """Select events of a project; returns what is said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        skim(context_of(project, *changes, reporter=Reporter()))
    return said.getvalue()


def write_golden(project, source, lowest):
    (project / "mine.py").write_text(source.replace("Path(__file__)", f"Path({str(project / 'mine.py')!r})"))
    (project / "golden.json").write_text(json.dumps(lowest))


def test_a_file_that_is_not_declared_is_said_once_and_kept_in_the_stamp(project):
    write_golden(project, GOLDEN, 0)
    place = str(project / "golden.json")
    lines = [line for line in selected(project).splitlines() if "golden" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"skim: the processor reads {place} without")
    assert 'reads = ["golden.json"]' in lines[0]
    assert read_json(project / "run" / "stages" / "skim.json")["opened"] == {place: file_hash(place)}
    named = read_json(project / "run" / "manifest.json")["processor"]
    assert (named["reads"], named["opened"]) == ({}, {place: file_hash(place)})
    assert "skim: already done" in selected(project)
    (project / "golden.json").write_text("100")
    assert f"skim: runs again, as {place}, which the processor reads, has changed" in selected(project)


def test_a_declared_file_is_part_of_the_key_and_not_said(project):
    write_golden(project, DECLARED, 0)
    place = str(project / "golden.json")
    assert "golden" not in selected(project)
    stamp = read_json(project / "run" / "stages" / "skim.json")
    assert stamp["opened"] == {}
    assert stamp["other"]["processor's files"] == {"golden.json": file_hash(place)}
    assert read_json(project / "run" / "manifest.json")["processor"]["reads"] == {place: file_hash(place)}
    assert "skim: already done" in selected(project)
    (project / "golden.json").write_text("100")
    assert "skim: runs again, as golden.json, which the processor reads, has changed" in selected(project)


def test_a_project_with_a_declared_file_may_move(project, tmp_path_factory, monkeypatch):
    source = DECLARED.replace("Path(__file__).with_name", "Path")
    write_golden(project, source, 0)
    monkeypatch.chdir(project)
    selected(project)
    other = tmp_path_factory.mktemp("moved") / "project"
    shutil.copytree(project, other, symlinks=True)
    monkeypatch.chdir(other)
    assert "skim: already done" in selected(other)


def test_a_helper_of_a_processor_is_part_of_the_key(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "helper_of_mine.py").write_text("LOWEST = 0\n")
    lowest = "        lowest = helper_of_mine.LOWEST\n"
    source = re.sub("        lowest = .*\n", lowest, GOLDEN).replace("import json", "import helper_of_mine")
    (project / "mine.py").write_text(source)
    assert "declare" not in selected(project)
    assert "skim: already done" in selected(project)
    (project / "helper_of_mine.py").write_text("LOWEST = 100\n")
    assert f"as {project / 'helper_of_mine.py'}, which the processor reads, has changed" in selected(project)


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        ("'golden.json'", "reads must be a list of files, such as reads = ['golden.json']"),
        ("[3]", "reads contains 3, which is not a file name"),
        ("['golden.jsn']", "reads golden.jsn, which does not exist; looked in "),
    ],
)
def test_what_cannot_be_read_is_refused(project, reads, said):
    write_golden(project, DECLARED.replace('["golden.json"]', reads), 0)
    assert f"processor 'mine.py:Mine': {said}" in message(lambda: skim(context_of(project)))


def test_files_of_another_processor_of_the_process_do_not_count(project, tmp_path_factory):
    write_golden(project, GOLDEN, 0)
    selected(project)
    other = tmp_path_factory.mktemp("other")
    (other / "events.h5").symlink_to(project / "events.h5")
    (other / "search.yaml").write_text(
        yaml.safe_dump({**SEARCH, "processor": str(ROOT / "processors" / "dijets.py:Dijets")})
    )
    selected(other)
    assert read_json(other / "run" / "stages" / "skim.json")["opened"] == {}


@pytest.mark.parametrize(
    "change", ["name=other", "data.layout=LAYOUT", "data.chunksize=250", "seed=7", "plots.label=Words"]
)
def test_what_is_spelled_otherwise_or_decides_nothing_reruns_nothing(project, change):
    write_golden(project, SUBCLASS, 0)
    selected(project)
    layout = read_json(project / "run" / "stages" / "skim.json")["other"]["data.layout"]
    assert "skim: already done" in selected(project, change.replace("LAYOUT", layout))


# ---- merging ---------------------------------------------------------------------------------------------------------


def test_chunks_with_other_columns_are_refused(dijets, folder):
    def sometimes(out):
        ((key, columns),) = out["skim"].parts.items()
        return out if key[3] else column("more", lambda _: columns["mjj"])(out)

    mine = checked(dijets, sometimes)
    assert "column 'more' is not in all chunks" in message(lambda: run({"": folder / "events.h5"}, mine, chunksize=300))


def test_columns_of_another_kind_are_refused():
    parts = {("a", 0, "f", start): {"n": np.array([1], dtype=kind)} for start, kind in ((0, "i8"), (5, "f8"))}
    assert "column 'n' is int in one chunk (that from row 0 of f) and float" in message(ColumnParts(parts).columns)


def test_a_chunk_without_events_decides_no_type():
    parts = {("a", 0, "f", 0): {"n": np.array([])}, ("a", 0, "f", 5): {"n": np.array([2**62 + 1])}}
    assert ColumnParts(parts).columns()["n"].tolist() == [2**62 + 1]


def test_results_that_cannot_be_merged_are_one_line(dijets, folder):
    def axes(out):
        ((_, _, _, start),) = out["skim"].parts
        return out | {"hists": {"a": hist.Hist(hist.axis.Regular(3 + start, 0, 1, name="x"))}}

    mine = checked(dijets, axes)
    text = message(lambda: run({"": folder / "events.h5"}, mine, chunksize=300))
    assert text.startswith("processor Mine")
    assert "the results of two chunks cannot be merged (ValueError" in text


def test_a_histogram_that_a_chunk_lacks_is_refused(dijets, folder):
    def fewer(out):
        ((_, _, _, start),) = out["skim"].parts
        return out | {"hists": {"mjj": out["hists"]["mjj"]}} if start else out

    text = message(lambda: run({"": folder / "events.h5"}, checked(dijets, fewer), chunksize=300))
    assert text.startswith("processor Mine")
    assert "histogram 'jet_eta' is not in all chunks: that from row 300 of" in text


# ---- events that a processor loses -----------------------------------------------------------------------------------


def test_a_processor_that_passes_on_half_of_the_events_is_refused(dijets, events):
    class Half(dijets):
        def process(self, events):
            return super().process(events[::2])

    text = message(CheckedProcessor(Half(SETTINGS), WANTED).process, events)
    assert "step 'read' has 300 events, but the chunk has 600" in text


def test_a_skim_of_fewer_events_than_the_cut_flow_is_refused(dijets, events):
    def half(out):
        ((key, columns),) = out["skim"].parts.items()
        return out | {"skim": ColumnParts({key: {name: values[::2] for name, values in columns.items()}})}

    assert "step 'defined' has" in message(checked(dijets, half).process, events)


def test_a_cut_flow_that_rises_is_refused(dijets, events):
    def rising(out):
        out["cutflow"][""]["two_jets"]["events"] = 601
        return out

    assert "'two_jets' has 601 events, more than 'trigger' (600)" in message(checked(dijets, rising).process, events)


def lost(skim):
    return {key: {name: values[1:] for name, values in part.items()} for key, part in skim.parts.items()}


def repeated(skim):
    return skim.parts | {("", 0, "", 10**7): next(iter(skim.parts.values()))}


@pytest.mark.parametrize("change", [lost, repeated])
def test_a_postprocess_that_changes_the_events_is_refused(dijets, folder, change):
    class Mine(dijets):
        def postprocess(self, accumulator):
            return accumulator | {"skim": ColumnParts(change(accumulator["skim"]))}

    text = message(lambda: run({"": folder / "events.h5"}, CheckedProcessor(Mine(SETTINGS), WANTED)))
    assert "postprocess(accumulator) changes which events are selected" in text


def test_a_fill_with_nan_is_no_fill():
    one = hist.Hist(hist.axis.Regular(3, 0, 1, name="x"), storage="weight")
    with pytest.raises(LostEventsError):
        fill_checked(one, x=np.array([0.5]), weight=np.array([np.nan]))


# ---- code that ends the program --------------------------------------------------------------------------------------

WAYS = {
    "SystemExit": "raise SystemExit",
    "exit status 0": "__import__('sys').exit(0)",
    "exit()": "exit()",
    "GeneratorExit": "raise GeneratorExit",
    "BaseException": "raise type('Mine', (BaseException,), {})('why')",
    "StopIteration": "raise StopIteration",
}
PLACES = {
    "import": "{way}\nclass Mine:\n    def process(self, events): pass\n",
    "init": "class Mine:\n    def __init__(self, settings):\n        {way}\n    def process(self, events): pass\n",
    "process": "class Mine:\n    def __init__(self, settings): pass\n    def process(self, events):\n        {way}\n",
    "postprocess": SUBCLASS + "    def postprocess(self, accumulator):\n        {way}\n",
    "pickling": "class Mine:\n    def __init__(self, settings): pass\n    def process(self, events): pass\n"
    "    def __reduce__(self):\n        {way}\n",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", PLACES)
def test_a_processor_that_ends_the_program_is_one_line(project, place, way):
    (project / "mine.py").write_text(PLACES[place].format(way=WAYS[way]))
    text = message(lambda: skim(context_of(project)))
    assert "mine.py" in text
    assert "ends the program" in text or way == "StopIteration"
    assert not (project / "run" / "skim" / "events.parquet").exists()


def test_a_processor_that_ends_its_worker_is_one_line(project):
    source = PLACES["process"].format(way="raise SystemExit(0)")
    (project / "mine.py").write_text(source)
    text = message(lambda: skim(context_of(project, executor="futures", workers=1)))
    assert f"it ends the program (SystemExit: 0) ({project}/mine.py, line 4)" in text


def test_a_processor_that_kills_its_worker_is_one_line(project, folder):
    (project / "mine.py").write_text(PLACES["process"].format(way="__import__('os')._exit(0)"))
    with pytest.raises(LostEventsError, match=r"its worker process died \(EXIT\(0\)\)"):
        skim(context_of(project, f"data.path={folder / 'events.root'}", executor="futures", workers=1))


@pytest.mark.parametrize(("code", "status"), [(None, 0), (3, 3), ("why", 1)])
def test_a_forked_copy_ends_with_the_users_code(code, status):
    with UsersCode(lambda error: ConfigError(str(error))):
        child = os.fork()
        if child == 0:
            sys.exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


def test_a_forked_copy_never_goes_on_with_the_work(tmp_path):
    with UsersCode(lambda error: ConfigError(str(error))):
        child = os.fork()
    if child == 0:
        (tmp_path / "second").touch()
        os._exit(0)
    os.waitpid(child, 0)
    assert not (tmp_path / "second").exists()


def test_ctrl_c_stays_what_it_is(project):
    (project / "mine.py").write_text(PLACES["process"].format(way="raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        skim(context_of(project))


def test_an_unmodified_coffea_processor_is_told_what_it_lacks(project):
    source = "from coffea import processor\nclass Mine(processor.ProcessorABC):\n"
    source += "    def process(self, events): return {}\n    def postprocess(self, accumulator): return accumulator\n"
    (project / "mine.py").write_text(source)
    assert message(lambda: skim(context_of(project))) == (
        "processor 'mine.py:Mine': takes no settings: a processor needs three things for a search: __init__(self,"
        " settings), and in the output of process(self, events) a 'cutflow' and a 'skim' of the selected events"
        " (docs/how-to.md#use-a-coffea-processor)"
    )


def test_a_coffea_processor_that_is_a_function_or_an_instance_is_told_what_it_lacks(project):
    (project / "mine.py").write_text(
        "from coffea.nanoevents import NanoAODSchema\ndef mine(events): return {}\n"
        "class Mine:\n    def process(self, events): return {}\nmade = Mine()\n"
    )
    for name, kind in (("mine", "function"), ("made", "Mine")):
        said = message(lambda name=name: skim(context_of(project, f"processor=mine.py:{name}")))
        assert f"is a {kind}, not a class with a method process(events); a processor needs three things" in said


@pytest.mark.parametrize("way", WAYS)
def test_a_classifier_or_network_that_ends_the_program_is_one_line(tmp_path, monkeypatch, way):
    name = f"plugin_{list(WAYS).index(way)}"
    (tmp_path / f"{name}.py").write_text(WAYS[way] + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert name in message(load_classifier, f"{name}:Mine")
    assert name in message(find_backbone, f"{name}:Mine")


CLASSIFIER = """
import numpy as np

class Mine:
    def __init__(self, seed): pass
    def fit(self, x, y, weight, group): {fit}
    def score(self, x): return {score}
"""


@pytest.mark.parametrize(
    ("fit", "score", "said"),
    [
        ("raise SystemExit(0)", "x[:, 0]", "it ends the program (SystemExit: 0) ("),
        ("1 / 0", "x[:, 0]", "ZeroDivisionError: division by zero ("),
        ("pass", "x[:, 0] * np.nan", "score(x) is NaN or infinity for 5 events"),
        ("pass", "1.0", "score(x) returned float64 of shape (), not 5 numbers"),
        ("pass", "x", "score(x) returned float64 of shape (5, 2), not 5 numbers"),
        ("pass", "x[:, 0].astype(str)", "of shape (5,), not 5 numbers"),
    ],
)
def test_a_classifier_that_goes_wrong_is_one_line(tmp_path, monkeypatch, request, fit, score, said):
    name = f"classifier_{request.node.callspec.indices['fit']}"
    (tmp_path / f"{name}.py").write_text(CLASSIFIER.format(fit=fit, score=score))
    monkeypatch.syspath_prepend(tmp_path)
    mine = load_classifier(f"{name}:Mine")(0)

    def use():
        mine.fit(np.ones((5, 2)), np.ones(5), np.ones(5), np.arange(5))
        mine.score(np.ones((5, 2)))

    text = message(use)
    assert text.startswith(f"cwola.classifier {name}:Mine: ")
    assert said in text
