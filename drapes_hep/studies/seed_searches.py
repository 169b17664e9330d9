"""How much does a result depend on the seed? The same events searched again, everything trained anew.

A seed decides how events are divided into folds and parts, the trainings, the noise of the template and what the
classifiers hold out. Another seed is another classifier, which selects other events. The spread says how much of a
result is the luck of one training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from drapes_hep.bumphunt.seed_spread import seed_spreads
from drapes_hep.errors import ConfigError, counted
from drapes_hep.files import write_json
from drapes_hep.kernels import kernel_threads
from drapes_hep.pipeline.context import Context
from drapes_hep.plots.studies import Band, Panel, study_panels
from drapes_hep.plots.style import Stamp
from drapes_hep.stages.feature_tables import load_events, unweighted
from drapes_hep.stages.skim import skim
from drapes_hep.studies.design import Measured, Row
from drapes_hep.studies.null_folder import NullFolder, null_folder
from drapes_hep.studies.null_searches import search_null
from drapes_hep.studies.records import has_record, read_trial
from drapes_hep.studies.runner import run_tasks

__all__ = ["SEED_CODE", "SeedStudy"]

SEED_CODE = ("studies.seed_searches",)
"""Where the code of a search begins."""


@dataclass(frozen=True)
class SeedStudy:
    """Searches of the same events with other seeds; ``STUDY`` of a module.

    Attributes
    ----------
    title : str
        One line for ``drapes study --list``.
    """

    title: str

    def run(self, name: str, context: Context) -> Measured:
        """Make the searches that are missing; see :class:`drapes_hep.studies.design.AnyStudy`."""
        _check(context)
        searches = context.config.study.seeds
        # the events of the search itself, with the signal that it injects
        skim(context)
        folder = context.run.path / "searches"
        place = null_folder(context, SEED_CODE, "seeds", parent=folder, labelled=False, of_data=True)
        unweighted(load_events(context.run.events, ())["weight"], f"study {name}")
        missing = [(place, number) for number in range(searches) if not has_record(_record(place, number))]
        reporter = context.reporter
        reporter.say(f"study {name}: {counted(len(missing), 'search', 'searches')} of {searches} to do")
        with reporter.bar(f"study {name}", max(len(missing), 1)) as bar:
            run_tasks([(_search, missing)], context, lambda done, _: bar(done))
        records = [read_trial(_record(place, number))["rows"] for number in range(searches)]
        spreads = seed_spreads(records)
        rows: list[Row] = [dict(vars(spread)) for spread in spreads]
        return Measured(rows, lambda stamp: _figure(records, stamp), {"searches": searches, "points": rows})


def _check(context: Context) -> None:
    config = context.config
    if config.study.seeds < 2:
        raise ConfigError(f"study.seeds: {config.study.seeds} has no spread; set it to 2 or more")
    if config.blind:
        raise ConfigError("blind: the spread of a result over seeds needs the result; unblind first")
    if config.constituents is not None:
        raise ConfigError("constituents: the study seeds repeats searches of features; one of constituents it does not")
    if config.template.method in {"file", "from_simulation"}:
        raise ConfigError(
            f"template.method: the study seeds trains templates anew of the data, which {config.template.method} has no"
            " part in; use another method"
        )


def _record(place: NullFolder, number: int) -> Path:
    return place.folder / f"{number}.json"


def _search(place: NullFolder, number: int) -> None:
    with threadpool_limits(limits=1), kernel_threads(1):
        events = load_events(place.events, place.config.features)
        columns = {name: np.asarray(events[name]) for name in ("event_id", "mjj", "weight", *place.config.features)}
        rows = search_null(place.config, number, columns, device=place.device, spurious=True)
    write_json(_record(place, number), {"rows": rows})


def _figure(records: Sequence[Sequence[dict[str, Any]]], stamp: Stamp) -> Figure:
    """Draw z of each cut and window over the searches."""
    windows = tuple(dict.fromkeys(row["window"] for row in records[0]))
    cuts = sorted({row["cut"] for row in records[0]}, reverse=True)
    bands = []
    for i, window in enumerate(windows):
        values = np.array(
            [
                [next((r["z_local"] for r in record if (r["window"], r["cut"]) == (window, cut)), None) for cut in cuts]
                for record in records
            ],
            dtype=np.float64,
        )
        quoted = np.isfinite(values).any(axis=0)
        low, median, high = np.full((3, len(cuts)), np.nan)
        low[quoted], median[quoted], high[quoted] = np.nanquantile(values[:, quoted], (0.0, 0.5, 1.0), axis=0)
        # beside each other, or one hides the next
        place = np.arange(len(cuts), dtype=np.float64) + 0.5 * ((i + 0.5) / len(windows) - 0.5)
        bands.append(Band(f"{window} GeV", place, median, low, high, seeds=len(records), repeated="searches"))
    return study_panels(
        [
            Panel(
                "Background efficiency",
                r"$z_\mathrm{local}$",
                bands,
                level=0.0,
                meaning="As expected",
                names=tuple(f"{cut:g}" for cut in cuts),
            )
        ],
        stamp,
    )
