"""Classes that a configuration names: from a file, from an installed package, and what is wrong with them."""

from __future__ import annotations

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
import sklearn
import yaml
from conftest import unrender
from scipy import integrate
from sklearn.ensemble import HistGradientBoostingRegressor
from test_stages import SEARCH, cut_sample

from drapes_hep import config as config_module
from drapes_hep.config import changed_config, load_config
from drapes_hep.cwola import classifiers
from drapes_hep.cwola.classifiers import find_classifier, load_classifier
from drapes_hep.errors import ConfigError
from drapes_hep.events.features import function_sources
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import read_stamp
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.plugins import load_processor, package_version, source_hashes
from drapes_hep.spectrum.drawing import draw
from drapes_hep.spectrum.fit import bin_model, expected, fit_spectrum
from drapes_hep.spectrum.shapes import SHAPES, find_shape, shape_sources
from drapes_hep.stages.classify import classify, classify_stage
from drapes_hep.stages.generate import generate, generate_stage
from drapes_hep.stages.hunt import hunt, hunt_stage
from drapes_hep.stages.report import report
from drapes_hep.stages.skim import skim, skim_stage
from drapes_hep.stages.train import train, train_stage
from drapes_hep.studies.trial_keys import trial_key
from drapes_hep.studies.trials import SampleKeys, Trial
from drapes_hep.templates.constituents import backbones
from drapes_hep.templates.constituents.backbones import check_backbone, find_backbone, make_backbone
from drapes_hep.templates.drapes_family import RECIPES
from drapes_hep.templates.registry import METHODS, find_method

CLASSIFIER = """
class Slope:
    def __init__(self, seed, scale=1.0): self.scale = scale
    def fit(self, x, y, weight, group): pass
    def score(self, x): return self.scale * x[:, 0]
"""
SHAPE = """
import numpy as np

class Exponential:
    title = "exponential"
    parameter_names = ("ln_p1", "slope")
    def basis(self, z): return np.stack([np.ones_like(z), z], axis=-1)
"""
NETWORK = """
from drapes_hep.networks.epic import EPiC

class Mine(EPiC):
    pass
"""
METHOD = "from drapes_hep.templates.drapes import Drapes\n\nclass Mine(Drapes):\n    title = 'Mine'\n"
PROCESSOR = "class Mine:\n    def process(self, events): return {}\n"
KINDS = {
    "processor": (PROCESSOR, "Mine"),
    "method": (METHOD, "Mine"),
    "classifier": (CLASSIFIER, "Slope"),
    "network": (NETWORK, "Mine"),
    "shape": (SHAPE, "Exponential"),
}
KEYS = {
    "processor": "processor",
    "method": "template.method",
    "classifier": "cwola.classifier",
    "network": "constituents.network",
    "shape": "mass.fit",
}


def configured(folder, **keys):
    lines = ["name: x", "data: {path: a.h5}"]
    sections = {}
    for key, value in keys.items():
        section, _, last = key.rpartition("__")
        sections.setdefault(section, []).append(f"{last}: {value}")
    lines += sections.pop("", [])
    lines += [f"{section}: {{{', '.join(entries)}}}" for section, entries in sections.items()]
    path = folder / "x.yaml"
    path.write_text("\n".join(lines) + "\n")
    return load_config(path)


def found(kind, name, folder):
    """Load an object of a kind by its name, as the stages do."""
    config = configured(folder, **{KEYS[kind].replace(".", "__"): name})
    if kind == "processor":
        return load_processor(config.processor, [folder])
    if kind == "method":
        return find_method(config)
    if kind == "classifier":
        return find_classifier(config.cwola.classifier, config.folder)
    if kind == "network":
        return find_backbone(config.constituents.network, config.constituents.folder)
    return type(find_shape(config.mass).basis.shape)


def refusal(call, *words):
    with pytest.raises(ConfigError) as caught:
        call(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package that offers one object of each kind, and return how to add entry points."""
    site = tmp_path / "site"
    site.mkdir()

    def install(name, points, source=""):
        (site / f"{name}.py").write_text(source)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[drapes_hep]\n" + "".join(f"{one}\n" for one in points))

    for kind, (source, attribute) in KINDS.items():
        install(f"offers_{kind}", [f"{kind}.mine = offers_{kind}:{attribute}"], source)
    monkeypatch.syspath_prepend(site)
    return install


@pytest.mark.parametrize("kind", KINDS)
def test_an_installed_package_offers_a_name(installed, tmp_path, kind):
    one = found(kind, "mine", tmp_path)
    assert (one.__module__, one.__name__) == (f"offers_{kind}", KINDS[kind][1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_a_file_beside_the_configuration(tmp_path, kind):
    source, attribute = KINDS[kind]
    (tmp_path / "mine.py").write_text(source)
    assert found(kind, f"mine.py:{attribute}", tmp_path).__name__ == attribute


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mime.py:Class", "no file mime.py; did you mean 'mine.py'?"),
        ("mine.py:Nothing", "no class 'Nothing' in mine.py; "),
        ("mine.py:number", "'number' is not a"),
        ("broken.py:Class", "does not run (line 1: "),
        ("nowhere.at.all:Class", "module nowhere.at.all cannot be imported (ModuleNotFoundError"),
        ("mine.py:not a name", "expected 'path/to/file.py:Class' or 'package.module:Class'"),
    ],
)
def test_one_set_of_messages(tmp_path, kind, name, words):
    (tmp_path / "mine.py").write_text(KINDS[kind][0] + "\nnumber = 3\n")
    (tmp_path / "broken.py").write_text("class (\n")
    said = refusal(found, kind, f"'{name}'", tmp_path)
    assert said.startswith(f"{KEYS[kind]} '{name}': ")
    assert words in said


def test_the_packages_own_name_wins(installed, tmp_path):
    installed("rival", ["classifier.trees = rival:Slope"], CLASSIFIER)
    assert found("classifier", "trees", tmp_path).__module__ == "drapes_hep.cwola.trees"


def test_a_name_that_two_packages_offer_is_refused(installed, tmp_path):
    installed("rival", ["classifier.mine = rival:Slope"], CLASSIFIER)
    said = refusal(found, "classifier", "mine", tmp_path)
    assert said.startswith("cwola.classifier 'mine': several installed packages offer it: ")
    assert "rival:Slope (rival)" in said
    assert "offers_classifier:Slope (offers_classifier)" in said


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("gone:Slope", "(entry point gone:Slope): module gone cannot be imported (ModuleNotFoundError"),
        ("rival:Slpe", "(entry point rival:Slpe): no class 'Slpe' in rival; did you mean 'Slope'?"),
        ("rival", "(entry point rival): expected"),
        ("rival:Slope.fit", "(entry point rival:Slope.fit): 'Slope.fit' is not a classifier: it is not a class"),
    ],
)
def test_a_broken_entry_point_is_one_line(installed, tmp_path, target, words):
    installed("rival", [f"classifier.theirs = {target}"], CLASSIFIER)
    assert f"cwola.classifier 'theirs' {words}" in refusal(found, "classifier", "theirs", tmp_path)


def test_an_unknown_name_is_compared_with_those_of_installed_packages(installed, tmp_path):
    said = refusal(found, "classifier", "mime", tmp_path)
    assert said.endswith(
        "'cwola.classifier': no classifier 'mime'; did you mean 'mine'? Available: trees, sklearn_trees, mlp,"
        " constituents, full_phase_space, mine; or name your own as 'file.py:Class' or 'package.module:Class'"
    )


def test_the_names_of_the_configuration_are_those_of_the_registries():
    assert tuple(METHODS) == config_module.METHODS
    assert tuple(RECIPES) == config_module.DRAPES
    assert tuple(classifiers._KIND.own) == config_module.CLASSIFIERS
    assert tuple(backbones._KIND.own) == config_module.NETWORKS
    assert tuple(SHAPES) == config_module.SHAPES


def test_a_class_of_an_installed_package_is_checked_as_a_users(installed):
    assert load_classifier("mine", {"scale": 2.0})(1).score(np.ones((3, 2))).tolist() == [2.0, 2.0, 2.0]
    said = refusal(lambda: load_classifier("mine")(1).score(np.full((3, 2), np.nan)))
    assert said == "cwola.classifier mine: score(x) is NaN or infinity for 3 events"


# ---- mass shapes


def shape(tmp_path, source=SHAPE):
    (tmp_path / "mine.py").write_text(source)
    return find_shape(configured(tmp_path, mass__fit="'mine.py:Exponential'").mass)


def test_a_shape_of_a_file_is_fitted_and_integrated(tmp_path):
    mine = shape(tmp_path)
    edges = np.arange(2700, 6001, 100.0)
    truth = np.array([np.log(1e5), -40.0])
    counts, _ = bin_model(mine, 13_000, edges, truth)
    fit = fit_spectrum(counts, edges, (3300, 3700), mine)
    np.testing.assert_allclose(fit.parameters, truth, rtol=1e-5)
    exact = integrate.quad(lambda m: 1e5 * np.exp(-40 * m / 13_000), 3300, 3700)[0]
    np.testing.assert_allclose(expected(fit, 3300, 3700)[0], exact, rtol=1e-4)
    drawn = draw(fit, 3300, 3700, [0.5])
    half = integrate.quad(lambda m: 1e5 * np.exp(-40 * m / 13_000), 3300, drawn[0])[0]
    np.testing.assert_allclose(half / exact, 0.5, rtol=1e-4)


def test_the_packages_shapes_written_outside_give_the_same_fit(tmp_path):
    columns = "[np.ones_like(z), np.log1p(-z), np.log(z)]"
    source = SHAPE.replace("[np.ones_like(z), z]", columns).replace('("ln_p1", "slope")', '("ln_p1", "p2", "p3")')
    mine = shape(tmp_path, source)
    edges = np.arange(2700, 6001, 100.0)
    counts, _ = bin_model("dijet3", 13_000, edges, [10.0, 8.0, -5.0])
    counts = np.random.default_rng(1).poisson(counts * 1e5 / counts.sum())
    one, other = (fit_spectrum(counts, edges, (3300, 3700), each) for each in ("dijet3", mine))
    np.testing.assert_array_equal(one.parameters, other.parameters)
    np.testing.assert_array_equal(one.covariance, other.covariance)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("z], axis", "z, z**2], axis", "of shape (257, 3) for 257 masses, not numbers of shape (257, 2)"),
        ("[np.ones_like(z), z]", "[np.ones_like(z), 2 + 0 * z]", "the basis functions are not independent"),
        ("[np.ones_like(z), z]", "[z, z**2]", "begin with a column of ones"),
        (
            "[np.ones_like(z), z]",
            "[np.ones_like(z), 0 * z]",
            "basis function of slope is zero over the fitted range",
        ),
        ("[np.ones_like(z), z]", "[np.ones_like(z), np.log(z - 0.3)]", "basis(z) is NaN or infinity at z = 0.2077"),
        ("[np.ones_like(z), z]", "[np.ones_like(z), z - z.mean()]", "depends on the other masses"),
        ("np.stack([np.ones_like(z), z], axis=-1)", "1 / 0", "ZeroDivisionError: division by zero ("),
        ("np.stack([np.ones_like(z), z], axis=-1)", "'text'", "basis(z) returned <U4 of shape ()"),
        ('("ln_p1", "slope")', '("ln_p1",)', "not two or more different names"),
        ('("ln_p1", "slope")', '("p", "p")', "not two or more different names"),
        ('("ln_p1", "slope")', "2", "not two or more different names"),
        ('"exponential"', "7", "title is 7, not a line of text"),
        ("class Exponential:", "class Exponential:\n    def __init__(self, m): pass", "TypeError: "),
        ("    def basis", "    def bases", "'Exponential' is not a mass shape: it needs the method basis"),
    ],
)
def test_a_shape_that_is_none_is_one_line(tmp_path, old, new, words):
    assert old in SHAPE
    said = refusal(shape, tmp_path, SHAPE.replace(old, new))
    assert said.startswith("mass.fit ")
    assert words in said


def test_an_edited_shape_has_another_source(tmp_path):
    config = configured(tmp_path, mass__fit="'mine.py:Exponential'").mass
    (tmp_path / "mine.py").write_text(SHAPE)
    before = shape_sources(config)
    (tmp_path / "mine.py").write_text(SHAPE + "\n# edited\n")
    assert len(before) == 1
    assert shape_sources(config) != before
    assert shape_sources(config.model_copy(update={"fit": "dijet3"})) == []


# ---- what a class rests on

HELPED = {
    **{kind: (source, attribute) for kind, (source, attribute) in KINDS.items() if kind != "processor"},
    "feature": ("def balance(j1, j2): return j2.pt / j1.pt\n", "balance"),
}
IMPORTS = {
    "a number": "from helper import NUMBER\n",
    "a module": "import helper\n",
    "in a function": "def later():\n    from helper import NUMBER\n    return NUMBER\n",
    "through another": "import between\n",
    "in a package": "from pack.inner import NUMBER\n",
}


def sources_of(kind, folder):
    """What the key of a stage holds of an object of a file, as a new process finds it."""
    for name in [name for name in sys.modules if name.split(".")[0] in {"helper", "between", "pack"}]:
        del sys.modules[name]
    for name in [name for name in sys.modules if name.startswith("_drapes_processor_")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    attribute = HELPED[kind][1]
    if kind == "feature":
        section = {"function": f"mine.py:{attribute}", "folder": str(folder)}
        return function_sources({"mine": section})["mine"]
    if kind == "shape":
        return shape_sources(configured(folder, mass__fit=f"'mine.py:{attribute}'").mass)
    one = found(kind, f"mine.py:{attribute}", folder)
    return list(source_hashes(one))


@pytest.mark.parametrize("kind", HELPED)
@pytest.mark.parametrize("how", IMPORTS)
def test_a_module_that_a_file_imports_belongs_to_its_key(tmp_path, monkeypatch, kind, how):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(IMPORTS[how] + HELPED[kind][0])
    (tmp_path / "between.py").write_text("from helper import NUMBER\n")
    (tmp_path / "pack").mkdir()
    helper = tmp_path / ("pack/inner.py" if how == "in a package" else "helper.py")
    helper.write_text("NUMBER = 3\n")
    before = sources_of(kind, tmp_path)
    assert sources_of(kind, tmp_path) == before
    (tmp_path / "unused.py").write_text("NUMBER = 3\n")
    assert sources_of(kind, tmp_path) == before
    helper.write_text("NUMBER = 4\n")
    assert sources_of(kind, tmp_path) != before


@pytest.mark.parametrize("kind", KINDS)
def test_the_version_of_a_package_belongs_to_the_key(installed, tmp_path, kind):
    one = found(kind, "mine", tmp_path)
    assert package_version(one) == (f"offers_{kind} 1.0",)
    assert (f"offers_{kind} 1.0" in source_hashes(one)) or kind == "processor"


def test_the_version_of_a_package_named_by_its_module():
    assert package_version(HistGradientBoostingRegressor) == (f"scikit-learn {sklearn.__version__}",)
    assert package_version(Trial) == package_version(json.JSONDecoder) == ()


def test_an_edited_module_of_a_classifier_runs_the_classifier_again(searched, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "copy")
    folder = shutil.copytree(searched, tmp_path / "copy")
    (folder / "mine.py").write_text("from helper import NUMBER\n" + (folder / "mine.py").read_text())
    names = [(folder / "helper.py").write_text(f"NUMBER = {number}\n") and keyed(folder) for number in (1, 1, 2)]
    assert names[0] == names[1]
    assert names[2] != names[1]


def keyed(folder):
    """What decides the classifier's stage, as a new process finds it."""
    sources_of("classifier", folder)
    context = context_of(folder)
    return classify_stage(context, context.windows[0]).decides()["other"]


# ---- all of them in one search, from outside of the package


@pytest.fixture(scope="module")
def searched(tmp_path_factory, few_trees):
    """Run a search with a feature, a mass shape and a classifier of its own, up to the report."""
    folder = tmp_path_factory.mktemp("outside")
    write_feature_root(folder / "events.root", cut_sample())
    (folder / "mine.py").write_text(CLASSIFIER + SHAPE)
    search = {
        **SEARCH,
        "windows": {"width": 400, "step": 300, "first": 3300, "last": 3300},
        "define": {"balance": {"expression": "pt_j2 / pt_j1", "label": r"$\rho_{21}$", "range": [0, 2]}},
        "features": ["balance", "delta_m"],
        "mass": {"fit": "mine.py:Exponential"},
        "cwola": {**SEARCH["cwola"], "classifier": "mine.py:Slope", "options": {"scale": 2.0}},
        "blind": False,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(search))
    context = context_of(folder)
    skim(context)
    for stage in (train, generate, classify):
        stage(context, context.windows[0])
    hunt(context)
    with pytest.MonkeyPatch.context() as patch:
        unrender(patch)
        report(context.run)
    return folder


def context_of(folder, *changes):
    return Context.of(load_config(folder / "tiny.yaml", changes), open_run(folder / "run"), device="cpu", workers=1)


def test_hunt_and_report_show_what_came_from_outside(searched):
    record = read_json(searched / "run" / "hunt.json")
    assert record["shape"] == "exponential"
    page = (searched / "run" / "report" / "index.html").read_text()
    assert "the mass fit (exponential) outside the window" in page
    assert "mine.py:Slope" in page
    hists = read_json(searched / "run" / "hists.json")
    assert hists["template_3300_3700_balance"]["axes"][0]["metadata"]["label"] == r"$\rho_{21}$"
    skimmed = read_json(searched / "run" / "skim" / "hists.json")
    assert skimmed["balance"]["axes"][-1]["metadata"]["label"] == r"$\rho_{21}$"


def test_the_hunt_expects_what_the_shape_gives(searched):
    context = context_of(searched)
    events = read_skim(context.run.events)
    edges = np.asarray(read_json(searched / "run" / "hunt.json")["edges"])
    counts = np.histogram(events["mjj"], edges)[0]
    fit = fit_spectrum(counts, edges, (3300, 3700), find_shape(context.config.mass))
    point = read_json(searched / "run" / "hunt.json")["windows"][0]["working_points"][0]
    assert point["ndof"] == fit.ndof == int(fit.fitted.sum()) - 2
    assert point["chi2"] == fit.chi2


def test_scores_are_those_of_the_classifier(searched):
    context = context_of(searched)
    window = context.windows[0]
    scores, events = read_skim(context.run.window(window) / "scores.parquet"), read_skim(context.run.events)
    place = {event: row for row, event in enumerate(np.asarray(events["event_id"]))}
    rows = [place[event] for event in np.asarray(scores["event_id"])]
    # an ensemble's average ranks as its members, all of which rank by the first feature
    inside = np.asarray(scores["region"]) == 1
    order = np.argsort(np.asarray(events["balance"])[rows][inside], kind="stable")
    assert (np.diff(np.asarray(scores["score"])[inside][order]) >= 0).all()


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("\n# a comment\n", {"generate", "classify", "hunt"}),
        (None, set()),
    ],
)
def test_an_edited_file_runs_again_what_it_decides(searched, tmp_path, change, stages):
    folder = shutil.copytree(searched, tmp_path / "copy")
    if change:
        (folder / "mine.py").write_text((folder / "mine.py").read_text() + change)
    context = context_of(folder)
    window = context.windows[0]
    made = {
        "skim": skim_stage(context),
        "train": train_stage(context, window),
        "generate": generate_stage(context, window),
        "classify": classify_stage(context, window),
        "hunt": hunt_stage(context, context.windows),
    }
    stale = set()
    for verb, stage in made.items():
        stamp = read_stamp(context.run, stage.name)
        if stamp["other"] != json.loads(json.dumps(stage.other)):
            stale.add(verb)
    assert stale == stages


def test_a_network_of_a_file_is_saved_and_loaded(tmp_path):
    (tmp_path / "mine.py").write_text(NETWORK)
    config = configured(tmp_path, constituents__network="'mine.py:Mine'", constituents__width=8, constituents__heads=2)
    check_backbone(config.constituents)
    assert type(make_backbone(config.constituents, 1)).__name__ == "Mine"


def test_a_study_takes_a_classifier_of_a_file(searched):
    config = load_config(searched / "tiny.yaml")
    changed = changed_config(config, {"seed": 7})
    assert changed.folder == config.folder == changed.cwola.folder == changed.mass.folder
    keys = SampleKeys("a")
    before = trial_key(Trial("search", config, "from_noise"), keys)
    (searched / "mine.py").write_text((searched / "mine.py").read_text() + "\n# edited\n")
    assert trial_key(Trial("search", config, "from_noise"), keys) != before
