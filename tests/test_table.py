"""Searches of events in memory: which tables are taken, what is wrong with others, and where every row goes."""

from __future__ import annotations

import json

import awkward as ak
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from drapes_hep import Search
from drapes_hep.cli import main
from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, InputError, RunDirectoryError
from drapes_hep.events.table import read_events
from drapes_hep.files import read_json
from drapes_hep.stages.sequence import check_plugins

FEATURES = ("m_j1", "tau21_j1")


def columns(n: int = 400, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "mjj": 2600 + rng.exponential(600, n),
        "m_j1": rng.gamma(2, 60, n),
        "tau21_j1": rng.beta(4, 3, n),
        "event_id": rng.permutation(10 * n)[:n],
        "label": (rng.random(n) < 0.2).astype(np.int64),
    }


def search_of(events, output=None, **options) -> Search:
    return Search.of_events(events, output, **{"features": FEATURES, "blind": False, "quiet": True, **options})


KINDS = {
    "dict": dict,
    "lists": lambda table: {name: values.tolist() for name, values in table.items()},
    "pandas": pd.DataFrame,
    "nullable pandas": lambda table: pd.DataFrame(table).convert_dtypes(),
    "pandas by arrow": lambda table: pd.DataFrame(table).convert_dtypes(dtype_backend="pyarrow"),
    "awkward": ak.Array,
    "arrow": pa.table,
    "arrow in chunks": lambda table: pa.concat_tables([pa.table(table).slice(0, 7), pa.table(table).slice(7)]),
    "record batch": lambda table: pa.table(table).to_batches()[0],
    "structured": lambda table: pd.DataFrame(table).to_records(index=False),
    "big-endian": lambda table: {name: values.astype(values.dtype.newbyteorder(">")) for name, values in table.items()},
    "strided": lambda table: {name: np.repeat(values, 2)[::2] for name, values in table.items()},
    "masked": lambda table: {name: np.ma.masked_array(values) for name, values in table.items()},
    "more columns": lambda table: {**table, "jets": [[1]] * len(table["mjj"]), "name": ["a"] * len(table["mjj"])},
}


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_every_kind_are_the_same(kind):
    expected = columns()
    table = read_events(KINDS[kind](expected), FEATURES)
    for name, values in expected.items():
        np.testing.assert_array_equal(table.columns[name], values)
    assert table.hash == read_events(expected, FEATURES).hash
    assert {name: values.dtype.str for name, values in table.columns.items()} == {
        "event_id": "<i8",
        "mjj": "<f8",
        "m_j1": "<f8",
        "tau21_j1": "<f8",
        "label": "<i8",
    }


def test_rows_are_numbered_without_identities():
    table = read_events({"mjj": [3000.0, 3100.0], "m_j1": [1.0, 2.0]}, ["m_j1"])
    assert table.columns["event_id"].tolist() == [0, 1]
    assert "label" not in table.columns


@pytest.mark.parametrize("name", ["mjj", "m_j1", "event_id", "label"])
def test_another_value_is_another_table(name):
    changed = columns()
    changed[name] = changed[name].copy()
    changed[name][3] = 1 - changed[name][3] if name == "label" else changed[name][3] + 100_000
    assert read_events(changed, FEATURES).hash != read_events(columns(), FEATURES).hash


def test_a_table_that_is_changed_later_is_the_one_that_was_given():
    events = columns()
    search = search_of(events)
    events["m_j1"][:] = 0
    assert np.all(search.skim().events["m_j1"] > 0)


class Refusing:
    """A column of a library that wants to be asked otherwise."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("detach it first")


GOOD = {"mjj": [3000.0, 3100.0], "m_j1": [1.0, 2.0], "tau21_j1": [0.1, 0.2]}
TWICE = pd.DataFrame([[3000.0, 1.0, 0.1, 1.0]], columns=["mjj", "m_j1", "tau21_j1", "m_j1"])
BAD = {
    "missing": ({"mjj": [1.0]}, "no column 'm_j1' (columns: mjj)"),
    "no mass": (
        {"m_j1": [1.0], "tau21_j1": [1.0]},
        "no column 'mjj': the invariant mass of the two jets in GeV (columns: m_j1, tau21_j1); add it",
    ),
    "another mass": ({"M_jj": [1.0], "m_jj": [1.0], "m_j1": [1.0]}, "m_j1); rename 'm_jj', if it is that"),
    "nothing": ({}, "no column 'mjj': the invariant mass of the two jets in GeV (columns: none)"),
    "twice": (TWICE, "column 'm_j1' occurs 2 times"),
    "lengths": ({**GOOD, "m_j1": [1.0]}, "column 'm_j1' has 1 row, 'mjj' has 2"),
    "no row": ({name: [] for name in GOOD}, "the table has no rows"),
    "NaN mass": ({**GOOD, "mjj": [3000.0, np.nan]}, "column 'mjj': 1 value is not finite, the first in row 1 (nan)"),
    "infinite mass": ({**GOOD, "mjj": [np.inf, np.inf]}, "column 'mjj': 2 values are not finite, the first in row 0"),
    "text": ({**GOOD, "m_j1": ["1", "2"]}, "column 'm_j1' holds text, not numbers"),
    "text of arrow": (pa.table({**GOOD, "m_j1": ["1", "2"]}), "column 'm_j1' holds string, not numbers"),
    "text of awkward": (ak.Array({**GOOD, "m_j1": ["1", "2"]}), "column 'm_j1' holds text, not numbers"),
    "objects": ({**GOOD, "m_j1": [1.0, None]}, "column 'm_j1' holds values of type object"),
    "masked": ({**GOOD, "m_j1": np.ma.masked_array([1.0, 2.0], [0, 1])}, "column 'm_j1' has 1 missing value"),
    "null": (pa.table({**GOOD, "m_j1": [1.0, None]}), "column 'm_j1' has 1 missing value"),
    "None": (ak.Array({**GOOD, "m_j1": [1.0, None]}), "column 'm_j1' has 1 missing value"),
    "dates": ({**GOOD, "m_j1": np.zeros(2, "datetime64[s]")}, "column 'm_j1' holds values of type datetime64[s]"),
    "complex": ({**GOOD, "m_j1": [1j, 2.0]}, "column 'm_j1' holds values of type complex128"),
    "booleans": ({**GOOD, "m_j1": [True, False]}, "column 'm_j1' holds true and false"),
    "ragged": ({**GOOD, "m_j1": [[1.0], [1.0, 2.0]]}, "column 'm_j1' is nested"),
    "ragged awkward": (ak.Array({**GOOD, "m_j1": [[1.0], [1.0, 2.0]]}), "column 'm_j1' is nested"),
    "records": (ak.Array({**GOOD, "m_j1": [{"x": 1.0}, {"x": 2.0}]}), "column 'm_j1' is nested"),
    "refusing": ({**GOOD, "m_j1": Refusing()}, "not an array (RuntimeError: detach it first)"),
    "two axes": ({**GOOD, "m_j1": np.ones((2, 2))}, "column 'm_j1' is nested: its shape is (2, 2)"),
    "one number": ({**GOOD, "m_j1": 1.0}, "column 'm_j1' is one value, not one per event"),
    "weights": ({**GOOD, "weight": [1.0, 0.5]}, "column 'weight': 1 value is not 1, the first in row 1 (0.5)"),
    "NaN weight": ({**GOOD, "weight": [np.nan, 1.0]}, "column 'weight': 1 value is not 1, the first in row 0 (nan)"),
    "labels": ({**GOOD, "label": [0, 2]}, "column 'label': 1 value is neither 0 nor 1, the first in row 1 (2)"),
    "NaN label": ({**GOOD, "label": [0, np.nan]}, "column 'label': 1 value is neither 0 nor 1"),
    "repeated": ({**GOOD, "event_id": [7, 7]}, "column 'event_id': 1 value is repeated, the first in row 1"),
    "real id": ({**GOOD, "event_id": [1.0, 2.0]}, "column 'event_id' holds float64, not integers"),
    "negative id": ({**GOOD, "event_id": [-1, 2]}, "column 'event_id': 1 value is outside 0 to 2**63 - 1"),
    "large id": ({**GOOD, "event_id": np.array([1, 2**63], np.uint64)}, "outside 0 to 2**63 - 1, the first in row 1"),
    "larger id": ({**GOOD, "event_id": [1, 2**70]}, "column 'event_id' holds values of type object"),
    "a path": ("events.parquet", "expected a dict of arrays, a DataFrame"),
    "a list": ([GOOD], "got list"),
    "an array": (np.ones((2, 3)), "got ndarray"),
    "ragged events": (ak.Array([[{"mjj": 1.0}], []]), "got Array"),
    "None at all": (None, "got NoneType"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_line(case):
    events, words = BAD[case]
    with pytest.raises(InputError) as error:
        read_events(events, FEATURES)
    assert words in str(error.value)
    assert str(error.value).startswith("events: ")


# ---- the selection ---------------------------------------------------------------------------------------------------


def test_every_row_is_accounted_for(tmp_path):
    table = columns()
    table["tau21_j1"][:9] = np.nan
    table["m_j1"][5:12] = np.inf
    search = search_of(table, tmp_path / "run")
    selected = search.skim()
    inside = (table["mjj"] >= 2700) & (table["mjj"] < 6000)
    tau, mass = np.isnan(table["tau21_j1"]), np.isinf(table["m_j1"])
    passed = inside & ~tau & ~mass
    assert {one.name: one.events for one in selected.cutflow} == {
        "read": 400,
        "mass_range": inside.sum(),
        "undefined_m_j1": (inside & mass).sum(),
        "undefined_tau21_j1": (inside & tau).sum(),
        "defined": passed.sum(),
        "not_injected": 0,
    }
    for name in ("event_id", "mjj", *FEATURES):
        np.testing.assert_array_equal(selected.events[name], table[name][passed])
    np.testing.assert_array_equal(selected.label, table["label"][passed])
    assert selected.not_applied == ("leading_pt", "abs_eta")
    record = read_json(tmp_path / "run" / "skim" / "skim.json")
    assert record["accounting"] == {"requested": 400, "processed": 400, "lost": 0}
    assert selected.hists["mjj"]["data", "before", sum].value == 400
    assert selected.hists["m_j1"]["data", "after", sum].value == passed.sum()


def test_an_undefined_feature_may_get_a_value():
    table = columns()
    table["tau21_j1"][:] = np.where(np.arange(400) < 9, np.nan, table["tau21_j1"])
    selected = search_of(table, selection={"undefined": -1.0}).skim()
    inside = (table["mjj"] >= 2700) & (table["mjj"] < 6000)
    assert len(selected.events["mjj"]) == inside.sum()
    assert (selected.events["tau21_j1"] == -1).sum() == inside[:9].sum()


def test_signal_is_injected_by_labels():
    table = columns()
    selected = search_of(table, signal={"inject": 10}, mass={"range": (2600, 12_000)}).skim()
    assert selected.label.sum() == 10
    assert {one.name: one.events for one in selected.cutflow}["not_injected"] == table["label"].sum() - 10


def hidden_outputs(tmp_path, name, table) -> list[bytes]:
    search_of(table, tmp_path / name, blind=True).skim()
    return [(tmp_path / name / "skim" / file).read_bytes() for file in ("skim.json", "hists.json")]


def test_a_blinded_selection_shows_nothing_of_the_windows(tmp_path):
    """Events of the windows are changed, removed and added: numbers and histograms stay, byte by byte."""
    table = columns()
    table["tau21_j1"][::5] = np.nan
    inside = (table["mjj"] >= 3100) & (table["mjj"] < 5100)
    selected, dropped = inside & np.isfinite(table["tau21_j1"]), inside & np.isnan(table["tau21_j1"])
    other = {name: values.copy() for name, values in table.items()}
    other["m_j1"][selected] *= 2
    other["mjj"][dropped] = 4000.0
    other = {name: np.append(values, values[selected][:3]) for name, values in other.items()}
    other["event_id"][-3:] = [900_000, 900_001, 900_002]
    other = {name: np.delete(values, np.flatnonzero(selected)[:7]) for name, values in other.items()}
    assert hidden_outputs(tmp_path, "one", table) == hidden_outputs(tmp_path, "two", other)


def test_a_blinded_selection_shows_the_sidebands(tmp_path):
    table = columns()
    search_of(table, tmp_path / "run", blind=True).skim()
    record = read_json(tmp_path / "run" / "skim" / "skim.json")
    sidebands = ((table["mjj"] >= 2700) & (table["mjj"] < 3100)) | ((table["mjj"] >= 5100) & (table["mjj"] < 6000))
    assert record["cutflow"][-2]["events"] == sidebands.sum()
    assert record["accounting"]["requested"] is None
    assert len(record["hidden"]) == 9


# ---- resuming --------------------------------------------------------------------------------------------------------


def test_the_same_table_is_not_read_again(tmp_path, capsys):
    search_of(columns(), tmp_path / "run").skim()
    search_of(pd.DataFrame(columns()), tmp_path / "run", quiet=False).skim()
    assert capsys.readouterr().err == "skim: already done\n"


def test_another_table_is_noticed(tmp_path):
    search_of(columns(), tmp_path / "run").skim()
    with pytest.raises(
        RunDirectoryError, match=r"contains skim run with table [0-9a-f]+, the configuration has [0-9a-f]"
    ):
        search_of(columns(seed=2), tmp_path / "run").skim()
    assert len(search_of(columns(seed=2), tmp_path / "run", overwrite=True).skim().events["mjj"])


def test_the_manifest_names_the_table(tmp_path):
    search = search_of(columns(), tmp_path / "run")
    search.skim()
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["inputs"] == {"<table>": read_events(columns(), FEATURES).hash}
    assert manifest["config"]["data"]["path"] == "<table>"


# ---- the configuration -----------------------------------------------------------------------------------------------


def test_keywords_replace_keys_of_a_configuration():
    config = {"name": "mine", "windows": {"first": 3300, "last": 3700}, "seed": 5, "data": {"path": "none.root"}}
    found = search_of(columns(), config=config, windows={"last": 3300}).config
    assert (found.name, found.seed, found.windows.first, found.windows.last) == ("mine", 5, 3300, 3300)
    assert found.data.path == "<table>"
    assert found.data.labels


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widnows": {}}, "unknown section 'widnows'; did you mean 'windows'?"),
        ({"windows": {"frist": 1}}, "unknown key 'windows.frist'; did you mean 'windows.first'?"),
        ({"data": {"labels": False}}, "data: the events come from the table; remove this section"),
        ({"features": ["mjj"]}, "the resonant mass m_JJ cannot be a feature"),
        ({"features": "m_j1"}, "features"),
        ({"seed": "one"}, "seed"),
        (
            {"mass": {"range": (2.7, 6.0)}, "windows": {"first": 3, "last": 4, "width": 1}},
            "the selection keeps no event",
        ),
        ({"signal": {"inject": 10_000}}, "signal.inject: 10000 signal events are requested"),
    ],
)
def test_a_wrong_configuration_is_one_line(options, words):
    with pytest.raises(ConfigError) as error:
        search_of(columns(), **options).skim()
    assert words in str(error.value)


def test_an_injection_needs_labels():
    table = columns()
    del table["label"]
    with pytest.raises(ConfigError, match="needs labelled events: add a column 'label'"):
        search_of(table, signal={"inject": 3})


def test_constituents_need_files():
    config = Config.model_validate({"name": "x", "data": {"path": "x"}, "constituents": {}})
    with pytest.raises(ConfigError, match="a table contains features only"):
        check_plugins(config, table=True)


def test_a_table_is_no_file_for_the_command(tmp_path, monkeypatch, capsys):
    """The manifest's configuration, run by the command: one line."""
    search = search_of(columns(), tmp_path / "run")
    search.skim()
    (tmp_path / "again.yaml").write_text(json.dumps(read_json(tmp_path / "run" / "manifest.json")["config"]))
    monkeypatch.setattr("sys.argv", ["drapes", "skim", str(tmp_path / "again.yaml"), "-o", str(tmp_path / "other")])
    with pytest.raises(SystemExit):
        main()
    assert "<table>: no such file" in capsys.readouterr().err
