"""A tiny search through all stages: the contract of the run directory, resuming, blinding and where truth may go."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hist
import numpy as np
import pyarrow.parquet as pq
import pytest
import uhi.io.json
import uproot
import yaml
from conftest import ROOT, make_columns
from jsonschema import Draft202012Validator
from test_stamps import change_code

from drapes_hep.bumphunt import count_selected, hunt_window, set_overlaps
from drapes_hep.config import load_config
from drapes_hep.cwola.scores import equal_size_auc
from drapes_hep.errors import ConfigError, DrapesError, InputError, LeakError, RunDirectoryError
from drapes_hep.events.chunks import split
from drapes_hep.events.features import FEATURES, compute_features, invariant_mass
from drapes_hep.events.formats.root import RootReader
from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
from drapes_hep.events.injection import choose_signal
from drapes_hep.events.paths import expand_trees
from drapes_hep.events.readers import read, scan
from drapes_hep.events.skims import read_skim, read_truth, write_skim, write_truth
from drapes_hep.files import file_hash, read_json, write_json
from drapes_hep.folds import assign_folds
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import RunDirectory, open_run
from drapes_hep.pipeline.stage import read_stamp
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window, blinded
from drapes_hep.results import results_schema
from drapes_hep.spectrum.drawing import draw
from drapes_hep.spectrum.fit import fit_spectrum
from drapes_hep.stages import classify as classify_module
from drapes_hep.stages import skim as skim_module
from drapes_hep.stages.bins import mass_edges
from drapes_hep.stages.classify import classify
from drapes_hep.stages.feature_tables import feature_matrix
from drapes_hep.stages.generate import _generate, generate
from drapes_hep.stages.hunt import hunt, hunt_stage
from drapes_hep.stages.sequence import run_verb
from drapes_hep.stages.skim import skim
from drapes_hep.stages.train import train, train_windows
from drapes_hep.templates import feature_model
from drapes_hep.templates.drapes_family import RECIPES
from drapes_hep.templates.feature_model import load_background_model
from drapes_hep.templates.methods import SampleTask
from drapes_hep.templates.parts import CLOSURE, TRAIN, VALIDATION
from drapes_hep.templates.plan import starts
from drapes_hep.templates.registry import method_of
from drapes_hep.templates.window_models import load_window_model

pytestmark = pytest.mark.usefixtures("few_trees")

WINDOWS = ("3300-3700", "3600-4000")
BY_WINDOW = ("train", "generate", "classify", "quality")
STAGES = {"skim", "hunt"} | {f"{stage}.{name}" for stage in BY_WINDOW for name in WINDOWS}
SEED = 3
LABELS = 120
SEARCH = {
    "name": "tiny",
    "data": {"path": "events.root", "labels": True},
    "signal": {"inject": LABELS, "seed": 1},
    "windows": {"width": 400, "step": 300, "first": 3300, "last": 3600},
    "template": {"oversample": 1.5, "steps": 6},
    "training": {"epochs": 3, "batch": 512, "width": 16, "depth": 2},
    "cwola": {"ensemble": 1, "folds": 2},
    "hunt": {"background_efficiencies": [1, 0.1, 0.01], "toys": 50},
    "blind": False,
    "seed": SEED,
}


def cut_sample(events: int = 2500, signal_events: int = LABELS) -> dict[str, np.ndarray]:
    """A few of the bundled events, with their labels."""
    with uproot.open(ROOT / "configs" / "data" / "quickstart.root") as file:
        columns = file["events"].arrays(library="np")
    label = read_truth(ROOT / "configs" / "data" / "quickstart.truth.parquet").truth_for(columns["event_id"])
    rows = np.concatenate([np.flatnonzero(label == 0)[:events], np.flatnonzero(label == 1)[:signal_events]])
    rows = np.random.default_rng(1).permutation(rows)
    cut = {name: values[rows] for name, values in columns.items() if name != "event_id"}
    return {**cut, "label": label[rows]}


@pytest.fixture(scope="module")
def sample():
    return cut_sample()


@pytest.fixture(scope="module")
def project(sample, tmp_path_factory) -> Path:
    """A folder with a configuration and its data."""
    folder = tmp_path_factory.mktemp("project")
    write_feature_root(folder / "events.root", sample)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    return folder


def context_of(project: Path, run: Path, *changes: str, workers: int = 2, overwrite: bool = False) -> Context:
    config = load_config(project / "tiny.yaml", changes)
    return Context.of(config, open_run(run, overwrite=overwrite), device="cpu", workers=workers)


def stamps(run: Path) -> dict[str, tuple]:
    """When each stage was last done and what it cost; a stage that runs again gets other numbers."""
    found = {path.stem: read_stamp(RunDirectory(run), path.stem) for path in (run / "stages").iterdir()}
    costs = ("key", "finished", "seconds", "peak_memory_mb")
    return {name: tuple((stamp or {}).get(cost) for cost in costs) for name, stamp in found.items()}


def search(project: Path, run: Path, *changes: str, workers: int = 2, overwrite: bool = False) -> set[str]:
    """Run all stages but the report; returns those that had to run."""
    context = context_of(project, run, *changes, workers=workers, overwrite=overwrite)
    before = stamps(run) if (run / "stages").is_dir() else {}
    skim(context)
    for window in context.windows:
        train(context, window)
        generate(context, window)
        classify(context, window)
    hunt(context)
    return {name for name, when in stamps(run).items() if before.get(name) != when}


@pytest.fixture(scope="module")
def done(project) -> Path:
    """The finished run; tests copy it before they change anything."""
    run = project / "run"
    search(project, run)
    return run


@pytest.fixture
def copy(done, tmp_path) -> Path:
    return shutil.copytree(done, tmp_path / "copy")


def table(path: Path) -> dict[str, np.ndarray]:
    read = pq.read_table(path)
    return {name: read[name].to_numpy() for name in read.column_names if name != "jets"}


# ---- the contract ----------------------------------------------------------------------------------------------------


def test_results_follow_their_schema(done):
    Draft202012Validator(results_schema()).validate(read_json(done / "results.json"))


def test_a_resonance_is_fitted_over_the_whole_range(done):
    record = read_json(done / "results.json")["resonance"]
    assert record["reason"] is None
    inclusive = [point["mass"] for point in record["points"] if point["window"] is None]
    assert inclusive[0] == 2700
    assert 5850 < inclusive[-1] <= 6000
    assert record["unsearched"] == [[2700, 3300], [4000, 6000]]
    windows = {tuple(point["window"]) for point in record["points"] if point["window"] is not None}
    assert windows == {(3300, 3700), (3600, 4000)}


def test_the_fitted_spectra_are_those_of_the_largest_z(done):
    points = read_json(done / "results.json")["resonance"]["points"]
    spectra = read_json(done / "hunt.json")["resonance"]
    assert spectra
    for fitted in spectra:
        same = [p for p in points if all(p[k] == fitted[k] for k in ("window", "background_efficiency"))]
        best = max((p for p in same if p["z"] is not None), key=lambda p: p["z"])
        assert best["mass"] == fitted["mass"]
        if fitted["window"] is not None and best["signal"] > 0:
            assert sum(fitted["signal"]) == pytest.approx(best["signal"], rel=1e-3)


def test_a_sample_of_the_signal_decides_the_hunt(project, done, tmp_path):
    sample = {"shape": "sample", "sample": tmp_path / "s.parquet", "mass": 3500}
    changes = [f"hunt.signal.{key}={value}" for key, value in sample.items()]
    stamps = []
    for scale in (1.0, 1.01):
        masses = scale * np.linspace(3300, 3700, 200)
        write_skim(tmp_path / "s.parquet", {"event_id": np.arange(200), "mjj": masses, "weight": np.ones(200)})
        config = load_config(project / "tiny.yaml", changes)
        context = Context.of(config, open_run(str(done)), reporter=Reporter(quiet=True))
        stamps.append(hunt_stage(context, context.windows).decides())
    assert stamps[0]["other"]["signal sample"] != stamps[1]["other"]["signal sample"]
    assert stamps[0]["config"]["hunt"]["signal"] == {
        "shape": "sample", "width": 0.033, "tails": None, "mass": 3500.0
    }  # fmt: skip


def test_every_window_has_a_record(done):
    assert [record["sr"] for record in read_json(done / "results.json")["windows"]] == [[3300, 3700], [3600, 4000]]


def test_the_account_adds_up_in_results_and_cut_flow(done, sample):
    accounting = read_json(done / "results.json")["accounting"]
    flow = {step["name"]: step["events"] for step in read_json(done / "skim" / "skim.json")["cutflow"]}
    n = len(sample["mj1"])
    assert accounting == {"requested": n, "processed": n, "lost": 0}
    assert flow["read"] + flow["not_injected"] == n
    assert flow["defined"] == len(table(done / "skim" / "events.parquet")["event_id"])


def test_every_promised_file_is_there(done):
    text = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8").partition("## quality.json")[0]
    tree = text.split("```")[1]
    top = re.findall(r"RUN/([\w/.]+\.\w+)", tree)
    assert {"manifest.json", "skim/events.parquet", "results.json", "hists.root"} <= set(top)
    top = [name for name in top if not name.startswith("report/")]
    after_a_failure = re.findall(r"^RUN/(\S+?)/? +only after a failure:", tree, flags=re.MULTILINE)
    assert after_a_failure == ["skim/failures.json", "skim/chunks"]
    assert [name for name in after_a_failure if (done / name).exists()] == []
    top.remove("skim/failures.json")
    inside = re.findall(r"^    ([\w/.]+\.\w+)", tree, flags=re.MULTILINE)
    assert "quality.json" in inside
    promised = [done / name for name in top]
    promised += [done / "windows" / window / name for window in WINDOWS for name in inside if name != "pseudo.parquet"]
    promised += [done / "stages" / f"{stage}.json" for stage in STAGES]
    promised.append(done / "windows" / WINDOWS[1] / "pseudo.parquet")
    assert [str(path) for path in promised if not path.is_file()] == []


def names_in(value: object) -> set[str]:
    """Return all keys of a JSON value, whose keys are names of fields."""
    if isinstance(value, list):
        return set().union(*map(names_in, value)) if value else set()
    return set(value) | set().union(*map(names_in, value.values())) if isinstance(value, dict) else set()


@pytest.mark.parametrize("name", ["skim/skim.json", "hunt.json", "training.json", "quality.json", "results.json"])
def test_every_field_is_documented(done, name):
    text = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8")
    path = next(p for p in (done / name, done / "windows" / WINDOWS[1] / name) if p.is_file())
    part = text.partition(f"\n## {path.name}\n")[2].partition("\n## ")[0]
    assert part
    record = read_json(path)
    for window in record.get("windows", []):
        window.get("fit", {}).pop("parameters", None)  # named by the shape
    for part_of_record in (record, *record.get("windows", [])):
        spread = part_of_record.get("template", {}).get("models_spread")
        if spread:
            spread.clear()  # named by the features
    assert {key for key in names_in(record) if not re.search(rf"\b{key}\b", part)} == set()


def test_every_field_of_the_results_has_a_meaning():
    def check(schema: dict, path: str) -> None:
        for name, prop in schema.get("properties", {}).items():
            assert len(prop.get("description", "")) > 5, f"{path}.{name}"
            for one in [*prop.get("anyOf", [prop])]:
                check(one.get("items", one), f"{path}.{name}")

    check(results_schema(), "results")


def test_fitted_events_are_those_that_the_fits_use(done):
    for record, window in zip(read_json(done / "results.json")["windows"], WINDOWS, strict=True):
        scores = table(done / "windows" / window / "scores.parquet")
        outside = scores["region"] == 0
        for point in record["working_points"]:
            cut = point["background_efficiency"]
            used = outside if cut == 1 else outside & (scores["part"] == CLOSURE) & (scores["tail"] <= cut)
            assert point["fitted_events"] == int(used.sum())


def test_nothing_half_written_and_no_pickle_is_left(done):
    kinds = {path.suffix for path in done.rglob("*") if path.is_file()}
    assert kinds == {".json", ".parquet", ".safetensors", ".root", ".txt"}


def test_histograms_are_the_same_in_root_and_json(done):
    record = read_json(done / "hists.json")
    with uproot.open(done / "hists.root") as file:
        assert {key.partition(";")[0] for key in file.keys()} == set(record)  # noqa: SIM118
        for name, one in record.items():
            ours = hist.Hist(json.loads(json.dumps(one), object_hook=uhi.io.json.object_hook))
            theirs = file[name]
            np.testing.assert_array_equal(ours.values(flow=True), theirs.values(flow=True))
            if ours.storage_type is hist.storage.Weight:
                np.testing.assert_array_equal(ours.variances(flow=True), theirs.variances(flow=True))
            for i, axis in enumerate(ours.axes):
                np.testing.assert_allclose(axis.edges, theirs.axis(i).edges(), rtol=1e-14, atol=1e-14)


def test_the_manifest_names_what_made_the_run(done, project):
    manifest = read_json(done / "manifest.json")
    assert set(manifest["stages"]) == STAGES
    assert list(manifest["inputs"]) == [str(project / "events.root")]
    assert all(cost["seconds"] >= 0 and cost["peak_memory_mib"] > 0 for cost in manifest["stages"].values())


def test_observed_is_the_number_of_events_in_the_window(done):
    mjj = table(done / "skim" / "events.parquet")["mjj"]
    for record, window in zip(read_json(done / "results.json")["windows"], WINDOWS, strict=True):
        low, high = record["sr"]
        scores = table(done / "windows" / window / "scores.parquet")
        inside = scores["region"] == 1
        assert record["n_observed"] == int(((mjj >= low) & (mjj < high)).sum()) == int(inside.sum())
        for point in record["working_points"]:
            assert point["observed"] == int((scores["tail"][inside] <= point["background_efficiency"]).sum())


# ---- resuming --------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(copy, project):
    assert search(project, copy) == set()


def windowed(*stages: str) -> set[str]:
    return {f"{stage}.{name}" for stage in stages for name in WINDOWS}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("plots.text=other", set()),
        ("hunt.toys=60", {"hunt"}),
        ("blind=true", windowed("quality") | {"skim", "hunt"}),
        ("cwola.ensemble=2", windowed("classify", "quality") | {"hunt"}),
        ("template.steps=4", windowed("generate", "classify", "quality") | {"hunt"}),
        ("training.epochs=2", windowed("train", "generate", "classify", "quality") | {"hunt"}),
        ("signal.inject=100", STAGES),
    ],
)
def test_a_changed_key_reruns_what_depends_on_it(copy, project, change, expected):
    """Not without leave where models, templates, scores or selected events of another configuration would go.

    Blinding replaces none of these: the selected events are the same.
    """
    asks = change != "blind=true" and not expected <= {"hunt"}
    if asks:
        before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        with pytest.raises(RunDirectoryError) as caught:
            search(project, copy, change)
        key, _, value = change.partition("=")
        assert re.search(rf": contains \S+ run with {key} \d+, the configuration has {value}; name", str(caught.value))
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert search(project, copy, change, overwrite=asks) == expected


def test_scores_of_one_library_are_not_resumed_with_another(copy, project, monkeypatch):
    """Where LightGBM cannot be loaded, scikit-learn's trees would score the windows that are left."""
    monkeypatch.setattr("drapes_hep.cwola.trees.lightgbm_problem", lambda: "no library")
    said = "run with classifier's engine LightGBM, the configuration has scikit-learn; name"
    with pytest.raises(RunDirectoryError, match=f"contains classify.{WINDOWS[0]} {said}"):
        search(project, copy)
    again = {f"{stage}.{name}" for stage in ("classify", "quality") for name in WINDOWS}
    assert search(project, copy, overwrite=True) == again | {"hunt"}


def test_the_library_of_trees_is_no_matter_to_another_classifier(done, project, monkeypatch):
    def engines(*changes):
        window = context_of(project, done).windows[0]
        describe = classify_module.classify_stage, classify_module.quality_stage
        stages = [stage(context_of(project, done, *changes), window) for stage in describe]
        return [stage.other[name] for stage, name in zip(stages, ("classifier's engine", "trees' engine"), strict=True)]

    assert engines("cwola.classifier=mlp") == [None, "LightGBM"]
    assert engines("cwola.classifier=sklearn_trees") == ["scikit-learn", "LightGBM"]
    monkeypatch.setattr("drapes_hep.cwola.trees.lightgbm_problem", lambda: "no library")
    assert engines("cwola.classifier=mlp") == [None, "scikit-learn"]


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("skim/truth.parquet", "skim"),
        ("windows/3300-3700/split.parquet", "train.3300-3700"),
        ("windows/3600-4000/pseudo_training.json", "train.3600-4000"),
        ("windows/3300-3700/closure.parquet", "generate.3300-3700"),
        ("windows/3600-4000/pseudo.parquet", "generate.3600-4000"),
        ("windows/3600-4000/quality.json", "quality.3600-4000"),
        ("hists.root", "hunt"),
    ],
)
@pytest.mark.parametrize("harm", ["delete", "cut"])
def test_a_deleted_or_cut_file_reruns_its_stage_and_no_other(copy, project, file, stage, harm):
    whole = (copy / file).read_bytes()
    if harm == "delete":
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(whole[: len(whole) // 2])
    assert stage in search(project, copy)
    assert (copy / "results.json").read_bytes() == (project / "run" / "results.json").read_bytes()
    assert (copy / file).stat().st_size > len(whole) // 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": 3}', "null"])
def test_a_damaged_stamp_is_no_stamp(copy, project, text):
    (copy / "stages" / "hunt.json").write_text(text)
    assert search(project, copy) == {"hunt"}


def test_an_edited_data_file_reruns_everything(copy, tmp_path, sample):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    write_feature_root(tmp_path / "events.root", {name: values[:-50] for name, values in sample.items()})
    assert search(tmp_path, copy, "signal.inject=90", overwrite=True) == STAGES


def test_a_moved_data_file_reruns_nothing(copy, project, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    shutil.copy(project / "events.root", tmp_path)
    assert search(tmp_path, copy) == set()


# the checkpoint of the first window's training is written after its first epoch, and then the process hangs
_HANGS = """
import sys, time
import drapes_hep.training.checkpoint as checkpoint
from drapes_hep import cli
from drapes_hep.diffusion.training import TrainingSettings
write = checkpoint.write_bytes
def written(path, content):
    write(path, content)
    time.sleep(120)
checkpoint.write_bytes = written
*others, seconds, precision = TrainingSettings.__init__.__defaults__
assert seconds == 30.0
TrainingSettings.__init__.__defaults__ = (*others, 0.0, precision)
sys.argv = ["drapes", *sys.argv[1:]]
cli.main()
"""


def killed_when(command: list[str], ready, seconds: float = 60) -> None:
    """Start a process, wait for ``ready()``, and kill it with no chance to tidy up."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + seconds
        while not ready():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_a_killed_training_goes_on_and_ends_alike(project, done, tmp_path, monkeypatch):
    run = tmp_path / "killed"
    folder = run / "windows" / WINDOWS[0]
    command = [sys.executable, "-c", _HANGS, "run", str(project / "tiny.yaml"), "-o", str(run), "--workers", "1"]
    killed_when(command, lambda: list(folder.glob("model_0.*.checkpoint")))
    assert not (run / "stages" / f"train.{WINDOWS[0]}.json").exists()
    kept: list[int] = []
    fit = feature_model.fit_models

    def spied(trainings, **kwargs):
        kept.extend(training.checkpoint.exists() for training in trainings)
        return fit(trainings, **kwargs)

    said: list[str] = []
    monkeypatch.setattr(feature_model, "fit_models", spied)
    monkeypatch.setattr(Reporter, "say", lambda _, line: said.append(line))
    ran = search(project, run)
    assert kept == [True, False, False, False, False]
    words = "the interrupted training of the model 0 resumes from the checkpoint of features"
    assert said.count(f"window {WINDOWS[0]}: {words}") == 1
    assert ran == STAGES - {"skim"}
    assert (run / "results.json").read_bytes() == (done / "results.json").read_bytes()
    assert list(run.rglob("*.checkpoint")) == []


def test_windows_that_are_trained_together_have_the_models_of_each(project, done, copy):
    """Both windows and the closure test's second model as one stack: byte for byte what one window after another is."""
    for stamp in (copy / "stages").glob("train.*"):
        stamp.unlink()
    for folder in copy.glob("windows/*/*model*"):
        shutil.rmtree(folder)
    context = context_of(project, copy)
    train_windows(context, context.windows)
    models = [path.relative_to(done) for path in done.glob("windows/*/*model*/*")]
    assert len(models) == 15
    assert all((copy / path).read_bytes() == (done / path).read_bytes() for path in models)
    splits = [path.relative_to(done) for path in done.glob("windows/*/split.parquet")]
    assert len(splits) == 2
    assert all((copy / path).read_bytes() == (done / path).read_bytes() for path in splits)
    assert list(copy.rglob("*.checkpoint")) == []


def test_windows_are_trained_together_on_a_gpu(project, copy, monkeypatch):
    asked = []
    monkeypatch.setattr(Context, "on_gpu", True)
    monkeypatch.setattr("drapes_hep.stages.train.train_windows", lambda _, windows: asked.append(len(windows)))
    context = context_of(project, copy)
    run_verb("train", context, context.windows)
    assert asked == [2]


def test_of_windows_trained_together_those_that_are_done_stay(project, copy):
    (copy / "stages" / f"train.{WINDOWS[1]}.json").unlink()
    before, context = stamps(copy), context_of(project, copy)
    train_windows(context, context.windows)
    after = stamps(copy)
    assert {name for name in after if before.get(name) != after[name]} == {f"train.{WINDOWS[1]}"}


def test_a_skim_scans_each_file_once_and_loads_its_processor_once(project, tmp_path, monkeypatch):
    """Opening a tree of 2000 branches takes seconds, behind a URL more."""
    calls: list[str] = []

    def counting(place, name):
        before = getattr(place, name)

        def counted(*given, **named):
            calls.append(name)
            return before(*given, **named)

        monkeypatch.setattr(place, name, counted)

    counting(RootReader, "scan")
    counting(skim_module, "load_processor")
    skim(context_of(project, tmp_path / "run"))
    assert sorted(calls) == ["load_processor", "scan"]


def test_a_run_killed_in_its_first_write_can_start_again(project, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".manifest.json.x1y2.part").touch()
    skim(context_of(project, tmp_path / "run"))
    assert read_json(tmp_path / "run" / "manifest.json")["name"] == "tiny"


# ---- a single stage ------------------------------------------------------------------------------------------------


def one_stage(stage, context: Context) -> None:
    stage(context) if stage in (skim, hunt) else stage(context, context.windows[0])


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        (train, "signal.inject=100", "skim was run with signal.inject 120, the configuration has 100; run `Search.s"),
        (hunt, "selection.leading_pt=1500", "skim was run with selection.leading_pt 1200.0, the configuration has"),
        (hunt, "training.ema=0.9", "train.3300-3700 was run with training.ema 0.999, the configuration has 0.9;"),
        (classify, "template.steps=4", "generate.3300-3700 was run with template.steps 6, the configuration has 4;"),
        (hunt, "cwola.ensemble=2", "classify.3300-3700 was run with cwola.ensemble 1, the configuration has 2;"),
        (generate, "mass.range=[2700, 5900]", "skim was run with mass.range [2700.0, 6000.0], the configuration has"),
        (train, "data.path=other.root", "skim was run with data.path "),
    ],
)  # fmt: skip
def test_a_stage_refuses_what_another_configuration_made(copy, project, stage, change, said):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(RunDirectoryError) as caught:
        one_stage(stage, context_of(project, copy, change))
    assert said in str(caught.value)
    assert "again with overwrite=True, or use another directory as output" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_stage_refuses_what_other_code_made(copy, project, monkeypatch):
    change_code(monkeypatch, "drapes_hep/events/formats/root.py")
    with pytest.raises(
        RunDirectoryError, match=r"skim was run with other code, drapes_hep/events/formats/root.py was changed"
    ):
        hunt(context_of(project, copy))


def test_a_stage_refuses_a_model_of_events_that_were_selected_anew(copy, project):
    skim(context_of(project, copy, "signal.inject=100", overwrite=True))
    with pytest.raises(RunDirectoryError, match=r"events.parquet: missing or changed since train.3300-3700 read it"):
        generate(context_of(project, copy, "signal.inject=100"), Window(3300, 3700, 2700, 6000))


def test_a_stage_refuses_an_unfinished_one(copy, project):
    (copy / "stages" / f"classify.{WINDOWS[1]}.json").unlink()
    with pytest.raises(
        RunDirectoryError, match=r"classify.3600-4000 is not done, hunt needs it; run `Search.classify\(\)`"
    ):
        hunt(context_of(project, copy))


def test_a_stage_of_one_window_asks_for_that_window_alone(copy, project):
    for path in (copy / "stages").glob(f"*{WINDOWS[1]}.json"):
        path.unlink()
    window = Window(3300, 3700, 2700, 6000)
    context = context_of(project, copy)
    generate(context, window)
    classify(context, window)
    hunt(context, [window])
    assert len(read_json(copy / "results.json")["windows"]) == 1


def test_a_stage_goes_on_with_data_that_have_moved(copy, tmp_path, project):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    shutil.copy(project / "events.root", tmp_path)
    before = stamps(copy)
    hunt(context_of(tmp_path, copy))
    assert stamps(copy) == before


def test_a_stage_that_is_done_changes_nothing_in_the_manifest(copy, project):
    before = (copy / "manifest.json").read_bytes()
    skim(context_of(project, copy, "hunt.toys=7", "seed=9"))
    assert (copy / "manifest.json").read_bytes() == before


def test_the_manifest_holds_the_configuration_of_the_results(copy, project):
    hunt(context_of(project, copy, "hunt.toys=7", "plots.text=other"))
    manifest = read_json(copy / "manifest.json")
    expected = load_config(project / "tiny.yaml", ["hunt.toys=7", "plots.text=other"])
    assert manifest["config"] == expected.model_dump(mode="json")
    assert all(one["code"] and one["versions"]["python"] for one in manifest["stages"].values())


def test_a_line_that_a_job_missed_comes_back(copy, project):
    manifest = read_json(copy / "manifest.json")
    lost = manifest["stages"].pop(f"train.{WINDOWS[0]}")
    write_json(copy / "manifest.json", manifest)
    hunt(context_of(project, copy))
    assert read_json(copy / "manifest.json")["stages"][f"train.{WINDOWS[0]}"] == lost


# ---- processors ------------------------------------------------------------------------------------------------------


SUBCLASS = """
from drapes_hep.plugins import load_processor

class Mine(load_processor("dijets.py:Dijets")):
    pass
"""


@pytest.fixture
def own(project, tmp_path) -> Path:
    """A project with a processor that inherits from a file of its own."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "processors").mkdir()
    shutil.copy(project / "events.root", tmp_path / "configs")
    shutil.copy(ROOT / "processors" / "dijets.py", tmp_path / "dijets.py")
    (tmp_path / "processors" / "mine.py").write_text(SUBCLASS)
    (tmp_path / "configs" / "tiny.yaml").write_text(yaml.safe_dump({**SEARCH, "processor": "processors/mine.py:Mine"}))
    return tmp_path


def test_a_processor_lies_beside_the_configuration_or_above_it(own):
    run = own / "run"
    skim(context_of(own / "configs", run))
    assert read_json(run / "manifest.json")["processor"] == {
        "class": "processors/mine.py:Mine",
        "files": {str(own / name): file_hash(own / name) for name in ("processors/mine.py", "dijets.py")},
        "reads": {},
        "opened": {},
    }


@pytest.mark.parametrize("name", ["processors/mine.py", "dijets.py"])
def test_an_edited_class_or_base_class_reruns_the_skim(own, name):
    skim(context_of(own / "configs", own / "run"))
    before = read_json(own / "run" / "skim" / "skim.json")["cutflow"]
    source = (own / name).read_text()
    if name == "dijets.py":
        source = source.replace("return no_cut(events)", "return np.arange(len(events)) % 2 == 0")
    (own / name).write_text(source + "\n# edited\n")
    old = stamps(own / "run")
    skim(context_of(own / "configs", own / "run"))
    assert stamps(own / "run") != old
    assert (read_json(own / "run" / "skim" / "skim.json")["cutflow"] != before) == (name == "dijets.py")


def test_weighted_events_are_refused_before_any_training(sample, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    write_feature_root(tmp_path / "events.root", {**sample, "weight": np.full(len(sample["mj1"]), 0.5)})
    context = context_of(tmp_path, tmp_path / "run")
    skim(context)  # a skim may serve others
    with pytest.raises(DrapesError, match=r"the selected events: the hunt needs unweighted events"):
        train(context, context.windows[0])
    assert not (tmp_path / "run" / "windows").exists()


# ---- several trees ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two_trees(sample, tmp_path) -> Path:
    with uproot.recreate(tmp_path / "events.root") as file:
        file.mktree("Events", {name: values.dtype for name, values in sample.items()})
        file["Events"].extend(sample)
        few = {name: values[:-300] for name, values in sample.items()}
        file.mktree("Sys", {name: values.dtype for name, values in few.items()})
        file["Sys"].extend(few)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**SEARCH, "signal": {}}))
    return tmp_path


def test_a_tree_can_be_chosen(two_trees, sample):
    with pytest.raises(
        InputError, match=r"several trees fit: Events, Sys; choose one with data.path: {events.root: Even"
    ):
        skim(context_of(two_trees, two_trees / "run"))
    for tree, lost in (("Events", 0), ("Sys", 300)):
        (two_trees / "tiny.yaml").write_text(
            yaml.safe_dump({**SEARCH, "signal": {}, "data": {"path": {"event?.root": tree}, "labels": True}})
        )
        skim(context_of(two_trees, two_trees / "run", overwrite=True))
        accounting = read_json(two_trees / "run" / "skim" / "skim.json")["accounting"]
        assert accounting["requested"] == len(sample["mj1"]) - lost


def test_a_file_has_one_tree(two_trees):
    with pytest.raises(InputError, match="is given two trees, Sys and Events; name one"):
        expand_trees({str(two_trees / "*.root"): "Sys", str(two_trees / "events.root"): "Events"})


# ---- the same result, however it is run ------------------------------------------------------------------------------


def test_the_result_does_not_depend_on_the_workers(project, done, tmp_path):
    search(project, tmp_path / "run", workers=1)
    assert (tmp_path / "run" / "results.json").read_bytes() == (done / "results.json").read_bytes()


def test_the_result_does_not_depend_on_the_kind_of_file(sample, done, tmp_path):
    write_feature_hdf5(tmp_path / "events.h5", sample)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    search(tmp_path, tmp_path / "run", "data.path=" + str(tmp_path / "events.h5"))
    ours, theirs = (pq.read_table(run / "skim" / "events.parquet") for run in (done, tmp_path / "run"))
    assert ours.equals(theirs)
    assert (tmp_path / "run" / "results.json").read_bytes() == (done / "results.json").read_bytes()


# ---- signal injection and the truth --------------------------------------------------------------------------------


def labels_of(run: Path) -> np.ndarray:
    truth = table(run / "skim" / "truth.parquet")
    return truth["event_id"][truth["label"] == 1]


def test_exactly_so_many_signal_events_stay(done, project, tmp_path):
    runs = {n: tmp_path / str(n) for n in (70, 100)}
    for n, run in runs.items():
        skim(context_of(project, run, f"signal.inject={n}"))
        flow = {step["name"]: step["events"] for step in read_json(run / "skim" / "skim.json")["cutflow"]}
        assert flow["not_injected"] == LABELS - n
    assert set(labels_of(runs[70])) < set(labels_of(runs[100])) < set(labels_of(done))


def test_no_signal_leaves_the_background_alone(done, project, tmp_path):
    skim(context_of(project, tmp_path / "none", "signal.inject=0"))
    assert len(labels_of(tmp_path / "none")) == 0
    events = [table(run / "skim" / "events.parquet")["event_id"] for run in (done, tmp_path / "none")]
    assert set(events[1]) == set(events[0]) - set(labels_of(done))


def test_a_larger_choice_contains_the_smaller():
    ids = np.arange(1000, 2000)
    chosen = [set(choose_signal(ids, n, 5)) for n in (0, 10, 11, 500, 1000)]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    assert [len(one) for one in chosen] == [0, 10, 11, 500, 1000]


def test_more_signal_than_there_is_cannot_be_injected(project, tmp_path):
    with pytest.raises(ConfigError, match=f"signal.inject: {LABELS + 1} signal events are requested, the sample has"):
        skim(context_of(project, tmp_path / "run", f"signal.inject={LABELS + 1}"))


@pytest.fixture
def with_sidecar(sample, tmp_path) -> Path:
    """Unlabelled events, and a sidecar that knows a thousand signal events that are in no file."""
    bare = {name: values for name, values in sample.items() if name != "label"}
    write_feature_root(tmp_path / "events.root", {**bare, "event_id": np.arange(len(bare["mj1"])) + 7})
    ids = np.arange(len(bare["mj1"]) + 1000) + 7
    write_truth(tmp_path / "truth.parquet", ids, np.concatenate([sample["label"], np.ones(1000)]))
    data = {"path": "events.root", "labels": True, "truth": "truth.parquet"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**SEARCH, "data": data}))
    return tmp_path


def test_only_signal_of_the_files_counts_as_injected(with_sidecar):
    skim(context_of(with_sidecar, with_sidecar / "run", "signal.inject=100"))
    flow = {step["name"]: step["events"] for step in read_json(with_sidecar / "run/skim/skim.json")["cutflow"]}
    assert flow["not_injected"] == LABELS - 100


@pytest.mark.parametrize("inject", ["null", "100"])
def test_a_sidecar_that_lacks_events_is_refused_and_no_output_is_written(with_sidecar, sample, inject):
    """What was selected waits for the right sidecar."""
    write_truth(with_sidecar / "truth.parquet", np.arange(500) + 7, sample["label"][:500])
    with pytest.raises(InputError, match=r"truth.parquet: has no label for \d+ of \d+ events"):
        skim(context_of(with_sidecar, with_sidecar / "run", f"signal.inject={inject}"))
    written = {path.relative_to(with_sidecar / "run") for path in (with_sidecar / "run").rglob("*") if path.is_file()}
    assert {str(path) for path in written if path.parent != Path("skim/chunks")} == {"manifest.json"}


def test_the_truth_lies_in_its_own_file_alone(done):
    columns = {path.relative_to(done): pq.read_schema(path).names for path in done.rglob("*.parquet")}
    assert {str(path) for path, names in columns.items() if {"label", "truth", "is_signal"} & set(names)} == {
        "skim/truth.parquet"
    }
    words = re.compile(r"truth|label\"|\bsic|n_signal")
    told = {path.name for path in done.rglob("*.json") if "stages" not in path.parts and words.search(path.read_text())}
    # the manifest holds the configuration (data.truth); a histogram's axis has a label; stamps name the sidecar
    assert told <= {"quality.json", "results.json", "manifest.json", "hists.json"}


def test_what_the_search_computes_does_not_depend_on_the_truth(copy, project, done):
    # all signal events are injected in either run: labels are all that differs
    ran = search(project, copy, "signal.inject=null", "data.labels=false", overwrite=True)
    assert ran == windowed("quality") | {"skim", "hunt"}
    assert not (copy / "skim" / "truth.parquet").exists()
    for window in WINDOWS:
        ours, theirs = (table(run / "windows" / window / "scores.parquet") for run in (done, copy))
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert (copy / "hunt.json").read_bytes() == (done / "hunt.json").read_bytes()
    results = read_json(copy / "results.json")
    for window in results["windows"]:
        assert window["metrics"] is window["n_signal_truth"] is window["template"]["auc_vs_truth"] is None
    Draft202012Validator(results_schema()).validate(results)


# ---- what the models see ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mjj", "m_jj", "M_JJ", "mass"])
def test_the_resonant_mass_is_no_feature(project, tmp_path, name):
    with pytest.raises(ConfigError, match="resonant mass"):
        context_of(project, tmp_path / "run", f"features=[m_j1, {name}]")
    with pytest.raises(ConfigError, match="resonant mass"):
        feature_matrix(read_skim(project / "run" / "skim" / "events.parquet"), ("m_j1", name))


def test_another_signal_seed_injects_other_events(project, tmp_path):
    """Injection: signal.seed chooses which signal events stay."""
    chosen = []
    for seed in (1, 2):
        context = context_of(project, tmp_path / str(seed), "signal.inject=60", f"signal.seed={seed}")
        skim(context)
        truth = table(context.run.truth)
        chosen.append(set(truth["event_id"][truth["label"] == 1]))
    assert chosen[0] != chosen[1]


def test_a_card_names_the_hidden_windows(done):
    cards = {path.parent: read_json(path) for path in done.rglob("method.json")}
    assert {str(path.relative_to(done / "windows")): card["hidden"] for path, card in cards.items()} == {
        "3300-3700/model_0": [[3300, 3700]],
        "3300-3700/model_1": [[3300, 3700]],
        "3600-4000/model_0": [[3600, 4000]],
        "3600-4000/model_1": [[3600, 4000]],
        "3600-4000/pseudo_model": [[3600, 4000], [4200, 4600]],
    }


def test_a_model_serves_no_window_that_it_saw(project, done):
    folder, method = done / "windows" / WINDOWS[0] / "model_0", method_of(context_of(project, done).config)
    assert load_window_model(method, folder, Window(3300, 3700, 2700, 6000)).hidden == ((3300, 3700),)
    for window in (Window(3200, 3600, 2700, 6000), Window(3600, 4000, 2700, 6000)):
        with pytest.raises(LeakError, match=f"this model saw the window {window.name}"):
            load_window_model(method, folder, window)


def test_a_model_serves_no_pseudo_window_that_it_saw(project, done):
    folder, method = done / "windows" / WINDOWS[1], method_of(context_of(project, done).config)
    window = Window(3600, 4000, 2700, 6000)
    load_window_model(method, folder / "pseudo_model", window, pseudo=(4200, 4600))
    for name, pseudo in (("pseudo_model", (4200, 4700)), ("model_0", (4200, 4600))):
        with pytest.raises(LeakError, match=f"this model saw the pseudo-window 4200-{pseudo[1]}"):
            load_window_model(method, folder / name, window, pseudo=pseudo)


def test_a_template_of_a_pseudo_window_asks_for_a_model_that_did_not_see_it(project, copy):
    folder = copy / "windows" / WINDOWS[1]
    # its card as a training without the pseudo-window would have left it
    card = folder / "pseudo_model" / "method.json"
    write_json(card, {**read_json(card), "hidden": [[3600, 4000]]})
    context = context_of(project, copy)
    with pytest.raises(LeakError, match="this model saw the pseudo-window 4200-4600"):
        _generate(context, context.windows[1])


def test_the_files_of_a_model_belong_to_its_card(project, copy):
    models, method = copy / "windows", method_of(context_of(project, copy).config)
    weights = "model_0/model.safetensors"
    shutil.copy(models / WINDOWS[1] / weights, models / WINDOWS[0] / weights)
    with pytest.raises(RunDirectoryError, match=r"model\.safetensors: missing or changed since the model was trained"):
        load_window_model(method, models / WINDOWS[0] / "model_0", Window(3300, 3700, 2700, 6000))


@pytest.mark.parametrize("harm", [{"extra": {}}, {"extra": {"hidden": 3}}, {"extra": None}])
def test_a_card_that_is_not_ours_is_refused(copy, harm):
    card = copy / "windows" / WINDOWS[0] / "model_0" / "card.json"
    write_json(card, {**read_json(card), **harm})
    with pytest.raises(RunDirectoryError, match=r"card.json: is not a model checkpoint"):
        load_background_model(card.parent)


@pytest.mark.parametrize("window", WINDOWS)
def test_template_masses_lie_in_the_window(done, window):
    template = table(done / "windows" / window / "template.parquet")
    low, high = (float(edge) for edge in window.split("-"))
    assert ((template["mjj"] >= low) & (template["mjj"] < high)).all()
    assert (template["parent_id"] == -1).all()
    assert len(np.unique(template["event_id"])) == len(template["event_id"])


@pytest.mark.parametrize("window", WINDOWS)
def test_masses_of_a_template_come_from_a_fit_without_its_window(done, project, window):
    """Masses: the template's follow the spectrum fitted outside its window."""
    check_masses(context_of(project, done), done / "windows" / window / "template.parquet", [window])


def test_masses_of_a_pseudo_window_come_from_a_fit_without_both(done, project):
    """Masses: those of the pseudo-window's sample come from a fit that saw neither it nor the window."""
    path = done / "windows" / WINDOWS[1] / "pseudo.parquet"
    check_masses(context_of(project, done), path, ["4200-4600", WINDOWS[1]])


def check_masses(context: Context, path: Path, hidden: list[str]) -> None:
    """Draw the masses of a sample again, from a fit outside these intervals; the sample lies in the first."""
    intervals = [tuple(map(float, name.split("-"))) for name in hidden]
    edges, config = mass_edges(context), context.config
    fitted = np.all([(edges[1:] <= low + 1e-6) | (edges[:-1] >= high - 1e-6) for low, high in intervals], axis=0)
    counts = np.histogram(table(context.run.events)["mjj"], edges)[0]
    fit = fit_spectrum(counts, edges, None, config.mass.fit, config.mass.sqrt_s, fitted=fitted)
    sample = read_skim(path)
    models, numbers = sample.metadata["models"], np.bincount(model_column(sample))
    drawn = [
        starts(RECIPES["from_noise"], None, number, model["seed"], lambda u: u).mjj
        for model, number in zip(models, numbers, strict=True)
    ]
    uniform = np.concatenate(drawn)
    np.testing.assert_allclose(np.asarray(sample["mjj"]), draw(fit, *intervals[0], uniform), rtol=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_closure_sample_has_the_masses_of_the_closure_events(done, window):
    """Closure: as many events as the model has not seen, at their masses."""
    folder = done / "windows" / window
    split, events = table(folder / "split.parquet"), table(done / "skim" / "events.parquet")
    closing = np.isin(events["event_id"], split["event_id"][split["part"] == CLOSURE])
    np.testing.assert_array_equal(np.sort(table(folder / "closure.parquet")["mjj"]), np.sort(events["mjj"][closing]))


@pytest.mark.parametrize("window", WINDOWS)
def test_a_template_has_its_factor_of_the_events_in_the_window(done, window):
    """Oversampling: template.oversample times as many events as the data."""
    folder = done / "windows" / window
    inside = int((table(folder / "scores.parquet")["region"] == 1).sum())
    # half of the data, in the other fold, times two models
    assert len(table(folder / "template.parquet")["mjj"]) == 2 * round(1.5 * inside / 2)


@pytest.fixture(scope="module")
def compared(done, project, tmp_path_factory) -> list[set[int]]:
    """Identities of the true events of each comparison that measures the first template's quality."""
    found = []

    def spied(make, first, second, *args, **more):
        found.append(set(first.group))
        return equal_size_auc(make, first, second, *args, **more)

    run = shutil.copytree(done, tmp_path_factory.mktemp("quality") / "run")
    (run / "windows" / WINDOWS[0] / "quality.json").unlink()
    context = context_of(project, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify_module, "equal_size_auc", spied)
        classify(context, context.windows[0])
    return found


def test_the_closure_test_is_made_with_events_that_the_model_never_saw(done, compared):
    """Quality: what is held against the closure sample of a model is its fold, all of it and nothing else."""
    split = table(done / "windows" / WINDOWS[0] / "split.parquet")
    for fold in (0, 1):
        assert set(split["event_id"][split["fold"] == fold]) in compared


def test_a_template_is_held_against_true_background_without_the_signal(done, compared):
    """Quality: where labels allow, the template is compared with the background of the window alone."""
    events, truth = table(done / "skim" / "events.parquet"), table(done / "skim" / "truth.parquet")
    signal_events = truth["event_id"][truth["label"] == 1]
    inside = (events["mjj"] >= 3300) & (events["mjj"] < 3700)
    assert set(events["event_id"][inside & ~np.isin(events["event_id"], signal_events)]) in compared


def test_toys_overlap_as_the_counted_events_do(copy, project, monkeypatch):
    """Toys: sideband events that are not counted after a cut are in no overlap."""
    given = []

    def spied(mjj, tails, *args):
        given.append(tails)
        return set_overlaps(mjj, tails, *args)

    monkeypatch.setattr("drapes_hep.stages.hunt.set_overlaps", spied)
    hunt(context_of(project, copy, "hunt.toys=20"))
    for tail, window in zip(given[0], WINDOWS, strict=True):
        scores = table(copy / "windows" / window / "scores.parquet")
        counted = (scores["region"] == 1) | (scores["part"] == CLOSURE)
        np.testing.assert_array_equal(tail, np.where(counted, scores["tail"], 1.0))


def test_expectations_know_which_share_of_the_sidebands_is_counted(done, project):
    """Hunt: after a cut, closure events outside stand for all, and every event inside is counted."""
    config = load_config(project / "tiny.yaml")
    for record, name in zip(read_json(done / "results.json")["windows"], WINDOWS, strict=True):
        scores = table(done / "windows" / name / "scores.parquet")
        counted = (scores["region"] == 1) | (scores["part"] == CLOSURE)
        counts = count_selected(
            scores["mjj"],
            scores["tail"],
            mass_edges(context_of(project, done)),
            config.hunt.background_efficiencies,
            counted=counted,
            share=1.0,
        )
        window = Window(*record["sr"], *config.mass.range)
        points = hunt_window(counts, window, shape=config.mass.fit, sqrt_s=config.mass.sqrt_s).working_points
        assert [point["expected"] for point in record["working_points"]] == [point.expected for point in points]


def test_pseudo_events_are_made_by_the_model_that_saw_neither_window(done, project):
    """Closure: the second model makes the sample of the pseudo-window, not the one that was trained there."""
    folder, method = done / "windows" / WINDOWS[1], method_of(context_of(project, done).config)
    pseudo = read_skim(folder / "pseudo.parquet")
    mjj, seed = np.asarray(pseudo["mjj"]), pseudo.metadata["models"][0]["seed"]
    model = load_window_model(method, folder / "pseudo_model", Window(3600, 4000, 2700, 6000))
    plan = starts(RECIPES["from_noise"], None, len(mjj), seed, lambda _: mjj)
    found = method.sample(model, plan, None, SampleTask(seed, lambda some: some > 0))
    np.testing.assert_allclose(feature_matrix(pseudo, method.config.features), found.x, rtol=1e-5)


def test_pseudo_events_lie_in_the_pseudo_window(done):
    mjj = table(done / "windows" / WINDOWS[1] / "pseudo.parquet")["mjj"]
    assert ((mjj >= 4200) & (mjj < 4600)).all()


def test_no_two_samples_share_an_identity(done):
    names = [done / "skim" / "events.parquet"]
    names += [
        done / "windows" / w / f"{kind}.parquet" for w in WINDOWS for kind in ("template", "calibration", "closure")
    ]
    ids = np.concatenate([table(path)["event_id"] for path in names])
    assert len(np.unique(ids)) == len(ids)


@pytest.mark.parametrize("window", WINDOWS)
def test_parts_are_disjoint_and_hold_the_sidebands_alone(done, window):
    parts = table(done / "windows" / window / "split.parquet")
    events = table(done / "skim" / "events.parquet")
    low, high = (float(edge) for edge in window.split("-"))
    outside = (events["mjj"] < low) | (events["mjj"] >= high)
    # each event is a closure event of the model of its fold
    assert set(parts["part"]) == {CLOSURE}
    assert set(parts["fold"]) == set(parts["validates"]) == {0, 1}
    assert len(np.unique(parts["event_id"])) == len(parts["event_id"])
    assert set(parts["event_id"]) == set(events["event_id"][outside])
    counts = read_json(done / "windows" / window / "training.json")["events"]
    validating = int(parts["validates"].sum())
    assert counts == {"train": len(parts["part"]) - validating, "validation": validating, "closure": len(parts["part"])}


@pytest.mark.parametrize("scheme", ["cross_fit", "hold_out"])
def test_a_hold_out_has_one_model_and_its_parts(project, tmp_path, scheme):
    run = tmp_path / "run"
    context = context_of(project, run, f"training.scheme={scheme}", "training.pseudo_window=none", "training.epochs=1")
    skim(context)
    train(context, context.windows[0])
    split, folder = read_skim(run / "windows" / WINDOWS[0] / "split.parquet"), run / "windows" / WINDOWS[0]
    single = scheme == "hold_out"
    assert [path.parent.name for path in sorted(folder.glob("*/method.json"))] == (
        ["model"] if single else ["model_0", "model_1"]
    )
    assert set(np.asarray(split["part"])) == ({TRAIN, VALIDATION, CLOSURE} if single else {CLOSURE})
    counts = read_json(folder / "training.json")["events"]
    assert (counts["train"] + counts["validation"] + counts["closure"] == len(split)) == single


# ---- cross-fitting: nothing meets its fold ---------------------------------------------------------------------------


def model_column(sample) -> np.ndarray:
    """Return which model made each event: 0 where there is one."""
    return np.asarray(sample["model"]) if "model" in sample.columns else np.zeros(len(sample), dtype=np.int64)


def test_a_model_is_fitted_on_the_sidebands_of_the_other_folds(project, copy, monkeypatch):
    seen = []

    def spied(trainings, **kwargs):
        seen.extend(trainings)
        raise DrapesError("seen")

    monkeypatch.setattr(feature_model, "fit_models", spied)
    (copy / "stages" / f"train.{WINDOWS[0]}.json").unlink()
    context = context_of(project, copy)
    with pytest.raises(DrapesError, match="seen"):
        train(context, context.windows[0])
    events = read_skim(copy / "skim" / "events.parquet")
    fold = assign_folds(np.asarray(events["event_id"]), 2, SEED)
    inside = context.windows[0].in_signal_region(np.asarray(events["mjj"]))
    for training, other in zip(seen, (1, 0), strict=True):
        expected = np.asarray(events["mjj"])[~inside & (fold == other)]
        np.testing.assert_array_equal(np.sort(training.mjj), np.sort(expected))


def test_a_model_that_saw_the_fold_of_its_classifier_is_refused(project, copy):
    folder = copy / "windows" / WINDOWS[0]
    shutil.rmtree(folder / "model_0")
    shutil.copytree(folder / "model_1", folder / "model_0")
    context = context_of(project, copy)
    with pytest.raises(LeakError, match="model_0: this model saw the sideband events of fold 0"):
        _generate(context, context.windows[0])


def test_sideband_events_are_closed_by_the_model_of_their_fold(done):
    folder = done / "windows" / WINDOWS[0]
    closure, events = read_skim(folder / "closure.parquet"), read_skim(done / "skim" / "events.parquet")
    mjj, fold = np.asarray(events["mjj"]), assign_folds(np.asarray(events["event_id"]), 2, SEED)
    outside = (mjj < 3300) | (mjj >= 3700)
    for number in (0, 1):
        generated = np.asarray(closure["mjj"])[model_column(closure) == number]
        np.testing.assert_array_equal(np.sort(generated), np.sort(mjj[outside & (fold == number)]))


@pytest.mark.parametrize("window", WINDOWS)
def test_cuts_are_set_by_further_events_of_each_model(done, window):
    """As many as leave a hundred above the tightest cut; their tails are those of a flat distribution."""
    folder = done / "windows" / window
    calibration, scores = read_skim(folder / "calibration.parquet"), read_skim(folder / "template_scores.parquet")
    assert np.bincount(model_column(calibration)).tolist() == [10_000, 10_000]
    np.testing.assert_array_equal(np.asarray(scores["fold"]), model_column(calibration))
    np.testing.assert_array_equal(np.asarray(scores["event_id"]), np.asarray(calibration["event_id"]))
    for number in (0, 1):
        tail = np.asarray(scores["tail"])[np.asarray(scores["fold"]) == number]
        assert (tail <= 0.01).mean() == pytest.approx(0.01, abs=0.002)


def test_an_event_keeps_its_part_in_every_window(done):
    first, second = (table(done / "windows" / window / "split.parquet") for window in WINDOWS)
    parts = dict(zip(first["event_id"], first["part"], strict=True))
    shared = [(parts[i], p) for i, p in zip(second["event_id"], second["part"], strict=True) if i in parts]
    assert len(shared) > 500
    assert all(a == b for a, b in shared)


@pytest.mark.parametrize("window", WINDOWS)
def test_sidebands_have_folds_like_everything_else(done, window):
    scores = table(done / "windows" / window / "scores.parquet")
    np.testing.assert_array_equal(scores["fold"], assign_folds(scores["event_id"], 2, SEED))
    assert {(region, fold) for region, fold in zip(scores["region"], scores["fold"], strict=True)} == {
        (0, 0), (0, 1), (1, 0), (1, 1)
    }  # fmt: skip
    assert ((scores["tail"] >= 0) & (scores["tail"] <= 1)).all()


@pytest.mark.parametrize("window", WINDOWS)
def test_a_cut_passes_its_part_of_each_folds_template(done, window):
    scores = table(done / "windows" / window / "template_scores.parquet")
    for fold in (0, 1):
        tail = scores["tail"][scores["fold"] == fold]
        assert (tail <= 0.1).mean() <= 0.1
        assert (tail <= 0.1).mean() > 0.05


# ---- blinding --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blind(done, project, tmp_path_factory) -> Path:
    run = shutil.copytree(done, tmp_path_factory.mktemp("blind") / "run")
    assert search(project, run, "blind=true") == windowed("quality") | {"skim", "hunt"}
    return run


def test_a_blinded_run_observes_nothing(blind):
    results = read_json(blind / "results.json")
    assert results["blind"] is True
    assert all(value is None for name, value in results["global"].items() if name not in {"toys", "reason"})
    for window in results["windows"]:
        assert window["n_observed"] is None
        for point in window["working_points"]:
            assert point["observed"] is point["p_local"] is point["z_local"] is None
            assert point["expected"] is not None
    assert results["resonance"]["points"] == read_json(blind / "hunt.json")["resonance"] == []
    assert results["resonance"]["reason"] == "the run is blinded"
    Draft202012Validator(results_schema()).validate(results)


def test_a_blinded_run_counts_no_bin_of_any_window(blind):
    record = read_json(blind / "hunt.json")
    edges = np.array(record["edges"])
    hidden = (edges[1:] > 3300) & (edges[:-1] < 4000)
    counts = [record["counts"], *(p["counts"] for window in record["windows"] for p in window["working_points"])]
    assert len(counts) == 7
    for row in counts:
        assert [value is None for value in row] == hidden.tolist()
    assert record["toys"] is record["global_background"] is None


def test_a_blinded_runs_selected_histograms_are_empty_in_every_window(blind):
    with uproot.open(blind / "hists.root") as file:
        names = [key for key in file.keys() if re.match(r"mjj_\d", key)]  # noqa: SIM118
        assert len(names) == 6
        for name in names:
            values, edges = file[name].to_numpy()
            assert not values[(edges[1:] > 3300) & (edges[:-1] < 4000)].any()
            assert values.any()


def test_a_blinded_fit_does_not_see_the_other_window(blind, done):
    ours, theirs = (read_json(run / "results.json")["windows"][0]["fit"] for run in (blind, done))
    assert ours["ndof"] < theirs["ndof"]


def test_unblinding_gives_the_unblinded_results(blind, project, done, tmp_path):
    run = shutil.copytree(blind, tmp_path / "run")
    assert search(project, run) == windowed("quality") | {"skim", "hunt"}
    names = ["results.json", "hunt.json", "hists.json", "skim/skim.json", "skim/hists.json"]
    names += [f"windows/{window}/quality.json" for window in WINDOWS]
    assert [name for name in names if (run / name).read_bytes() != (done / name).read_bytes()] == []


def test_blinding_hides_the_union_of_the_windows(project, done):
    mjj = table(done / "skim" / "events.parquet")["mjj"]
    windows = context_of(project, done).windows
    np.testing.assert_array_equal(blinded(mjj, windows), (mjj >= 3300) & (mjj < 4000))


# ---- features, event by event ----------------------------------------------------------------------------------------


def reference_features(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every feature, from the raw columns with numpy alone; the jet of larger mass is J1."""
    c = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    heavy = {}
    light = {}
    swap = c["mj2"] > c["mj1"]
    for q in ("px", "py", "pz", "m", "tau1", "tau2", "tau3"):
        heavy[q] = np.where(swap, c[q + "j2"], c[q + "j1"])
        light[q] = np.where(swap, c[q + "j1"], c[q + "j2"])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {
            f"tau{a}{b}_{jet}": np.where(one[f"tau{b}"] > 0, one[f"tau{a}"] / one[f"tau{b}"], np.nan)
            for jet, one in (("j1", heavy), ("j2", light))
            for a, b in ((2, 1), (3, 2))
        }
    eta = [np.arcsinh(one["pz"] / np.hypot(one["px"], one["py"])) for one in (heavy, light)]
    angle = np.arctan2(heavy["py"], heavy["px"]) - np.arctan2(light["py"], light["px"])
    dphi = np.abs(np.arctan2(np.sin(angle), np.cos(angle)))
    return {
        "m_j1": np.maximum(heavy["m"], 0),
        "m_j2": np.maximum(light["m"], 0),
        "delta_m": np.maximum(heavy["m"], 0) - np.maximum(light["m"], 0),
        "delta_r": np.hypot(eta[0] - eta[1], dphi),
        **ratios,
    }


def reference_mjj(columns: dict[str, np.ndarray]) -> np.ndarray:
    c = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    p = {q: c[q + "j1"] + c[q + "j2"] for q in ("px", "py", "pz")}
    energy = sum(np.sqrt(sum(c[q + jet] ** 2 for q in ("px", "py", "pz", "m"))) for jet in ("j1", "j2"))
    return np.sqrt(energy**2 - p["px"] ** 2 - p["py"] ** 2 - p["pz"] ** 2)


def check_features_of(path: Path, columns: dict[str, np.ndarray]) -> None:
    (chunk,) = split(scan(path), "data", chunksize=10**9)
    jets = read(chunk).jets
    found, expected = compute_features(tuple(FEATURES), jets), reference_features(columns)
    assert set(found) == set(expected) == set(FEATURES)
    for name in FEATURES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(invariant_mass(jets), reference_mjj(columns), rtol=1e-9)


def test_features_of_generated_events_are_those_of_their_columns(samples, columns):
    for kind in ("ttree", "rntuple", "hdf5", "skim"):
        check_features_of(samples[kind], columns)


def test_features_of_bundled_events_are_those_of_their_columns(project, sample):
    check_features_of(project / "events.root", sample)


def test_features_of_the_rd_dataset_are_those_of_its_columns(data_dir):
    import h5py

    path = next(data_dir.glob("lhco/*features*.h5"))
    with h5py.File(path) as file:
        group = file["df"]
        columns = {}
        for i in range(int(group.attrs["nblocks"])):
            names = [name.decode() for name in group[f"block{i}_items"][:]]
            columns.update(zip(names, group[f"block{i}_values"][:50_000].T, strict=True))
    (chunk, *_) = split(scan(path), "data", chunksize=50_000)
    jets = read(chunk).jets
    found, expected = compute_features(tuple(FEATURES), jets), reference_features(columns)
    for name in FEATURES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-7, atol=1e-6, err_msg=name)


def test_the_skim_holds_the_features_of_its_events(done, sample, project):
    events = table(done / "skim" / "events.parquet")
    rows = events["event_id"] & (2**32 - 1)
    expected = {**reference_features(sample), "mjj": reference_mjj(sample)}
    for name in (*load_config(project / "tiny.yaml").features, "mjj"):
        np.testing.assert_allclose(events[name], expected[name][rows], rtol=1e-9, err_msg=name)


def test_undefined_features_are_dropped_or_replaced_and_counted(tmp_path):
    columns = make_columns(6000)
    write_feature_root(tmp_path / "events.root", columns)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**SEARCH, "signal": {}}))
    for value in ("drop", "-1"):
        skim(context_of(tmp_path, tmp_path / f"run{value}", f"selection.undefined={value}", "mass.range=[2500, 6000]"))
    flow = {step["name"]: step["events"] for step in read_json(tmp_path / "rundrop" / "skim" / "skim.json")["cutflow"]}
    dropped, kept = (table(tmp_path / run / "skim" / "events.parquet") for run in ("rundrop", "run-1"))
    lost = flow["mass_range"] - flow["defined"]
    assert lost > 0
    assert max(flow["undefined_tau21_j1"], flow["undefined_tau21_j2"]) <= lost
    assert len(kept["mjj"]) - len(dropped["mjj"]) == lost
    undefined = (kept["tau21_j1"] == -1) | (kept["tau21_j2"] == -1)
    assert set(kept["event_id"][~undefined]) == set(dropped["event_id"])
