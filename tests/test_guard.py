"""The watched process: whatever becomes of the work, there is a status and a line; and closed or full streams."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_columns

from drapes_hep.parallel import in_processes

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no such calls on this system")

PRELUDE = "import os, signal, sys, time\nfrom drapes_hep.guard import enter, guarded\n"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def watched(body: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run lines of Python as the work of a watched process."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"{PRELUDE}def work():\n{lines}guarded(work)\n"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=environment(**more)
    )


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("os._exit(0)", 2, "the process exited during skim without a result: its code called"),
        ("os._exit(7)", 2, "(status 7); finished work is kept: run the same command again to resume"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was killed by signal 9 (out of memory?) during skim"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "was killed by signal 11 (a crash in compiled code) during skim"),
        ("os.abort()", 134, "was killed by signal 6 during skim"),
        ("signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), 15)", 143, "was killed by signal 15"),
        ("raise KeyboardInterrupt", 130, "interrupted; run the same command again to resume"),
    ],
)
def test_an_end_without_a_word_has_a_line_and_a_status(body, status, words):
    done = watched(f"enter('skim')\n{body}")
    assert done.returncode == status
    assert done.stderr.startswith("drapes: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "status"), [("pass", 0), ("sys.exit(0)", 0), ("sys.exit(5)", 5), ("print('x')", 0), ("sys.exit()", 0)]
)
def test_a_regular_end_keeps_its_status_and_is_not_spoken_of(body, status):
    done = watched(body)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_crash_after_the_end_of_the_work_changes_nothing():
    """Libraries crash when the interpreter takes them down: the outputs are there by then."""
    done = watched("import atexit\natexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_defect_keeps_its_traceback():
    done = watched("1 / 0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_the_guard_can_be_left_out():
    done = watched("print(os.getppid(), flush=True)\nos._exit(0)", DRAPES_HEP_GUARD="0")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{os.getpid()}\n", "")


def start(body: str, **options) -> subprocess.Popen[str]:
    """Start a watched process, and wait for its work's first line: its process id."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"{PRELUDE}def work():\n{lines}guarded(work)\n"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    return subprocess.Popen([sys.executable, "-c", code], **{**pipes, **options})


TIDY = """try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.1)
    print('tidied', flush=True)
    raise"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to_the_group", [False, True])
def test_a_signal_lets_the_work_tidy_up_once(number, to_the_group):
    """A batch system signals one process or all of them: the work hears of it once."""
    process = start(TIDY, start_new_session=True)
    process.stdout.readline()
    (os.killpg if to_the_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "tidied\n")
    assert err == "drapes: interrupted; run the same command again to resume\n"


def test_what_nohup_ignores_stays_ignored():
    process = start(TIDY.replace("60", "0.5"), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends a child with its parent")
def test_the_work_does_not_outlive_a_killed_command():
    process = start(TIDY)
    child = int(process.stdout.readline())
    process.kill()
    assert process.communicate(timeout=60) == ("", "")
    # both ends of the pipe are closed: the child is gone or about to be
    end = time.monotonic() + 20
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split(") ")[1][0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_watching_process_imports_nothing_large():
    done = watched("pass")
    assert done.returncode == 0
    large = "{'numpy', 'typer', 'rich', 'yaml', 'ctypes'}"
    code = f"import sys\nimport drapes_hep.__main__\nprint(*{large} & set(sys.modules))"
    words = [sys.executable, "-c", code]
    assert subprocess.run(words, capture_output=True, text=True, check=True, env=environment()).stdout == "\n"


def keeps_what_it_has(folder: Path, number: int) -> None:
    try:
        (folder / f"began.{number}").touch()
        time.sleep(0 if number == 0 else 60)
    except KeyboardInterrupt:
        time.sleep(0.1)
        (folder / f"kept.{number}").touch()
        raise


def test_workers_keep_what_they_have_when_their_parent_is_interrupted(tmp_path, capfd):
    results = in_processes(keeps_what_it_has, [(tmp_path, number) for number in range(3)], 2)
    next(results)
    while len(list(tmp_path.glob("began.*"))) < 3:
        time.sleep(0.01)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert sorted(path.name for path in tmp_path.glob("kept.*")) == ["kept.1", "kept.2"]
    assert capfd.readouterr().err == ""


# ---- the command line ------------------------------------------------------------------------------------------------


def command(words: str, folder: Path, **more: str) -> tuple[int, str, str]:
    """Run a line of a shell, in which ``drapes`` is the command."""
    line = words.replace("drapes", f"{sys.executable} -m drapes_hep")
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, timeout=120, check=False, cwd=folder, env=environment(**more)
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


FULL = "drapes: standard output: cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("drapes --version 2>&-", (0, "drapes-hep 0.1.0\n", "")),
        ("drapes --version >&-", (0, "", "")),
        ("drapes --version <&- >&- 2>&-", (0, "", "")),
        ("drapes nonsense 2>&-", (2, "", "")),
        ("drapes nonsense 2> /dev/full", (2, "", "")),
        ("drapes --version > /dev/full", (2, "", FULL)),
        ("drapes --help > /dev/full", (2, "", FULL)),
        ("DRAPES_HEP_GUARD=0 drapes --version > /dev/full", (2, "", FULL)),
        ("drapes --help | true; exit ${PIPESTATUS[0]}", (141, "", "")),
        (
            "drapes validate η.yaml",
            (2, "", "drapes: \\u03b7.yaml: no such configuration; `drapes init DIR` writes a set"),
        ),
    ],
)
def test_streams_that_are_closed_full_or_without_greek(tmp_path, words, expected):
    status, out, err = command(words, tmp_path, PYTHONIOENCODING="ascii")
    assert (status, out) == expected[:2]
    assert err.startswith(expected[2])
    assert len(err.splitlines()) == bool(expected[2])


def test_a_search_needs_no_streams(tmp_path):
    """No file of its own may become the standard error that was closed."""
    (tmp_path / "t.yaml").write_text("name: t\ndata: {path: none.root}\n")
    assert command("drapes skim t.yaml -o r 2>&-", tmp_path) == (2, "", "")
    assert list((tmp_path).iterdir()) == [tmp_path / "t.yaml"]


@pytest.fixture
def project(tmp_path):
    from drapes_hep.events.formats.writers import write_feature_root

    write_feature_root(tmp_path / "events.root", make_columns(200))
    search = {"name": "t", "data": {"path": "events.root"}, "processor": "mine.py:Mine"}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(search))
    return tmp_path


@pytest.mark.parametrize(
    ("leaves", "status", "words"),
    [
        ("__import__('os')._exit(0)", 2, "exited during skim"),
        (
            "__import__('os').kill(__import__('os').getpid(), 9)",
            137,
            "was killed by signal 9 (out of memory?) during skim",
        ),
    ],
)
def test_a_processor_that_leaves_is_spoken_of(project, leaves, status, words):
    (project / "mine.py").write_text(
        f"from processors.dijets import Dijets\nclass Mine(Dijets):\n    def process(self, events): {leaves}\n"
    )
    found, out, err = command("drapes skim t.yaml -o r --quiet", project)
    assert (found, out) == (status, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not list(project.glob("r/stages/*.json"))


SLOW = """
import time
import drapes_hep.training.loop as training
rate = training.learning_rate
def slower(step, *others):
    print("step", step, flush=True)
    time.sleep(0.2 if step == 5 else 0)
    return rate(step, *others)
training.learning_rate = slower
"""


def test_ctrl_c_in_the_first_epoch_of_a_training_is_resumed_from(tmp_path, monkeypatch):
    """Before the first epoch has ended: the steps that were done are not done again, the model is the same."""
    import torch
    from test_cli import SEARCH, drapes, falling_columns

    from drapes_hep.events.formats.writers import write_feature_root
    from drapes_hep.training import loop

    write_feature_root(tmp_path / "events.root", falling_columns())
    search = {**SEARCH, "training": {**SEARCH["training"], "batch": 64}}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(search))
    code = f"{SLOW}from drapes_hep.__main__ import main\nmain()\n"
    words = ["t.yaml", "--window", "3300-3700", "--quiet", "-o"]
    monkeypatch.chdir(tmp_path)
    assert drapes("skim", *words, "r") == 0
    shutil.copytree("r", "whole")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", *words, "r"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    while process.stdout.readline() != "step 5\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == (
        "drapes: interrupted during train.3300-3700; a training in progress is saved in a checkpoint;"
        " run the same command again to resume\n"
    )
    assert len(list(tmp_path.glob("r/windows/*/model_0.*.checkpoint"))) == 1
    steps, rate, threads = [], loop.learning_rate, torch.get_num_threads()
    monkeypatch.setattr(loop, "learning_rate", lambda step, *others: steps.append(step) or rate(step, *others))
    torch.set_num_threads(1)  # as in the interrupted process: sums depend on it
    try:
        assert drapes("train", *words, "r") == 0
        assert steps[0] >= 5
        # at once, without a signal, from the same events
        steps.clear()
        assert drapes("train", *words, "whole") == 0
    finally:
        torch.set_num_threads(threads)
    assert min(steps) == steps[0] < 5
    weights = [(tmp_path / run / "windows/3300-3700/model_0/model.safetensors").read_bytes() for run in ("r", "whole")]
    assert weights[0] == weights[1]
