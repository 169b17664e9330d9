"""Studies: what stands for data, what decides a trial, what is shared, and that each study draws its figure."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from test_stages import cut_sample

from drapes_hep.config import load_config
from drapes_hep.cwola.scores import Scores, ranking
from drapes_hep.errors import ConfigError, DrapesError, FitError, LeakError, RunDirectoryError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.plots.studies import Band, Panel, study_panels
from drapes_hep.plots.style import Stamp
from drapes_hep.progress import Reporter
from drapes_hep.stages.skim import skim
from drapes_hep.studies import measures
from drapes_hep.studies.design import (
    Entry,
    bands,
    curve_lines,
    injected,
    of_template,
    repetitions,
    subjects,
    trial_of,
)
from drapes_hep.studies.measures import MEASURES, REJECTIONS
from drapes_hep.studies.runner import make_sample, run_trials
from drapes_hep.studies.sample import draw_data, load_sample, study_window
from drapes_hep.studies.study import find_studies, load_study, run_study
from drapes_hep.studies.trial_keys import trial_key
from drapes_hep.studies.trials import REFERENCES, SampleKeys, Trial, TrialContext, model_key
from drapes_hep.templates.parts import CLOSURE, split_sidebands
from drapes_hep.templates.window_models import load_window_model

pytestmark = pytest.mark.usefixtures("few_trees")

TINY = {
    "name": "tiny_study",
    "data": {"path": "events.root", "labels": True},
    "windows": {"width": 400, "step": 400, "first": 3300, "last": 3300},
    "template": {"oversample": 1.5, "steps": 6},
    "training": {"epochs": 2, "batch": 512, "width": 16, "depth": 2, "closure": 0.2},
    "cwola": {"ensemble": 1, "folds": 2},
    "hunt": {"background_efficiencies": [0.3, 0.1]},
    "study": {
        "seeds": 2,
        "data_share": 0.4,
        "templates": ["from_noise", "from_window", "from_sidebands", "from_simulation"],
        "source": "simulation.root",
        "injections": [200],
        "examples": [200],
        "strengths": [0.5],
        "oversamples": [1, 2],
        "sidebands": [500],
        "evaluations": [5],
    },
    "blind": False,
}
KEYS = SampleKeys("data", "simulation")
STUDIES = (
    *(
        "ablation",
        "classifiers",
        "displacement",
        "gensr",
        "injection",
        "mass-halves",
        "oversampling",
        "quality",
        "roc",
        "sculpting",
        "sic",
    ),
    *("sideband-width", "solver-steps", "strength-auc", "strength-sic"),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A configuration, data with signal, and another simulation."""
    folder = tmp_path_factory.mktemp("studies")
    write_feature_root(folder / "events.root", cut_sample(5000, 500))
    simulation = cut_sample(9000, 0)
    simulation = {name: values[simulation["label"] == 0][-4000:] for name, values in simulation.items()}
    simulation["mj1"] = simulation["mj1"] * 1.03
    del simulation["label"]
    write_feature_root(folder / "simulation.root", simulation)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def context_of(project, *changes, workers=1):
    config = load_config(project / "tiny.yaml", changes)
    return Context.of(
        config, open_run(project / "out", "study"), device="cpu", workers=workers, reporter=Reporter(quiet=True)
    )


@pytest.fixture(scope="module")
def context(project):
    found = context_of(project)
    make_sample(found)
    return found


@pytest.fixture(scope="module")
def sample(context):
    return load_sample(context.run, context.config)


def bench_of(context, sample, config):
    return TrialContext(sample, config, context.run.path / "models", KEYS)


# ---- what stands for data --------------------------------------------------------------------------------------------


def test_every_event_stands_for_one_thing(context, sample):
    draw = draw_data(sample, injected(context.config, 100))
    assert (draw.data.astype(int) + draw.background + draw.signal == 1).all()
    assert not sample.is_signal[draw.background].any()
    assert sample.is_signal[draw.signal].all()


def test_the_data_have_their_share_of_the_background(context, sample):
    draw = draw_data(sample, injected(context.config, 0))
    background = (~sample.is_signal).sum()
    assert draw.data.sum() == pytest.approx(0.4 * background, abs=5 * np.sqrt(0.24 * background))


def test_all_background_is_data_where_the_share_is_one(project, sample):
    draw = draw_data(sample, injected(context_of(project, "study.data_share=1").config, 0))
    assert not draw.background.any()


def test_the_signal_is_what_a_search_would_inject(project, sample, tmp_path):
    config = load_config(project / "tiny.yaml", ["signal.inject=100", "signal.seed=3"])
    skim(Context.of(config, open_run(tmp_path / "run"), device="cpu", reporter=Reporter(quiet=True)))
    searched = np.asarray(read_skim(tmp_path / "run" / "skim" / "events.parquet")["event_id"])
    mine = sample.events.event_id[draw_data(sample, config).data & sample.is_signal]
    ids = sample.events.event_id[sample.is_signal]
    assert sorted(mine) == sorted(ids[np.isin(ids, searched)])


def test_repetitions_draw_other_data_and_other_signal(context, sample):
    first, second = (draw_data(sample, one) for one in repetitions(injected(context.config, 100)))
    background = ~sample.is_signal
    assert (first.data[background] != second.data[background]).mean() == pytest.approx(2 * 0.4 * 0.6, abs=0.05)
    assert (first.data != second.data)[sample.is_signal].any()


def test_more_signal_than_there_is_says_what_to_lower(context, sample):
    with pytest.raises(ConfigError, match=r"5000 signal events are requested.*lower study\.injections"):
        draw_data(sample, injected(context.config, 5000))


def test_the_middle_window_of_the_scan_is_studied(project):
    config = load_config(project / "tiny.yaml", ["windows.first=3100", "windows.last=3900"])
    assert study_window(config).name == "3500-3900"


def test_events_without_labels_cannot_be_studied(project):
    with pytest.raises(ConfigError, match="a study needs labelled events"):
        make_sample(context_of(project, "data.labels=false"))


# ---- what decides a trial --------------------------------------------------------------------------------------------


def load_module(name):
    spec = importlib.util.spec_from_file_location(name, find_studies()[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trial(config, subject="from_window", kind="search", **flags):
    return trial_of(kind, config, subject, **flags)


def test_a_reference_is_one_trial_whatever_the_template(context):
    config = injected(context.config, 100)
    other = of_template(config, "from_window", strength=0.5, oversample=3)
    assert trial_key(trial(config, "idealised"), KEYS) == trial_key(Trial("search", other, "idealised"), KEYS)


@pytest.mark.parametrize(
    "change", ["template.steps=7", "training.epochs=3", "seed=9", "cwola.folds=3", "mass.range=[2700,5900]"]
)
def test_what_decides_a_trial_changes_its_key(project, change):
    keys = {trial_key(trial(context_of(project, *more).config), KEYS) for more in ((), (change,))}
    assert len(keys) == 2


@pytest.mark.parametrize("kind", ["search", "quality"])
def test_trials_with_trees_of_another_library_are_other_trials(context, kind, monkeypatch):
    one = trial(context.config, kind=kind)
    before = trial_key(one, KEYS)
    monkeypatch.setattr("drapes_hep.cwola.trees.lightgbm_problem", lambda: "no library")
    assert trial_key(one, KEYS) != before


def test_another_simulation_changes_only_what_starts_from_it(context):
    config = injected(context.config, 100)
    for method, change in (("from_simulation", True), ("from_window", False)):
        one = trial(config, method)
        assert (trial_key(one, KEYS) != trial_key(one, KEYS._replace(simulation="another"))) == change


def test_a_reference_knows_its_range(context):
    config = injected(context.config, 100)
    narrow = config.model_copy(update={"mass": config.mass.model_copy(update={"range": (2900.0, 4100.0)})})
    assert trial_key(trial(config, "cwola_hunting"), KEYS) != trial_key(trial(narrow, "cwola_hunting"), KEYS)


def test_templates_of_one_repetition_share_their_model(context):
    config = injected(context.config, 100)
    keys = {model_key(of_template(config, method), KEYS, False) for method in ("from_noise", "from_window")}
    assert len(keys) == 1


def test_the_model_that_saw_the_window_is_another(context):
    assert model_key(context.config, KEYS, False) != model_key(context.config, KEYS, True)


def test_supervision_does_not_depend_on_the_injection(context):
    keys = {trial_key(trial(injected(context.config, n), "supervised"), KEYS) for n in (100, 200)}
    assert len(keys) == 1


def test_only_unseen_events_may_judge_gensr(context):
    with pytest.raises(ValueError, match="never saw may judge"):
        trial(context.config, "from_noise", gensr=True)


def test_a_trial_makes_the_template_that_it_names(context):
    with pytest.raises(ValueError, match="whose configuration makes from_noise"):
        Trial("search", context.config, "from_window")


def test_without_a_rest_of_background_there_are_no_idealised_references(project):
    config = context_of(project, "study.data_share=1").config
    assert subjects(config, *REFERENCES) == [*config.study.templates, "cwola_hunting"]


# ---- what a trial measures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [*TINY["study"]["templates"], *REFERENCES])
def test_a_search_says_how_well_it_finds_the_signal(context, sample, subject):
    one = trial(injected(context.config, 200), subject)
    record = MEASURES["search"](bench_of(context, sample, one.config), one)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert 0 < record["auc"] < 1
    assert record["sic_100"] is None or record["sic_100"] >= 0
    assert len(record["curve"]) == len(REJECTIONS)
    assert record["curve"][0] == 1.0
    bench = bench_of(context, sample, one.config)
    inside, signal_events = bench.inside, sample.is_signal
    assert record["n_judged_background"] == (inside & ~signal_events).sum()
    assert record["n_judged_signal"] == (inside & signal_events).sum()
    if subject != "supervised":
        assert record["n_signal_in_window"] == (bench.draw.data & inside & signal_events).sum()


def test_labels_find_signal_better_than_chance(context, sample):
    one = trial(context.config, "supervised")
    record = MEASURES["search"](bench_of(context, sample, one.config), one)
    assert record["auc"] - 0.5 > 5 * record["auc_error"]


def test_true_background_as_template_is_of_the_data_s_size_or_all(context, sample):
    sizes = {}
    for name in ("idealised", "over_idealised"):
        one = trial(injected(context.config, 100), name)
        bench = bench_of(context, sample, one.config)
        sizes[name] = MEASURES["search"](bench, one)["n_template"]
        rest = int((bench.draw.background & bench.inside).sum())
    assert sizes["over_idealised"] == rest
    assert sizes["idealised"] == min(rest, len(bench.data()))


def test_gensr_is_judged_by_events_that_no_model_saw(context, sample):
    one = trial(injected(context.config, 200), "from_noise", gensr=True, unseen=True)
    bench = bench_of(context, sample, one.config)
    record = MEASURES["search"](bench, one)
    unseen = bench.inside & ~bench.draw.data
    assert record["n_judged_background"] == (unseen & ~sample.is_signal).sum()
    # oversampled as the template is: 1.5 rounded
    assert record["n_data"] == 2 * len(bench.data())


def test_a_model_that_saw_the_window_makes_no_template(context, sample):
    bench = bench_of(context, sample, injected(context.config, 100))
    bench.train(True)
    with pytest.raises(LeakError, match="saw the window"):
        load_window_model(bench.method, bench.model_folder(True), bench.window)


def test_a_template_s_model_is_no_gensr(context, sample):
    bench = bench_of(context, sample, injected(context.config, 100))
    bench.train(False)
    with pytest.raises(LeakError, match="did not see"):
        load_window_model(bench.method, bench.model_folder(False), bench.window, saw_window=True)


def test_masses_of_a_template_do_not_depend_on_where_the_data_lie_in_the_window(context, sample):
    """Studies: the masses come from a fit outside the window."""
    config = of_template(injected(context.config, 100), "from_noise")
    inside = bench_of(context, sample, config).inside
    mjj = np.where(inside, 3500 + 0.1 * (sample.events.mjj - 3500), sample.events.mjj)
    piled = dataclasses.replace(sample, events=dataclasses.replace(sample.events, mjj=mjj))
    one, other = (bench_of(context, some, config).template() for some in (sample, piled))
    np.testing.assert_array_equal(one.mjj, other.mjj)


def test_the_reference_of_cwola_hunting_is_the_data_next_to_the_window(context, sample):
    """CWoLa hunting: half a width on either side, and no event of the window."""
    one = trial(injected(context.config, 200), "cwola_hunting")
    bench = bench_of(context, sample, one.config)
    mjj = sample.events.mjj
    beside = ((mjj >= 3100) & (mjj < 3300)) | ((mjj >= 3700) & (mjj < 3900))
    assert MEASURES["search"](bench, one)["n_template"] == int((bench.draw.data & beside).sum())


@pytest.mark.parametrize("subject", ["from_noise", "idealised"])
def test_sculpting_is_judged_by_events_that_trained_no_template(context, sample, subject):
    """Sculpting: of the sidebands, a template is judged by the closure part; a reference, which saw none, by all."""
    one = trial(injected(context.config, 0), subject, "sculpting")
    bench = bench_of(context, sample, one.config)
    judging = bench.draw.data & ~sample.is_signal & bench.outside
    if subject == "from_noise":
        judging &= split_sidebands(sample.events.event_id, one.config.seed, one.config.training) == CLOSURE
    assert MEASURES["sculpting"](bench, one)["sidebands_events"] == int(judging.sum())


def test_closure_events_parent_no_template_of_a_study(context, sample):
    """Studies: Drapes SB starts from sideband data that close nothing."""
    config = of_template(injected(context.config, 100), "from_sidebands", strength=0.5)
    bench = bench_of(context, sample, config)
    part = split_sidebands(sample.events.event_id, config.seed, config.training)
    allowed = sample.events.event_id[bench.draw.data & bench.outside & (part != CLOSURE)]
    parent = bench.template().parent_id
    assert np.isin(parent, allowed).all()
    # 1.5 events for each in the window, of parents that are many times as many
    assert len(np.unique(parent)) > 0.5 * len(parent)


def test_the_idealised_reference_is_background_that_is_no_data(context, sample, monkeypatch):
    """References: true background of the window, none of it among the data, and no signal."""
    for subject in ("idealised", "over_idealised"):
        one = trial(injected(context.config, 100), subject)
        bench = bench_of(context, sample, one.config)
        allowed = sample.events.event_id[bench.draw.background & bench.inside]
        classes = []
        monkeypatch.setattr(measures, "out_of_fold_scores", lambda _, *given, _c=classes, **__: _c.extend(given))
        with pytest.raises(TypeError):
            MEASURES["search"](bench, one)
        assert set(classes[1].group) <= set(allowed)
        assert set(classes[0].group) == set(bench.data().event_id)


def test_gensr_oversamples_by_the_model_that_saw_the_window(context, sample, tmp_path):
    """GenSR: the data's own model makes its events, not the template's."""
    bench = TrialContext(sample, injected(context.config, 100), tmp_path, KEYS)
    bench.oversampled()
    assert (bench.model_folder(True).exists(), bench.model_folder(False).exists()) == (True, False)


def test_the_displacement_grows_with_the_noise(context, sample):
    shift = []
    for strength in (0.05, 2.24):
        one = Trial(
            "displacement", of_template(injected(context.config, 0), "from_window", strength=strength), "from_window"
        )
        shift.append(MEASURES["displacement"](bench_of(context, sample, one.config), one)["distance_background"])
    assert shift[0] < shift[1]


def test_a_cut_passes_what_its_name_says_of_a_perfect_template(context, sample):
    one = trial(injected(context.config, 0), "over_idealised", "sculpting")
    record = MEASURES["sculpting"](bench_of(context, sample, one.config), one)
    passing, total = record["cuts"]["0.3"]["window_passing"], record["window_events"]
    assert passing / total == pytest.approx(0.3, abs=5 * np.sqrt(2 * 0.21 / total))


def test_the_spectrum_of_a_cut_holds_all_that_passes(context, sample):
    one = trial(injected(context.config, 0), "from_noise", "sculpting")
    record = MEASURES["sculpting"](bench_of(context, sample, one.config), one)
    for found in record["cuts"].values():
        for region in ("window", "sidebands"):
            assert sum(found["bins"][region]) == found[f"{region}_passing"]


def test_features_that_contain_the_mass_tell_its_halves_apart(context, sample):
    halves = trial(injected(context.config, 0), "over_idealised", "mass_halves")
    mjj = sample.events.mjj
    blind = np.random.default_rng(1).normal(size=sample.events.x.shape)
    x = blind.copy()
    x[:, halves.config.features.index("m_j1")] = mjj
    records = [
        MEASURES["mass_halves"](
            bench_of(
                context, dataclasses.replace(sample, events=dataclasses.replace(sample.events, x=values)), halves.config
            ),
            halves,
        )
        for values in (blind, x)
    ]
    assert abs(records[0]["auc_classifier"] - 0.5) < 4 * records[0]["auc_classifier_error"]
    assert records[1]["auc_classifier"] > 0.95
    assert abs(records[0]["auc_score"] - 0.5) < 4 * records[0]["auc_score_error"]


def test_scores_that_rise_with_the_mass_tell_its_halves_apart(context, sample, monkeypatch):
    halves = trial(injected(context.config, 0), "over_idealised", "mass_halves")
    bench = bench_of(context, sample, halves.config)
    mjj = sample.events.mjj[bench.draw.data & bench.inside & ~sample.is_signal]
    monkeypatch.setattr(measures, "_scored", lambda *_: {"background": Scores(mjj, -mjj)})

    assert MEASURES["mass_halves"](bench, halves)["auc_score"] == pytest.approx(1.0)


def test_quality_says_what_the_template_costs(context, sample):
    one = Trial("quality", of_template(injected(context.config, 0), "from_noise", oversample=1), "from_noise")
    record = MEASURES["quality"](bench_of(context, sample, one.config), one)
    assert record["evaluations"] == 12
    assert record["strength"] == 80.0


# ---- the order of scores ---------------------------------------------------------------------------------------------


def test_scores_decide_only_between_equal_tails():
    scores = Scores(np.array([5.0, 9.0, 1.0, 2.0]), np.array([0.0, 0.0, 0.1, 0.2]))
    assert np.argsort(-ranking(scores)).tolist() == [1, 0, 2, 3]


def test_no_score_outranks_a_smaller_tail():
    rng = np.random.default_rng(1)
    scores = Scores(rng.normal(0, 100, 500), rng.integers(0, 20, 500) / 20)
    order = np.argsort(-ranking(scores), kind="stable")
    assert (np.diff(scores.tail[order]) >= 0).all()


# ---- running ---------------------------------------------------------------------------------------------------------


def test_a_second_run_makes_nothing_again(context):
    trials = [trial(injected(context.config, 100), subject) for subject in ("from_noise", "idealised")]
    first = run_trials(trials, context)
    kept = {path: path.stat().st_mtime_ns for path in (context.run.path / "trials").iterdir()}
    assert run_trials(trials, context) == first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_edited_classifier_is_trained_again(project, context, monkeypatch, tmp_path):
    module = tmp_path / "mine_for_studies.py"
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for sign in ("", "-"):
        module.write_text(
            "import numpy as np\nclass Mean:\n    def __init__(self, seed): pass\n"
            "    def fit(self, x, y, weight, group): pass\n"
            f"    def score(self, x): return {sign}x[:, 0]\n"
        )
        monkeypatch.delitem(sys.modules, "mine_for_studies", raising=False)
        config = context_of(project, "cwola.classifier=mine_for_studies:Mean").config
        keys.append(trial_key(trial(config, "idealised"), KEYS))
    assert keys[0] != keys[1]


def test_a_search_and_a_study_do_not_share_a_folder(project, context, tmp_path):
    with pytest.raises(RunDirectoryError, match="holds a study, not a search"):
        open_run(context.run.path)
    skim(Context.of(context.config, open_run(tmp_path / "run"), device="cpu", reporter=Reporter(quiet=True)))
    with pytest.raises(RunDirectoryError, match="holds a search, not a study"):
        open_run(tmp_path / "run", "study")


def test_code_that_changes_on_the_way_stops_the_study(context, monkeypatch):
    from drapes_hep.studies import runner as running

    codes = iter(["now", "then", "then"])
    monkeypatch.setattr(running, "code_hash", lambda *_: next(codes))
    with pytest.raises(DrapesError, match="code changed while the study ran"):
        run_trials([trial(injected(context.config, 60), "idealised")], context)


def test_too_little_background_for_an_idealised_reference_is_said(context, project, sample):
    many = context_of(project, "study.data_share=0.7")
    one = trial(injected(many.config, 100), "idealised")
    with pytest.raises(FitError, match=r"background events are left for .* data; lower study.data_share"):
        MEASURES["search"](bench_of(many, sample, one.config), one)


def test_too_much_signal_is_said_before_anything_is_trained(context):
    before = set(context.run.path.glob("models/*"))
    with pytest.raises(ConfigError, match=r"100000 signal events are requested, the sample has 500; lower study"):
        run_trials([trial(injected(context.config, n), "from_noise") for n in (60, 100_000)], context)
    assert set(context.run.path.glob("models/*")) == before


BROKEN = """from drapes_hep.studies.design import Study, Entry, bands, numbers, trial_of
STUDY: Study = Study("Broken", {entries}, {lines}, {panels})
"""


@pytest.mark.parametrize(
    ("parts", "said", "table"),
    [
        ({"entries": "lambda c: 1 / 0"}, "ZeroDivisionError: division by zero", False),
        ({"lines": "lambda e, r: r['ensembles']"}, "KeyError: 'ensembles'", False),
        ({"panels": "lambda r, c: bands(r, 'x', 'auc')"}, "no column 'x' in the table", True),
    ],
)
def test_an_error_in_one_s_own_study_is_one_line(project, context, monkeypatch, parts, said, table):
    whole = {
        "entries": "lambda c: [Entry(trial_of('search', c, 'idealised'), {'template': 'a', 'seed': 1})]",
        "lines": "numbers",
        "panels": "lambda r, c: []",
    }
    name = f"broken{len(said)}"
    (project / "analysis").mkdir(exist_ok=True)
    (project / "analysis" / f"{name}.py").write_text(BROKEN.format(**(whole | parts)))
    monkeypatch.chdir(project)
    one = dataclasses.replace(context, config=injected(context.config, 200))
    with pytest.raises(ConfigError, match=rf"study '{name}': .*{re.escape(said)}.*{name}\.py, line 2"):
        run_study(name, load_study(name, find_studies()), one)
    assert (context.run.path / name / f"{name}.csv").exists() == table


def test_a_broken_study_does_not_hide_the_others(drapes, tmp_path, monkeypatch):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "broken.py").write_text("import nothing_of_this_name\nSTUDY = None\n")
    monkeypatch.chdir(tmp_path)
    status, out, _ = drapes("study", "--list")
    assert status == 0
    assert "ModuleNotFoundError" in out
    assert "injection" in out


def test_a_damaged_record_is_made_again(context):
    trials = [trial(injected(context.config, 100), "idealised")]
    (record,) = run_trials(trials, context)
    (path,) = (p for p in (context.run.path / "trials").iterdir() if read_json(p) == record)
    path.write_text('{"auc": 0.')
    assert run_trials(trials, context) == [record]


def test_the_bar_counts_models_and_trials(project):
    other = context_of(project, "seed=77")
    seen = []
    run_trials([trial(injected(other.config, 100), "from_noise")], other, progress=lambda *now: seen.append(now))
    assert seen == [(1, 2), (2, 2)]


LESS = ("study.seeds=1", "study.injections=[100]", "study.templates=[from_noise]", "cwola.options={iterations: 8}")
KILLED = f"""
import sys
from drapes_hep import cli
sys.argv = ["drapes", "study", "injection", "tiny.yaml", "-o", "killed", "--quiet", "--workers", "2"]
sys.argv += [word for one in {LESS} for word in ("--set", one)]
cli.main()
"""


def test_a_killed_study_goes_on_with_what_is_done(project, drapes, monkeypatch):
    place = project / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=project)
    end = time.monotonic() + 240
    while time.monotonic() < end and not list(place.glob("trials/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.0)  # the workers end with their parent
    done = {path: path.stat().st_mtime_ns for path in place.glob("trials/*.json")}
    assert done
    assert not (place / "injection").exists()
    # in this process, which has imported what it needs
    monkeypatch.chdir(project)
    less = [word for one in LESS for word in ("--set", one)]
    assert drapes("study", "injection", "tiny.yaml", "-o", "killed", "--quiet", "--workers", "1", *less)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    with (place / "injection" / "injection.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    # at this share there is too little true background for over-idealised
    assert [row["template"] for row in rows] == ["Drapes 0", "Supervised", "CWoLa hunting"]


def test_a_study_says_once_which_trees_take_the_place_of_lightgbms(project, capsys, monkeypatch):
    monkeypatch.setattr("drapes_hep.cwola.trees.lightgbm_problem", lambda: "no library")
    monkeypatch.setattr("drapes_hep.studies.design.make_sample", lambda _: 1 / 0)
    loud = dataclasses.replace(context_of(project), reporter=Reporter())
    with pytest.raises(ZeroDivisionError):
        run_study("quality", load_study("quality", find_studies()), loud)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "LightGBM" in line]
    assert line.startswith("LightGBM cannot be loaded (no library): scikit-learn's trees run in its place")


def test_a_table_that_another_configuration_made_is_not_replaced_silently(project, capsys):
    found = load_study("quality", find_studies())
    said = []
    for share in ("0.5", "0.5", "0.6"):
        context = context_of(project, "study.seeds=1", "study.templates=[from_noise]", f"study.data_share={share}")
        loud = dataclasses.replace(context, reporter=Reporter(), run=open_run(project / "replaced", "study"))
        run_study("quality", found, loud)
        said.append("replaced, as the configuration has changed" in capsys.readouterr().err)
    assert said == [False, False, True]


# ---- each study ------------------------------------------------------------------------------------------------------


def test_the_studies_of_the_analysis_are_these():
    # those of constituents are run in test_constituent_runs, the others in modules of their own
    elsewhere = {"mass-fit", "calibration", "seeds", "limits-by-mass", "efficiency-map"}
    others = {name for name in find_studies() if name.startswith("llv-")} | elsewhere
    assert tuple(name for name in find_studies() if name not in others) == STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_writes_its_table_and_figure(project, name):
    one = context_of(project, "study.seeds=1")
    written = run_study(name, load_study(name, find_studies()), one)
    assert [path.suffix for path in written] == [".csv", ".png", ".pdf", ".json"]
    with written[0].open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows
    assert "seed" in rows[0]
    assert written[1].stat().st_size > 10_000
    assert read_json(written[3])["config"]["name"] == "tiny_study"


def test_a_point_that_most_seeds_lack_is_left_out():
    rows = [{"t": "a", "x": 1.0, "y": y} for y in (1.0, None, None)] + [
        {"t": "a", "x": 2.0, "y": y} for y in (1.0, 2.0, None)
    ]
    (line,) = bands(rows, "x", "y", by="t")
    assert np.isnan(line.median[0])
    assert line.median[1] == 1.5


def test_a_band_is_the_central_68_per_cent_of_the_seeds():
    rows = [{"t": "a", "x": 1.0, "y": float(y)} for y in range(101)]
    (line,) = bands(rows, "x", "y", by="t")
    assert (line.low[0], line.median[0], line.high[0]) == pytest.approx((15.87, 50, 84.13), abs=0.01)


def test_the_band_of_few_seeds_is_their_range():
    rows = [{"t": "a", "x": 1.0, "y": y, "seed": seed} for seed, y in enumerate((1.0, 2.0, 5.0))]
    (line,) = bands(rows, "x", "y", by="t")
    assert (line.low[0], line.median[0], line.high[0], line.seeds) == (1.0, 2.0, 5.0, 3)


def test_a_curve_ends_where_ten_background_events_pass():
    record = {"n_signal_in_window": 1, "n_background_in_window": 1, "auc": 0.6, "n_judged_background": 1000}
    lines = curve_lines(Entry(None, {}), record | {"curve": [0.5] * len(REJECTIONS)})
    assert max(line["background_rejection"] for line in lines) <= 100 < REJECTIONS[len(lines)]


def test_merged_bins_hold_enough_and_never_mix_window_and_sidebands():
    merged = load_module("sculpting")._merged
    rows = [
        {"template": "a", "seed": 1, "mjj": m, "events": 100, "passing": passing, "background_efficiency": 0.1}
        | {"region": "window" if 3300 < m < 3700 else "sidebands"}
        for m, passing in zip(range(3025, 4300, 50), [10] * 6 + [20] * 8 + [10] * 12, strict=False)
    ]
    lines = merged(rows, least=250.0)
    assert {line["fraction_over_cut"] for line in lines} == {1.0, 2.0}
    assert [line["fraction_over_cut"] for line in lines if 3300 < line["mjj"] < 3700] == [2.0, 2.0]


def test_a_figure_has_a_panel_a_quantity():
    x = np.array([1.0, 10.0, 100.0])
    band = Band("Drapes 0", x, x, 0.9 * x, 1.1 * x)
    panels = [Panel("x", "y", [band], "a", log_x=True), Panel("x", "y", [band], "b", level=1.0, meaning="one")]
    figure = study_panels(panels, Stamp())
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["a", "b"]


def test_a_study_of_one_s_own_is_found_first(project, monkeypatch):
    folder = project / "analysis"
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(
        "from drapes_hep.studies.design import Study\n"
        "STUDY = Study('Mine', lambda c: [], lambda e, r: [], lambda r, c: [])\n"
    )
    monkeypatch.chdir(project)
    assert load_study("mine", find_studies()).title == "Mine"


def test_an_edit_within_a_second_is_seen_and_leaves_no_bytecode(tmp_path):
    path = tmp_path / "mine.py"
    for title in ("One", "Two"):
        path.write_text(
            "from drapes_hep.studies.design import Study\n"
            f"STUDY = Study('{title}', lambda c: [], lambda e, r: [], lambda r, c: [])\n"
        )
        assert load_study("mine", {"mine": path}).title == title
    assert list(tmp_path.iterdir()) == [path]


# ---- the command line ------------------------------------------------------------------------------------------------


def test_options_go_to_the_classifier_that_is_configured(project):
    config = context_of(project, "cwola.options={iterations: 5}").config
    entries = load_study("classifiers", find_studies()).entries(config)
    found = {one.trial.config.cwola.classifier: one.trial.config.cwola.options for one in entries}
    assert found == {"trees": {"iterations": 5}, "mlp": {}}


def test_the_list_names_every_study(drapes):
    status, out, _ = drapes("study", "--list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(find_studies())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("study",), "name a study and a configuration"),
        (("study", "injektion", "tiny.yaml"), "did you mean 'injection'?"),
        (("study", "sic", "tiny.yaml", "--set", "study.seeds=0"), "'study.seeds'"),
        (("study", "sic", "tiny.yaml", "--set", "study.window=[3700,3300]"), "study.window must be increasing"),
        (("study", "sic", "tiny.yaml", "--set", "study.source=null"), "needs study.source"),
        (("study", "gensr", "tiny.yaml", "--set", "study.data_share=1"), "leaves nothing to measure"),
        (("study", "sic", "tiny.yaml", "--set", "data.labels=false"), "a study needs labelled events"),
        (("study", "sic", "tiny.yaml", "--set", "study.source=events.root"), "is the data itself"),
    ],
)
def test_a_mistake_is_one_line(drapes, project, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(project)
    output = () if words == ("study",) else ("-o", str(tmp_path / "out"), "--quiet")
    status, _, err = drapes(*words, *output)
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_an_entry_s_labels_come_first(context):
    one = Entry(trial(injected(context.config, 100), "idealised"), {"template": "Idealised", "seed": 1})
    from drapes_hep.studies.design import numbers

    (row,) = numbers(one, {"auc": 0.6, "curve": [1.0]})
    assert list(row) == ["template", "seed", "auc"]
    assert dataclasses.is_dataclass(one)
