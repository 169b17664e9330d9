"""Put every file of a folder through the command line, and check how it is read or refused.

    python tools/sweep.py FOLDER --workers 4
    python tools/sweep.py FOLDER --json sweep.json

Each file, whatever it is and however deep it is, goes through ``drapes inspect`` and through ``drapes validate
--files`` with a minimal configuration, each in a process of its own with limits of time and memory. The table names the
container, the layout or the line with which the file was refused, and the status. A failure, which makes the exit
status 1, is

- a traceback, a crash or a hang;
- a status other than 0 and 2, or status 2 without exactly one printable line on standard error;
- a file that one command takes for events and the other refuses for what it is;
- a message that blames damage where the library behind the reader opens the file: uproot, h5py or pyarrow.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DAMAGE = re.compile(
    r"truncated|corrupt|damaged|cannot be read|copy or download|while it was read|is empty", re.IGNORECASE
)
"""Words that blame the file."""

SIGNATURES = {"root": (0, b"root"), "hdf5": (0, b"\x89HDF\r\n\x1a\n"), "parquet": (0, b"PAR1")}
"""How a container is recognised for the table, independently of the readers."""


@dataclass(frozen=True)
class Step:
    """What a command did with a file.

    Attributes
    ----------
    status : int or None
        Exit status; None where it had to be killed.
    out, err : str
        Standard output and error.
    """

    status: int | None
    out: str
    err: str


@dataclass(frozen=True)
class Finding:
    """A line of the table.

    Attributes
    ----------
    file : str
        Relative to the folder.
    container : str
        By its first bytes.
    layout : str
        Empty where it was refused.
    events : int or None
    line : str
        With which it was refused; empty where it was not.
    status : dict of str to int or None
        Of each command.
    failures : tuple of str
        What went wrong; empty where all went well.
    """

    file: str
    container: str
    layout: str
    events: int | None
    line: str
    status: dict[str, int | None]
    failures: tuple[str, ...]


def isolated(work: Callable[[], None], folder: Path, seconds: float, gibibytes: float) -> Step:
    """Call a function in a forked process, with its output in files and its resources limited.

    Parameters
    ----------
    work : callable
        May end the process with a status.
    folder : Path
        For the output.
    seconds, gibibytes : float
        Limits.

    Returns
    -------
    Step
        A negative status is a signal's.
    """
    out, err = folder / "out", folder / "err"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()  # with whatever it starts, it can be killed
            for path, descriptor in ((out, 1), (err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            sys.stdout, sys.stderr = (
                os.fdopen(os.dup(n), "w", encoding="utf-8", errors="backslashreplace") for n in (1, 2)
            )
            limit = int(gibibytes * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            work()
            status = 0
        except SystemExit as done:
            status = done.code if isinstance(done.code, int) else 0 if done.code is None else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status & 0xFF)
    end, ended = time.monotonic() + seconds, False
    while not ended:
        pid, code = os.waitpid(child, os.WNOHANG)
        ended = pid == child
        if not ended and time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Step(None, _text(out), _text(err))
        if not ended:
            time.sleep(0.01)
    return Step(os.waitstatus_to_exitcode(code), _text(out), _text(err))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else ""


def command(*words: object) -> Callable[[], None]:
    """Return a function that is ``drapes`` with these words."""

    def work() -> None:
        from drapes_hep.cli import main

        sys.argv = ["drapes", *map(str, words)]
        main()

    return work


def container_of(path: Path) -> str:
    """Return the container of a file, by its first bytes; ``other`` where it is none that is read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(1 << 13)
    except OSError:
        return "other"
    named = [name for name, (place, mark) in SIGNATURES.items() if head[place : place + len(mark)] == mark]
    # HDF5 allows a user block in front
    return (
        named[0]
        if named
        else "hdf5"
        if any(head[n : n + 8] == SIGNATURES["hdf5"][1] for n in (512, 1024, 2048, 4096))
        else "other"
    )


def opens(path: Path, container: str) -> Callable[[], None]:
    """Return a function that opens and lists a file with the library behind its reader, and fails where that fails."""

    def work() -> None:
        if container == "root":
            import uproot

            with uproot.open({str(path): None}) as file:
                for name, kind in file.classnames(recursive=True).items():
                    if "TTree" in kind or "TNtuple" in kind or "RNTuple" in kind:
                        tree = file[name]
                        tree.keys()
                        for branch in list(tree.values(recursive=False))[:20]:
                            branch.array(entry_stop=1)
        elif container == "hdf5":
            import h5py
            import hdf5plugin  # noqa: F401  its filters

            def visit(_: str, item: object) -> None:
                if isinstance(item, h5py.Dataset) and item.shape:
                    item[:1]

            with h5py.File(path, "r") as file:
                file.visititems(visit)
        elif container == "parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                if file.num_row_groups:
                    file.read_row_group(0)
        else:
            raise SystemExit(3)

    return work


def judge(name: str, step: Step) -> list[str]:
    """List what a command did that it must not, whatever the file is."""
    lines = step.err.splitlines()
    if step.status is None:
        return [f"{name}: hangs"]
    if step.status < 0:
        return [f"{name}: crashes ({signal.Signals(-step.status).name})"]
    if "Traceback" in step.err:
        return [f"{name}: traceback ({lines[-1][:200]})"]
    if step.status not in {0, 2}:
        return [f"{name}: status {step.status}"]
    if step.status == 2 and len(lines) != 1:
        return [f"{name}: {len(lines)} lines on standard error"]
    if step.status == 0 and lines:
        return [f"{name}: status 0 and words on standard error ({lines[0][:200]})"]
    if step.status == 2 and not lines[0].isprintable():
        return [f"{name}: control characters in the message"]
    return []


def examine(path: Path, folder: Path, scratch: Path, seconds: float, gibibytes: float) -> Finding:
    """Put one file through the commands.

    Parameters
    ----------
    path, folder : Path
        The file, and the folder that it is named from.
    scratch : Path
        For output and configurations.
    seconds, gibibytes : float
        Limits of each command.

    Returns
    -------
    Finding
    """
    container = container_of(path)
    config = scratch / "sweep.yaml"
    config.write_text(json.dumps({"name": "sweep", "data": {"path": str(path)}}), encoding="utf-8")
    steps = {
        "inspect": isolated(command("inspect", path, "--json", "--events", 2000), scratch, seconds, gibibytes),
        "validate": isolated(command("validate", config, "--files"), scratch, seconds, gibibytes),
    }
    failures = [failure for name, step in steps.items() for failure in judge(name, step)]
    layout, events = "", None
    if steps["inspect"].status == 0:
        try:
            inspection = json.loads(steps["inspect"].out, parse_constant=_no_number)
            layout, events = inspection["layout"], inspection["events"]
        except (ValueError, KeyError) as error:
            failures.append(f"inspect: no valid JSON ({error})")
    refused = [step for step in steps.values() if step.status == 2]
    line = refused[0].err.strip() if refused else ""
    # the other way round is right: values that no event can have are found by inspect, which reads
    if not failures and (steps["inspect"].status, steps["validate"].status) == (0, 2):
        failures.append("inspect takes it, validate does not")
    if any(DAMAGE.search(step.err.replace(str(path), "")) for step in refused):
        other = isolated(opens(path, container), scratch, seconds, gibibytes)
        if other.status == 0:
            failures.append("blames damage where another reader opens the file")
    status = {name: step.status for name, step in steps.items()}
    return Finding(str(path.relative_to(folder)), container, layout, events, line, status, tuple(failures))


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _lane(paths: Sequence[Path], folder: Path, scratch: Path, seconds: float, gibibytes: float) -> None:
    """Examine files one after the other, and write a line for each."""
    scratch.mkdir(parents=True)
    with (scratch / "findings").open("w", encoding="utf-8") as stream:
        for path in paths:
            stream.write(json.dumps(asdict(examine(path, folder, scratch, seconds, gibibytes))) + "\n")
            stream.flush()


def sweep(folder: Path, workers: int, seconds: float, gibibytes: float) -> list[Finding]:
    """Examine every file of a folder, in processes that share the work.

    Parameters
    ----------
    folder : Path
    workers : int
    seconds, gibibytes : float
        Limits of each command.

    Returns
    -------
    list of Finding
        By name.
    """
    # imported once, before any process is forked: a command costs what it does, not what it imports
    import drapes_hep.cli
    import drapes_hep.data.inspection
    import drapes_hep.stages.simulation
    import drapes_hep.studies.design  # noqa: F401

    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as name:
        lanes = []
        for i in range(workers):
            lane = os.fork()
            if lane == 0:
                status = 1
                try:
                    _lane(paths[i::workers], folder, Path(name) / str(i), seconds, gibibytes)
                    status = 0
                finally:
                    os._exit(status)
            lanes.append(lane)
        ended = [os.waitpid(lane, 0)[1] for lane in lanes]
        lines = [line for i in range(workers) for line in _text(Path(name) / str(i) / "findings").splitlines()]
    if any(ended) or len(lines) != len(paths):
        raise RuntimeError(f"{len(lines)} of {len(paths)} files were examined: the sweep itself failed")
    findings = [Finding(**{**record, "failures": tuple(record["failures"])}) for record in map(json.loads, lines)]
    return sorted(findings, key=lambda finding: finding.file)


def main(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Whose files are read.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    seconds: Annotated[float, typer.Option(help="Limit of each command.")] = 120.0,
    memory: Annotated[float, typer.Option(help="Limit of each command, GiB.")] = 8.0,
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the table as JSON.")] = None,
) -> None:
    """Sweep; see the head of this file."""
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = folder.resolve()
    findings = sweep(folder, workers, seconds, memory)
    for finding in findings:
        summary = (
            f"{finding.layout}, {finding.events} events" if finding.layout else finding.line.replace(f"{folder}/", "")
        )
        states = "/".join("killed" if status is None else str(status) for status in finding.status.values())
        typer.echo(
            f"{finding.file} | {finding.container} | {summary} | {states} | {'; '.join(finding.failures) or 'ok'}"
        )
    if as_json is not None:
        as_json.write_text(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n", encoding="utf-8")
    read = sum(bool(finding.layout) for finding in findings)
    failed = [finding for finding in findings if finding.failures]
    typer.echo(f"{len(findings)} files: {read} read, {len(findings) - read} refused, {len(failed)} failures")
    kinds = Counter(re.sub(r" \(.*", "", failure) for finding in failed for failure in finding.failures)
    for kind, count in kinds.most_common():
        typer.echo(f"  {count} x {kind}")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
