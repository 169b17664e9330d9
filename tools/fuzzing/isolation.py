"""Processes of their own, with limits of time and memory: what crashes or hangs in C code is seen and survived."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.fuzzing.targets import ROOT, Outcome, execute

__all__ = ["Worker", "environment", "limit_memory"]


def limit_memory(gibibytes: float) -> None:
    """Limit this process's memory; what asks for more gets a MemoryError, or dies."""
    limit = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def environment() -> dict[str, str]:
    """Return the environment of a worker: this tree is what is imported, on one thread, without colours."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONFAULTHANDLER": "1"}


class Worker:
    """A process that executes recipes; it is replaced when it dies or hangs.

    Parameters
    ----------
    folder : Path
        Its own, for files.
    target, base : str
        What it will execute: an unchanged base is executed first, so that imports belong to no recipe's time.
    seconds : float
        Limit of one recipe.
    gibibytes : float
        Limit of its memory.
    """

    def __init__(self, folder: Path, target: str, base: str, seconds: float, gibibytes: float) -> None:
        self.folder, self.target, self.base = folder, target, base
        self.seconds, self.gibibytes = seconds, gibibytes
        self.process: subprocess.Popen[bytes] | None = None

    def _start(self) -> subprocess.Popen[bytes]:
        words = (self.folder, self.gibibytes, self.target, self.base)
        command = [sys.executable, "-m", "tools.fuzzing.isolation", *map(str, words)]
        log = (self.folder / "stderr.log").open("wb")
        with log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=environment(),
                bufsize=0,
            )
        if not self._line(process, 300):
            raise RuntimeError(f"no worker starts: {self._tail()}")
        return process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """Read a line; None when time is up, empty where the process has ended."""
        assert process.stdout is not None
        end, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                return b""
            line += part
        return line

    def _tail(self) -> str:
        return (self.folder / "stderr.log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def run(self, recipe: Mapping[str, Any]) -> Outcome:
        """Execute a recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(recipe).encode() + b"\n")
        line = self._line(self.process, self.seconds)
        if line:
            return Outcome(**json.loads(line))
        died = line is not None
        self.stop()
        if not died:
            return Outcome("failure", f"no answer in {self.seconds:g} s\n{self._tail()}", f"hang in {recipe['target']}")
        code = self.process.returncode if self.process else 0
        name = signal.Signals(-code).name if code < 0 else f"status {code}"
        return Outcome(
            "failure", f"the process ended ({name})\n{self._tail()}", f"crash, {name}, in {recipe['target']}"
        )

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            # a process that died by itself keeps its status
            if self.process.poll() is None:
                try:
                    self.process.wait(0.5)
                except subprocess.TimeoutExpired:
                    self.process.kill()
            self.process.wait()


def _serve(folder: Path, gibibytes: float, target: str, base: str) -> None:
    # libraries in C write to standard output too: answers have a descriptor of their own
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import warnings

    warnings.filterwarnings("ignore")
    limit_memory(gibibytes)
    execute({"target": target, "base": base, "mutations": []}, folder)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        outcome = execute(json.loads(line), folder)
        answers.write(json.dumps({"kind": outcome.kind, "text": outcome.text, "signature": outcome.signature}) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
