"""Do limits cover? Injected searches, everything trained anew, for the efficiency and to test the limits.

    python analysis/limit_coverage.py configs/quickstart.yaml SIGNAL -o OUT --set windows.first=3300
        --set windows.last=3300 --set study.null_events=64000 --means 40 80 160 320 640 --searches 10 [--tests]

Makes ``--searches`` searches for each of the means, of numbers of their own where they are ``--tests``. A run that was
ended goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from drapes_hep.config import load_config
from drapes_hep.errors import DrapesError
from drapes_hep.files import file_hash
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.progress import Reporter
from drapes_hep.stages.apply import applied_config
from drapes_hep.stages.skim import skim
from drapes_hep.studies.injected_searches import (
    LIMIT_CODE,
    check_sample,
    injected_record,
    load_sample,
    run_injected,
)
from drapes_hep.studies.null_folder import NullFolder, null_folder, search_missing
from drapes_hep.studies.null_searches import check_nulls
from drapes_hep.studies.records import has_record
from drapes_hep.studies.runner import select_events

TESTS = 10_000
"""Number of the first test's null: beyond any replica's."""


def numbers(mean_place: int, searches: int, tests: bool) -> range:
    """Return the numbers of the nulls of one mean: no search shares another's events."""
    first = (TESTS if tests else 0) + 1000 * mean_place
    return range(first, first + searches)


def prepare(arguments: argparse.Namespace) -> tuple[Context, NullFolder, Path]:
    """Select the events and the signal."""
    config = load_config(arguments.config, arguments.set)
    check_nulls(config)
    context = Context.of(config, open_run(arguments.output, "study"), workers=arguments.workers, reporter=Reporter())
    select_events(context, labels=config.data.labels)
    run = open_run(arguments.output / "signal", "applied")
    skim(replace(context, config=applied_config(config, {"path": str(arguments.signal)}), run=run))
    return context, null_folder(context, LIMIT_CODE, file_hash(run.events)), run.events


def main(arguments: argparse.Namespace) -> None:
    """Make the searches that are missing."""
    context, place, signal = prepare(arguments)
    check_sample(load_sample(signal, context.config), max(arguments.means), str(arguments.signal))
    jobs = [
        (place, signal, mean, number)
        for i in range(arguments.searches)
        for k, mean in enumerate(arguments.means)
        for number in [numbers(k, arguments.searches, arguments.tests)[i]]
    ]
    missing = [job for job in jobs if not has_record(injected_record(place, *job[2:]))]
    search_missing(place, context, run_injected, missing, f"{len(jobs)} injected searches")
    print(place.folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("signal", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--means", type=float, nargs="+", required=True)
    parser.add_argument("--searches", type=int, default=10)
    parser.add_argument("--tests", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    try:
        main(parser.parse_args())
    except DrapesError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
