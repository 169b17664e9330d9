"""The spread of results over seeds: the study, and how its record reaches results and report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from test_stages import SEARCH, WINDOWS, cut_sample, search

from drapes_hep.bumphunt.seed_spread import read_spreads, seed_spreads
from drapes_hep.errors import InputError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.files import read_json
from drapes_hep.outcome import read_results
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.stages.report import report

pytestmark = pytest.mark.usefixtures("few_trees")


def row(z, observed=20, expected=10.0, cut=0.1):
    return {"window": "3300-3700", "cut": cut, "observed": observed, "expected": expected, "z_local": z}


def test_mean_and_standard_deviation_over_the_searches():
    records = [[row(None, 300, None, 1.0), row(z, 20 + i)] for i, z in enumerate((1.0, 2.0, 4.5))]
    _, spread = seed_spreads(records)
    assert (spread.window, spread.cut, spread.searches, spread.inside) == ("3300-3700", 0.1, 3, 300)
    assert spread.z_mean == pytest.approx(2.5)
    assert spread.z_spread == pytest.approx(np.std([1.0, 2.0, 4.5], ddof=1))
    assert spread.excess_spread == pytest.approx(1.0)


def test_one_search_has_no_spread():
    records = [[row(None, 300, None, 1.0), row(1.0, expected=expected)] for expected in (10.0, None)]
    spread = seed_spreads(records)[1]
    assert (spread.searches, spread.z_mean, spread.z_spread, spread.excess_spread) == (1, None, None, None)


def test_searches_that_observe_nothing_are_not_left_out():
    records = [[row(None, 300, None, 1.0), row(z, observed)] for z, observed in ((1.0, 14), (None, 0), (0.5, 12))]
    spread = seed_spreads(records)[1]
    assert (spread.searches, spread.empty, spread.z_mean, spread.z_spread) == (3, 1, None, None)
    assert spread.excess_spread == pytest.approx(np.std([14, 0, 12], ddof=1))


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_feature_root(tmp_path / "events.root", cut_sample())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    return tmp_path


def test_searches_with_other_seeds_reach_results_and_report(project, drapes):
    options = ["-o", "out", "--workers", 1, "--quiet", "--set", "study.seeds=2"]
    status, _, said = drapes("study", "seeds", "tiny.yaml", *options)
    assert status == 0, said
    records = sorted((project / "out" / "searches").rglob("*.json"))
    first, second = (read_json(path)["rows"] for path in records)
    # the same events, searched otherwise
    assert [r["observed"] for r in first if r["cut"] == 1] == [r["observed"] for r in second if r["cut"] == 1]
    assert [r["observed"] for r in first] != [r["observed"] for r in second]
    # nothing is searched twice
    records[0].write_text(json.dumps({"rows": second}))
    assert drapes("study", "seeds", "tiny.yaml", *options)[0] == 0
    record = project / "out" / "seeds" / "seeds.json"
    assert {spread.excess_spread for spread in read_spreads(record).spreads.values()} <= {0.0, None}

    search(project, project / "run", f"hunt.seeds={record}")
    results = read_results(project / "run")
    quoted = [point.seeds for window in results.windows for point in window.working_points]
    assert {spread.searches for spread in quoted} <= {0, 1, 2}
    assert any(spread.z_spread == 0.0 for spread in quoted)
    page = report(open_run(project / "run")).read_text()
    assert "no error of the expectation" in page

    # nothing is trained without a cut: other seeds have the z of the search, with its spurious signal
    for window in results.windows:
        point = window.working_points[0]
        assert point.seeds.z_spread == pytest.approx(0.0, abs=1e-9)
        assert point.seeds.z_mean == pytest.approx(point.z_local)

    # a record of another search is no spread of this one
    content = read_json(record)
    content["config"]["cwola"]["folds"] = 3
    (project / "other.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"other\.json: is of another search: cwola\.folds"):
        search(project, project / "run", "hunt.seeds=other.json")


POINT = {
    "window": WINDOWS[0], "cut": 1.0, "searches": 2, "empty": 0, "z_mean": 1.0, "z_spread": 0.5, "excess_spread": 3.0,
    "inside": 1,
}  # fmt: skip


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_spreads(tmp_path / "seeds.json")


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ("3300-3700", "is of other events: 1 in the window 3300-3700, here"),
        ("1000-1400", "is not of all windows and cuts"),
    ],
)
def test_a_record_of_other_events_or_cuts_is_refused(project, window, words):
    (project / "seeds.json").write_text(json.dumps({"points": [{**POINT, "window": window}], "config": {}}))
    with pytest.raises(InputError, match=words):
        search(project, project / "run", "hunt.seeds=seeds.json")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"points": 3, "config": {}},
        {"points": [], "config": {}},
        {"points": [{"window": "3300-3700"}], "config": {}},
        {"points": [{**POINT, "searches": 1e999}], "config": {}},
        {"points": [{**POINT, "z_spread": None}], "config": {}},
        {"points": [{**POINT, "z_mean": 1e999}], "config": {}},
    ],
)
def test_what_is_no_record_is_refused(tmp_path, record):
    (tmp_path / "seeds.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"is no record of the study seeds|a mean without a spread"):
        read_spreads(tmp_path / "seeds.json")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("study.seeds=1", "study.seeds: 1 has no spread"),
        ("blind=true", "blind: the spread of a result over seeds"),
        ("template.method=from_simulation", "from_simulation"),
    ],
)
def test_what_has_no_spread_is_refused(project, drapes, words, problem):
    status, _, said = drapes("study", "seeds", "tiny.yaml", "-o", "out", "--set", words)
    assert status == 2
    assert problem in said
