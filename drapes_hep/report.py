"""The page a reviewer opens: figures, tables and ``report/index.html`` from the files of a run directory.

Nothing is computed here that a result holds: numbers come from ``results.json``, ``hunt.json`` and the windows' files,
and the page names the file. The same files give the same bytes. In a blinded run nothing in any window is drawn.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hist
import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import uhi.io.json
import yaml
from markupsafe import Markup, escape
from matplotlib.figure import Figure

import drapes_hep
from drapes_hep import plots
from drapes_hep.config import PlotConfig
from drapes_hep.errors import RunDirectoryError
from drapes_hep.events.features import FEATURES
from drapes_hep.files import atomic_path, read_json
from drapes_hep.metrics import Roc
from drapes_hep.poisson import deviance_p_value

__all__ = ["write_report"]

FloatArray = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[Any]]

DPI = 110
AUC_TOLERANCE = 0.02
"""Distance of a template's AUC from 0.5 that is pointed out, if it is also three standard errors."""
POOR_FIT = 0.05
CLOSURE = 2
"""``part`` of the sideband events that no model met."""
SCULPTING = 3.0
"""Standard deviations between the two sidebands' passing fractions that are pointed out."""


# ---- reading -------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the surprises of a file that is not as the contract says into one line that names it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise RunDirectoryError(
            f"{path}: is not as docs/run-directory.md says ({what}); run its stage again"
        ) from error


def _mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path}: is not as docs/run-directory.md says (no mapping); run its stage again")
    return value


def _parquet(path: Path, columns: Sequence[str]) -> Columns:
    try:
        table = pq.read_table(path, columns=list(columns))
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: missing; run the stage that makes it") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise RunDirectoryError(f"{path}: cannot be read as parquet ({reason}); delete it and run again") from error
    missing = [c for c in columns if c not in table.column_names]
    if missing:
        raise RunDirectoryError(f"{path}: has no column {', '.join(missing)}; delete it and run again")
    return {c: table.column(c).to_numpy() for c in columns}


def _floats(values: Sequence[float | None] | None) -> FloatArray | None:
    """Give an array with NaN for null; None for no array at all."""
    if values is None:
        return None
    return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)


def _estimate(value: Any) -> tuple[float, float | None] | None:  # noqa: ANN401
    """Read a number with its uncertainty, however it is written: null, 0.5 or {"value", "error"}."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        if value.get("value") is None:
            return None
        error = value.get("error")
        return float(value["value"]), None if error is None else float(error)
    return float(value), None


@dataclass(frozen=True)
class _Window:
    """One window's files."""

    folder: Path
    result: Mapping[str, Any]
    hunt: Mapping[str, Any]
    quality: Mapping[str, Any]
    training: Mapping[str, Any] | None

    @property
    def sr(self) -> tuple[float, float]:
        return float(self.result["sr"][0]), float(self.result["sr"][1])

    @property
    def name(self) -> str:
        return f"{self.sr[0]:g}-{self.sr[1]:g}"

    @property
    def title(self) -> str:
        return f"{self.sr[0]:g}–{self.sr[1]:g}"

    @property
    def points(self) -> list[Mapping[str, Any]]:
        return sorted(self.result["working_points"], key=lambda p: -float(p["background_efficiency"]))

    @cached_property
    def scores(self) -> Columns:
        return _parquet(self.folder / "scores.parquet", ("mjj", "weight", "region", "part", "fold", "tail"))


@dataclass(frozen=True)
class _Run:
    """Everything but the windows' event files."""

    path: Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    hunt: Mapping[str, Any]
    skim: Mapping[str, Any]
    windows: tuple[_Window, ...]
    stamp: plots.Stamp
    blind: bool

    @cached_property
    def events(self) -> Columns:
        columns = ("event_id", "weight", "mjj", *self.features)
        events = _parquet(self.path / "skim" / "events.parquet", columns)
        order = np.argsort(events["event_id"], kind="stable")
        return {name: values[order] for name, values in events.items()}

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(str(f) for f in self.config.get("features", ()))

    @property
    def mass_range(self) -> tuple[float, float]:
        edges = self.hunt["edges"]
        return float(edges[0]), float(edges[-1])

    def covered(self, mjj: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Say what a blinded run may not draw: masses in any window."""
        out = np.zeros(len(mjj), dtype=np.bool_)
        for window in self.windows:
            out |= (mjj >= window.sr[0]) & (mjj < window.sr[1])
        return out


def _load(path: Path) -> _Run:
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: no such run directory")
    manifest = _mapping(path / "manifest.json")
    results, hunt = _mapping(path / "results.json"), _mapping(path / "hunt.json")
    skim = _mapping(path / "skim" / "skim.json")
    with _reading(path / "manifest.json"):
        config = dict(manifest["config"])
        plot_words = PlotConfig.model_validate(config.get("plots") or {})
        sqrt_s = (config.get("mass") or {}).get("sqrt_s")
        stamp = plots.Stamp.from_config(plot_words, None if sqrt_s is None else float(sqrt_s))
    with _reading(path / "hunt.json"):
        by_window = {(float(w["sr"][0]), float(w["sr"][1])): w for w in hunt["windows"]}
        counts = [c for w in hunt["windows"] for p in w["working_points"] for c in p["counts"]]
    windows = []
    with _reading(path / "results.json"):
        for result in results["windows"]:
            sr = (float(result["sr"][0]), float(result["sr"][1]))
            folder = path / "windows" / f"{sr[0]:g}-{sr[1]:g}"
            if sr not in by_window:
                raise RunDirectoryError(f"{path / 'hunt.json'}: has no window {folder.name}; run the hunt again")
            training = folder / "training.json"
            windows.append(
                _Window(
                    folder,
                    result,
                    by_window[sr],
                    _mapping(folder / "quality.json"),
                    _mapping(training) if training.exists() else None,
                )
            )
    # counts that were hidden say more than a setting that may have been overridden
    blind = bool(results.get("blind", config.get("blind", True))) or any(c is None for c in counts)
    windows.sort(key=lambda w: w.sr)
    return _Run(path, manifest, config, results, hunt, skim, tuple(windows), stamp, blind)


# ---- words ---------------------------------------------------------------------------------------------------------


def _null(reason: str = "") -> Markup:
    note = Markup(" <small>{}</small>").format(reason) if reason else Markup("")
    return Markup('<span class="null">–{}</span>').format(note)


def _power(value: float, digits: int = 2) -> Markup:
    """Write a number for the page, large and small ones in powers of ten."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return Markup(escape(f"{value:.{digits + 1}g}" if abs(value) < 1000 else f"{value:.0f}"))
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return Markup("{} × 10<sup>{}</sup>").format(mantissa, str(int(exponent)).replace("-", "−"))


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _integer(value: float) -> str:
    # a narrow no-break space between thousands, as the SI wants it
    return f"{value:,.0f}".replace(",", "\u202f")


def _plus_minus(value: Any, digits: int = 3, reason: str = "") -> Markup:  # noqa: ANN401
    found = _estimate(value)
    if found is None:
        return _null(reason)
    error = "" if found[1] is None else f" ± {found[1]:.{digits}f}"
    return Markup(escape(f"{found[0]:.{digits}f}{error}"))


def _why(point: Mapping[str, Any], key: str, blind: bool) -> str:
    """Say why a number of a working point is null, as far as the file tells."""
    if key == "observed":
        return "blinded" if blind else ""
    if point.get("expected") is None:
        return "too few events outside the window, or a poor inclusive fit"
    if key in {"p_local", "z_local"}:
        if point.get("observed") is None:
            return "blinded" if blind else "nothing observed is quoted"
        if key == "z_local" and point.get("p_local") is not None:
            return "p is 1"
    return ""


def _best(run: _Run, inclusive: bool = False) -> tuple[_Window, Mapping[str, Any]] | None:
    """Find the most significant working point that is quoted."""
    quoted = [
        (w, p)
        for w in run.windows
        for p in w.points
        if p.get("p_local") is not None and (not inclusive or float(p["background_efficiency"]) >= 1)
    ]
    # equal where p underflows: z decides
    return min(quoted, key=lambda x: (x[1]["p_local"], -(x[1].get("z_local") or 0.0)), default=None)


def _cut(point: Mapping[str, Any]) -> str:
    efficiency = float(point["background_efficiency"])
    return "1 (inclusive)" if efficiency >= 1 else f"{efficiency:g}"


def _overall(run: _Run) -> plots.GlobalP:
    g = run.results.get("global") or {}
    interval = g.get("p_global_interval")
    p, z = g.get("p_global"), g.get("z_global")
    if g.get("bound") and interval is not None and interval[1] is not None:
        # with no toy as extreme, what is known is the upper end of the interval
        p = interval[1]
    return plots.GlobalP(
        None if p is None else float(p),
        None if z is None else float(z),
        None if interval is None or None in interval else (float(interval[0]), float(interval[1])),
        bool(g.get("bound") or False),
        int(g.get("toys") or 0),
    )


def _headline(run: _Run) -> tuple[list[dict[str, Any]], list[Any]]:
    best, inclusive, overall = _best(run), _best(run, inclusive=True), _overall(run)
    blinded = "the run is blinded" if run.blind else "no working point has a p-value"
    cards: list[dict[str, Any]] = []
    lines: list[Any] = []
    if best is None:
        cards.append({"what": "largest local significance", "value": _null(), "more": blinded})
    else:
        window, point = best
        z = point.get("z_local")
        value = _null("p is 1") if z is None else Markup("{} σ").format(_signed(float(z)))
        more = Markup("{} GeV at ε<sub>B</sub> = {}; p<sub>local</sub> = {}").format(
            window.title, _cut(point), _power(float(point["p_local"]))
        )
        cards.append({"what": "largest local significance", "value": value, "more": more})
    trials = len(run.windows) * max((len(w.points) for w in run.windows), default=0)
    if overall.p is None:
        reason = blinded if best is None else "no pseudo-experiments" if overall.toys == 0 else "not computed"
        cards.append({"what": "global p-value", "value": _null(), "more": reason})
    else:
        sign, zsign = ("<", ">") if overall.bound else ("=", "=")
        value = Markup("p {} {}").format(sign, _power(overall.p))
        z_text = Markup("") if overall.z is None else Markup("z {} {}; ").format(zsign, _signed(overall.z))
        how = "only a bound" if overall.bound else "interval "
        interval: Markup | str = ""
        if overall.interval is not None and not overall.bound:
            interval = Markup("[{}, {}]").format(_power(overall.interval[0]), _power(overall.interval[1]))
        elif not overall.bound:
            how = ""
        more = Markup("{}{}{}").format(z_text, how, interval)
        cards.append({"what": "global p-value, all windows and cuts", "value": value, "more": more})
        if overall.bound:
            lines.append(
                f"The global p-value is only a bound: none of {_integer(overall.toys)} pseudo-experiments was as"
                " extreme as the data. More of them would be needed to quote a number."
            )
    if inclusive is None:
        cards.append({"what": "inclusive search, no classifier", "value": _null(), "more": blinded})
    else:
        window, point = inclusive
        z = point.get("z_local")
        value = _null("p is 1") if z is None else Markup("{} σ").format(_signed(float(z)))
        same = ""
        if best is not None and best[0] is not window:
            here = next((p for p in best[0].points if float(p["background_efficiency"]) >= 1), None)
            here_z = None if here is None else here.get("z_local")
            same = f"; {best[0].title} GeV: " + ("–" if here_z is None else f"{_signed(float(here_z))} σ")
        cards.append(
            {"what": "inclusive search, no classifier", "value": value, "more": f"largest, {window.title} GeV{same}"}
        )
    lost = (run.results.get("accounting") or {}).get("lost")
    cards.append(
        {
            "what": "events lost",
            "value": _null() if lost is None else _integer(float(lost)),
            "more": "requested minus processed",
        }
    )
    if best is not None:
        lines.insert(
            0,
            f"{len(run.windows)} windows with {trials // max(len(run.windows), 1)} working points each were"
            " searched; the local numbers do not account for having chosen the largest, the global one does.",
        )
    return cards, lines


def _fit_p(run: _Run, window: _Window) -> float | None:
    """Probability of the inclusive fit's deviance, as the hunt judges it, sparse bins allowed for."""
    quoted = (window.result.get("fit") or {}).get("p_value")
    if quoted is not None:
        return float(quoted)
    for point in window.hunt["working_points"]:
        if float(point["background_efficiency"]) < 1 or point.get("chi2") is None or not point.get("ndof"):
            continue
        expected = _floats(point.get("expected"))
        if expected is None:
            return None
        edges = np.asarray(run.hunt["edges"], dtype=np.float64)
        centre = 0.5 * (edges[1:] + edges[:-1])
        used = (centre < window.sr[0]) | (centre > window.sr[1])
        if run.blind:
            used &= np.array([c is not None for c in point["counts"]], dtype=np.bool_)
        parameters = int(used.sum()) - int(point["ndof"])
        return float(deviance_p_value(np.array([float(point["chi2"])]), expected[used], parameters)[0])
    return None


# ---- figures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """A figure on the page."""

    slug: str
    title: str
    caption: str
    sources: tuple[str, ...]
    png: str
    wide: bool

    @property
    def alt(self) -> str:
        return f"{self.title}. {self.caption}"


class _Album:
    """Renders figures into report/figures and remembers which, so that those of an older run can go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[str] = set()

    def add(
        self, slug: str, figure: Figure, title: str, caption: str, sources: Iterable[str], *, wide: bool = False
    ) -> _Picture:
        png, pdf = io.BytesIO(), io.BytesIO()
        # no date and no version: the same files give the same bytes
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
        for suffix, content in (("png", png), ("pdf", pdf)):
            with atomic_path(self.folder / f"{slug}.{suffix}") as temporary:
                temporary.write_bytes(content.getvalue())
            self.written.add(f"{slug}.{suffix}")
        encoded = base64.b64encode(png.getvalue()).decode("ascii")
        return _Picture(slug, title, caption, tuple(sources), encoded, wide)

    def prune(self) -> None:
        """Remove figures of an earlier report: beside a new page they would mislead."""
        for path in self.folder.iterdir():
            if path.suffix in {".png", ".pdf"} and not path.name.startswith(".") and path.name not in self.written:
                path.unlink()


def _spectra(run: _Run, window: _Window) -> list[plots.Spectrum]:
    edges = np.asarray(run.hunt["edges"], dtype=np.float64)
    results = {float(p["background_efficiency"]): p for p in window.points}
    out = []
    for point in sorted(window.hunt["working_points"], key=lambda p: -float(p["background_efficiency"])):
        cut = float(point["background_efficiency"])
        counts = _floats(point["counts"])
        if counts is None or len(counts) != len(edges) - 1:
            raise ValueError(f"counts of window {window.name} do not fit the edges")
        result = results.get(cut, {})
        out.append(
            plots.Spectrum(
                edges,
                counts,
                _floats(point.get("expected")),
                _floats(point.get("expected_bin_error")),
                window.sr,
                cut,
                chi2=point.get("chi2"),
                ndof=point.get("ndof"),
                fit_p=_fit_p(run, window) if cut >= 1 else None,
                observed=result.get("observed"),
                total=result.get("expected"),
                total_error=result.get("expected_error"),
                z_local=result.get("z_local"),
            )
        )
    return out


def _closures(run: _Run, window: _Window) -> list[plots.Closure]:
    split = _parquet(window.folder / "split.parquet", ("event_id", "part"))
    template = _parquet(window.folder / "closure.parquet", ("mjj", "weight", *run.features))
    events = run.events
    held = np.sort(split["event_id"][split["part"] == 2])
    at = np.searchsorted(events["event_id"], held)
    if len(held) and (at.max() >= len(events["event_id"]) or not np.array_equal(events["event_id"][at], held)):
        raise RunDirectoryError(
            f"{window.folder / 'split.parquet'}: names events that the skim does not hold; run again"
        )
    reference = {name: values[at] for name, values in events.items()}
    if run.blind:
        # sidebands of one window hold other windows' data
        kept = ~run.covered(reference["mjj"])
        reference = {name: values[kept] for name, values in reference.items()}
        kept = ~run.covered(template["mjj"])
        template = {name: values[kept] for name, values in template.items()}
    if not len(reference["mjj"]) or not len(template["mjj"]):
        return []
    return [
        plots.make_closure(
            FEATURES[name].axis_label if name in FEATURES else name,
            reference[name],
            template[name],
            reference_weight=reference["weight"],
            template_weight=template["weight"],
        )
        for name in run.features
    ]


def _roc(run: _Run, window: _Window) -> Roc | None:
    curve = window.quality.get("roc")
    if not curve or not curve.get("signal_efficiency"):
        return None
    signal = window.quality.get("n_signal_truth")
    # the template's size is no help: the background of a ROC curve is the window's
    inside = float((window.scores["region"] == 1).sum())
    n_signal = math.nan if signal is None else float(signal)
    return Roc(
        np.asarray(curve["signal_efficiency"], dtype=np.float64),
        np.asarray(curve["background_efficiency"], dtype=np.float64),
        n_signal,
        math.nan if run.blind else inside - n_signal,
    )


def _passing(run: _Run, window: _Window) -> list[plots.Passing]:
    s = window.scores
    # the sideband events that the template never met: it follows the others' fluctuations, and so does a cut
    outside = (s["region"] == 0) & (s["part"] == CLOSURE)
    regions = {
        "lower sideband": outside & (s["mjj"] < window.sr[0]),
        "window": s["region"] == 1,
        "upper sideband": outside & (s["mjj"] >= window.sr[1]),
    }
    if run.blind:
        del regions["window"]
        seen = ~run.covered(s["mjj"])
        regions = {name: mask & seen for name, mask in regions.items()}
    return [
        plots.Passing(window.sr, name, float(p["background_efficiency"]), float(passed.sum()), float(mask.sum()))
        for p in window.points
        if float(p["background_efficiency"]) < 1
        for name, mask in regions.items()
        for passed in (mask & (s["tail"] <= float(p["background_efficiency"])),)
    ]


def _window_figures(run: _Run, window: _Window, album: _Album) -> tuple[list[_Picture], list[str]]:
    folder, figures, notes = f"windows/{window.name}", [], []
    with _reading(run.path / "hunt.json"):
        spectra = _spectra(run, window)
    inclusive = [s for s in spectra if s.background_efficiency >= 1]
    quoted = [s for s in spectra if s.background_efficiency < 1 and s.z_local is not None]
    tight = max(
        quoted, key=lambda s: s.z_local or 0.0, default=next((s for s in spectra if s.background_efficiency < 1), None)
    )
    pull_words = "Pulls are signed square roots of the bins' deviances; the band is the fit's uncertainty."
    sources = ("hunt.json", "results.json")
    if inclusive:
        figures.append(
            album.add(
                f"spectrum_{window.name}",
                plots.spectrum(inclusive[0], run.stamp),
                "Inclusive spectrum",
                f"All selected events; the fit leaves the window out. {pull_words}",
                sources,
            )
        )
    if tight is not None:
        which = "most significant" if quoted else "loosest"
        figures.append(
            album.add(
                f"spectrum_selected_{window.name}",
                plots.spectrum(tight, run.stamp),
                "Spectrum after a cut",
                f"The window's {which} cut, ε_B = {tight.background_efficiency:g}. {pull_words}",
                sources,
            )
        )
    if len(spectra) > 1:
        figures.append(
            album.add(
                f"spectra_{window.name}",
                plots.selected_spectra(spectra, run.stamp),
                "All working points",
                "Every cut with its expectation, per the same bin width; empty bins are not drawn.",
                sources,
            )
        )
    if run.blind:
        notes.append("The tail of the score in the window is not drawn: blinded.")
    else:
        s = window.scores
        template = _parquet(window.folder / "template_scores.parquet", ("weight", "tail"))
        inside = s["region"] == 1
        figure = plots.score_distribution(
            s["tail"][inside],
            template["tail"],
            run.stamp,
            data_weight=s["weight"][inside],
            template_weight=template["weight"],
            title=f"window {window.title} GeV",
            working_points=[float(p["background_efficiency"]) for p in window.points],
        )
        figures.append(
            album.add(
                f"score_{window.name}",
                figure,
                "Tail of the score",
                "Data in the window against the template; background alone, with a perfect template, is flat at 1.",
                (f"{folder}/scores.parquet", f"{folder}/template_scores.parquet"),
            )
        )
    if window.training is None:
        notes.append("No training.json: this template was not trained in this run.")
    else:
        with _reading(window.folder / "training.json"):
            t = window.training
            curve = plots.TrainingCurve(t["train"], t["validation"], t["rate"], t.get("best_epoch"))
            figure = plots.training_loss(curve, run.stamp, title=f"window {window.title} GeV")
        figures.append(
            album.add(
                f"training_{window.name}",
                figure,
                "Training of the background model",
                "Loss on the events it is fitted to and on held-out ones; the first epochs may lie above the range.",
                (f"{folder}/training.json",),
            )
        )
    if (window.folder / "closure.parquet").exists() and (window.folder / "split.parquet").exists():
        closures = _closures(run, window)
        if closures:
            figures.append(
                album.add(
                    f"closure_{window.name}",
                    plots.feature_grid(closures, run.stamp, title=f"sidebands of {window.title} GeV"),
                    "Closure of the features",
                    "Held-out sideband events against the template made at their masses, both normalised; band and"
                    " bars are statistical. Red triangles lie beyond the panel."
                    + (" Masses in any window are left out." if run.blind else ""),
                    ("skim/events.parquet", f"{folder}/split.parquet", f"{folder}/closure.parquet"),
                    wide=True,
                )
            )
        else:
            notes.append("Too few held-out events for the closure of the features.")
    else:
        notes.append("No closure sample in this run.")
    return figures, notes


def _scan_figures(run: _Run, album: _Album) -> list[_Picture]:
    figures = []
    overall = _overall(run)
    points = [
        plots.LocalP(w.sr, float(p["background_efficiency"]), p.get("p_local")) for w in run.windows for p in w.points
    ]
    if any(p.p_local is not None for p in points):
        figures.append(
            album.add(
                "local_p",
                plots.local_p_scan(points, run.stamp, overall=overall),
                "Local p-values",
                "Bars are the windows; neighbouring ones share events. Open marks above p = 1: not quoted.",
                ("results.json",),
            )
        )
    with _reading(run.path / "hunt.json"):
        toys = run.hunt.get("toys") or {}
        smallest = _floats(toys.get("smallest_p"))
        if smallest is not None and len(smallest):
            figures.append(
                album.add(
                    "toys",
                    plots.toy_distribution(smallest, toys.get("observed"), run.stamp),
                    "Pseudo-experiments",
                    "The whole search repeated under background alone: smallest local p-value of each.",
                    ("hunt.json",),
                )
            )
    return figures


def _control_figures(run: _Run, album: _Album) -> list[_Picture]:
    path = run.path / "skim" / "hists.json"
    read_json(path)  # for its clear errors
    with _reading(path):
        raw = json.loads(path.read_text(encoding="utf-8"), object_hook=uhi.io.json.object_hook)
        found = {str(name): hist.Hist(h) for name, h in raw.items()}
        drawable = {n: h for n, h in found.items() if sum(a.traits.continuous for a in h.axes) == 1}
        extra = {"dataset", "selection"}
        hidden = {n: [w.sr for w in run.windows] for n, h in drawable.items() if run.blind and "mjj" in h.axes.name}
        plain = {n: h for n, h in drawable.items() if {a.name for a in h.axes if not a.traits.continuous} <= extra}
        jets = {n: h for n, h in drawable.items() if n not in plain}
        figures = []
        words = "All events with two jets, and the selected ones." + (" Hatched: blinded." if hidden else "")
        for slug, title, group in (
            ("control_events", "Control histograms of events", plain),
            ("control_jets", "Control histograms of jets", jets),
        ):
            if group:
                figure = plots.control_grid(group, run.stamp, hidden=hidden)
                figures.append(album.add(slug, figure, title, words, ("skim/hists.json",), wide=True))
    return figures


# ---- the page ------------------------------------------------------------------------------------------------------


def _rows(run: _Run) -> list[dict[str, Any]]:
    best = _best(run)
    rows = []
    for window in run.windows:
        fit = window.result.get("fit") or {}
        p = _fit_p(run, window)
        if fit.get("chi2") is None or fit.get("ndof") is None:
            fit_text: Markup = _null("no fit")
        else:
            tail = Markup("") if p is None else Markup(" (p = {})").format(_power(p, 1))
            fit_text = Markup("{} / {}{}").format(f"{float(fit['chi2']):.1f}", str(int(fit["ndof"])), tail)
        for i, point in enumerate(window.points):
            expected, error = point.get("expected"), point.get("expected_error")
            if expected is None:
                expected_text = _null(_why(point, "expected", run.blind))
            else:
                digits = 1 if float(expected) < 1000 else 0
                plus = "" if error is None else f" ± {float(error):.{digits}f}"
                expected_text = Markup(escape(f"{float(expected):.{digits}f}{plus}"))
            observed, p_local, z_local = (point.get(k) for k in ("observed", "p_local", "z_local"))
            rows.append(
                {
                    "first": i == 0,
                    "best": best is not None and best[0] is window and best[1] is point,
                    "window": window.title,
                    "cut": _cut(point),
                    "observed": _null(_why(point, "observed", run.blind))
                    if observed is None
                    else _integer(float(observed)),
                    "expected": expected_text,
                    "cross": _cross_check(point),
                    "p": _null(_why(point, "p_local", run.blind)) if p_local is None else _power(float(p_local)),
                    "z": _null(_why(point, "z_local", run.blind)) if z_local is None else _signed(float(z_local)),
                    "fit": fit_text,
                }
            )
    return rows


def _cross_check(point: Mapping[str, Any]) -> Markup:
    """Write the template's efficiency times the inclusive expectation."""
    value, error = point.get("expected_template"), point.get("expected_template_error")
    if value is None or float(point["background_efficiency"]) >= 1:
        return _null()
    plus = "" if error is None else f" ± {float(error):.1f}"
    return Markup(escape(f"{float(value):.1f}{plus}"))


def _quality_points(run: _Run) -> list[plots.QualityPoint]:
    out = []
    for window in run.windows:
        template = window.result.get("template") or {}
        own = window.quality.get("template") or {}
        out.append(
            plots.QualityPoint(
                window.sr,
                _estimate(template.get("auc_vs_truth")),
                _estimate(template.get("auc_vs_sideband_closure")),
                _estimate(own.get("auc_vs_pseudo_window")),
            )
        )
    return out


def _sic(value: Any) -> Markup:  # noqa: ANN401
    text = _plus_minus(value, 1, "too few background events")
    if isinstance(value, Mapping) and value.get("value") is not None and value.get("signal_efficiency") is not None:
        efficiency = float(value["signal_efficiency"])
        return Markup("{} <small class=soft>(ε<sub>S</sub> {})</small>").format(text, f"{efficiency:.2f}")
    return text


def _checks(run: _Run, passing: Sequence[plots.Passing]) -> list[Any]:
    """Point out what weakens a result, by fixed rules."""
    out: list[Any] = []
    accounting = run.results.get("accounting") or {}
    if accounting.get("lost"):
        out.append(f"{accounting['lost']} events were requested and not processed.")
    differ, poor, missing, sculpted = [], [], [], []
    for window, quality in zip(run.windows, _quality_points(run), strict=True):
        for found, words in (
            (quality.truth, "true background"),
            (quality.sidebands, "held-out sidebands"),
            (quality.pseudo, "data in the pseudo-window"),
        ):
            if found is None:
                continue
            away, error = abs(found[0] - 0.5), found[1] or 0.0
            if away > AUC_TOLERANCE and away > 3 * error:
                differ.append(f"{window.title} GeV from {words}, AUC {found[0]:.3f}")
        p = _fit_p(run, window)
        if p is not None and p < POOR_FIT:
            poor.append(f"{window.title} GeV, p = {p:.2g}")
        null = [_cut(q) for q in window.points if q.get("p_local") is None]
        if null and not run.blind:
            missing.append(f"{window.title} GeV at ε_B = {', '.join(null)}")
        mine = [q for q in passing if q.window == window.sr and q.region != "window"]
        apart = []
        for cut in sorted({q.background_efficiency for q in mine}, reverse=True):
            sides = [q for q in mine if q.background_efficiency == cut]
            if len(sides) != 2 or min(q.total for q in sides) < 1 or sum(q.passed for q in sides) < 10:
                continue
            pooled = sum(q.passed for q in sides) / sum(q.total for q in sides)
            spread = math.sqrt(max(pooled * (1 - pooled), 1e-300) * sum(1 / q.total for q in sides))
            z = abs(sides[1].passed / sides[1].total - sides[0].passed / sides[0].total) / spread
            if z > SCULPTING:
                apart.append(f"{z:.0f}σ at {cut:g}")
        if apart:
            sculpted.append(f"{window.title} GeV, {', '.join(apart)}")
    for found_here, words in (
        (differ, f"The template differs (AUC more than {AUC_TOLERANCE:g} and three standard errors from 0.5)"),
        (poor, f"Poor inclusive fit (p under {POOR_FIT:g})"),
        (missing, "No p-value"),
        (
            sculpted,
            f"The two sidebands pass a cut unlike each other (by more than {SCULPTING:g}σ), which the fit after the"
            " cut has to take up",
        ),
    ):
        if found_here:
            out.append(f"{words}: {'; '.join(found_here)}.")
    git = run.manifest.get("git")
    if isinstance(git, Mapping) and git.get("clean") is False:
        out.append("The code had uncommitted changes when this was run.")
    return out


def _cutflow(run: _Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    first: float | None = None
    before: float | None = None
    for step in run.skim["cutflow"]:
        name, events, weight = str(step["name"]), float(step["events"]), float(step["weight"])
        # these count events, they are no step: another step drops undefined values, or gives them one, and signal that
        # is not injected is dropped before everything else; events whose jets lose constituents stay events
        aside = "undefined_" in name or name in {"not_injected", "cut_off_constituents"}
        row = {"name": name.replace("_", " "), "events": _integer(events), "weight": f"{weight:.6g}", "aside": aside}
        row["step"] = _null() if aside or not before else f"{100 * events / before:.2f}%"
        row["all"] = _null() if aside or not first else f"{100 * events / first:.2f}%"
        if not aside:
            before = events
            first = events if first is None else first
        rows.append(row)
    return rows


def _accounting(run: _Run) -> list[dict[str, Any]]:
    accounting = run.results.get("accounting") or {}
    files = run.skim.get("files") or []
    cards = []
    for key, more in (
        ("requested", f"events in {len(files)} file{'' if len(files) == 1 else 's'}"),
        ("processed", "events"),
        ("lost", "must be 0"),
    ):
        value = accounting.get(key)
        cards.append({"what": key, "value": _null() if value is None else _integer(float(value)), "more": more})
    return cards


def _split(run: _Run) -> tuple[list[dict[str, Any]], plots.SplitCounts | None]:
    rows = []
    counts: plots.SplitCounts | None = None
    best = _best(run)
    for window in run.windows:
        parts = ((window.training or {}).get("events")) or {}
        template = (window.result.get("template") or {}).get("n")
        observed = window.result.get("n_observed")
        numbers = {k: parts.get(k) for k in ("train", "validation", "closure")} | {
            "template": template,
            "data": observed,
        }
        rows.append(
            {"window": window.title}
            | {
                k: _null("blinded" if k == "data" and run.blind else "") if v is None else _integer(float(v))
                for k, v in numbers.items()
            }
        )
        if counts is None or (best is not None and best[0] is window):
            folds = (run.config.get("cwola") or {}).get("folds")
            counts = plots.SplitCounts(
                window.sr,
                run.mass_range,
                parts.get("train"),
                parts.get("validation"),
                parts.get("closure"),
                observed,
                template,
                folds,
            )
    return rows, counts


def _costs(run: _Run) -> list[dict[str, Any]]:
    stages = run.manifest.get("stages") or {}
    rows = [
        {
            "stage": name,
            "seconds": f"{float(s.get('seconds') or 0):.1f}",
            "memory": f"{float(s.get('peak_memory_mb') or 0):.0f}",
        }
        for name, s in stages.items()
    ]
    if rows:
        total = sum(float(s.get("seconds") or 0) for s in stages.values())
        most = max(float(s.get("peak_memory_mb") or 0) for s in stages.values())
        rows.append({"stage": "all (sum; largest)", "seconds": f"{total:.1f}", "memory": f"{most:.0f}"})
    return rows


def _provenance(run: _Run) -> list[tuple[str, Any]]:
    m = run.manifest
    git = m.get("git")
    state: Any = _null("not run from a checkout")
    if isinstance(git, Mapping):
        state = f"{git.get('commit')}, {'clean' if git.get('clean') else 'with uncommitted changes'}"
    seeds = f"run {run.config.get('seed')}"
    injected = run.config.get("signal") or {}
    if injected.get("inject") is not None:
        seeds += f"; signal injection {injected.get('seed')} ({injected['inject']} events before the selection)"
    return [
        ("created", m.get("created") or _null()),
        ("seeds", seeds),
        ("blind", "yes" if run.blind else "no"),
        ("git", state),
        ("code hash", m.get("code") or _null()),
        ("platform", m.get("platform") or _null()),
    ]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if v is None else v for v in row] for row in rows])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _tables(run: _Run, folder: Path) -> None:
    """Write the page's tables as CSV: full precision, empty where a number does not exist."""
    keys = ("background_efficiency", "observed", "expected", "expected_error", "p_local", "z_local")
    _write_csv(
        folder / "working_points.csv",
        ("window_lo_gev", "window_hi_gev", *keys),
        [(*w.sr, *(p.get(k) for k in keys)) for w in run.windows for p in w.points],
    )
    names = ("truth", "sidebands", "pseudo")
    _write_csv(
        folder / "template_quality.csv",
        ("window_lo_gev", "window_hi_gev", *(f"auc_{n}{e}" for n in names for e in ("", "_error"))),
        [(*q.window, *(x for n in names for x in (getattr(q, n) or (None, None)))) for q in _quality_points(run)],
    )
    measures = ("auc", "sic_100", "sic_1000", "sic_max")
    labelled = [w for w in run.windows if w.result.get("metrics")]
    if labelled:
        _write_csv(
            folder / "metrics.csv",
            (
                "window_lo_gev",
                "window_hi_gev",
                "n_signal_truth",
                *(f"{m}{e}" for m in measures for e in ("", "_error")),
            ),
            [
                (
                    *w.sr,
                    w.result.get("n_signal_truth"),
                    *(x for m in measures for x in (_estimate(w.result["metrics"].get(m)) or (None, None))),
                )
                for w in labelled
            ],
        )
    _write_csv(
        folder / "cutflow.csv",
        ("step", "events", "weight"),
        [(s["name"], s["events"], s["weight"]) for s in run.skim["cutflow"]],
    )
    stages = run.manifest.get("stages") or {}
    _write_csv(
        folder / "stages.csv",
        ("stage", "seconds", "peak_memory_mb"),
        [(name, s.get("seconds"), s.get("peak_memory_mb")) for name, s in stages.items()],
    )


def _page(run: _Run, album: _Album) -> dict[str, Any]:
    """Make all figures and gather what the page shows."""
    stamp = run.stamp
    with _reading(run.path / "results.json"):
        cards, headline = _headline(run)
        rows, scan_figures = _rows(run), _scan_figures(run, album)
        points = _quality_points(run)
    with _reading(run.path / "skim" / "skim.json"):
        cutflow, accounting = _cutflow(run), _accounting(run)
    control_figures = _control_figures(run, album)
    best = _best(run)
    passing: list[plots.Passing] = []
    curves: dict[str, Roc] = {}
    windows = []
    for window in run.windows:
        figures, notes = _window_figures(run, window, album)
        passing += _passing(run, window)
        with _reading(window.folder / "quality.json"):
            curve = _roc(run, window)
        if curve is not None:
            curves[f"{window.title} GeV"] = curve
        window.__dict__.pop("scores", None)  # the largest file of a window: one at a time in memory
        top = min(
            (p for p in window.points if p.get("p_local") is not None), key=lambda p: float(p["p_local"]), default=None
        )
        summary = (
            "no working point is quoted"
            if top is None
            else (
                f"smallest p at ε_B = {_cut(top)}, z = "
                + ("–" if top.get("z_local") is None else _signed(float(top["z_local"])))
            )
        )
        opened = window is (best[0] if best else run.windows[0])
        windows.append({"window": window.title, "summary": summary, "notes": notes, "figures": figures, "open": opened})
    quality_figures = []
    if any(q.truth or q.sidebands or q.pseudo for q in points):
        quality_figures.append(
            album.add(
                "template_quality",
                plots.template_quality(points, stamp),
                "Template AUC",
                "How well a classifier tells the template from background in each window.",
                ("results.json", "windows/*/quality.json"),
            )
        )
    if passing:
        words = "Windows are left out: blinded." if run.blind else "Signal shows as an excess in the window alone."
        quality_figures.append(
            album.add(
                "passing_fraction",
                plots.passing_fraction(passing, stamp),
                "Who passes the cuts",
                "Fraction of data that passes (of sidebands: the held-out part), over the cut's background efficiency."
                f" A difference between the sidebands is sculpting. {words}",
                ("windows/*/scores.parquet",),
            )
        )
    metric_figures = []
    if curves:
        words = "Dotted: fewer than 10 background events pass."
        sources = ("windows/*/quality.json",)
        metric_figures = [
            album.add("sic", plots.sic_curve(curves, stamp), "Significance improvement", words, sources),
            album.add("roc", plots.roc_curve(curves, stamp), "ROC curves", words, sources),
        ]
    with _reading(run.path / "results.json"):
        split, counts = _split(run)
        quality = [
            {
                "window": w.title,
                "name": (w.result.get("template") or {}).get("name") or "–",
                "n": _null()
                if (w.result.get("template") or {}).get("n") is None
                else _integer(w.result["template"]["n"]),
                "truth": _plus_minus((w.result.get("template") or {}).get("auc_vs_truth"), 3, "no labels"),
                "sidebands": _plus_minus(
                    (w.result.get("template") or {}).get("auc_vs_sideband_closure"), 3, "not measured"
                ),
                "pseudo": _plus_minus(
                    (w.quality.get("template") or {}).get("auc_vs_pseudo_window"), 3, "one window only"
                ),
            }
            for w in run.windows
        ]
        metrics = (
            [
                {
                    "window": w.title,
                    "signal": _null("no labels")
                    if w.result.get("n_signal_truth") is None
                    else _integer(w.result["n_signal_truth"]),
                    "auc": _plus_minus((w.result.get("metrics") or {}).get("auc"), 3, "no signal"),
                    **{k: _sic((w.result.get("metrics") or {}).get(k)) for k in ("sic_100", "sic_1000", "sic_max")},
                }
                for w in run.windows
            ]
            if any(w.result.get("metrics") for w in run.windows)
            else []
        )
    split_figures = []
    if counts is not None:
        split_figures.append(
            album.add(
                "data_split",
                plots.data_split(counts),
                "Data split",
                f"Which events do what, for the window {counts.window[0]:g}–{counts.window[1]:g} GeV.",
                ("windows/*/training.json", "results.json"),
            )
        )
    words = " ".join(w for w in (stamp.label, stamp.text) if w)
    with _reading(run.path / "manifest.json"):
        return {
            "name": str(run.manifest.get("name") or run.config.get("name") or run.path.name),
            "subtitle": f"{words}: bump hunt in {len(run.windows)} windows of m_JJ with generated background templates",
            "version": (run.manifest.get("versions") or {}).get("drapes-hep", drapes_hep.__version__),
            "blind": run.blind,
            "cards": cards,
            "headline": headline,
            "checks": _checks(run, passing),
            "scan_figures": scan_figures,
            "accounting": accounting,
            "cutflow": cutflow,
            "control_figures": control_figures,
            "rows": rows,
            "quality": quality,
            "quality_figures": quality_figures,
            "metrics": metrics,
            "metric_figures": metric_figures,
            "windows": windows,
            "split": split,
            "split_figures": split_figures,
            "provenance": _provenance(run),
            "inputs": sorted((run.manifest.get("inputs") or {}).items()),
            "costs": _costs(run),
            "versions": sorted((run.manifest.get("versions") or {}).items()),
            "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
            "cross": any(p.get("expected_template") is not None for w in run.windows for p in w.points),
            "window_note": "Expected from the mass fit outside the window. The inclusive search stands beside every"
            " cut; the most significant working point is tinted. Template × inclusive, where it is given, is a"
            " cross-check: the cut's efficiency on the template times the inclusive expectation.",
        }


def write_report(run: Path) -> Path:
    """Write figures, tables and the page of a run.

    Parameters
    ----------
    run : Path
        Run directory, as docs/run-directory.md describes it; needs its hunt stage done.

    Returns
    -------
    Path
        ``run/report/index.html``, self-contained. Beside it are ``figures/*.png``, ``figures/*.pdf``, ``tables/*.csv``.

    Raises
    ------
    RunDirectoryError
        If a file is missing, damaged, or not as the contract says.
    """
    loaded = _load(Path(run))
    folder = loaded.path / "report"
    album = _Album(folder / "figures")
    page = _page(loaded, album)
    with _reading(loaded.path / "results.json"):
        _tables(loaded, folder / "tables")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    html = environment.get_template("report_template.html").render(page)
    index = folder / "index.html"
    with atomic_path(index) as temporary:
        temporary.write_text(html, encoding="utf-8")
    album.prune()
    return index
