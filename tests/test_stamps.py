"""What may be replaced in a run directory, with and without leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drapes_hep.errors import FitError, RunDirectoryError
from drapes_hep.files import content_hash, file_hash, read_json, write_json
from drapes_hep.keys import first_difference
from drapes_hep.pipeline import execution as stamp_module
from drapes_hep.pipeline.execution import mixed_modules, run_stage
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.pipeline.stage import Stage, Written, read_stamp
from drapes_hep.progress import Reporter

CONFIG = {
    "data": {"path": "/a"},
    "mass": {"fit": "dijet4", "draw": "fit"},
    "windows": {"step": 200},
    "training": {"epochs": 3, "rate": 0.1},
    "constituents": None,
    "blind": True,
    "seed": 1,
}


def changed(section: str, value: object) -> dict:
    """The configuration with another value, or with one key of a section changed."""
    return {**CONFIG, section: {**CONFIG[section], **value} if isinstance(CONFIG[section], dict) and value else value}


def stage(config: dict, name: str = "train.1-2", reads: tuple[Path, ...] = (), **other: object) -> Stage:
    keys = ("mass", "training", "constituents", "blind", "seed")
    return Stage(name, config, keys, lambda: reads, ("spectrum.fit",), other=other, recorded=("data",))


def done(run: RunDirectory, one: Stage) -> bool:
    """Run a stage whose work is a file; returns whether it had to run."""

    def work() -> list[Path]:
        (run.path / "out").write_text(str(one.config))
        return [run.path / "out"]

    return run_stage(run, one, work, Reporter(quiet=True))


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    assert done(run, stage(CONFIG, bins=[1, 2], **{"network's source": ["abc"]}))
    return run


SOURCE = {"network's source": ["abc"]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed("training", {"epochs": 4}), "training.epochs 3, the configuration has 4"),
        (changed("mass", {"fit": "dijet5"}), "mass.fit dijet4, the configuration has dijet5"),
        (changed("seed", 2), "seed 1, the configuration has 2"),
        (changed("constituents", {"width": 8}), "constituents.width null, the configuration has 8"),
    ],
)
def test_another_configuration_needs_leave(run, config, said):
    before = (run.path / "out").read_text()
    with pytest.raises(RunDirectoryError, match=f"contains train.1-2 run with {said}"):
        done(run, stage(config, bins=[1, 2], **SOURCE))
    assert (run.path / "out").read_text() == before
    assert read_stamp(run, "train.1-2") is not None
    assert done(RunDirectory(run.path, overwrite=True), stage(config, bins=[1, 2], **SOURCE))
    assert (run.path / "out").read_text() == str(config)
    assert not done(run, stage(config, bins=[1, 2], **SOURCE))


def test_a_section_that_is_left_out_needs_leave(tmp_path):
    run = RunDirectory(tmp_path / "run")
    done(run, stage(changed("constituents", {"width": 8})))
    with pytest.raises(RunDirectoryError, match="run with constituents a section, the configuration has null"):
        done(run, stage(CONFIG))


def test_what_follows_from_a_key_is_called_by_that_key(run):
    with pytest.raises(RunDirectoryError, match=r"run with windows.step 200, the configuration has 100"):
        done(run, stage(changed("windows", {"step": 100}), bins=[1, 3], **SOURCE))


@pytest.mark.parametrize(
    ("config", "other"),
    [
        (CONFIG, {"bins": [1, 2], "network's source": ["an edited file"]}),
        (CONFIG, {"bins": [1, 2], "constituents": {"network's source": ["new"]}, **SOURCE}),
        (changed("blind", False), {"bins": [1, 2], **SOURCE}),
        (changed("training", {"a key of newer code": 1}), {"bins": [1, 2], **SOURCE}),
    ],
    ids=["source", "newer stage", "unblinded", "newer key"],
)
def test_other_code_and_unblinding_need_none(run, config, other):
    assert done(run, stage(config, **other))


def change_code(monkeypatch, *names: str) -> None:
    """Let modules of the package be other ones."""
    before = stamp_module.module_hashes

    def changed(code: tuple) -> dict[str, str]:
        return {**before(code), **dict.fromkeys(names, "f" * 12)}

    monkeypatch.setattr(stamp_module, "module_hashes", changed)
    monkeypatch.setattr(stamp_module, "code_hash", lambda *code: content_hash(changed(code).items()))


def test_other_code_of_the_package_needs_none(run, monkeypatch, capsys):
    change_code(monkeypatch, "drapes_hep/spectrum/poisson.py")
    one = stage(CONFIG, bins=[1, 2], **SOURCE)
    assert run_stage(run, one, lambda: [run.path / "out"], Reporter())
    assert (
        "train.1-2: runs again, as drapes_hep/spectrum/poisson.py was changed" in capsys.readouterr().err.splitlines()
    )


def test_what_is_quickly_made_again_needs_none(tmp_path):
    run = RunDirectory(tmp_path / "run")
    done(run, replace(stage(CONFIG), cheap=True))
    assert done(run, replace(stage(changed("seed", 2)), cheap=True))


def test_an_unfinished_stage_needs_none(run):
    run.stamp("train.1-2").unlink()
    assert done(run, stage(changed("seed", 2)))


class Interrupted(BaseException):
    """Ctrl-C, a signal, a scheduler."""


def begin(run: RunDirectory, one: Stage, error: type[BaseException]) -> None:
    def work() -> list[Path]:
        raise error

    with pytest.raises(error):
        run_stage(run, one, work, Reporter(quiet=True))


def test_an_interrupted_stage_of_another_configuration_needs_leave(tmp_path):
    run = RunDirectory(tmp_path / "run")
    begin(run, stage(CONFIG), Interrupted)
    assert run.begun("train.1-2").is_file()
    with pytest.raises(
        RunDirectoryError, match=r"contains train.1-2 run with training.epochs 3, the configuration has 1"
    ):
        done(run, stage(changed("training", {"epochs": 1})))
    assert done(run, stage(CONFIG))
    assert not run.begun("train.1-2").exists()


def test_an_interrupted_stage_is_replaced_with_leave(tmp_path):
    run = RunDirectory(tmp_path / "run", overwrite=True)
    begin(run, stage(CONFIG), Interrupted)
    assert done(run, stage(changed("training", {"epochs": 1})))


def test_a_stage_that_refused_its_configuration_needs_no_leave(tmp_path):
    run = RunDirectory(tmp_path / "run")
    begin(run, stage(CONFIG), FitError)
    assert done(run, stage(changed("training", {"epochs": 1})))


def processed(name: str, source: str) -> Stage:
    config = {**CONFIG, "processor": name}
    other = {"processor's class": name.rpartition(":")[2], "processor's source": [source]}
    return Stage("skim", config, (), lambda: (), ("spectrum.fit",), other=other, recorded=("processor",))


@pytest.mark.parametrize(
    ("name", "source", "leave"),
    [
        ("./own.py:Own", "a", False),
        ("/elsewhere/own.py:Own", "a", False),
        ("own.py:Other", "a", True),
        ("other.py:Own", "b", True),
    ],
)
def test_a_processor_is_its_class_and_its_source(tmp_path, name, source, leave):
    run = RunDirectory(tmp_path / "run")
    done(run, processed("own.py:Own", "a"))
    if leave:
        with pytest.raises(RunDirectoryError, match=r"run with processor own.py:Own"):
            done(run, processed(name, source))
    else:
        assert not done(run, processed(name, source))


def test_files_named_otherwise_need_leave_if_they_hold_other_bytes(tmp_path):
    run = RunDirectory(tmp_path / "run")
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("1")
    done(run, stage(CONFIG, reads=(first,)))
    second.write_text("1")
    moved = changed("data", {"path": "/b"})
    assert not done(run, stage(moved, reads=(second,)))
    second.write_text("2")
    # the stamp names the place where the bytes were last seen
    with pytest.raises(RunDirectoryError, match=r"run with data.path /b, the configuration has /c"):
        done(run, stage(changed("data", {"path": "/c"}), reads=(second,)))
    # a file that was written again at its place is not another configuration
    assert done(run, stage(moved, reads=(second,)))


def test_a_stamp_of_an_older_release_is_said_to_be_one(run, capsys):
    stamp = read_json(run.stamp("train.1-2"))
    old = {key: value for key, value in stamp.items() if key not in {"version", "modules", "opened", "recorded"}}
    write_json(run.stamp("train.1-2"), {**old, "key": "0" * 64, "noted": stamp["recorded"]})
    earlier = stage(CONFIG, bins=[1, 2], **SOURCE)
    later = Stage("hunt", CONFIG, ("mass",), lambda: (), ("spectrum.fit",), after=(earlier,))
    with pytest.raises(
        RunDirectoryError, match=r"stamp of train.1-2 is from an older release; run `Search.train\(\)` again"
    ):
        done(run, later)
    with pytest.raises(RunDirectoryError, match=r"run with training.epochs 3, the configuration has 4"):
        done(run, stage(changed("training", {"epochs": 4}), bins=[1, 2], **SOURCE))
    assert run_stage(run, earlier, lambda: [run.path / "out"], Reporter())
    assert "train.1-2: runs again, as its stamp is from an older release" in capsys.readouterr().err.splitlines()
    assert not done(run, earlier)


def test_a_later_stage_refuses_what_rests_on_a_file_that_has_changed(tmp_path):
    run, file = RunDirectory(tmp_path / "run"), tmp_path / "golden.json"
    file.write_text("1")
    first = stage(CONFIG, "skim")
    written = Written([], {str(file): file_hash(file)})
    assert run_stage(run, first, lambda: written, Reporter(quiet=True))
    later = Stage("hunt", CONFIG, ("mass",), lambda: (), ("spectrum.fit",), after=(first,))
    assert done(run, later)
    file.write_text("2")
    with pytest.raises(RunDirectoryError, match=r"golden.json: changed since the processor read it in skim; run"):
        done(run, later)


def test_modules_that_differ_between_stages_are_named(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    done(run, stage(CONFIG, "train.1-2"))
    assert mixed_modules(run, ["train.1-2"]) == ()
    change_code(monkeypatch, "drapes_hep/spectrum/poisson.py")
    done(run, stage(CONFIG, "train.2-3"))
    assert mixed_modules(run, ["train.1-2", "train.2-3", "hunt"]) == ("drapes_hep/spectrum/poisson.py",)


def test_a_section_that_is_left_out_is_a_difference():
    assert first_difference({"a": {"x": 1}}, {"a": None}) == ("a", "a section", None)
    assert first_difference({"a": None}, {"a": {"x": 1}}) == ("a.x", None, 1)
    assert first_difference({"a": {"x": 1}}, {"a": {"x": 1}}) is None
