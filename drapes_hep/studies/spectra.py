"""Studies of the mass spectrum alone: they need neither labels nor models, and hidden bins stay hidden."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from drapes_hep.bumphunt.selection import count_selected
from drapes_hep.config import Config, MassConfig
from drapes_hep.errors import ConfigError, counted
from drapes_hep.files import content_hash, write_json
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.pipeline.context import Context
from drapes_hep.plots.studies import Panel, study_panels
from drapes_hep.plots.style import Stamp
from drapes_hep.plugins import source_hashes
from drapes_hep.regions import Window
from drapes_hep.spectrum.shapes import SHAPES, SpectrumShape, find_shape, shape_sources
from drapes_hep.stages.bins import mass_edges
from drapes_hep.studies.design import Measured, Row, study_errors
from drapes_hep.studies.records import has_record, read_trial, record_path
from drapes_hep.studies.runner import counting, select_events
from drapes_hep.studies.sample import load_masses

__all__ = ["Spectrum", "SpectrumStudy", "load_spectrum"]

SPECTRUM_CODE = ("studies.spectra",)
"""Where the code of a measurement begins, in addition to the file of its study."""


@dataclass(frozen=True)
class Spectrum:
    """The mass spectrum of the data, with all that may decide a measurement of it.

    Attributes
    ----------
    edges : array, shape (bins + 1,)
        GeV; every window's edges are among them.
    counts : array, shape (bins,)
        Events; NaN in the bins that blinding hides.
    windows : tuple of Window
        Of the search.
    mass : MassConfig
        ``fit`` names the shape of the search.
    pseudo_experiments : int
        ``study.pseudo_experiments``.
    seed : int
        Of the run.
    """

    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]
    windows: tuple[Window, ...]
    mass: MassConfig
    pseudo_experiments: int
    seed: int

    @property
    def visible(self) -> npt.NDArray[np.bool_]:
        """Which bins are not hidden."""
        return np.isfinite(self.counts)

    @property
    def shapes(self) -> dict[str, SpectrumShape]:
        """The package's mass shapes, and the one of the search, by their names."""
        return {**SHAPES, self.mass.fit: find_shape(self.mass)}


def load_spectrum(context: Context) -> Spectrum:
    """Select the events of the configuration, unless it is done, and count them in bins of mass.

    Parameters
    ----------
    context : Context
        Of the study's configuration.

    Returns
    -------
    Spectrum
        Of a blinded configuration without the bins of the windows.

    Raises
    ------
    DrapesError
        If an input is bad, or the events are weighted.
    """
    config = context.config
    select_events(context, labels=config.signal.inject is not None)
    mjj, edges = load_masses(context.run, config), mass_edges(context)
    hidden = context.windows if config.blind else ()
    # no event passes a cut: the counts are the inclusive ones
    counts = count_selected(mjj, np.ones(len(mjj)), edges, (1.0,), hidden).nested[0]
    return Spectrum(edges, counts, context.windows, config.mass, config.study.pseudo_experiments, config.seed)


@dataclass(frozen=True)
class SpectrumStudy:
    """A study of the spectrum; modules of ``analysis/`` define one as ``STUDY``.

    Attributes
    ----------
    title : str
        One line for ``drapes study --list``.
    entries : callable
        From the spectrum to the labels of each measurement: first columns of its lines, different for each.
    measure : callable
        From the spectrum and the labels to further columns of each line. A measurement that is done is not repeated,
        so what it draws may depend on these two alone.
    panels : callable
        From the table and the configuration to the figure's panels.
    """

    title: str
    entries: Callable[[Spectrum], Sequence[Row]]
    measure: Callable[[Spectrum, Row], Sequence[Row]]
    panels: Callable[[Sequence[Row], Config], Sequence[Panel]]

    def run(self, name: str, context: Context) -> Measured:
        """Measure what is missing; see :class:`drapes_hep.studies.design.AnyStudy`."""
        config, reporter = context.config, context.reporter
        spectrum = load_spectrum(context)
        if config.blind:
            reporter.say(f"blind: study {name} uses only the events outside all windows")
        with study_errors(name):
            entries = [dict(labels) for labels in self.entries(spectrum)]
            base = self.key(spectrum)
        if not entries:
            raise ConfigError(f"study '{name}': the configuration leaves nothing to measure")
        paths = [record_path(context.run, content_hash([base, labels])) for labels in entries]
        missing = [(path, labels) for path, labels in zip(paths, entries, strict=True) if not has_record(path)]
        done = len(entries) - len(missing)
        reporter.say(f"{counted(len(missing), 'measurement')} to do, {done} of {len(entries)} already done")
        with reporter.bar(f"study {name}", len(missing)) as bar:
            advance = counting(len(missing), reporter, lambda done, total: bar(done, total))
            for path, labels in missing:
                with study_errors(name):
                    # what JSON cannot hold is a mistake in the study as well
                    write_json(path, {"rows": [{**labels, **row} for row in self.measure(spectrum, labels)]})
                advance()
        table: list[Row] = [row for path in paths for row in read_trial(path)["rows"]]

        def draw(stamp: Stamp) -> Figure:
            with study_errors(name):
                return study_panels(self.panels(table, config), stamp)

        visible = spectrum.counts[spectrum.visible]
        return Measured(table, draw, {"events": int(visible.sum()), "shape": spectrum.mass.fit, "blind": config.blind})

    def key(self, spectrum: Spectrum) -> str:
        """Hash what decides all measurements but for their labels; raises TypeError if ``measure`` is in no file."""
        file = inspect.getsourcefile(inspect.unwrap(self.measure))
        windows = [[window.lo, window.hi] for window in spectrum.windows]
        counts = np.where(spectrum.visible, spectrum.counts, -1.0).tolist()
        return content_hash(
            [
                *(spectrum.edges.tolist(), counts, windows, spectrum.mass.model_dump(mode="json")),
                *(spectrum.pseudo_experiments, spectrum.seed, shape_sources(spectrum.mass)),
                *(self.title, list(source_hashes(self.measure))),
                code_hash(*SPECTRUM_CODE, *([] if file is None else [Path(file).resolve()])),
            ]
        )
