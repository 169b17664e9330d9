"""The page, put together and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure

from drapes_hep import plots
from drapes_hep.errors import counted, without_secrets
from drapes_hep.files import atomic_path
from drapes_hep.metrics import Roc
from drapes_hep.report.budget import budget_rows, budget_title
from drapes_hep.report.extract import leading_window, passing, quality_points, roc
from drapes_hep.report.figures import (
    control_figures,
    metric_figures,
    quality_figures,
    scan_figures,
    split_figures,
    window_figures,
)
from drapes_hep.report.format import null
from drapes_hep.report.mass_shape import mass_shape_lines, mass_shape_rows
from drapes_hep.report.pictures import Album, Rendered, render_figure, write_figures
from drapes_hep.report.points_to_check import checks
from drapes_hep.report.resonance import included_resonance, resonance_figures, resonance_note, resonance_rows
from drapes_hep.report.run_files import RunFiles, load_run, reading
from drapes_hep.report.sections import (
    accounting_cards,
    cost_rows,
    cutflow_rows,
    headline,
    metric_rows,
    model_summary,
    provenance,
    quality_rows,
    split_rows,
    steps_not_applied,
    version_lines,
    window_summary,
    working_point_rows,
)
from drapes_hep.report.sensitivity import SENSITIVITY_NOTE, sensitivity_rows
from drapes_hep.report.tables import write_tables
from drapes_hep.version import __version__

__all__ = ["report_figures", "write_report"]


def write_report(
    run: Path,
    words: Mapping[str, Any] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write figures, tables and the page of a run.

    Parameters
    ----------
    run : Path
        Run directory, as docs/run-directory.md describes it; needs its hunt stage done. Nothing in it but the folder
        ``report`` is written.
    words : mapping, optional
        ``plots`` of a configuration, instead of the run's own.
    progress : callable, optional
        Called with (windows drawn, windows).

    Returns
    -------
    Path
        ``run/report/index.html``, self-contained. Beside it are ``figures/*.png``, ``figures/*.pdf``, ``tables/*.csv``.

    Raises
    ------
    RunDirectoryError
        If a file is missing, damaged, or not as the contract says.
    """
    loaded = load_run(Path(run), words)
    folder = loaded.directory.path / "report"
    figures: dict[str, Rendered] = {}

    def render(slug: str, figure: Figure) -> None:
        figures[slug] = render_figure(figure)

    content = _content(loaded, Album(render), progress)
    # written when all of them could be drawn: a run that cannot be read leaves an earlier report alone
    content["images"] = write_figures(folder / "figures", figures)
    with reading(loaded.directory.results):
        write_tables(loaded, folder / "tables")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    html = environment.get_template("page.html").render(content)
    index = folder / "index.html"
    with atomic_path(index) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return index


def report_figures(run: Path, words: Mapping[str, Any] | None = None) -> dict[str, Figure]:
    """Draw the figures of a run, as :func:`write_report` does, and write nothing.

    Parameters
    ----------
    run : Path
        Run directory.
    words : mapping, optional
        ``plots`` of a configuration, instead of the run's own.

    Returns
    -------
    dict of str to Figure
        By the names that their files have in ``report/figures``, in the order of the page.

    Raises
    ------
    RunDirectoryError
        As :func:`write_report`.
    """
    figures: dict[str, Figure] = {}
    _content(load_run(Path(run), words), Album(figures.__setitem__))
    return figures


_WINDOW_NOTE = (
    "The inclusive search is listed with every cut; the most significant working point is highlighted. Cross-checks fit"
    " no masses: the direct count expects what the template says; conformal counts events by p-values among the"
    " sideband events next to the window. Their errors are not those of a wrong assumption."
    " Calibrated z, if given, has width κ and mean of the pulls of null searches in its error."
)


def _columns(run: RunFiles) -> dict[str, bool]:
    """Return which columns the table of working points has beside those of every run."""
    points = [point for files in run.windows for point in files.points]
    return {
        **{name: any(point.get(name) for point in points) for name in ("direct", "conformal")},
        "calibrated": any(point.get("calibrated") for point in points),
    }


def _content(run: RunFiles, album: Album, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Make all figures and gather what the page shows."""
    with reading(run.directory.results):
        cards, lines = headline(run)
        included = included_resonance(run)
        content: dict[str, Any] = {
            "blind": run.blind,
            "several": len(run.windows) > 1,
            "several_hidden": len(run.hidden) > 1,
            "cards": cards,
            "headline": lines,
            "budget": budget_rows(run),
            "budget_title": budget_title(run),
            "rows": working_point_rows(run),
            **_columns(run),
            "window_note": f"Expected from the mass fit{run.fit_title} outside the window. {_WINDOW_NOTE}",
            "sensitivity": sensitivity_rows(run),
            "sensitivity_note": SENSITIVITY_NOTE,
            "mass_shape": mass_shape_rows(run),
            "mass_shape_lines": mass_shape_lines(run),
            "quality": quality_rows(run),
            "metrics": metric_rows(run),
            "split": split_rows(run),
            "model_summary": model_summary(run),
            "scan_figures": scan_figures(run, album),
            "resonance": resonance_rows(run),
            "resonance_included": None if included is None else f"{float(included['mass']):.0f}",
            "resonance_note": resonance_note(run),
            "resonance_figures": resonance_figures(run, album),
        }
        points = quality_points(run)
    with reading(run.directory.skim_info):
        content |= {
            "cutflow": cutflow_rows(run),
            "not_applied": steps_not_applied(run),
            "accounting": accounting_cards(run),
        }
    content["control_figures"] = control_figures(run, album)
    content["windows"], passed, curves = _windows(run, album, progress)
    content["quality_figures"] = quality_figures(run, points, passed, album)
    content["metric_figures"] = metric_figures(run, curves, album)
    content["split_figures"] = split_figures(run, album)
    stamp = " ".join(w for w in (run.stamp.label, run.stamp.text) if w)
    with reading(run.directory.manifest):
        return content | {
            "name": str(run.manifest.get("name") or run.config.get("name") or run.directory.path.name),
            "subtitle": Markup("{}: bump hunt in {} of m<sub>JJ</sub> with generated background templates").format(
                stamp, counted(len(run.windows), "window")
            ),
            "version": __version__,
            "checks": checks(run, passed),
            "provenance": provenance(run),
            # a hash changes with every event of a file
            "inputs": [
                (without_secrets(path), null("in manifest.json") if run.blind else digest)
                for path, digest in sorted((run.manifest.get("inputs") or {}).items())
            ],
            "costs": cost_rows(run),
            "versions": version_lines(run),
            "config": without_secrets(yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)),
        }


def _windows(
    run: RunFiles, album: Album, progress: Callable[[int, int], None] | None
) -> tuple[list[dict[str, Any]], list[plots.Passing], dict[str, Roc]]:
    """Go through the windows' event files: what the page shows of each, who passes the cuts, and ROC curves."""
    windows: list[dict[str, Any]] = []
    passed: list[plots.Passing] = []
    curves: dict[str, Roc] = {}
    first = leading_window(run)
    for files in run.windows:
        figures, notes = window_figures(run, files, album)
        passed += passing(run, files)
        with reading(files.folder / "quality.json"):
            curve = roc(run, files)
        # labelled events of the windows: nothing of them is drawn while the run is blinded
        if curve is not None and not run.blind:
            curves[f"{files.title} GeV"] = curve
        files.forget()
        windows.append(
            {
                "window": files.title,
                "summary": window_summary(files),
                "notes": notes,
                "figures": figures,
                "open": files is first,
            }
        )
        if progress is not None:
            progress(len(windows), len(run.windows))
    return windows, passed, curves
