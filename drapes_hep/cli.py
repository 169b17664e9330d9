"""``drapes``: one verb a stage, one line and exit status 2 for a user's mistake."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import drapes_hep
from drapes_hep.config import Config, load_config
from drapes_hep.errors import ConfigError, DrapesError

__all__ = ["app", "main"]

app = typer.Typer(
    name="drapes",
    help="Resonance searches without a signal model: diffusion templates, weak supervision, bump hunt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, YAML.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="RUN", help="Run directory [default: runs/NAME].")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. signal.inject=0; repeatable."),
]
Executor = Annotated[str, typer.Option(metavar="NAME", help="coffea executor: iterative, futures or dask.")]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Processes or threads [default: all cores].")]
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


def _context(
    path: Path,
    output: Path | None,
    assignments: list[str] | None,
    unblind: bool,
    executor: str,
    workers: int | None,
    device: str,
    quiet: bool,
) -> Any:  # noqa: ANN401
    # torch, coffea and the rest load here, so that --help and a wrong configuration answer at once
    config = _configured(path, assignments, unblind)
    from drapes_hep.progress import Reporter
    from drapes_hep.regions import sliding_windows
    from drapes_hep.rundir import open_run
    from drapes_hep.stages.context import Context, choose_device

    sliding_windows(config)
    choose_device(device)
    if executor not in {"iterative", "futures", "dask"}:
        raise ConfigError(f"--executor {executor}: choose iterative, futures or dask")
    run = open_run(output or Path("runs") / config.name, config.model_dump(mode="json"))
    return Context.of(config, run, device=device, executor=executor, workers=workers, reporter=Reporter(quiet=quiet))


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
        from drapes_hep.regions import parse_window

        context = _context(config, output, assignments, unblind, executor, workers, device, quiet)
        windows = context.windows if window is None else (parse_window(window, context.windows),)
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
        text = ", ".join(value) if isinstance(value, list) else {True: "yes", False: "no"}.get(value, value)  # type: ignore[call-overload]
        typer.echo(f"{name:10} {text}")


@app.command()
def validate(
    config: ConfigPath,
    assignments: Assignments = None,
    files: Annotated[bool, typer.Option("--files", help="Open the data too.")] = False,
) -> None:
    """Check a configuration, and with --files the data that it names."""
    checked = _configured(config, assignments, False)
    from drapes_hep.cwola.classifiers import load_classifier
    from drapes_hep.events.features import check_features
    from drapes_hep.events.loading import load_processor
    from drapes_hep.events.readers import scan
    from drapes_hep.events.skims import read_truth
    from drapes_hep.regions import sliding_windows
    from drapes_hep.stages.context import input_files

    check_features(checked.features)
    load_processor(checked.processor)
    load_classifier(checked.cwola.classifier)
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
        for name in ("processors", "configs"):
            shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    except OSError as error:
        raise DrapesError(f"{folder}: cannot be written ({error.strerror or error})") from error
    typer.echo(f"{folder}: written; next: cd {folder} && drapes run configs/quickstart.yaml")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"drapes-hep {drapes_hep.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    # third-party chatter is not for users; our own messages go through the reporter
    warnings.filterwarnings("ignore")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        app()
    except DrapesError as error:
        print(f"drapes: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("drapes: interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except OSError as error:
        print(f"drapes: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
