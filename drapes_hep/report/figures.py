"""The figures of the report and their captions."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence

import hist
import uhi.io.json
from markupsafe import Markup

from drapes_hep import plots
from drapes_hep.files import read_json
from drapes_hep.metrics import Roc
from drapes_hep.report.extract import closure_jets, closures, leading_window, overall, spectra, split_counts
from drapes_hep.report.pictures import Album, Picture
from drapes_hep.report.run_files import RunFiles, WindowFiles, optional_array, read_columns, reading

__all__ = [
    "control_figures",
    "metric_figures",
    "quality_figures",
    "scan_figures",
    "split_figures",
    "window_figures",
]


def scan_figures(run: RunFiles, album: Album) -> list[Picture]:
    """Draw the local p-values of all windows, and the pseudo-experiments."""
    figures = []
    several = len(run.windows) > 1
    points = [
        plots.LocalP(w.sr, float(p["background_efficiency"]), p.get("p_local")) for w in run.windows for p in w.points
    ]
    if any(p.p_local is not None for p in points):
        figures.append(
            album.add(
                "local_p",
                plots.local_p_scan(points, run.stamp, overall=overall(run)),
                "Local p-values",
                ("Bars are the windows; windows that overlap share events." if several else "The bar is the window.")
                + (" Open marks above p = 1: not quoted." if any(p.p_local is None for p in points) else ""),
                ("results.json",),
            )
        )
    with reading(run.directory.hunt):
        toys = run.hunt.get("toys") or {}
        smallest = optional_array(toys.get("smallest_p"))
        if smallest is not None and len(smallest):
            figures.append(
                album.add(
                    "toys",
                    plots.toy_distribution(smallest, toys.get("observed"), run.stamp),
                    "Pseudo-experiments",
                    "Smallest local p-value of each background-only pseudo-experiment of the whole search.",
                    ("hunt.json",),
                )
            )
    return figures


def control_figures(run: RunFiles, album: Album) -> list[Picture]:
    """Draw the control histograms, those with the same lines on one canvas."""
    path = run.directory.skim_hists
    read_json(path)  # for its clear errors
    groups: dict[tuple[str, ...], list[plots.Cell]] = {}
    with reading(path):
        raw = json.loads(path.read_text(encoding="utf-8"), object_hook=uhi.io.json.object_hook)
        for name, content in raw.items():
            for cell in plots.control_cells(str(name), hist.Hist(content)):
                groups.setdefault(cell.lines, []).append(cell)
        figures: list[Picture] = []
        for lines, cells in groups.items():
            figure = plots.control_grid(cells, run.stamp, hidden=run.hidden)
            slug, title, words = _control_caption(lines, cells, [f.slug for f in figures])
            words += " Hatched: blinded." if run.blind else ""
            figures.append(album.add(slug, figure, title, words.strip(), ("skim/hists.json",), wide=True))
    return figures


def _control_caption(
    lines: tuple[str, ...], cells: Sequence[plots.Cell], taken_slugs: Sequence[str]
) -> tuple[str, str, str]:
    """Return slug, title and caption of control histograms with these lines, by the axes that they are lines of."""
    axes = cells[0].histogram.axes
    names = (
        [axes[i].name for i in cells[0].choices[0] if axes[i].name not in {"dataset", "selection", ""}] if lines else []
    )
    usual = {(): ("control_events", "events"), ("jet",): ("control_jets", "jets")}
    stem, of = usual.get(tuple(names), ("control_" + re.sub(r"\W", "_", "_".join(names)), " and ".join(names)))
    if not lines:
        stem, of = "control_planes", "two axes"
    slug = next(s for s in itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2))) if s not in taken_slugs)
    selected = any(axis.name == "selection" for axis in axes)
    words = "All events filled by the processor, and the selected events." if selected else ""
    return slug, f"Control histograms of {of}", words


def window_figures(run: RunFiles, files: WindowFiles, album: Album) -> tuple[list[Picture], list[str]]:
    """Draw the figures of a window, and give the reasons of those that are not there."""
    figures = [
        *_spectrum_figures(run, files, album),
        _score_figure(run, files, album),
        *_training_figures(run, files, album),
        _closure_figure(run, files, album),
        *([_jets_figure(run, files, album)] if files.has_jets else []),
    ]
    return [f for f in figures if isinstance(f, Picture)], [f for f in figures if isinstance(f, str)]


def _spectrum_figures(run: RunFiles, files: WindowFiles, album: Album) -> list[Picture]:
    name, figures = files.window.name, []
    with reading(run.directory.hunt):
        drawn = spectra(run, files)
    inclusive = [s for s in drawn if s.background_efficiency >= 1]
    quoted = [s for s in drawn if s.background_efficiency < 1 and s.z_local is not None]
    tight = max(
        quoted, key=lambda s: s.z_local or 0.0, default=next((s for s in drawn if s.background_efficiency < 1), None)
    )
    pull_words = (
        "Thin grey lines: bins without events, up to the upper end of their 68% interval. Pulls are signed square"
        " roots of the bins' deviances; the band is the fit's uncertainty."
    )
    sources = ("hunt.json", "results.json")
    if inclusive:
        figures.append(
            album.add(
                f"spectrum_{name}",
                plots.spectrum(inclusive[0], run.stamp),
                "Inclusive spectrum",
                f"All selected events; the fit{run.fit_title} excludes the window. {pull_words}",
                sources,
            )
        )
    if tight is not None:
        which = "most significant" if quoted else "loosest"
        figures.append(
            album.add(
                f"spectrum_selected_{name}",
                plots.spectrum(tight, run.stamp),
                "Spectrum after a cut",
                Markup(
                    "The window's {} cut, ε<sub>B</sub> = {}. All events are shown; in the sidebands, the fit uses only"
                    " the closure events. {}"
                ).format(which, f"{tight.background_efficiency:g}", pull_words),
                sources,
            )
        )
    if len(drawn) > 1:
        figures.append(
            album.add(
                f"spectra_{name}",
                plots.selected_spectra(drawn, run.stamp),
                "All working points",
                "All cuts with their expectations, normalised to the same bin width; empty bins are not shown.",
                sources,
            )
        )
    return figures


def _score_figure(run: RunFiles, files: WindowFiles, album: Album) -> Picture | str:
    if run.blind:
        return "The tail of the score in the window is not shown: blinded."
    name, s = files.window.name, files.scores
    template = read_columns(files.folder / "template_scores.parquet", ("weight", "tail"))
    inside = s["region"] == 1
    figure = plots.score_distribution(
        s["tail"][inside],
        template["tail"],
        run.stamp,
        data_weight=s["weight"][inside],
        template_weight=template["weight"],
        title=f"window {files.title} GeV",
        working_points=[float(p["background_efficiency"]) for p in files.points],
    )
    return album.add(
        f"score_{name}",
        figure,
        "Tail of the score",
        "Data in the window and the template. For background only and a perfect template, the ratio is 1.",
        (f"windows/{name}/scores.parquet", f"windows/{name}/template_scores.parquet"),
    )


def _hidden(run: RunFiles) -> str:
    return "any window" if len(run.hidden) > 1 else "the window"


def _training_figures(run: RunFiles, files: WindowFiles, album: Album) -> list[Picture | str]:
    if files.training is None:
        return ["No training.json: this template was not trained in this run."]
    name, figures = files.window.name, list[Picture | str]()
    words = "Training and validation loss (early stopping). The first epochs may be above the range."
    for training, curve in (files.training.get("trainings") or {}).items():
        with reading(files.folder / "training.json"):
            losses = plots.TrainingCurve(curve["train"], curve["validation"], curve["rate"], curve.get("best_epoch"))
            figure = plots.training_loss(losses, run.stamp, title=f"window {files.title} GeV", unit=curve["unit"])
            title, caption = str(curve["title"]), f"{curve['caption']} {words}".strip()
        sources = (f"windows/{name}/training.json",)
        figures.append(album.add(f"training_{training}_{name}", figure, title, caption, sources))
    return figures or ["This template method is not trained in epochs."]


def _closure_figure(run: RunFiles, files: WindowFiles, album: Album) -> Picture | str:
    name = files.window.name
    if not all((files.folder / needed).exists() for needed in ("closure.parquet", "split.parquet")):
        return "No closure sample in this run."
    closure_data = closures(run, files)
    if not closure_data:
        return "Too few held-out events for the closure test of the features."
    return album.add(
        f"closure_{name}",
        plots.feature_grid(closure_data, run.stamp, title=f"sidebands of {files.title} GeV"),
        "Closure of the features",
        "Held-out sideband events and the template generated at their masses, normalised to unit area in the range"
        " shown. Band and error bars are statistical. Pearson's χ² of the bins filled by both. Red triangles: points"
        " outside the panel." + (f" Masses in {_hidden(run)} are excluded." if run.blind else ""),
        ("skim/events.parquet", f"windows/{name}/split.parquet", f"windows/{name}/closure.parquet"),
        wide=True,
    )


def _jets_figure(run: RunFiles, files: WindowFiles, album: Album) -> Picture | str:
    name = files.window.name
    if not all((files.folder / needed).exists() for needed in ("closure.parquet", "split.parquet")):
        return "No closure sample in this run."
    comparison = closure_jets(run, files)
    if comparison is None:
        return "Too few held-out events, or weighted ones, for the closure test of the jets."
    events = comparison["events"]
    figure = plots.jet_grid(
        plots.jet_shapes({"Template": comparison}),
        run.stamp,
        title=f"sidebands of {files.title} GeV",
        true_label="Held-out data",
    )
    return album.add(
        f"jets_{name}",
        figure,
        "Closure of the jets",
        "Jets and constituents of held-out sideband events and of the template generated at their masses,"
        " normalised to unit area in the range shown. W₁ / true: Wasserstein distance between the two, in units of"
        f" the distance between two samples of the data, with {events} events each."
        + (
            " The template starts from the same events; the quantities that it keeps are not shown."
            if files.template_record.get("source") == "window"
            else ""
        )
        + (f" Masses in {_hidden(run)} are excluded." if run.blind else ""),
        ("skim/events.parquet", f"windows/{name}/split.parquet", f"windows/{name}/closure.parquet"),
        wide=True,
    )


def quality_figures(
    run: RunFiles, points: Sequence[plots.QualityPoint], passed: Sequence[plots.Passing], album: Album
) -> list[Picture]:
    """Draw the quality of all templates, and who passes the cuts."""
    figures = []
    each = "each" if len(run.windows) > 1 else "the"
    if any(q.truth or q.sidebands or q.pseudo for q in points):
        figures.append(
            album.add(
                "template_quality",
                plots.template_quality(points, run.stamp),
                "Template AUC",
                f"Separation of template and background by a classifier, in {each} window and, at its own masses, in"
                " the pseudo-window. At an AUC of 0.5 they are indistinguishable.",
                ("results.json", "windows/*/quality.json"),
            )
        )
    if passed:
        hidden = "Windows are" if len(run.hidden) > 1 else "The window is"
        words = f"{hidden} excluded: blinded." if run.blind else "Signal appears as an excess only in the window."
        figures.append(
            album.add(
                "passing_fraction",
                plots.passing_fraction(passed, run.stamp),
                "Efficiency of the cuts",
                Markup(
                    "Fraction of data passing a cut (in the sidebands: held-out events), divided by its background"
                    " efficiency ε<sub>B</sub>. A difference between the sidebands indicates sculpting. {}"
                ).format(words),
                ("windows/*/scores.parquet",),
            )
        )
    return figures


def metric_figures(run: RunFiles, curves: Mapping[str, Roc], album: Album) -> list[Picture]:
    """Draw SIC and ROC curves, where there are labels."""
    if not curves:
        return []
    words, sources = "Dotted: fewer than 10 background events pass.", ("windows/*/quality.json",)
    return [
        album.add("sic", plots.sic_curve(curves, run.stamp), "Significance improvement", words, sources),
        album.add("roc", plots.roc_curve(curves, run.stamp), "ROC curves", words, sources),
    ]


def split_figures(run: RunFiles, album: Album) -> list[Picture]:
    """Draw the use of the events, for one window."""
    files = leading_window(run)
    if files is None:
        return []
    return [
        album.add(
            "data_split",
            plots.data_split(split_counts(run, files)),
            "Data split",
            f"Use of the events, for the window {files.title} GeV.",
            ("windows/*/training.json", "results.json"),
        )
    ]
