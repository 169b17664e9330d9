"""The public face: the search from Python, its results, and how a notebook shows them."""

from __future__ import annotations

import builtins
import dataclasses
import gc
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hist
import numpy as np
import pytest
import yaml
from conftest import ROOT
from test_docs import FENCE
from test_stages import SEARCH, WINDOWS, cut_sample

import drapes_hep
from drapes_hep import Search, read_results, run_search
from drapes_hep.errors import ConfigError, InputError, RunDirectoryError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.skims import read_skim
from drapes_hep.files import read_json, write_json
from drapes_hep.html import html_table
from drapes_hep.outcome import Results, _Record
from drapes_hep.pipeline.code_keys import hashes_of
from drapes_hep.products import Template
from drapes_hep.progress import Reporter
from drapes_hep.results import results_schema

pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a configuration and its data."""
    folder = tmp_path_factory.mktemp("face")
    write_feature_root(folder / "events.root", cut_sample())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    return folder


@pytest.fixture(scope="module")
def search(project, few_trees) -> Search:
    """A search whose hunt is done, stage by stage."""
    return Search(project / "tiny.yaml", project / "run", device="cpu", workers=1, quiet=True)


@pytest.fixture(scope="module")
def stages(search) -> dict:
    """What each stage returns."""
    names = ("skim", "train", "generate", "classify", "hunt")
    return {name: getattr(search, name)() for name in names}


def example(words: str) -> str:
    """The one Python block of the tutorial that holds these words."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (body,) = [body for kind, body in FENCE.findall(text) if kind == "python" and words in body]
    return body


# ---- the package -----------------------------------------------------------------------------------------------------

HEAVY = """
import sys
import drapes_hep
print(sorted({"torch", "coffea", "numpy", "pydantic", "awkward", "hist"} & sys.modules.keys()))
print(sorted(set(drapes_hep.__all__) - set(dir(drapes_hep))))
"""


def test_the_package_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


@pytest.mark.parametrize("name", drapes_hep.__all__)
def test_every_public_name_is_there(name):
    assert getattr(drapes_hep, name) is not None


def test_lazy_names_are_those_that_type_checkers_see():
    types = (ROOT / "drapes_hep" / "__init__.py").read_text().partition("TYPE_CHECKING:")[2].partition("else:")[0]
    imported = {
        name.strip(): line.split()[1].removeprefix("drapes_hep.")
        for line in types.splitlines()
        if " import " in line
        for name in line.partition(" import ")[2].split(",")
    }
    assert imported == drapes_hep._HOMES
    assert set(drapes_hep.__all__) == {"__version__", *imported}


def test_a_name_that_is_not_offered():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        importlib.import_module("drapes_hep").serach  # noqa: B018


FACE = {"search", "outcome", "products", "html", "__init__", "cli", "stages/sequence"}


def test_no_stage_rests_on_the_face():
    stages = [
        "stages.skim",
        "stages.skim_table",
        "stages.train",
        "stages.generate",
        "stages.classify",
        "stages.hunt",
        "stages.simulation",
    ]
    assert not {f"drapes_hep/{name}.py" for name in FACE} & hashes_of(stages).keys()


def test_a_users_class_rests_on_what_it_inherits_and_not_on_the_face(tmp_path):
    (tmp_path / "mine.py").write_text("from drapes_hep import BackgroundMethod\n")
    modules = hashes_of([tmp_path / "mine.py"]).keys()
    assert "drapes_hep/templates/methods.py" in modules
    assert not {f"drapes_hep/{name}.py" for name in FACE} & modules


def test_files_do_not_rest_on_the_table():
    assert not {"drapes_hep/stages/skim_table.py", "drapes_hep/events/table.py"} & hashes_of(["stages.skim"]).keys()


# ---- the stages ------------------------------------------------------------------------------------------------------


def test_the_selection_returns_events_cut_flow_and_hists(stages, project):
    selected = stages["skim"]
    assert selected.cutflow[-2].name == "defined"
    assert selected.cutflow[-2].events == len(selected.events["mjj"]) == len(selected.label)
    assert selected.hists["mjj"]["data", "after", sum].value == len(selected.events["mjj"])
    assert len(selected.events["jets"][0]) == 2


def test_the_training_returns_its_curves(stages):
    trained = stages["train"]
    assert tuple(trained) == WINDOWS
    curve = trained[WINDOWS[0]].curves["features_0"]
    assert curve.train.shape == curve.validation.shape == curve.rate.shape == (SEARCH["training"]["epochs"],)
    assert curve.best_epoch == np.argmin(curve.validation) + 1


def test_the_template_is_in_its_window(stages):
    events = stages["generate"][WINDOWS[1]].events
    assert (events["mjj"].min() >= 3600) & (events["mjj"].max() < 4000)
    assert {"m_j1", "parent_id", "weight"} <= events.keys()


def test_the_scores_are_of_data_and_template(stages):
    scored = stages["classify"][WINDOWS[0]]
    results = stages["hunt"].window(WINDOWS[0])
    assert (scored.data["region"] == 1).sum() == results.n_observed
    # the events that set the cuts: a hundred above the tightest in each of two folds
    assert len(scored.template["tail"]) == 2 * 100 / 0.01
    assert scored.quality["template"]["n"] == results.template.n


def test_the_hunt_returns_what_its_file_holds(stages, project):
    record = read_json(project / "run" / "results.json")
    results = stages["hunt"]
    z_local = [[point.z_local for point in window.working_points] for window in results.windows]
    assert z_local == [[point["z_local"] for point in window["working_points"]] for window in record["windows"]]
    assert results.global_significance.p_global == record["global"]["p_global"]
    assert results == read_results(project / "run")


def test_the_histograms_are_those_of_the_root_file(stages, project):
    import uproot

    hists = stages["hunt"].hists()
    with uproot.open(project / "run" / "hists.root") as file:
        assert set(file.keys(cycle=False)) == set(hists)
    assert isinstance(hists["mjj_3300_3700_eff1"], hist.Hist)


def test_a_finished_stage_is_not_run_again(search, stages, capsys):
    loud = Search(search.config, search.path, device="cpu")
    loud.train(WINDOWS[0])
    assert capsys.readouterr().err == f"train.{WINDOWS[0]}: already done\n"


def test_one_window_alone(search, stages):
    assert tuple(search.generate(WINDOWS[1])) == (WINDOWS[1],)


def test_stages_in_the_wrong_order_are_one_line(project, tmp_path):
    with pytest.raises(
        RunDirectoryError, match=r"skim is not done, train\.3300-3700 needs it; run `Search\.skim\(\)` first"
    ):
        Search(project / "tiny.yaml", tmp_path / "run", device="cpu", quiet=True).train()


def test_another_configuration_is_not_replaced_without_leave(search, stages):
    other = Search({**SEARCH, "seed": 4, "data": search.config.data}, search.path, device="cpu", quiet=True)
    with pytest.raises(
        RunDirectoryError,
        match="with seed 3, the configuration has 4; name another directory as output, or replace it with overwrite=T",
    ):
        other.run()


def test_the_command_goes_on_with_a_search(search, stages, project, drapes):
    status, _, err = drapes("hunt", project / "tiny.yaml", "-o", search.path, "--device", "cpu")
    assert (status, err) == (0, "hunt: already done\n")


def test_the_report_is_that_of_the_run(search, stages, monkeypatch):
    called = []
    monkeypatch.setattr("drapes_hep.stages.report._write", lambda *words: called.append(words))
    search.report()
    assert called == [(search._context.run, search.config.plots.model_dump(mode="json"), None)]


def test_a_configuration_written_in_python(project, monkeypatch):
    monkeypatch.chdir(project)
    config = Search({**SEARCH, "mass": {"range": (2700, 6000)}}, quiet=True).config
    assert config.data.path == str(project / "events.root")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"device": "gpu"}, "device='gpu': choose auto, cpu or cuda"),
        ({"executor": "dask"}, "executor='dask': choose iterative or futures"),
        ({"workers": 0}, "workers=0: at least 1"),
    ],
)
def test_a_wrong_option_is_one_line(options, line):
    with pytest.raises(ConfigError) as error:
        Search(SEARCH, **options)
    assert str(error.value) == line


def test_a_wrong_window_is_one_line(search):
    with pytest.raises(
        ConfigError, match="window='3000-3400': not a window of this search; it has 3300-3700, 3600-4000"
    ):
        search.train("3000-3400")


RATIO = {"expression": "half / m_j1", "label": "$r$", "range": [0, 3], "bounds": [0, None]}
DEFINE = {"ratio": RATIO, "half": {"expression": "delta_m / 2"}}


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(1)
    return {
        "mjj": 2700 * rng.uniform(0.01, 1, 3000) ** -0.18,
        "m_j1": rng.uniform(100, 500, 3000),
        "delta_m": rng.uniform(0, 300, 3000),
    }


def of_events(events, **sections):
    small = {"training": {"epochs": 1, "width": 8, "depth": 1}, "windows": {"first": 3300, "last": 3300, "width": 400}}
    more = {"cwola": {"folds": 2, "ensemble": 1}, "template": {"steps": 3}, "hunt": {"toys": 10}, "blind": False}
    return Search.of_events(
        events, features=["m_j1", "ratio"], define=DEFINE, device="cpu", quiet=True, **(small | more | sections)
    )


def test_a_table_is_searched_in_a_feature_of_the_configuration(events):
    search = of_events(events)
    results = search.run()
    assert results.window("3300-3700").n_observed == ((events["mjj"] >= 3300) & (events["mjj"] < 3700)).sum()
    selected = search.skim()
    inside = (events["mjj"] >= 2700) & (events["mjj"] < 6000)
    np.testing.assert_array_equal(selected.events["ratio"], (events["delta_m"] / 2 / events["m_j1"])[inside])
    assert selected.hists["ratio"].axes[-1].label == "$r$"
    assert search.report().is_file()


def test_a_column_of_the_table_wins(events):
    ratio = np.linspace(0, 1, 3000)
    selected = of_events({**events, "ratio": ratio}).skim()
    assert np.isin(selected.events["ratio"], ratio).all()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"delta_m": None},
            "no column 'delta_m', which define.ratio needs (columns: mjj, m_j1); add it or the feature",
        ),
        ({"ratio": -np.ones(3000)}, "column 'ratio': 3000 values are outside 0 to inf, the first in row 0 (-1.0); see"),
    ],
)
def test_a_defined_feature_that_a_table_cannot_give_is_one_line(events, columns, words):
    changed = {name: values for name, values in {**events, **columns}.items() if values is not None}
    with pytest.raises(InputError, match=re.escape(words)):
        of_events(changed)


def test_each_is_told_in_the_words_of_its_own(project, tmp_path, drapes):
    # the command in this process, before a search in it
    status, _, err = drapes("train", project / "tiny.yaml", "-o", tmp_path / "run", "--device", "cpu")
    assert (status, err.endswith("skim is not done, train.3300-3700 needs it; run `drapes skim` first\n")) == (2, True)
    with pytest.raises(RunDirectoryError, match=r"needs it; run `Search\.skim\(\)` first"):
        Search(project / "tiny.yaml", tmp_path / "run", device="cpu", quiet=True).train()
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="file: is a file; name another directory as output"):
        Search(project / "tiny.yaml", tmp_path / "file")
    status, _, err = drapes("train", project / "tiny.yaml", "-o", tmp_path / "file")
    assert (status, err.endswith("file: is a file; name another directory with -o\n")) == (2, True)


def test_a_temporary_directory_lives_as_long_as_what_needs_it():
    search = Search.of_events({"mjj": [3000.0, 3500.0], "m_j1": [1.0, 2.0]}, features=["m_j1"], blind=False, quiet=True)
    selected, place = search.skim(), search.path
    del search
    gc.collect()
    assert selected.events["m_j1"].tolist() == [1.0, 2.0]
    del selected
    gc.collect()
    assert not place.exists()


def test_a_whole_search_in_one_call(stages, search, tmp_path):
    run = shutil.copytree(search.path, tmp_path / "run")
    assert run_search(search.config, run, device="cpu", quiet=True).windows == stages["hunt"].windows


# ---- results.json ----------------------------------------------------------------------------------------------------


def fields_of(schema: dict) -> dict:
    """Field names of a JSON schema's record, those of records within too; None for a value."""
    inner = next((one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"), schema)
    inner = inner["items"] if inner.get("type") == "array" else inner
    return {name: fields_of(one) for name, one in inner["properties"].items()} if "properties" in inner else {}


def attributes_of(kind: type) -> dict:
    """Field names of a dataclass in the same form."""
    import typing

    def record(hint: object) -> type | None:
        kinds = [hint, *typing.get_args(hint)]
        return next((one for one in kinds if dataclasses.is_dataclass(one)), None)

    hints = typing.get_type_hints(kind)
    # fields that a keyword, or another field, keeps from having the name of the file
    names = {"whole": "global", "global_significance": "global"}
    return {
        names.get(field.name, field.name): {} if record(hints[field.name]) is None
        else attributes_of(record(hints[field.name]))
        for field in dataclasses.fields(kind)
    }  # fmt: skip


def test_the_typed_results_have_the_fields_of_the_schema():
    assert attributes_of(_Record) == fields_of(results_schema())


def damaged(change=None) -> str:
    """A results file of a blinded run, changed."""
    record = {
        "schema_version": 1,
        "blind": True,
        "accounting": {"requested": None, "processed": None, "lost": 0},
        "windows": [],
        "global": {field.name: None for field in dataclasses.fields(drapes_hep.outcome.GlobalSignificance)}
        | {"toys": 0, "reason": "the run is blinded"},
    }
    if change is not None:
        change(record)
    return json.dumps(record)


def test_results_of_a_blinded_run(tmp_path):
    (tmp_path / "results.json").write_text(damaged())
    results = read_results(tmp_path)
    assert (results.blind, results.accounting.requested, results.global_significance.reason) == (
        True,
        None,
        "the run is blinded",
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not a results file"),
        ('{"schema_version": 1}', "is not a results file"),
        (damaged(lambda record: record.update(schema_version=2)), "schema version 2, this release reads 1"),
        (damaged(lambda record: record.update(blind="no")), "blind: input should be a valid boolean"),
        (damaged(lambda record: record.update(windows=[{}])), "windows.0.sr: field required"),
        (damaged(lambda record: record["accounting"].update(lost="0")), "accounting.lost: input should be a valid int"),
        (damaged(lambda record: record["global"].pop("reason")), "global.reason: field required"),
    ],
)
def test_no_results_are_one_line(tmp_path, text, line):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=line):
        read_results(tmp_path / "results.json")


def test_no_results_at_all(tmp_path):
    with pytest.raises(RunDirectoryError, match="holds no results; run the hunt first"):
        read_results(tmp_path)


def test_results_without_histograms_beside_them(stages, tmp_path):
    shutil.copy(stages["hunt"].path, tmp_path / "mine.json")
    with pytest.raises(RunDirectoryError, match=r"hists.json: missing"):
        read_results(tmp_path / "mine.json").hists()


def test_a_window_that_is_not_there(stages):
    with pytest.raises(KeyError, match="no window 1-2; the results have 3300-3700, 3600-4000"):
        stages["hunt"].window("1-2")


def test_results_cannot_be_changed(stages):
    with pytest.raises(dataclasses.FrozenInstanceError):
        stages["hunt"].windows[0].n_observed = 1


# ---- notebooks -------------------------------------------------------------------------------------------------------


class ZMQInteractiveShell:
    """What IPython's kernel calls its shell."""


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setattr("drapes_hep.progress.find_spec", lambda _: object())


def test_bars_are_drawn_in_a_notebook(notebook):
    assert Reporter().draws
    assert not Reporter(quiet=True).draws


def test_bars_need_the_widgets_that_rich_draws_with(notebook, monkeypatch):
    monkeypatch.setattr("drapes_hep.progress.find_spec", lambda _: None)
    assert not Reporter().draws


def test_no_bars_without_a_terminal_or_a_notebook():
    assert not Reporter().draws


def test_results_show_themselves(stages):
    html = stages["hunt"]._repr_html_()
    point = stages["hunt"].windows[0].working_points[1]
    assert f"<td>{point.observed}</td><td>{point.expected:.4g} ± {point.expected_error:.2g}</td>" in html
    assert html.count("<tr>") == 1 + 2 * 3


def test_every_product_shows_itself(stages):
    assert {name: one._repr_html_().startswith("<table>") for name, one in stages.items()} == dict.fromkeys(
        stages, True
    )


def test_names_are_escaped():
    assert html_table(("<b>",), [("a & b",)], "<i>") == (
        "<table><caption>&lt;i&gt;</caption><thead><tr><th>&lt;b&gt;</th></tr></thead>"
        "<tbody><tr><td>a &amp; b</td></tr></tbody></table>"
    )


def test_a_template_shows_no_number_of_events(stages):
    """In a blinded run it would give that of the window."""
    template: Template = stages["generate"][WINDOWS[0]]
    assert str(len(template.events["mjj"])) not in template._repr_html_().replace(str(template.path), "")


# ---- the pages -------------------------------------------------------------------------------------------------------


def executed(body: str, project: Path, run: Path, monkeypatch) -> dict:
    monkeypatch.chdir(project)
    names: dict = {}
    text = body.replace("runs/mine", str(run)).replace("configs/quickstart.yaml", str(project / "tiny.yaml"))
    exec(text, names)
    return names


def test_the_example_of_the_stages(search, stages, project, monkeypatch):
    names = executed(example("search.skim()"), project, search.path, monkeypatch)
    assert names["results"].windows == stages["hunt"].windows
    assert len(names["template"]["mjj"]) == stages["hunt"].windows[0].template.n
    figures = names["figures"]
    assert {"local_p", "toys", f"spectrum_{WINDOWS[0]}", "template_quality"} <= figures.keys()
    # drawn, and not written
    assert not (search.path / "report").exists()
    assert figures["toys"]._repr_png_().startswith(b"\x89PNG")
    assert (project / "local_p.pdf").stat().st_size > 1000


def test_the_selected_events_as_a_table_give_the_same_results(search, stages, project, monkeypatch):
    """The example of the page, on the columns of a run's skim: equal to the last digit."""
    body = example("read_results")
    assert len(body.strip().splitlines()) <= 12
    again: Results = executed(body, project, search.path, monkeypatch)["again"]
    for one, other in zip(again.windows, stages["hunt"].windows, strict=True):
        assert one.working_points == other.working_points
        assert one.fit == other.fit
    assert again.global_significance == stages["hunt"].global_significance
    tables = [
        read_skim(place / "windows" / WINDOWS[0] / "scores.parquet") for place in (again.path.parent, search.path)
    ]
    np.testing.assert_array_equal(tables[0]["score"], tables[1]["score"])


def test_the_example_of_a_table_is_short():
    assert len(example("default_rng").strip().splitlines()) <= 12


def test_results_are_read_from_the_file_that_was_written(stages, tmp_path):
    """A changed file gives changed results: nothing is remembered between two calls."""
    record = read_json(stages["hunt"].path)
    record["windows"][0]["working_points"][0]["z_local"] = 1.25
    write_json(tmp_path / "results.json", record)
    assert read_results(tmp_path).windows[0].working_points[0].z_local == 1.25
