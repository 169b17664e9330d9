"""Find a study by its name, run it, and write its table and figure."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path

from drapes_hep.config import Config
from drapes_hep.cwola.trees import fallback_line
from drapes_hep.errors import ConfigError, RunDirectoryError, UsersCode, describe_error, reason_of
from drapes_hep.files import atomic_path, read_json, write_bytes, write_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.provenance import makers
from drapes_hep.plots.studies import study_panels
from drapes_hep.plots.style import Stamp
from drapes_hep.plugins import load_source, processor_folders
from drapes_hep.studies.design import Row, Study, left_out, title_of
from drapes_hep.studies.runner import check_labels, make_sample, run_trials
from drapes_hep.studies.trials import REFERENCES

__all__ = ["find_studies", "load_study", "run_study"]


def find_studies(config_folder: Path | None = None) -> dict[str, Path]:
    """List the studies of ``analysis/``: in the working directory, next to a configuration, then in the starter.

    Parameters
    ----------
    config_folder : Path, optional
        Where the configuration is.

    Returns
    -------
    dict of str to Path
        Files that define ``STUDY``, by the names that the command line takes.
    """
    paths: dict[str, Path] = {}
    for folder in processor_folders(config_folder):
        for path in sorted((folder / "analysis").glob("*.py")):
            if re.search(r"^STUDY\b.*=", path.read_text(encoding="utf-8"), re.MULTILINE):
                paths.setdefault(path.stem.replace("_", "-"), path)
    return dict(sorted(paths.items()))


def load_study(name: str, studies: dict[str, Path]) -> Study:
    """Load a study.

    Raises
    ------
    ConfigError
        If there is none of this name, or its file does not run.
    """
    path = studies.get(name)
    if path is None:
        close = difflib.get_close_matches(name, studies, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else "`drapes study --list` lists them"
        raise ConfigError(f"no study '{name}'; {hint}")
    with UsersCode(lambda error: ConfigError(f"study '{name}': {path} does not run ({reason_of(error)})")):
        module = load_source(f"_drapes_study_{path.stem}", path)
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise ConfigError(f"study '{name}': STUDY of {path} is not a Study")
    return study


def run_study(name: str, study: Study, context: Context) -> list[Path]:
    """Run what is missing of a study, and write its table and figure.

    Parameters
    ----------
    name : str
    study : Study
    context : Context
        Its run directory holds the sample, models and records of all studies of this configuration, and a folder for
        each study.

    Returns
    -------
    list of Path
        The table, the figure twice, and the record of what made them.
    """
    config, reporter = context.config, context.reporter
    check_labels(config)
    with _study_errors(name):
        entries = study.entries(config)
    if not entries:
        raise ConfigError(
            f"study '{name}': the configuration leaves nothing to measure: see study.templates (a scan along sigma'"
            " needs partial ones), study.data_share (references need events besides the data) and the lists of the scan"
        )
    if missing := left_out(config) if any(entry.trial.subject in REFERENCES for entry in entries) else {}:
        names = ", ".join(f"{title_of(name, config)} (at most {largest:g})" for name, largest in missing.items())
        reporter.say(f"study.data_share {config.study.data_share:g} leaves no room for these references: {names}")
    if line := fallback_line():
        reporter.say(line)
    make_sample(context)
    with reporter.bar(f"study {name}", 1) as bar:
        records = run_trials([entry.trial for entry in entries], context, progress=lambda done, total: bar(done, total))
    folder = context.run.path / name
    written = [folder / f"{name}.csv", folder / f"{name}.png", folder / f"{name}.pdf", folder / f"{name}.json"]
    if _has_other_config(written[3], config):
        reporter.say(
            f"{written[0]}: replaced, as the configuration has changed; to keep both, use --set name=NAME or -o"
        )
    with _study_errors(name):
        rows = [row for entry, record in zip(entries, records, strict=True) for row in study.lines(entry, record)]
    write_bytes(written[0], _csv(rows).encode())
    stamp = Stamp.from_config(config.plots, config.mass.sqrt_s)
    with _study_errors(name):
        if study.figure is not None:
            figure = study.figure(entries, records, config, stamp)
        elif study.panels is not None:
            figure = study_panels(study.panels(rows, config), stamp)
        else:
            raise ConfigError(f"study '{name}': has neither panels nor a figure")
    for path in written[1:3]:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=110)
    write_json(written[3], {"study": name, "config": config.model_dump(mode="json"), **makers()})
    return written


def _has_other_config(path: Path, config: Config) -> bool:
    """Whether a table is there that another configuration made."""
    try:
        before = read_json(path)
    except RunDirectoryError:
        return False
    return isinstance(before, dict) and before.get("config") != config.model_dump(mode="json")


def _study_errors(name: str) -> UsersCode:
    """Turn what goes wrong in a study's file into one line that says where."""

    def refuse(error: BaseException) -> ConfigError:
        return ConfigError(
            f"study '{name}': {describe_error(error, lambda file: Path(file).parent.name == 'analysis')}"
        )

    return UsersCode(refuse)


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
