"""Stage report: the page of a finished run, drawn from what the run says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drapes_hep.caller import another_output, either
from drapes_hep.errors import DrapesError, RunDirectoryError
from drapes_hep.events.paths import expand_trees
from drapes_hep.files import file_hash, read_json
from drapes_hep.keys import first_difference, value_text
from drapes_hep.pipeline.execution import check_current
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.pipeline.stage import read_stamp
from drapes_hep.progress import Reporter
from drapes_hep.report import write_report

__all__ = ["own_configuration", "report"]

_OF_THE_PAGE = {"plots", "blind"}
"""What says how a page is drawn; ``blind`` is compared with the results."""


def report(
    run: RunDirectory,
    config: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Write the page of a run; nothing but the folder ``report`` is written.

    Parameters
    ----------
    run : RunDirectory
        Its hunt is done.
    config : mapping, optional
        A configuration as JSON values, for its ``plots``; it must be the run's in everything else.
    reporter : Reporter, optional
        Shows the progress.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    RunDirectoryError
        If the configuration is another search's, it is blind and the run is not or the other way round, or a stage was
        run again since the hunt.
    """
    check_current(run, "hunt")
    if config is None:
        return _write(run, None, reporter)
    _check_same_search(run, own_configuration(run), config)
    results = read_json(run.results)
    blinded = isinstance(results, dict) and bool(results.get("blind"))
    if blinded and not config.get("blind"):
        raise RunDirectoryError(
            f"{run.path}: the run is blinded, so there is nothing to show; "
            + either(
                shell="run `drapes run --unblind` first, or write the report with --set blind=true",
                python="run `Search.run()` with blind=False first, or write the report with blind=True",
            )
        )
    if config.get("blind") and not blinded:
        # its fits and its account hold what the windows hold: leaving out figures would not undo that
        raise RunDirectoryError(
            f"{run.path}: the run is not blinded, so its report cannot be; "
            + either(
                shell="run `drapes run --set blind=true` first, or write the report with --unblind",
                python="run `Search.run()` with blind=True first, or write the report with blind=False",
            )
        )
    return _write(run, config.get("plots"), reporter)


def _write(run: RunDirectory, words: Mapping[str, Any] | None, reporter: Reporter | None) -> Path:
    with (reporter or Reporter(quiet=True)).bar("report: windows", 1) as bar:
        return write_report(run.path, words, progress=bar)


def own_configuration(run: RunDirectory) -> dict[str, Any]:
    """Return the configuration of a run, as its manifest holds it.

    Raises
    ------
    RunDirectoryError
        If there is none.
    """
    manifest = read_json(run.manifest)
    own = manifest.get("config") if isinstance(manifest, dict) else None
    if not isinstance(own, dict):
        raise RunDirectoryError(f"{run.manifest}: holds no configuration; run the search again")
    return own


def _check_same_search(run: RunDirectory, own: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    was = {key: value for key, value in own.items() if key not in _OF_THE_PAGE}
    # a key that the run does not know is a newer release's
    now = {key: _common_keys(config[key], value) for key, value in was.items() if key in config}
    if _is_moved_data(run, was, now):
        now["data"] = {**now["data"], "path": was["data"]["path"], "truth": was["data"].get("truth")}
    difference = first_difference(was, now)
    if difference is not None:
        key, then, requested = difference
        raise RunDirectoryError(
            f"{run.path}: was run with {key} {value_text(then)}, the configuration has {value_text(requested)};"
            " a report shows what was done: "
            + either(shell=f"omit the configuration (drapes report -o {run.path})", python="use the run's own")
            + f", or run the search again in {another_output()}"
        )


def _common_keys(value: object, own: object) -> Any:
    if isinstance(value, dict) and isinstance(own, dict):
        return {key: item for key, item in value.items() if key in own}
    return value


def _is_moved_data(run: RunDirectory, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the configuration names the same data in another place."""
    then, new = (tree.get("data") or {} for tree in (was, now))
    if all(then.get(name) == new.get(name) for name in ("path", "truth")):
        return False
    try:
        hashes = sorted(file_hash(path) for path in expand_trees(new["path"]))
        skim_hashes = ((read_stamp(run, "skim") or {}).get("reads") or {}).values()
        same_truth = new.get("truth") is None or file_hash(new["truth"]) in skim_hashes
    except (DrapesError, OSError, KeyError):
        return False
    return hashes == sorted((read_json(run.manifest).get("inputs") or {}).values()) and same_truth
