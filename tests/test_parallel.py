"""Work in processes of their own, and windows side by side: the same files, one line for what fails, no orphans."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT
from rich.console import Console
from test_cli import drapes
from test_stages import SEARCH, WINDOWS, cut_sample
from worker_calls import add_entries, answer, answers, fail, leave, speak, unpicklable

from drapes_hep import Search, parallel, progress
from drapes_hep.config import load_config
from drapes_hep.errors import DrapesError, InputError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.table import Table
from drapes_hep.files import file_hash, read_json
from drapes_hep.guard import stage
from drapes_hep.parallel import available_memory, in_processes
from drapes_hep.pipeline import run_directory
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import begin_manifest, open_run
from drapes_hep.progress import Bar, Board, Line, Relay, Reporter
from drapes_hep.stages import sequence
from drapes_hep.stages.window_memory import window_memory

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="servers of processes, and locks of directories"),
    pytest.mark.usefixtures("few_trees"),
]

# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """Start the server of processes with what a search needs, once for all tests of this module."""
    list(in_processes(answer, [(0,)], 1, apart=True, preload=sequence.WORKER_MODULE))


def test_calls_begin_in_their_order_and_workers_are_used_again():
    results = dict(in_processes(answer, [(number,) for number in range(6)], 2))
    assert sorted(results) == [*range(6)]
    assert len(set(results.values()) - {os.getpid()}) == 2


def test_one_call_runs_in_this_process_unless_it_is_to_be_apart():
    assert list(in_processes(answer, [(0,)], 2)) == [(0, os.getpid())]
    ((_, other),) = in_processes(answer, [(0,)], 1, apart=True)
    assert other != os.getpid()


def test_the_first_call_that_fails_is_told_and_those_after_it_are_stopped(tmp_path):
    with pytest.raises(InputError, match=r"first\.root: is not whole; copy it again"):
        list(in_processes(fail, [(tmp_path, number) for number in range(4)], 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["began.2", "failed", "kept.2"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            "killed",
            r"a worker process was killed by signal 9 \(out of memory\? use fewer workers\) during classify.A; fin",
        ),
        ("while it sends", "a worker process was killed by signal 9 "),
        ("os._exit", r"a worker process exited during classify.A without a result: its code called os._exit or simil"),
        ("exit", r"classify.A: ended by sys.exit\(3\) in .*worker_calls.py, line \d+: code in a search must not exit"),
        ("user's", "^one line$"),
        ("ended", "a worker process was ended by SIGTERM during classify.A; fin"),
    ],
)
def test_a_worker_that_ends_is_one_line(how, words):
    with pytest.raises(DrapesError, match=words):
        list(in_processes(leave, [(how,), (how,)], 2))


def test_a_defect_keeps_its_traceback_whatever_its_class():
    with pytest.raises(RuntimeError, match="Odd: this and that") as caught:
        list(in_processes(leave, [("defect",), ("defect",)], 2))
    assert 'raise Odd("this", "that")' in str(caught.value.__cause__)


def test_a_result_that_cannot_be_sent_is_an_error_of_its_call():
    with pytest.raises((TypeError, AttributeError, RuntimeError), match="pickle"):
        list(in_processes(unpicklable, [(0,), (1,)], 2))


def test_what_calls_tell_arrives_with_their_number_and_their_stage_is_this_process_s():
    heard, stages = [], []
    list(in_processes(speak, [(0,), (1,)], 2, hear=lambda *words: (heard.append(words), stages.append(stage()))))
    assert sorted(heard) == [(call, word) for call in (0, 1) for word in range(3)]
    assert {"stage 0", "stage 1"} & {name for names in stages for name in names.split(" and ")}
    assert stage() == ""


def test_calls_in_turn_tell_this_process_too():
    heard = []
    list(in_processes(speak, [(0,), (1,)], 1, hear=lambda *words: heard.append(words)))
    assert heard == [(call, word) for call in (0, 1) for word in range(3)]


def test_a_worker_of_a_users_own_pool_does_its_calls_itself():
    """Its processes may have no children."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        first, second = pool.apply(answers, (7,))
    assert first == second
    assert first[1] != os.getpid()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"memory.max": "3000", "memory.current": "1000"}, 2000),
        ({"memory.max": "1000", "memory.current": "3000"}, 0),
        ({"memory/memory.limit_in_bytes": "3000", "memory/memory.usage_in_bytes": "500"}, 2500),
    ],
)
def test_a_container_s_limit_bounds_the_memory(tmp_path, limits, expected):
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available_memory(tmp_path, tmp_path / "none") == expected


@pytest.mark.parametrize(
    ("membership", "folder", "files"),
    [
        ("0::/jobs/a", "jobs", ("memory.max", "memory.current")),
        ("7:memory:/jobs/a", "memory/jobs/a", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_a_batch_job_s_limit_is_that_of_its_group_or_of_one_around_it(tmp_path, membership, folder, files):
    (tmp_path / folder).mkdir(parents=True)
    for name, text in zip(files, ("3000", "1000"), strict=True):
        (tmp_path / folder / name).write_text(text)
    (tmp_path / "membership").write_text(f"3:cpu:/elsewhere\n{membership}\n")
    assert available_memory(tmp_path, tmp_path / "membership") == 2000


def test_files_that_were_read_take_no_memory_of_a_container(tmp_path):
    for name, text in (("max", "3000"), ("current", "2900"), ("stat", "anon 400\ninactive_file 1500\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_memory(tmp_path, tmp_path / "none") == 1600


def test_without_a_limit_memory_is_the_machine_s(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 12345}))
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path, tmp_path / "none") == 12345


# ---- lines and bars --------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_relay_passes_lines_and_bars_on(monkeypatch):
    monkeypatch.setattr(progress, "_OFTEN", 0.0)
    posted: list[Line | Bar] = []
    relay = Relay(False, True, posted.append)
    relay.say("a line")
    with relay.bar("train A", 10) as update:
        update(3)
        update(4, 12)
    number = posted[1].number
    states = [(0, 10, True), (3, 10, True), (4, 12, True), (4, 12, False)]
    assert posted == [Line("a line"), *(Bar(number, "train A", *state) for state in states)]


def test_a_quiet_relay_passes_nothing_on():
    posted: list[Line | Bar] = []
    relay = Relay(True, True, posted.append)
    relay.say("a line")
    with relay.bar("train A", 10) as update:
        update(3)
    assert posted == []


def test_bars_of_workers_have_a_row_each_and_lines_stand_above_them(monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", -1.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    board = Board(Reporter())
    screen = Terminal()
    board._progress.live.console = Console(file=screen, force_terminal=True, width=80)
    board.hear(0, Bar(0, "train A", 0, 40))
    board.hear(1, Bar(0, "train B", 0, 40))
    board.hear(0, Bar(0, "train A", 20, 40))
    assert [(task.description, task.completed) for task in board._progress.tasks] == [("train A", 20), ("train B", 0)]
    board.hear(0, Bar(0, "train A", 40, 40, open=False))
    board.hear(0, Line("train.A: 3.0 s, 500 MiB"))
    assert [task.description for task in board._progress.tasks] == ["train B"]
    board.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "train.A: 3.0 s, 500 MiB\n" in plain


def test_in_a_log_the_lines_of_workers_are_whole_lines(capsys):
    board = Board(Reporter())
    board.hear(0, Bar(0, "train A", 0, 40))
    board.hear(1, Line("one"))
    board.hear(0, Line("two"))
    board.close()
    assert capsys.readouterr().err == "one\ntwo\n"


# ---- the manifest ----------------------------------------------------------------------------------------------------


def test_two_processes_lose_no_entry_of_the_manifest(tmp_path):
    begin_manifest(open_run(tmp_path / "run"), {"name": "t"})
    list(in_processes(add_entries, [(tmp_path / "run", number) for number in range(2)], 2))
    entries = read_json(tmp_path / "run" / "manifest.json")["inputs"]
    assert len(entries) == 40
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["manifest.json"]


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = open_run(tmp_path / "run")
    begin_manifest(run, {"name": "t"})
    run_directory.note(run, inputs={"a": "b"})
    assert read_json(run.manifest)["inputs"] == {"a": "b"}


# ---- windows ---------------------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


PLUGIN = """
import multiprocessing
import os
from pathlib import Path
from drapes_hep.cwola.trees import Trees
from drapes_hep.stages import classify

# as the fixture few_trees does in the tests' process
Trees.__init__.__kwdefaults__["iterations"] = 8
classify.QUALITY_ENSEMBLE = 1

class Mine(Trees):
    def fit(self, *events):
        how = Path(__file__).with_suffix(".how")
        if how.exists():
            exec(how.read_text())
        return super().fit(*events)
"""

SCRIPT = """
import sys
print("begin", flush=True)
from drapes_hep import Search
search = Search("tiny.yaml", "two", device="cpu", workers=2)
results = search.run()
print("torch" in sys.modules, flush=True)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a configuration, whose classifier is a file of the user's, and its data."""
    folder = tmp_path_factory.mktemp("windows")
    write_feature_root(folder / "events.root", cut_sample(1000))
    search = {**SEARCH, "cwola": {**SEARCH["cwola"], "classifier": "mine.py:Mine"}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(search))
    (folder / "mine.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def script(project) -> subprocess.CompletedProcess[str]:
    """The search with two workers, in a script that has no guard for its main module."""
    (project / "script.py").write_text(SCRIPT)
    words = [sys.executable, "script.py"]
    return subprocess.run(words, cwd=project, env=environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done(project, script) -> Path:
    """The finished run of the script."""
    assert script.returncode == 0, script.stderr
    return project / "two"


@pytest.fixture
def copy(project, done, tmp_path, monkeypatch) -> Path:
    """The project with the run of two workers, its windows as they were before ``classify``."""
    folder = tmp_path / "copy"
    shutil.copytree(project, folder)
    for path in [*(folder / "two" / "stages").glob("classify.*"), *(folder / "two" / "stages").glob("quality.*")]:
        path.unlink()
    monkeypatch.chdir(folder)
    return folder


def contents(run: Path) -> dict[str, str]:
    """Hashes of the files, but for those with clocks."""
    files = [path for folder in ("windows", "skim") for path in (run / folder).rglob("*") if path.is_file()]
    files += [run / name for name in ("results.json", "hunt.json", "hists.json")]
    return {
        str(path.relative_to(run)): file_hash(path)
        for path in files
        if path.exists() and "training.json" not in path.name
    }


def without_clocks(value: object) -> object:
    if isinstance(value, dict):
        clocks = {"seconds", "finished", "created", "peak_memory_mib"}
        # a stamp holds sizes of files, and those of curves hold seconds
        names = [name for name in value if name not in clocks and not name.endswith("training.json")]
        return {name: without_clocks(value[name]) for name in names}
    return [without_clocks(inner) for inner in value] if isinstance(value, list) else value


def test_one_worker_and_two_give_the_same_files(project, done, monkeypatch):
    monkeypatch.chdir(project)
    Search("tiny.yaml", "one", device="cpu", workers=1, quiet=True).run()
    one, two = contents(project / "one"), contents(done)
    assert one == two
    assert len(one) > 20
    for name in WINDOWS:
        for place in (f"windows/{name}/training.json", f"stages/classify.{name}.json", f"stages/train.{name}.json"):
            first, second = (without_clocks(read_json(run / place)) for run in (project / "one", done))
            assert first == second, place
    first, second = (read_json(run / "manifest.json") for run in (project / "one", done))
    assert first["stages"].keys() == second["stages"].keys()
    assert first["config"] == second["config"]


def test_every_stage_has_its_line_in_the_log(script):
    lines = script.stderr.splitlines()
    stages = [f"{verb}.{name}" for name in WINDOWS for verb in ("train", "generate", "classify", "quality")]
    for name in ("skim", *stages, "hunt"):
        assert len([line for line in lines if re.fullmatch(rf"{name}: \d+\.\d s, \d+ MiB", line)]) == 1, name


def test_a_script_without_a_guard_runs_once_and_imports_no_torch(script, done):
    """Neither its workers nor their server run it again, and what they import is not in its memory."""
    assert script.stdout == "begin\nFalse\n"


def test_a_worker_that_dies_is_one_line_and_finished_stages_stay(copy, capsys):
    (copy / "mine.how").write_text("os._exit(0)")
    assert drapes("classify", "tiny.yaml", "-o", "two", "--workers", 2, "--quiet") == 2
    assert re.fullmatch(
        r"drapes: a worker process exited during classify.\S+( and classify\S+)? without a result: its code called"
        r" os._exit or similar \(status 0\); finished work is kept: run the same command again to resume\n",
        capsys.readouterr().err,
    )
    assert {path.stem for path in (copy / "two" / "stages").glob("*.json")} >= {f"generate.{name}" for name in WINDOWS}


def test_of_windows_that_fail_the_first_is_told_as_without_workers(copy, capsys):
    (copy / "mine.how").write_text("raise RuntimeError('mine')")
    said = []
    for workers in (2, 1):
        status = drapes("classify", "tiny.yaml", "-o", "two", "--workers", workers, "--quiet")
        said.append((status, capsys.readouterr().err))
    assert said[0] == said[1]
    assert said[0][0] == 2
    assert len(said[0][1].splitlines()) == 1


SLOW = """
import os, time
from pathlib import Path
from drapes_hep.training import loop
rate = loop.learning_rate
def slower(*step):
    Path(f"began.{os.getpid()}").touch()
    time.sleep(0.3)
    return rate(*step)
loop.learning_rate = slower
"""


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def wait_until(ready, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 100
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_a_checkpoint_of_every_window(copy, number):
    """The signal reaches the command, its server and its workers alike."""
    # every process imports this module when it starts
    (copy / "sitecustomize.py").write_text(SLOW)
    for path in (copy / "two" / "stages").glob("train.*"):
        path.unlink()
    words = [sys.executable, "-m", "drapes_hep", "run", "tiny.yaml", "-o", "two", "--workers", "2", "--quiet"]
    words += ["--overwrite", "--set", "training.batch=64"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    slow = environment()
    slow["PYTHONPATH"] = os.pathsep.join([str(copy), slow.get("PYTHONPATH", "")])
    process = subprocess.Popen(words, cwd=copy, env=slow, start_new_session=True, **pipes)
    wait_until(lambda: len(list(copy.glob("began.*"))) == 2, process)
    time.sleep(1.0)  # some steps of each
    others = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert re.fullmatch(
        r"drapes: (interrupted|ended by SIG\w+) during train\.\S+ and train\.\S+; finished stages are kept, a training"
        r" in progress is saved in a checkpoint; run the same command again to resume\n",
        err,
    )
    assert len(list(copy.glob("two/windows/*/model_0.*.checkpoint"))) == 2
    assert gone(others)


PAUSES = """
import time
from drapes_hep.parallel import in_processes
print("begin", flush=True)
list(in_processes(time.sleep, [(60,), (60,)], 2, preload="drapes_hep.caller"))
"""


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_a_killed_script_leaves_no_process(tmp_path, how):
    (tmp_path / "script.py").write_text(PAUSES)
    with (tmp_path / "script.py").open() as text:
        words = [sys.executable, "script.py" if how == "file" else "-"]
        pipes = {"stdin": text, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, cwd=tmp_path, env=environment(), **pipes)
    # the server, its helper and two workers
    wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) == 4, process)
    others = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert process.communicate() == ("begin\n", "")
    assert gone(others)


# ---- which windows run side by side ----------------------------------------------------------------------------------


def context_of(project: Path, *changes: str, workers: int = 2, device: str = "cpu") -> Context:
    config = load_config(project / "tiny.yaml", changes)
    return Context.of(config, open_run(project / "two"), device=device, workers=workers)


@pytest.fixture
def processes(monkeypatch) -> list[int]:
    """Numbers of the processes that windows were given, where none is started."""
    asked: list[int] = []
    monkeypatch.setattr(sequence, "_check", lambda *_: None)
    monkeypatch.setattr(sequence, "_run_window", lambda *_, **__: asked.append(0))
    monkeypatch.setattr(sequence, "_in_workers", lambda *words: asked.append(words[-1]))
    return asked


@pytest.mark.parametrize(
    ("changes", "workers", "expected"),
    [
        ((), 2, [1, 2]),
        ((), 8, [1, 2]),
        ((), 1, [0, 0]),
        (("constituents={}", "processor=processors/constituents.py:Constituents"), 2, [0, 0]),
        (("cwola.classifier=__main__:Mine",), 2, [0, 0]),
        (("windows.last=3300",), 2, [0]),
    ],
)
def test_which_searches_run_their_windows_side_by_side(project, done, processes, changes, workers, expected):
    context = context_of(project, *changes, workers=workers)
    sequence.run_verb("train", context, context.windows)
    assert processes == expected


def test_on_a_gpu_windows_run_in_this_process(project, done, processes, monkeypatch):
    context = context_of(project, device="auto")
    monkeypatch.setattr("drapes_hep.pipeline.context._GPU_FILES", (str(project),))
    monkeypatch.setattr("drapes_hep.pipeline.context.choose_device", lambda _: "cuda")
    sequence.run_verb("train", context, context.windows)
    assert processes == [0, 0]


def test_memory_bounds_the_windows_side_by_side(project, done, processes, monkeypatch, capsys):
    context = dataclasses.replace(context_of(project), reporter=Reporter())
    memory = max(window_memory(context, window) for window in context.windows)
    monkeypatch.setattr(sequence, "available_memory", lambda: int(1.9 * memory))
    sequence.run_verb("train", context, context.windows)
    assert processes == [1, 1]
    line = f"1 window at a time instead of 2: there is no memory for more ({1.9 * memory / 2**30:.1f} GiB available)\n"
    assert capsys.readouterr().err == line
    monkeypatch.setattr(sequence, "available_memory", lambda: 2 * memory)
    sequence.run_verb("train", context, context.windows)
    assert processes == [1, 1, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_window_with_more_events_takes_more_memory(project, done):
    few, many = (context_of(project, f"template.oversample={factor}") for factor in (1, 50))
    window = few.windows[0]
    assert window_memory(many, window) > window_memory(few, window) > 0


def test_cores_that_no_window_has_go_to_the_folds(project, done, monkeypatch):
    contexts = []
    monkeypatch.setattr(sequence, "_in_workers", lambda _, context, *__: contexts.append(context))
    context = context_of(project, workers=7)
    sequence.run_verb("train", context, context.windows)
    assert contexts[-1].workers == 3


def test_a_table_s_events_do_not_travel(project, done):
    context = context_of(project)
    assert context.without_events().table is None
    table = Table({"mjj": np.ones(5)}, "its hash")
    travels = dataclasses.replace(context, table=table).without_events().table
    assert (travels.columns, travels.hash) == ({}, "its hash")
