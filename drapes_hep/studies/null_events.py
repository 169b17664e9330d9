"""Events without a signal, generated anew as often as asked: what whole searches are calibrated with.

Resampling a sample of M events N at a time repeats the sample's own fluctuations in every experiment. Here features are
from a model that interpolates them into the window, as templates do: the sample's fluctuations in the window are no
part of the background that searches are to describe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError
from drapes_hep.events.features import domains
from drapes_hep.events.ranges import in_ranges
from drapes_hep.regions import Window
from drapes_hep.rng import event_uniforms, stage_seed
from drapes_hep.spectrum.bins import spectrum_edges
from drapes_hep.spectrum.drawing import draw
from drapes_hep.spectrum.fit import SpectrumFit, fit_spectrum
from drapes_hep.spectrum.shapes import find_shape
from drapes_hep.studies.trials import from_noise
from drapes_hep.templates.feature_model import BackgroundModel, FeatureTraining, fit_models
from drapes_hep.templates.feature_templates import levels
from drapes_hep.templates.parts import split_sidebands

__all__ = ["NullGenerator", "fit_null_masses", "null_generator", "source_of", "train_null_model"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NullGenerator:
    """Background alone: masses from the inclusive fit, features from models that never saw the window.

    Attributes
    ----------
    config : Config
    fit : SpectrumFit
        Of the fitted range.
    unfitted : array, shape (n,)
        Masses of the background events of the range that are in no fit, GeV: they train templates too, and nulls draw
        from them.
    windows : tuple of Window
        Of the search.
    models : tuple of tuples of BackgroundModel
        For each window, of bootstraps of the events outside it, as many for each. One model generates all of a null:
        from one model to the next, features have a step in mass, in which classifiers find more than in any data.
    """

    config: Config
    fit: SpectrumFit
    unfitted: FloatArray
    windows: tuple[Window, ...]
    models: tuple[tuple[BackgroundModel, ...], ...]

    @property
    def period(self) -> int:
        """After so many nulls the models recur; a whole number of them is in each half of a calibration."""
        return 2 * len(self.windows) * len(self.models[0])

    def model(self, number: int) -> tuple[int, int]:
        """Return the place of the window, and the number of the model, that generate a null."""
        return source_of(number, len(self.windows), len(self.models[0]))

    def events(self, number: int, mean: float | None = None) -> dict[str, FloatArray]:
        """Generate one null.

        Parameters
        ----------
        number : int
            Which: the same number gives the same events.
        mean : float, optional
            Mean number of events in the fitted range; that of the fit by default.

        Returns
        -------
        dict of str to array, shape (n,)
            ``mjj`` in GeV and the features, n Poisson distributed.
        """
        seed = stage_seed(self.config.seed, "null", number)
        rng = np.random.default_rng(seed)
        expected = float(self.fit.expected.sum())
        n = int(rng.poisson(expected if mean is None else mean))
        share = 1.0 if mean is None else mean / expected
        others = (
            rng.choice(self.unfitted, rng.poisson(share * len(self.unfitted))) if len(self.unfitted) else self.unfitted
        )
        uniforms = event_uniforms(stage_seed(seed, "mass"), np.arange(n))[:, 0]
        mjj = np.concatenate([draw(self.fit, *self.config.mass.fitted, uniforms), others])
        place, which = self.model(number)
        model = self.models[place][which]
        # whatever a search's templates start from, the truth starts from noise
        times = levels(from_noise(self.config).template, model.denoiser.schedule)
        solver = self.config.template.sampler[0]
        x = model.generate(mjj, np.arange(len(mjj)), stage_seed(seed, "features"), times, solver=solver)
        return {"mjj": mjj, **{name: x[:, i] for i, name in enumerate(self.config.features)}}


def source_of(number: int, windows: int, models: int) -> tuple[int, int]:
    """Return the place of the window, and the number of the model, that generate a null.

    Parameters
    ----------
    number : int
        Of the null.
    windows, models : int
        How many there are, models for each window.

    Returns
    -------
    int, int
    """
    # even and odd turns are the two halves of a calibration: each has all models of all windows
    return number // (2 * models) % windows, number % models


def fit_null_masses(
    config: Config, mjj: FloatArray, windows: Sequence[Window], *, outside: bool = False
) -> SpectrumFit:
    """Fit the inclusive spectrum of background events; raises FitError.

    Parameters
    ----------
    config : Config
    mjj : array, shape (n,)
        Masses in GeV.
    windows : sequence of Window
        Whose edges are among those of the bins.
    outside : bool
        Whether what is inside the windows is not fitted, as it may hold a signal.

    Returns
    -------
    SpectrumFit
    """
    edges = spectrum_edges(config.mass.fitted, config.mass.bin_width, windows)
    counts = np.histogram(mjj, edges)[0].astype(float)
    centre = 0.5 * (edges[1:] + edges[:-1])
    hidden = (
        np.any([window.in_signal_region(centre) for window in windows], axis=0) if outside else np.zeros(len(centre))
    )
    return fit_spectrum(counts, edges, None, find_shape(config.mass), config.mass.sqrt_s, fitted=hidden == 0)


def null_generator(
    config: Config,
    mjj: FloatArray,
    windows: tuple[Window, ...],
    models: tuple[tuple[BackgroundModel, ...], ...],
    *,
    outside: bool = False,
) -> NullGenerator:
    """Fit the masses of background events, and make the generator of nulls.

    Parameters
    ----------
    config : Config
    mjj : array, shape (n,)
        Masses in GeV, those outside the fitted range included.
    windows : tuple of Window
    models : tuple of tuples of BackgroundModel
        As :class:`NullGenerator` has them.
    outside : bool
        As :func:`fit_null_masses` has it.

    Returns
    -------
    NullGenerator

    Raises
    ------
    ConfigError
        If the mass shape does not describe the events.
    """
    fitted = in_ranges(mjj, [config.mass.fitted])
    masses = fit_null_masses(config, mjj[fitted], windows, outside=outside)
    if not masses.good:
        raise ConfigError(f"mass.fit {config.mass.fit} does not describe the background (p = {masses.p_value:.2g})")
    return NullGenerator(config, masses, mjj[~fitted], windows, models)


def train_null_model(config: Config, x: FloatArray, mjj: FloatArray, window: Window, number: int) -> BackgroundModel:
    """Train a model of features on a bootstrap of the sidebands of background events.

    Parameters
    ----------
    config : Config
        Its training and template sections are used.
    x : array, shape (n, d)
        Features of background events.
    mjj : array, shape (n,)
        Masses in GeV.
    window : Window
        Whose events the model does not see.
    number : int
        Which bootstrap: searches differ by what a training fluctuates, too.

    Returns
    -------
    BackgroundModel

    Raises
    ------
    FitError
        If there are too few events.
    """
    seed = stage_seed(config.seed, "null generator", number)
    sidebands = np.flatnonzero(window.in_sidebands(mjj))
    drawn = np.random.default_rng(seed).choice(sidebands, len(sidebands))
    training = FeatureTraining(
        x=x[drawn],
        mjj=mjj[drawn],
        weight=np.ones(len(drawn)),
        # copies of an event are of one part; none is held out for a closure test
        part=split_sidebands(drawn, seed, config.training, closure=0.0),
        hidden=((window.lo, window.hi),),
        seed=seed,
    )
    [(model, _)] = fit_models(
        [training],
        features=config.features,
        domain=domains(config.features, **config.definitions),
        training=config.training,
        scaling=config.template.scaling,
    )
    return model
