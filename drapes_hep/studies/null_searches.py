"""Whole searches of events without a signal, everything trained anew, and what their cuts do to many more such events.

The pull of a window's count has three sources, which further events of the same generator tell apart: the count against
the efficiency that the trained cut really has in the window, the curve through the sidebands if their counts did not
fluctuate, and the fluctuation of the fitted curve.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.bumphunt.selection import count_selected
from drapes_hep.bumphunt.working_points import hunt_window
from drapes_hep.config import Config, changed_config
from drapes_hep.cwola.classifiers import find_classifier, is_saved
from drapes_hep.errors import ConfigError
from drapes_hep.events.table import PLACE, read_events
from drapes_hep.files import read_json
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.regions import Window
from drapes_hep.rng import stage_seed
from drapes_hep.spectrum.shapes import find_shape
from drapes_hep.stages.apply import trained_folds
from drapes_hep.stages.bins import mass_edges
from drapes_hep.stages.sequence import run_verb

__all__ = ["CHECKS", "check_nulls", "search_null", "searched", "searched_as"]

FloatArray = npt.NDArray[np.float64]
Row = dict[str, Any]

_POINT = {
    "cut": "background_efficiency",
    "observed": "observed",
    "expected": "expected",
    "error": "expected_error",
    "z_local": "z_local",
}
"""Columns of a row, by their names in ``results.json``."""
_NOT_HUNTED = {"toys": 0, "resonance_toys": 0, "calibration": None, "seeds": None}
CHECKS = ("direct", "conformal")
"""Cross-checks of a count, by their names in ``results.json``."""


def check_nulls(config: Config, what: str = "null searches") -> None:
    """Refuse what no null can be made or searched of.

    Parameters
    ----------
    config : Config
    what : str
        That needs them, for the message.

    Raises
    ------
    ConfigError
    """
    if config.constituents is not None or config.template.method in {"file", "from_simulation"}:
        raise ConfigError(
            f"{what}: features are generated and templates trained on them; leave out the section 'constituents', and"
            " set template.method to neither 'file' nor 'from_simulation'"
        )
    if config.study.further > 0 and not is_saved(find_classifier(config.cwola.classifier, config.folder)):
        raise ConfigError(
            f"study.further: the classifier {config.cwola.classifier} is not written to files; set it to 0"
        )
    if config.blind:
        raise ConfigError(f"blind: {what} need the counts in the windows, which a blinded search hides; unblind first")


def searched_as(config: Config, *, spurious: bool = False) -> Config:
    """Return the configuration of a null search: what is no part of the counts is left out.

    Parameters
    ----------
    config : Config
        Of the search.
    spurious : bool
        Whether errors have the spurious signal, if those of the search have.

    Returns
    -------
    Config
    """
    tree = config.model_dump(mode="json")
    return changed_config(
        config,
        {
            "data": {"path": PLACE, "labels": False},
            "signal": {**tree["signal"], "inject": None},
            "training": {**tree["training"], "pseudo_window": "none"},
            "hunt": {
                **tree["hunt"],
                **_NOT_HUNTED,
                "spurious_signal": spurious and config.hunt.spurious_signal,
            },
            "blind": False,
        },
    )


def search_null(
    config: Config,
    number: int,
    events: Mapping[str, FloatArray],
    further: Mapping[str, FloatArray] | None = None,
    device: str = "cpu",
    *,
    spurious: bool = False,
) -> list[Row]:
    """Search one null.

    Parameters
    ----------
    config : Config
        Of the search; its pseudo-experiments are left out.
    number : int
        Of the null; it seeds the search.
    events : mapping of str to array
        From :class:`~drapes_hep.studies.null_events.NullGenerator`.
    further : mapping of str to array, optional
        Many more events of the same truth: they are passed through the trained cuts.
    device : str
        "cpu" or "cuda".
    spurious : bool
        As :func:`searched_as` has it.

    Returns
    -------
    list of dict
        A row a window and cut: ``window``, ``cut``, ``observed``, ``expected``, ``error``, ``z_local``, and of the
        cross-checks ``direct_observed``, ``direct_expected``, ``direct_error`` and the same of ``conformal``. With
        further events also ``efficiency``, the fraction of those inside the window that passes, ``curve``, the same as
        the curve through those outside has it, and ``further``, how many pass inside.

    Raises
    ------
    DrapesError
        As the stages do.
    """
    with searched(config, number, events, device, spurious=spurious) as context:
        rows = list(_rows(read_json(context.run.results)))
        if further is not None:
            passed = {(row["window"], row["cut"]): row for row in _further_rows(context, further)}
            rows = [{**row, **passed[row["window"], row["cut"]]} for row in rows]
    return rows


@contextmanager
def searched(
    config: Config, number: int, events: Mapping[str, FloatArray], device: str = "cpu", *, spurious: bool = False
) -> Iterator[Context]:
    """Search a null in a directory that lasts as long as the block.

    Parameters
    ----------
    config, number, events, device, spurious
        As :func:`search_null` has them.

    Yields
    ------
    Context
        Of the finished search.

    Raises
    ------
    DrapesError
        As the stages do.
    """
    seed = stage_seed(config.seed, "null search", number) % 2**31
    own = searched_as(config, spurious=spurious).model_copy(update={"seed": seed})
    with tempfile.TemporaryDirectory(prefix="drapes-") as folder:
        context = Context.of(own, open_run(Path(folder)), device=device, workers=1)
        context = replace(context, table=read_events(dict(events), own.features, **own.definitions))
        run_verb("run", context, context.windows)
        yield context


def _rows(results: Mapping[str, Any]) -> Iterator[Row]:
    for window in results["windows"]:
        for point in window["working_points"]:
            yield {
                "window": "{:g}-{:g}".format(*window["sr"]),
                **{column: point[name] for column, name in _POINT.items()},
                **_cross_checks(point),
            }


def _cross_checks(point: Mapping[str, Any]) -> Row:
    columns = (("observed", "observed"), ("expected", "expected"), ("error", "expected_error"))
    return {f"{check}_{column}": (point[check] or {}).get(name) for check in CHECKS for column, name in columns}


def _further_rows(context: Context, events: Mapping[str, FloatArray]) -> Iterator[Row]:
    config = context.config
    x = np.stack([events[name] for name in config.classifier_features], axis=1)
    mjj = events["mjj"]
    # each event is judged by one fold, as those of the null are
    fold = np.arange(len(mjj)) % config.cwola.folds
    for window in context.windows:
        folds, tails = trained_folds(context, window), np.empty(len(mjj))
        for number in range(folds.folds):
            tails[fold == number] = folds.tails(x[fold == number], number)
        yield from _closures(context, window, mjj, tails)


def _closures(context: Context, window: Window, mjj: FloatArray, tails: FloatArray) -> Iterator[Row]:
    """Fit the cuts' efficiencies outside the window as a search does, and compare with what passes inside."""
    config = context.config
    counts = count_selected(mjj, tails, mass_edges(context), config.hunt.background_efficiencies)
    hunted = hunt_window(
        counts,
        window,
        shape=find_shape(config.mass),
        sqrt_s=config.mass.sqrt_s,
        min_events=config.hunt.min_events,
    )
    inclusive = hunted.working_points[0]
    for point in hunted.working_points:
        values: Row = {"further": point.observed, "efficiency": None, "curve": None}
        if point.observed is not None and inclusive.observed:
            values["efficiency"] = point.observed / inclusive.observed
        if point.expected is not None and inclusive.expected:
            values["curve"] = point.expected / inclusive.expected
        yield {"window": window.name, "cut": point.background_efficiency, **values}
