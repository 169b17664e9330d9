"""``drapes``: one verb per stage, one line and exit status 2 for a user's mistake."""

from __future__ import annotations

import io
import json
import logging
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from drapes_hep.caller import from_shell
from drapes_hep.errors import ConfigError, DrapesError, InputError, RunDirectoryError, counted, exit_line, printable
from drapes_hep.guard import complain, enter, stage
from drapes_hep.interrupts import received
from drapes_hep.stages.sequence import VERBS, check_plugins, run_verb
from drapes_hep.version import __version__

if TYPE_CHECKING:
    # these load models of the configuration, torch and more: at run time only by the verbs that need them
    from drapes_hep.config import Config
    from drapes_hep.data.inspection import Inspection
    from drapes_hep.pipeline.context import Context
    from drapes_hep.progress import Reporter


__all__ = ["app", "main"]

app = typer.Typer(
    name="drapes",
    help="Resonance searches without a signal model: diffusion templates, weak supervision, bump hunt.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration file (YAML).")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="RUN", help="Run directory (default: runs/NAME).")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. signal.inject=0; repeatable."),
]
Executor = Annotated[str, typer.Option(metavar="NAME", help="coffea executor: iterative or futures.")]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Number of cores to use (default: all).")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")]
WindowName = Annotated[str | None, typer.Option("--window", metavar="LO-HI", help="Restrict to one window, GeV.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no messages.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace finished stages that were run with another configuration.")
]
Unblind = Annotated[bool, typer.Option("--unblind", help="Count and draw the selected data inside the windows.")]


def _configured(path: Path, assignments: list[str] | None, unblind: bool) -> Config:
    from drapes_hep.config import load_config
    from drapes_hep.plugins import starter_folder

    if not path.exists() and not path.is_absolute() and (starter_folder() / path).exists():
        path = starter_folder() / path
    config = load_config(path, assignments or [])
    return config.model_copy(update={"blind": False}) if unblind else config


def _context(
    config: Config,
    output: Path | None,
    *,
    device: str,
    executor: str,
    workers: int | None,
    reporter: Reporter,
    overwrite: bool,
    kind: Literal["search", "study"] = "search",
) -> Context:
    from drapes_hep.pipeline.context import Context
    from drapes_hep.pipeline.run_directory import open_run

    # the first stage makes the directory, when it has its inputs: a mistake in what was typed leaves nothing behind
    run = open_run(output or Path("runs" if kind == "search" else "studies") / config.name, kind, overwrite=overwrite)
    return Context.of(config, run, device=device, executor=executor, workers=workers, reporter=reporter)


def _check_generators(config: Config) -> None:
    """Load what the generators of a study name."""
    from drapes_hep.studies.configurations import generators

    for name, generator in generators(config).items():
        try:
            check_plugins(generator)
        except ConfigError as error:
            if not name:  # the configuration itself
                raise
            raise ConfigError(f"study.generators: {name}: {error}") from error


def _stage(verb: str) -> Callable[..., None]:
    def command(
        config: ConfigPath,
        output: Output = None,
        assignments: Assignments = None,
        window: WindowName = None,
        executor: Executor = "iterative",
        workers: Workers = None,
        device: Device = "auto",
        unblind: Unblind = False,
        overwrite: Overwrite = False,
        quiet: Quiet = False,
    ) -> None:
        checked = _configured(config, assignments, unblind)
        # torch, coffea and the rest load here, so that --help and a wrong configuration answer at once
        from drapes_hep.progress import Reporter
        from drapes_hep.regions import parse_window, sliding_windows

        every = sliding_windows(checked)
        windows = every if window is None else (parse_window(window, every),)
        reporter = Reporter(quiet=quiet)
        context = _context(
            checked, output, device=device, executor=executor, workers=workers, reporter=reporter, overwrite=overwrite
        )
        run_verb(verb, context, windows)
        if verb == "run":
            from drapes_hep.stages.report import report

            page = report(context.run, checked.model_dump(mode="json"), reporter)
            reporter.say(f"report: {page}")

    return command


for _name, _help in VERBS.items():
    app.command(_name, help=_help)(_stage(_name))


@app.command("report")
def draw(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Configuration of the run; optional with -o.")
    ] = None,
    output: Output = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override plots.* or blind; repeatable.")
    ] = None,
    unblind: Unblind = False,
    quiet: Quiet = False,
) -> None:
    """Draw the figures and write the report of a finished run, from its own configuration."""
    requested_tree: dict[str, Any] | None = None
    if config is not None:
        checked = _configured(config, assignments, unblind)
        requested_tree, output = checked.model_dump(mode="json"), output or Path("runs") / checked.name
    if output is None:
        raise ConfigError("report: name a run directory with -o, or a configuration")
    from drapes_hep.pipeline.run_directory import open_run
    from drapes_hep.progress import Reporter
    from drapes_hep.stages.report import own_configuration, report

    run = open_run(output)
    if not run.manifest.exists():
        raise RunDirectoryError(
            f"{output}: contains no run; name the directory of a finished run with -o, or run one:"
            f" drapes run {config or 'CONFIG'} -o {output}"
        )
    if config is None and (assignments or unblind):
        from drapes_hep.config import assigned_config

        tree = own_configuration(run)
        changes = [*(assignments or []), *(["blind=false"] if unblind else [])]
        requested_tree = assigned_config(tree, changes, run.manifest).model_dump(mode="json")
    reporter = Reporter(quiet=quiet)
    reporter.say(f"report: {report(run, requested_tree, reporter)}")


@app.command("apply")
def apply_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files of events, URLs or patterns.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Output directory (default: RUN/applied/NAME).")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of 'data' for these files; repeatable."),
    ] = None,
    executor: Executor = "iterative",
    workers: Workers = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Pass other events, such as a simulated signal, through a run's selection, classifiers and cuts."""
    from drapes_hep.config import assigned_config, make_config
    from drapes_hep.pipeline.context import Context
    from drapes_hep.pipeline.run_directory import open_run
    from drapes_hep.progress import Reporter
    from drapes_hep.stages.apply import applied_config, applied_table, apply_search
    from drapes_hep.stages.report import own_configuration

    searched = open_run(run)
    if not searched.manifest.exists():
        raise RunDirectoryError(f"{run}: contains no run; name the directory of a finished run")
    reporter = Reporter(quiet=quiet)
    config = make_config(own_configuration(searched))
    sample = applied_config(config, {"path": files if len(files) > 1 else files[0]})
    if assignments:
        others = [assignment for assignment in assignments if not assignment.strip().startswith("data.")]
        if others:
            raise ConfigError(f"--set {others[0]}: all but the section 'data' is the run's own")
        sample = assigned_config(sample.model_dump(mode="json"), assignments, searched.manifest)
    place = output or run / "applied" / Path(files[0]).name.partition(".")[0]
    target = open_run(place, "applied", overwrite=overwrite)
    applied = apply_search(
        Context.of(config, searched, device=device, workers=workers, reporter=reporter),
        Context.of(sample, target, executor=executor, workers=workers, reporter=reporter),
    )
    typer.echo(applied_table(applied))
    reporter.say(f"written: {place / 'applied.json'}, {place / 'applied.parquet'}")


@app.command("limits")
def limit_signal(
    config: ConfigPath,
    signal: Annotated[
        list[str], typer.Option("--signal", metavar="FILE", help="Files of the simulated signal; repeatable.")
    ],
    luminosity: Annotated[
        float | None, typer.Option(metavar="L", help="Integrated luminosity in 1/fb, for limits on a cross section.")
    ] = None,
    output: Output = None,
    assignments: Assignments = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Folder of the limits, RUN/limits/NAME (default: the first file's name)."),
    ] = None,
    signal_assignments: Annotated[
        list[str] | None,
        typer.Option("--signal-set", metavar="KEY=VALUE", help="Set a key of 'data' for the signal; repeatable."),
    ] = None,
    executor: Executor = "iterative",
    workers: Workers = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compute upper limits on a simulated signal; runs what is missing of the search first."""
    from drapes_hep.config import assigned_config
    from drapes_hep.pipeline.context import Context
    from drapes_hep.pipeline.run_directory import open_run
    from drapes_hep.progress import Reporter
    from drapes_hep.stages.apply import applied_config
    from drapes_hep.studies.limit_results import limits_table, write_limits
    from drapes_hep.studies.limits import compute_limits
    from drapes_hep.studies.null_searches import check_nulls

    checked = _configured(config, assignments, False)
    if luminosity is not None and not 0 < luminosity < float("inf"):
        raise ConfigError(f"--luminosity {luminosity:g}: must be a number above 0")
    check_nulls(checked, "limits")
    reporter = Reporter(quiet=quiet)
    search = _context(
        checked, output, device=device, executor=executor, workers=workers, reporter=reporter, overwrite=overwrite
    )
    sample = applied_config(checked, {"path": signal if len(signal) > 1 else signal[0]})
    if signal_assignments:
        sample = assigned_config(
            sample.model_dump(mode="json"), [f"data.{each}" for each in signal_assignments], search.run.manifest
        )
    place = search.run.path / "limits" / (name or Path(signal[0]).stem)
    target = open_run(place, "applied", overwrite=overwrite)
    limits = compute_limits(
        search, Context.of(sample, target, executor=executor, workers=workers, reporter=reporter), luminosity
    )
    files = write_limits(limits, place, checked)
    typer.echo(limits_table(limits))
    reporter.say(f"written: {', '.join(str(file) for file in files)}")


@app.command()
def export(
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help="pyhf, combine, hs3 or hepdata.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Output directory (default: RUN/FORMAT).")
    ] = None,
) -> None:
    """Write the counts of a finished run for other tools: pyhf, Combine, HS3, or a HEPData submission."""
    from drapes_hep.exports.formats import find_writer

    writer, folder = find_writer(kind), output or run / kind
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"{folder}: is a file; name another directory with -o")
    files = writer(run, folder)
    typer.echo(f"{folder}: {counted(len(files), 'file')} written")


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files, patterns or URLs.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one record, or a list for several files.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Draw m_JJ of a single file: .png, .pdf or .svg.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--events",
            min=1,
            metavar="N",
            help="Read N events, spread over the file (default: 200000, or 2000 for files with constituents).",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Read every event.")] = False,
    layout: Annotated[str | None, typer.Option(metavar="NAME", help="Layout of the file, if several fit.")] = None,
    tree: Annotated[
        str | None, typer.Option("--tree", metavar="NAME", help="Tree or HDF5 key, if several fit.")
    ] = None,
) -> None:
    """Summarise a file: layout, events, jets, constituents, columns, labels, m_JJ, and problems."""
    from drapes_hep.data.inspection import inspect_file
    from drapes_hep.events.chunks import Reading
    from drapes_hep.events.paths import expand

    paths = expand(files)
    if figure is not None and (len(paths) > 1 or figure.suffix not in {".png", ".pdf", ".svg"}):
        raise DrapesError(f"{figure}: --figure draws one file, as .png, .pdf or .svg")
    if every and limit is not None:
        raise DrapesError("--all and --events exclude each other")
    records, failed = [], 0
    for path in paths:
        try:
            inspection = inspect_file(path, sys.maxsize if every else limit, Reading(layout=layout), tree)
        except DrapesError as error:
            if len(paths) == 1:
                raise
            # the others are worth looking at all the same
            failed += 1
            complain(str(error))
            continue
        records.append(inspection.to_json())
        if not as_json:
            _print_inspection(inspection, blank=len(records) > 1)
        if figure is not None:
            _draw_inspection(inspection, figure)
    if as_json:
        typer.echo(json.dumps(records[0] if len(paths) == 1 else records, indent=1, allow_nan=False))
    if failed:
        raise typer.Exit(2)


def _print_inspection(inspection: Inspection, blank: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from drapes_hep.data.inspection import text_lines

    colours = {"error": "bold red", "warning": "yellow", "note": "cyan"}
    # plain and unbroken lines where this is not a terminal: rich sees to the first, soft_wrap to the second
    console = Console(highlight=False)
    if blank:
        console.print()
    for name, value in text_lines(inspection):
        line = Text(f"{name:13}", style=colours.get(name, "bold")).append(
            f" {printable(value)}", style="not bold default"
        )
        console.print(line, soft_wrap=not console.is_terminal)


def _draw_inspection(inspection: Inspection, target: Path) -> None:
    import numpy as np

    from drapes_hep import plots
    from drapes_hep.files import atomic_path

    if not inspection.mjj.edges:
        raise DrapesError(f"{inspection.path}: no event has two jets: m_JJ cannot be drawn")
    edges, counts, variances = (
        np.asarray(x) for x in (inspection.mjj.edges, inspection.mjj.counts, inspection.mjj.variances)
    )
    signal = None if inspection.mjj.signal is None else np.asarray(inspection.mjj.signal)
    extent = "all" if inspection.looked_at == inspection.events else f"{inspection.looked_at:,} of"
    note = (
        f"layout {inspection.layout}\n{extent} {inspection.events:,} events\n"
        f"{inspection.mjj.events:,} with two jets, no selection"
    )
    name = Path(inspection.path).name
    stamp = plots.Stamp(name if len(name) <= 44 else f"{name[:20]}...{name[-21:]}", sqrt_s=None)
    preview = plots.MassPreview(edges, counts, variances, signal, note, not inspection.weights.all_one)
    with atomic_path(target) as temporary:
        plots.mass_preview(preview, stamp).savefig(temporary, format=target.suffix[1:])


def _check_files(config: Config, name: Path) -> list[str]:
    """Open all files, read and process the first chunk of each, and return a line per file and remark."""
    from drapes_hep.bumphunt.signal_shapes import find_signal
    from drapes_hep.regions import sliding_windows
    from drapes_hep.stages.simulation import check_sources, reading_of_sources
    from drapes_hep.stages.skim import check_labels, examine_files, reading_of, try_files
    from drapes_hep.templates.registry import method_of

    method_of(config).check_windows(sliding_windows(config))
    find_signal(config.hunt.signal)
    data = examine_files(config)
    named = {problem.path for problem in data.problems if isinstance(problem, InputError)}
    tried = try_files(config, [info for info in data.infos if info.path not in named], reading_of(config))
    _raise_all(name, [*data.problems, *(first_chunk.error for first_chunk in tried if first_chunk.error is not None)])
    sources = check_sources(config)
    from_sources = try_files(config, sources, reading_of_sources(config))
    for first_chunk in from_sources:
        if first_chunk.error is not None:
            raise first_chunk.error
    every = (*tried, *from_sources)
    read = {first_chunk.info.path: first_chunk.entries for first_chunk in every}
    lines = []
    for info in (*data.infos, *sources):
        part = f", selection tried on the first {read[info.path]}" if 0 < read.get(info.path, 0) < info.entries else ""
        lines.append(f"{info.path}: {info.layout}, {counted(info.entries, 'event')}{part}")
    lines += data.remarks
    lines += [
        f"{first_chunk.info.path}: the selection keeps none of the {counted(first_chunk.entries, 'event')} read;"
        " check the cuts in 'selection' and 'mass.range'"
        for first_chunk in every
        if not first_chunk.selected
    ]
    labels = check_labels(config)
    partly = sum(first_chunk.entries < first_chunk.info.entries for first_chunk in every)
    if partly:
        how = "not read" if labels is None else "read only for event ids and labels"
        lines.append(
            f"{how}: events after the first chunk of {counted(partly, 'file')}; to read every event, run drapes"
            " inspect FILE --all"
        )
    if labels is not None:
        injected = "" if config.signal.inject is None else f", of which signal.inject keeps {config.signal.inject}"
        lines.append(f"labels: {labels[0]} background and {labels[1]} signal events{injected}")
    return lines


def _raise_all(name: Path, errors: Sequence[DrapesError]) -> None:
    """Print every error once, and stop if there is any; a single one is raised as it is."""
    # a mistake of the processor's is the same in every file
    problems = {str(error): error for error in errors}
    if len(problems) == 1:
        raise next(iter(problems.values()))
    for problem in problems:
        complain(problem)
    if problems:
        raise DrapesError(f"{name}: {counted(len(problems), 'problem')} with the files of data.path")


@app.command()
def validate(
    config: ConfigPath,
    assignments: Assignments = None,
    files: Annotated[
        bool, typer.Option("--files", help="Also open all files and run the selection on the first chunk of each.")
    ] = False,
) -> None:
    """Check a configuration and, with --files, its data and other simulations."""
    checked = _configured(config, assignments, False)
    from drapes_hep.events.features import check_classifier_features
    from drapes_hep.regions import sliding_windows
    from drapes_hep.studies.configurations import check_study

    check_classifier_features(checked.features, checked.classifier_features, **checked.definitions)
    place = check_plugins(checked)
    check_study(checked)
    _check_generators(checked)
    windows = sliding_windows(checked)
    lines = _check_files(checked, config) if files else []
    names = windows[0].name if len(windows) == 1 else f"{windows[0].name} to {windows[-1].name}"
    typer.echo(f"{config}: valid: {counted(len(windows), 'window')}, {names} GeV")
    if windows[-1].lo != checked.windows.last:
        typer.echo(
            f"windows.last {checked.windows.last:g} is not a whole number of steps of {checked.windows.step:g} above"
            f" {checked.windows.first:g}: the last window starts at {windows[-1].lo:g}"
        )
    typer.echo(f"processor: {place}")
    for line in lines:
        typer.echo(printable(line))


@app.command()
def download(
    sample: Annotated[str, typer.Argument(metavar="SAMPLE", help="lhco-rd, lhco-blackboxes or lhco-extra-qcd.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Directory for the files; created if missing.")
    ] = Path(),
    files: Annotated[
        list[str] | None,
        typer.Option(metavar="WHICH", help="features, raw, labels, all, a name or a pattern; repeatable.  [features]"),
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="List the files of the record and exit.")] = False,
    quiet: Quiet = False,
) -> None:
    """Download a public sample from Zenodo, with checksums; an interrupted download is resumed."""
    from drapes_hep.data import download as remote
    from drapes_hep.progress import Reporter

    entry = remote.SAMPLES.get(sample)
    if entry is None:
        raise DrapesError(f"no sample '{sample}'; available: {', '.join(remote.SAMPLES)}")
    listing = remote.list_files(entry)
    if only_list:
        typer.echo(f"{entry.title}; doi:{entry.doi}")
        width = max(len(file.name) for file in listing)
        for file in listing:
            typer.echo(f"{file.name:{width}}  {remote.size_text(file.size):>8}  {file.kind:8}  {file.checksum}")
        return
    for path in remote.fetch(remote.choose(entry, listing, files or ["features"]), output, Reporter(quiet=quiet)):
        typer.echo(path)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty directory to write to.")],
) -> None:
    """Create a project with processors and configurations to edit."""
    from drapes_hep.plugins import starter_folder

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DrapesError(f"{folder}: exists and is not an empty directory; choose another")
    source = starter_folder()
    try:
        for name in ("processors", "analysis", "configs"):
            shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    except OSError as error:
        raise DrapesError(f"{folder}: cannot be written ({error.strerror or error})") from error
    typer.echo(f"{folder}: written; next: cd {folder} && drapes run configs/quickstart.yaml")
    typer.echo("for your own events, edit configs/own_data.yaml")


@app.command()
def study(
    name: Annotated[str | None, typer.Argument(metavar="STUDY", help="A study in analysis/; see --list.")] = None,
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="Configuration file (YAML).")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Output directory (default: studies/NAME)."),
    ] = None,
    assignments: Assignments = None,
    only_list: Annotated[bool, typer.Option("--list", help="List the studies and exit.")] = False,
    executor: Executor = "iterative",
    workers: Workers = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compare templates, or repeat whole searches, in a table and a figure; resumes when run again."""
    from drapes_hep.studies.study import find_studies, load_study, run_study

    checked = None if config is None else _configured(config, assignments, False)
    studies = find_studies(None if checked is None else checked.folder)
    if only_list:
        width = max(map(len, studies), default=0)
        for study_name in studies:
            try:
                title = load_study(study_name, studies).title
            except DrapesError as error:  # an error in a user's study must not hide the others
                title = f"({error})"
            typer.echo(f"{study_name:{width}}  {title}")
        return
    if name is None or checked is None:
        raise ConfigError("study: name a study and a configuration; `drapes study --list` lists the studies")
    definition = load_study(name, studies)
    from drapes_hep.progress import Reporter

    check_plugins(checked)
    _check_generators(checked)
    reporter = Reporter(quiet=quiet)
    context = _context(
        checked,
        output,
        device=device,
        executor=executor,
        workers=workers,
        reporter=reporter,
        overwrite=overwrite,
        kind="study",
    )
    for path in run_study(name, definition, context):
        typer.echo(path)


@app.command()
def simulate(
    process: Annotated[str, typer.Argument(metavar="PROCESS", help="qcd or resonance.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Output file.")],
    events: Annotated[int, typer.Option(metavar="N", help="Number of events.")] = 10_000,
    masses: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="A B C", help="Masses of the resonance A and its daughters B and C, GeV."),
    ] = None,
    prongs: Annotated[
        int | None, typer.Option(metavar="N", help="Number of partons that B and C each decay to: 2 (default) or 3.")
    ] = None,
    width: Annotated[
        float | None, typer.Option(metavar="GEV", help="Width of A, GeV (default: 1% of its mass).")
    ] = None,
    shower: Annotated[
        str, typer.Option(metavar="NAME", help="default, or alternative (another shower and detector).")
    ] = "default",
    leading_pt: Annotated[float, typer.Option(metavar="GEV", help="Minimum pT of the leading jet, GeV.")] = 1200.0,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="raw (LHC Olympics HDF5) or skim (Parquet with jets and constituents).")
    ] = "raw",
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.")] = 1,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Number of processes (default: all cores).")] = None,
    quiet: Quiet = False,
) -> None:
    """Simulate dijet events: QCD, or a resonance A -> B C. Needs the extra 'sim'."""
    from drapes_hep.parallel import available_cores
    from drapes_hep.progress import Reporter
    from drapes_hep.simulation import write_sample as generate
    from drapes_hep.simulation.processes import Process

    order = generate.Order(Process(process, masses, prongs, width, shower, leading_pt), events, seed, format)
    processes = available_cores() if workers is None else workers
    generate.simulate(order, output, processes, Reporter(quiet=quiet))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"drapes-hep {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; ends by SystemExit where the status is not 0."""
    # third-party chatter is not for users; our own messages go through the reporter
    warnings.filterwarnings("ignore")
    # a user's own module next to the configuration: a console script does not look in the working directory
    sys.path.append(str(Path.cwd()))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal without Greek letters, or a file's name that is not text, must not fail
            stream.reconfigure(errors="backslashreplace")
    enter("")
    try:
        with from_shell():
            status = app(standalone_mode=False)
    except SystemExit as done:
        # the command line itself gives its status back, except where nobody reads its output any more
        if _of_output(done.__context__):
            sys.exit(128 + signal.SIGPIPE)
        if isinstance(done.__context__, BrokenPipeError):
            # typer leaves at any broken pipe, as if it could only be its own
            _complain(f"{_during()}a pipe to another process broke ({done.__context__})", 2)
        _complain(f"{_during()}{exit_line(done)}", 2)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except Exception as error:
        message = _error_line(error)
        if message is None:
            raise
        _complain(message, 2)
    if status == _INTERRUPTED:
        _complain(_interrupted(), 128 + received())
    if status:
        sys.exit(status)


_INTERRUPTED = 130
"""Return value of typer for Ctrl-C."""


def _interrupted() -> str:
    """Return what was interrupted, and what remains of it."""
    how = "interrupted" if received() == signal.SIGINT else f"ended by {signal.Signals(received()).name}"
    name = stage()
    remains = ""
    if name.startswith("train.") and " and " not in name:
        remains = "; a training in progress is saved in a checkpoint"
    elif name.startswith("study"):
        remains = "; finished models and trials are kept, a training in progress is saved in a checkpoint"
    elif "train." in name:  # several windows side by side
        remains = "; finished stages are kept, a training in progress is saved in a checkpoint"
    elif name:
        remains = "; finished stages are kept, this one starts over"
    return f"{how}{f' during {name}' if name else ''}{remains}; run the same command again to resume"


def _during() -> str:
    return f"{stage()}: " if stage() else ""


def _of_output(error: BaseException | None) -> bool:
    """Whether an error came of writing to standard output."""
    frames = traceback.extract_tb(None if error is None else error.__traceback__)
    return isinstance(error, OSError) and bool(frames) and Path(frames[-1].filename).parts[-2:] in _WRITERS


_WRITERS = {("_click", "utils.py"), ("click", "utils.py"), ("rich", "console.py")}
"""Whose functions write what a command prints; their errors do not name them."""


def _error_line(error: Exception) -> str | None:
    """Describe a user's mistake in a line; None for a defect of the package, which keeps its traceback."""
    if isinstance(error, DrapesError):
        return str(error)
    if isinstance(error, OSError):
        if _of_output(error):
            return f"standard output: cannot be written ({error.strerror or error})"
        return f"{error.filename or 'file system'}: {error.strerror or error}"
    if isinstance(error, typer.Abort):
        return f"{_during()}ended early ({error.__cause__ or 'end of input'})"
    # a word that is not an option, or an option's value of the wrong type: typer's errors, whose home differs by
    # version
    word = getattr(error, "format_message", None)
    return None if word is None else f"{word()} See drapes --help"


def _complain(message: str, status: int) -> NoReturn:
    complain(message)
    sys.exit(status)
