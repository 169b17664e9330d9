"""Find a study by its name, run it, and write its table and figure."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, RunDirectoryError, UsersCode, reason_of
from drapes_hep.files import atomic_path, read_json, write_bytes, write_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.provenance import makers
from drapes_hep.plots.style import Stamp
from drapes_hep.plugins import load_source, processor_folders
from drapes_hep.studies.design import AnyStudy

__all__ = ["csv_text", "find_studies", "load_study", "run_study"]


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


def load_study(name: str, studies: dict[str, Path]) -> AnyStudy:
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
    study: object = getattr(module, "STUDY", None)
    if not isinstance(study, AnyStudy):
        raise ConfigError(f"study '{name}': STUDY of {path} is not a Study")
    return study


def run_study(name: str, study: AnyStudy, context: Context) -> list[Path]:
    """Run what is missing of a study, and write its table and figure.

    Parameters
    ----------
    name : str
    study : AnyStudy
    context : Context
        Its run directory holds the sample, models and records of all studies of this configuration, and a folder for
        each study.

    Returns
    -------
    list of Path
        The table, the figure twice, and the record of what made them.
    """
    config, reporter = context.config, context.reporter
    measured = study.run(name, context)
    folder = context.run.path / name
    written = [folder / f"{name}.csv", folder / f"{name}.png", folder / f"{name}.pdf", folder / f"{name}.json"]
    if _has_other_config(written[3], config):
        reporter.say(
            f"{written[0]}: replaced, as the configuration has changed; to keep both, use --set name=NAME or -o"
        )
    write_bytes(written[0], csv_text(measured.rows).encode())
    figure = measured.draw(Stamp.from_config(config.plots, config.mass.sqrt_s))
    for path in written[1:3]:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=110)
    record = {"study": name, "config": config.model_dump(mode="json"), **measured.facts, **makers()}
    write_json(written[3], record)
    return written


def _has_other_config(path: Path, config: Config) -> bool:
    """Whether a table is there that another configuration made."""
    try:
        before = read_json(path)
    except RunDirectoryError:
        return False
    return isinstance(before, dict) and before.get("config") != config.model_dump(mode="json")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a table, a line for each row; a column that a row does not have is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
