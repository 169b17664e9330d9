"""What a study is made of: entries (trials with their labels), lines of its table, panels of its figure.

A study is anything with a title and a ``run`` that measures a table and can draw its figure (:class:`AnyStudy`).
:class:`Study` runs trials; :class:`drapes_hep.studies.spectra.SpectrumStudy` needs the mass spectrum alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib.figure import Figure

from drapes_hep.config import Config, CwolaConfig
from drapes_hep.cwola.trees import fallback_line
from drapes_hep.errors import ConfigError, UsersCode, describe_error
from drapes_hep.metrics import spread
from drapes_hep.pipeline.context import Context
from drapes_hep.plots.performance import LEAST_BACKGROUND
from drapes_hep.plots.studies import FEW_SEEDS, Band, Panel, study_panels
from drapes_hep.plots.style import Stamp
from drapes_hep.studies.configurations import changed, check_study, generators, of_template
from drapes_hep.studies.measures import REJECTIONS
from drapes_hep.studies.runner import check_labels, make_sample, run_trials
from drapes_hep.studies.trials import REFERENCES, Kind, Trial
from drapes_hep.templates.registry import origin_of

__all__ = [
    "AnyStudy",
    "Entry",
    "Measured",
    "Row",
    "Study",
    "auc_panel",
    "bands",
    "changed",
    "check_study",
    "curve_lines",
    "efficiency_panels",
    "generators",
    "injected",
    "left_out",
    "numbers",
    "of_template",
    "on_features",
    "repetitions",
    "searches",
    "select",
    "sic_curve_panels",
    "sic_panels",
    "study_errors",
    "subjects",
    "title_of",
    "trial_of",
]

Value = str | float | int | None
Row = dict[str, Value]

_SIC = r"Significance improvement $\epsilon_S\,/\,√\epsilon_B$"
_SIC_COLUMNS = {
    "sic_1000": r"$1/\epsilon_B = \mathrm{1000}$",
    "sic_100": r"$1/\epsilon_B = \mathrm{100}$",
    "sic_max": "maximum",
}


@dataclass(frozen=True)
class Entry:
    """A trial, and what the table's lines that come from it are called.

    Attributes
    ----------
    trial : Trial
    labels : mapping
        First columns of its lines; two entries may share a trial.
    """

    trial: Trial
    labels: Mapping[str, Value]


@dataclass(frozen=True)
class Measured:
    """What a study has measured.

    Attributes
    ----------
    rows : sequence of Row
        The table.
    draw : callable
        From the figure's stamp to the figure; it is called after the table is written.
    facts : mapping
        What else the record of the study holds, as JSON values.
    """

    rows: Sequence[Row]
    draw: Callable[[Stamp], Figure]
    facts: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class AnyStudy(Protocol):
    """What ``STUDY`` of a module of ``analysis/`` is."""

    @property
    def title(self) -> str:
        """One line for ``drapes study --list``."""

    def run(self, name: str, context: Context) -> Measured:
        """Measure what is missing.

        Parameters
        ----------
        name : str
            Of the study, for messages.
        context : Context
            Its run directory holds the sample and the records of all studies of this configuration.

        Returns
        -------
        Measured

        Raises
        ------
        DrapesError
            If the configuration does not allow it, or a measurement fails; those that are done stay.
        """


def study_errors(name: str) -> UsersCode:
    """Turn what goes wrong in a study's file into one line that says where."""

    def refuse(error: BaseException) -> ConfigError:
        return ConfigError(
            f"study '{name}': {describe_error(error, lambda file: Path(file).parent.name == 'analysis')}"
        )

    return UsersCode(refuse)


@dataclass(frozen=True)
class Study:
    """A study of trials: templates, references and injections, measured with labelled events.

    Attributes
    ----------
    title : str
        One line for ``drapes study --list``.
    entries : callable
        From the configuration to what is to be measured.
    lines : callable
        From an entry and its trial's record to lines of the table.
    panels : callable
        From the table and the configuration to the figure's panels; None if ``figure`` is given.
    figure : callable, optional
        From the entries, their records, the configuration and the figure's stamp to the figure, where panels cannot
        draw it.
    """

    title: str
    entries: Callable[[Config], Sequence[Entry]]
    lines: Callable[[Entry, Mapping[str, Any]], Sequence[Row]]
    panels: Callable[[Sequence[Row], Config], Sequence[Panel]] | None
    figure: Callable[[Sequence[Entry], Sequence[Mapping[str, Any]], Config, Stamp], Figure] | None = None

    def run(self, name: str, context: Context) -> Measured:
        """Run the trials that are missing; see :class:`AnyStudy`."""
        config, reporter = context.config, context.reporter
        check_labels(config)
        with study_errors(name):
            entries = self.entries(config)
        if not entries:
            raise ConfigError(
                f"study '{name}': the configuration leaves nothing to measure: see study.templates (a scan along"
                " sigma' needs partial ones), study.data_share (references need events besides the data) and the lists"
                " of the scan"
            )
        if missing := left_out(config) if any(entry.trial.subject in REFERENCES for entry in entries) else {}:
            names = ", ".join(f"{title_of(name, config)} (at most {largest:g})" for name, largest in missing.items())
            reporter.say(f"study.data_share {config.study.data_share:g} leaves no room for these references: {names}")
        if line := fallback_line():
            reporter.say(line)
        make_sample(context)
        with reporter.bar(f"study {name}", 1) as bar:
            trials = [entry.trial for entry in entries]
            records = run_trials(trials, context, progress=lambda done, total: bar(done, total))
        with study_errors(name):
            rows = [row for entry, record in zip(entries, records, strict=True) for row in self.lines(entry, record)]
        return Measured(rows, lambda stamp: self._draw(name, entries, records, rows, config, stamp))

    def _draw(
        self,
        name: str,
        entries: Sequence[Entry],
        records: Sequence[Mapping[str, Any]],
        rows: Sequence[Row],
        config: Config,
        stamp: Stamp,
    ) -> Figure:
        with study_errors(name):
            if self.figure is not None:
                return self.figure(entries, records, config, stamp)
            if self.panels is not None:
                return study_panels(self.panels(rows, config), stamp)
        raise ConfigError(f"study '{name}': has neither panels nor a figure")


def repetitions(config: Config) -> Iterator[Config]:
    """Return the configuration once per seed; data, signal, models and noise are all redrawn."""
    for i in range(config.study.seeds):
        signal = config.signal.model_copy(update={"seed": config.signal.seed + i})
        yield config.model_copy(update={"seed": config.seed + i, "signal": signal})


def injected(config: Config, count: int) -> Config:
    """Return the configuration with so many signal events, counted before the selection."""
    return config.model_copy(update={"signal": config.signal.model_copy(update={"inject": count})})


def on_features(config: Config, classifier: str = "trees") -> Config:
    """Return the configuration of templates of features; a classifier that is not its own has its defaults."""
    own: tuple[str, ...] = ()
    if config.cwola.classifier != classifier:
        # an ensemble that another classifier can afford is none that this one is judged by
        own = (f"cwola.classifier={classifier}", "cwola.options={}", f"cwola.ensemble={CwolaConfig().ensemble}")
    return changed(config, "constituents=null", *own)


def trial_of(kind: Kind, config: Config, subject: str, **flags: bool) -> Trial:
    """Make the trial of a template's method or of a reference."""
    if subject not in REFERENCES:
        return Trial(kind, of_template(config, subject), subject, **flags)
    if subject == "supervised":
        # what it learns from does not depend on what was injected
        config = injected(config, 0)
    return Trial(kind, config, subject, **flags)


def subjects(config: Config, *references: str) -> list[str]:
    """Return the templates of the study and those references that its sample allows."""
    missing = left_out(config)
    return [*config.study.templates, *(name for name in references if name not in missing)]


# over-idealised means twice the data at least; idealised as many as the data, signal included
_LARGEST_SHARE = {"supervised": 0.999, "over_idealised": 0.334, "idealised": 0.45, "cwola_hunting": 1.0}


def left_out(config: Config) -> dict[str, float]:
    """Return the references that ``study.data_share`` leaves no background for, and the largest share for each."""
    share = config.study.data_share
    return {name: largest for name, largest in _LARGEST_SHARE.items() if share > largest}


def title_of(subject: str, config: Config) -> str:
    """Return what legends call a template's method or a reference."""
    return REFERENCES[subject] if subject in REFERENCES else origin_of(subject, config.folder).title


def searches(config: Config, counts: Sequence[int], *references: str) -> list[Entry]:
    """Search each repetition at each injection, with each template and those references that the sample allows."""
    return [
        Entry(
            trial_of("search", injected(repetition, count), subject),
            {"injected": count, "template": title_of(subject, config), "seed": repetition.seed},
        )
        for count in counts
        for repetition in repetitions(config)
        for subject in subjects(config, *references)
    ]


def _trainings(entry: Entry, record: Mapping[str, Any]) -> list[tuple[Row, Mapping[str, Any]]]:
    """Return labels and record of each training of the classifier; where there is one, its number is not a label."""
    more = record.get("trainings", [])
    if not more:
        return [(dict(entry.labels), record)]
    every = [record, *({**record, **training} for training in more)]
    return [({**entry.labels, "training": i}, training) for i, training in enumerate(every, start=1)]


def numbers(entry: Entry, record: Mapping[str, Any]) -> list[Row]:
    """Return one line per training of the classifier: the labels and all single numbers of the record."""
    return [
        {**labels, **{name: value for name, value in training.items() if not isinstance(value, (list, dict))}}
        for labels, training in _trainings(entry, record)
    ]


def curve_lines(entry: Entry, record: Mapping[str, Any]) -> list[Row]:
    """Return a line for each background rejection of a search's curve, as far as ten judged background events pass.

    The cut is the loosest with at least that rejection; SIC is quoted at the rejection itself, so never too large.
    """
    out: list[Row] = []
    for labels, training in _trainings(entry, record):
        shared = {name: training[name] for name in ("n_signal_in_window", "n_background_in_window", "auc")}
        for rejection, efficiency in zip(REJECTIONS.tolist(), training["curve"], strict=True):
            if rejection * LEAST_BACKGROUND > training["n_judged_background"]:
                break
            sic = None if efficiency is None else efficiency * float(np.sqrt(rejection))
            point: Row = {"background_rejection": rejection, "signal_efficiency": efficiency, "sic": sic}
            out.append({**labels, **shared, **point})
    return out


def _number(value: Value) -> float:
    return float("nan") if value is None or isinstance(value, str) else float(value)


def _spread(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float, float]:
    """Return the median with the central 68%, or with the range of few seeds."""
    if len(values) < FEW_SEEDS:
        return float(np.median(values)), float(values.min()), float(values.max())
    return spread(values)


def bands(rows: Sequence[Row], x: str, y: str, by: str = "template", marked: bool = True) -> list[Band]:
    """Return a line with its band for each value of a column: its median and spread over seeds and trainings.

    Parameters
    ----------
    rows : sequence of Row
    x, y, by : str
        Columns.
    marked : bool
        Whether points have markers.

    Returns
    -------
    list of Band
        A point where half of the seeds or fewer have a number is left out.
    """
    missing = [column for column in (x, y, by) if rows and not any(column in row for row in rows)]
    if missing:
        columns = ", ".join(dict.fromkeys(column for row in rows for column in row))
        raise KeyError(f"no column '{missing[0]}' in the table; it has {columns}")
    out = []
    for name in dict.fromkeys(row[by] for row in rows):
        mine = [row for row in rows if row[by] == name]
        places = sorted({_number(row[x]) for row in mine})
        triples = []
        for place in places:
            values = np.array([_number(row[y]) for row in mine if _number(row[x]) == place])
            finite = values[np.isfinite(values)]
            triples.append(_spread(finite) if 2 * len(finite) > len(values) else (np.nan,) * 3)
        median, low, high = np.array(triples, dtype=np.float64).reshape(-1, 3).T
        seeds = len({(row.get("seed"), row.get("training")) for row in mine})
        repeated = "trainings" if any("training" in row for row in mine) else "seeds"
        out.append(Band(str(name), np.array(places), median, low, high, marked, seeds, repeated))
    return out


def select(rows: Sequence[Row], **labels: Value) -> list[Row]:
    """Return the lines that have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in labels.items())]


def sic_panels(
    rows: Sequence[Row],
    x: str,
    x_label: str,
    *,
    by: str = "template",
    title: str = "",
    columns: Sequence[str] = tuple(_SIC_COLUMNS),
    log_x: bool = True,
    level: bool = True,
) -> list[Panel]:
    """Draw SIC at two rejections and its maximum.

    Parameters
    ----------
    rows : sequence of Row
        Of :func:`numbers`.
    x, x_label : str
        A column, and what it is called.
    by : str
        The column that tells lines apart.
    title : str
        Stands before each panel's own.
    columns : sequence of str
        Which of the three.
    log_x : bool
    level : bool
        Whether a line stands at 1.

    Returns
    -------
    list of Panel
    """
    return [
        Panel(
            x_label,
            _SIC,
            bands(rows, x, column, by),
            ", ".join(part for part in (title, _SIC_COLUMNS[column]) if part),
            log_x=log_x,
            level=1.0 if level else None,
            meaning="No improvement" if level else "",
            from_zero=True,
        )
        for column in columns
    ]


def sic_curve_panels(rows: Sequence[Row], config: Config, *, by: str = "template", title: str = "") -> list[Panel]:
    """Draw SIC against rejection, a panel an injection of ``study.examples``; rows are of :func:`curve_lines`."""
    return [
        Panel(
            r"Background rejection $1/\epsilon_B$",
            _SIC,
            bands(select(rows, injected=count), "background_rejection", "sic", by, marked=False),
            ", ".join(part for part in (title, f"{count} injected") if part),
            log_x=True,
            random=True,
            from_zero=True,
        )
        for count in config.study.examples
    ]


def efficiency_panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw signal efficiency against rejection, a panel an injection of ``study.examples``; rows as for SIC."""
    return [
        Panel(
            r"Background rejection $1/\epsilon_B$",
            r"Signal efficiency $\epsilon_S$",
            bands(select(rows, injected=count), "background_rejection", "signal_efficiency", marked=False),
            f"{count} injected",
            log_x=True,
        )
        for count in config.study.examples
    ]


def auc_panel(
    rows: Sequence[Row],
    x: str,
    x_label: str,
    title: str,
    *,
    column: str = "auc",
    by: str = "template",
    log_x: bool = True,
) -> Panel:
    """Draw how far templates are from true background; rows are of trials of the kind ``quality``."""
    return Panel(
        x_label,
        "AUC, template against true background",
        bands(rows, x, column, by),
        title,
        log_x=log_x,
        level=0.5,
        meaning="Perfect template",
    )
