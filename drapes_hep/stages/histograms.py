"""What the hunt exports: every histogram as ROOT object and as uhi JSON, under the same key.

Keys hold letters, digits and underscores alone. A histogram of the processor's is split over its category axes. What
ROOT has no object for (more than three dense axes, profiles of more than one) is in ``hists.json`` alone.
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import hist
import numpy as np
import numpy.typing as npt
import uhi.io.json
import uproot

from drapes_hep.bumphunt.resonance import ResonanceScan, largest
from drapes_hep.bumphunt.selection import SelectedCounts
from drapes_hep.bumphunt.working_points import WindowHunt, WorkingPoint, eigen_variations
from drapes_hep.events.blinding import measures_mjj
from drapes_hep.events.features import Feature, check_features
from drapes_hep.events.skims import Skim
from drapes_hep.files import atomic_path, content_hash, write_bytes
from drapes_hep.hists import read_hists
from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window
from drapes_hep.stages.feature_tables import load_events

__all__ = ["by_category", "export_key", "write_histograms"]

FloatArray = npt.NDArray[np.float64]

_CATEGORIES = (hist.axis.StrCategory, hist.axis.IntCategory, hist.axis.Boolean)
_MASS_LABEL = r"$m_{JJ}$ [GeV]"


def write_histograms(
    context: Context,
    windows: Sequence[Window],
    counts: Sequence[SelectedCounts],
    hunts: Sequence[WindowHunt],
    scan: ResonanceScan,
) -> list[Path]:
    """Write ``hists.root`` and ``hists.json``.

    Parameters
    ----------
    context : Context
    windows : sequence of Window
        That were hunted.
    counts : sequence of SelectedCounts
        Of all events, a window each.
    hunts : sequence of WindowHunt
    scan : ResonanceScan

    Returns
    -------
    list of Path

    Raises
    ------
    RunDirectoryError
        If the skim's record of a histogram is damaged.
    """
    directory = context.run
    hists: dict[str, hist.Hist] = {}

    def add(name: str, histogram: hist.Hist) -> None:
        hists[export_key(name, hists)] = histogram

    for name, whole in read_hists(directory.skim_hists, "skim").items():
        blinded = "_blinded" if context.hidden and any(map(measures_mjj, whole.axes)) else ""
        for suffix, part in by_category(whole):
            add(f"control_{name}{suffix}{blinded}", part)
    for window, count, hunted in zip(windows, counts, hunts, strict=True):
        for name, histogram in _window_histograms(window, count, hunted):
            add(name, histogram)
        # a template is a multiple of the events in its window: their number is its sum
        if not context.hidden:
            for name, histogram in _template_histograms(context, window):
                add(name, histogram)
    for name, histogram in _resonance_histograms(counts, scan):
        add(name, histogram)
    text = json.dumps(hists, default=uhi.io.json.default)
    # the same histograms make the same file, but for the dates that uproot writes into it
    identity = uuid.uuid5(uuid.NAMESPACE_OID, content_hash([text]))
    alone = []
    path = directory.path / "hists.root"
    with tempfile.TemporaryDirectory() as folder:
        # uproot writes the file's name into it, and on the way to an atomic write that is a random one
        with uproot.recreate(Path(folder) / path.name, uuid_function=lambda: identity) as file:
            for key, histogram in hists.items():
                writable = _for_root(histogram)
                if writable is None:
                    alone.append(key)
                else:
                    file[key] = writable
        write_bytes(path, (Path(folder) / path.name).read_bytes())
    if alone:
        context.reporter.say(
            f"hunt: ROOT cannot store these histograms, they are only in hists.json: {', '.join(alone)}"
        )
    with atomic_path(directory.path / "hists.json") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [path, directory.path / "hists.json"]


def export_key(name: str, taken_keys: Collection[str] = ()) -> str:
    """Spell a histogram's key: ``.`` as ``p``, ``-`` before a digit as ``m``, all but letters and digits as ``_``.

    Parameters
    ----------
    name : str
    taken_keys : collection of str
        Keys in use; a number is added to a key that is among them.

    Returns
    -------
    str
    """
    text = re.sub(r"-(?=\d)", "m", re.sub(r"(?<=\d)\.(?=\d)", "p", name))
    key = re.sub(r"[^A-Za-z0-9_]", "_", text) or "_"
    return next(k for k in itertools.chain([key], (f"{key}_{i}" for i in itertools.count(2))) if k not in taken_keys)


def by_category(histogram: hist.Hist) -> Iterator[tuple[str, hist.Hist]]:
    """Split a histogram over its category axes, which ROOT has no word for.

    Parameters
    ----------
    histogram : hist.Hist
        Of any axes. Without a dense axis its last category axis stays.

    Yields
    ------
    suffix : str
        Names the categories, ``_before_leading``; a ``selection`` comes first, and a single ``dataset`` is left out.
    part : hist.Hist
    """
    places = [i for i, axis in enumerate(histogram.axes) if isinstance(axis, _CATEGORIES)]
    if len(places) == len(histogram.axes):
        places = places[:-1]
    places.sort(key=lambda i: histogram.axes[i].name != "selection")
    choices = []
    for i in places:
        axis = histogram.axes[i]
        values = map(bool, axis) if isinstance(axis, hist.axis.Boolean) else axis
        names = [("" if axis.name == "dataset" and len(axis) == 1 else f"_{value}") for value in values]
        parts = [(name, (i, j)) for j, name in enumerate(names)]
        # entries of no category: in the axis's overflow, where it has one
        if axis.traits.overflow and _filled(histogram[{i: hist.overflow}]):
            parts.append(("_other", (i, hist.overflow)))
        choices.append(parts)
    for chosen in itertools.product(*choices):
        yield "".join(name for name, _ in chosen), (histogram[dict(at for _, at in chosen)] if chosen else histogram)


def _filled(values: hist.Hist | Any) -> bool:
    # an axis fewer than one is a number, or an accumulator
    content = np.asarray(values.view(flow=True) if isinstance(values, hist.Hist) else values)
    fields = content.dtype.names
    return any(bool(np.any(content[name])) for name in fields) if fields else bool(np.any(content))


def _for_root(histogram: hist.Hist) -> hist.Hist | None:
    """Return the histogram as uproot writes it, or None where ROOT has no object for it."""
    if not 1 <= len(histogram.axes) <= 3 or any(len(axis) == 0 for axis in histogram.axes):
        return None
    if histogram.kind == "MEAN":
        axis = histogram.axes[0]
        plain = axis.traits.underflow and axis.traits.overflow and not axis.traits.circular
        return histogram if len(histogram.axes) == 1 and (plain or isinstance(axis, _CATEGORIES)) else None
    if np.issubdtype(np.asarray(histogram.view()).dtype, np.integer):
        # TArrayL64 is not a histogram's array
        copy = hist.Hist(*histogram.axes, storage="double", name=histogram.name, label=histogram.label)
        copy.view(flow=True)[...] = histogram.view(flow=True)
        return copy
    return histogram


def _window_histograms(window: Window, count: SelectedCounts, hunted: WindowHunt) -> Iterator[tuple[str, hist.Hist]]:
    """Yield data and expectation of each working point."""
    key = window.name.replace("-", "_")
    for row, point in zip(count.nested, hunted.working_points, strict=True):
        cut = f"{key}_eff{point.background_efficiency:g}"
        blinded = "_blinded" if count.hidden.any() else ""
        yield f"mjj_{cut}{blinded}", _mass_histogram(count.edges, row, row)
        yield from _expectation(f"mjj_expected_{cut}", count.edges, point)


def _expectation(name: str, edges: FloatArray, point: WorkingPoint) -> Iterator[tuple[str, hist.Hist]]:
    """Yield an expectation, its covariance, and the fit's variations of one standard deviation up and down."""
    if point.spectrum is None or point.spectrum_covariance is None:
        return
    title = f"Bin errors are almost fully correlated: do not add them in quadrature, see {export_key(name)}_covariance"
    yield name, _mass_histogram(edges, point.spectrum, np.diagonal(point.spectrum_covariance), title)
    axes = [hist.axis.Variable(edges, name=axis, label=_MASS_LABEL) for axis in ("mjj", "mjj_other")]
    covariance = hist.Hist(*axes, storage="double")
    covariance.title = "Covariance of the bins of the expectation"
    covariance.view()[...] = point.spectrum_covariance
    yield f"{name}_covariance", covariance
    for i, variation in enumerate(eigen_variations(point.spectrum_covariance), 1):
        for sign, direction in ((1, "Up"), (-1, "Down")):
            varied = point.spectrum + sign * variation
            varied_histogram = _mass_histogram(
                edges, varied, np.zeros_like(varied), "Expectation with one parameter of the fit varied"
            )
            yield f"{name}_fit{i}{direction}", varied_histogram


def _resonance_histograms(counts: Sequence[SelectedCounts], scan: ResonanceScan) -> Iterator[tuple[str, hist.Hist]]:
    """Yield background and signal of the largest z of each window and cut, all events counted."""
    for point in largest(scan.points):
        if point.spectrum is None or point.peak is None:
            continue
        window = "inclusive" if point.window is None else point.window.name.replace("-", "_")
        cut = f"{window}_eff{point.background_efficiency:g}"
        for what, values in (("background", point.spectrum), ("signal", point.peak)):
            title = f"Fit of a resonance of {point.mass:.0f} GeV: {what}"
            yield f"mjj_resonance_{what}_{cut}", _mass_histogram(counts[0].edges, values, np.zeros_like(values), title)


def _mass_histogram(edges: FloatArray, values: FloatArray, variances: FloatArray, title: str = "") -> hist.Hist:
    histogram = hist.Hist(hist.axis.Variable(edges, name="mjj", label=_MASS_LABEL), storage="weight")
    if title:
        histogram.title = title
    # hidden bins were never counted: they stay empty
    view = histogram.view()
    view["value"], view["variance"] = np.nan_to_num(values), np.nan_to_num(variances)
    return histogram


def _template_histograms(context: Context, window: Window) -> Iterator[tuple[str, hist.Hist]]:
    """Yield the template's features, and the first of them against m_JJ."""
    key = window.name.replace("-", "_")
    features = check_features(context.config.features, **context.config.definitions)
    template = load_events(context.run.window(window) / "template.parquet", context.config.features)
    for feature in features:
        axis = hist.axis.Regular(feature.bins, *feature.range, name=feature.name, label=feature.axis_label)
        histogram = hist.Hist(axis, storage="weight")
        histogram.fill(np.asarray(template[feature.name]), weight=np.asarray(template["weight"]))
        yield f"template_{key}_{feature.name}", histogram
    yield f"template_{key}_mjj_{features[0].name}", _plane(template, features[0], window)


def _plane(template: Skim, feature: Feature, window: Window) -> hist.Hist:
    histogram = hist.Hist(
        hist.axis.Regular(40, window.lo, window.hi, name="mjj", label=_MASS_LABEL),
        hist.axis.Regular(feature.bins, *feature.range, name=feature.name, label=feature.axis_label),
        storage="weight",
    )
    histogram.fill(
        mjj=np.asarray(template["mjj"]),
        weight=np.asarray(template["weight"]),
        **{feature.name: np.asarray(template[feature.name])},
    )
    return histogram
