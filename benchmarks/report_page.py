"""The report of a finished search, against as many empty figures, and a small search, by the number of windows."""

from __future__ import annotations

import tempfile
import weakref
from shutil import rmtree

from columns import RANGE, table
from limits import empty_figure
from record import Benchmark, Sizes, Work

from drapes_hep import Search

FEATURES = ["m_j1", "delta_m", "tau21_j1", "tau21_j2"]


def prepared(windows: int, events: int) -> Search:
    """Prepare a search of drawn events in so many windows, with little training: the report costs the same."""
    x, mjj = table(events)
    columns = {name: x[:, i] for i, name in enumerate(FEATURES)} | {"mjj": mjj}
    for name in FEATURES[2:]:
        columns[name] = columns[name] / (1.0 + columns[name])
    first, last = 3000.0, 4200.0
    step = (last - first) / max(windows - 1, 1)
    low, high = RANGE
    search = Search.of_events(
        columns,
        tempfile.mkdtemp(prefix="drapes-report-"),
        features=FEATURES,
        mass={"range": [low, high], "sqrt_s": 13000, "fit": "dijet3"},
        windows={"width": 400, "step": step, "first": first, "last": last if windows > 1 else first},
        template={"oversample": 1},
        training={"epochs": 1, "pseudo_window": "none"},
        cwola={"ensemble": 1, "folds": 2, "options": {"iterations": 5}},
        hunt={"toys": 100},
        blind=False,
        quiet=True,
        workers=1,
    )
    weakref.finalize(search, rmtree, search.path, ignore_errors=True)
    return search


def report(windows: int, events: int = 20_000) -> Work:
    """Write the page of a finished search."""
    search = prepared(windows, events)
    search.run()
    figures = len(list((search.report().parent / "figures").glob("*.png")))
    return Work(search.report, 1, f"{figures} empty figures", empty_figure, figures)


def search(windows: int, events: int = 20_000) -> Work:
    """Run a small search in so many windows, against as many searches in one: the ratio is what windows share."""
    prepared(1, events).run()  # compiles the loops of the hunt
    return Work(
        lambda: prepared(windows, events).run(),
        windows,
        "searches in one window",
        lambda: prepared(1, events).run(),
        windows,
    )


def by_windows(sizes: Sizes) -> list[dict[str, int]]:
    """Return the parameters of a benchmark that depends on the number of windows alone."""
    return [{"windows": windows} for windows in sizes.windows]


BENCHMARKS = (Benchmark("report", report, by_windows), Benchmark("search", search, by_windows, quick=False))
