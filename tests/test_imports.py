"""What a command loads: heavy libraries only where they are used, each test in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from drapes_hep.cwola.trees import lightgbm_problem
from drapes_hep.stages.sequence import WORKER_MODULE

MODELS = {"torch", "sklearn", "lightgbm", "pandas", "scipy.stats"}
"""What only a training, or the drawing of events by a model, needs."""

FIGURES = {"matplotlib", "mplhep"}

EVENTS = {"awkward", "coffea", "numba", "uproot", "h5py", "pyarrow", "numpy", "scipy"}
"""What a command that touches no event does without."""

SETTINGS = {"drapes_hep.config", "yaml"}
"""What reads a configuration."""

COMMAND = """
import sys
from drapes_hep.cli import app

try:
    app({arguments})
except SystemExit as end:
    assert not end.code, end
"""


def loaded(code: str) -> set[str]:
    """Return the modules of a process that has run some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_loads_neither_numbers_nor_the_configuration(arguments):
    assert not loaded(COMMAND.format(arguments=arguments)) & (MODELS | FIGURES | EVENTS | SETTINGS)


def test_a_configuration_is_checked_without_models_and_figures():
    """The processor is loaded, which imports coffea; a method, a classifier and studies are only named."""
    modules = loaded(COMMAND.format(arguments=["validate", str(ROOT / "configs" / "quickstart.yaml")]))
    assert "coffea" in modules
    assert not modules & (MODELS | FIGURES)


def test_a_stage_loads_no_model_before_it_runs():
    """Every stage describes those before it: whoever hunts would otherwise load what trained."""
    stages = ", ".join(f"drapes_hep.stages.{name}" for name in ("skim", "train", "generate", "classify", "hunt"))
    assert not loaded(f"import {stages}") & (MODELS | FIGURES)


def test_libraries_are_loaded_before_workers_are_forked():
    """Each worker would take seconds for it, and hundreds of megabytes of its own."""
    absent = {"lightgbm"} if lightgbm_problem() else set()
    assert loaded(f"import {WORKER_MODULE}") >= MODELS - {"pandas"} - absent


def test_a_report_needs_no_processor():
    assert not loaded("import drapes_hep.stages.report") & {"coffea", "torch", "uproot", "sklearn", "lightgbm"}


def test_a_search_of_features_loads_no_network_of_sets():
    modules = loaded("import drapes_hep.templates.feature_model")
    assert "drapes_hep.networks.mlp" in modules
    assert not modules & {"drapes_hep.networks.set_backbone", "drapes_hep.networks.attention"}


def test_a_network_that_is_not_compiled_loads_no_compiler():
    assert "torch._dynamo" not in loaded("import drapes_hep.networks.attention")


def test_tables_are_read_and_written_without_pandas(tmp_path):
    """Pyarrow loads it in ``pyarrow.array`` and in ``to_numpy``."""
    code = f"""
import numpy as np
from drapes_hep.events.schema import nested, ragged
from drapes_hep.events.skims import read_skim, write_skim

lists = nested(np.arange(6.0), np.array([0, 2, 3, 6]), np.array([0, 2, 3]))
columns = {{"event_id": np.arange(2), "mjj": np.ones(2), "jets": lists}}
write_skim({str(tmp_path / "skim.parquet")!r}, columns)
assert read_skim({str(tmp_path / "skim.parquet")!r})["jets"].tolist() == lists.tolist()
assert read_skim({str(tmp_path / "skim.parquet")!r}, rows=np.array([1]))["event_id"].tolist() == [1]
"""
    assert "pandas" not in loaded(code)
