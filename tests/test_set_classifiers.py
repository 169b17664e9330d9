"""Classifiers on constituents: what they may not see, what order must not matter, and that they learn."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import awkward as ak
import h5py
import numpy as np
import pytest
import torch

from drapes_hep.cwola import set_classifiers
from drapes_hep.cwola.classifiers import Classifier, load_classifier, reads_of
from drapes_hep.cwola.jet_inputs import pack_events
from drapes_hep.cwola.perceptron import Mlp
from drapes_hep.cwola.scores import Sample, out_of_fold_scores
from drapes_hep.cwola.set_classifiers import ConstituentTransformer, DijetTransformer
from drapes_hep.cwola.trees import Trees
from drapes_hep.errors import ConfigError, FitError
from drapes_hep.folds import assign_folds
from drapes_hep.metrics import auc

BOTH = [ConstituentTransformer, DijetTransformer]
SMALL = {"width": 16, "depth": 1, "heads": 2}


def dijets(n, seed, width=0.2, most=20, least=3, masses=True):
    """Events of two jets, each of constituents that lie within ``width`` of it and share its momentum."""
    rng = np.random.default_rng(seed)
    number = rng.integers(least, most + 1, 2 * n)
    jet = np.repeat(np.arange(2 * n), number)
    pt, eta, phi = 1200 + rng.exponential(200, 2 * n), rng.normal(0, 1, 2 * n), rng.uniform(-np.pi, np.pi, 2 * n)
    fraction = rng.exponential(1, len(jet))
    fraction /= np.bincount(jet, fraction, 2 * n)[jet]
    inside = {
        "pt": fraction * pt[jet],
        "eta": eta[jet] + rng.normal(0, width, len(jet)),
        "phi": phi[jet] + rng.normal(0, width, len(jet)),
    }
    if masses:
        inside["mass"] = np.zeros(len(jet))
    return events_of({"pt": pt, "eta": eta, "phi": phi, "mass": rng.gamma(2, 60, 2 * n)}, inside, number)


def events_of(jets, inside, number):
    inner = ak.zip({name: ak.unflatten(value, number) for name, value in inside.items()})
    outer = {name: ak.unflatten(value, 2) for name, value in jets.items()}
    outer["constituents"] = ak.unflatten(inner, 2)
    return ak.zip({"jets": ak.zip(outer, depth_limit=2)}, depth_limit=1)


def parts_of(x):
    """The reverse of ``events_of``."""
    jets = {name: ak.to_numpy(ak.flatten(x["jets"][name])) for name in ("pt", "eta", "phi", "mass")}
    inner = ak.flatten(x["jets"]["constituents"])
    inside = {name: ak.to_numpy(ak.flatten(inner[name])) for name in ("pt", "eta", "phi")}
    return jets, inside, ak.to_numpy(ak.num(inner["pt"]))


def fitted(make, seed=3, n=120, **options):
    x = np.concatenate([dijets(n, 1), dijets(n, 2, width=0.3)])
    model = make(seed, **{**SMALL, "epochs": 3, "batch": 32, **options})
    model.fit(x, np.repeat([0, 1], n), np.ones(2 * n), np.arange(2 * n))
    return model


@pytest.fixture(scope="module", params=BOTH, ids=lambda make: make.__name__)
def model(request):
    return fitted(request.param)


def shuffled(x, seed=0):
    """The same events, their constituents in another order."""
    rng = np.random.default_rng(seed)
    jets, inside, number = parts_of(x)
    jet = np.repeat(np.arange(len(number)), number)
    order = np.lexsort([rng.random(len(jet)), jet])
    return events_of(jets, {name: value[order] for name, value in inside.items()}, number)


# ---- what must not matter --------------------------------------------------------------------------------------------


def test_neither_the_order_of_constituents_nor_that_of_jets_matters(model):
    x = dijets(50, 5)
    score = model.score(x)
    assert score.dtype == np.float64
    assert score.shape == (50,)
    assert score.std() > 1e-3
    assert model.score(shuffled(x)) == pytest.approx(score, abs=1e-5)
    swapped = ak.zip({"jets": x["jets"][:, ::-1]}, depth_limit=1)
    assert model.score(swapped) == pytest.approx(score, abs=1e-5)


def test_the_order_of_simulated_constituents_does_not_matter_where_they_are_cut_off(data_dir):
    """Momenta are rounded in the file: some jets have several of the same on both sides of the cut."""
    with h5py.File(data_dir / "simulated" / "qcd_constituents.h5") as file:
        offsets, table = file["const_offset"][:401].astype(np.int64), file["jets"][:200].reshape(-1, 4).astype(float)
        pt, deta, dphi = (file[f"const_{name}"][: offsets[-1]].astype(float) for name in ("pt", "deta", "dphi"))
    jet, number = np.repeat(np.arange(400), np.diff(offsets)), np.diff(offsets)
    most = 20
    long = np.flatnonzero(number > most)
    assert (pt[offsets[long] + most - 1] == pt[offsets[long] + most]).any()
    jets = dict(zip(("pt", "eta", "phi", "mass"), table.T, strict=True))
    x = events_of(jets, {"pt": pt, "eta": table[jet, 1] + deta, "phi": table[jet, 2] + dphi}, number)
    model = ConstituentTransformer(1, **SMALL, epochs=2, batch=32, most=most)
    model.fit(x, np.tile([0, 1], 100), np.ones(200), np.arange(200))
    assert model.score(shuffled(x)) == pytest.approx(model.score(x), abs=1e-5)


def test_an_events_score_does_not_depend_on_its_neighbours(model, monkeypatch):
    x = dijets(40, 6)
    score = model.score(x)
    order = np.random.default_rng(0).permutation(40)
    assert model.score(x[order]) == pytest.approx(score[order], abs=1e-5)
    assert model.score(x[7:8]) == pytest.approx(score[7:8], abs=1e-5)
    assert model.score(x[order < 11]) == pytest.approx(score[order < 11], abs=1e-5)
    monkeypatch.setattr(set_classifiers, "_ROWS", 50)
    assert model.score(x) == pytest.approx(score, abs=1e-5)
    assert model.score(x[:0]).shape == (0,)


def moved(x, factor=1.0, boost=0.0, angle=0.0):
    jets, inside, number = parts_of(x)
    for part in (jets, inside):
        part["pt"], part["eta"], part["phi"] = part["pt"] * factor, part["eta"] + boost, part["phi"] + angle
    # a jet's azimuth stays in [-pi, pi], its constituents' do not: the seam must not show
    jets["phi"] = np.remainder(jets["phi"] + np.pi, 2 * np.pi) - np.pi
    jets["mass"] = jets["mass"] * factor
    return events_of(jets, inside, number)


def test_scale_boost_and_rotation_are_not_seen(model):
    """Scaled by 1.7, m_JJ is 1.7 times as large: a score that does not change cannot know it."""
    x = dijets(50, 7)
    score = model.score(x)
    assert model.score(moved(x, 1.7)) == pytest.approx(score, abs=1e-3)
    assert model.score(moved(x, boost=0.8, angle=2.5)) == pytest.approx(score, abs=1e-3)


def test_the_kinematics_of_the_jets_alone_are_not_seen_by_the_constituents_classifier():
    """Each jet is moved by itself, so that m_JJ changes by any amount."""
    model, x = fitted(ConstituentTransformer), dijets(50, 8)
    jets, inside, number = parts_of(x)
    rng = np.random.default_rng(1)
    factor, boost = rng.uniform(0.5, 2, 100), rng.normal(0, 1, 100)
    jets["pt"], jets["eta"], jets["mass"] = jets["pt"] * factor, jets["eta"] + boost, rng.gamma(2, 60, 100)
    jet = np.repeat(np.arange(100), number)
    inside["pt"], inside["eta"] = inside["pt"] * factor[jet], inside["eta"] + boost[jet]
    assert model.score(events_of(jets, inside, number)) == pytest.approx(model.score(x), abs=1e-3)


def test_the_papers_kinematics_do_see_the_scale():
    model, x = fitted(DijetTransformer, kinematics=True), dijets(50, 7)
    assert np.abs(model.score(moved(x, 1.7)) - model.score(x)).max() > 1e-2


@pytest.mark.parametrize("make", BOTH)
def test_training_repeats_and_leaves_the_global_generator_alone(make):
    x = dijets(30, 5)
    state = torch.random.get_rng_state()
    before = fitted(make).score(x)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    with ThreadPoolExecutor(3) as pool:
        for score in pool.map(lambda _: fitted(make).score(x), range(3)):
            assert np.array_equal(score, before)
    assert not np.array_equal(fitted(make, seed=4).score(x), before)


# ---- that they learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
def test_a_difference_is_found_and_identical_classes_are_not_told_apart(make):
    n = 300
    for width, least in ((0.3, 0.8), (0.2, None)):
        x = np.concatenate([dijets(n, 11), dijets(n, 12, width=width)])
        model = make(1, **SMALL, epochs=8, batch=64)
        assert isinstance(model, Classifier)
        model.fit(x, np.repeat([0, 1], n), np.ones(2 * n), np.arange(2 * n))
        unseen = np.concatenate([dijets(n, 13), dijets(n, 14, width=width)])
        found = auc(model.score(unseen), np.repeat([0, 1], n))
        if least is None:
            assert abs(found.value - 0.5) < 4 * found.error
        else:
            assert found.value > least


@pytest.mark.parametrize("make", BOTH)
def test_out_of_fold_with_events_in_the_place_of_features(make):
    def sample(x, first):
        ids = np.arange(first, first + len(x))
        return Sample(x, np.ones(len(x)), assign_folds(ids, 2, 1), ids)

    # a template's constituents carry no mass
    data, template = sample(dijets(150, 1, width=0.4), 0), sample(dijets(200, 2, masses=False), 1000)
    others = {"sidebands": sample(dijets(60, 3), 5000)}
    one, two = (
        out_of_fold_scores(
            lambda seed: make(seed, **SMALL, epochs=6, batch=32),
            data,
            template,
            others,
            folds=2,
            ensemble=1,
            seed=1,
            workers=workers,
        )
        for workers in (1, 2)
    )
    for name, scores in one.items():
        assert np.isfinite(scores.score).all()
        assert np.array_equal(scores.score, two[name].score)
    assert (one["data"].tail < 0.5).mean() > 0.6


@pytest.mark.parametrize("make", BOTH)
def test_whole_groups_are_held_out_and_scaling_is_of_the_training_part(make, monkeypatch):
    n, seen = 200, {}

    def watch(self, net, events, target, w, held):
        seen["held"] = held.numpy()
        return original(self, net, events, target, w, held)

    original = set_classifiers._SetClassifier._trained
    monkeypatch.setattr(set_classifiers._SetClassifier, "_trained", watch)
    x, group = np.concatenate([dijets(n, 1), dijets(n, 2)]), np.arange(2 * n) % 50
    model = make(1, **SMALL, epochs=1)
    model.fit(x, np.repeat([0, 1], n), np.ones(2 * n), group)
    held = seen["held"]
    assert not set(group[held]) & set(group[~held])
    assert 0.05 < held.mean() < 0.4
    train = pack_events(x[~held], 128, False)
    assert torch.allclose(model._shift[0], train.sets.values.mean(0), atol=1e-4)
    assert torch.allclose(model._shift[1], train.rows.mean(0), atol=1e-4)


@pytest.mark.parametrize("make", BOTH)
def test_steps_bound_the_training_and_patience_ends_it(make, monkeypatch):
    looks = []
    original = set_classifiers._SetClassifier._held_out_loss
    monkeypatch.setattr(
        set_classifiers._SetClassifier,
        "_held_out_loss",
        lambda *given: looks.append(1.0) or original(*given) + len(looks),
    )
    fitted(make, epochs=1000, steps=4)
    assert len(looks) == 4
    looks.clear()
    fitted(make, epochs=50, patience=2)
    assert len(looks) == 3


# ---- what may be odd ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
def test_jets_without_constituents(make):
    x = np.concatenate([dijets(60, 1, least=0, most=2), dijets(60, 2, least=0, most=3)])
    assert ak.any(ak.num(x["jets"]["constituents"]["pt"], axis=2) == 0)
    y = np.repeat([0, 1], 60)
    model = make(1, **SMALL, epochs=2, batch=8)
    model.fit(x, y, np.ones(120), np.arange(120))
    assert np.isfinite(model.score(x)).all()
    none = dijets(60, 3, least=0, most=0)
    assert np.isfinite(model.score(none)).all()
    model.fit(np.concatenate([none, none]), y, np.ones(120), np.arange(120))
    assert np.isfinite(model.score(x)).all()


def test_only_the_leading_constituents_are_seen():
    x = dijets(20, 5, least=10)
    jets, inside, number = parts_of(x)
    kept = ak.zip({name: ak.unflatten(value, number) for name, value in inside.items()})
    kept = kept[ak.argsort(kept["pt"], ascending=False)][:, :8]
    few = events_of(
        jets, {name: ak.to_numpy(ak.flatten(kept[name])) for name in kept.fields}, ak.to_numpy(ak.num(kept))
    )
    for make in BOTH:
        model = fitted(make, most=8)
        assert model.score(x) == pytest.approx(model.score(few), abs=1e-6)


def test_events_that_cannot_be_read_are_refused():
    model, y, x = ConstituentTransformer(1), np.array([0, 1]), dijets(2, 1)
    one = ak.zip({"jets": x["jets"][:, :1]}, depth_limit=1)
    absent = ak.zip({"jets": ak.without_field(x["jets"], "constituents")}, depth_limit=1)
    massless = ak.zip({"jets": ak.without_field(x["jets"], "mass")}, depth_limit=1)
    for events, error, words in (
        (np.ones((2, 3)), ConfigError, "needs events with jets.constituents"),
        (absent, ConfigError, "needs events with jets.constituents"),
        (massless, ConfigError, "events' jets have no mass"),
        (one, ValueError, "exactly two jets"),
        (moved(x, math.nan), ValueError, "must be finite"),
        (moved(x, 0.0), ValueError, "transverse momentum above 0"),
    ):
        with pytest.raises(error, match=words):
            pack_events(events, 128, False)
    with pytest.raises(FitError, match="part holds no"):
        model.fit(x, y, np.ones(2), np.arange(2))
    with pytest.raises(RuntimeError, match="fit the classifier"):
        model.score(x)
    with pytest.raises(ValueError, match="multiple of heads"):
        ConstituentTransformer(1, width=30, heads=4)
    with pytest.raises(ValueError, match="dropout"):
        DijetTransformer(1, dropout=1.0)


def test_names_and_what_they_read():
    assert load_classifier("constituents") is ConstituentTransformer
    assert load_classifier("full_phase_space") is DijetTransformer
    assert [reads_of(one) for one in (Trees, Mlp, *BOTH, dict)] == ["features"] * 2 + ["constituents"] * 2 + [
        "features"
    ]
    with pytest.raises(ConfigError, match="reads 'jets'"):
        reads_of(type("Odd", (), {"reads": "jets"}))


# ---- simulated events ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("make", BOTH)
def test_signal_is_told_from_qcd(make, data_dir):
    """With truth labels, after three epochs of a small sample; half a minute each."""

    def events(name, start, stop):
        with h5py.File(data_dir / "simulated" / f"{name}_constituents.h5") as file:
            jets = file["jets"][start:stop].reshape(-1, 4).astype(np.float64)
            offsets = file["const_offset"][2 * start : 2 * stop + 1]
            begin, end = offsets[0], offsets[-1]
            pt, eta, phi = (file[f"const_{field}"][begin:end].astype(np.float64) for field in ("pt", "deta", "dphi"))
        number = np.diff(offsets)
        inside = {"pt": pt, "eta": eta + np.repeat(jets[:, 1], number), "phi": phi + np.repeat(jets[:, 2], number)}
        return events_of(dict(zip(("pt", "eta", "phi", "mass"), jets.T, strict=True)), inside, number)

    n, y = 3000, np.repeat([0, 1], 3000)
    x = np.concatenate([events("qcd", 0, n), events("signal_3500_500_100", 0, n)])
    model = make(1, epochs=3)
    model.fit(x, y, np.ones(2 * n), np.arange(2 * n))
    unseen = np.concatenate([events("qcd", n, 2 * n), events("signal_3500_500_100", n, 2 * n)])
    assert auc(model.score(unseen), y).value > 0.9
