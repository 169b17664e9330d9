"""A submission to HEPData: spectra with their covariances, p-values and limits. Needs the extra ``stats``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from drapes_hep.bumphunt.count_limits import BAND, CountLimits, count_limits
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.errors import DrapesError, FitError, reason_of
from drapes_hep.exports.points import ExportPoint, read_points
from drapes_hep.files import write_bytes
from drapes_hep.outcome import Results, read_results

__all__ = ["write_submission"]

_MASS = ("Dijet mass", "GeV")
_SUBMISSION = "submission.yaml"
_DIGITS = 8
"""Of the numbers in the tables."""


def write_submission(run: str | Path, folder: str | Path) -> list[Path]:
    """Write a submission of a finished run.

    Parameters
    ----------
    run : str or Path
        The run directory.
    folder : str or Path
        Where ``submission.yaml`` and the tables are written; the submission in it is replaced.

    Returns
    -------
    list of Path

    Raises
    ------
    DrapesError
        If the extra ``stats`` is not installed, or as :func:`~drapes_hep.exports.points.read_points`.
    """
    try:
        from hepdata_lib import Submission
    except ImportError as error:
        raise DrapesError(
            f"export hepdata: hepdata_lib cannot be imported ({reason_of(error)}); install drapes-hep[stats]"
        ) from error
    points, results = read_points(run), read_results(run)
    tables = [_counts(points), _limits(points), *_global(results), *(t for point in points for t in _spectrum(point))]
    submission = Submission()
    header = {
        "data_license": submission.get_license(),
        "comment": "",
        "additional_resources": submission.additional_resources,
    }
    folder = Path(folder)
    _remove_earlier(folder)
    files = []
    with tempfile.TemporaryDirectory() as temporary:
        # Submission.create_files leaves an archive in the working directory
        text = yaml.safe_dump(header, explicit_start=True)
        (Path(temporary) / _SUBMISSION).write_text(text, encoding="utf-8")
        for table in tables:
            table.write_yaml(temporary)
        for path in sorted(Path(temporary).glob("*.yaml")):
            files.append(folder / path.name)
            write_bytes(files[-1], path.read_bytes())
    return files


def _remove_earlier(folder: Path) -> None:
    """Remove the files of an earlier submission, which it names itself; no others."""
    index = folder / _SUBMISSION
    if not index.is_file():
        return
    try:
        names = [
            doc["data_file"] for doc in yaml.safe_load_all(index.read_text(encoding="utf-8")) if "data_file" in doc
        ]
    except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        raise DrapesError(f"{index}: is no submission; name another directory") from error
    for name in (*names, _SUBMISSION):
        (folder / Path(str(name)).name).unlink(missing_ok=True)


def _variable(name: str, unit: str, values: Any, *, independent: bool = False, binned: bool = False) -> Any:
    from hepdata_lib import Variable

    variable = Variable(name, is_independent=independent, is_binned=binned, units=unit)
    variable.values = values
    variable.digits = _DIGITS
    return variable


def _table(name: str, title: str, variables: list[Any]) -> Any:
    from hepdata_lib import Table

    table = Table(name)
    table.description = title
    table.location = "drapes-hep"
    table.keywords["observables"] = ["N"]
    for variable in variables:
        table.add_variable(variable)
    return table


def _error(values: list[float]) -> Any:
    from hepdata_lib import Uncertainty

    error = Uncertainty("fit", is_symmetric=True)
    error.values = values
    return error


def _places(points: tuple[ExportPoint, ...]) -> list[Any]:
    """Return what says of which window and cut a line is."""
    return [
        _variable(*_MASS, [point.window for point in points], independent=True, binned=True),
        _variable("Background efficiency", "", [point.background_efficiency for point in points], independent=True),
    ]


def _counts(points: tuple[ExportPoint, ...]) -> Any:
    expected = _variable("Expected background events", "", [point.expected for point in points])
    expected.add_uncertainty(_error([point.error for point in points]))
    local = local_significance(
        *([getattr(point, name) for point in points] for name in ("observed", "expected", "error"))
    )
    return _table(
        "Counts",
        "Events in each window that pass each cut, the background expected from outside the window, and the local"
        " p-value of the excess.",
        [
            *_places(points),
            _variable("Observed events", "", [point.observed for point in points]),
            expected,
            _variable("Local p-value", "", [float(p) for p in local.p]),
        ],
    )


def _limits_of(point: ExportPoint) -> CountLimits:
    try:
        return count_limits(point.observed, point.expected, point.error)
    except FitError:
        return count_limits(None, point.expected, point.error)


def _limits(points: tuple[ExportPoint, ...]) -> Any:
    limits = [_limits_of(point) for point in points]
    names = ["-2 s.d.", "-1 s.d.", "median", "+1 s.d.", "+2 s.d."]
    assert len(names) == len(BAND)
    return _table(
        "Limits",
        "Upper limits at 95% confidence level (CLs) on the signal events in the window that pass each cut.",
        [
            *_places(points),
            # a count that a background alone never has limits nothing
            _variable("Observed limit", "", ["-" if limit.observed is None else limit.observed for limit in limits]),
            *(
                _variable(f"Expected limit, {name}", "", [limit.expected[i] for limit in limits])
                for i, name in enumerate(names)
            ),
        ],
    )


def _global(results: Results) -> list[Any]:
    """Return the global p-values that there are: measured or bounded, extrapolated, calibrated."""
    whole = results.global_significance
    calibrated = whole.calibrated
    kinds = {
        ("upper bound" if whole.bound else "measured") + f", {whole.toys} pseudo-experiments": whole.p_global,
        "extrapolated from the pseudo-experiments": whole.p_global_extrapolated,
        "calibrated with null searches": None if calibrated is None else calibrated.p_global,
    }
    values = {kind: p for kind, p in kinds.items() if p is not None}
    if not values:
        return []
    return [
        _table(
            "Global p-value",
            "p-value of the whole search. Pseudo-experiments hold the selections fixed; null searches train anew.",
            [
                _variable("Kind", "", list(values), independent=True),
                _variable("Global p-value", "", list(values.values())),
            ],
        )
    ]


def _spectrum(point: ExportPoint) -> list[Any]:
    bins = list(zip(point.edges[:-1].tolist(), point.edges[1:].tolist(), strict=True))
    expected = _variable("Expected background events", "", point.background.tolist())
    expected.add_uncertainty(_error(np.sqrt(np.diagonal(point.covariance)).tolist()))
    title = f"{point.window[0]:g}-{point.window[1]:g} GeV, background efficiency {point.background_efficiency:g}"
    name = f"Spectrum {point.name.replace('_', ' cut ')}"
    first, second = ([b for b in bins for _ in bins], [b for _ in bins for b in bins])
    return [
        _table(
            name,
            f"Spectrum of the dijet mass, {title}. The errors of the bins are correlated.",
            [
                _variable(*_MASS, bins, independent=True, binned=True),
                _variable("Observed events", "", [int(n) for n in point.counts]),
                expected,
            ],
        ),
        _table(
            f"Covariance {point.name.replace('_', ' cut ')}",
            f"Covariance of the expected background events in the bins of the spectrum, {title}.",
            [
                _variable("Dijet mass, first bin", "GeV", first, independent=True, binned=True),
                _variable("Dijet mass, second bin", "GeV", second, independent=True, binned=True),
                _variable("Covariance", "", point.covariance.ravel().tolist()),
            ],
        ),
    ]
