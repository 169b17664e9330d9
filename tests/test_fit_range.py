"""Events outside the fitted range: they train templates, and no count or fit knows of them."""

from __future__ import annotations

import numpy as np
import pytest
from test_stages import SEARCH, cut_sample

from drapes_hep import Search
from drapes_hep.config import make_config
from drapes_hep.errors import ConfigError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json
from drapes_hep.report import extract
from drapes_hep.report.run_files import load_run
from drapes_hep.stages.derived import pseudo_window
from drapes_hep.templates.parts import TRAIN

pytestmark = pytest.mark.usefixtures("few_trees")

WIDE, FITTED = (2700.0, 6000.0), (2900.0, 5500.0)
OPTIONS = {key: value for key, value in SEARCH.items() if key not in {"data", "signal"}}


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    search = Search({**SEARCH, "data": {"path": str(_file(tmp_path_factory)), "labels": True}}, workers=1, quiet=True)
    columns = ("mjj", "event_id", *search.config.features)
    skim = search.skim()
    return {name: np.asarray(skim.events[name]) for name in columns}


def _file(factory):
    path = factory.mktemp("wide") / "events.root"
    write_feature_root(path, cut_sample())
    return path


@pytest.fixture(scope="module")
def search(events, few_trees):
    done = Search.of_events(
        events, config=OPTIONS, mass={"range": WIDE, "fit_range": FITTED}, device="cpu", workers=1, quiet=True
    )
    done.run()
    return done


def fitted(mjj):
    return (mjj >= FITTED[0]) & (mjj < FITTED[1])


def test_events_of_the_whole_range_are_selected(search, events):
    assert len(search.skim().events["mjj"]) == len(events["mjj"])


def test_the_spectrum_is_that_of_the_fitted_range(search, events):
    hunt = read_json(search.path / "hunt.json")

    assert (hunt["edges"][0], hunt["edges"][-1]) == FITTED
    assert sum(hunt["counts"]) == fitted(events["mjj"]).sum()


def test_events_outside_the_fitted_range_train_templates(events):
    done = Search.of_events(
        events,
        config=OPTIONS,
        mass={"range": WIDE, "fit_range": FITTED},
        training={"scheme": "hold_out"},
        device="cpu",
        workers=1,
        quiet=True,
    )
    done.skim()
    done.train("3300-3700")
    split = read_skim(done.path / "windows" / "3300-3700" / "split.parquet", ("event_id", "part"))
    trained = np.isin(events["event_id"], np.asarray(split["event_id"])[np.asarray(split["part"]) == TRAIN])

    assert (trained & ~fitted(events["mjj"])).any()


def test_a_pseudo_window_lies_in_the_fitted_range(search, events):
    low = Search.of_events(events, config=OPTIONS, mass={"range": WIDE, "fit_range": (2700, 4050)}, quiet=True)

    # above the window there are sidebands, but no fit that masses could be drawn from
    assert pseudo_window(search._context, search._context.windows[1]) == (4200.0, 4600.0)
    assert pseudo_window(low._context, low._context.windows[1]) == (3000.0, 3400.0)


def test_only_fitted_events_say_what_a_cut_passes(search):
    run = load_run(search.path)
    [passed] = {q.total for q in extract.passing(run, run.windows[0]) if q.region == "lower sideband"}
    scores = read_skim(search.path / "windows" / "3300-3700" / "scores.parquet", ("mjj", "region", "part"))
    mjj = np.asarray(scores["mjj"])

    assert passed == ((mjj >= FITTED[0]) & (mjj < 3300.0)).sum()


def test_ranges_in_no_window_are_those_of_the_fit(search):
    unsearched = read_json(search.path / "results.json")["resonance"]["unsearched"]

    assert [tuple(span) for span in unsearched] == [(FITTED[0], 3300.0), (4000.0, FITTED[1])]


@pytest.mark.parametrize("span", [(2600, 6000), (2700, 6100), (5000, 4000)])
def test_a_fitted_range_outside_the_selected_one_is_refused(span):
    with pytest.raises(ConfigError, match="fit_range must be increasing and inside range"):
        make_config({**OPTIONS, "data": {"path": "events.root"}, "mass": {"range": WIDE, "fit_range": span}})


def test_windows_need_sidebands_in_the_fitted_range():
    with pytest.raises(ConfigError, match=r"inside mass\.fit_range \[3300, 5500\]"):
        make_config({**OPTIONS, "data": {"path": "events.root"}, "mass": {"range": WIDE, "fit_range": (3300, 5500)}})
