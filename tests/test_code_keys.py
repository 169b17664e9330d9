"""Which code each stage's result rests on, and which keys of the configuration decide it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from conftest import ROOT

from drapes_hep.config import Config, _Section, keys_of
from drapes_hep.keys import Decides, decided, leaves, part_of
from drapes_hep.pipeline.code_keys import CHANGE_NO_NUMBER, PACKAGE, code_hash, hashes_of
from drapes_hep.studies.trial_keys import TRIAL_CODE

CODE = {
    "skim": ("stages.skim",),
    "skim of a table": ("stages.skim_table",),
    "simulation": ("stages.simulation",),
    "train": ("stages.train",),
    "generate": ("stages.generate",),
    "classify": ("stages.classify",),
    "hunt": ("stages.hunt",),
    "studies' models": ("studies.trials",),
    "studies' trials": TRIAL_CODE,
}
MODELS = {"train", "generate", "studies' models", "studies' trials"}


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_every_key_says_which_stages_it_decides():
    silent = [key for key, info in leaves(Config) if sum(isinstance(one, Decides) for one in info.metadata) != 1]
    assert silent == []


def test_every_stage_that_a_key_names_is_one_that_asks_for_its_keys():
    sources = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    asked = {name for source in sources for name in re.findall(r'keys_of\("([\w.]+)"\)', source)}
    assert {name for _, info in leaves(Config) for one in info.metadata for name in getattr(one, "stages", ())} == asked


def test_every_stage_of_the_package_is_among_those_that_are_looked_at_below():
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (PACKAGE / "stages").glob("*.py")}
    described = {f"stages.{name}" for name, source in sources.items() if re.search(r"^def \w+_stage\(", source, re.M)}
    assert described == {name for code in CODE.values() for name in code if name.startswith("stages.")}


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("name", set()),
        ("data.layout", set()),
        ("processor", set()),
        ("plots.label", set()),
        ("template.scaling", {"train"}),
        ("template.steps", {"generate"}),
        ("training.epochs", {"train"}),
        ("constituents.steps", {"generate"}),
        ("cwola.ensemble", {"classify"}),
        ("hunt.toys", {"hunt"}),
    ],
)
def test_a_key_decides(key, stages):
    every = ("skim", "simulation", "train", "generate", "classify", "quality", "hunt", "study.draw")
    assert {stage for stage in every if key in keys_of(stage)} == stages


def test_a_stage_that_no_key_names_is_a_mistake():
    with pytest.raises(ValueError, match="no key of the configuration says that it decides 'tarin'"):
        decided(Config, "tarin")


def test_a_part_is_nested_and_a_section_that_is_left_out_is_none():
    config = {"a": {"x": 1, "y": 2}, "b": None, "seed": 3}
    assert part_of(config, ("a.x", "b.z", "seed")) == {"a": {"x": 1}, "b": None, "seed": 3}
    assert part_of(config, ("a",)) == {"a": {"x": 1, "y": 2}}


# ---- a small package -------------------------------------------------------------------------------------------------

SMALL = {
    "__init__": "from drapes_hep.heavy import x",
    "stage": '"""Words."""\nfrom drapes_hep.maths import number\nfrom drapes_hep import tools',
    "maths": 'number = 1\n"""A number."""\n\n\ndef twice(x):\n    """Return it twice."""\n    return 2 * x',
    "tools": 'BY_NAME = {"a": "drapes_hep.named:A"}\n\n\ndef use():\n    from drapes_hep.late import one\n    one()',
    "late": "one = 1",
    "named": "class A: ...",
    "heavy": "x = 1",
    "typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from drapes_hep.heavy import x",
    "described": "from drapes_hep.stage import other_stage",
    "helped": "from drapes_hep.stage import other_stage, helper",
    "worded": "from drapes_hep.errors import DrapesError\nfrom drapes_hep.guard import enter",
    "errors": "from drapes_hep.heavy import x",
    "guard": "from drapes_hep.heavy import x",
    "box/__init__": "from drapes_hep.box.a import A\nfrom drapes_hep.box.b import B",
    "box/a": "class A: ...",
    "box/b": "class B: ...",
    "near": "from .box import B",
    "whole": "from drapes_hep import box",
}


@pytest.fixture
def small(tmp_path) -> Path:
    root = tmp_path / "drapes_hep"
    (root / "box").mkdir(parents=True)
    for name, source in SMALL.items():
        (root / f"{name}.py").write_text(source)
    return root


@pytest.mark.parametrize(
    ("module", "modules"),
    [
        ("stage", {"stage", "maths", "tools", "late", "named"}),
        ("typed", {"typed"}),
        ("described", {"described"}),
        ("helped", {"helped", "stage", "maths", "tools", "late", "named"}),
        ("worded", {"worded"}),
        ("near", {"near", "box/b"}),
        ("whole", {"whole", "box/__init__", "box/a", "box/b"}),
    ],
)
def test_a_module_rests_on(small, module, modules):
    assert set(hashes_of([module], small)) == {f"drapes_hep/{name}.py" for name in modules}


def test_a_users_file_brings_what_it_imports(small, tmp_path):
    (tmp_path / "mine.py").write_text("import numpy\nfrom drapes_hep.maths import number")
    assert set(hashes_of(["late", tmp_path / "mine.py"], small)) == {"drapes_hep/late.py", "drapes_hep/maths.py"}


def test_a_module_that_is_not_there_is_a_mistake(small):
    with pytest.raises(ValueError, match=r"no module drapes_hep\.nowhere"):
        hashes_of(["nowhere"], small)


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ("# words\n" + SMALL["maths"] + "  # more\n\n\n", True),
        (SMALL["maths"].replace("A number", "Another"), True),
        (SMALL["maths"].replace("Return it twice", "Twice"), True),
        (SMALL["maths"].replace('    """Return it twice."""\n', ""), True),
        (SMALL["maths"].replace("2 * x", "(2 *\n        x)"), True),
        (SMALL["maths"].replace("number = 1", "number = 2"), False),
        (SMALL["maths"].replace("number = 1", "number = 1.0"), False),
        (SMALL["maths"].replace("2 * x", "2 + x"), False),
        (SMALL["maths"].replace("number", "digit"), False),
    ],
)
def test_a_hash_is_of_what_a_module_does(small, source, same):
    before = hashes_of(["maths"], small)
    (small / "maths.py").write_text(source)
    assert (hashes_of(["maths"], small) == before) == same


def test_a_hash_counts_contents_and_not_names_alone(monkeypatch):
    before = code_hash("spectrum.fit")
    monkeypatch.setattr("drapes_hep.pipeline.code_keys.module_hashes", lambda _: {"drapes_hep/spectrum/fit.py": "0"})
    one = code_hash("spectrum.fit")
    monkeypatch.setattr("drapes_hep.pipeline.code_keys.module_hashes", lambda _: {"drapes_hep/spectrum/fit.py": "1"})
    assert len({before, one, code_hash("spectrum.fit")}) == 3


# ---- the package -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return shutil.copytree(PACKAGE, tmp_path_factory.mktemp("clone") / "drapes_hep")


def edit_comment(source: str) -> str:
    return f"{source}\n# other words\n"


def edit_docstring(source: str) -> str:
    return source.replace('"""', '"""Other words. ', 1)


def edit_number(source: str) -> str:
    numbers = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and type(node.value) in (int, float)
    ]
    lines = source.split("\n")
    line, first, last = numbers[0].lineno - 1, numbers[0].col_offset, numbers[0].end_col_offset
    lines[line] = f"{lines[line][:first]}{numbers[0].value + 1!r}{lines[line][last:]}"
    return "\n".join(lines)


def state(root: Path) -> dict[str, dict[str, str]]:
    return {stage: hashes_of(code, root) for stage, code in CODE.items()}


@pytest.fixture(scope="module")
def before(clone) -> dict[str, dict[str, str]]:
    return state(clone)


EDITED = {
    "events/formats/root": {"skim", "simulation"},
    "stages/skim": {"skim", "simulation"},
    "templates/feature_model": MODELS,
    "diffusion/training": MODELS,
    "training/loop": MODELS | {"classify"},
    "networks/set_pairs": {"classify", "studies' trials"},
    "cwola/perceptron": {"classify", "studies' trials"},
    "networks/epic": MODELS,
    "cwola/set_classifiers": {"classify", "studies' trials"},
    "metrics": {"classify", "studies' trials"},
    "stages/train": {"train"},
    "stages/generate": {"generate"},
    "spectrum/fit": {"generate", "hunt", "studies' models", "studies' trials"},
    "spectrum/bins": {"generate", "hunt", "studies' models", "studies' trials"},
    "spectrum/drawing": {"generate", "studies' models", "studies' trials"},
    "templates/plan": {"generate", "studies' models", "studies' trials"},
    "events/blinding": {"skim", "skim of a table", "simulation", "hunt"},
    "bumphunt/toys": {"hunt"},
    "studies/measures": {"studies' trials"},
    "plots/scan": set(),
    "report/sections": set(),
    "cli": set(),
    "progress": set(),
}


@pytest.mark.parametrize("edit", [edit_comment, edit_docstring])
def test_words_void_nothing(clone, before, edit):
    sources = {path: path.read_text(encoding="utf-8") for path in (clone / f"{module}.py" for module in EDITED)}
    assert all(edit(source) != source for source in sources.values())
    for path, source in sources.items():
        path.write_text(edit(source), encoding="utf-8")
    try:
        assert state(clone) == before
    finally:
        for path, source in sources.items():
            path.write_text(source, encoding="utf-8")


@pytest.mark.parametrize(("module", "stages"), EDITED.items())
def test_a_number_voids_what_uses_it(clone, before, module, stages):
    path = clone / f"{module}.py"
    source = path.read_text(encoding="utf-8")
    path.write_text(edit_number(source), encoding="utf-8")
    try:
        after = state(clone)
    finally:
        path.write_text(source, encoding="utf-8")
    assert {stage for stage, hashes in after.items() if hashes != before[stage]} == stages


LIMITS = """
from drapes_hep.config import keys_of
from drapes_hep.spectrum.fit import fit_spectrum
from drapes_hep.stages.hunt import hunt_stage


def limits_stage(context):
    return keys_of("limits"), hunt_stage(context)
"""


def test_a_new_stage_voids_none_before_it(clone, before):
    (clone / "stages" / "limits.py").write_text(LIMITS)
    section = "class LimitsConfig(_Section):\n    level: Annotated[float, Decides('limits')] = Field(0.95)\n\n\n"
    for name, old, new in (
        ("config", "class PlotConfig", f"{section}class PlotConfig"),
        ("stages/sequence", "VERBS = {", "VERBS = {\n    'limits': 'Set limits.',"),
        ("pipeline/run_directory", "class RunDirectory:", "class RunDirectory:\n    limits = 'limits.json'\n"),
    ):
        path = clone / f"{name}.py"
        source = path.read_text(encoding="utf-8")
        assert old in source
        path.write_text(source.replace(old, new, 1), encoding="utf-8")
    assert state(clone) == before
    assert {"drapes_hep/stages/limits.py", "drapes_hep/spectrum/fit.py"} <= set(hashes_of(["stages.limits"], clone))
    assert "drapes_hep/stages/hunt.py" not in hashes_of(["stages.limits"], clone)


def test_a_new_section_changes_the_keys_of_none_before_it():
    class Limits(_Section):
        level: Annotated[float, Decides("limits")] = 0.95

    class More(Config):
        limits: Limits = Limits()

    stages = ("skim", "simulation", "train", "generate", "classify", "quality", "hunt", "study.draw")
    assert [decided(More, stage) for stage in stages] == [keys_of(stage) for stage in stages]
    assert decided(More, "limits") == ("limits.level",)


@pytest.mark.parametrize(
    ("stage", "modules"),
    [
        (
            "train",
            {"networks/transformer", "networks/epic", "networks/deepsets", "networks/mlp", "diffusion/denoisers"},
        ),
        ("generate", {"networks/transformer", "networks/epic", "networks/deepsets", "diffusion/samplers"}),
        ("classify", {"cwola/set_classifiers", "cwola/classifiers"}),
        (
            "skim",
            {
                "events/formats/root",
                "events/formats/hdf5",
                "events/formats/raw",
                "events/formats/parquet",
                "events/formats/nanoaod",
                "events/formats/delphes",
            },
        ),
    ],
)
def test_what_is_found_by_name_counts(stage, modules):
    assert {f"drapes_hep/{name}.py" for name in modules} <= set(hashes_of(CODE[stage]))


def test_modules_that_are_left_out_exist():
    assert [name for name in CHANGE_NO_NUMBER if not (PACKAGE / f"{name.replace('.', '/')}.py").is_file()] == []


def test_packages_that_are_passed_through_only_re_export():
    """An ``__init__`` on the way to a module is not followed: it must have no effect of its own."""
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_bytes()).body
        # names that are imported when they are used, and for type checkers
        lazy = [one for one in body if isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING"]
        kinds = {type(one) for one in body if one not in lazy}
        assert kinds <= {ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Try, ast.FunctionDef}, (
            path
        )


def test_a_selection_rests_on_no_model():
    modules = set(hashes_of(CODE["skim"]))
    assert not {
        name for name in modules if name.split("/")[1] in {"templates", "diffusion", "networks", "cwola", "spectrum"}
    }
    assert len(modules) < 55


SKIM = """
import sys
from pathlib import Path
from drapes_hep.cli import app

try:
    app(["skim", sys.argv[1], "-o", sys.argv[2], "--quiet"])
except SystemExit as end:
    assert not end.code, end
assert (Path(sys.argv[2]) / "skim" / "events.parquet").is_file()
print(sorted({"formulate", "torch"} & sys.modules.keys()))
"""


def test_a_selection_loads_neither_torch_nor_the_parser_of_expressions(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SKIM, str(ROOT / "configs" / "quickstart.yaml"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip().splitlines()[-1:], done.returncode) == (["[]"], 0), done.stderr


def test_a_part_holds_keys_of_a_section_in_a_section():
    config = {"a": {"x": 1, "in": {"y": 2, "z": 3}}}
    assert part_of(config, ("a.x", "a.in.z")) == {"a": {"x": 1, "in": {"z": 3}}}
    assert part_of({"a": {"in": None}}, ("a.in.z",)) == {"a": {"in": None}}
