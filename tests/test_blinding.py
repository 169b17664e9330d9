"""Blinding: every output of a blinded run but its raw files is a function of the events outside the hidden windows."""

from __future__ import annotations

import datetime
import importlib
import io
import itertools
import json
import re
import shutil
import sys
import types
from pathlib import Path

import hist
import numpy as np
import pytest
import uhi.io.json
import uproot
import yaml
from test_stages import SEARCH, cut_sample, reference_mjj, table

from drapes_hep.bumphunt.sensitivity import window_sensitivity
from drapes_hep.config import load_config
from drapes_hep.cwola.scores import Scores
from drapes_hep.errors import ConfigError
from drapes_hep.events.accumulate import ColumnParts
from drapes_hep.events.blinded_processor import Blinding
from drapes_hep.events.blinding import empty_hidden_bins, hidden_bins, measures_mjj
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.ranges import in_ranges
from drapes_hep.files import read_json, write_json
from drapes_hep.outcome import read_results
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.progress import Reporter
from drapes_hep.report import write_report
from drapes_hep.report.pictures import Rendered
from drapes_hep.rng import event_uniforms
from drapes_hep.stages import classify as classify_module
from drapes_hep.stages import hunt as hunt_module
from drapes_hep.stages.classify import classify
from drapes_hep.stages.generate import generate
from drapes_hep.stages.hunt import hunt
from drapes_hep.stages.skim import skim
from drapes_hep.stages.train import train

pytestmark = pytest.mark.usefixtures("few_trees")

OWN = """
import hist
from drapes_hep.plugins import load_processor

Dijets = load_processor("processors/dijets.py:Dijets")


class Own(Dijets):
    def histograms(self, dataset, pair, mjj, features, weight, passed):
        def filled(axis, values, **more):
            return hist.Hist(axis, **more).fill(values[passed])

        return super().histograms(dataset, pair, mjj, features, weight, passed) | {
            "fine": filled(hist.axis.Regular(77, 2600, 6100, name="mjj"), mjj),
            "groomed": filled(hist.axis.Regular(70, 2600, 6100, name="m_g", metadata={"measures": "mjj"}), mjj),
            "unmarked": filled(hist.axis.Regular(70, 2600, 6100, name="mass"), mjj),
            "number": filled(hist.axis.Integer(0, 2, name="one"), (0 * mjj).astype(int)),
        }
"""
# edges that fit no bin of a histogram; the two share 3510 to 3715
FIRST, SECOND = (3315.0, 3715.0), (3510.0, 3910.0)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blinding")
    columns = cut_sample(2400, 40)
    columns["event_id"] = np.arange(len(columns["label"]), dtype=np.int64) * 7 + 1000
    (folder / "own.py").write_text(OWN)
    search = {**SEARCH, "processor": "own.py:Own", "signal": {}, "blind": True, "training": {"epochs": 1, "width": 8}}
    search |= {"windows": {"width": 400, "step": 195, "first": FIRST[0], "last": SECOND[0]}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(search))
    return folder, columns


def random_scores(make, data, template, others, calibration=None, **_):
    """Scores that belong to the event, in place of a classifier's."""

    def scored(sample):
        tail = event_uniforms(5, sample.group)[:, 0]
        return Scores(-tail, tail)

    return {
        "data": scored(data),
        "template": scored(template if calibration is None else calibration),
        **{name: scored(sample) for name, sample in others.items()},
    }


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):  # noqa: ARG003
        return cls(2020, 1, 1)


def run_search(project, name: str, removed: tuple[float, float] | None, *changes: str, hunted: int | None = None):
    """Run a search without every second event of a mass range; returns its directory and its log."""
    folder, columns = project
    keep = np.ones(len(columns["label"]), dtype=bool)
    if removed is not None:
        mjj = reference_mjj(columns)
        rows = np.flatnonzero((mjj >= removed[0]) & (mjj < removed[1]))
        keep[rows[::2]] = False
        assert 40 < (~keep).sum() < 400
    source = folder / f"{removed}.root"
    if not source.exists():
        write_feature_root(source, {key: values[keep] for key, values in columns.items()})
    shutil.copy(source, folder / "events.root")
    log: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify_module, "out_of_fold_scores", random_scores)
        patch.setattr(Reporter, "say", lambda _, line: log.append(line))
        patch.setattr("uproot.writing._cascade.datetime", types.SimpleNamespace(datetime=Frozen))
        context = Context.of(
            load_config(folder / "tiny.yaml", changes), open_run(folder / name), device="cpu", workers=1
        )
        skim(context)
        for window in context.windows:
            train(context, window)
            generate(context, window)
            classify(context, window)
        hunt(context, context.windows[:hunted])
    return folder / name, [re.sub(r"[\d.]+ s, \d+ MiB", "TIME", line) for line in log]


def drawn(run: Path, render) -> dict[str, bytes]:
    """Draw the report, with one date and one cost of all stages: the place where times stand is the manifest."""
    manifest = read_json(run / "manifest.json")
    for stage in manifest["stages"].values():
        stage.update(finished="", seconds=1.0, peak_memory_mib=1.0)
    write_json(run / "manifest.json", manifest | {"created": ""})
    with pytest.MonkeyPatch.context() as patch:
        # small pictures: what is drawn is the same
        patch.setattr("drapes_hep.report.page.render_figure", render)
        write_report(run)
    return {str(path.relative_to(run)): path.read_bytes() for path in (run / "report").rglob("*") if path.is_file()}


def coarse(figure):
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=25, metadata={"Software": None})
    return Rendered(png.getvalue(), b"")


def undrawn(_):
    return Rendered(b"", b"")


ONE = "windows.last=3315"


@pytest.fixture(scope="module")
def one(project):
    """A search of one window, with all of its events and with half of them."""
    return [run_search(project, f"one{i}", removed, ONE) for i, removed in enumerate((None, FIRST))]


@pytest.fixture(scope="module")
def two(project):
    """Overlapping windows; what is removed lies in both, so that no model meets it."""
    overlap = (SECOND[0], FIRST[1])
    return [run_search(project, f"two{i}", removed) for i, removed in enumerate((None, overlap))]


OUTPUTS = ("hists.root", "hists.json", "hunt.json", "results.json", "skim/hists.json", "skim/skim.json")


@pytest.mark.parametrize("search", ["one", "two"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_no_byte_follows_the_events_in_the_windows(search, name, request):
    (full, _), (fewer, _) = request.getfixturevalue(search)
    assert (full / name).read_bytes() == (fewer / name).read_bytes()


@pytest.mark.parametrize("search", ["one", "two"])
def test_no_byte_of_the_windows_records_follows_them(search, request):
    (full, _), (fewer, _) = request.getfixturevalue(search)
    for folder in (full / "windows").iterdir():
        quality = (folder / "quality.json").read_bytes()
        assert quality == (fewer / "windows" / folder.name / "quality.json").read_bytes()


@pytest.mark.parametrize("search", ["one", "two"])
def test_no_line_of_the_log_follows_them(search, request):
    (_, full), (_, fewer) = request.getfixturevalue(search)
    assert full == fewer
    assert any(
        line.startswith("skim: blinded: bins that touch a window are empty in mjj, fine, groomed") for line in full
    )


@pytest.mark.parametrize(("search", "render"), [("one", coarse), ("two", undrawn)])
def test_no_byte_of_the_report_follows_them(search, render, request):
    full, fewer = (drawn(run, render) for run, _ in request.getfixturevalue(search))
    assert full.keys() == fewer.keys()
    assert [name for name in full if full[name] != fewer[name]] == []
    assert b"Expected sensitivity</h3>" in full["report/index.html"]
    assert full["report/tables/sensitivity.csv"].count(b"\n") > 3


@pytest.mark.parametrize("search", ["one", "two"])
def test_what_follows_nothing_holds_the_sensitivity(search, request):
    (full, log), _ = request.getfixturevalue(search)
    windows = read_json(full / "results.json")["windows"]
    assert all(window["spurious_signal_unblinded"] > 0 for window in windows)
    for window in windows:
        for point in window["working_points"][:2]:
            assert point["sensitivity"]["expected_error"]["value"] > 0
            assert point["sensitivity"]["signal_z5"]["value"] > point["sensitivity"]["signal_z3"]["value"]
    read = read_results(full).windows[0].working_points[0].sensitivity
    assert read.signal_z3.value == windows[0]["working_points"][0]["sensitivity"]["signal_z3"]["value"]
    (line,) = [line for line in log if line.startswith("expected sensitivity: ")]
    assert re.search(r" of all experiments: \d+.* without a cut, \d+.* at 0\.\d+", line)


def test_the_hunt_has_the_rules_of_the_search_for_it(project, one, monkeypatch):
    (run, _), _ = one
    folder = shutil.copytree(run, project[0] / "rules")
    called: list[dict] = []
    monkeypatch.setattr(
        hunt_module, "window_sensitivity", lambda *a, **k: called.append(k) or window_sensitivity(*a, **k)
    )
    changes = (ONE, "hunt.min_events=11")
    hunt(Context.of(load_config(project[0] / "tiny.yaml", changes), open_run(folder), device="cpu", workers=1))
    spurious = [window["spurious_signal_unblinded"] for window in read_json(folder / "results.json")["windows"]]
    assert called == [{"spurious": size, "min_events": 11} for size in spurious]


def test_events_were_removed(one, two):
    for search in (one, two):
        full, fewer = (len(table(run / "skim" / "events.parquet")["mjj"]) for run, _ in search)
        assert full - fewer > 20


def without_learned(results: dict) -> dict:
    """Results without the AUCs: a model learns from other windows' events too."""
    for window in results["windows"]:
        window["template"] = {key: value for key, value in window["template"].items() if not key.startswith("auc")}
    return results


def test_events_in_the_sidebands_of_another_window_are_in_no_number(project, two):
    (full, _), _ = two
    fewer, _ = run_search(project, "side", (FIRST[0], SECOND[0]))
    for name in ("hists.root", "hists.json", "hunt.json", "skim/hists.json", "skim/skim.json"):
        assert (full / name).read_bytes() == (fewer / name).read_bytes(), name
    first, second = (without_learned(read_json(run / "results.json")) for run in (full, fewer))
    assert first == second
    pages = [drawn(run, undrawn) for run in (full, fewer)]
    for name in ("working_points", "sensitivity", "cutflow"):
        assert pages[0][f"report/tables/{name}.csv"] == pages[1][f"report/tables/{name}.csv"]
    split = [page["report/index.html"].decode().partition('id="trained"')[2].partition("</table>")[0] for page in pages]
    assert split[0] == split[1]


def test_windows_that_are_not_hunted_stay_hidden(project, two):
    fewer, _ = run_search(project, "part", (FIRST[1], SECOND[1]), hunted=1)
    (full, _), _ = two
    record, whole = read_json(fewer / "hunt.json"), read_json(full / "hunt.json")
    assert record["counts"] == whole["counts"]
    assert record["windows"] == whole["windows"][:1]
    assert [w["sr"] for w in read_json(fewer / "results.json")["windows"]] == [list(FIRST)]


def test_unblinding_trains_nothing_and_shows_everything(project):
    folder, _ = project
    blind, _ = run_search(project, "later", None, ONE)
    rows = (blind / "skim" / "events.parquet").read_bytes()
    _, log = run_search(project, "later", None, ONE, "blind=false")
    assert (blind / "skim" / "events.parquet").read_bytes() == rows
    again = {line.partition(":")[0] for line in log if "already done" in line}
    assert again == {f"{stage}.3315-3715" for stage in ("train", "generate", "classify")}
    plain, _ = run_search(project, "plain", None, ONE, "blind=false")
    for name in (*OUTPUTS, "windows/3315-3715/quality.json"):
        assert (blind / name).read_bytes() == (plain / name).read_bytes(), name
    template = read_json(folder / "plain" / "hists.json")
    assert any(key.startswith("template_") for key in template)


# ---- what a blinded run says of itself


def test_the_account_holds_no_number_of_the_files(one):
    (run, _), _ = one
    skimmed = read_json(run / "skim" / "skim.json")
    assert skimmed["hidden"] == [list(FIRST)]
    assert skimmed["accounting"] == read_json(run / "results.json")["accounting"]
    assert skimmed["accounting"] == {"requested": None, "processed": None, "lost": 0}
    assert [file["requested"] for file in skimmed["files"]] == [None]
    assert skimmed["clipped_masses"] is None


def test_the_cut_flow_counts_the_events_outside(one):
    (run, _), _ = one
    mjj = table(run / "skim" / "events.parquet")["mjj"]
    visible = int((~in_ranges(mjj, [FIRST])).sum())
    flow = {step["name"]: step["events"] for step in read_json(run / "skim" / "skim.json")["cutflow"]}
    assert flow["defined"] == visible
    counts = read_json(run / "hunt.json")["counts"]
    assert sum(count for count in counts if count is not None) == visible


def read_hists(path: Path) -> dict[str, hist.Hist]:
    raw = json.loads(path.read_text(), object_hook=uhi.io.json.object_hook)
    return {name: hist.Hist(record) for name, record in raw.items()}


def test_a_users_histograms_hold_no_hidden_event(one):
    (run, _), _ = one
    mjj = table(run / "skim" / "events.parquet")["mjj"]
    visible = mjj[~in_ranges(mjj, [FIRST])]
    hists = read_hists(run / "skim" / "hists.json")
    for name in ("unmarked", "number"):
        assert hists[name].sum(flow=True) == len(visible)
    for name in ("fine", "groomed"):
        edges = hists[name].axes[0].edges
        touched = (edges[1:] > FIRST[0]) & (edges[:-1] < FIRST[1])
        expected = np.where(touched, 0, np.histogram(visible, edges)[0])
        np.testing.assert_array_equal(hists[name].values(), expected)


def test_no_histogram_is_made_of_a_template(one):
    (run, _), _ = one
    names = set(read_json(run / "hists.json"))
    assert not [name for name in names if "template" in name]
    assert {"control_fine_blinded", "control_groomed_blinded", "control_unmarked"} <= names


def test_the_quality_of_a_blinded_run_holds_no_number_of_the_window(one):
    (run, _), _ = one
    quality = read_json(run / "windows" / "3315-3715" / "quality.json")
    assert quality["metrics"] is quality["roc"] is quality["n_signal_truth"] is None
    template = read_json(run / "results.json")["windows"][0]["template"]
    assert template == quality["template"]
    assert template["n"] is template["lost"] is template["auc_vs_truth"] is None
    assert template["auc_vs_sideband_closure"]["value"] > 0


def test_no_cross_check_rests_on_the_templates_size(one):
    (run, _), _ = one
    points = read_json(run / "results.json")["windows"][0]["working_points"]
    assert points[0]["expected"] is not None
    for point in points:
        assert point["direct"] is point["conformal"] is None


# ---- the wrapper and the axes


class Counting:
    """A processor that counts what it is given."""

    def process(self, events):
        if not len(events.event_id):
            raise AssertionError("a chunk without events")
        columns = {"event_id": events.event_id[events.event_id > 1], "mjj": events.mjj[events.event_id > 1]}
        key = ("", 0, "", int(events.event_id[0]))
        return {"skim": ColumnParts({key: columns}), "n": len(events.event_id), "hists": {}, "cutflow": {}}

    def postprocess(self, accumulator):
        return accumulator


class Chunk:
    """Events with two columns."""

    def __init__(self, event_id, mjj):
        self.event_id, self.mjj = np.asarray(event_id), np.asarray(mjj)

    def __getitem__(self, mask):
        return Chunk(self.event_id[mask], self.mjj[mask])


@pytest.mark.parametrize(
    ("mjj", "n"),
    [
        ([3000, 3000, 4000], 3),
        # the first event fails the selection: it has no mass in the skim, and stays
        ([3500, 3500, 4000], 2),
        # lower edge in, upper edge out
        ([3000, 3300, 3700], 2),
    ],
)
def test_accumulators_come_from_visible_events_and_rows_from_all(mjj, n):
    out = Blinding(Counting(), [(3300, 3700)]).process(Chunk([1, 2, 3], mjj))
    assert out["n"] == n
    assert out["skim"].columns()["event_id"].tolist() == [2, 3]


def test_a_chunk_without_visible_events_gives_its_rows_alone():
    blinding = Blinding(Counting(), [(3300, 3700)])
    out = blinding.process(Chunk([2, 3], [3400, 3500]))
    assert set(out) == {"skim"}
    assert len(out["skim"]) == 2
    with pytest.raises(ConfigError, match="every event is in a hidden window"):
        blinding.postprocess(out)


class Stateful(Counting):
    """Counts all events that it has seen."""

    seen = 0

    def process(self, events):
        self.seen += len(events.event_id)
        return super().process(events) | {"n": self.seen}


def test_state_of_a_processor_holds_no_hidden_event():
    blinding = Blinding(Stateful(), [(3300, 3700)])
    for _ in range(2):
        assert blinding.process(Chunk([2, 3, 4], [3000, 3400, 3500]))["n"] == 1


REMEMBERS = {
    "list": ("SEEN = []", "SEEN.append(1)"),
    "number": ("SEEN = 0", "global SEEN; SEEN += 1"),
    "nothing at first": ("SEEN = None", "global SEEN; SEEN = (SEEN or 0) + 1"),
    "new name": ("", "globals().setdefault('SEEN', []).append(1)"),
    "gone": ("SEEN = 1", "globals().pop('SEEN')"),
    "dict in a tuple": ("SEEN = ({},)", "SEEN[0][len(SEEN[0])] = 1"),
    "array": ("SEEN = np.zeros(3)", "SEEN[0] += 1"),
    "array of objects": ("SEEN = np.array([[], [1]], dtype=object)", "SEEN[0].append(1)"),
    "awkward": ("SEEN = ak.Array([[1.0]])", "global SEEN; SEEN = SEEN + 1"),
    "histogram": ("SEEN = hist.Hist.new.Reg(2, 0, 2, name='x').Double()", "SEEN.fill([1.0])"),
    "accumulator": ("SEEN = processor.value_accumulator(int, 0)", "SEEN.add(1)"),
    "generator": ("SEEN = np.random.default_rng(1)", "SEEN.normal()"),
    "count": ("SEEN = itertools.count()", "next(SEEN)"),
    "class": ("class SEEN:\n    n = []", "SEEN.n.append(1)"),
    "instance": ("class A:\n    n = 0\nSEEN = A()", "SEEN.n += 1"),
    "function": ("def SEEN(): pass\nSEEN.n = 0", "SEEN.n += 1"),
    "default": ("def SEEN(n=[]): n.append(1)", "SEEN()"),
    "closure": ("def make(n):\n    return lambda: n.append(1)\nSEEN = make([])", "SEEN()"),
}
FORGETS = {
    "its own": ("SEEN = []", "SEEN[:] = []"),
    "cache": ("@functools.cache\ndef SEEN(n): return object()", "SEEN(np.random.default_rng().integers(9**9))"),
    "loaded late": ("SEEN = None", "global SEEN; SEEN = re.compile('x')"),
    "equal": ("SEEN = [1]", "global SEEN; SEEN = [1]"),
}
HELPER = """
import functools, itertools, re
import awkward as ak, hist, numpy as np
from coffea import processor
{state}

def touch():
    {change}
"""


class Remembering(Counting):
    """Calls a function of a module that is imported when it is first needed, or before."""

    described = "processor Remembering"

    def process(self, events):
        importlib.import_module("mine_helper").touch()
        return super().process(events)


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Write a user's module."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "mine_helper", raising=False)

    def write(state, change, *, imported):
        (tmp_path / "mine_helper.py").write_text(HELPER.format(state=state, change=change))
        importlib.invalidate_caches()
        if imported:
            importlib.import_module("mine_helper")
        return tmp_path / "mine_helper.py"

    yield write
    sys.modules.pop("mine_helper", None)


@pytest.mark.parametrize(
    ("kind", "imported"),
    [*((kind, True) for kind in REMEMBERS), *((kind, False) for kind in REMEMBERS if kind != "gone")],
)
def test_a_pass_that_a_module_remembers_is_refused(helper, kind, imported):
    file = helper(*REMEMBERS[kind], imported=imported)
    with pytest.raises(ConfigError) as caught:
        Blinding(Remembering(), [(3300, 3700)]).process(Chunk([2, 3, 4], [3000, 3400, 3500]))
    text = str(caught.value)
    assert text.startswith(f"processor Remembering: process(events) changes 'SEEN' of {file}, ")


@pytest.mark.parametrize("imported", [True, False])
@pytest.mark.parametrize("kind", FORGETS)
def test_what_a_module_reads_once_is_taken(helper, kind, imported):
    helper(*FORGETS[kind], imported=imported)
    assert Blinding(Remembering(), [(3300, 3700)]).process(Chunk([2, 3, 4], [3000, 3400, 3500]))["n"] == 1


def test_an_installed_processor_may_remember_nothing_either(helper, monkeypatch):
    file = helper(*REMEMBERS["list"], imported=True)
    monkeypatch.setattr("drapes_hep.user_files.is_users_file", lambda _: False)
    monkeypatch.setattr(Remembering, "modules", ("mine_helper",), raising=False)
    with pytest.raises(ConfigError, match=f"changes 'SEEN' of {file}"):
        Blinding(Remembering(), [(3300, 3700)]).process(Chunk([2, 3], [3000, 3400]))


class Smearing(Counting):
    """Draws its random numbers by chunk, not by event."""

    described = "processor Smearing"

    def process(self, events):
        factors = np.random.default_rng(1).normal(1, 1e-3, len(events.event_id))
        return super().process(Chunk(events.event_id, events.mjj * factors))


class Weighting(Counting):
    """Divides weights by their mean in the chunk."""

    described = "processor Weighting"

    def process(self, events):
        out = super().process(events)
        ((_, columns),) = out["skim"].parts.items()
        columns["weight"] = columns["mjj"] / columns["mjj"].mean()
        return out


class Emptying(Counting):
    """Selects nothing in small chunks."""

    described = "processor Emptying"

    def process(self, events):
        return super().process(events if len(events.event_id) > 2 else Chunk(events.event_id - 9, events.mjj))


@pytest.mark.parametrize("kind", [Smearing, Weighting, Emptying])
def test_passes_that_differ_are_refused(kind):
    blinding = Blinding(kind(), [(3300, 3700)])
    with pytest.raises(ConfigError, match=f"processor {kind.__name__}: .* which other events are in the chunk"):
        blinding.process(Chunk([2, 3, 4], [3600, 3000, 4000]))


@pytest.mark.parametrize(
    ("axis", "measures"),
    [
        (hist.axis.Regular(2, 0, 1, name="mjj"), True),
        (hist.axis.Regular(2, 0, 1, name="m_JJ"), True),
        (hist.axis.Regular(2, 0, 1, name="groomed", metadata={"measures": "mjj"}), True),
        (hist.axis.Regular(2, 0, 1, name="groomed", metadata={"measures": "mj"}), False),
        (hist.axis.Regular(2, 0, 1, name="m_j1", label="mjj"), False),
        (hist.axis.Regular(2, 0, 1), False),
    ],
)
def test_an_axis_of_the_mass_is_known_by_name_or_mark(axis, measures):
    assert measures_mjj(axis) is measures


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        # edges that touch the window are outside, whatever the rounding; flow bins are at the ends
        (hist.axis.Regular(4, 3100, 3900, name="mjj"), [0, 0, 1, 1, 0, 0]),
        (hist.axis.Variable([3000, 3299.9, 3300.1, 3800], name="mjj"), [0, 0, 1, 1, 0]),
        (hist.axis.Regular(2, 3000, 3400, name="mjj"), [0, 0, 1, 1]),
        (hist.axis.Regular(2, 3600, 4000, name="mjj", flow=False), [1, 0]),
        (hist.axis.Integer(3299, 3302, name="mjj", underflow=False), [0, 1, 1, 1]),
        (hist.axis.StrCategory(["low", "high"], name="mjj"), [1, 1, 1]),
        (hist.axis.Regular(2, 3000, 3100, circular=True, name="mjj"), [1, 1, 1]),
    ],
)
def test_bins_that_touch_a_window_are_hidden(axis, expected):
    assert hidden_bins(axis, [(3300, 3700)], flow=True).tolist() == [bool(x) for x in expected]


@pytest.mark.parametrize("storage", ["double", "int64", "atomicint64", "unlimited", "weight", "mean", "weightedmean"])
def test_every_storage_can_be_emptied(storage):
    axes = [hist.axis.StrCategory(["a"], name="c"), hist.axis.Regular(3, 3000, 3900, name="mjj")]
    histogram = hist.Hist(*axes, storage=storage)
    more = {"sample": [1.0, 2.0, 3.0]} if "mean" in storage else {}
    histogram.fill(["a"] * 3, [3100, 3400, 3800], **more)
    emptied = empty_hidden_bins(histogram, [(3300, 3600)])
    content = emptied.counts()[0] if "mean" in storage else emptied.values()[0]
    assert content.tolist() == [1, 0, 1]
    assert np.asarray(histogram.counts()).sum() == 3


def test_emptied_histograms_are_alike_in_root(one):
    (run, _), _ = one
    with uproot.open(run / "hists.root") as file:
        for name, stored in itertools.islice(read_hists(run / "hists.json").items(), 8):
            np.testing.assert_array_equal(file[name].values(), stored.values())
