"""Searches and studies with templates of constituents, from files to results, on jets that add up."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace

import awkward as ak
import h5py
import numpy as np
import pytest
import yaml
from conftest import ROOT, unrender
from test_constituent_models import shower
from test_stages import stamps

from drapes_hep.config import load_config
from drapes_hep.cwola.set_classifiers import ConstituentTransformer, DijetTransformer
from drapes_hep.errors import ConfigError, RunDirectoryError
from drapes_hep.events.chunks import Reading
from drapes_hep.events.features import compute_features, invariant_mass
from drapes_hep.events.processing import run
from drapes_hep.events.skims import read_skim, write_skim
from drapes_hep.files import read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.plots.jets import jet_shapes
from drapes_hep.plots.studies import Band, Panel, study_panels
from drapes_hep.plots.style import Stamp
from drapes_hep.plugins import load_processor
from drapes_hep.report import extract as page_values
from drapes_hep.report.extract import closure_jets
from drapes_hep.report.run_files import load_run
from drapes_hep.stages.classify import classify
from drapes_hep.stages.generate import generate
from drapes_hep.stages.skim import skim
from drapes_hep.stages.train import train
from drapes_hep.studies.llv import llv_searches
from drapes_hep.templates.comparison import compare_jets
from drapes_hep.templates.constituents.method import LOSSES
from drapes_hep.templates.constituents.packing import pack_jets
from drapes_hep.templates.parts import CLOSURE

NAME = "3300-3700"
CONFIGS = ("llv_small", "llv_paper", "full_phase_space_small", "full_phase_space_paper")
STUDIES = ("llv-jets", "llv-jets-sidebands", "llv-quality", "llv-roc", "llv-strength", "llv-injection")
SEARCH = {
    "name": "tiny",
    "data": {"path": "events.h5", "labels": True},
    "processor": "processors/constituents.py:Constituents",
    "selection": {"leading_pt": 1200, "max_constituents": 20},
    "mass": {"range": [2700, 6000]},
    "windows": {"width": 400, "step": 400, "first": 3300, "last": 3300},
    "template": {"method": "from_noise", "oversample": 1.5, "steps": 6},
    "training": {
        "scheme": "hold_out",
        "epochs": 1,
        "batch": 512,
        "width": 8,
        "depth": 1,
        "closure": 0.15,
        "pseudo_window": "none",
    },
    "constituents": {"width": 8, "depth": 1, "heads": 2, "epochs": 1, "batch": 256, "steps": 4},
    "cwola": {"ensemble": 1, "folds": 2},
    "hunt": {"background_efficiencies": [1, 0.1], "toys": 20},
    "study": {
        # wide: enough background to quote a rejection of 1000
        "window": [3000, 4000],
        "seeds": 1,
        "data_share": 0.45,
        "templates": ["from_noise", "from_window"],
        "strength": 2.24,
        "injections": [100],
        "examples": [150],
        "strengths": [0.6],
    },
    "blind": False,
    "seed": 3,
}
METHODS = {
    "from_noise": (),
    "from_window": ("template.strength=2.24",),
    "from_sidebands": ("template.strength=2.24", "constituents.kinematics_strength=5"),
    "from_simulation": ("template.strength=2.24", "template.source={source}"),
}

pytestmark = pytest.mark.usefixtures("few_trees", "tiny_classifiers")


@pytest.fixture(scope="module")
def tiny_classifiers():
    """Classifiers on constituents of a few steps: their strength is tested elsewhere."""
    small = {"epochs": 1, "steps": 4, "width": 8, "depth": 1, "heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        for kind in (ConstituentTransformer, DijetTransformer):
            for name, value in small.items():
                patch.setitem(kind.__init__.__kwdefaults__, name, value)
        yield


def write_simulated(path, jets, label=None):
    """Write jets in the project's own layout; the jets are sums of their constituents."""
    inner = jets.constituents
    offsets = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.flatten(ak.num(inner, axis=2))))])
    dphi = ak.to_numpy(ak.flatten(inner.phi - jets.phi, axis=None))
    with h5py.File(path, "w") as file:
        file["jets"] = np.stack([ak.to_numpy(jets[name]) for name in ("pt", "eta", "phi", "mass")], axis=2)
        file["tau"] = np.stack([ak.to_numpy(jets[f"tau{i}"]) for i in (1, 2, 3)], axis=2)
        file["const_offset"] = offsets
        file["const_pt"] = ak.to_numpy(ak.flatten(inner.pt, axis=None))
        file["const_deta"] = ak.to_numpy(ak.flatten(inner.eta - jets.eta, axis=None))
        file["const_dphi"] = np.remainder(dphi + np.pi, 2 * np.pi) - np.pi
        if label is not None:
            file["label"] = label


def write_sample(path, background=3600, signal=250):
    # the signal: of one mass, and its jets have two prongs
    pt = np.random.default_rng(2).normal(1700, 60, signal)
    jets = np.concatenate([shower(background, 1), shower(signal, 2, prongs=0.5, pt=pt)])
    label = np.repeat([0, 1], [background, signal])
    order = np.random.default_rng(3).permutation(len(label))
    write_simulated(path, jets[order], label[order])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("constituent_runs")
    write_sample(folder / "events.h5")
    write_simulated(folder / "simulation.h5", shower(1500, 9, most=18))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    return folder


def changes(project, method, *more):
    return [f"template.method={method}", *(c.format(source=project / "simulation.h5") for c in METHODS[method]), *more]


def context_of(project, out, *assignments, workers=1, overwrite=False):
    run = open_run(out, overwrite=overwrite)
    return Context.of(load_config(project / "tiny.yaml", assignments), run, device="cpu", workers=workers)


def words(project, out, assignments, *more):
    given = [word for one in assignments for word in ("--set", one)]
    return ("run", project / "tiny.yaml", "-o", out, "--workers", 1, "--quiet", *given, *more)


@pytest.fixture(scope="module")
def trained(project):
    """A run that is trained; from noise."""
    context = context_of(project, project / "trained")
    skim(context)
    train(context, context.windows[0])
    return project / "trained"


@pytest.fixture
def started(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def searched(drapes, project, trained, cache):
    """Return the finished search of a method, which tests only read; run once, on the command line.

    The figures of one are rendered.
    """

    def finish(method):
        if method not in cache:
            out = shutil.copytree(trained, project / method)
            with pytest.MonkeyPatch.context() as patch:
                if method != "from_noise":
                    unrender(patch)
                cache[method] = (out, drapes(*words(project, out, changes(project, method))))
        return cache[method][0]

    return finish


def template_of(out):
    return read_skim(out / "windows" / NAME / "template.parquet")


def made_from(project, out, method, *more, **options):
    """Go on to the template."""
    context = context_of(project, out, *changes(project, method, *more), **options)
    train(context, context.windows[0])
    generate(context, context.windows[0])
    return template_of(out)


# ---- the sample ------------------------------------------------------------------------------------------------------


def test_the_skim_keeps_the_constituents_that_add_up(trained):
    events = read_skim(trained / "skim" / "events.parquet")
    pairs, sets = pack_jets(events["jets"])
    assert len(events) > 2000
    rows = pairs.reshape(-1, 5)
    values, index = sets.values.numpy(), sets.index.numpy()
    px = np.bincount(index, np.exp(values[:, 0]) * np.cos(values[:, 2]))
    np.testing.assert_allclose(px, 1, atol=1e-3)
    assert (np.abs(np.bincount(index, np.exp(values[:, 0]) * np.sin(values[:, 2]))) < 1e-3).all()
    assert (rows[:, 4] >= 3).all()


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_search_with_constituents_runs_from_files_to_results(searched, cache, method):
    out = searched(method)
    assert cache[method][1][0] == 0
    assert cache[method][1][2] == ""
    assert read_json(out / "results.json")["windows"][0]["sr"] == [3300, 3700]
    assert (out / "report").is_dir()


def test_the_page_shows_the_jets_and_both_trainings(searched):
    page = (searched("from_noise") / "report" / "index.html").read_text(encoding="utf-8")
    for name in ("jets", "training_constituents", "training_jets"):
        assert (searched("from_noise") / "report" / "figures" / f"{name}_{NAME}.png").stat().st_size > 10_000
    assert "Templates consist of constituents. The kinematics of both jets are generated by" in page
    assert "Closure of the jets" in page


def test_the_closure_of_the_jets_is_of_held_out_events(searched):
    out = searched("from_noise")
    run = load_run(out)
    found = closure_jets(run, run.windows[0])
    split = read_skim(out / "windows" / NAME / "split.parquet")
    held = int((split["part"] == CLOSURE).sum())
    template = len(read_skim(out / "windows" / NAME / "closure.parquet"))
    assert (found["shapes"]["pt"]["true_total"], found["shapes"]["pt"]["made_total"]) == (2 * held, 2 * template)
    assert found["events"] == min(held // 2, template)


def test_what_a_template_keeps_of_its_parents_is_no_closure(searched):
    """Drapes SR keeps the kinematics of the events that it starts from: here, of the held-out events themselves."""
    run = load_run(searched("from_window"))
    found = closure_jets(run, run.windows[0])
    assert found["quantities"].keys() == {"tau21", "tau32", "pt_fraction", "log_pt_fraction", "delta_eta", "delta_phi"}
    page = (searched("from_window") / "report" / "index.html").read_text(encoding="utf-8")
    assert "starts from the same events" in page
    assert "kinematics of both jets are those of the events" in page


def test_events_that_the_skim_lacks_are_not_left_out_silently(searched, tmp_path):
    out = shutil.copytree(searched("from_noise"), tmp_path / "run")
    path = out / "windows" / NAME / "split.parquet"
    split = read_skim(path)
    write_skim(path, {**split.columns, "event_id": split["event_id"] + 10**6}, split.metadata)
    run = load_run(out)
    with pytest.raises(RunDirectoryError, match="contains events that are not in the skim"):
        closure_jets(run, run.windows[0])


def test_quantities_without_any_spread_are_left_out():
    """All jets of two constituents, of no tau2: no unit of distance."""
    jets = shower(60, 1)
    jets["constituents"] = jets.constituents[:, :, :2]
    jets["tau2"] = 0 * jets.tau2
    found = compare_jets(jets, jets[:30], 1)
    assert not found["quantities"].keys() & {"n", "tau21", "tau32"}
    assert np.isfinite([one["ratio"] for one in found["quantities"].values()]).all()


def test_a_blinded_page_compares_no_jets_of_any_window(project, searched, monkeypatch):
    """The sidebands of one window are another one's data."""
    run = replace(load_run(searched("from_noise")), blind=True)
    monkeypatch.setattr(type(run), "covered", lambda _, mjj: mjj > 3000)
    seen = {}
    monkeypatch.setattr(page_values, "compare_jets", lambda true, made, **_: seen.update(true=true, made=made))
    closure_jets(run, run.windows[0])
    assert len(seen["true"]) > 0
    assert float(invariant_mass(seen["true"]).max()) < 3001
    assert float(invariant_mass(seen["made"]).max()) < 3100


@pytest.mark.parametrize("method", METHODS)
def test_the_template_is_of_jets_of_the_window(project, searched, method):
    template = template_of(searched(method))
    mjj = np.asarray(template["mjj"])
    assert len(mjj) > 20
    assert ((mjj >= 3300) & (mjj < 3700)).all()
    np.testing.assert_allclose(mjj, invariant_mass(template["jets"]), rtol=1e-5)
    expected = compute_features(load_config(project / "tiny.yaml").features, template["jets"])
    for name, values in expected.items():
        np.testing.assert_allclose(np.asarray(template[name]), values, rtol=1e-4, atol=1e-4, err_msg=name)
    assert bool(ak.all(ak.num(template["jets"].constituents, axis=2) >= 1))


@pytest.mark.parametrize("method", METHODS)
def test_every_generated_event_is_kept_or_counted(searched, method):
    folder = searched(method) / "windows" / NAME
    for name in ("template", "closure"):
        table = read_skim(folder / f"{name}.parquet")
        assert set(table.metadata["lost"]) == set(LOSSES)
        assert table.metadata["generated"] == len(table) + sum(table.metadata["lost"].values())
    lost = read_skim(folder / "template.parquet").metadata["lost"]
    assert read_json(folder / "quality.json")["template"]["lost"] == lost


def test_a_second_run_makes_nothing_again(drapes, project, searched, unrendered):
    out = searched("from_window")
    before = stamps(out)
    assert drapes(*words(project, out, changes(project, "from_window")))[0] == 0
    assert stamps(out) == before


@pytest.mark.parametrize("classifier", ["constituents", "full_phase_space"])
def test_classifiers_of_constituents_score_every_event(project, searched, tmp_path, classifier):
    out = shutil.copytree(searched("from_window"), tmp_path / "run")
    given = changes(project, "from_window", f"cwola.classifier={classifier}")
    context = context_of(project, out, *given, overwrite=True)
    classify(context, context.windows[0])
    for name in ("scores", "template_scores"):
        table = read_skim(out / "windows" / NAME / f"{name}.parquet")
        score, tail = np.asarray(table["score"]), np.asarray(table["tail"])
        assert np.isfinite(score).all()
        assert ((tail >= 0) & (tail <= 1)).all()
        assert len(np.unique(score)) > 0.5 * len(score)


# ---- the template ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["from_noise", "from_window"])
def test_the_number_of_workers_changes_nothing(project, searched, started, method):
    one, other = template_of(searched(method)), made_from(project, started, method, workers=2)
    np.testing.assert_array_equal(np.asarray(one["event_id"]), np.asarray(other["event_id"]))
    for name in ("mjj", "m_j1", "delta_m"):
        np.testing.assert_allclose(np.asarray(one[name]), np.asarray(other[name]), rtol=1e-4, atol=1e-2)
    assert one.metadata["lost"] == other.metadata["lost"]


def test_parents_are_the_method_s(searched):
    out = searched("from_sidebands")
    events = read_skim(out / "skim" / "events.parquet")
    split = read_skim(out / "windows" / NAME / "split.parquet")
    closing = np.asarray(split["event_id"])[np.asarray(split["part"]) == CLOSURE]
    mjj = np.asarray(events["mjj"])
    beside = np.asarray(events["event_id"])[(mjj < 3300) | (mjj >= 3700)]
    parent = np.asarray(template_of(out)["parent_id"])
    assert np.isin(parent, beside).all()
    assert not np.isin(parent, closing).any()


def test_a_template_from_the_window_keeps_its_parents_kinematics(searched):
    out = searched("from_window")
    events, template = read_skim(out / "skim" / "events.parquet"), template_of(out)
    ids = np.asarray(events["event_id"])
    order = np.argsort(ids)
    rows = order[np.searchsorted(ids, np.asarray(template["parent_id"]), sorter=order)]
    parents, made = events["jets"][rows], template["jets"]
    np.testing.assert_allclose(ak.to_numpy(made.pt[:, 0]), ak.to_numpy(parents.pt[:, 0]), rtol=1e-4)
    assert ak.array_equal(ak.num(made.constituents, axis=2), ak.num(parents.constituents, axis=2))
    # noise of its own moved the constituents
    assert not ak.array_equal(made.constituents.pt, parents.constituents.pt)


def test_masses_after_the_data_s_kernels_are_those_of_the_window(project, started):
    template = made_from(project, started, "from_noise", "mass.draw=kde", "mass.kde_bandwidth=0.001")
    mjj = np.asarray(read_skim(started / "skim" / "events.parquet")["mjj"])
    inside = np.sort(mjj[(mjj >= 3300) & (mjj < 3700)])
    made = np.asarray(template["mjj"])
    place = np.clip(np.searchsorted(inside, made), 1, len(inside) - 1)
    distance = np.minimum(np.abs(made - inside[place - 1]), np.abs(made - inside[place]))
    # by chance a quarter would be so near; some jets' constituents miss the mass by more
    assert np.mean(distance < 0.1) > 0.35


def test_masses_drawn_from_the_fit_are_not_those_of_the_data(searched):
    out = searched("from_noise")
    template = template_of(out)
    assert template.metadata["mass_fit"] is not None
    mjj = np.asarray(read_skim(out / "skim" / "events.parquet")["mjj"])
    assert not np.isin(np.asarray(template["mjj"]), mjj).any()


# ---- in a processor --------------------------------------------------------------------------------------------------


def in_chunks(out, source, chunksize=10_000):
    processor = load_processor("processors/templates.py:Templates")({"run": str(out), "window": NAME})
    data = {"data": {"files": [str(source)]}}
    made, report = run(data, processor, reading=Reading(constituents=True), chunksize=chunksize)
    assert report.processed == report.requested
    return made["skim"].columns()


@pytest.mark.parametrize("method", ["from_window", "from_sidebands"])
@pytest.mark.parametrize("chunksize", [300, 10_000])
def test_the_processor_makes_the_run_s_template_event_by_event(project, searched, method, chunksize):
    out = searched(method)
    template, columns = template_of(out), in_chunks(out, project / "events.h5", chunksize)
    mine, order = np.argsort(columns["event_id"]), np.argsort(np.asarray(template["event_id"]))
    for name in ("event_id", "parent_id", "weight"):
        np.testing.assert_array_equal(np.asarray(columns[name])[mine], np.asarray(template[name])[order], err_msg=name)
    np.testing.assert_allclose(np.asarray(columns["mjj"])[mine], np.asarray(template["mjj"])[order], rtol=1e-4)
    one, other = columns["jets"].constituents[mine], template["jets"].constituents[order]
    # jets of equal momentum may stand in either order: rounding decides
    one, other = (ak.sort(ak.flatten(jets.pt, axis=2), axis=1) for jets in (one, other))
    assert ak.array_equal(ak.num(one), ak.num(other))
    np.testing.assert_allclose(ak.flatten(one), ak.flatten(other), rtol=1e-2, atol=1e-2)


def test_the_processor_makes_nothing_of_a_chunk_without_parents(searched, tmp_path):
    pt = np.random.default_rng(1).uniform(2300, 2500, 20)
    write_simulated(tmp_path / "heavy.h5", shower(20, 4, pt=pt))
    columns = in_chunks(searched("from_window"), tmp_path / "heavy.h5")
    assert len(columns["event_id"]) == 0


def test_the_processor_cannot_draw_after_the_window_s_kernels(project, searched, tmp_path):
    out = shutil.copytree(searched("from_sidebands"), tmp_path / "run")
    made_from(project, out, "from_sidebands", "mass.draw=kde", overwrite=True)
    with pytest.raises(ConfigError, match="which no chunk holds"):
        in_chunks(out, project / "events.h5")


# ---- bad inputs ------------------------------------------------------------------------------------------------------


class OnConstituents:
    """A classifier as a user may write one."""

    reads = "constituents"

    def __init__(self, seed):
        self.seed = seed

    def fit(self, x, y, weight, group):
        """Learn nothing."""

    def score(self, x):
        """Know nothing."""
        return np.zeros(len(x))


MISTAKES = {
    "dijets": (
        ["processor=processors/dijets.py:Dijets", "selection.max_constituents=null"],
        "does not keep constituents; set",
    ),
    "no section": (["constituents=null", "cwola.classifier=constituents"], "add 'constituents: {}'"),
    "no strength of the kinematics": (
        ["template.method=from_sidebands", "template.strength=1"], "needs constituents.kinematics_strength",
    ),
    "low noise": (["template.method=from_low_noise", "template.strength=1"], "generates features only"),
    "heads": (["constituents.heads=3"], "width 8 is not a multiple of the 3 heads"),
    "deepsets": (["constituents.kinematics_network=deepsets"], "needs kinematics: free"),
    "tokens": (["constituents.tokens=2", "constituents.network=epic"], "tokens are only for the transformer"),
    "token_width": (
        ["constituents.tokens=2", "constituents.token_width=7"],
        "token_width 7 is not a multiple of the 2",
    ),
    "heads of the jets' network": (
        ["constituents.kinematics_network=deepsets", "constituents.kinematics=free", "training.width=6"],
        "training.width 6 is not a multiple of the 4 heads",
    ),
    "m_JJ": (
        ["cwola.classifier=full_phase_space", "cwola.options={kinematics: true}"], "gives m_JJ to the classifier",
    ),
    "twice": (["constituents.condition=[pt,pt]"], "listed twice"),
    "condition": (["constituents.condition=[charge]"], "constituents.condition"),
    "key": (["constituents.epoch=3"], "did you mean"),
    "network": (
        ["constituents.network=transfomer"],
        "no network 'transfomer'; did you mean 'transformer'? Available: transformer, epic, deepsets",
    ),
    "no such network": (
        ["constituents.network=nowhere:Net"], "constituents.network 'nowhere:Net': module nowhere cannot be imported",
    ),
    "classifier of the user's": (
        ["constituents=null", f"cwola.classifier={__name__}:OnConstituents"], "add 'constituents: {}'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(drapes, project, tmp_path, name):
    assignments, expected = MISTAKES[name]
    status, _, said = drapes(*words(project, tmp_path / "run", assignments))
    assert status == 2
    assert expected in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("study.generators={A: [constituents.epch=3]}", "study.generators: A: unknown key 'constituents.epch'"),
        ("study.generators={A: ['constituents.network=nowhere:Net']}", "'nowhere:Net': module nowhere"),
        (f"study.generators={{A: ['cwola.classifier={__name__}:Missing']}}", "study.generators: A: cwola.classifier"),
        ("study.templates=[from_sidebands]", "from_sidebands needs constituents.kinematics_strength"),
        (f"cwola.classifier={__name__}:Missing", "no class 'Missing'"),
    ],
)
def test_what_would_stop_a_study_is_seen_before(drapes, project, assignment, expected):
    status, _, said = drapes("validate", project / "tiny.yaml", "--set", assignment)
    assert status == 2
    assert expected in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configurations_load(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert config.constituents is not None
    assert config.name == name
    assert config.processor.endswith("constituents.py:Constituents")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configurations_generators_are_configurations(name):
    from drapes_hep.studies.design import generators

    config = load_config(ROOT / "configs" / f"{name}.yaml")
    found = generators(config)
    assert len(found) == max(1, len(config.study.generators))
    assert all(one.constituents is not None for one in found.values())


# ---- studies ---------------------------------------------------------------------------------------------------------

GENERATORS = "study.generators={One: [], Two: [constituents.network=epic, constituents.kinematics=free]}"


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_writes_its_table_and_figure(drapes, project, name):
    # one folder: the studies share their sample, models and trials
    status, out, said = drapes(
        *("study", name, project / "tiny.yaml", "-o", project / "study", "--workers", 1, "--quiet"),
        *("--set", "cwola.classifier=constituents", "--set", "constituents.kinematics_strength=null"),
        # these are none of the trees', which search on features beside it
        *("--set", "cwola.options={most: 40}"),
        *(("--set", GENERATORS) if name in {"llv-jets-sidebands", "llv-quality"} else ()),
    )
    assert (status, said) == (0, "")
    written = [project / "study" / name / f"{name}.{suffix}" for suffix in ("csv", "png", "pdf", "json")]
    assert out.split() == [str(path) for path in written]
    with written[0].open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["seed"] for row in rows} == {"3"}
    assert written[1].stat().st_size > 10_000
    if name == "llv-jets-sidebands":
        assert {row["template"] for row in rows} == {"One", "Two"}
    if name.startswith("llv-jets"):
        assert {row["quantity"] for row in rows} >= {"pt", "mass", "n", "tau21", "pt_fraction"}
        assert all(float(row["w1_true"]) > 0 for row in rows)


@pytest.mark.parametrize(("classifier", "expected"), [("trees", "Idealised"), ("constituents", "Idealised LLV")])
def test_references_are_called_after_what_the_classifier_reads(classifier, expected):
    own = [f"cwola.classifier={classifier}", "cwola.options={}", "data.path=events.h5"]
    found = llv_searches(load_config(ROOT / "configs/llv_small.yaml", own), [600], "idealised")
    assert [one.labels["template"] for one in found] == ["Drapes 0 LLV", "Drapes SR LLV", expected, "Drapes 0"]


def test_references_without_room_are_named(drapes, project, tmp_path):
    status, _, said = drapes(
        *("study", "llv-roc", project / "tiny.yaml", "-o", project / "study", "--workers", 1),
        *("--set", "study.templates=[from_noise]", "--set", "study.trainings=6"),
    )
    assert status == 0
    assert "study.data_share 0.45 leaves no room for these references: Over-idealised (at most 0.334)" in said
    with (project / "study" / "llv-roc" / "llv-roc.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    # one template, of which six classifiers were trained
    areas = {row["training"]: row["auc"] for row in rows if row["template"] == "Drapes 0 LLV"}
    assert list(areas) == ["1", "2", "3", "4", "5", "6"]
    assert len(set(areas.values())) > 1


def test_counts_of_other_true_jets_are_not_drawn_together():
    jets = shower(80, 1)
    found = {str(i): compare_jets(jets[i:], jets[:40], 1) for i in (0, 20)}
    with pytest.raises(ValueError, match="different true jets"):
        jet_shapes(found)


def test_a_figure_without_any_number_is_still_drawn(tmp_path):
    """Too little background to quote a rejection at all: an axis without points, and no traceback."""
    nothing = np.array([np.nan])
    panel = Panel("x", "y", [Band("a", np.array([150.0]), nothing, nothing, nothing)], "t", log_x=True)
    study_panels([panel], Stamp()).savefig(tmp_path / "figure.png")


def test_a_study_of_jets_needs_jets(drapes, project, tmp_path):
    status, _, said = drapes(
        *("study", "llv-jets", project / "tiny.yaml", "-o", tmp_path / "study", "--workers", 1, "--quiet"),
        *("--set", "constituents=null"),
    )
    assert status == 2
    assert "needs the section constituents" in said
    assert len(said.strip().splitlines()) == 1
