"""The results of a search as typed objects, read from ``results.json``: :func:`read_results`.

Masses are in GeV. A number that does not exist is None. The fields are those of docs/results.schema.json.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from drapes_hep.bumphunt.background import Alternative, FTest, LowerEdge
from drapes_hep.errors import RunDirectoryError
from drapes_hep.files import read_json
from drapes_hep.hists import read_hists
from drapes_hep.html import html_table, number
from drapes_hep.results import SCHEMA_VERSION

if TYPE_CHECKING:
    import hist
    from matplotlib.figure import Figure

__all__ = [
    "Accounting",
    "Background",
    "Calibrated",
    "CalibratedGlobal",
    "CrossCheck",
    "Estimate",
    "GlobalSignificance",
    "MassFit",
    "Metrics",
    "PseudoWindowEstimate",
    "ResonanceFit",
    "Resonances",
    "Results",
    "ScanSignificance",
    "SeedSpread",
    "Sensitivity",
    "SicPoint",
    "SpuriousSignal",
    "TemplateQuality",
    "WindowResult",
    "WorkingPoint",
    "read_results",
]


@dataclass(frozen=True, kw_only=True)
class ReadOnDemand:
    """What is read from a run directory when it is asked for.

    Attributes
    ----------
    directory : object
        Keeps a temporary run directory as long as this object; None where the directory is the user's.
    """

    directory: object = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error.

    Attributes
    ----------
    value, error : float
    """

    value: float
    error: float


@dataclass(frozen=True)
class PseudoWindowEstimate(Estimate):
    """A number that was measured in a pseudo-window.

    Attributes
    ----------
    window : tuple of float
        Its edges, GeV.
    """

    window: tuple[float, float]


@dataclass(frozen=True)
class SicPoint(Estimate):
    """A significance improvement.

    Attributes
    ----------
    signal_efficiency, background_efficiency : float
        Of the cut.
    """

    signal_efficiency: float
    background_efficiency: float


@dataclass(frozen=True)
class Accounting:
    """Accounting of the events.

    Attributes
    ----------
    requested, processed : int or None
        Events in the files, and those that the selection was given; None if blind.
    lost : int
        The difference: 0.
    """

    requested: int | None
    processed: int | None
    lost: int


@dataclass(frozen=True)
class MassFit:
    """The fit of the inclusive spectrum outside a window.

    Attributes
    ----------
    chi2 : float or None
        Likelihood ratio 2NLLR.
    ndof : int
        Degrees of freedom.
    p_value : float or None
        Of the 2NLLR.
    good : bool
        Whether ``p_value`` is at least 0.001.
    parameters : mapping of str to float
        Of the shape.
    """

    chi2: float | None
    ndof: int
    p_value: float | None
    good: bool
    parameters: Mapping[str, float]


@dataclass(frozen=True)
class TemplateQuality:
    """The background template of a window.

    Attributes
    ----------
    name : str
        ``template.method``.
    n : int or None
        Its events; None if blind.
    strength : float or None
        Noise that it started at; None from full noise.
    steps_left : int or None
        Steps of the sampler that were left there.
    lost : mapping of str to int, or None
        Events that were generated and left out, by reason.
    auc_vs_truth : Estimate or None
        AUC against true background in the window, with cross-fitting the mean over the models; None without labels or
        if blind.
    auc_vs_truth_spread : float or None
        With cross-fitting, spread of these AUCs over the models (delete-a-group jackknife).
    auc_vs_truth_mixture : Estimate or None
        With cross-fitting, the AUC with the events of all models mixed.
    auc_vs_sideband_closure : Estimate or None
        AUC against held-out sideband events.
    auc_vs_pseudo_window : PseudoWindowEstimate or None
        AUC against data in a pseudo-window.
    models_spread : mapping of str to float, or None
        With cross-fitting, spread over the models of the mean of each feature, in its standard deviations.
    """

    name: str
    n: int | None
    strength: float | None
    steps_left: int | None
    lost: Mapping[str, int] | None
    auc_vs_truth: Estimate | None
    auc_vs_truth_spread: float | None
    auc_vs_truth_mixture: Estimate | None
    auc_vs_sideband_closure: Estimate | None
    auc_vs_pseudo_window: PseudoWindowEstimate | None
    models_spread: Mapping[str, float] | None


@dataclass(frozen=True)
class Sensitivity:
    """What a cut in a window can discover.

    Attributes
    ----------
    expected_error : Estimate or None
        Error that the expectation will have once unblinded; None where ``reason`` says why.
    signal_z3, signal_z5 : Estimate or None
        Signal events in the window that pass, with which half of all experiments have a local z of 3 and 5.
    break_even_efficiency : float or None
        Fraction of a signal that has to pass for the cut to be better than none; None without a cut.
    reason : str or None
    """

    expected_error: Estimate | None
    signal_z3: Estimate | None
    signal_z5: Estimate | None
    break_even_efficiency: float | None
    reason: str | None


@dataclass(frozen=True)
class Calibrated:
    """The significance of a cut with the pulls of null searches.

    Attributes
    ----------
    kappa : Estimate
        Width of the pulls.
    mean_pull : float
    expected_error : float
        Error of the expectation for which the root mean square of the pulls is 1.
    p_local, z_local : float or None
    """

    kappa: Estimate
    mean_pull: float
    expected_error: float
    p_local: float
    z_local: float | None


@dataclass(frozen=True)
class CrossCheck:
    """What the template, or sideband events next to the window, expect at a cut; no part of the result.

    Attributes
    ----------
    observed : int
        Events that pass the cut, or have a conformal p-value at most that of it.
    expected, expected_error : float
        The error is that of these events alone.
    p_local, z_local : float or None
    """

    observed: int
    expected: float
    expected_error: float
    p_local: float
    z_local: float | None


@dataclass(frozen=True)
class SeedSpread:
    """A cut in searches of the same events with other seeds.

    Attributes
    ----------
    searches : int
        That expect a count there.
    empty : int
        Of them, those that observe nothing.
    z_mean, z_spread : float or None
        Mean and standard deviation; None with fewer than two, or if one observes nothing.
    excess_spread : float or None
        Standard deviation of observed minus expected, events.
    """

    searches: int
    empty: int
    z_mean: float | None
    z_spread: float | None
    excess_spread: float | None


@dataclass(frozen=True)
class CalibratedGlobal:
    """The significance of the whole search with the pulls of null searches.

    Attributes
    ----------
    p_global, z_global : float or None
        None where ``reason`` says why.
    nulls : int
        Null searches.
    trials : float
        Effective number of independent windows and cuts.
    reason : str or None
    difference : str or None
        In what the null searches differ from this search.
    """

    p_global: float | None
    z_global: float | None
    nulls: int
    trials: float
    reason: str | None
    difference: str | None


@dataclass(frozen=True)
class WorkingPoint:
    """A cut on the classifier's score, and what it finds in a window.

    Attributes
    ----------
    background_efficiency : float
        Fraction of the template that passes; 1 means no cut.
    observed : int or None
        Events in the window that pass; None if blind.
    expected, expected_error : float or None
        Background expected among them and its standard error; None where nothing is quoted.
    p_local : float or None
        Probability of at least as many events under background only.
    z_local : float or None
        The same in one-sided standard deviations.
    degree : int or None
        Degree of the polynomial in the efficiency; None for the inclusive point.
    fitted_events : int
        Events outside the window that the fit uses.
    sensitivity : Sensitivity or None
        None in results of an earlier release.
    calibrated : Calibrated or None
        With the pulls of null searches; None without ``hunt.calibration``.
    direct, conformal : CrossCheck or None
        What the template's events, and sideband events next to the window, say of the count; None without.
    seeds : SeedSpread or None
        Of other seeds; None without ``hunt.seeds``.
    """

    background_efficiency: float
    observed: int | None
    expected: float | None
    expected_error: float | None
    p_local: float | None
    z_local: float | None
    degree: int | None
    fitted_events: int
    sensitivity: Sensitivity | None = None
    calibrated: Calibrated | None = None
    direct: CrossCheck | None = None
    conformal: CrossCheck | None = None
    seeds: SeedSpread | None = None


@dataclass(frozen=True)
class SpuriousSignal:
    """Difference between the mass shape and its alternatives in a window.

    Attributes
    ----------
    events : float or None
        The largest, with its sign; None if not assessed.
    fraction : float or None
        Its magnitude over the standard deviation of the count.
    verdict : str
        ``small``, ``warned``, ``flagged`` or ``not assessed``.
    shape : str or None
        The alternative of the largest.
    alternatives : tuple of Alternative
    """

    events: float | None
    fraction: float | None
    verdict: str
    shape: str | None
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class Background:
    """Tests of the mass shape.

    Attributes
    ----------
    shape : str
        ``mass.fit``.
    f_tests : tuple of FTest
    chosen : str or None
        The shape at which the F-tests ended.
    lower_edges : tuple of LowerEdge
    describes_from : float or None
        The lowest edge from which the shape describes the data, GeV.
    """

    shape: str
    f_tests: tuple[FTest, ...]
    chosen: str | None
    lower_edges: tuple[LowerEdge, ...]
    describes_from: float | None


@dataclass(frozen=True)
class Metrics:
    """How well the scores separate true signal from true background.

    Attributes
    ----------
    auc : Estimate or None
    sic_100, sic_1000, sic_max : SicPoint or None
        Significance improvement at rejection 100, 1000, and the largest.
    """

    auc: Estimate | None
    sic_100: SicPoint | None
    sic_1000: SicPoint | None
    sic_max: SicPoint | None


@dataclass(frozen=True)
class WindowResult:
    """What was found in a window.

    Attributes
    ----------
    sr : tuple of float
        Its edges, GeV.
    n_observed : int or None
        Selected events in it; None if blind.
    n_signal_truth : int or None
        True signal among them; None without labels or if blind.
    fit : MassFit
    template : TemplateQuality
    working_points : tuple of WorkingPoint
        From loose to tight; the first is inclusive.
    metrics : Metrics or None
        None without labels or if blind.
    spurious_signal : SpuriousSignal or None
        None if ``hunt.spurious_signal`` is false.
    spurious_signal_unblinded : float or None
        Root mean square that its events will have once unblinded; None if not blind, or not assessed.
    """

    sr: tuple[float, float]
    n_observed: int | None
    n_signal_truth: int | None
    fit: MassFit
    template: TemplateQuality
    working_points: tuple[WorkingPoint, ...]
    metrics: Metrics | None
    spurious_signal: SpuriousSignal | None = None
    spurious_signal_unblinded: float | None = None

    @property
    def name(self) -> str:
        """The window as folders are named, ``3300-3700``."""
        return f"{self.sr[0]:g}-{self.sr[1]:g}"


@dataclass(frozen=True)
class GlobalSignificance:
    """The significance of the search as a whole.

    Attributes
    ----------
    p_global, z_global : float or None
        Measured with pseudo-experiments; None where ``reason`` says why.
    p_global_interval : tuple of float, or None
        95% interval of the fraction of pseudo-experiments.
    bound : bool or None
        Whether no pseudo-experiment is as extreme: ``p_global`` is then an upper bound.
    exceeding : int or None
        Pseudo-experiments at least as extreme as the data.
    p_global_extrapolated, z_global_extrapolated : float or None
        From the distribution of the pseudo-experiments' smallest p-values.
    p_global_extrapolated_interval : tuple of float, or None
        68% interval.
    effective_trials : float or None
        Number of independent searches whose smallest p-value has the same distribution.
    effective_trials_interval : tuple of float, or None
        68% interval.
    best_window : tuple of float, or None
        The window of the smallest local p-value, GeV.
    best_background_efficiency : float or None
        Its cut.
    toys : int
        Pseudo-experiments.
    reason : str or None
        Why there is no global p-value.
    calibrated : CalibratedGlobal or None
        With the pulls of null searches; None without ``hunt.calibration``.
    """

    p_global: float | None
    z_global: float | None
    p_global_interval: tuple[float, float] | None
    bound: bool | None
    exceeding: int | None
    p_global_extrapolated: float | None
    z_global_extrapolated: float | None
    p_global_extrapolated_interval: tuple[float, float] | None
    effective_trials: float | None
    effective_trials_interval: tuple[float, float] | None
    best_window: tuple[float, float] | None
    best_background_efficiency: float | None
    toys: int
    reason: str | None
    calibrated: CalibratedGlobal | None = None


@dataclass(frozen=True)
class ResonanceFit:
    """The fit of a resonance of one mass, at one cut.

    Attributes
    ----------
    mass, resolution : float
        GeV.
    window : tuple of float, or None
        Whose classifier the cut is of; None without a cut.
    background_efficiency : float
        The cut; 1 means no cut.
    signal, signal_error : float or None
        Signal events that pass and the standard error; None where ``reason`` says why.
    signal_failing : float or None
        Signal events that fail; None without a cut.
    z, p_local : float or None
        Local significance, with its sign, and its p-value.
    method : str or None
        "asymptotic" or "pseudo-experiments": how z was obtained.
    z_asymptotic : float or None
        Signed square root of the likelihood ratio.
    toys, exceeding : int or None
        Pseudo-experiments behind z, and those at least as extreme as the data.
    background : float or None
        Fitted background that passes within two resolutions of the mass.
    degree : int or None
        Degree of the polynomial in the efficiency.
    p_signal, p_background : float or None
        Goodness of the fits with and without the signal.
    reason : str or None
        Why there is no result.
    """

    mass: float
    resolution: float
    window: tuple[float, float] | None
    background_efficiency: float
    signal: float | None
    signal_error: float | None
    signal_failing: float | None
    z: float | None
    background: float | None
    degree: int | None
    p_signal: float | None
    p_background: float | None
    reason: str | None
    p_local: float | None = None
    method: str | None = None
    z_asymptotic: float | None = None
    toys: int | None = None
    exceeding: int | None = None


@dataclass(frozen=True)
class ConditionalResonances:
    """Fits with the resonance of largest z included.

    Attributes
    ----------
    included : ResonanceFit
        That resonance.
    points : tuple of ResonanceFit
        As in :class:`Resonances`.
    """

    included: ResonanceFit
    points: tuple[ResonanceFit, ...]


@dataclass(frozen=True)
class ScanSignificance:
    """Significance of the largest z of all masses, windows and cuts.

    Attributes
    ----------
    p_global, z_global : float or None
        Of pseudo-experiments; z_global is None if p_global is 1.
    p_global_interval : tuple of float
        95% interval.
    bound : bool
        Whether no pseudo-experiment is as extreme.
    exceeding, toys : int
        Pseudo-experiments that are as extreme, and all.
    p_global_extrapolated, z_global_extrapolated, effective_trials : float or None
        From the distribution of their largest z; None with fewer than 30.
    best_mass : float
        GeV.
    best_window : tuple of float or None
        None without a cut.
    best_background_efficiency : float
    """

    p_global: float
    z_global: float | None
    p_global_interval: tuple[float, float]
    bound: bool
    exceeding: int
    toys: int
    p_global_extrapolated: float | None
    z_global_extrapolated: float | None
    effective_trials: float | None
    best_mass: float
    best_window: tuple[float, float] | None
    best_background_efficiency: float


@dataclass(frozen=True)
class Resonances:
    """Fits of a resonance over the whole fitted range.

    Attributes
    ----------
    shape : str or None
        Of the signal; None if nothing was fitted.
    unsearched : tuple of tuple of float
        Parts of the fitted range that are in no window, GeV.
    points : tuple of ResonanceFit
        Without a cut first, then window by window and cut by cut, each by rising mass.
    reason : str or None
        Why there are no fits.
    conditional : ConditionalResonances or None
        With the resonance of largest z included, where that is above 5.
    global_significance : ScanSignificance or None
        Of the largest z; None where ``global_reason`` says why, or in results of an earlier release.
    global_reason : str or None
    """

    shape: str | None
    unsearched: tuple[tuple[float, float], ...]
    points: tuple[ResonanceFit, ...]
    reason: str | None
    conditional: ConditionalResonances | None = None
    global_significance: Annotated[ScanSignificance | None, pydantic.Field(alias="global")] = None
    global_reason: str | None = None


NO_RESONANCES = Resonances(None, (), (), "these results are of a release without resonance fits")


@dataclass(frozen=True)
class _Record:
    """``results.json``, field by field."""

    schema_version: int
    blind: bool
    accounting: Accounting
    windows: tuple[WindowResult, ...]
    whole: Annotated[GlobalSignificance, pydantic.Field(alias="global")]
    background: Background | None = None
    resonance: Resonances = NO_RESONANCES


@dataclass(frozen=True)
class Results(ReadOnDemand):
    """The results of a search.

    Attributes
    ----------
    path : Path
        ``results.json``.
    blind : bool
        Whether data inside the windows are hidden.
    accounting : Accounting
    windows : tuple of WindowResult
        From low to high mass.
    global_significance : GlobalSignificance
    background : Background or None
        None if ``hunt.spurious_signal`` is false.
    resonance : Resonances
        Fits of a resonance.
    """

    path: Path
    blind: bool
    accounting: Accounting
    windows: tuple[WindowResult, ...]
    global_significance: GlobalSignificance
    background: Background | None = None
    resonance: Resonances = NO_RESONANCES

    def window(self, name: str) -> WindowResult:
        """Return a window by its name, such as ``3300-3700``.

        Raises
        ------
        KeyError
            If there is no such window.
        """
        by_name = {window.name: window for window in self.windows}
        if name not in by_name:
            raise KeyError(f"no window {name}; the results have {', '.join(by_name)}")
        return by_name[name]

    def hists(self) -> dict[str, hist.Hist]:
        """Read the histograms that the hunt exported, by the keys that ``hists.root`` has too.

        Raises
        ------
        RunDirectoryError
            If ``hists.json`` is missing beside ``results.json``, or damaged.
        """
        return read_hists(self.path.with_name("hists.json"), "hunt")

    def figures(self) -> dict[str, Figure]:
        """Draw the figures of the report, by the names that their files have in ``report/figures``.

        Raises
        ------
        RunDirectoryError
            If ``results.json`` is not in a run directory, or a file there is damaged.
        """
        from drapes_hep.report import report_figures

        return report_figures(self.path.parent)

    def _repr_html_(self) -> str:
        header = ("window [GeV]", "background efficiency", "observed", "expected", "p local", "z local")
        rows = [
            (
                window.name,
                f"{point.background_efficiency:g}",
                number(point.observed),
                number(point.expected, point.expected_error),
                number(point.p_local),
                number(point.z_local),
            )
            for window in self.windows
            for point in window.working_points
        ]
        whole = self.global_significance
        sign = "&le;" if whole.bound else "="
        text = f"p global {sign} {number(whole.p_global)}"
        if whole.p_global is None:
            text = f"no global p-value: {whole.reason}"
        return html_table(header, rows, text.replace("&le;", "≤"))


def read_results(path: str | Path) -> Results:
    """Read the results of a finished search.

    Parameters
    ----------
    path : str or Path
        A run directory, or its ``results.json``.

    Returns
    -------
    Results

    Raises
    ------
    RunDirectoryError
        If there are no results, the file is damaged, or another release wrote it.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "results.json"
    if not file.is_file():
        raise RunDirectoryError(f"{path}: holds no results; run the hunt first, or name a run directory")
    record = read_json(file)
    if not isinstance(record, dict) or not {"schema_version", "windows", "global"} <= record.keys():
        raise RunDirectoryError(f"{file}: is not a results file; name a run directory or its results.json")
    if record["schema_version"] != SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{file}: is of schema version {record['schema_version']}, this release reads {SCHEMA_VERSION}; run the"
            " hunt again"
        )
    try:
        # JSON's numbers and lists as they are: no text becomes a number
        read = _adapter().validate_json(json.dumps(record), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RunDirectoryError(f"{file}: {place}: {first['msg'].lower()}; run the hunt again") from error
    return Results(file, read.blind, read.accounting, read.windows, read.whole, read.background, read.resonance)


@functools.cache
def _adapter() -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(_Record)
