"""The command line: every mistake is one line and exit status 2, and leaves nothing half-written."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import uproot
import yaml
from conftest import ROOT, make_columns

from drapes_hep import __version__
from drapes_hep.cli import main
from drapes_hep.config import load_config
from drapes_hep.events.formats.columns import row_ids
from drapes_hep.events.formats.writers import write_feature_hdf5, write_feature_root
from drapes_hep.events.readers import scan
from drapes_hep.events.skims import read_skim, write_skim, write_truth
from drapes_hep.files import file_hash, read_json, write_json

pytestmark = pytest.mark.usefixtures("few_trees")

VERBS = (
    "run", "skim", "train", "generate", "classify", "hunt", "report", "inspect", "validate", "download", "simulate",
    "init",
)  # fmt: skip
WINDOWS = ("3300-3700", "3600-4000")
SEARCH = {
    "name": "tiny",
    "data": {"path": "events.root", "labels": True},
    "selection": {"leading_pt": 1150},
    "windows": {"width": 400, "step": 300, "first": 3300, "last": 3600},
    "template": {"oversample": 1, "steps": 3, "scaling": "standard"},
    "training": {"epochs": 1, "batch": 512, "width": 8, "depth": 1, "pseudo_window": "none"},
    "cwola": {"ensemble": 1, "folds": 2},
    "hunt": {"background_efficiencies": [1, 0.1], "toys": 10},
    "blind": False,
}


def falling_columns(n: int = 2500, seed: int = 2) -> dict[str, np.ndarray]:
    """Dijet events whose mass falls from 2700 GeV on: jets of equal, large momentum, back to back."""
    columns = make_columns(n, seed)
    rng = np.random.default_rng(seed)
    pt = 1400 + rng.exponential(250, n)
    phi = rng.uniform(-np.pi, np.pi, n)
    turn = np.pi + rng.normal(0, 0.1, n)
    eta = rng.normal(0, 0.2, (2, n))
    for i, jet in enumerate(("j1", "j2")):
        columns["px" + jet] = pt * np.cos(phi + i * turn)
        columns["py" + jet] = pt * np.sin(phi + i * turn)
        columns["pz" + jet] = pt * np.sinh(eta[i])
    return columns


@pytest.fixture(scope="module")
def falling():
    return falling_columns()


@pytest.fixture(scope="module")
def original(falling, tmp_path_factory) -> Path:
    """A project with a finished run, but for its report; tests copy it."""
    folder = tmp_path_factory.mktemp("original")
    write_feature_root(folder / "events.root", falling)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    for verb in ("skim", "train", "generate", "classify", "hunt"):
        assert drapes(verb, folder / "tiny.yaml", "-o", folder / "run", "--quiet") == 0
    return folder


@pytest.fixture
def project(original, tmp_path, monkeypatch) -> Path:
    """A copy of configuration and data, as working directory."""
    for name in ("events.root", "tiny.yaml"):
        shutil.copy(original / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def finished(original, project) -> Path:
    """The finished run in the copy."""
    return shutil.copytree(original / "run", project / "run")


def drapes(*words: object) -> int:
    """Run the command line in this process; returns its exit status."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["drapes", *map(str, words)])
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        patch.undo()
    return 0


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def complaint(capsys) -> Callable[..., str]:
    """Run a command that must fail; returns its one line. Nothing but whole files may be new, no stage may be done.

    ``new`` holds patterns of files that may appear.
    """

    def run(*words: object, new: set[str] | None = None, status: int = 2) -> str:
        here = Path.cwd()
        before = files_of(here)
        capsys.readouterr()
        found = drapes(*words)
        said = capsys.readouterr()
        assert found == status, said.err
        assert said.out == ""
        lines = said.err.splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("drapes: ")
        assert "Traceback" not in lines[0]
        assert len(lines[0]) < 600
        appeared = files_of(here) - before
        assert {name for name in appeared if not any(fnmatch(name, one) for one in new or ())} == set()
        return lines[0]

    return run


MANIFEST = {"r/manifest.json"}
"""All that a run leaves whose data cannot be read: its manifest, whole."""


# ---- help and small verbs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_needs_no_physics(verb, capsys):
    drapes(*filter(None, [verb]), "--help")
    assert "Usage" in capsys.readouterr().out


def test_help_imports_neither_torch_nor_coffea():
    code = (
        "import sys; sys.argv = ['drapes', 'run', '--help']\n"
        "from drapes_hep import cli\ncli.main()\n"
        "assert not {'torch', 'coffea', 'sklearn', 'matplotlib', 'awkward'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_words_at_all_give_the_help(capsys):
    assert drapes() == 0
    assert "Commands" in capsys.readouterr().out


def test_version(capsys):
    assert drapes("--version") == 0
    assert capsys.readouterr().out == f"drapes-hep {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runn"], "No such command 'runn'"),
        (["run"], "Missing argument"),
        (["run", "a.yaml", "--wrkers", "2"], "No such option"),
        (["run", "a.yaml", "--workers", "two"], "--workers"),
        (["run", "a.yaml", "b.yaml"], "unexpected extra argument"),
    ],
)
def test_a_mistyped_command_is_one_line(project, complaint, words, said):
    assert said in complaint(*words)


def test_a_defect_of_ours_keeps_its_traceback(project, monkeypatch):
    monkeypatch.setattr("drapes_hep.stages.skim.expand_trees", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drapes("skim", "tiny.yaml", "-o", "r")


def test_an_interrupted_run_says_how_to_go_on(project, complaint, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("drapes_hep.stages.skim.skim", interrupted)
    line = complaint("skim", "tiny.yaml", "-o", "r", new=MANIFEST, status=130)
    assert line == "drapes: interrupted; run the same command again to resume"


@pytest.mark.parametrize(
    ("verb", "place", "kept"),
    [
        ("skim", "skim.run_selection", "during skim; finished stages are kept, this one starts over"),
        (
            "train",
            "train.fit_window_models",
            "during train.3300-3700; a training in progress",
        ),
        ("classify", "classify.out_of_fold_scores", "during classify.3300-3700; finished stages are kept, this one"),
        ("hunt", "hunt.hunt_window", "during hunt; finished stages are kept, this one starts over"),
    ],
)
def test_an_interrupted_stage_says_what_is_kept(finished, complaint, monkeypatch, verb, place, kept):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for stamp in (finished / "stages").glob(f"{verb}*"):
        stamp.unlink()
    monkeypatch.setattr(f"drapes_hep.stages.{place}", interrupted)
    line = complaint(verb, "tiny.yaml", "-o", "run", "--quiet", new={"run/stages/*.begun"}, status=130)
    assert line.startswith(f"drapes: interrupted {kept}")
    assert line.endswith("; run the same command again to resume")


@pytest.mark.parametrize("status", [0, 3, None, "text"])
def test_an_exit_from_code_of_the_search_is_a_failure(project, complaint, monkeypatch, status):
    def leaves(*_):
        sys.exit(status)

    monkeypatch.setattr("drapes_hep.stages.skim.examine_files", leaves)
    line = complaint("skim", "tiny.yaml", "-o", "r")
    assert re.search(rf"ended by sys.exit\({status!r}\) in .*test_cli.py, line \d+", line)


def test_a_run_into_another_configuration_s_is_refused_at_once(finished, complaint, monkeypatch):
    """Not after the stages that are the same, nor after the windows that are new."""
    monkeypatch.setattr("drapes_hep.stages.skim.skim", lambda _: pytest.fail("a stage began"))
    for verb, change, said in (
        (
            "run",
            "training.epochs=2",
            "run: contains train.3300-3700 run with training.epochs 1, the configuration has 2",
        ),
        (
            "train",
            "training.epochs=2",
            "run: contains train.3300-3700 run with training.epochs 1, the configuration has",
        ),
        ("generate", "template.steps=4", "run: contains generate.3300-3700 run with template.steps 3"),
        ("classify", "cwola.folds=3", "run: contains classify.3300-3700 run with cwola.folds 2"),
        ("skim", "selection.leading_pt=1160", "run: contains skim run with selection.leading_pt 1150.0"),
        # the window 3600-4000 is of both searches, the bins of its mass fit are not
        (
            "run",
            "windows.step=150",
            "run: contains generate.3300-3700 run with windows.step 300.0, the configuration has",
        ),
    ):
        line = complaint(verb, "tiny.yaml", "-o", "run", "--quiet", "--set", change)
        assert said in line
        assert "name another directory with -o, or replace it with --overwrite" in line


def test_overwrite_replaces_another_configuration_s(finished, capsys):
    words = ["skim", "tiny.yaml", "-o", "run", "--set", "selection.leading_pt=1160"]
    assert drapes(*words, "--overwrite") == 0
    said = "skim: runs again, as selection.leading_pt was changed from 1150.0 to 1160.0"
    assert said in capsys.readouterr().err.splitlines()
    # what it holds now is this configuration's
    assert drapes(*words) == 0


def test_an_edited_processor_needs_no_leave(project, capsys):
    Path("mine.py").write_text("from processors.dijets import Dijets\nclass Mine(Dijets): pass\n")
    words = ["skim", "tiny.yaml", "-o", "r", "--set", "processor=mine.py:Mine"]
    assert drapes(*words) == 0
    Path("mine.py").write_text("from processors.dijets import Dijets\nclass Mine(Dijets): x = 1\n")
    capsys.readouterr()
    assert drapes(*words) == 0
    assert "skim: runs again, as the processor's source has changed" in capsys.readouterr().err.splitlines()


def test_validate_says_what_the_search_is(project, capsys):
    assert drapes("validate", "tiny.yaml") == 0
    assert capsys.readouterr().out.splitlines() == [
        "tiny.yaml: valid: 2 windows, 3300-3700 to 3600-4000 GeV",
        f"processor: {ROOT / 'processors' / 'dijets.py'}",
    ]


def test_validate_opens_the_files_too(project, capsys, falling):
    assert drapes("validate", "tiny.yaml", "--files") == 0
    assert f"events.root: features, {len(falling['mj1'])} events" in capsys.readouterr().out


def test_validate_reads_the_first_chunk_of_every_file(project, capsys, falling):
    write_feature_root("more.root", {name: np.tile(values, 21) for name, values in falling.items()})
    words = ["--set", "data.path=[events.root, more.root]", "--set", "data.labels=false"]
    assert drapes("validate", "tiny.yaml", "--files", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{project / 'events.root'}: features, 2500 events" in lines
    assert f"{project / 'more.root'}: features, 52500 events, selection tried on the first 50000" in lines
    assert any(line.startswith("not read: events after the first chunk of 1 file;") for line in lines)


@pytest.mark.parametrize(("row", "status"), [(49_999, 2), (50_000, 0)])
def test_validate_says_nothing_of_what_it_does_not_read(project, falling, row, status):
    columns = {name: np.tile(values, 21) for name, values in falling.items()}
    columns["mj2"][row] = np.nan
    write_feature_root("more.root", columns)
    assert (
        drapes("validate", "tiny.yaml", "--files", "--set", "data.path=more.root", "--set", "data.labels=false")
        == status
    )


def test_validate_names_every_file_with_bad_values(project, capsys, falling):
    for name, row in (("a.root", 3), ("b.root", 7)):
        bad = falling["mj1"].copy()
        bad[row] = np.nan
        write_feature_root(name, {**falling, "mj1": bad})
    assert drapes("validate", "tiny.yaml", "--files", "--set", "data.path=[events.root, a.root, b.root]") == 2
    lines = capsys.readouterr().err.splitlines()
    for name, row in (("a.root", 3), ("b.root", 7)):
        assert any(f"{name}: column 'mj1' holds NaN or infinity in 1 row, first in row {row}" in line for line in lines)
    assert lines[-1] == "drapes: tiny.yaml: 2 problems with the files of data.path"


def test_validate_reads_other_simulations(project, complaint, falling):
    bad = falling["mj1"][:70].copy()
    bad[5] = np.nan
    write_feature_root("other.root", {**{name: values[:70] for name, values in falling.items()}, "mj1": bad})
    line = complaint("validate", "tiny.yaml", "--files", "--set", "study.source=other.root")
    assert "other.root: column 'mj1' holds NaN or infinity in 1 row, first in row 5" in line


@pytest.mark.parametrize("blind", ["true", "false"])
@pytest.mark.parametrize("words", [("validate", "--files"), ("run",)])
def test_a_sample_of_the_signal_is_opened_before_anything_is_done(project, complaint, words, blind):
    shape = "hunt.signal={shape: sample, sample: nowhere.parquet, mass: 3500}"
    line = complaint(words[0], "tiny.yaml", *words[1:], "--set", shape, "--set", f"blind={blind}")
    assert "nowhere.parquet" in line


def test_validate_runs_the_processor(project, complaint):
    Path("mine.py").write_text(
        "import numpy as np\nfrom processors.dijets import Dijets\n"
        "class Mine(Dijets):\n    def trigger(self, events):\n        return np.ones(len(events), dtype=int)\n"
    )
    line = complaint("validate", "tiny.yaml", "--files", "--set", "processor=mine.py:Mine")
    assert "trigger" in line
    assert "mine.py" in line


def test_validate_says_where_nothing_is_selected(project, capsys):
    assert drapes("validate", "tiny.yaml", "--files", "--set", "selection.leading_pt=20000") == 0
    assert "events.root: the selection keeps none of the 2500 events read" in capsys.readouterr().out


def test_validate_compares_identities_of_what_it_reads(finished, complaint):
    names = ("event_id", "weight", "jets")
    columns = read_skim("run/skim/events.parquet", names)
    for name, rows in (("a.parquet", slice(0, 100)), ("b.parquet", slice(99, 200))):
        write_skim(name, {key: columns[key][rows] for key in names})
    words = ["--set", "data.path=[a.parquet, b.parquet]", "--set", "data.labels=false"]
    line = complaint("validate", "tiny.yaml", "--files", *words)
    assert "belongs to more than one event (1 repeated in all files)" in line


def test_validate_writes_nothing(project):
    before = files_of(project)
    drapes("validate", "tiny.yaml", "--files")
    assert files_of(project) == before


def test_inspect_as_json(project, capsys, falling):
    assert drapes("inspect", "events.root", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["events"], record["identity"]["source"]) == (len(falling["mj1"]), "name and row")
    assert record["labels"]["signal"] == falling["label"].sum()
    assert set(falling) == set(record["columns"])


def test_inspect_counts_one_event_as_one(project, capsys, falling):
    write_feature_root("one.root", {name: values[:1] for name, values in falling.items()})
    assert drapes("inspect", "one.root") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["events"] == "1"
    assert lines["labels"] in {"yes: 0 signal, 1 background", "yes: 1 signal, 0 background"}


def test_inspect_prints_no_control_characters(project, capsys, falling):
    write_feature_hdf5("a.h5", {**falling, "a\x1b[31m\nb": falling["mj1"]})
    assert drapes("inspect", "a.h5") == 0
    said = capsys.readouterr().out
    assert "a\\x1b[31m b" in said
    assert said.replace("\n", "").isprintable()


def test_inspect_refuses_what_is_no_data(project, complaint):
    assert "is not a ROOT, HDF5 or Parquet file" in complaint("inspect", "tiny.yaml")


def test_inspect_opens_the_tree_that_is_named(project, complaint, capsys, falling):
    with uproot.recreate("two.root") as file:
        for name, stop in (("Events", 50), ("Sys", 20)):
            file.mktree(name, {key: values.dtype for key, values in falling.items()})
            file[name].extend({key: values[:stop] for key, values in falling.items()})
    assert "several trees fit: Events, Sys; choose one" in complaint("inspect", "two.root")
    assert drapes("inspect", "two.root", "--tree", "Sys", "--json") == 0
    assert json.loads(capsys.readouterr().out)["events"] == 20
    words = ["validate", "tiny.yaml", "--files", "--set", "data.path={two.root: Events}"]
    assert drapes(*words) == 0
    assert "two.root: features, 50 events" in capsys.readouterr().out


def test_validate_says_where_the_last_window_starts(project, capsys):
    assert drapes("validate", "tiny.yaml", "--set", "windows.last=3850") == 0
    assert (
        "windows.last 3850 is not a whole number of steps of 300 above 3300: the last window starts at 3600"
        in capsys.readouterr().out
    )


def test_validate_opens_other_simulations(project, capsys, falling):
    write_feature_root(project / "other.root", {name: values[:70] for name, values in falling.items()})
    words = ["--set", "template.method=from_simulation", "--set", "template.strength=2.24"]
    words += ["--set", "template.source=other.root"]
    assert drapes("validate", "tiny.yaml", "--files", *words) == 0
    assert "other.root: features, 70 events" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["study.source=absent.root"], "absent.root: no such file"),
        (["study.source=events.root"], "name another simulation in study.source"),
        (
            ["template.method=from_simulation", "template.strength=2.24", "template.source=events.root"],
            "name another simulation in template.source",
        ),
    ],
)
def test_validate_refuses_other_simulations_that_are_none(project, complaint, changes, words):
    given = [word for change in changes for word in ("--set", change)]
    assert words in complaint("validate", "tiny.yaml", "--files", *given)


def test_validate_counts_the_labels(project, capsys, falling):
    assert drapes("validate", "tiny.yaml", "--files", "--set", "signal.inject=5") == 0
    signal = int(falling["label"].sum())
    line = f"labels: {len(falling['label']) - signal} background and {signal} signal events, of which signal.inject"
    assert f"{line} keeps 5" in capsys.readouterr().out


def test_validate_misses_labels(altered, complaint):
    altered(label=None)
    assert "has no column 'label'" in complaint("validate", "tiny.yaml", "--files")


def test_validate_misses_signal(project, complaint):
    line = complaint("validate", "tiny.yaml", "--files", "--set", "signal.inject=100000")
    assert "signal.inject: 100000 signal events are requested, the sample has" in line


def test_validate_misses_a_truth_of_these_events(altered, complaint):
    altered(label=None)
    write_truth("t.parquet", [1, 2, 3], [0, 1, 0])
    line = complaint("validate", "tiny.yaml", "--files", "--set", "data.truth=t.parquet")
    assert "t.parquet: has no label for" in line


@pytest.mark.parametrize("command", ["validate", "train"])
@pytest.mark.parametrize(
    ("features", "seen", "said"),
    [
        ("[m_j1, delta_mm]", "[m_j1, delta_m]", "unknown feature 'delta_mm'; did you mean 'delta_m'?"),
        ("[m_j1, delta_m]", "[m_j1, delta_mm]", "unknown feature 'delta_mm'; did you mean 'delta_m'?"),
        ("[m_j1, delta_m]", "[m_j2]", "cwola.features: 'm_j2' is not among features; did you mean 'm_j1'?"),
        ("[m_j1, delta_m]", "[delta_r]", "cwola.features: 'delta_r' is not among features"),
    ],
)
def test_a_wrong_feature_is_named(project, complaint, command, features, seen, said):
    words = ["--set", f"features={features}", "--set", f"cwola.features={seen}"]
    assert said in complaint(command, "tiny.yaml", *words)


@pytest.mark.parametrize("name", ["quickstart", "lhco_rd"])
def test_features_of_a_bundled_configuration_can_be_changed(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml", ["features=[m_j1, m_j2, tau21_j1]"])
    assert config.classifier_features == ("m_j1", "m_j2", "tau21_j1")


def test_the_configuration_for_data_is_blinded(tmp_path, monkeypatch, capsys):
    assert drapes("init", tmp_path / "mine") == 0
    assert "configs/own_data.yaml" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.chdir(tmp_path / "mine")
    assert load_config("configs/own_data.yaml").blind
    assert drapes("validate", "configs/own_data.yaml") == 0
    assert "valid: 9 windows" in capsys.readouterr().out
    # the bundled sample is not mistaken for the user's data
    assert drapes("validate", "configs/own_data.yaml", "--files") == 2
    assert "data/*.root: no file matches this pattern" in capsys.readouterr().err


def test_the_project_s_processor_is_used_from_anywhere(project, capsys):
    Path("mine/processors").mkdir(parents=True)
    Path("mine/configs").mkdir()
    shutil.copy("events.root", "mine/configs")
    Path("mine/configs/tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    source = (ROOT / "processors" / "dijets.py").read_text()
    nothing = source.replace("return no_cut(events)", "return np.zeros(len(events), dtype=bool)")
    place = Path("mine/processors/dijets.py").resolve()
    place.write_text(source)
    assert drapes("skim", "mine/configs/tiny.yaml", "-o", "r") == 0
    assert f"processor: {place}\n" in capsys.readouterr().err
    place.write_text(nothing)
    assert drapes("skim", "mine/configs/tiny.yaml", "-o", "r") == 2
    assert "the selection keeps no event" in capsys.readouterr().err


def test_init_writes_a_project_that_is_valid(tmp_path, monkeypatch, capsys):
    assert drapes("init", tmp_path / "mine") == 0
    monkeypatch.chdir(tmp_path / "mine")
    assert drapes("validate", "configs/quickstart.yaml", "--files") == 0
    assert "valid: 5 windows" in capsys.readouterr().out
    assert (tmp_path / "mine" / "processors" / "dijets.py").is_file()
    assert not list((tmp_path / "mine").rglob("__pycache__"))


def test_init_refuses_a_folder_that_is_not_empty(project, complaint):
    assert "exists and is not an empty directory" in complaint("init", ".")
    assert "exists and is not an empty directory" in complaint("init", "tiny.yaml")


def test_the_run_directory_has_a_default(project):
    assert drapes("skim", "tiny.yaml", "--quiet") == 0
    assert (project / "runs" / "tiny" / "skim" / "events.parquet").is_file()


def test_quiet_prints_nothing(project, capfd):
    assert drapes("skim", "tiny.yaml", "-o", "r", "--quiet") == 0
    assert drapes("train", "tiny.yaml", "-o", "r", "--quiet", "--window", WINDOWS[0]) == 0
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_stage_says_one_line_when_done(finished, capsys):
    assert drapes("hunt", "tiny.yaml", "-o", "run") == 0
    assert capsys.readouterr().err == "hunt: already done\n"


def test_run_does_everything_and_only_what_is_left(finished, capsys, unrendered):
    (finished / "hunt.json").unlink()
    assert drapes("run", "tiny.yaml", "-o", "run") == 0
    said = capsys.readouterr().err.splitlines()
    done = {line.partition(":")[0] for line in said if line.endswith("already done")}
    stages = ("train", "generate", "classify", "quality")
    assert done == {"skim", *(f"{stage}.{name}" for stage in stages for name in WINDOWS)}
    page = (finished / "report" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:|#)[^"]*\.(?:png|css|js)"', page)
    figures = finished / "report" / "figures"
    assert {path.stem for path in figures.glob("*.png")} == {path.stem for path in figures.glob("*.pdf")}
    assert len((finished / "report" / "tables" / "working_points.csv").read_text().splitlines()) == 5


def test_a_window_can_be_run_alone(project):
    for verb in ("skim", "train"):
        assert drapes(verb, "tiny.yaml", "-o", "r", "--window", "3600-4000", "--quiet") == 0
    assert [path.name for path in Path("r/windows").iterdir()] == ["3600-4000"]


def test_unblind_counts_what_blinding_hides(finished, unrendered):
    for flags, observed in ((["--set", "blind=true"], False), (["--set", "blind=true", "--unblind"], True)):
        assert drapes("run", "tiny.yaml", "-o", "run", "--quiet", *flags) == 0
        results = read_json("run/results.json")
        assert [window["n_observed"] is not None for window in results["windows"]] == [observed, observed]
        assert results["blind"] is not observed


def test_processes_give_the_same_skim(project, warm_workers):
    for name in ("iterative", "futures"):
        words = ["skim", "tiny.yaml", "-o", name, "--quiet", "--executor", name, "--workers", "2"]
        assert drapes(*words, "--set", "data.chunksize=1500") == 0
    assert Path("iterative/skim/events.parquet").read_bytes() == Path("futures/skim/events.parquet").read_bytes()


# ---- the configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.yaml"], "none.yaml: no such configuration"),
        (["tiny.yaml", "--set", "trainning.epochs=3"], "unknown key 'trainning'; did you mean 'training'?"),
        (["tiny.yaml", "--set", "windows.widht=3"], "unknown key 'windows.widht'; did you mean 'windows.width'?"),
        (["tiny.yaml", "--set", "windows.first=4000"], "the last window starts below the first"),
        (["tiny.yaml", "--set", "mass.range=[6000, 2700]"], "range must be increasing"),
        (["tiny.yaml", "--set", "nonsense"], "expected KEY=VALUE"),
        (["tiny.yaml", "--window", "3700-3300"], "--window 3700-3300: the window is inverted"),
        (["tiny.yaml", "--window", "3000-3400"], "not a window of this search; it has 3300-3700, 3600-4000"),
        (["tiny.yaml", "--window", "middle"], "expected LO-HI"),
        (["tiny.yaml", "--executor", "slurm"], "--executor slurm: choose iterative or futures"),
        (["tiny.yaml", "--workers", "0"], "--workers 0: at least 1"),
        (["tiny.yaml", "--device", "tpu"], "--device tpu: choose auto, cpu or cuda"),
        (["tiny.yaml", "--set", "features=[m_j1, delta_mm]"], "unknown feature 'delta_mm'; did you mean 'delta_m'?"),
        (["tiny.yaml", "--set", "features=[m_j1, mjj]"], "the resonant mass m_JJ cannot be a feature"),
        (["tiny.yaml", "--set", "processor=mine.py:Mine"], "processor 'mine.py:Mine': no file mine.py"),
        (["tiny.yaml", "--set", "processor=processors/dijets.py:Dijet"], "did you mean 'Dijets'?"),
        (["tiny.yaml", "--set", "cwola.classifier=forest"], "no classifier 'forest'"),
        (["tiny.yaml", "--set", "cwola.classifier=nowhere:Net"], "cwola.classifier 'nowhere:Net': module nowhere"),
        (["tiny.yaml", "--set", "cwola.classifier=math:pi"], "'pi' is not a classifier: it is not a class"),
    ],
)
def test_a_mistake_in_what_was_typed_leaves_no_run_directory(project, complaint, words, said):
    assert said in complaint("run", *words, "-o", "r")
    assert not Path("r").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(project, complaint):
    assert "--device cuda: no CUDA device is available" in complaint("run", "tiny.yaml", "--device", "cuda")


@pytest.mark.parametrize("source", ["def (", "import nowhere_at_all", "x = 1 / 0", "class Mine: pass"])
def test_a_processor_file_that_does_not_run(project, complaint, source):
    Path("mine.py").write_text(source)
    assert "processor 'mine.py:Mine'" in complaint("run", "tiny.yaml", "-o", "r", "--set", "processor=mine.py:Mine")


@pytest.mark.parametrize(
    ("body", "said", "executor"),
    [
        ("def process(self, events): return events.nothing", r"nothing.*mine.py, line 3\)", "iterative"),
        ("def process(self, events): return events.nothing", r"nothing.*mine.py, line 3\)", "futures"),
        ("def process(self, events): return {'skim': 1}", "process.events. returned no 'hists'", "iterative"),
        (
            "def process(self, events): return None",
            "process.events. returned nothing: a processor needs three things",
            "iterative",
        ),
        ("def __init__(self): pass", "takes no settings: a processor needs three things", "iterative"),
    ],
)
def test_a_processor_with_an_error_in_it(project, complaint, body, said, executor):
    Path("mine.py").write_text(f"from processors.dijets import Dijets\nclass Mine(Dijets):\n    {body}\n")
    words = ["--quiet", "--executor", executor, "--set", "processor=mine.py:Mine"]
    line = complaint("skim", "tiny.yaml", "-o", "r", *words, new=MANIFEST)
    assert re.search(said, line)


def test_a_classifier_module_that_does_not_run(project, complaint, monkeypatch):
    Path("broken_net.py").write_text("raise RuntimeError('no weights')")
    monkeypatch.syspath_prepend(project)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python's own cache is not ours to complain of
    line = complaint("run", "tiny.yaml", "-o", "r", "--set", "cwola.classifier=broken_net:Net")
    assert line.endswith("'broken_net:Net': module broken_net cannot be imported (RuntimeError: no weights)")


# ---- the data --------------------------------------------------------------------------------------------------------


def test_a_missing_data_file(project, complaint):
    line = complaint("run", "tiny.yaml", "-o", "r", "--set", "data.path=event.root", new=MANIFEST)
    assert "event.root: no such file; did you mean 'events.root'?" in line


def test_a_pattern_without_a_file(project, complaint):
    line = complaint("run", "tiny.yaml", "-o", "r", "--set", "data.path=*.h5", new=MANIFEST)
    assert "no file matches this pattern" in line


@pytest.mark.parametrize("part", [0.0, 0.001, 0.05, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file(project, complaint, part):
    whole = (ROOT / "configs" / "data" / "quickstart.root").read_bytes()
    Path("cut.root").write_bytes(whole[: int(part * len(whole))])
    line = complaint("run", "tiny.yaml", "-o", "r", "--set", "data.path=cut.root", new=MANIFEST)
    assert "cut.root: " in line


def test_hdf5_of_another_layout(project, complaint):
    with h5py.File("other.h5", "w") as file:
        file["jets"] = np.zeros((5, 2, 4))
    line = complaint("run", "tiny.yaml", "-o", "r", "--set", "data.path=other.h5", new=MANIFEST)
    assert "lacks column 'tau' of layout 'simulated'" in line


@pytest.fixture
def altered(project, falling) -> Callable[..., None]:
    """Write the data file again, changed."""

    def write(**columns: np.ndarray | None) -> None:
        changed = {**falling, **columns}
        write_feature_root("events.root", {name: values for name, values in changed.items() if values is not None})

    return write


def test_a_missing_column(altered, complaint):
    altered(tau2j1=None)
    assert "lacks column 'tau2j1'" in complaint("run", "tiny.yaml", "-o", "r", new=MANIFEST)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number(altered, complaint, falling, value):
    bad = falling["tau2j1"].copy()
    bad[123] = value
    altered(tau2j1=bad)
    line = complaint("run", "tiny.yaml", "-o", "r", new=MANIFEST)
    assert "column 'tau2j1' holds NaN or infinity in 1 row, first in row 123" in line


def test_no_events(project, complaint, falling):
    write_feature_root("events.root", {name: values[:0] for name, values in falling.items()})
    assert "holds no events" in complaint("run", "tiny.yaml", "-o", "r", new=MANIFEST)


def test_no_label_where_labels_are_promised(altered, complaint):
    altered(label=None)
    assert "has no column 'label'" in complaint("run", "tiny.yaml", "-o", "r", new=MANIFEST)


def test_a_missing_truth_sidecar(altered, complaint):
    altered(label=None)
    line = complaint("run", "tiny.yaml", "-o", "r", "--set", "data.truth=t.parquet", new=MANIFEST)
    assert "t.parquet: no such file; check data.truth" in line


def test_a_truth_sidecar_that_lacks_events(altered, complaint, falling, monkeypatch):
    altered(label=None)
    write_truth("t.parquet", [1, 2, 3], [0, 1, 0])
    words = ("tiny.yaml", "-o", "r", "--set", "data.truth=t.parquet")
    line = complaint("run", *words, new={*MANIFEST, "r/skim/chunks/*.npz"})
    assert "t.parquet: has no label for" in line
    # the events were selected, and wait for the right sidecar
    assert len(list(Path("r/skim/chunks").iterdir())) == 1
    info = scan("events.root")
    write_truth("t.parquet", row_ids(info.id, 0, info.entries), falling["label"])
    monkeypatch.setattr("drapes_hep.events.processing._process", lambda *_: pytest.fail("a chunk is selected again"))
    assert drapes("skim", *words, "--quiet") == 0
    assert not Path("r/skim/chunks").exists()


def test_events_as_truth(altered, complaint):
    altered(label=None)
    line = complaint("run", "tiny.yaml", "-o", "r", "--set", "data.truth=events.root", new=MANIFEST)
    assert "events.root: cannot be read as Parquet" in line


def test_more_signal_than_there_is(project, complaint):
    line = complaint("run", "tiny.yaml", "-o", "r", "--set", "signal.inject=100000", new=MANIFEST)
    assert "signal.inject: 100000 signal events are requested, the sample has" in line


def test_a_selection_that_keeps_nothing(project, complaint):
    line = complaint("run", "tiny.yaml", "-o", "r", "--set", "selection.leading_pt=9000", new=MANIFEST)
    assert "the selection keeps no event" in line


def test_too_few_events_to_train(project, complaint):
    words = ["-o", "r", "--quiet", "--set", "selection.leading_pt=2300", "--set", "template.scaling=quantile"]
    assert drapes("skim", "tiny.yaml", *words) == 0
    assert "sideband" in complaint("train", "tiny.yaml", *words)


def test_a_window_without_events(project, complaint, falling):
    total = np.zeros((4, len(falling["mj1"])))
    for jet in ("j1", "j2"):
        p = np.stack([falling[q + jet] for q in ("px", "py", "pz")])
        total += np.stack([np.sqrt((p**2).sum(axis=0) + falling["m" + jet] ** 2), *p])
    mjj = np.sqrt(total[0] ** 2 - (total[1:] ** 2).sum(axis=0))
    keep = (mjj < 3290) | (mjj > 3710)
    write_feature_root("events.root", {name: values[keep] for name, values in falling.items()})
    assert drapes("skim", "tiny.yaml", "-o", "r", "--quiet", "--window", WINDOWS[0]) == 0
    # before the training, which may take hours
    line = complaint("train", "tiny.yaml", "-o", "r", "--quiet", "--window", WINDOWS[0])
    assert "window 3300-3700: has no events" in line


# ---- the report of a finished run ------------------------------------------------------------------------------------


def observed(run: Path) -> set[str]:
    with (run / "report" / "tables" / "working_points.csv").open(encoding="utf-8") as stream:
        return {row["observed"] for row in csv.DictReader(stream)}


@pytest.fixture
def kept(finished) -> Iterator[Path]:
    """The finished run, of which nothing but the report may change."""
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    yield finished
    assert {path: path.read_bytes() for path in before} == before
    after = {path for path in finished.rglob("*") if path.is_file() and "report" not in path.parts}
    assert after == set(before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("signal.inject=0", "run: was run with signal.inject null, the configuration has 0; a report"),
        ("name=other", "run: was run with name tiny, the configuration has other"),
        ("cwola.folds=3", "run: was run with cwola.folds 2, the configuration has 3"),
        ("data.path=other.root", "run: was run with data.path "),
    ],
)  # fmt: skip
def test_a_report_under_another_configuration_is_refused(kept, complaint, change, said):
    assert said in complaint("report", "tiny.yaml", "-o", "run", "--set", change)
    if "path" not in change:
        assert said in complaint("report", "-o", "run", "--set", change)


def test_a_report_writes_nothing_but_itself(kept, unrendered):
    assert drapes("report", "-o", "run", "--quiet") == 0
    assert "" not in observed(kept)
    # the data lie elsewhere than they did, with the same content
    assert drapes("report", "tiny.yaml", "-o", "run", "--quiet", "--set", "plots.label=Elsewhere") == 0
    assert "Elsewhere" in (kept / "report" / "index.html").read_text(encoding="utf-8")


def test_a_page_is_as_blind_as_its_run(finished, complaint, unrendered):
    for words in (["tiny.yaml", "-o", "run"], ["-o", "run"]):
        line = complaint("report", *words, "--set", "blind=true")
        assert "run: the run is not blinded, so its report cannot be; run `drapes run --set blind=true` first" in line
    assert drapes("run", "tiny.yaml", "-o", "run", "--quiet", "--set", "blind=true") == 0
    for words in (["tiny.yaml", "-o", "run"], ["-o", "run", "--unblind"]):
        line = complaint("report", *words)
        assert "run: the run is blinded, so there is nothing to show; run `drapes run --unblind` first" in line
    for words in (["-o", "run"], ["tiny.yaml", "-o", "run", "--set", "blind=true"]):
        assert drapes("report", *words, "--quiet") == 0
        assert observed(finished) == {""}


def test_a_report_of_results_that_are_out_of_date_is_refused(finished, complaint):
    words = ["--quiet", "--set", "signal.inject=0", "--overwrite"]
    assert drapes("skim", "tiny.yaml", "-o", "run", *words) == 0
    line = complaint("report", "tiny.yaml", "-o", "run", "--set", "signal.inject=0")
    assert re.search(r"events.parquet: changed since .* read it; repeat the later stages", line)


def test_a_report_says_what_it_lacks(project, complaint):
    assert "name a run directory with -o, or a configuration" in complaint("report")


def test_a_mistyped_key_of_a_page_is_found(kept, complaint):
    assert "unknown key 'plots.txt'; did you mean 'plots.text'?" in complaint(
        "report", "-o", "run", "--set", "plots.txt=x"
    )


# ---- the run directory -----------------------------------------------------------------------------------------------


def test_a_run_directory_of_another_version(finished, complaint):
    write_json(finished / "manifest.json", {**read_json(finished / "manifest.json"), "layout_version": 0})
    line = complaint("run", "tiny.yaml", "-o", "run")
    assert "is a run directory of layout version 0, this release writes 1; choose another directory" in line


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\xff"])
def test_a_damaged_manifest(finished, complaint, text):
    (finished / "manifest.json").write_text(text, encoding="latin-1")
    assert "run" in complaint("run", "tiny.yaml", "-o", "run")


def test_a_run_directory_that_is_a_file(project, complaint):
    assert "tiny.yaml: is a file; name another directory with -o" in complaint("run", "tiny.yaml", "-o", "tiny.yaml")


def test_a_run_directory_below_a_file(project, complaint):
    assert "cannot be written (Not a directory)" in complaint("run", "tiny.yaml", "-o", "tiny.yaml/r")


def test_a_folder_that_is_no_run(project, complaint):
    assert "is not empty and contains no run" in complaint("run", "tiny.yaml", "-o", ".")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small or read-only file system of its own; root can make one."""
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root on Linux can mount a full or read-only file system")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_whole_files_only(project, complaint):
    with mounted(project / "small", "size=200k") as disk:
        line = complaint("run", "tiny.yaml", "-o", disk / "r", new={"small/r/manifest.json"})
    assert "events.parquet: cannot be written (" in line
    assert "No space left on device" in line


@pytest.mark.parametrize("verb", ["train", "generate", "classify", "hunt", "report"])
def test_a_disk_that_fills_up_later_leaves_whole_files_only(original, project, complaint, verb):
    size = sum(path.stat().st_size for path in (original / "run").rglob("*") if path.is_file())
    with mounted(project / "small", f"size={size // 1024 + 800}k") as disk:
        run = shutil.copytree(original / "run", disk / "run")
        for stamp in (run / "stages").glob(f"{verb}*"):
            stamp.unlink()
        with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
            while True:
                file.write(bytes(512))
                file.flush()
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        allowed = {str(path.relative_to(project)) for path in before}
        line = complaint(verb, "tiny.yaml", "-o", run, "--quiet", new=allowed)
        assert all(path.read_bytes() == content for path, content in before.items() if path.is_file())
    assert "No space left on device" in line


def test_a_read_only_folder(project, complaint):
    with mounted(project / "fixed", "ro") as disk:
        line = complaint("run", "tiny.yaml", "-o", disk / "r")
    assert "cannot be written (Read-only file system)" in line


def test_a_folder_without_permission(project, complaint, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere
    assert "r/manifest.json: cannot be written (Permission denied)" in complaint("run", "tiny.yaml", "-o", "r")


@pytest.mark.parametrize("verb", ["train", "generate", "classify", "hunt"])
def test_a_stage_without_the_earlier_ones_leaves_nothing(project, complaint, verb):
    line = complaint(verb, "tiny.yaml", "-o", "r", "--quiet")
    assert re.search(rf"r: skim is not done, {verb}.* needs it; run `drapes skim` first", line)
    assert not Path("r").exists()


def test_a_report_of_nothing_leaves_nothing(project, complaint):
    words = "r: contains no run; name the directory of a finished run with -o, or run one: drapes run tiny.yaml -o r"
    assert words in complaint("report", "tiny.yaml", "-o", "r", "--quiet")
    assert not Path("r").exists()


def test_a_report_of_no_directory(project, complaint):
    line = complaint("report", "-o", "nosuch")
    assert line == (
        "drapes: nosuch: contains no run; name the directory of a finished run with -o, or run one: drapes run"
        " CONFIG -o nosuch"
    )


def test_a_part_of_the_search_has_a_reason_in_place_of_a_global_p_value(finished, unrendered):
    words = ("tiny.yaml", "-o", "run", "--quiet")
    assert drapes("hunt", *words, "--window", WINDOWS[0]) == 0
    reason = "only 1 window was hunted; the search has 2"
    assert read_json(finished / "results.json")["global"]["reason"] == reason
    assert drapes("report", *words) == 0
    assert reason in (finished / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("verb", "file", "content"),
    [
        ("report", "results.json", b"{"),
        ("report", "results.json", b"[]"),
        ("report", "hunt.json", b"{}"),
        ("hunt", "windows/3300-3700/scores.parquet", b"PAR1 and no more"),
        ("hunt", "windows/3300-3700/scores.parquet", b""),
        ("hunt", "windows/3300-3700/quality.json", b"{}"),
        ("hunt", "windows/3300-3700/quality.json", b"[1]"),
        ("hunt", "skim/skim.json", b"{}"),
        ("hunt", "skim/hists.json", b'{"mjj": {"axes": 3}}'),
        ("hunt", "skim/hists.json", b'{"mjj": 3}'),
        ("classify", "windows/3300-3700/template.parquet", b"\0" * 200),
        ("classify", "windows/3300-3700/split.parquet", b"nothing"),
        ("generate", "windows/3300-3700/model_0/card.json", b"{}"),
        ("generate", "windows/3300-3700/model_0/card.json", b"\xff\xfe"),
        ("generate", "windows/3300-3700/model_0/model.safetensors", b"weights"),
        ("train", "skim/events.parquet", b"PAR1PAR1"),
    ],
)
@pytest.mark.parametrize("of_another_size", [True, False])
def test_a_damaged_file_is_named(finished, complaint, verb, file, content, of_another_size):
    (finished / file).write_bytes(content)
    if not of_another_size:
        accept_files(finished)
    line = complaint(verb, "tiny.yaml", "-o", "run", "--quiet")
    assert Path(file).name in line or Path(file).parent.name in line


def accept_files(run: Path) -> None:
    """Let the stamps expect the files as they are now: what is in them is found by who reads them."""
    for path in (run / "stages").glob("*.json"):
        stamp = read_json(path)
        files = {name: (run / name).stat().st_size for name in stamp["files"]}
        reads = {
            name: then if Path(name).is_absolute() else file_hash(run / name) for name, then in stamp["reads"].items()
        }
        write_json(path, {**stamp, "files": files, "reads": reads})


def test_a_table_without_its_columns_is_named(finished, complaint):
    shutil.copy(finished / "skim" / "truth.parquet", finished / "windows" / WINDOWS[0] / "scores.parquet")
    accept_files(finished)
    assert "scores.parquet: lacks" in complaint("hunt", "tiny.yaml", "-o", "run", "--quiet")


def test_a_card_that_says_it_saw_the_window(finished, complaint):
    card = finished / "windows" / WINDOWS[0] / "model_0" / "method.json"
    record = read_json(card)
    record["hidden"] = [[4000, 4400]]
    write_json(card, record)
    accept_files(finished)
    assert "this model saw the window 3300-3700" in complaint("generate", "tiny.yaml", "-o", "run", "--quiet")


def test_hdf5_input_works_as_root_does(project, falling):
    write_feature_hdf5("events.h5", falling)
    for name in ("events.root", "events.h5"):
        words = ["skim", "tiny.yaml", "-o", name.replace(".", "_"), "--quiet", "--set", f"data.path={name}"]
        assert drapes(*words) == 0
    assert read_json("events_h5/skim/hists.json") == read_json("events_root/skim/hists.json")
