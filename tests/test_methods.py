"""Template methods of the user's own, and templates that are there already."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
import yaml
from sklearn.ensemble import HistGradientBoostingRegressor
from test_howto import example
from test_stages import SEARCH, cut_sample
from threadpoolctl import threadpool_info, threadpool_limits

from drapes_hep.config import load_config
from drapes_hep.errors import ConfigError, DrapesError, FitError, InputError, LeakError, RunDirectoryError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json
from drapes_hep.folds import assign_folds
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window
from drapes_hep.stages import resonant
from drapes_hep.stages.classify import classify
from drapes_hep.stages.generate import generate
from drapes_hep.stages.parents import load_parents
from drapes_hep.stages.resonant import check_resonant
from drapes_hep.stages.skim import skim
from drapes_hep.stages.train import train
from drapes_hep.studies.trials import Trial
from drapes_hep.templates.methods import FitTask, SampleTask
from drapes_hep.templates.parts import CLOSURE, TRAIN, VALIDATION
from drapes_hep.templates.plan import Pool, fit_masses, parents_in, plan_closure, plan_region
from drapes_hep.templates.registry import METHODS, method_of, method_settings, origin_of
from drapes_hep.templates.window_models import (
    fit_window_model,
    has_model,
    load_window_model,
    sample_template,
    save_window_model,
)

pytestmark = pytest.mark.usefixtures("few_trees")

FEATURES = ("m_j1", "delta_m", "tau21_j1", "tau21_j2", "delta_r")
WINDOW = Window(3300.0, 3700.0, 2700.0, 6000.0)

SHIFT = '''
import json
import numpy as np
from drapes_hep.templates.methods import BackgroundMethod


class Shift(BackgroundMethod):
    """Sideband events with their features scaled, at masses in the window."""

    title = "Shifted sidebands"
    source = "sidebands"

    def __init__(self, config, scale=1.5):
        self.scale = scale

    def fit(self, task):
        return {"mean": task.events.x[task.part != 2].mean(axis=0).tolist()}, {}

    def save(self, folder, model):
        (folder / "mean.json").write_text(json.dumps(model))
        return [folder / "mean.json"]

    def load(self, folder, device):
        return json.loads((folder / "mean.json").read_text())

    def sample(self, model, plan, parents, task):
        mean = np.asarray(model["mean"])
        return plan.template(mean + self.scale * (parents.x[plan.row] - mean))
'''


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("def sample(", "def smaple(", "needs the method sample(model, plan, parents, task); did you mean 'smaple'?"),
        (
            "def sample(self, model, plan, parents, task)",
            "def sample(self, model, plan)",
            "sample must take (self, model",
        ),
        ("def fit(self, task)", "def fit(self)", "fit must take (self, task)"),
        ("def load(self, folder, device)", "def load(self, folder)", "load must take (self, folder, device)"),
    ],
)
def test_a_method_without_its_methods_is_refused_before_anything_runs(project, tmp_path, old, new, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        method_of(edited(project, tmp_path, old, new))


RETURN = "return plan.template(mean + self.scale * (parents.x[plan.row] - mean))"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with data, a skim, and a method in a file."""
    folder = tmp_path_factory.mktemp("methods")
    write_feature_root(folder / "events.root", cut_sample())
    (folder / "shift.py").write_text(SHIFT)
    search = {**SEARCH, "windows": {"width": 400, "step": 300, "first": 3300, "last": 3300}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(search))
    skim(context_of(folder, folder / "run"))
    return folder


def context_of(project, run, *changes):
    return Context.of(load_config(project / "tiny.yaml", changes), open_run(run), device="cpu", workers=1)


@pytest.fixture
def run(project, tmp_path):
    return shutil.copytree(project / "run", tmp_path / "run")


@pytest.fixture(scope="module")
def events(project):
    context = context_of(project, project / "run")
    return load_parents(context.run.events, context.config)


def between(events, region):
    return (events.mjj >= region[0]) & (events.mjj < region[1])


def searched(project, run, *changes):
    """Run the stages that make and use a template, and give its table."""
    context = context_of(project, run, *changes)
    window = context.windows[0]
    for stage in (train, generate, classify):
        stage(context, window)
    return read_skim(run / "windows" / window.name / "template.parquet")


# ---- a table ---------------------------------------------------------------------------------------------------------


def columns_of(number=600, seed=1, low=2800, high=5500):
    rng = np.random.default_rng(seed)
    columns = {name: rng.uniform(0.1, 0.9, number) for name in FEATURES}
    return {**columns, "mjj": rng.uniform(low, high, number)}


def written(path, columns):
    if path.suffix == ".root":
        with uproot.recreate(path) as file:
            file["Template"] = columns
    else:
        pq.write_table(pa.table(columns), path)
    return f"template.path={path}"


@pytest.mark.parametrize("name", ["table.parquet", "table.root"])
def test_a_table_is_the_template_of_its_window(project, run, tmp_path, name):
    columns = columns_of() | {"weight": np.linspace(0.5, 1.5, 600)}
    path = written(tmp_path / name, columns)
    template = searched(project, run, "template.method=file", path)
    inside = (columns["mjj"] >= 3300) & (columns["mjj"] < 3700)
    for column in (*FEATURES, "mjj", "weight"):
        np.testing.assert_array_equal(template[column], columns[column][inside])
    closure = read_skim(run / "windows" / "3300-3700" / "closure.parquet")
    np.testing.assert_array_equal(closure["mjj"], columns["mjj"][~inside])
    assert (np.asarray(template["parent_id"]) == -1).all()


def test_the_weights_of_a_table_decide_the_tails(project, run, tmp_path):
    columns = columns_of(low=3300, high=3700) | {"weight": np.geomspace(0.01, 10, 600)}
    searched(project, run, "template.method=file", written(tmp_path / "t.parquet", columns))
    scored = read_skim(run / "windows" / "3300-3700" / "template_scores.parquet")
    fold, tail, score, weight = (np.asarray(scored[name]) for name in ("fold", "tail", "score", "weight"))
    for number in np.unique(fold):
        mine = fold == number
        expected = [weight[mine][score[mine] >= cut].sum() / weight[mine].sum() for cut in score[mine]]
        np.testing.assert_allclose(tail[mine], expected, rtol=1e-9)


def test_a_parent_decides_the_fold_of_an_event_of_a_table(project, run, tmp_path, events):
    parent = events.event_id[:600]
    columns = columns_of(low=3300, high=3700) | {"parent_id": parent}
    searched(project, run, "template.method=file", written(tmp_path / "t.parquet", columns))
    scored = read_skim(run / "windows" / "3300-3700" / "template_scores.parquet")
    np.testing.assert_array_equal(scored["fold"], assign_folds(parent, 2, SEARCH["seed"]))


def changed(**columns):
    return columns_of() | columns


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({name: values for name, values in columns_of().items() if name != "m_j1"}, "lacks column 'm_j1'"),
        ({name: values for name, values in columns_of().items() if name != "mjj"}, "lacks column 'mjj'"),
        (changed(m_j1=np.full(600, np.nan)), "column 'm_j1' has 600 bad values, the first in row 0 (nan)"),
        (changed(mjj=np.full(600, -3.0)), "column 'mjj' has 600 bad values"),
        (changed(weight=np.full(600, -1.0)), "column 'weight' has 600 bad values, the first in row 0 (-1)"),
        (changed(weight=np.zeros(600)), "has no positive weight between 3300 and 3700 GeV"),
        (columns_of(low=4000), "has no event between 3300 and 3700 GeV"),
        (changed(parent_id=np.full(600, 0.5)), "column 'parent_id' holds float64 of shape (600,), not whole numbers"),
        (changed(m_j1=[["a"]] * 600), "column 'm_j1' holds lists, text or missing values, not numbers"),
        (changed(parent_id=["a"] * 600), "column 'parent_id' holds lists, text or missing values, not whole numbers"),
        (changed(m_j1=[None] * 300 + [1.0] * 300), "column 'm_j1' has missing values"),
    ],
)
def test_a_bad_table_is_one_line(project, run, tmp_path, columns, words):
    path = written(tmp_path / "t.parquet", columns)
    with pytest.raises(InputError) as caught:
        searched(project, run, "template.method=file", path)
    assert words in str(caught.value)
    assert str(tmp_path / "t.parquet") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t.parquet", "t.root"])
def test_a_damaged_table_is_one_line(project, tmp_path, name):
    (tmp_path / name).write_bytes(b"root or PAR1?" * 100)
    config = load_config(project / "tiny.yaml", ["template.method=file", f"template.path={tmp_path / name}"])
    with pytest.raises(InputError, match="cannot be read as"):
        method_of(config).check()


def test_the_tree_of_a_table_is_named_where_there_are_several(project, tmp_path):
    with uproot.recreate(tmp_path / "t.root") as file:
        file["A"], file["B"] = columns_of(), columns_of(seed=2)
    given = ["template.method=file", f"template.path={tmp_path / 't.root'}"]
    with pytest.raises(InputError, match=r"holds the trees A, B; name one with template\.options: \{tree: NAME\}"):
        method_of(load_config(project / "tiny.yaml", given)).check()
    method_of(load_config(project / "tiny.yaml", [*given, "template.options={tree: B}"])).check()


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_a_table_that_holds_events_of_the_data_is_a_leak(project, run, tmp_path, events, kind):
    rows = np.flatnonzero(WINDOW.in_signal_region(events.mjj))[:3]
    columns = columns_of()
    for j, name in enumerate(FEATURES):
        columns[name][:3] = events.x[rows, j]
    columns["mjj"][:3] = events.mjj[rows]
    path = written(tmp_path / "t.parquet", {name: values.astype(kind) for name, values in columns.items()})
    with pytest.raises(LeakError, match="are events of the data, the first in row 0: their features and m_JJ"):
        searched(project, run, "template.method=file", path)


@pytest.mark.parametrize("change", [lambda mjj: mjj + 0.01, np.round, lambda mjj: mjj[::-1]])
def test_data_at_other_masses_are_a_leak_too(project, run, tmp_path, events, change):
    inside = events.take(WINDOW.in_signal_region(events.mjj))
    columns = {name: inside.x[:, j] for j, name in enumerate(FEATURES)} | {"mjj": change(inside.mjj)}
    with pytest.raises(LeakError, match="events of the data, the first in row 0: their features are the same"):
        searched(project, run, "template.method=file", written(tmp_path / "t.parquet", columns))


def test_a_parent_that_is_no_event_of_the_data_is_refused(project, run, tmp_path):
    columns = columns_of(low=3300, high=3700) | {"parent_id": np.arange(600)}
    with pytest.raises(ConfigError, match="parent_id 0 is not an event_id of the"):
        searched(project, run, "template.method=file", written(tmp_path / "t.parquet", columns))


def copied(share, masses):
    """A table in the window of which a share of the rows is there twice."""
    columns = columns_of(low=3300, high=3700)
    again = np.r_[np.arange(600), np.arange(int(600 * share))]
    columns = {name: values[again] for name, values in columns.items()}
    if masses == "other":
        columns["mjj"] = np.linspace(3301, 3699, len(again))
    return columns


@pytest.mark.parametrize(("share", "masses"), [(1 / 600, "same"), (0.5, "same"), (0.5, "other")])
def test_a_table_with_copies_of_an_event_is_refused(project, run, tmp_path, share, masses):
    path = written(tmp_path / "t.parquet", copied(share, masses))
    with pytest.raises(LeakError, match="template events are copies of each other, row 600 of row 0, and no parent"):
        searched(project, run, "template.method=file", path)


def test_copies_with_a_common_parent_share_a_fold(project, run, tmp_path, events):
    columns = copied(1.0, "other") | {"parent_id": np.tile(events.event_id[:600], 2)}
    template = searched(project, run, "template.method=file", written(tmp_path / "t.parquet", columns))
    assert len(template) == 1200


def test_features_that_are_counts_repeat_by_themselves(project, tmp_path, events):
    config = edited(project, tmp_path, RETURN, "return plan.template(np.round(parents.x[plan.row] / 20) + 5000)")
    counts = replace(events, x=np.round(events.x / 20))
    assert len(made(method_of(config), config, counts, tmp_path / "model").x) > 400
    with pytest.raises(LeakError, match="template events are copies of each other"):
        made(method_of(config), config, events, tmp_path / "other")


def test_a_chance_copy_is_no_copy(project, run, tmp_path):
    columns = columns_of(low=3300, high=3700)
    for name in FEATURES:
        columns[name][600 - 1] = columns[name][0]
    template = searched(project, run, "template.method=file", written(tmp_path / "t.parquet", columns))
    assert len(template) == 600


@pytest.mark.parametrize(("parents", "remarks"), [(False, 1), (True, 0)])
def test_a_table_without_parents_is_pointed_out(project, run, tmp_path, events, parents, remarks):
    columns = columns_of(low=3300, high=3700) | ({"parent_id": events.event_id[:600]} if parents else {})
    template = searched(project, run, "template.method=file", written(tmp_path / "t.parquet", columns))
    assert ["without a parent_id are taken to be independent" in one for one in template.metadata["remarks"]] == (
        [True] * remarks
    )


def test_a_fold_without_weight_is_refused(project, run, tmp_path):
    columns = columns_of(low=3300, high=3700) | {"weight": np.eye(1, 600)[0]}
    with pytest.raises(FitError, match="the template has no weight in fold"):
        searched(project, run, "template.method=file", written(tmp_path / "t.parquet", columns))


@pytest.mark.parametrize("blind", [True, False])
def test_a_blinded_run_does_not_say_how_few_events_a_window_holds(project, tmp_path, events, blind):
    first = next(low for low in range(3300, 5000) if ((events.mjj >= low) & (events.mjj < low + 4)).sum() == 1)
    window = ["windows.width=4", "windows.step=4", f"windows.first={first}", f"windows.last={first}", f"blind={blind}"]
    context = context_of(project, tmp_path / "run", *window)
    skim(context)
    with pytest.raises(FitError, match="not fill 2 folds") as caught:
        train(context, context.windows[0])
    assert bool(re.search(r"\d+ event", str(caught.value))) is not blind


def test_a_feature_that_follows_the_mass_is_refused_whatever_its_name(project, tmp_path):
    mass = "sqrt(2*pt_j1*pt_j2*(cosh(eta_j1-eta_j2)-cos(phi_j1-phi_j2)))"
    context = context_of(project, tmp_path / "run", f"define={{q: '{mass}'}}", "features=[m_j1, q]")
    skim(context)
    with pytest.raises(LeakError, match=r"feature 'q': gives m_JJ \(R\^2 of ln m_JJ is 0\.99"):
        train(context, context.windows[0])


KINEMATICS = "define={p1: pt_j1, p2: pt_j2, e1: eta_j1, e2: eta_j2, ht: pt_j1 + pt_j2, deta: abs(eta_j1 - eta_j2)}"


@pytest.mark.parametrize(
    ("features", "low", "high"),
    [
        (["m_j1", "delta_m", "tau21_j1", "tau21_j2"], -0.5, 0.1),
        (["m_j1", "delta_m", "tau21_j1", "tau21_j2", "delta_r"], 0.4, 0.65),
        (["ht", "delta_r"], 0.85, 0.96),
        (["p1", "p2", "e1", "e2"], 0.85, 0.96),
    ],
)
def test_how_much_of_the_mass_features_give_away(many, features, low, high):
    config, events = many
    x = events.x[:, [config.features.index(name) for name in features]]
    assert low < check_resonant(features, x, events.mjj) < high


@pytest.fixture(scope="module")
def many(project, tmp_path_factory):
    """Sideband events with the jets' kinematics as features."""
    more = "features=[m_j1, delta_m, tau21_j1, tau21_j2, delta_r, p1, p2, e1, e2, ht, deta]"
    context = context_of(project, tmp_path_factory.mktemp("many") / "run", KINEMATICS, more)
    skim(context)
    events = load_parents(context.run.events, context.config)
    return context.config, events.take(WINDOW.in_sidebands(events.mjj))


def test_the_check_of_features_takes_one_thread(many, monkeypatch):
    """More threads wait for each other: several times the seconds."""
    threads, fit = set(), HistGradientBoostingRegressor.fit

    def spied(trees, *events):
        threads.update(one["num_threads"] for one in threadpool_info() if one["user_api"] == "openmp")
        return fit(trees, *events)

    monkeypatch.setattr(HistGradientBoostingRegressor, "fit", spied)
    with threadpool_limits(limits=2, user_api="openmp"):
        resonant.mass_determination(many[1].x[:, :2], many[1].mjj)
    assert threads == {1}


@pytest.mark.parametrize("number", [20, 2000])
def test_a_feature_that_rises_with_the_mass_is_refused(many, number):
    _, events = many
    x, mjj = events.x[:number, :2].copy(), events.mjj[:number]
    x[:, 1] = np.exp(mjj / 1000)
    with pytest.raises(LeakError, match=r"feature 'b': follows m_JJ \(rank correlation 1.000\)"):
        check_resonant(("a", "b"), x, mjj)


def test_features_that_are_the_mass_together_are_refused(many):
    rng, (_, events) = np.random.default_rng(1), many
    part = rng.uniform(0.3, 0.7, len(events))
    x = np.stack([events.mjj * part, events.mjj * (1 - part)], axis=1)
    assert abs(np.corrcoef(x[:, 0], events.mjj)[0, 1]) < 0.9
    with pytest.raises(LeakError, match=r"features a, b: together they give m_JJ \(R\^2 of ln m_JJ is 0.9[789]"):
        check_resonant(("a", "b"), x, events.mjj)


def test_features_that_give_the_mass_away_are_pointed_out(project, tmp_path, capsys):
    given = [KINEMATICS, "features=[ht, delta_r, m_j1]", "cwola.features=[ht, delta_r, m_j1]"]
    context = replace(context_of(project, tmp_path / "run", *given), reporter=Reporter())
    window = context.windows[0]
    for stage in (skim, lambda c: train(c, window), lambda c: generate(c, window), lambda c: classify(c, window)):
        stage(context)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "give m_JJ away" in line]
    assert "window 3300-3700: the classifier's features (ht, delta_r, m_j1) give m_JJ away (R^2" in line
    assert 0.8 < read_skim(tmp_path / "run" / "windows" / window.name / "scores.parquet").metadata["mass_r2"] < 0.97


def test_features_chosen_after_the_training_are_checked(project, tmp_path):
    mass = "sqrt(2*pt_j1*pt_j2*(cosh(eta_j1-eta_j2)-cos(phi_j1-phi_j2)))"
    given = [f"define={{q: '{mass}'}}", "features=[m_j1, q]"]
    context = context_of(project, tmp_path / "run", *given, "cwola.features=[m_j1]")
    window = context.windows[0]
    for stage in (skim, lambda c: train(c, window), lambda c: generate(c, window)):
        stage(context)
    with pytest.raises(LeakError, match="feature 'q': gives m_JJ"):
        classify(context_of(project, tmp_path / "run", *given, "cwola.features=[m_j1, q]"), window)


def test_an_edited_definition_that_another_uses_trains_again(project, tmp_path):
    def stages(inner):
        define = f"define={{half: '{inner}', whole: '2 * half'}}"
        context = context_of(project, tmp_path / "run", define, "features=[m_j1, whole]", "training.pseudo_window=none")
        context = replace(context, run=open_run(tmp_path / "run", overwrite=True))
        skim(context)
        train(context, context.windows[0])
        return read_json(tmp_path / "run" / "stages" / "train.3300-3700.json")

    first, same, other = (stages(inner) for inner in ("delta_m / 2", "delta_m / 2", "delta_m / 3"))
    assert same == first
    assert other["key"] != first["key"]
    assert other["finished"] >= first["finished"]
    assert other["reads"] != first["reads"]


def test_another_table_of_the_same_name_is_another_template(project, tmp_path):
    given = ["template.method=file", written(tmp_path / "t.parquet", columns_of())]
    before = method_settings(load_config(project / "tiny.yaml", given))
    written(tmp_path / "t.parquet", columns_of(seed=2))
    assert method_settings(load_config(project / "tiny.yaml", given)) != before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["template.method=file"], "method file needs template.path, a Parquet or ROOT table"),
        (["template.path=t.parquet"], "path is only for method file; the method is from_noise"),
        (["template.method=file", "template.path=t.parquet", "template.strength=1"], "file has no noise"),
        (
            ["template.method=fromnoise"],
            "'template.method': no template method 'fromnoise'; did you mean 'from_noise' or 'from_low_noise'?"
            " Available: from_noise, from_low_noise, from_window, from_sidebands, from_simulation, file; or name your"
            " own as 'file.py:Class' or 'package.module:Class'",
        ),
    ],
)
def test_a_method_that_cannot_be_is_refused_by_the_configuration(project, changes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(project / "tiny.yaml", changes)


@pytest.mark.parametrize(
    ("columns", "lacking"),
    [
        (columns_of(), None),
        (columns_of(low=3900), "1 of 3 windows: 3300-3700 GeV"),
        (changed(weight=np.where(columns_of()["mjj"] > 4000, 0.0, 1.0)), "2 of 3 windows: 4000-4400, 4700-5100 GeV"),
    ],
)
def test_validate_names_the_windows_that_a_table_lacks(project, tmp_path, drapes, columns, lacking):
    path = written(tmp_path / "t.parquet", columns)
    windows = ["--set", "windows={width: 400, step: 700, first: 3300, last: 4700}"]
    given = [project / "tiny.yaml", "--set", "template.method=file", "--set", path, *windows]
    assert drapes("validate", *given)[0] == 0
    status, out, err = drapes("validate", "--files", *given)
    assert status == (2 if lacking else 0)
    if lacking:
        assert f"{tmp_path / 't.parquet'}: has no event of positive weight in {lacking}; add them" in err
    else:
        assert "valid: 3 windows" in out


def test_a_table_oversamples_no_data(project, tmp_path):
    path = written(tmp_path / "t.parquet", columns_of())
    config = load_config(project / "tiny.yaml", ["template.method=file", path])
    with pytest.raises(ConfigError, match="holds no model that could oversample"):
        Trial("search", config, "file", gensr=True, unseen=True)


# ---- a class of the user's -------------------------------------------------------------------------------------------


def test_a_method_from_a_file_makes_a_template_of_its_own(project, run, events):
    template = searched(project, run, "template.method=shift.py:Shift", "template.options={scale: 2.0}")
    parent = np.asarray(template["parent_id"])
    place = {int(key): row for row, key in enumerate(events.event_id)}
    rows = np.array([place[int(key)] for key in parent])
    # parents are sideband events of the training; masses lie in the window
    assert WINDOW.in_sidebands(events.mjj[rows]).all()
    assert WINDOW.in_signal_region(np.asarray(template["mjj"])).all()
    model = np.asarray(template["model"])
    # no parent is in the fold that its model never saw
    assert not (assign_folds(parent, 2, SEARCH["seed"]) == model).any()
    folder = run / "windows" / "3300-3700"
    mean = np.array([read_json(folder / f"model_{number}" / "mean.json")["mean"] for number in range(2)])[model]
    x = np.stack([np.asarray(template[name]) for name in FEATURES], axis=1)
    np.testing.assert_allclose(x, mean + 2.0 * (events.x[rows] - mean))


def test_other_options_are_another_model_and_another_message_names_them(project, run):
    searched(project, run, "template.method=shift.py:Shift")
    with pytest.raises(RunDirectoryError, match="name another directory as output, or replace it with overwrite=True"):
        searched(project, run, "template.method=shift.py:Shift", "template.options={scale: 3.0}")


def test_other_options_decide_another_model(project):
    changes = ("template.method=shift.py:Shift", "template.options={scale: 3.0}")
    one, other = (method_settings(load_config(project / "tiny.yaml", changes[:n])) for n in (1, 2))
    assert one != other


REACH = """
    def reach(self, region):
        return region[0] - 400, region[1] + 400

    def sample("""


def test_a_template_is_made_of_masses_where_its_method_reaches(project, run, tmp_path, events):
    """Masses: drawn around the window too, so many more that the window has its number of events."""
    source = SHIFT.replace("    def sample(", REACH.removeprefix("\n"))
    source = source.replace(
        RETURN, "plan = plan.take(task.region(plan.mjj)); return plan.template(2 * parents.x[plan.row])"
    )
    (tmp_path / "mine.py").write_text(source)
    template = searched(project, run, f"template.method={tmp_path / 'mine.py'}:Shift")
    wanted = SEARCH["template"]["oversample"] * WINDOW.in_signal_region(events.mjj).sum()
    assert len(template) == pytest.approx(wanted, abs=5 * np.sqrt(wanted))
    assert template.metadata["generated"] > 1.5 * len(template)


def test_what_is_recorded_of_a_method_names_it(project, run):
    template = searched(project, run, "template.method=shift.py:Shift")
    assert template.metadata["title"] == "Shifted sidebands"
    assert template.metadata["source"] == "sidebands"
    assert template.metadata["strength"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{size: 2}", "template.options: shift.py:Shift has no option 'size'; it has scale"),
        ("{config: 2}", "template.options: shift.py:Shift has no option 'config'; it has scale"),
    ],
)
def test_an_option_that_a_method_has_not_is_refused(project, options, words):
    config = load_config(project / "tiny.yaml", ["template.method=shift.py:Shift", f"template.options={options}"])
    with pytest.raises(ConfigError, match=re.escape(words)):
        method_of(config)


def test_the_methods_of_drapes_take_no_options(project):
    config = load_config(project / "tiny.yaml", ["template.options={scale: 2}"])
    with pytest.raises(ConfigError, match="from_noise has no option 'scale'; it has none"):
        method_of(config)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shift.py:Shifted", "no class 'Shifted' in shift.py; did you mean 'Shift'?"),
        ("shifts.py:Shift", "no file shifts.py; did you mean 'shift.py'?"),
        ("nowhere.at.all:Shift", "module nowhere.at.all cannot be imported"),
        ("drapes_hep.config:Config", "'Config' is not a background method: it needs the method fit"),
    ],
)
def test_a_method_that_is_not_there_is_one_line(project, name, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        method_of(load_config(project / "tiny.yaml", [f"template.method={name}"]))
    assert "\n" not in str(caught.value)


def edited(project, tmp_path, old, new):
    assert old in SHIFT
    path = tmp_path / "mine.py"
    path.write_text(SHIFT.replace(old, textwrap.dedent(new)))
    return load_config(project / "tiny.yaml", [f"template.method={path}:Shift"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('title = "Shifted sidebands"', "pass", "needs the attribute title"),
        ('"sidebands"', '"sideband"', "source is 'sideband', which is none of noise, window, sidebands, simulation"),
        ('source = "sidebands"', "own_mass = True", "own_mass needs parents in the window"),
        ('source = "sidebands"', "columns = ['jets']", "columns is ['jets'], neither () nor ('jets',)"),
    ],
)
def test_a_method_that_says_what_cannot_be_is_refused(project, tmp_path, old, new, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        method_of(edited(project, tmp_path, old, new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("}, {}", "}", "fit() returned dict, not (model, {name: TrainingCurve})"),
        ("}, {}", "}, {'a': 1}", "fit() returned no TrainingCurve with a history as 'a'"),
        ('return [folder / "mean.json"]', "return None", "save() returned NoneType"),
        ('return [folder / "mean.json"]', "return []", "save() returned no file"),
        ('return [folder / "mean.json"]', "return [folder / 'other']", "other is not one of its files"),
        (RETURN, "return parents.x[plan.row]", "sample() returned ndarray, not a Template; plan.template(x) makes one"),
        (RETURN, "return plan.template(parents.x[plan.row][:, :2])", "sample() returned features of shape"),
        (RETURN, "return plan.template(parents.x[plan.row] * np.nan)", "sample() returned NaN or infinity as 'm_j1'"),
        (RETURN, "return plan.template(parents.x[plan.row], -np.ones(len(plan)))", "a weight that is negative"),
        (RETURN, "return plan.template(parents.x)", "sample() returned features of shape"),
        (
            RETURN,
            "import dataclasses; return dataclasses.replace(plan.template(parents.x[plan.row]), mjj=plan.mjj + 5000)",
            "a mass outside the region that is asked for",
        ),
        (
            RETURN,
            "return plan.take(np.arange(len(plan))[::-1]).template(parents.x[plan.row])",
            "events that are not those of the plan, in its order",
        ),
        (
            RETURN,
            "import dataclasses as d; return d.replace(plan.template(parents.x[plan.row]), parent_id=plan.root * 0)",
            "other parents than those of the plan",
        ),
        (
            RETURN,
            "import dataclasses as d; t = plan.template(parents.x[plan.row]);"
            " return d.replace(t, mjj=np.nextafter(t.mjj, 3500.0))",
            "sample() returned another mass than the plan's, the first in row 0; plan.template(x) keeps them",
        ),
        (
            RETURN,
            "import dataclasses as d; t = plan.template(parents.x[plan.row]); return d.replace(t, mjj=t.mjj[::-1])",
            "sample() returned another mass than the plan's",
        ),
        (
            RETURN,
            "import dataclasses as d; t = plan.template(parents.x[plan.row]); return d.replace(t, event_id=None)",
            "sample() returned event_id of shape (), not (n,)",
        ),
        (RETURN, "return plan.template([[1, 2], [3]])", "sample() returned features that are not an array (ValueError"),
        (
            RETURN,
            "return plan.template(np.full((len(plan), 5), 'a'))",
            "sample() returned features of type <U1, not numbers",
        ),
        (
            RETURN,
            "import dataclasses as d; return d.replace(plan.template(2 * parents.x[plan.row]), lost={'far': -1})",
            "sample() returned lost = {'far': -1}, not the number of events by reason",
        ),
        (
            'return [folder / "mean.json"]',
            "p = folder / 'method.json'; p.write_text('{}'); return [folder / 'mean.json', p]",
            "save() wrote method.json, the name of the card; take another",
        ),
        (
            'return [folder / "mean.json"]',
            "p = folder / '../x.json'; p.write_text('{}'); return [p]",
            "x.json is not one of its files",
        ),
        (RETURN, "return plan.template(parents.z)", "'EventTable' object has no attribute 'z'"),
        (RETURN, "raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_wrong_result_of_a_method_is_one_line(project, tmp_path, events, old, new, words):
    config = edited(project, tmp_path, old, new)
    with pytest.raises(DrapesError, match=re.escape(words)) as caught:
        made(method_of(config), config, events, tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("describe(self, model): return {}", "describe() returned no 'strength', a number above 0, which a partial"),
        ("describe(self, model): return {'strength': 1.0}", "describe() returned no 'steps', a whole number, which a"),
        ("describe(self, model): return {'strength': 1, 'steps': 2.5}", "describe() returned 2.5 as 'steps'"),
        ("describe(self, model): return {'strength': '1', 'steps': 2}", "describe() returned '1' as 'strength'"),
        ("describe(self, model): return {'x': float('nan')}", "describe() returned what JSON cannot hold as 'x'"),
        (
            "describe(self, model): return {'x': model}",
            "what JSON cannot hold as 'x' (TypeError: ndarray is not a JSON",
        ),
        ("describe(self, model): return {1: 2}", "describe() returned the key 1, which is not text"),
        ("describe(self, model): return None", "describe() returned NoneType, not a mapping"),
        ("describe(self, model): return model.nothing", "no attribute 'nothing'"),
        ("settings(self): return {'x': {1, 2}}", "settings() returned what JSON cannot hold as 'x'"),
        ("settings(self): return {'x': float('inf')}", "settings() returned what JSON cannot hold as 'x'"),
        ("kept(self, model): return 'mjj'", "kept() returned str, not a tuple of names"),
        ("kept(self, model): return ('m_jj',)", "kept() returned 'm_jj', which is none of pt, eta"),
        ("kept(self, model): return None", "kept() returned NoneType, not a tuple of names"),
        ("summary(self): return None", "summary() returned NoneType, not a sentence"),
        ("remarks(self, model): return 'one'", "remarks() returned str, not a tuple of sentences"),
        ("reach(self, region): return ('a', 'b')", "reach() returned ('a', 'b'), not an interval (low, high)"),
        ("reach(self, region): return (0.0, float('nan'))", "reach() returned (0.0, nan), not an interval (low, high)"),
        ("trainings(self): return {'a': 5}", "trainings() returned a value that is not a Training as 'a'"),
        ("trainings(self): return {'a': Training(epochs='many')}", "trainings() returned epochs of 'many' as 'a'"),
        ("trainings(self): return {'a': Training(5, title=1)}", "trainings() returned a name, title, caption or unit"),
        ("check_windows(self, windows): raise ValueError('none')", "ValueError: none"),
        ("together(self, device, models): return 0", "together() returned 0, not a whole number above 0"),
        ("fit_many(self, tasks): return [1]", "fit_many() returned list, not a list of 2 results"),
        ("fit_many(self, tasks): return [1, 2]", "fit_many() returned int, not (model, {name: TrainingCurve})"),
    ],
)
def test_a_wrong_result_of_an_optional_method_is_one_line(project, tmp_path, member, words):
    partial = f"partial = True\n\n    def {member}\n"
    config = edited(project, tmp_path, 'title = "Shifted', f'{partial}\n    title = "Shifted')
    source = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(
        source.replace("import json", "from drapes_hep.templates.methods import Training")
    )
    arguments = {
        "settings": (), "summary": (), "trainings": (), "reach": ((3300.0, 3700.0),), "check_windows": ([WINDOW],),
        "together": ("cpu", 2), "fit_many": ([None, None],)
    }  # fmt: skip
    name = member.partition("(")[0]
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        getattr(method_of(config), name)(*arguments.get(name, (np.zeros(3),)))
    assert "\n" not in str(caught.value)


CURVE = "TrainingCurve(history=({epochs},), best_epoch={best}, seconds={seconds})"


@pytest.mark.parametrize(
    ("epochs", "best", "seconds", "words"),
    [
        (
            "Epoch(1, float('nan'), 1.0, 0.1)",
            1,
            1.0,
            "train_loss nan in the history of 'a', which is not a finite number",
        ),
        ("(1, 2.0, 2.0, 0.1)", 1, 1.0, "a history of tuple as 'a', not of Epoch"),
        ("Epoch(1, 2.0, 2.0, 0.1)", 7, 1.0, "best_epoch 7 of 'a', which is not an epoch of its history"),
        ("Epoch(1, 2.0, 2.0, 0.1)", 1, "None", "seconds None of 'a', which is not a finite number"),
    ],
)
def test_a_training_curve_that_no_report_could_show_is_one_line(
    project, tmp_path, events, epochs, best, seconds, words
):
    config = edited(
        project, tmp_path, "}, {}", f"}}, {{'a': {CURVE.format(epochs=epochs, best=best, seconds=seconds)}}}"
    )
    source = (tmp_path / "mine.py").read_text()
    head = "from drapes_hep.diffusion.training import Epoch, TrainingCurve"
    (tmp_path / "mine.py").write_text(source.replace("import json", f"{head}\nimport json"))
    with pytest.raises(ConfigError, match=re.escape(f"fit() returned {words}")):
        made(method_of(config), config, events, tmp_path / "model")


def test_numbers_of_numpy_are_recorded_as_numbers(project, tmp_path):
    member = "def describe(self, model): return {'strength': np.float32(0.5), 'steps': np.int64(3), 'x': (1, 2)}"
    config = edited(project, tmp_path, 'title = "Shifted', f'partial = True\n    {member}\n    title = "Shifted')
    assert method_of(config).describe(None) == {"strength": 0.5, "steps": 3, "x": [1, 2]}


def test_a_method_that_reaches_further_returns_masses_of_its_own(project, tmp_path, events):
    shifted = "import dataclasses as d; t = plan.template(2 * parents.x[plan.row]); t = d.replace(t, mjj=t.mjj + 1)"
    inside = "ok = task.region(t.mjj); p = plan.take(ok)"
    returned = "return d.replace(p.template(t.x[ok]), mjj=t.mjj[ok])"
    config = edited(project, tmp_path, RETURN, f"{shifted}; {inside}; {returned}")
    with pytest.raises(ConfigError, match="another mass than the plan's"):
        made(method_of(config), config, events, tmp_path / "model")
    path = tmp_path / "wide.py"
    path.write_text((tmp_path / "mine.py").read_text().replace("    def sample(", REACH.removeprefix("\n")))
    config = load_config(project / "tiny.yaml", [f"template.method={path}:Shift"])
    assert len(made(method_of(config), config, events, tmp_path / "other").mjj) > 100


def made(method, config, events, folder):
    """Fit, save, load and sample, as a stage does."""
    part = np.where(
        np.arange(len(events)) % 3 == 0, CLOSURE, np.where(np.arange(len(events)) % 3 == 1, TRAIN, VALIDATION)
    )
    outside = WINDOW.in_sidebands(events.mjj)
    model, _ = fit_window_model(method, FitTask(events.take(outside), part[outside], ((3300.0, 3700.0),), 1))
    save_window_model(method, folder, model, [(3300.0, 3700.0)], {})
    assert has_model(folder)
    model = load_window_model(method, folder, WINDOW)
    pool = Pool(WINDOW, events, part)
    fit = fit_masses(config.mass, events.mjj, events.weight, np.linspace(2700, 6000, 34), WINDOW)
    planned = plan_region(method, config.mass, pool, (3300.0, 3700.0), 500, 1, fit)
    return sample_template(method, model, planned, SampleTask(1, WINDOW.in_signal_region), events)


def test_events_that_are_none_of_the_plan_are_refused(project, tmp_path, events):
    change = "import dataclasses as d; t = plan.template(2 * parents.x[plan.row]); "
    # next to those of the plan, so that they are in its order
    config = edited(project, tmp_path, RETURN, change + "return d.replace(t, event_id=t.event_id - 1)")
    with pytest.raises(ConfigError, match="events that are not those of the plan"):
        made(method_of(config), config, events, tmp_path / "model")


def test_events_that_a_method_leaves_out_are_taken_from_the_plan(project, tmp_path, events):
    config = edited(
        project,
        tmp_path,
        RETURN,
        "rows = np.arange(0, len(plan), 2); p = plan.take(rows); return p.template(2 * parents.x[p.row])",
    )
    found = made(method_of(config), config, events, tmp_path / "model")
    assert 150 < len(found.event_id) < 350
    assert found.lost == {"left_out": pytest.approx(len(found.event_id), abs=1)}


def test_a_method_that_gives_the_data_back_is_a_leak(project, tmp_path, events):
    edited(project, tmp_path, 'source = "sidebands"', 'source = "window"\n    own_mass = True')
    path = tmp_path / "mine.py"
    path.write_text(path.read_text().replace(RETURN, "return plan.template(parents.x[plan.row])"))
    config = load_config(project / "tiny.yaml", [f"template.method={path}:Shift"])
    with pytest.raises(LeakError, match="template events are events of the data"):
        made(method_of(config), config, events, tmp_path / "model")


@pytest.mark.parametrize("hidden", [(3300.0, 3700.0), (4200.0, 4600.0)])
def test_a_method_is_given_no_event_of_a_hidden_interval(project, events, hidden):
    method = method_of(load_config(project / "tiny.yaml", ["template.method=shift.py:Shift"]))
    chosen = events.take((events.mjj < 3300) | between(events, hidden))
    task = FitTask(chosen, np.arange(len(chosen)) % 3, ((3300.0, 3700.0), (4200.0, 4600.0)), 1)
    with pytest.raises(LeakError, match=f"events between {hidden[0]:g} and {hidden[1]:g} GeV"):
        fit_window_model(method, task)


@pytest.mark.parametrize(("part", "words"), [(TRAIN, " 0 to train a model"), (VALIDATION, " 0 to validate it")])
def test_a_method_is_given_events_to_train_and_to_validate(project, events, part, words):
    method = method_of(load_config(project / "tiny.yaml", ["template.method=shift.py:Shift"]))
    beside = events.take(WINDOW.in_sidebands(events.mjj))
    split = np.where(np.arange(len(beside)) % 3 == part, CLOSURE, np.arange(len(beside)) % 3)
    with pytest.raises(FitError, match=words):
        fit_window_model(method, FitTask(beside, split, ((3300.0, 3700.0),), 1))


def test_a_reference_by_name_says_where_it_starts(project):
    assert origin_of("from_window").source == "window"
    assert origin_of("shift.py:Shift", project).title == "Shifted sidebands"
    assert set(METHODS) >= {"from_noise", "file"}


def test_cathode_of_the_page_makes_a_template(project, run, tmp_path):
    pytest.importorskip("zuko")
    (tmp_path / "cathode.py").write_text(example("class Cathode"), encoding="utf-8")
    name = f"template.method={tmp_path / 'cathode.py'}:Cathode"
    template = searched(project, run, name, "template.options={epochs: 2, width: 8, transforms: 2}")
    assert template.metadata["title"] == "CATHODE"
    curves = read_json(run / "windows" / "3300-3700" / "training.json")["trainings"]
    assert len(curves["flow_0"]["train"]) == 2
    assert curves["flow_0"]["title"] == "Training of the flow, without fold 0"


def test_cathode_of_the_page_has_at_most_seventy_lines():
    assert len(example("class Cathode").splitlines()) <= 70


# ---- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", [(3300.0, 3700.0), (4200.0, 4600.0)], ids=["window", "pseudo"])
@pytest.mark.parametrize("name", ["from_window", "from_sidebands", "from_simulation"])
def test_parents_of_a_region_are_of_the_method_s_source(events, name, region):
    """EventTable: those of Drapes SB trained the model of the region, which saw neither the window nor the region."""
    pool = Pool(WINDOW, events, np.arange(len(events)) % 3, replace(events, event_id=events.event_id + 10**9))
    inside = between(events, region)
    trained = ~WINDOW.in_signal_region(events.mjj) & (pool.part != CLOSURE) & ~inside
    expected = {
        "from_window": events.event_id[inside],
        "from_sidebands": events.event_id[trained],
        "from_simulation": events.event_id[inside] + 10**9,
    }[name]
    np.testing.assert_array_equal(parents_in(origin_of(name), pool, region).event_id, expected)


@pytest.mark.parametrize("name", ["from_window", "from_sidebands", "from_simulation"])
def test_closure_events_parent_only_the_closure_of_the_window_s_own(events, name):
    part = np.arange(len(events)) % 3
    other = replace(events, event_id=events.event_id + 10**9)
    pool = Pool(WINDOW, events, part, other)
    closing = events.event_id[pool.closing]
    parents = plan_closure(origin_of(name), pool, 1).parents
    assert parents is not None
    expected = {
        "from_window": closing,
        "from_sidebands": events.event_id[pool.training],
        "from_simulation": other.event_id[WINDOW.in_sidebands(other.mjj)],
    }[name]
    np.testing.assert_array_equal(parents.event_id, expected)


def test_nobody_to_start_from_says_where_to_look(project, events):
    config = load_config(project / "tiny.yaml")
    nobody = events.take(~WINDOW.in_signal_region(events.mjj))
    pool = Pool(WINDOW, nobody, np.zeros(len(nobody), dtype=np.int64), nobody)
    for name, where in (("from_window", "the skim"), ("from_simulation", "template.source")):
        with pytest.raises(DrapesError, match=f"has no events to start from between 3300 and 3700 GeV; see {where}"):
            plan_region(origin_of(name), config.mass, pool, (3300.0, 3700.0), 10, 1, None)


@pytest.mark.parametrize("name", ["from_noise", "from_window", "from_sidebands", "from_simulation"])
def test_closure_templates_have_the_masses_of_closure_events(events, name):
    pool = Pool(WINDOW, events, np.arange(len(events)) % 3, events)
    planned = plan_closure(origin_of(name), pool, 1)
    if name == "from_simulation":  # its own
        assert WINDOW.in_sidebands(planned.starts.mjj).all()
    else:
        assert np.isin(planned.starts.mjj, events.mjj[pool.closing]).all()
