"""The configuration of a search: the YAML file, checked, frozen and with every default filled in.

Masses and momenta are in GeV. An unknown key, a wrong type or an inverted window is one line that names the place.
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticUndefined

from drapes_hep.caller import either
from drapes_hep.config_values import plain_value
from drapes_hep.entry_points import entry_points_by_name, unknown_name
from drapes_hep.errors import ConfigError, counted
from drapes_hep.fixed import JET_HEADS, MOST_CALIBRATION
from drapes_hep.keys import Decides, decided, section_of
from drapes_hep.yaml_text import YamlError, decode, parse

__all__ = [
    "Config",
    "ConstituentsConfig",
    "CwolaConfig",
    "DataConfig",
    "FeatureConfig",
    "HuntConfig",
    "MassConfig",
    "PlotConfig",
    "SelectionConfig",
    "SignalConfig",
    "SignalShapeConfig",
    "StudyConfig",
    "TemplateConfig",
    "TrainingConfig",
    "WindowsConfig",
    "assign",
    "assigned_config",
    "changed_config",
    "check_config",
    "keys_of",
    "load_config",
    "make_config",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

Solver = Literal["angle", "euler", "heun", "midpoint", "dpm2m"]
ON_CONSTITUENTS = ("constituents", "full_phase_space")
"""Classifiers of the package that read constituents."""
NETWORKS = ("transformer", "epic", "deepsets")
"""Networks of the package for constituents."""

DRAPES = ("from_noise", "from_low_noise", "from_window", "from_sidebands", "from_simulation")
"""Template methods of Drapes."""
METHODS = (*DRAPES, "file")
"""Template methods of the package."""


SHAPES = ("dijet3", "dijet4", "dijet5", "ua2")
"""Mass shapes of the package."""

CLASSIFIERS = ("trees", "sklearn_trees", "mlp", *ON_CONSTITUENTS)
"""Classifiers of the package."""


def _named(kind: str, own: Sequence[str], noun: str | None = None) -> AfterValidator:
    """Check a name: one of the package's own, an installed package's, or the user's class."""
    noun = noun or kind

    def check(value: str) -> str:
        if value in own or ":" in value:
            return value
        names = [*own, *entry_points_by_name(kind)]
        if value in names:
            return value
        raise ValueError(unknown_name(noun, value, names))

    return AfterValidator(check)


Method = Annotated[str, _named("method", METHODS, "template method")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _folder: Path | None = PrivateAttr(None)

    @property
    def folder(self) -> Path | None:
        """The folder of the file of the configuration; not a key of the configuration."""
        return self._folder

    @field_validator("*", mode="before", check_fields=False)
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Turn a value of YAML into one of the field's types; pydantic alone takes true for 1 and text for numbers."""
        field = cls.model_fields[info.field_name or ""]
        if value is None and field.is_required():
            raise ValueError("has no value and no default: set one")
        if field.annotation == dict[str, FeatureConfig]:
            return _definitions(value)
        if section_of(field) is None:
            return plain_value(field.annotation, value)
        if value is None and field.default is not None:
            # a section whose lines are all comments
            return {}
        if value is None or isinstance(value, (Mapping, BaseModel)):
            return value
        example = next((f"{key}: {example_value}" for key, example_value in _examples(section_of(field))), "")
        raise ValueError(f"is a section: write its keys below it, indented, such as '{example}'")


def _names_files(value: Any) -> Any:
    """Check that every place of files holds a name."""
    if not _all_named(value):
        raise ValueError("is empty: set a file, a pattern, a URL, or a list of these")
    return value


def _all_named(value: Any) -> bool:
    if isinstance(value, (tuple, Mapping)):
        return bool(value) and all(map(_all_named, value))
    return value is None or bool(value.strip())


def _definitions(value: Any) -> Any:
    """Write definitions out that are an expression alone."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("is a section: write its keys below it, indented, such as 'pt_ratio: pt_j2 / pt_j1'")
    for name, definition in value.items():
        if not isinstance(definition, (str, Mapping, BaseModel)):
            raise ValueError(f"{name} must be an expression or a section with one")
    return {
        str(name): {"expression": definition} if isinstance(definition, str) else definition
        for name, definition in value.items()
    }


class DataConfig(_Section):
    """Input events."""

    path: Annotated[str | tuple[str | tuple[str, ...], ...] | dict[str, str], Decides()] = Field(
        description="File, glob, URL, a list of these, or {file: tree} if several trees of a file fit (Events;1 is a"
        " cycle of Events); relative to the configuration file. An inner list holds alternative locations of one"
        " file, tried in this order: [[root://a/f.root, https://b/f.root], other.root]."
    )
    labels: Annotated[bool, Decides("skim", "quality", "study.labels")] = Field(
        False, description="Whether the events have truth labels (a column, or the sidecar `truth`)."
    )
    truth: Annotated[str | None, Decides()] = Field(None, description="Sidecar of truth labels, keyed by event id.")
    chunksize: Annotated[int, Decides()] = Field(
        50_000,
        ge=1,
        description="Events per chunk; at least 1000 are used, since smaller chunks take as long.",
    )
    empty: Annotated[Literal["skip", "error"], Decides()] = Field(
        "skip", description="Whether a file without events is skipped and listed, or is an error."
    )
    layout: Annotated[str | None, Decides()] = Field(
        None, description="Layout of the files, if several fit; null takes the first that fits."
    )
    radius: Annotated[Positive, Decides("skim", "simulation", "train", "generate")] = Field(
        1.0, description="Radius of anti-kT jets, if jets are clustered by drapes-hep."
    )
    axes: Annotated[Literal["onepass_kt", "kt"], Decides("skim", "simulation", "generate")] = Field(
        "onepass_kt",
        description="Axes of N-subjettiness, if computed by drapes-hep: kT axes with one minimisation pass, or"
        " without.",
    )

    _path_named = field_validator("path", "truth")(_names_files)


class SignalConfig(_Section):
    """Number of labelled signal events to keep; the rest are dropped."""

    inject: Annotated[int | None, Decides("skim", "study.draw")] = Field(
        None, ge=0, description="Signal events to keep before the selection; null keeps all."
    )
    seed: Annotated[int, Decides("skim", "study.draw")] = Field(1, ge=0, description="Which signal events are kept.")


class SelectionConfig(_Section):
    """The event selection, on the two leading jets."""

    leading_pt: Annotated[NonNegative, Decides("skim", "simulation")] = Field(
        1200.0, description="Minimum transverse momentum of the leading jet, GeV."
    )
    abs_eta_max: Annotated[Positive, Decides("skim", "simulation")] = Field(
        2.5, description="Maximum |eta| of both jets."
    )
    max_constituents: Annotated[int | None, Decides("skim", "simulation")] = Field(
        None,
        ge=1,
        description="Constituents per jet kept in the skim, leading in pT; null keeps all. Only for processors that"
        " read constituents.",
    )
    keep: Annotated[tuple[str, ...], Decides("skim", "simulation")] = Field(
        (),
        description="Additional jet fields of the input that the skim keeps, such as msoftdrop for FatJet_msoftdrop,"
        " written as msoftdrop_j1 (heavier jet) and msoftdrop_j2 (lighter jet).",
    )
    undefined: Annotated[Literal["drop"] | float, Decides("skim", "simulation")] = Field(
        "drop", description="For undefined derived features (tau21 where tau1 = 0): drop the event, or use this value."
    )


class FeatureConfig(_Section):
    """A feature defined in the configuration; a plain string is its expression."""

    expression: str | None = Field(
        None,
        description="Expression in NumExpr or TTreeFormula syntax. It may use columns of both jets (J1 the heavier):"
        " pt_j1, eta_j2, phi, mass, tau1, tau2, tau3, n with constituents, fields of selection.keep, features and other"
        " definitions. If null, the name is a column of selection.keep.",
    )
    function: str | None = Field(
        None,
        description="Function of both jets, instead of an expression: 'file.py:function' or 'package.module:function'.",
    )
    label: str | None = Field(
        None, description="Label on axes and in tables, LaTeX between dollars; default: the name."
    )
    unit: str = Field("", description="Unit of the values, such as GeV.")
    bounds: tuple[float | None, float | None] | None = Field(
        None,
        description="Physical bounds of the values, null for no bound. None is generated outside; one in the data is"
        " an error.",
    )
    range: tuple[float, float] | None = Field(
        None, description="Range of histograms; default: the bounds, else 0 to 1000 for GeV and 0 to 1 otherwise."
    )
    bins: int = Field(60, ge=1, le=10_000, description="Number of bins of histograms.")

    @model_validator(mode="after")
    def _ordered(self) -> FeatureConfig:
        for name in ("bounds", "range"):
            pair = getattr(self, name)
            if pair is not None and None not in pair and not pair[0] < pair[1]:
                raise ValueError(f"{name} must be increasing, got {pair[0]:g} to {pair[1]:g}")
        if self.expression is not None and self.function is not None:
            raise ValueError("has both an expression and a function; keep one")
        return self


class MassConfig(_Section):
    """The m_JJ spectrum and its shape."""

    range: Annotated[
        tuple[Positive, Positive], Decides("skim", "simulation", "train", "generate", "classify", "hunt", "study.draw")
    ] = Field(
        (2700.0, 6000.0), description="Range of m_JJ of the selected events, which templates are trained on, GeV."
    )
    fit_range: Annotated[tuple[Positive, Positive] | None, Decides("generate", "hunt", "study.sculpting")] = Field(
        None,
        description="Fitted range of m_JJ, GeV, inside `range`: where the spectrum falls smoothly; all by default.",
    )
    sqrt_s: Annotated[Positive, Decides("generate", "hunt")] = Field(
        13_000.0, description="Centre-of-mass energy, GeV."
    )
    fit: Annotated[str, _named("shape", SHAPES, "mass shape"), Decides("generate", "hunt")] = Field(
        "dijet4",
        description="Shape of the spectrum: 'dijet3', 'dijet4', 'dijet5', 'ua2', 'file.py:Class',"
        " 'package.module:Class', or a name registered by an installed package.",
    )
    bin_width: Annotated[Positive, Decides("generate", "hunt")] = Field(
        20.0, description="Maximum bin width of the fit, GeV."
    )
    draw: Annotated[Literal["fit", "kde"], Decides("generate")] = Field(
        "fit",
        description="Distribution that m_JJ of the template is drawn from: the fit, or a Gaussian kernel density of"
        " the data in the window, which includes the peak of a signal.",
    )
    kde_bandwidth: Annotated[Positive, Decides("generate")] = Field(
        1.0, description="Standard deviation of the kernels, GeV."
    )

    @model_validator(mode="after")
    def _ordered(self) -> MassConfig:
        low, high = self.range
        if not low < high < self.sqrt_s:
            raise ValueError(
                f"range must be increasing and end below sqrt_s, got {low:g} to {high:g} with {self.sqrt_s:g}"
            )
        first, last = self.fitted
        if not low <= first < last <= high:
            raise ValueError(f"fit_range must be increasing and inside range, got {first:g} to {last:g}")
        return self

    @property
    def fitted(self) -> tuple[float, float]:
        """The range that is fitted and searched, GeV."""
        return self.range if self.fit_range is None else self.fit_range

    @property
    def fitted_key(self) -> str:
        """The key that says so, for messages."""
        return "mass.range" if self.fit_range is None else "mass.fit_range"


class WindowsConfig(_Section):
    """The sliding scan of signal regions."""

    width: Annotated[Positive, Decides()] = Field(400.0, description="Width of a window (signal region), GeV.")
    step: Annotated[Positive, Decides()] = Field(200.0, description="Distance between neighbouring windows, GeV.")
    first: Annotated[Positive, Decides()] = Field(3100.0, description="Lower edge of the first window, GeV.")
    last: Annotated[Positive, Decides()] = Field(4700.0, description="Maximum lower edge of a window, GeV.")

    @model_validator(mode="after")
    def _ordered(self) -> WindowsConfig:
        if self.last < self.first:
            raise ValueError(f"the last window starts below the first: {self.last:g} < {self.first:g}")
        return self


class TemplateConfig(_Section):
    """The background template."""

    method: Annotated[Method, Decides("generate", "quality")] = Field(
        "from_noise",
        description="Starting point of template events: from_noise (Drapes 0), from_low_noise (noise of `strength`),"
        " or noise of that strength added to data of the window (from_window, Drapes SR), of the sidebands"
        " (from_sidebands, Drapes SB) or to another simulation (from_simulation, Drapes MC); 'file' reads an existing"
        " template from `path`; your own method is 'file.py:Class', 'package.module:Class', or a name registered by an"
        " installed package.",
    )
    options: Annotated[dict[str, int | float | bool | str], Decides("generate")] = Field(
        {}, description="Additional arguments of the method's class."
    )
    path: Annotated[str | None, Decides()] = Field(
        None,
        description="Template for method file: a Parquet or ROOT table with the features, mjj, weight and parent_id.",
    )
    strength: Annotated[Positive | None, Decides("generate")] = Field(
        None,
        description="Noise sigma' of a partial method (sigma / alpha for flow matching); for another solver than"
        " `angle`, the nearest noise level of the sampler is used.",
    )
    steps_left: Annotated[int | None, Decides("generate")] = Field(
        None, ge=1, description="Number of remaining sampler steps, instead of strength; not for the solver `angle`."
    )
    source: Annotated[str | tuple[str | tuple[str, ...], ...] | None, Decides()] = Field(
        None,
        description="Files of the other simulation, in the form of data.path; for methods that start from one.",
    )
    oversample: Annotated[Positive, Decides("generate")] = Field(
        5.0,
        description="Template events per event in the window that a classifier is trained on; with training.scheme:"
        " cross_fit so many of each model.",
    )
    steps: Annotated[int | None, Decides("generate")] = Field(
        None, ge=2, description="Number of sampler steps; null is 6 for the solver `angle`, 50 for the others."
    )
    solver: Annotated[Solver | None, Decides("generate")] = Field(
        None,
        description="Solver of the probability-flow equation: the midpoint method in the angle between data and noise;"
        " Euler (DDIM), Heun, midpoint, DPM-Solver++(2M) in its time. null is `heun` with `steps_left`, else `angle`.",
    )
    sigma_max: Annotated[Positive, Decides("generate")] = Field(80.0, description="Maximum noise of the EDM path.")
    sigma_min: Annotated[Positive, Decides("generate")] = Field(0.002, description="Minimum noise of the EDM path.")
    scaling: Annotated[Literal["quantile", "standard"], Decides("train")] = Field(
        "quantile", description="Scaling of the features: to normal quantiles, or to zero mean and unit variance."
    )

    _source_named = field_validator("source")(_names_files)

    @property
    def sampler(self) -> tuple[Solver, int]:
        """Solver and number of steps, whose defaults follow from each other."""
        solver = self.solver or ("angle" if self.steps_left is None else "heun")
        return solver, self.steps or (6 if solver == "angle" else 50)

    @model_validator(mode="after")
    def _ordered(self) -> TemplateConfig:
        if self.solver == "angle" and self.steps_left is not None:
            raise ValueError("steps_left counts the steps of another solver; the solver angle needs strength")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}")
        chosen = (self.strength is not None) + (self.steps_left is not None)
        if self.method in ("from_noise", "file") and chosen:
            start = "starts at sigma_max" if self.method == "from_noise" else "has no noise"
            raise ValueError(f"{self.method} {start}: strength and steps_left are for other methods")
        if self.method in DRAPES[1:] and chosen != 1:
            raise ValueError(f"{self.method} needs either strength or steps_left")
        if self.method == "file" and self.path is None:
            raise ValueError("method file needs template.path, a Parquet or ROOT table")
        if self.method != "file" and self.path is not None:
            raise ValueError(f"path is only for method file; the method is {self.method}")
        if self.strength is not None and not self.sigma_min <= self.strength <= self.sigma_max:
            raise ValueError(f"strength {self.strength:g} is not within {self.sigma_min:g} to {self.sigma_max:g}")
        steps = self.sampler[1]
        if self.steps_left is not None and self.steps_left > steps:
            raise ValueError(f"steps_left {self.steps_left} exceeds the {counted(steps, 'step')}")
        # the class of a user's method declares whether it starts from a simulation
        if self.method in METHODS and (self.source is not None) != (self.method == "from_simulation"):
            raise ValueError("source is required by method from_simulation, and is only for it")
        return self


class TrainingConfig(_Section):
    """The training of the diffusion model."""

    path: Annotated[Literal["edm", "flow"], Decides("train")] = Field(
        "edm", description="Path between data and noise: EDM, or the straight path of flow matching."
    )
    epochs: Annotated[int, Decides("train")] = Field(
        100, ge=1, description="Passes over the training fraction of the sidebands."
    )
    batch: Annotated[int, Decides("train")] = Field(1024, ge=1, description="Events per step.")
    rate: Annotated[Positive, Decides("train")] = Field(6.0e-3, description="Maximum learning rate.")
    warmup: Annotated[float, Field(ge=0, lt=1), Decides("train")] = Field(
        0.02, description="Fraction of the steps used for linear warm-up."
    )
    ema: Annotated[float, Field(ge=0, lt=1), Decides("train")] = Field(
        0.999, description="Decay of the exponential moving average of the weights, per step."
    )
    patience: Annotated[int, Decides("train")] = Field(
        50, ge=1, description="Epochs without improvement after which training stops."
    )
    width: Annotated[int, Decides("train")] = Field(64, ge=1, description="Width of the residual network.")
    depth: Annotated[int, Decides("train")] = Field(4, ge=1, description="Hidden layers of the residual network.")
    scheme: Annotated[Literal["cross_fit", "hold_out"], Decides("train", "generate", "classify", "quality", "hunt")] = (
        Field(
            "cross_fit",
            description="cross_fit: a model per fold of cwola.folds, which does not see the sideband events of its"
            " fold; all sideband events are counted after a cut. hold_out: one model; a fraction of the sidebands"
            " (training.closure) is not shown to it, and only these events are counted. A study has one model.",
        )
    )
    validation: Annotated[Fraction, Decides("train")] = Field(
        0.1, description="Fraction of the sidebands held out for early stopping."
    )
    closure: Annotated[Fraction, Decides("train", "hunt")] = Field(
        0.4,
        description="With scheme: hold_out, fraction of the sidebands never shown to the model: used for the closure"
        " test, and to measure the efficiency of a cut outside the window.",
    )
    pseudo_window: Annotated[Literal["one", "all", "none"], Decides()] = Field(
        "one",
        description="Windows for which a second model, trained without a pseudo-window inside a sideband, tests the"
        " interpolation: the middle one, all, or none.",
    )

    @model_validator(mode="after")
    def _something_left(self) -> TrainingConfig:
        if self.validation + self.closure >= 0.9:
            raise ValueError("validation and closure leave less than a tenth of the sidebands for training")
        return self


class ConstituentsConfig(_Section):
    """Templates of jets as sets of constituents; without this section, templates consist of features.

    Two models are trained: the jets' kinematics given m_JJ (trained by `training`, sampled with `template.steps` and
    `template.solver`), and the constituents of one jet given that jet's kinematics (below). `template.sigma_max` and
    `sigma_min` apply to both; `template.strength`, or `steps_left` of `constituents.steps`, sets the noise of the
    constituents.
    """

    kinematics: Annotated[Literal["solved", "free"], Decides("train", "generate")] = Field(
        "solved",
        description="Coordinates of the jets: solved for m_JJ, which is then exact, or free, (pT, eta, phi, m, N) of"
        " both, where m_JJ is as accurate as the network.",
    )
    kinematics_network: Annotated[Literal["mlp", "deepsets"], Decides("train", "generate")] = Field(
        "mlp",
        description="Network of the jets' kinematics; deepsets treats the two jets as a set and needs kinematics:"
        " free.",
    )
    kinematics_strength: Annotated[Positive | None, Decides("generate")] = Field(
        None,
        description="Noise sigma' of the kinematics in partial templates; null keeps those of the parents, which"
        " is not possible for from_sidebands.",
    )
    network: Annotated[str, _named("network", NETWORKS), Decides("train", "generate")] = Field(
        "transformer",
        description="Network of the constituents: 'transformer' (PC-Droid), 'epic', 'deepsets' (with attention),"
        " 'file.py:Class', 'package.module:Class', or a name registered by an installed package.",
    )
    width: Annotated[int, Decides("train", "generate")] = Field(64, ge=1, description="Width of the network.")
    depth: Annotated[int, Decides("train", "generate")] = Field(3, ge=1, description="Number of layers.")
    heads: Annotated[int, Decides("train", "generate")] = Field(
        4, ge=1, description="Attention heads; width must be a multiple. Not used by EPiC."
    )
    tokens: Annotated[int, Decides("train", "generate")] = Field(
        0, ge=0, description="Class tokens of the faster transformer; with 0, all constituents attend to each other."
    )
    token_width: Annotated[int, Decides("train", "generate")] = Field(
        64, ge=1, description="Width of the class tokens; must be a multiple of heads."
    )
    global_width: Annotated[int, Decides("train", "generate")] = Field(
        16, ge=1, description="Length of the global vector of EPiC."
    )
    condition: Annotated[tuple[Literal["pt", "eta", "phi", "mass", "n", "mjj"], ...], Decides("train", "generate")] = (
        Field(
            ("pt", "eta", "phi", "mass", "n"),
            min_length=1,
            description="Variables of the jet that condition the constituents.",
        )
    )
    path: Annotated[Literal["edm", "flow"], Decides("train", "generate")] = Field(
        "edm", description="Path between data and noise, see training.path."
    )
    epochs: Annotated[int, Decides("train")] = Field(
        50, ge=1, description="Passes over the jets of the training fraction."
    )
    batch: Annotated[int, Decides("train")] = Field(
        128,
        ge=1,
        description="Jets per step. A step needs about 4 bytes x 19 x depth x width per constituent.",
    )
    rate: Annotated[Positive, Decides("train")] = Field(1.0e-3, description="Maximum learning rate.")
    warmup: Annotated[float, Field(ge=0, lt=1), Decides("train")] = Field(
        0.05, description="Fraction of the steps used for linear warm-up."
    )
    ema: Annotated[float, Field(ge=0, lt=1), Decides("train")] = Field(
        0.999, description="Decay of the exponential moving average of the weights, per step."
    )
    patience: Annotated[int, Decides("train")] = Field(
        50, ge=1, description="Epochs without improvement after which training stops."
    )
    steps: Annotated[int, Decides("generate")] = Field(30, ge=2, description="Number of sampler steps.")
    solver: Annotated[Solver, Decides("generate")] = Field("heun", description="Solver, see template.solver.")
    members: Annotated[int, Decides("generate")] = Field(
        8192, ge=1, description="Constituents generated at once per worker; limits the memory of the generation."
    )
    precision: Annotated[Literal["float32", "bf16"], Decides("train", "generate")] = Field(
        "float32", description="Precision of matrix products on a GPU."
    )
    margin: Annotated[float, Field(ge=0, lt=0.5), Decides("generate")] = Field(
        0.1,
        description="Margin around the window, relative to its edges, in which free kinematics are generated; events in"
        " the window are kept.",
    )
    conserve: Annotated[bool | None, Decides("train", "generate")] = Field(
        None,
        description="Whether to adjust the constituents to the four-momentum of their jet; null: if this holds within"
        " 1% for nine of ten training jets.",
    )

    @property
    def sizes(self) -> dict[str, int]:
        """What the network is built of."""
        names = ("width", "depth", "heads", "tokens", "token_width", "global_width")
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _fitting(self) -> ConstituentsConfig:
        if self.network in {"transformer", "deepsets"} and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of the {self.heads} heads")
        if self.tokens and self.network in {"epic", "deepsets"}:
            raise ValueError("tokens are only for the transformer")
        if self.tokens and self.network == "transformer" and self.token_width % self.heads:
            raise ValueError(f"token_width {self.token_width} is not a multiple of the {self.heads} heads")
        if self.kinematics_network == "deepsets" and self.kinematics != "free":
            raise ValueError("kinematics_network deepsets needs kinematics: free; set it, or use mlp")
        if len(set(self.condition)) != len(self.condition):
            raise ValueError("a variable of condition is listed twice")
        return self


class CwolaConfig(_Section):
    """The classifier between data and template."""

    classifier: Annotated[str, _named("classifier", CLASSIFIERS), Decides("classify")] = Field(
        "trees",
        description="'trees' (LightGBM's; scikit-learn's where that cannot be loaded), 'sklearn_trees', 'mlp', on"
        " constituents 'constituents' or 'full_phase_space', 'file.py:Class', 'package.module:Class', or a name"
        " registered by an installed package.",
    )
    options: Annotated[dict[str, int | float | bool | str], Decides("classify")] = Field(
        {},
        description="Additional arguments of the classifier's class; for the two on constituents, for example epochs,"
        " steps, width or most (number of leading constituents).",
    )
    features: Annotated[tuple[str, ...] | None, Decides()] = Field(
        None,
        min_length=1,
        description="Features of the classifier; null uses all except delta_r, which follows m_JJ: a cut on it sculpts"
        " the spectrum.",
    )
    ensemble: Annotated[int, Decides("classify")] = Field(
        10, ge=1, description="Classifiers per fold; their scores are averaged."
    )
    folds: Annotated[int, Decides("classify", "quality")] = Field(
        5, ge=2, description="Number of folds; an event is scored by models that were not trained on its fold."
    )
    calibration: Annotated[int, Decides()] = Field(
        100,
        ge=1,
        description="With training.scheme: cross_fit, template events above the tightest cut in each fold: so many,"
        " divided by the smallest of hunt.background_efficiencies, are generated to set the cuts.",
    )


class SignalShapeConfig(_Section):
    """Shape of the resonance that is fitted."""

    shape: Annotated[Literal["gaussian", "crystal_ball", "sample"], Decides("hunt")] = Field(
        "gaussian",
        description="A Gaussian, a double-sided Crystal Ball function (with `tails`), or the masses of a simulated"
        " sample (with `sample` and `mass`).",
    )
    width: Annotated[Positive | tuple[NonNegative, NonNegative], Decides("hunt")] = Field(
        0.033,
        description="Resolution sigma/m of gaussian and of the core of crystal_ball: a number, or [a, b] for a + b/m"
        " with b in GeV; from 0.001 to 0.5 over the fitted range.",
    )
    tails: Annotated[tuple[Positive, Positive, Positive, Positive] | None, Decides("hunt")] = Field(
        None, description="Tails of crystal_ball: alpha and n at low mass, alpha and n at high mass; n above 1."
    )
    sample: Annotated[str | dict[str, Positive] | None, Decides()] = Field(
        None,
        description="File of a simulated sample: the skim/events.parquet of a run on it. Its m_JJ are scaled to other"
        " masses. Several samples are a mapping of files to the masses of the resonance, {FILE: GeV, ...}: the shape is"
        " interpolated between them, and the nearest is scaled beyond.",
    )
    mass: Annotated[Positive | None, Decides("hunt")] = Field(
        None, description="Mass of the resonance in a single sample, GeV."
    )

    _sample_named = field_validator("sample")(_names_files)

    @model_validator(mode="after")
    def _complete(self) -> SignalShapeConfig:
        if (self.tails is not None) != (self.shape == "crystal_ball"):
            raise ValueError("tails is required by shape crystal_ball, and is only for it")
        if self.tails is not None and min(self.tails[1::2]) <= 1:
            raise ValueError("tails: n must be above 1, or the tail has no integral")
        if (self.sample is not None) != (self.shape == "sample"):
            raise ValueError("sample is required by shape sample, and is only for it")
        if isinstance(self.sample, dict):
            if self.mass is not None:
                raise ValueError("mass is for a single sample; of several, each has its own: sample {FILE: GeV, ...}")
            if len(set(self.sample.values())) < len(self.sample):
                raise ValueError("sample: two files have the same mass; merge them, or leave one out")
        elif (self.mass is not None) != (self.shape == "sample"):
            raise ValueError("mass, of the resonance in the sample, is required by shape sample, and is only for it")
        return self


class HuntConfig(_Section):
    """The bump hunt."""

    background_efficiencies: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...], Decides("hunt", "study.sculpting")
    ] = Field(
        (1.0, 0.1, 0.01, 0.001), min_length=1, description="Working points: cuts at these efficiencies on the template."
    )
    toys: Annotated[int, Decides("hunt")] = Field(
        10_000, ge=0, description="Number of pseudo-experiments for the global p-value; 0 to skip it."
    )
    resonance_toys: Annotated[int, Decides("hunt")] = Field(
        0,
        ge=0,
        description="Number of pseudo-experiments for the global p-value of the resonance fit, all masses and cuts;"
        " about a quarter of a second each; 0 to skip it.",
    )
    min_events: Annotated[int, Decides("hunt")] = Field(
        10, ge=1, description="Minimum number of selected events outside the window for a result to be quoted."
    )
    signal: SignalShapeConfig = SignalShapeConfig()
    calibration: Annotated[str | None, Decides("hunt")] = Field(
        None,
        description="calibration.json of the study calibration, relative to this file: p-values are quoted with the"
        " pulls of null searches, too.",
    )
    seeds: Annotated[str | None, Decides("hunt")] = Field(
        None,
        description="seeds.json of the study seeds, relative to this file: the spread of results over other seeds is"
        " quoted beside them.",
    )
    spurious_signal: Annotated[bool, Decides("hunt")] = Field(
        True,
        description="Whether the error of an expectation includes the difference between the mass shape and the"
        " alternatives that describe the spectrum too.",
    )

    @field_validator("background_efficiencies")
    @classmethod
    def _with_inclusive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        # the inclusive search is quoted with every cut, so it is always included
        return tuple(sorted({1.0, *value}, reverse=True))


class StudyConfig(_Section):
    """Settings of `drapes study`. Studies that compare templates need labelled events."""

    window: Annotated[tuple[Positive, Positive] | None, Decides()] = Field(
        None,
        description="Edges of the window to study, GeV; null takes the middle window of the scan. The study mass-fit"
        " takes all windows of the scan.",
    )
    seeds: Annotated[int, Decides()] = Field(
        3,
        ge=1,
        description="Repetitions, each with its own data, signal, models and noise; in the study seeds, searches of the"
        " same data.",
    )
    trainings: Annotated[int, Decides()] = Field(
        1,
        ge=1,
        description="Classifier trainings per repetition, on the same events, in studies that run a search; with six or"
        " more values, bands are the central 68%.",
    )
    data_share: Annotated[float, Field(gt=0, le=1), Decides("study.draw")] = Field(
        0.3333,
        description="Fraction of the background used as data; the rest is the true background of the references. The"
        " over-idealised reference is left out above 0.334, the idealised one above 0.45.",
    )
    templates: Annotated[tuple[Method, ...], Decides()] = Field(
        ("from_noise", "from_window", "from_sidebands"), min_length=1, description="Template methods to compare."
    )
    strength: Annotated[Positive, Decides()] = Field(2.24, description="Noise sigma' of the partial templates.")
    source: Annotated[str | tuple[str | tuple[str, ...], ...] | None, Decides()] = Field(
        None, description="Files of the other simulation for from_simulation, see template.source."
    )
    injections: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Decides()] = Field(
        (250, 500, 1000, 2000, 3000),
        min_length=1,
        description="Signal events injected, before the selection, in the studies injection and llv-injection.",
    )
    examples: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Decides()] = Field(
        (1000, 3000),
        min_length=1,
        description="Signal events injected, before the selection, in roc, sic, strength-sic, oversampling, gensr,"
        " classifiers, llv-roc and, the largest, sideband-width and llv-strength.",
    )
    strengths: Annotated[tuple[Positive, ...], Decides()] = Field(
        (0.05, 0.15, 0.3, 0.62, 1.2, 2.24, 5.0, 12.0),
        min_length=1,
        description="Noise sigma' scanned in strength-auc, strength-sic, displacement and llv-strength.",
    )
    oversamples: Annotated[tuple[Positive, ...], Decides()] = Field(
        (1.0, 2.0, 4.0, 8.0, 12.0),
        min_length=1,
        description="Template events per event in the window, for the study oversampling.",
    )
    sidebands: Annotated[tuple[Positive, ...], Decides()] = Field(
        (200.0, 400.0, 800.0),
        min_length=1,
        description="Widths of each sideband, GeV, for the study sideband-width, in addition to the full mass.range.",
    )
    evaluations: Annotated[tuple[Annotated[int, Field(ge=4)], ...], Decides()] = Field(
        (8, 16, 35, 64, 100),
        min_length=1,
        description="Network evaluations per template event, for the study solver-steps.",
    )
    pseudo_experiments: Annotated[int, Decides()] = Field(
        1000, ge=2, description="Pseudo-experiments per true mass shape, for the study mass-fit."
    )
    nulls: Annotated[int, Decides()] = Field(
        200, ge=1, description="Searches without a signal, for the study calibration; half of them test the other half."
    )
    null_events: Annotated[Positive | None, Decides()] = Field(
        None,
        description="Mean number of events of a null in the range that is fitted; null takes as many as the data have.",
    )
    null_models: Annotated[int, Decides()] = Field(
        5, ge=1, description="Trainings of the nulls' generator, each on a bootstrap of the events outside a window."
    )
    further: Annotated[float, Decides()] = Field(
        0.0,
        ge=0,
        description="Events, in units of those of a null, that are passed through each null's cuts, to tell where pulls"
        " come from.",
    )
    generators: Annotated[dict[str, tuple[str, ...]], Decides()] = Field(
        {},
        description="Constituent generators to compare in the studies llv-* (except llv-strength): a name for legends,"
        " and the keys that differ from the rest of the file, as SECTION.KEY=VALUE.",
    )

    signals: Annotated[dict[str, tuple[Positive, Positive, Positive]], Decides()] = Field(
        {},
        description="Simulated resonances A -> B C for the studies limits-by-mass and efficiency-map: {FILE: [A, B, C],"
        " ...}, masses in GeV.",
    )

    _source_named = field_validator("source")(_names_files)

    @model_validator(mode="after")
    def _sourced(self) -> StudyConfig:
        if "from_simulation" in self.templates and self.source is None:
            raise ValueError("from_simulation in study.templates needs study.source, the files of the other simulation")
        return self


class LimitsConfig(_Section):
    """Limits on a simulated signal: `drapes limits`."""

    injected: Annotated[tuple[Positive, ...], Decides()] = Field(
        (0.25, 0.5, 1.0, 2.0, 4.0),
        min_length=2,
        description="Sizes of the signal that is injected to measure its efficiency, in units of limits.reference,"
        " rising. No limit is quoted beyond them.",
    )
    reference: Annotated[Positive | None, Decides()] = Field(
        None,
        description="Signal events after the selection, before a cut on the score; null takes half of the limit"
        " expected without such a cut.",
    )
    searches: Annotated[int, Decides()] = Field(
        10, ge=1, le=1000, description="Searches with each size of the signal, everything trained anew."
    )
    scale_error: Annotated[float, Field(ge=0, lt=0.2), Decides()] = Field(
        0.01, description="Relative standard deviation of the signal's mass."
    )
    resolution_error: Annotated[float, Field(ge=0, lt=0.9), Decides()] = Field(
        0.1, description="Relative standard deviation of the width of its mass distribution."
    )
    yield_error: Annotated[float, Field(ge=0, lt=1), Decides()] = Field(
        0.0, description="Relative standard deviation of its number of events: selection, luminosity."
    )

    @field_validator("injected")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("must rise")
        return value


class PlotConfig(_Section):
    """Labels of the figures."""

    label: Annotated[str, Decides()] = Field(
        "Simulation", description="Sample or experiment, at the upper left of each figure."
    )
    text: Annotated[str, Decides()] = Field("", description="Text after the label, such as 'R&D dataset'.")
    lumi: Annotated[Positive | None, Decides()] = Field(
        None, description="Integrated luminosity in 1/fb; not shown if null."
    )


class Config(_Section):
    """A whole search."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"), Decides()] = Field(
        description="Name of the search."
    )
    data: DataConfig
    signal: SignalConfig = SignalConfig()
    processor: Annotated[str, Decides()] = Field(
        "processors/dijets.py:Dijets",
        description="'file.py:Class', 'package.module:Class', or a name registered by an installed package.",
    )
    selection: SelectionConfig = SelectionConfig()
    features: Annotated[
        tuple[str, ...], Decides("skim", "simulation", "train", "generate", "quality", "hunt", "study.draw")
    ] = Field(
        ("m_j1", "delta_m", "tau21_j1", "tau21_j2", "delta_r"),
        min_length=1,
        description="Features that the model generates; the classifier uses cwola.features.",
    )
    define: Annotated[dict[str, FeatureConfig], Decides("skim", "simulation", "hunt")] = Field(
        {}, description="Your own features by name: an expression, or a section with one."
    )
    mass: MassConfig = MassConfig()
    windows: WindowsConfig = WindowsConfig()
    template: TemplateConfig = TemplateConfig()
    training: TrainingConfig = TrainingConfig()
    constituents: ConstituentsConfig | None = None
    cwola: CwolaConfig = CwolaConfig()
    hunt: HuntConfig = HuntConfig()
    study: StudyConfig = StudyConfig()
    limits: LimitsConfig = LimitsConfig()
    plots: PlotConfig = PlotConfig()
    blind: Annotated[bool, Decides("hunt")] = Field(
        True, description="Whether data inside the windows are hidden: neither counted nor drawn."
    )
    seed: Annotated[int, Decides("train", "generate", "classify", "quality", "hunt", "study.draw")] = Field(
        1, ge=0, description="Random seed of the run."
    )

    @property
    def definitions(self) -> dict[str, Any]:
        """What the functions of :mod:`drapes_hep.events.features` need for the features that are defined here."""
        define = self.model_dump(mode="json")["define"]
        if self.folder is not None:
            # where functions are looked for: a worker process does not have the configuration
            for definition in define.values():
                definition["folder"] = None if definition["function"] is None else str(self.folder)
        return {"define": define, "keep": self.selection.keep}

    @property
    def classifier_features(self) -> tuple[str, ...]:
        """What the classifier sees."""
        if self.cwola.features is not None:
            return self.cwola.features
        return tuple(name for name in self.features if name != "delta_r") or self.features

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.signal.inject is not None and not self.data.labels:
            raise ValueError("signal.inject needs labelled events: set data.labels and, for a sidecar, data.truth")
        if self.data.truth is not None and not self.data.labels:
            raise ValueError("data.truth is set but data.labels is false")
        low, high = self.mass.fitted
        name = self.mass.fitted_key
        if self.windows.first <= low or self.windows.last + self.windows.width >= high:
            raise ValueError(
                f"windows from {self.windows.first:g} to {self.windows.last + self.windows.width:g} GeV need a sideband"
                f" on both sides inside {name} [{low:g}, {high:g}]"
            )
        if self.study.window is not None and not low < self.study.window[0] < self.study.window[1] < high:
            raise ValueError(f"study.window must be increasing and inside {name} [{low:g}, {high:g}]")
        signal = self.hunt.signal
        constant, falling = signal.width if isinstance(signal.width, tuple) else (signal.width, 0.0)
        narrow, wide = constant + falling / high, constant + falling / low
        # a sample has its own resolution
        if signal.shape != "sample" and not 1e-3 <= narrow <= wide <= 0.5:
            raise ValueError(
                f"hunt.signal.width: sigma/m is {narrow:.3g} to {wide:.3g} over {name}; it must be within 0.001 to 0.5"
            )
        return self

    @model_validator(mode="after")
    def _consistent_constituents(self) -> Config:
        if self.constituents is None:
            return self
        template, noise = self.template, self.constituents.kinematics_strength
        if template.method == "file":
            raise ValueError("constituents: a template file contains features only; remove this section")
        if template.method == "from_low_noise":
            raise ValueError("constituents: from_low_noise generates features only")
        if template.method == "from_sidebands" and noise is None:
            raise ValueError("constituents: from_sidebands needs constituents.kinematics_strength")
        if noise is not None and not template.sigma_min <= noise <= template.sigma_max:
            low, high = template.sigma_min, template.sigma_max
            raise ValueError(f"constituents.kinematics_strength {noise:g} is not within {low:g} to {high:g}")
        if template.steps_left is not None and self.constituents.solver == "angle":
            raise ValueError("template.steps_left counts the steps of another solver than constituents.solver angle")
        if (template.steps_left or 0) > self.constituents.steps:
            raise ValueError("template.steps_left exceeds constituents.steps")
        if self.constituents.kinematics_network == "deepsets" and self.training.width % JET_HEADS:
            raise ValueError(
                f"training.width {self.training.width} is not a multiple of the {JET_HEADS} heads of"
                " constituents.kinematics_network deepsets"
            )
        return self

    @model_validator(mode="after")
    def _consistent_classifier(self) -> Config:
        if self.constituents is None and self.cwola.classifier in ON_CONSTITUENTS:
            raise ValueError(
                f"cwola.classifier {self.cwola.classifier} needs templates of constituents: add 'constituents: {{}}'"
            )
        if self.cwola.classifier == "full_phase_space" and self.cwola.options.get("kinematics"):
            raise ValueError(
                "cwola.options: kinematics gives m_JJ to the classifier, and its cuts would sculpt the spectrum: remove"
                " it"
            )
        return self

    @model_validator(mode="after")
    def _calibration_that_fits(self) -> Config:
        smallest = min(self.hunt.background_efficiencies)
        events = self.cwola.calibration / smallest
        if self.training.scheme == "cross_fit" and events > MOST_CALIBRATION:
            raise ValueError(
                f"cwola.calibration {self.cwola.calibration} over the smallest of hunt.background_efficiencies,"
                f" {smallest:g}, is {events:.3g} events per model, more than {MOST_CALIBRATION:,}: use a looser cut, a"
                " smaller calibration, or training.scheme: hold_out"
            )
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> Config:
        if len(set(self.features)) != len(self.features):
            raise ValueError("a feature is listed twice")
        if len(set(self.selection.keep)) != len(self.selection.keep):
            raise ValueError("selection.keep: a field is listed twice")
        return self

    @field_validator("features", mode="before")
    @classmethod
    def _named_alone(cls, value: Any) -> Any:
        entries = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(entry, Mapping) for entry in entries):
            raise ValueError("must list names only: define your own features under 'define'")
        return value


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        section = section_of(info)
        if section is not None:
            yield from _keys(section, f"{prefix}{name}.")


def _examples(section: type[BaseModel] | None) -> Iterator[tuple[str, object]]:
    """Yield keys of a section with values to show."""
    for name, info in (section.model_fields if section else {}).items():
        if info.default not in (None, PydanticUndefined) and not isinstance(info.default, (tuple, dict)):
            yield name, info.default
    yield from ((name, "...") for name in (section.model_fields if section else {}))


def _unknown(place: str) -> str:
    """Word an unknown key: the key that was meant, and how sections are written."""
    known_keys = list(_keys(Config))
    if place.startswith("define."):
        known_keys = [f"{place.rpartition('.')[0]}.{name}" for name in FeatureConfig.model_fields]
    spelled = place.lower().replace("-", "_")
    last = spelled.rpartition(".")[2]
    if place.rpartition(".")[2] != last or place != spelled:
        same = [key for key in known_keys if key == spelled]
    else:
        same = [key for key in known_keys if key != place and key.rpartition(".")[2] == last]
    close = same or difflib.get_close_matches(spelled, known_keys, n=1, cutoff=0.5)
    suggestion = " or ".join(f"'{key}'" for key in close)
    if len(close) == 1 and place.count(".") != close[0].count("."):
        section, _, key = close[0].rpartition(".")
        suggestion = f"'{key}' in the section {section}" if section else f"'{key}' outside of all sections"
    return f"unknown key '{place}'" + (f"; did you mean {suggestion}?" if suggestion else "")


def _dotted(place: tuple[str | int, ...]) -> str | None:
    """Word a key that holds a dot, as ``--set`` takes it and a file does not."""
    key = place[-1]
    path = ".".join(str(part) for part in place)
    if not isinstance(key, str) or "." not in key:
        return None
    known_keys = set(_keys(Config))
    *sections, last = key.split(".")
    if path not in known_keys:
        if key in known_keys and place[:-1] == tuple(sections):
            return f"the key '{key}' repeats its section: write '{last}: ...' there"
        return None
    return (
        f"the key '{key}' holds a dot: sections are nested, so write '{sections[0]}:' and below it, indented,"
        f" '{last}: ...' (or '{sections[0]}: {{{last}: ...}}' in one line)"
    )


def _place(location: tuple[str | int, ...]) -> str:
    """Join the place of an error as far as it is keys of the configuration; pydantic adds types of unions."""
    known_keys = set(_keys(Config))
    if location[:1] == ("define",):
        return ".".join(map(str, location[:3]))
    place = ""
    for part in location:
        longer = f"{place}.{part}" if place else str(part)
        if place in known_keys and longer not in known_keys:
            break
        place = longer
    return place


def _one_line(error: ValidationError) -> tuple[str, str]:
    """Return the place of the first problem, dotted, and one line on it."""
    # an unknown key explains one that is missing
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    place = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        place = ".".join(str(part) for part in first["loc"])
        return place, _dotted(first["loc"]) or _unknown(place)
    if first["type"] == "missing":
        return place, f"'{place}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    if message.startswith("is a section"):
        return place, f"'{place}' {message}"
    message = message[0].lower() + message[1:]
    return place, f"'{place}': {message}" if place else message


def _given(assignment: str) -> str:
    return either(shell=f"--set {assignment}", python=f"assignment '{assignment}'")


def _set(tree: dict[str, Any], assignment: str) -> None:
    key, separator, text = assignment.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"{_given(assignment)}: expected KEY=VALUE, e.g. signal.inject=0")
    is_path = key in {
        "data.path", "data.truth", "template.source", "template.path", "study.source", "hunt.signal.sample",
        "hunt.calibration", "hunt.seeds", "study.signals",
    }  # fmt: skip
    try:
        value = parse(text).value
    except YamlError as error:
        if not is_path:
            raise ConfigError(f"{_given(assignment)}: {error.problem}") from None
        value = text  # a pattern such as *.root
    if is_path and value is not None:
        # what is typed on the command line is relative to where it is typed
        value = _each(_typed, value)
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(f"{_given(assignment)}: '{parent}' is not a section")
    tree[last] = value


def assign(tree: dict[str, Any], assignments: Sequence[str]) -> None:
    """Override keys of a configuration that is not checked yet.

    Parameters
    ----------
    tree : dict
        As YAML or JSON gave it; changed in place.
    assignments : sequence of str
        ``section.key=value``, the value in YAML.

    Raises
    ------
    ConfigError
        If one is malformed.
    """
    for assignment in assignments:
        _set(tree, assignment)


def _each(function: Callable[[Any], str], paths: Any) -> Any:
    """Change every path of ``data.path``, whatever its form; a list becomes a tuple."""
    if isinstance(paths, dict):
        return {function(path): tree for path, tree in paths.items()}
    return tuple(_each(function, path) for path in paths) if isinstance(paths, (list, tuple)) else function(paths)


def _typed(path: object) -> str:
    return str(path) if "://" in str(path) else str(Path(str(path)).absolute())


def load_config(path: str | Path, assignments: Sequence[str] = ()) -> Config:
    """Read, override and check a configuration.

    Parameters
    ----------
    path : str or Path
        The YAML file.
    assignments : sequence of str
        Overrides ``section.key=value``, the value in YAML.

    Returns
    -------
    Config
        With ``data.path``, ``data.truth``, ``template.source``, ``template.path``, ``study.source`` and
        ``hunt.signal.sample`` absolute.

    Raises
    ------
    ConfigError
        With the file, the key and what is wrong.
    """
    path = Path(path)
    try:
        document = parse(decode(path.read_bytes()))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration; `drapes init DIR` writes a set to start from") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a configuration ({error.strerror or error})") from error
    except YamlError as error:
        raise ConfigError(f"{path}, {error}") from None
    tree = document.value
    if tree is None:
        raise ConfigError(f"{path}: is empty; `drapes init DIR` writes a set to start from")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, such as 'name: search', not {_kind(tree)}")
    return _absolute(assigned_config(tree, assignments, path, document.lines), path.resolve().parent)


def make_config(tree: Mapping[str, Any]) -> Config:
    """Check a configuration that is written in Python.

    Parameters
    ----------
    tree : mapping
        Keys and sections, as a YAML file has them.

    Returns
    -------
    Config
        Paths and a processor's file are relative to the working directory.

    Raises
    ------
    ConfigError
        With the key, and what is wrong.
    """
    return _absolute(check_config(tree, "configuration"), Path.cwd())


def assigned_config(
    tree: Mapping[str, Any], assignments: Sequence[str], path: str | Path, lines: Mapping[str, int] | None = None
) -> Config:
    """Override keys of a configuration, and check it.

    Parameters
    ----------
    tree : mapping
        As YAML or JSON gave it.
    assignments : sequence of str
        ``section.key=value``, the value in YAML.
    path : str or Path
        Where the tree comes from, for the message.
    lines : mapping of str to int, optional
        The lines of its keys, for the message.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        With the key, what is wrong, and where that comes from: the assignment that brings it, or else the file.
    """
    changed = copy.deepcopy(dict(tree))
    assign(changed, assignments)
    try:
        return Config.model_validate(changed)
    except ValidationError as error:
        place, problem = _one_line(error)
    changed, source = copy.deepcopy(dict(tree)), str(path)
    if (lines or {}).get(place):
        source = f"{path}, line {(lines or {})[place]}"
    for assignment in assignments:
        if _problem(changed) == (place, problem):
            break
        _set(changed, assignment)
        source = _given(assignment)
    raise ConfigError(f"{source}: {problem}")


def _problem(tree: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the place of the first problem and one line on it; None where there is none."""
    try:
        Config.model_validate(tree)
    except ValidationError as error:
        return _one_line(error)
    return None


def _kind(tree: object) -> str:
    return "a list" if isinstance(tree, list) else "one value"


def check_config(tree: Mapping[str, Any], path: str | Path, lines: Mapping[str, int] | None = None) -> Config:
    """Check a configuration that was read.

    Parameters
    ----------
    tree : mapping
        As YAML or JSON gave it.
    path : str or Path
        Where it comes from, for the message.
    lines : mapping of str to int, optional
        The lines of its keys, for the message.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        With the file, the key and what is wrong.
    """
    return assigned_config(tree, (), path, lines)


def changed_config(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a configuration with other sections, checked again; raises ConfigError where they do not fit.

    Parameters
    ----------
    config : Config
    changes : mapping
        Sections and keys of the top level, as JSON values.
    """
    return _placed(check_config({**config.model_dump(mode="json"), **changes}, config.name), config.folder)


def _absolute(config: Config, folder: Path) -> Config:
    def place(text: str) -> str:
        return text if "://" in text else str(folder / text)

    def sources(paths: Any) -> Any:
        return None if paths is None else _each(place, paths)

    data = config.data
    paths = _each(place, data.path)
    truth = None if data.truth is None else place(data.truth)
    absolute = config.model_copy(
        update={
            "data": data.model_copy(update={"path": paths, "truth": truth}),
            "template": config.template.model_copy(
                update={"source": sources(config.template.source), "path": sources(config.template.path)}
            ),
            "study": config.study.model_copy(
                update={"source": sources(config.study.source), "signals": _each(place, config.study.signals)}
            ),
            "hunt": config.hunt.model_copy(
                update={
                    "signal": config.hunt.signal.model_copy(update={"sample": sources(config.hunt.signal.sample)}),
                    "calibration": None if config.hunt.calibration is None else place(config.hunt.calibration),
                    "seeds": None if config.hunt.seeds is None else place(config.hunt.seeds),
                }
            ),
        }
    )
    return _placed(absolute, folder)


def _placed(config: Config, folder: Path | None) -> Config:
    """Return a configuration whose sections know its folder, where classes are looked for."""
    # copies: the defaults of two configurations are the same objects
    parts = {name: section.model_copy() for name, section in config if isinstance(section, _Section)}
    placed = config.model_copy(update=parts)
    for section in (placed, *parts.values()):
        section._folder = folder
    return placed


@functools.cache
def keys_of(stage: str) -> tuple[str, ...]:
    """Return the keys of a configuration that decide a stage's result, dotted, as declared by their fields."""
    return decided(Config, stage)


def schema() -> Mapping[str, Any]:
    """Return the JSON schema of a configuration, as docs/ and editors use it."""
    tree = Config.model_json_schema()
    define = tree["properties"]["define"]
    # an expression alone is written out before it is checked
    define["additionalProperties"] = {"anyOf": [{"type": "string"}, define["additionalProperties"]]}
    return tree
