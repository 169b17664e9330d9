"""``drapes``: one verb a stage, one line and exit status 2 for a user's mistake."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import drapes_hep
from drapes_hep.config import Config, load_config
from drapes_hep.errors import ConfigError, DrapesError

__all__ = ["app", "main"]

app = typer.Typer(
    name="drapes",
    help="Resonance searches without a signal model: diffusion templates, weak supervision, bump hunt.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, YAML.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="RUN", help="Run directory (default: runs/NAME).")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. signal.inject=0; repeatable."),
]
Executor = Annotated[str, typer.Option(metavar="NAME", help="coffea executor: iterative or futures.")]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Processes or threads (default: all cores).")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")]
WindowName = Annotated[str | None, typer.Option("--window", metavar="LO-HI", help="One window only, GeV.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no messages.")]
Unblind = Annotated[bool, typer.Option("--unblind", help="Count and draw the selected data inside the windows.")]


def _configured(path: Path, assignments: list[str] | None, unblind: bool) -> Config:
    from drapes_hep.events.loading import starter_folder

    if not path.exists() and not path.is_absolute() and (starter_folder() / path).exists():
        path = starter_folder() / path
    config = load_config(path, assignments or [])
    return config.model_copy(update={"blind": False}) if unblind else config


def _context(config: Config, output: Path | None, **settings: Any) -> Any:  # noqa: ANN401
    from drapes_hep.rundir import RunDirectory, open_run
    from drapes_hep.stages.context import Context

    run = RunDirectory(output or Path("runs") / config.name)
    # the directory is made last: a mistake in what was typed leaves nothing behind
    context = Context.of(config, run, **settings)
    open_run(run.path, config.model_dump(mode="json"))
    return context


def _check_plugins(config: Config) -> None:
    """Load what the configuration names: better now than after an hour of training."""
    from drapes_hep.cwola.classifiers import load_classifier
    from drapes_hep.events.loading import load_processor

    load_processor(config.processor)
    load_classifier(config.cwola.classifier)


def _stage(work: Callable[[Any, Any], None], per_window: bool) -> Callable[..., None]:
    def command(
        config: ConfigPath,
        output: Output = None,
        assignments: Assignments = None,
        window: WindowName = None,
        executor: Executor = "iterative",
        workers: Workers = None,
        device: Device = "auto",
        unblind: Unblind = False,
        quiet: Quiet = False,
    ) -> None:
        checked = _configured(config, assignments, unblind)
        # torch, coffea and the rest load here, so that --help and a wrong configuration answer at once
        from drapes_hep.progress import Reporter
        from drapes_hep.regions import parse_window, sliding_windows

        every = sliding_windows(checked)
        windows = every if window is None else (parse_window(window, every),)
        if executor not in {"iterative", "futures"}:
            raise ConfigError(f"--executor {executor}: choose iterative or futures")
        if work is _run:
            _check_plugins(checked)
        reporter = Reporter(quiet=quiet)
        context = _context(checked, output, device=device, executor=executor, workers=workers, reporter=reporter)
        if not per_window:
            work(context, None if window is None else windows)
            return
        for one in windows:
            work(context, one)

    return command


def _skim(context: Any, _: Any) -> None:  # noqa: ANN401
    from drapes_hep.stages.skim import skim

    skim(context)


def _train(context: Any, window: Any) -> None:  # noqa: ANN401
    from drapes_hep.stages.model import train

    train(context, window)


def _generate(context: Any, window: Any) -> None:  # noqa: ANN401
    from drapes_hep.stages.model import generate

    generate(context, window)


def _classify(context: Any, window: Any) -> None:  # noqa: ANN401
    from drapes_hep.stages.classify import classify

    classify(context, window)


def _hunt(context: Any, windows: Any) -> None:  # noqa: ANN401
    from drapes_hep.stages.hunt import hunt

    hunt(context, windows)


def _report(context: Any, _: Any) -> None:  # noqa: ANN401
    from drapes_hep.report import write_report

    context.reporter.say(f"report: {write_report(context.run.path)}")


def _run(context: Any, windows: Any) -> None:  # noqa: ANN401
    _skim(context, None)
    for window in windows or context.windows:
        _train(context, window)
        _generate(context, window)
        _classify(context, window)
    _hunt(context, windows)
    _report(context, None)


for _name, _work, _per_window, _help in (
    ("run", _run, False, "Run the whole search: skim, train, generate, classify, hunt, report."),
    ("skim", _skim, False, "Select events: files to skim, control histograms and cut flow."),
    ("train", _train, True, "Train each window's diffusion model on its sidebands."),
    ("generate", _generate, True, "Generate each window's background template."),
    ("classify", _classify, True, "Train data against template and score every event out of fold."),
    ("hunt", _hunt, False, "Count, fit and quote local and global significances."),
    ("report", _report, False, "Draw the figures and write the report."),
):
    app.command(_name, help=_help)(_stage(_work, _per_window))


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="ROOT, HDF5 or parquet.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what a file is: layout, events, columns, labels."""
    from drapes_hep.events.readers import scan

    info = scan(file)
    record = {
        "path": info.path,
        "layout": info.layout,
        "events": info.entries,
        "object": info.object_path,
        "labels": info.has_labels,
        "event_ids": info.has_event_ids,
        "columns": list(info.columns),
    }
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    for name, value in record.items():
        # a count of 1 equals True: what is no bool keeps its own spelling
        text = ("no", "yes")[value] if isinstance(value, bool) else value
        typer.echo(f"{name:10} {', '.join(value) if isinstance(value, list) else text}")


@app.command()
def validate(
    config: ConfigPath,
    assignments: Assignments = None,
    files: Annotated[bool, typer.Option("--files", help="Open the data too.")] = False,
) -> None:
    """Check a configuration, and with --files the data that it names."""
    checked = _configured(config, assignments, False)
    from drapes_hep.events.features import check_features
    from drapes_hep.events.readers import scan
    from drapes_hep.events.skims import read_truth
    from drapes_hep.regions import sliding_windows
    from drapes_hep.stages.context import input_files

    check_features(checked.features)
    _check_plugins(checked)
    windows = sliding_windows(checked)
    typer.echo(f"{config}: valid; {len(windows)} windows from {windows[0].name} to {windows[-1].name} GeV")
    if files:
        for path in input_files(checked):
            info = scan(path)
            typer.echo(f"{path}: {info.layout}, {info.entries} events")
        if checked.data.truth is not None:
            typer.echo(f"{checked.data.truth}: {len(read_truth(checked.data.truth))} labels")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if missing, else empty.")],
) -> None:
    """Write a project to start from: processors and configurations to edit."""
    from drapes_hep.events.loading import starter_folder

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DrapesError(f"{folder}: exists and is not an empty directory; name another")
    source = starter_folder()
    try:
        for name in ("processors", "analysis", "configs"):
            shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    except OSError as error:
        raise DrapesError(f"{folder}: cannot be written ({error.strerror or error})") from error
    typer.echo(f"{folder}: written; next: cd {folder} && drapes run configs/quickstart.yaml")


@app.command()
def simulate(
    process: Annotated[str, typer.Argument(metavar="PROCESS", help="qcd or resonance.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")],
    events: Annotated[int, typer.Option(metavar="N", help="Events to write.")] = 10_000,
    masses: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="A B C", help="Masses of the resonance A and its daughters B and C, GeV."),
    ] = None,
    prongs: Annotated[
        int | None, typer.Option(metavar="N", help="Partons that B and C decay to each: 2 (default) or 3.")
    ] = None,
    width: Annotated[
        float | None, typer.Option(metavar="GEV", help="Width of A, GeV (default: 1% of its mass).")
    ] = None,
    shower: Annotated[
        str, typer.Option(metavar="NAME", help="default, or alternative: another shower and detector.")
    ] = "default",
    leading_pt: Annotated[float, typer.Option(metavar="GEV", help="Least pT of the leading jet, GeV.")] = 1200.0,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="raw: LHC Olympics HDF5; skim: parquet with jets and constituents.")
    ] = "raw",
    seed: Annotated[int, typer.Option(metavar="N", help="Other seeds give other events.")] = 1,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Processes (default: all cores).")] = None,
    quiet: Quiet = False,
) -> None:
    """Simulate dijet events: QCD, or a resonance A -> B C. Needs the extra 'sim'."""
    from drapes_hep.progress import Reporter
    from drapes_hep.simulation import generate
    from drapes_hep.simulation.processes import Process

    order = generate.Order(Process(process, masses, prongs, width, shower, leading_pt), events, seed, format)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    generate.simulate(order, output, cores if workers is None else workers, Reporter(quiet=quiet))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"drapes-hep {drapes_hep.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line."""
    # third-party chatter is not for users; our own messages go through the reporter
    warnings.filterwarnings("ignore")
    # a user's own module beside the configuration: a console script does not look in the working directory
    sys.path.append(str(Path.cwd()))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        status = app(standalone_mode=False)
    except Exception as error:
        message = _one_line(error)
        if message is None:
            raise
        _complain(message, 2)
    if status == _INTERRUPTED:
        _complain("interrupted; run the same command again to go on", _INTERRUPTED)
    if status:
        sys.exit(status)


_INTERRUPTED = 130
"""What typer gives back for Ctrl-C."""


def _one_line(error: Exception) -> str | None:
    """Word a user's mistake; None for a defect of ours, which keeps its traceback."""
    if isinstance(error, DrapesError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'file system'}: {error.strerror or error}"
    # a word that is no option, or an option's value of the wrong type: typer's errors, whose home differs by version
    word = getattr(error, "format_message", None)
    return None if word is None else f"{word()} See drapes --help"


def _complain(message: str, status: int) -> NoReturn:
    print(f"drapes: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(status)
