"""Whole searches of generated events with an injected signal, everything trained anew.

How much of a signal passes a cut depends on the signal itself: the classifier learns from its events. So a limit needs
the efficiency at each hypothesis, and its spread over trainings. Here a signal of a given mean number of events is
added to a null (:mod:`drapes_hep.studies.null_events`), the search is made, and its trained cuts are put on the events
of the sample that were not injected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, InputError, counted
from drapes_hep.files import read_json, write_json
from drapes_hep.kernels import kernel_threads
from drapes_hep.pipeline.context import Context
from drapes_hep.rng import stage_seed
from drapes_hep.stages.apply import trained_folds
from drapes_hep.stages.feature_tables import feature_matrix, load_events
from drapes_hep.stages.window_counts import window_counts
from drapes_hep.studies.null_folder import NullFolder, load_generator
from drapes_hep.studies.null_searches import searched

__all__ = [
    "LIMIT_CODE",
    "SignalSample",
    "check_sample",
    "inject",
    "injected_record",
    "load_sample",
    "run_injected",
    "search_injected",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_JUDGED = 20_000
"""Signal events that the trained cuts are put on, at most: the spread over trainings is far larger than their error."""
_SHARE = 0.5
"""Part of a sample that may be injected: the other half measures the efficiency."""


LIMIT_CODE = ("studies.injected_searches", "studies.null_events")
"""Where the code of an injected search begins."""


@dataclass(frozen=True)
class SignalSample:
    """Selected events of a simulated signal.

    Attributes
    ----------
    mjj : array, shape (n,)
        GeV.
    weight : array, shape (n,)
        Not negative.
    features : mapping of str to array, shape (n,)
    """

    mjj: FloatArray
    weight: FloatArray
    features: Mapping[str, FloatArray]

    def __len__(self) -> int:
        return len(self.mjj)


def load_sample(path: Path, config: Config) -> SignalSample:
    """Read the selected events of a signal.

    Parameters
    ----------
    path : Path
        ``skim/events.parquet`` of its selection.
    config : Config
        Of the search, whose features are read.

    Returns
    -------
    SignalSample

    Raises
    ------
    InputError
        If there are none, or a weight is negative or not finite.
    """
    events = load_events(path, config.features)
    x = feature_matrix(events, config.features)
    mjj, weight = (np.asarray(events[name], dtype=np.float64) for name in ("mjj", "weight"))
    if not len(mjj):
        raise InputError(path, "the selection keeps no event of the signal", "check mass.range and the selection")
    if not bool(np.all(np.isfinite(weight) & (weight >= 0))) or weight.sum() <= 0:
        raise InputError(path, "has a weight that is negative or not finite, or no weight at all", "use others")
    return SignalSample(mjj, weight, {name: x[:, i] for i, name in enumerate(config.features)})


def check_sample(sample: SignalSample, largest: float, path: str) -> None:
    """Refuse a sample that is too small to inject from.

    Parameters
    ----------
    sample : SignalSample
    largest : float
        The largest mean number of events that is to be injected.
    path : str
        Of the sample, for the message.

    Raises
    ------
    ConfigError
    """
    # an event is drawn with a probability in proportion to its weight, the heaviest surely
    equal = float(sample.weight.sum() / sample.weight.max()) if len(sample) else 0.0
    if largest + 5.0 * np.sqrt(largest) > _SHARE * equal - 5.0 * np.sqrt(_SHARE * equal):
        raise ConfigError(
            f"{path}: {counted(len(sample), 'event')} of the signal selected, too few to inject {largest:.0f} of them;"
            " half of the sample, as many events of equal weight as it is worth, can be injected"
        )


def inject(sample: SignalSample, mean: float, rng: np.random.Generator) -> IntArray:
    """Draw the events of an injection: a Poisson number of the sample's first half, each at most once, by weight.

    The other half measures the efficiency: were it of what an injection leaves over, heavy events would be missing.

    Parameters
    ----------
    sample : SignalSample
    mean : float
        Mean number of events.
    rng : Generator

    Returns
    -------
    array of int
        Rows of the sample.
    """
    n = int(rng.poisson(mean))
    first, _ = halves(sample)
    weight = sample.weight[first]
    # of equal weight once they are accepted
    accepted = rng.permutation(first[rng.random(len(first)) < weight / max(float(sample.weight.max()), 1e-300)])
    if n > len(accepted):
        raise ConfigError(f"the sample of the signal has too few events to inject {n} of them")
    return np.asarray(accepted[:n], dtype=np.int64)


def halves(sample: SignalSample) -> tuple[IntArray, IntArray]:
    """Divide a sample at random: rows that may be injected, and rows that measure the efficiency."""
    rows = np.random.default_rng(len(sample)).permutation(len(sample))
    return np.sort(rows[: len(rows) // 2]), np.sort(rows[len(rows) // 2 :])


def search_injected(
    config: Config,
    number: int,
    background: Mapping[str, FloatArray],
    sample: SignalSample,
    mean: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """Search a null with a signal in it.

    Parameters
    ----------
    config : Config
        Of the search.
    number : int
        Of the null; it seeds injection and search.
    background : mapping of str to array
        From :class:`~drapes_hep.studies.null_events.NullGenerator`.
    sample : SignalSample
    mean : float
        Mean number of signal events, before any cut.
    device : str
        "cpu" or "cuda".

    Returns
    -------
    dict
        ``mean``, ``injected`` (events), ``edges`` (GeV) and ``windows``: for each its name, the ``share`` of events
        outside it that are counted, and ``points``: for each cut ``observed``, ``expected`` and its ``error``, the
        counts ``passed`` in the bins, and of the sample the fractions ``signal`` that pass, bin by bin, of all of it.

    Raises
    ------
    DrapesError
        As the stages do.
    """
    rows = inject(sample, mean, np.random.default_rng(stage_seed(config.seed, "injection", number)))
    names = ("mjj", *config.features)
    columns = {"mjj": sample.mjj, **sample.features}
    events = {name: np.concatenate([background[name], columns[name][rows]]) for name in names}
    _, judged = halves(sample)
    if len(judged) > _JUDGED:
        judged = np.sort(
            np.random.default_rng(stage_seed(config.seed, "judged", number)).choice(judged, _JUDGED, replace=False)
        )
    with searched(config, number, events, device) as context:
        windows = list(_windows(context, sample, judged))
        edges = windows[0].pop("edges")
        for window in windows:
            window.pop("edges", None)
    return {"mean": mean, "injected": len(rows), "edges": edges, "windows": windows}


def _windows(context: Context, sample: SignalSample, judged: IntArray) -> list[dict[str, Any]]:
    config = context.config
    x = np.stack([sample.features[name][judged] for name in config.classifier_features], axis=1)
    mjj, weight = sample.mjj[judged], sample.weight[judged]
    results = {tuple(window["sr"]): window for window in read_json(context.run.results)["windows"]}
    out = []
    for window in context.windows:
        counts, folds = window_counts(context, window).counts, trained_folds(context, window)
        tails = np.stack([folds.tails(x, fold) for fold in range(folds.folds)])
        points = []
        for efficiency, passed, point in zip(
            counts.efficiencies, counts.nested, results[window.lo, window.hi]["working_points"], strict=True
        ):
            share = (tails <= efficiency).mean(axis=0)
            signal = np.histogram(mjj, counts.edges, weights=weight * share)[0] / weight.sum()
            points.append(
                {
                    "cut": efficiency,
                    "observed": point["observed"],
                    "expected": point["expected"],
                    "error": point["expected_error"],
                    "passed": passed.astype(int).tolist(),
                    "signal": np.round(signal, 7).tolist(),
                }
            )
        out.append({"window": window.name, "share": counts.share, "edges": counts.edges.tolist(), "points": points})
    return out


def injected_record(place: NullFolder, mean: float, number: int) -> Path:
    """Return the file of one injected search."""
    return place.folder / "injected" / f"{mean:g}" / f"{number}.json"


_SAMPLES: dict[Path, SignalSample] = {}


def run_injected(place: NullFolder, signal: Path, mean: float, number: int) -> None:
    """Make one injected search, and write its record.

    Parameters
    ----------
    place : NullFolder
        Its generator is trained.
    signal : Path
        As :func:`load_sample` takes it; a process keeps the last one.
    mean : float
        Mean number of signal events.
    number : int
        Of the null.
    """
    with threadpool_limits(limits=1), kernel_threads(1):
        if signal not in _SAMPLES:
            _SAMPLES.clear()
            _SAMPLES[signal] = load_sample(signal, place.config)
        background = load_generator(place).events(number, place.config.study.null_events)
        record = search_injected(place.config, number, background, _SAMPLES[signal], mean, place.device)
    write_json(injected_record(place, mean, number), {"number": number, **record})
