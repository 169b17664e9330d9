"""Features in the configuration, and further fields of jets that the skim keeps."""

from __future__ import annotations

import json

import awkward as ak
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
import yaml
from conftest import make_columns

from drapes_hep.config import load_config
from drapes_hep.errors import ConfigError, DrapesError
from drapes_hep.events.expressions import evaluate
from drapes_hep.events.features import FEATURES, check_features, compute_features, domains, kept_fields, order_by_mass
from drapes_hep.events.skims import read_skim
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.progress import Reporter
from drapes_hep.stages.skim import skim
from drapes_hep.templates.registry import method_settings

EVENTS = 1500
FIELDS = ("pt", "eta", "phi", "mass", "tau1", "tau2", "tau3")


@pytest.fixture(scope="module")
def jets():
    rng = np.random.default_rng(1)
    flat = {name: rng.uniform(0.1, 2.0, (50, 2)) for name in (*FIELDS, "score")}
    return ak.zip({name: ak.from_regular(ak.Array(values)) for name, values in flat.items()}, depth_limit=2)


@pytest.fixture(scope="module")
def sides(jets):
    """Both jets of a pair as dicts of numpy arrays, the heavier first."""
    return [{name: ak.to_numpy(side[name]) for name in side.fields} for side in order_by_mass(jets)]


def one(expression, **more):
    return {"mine": {"expression": expression, **more}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pt_j2 / pt_j1", lambda a, b: b["pt"] / a["pt"]),
        ("sqrt(pt_j1**2 + mass_j1**2)", lambda a, _: np.sqrt(a["pt"] ** 2 + a["mass"] ** 2)),
        ("TMath::Sqrt(pt_j1*pt_j1) - TMath::Abs(eta_j2)", lambda a, b: np.sqrt(a["pt"] * a["pt"]) - np.abs(b["eta"])),
        ("m_j1 + 2 * tau21_j2", lambda a, b: a["mass"] + 2 * (b["tau2"] / b["tau1"])),
        (
            "where(eta_j1 > eta_j2, tau3_j1, -tau3_j2)",
            lambda a, b: np.where(a["eta"] > b["eta"], a["tau3"], -b["tau3"]),
        ),
        ("(eta_j1 > 1) + (eta_j2 > 1)", lambda a, b: 1.0 * (a["eta"] > 1) + (b["eta"] > 1)),
        ("TMath::Max(tau1_j1, tau1_j2) && pt_j1 > 1", lambda a, _: 1.0 * (a["pt"] > 1)),
        ("arctan2(score_j1, pi) % 0.3", lambda a, _: np.mod(np.arctan2(a["score"], np.pi), 0.3)),
        ("-pt_j1**2", lambda a, _: -(a["pt"] ** 2)),
        ("log(eta_j1 - 1)", lambda a, _: np.log(np.where(a["eta"] > 1, a["eta"] - 1, np.nan))),
    ],
)
def test_an_expression_is_what_numpy_makes_of_it(jets, sides, text, expected):
    found = compute_features(["mine"], jets, one(text), ["score"])["mine"]
    np.testing.assert_array_equal(found, expected(*sides))


def test_definitions_may_stand_in_definitions(jets, sides):
    define = {"a": {"expression": "pt_j1 + pt_j2"}, "b": {"expression": "a / delta_m"}}
    found = compute_features(["b", "m_j1"], jets, define)
    a, b = sides
    np.testing.assert_array_equal(found["b"], (a["pt"] + b["pt"]) / (a["mass"] - b["mass"]))
    assert kept_fields(["b"], define, ["score"]) == ()
    assert kept_fields(["c"], {"c": {"expression": "b2"}, "b2": {"expression": "score_j2"}}, ["x", "score"]) == (
        "score",
    )


def test_a_kept_field_is_a_feature_by_its_own_name(jets, sides):
    found = compute_features(["score_j1", "score_j2"], jets, {}, ["score"])
    np.testing.assert_array_equal(found["score_j1"], sides[0]["score"])
    np.testing.assert_array_equal(found["score_j2"], sides[1]["score"])


def test_the_number_of_constituents(jets):
    counts = np.random.default_rng(2).integers(1, 9, (50, 2))
    inner = ak.unflatten(np.ones(counts.sum()), counts.ravel())
    pairs = ak.with_field(jets, ak.unflatten(ak.zip({"pt": inner}), 2), "constituents")
    heavier = order_by_mass(ak.with_field(jets, ak.from_regular(ak.Array(counts)), "k"))[0]
    found = compute_features(["mine"], pairs, one("n_j1"))["mine"]
    np.testing.assert_array_equal(found, ak.to_numpy(heavier["k"]))
    with pytest.raises(ConfigError, match="'n_j1' needs jets with constituents"):
        compute_features(["mine"], jets, one("n_j1"))


def test_what_is_drawn_of_a_definition():
    define = one("pt_j2", label="$p_T$", unit="GeV", bounds=[0, None], range=[0, 500], bins=7)
    (feature,) = check_features(["mine"], define)
    assert (feature.axis_label, feature.bins, feature.range) == ("$p_T$ [GeV]", 7, (0, 500))
    assert domains(["mine", "m_j1"], define) == [(0, np.inf), (0, np.inf)]
    assert check_features(["mine"], one("pt_j2", bounds=[-1, 3]))[0].range == (-1, 3)
    assert check_features(["mine"], one("pt_j2", unit="GeV"))[0].range == (0, 1000)


@pytest.mark.parametrize(
    ("define", "words"),
    [
        (one("pt_j3"), "define.mine: no column 'pt_j3'; did you mean 'pt_j2'?"),
        (one("msoftdrop_j1"), "set selection.keep: [msoftdrop])"),
        (one("pt_j1 +"), "define.mine: 'pt_j1 +' cannot be parsed ("),
        (one("pt_j1 ^ 2"), "write ** for a power"),
        (one("__import__('os')"), "cannot be parsed ("),
        (one("pt_j1.__class__"), "no column 'pt_j1.__class__'"),
        (one("sum(pt_j1)"), "unknown function 'sum'; available: sqrt, "),
        (one("arctan2(pt_j1)"), "arctan2 takes 2 arguments, not 1"),
        (one("pt_j1[0]"), "brackets are not supported"),
        (one("hbar * pt_j1"), "unknown constant 'hbar'"),
        (one("3.5"), "uses no column: it has the same value for every event"),
        (one("pt_j1" + " + pt_j1" * 200), "an expression of 1605 characters; at most 1000"),
        (one("mjj / 1000"), "define.mine: uses m_JJ ('mjj'): the classifier would learn the window"),
        (one("m_jj"), "uses m_JJ ('m_jj')"),
        (one("other"), "no column 'other'"),
        (one("mine + pt_j1"), "circular definition: mine -> mine"),
        ({**one("b"), "b": {"expression": "mine"}}, "define.mine: circular definition: mine -> b -> mine"),
        ({"mjj": {"expression": "pt_j1"}}, "define.mjj: the resonant mass m_JJ cannot be a feature"),
        ({"m_j1": {"expression": "pt_j1"}}, "define.m_j1: is a feature of the package; choose another name"),
        ({"pt_j1": {"expression": "pt_j2"}}, "define.pt_j1: is a column of every skim or jet"),
        ({"weight": {"expression": "pt_j2"}}, "define.weight: is a column of every skim or jet"),
        ({"my-feature": {"expression": "pt_j2"}}, "define.my-feature: use letters, digits and underscores"),
        ({"mine": {"label": "x"}}, "define.mine: needs an expression, such as 'pt_j2 / pt_j1'"),
        ({"score_j1": {"expression": "pt_j2"}}, "define.score_j1: is a column that selection.keep keeps"),
    ],
)
def test_a_definition_that_is_none_is_one_line(define, words):
    with pytest.raises(ConfigError) as caught:
        check_features(["m_j1"], define, ["score"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_name_of_python_is_reached():
    for text in ("().__class__", "open('x')", "np.load", "lambda: 1", "[x for x in y]", "x if y else z", "x; y", "x=1"):
        with pytest.raises((ConfigError, KeyError)):
            evaluate(text, {}.__getitem__, 1)


# ---- in a configuration and a skim


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same events as NanoAOD, and as a table in Parquet and in HDF5, with further fields of the jets."""
    place = tmp_path_factory.mktemp("kept")
    columns = make_columns(EVENTS, labels=False)
    rng = np.random.default_rng(3)
    softdrop = rng.gamma(2, 40, (EVENTS, 2)).astype(np.float32)
    softdrop[5] = np.nan
    ids = rng.integers(0, 9, (EVENTS, 2)).astype(np.int32)
    table = {**columns, **{f"{name}j{i}": x[:, i - 1] for i in (1, 2) for name, x in (("msd", softdrop), ("id", ids))}}
    momenta = [np.stack([columns[f"{q}j{i}"] for i in (1, 2)], axis=1) for q in ("px", "py", "pz", "m")]
    px, py, pz, mass = momenta
    nano = {"pt": np.hypot(px, py), "eta": np.arcsinh(pz / np.hypot(px, py)), "phi": np.arctan2(py, px), "mass": mass}
    nano |= {f"tau{n}": np.stack([columns[f"tau{n}j{i}"] for i in (1, 2)], axis=1) for n in (1, 2, 3)}
    nano |= {"msd": softdrop, "id": ids, "flags": rng.random((EVENTS, 2, 3))}
    lists = {f"FatJet_{name}": ak.from_regular(ak.Array(values)) for name, values in nano.items() if values.ndim == 2}
    lists["FatJet_flat"] = np.arange(EVENTS)
    with uproot.recreate(place / "events.root") as file:
        file["Events"] = lists
    ak.to_parquet(ak.zip(lists, depth_limit=1), place / "nano.parquet")
    # pandas would write NaN as missing
    pq.write_table(pa.table({name: pa.array(values) for name, values in table.items()}), place / "events.parquet")
    pd.DataFrame(table).to_hdf(place / "events.h5", key="df")
    return place, mass, softdrop, ids


SEARCH = {
    "name": "kept",
    "selection": {"leading_pt": 0, "abs_eta_max": 10, "keep": ["msd", "id"], "undefined": "drop"},
    "mass": {"range": [1000, 9000]},
    "define": {
        "pt_ratio": "pt_j2 / pt_j1",
        "msd_ratio": {"expression": "msd_j2 / msd_j1", "label": "$x$", "bounds": [0, None], "range": [0, 4]},
    },
    "features": ["m_j1", "msd_j1", "msd_ratio", "pt_ratio"],
    "blind": False,
}


def configured(tmp_path, place, name="events.root", **changes):
    sections = {**SEARCH, "data": {"path": str(place / name)}}
    for key, value in changes.items():
        section, _, last = key.rpartition("__")
        sections = {**sections, section: {**sections[section], last: value}} if section else {**sections, key: value}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(sections))
    return load_config(tmp_path / "search.yaml")


def skimmed(tmp_path, config):
    context = Context.of(config, open_run(tmp_path / "run"), device="cpu", reporter=Reporter(quiet=True))
    skim(context)
    return read_skim(context.run.events)


@pytest.mark.parametrize("name", ["events.root", "nano.parquet", "events.parquet", "events.h5"])
def test_kept_fields_and_features_of_them_are_in_the_skim(tmp_path, folder, name):
    place, mass, softdrop, ids = folder
    found = skimmed(tmp_path, configured(tmp_path, place, name))
    rows = np.asarray(found["event_id"]) & 0xFFFFFFFF
    heavier = np.where(mass[rows, 1] > mass[rows, 0], 1, 0)
    for field, values in (("msd", softdrop), ("id", ids)):
        for jet, side in ((1, heavier), (2, 1 - heavier)):
            column = np.asarray(found[f"{field}_j{jet}"])
            np.testing.assert_array_equal(column, values[rows, side])
    np.testing.assert_array_equal(
        found["msd_ratio"], np.asarray(found["msd_j2"], dtype=float) / np.asarray(found["msd_j1"], dtype=float)
    )
    assert 5 not in rows  # undefined, and so dropped
    assert np.asarray(found["id_j1"]).dtype == np.int32 or name == "events.h5"


def test_a_skim_of_a_skim_keeps_the_fields(tmp_path, folder):
    first = skimmed(tmp_path, configured(tmp_path, folder[0]))
    (tmp_path / "again").mkdir()
    config = configured(tmp_path / "again", tmp_path / "run" / "skim", "events.parquet")
    again = skimmed(tmp_path / "again", config)
    for name in ("msd_j1", "msd_j2", "id_j1", "msd_ratio", "pt_ratio"):
        np.testing.assert_array_equal(again[name], first[name])


def test_an_undefined_value_may_be_filled(tmp_path, folder):
    found = skimmed(tmp_path, configured(tmp_path, folder[0], selection__undefined=-1.0))
    rows = np.asarray(found["event_id"]) & 0xFFFFFFFF
    (place,) = np.flatnonzero(rows == 5)
    assert found["msd_ratio"][place] == -1.0
    assert np.isnan(found["msd_j2"][place])


def test_histograms_carry_the_label(tmp_path, folder):
    skimmed(tmp_path, configured(tmp_path, folder[0]))
    hists = json.loads((tmp_path / "run" / "skim" / "hists.json").read_text())
    axis = hists["msd_ratio"]["axes"][-1]
    assert (axis["lower"], axis["upper"], axis["bins"]) == (0, 4, 60)
    assert "$x$" in json.dumps(axis)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("events.root", {"selection__keep": ["msdd"], "define": {}}, "no column 'FatJet_msdd' (closest present: 'Fat"),
        ("events.h5", {"selection__keep": ["msdd"], "define": {}}, "has no columns 'msddj1', 'msddj2'"),
        ("events.root", {"selection__keep": ["flat"], "define": {}}, "int64_t, not one number per jet"),
        ("events.root", {"selection__keep": ["pt"], "define": {}}, "selection.keep: 'pt' is always kept"),
        ("events.root", {"define": {"x": {"expression": "pt_j1", "bounds": [0, 10]}}},
         "the skim's 'x' holds values outside its bounds (0 to 10) in"),
    ],
)  # fmt: skip
def test_what_a_file_does_not_hold_is_one_line(tmp_path, folder, name, changes, words):
    features = ["m_j1", *changes["define"]]
    config = configured(tmp_path, folder[0], name, features=features, **changes)
    with pytest.raises(DrapesError) as caught:
        skimmed(tmp_path, config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": ["m_j1", {"pt_ratio": "pt_j2 / pt_j1"}]}, "define your own features under 'define'"),
        (
            {"define": {"x": {"expresion": "pt_j1"}}},
            "unknown key 'define.x.expresion'; did you mean 'define.x.expression'",
        ),
        (
            {"define": {"x": {"expression": "pt_j1", "range": [2, 1]}}},
            "'define.x': range must be increasing, got 2 to 1",
        ),
        ({"define": {"x": {"expression": "pt_j1", "bounds": [2, 1]}}}, "'define.x': bounds must be increasing"),
        (
            {"define": {"x": {"expression": "pt_j1", "function": "a.py:f"}}},
            "has both an expression and a function; keep one",
        ),
        ({"define": {"x": 3}}, "x must be an expression or a section"),
        ({"define": ["x"]}, "'define' is a section"),
        ({"selection__keep": ["msd", "msd"]}, "selection.keep: a field is listed twice"),
    ],
)
def test_a_malformed_definition_is_one_line_with_its_place(tmp_path, folder, changes, words):
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, folder[0], **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


FUNCTION = """
import numpy as np

def balance(j1, j2):
    return np.asarray(j2.pt) / np.asarray(j1.pt)

def short(j1, j2):
    return [1.0]

def fails(j1, j2):
    return 1 / 0
"""


def test_a_function_of_a_file_makes_a_feature(tmp_path, folder):
    (tmp_path / "mine.py").write_text(FUNCTION)
    define = {"pt_ratio": "pt_j2 / pt_j1", "balance": {"function": "mine.py:balance"}}
    found = skimmed(tmp_path, configured(tmp_path, folder[0], define=define, features=["balance", "pt_ratio"]))
    np.testing.assert_array_equal(found["balance"], found["pt_ratio"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.py:short", "mine.py:short: returned float64 of shape (1,), not 1500 numbers"),
        ("mine.py:fails", "mine.py:fails: ZeroDivisionError: division by zero ("),
        ("mine.py:balanse", "no class 'balanse' in mine.py; did you mean 'balance'?"),
        ("other.py:balance", "define.x.function 'other.py:balance': no file other.py"),
    ],
)
def test_a_function_that_goes_wrong_is_one_line(tmp_path, folder, name, words):
    (tmp_path / "mine.py").write_text(FUNCTION)
    config = configured(tmp_path, folder[0], define={"x": {"function": name}}, features=["x"])
    with pytest.raises(DrapesError) as caught:
        skimmed(tmp_path, config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_definition_says_decides_the_model_and_its_label_does_not(tmp_path, folder):
    def settings(**changes):
        define = {"msd_ratio": {**SEARCH["define"]["msd_ratio"], **changes}}
        return method_settings(configured(tmp_path, folder[0], define=define, features=["msd_ratio"]))

    assert settings(label="$y$", range=[0, 9], unit="GeV") == settings()
    assert settings(expression="msd_j1") != settings()
    assert settings(bounds=[0, 7]) != settings()


def test_every_feature_of_the_package_may_stand_in_an_expression(jets):
    for name in FEATURES:
        np.testing.assert_array_equal(
            compute_features(["mine"], jets, one(f"1 * {name}"))["mine"], compute_features([name], jets)[name]
        )
