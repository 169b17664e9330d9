"""The family of templates: where each starts, that chunks do not matter, and what truth says of each."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from references import GaussianDenoiser
from test_cli import falling_columns
from test_constituent_models import Still, Told
from test_stages import SEARCH, context_of, cut_sample

from drapes_hep.config import Config, TemplateConfig, TrainingConfig, load_config, make_config
from drapes_hep.diffusion.denoisers import FlowDenoiser
from drapes_hep.diffusion.schedules import EDMSchedule, FlowSchedule, karras_steps
from drapes_hep.errors import ConfigError, DrapesError, InputError, LeakError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.processing import run
from drapes_hep.events.scaling import fit_scaling
from drapes_hep.events.schema import NO_PARENT
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json
from drapes_hep.folds import assign_folds
from drapes_hep.plugins import load_processor
from drapes_hep.regions import Window
from drapes_hep.stages.classify import _models_spread, classify
from drapes_hep.stages.generate import generate
from drapes_hep.stages.simulation import skim_simulation
from drapes_hep.stages.skim import skim
from drapes_hep.stages.train import train
from drapes_hep.studies.configurations import changed
from drapes_hep.templates import feature_model
from drapes_hep.templates.drapes_family import RECIPES
from drapes_hep.templates.feature_model import BackgroundModel, FeatureTraining, fit_models
from drapes_hep.templates.feature_templates import describe_sampler, levels, make_template
from drapes_hep.templates.methods import SampleTask
from drapes_hep.templates.parts import CLOSURE, TRAIN, VALIDATION, split_sidebands
from drapes_hep.templates.plan import copies_of, starts
from drapes_hep.templates.tables import EventTable
from drapes_hep.templates.window_models import check_hidden

pytestmark = pytest.mark.usefixtures("few_trees")
TASK = SampleTask(7, lambda mjj: np.full(len(mjj), True))
PARTIAL = [name for name, recipe in RECIPES.items() if recipe.partial]


def settings(method: str, **more: object) -> TemplateConfig:
    given = {"strength": 2.24} if RECIPES[method].partial and "steps_left" not in more else {}
    source = {"source": "simulation.root"} if method == "from_simulation" else {}
    # its last step ends at the mean that a denoiser gives, whatever that is
    return TemplateConfig(method=method, **({"solver": "heun"} | given | source | more))


def gaussian_model(d: int = 2) -> BackgroundModel:
    """An exact model: independent normal features, whatever the mass."""
    rng = np.random.default_rng(1)
    x, mjj = rng.normal(size=(4000, d)), rng.uniform(2700, 6000, 4000)
    scaling = fit_scaling("standard", x, mjj, np.ones(4000), [(-np.inf, np.inf)] * d)
    oracle = GaussianDenoiser(torch.zeros(d), torch.eye(d, dtype=torch.float64))
    return BackgroundModel(oracle, scaling, tuple("ab")[:d], ((3300.0, 3700.0),))


def parents(n: int = 300, seed: int = 2) -> EventTable:
    rng = np.random.default_rng(seed)
    ids = rng.choice(10**12, n, replace=False)
    return EventTable(rng.normal(size=(n, 2)), rng.uniform(3300, 3700, n), rng.uniform(0.5, 2, n), ids)


def drawn(u: np.ndarray) -> np.ndarray:
    return 3300 + 400 * u


def made(method: str, source: EventTable, size: float = 2.5, model: BackgroundModel | None = None, **more: object):
    recipe, config = RECIPES[method], settings(method, **({"steps": 12} | more))
    given = None if recipe.source == "noise" else source
    plan = starts(recipe, given, size, 7, None if recipe.own_mass else drawn)
    return plan, make_template(model or gaussian_model(), config, plan, given, TASK)


# ---- strength --------------------------------------------------------------------------------------------------------


def test_the_strengths_of_the_paper_are_those_of_200_steps():
    config = settings("from_window", steps=200, strength=2.24)
    assert len(levels(config, EDMSchedule())) - 1 == 98
    assert float(levels(config, EDMSchedule())[0]) == pytest.approx(2.246, abs=1e-3)


@pytest.mark.parametrize("schedule", [EDMSchedule(), FlowSchedule()])
def test_steps_left_and_the_strength_that_they_have_are_one_choice(schedule):
    by_steps = levels(settings("from_window", steps=40, strength=None, steps_left=17), schedule)
    alpha, sigma = schedule(by_steps[0])
    by_strength = levels(settings("from_window", steps=40, strength=float(sigma / alpha)), schedule)
    assert torch.equal(by_steps, by_strength)


@pytest.mark.parametrize("schedule", [EDMSchedule(), FlowSchedule()])
def test_the_angle_solver_starts_at_the_strength_itself(schedule):
    times = levels(settings("from_window", solver="angle", steps=5, strength=0.7), schedule)
    assert describe_sampler(times, schedule, "angle") == {
        "strength": pytest.approx(0.7), "steps": 5, "evaluations": 10
    }  # fmt: skip


def test_the_angle_solver_starts_at_full_noise():
    assert float(levels(settings("from_noise", solver="angle", sigma_max=50.0), EDMSchedule())[0]) == 50.0


def test_solver_and_steps_default_to_each_other():
    defaults = [settings("from_window", **given) for given in ({"solver": "angle"}, {"solver": "heun"})]
    chosen = TemplateConfig(method="from_window", steps_left=17)
    assert [c.sampler for c in (*defaults, chosen)] == [("angle", 6), ("heun", 50), ("heun", 50)]


def test_a_changed_solver_has_its_own_number_of_steps():
    """Defaults are not written into a configuration that is changed later."""
    config = make_config({"name": "a", "data": {"path": "a.root"}})
    assert changed(config, "template.solver=heun").template.sampler == ("heun", 50)


def test_full_noise_takes_every_step():
    assert torch.equal(levels(settings("from_noise", steps=9), EDMSchedule()), karras_steps(9))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "from_window"}, "needs either strength or steps_left"),
        ({"method": "from_window", "strength": 1.0, "steps_left": 3}, "needs either"),
        ({"method": "from_window", "solver": "angle", "steps_left": 3}, "the solver angle needs strength"),
        ({"strength": 1.0}, "from_noise starts at sigma_max"),
        ({"method": "from_window", "strength": 100.0}, "not within"),
        ({"method": "from_window", "steps": 10, "steps_left": 11}, "exceeds the 10 steps"),
        ({"method": "from_simulation", "strength": 1.0}, "source is required by method from_simulation"),
        (
            {"method": "from_window", "strength": 1.0, "source": "x.root"},
            "source is required by method from_simulation",
        ),
    ],
)
def test_a_template_that_cannot_be_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        TemplateConfig(**given)


# ---- starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.3, 1.0, 2.5])
def test_copies_average_to_the_rate(rate):
    ids = np.arange(20_000)
    counts = copies_of(ids, rate, 1)
    assert set(counts) <= {int(rate), int(rate) + 1}
    assert counts.mean() == pytest.approx(rate, abs=5 * 0.5 / np.sqrt(20_000))


@pytest.mark.parametrize("method", [name for name, recipe in RECIPES.items() if recipe.source != "noise"])
def test_a_chunk_of_parents_gives_the_events_of_the_whole(method):
    whole = parents()
    _, every = made(method, whole)
    parts = []
    for chunk in (slice(0, 100), slice(100, 130), slice(130, 300)):
        some = EventTable(whole.x[chunk], whole.mjj[chunk], whole.weight[chunk], whole.event_id[chunk])
        parts.append(made(method, some)[1])
    for name in ("event_id", "parent_id", "mjj", "weight"):
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(every, name))
    np.testing.assert_allclose(np.concatenate([p.x for p in parts]), every.x, rtol=1e-5, atol=1e-5)


def test_an_event_from_noise_does_not_depend_on_how_many_there_are():
    more, fewer = (starts(RECIPES["from_noise"], None, size, 3, drawn) for size in (50, 30))
    for name in ("event_id", "root", "mjj"):
        np.testing.assert_array_equal(getattr(fewer, name), getattr(more, name)[:30])


def test_identities_are_new_and_distinct():
    source = parents()
    plan, _ = made("from_window", source)
    assert len(np.unique(plan.event_id)) == len(plan.event_id)
    assert not np.isin(plan.event_id, source.event_id).any()
    assert (plan.event_id >= 0).all()


@pytest.mark.parametrize("method", sorted(RECIPES))
def test_masses_and_parents_are_the_recipe_s(method):
    source = parents()
    plan, found = made(method, source, 60 if RECIPES[method].source == "noise" else 2.5)
    if RECIPES[method].source == "noise":
        assert set(found.parent_id) == {NO_PARENT}
        assert len(found.x) == 60
    else:
        np.testing.assert_array_equal(found.parent_id, source.event_id[plan.row])
        np.testing.assert_array_equal(found.weight, source.weight[plan.row])
    if RECIPES[method].own_mass:
        np.testing.assert_array_equal(found.mjj, source.mjj[plan.row])
    else:
        assert ((found.mjj >= 3300) & (found.mjj < 3700)).all()
        # another mass for every copy
        assert len(np.unique(found.mjj)) == len(found.mjj)


def test_copies_of_a_parent_have_its_fold():
    source = parents()
    _, found = made("from_window", source)
    fold = dict(zip(source.event_id, assign_folds(source.event_id, 5, 1), strict=True))
    assert assign_folds(found.event_id, 5, 1, found.parent_id).tolist() == [fold[i] for i in found.parent_id]


# ---- partial diffusion against the exact flow ------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.3, 2.24])
def test_partial_diffusion_of_normal_events_has_the_correlation_of_theory(strength):
    # x' = (x0 + s n) / sqrt(1 + s^2) under the exact flow of a unit normal: correlation 1 / sqrt(1 + s^2)
    source = parents(20_000)
    plan, found = made("from_window", source, 1.0, strength=strength, steps=60)
    config = settings("from_window", steps=60, strength=strength)
    exists = float(levels(config, EDMSchedule())[0])
    x0 = source.x[plan.row]
    expected = 1 / np.sqrt(1 + exists**2)
    for j in range(2):
        assert np.corrcoef(x0[:, j], found.x[:, j])[0, 1] == pytest.approx(expected, abs=0.02)
    assert found.x.std(axis=0) == pytest.approx([1, 1], abs=0.03)


def test_partial_diffusion_on_the_straight_path_keeps_a_normal_distribution():
    d = 2

    class Velocity(torch.nn.Module):
        def forward(self, x, noise, _condition=None):
            # E[x0 - n | x_t] for unit normal data
            t = noise[:, None]
            return x * (1 - 2 * t) / ((1 - t) ** 2 + t**2)

    model = gaussian_model(d)
    flow = BackgroundModel(FlowDenoiser(Velocity()), model.scaling, model.features, model.hidden)
    source = parents(20_000)
    recipe, config = RECIPES["from_window"], settings("from_window", steps=60, strength=1.0)
    plan = starts(recipe, source, 1.0, 7, None)
    found = make_template(flow, config, plan, source, TASK)
    assert found.x.mean(axis=0) == pytest.approx([0, 0], abs=0.03)
    assert found.x.std(axis=0) == pytest.approx([1, 1], abs=0.03)


# ---- training --------------------------------------------------------------------------------------------------------

SHORT = TrainingConfig(epochs=2, batch=256, width=8, depth=1)


def learnt(x, mjj, part, weight=None, scaling="quantile", training=SHORT):
    """A model of features and the weights of its network."""
    weight = np.ones(len(x)) if weight is None else weight
    domain = [(-np.inf, np.inf)] * x.shape[1]
    window = FeatureTraining(x=x, mjj=mjj, weight=weight, part=part, hidden=(), seed=3)
    ((model, _),) = fit_models([window], features=("a", "b"), domain=domain, training=training, scaling=scaling)
    return model, torch.cat([p.detach().ravel() for p in model.denoiser.parameters()])


@pytest.fixture(scope="module")
def sidebands():
    x, mjj = drifting(3000)
    return x, mjj, np.random.default_rng(6).choice([TRAIN, VALIDATION, CLOSURE], 3000, p=[0.5, 0.1, 0.4])


@pytest.mark.parametrize("scaling", ["quantile", "standard"])
def test_a_scaling_is_fitted_on_the_training_part_alone(sidebands, scaling):
    """Scaling: neither features nor masses of closure and validation events move it."""
    x, mjj, part = sidebands
    held = part != TRAIN
    other = learnt(np.where(held[:, None], 3 * x + 1, x), np.where(held, 5999.0, mjj), part, scaling=scaling)
    assert other[0].scaling.to_dict() == learnt(*sidebands, scaling=scaling)[0].scaling.to_dict()


def test_closure_events_teach_nothing(sidebands):
    """Training: the closure part takes part neither in what is learnt nor in what stops it."""
    x, mjj, part = sidebands
    other = learnt(np.where(part[:, None] == CLOSURE, 3 * x + 1, x), np.where(part == CLOSURE, 5999.0, mjj), part)
    assert torch.equal(other[1], learnt(*sidebands)[1])


def test_events_of_weight_zero_teach_nothing(sidebands):
    """Training: an event counts by its weight, in the training part and in the validation part."""
    x, mjj, part = sidebands
    weight = np.random.default_rng(7).integers(0, 2, len(x)).astype(float)
    moved = np.where(weight[:, None] == 0, x + 5, x)
    one, other = (learnt(some, mjj, part, weight, "standard")[1] for some in (x, moved))
    torch.testing.assert_close(one, other)


def test_a_model_learns_how_features_depend_on_the_mass(sidebands):
    """Training: the network is told each event's mass."""
    # with this scaling the drift is the network's to learn
    model, _ = learnt(*sidebands, scaling="standard", training=SHORT.model_copy(update={"epochs": 40, "ema": 0.99}))
    mjj = np.repeat([3000.0, 5700.0], 200)
    x = model.generate(mjj, np.arange(400), 1, karras_steps(8))
    assert np.diff(x[:, 0].reshape(2, 200).mean(axis=1))[0] == pytest.approx(27, abs=8)


def test_parts_of_the_sidebands_have_their_fractions():
    """Parts: the closure part is training.closure of the sidebands, as the hunt's share says; so is the validation."""
    config = TrainingConfig(validation=0.1, closure=0.4)
    part = split_sidebands(np.arange(40_000), 1, config)
    for value, fraction in ((TRAIN, 0.5), (VALIDATION, 0.1), (CLOSURE, 0.4)):
        assert (part == value).mean() == pytest.approx(fraction, abs=5 * np.sqrt(fraction * (1 - fraction) / 40_000))


@pytest.mark.parametrize(("mass", "refused"), [(3299.9, False), (3300.0, True), (3699.9, True), (3700.0, False)])
def test_a_hidden_interval_is_half_open(mass, refused):
    """Guard: its lower edge belongs to a hidden interval, its upper edge to the next one."""
    with pytest.raises(LeakError) if refused else contextlib.nullcontext():
        check_hidden(np.array([3000.0, mass]), [(3300.0, 3700.0)])


def test_a_window_is_half_open():
    """Windows: an event on a common edge belongs to one window, and is no sideband event of it."""
    window = Window(3300, 3700, 2700, 6000)
    assert window.in_signal_region([3300, 3700]).tolist() == [True, False]
    assert window.in_sidebands([3300, 3700, 2700, 6000]).tolist() == [False, True, True, False]


# ---- masses ----------------------------------------------------------------------------------------------------------


def drifting(n=20_000, seed=4):
    """Two features that move with the mass by many times their width, and the masses."""
    rng = np.random.default_rng(seed)
    mjj = rng.uniform(2700, 6000, n)
    return mjj[:, None] / 100 * [1.0, -0.5] + rng.normal(size=(n, 2)), mjj


@pytest.mark.parametrize("method", sorted(RECIPES))
def test_features_are_generated_under_the_mass_of_the_template_event(method):
    """Generation: the condition is the mass that the template event has."""
    model = replace(gaussian_model(), denoiser=Told())
    _, found = made(method, parents(), 60 if RECIPES[method].source == "noise" else 2.5, model)
    (mean, scale), told = model.scaling.log_mass, np.log(found.mjj)[:, None]
    # the network's condition is float32
    z = (found.x - model.scaling.mean) / model.scaling.scale
    np.testing.assert_allclose(z, (told - mean) / scale + [0, 0], rtol=1e-5, atol=1e-6)


def test_features_are_scaled_back_at_the_mass_of_the_template_event():
    """Generation: what a network makes is mapped back by the quantiles of the template event's mass."""
    x, mjj = drifting()
    scaling = fit_scaling("quantile", x, mjj, np.ones(len(x)), [(-np.inf, np.inf)] * 2)
    model = BackgroundModel(Told(), scaling, ("a", "b"), ((3300.0, 3700.0),))
    _, found = made("from_noise", parents(), 200, model)
    log = np.log(found.mjj)
    z = np.repeat(((log - scaling.log_mass[0]) / scaling.log_mass[1])[:, None], 2, axis=1)
    np.testing.assert_allclose(found.x, scaling.inverse(z, found.mjj), rtol=1e-5)


@pytest.mark.parametrize("method", [name for name in PARTIAL if RECIPES[name].source != "noise"])
def test_a_parent_is_scaled_at_its_own_mass(method):
    """Drapes SB: a parent in the middle of its own mass's distribution is in the middle at the target mass."""
    x, mjj = drifting()
    scaling = fit_scaling("quantile", x, mjj, np.ones(len(x)), [(-np.inf, np.inf)] * 2)
    model = BackgroundModel(Still(), scaling, ("a", "b"), ((3300.0, 3700.0),))
    own = np.random.default_rng(5).uniform(3300, 3700, 300) + (1500 if method == "from_sidebands" else 0)
    source = EventTable(np.stack([own, -0.5 * own], axis=1) / 100, own, np.ones(300), np.arange(300))
    plan, found = made(method, source, 2.0, model, strength=None, steps_left=1)
    middle = np.stack([found.mjj, -0.5 * found.mjj], axis=1) / 100
    # the widths are 1, the noise of the last step 0.002, the curves of the quantiles known to some 0.1
    np.testing.assert_allclose(found.x, middle, atol=0.5)
    assert len(plan.mjj) > 500


def test_copies_of_a_parent_have_noise_of_their_own():
    """Generation: no two copies of a parent are the same event."""
    _, found = made("from_window", parents(), 3.0)
    assert len(np.unique(found.x[:, 0])) == len(found.x)


def test_a_sampler_goes_from_the_configured_noise_to_none():
    """Generation: sigma_max and sigma_min are the configuration's, and the last step ends without noise."""
    times = levels(settings("from_noise", steps=9, sigma_min=0.01, sigma_max=50.0), EDMSchedule())
    assert (float(times[0]), float(times[-2]), float(times[-1])) == (50.0, 0.01, 0.0)


@pytest.mark.parametrize(
    ("method", "own"), [("from_window", True), ("from_simulation", True), ("from_sidebands", False)]
)
def test_events_of_drapes_sr_and_mc_keep_the_mass_of_their_parent(folder, method, own):
    """Masses: Drapes SR and MC keep those of their parents, Drapes SB draws them."""
    context = partial_context(folder, method)
    if method == "from_simulation":
        skim_simulation(context)
    generate(context, context.windows[0])
    template = read_skim(context.run.window(context.windows[0]) / "template.parquet")
    source = read_skim(context.run.simulation if method == "from_simulation" else context.run.events)
    mass = dict(zip(np.asarray(source["event_id"]), np.asarray(source["mjj"]), strict=True))
    same = np.array([mass[i] for i in np.asarray(template["parent_id"])]) == np.asarray(template["mjj"])
    assert same.all() if own else not same.any()


# ---- through the stages ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project with data and another simulation, skimmed and trained."""
    path = tmp_path_factory.mktemp("templates")
    write_feature_root(path / "events.root", cut_sample())
    simulated = falling_columns(1500, seed=5)
    simulated["weight"] = np.random.default_rng(3).uniform(0.5, 1.5, 1500)
    del simulated["label"]
    write_feature_root(path / "simulation.root", simulated)
    (path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    context = context_of(path, path / "run")
    skim(context)
    train(context, context.windows[0])
    return path


def partial_context(folder, method, *more):
    changes = [f"template.method={method}"]
    if RECIPES[method].partial:
        changes.append("template.strength=2.24")
    if method == "from_simulation":
        changes.append(f"template.source={folder / 'simulation.root'}")
    return context_of(folder, folder / "run", *changes, *more, overwrite=True)


def test_no_spread_of_models_is_measured_where_each_has_other_parents(folder):
    """It would be that of the parents, and in a blinded run tell how many the window holds."""
    context = partial_context(folder, "from_window")
    generate(context, context.windows[0])
    assert _models_spread(context, context.windows[0]) is None


@pytest.mark.parametrize("method", PARTIAL)
def test_every_method_goes_through_generate_and_classify(folder, method):
    context = partial_context(folder, method)
    window = context.windows[0]
    if method == "from_simulation":
        skim_simulation(context)
    generate(context, window)
    classify(context, window)
    template = read_skim(context.run.window(window) / "template.parquet")
    events = read_skim(context.run.events)
    mjj = np.asarray(events["mjj"])
    inside = window.in_signal_region(mjj)
    wanted = context.config.template.oversample * inside.sum()
    assert len(template) == pytest.approx(wanted, abs=4 * np.sqrt(wanted))
    assert window.in_signal_region(np.asarray(template["mjj"])).all()
    quality = read_json(context.run.window(window) / "quality.json")["template"]
    assert quality["name"] == method
    assert quality["steps_left"] >= 1
    parent = np.asarray(template["parent_id"])
    if method == "from_window":
        assert np.isin(parent, np.asarray(events["event_id"])[inside]).all()
    if method == "from_sidebands":
        assert np.isin(parent, np.asarray(events["event_id"])[~inside]).all()
    # parents of what trains a classifier are in the other folds, of what sets its cuts in its own
    if RECIPES[method].source != "noise":
        config = context.config
        for name, same in (("template", False), ("calibration", True)):
            table = read_skim(context.run.window(window) / f"{name}.parquet")
            fold = assign_folds(np.asarray(table["parent_id"]), config.cwola.folds, config.seed)
            assert set(fold == np.asarray(table["model"])) == {same}
    if method == "from_simulation":
        simulation = read_skim(context.run.simulation)
        weight = dict(zip(np.asarray(simulation["event_id"]), np.asarray(simulation["weight"]), strict=True))
        assert [weight[i] for i in parent] == np.asarray(template["weight"]).tolist()


def test_a_template_event_is_scored_in_the_fold_of_its_parent(folder):
    """Folds: through the stages a template event has its parent's, not one of its own."""
    context = partial_context(folder, "from_window")
    generate(context, context.windows[0])
    classify(context, context.windows[0])
    scores = read_skim(context.run.window(context.windows[0]) / "template_scores.parquet")
    fold = assign_folds(np.asarray(scores["parent_id"]), context.config.cwola.folds, context.config.seed)
    np.testing.assert_array_equal(np.asarray(scores["fold"]), fold)


# ---- in a processor --------------------------------------------------------------------------------------------------

TEMPLATES = "processors/templates.py:Templates"


def in_chunks(folder, source, chunksize, window="3300-3700", executor="iterative"):
    """Make a run's template in the processor; columns in the order of identities, and the histograms."""
    processor = load_processor(TEMPLATES)({"run": str(folder / "run"), "window": window})
    out, report = run({"data": {"files": [str(source)]}}, processor, chunksize=chunksize, executor=executor, workers=2)
    assert report.processed == report.requested
    columns = out["skim"].columns()
    order = np.argsort(columns["event_id"])
    return {name: np.asarray(values)[order] for name, values in columns.items()}, out["hists"]


@pytest.mark.parametrize("method", [name for name in PARTIAL if RECIPES[name].source != "noise"])
def test_the_processor_makes_the_run_s_template_event_by_event(folder, method):
    context = partial_context(folder, method)
    if method == "from_simulation":
        skim_simulation(context)
    generate(context, context.windows[0])
    template = read_skim(context.run.window(context.windows[0]) / "template.parquet")
    order = np.argsort(np.asarray(template["event_id"]))
    source = folder / ("simulation.root" if method == "from_simulation" else "events.root")
    for chunksize in (400, 10_000):
        made, hists = in_chunks(folder, source, chunksize)
        for name in ("event_id", "parent_id", "mjj", "weight"):
            np.testing.assert_array_equal(made[name], np.asarray(template[name])[order], err_msg=name)
        for name in context.config.features:
            np.testing.assert_allclose(made[name], np.asarray(template[name])[order], rtol=1e-4, atol=1e-5)
        filled = hists["m_j1"][{"dataset": sum, "kind": "template"}].values(flow=True).sum()
        assert filled == pytest.approx(np.asarray(template["weight"]).sum())


def test_the_processor_reads_the_run_s_own_skim_in_other_processes(folder):
    context = partial_context(folder, "from_sidebands")
    generate(context, context.windows[0])
    template = read_skim(context.run.window(context.windows[0]) / "template.parquet")
    made, _ = in_chunks(folder, context.run.events, 700, executor="futures")
    np.testing.assert_array_equal(made["event_id"], np.sort(np.asarray(template["event_id"])))


def test_the_processor_has_no_parents_for_noise(folder):
    context = partial_context(folder, "from_noise")
    generate(context, context.windows[0])
    with pytest.raises(ConfigError, match="starts from noise"):
        in_chunks(folder, folder / "events.root", 10_000)


@pytest.mark.parametrize(
    ("window", "said"),
    [("3300-3800", "not a window of this search"), ("3600-4000", r"`Search.generate\(\)` first")],
)
def test_the_processor_names_what_a_run_lacks(folder, window, said):
    with pytest.raises(DrapesError, match=said):
        in_chunks(folder, folder / "events.root", 10_000, window)


def test_the_processor_refuses_a_model_that_is_newer_than_the_template(folder, tmp_path):
    place = tmp_path / "project"
    shutil.copytree(folder, place)
    context = partial_context(place, "from_window")
    generate(context, context.windows[0])
    again = partial_context(place, "from_window", "training.epochs=2")
    train(again, again.windows[0])
    with pytest.raises(DrapesError, match=r"changed since generate\.3300-3700 read it"):
        in_chunks(place, place / "events.root", 10_000)


def test_the_processor_wants_its_settings():
    with pytest.raises(ConfigError, match="settings run and window"):
        load_processor(TEMPLATES)({"folder": "run"})


def test_another_strength_generates_again_and_trains_not(folder):
    context = partial_context(folder, "from_window", "template.strength=0.6")
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "run" / "stages").glob("train*")}
    generate(context, context.windows[0])
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "run" / "stages").glob("train*")} == before


def test_data_as_their_own_simulation_are_refused(folder):
    context = partial_context(folder, "from_simulation", f"template.source={folder / 'events.root'}")
    with pytest.raises(InputError, match="is the data itself"):
        skim_simulation(context)


def test_the_source_is_relative_to_the_configuration(folder):
    tree = {**SEARCH, "template": {"method": "from_simulation", "strength": 1.0, "source": "simulation.root"}}
    (folder / "other.yaml").write_text(yaml.safe_dump(tree))
    config: Config = load_config(folder / "other.yaml")
    assert config.template.source == str(folder / "simulation.root")


def test_a_strength_without_its_step_is_the_nearest(folder):
    with pytest.raises(ConfigError, match="not within"):
        load_config(folder / "tiny.yaml", ["template.method=from_window", "template.strength=1e-9"])


# ---- blocks and devices ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantile_model():
    x, mjj = drifting()
    scaling = fit_scaling("quantile", x, mjj, np.ones(len(x)), [(-np.inf, np.inf)] * 2)
    oracle = GaussianDenoiser(torch.zeros(2), torch.eye(2, dtype=torch.float64))
    return BackgroundModel(oracle, scaling, ("a", "b"), ((3300.0, 3700.0),))


@pytest.mark.parametrize("method", ["from_noise", "from_sidebands"])
def test_a_template_does_not_depend_on_its_blocks(monkeypatch, quantile_model, method):
    size = 60 if method == "from_noise" else 2.5
    _, whole = made(method, parents(), size, quantile_model)
    monkeypatch.setattr(feature_model, "_BLOCK", 17)
    assert np.array_equal(made(method, parents(), size, quantile_model)[1].x, whole.x)


def test_progress_counts_the_blocks(monkeypatch, quantile_model):
    monkeypatch.setattr(feature_model, "_BLOCK", 20)
    seen: list[tuple[int, int]] = []
    more = {"progress": lambda done, total: seen.append((done, total))}
    quantile_model.generate(np.full(60, 3500.0), np.arange(60), 1, karras_steps(3), **more)
    assert seen == [(done, 9) for done in range(1, 10)]


@pytest.mark.parametrize("method", ["from_noise", "from_sidebands"])
def test_a_device_makes_the_template_of_the_cpu(monkeypatch, quantile_model, method):
    size = 60 if method == "from_noise" else 2.5
    _, on_cpu = made(method, parents(), size, quantile_model)
    monkeypatch.setattr(feature_model, "in_torch", lambda _: True)
    monkeypatch.delattr(feature_model, "event_normals")
    np.testing.assert_allclose(made(method, parents(), size, quantile_model)[1].x, on_cpu.x, rtol=1e-6, atol=1e-6)
