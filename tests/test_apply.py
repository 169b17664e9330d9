"""Trained classifiers on disk, and events of anybody's passed through a finished search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from test_set_classifiers import BOTH, dijets, fitted
from test_stages import SEARCH, WINDOWS, context_of, cut_sample, search, table

from drapes_hep.config import load_config
from drapes_hep.cwola.classifiers import is_saved, load_classifier
from drapes_hep.cwola.perceptron import Mlp
from drapes_hep.cwola.trees import SklearnTrees, Trees
from drapes_hep.errors import ConfigError, RunDirectoryError
from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
from drapes_hep.files import read_json, write_json
from drapes_hep.search import Search
from drapes_hep.stages.apply import trained_folds

pytestmark = pytest.mark.usefixtures("few_trees")

SLOPE = """
class Slope:
    def __init__(self, seed): self.sign = 0
    def fit(self, x, y, weight, group): self.sign = 1
    def score(self, x): return self.sign * x[:, 0]
"""
SAVED = """
    def save(self, folder):
        (folder / "sign.txt").write_text(str(self.sign))
        return [folder / "sign.txt"]
    def load(self, folder): self.sign = int((folder / "sign.txt").read_text())
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_feature_root(folder / "events.root", cut_sample())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    (folder / "slope.py").write_text(SLOPE)
    (folder / "saved.py").write_text(SLOPE + SAVED)
    return folder


@pytest.fixture(scope="module")
def done(project) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        search(project, project / "run")
    return project / "run"


@pytest.fixture
def applied(done, project, drapes, monkeypatch, tmp_path):
    """Apply the search to files; returns what it wrote."""

    def apply(*files: object, run: Path = done) -> dict:
        monkeypatch.chdir(project)
        status, _, said = drapes("apply", run, *files, "-o", tmp_path / "out", "--quiet")
        assert status == 0, said
        return read_json(tmp_path / "out" / "applied.json")

    return apply


def cut(record: dict, window: str, efficiency: float) -> dict:
    edges = [float(edge) for edge in window.split("-")]
    points = record["passed"]
    return next(p for p in points if p["window"] == edges and p["background_efficiency"] == efficiency)


# ---- classifiers on disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options"),
    [(Trees, {}), (Trees, {"select": "argos"}), (Mlp, {"epochs": 2})],
    ids=["trees", "argos", "mlp"],
)
def test_a_classifier_that_is_read_back_scores_as_before(make, options, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 3))
    x[:1500, 0] += 0.5
    y, weight, group = np.repeat([1, 0], 1500), np.ones(3000), np.arange(3000)
    trained = make(5, **options)
    trained.fit(x, y, weight, group)
    files = trained.save(tmp_path)
    assert {path.suffix for path in files} <= {".txt", ".json", ".safetensors"}
    again = make(0, **options)
    again.load(tmp_path)
    np.testing.assert_array_equal(again.score(x), trained.score(x))


@pytest.mark.parametrize("make", BOTH)
def test_a_classifier_on_constituents_that_is_read_back_scores_as_before(make, tmp_path):
    trained, x = fitted(make), dijets(50, 4)
    trained.save(tmp_path)
    again = fitted(make, seed=9)
    assert not np.array_equal(again.score(x), trained.score(x))
    again.load(tmp_path)
    np.testing.assert_array_equal(again.score(x), trained.score(x))


def test_trees_that_cannot_be_split_are_read_back(tmp_path):
    x, y = np.zeros((400, 1)), np.repeat([0, 1], 200)
    trained = Trees(1)
    trained.fit(x, y, np.ones(400), np.arange(400))
    trained.save(tmp_path)
    again = Trees(0)
    again.load(tmp_path)
    np.testing.assert_array_equal(again.score(x), trained.score(x))


def test_scikit_learns_trees_have_no_text():
    assert is_saved(Trees)
    assert not is_saved(SklearnTrees)


def test_classifiers_that_are_read_back_give_the_searchs_own_tails(done, project):
    context = context_of(project, done)
    folds = trained_folds(context, context.windows[0])
    scores, events = table(done / "windows" / WINDOWS[0] / "scores.parquet"), table(done / "skim" / "events.parquet")
    x = np.stack([events[name] for name in context.config.classifier_features], axis=1).astype(np.float64)
    for fold in range(folds.folds):
        mine = scores["fold"] == fold
        np.testing.assert_array_equal(folds.tails(x[mine], fold), scores["tail"][mine])


# ---- whose events ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["events.root", "renamed.root"])
def test_the_searchs_own_data_give_its_own_counts(file, done, project, applied):
    # whatever their file is called and however precise it is: an event's identity rests on the file's name
    single = {name: values.astype(np.float32) for name, values in cut_sample().items() if name != "label"}
    write_feature_root(project / "renamed.root", single)
    record = applied(project / file)
    assert record["own"] == record["selected"] == len(table(done / "skim" / "events.parquet")["mjj"])
    for result in read_json(done / "results.json")["windows"]:
        for point in result["working_points"]:
            passed = cut(record, "{:g}-{:g}".format(*result["sr"]), point["background_efficiency"])
            assert passed["fraction"] * passed["events"] == pytest.approx(point["observed"], abs=1e-6)


def others() -> dict[str, np.ndarray]:
    """Background events that are not the search's."""
    columns, ours = cut_sample(6000, 0), cut_sample()
    rest = ~np.isin(columns["pxj1"], ours["pxj1"])
    return {name: values[rest] for name, values in columns.items() if name != "label"}


@pytest.fixture
def fresh(project) -> Path:
    write_feature_hdf5(project / "fresh.h5", others())
    return project / "fresh.h5"


def test_other_events_are_passed_by_every_fold(done, project, applied, fresh, tmp_path):
    record = applied(fresh)
    assert record["own"] == 0
    context, events = context_of(project, done), table(tmp_path / "out" / "skim" / "events.parquet")
    x = np.stack([events[name] for name in context.config.classifier_features], axis=1).astype(np.float64)
    for window in context.windows:
        folds, inside = trained_folds(context, window), window.in_signal_region(events["mjj"])
        passes = np.mean([folds.tails(x[inside], fold) <= 0.1 for fold in range(folds.folds)], axis=0)
        point = cut(record, window.name, 0.1)
        assert point["events"] == inside.sum()
        assert point["fraction"] == pytest.approx(passes.mean(), rel=1e-12)
        assert point["error"] == pytest.approx(passes.std() / np.sqrt(inside.sum()), rel=1e-9)
        assert cut(record, window.name, 1.0)["fraction"] == 1.0
        written = table(tmp_path / "out" / "applied.parquet")[f"pass_{window.name}_0.1"]
        np.testing.assert_array_equal(written[inside], passes)


def test_a_table_in_memory_is_passed_as_a_file_is(done, project, applied, fresh, tmp_path, monkeypatch):
    record = applied(fresh)
    events = table(tmp_path / "out" / "skim" / "events.parquet")
    names = context_of(project, done).config.features
    monkeypatch.chdir(project)
    outcome = Search("tiny.yaml", done, quiet=True).apply({name: events[name] for name in ("mjj", *names)})
    assert [point.fraction for point in outcome.passed] == [point["fraction"] for point in record["passed"]]
    assert outcome.selected == record["selected"]


def test_weights_count(project, applied, tmp_path):
    columns = others()
    weight = np.random.default_rng(1).uniform(0.5, 1.5, len(columns["mj1"]))
    write_feature_hdf5(project / "weighted.h5", {**columns, "weight": weight})
    point = cut(applied(project / "weighted.h5"), WINDOWS[0], 0.1)
    written = table(tmp_path / "out" / "applied.parquet")
    inside = (written["mjj"] >= 3300) & (written["mjj"] < 3700)
    share, w = written[f"pass_{WINDOWS[0]}_0.1"][inside], written["weight"][inside]
    assert point["fraction"] == pytest.approx(np.average(share, weights=w), rel=1e-12)
    assert point["weight"] == pytest.approx(w.sum(), rel=1e-12)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(done, project, drapes, monkeypatch, tmp_path):
    """Apply a search, which fails; returns the one line that says why."""

    def apply(file: Path, run: Path = done) -> str:
        monkeypatch.chdir(project)
        status, _, said = drapes("apply", run, file, "-o", tmp_path / "out", "--quiet")
        assert status == 2
        assert len(said.strip().splitlines()) == 1
        return said

    return apply


def test_a_blinded_search_is_not_applied_to_its_own_events(project, refused, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    run = project / "blind"
    search(project, run, "blind=true")
    said = refused(project / "events.root", run)
    assert said.endswith("the sample holds events of the search, which is blinded; unblind it first\n")
    # what is left shows no more than the search itself
    written = tmp_path / "out" / "skim"
    assert read_json(written / "skim.json")["accounting"]["processed"] is None
    assert json.dumps(read_json(written / "hists.json")) == json.dumps(read_json(run / "skim" / "hists.json"))


def test_a_search_is_not_applied_with_another_configuration(done, project, fresh, monkeypatch):
    monkeypatch.chdir(project)
    changed = Search(load_config("tiny.yaml", ["cwola.folds=3"]), done, quiet=True)
    with pytest.raises(RunDirectoryError, match=r"was run with .* 2, the configuration has 3"):
        changed.apply(fresh)


def test_a_search_is_not_applied_with_another_selection(done, project, refused, fresh, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    run = shutil.copytree(done, project / "moved")
    (project / "processors").mkdir()
    source = (ROOT / "processors" / "dijets.py").read_text()
    (project / "processors" / "dijets.py").write_text(source + "\nEDITED = True\n")
    try:
        assert "has changed since" in refused(fresh, run)
    finally:
        shutil.rmtree(project / "processors")


def test_classifiers_that_are_gone_or_damaged(done, project, refused, fresh):
    text = (done / "windows" / WINDOWS[0] / "classifiers" / "fold_0" / "member_0" / "trees.txt").read_bytes()
    for number, damaged in enumerate((b"", b"tree\n", text[:-2] + b"#\n")):
        run = shutil.copytree(done, project / f"damaged_{number}")
        (run / "windows" / WINDOWS[0] / "classifiers" / "fold_0" / "member_0" / "trees.txt").write_bytes(damaged)
        assert "missing or changed since" in refused(fresh, run)
    run = shutil.copytree(done, project / "before")
    shutil.rmtree(run / "windows" / WINDOWS[0] / "classifiers")
    stamp = read_json(run / "stages" / f"classify.{WINDOWS[0]}.json")
    stamp["files"] = {name: size for name, size in stamp["files"].items() if "classifiers" not in name}
    write_json(run / "stages" / f"classify.{WINDOWS[0]}.json", stamp)
    assert "holds no trained classifiers; classify again" in refused(fresh, run)


def test_only_the_section_data_can_be_set(done, fresh, drapes, tmp_path):
    status, _, said = drapes("apply", done, fresh, "-o", tmp_path / "out", "--set", "hunt.toys=3")
    assert (status, said) == (2, "drapes: --set hunt.toys=3: all but the section 'data' is the run's own\n")
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_there(refused, fresh, tmp_path):
    assert "contains no run" in refused(fresh, tmp_path / "none")


def test_a_classifier_of_a_users_needs_files_to_be_applied(project, applied, refused, fresh, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    search(project, project / "slope", "cwola.classifier=slope.py:Slope")
    assert "it needs save and load" in refused(fresh, project / "slope")
    search(project, project / "saved", "cwola.classifier=saved.py:Slope")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    point = cut(applied(fresh, run=project / "saved"), WINDOWS[0], 0.1)
    assert 0 < point["fraction"] < 1


def test_what_a_users_classifier_writes_is_checked(project, tmp_path):
    (project / "wrong.py").write_text(SLOPE + SAVED.replace('[folder / "sign.txt"]', '["elsewhere"]'))
    with pytest.raises(
        ConfigError, match=r"save\(folder\) returns the files that it wrote in the folder, not elsewhere"
    ):
        load_classifier("wrong.py:Slope", folder=project)(1).save(tmp_path)
