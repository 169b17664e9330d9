"""The documentation: generated files are up to date, links resolve, commands and examples hold what they promise."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from conftest import ROOT

from drapes_hep.cli import app
from drapes_hep.config import Config, load_config
from drapes_hep.cwola.classifiers import Classifier
from drapes_hep.templates.methods import BackgroundMethod

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = typer.main.get_command(app)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language):
    return [
        pytest.param(path, body, id=f"{name_of(path)}-{i}")
        for path in PAGES
        for i, (kind, body) in enumerate(FENCE.findall(path.read_text(encoding="utf-8")))
        if kind == language
    ]


def commands(body):
    """Lines of a bash block, continued ones joined, without comments, loops' words and variables in front."""
    for line in body.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


def anchors(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def generator():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "tools" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_up_to_date():
    for name, text in generator().files().items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name}: run python tools/make_reference.py"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_resolve(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        place, _, anchor = target.partition("#")
        page = (path.parent / place).resolve() if place else path
        assert page.exists(), f"{name_of(path)}: {target}"
        if anchor:
            assert anchor in anchors(page), f"{name_of(path)}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_name_no_place_of_one_machine(path):
    text = path.read_text(encoding="utf-8")
    places = re.findall(r"(?<![\w.$}])/(?:work|tmp|home|root|opt|mnt|data|Users)/[\w/.]*", text)
    assert not places, f"{name_of(path)}: {places}"


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "run-directory.md"], ids=name_of)
def test_lines_are_short(path):
    # a row of a table cannot be broken
    long = [
        f"{i}: {len(line)}"
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120 and not line.startswith("|")
    ]
    assert not long


@pytest.mark.parametrize(("path", "body"), blocks("bash"))
def test_commands_parse(path, body):
    for words in commands(body):
        if words[0] == "drapes":
            name, command, rest = COMMAND.resolve_command(None, words[1:])
            with command.make_context(name, rest) as context:
                config = context.params.get("config")
                assignments = context.params.get("assignments") or []
            if config is not None:
                # a shell variable stands for a file's name or for a number
                stand_in = [
                    "data.path=x" if "data.path" in assignment else re.sub(r"\$\w+", "1", assignment)
                    for assignment in assignments
                ]
                load_config(ROOT / config, stand_in)
        elif words[0] == "python" and words[1].endswith(".py"):
            script = ROOT / words[1]
            source = script.read_text(encoding="utf-8")
            for word in words[2:]:
                assert not word.startswith("--") or f'"{word}"' in source, f"{words[1]} has no {word}"
        elif words[0] == "python" and words[1:3] == ["-m", "pytest"]:
            for before, word in itertools.pairwise(words[2:]):
                assert before in {"-n", "--dist"} or word.startswith("-") or (ROOT / word).exists()


@pytest.mark.parametrize(("path", "body"), blocks("yaml"))
def test_configurations_are_valid(path, body):
    tree = yaml.safe_load(body)
    Config.model_validate({"name": "x", "data": {"path": "x", "labels": True}, **tree})


@pytest.mark.parametrize(("path", "body"), blocks("python"))
def test_examples_run(path, body, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "DaskExecutor" in body or "runs/mine" in body:  # need a cluster, or a finished run
        compile(body, name_of(path), "exec")
        return
    names: dict = {"__name__": "example"}
    exec(compile(body, name_of(path), "exec"), names)
    for defined in [value for value in names.values() if isinstance(value, type) and value.__module__ == "example"]:
        if hasattr(defined, "score"):
            assert isinstance(defined(1), Classifier)
        elif hasattr(defined, "basis"):
            assert defined().basis(np.array([0.2, 0.3])).shape == (2, len(defined.parameter_names))
        elif BackgroundMethod in defined.__mro__:
            # one that is made with a whole configuration is run by the tests of methods
            assert all(callable(getattr(defined, name)) for name in ("fit", "save", "load", "sample"))
        elif defined.__name__ == "Counting":
            assert defined({}).settings == {}  # run in test_howto.py
        elif issubclass(defined, torch.nn.Module):
            assert defined(3, 2).condition_features == 2
        else:
            assert defined().settings.leading_pt == 1200


def test_the_first_blocks_of_the_readme_install_and_test():
    blocks = [body for kind, body in FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8")) if kind == "bash"]
    assert "pip install ." in blocks[0]
    assert "drapes run configs/quickstart.yaml -o runs/quickstart" in blocks[0]
    assert "pip install '.[test]'" in blocks[1]
    assert blocks[1].strip().splitlines()[-1] == "python -m pytest -n auto --dist loadfile"


def test_citation():
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert record["cff-version"] == "1.2.0"
    assert {"title", "authors", "message", "version", "license"} <= record.keys()
    assert f'version = "{record["version"]}"' in project
    assert f'license = "{record["license"]}"' in project
