"""A run in the formats of other tools, read by these tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import uproot
import yaml
from scipy import stats
from test_stages import SEARCH, cut_sample, search

from drapes_hep.bumphunt.count_limits import count_limit, count_limits
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.errors import RunDirectoryError
from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.exports.datacards import count_card, shape_card, write_datacards
from drapes_hep.exports.hepdata import write_submission
from drapes_hep.exports.hs3 import count_document, spectrum_document, write_documents
from drapes_hep.exports.points import ExportPoint, read_points
from drapes_hep.exports.workspaces import count_workspace, spectrum_workspace, write_workspaces

pytestmark = [
    pytest.mark.usefixtures("few_trees"),
    pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning"),
    # hepdata_lib and its validator leave files open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_feature_root(folder / "events.root", cut_sample())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SEARCH))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        search(folder, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def points(run) -> tuple[ExportPoint, ...]:
    return read_points(run)


def made_point(observed: int = 156, expected: float = 129.5, error: float = 12.8) -> ExportPoint:
    """A count in four bins, whose background has two parameters."""
    share = np.array([0.4, 0.3, 0.2, 0.1])
    slope = np.array([0.3, 0.1, -0.1, -0.3])
    steep = 2.0 * slope
    covariance = error**2 * np.outer(share, share) + np.outer(steep, steep)
    return ExportPoint(
        (3300.0, 3700.0), 0.01, observed, expected, error, None, 3500.0, np.linspace(3300, 3700, 5),
        np.array([60.0, 50.0, 28.0, 18.0]), expected * share, covariance, np.array([0.1, 0.4, 0.4, 0.1]),
    )  # fmt: skip


# ---- what is exported ------------------------------------------------------------------------------------------------


def test_bins_of_a_window_add_up_to_what_the_hunt_quotes(run, points):
    quoted = [
        (window["sr"], point)
        for window in json.loads((run / "results.json").read_text())["windows"]
        for point in window["working_points"]
        if point["expected"] is not None
    ]
    assert len(points) == len(quoted) > 2
    for point, (window, result) in zip(points, quoted, strict=True):
        assert list(point.window) == window
        assert point.counts.sum() == point.observed == result["observed"]
        assert point.background.sum() == pytest.approx(result["expected"], rel=1e-9)
        assert point.covariance.sum() ** 0.5 == pytest.approx(result["expected_error"], rel=1e-9)
        assert point.signal.sum() == pytest.approx(1.0)
        assert point.has_spectrum or len(point.counts) == 1


def test_a_blinded_run_has_nothing_to_export(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    search(run.parent, tmp_path / "blind", "blind=true")
    with pytest.raises(RunDirectoryError, match="blinded: nothing was observed"):
        read_points(tmp_path / "blind")


# ---- pyhf ------------------------------------------------------------------------------------------------------------


def z_of(workspace: dict) -> float:
    pyhf = pytest.importorskip("pyhf", reason="needs the extra 'stats'")
    pyhf.set_backend("numpy", "minuit")
    model = pyhf.Workspace(workspace).model()
    p = float(pyhf.infer.hypotest(0.0, pyhf.Workspace(workspace).data(model), model, test_stat="q0"))
    return float(-stats.norm.ppf(p))


def limits_of(workspace: dict, near: float) -> tuple[float, list[float]]:
    pyhf = pytest.importorskip("pyhf", reason="needs the extra 'stats'")
    pyhf.set_backend("numpy", "minuit")
    model = pyhf.Workspace(workspace).model()
    data = pyhf.Workspace(workspace).data(model)
    observed, expected = pyhf.infer.intervals.upper_limits.toms748_scan(data, model, 0.2 * near, 4 * near, rtol=1e-4)
    return float(observed), [float(value) for value in expected]


def test_workspaces_follow_pyhfs_schema(run, tmp_path):
    pyhf = pytest.importorskip("pyhf", reason="needs the extra 'stats'")
    files = write_workspaces(run, tmp_path)
    assert files
    for file in files:
        pyhf.schema.validate(json.loads(file.read_text()), "workspace.json")


def test_pyhf_finds_the_z_and_the_limits_of_a_count():
    # so many events that a count is nearly continuous
    point = made_point(1500, 1397.0, 27.2)
    local = local_significance(point.observed, point.expected, point.error)
    assert z_of(count_workspace(point)) == pytest.approx(float(local.z), rel=0.02)
    ours = count_limits(point.observed, point.expected, point.error)
    observed, expected = limits_of(count_workspace(point), ours.observed)
    assert observed == pytest.approx(ours.observed, rel=0.02)
    assert expected[2] == pytest.approx(ours.expected[2], rel=0.02)


def test_a_window_of_one_bin_is_its_count():
    point = made_point()
    whole = ExportPoint(
        point.window, 0.01, point.observed, point.expected, point.error, None, 3500.0, np.array([3300.0, 3700.0]),
        np.array([float(point.observed)]), np.array([point.expected]), np.array([[point.error**2]]), np.ones(1),
    )  # fmt: skip
    # a Gaussian in place of a Poisson constraint
    assert z_of(spectrum_workspace(whole)) == pytest.approx(z_of(count_workspace(whole)), rel=0.03)


def test_cabinetry_fits_what_is_exported():
    cabinetry = pytest.importorskip("cabinetry", reason="needs the extra 'stats'")
    point = made_point()
    model, data = cabinetry.model_utils.model_and_data(spectrum_workspace(point))
    result = cabinetry.fit.fit(model, data)
    place = result.labels.index("signal")
    assert 0 < result.bestfit[place] < 80
    # the count alone has an error of sqrt(156 + 12.8^2); the shape helps
    assert result.uncertainty[place] < (point.observed + point.error**2) ** 0.5


# ---- Combine ---------------------------------------------------------------------------------------------------------


def read_card(text: str) -> dict[str, list[list[str]]]:
    """Lines of a datacard by their first word."""
    lines: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "-")):
            first, *rest = line.split()
            lines.setdefault(first, []).append(rest)
    return lines


def test_a_counts_datacard_is_the_pyhf_workspace():
    point = made_point()
    card = read_card(count_card(point))
    assert card["imax"] == [["1"]]
    assert card["jmax"] == [["1"]]
    assert card["kmax"] == [["1"]]
    assert card["observation"] == [["156"]]
    assert card["process"] == [["signal", "background"], ["0", "1"]]
    rate = [float(value) for value in card["rate"][0]]
    [kind, off, of_signal, factor] = card["background_fit"][0]
    assert (kind, of_signal) == ("gmN", "-")
    # gmN: the off count times the factor is the rate
    assert int(off) * float(factor) == pytest.approx(rate[1], rel=1e-8)
    translated = ExportPoint(**{**vars(point), "expected": rate[1], "error": int(off) ** 0.5 * float(factor)})
    assert z_of(count_workspace(translated)) == pytest.approx(z_of(count_workspace(point)), rel=2e-3)


def test_a_shape_datacard_and_its_histograms_are_the_pyhf_workspace(run, points, tmp_path):
    write_datacards(run, tmp_path)
    point = max(points, key=lambda point: len(point.variations))
    card = read_card((tmp_path / f"shapes_{point.name}.txt").read_text())
    [_, _, file, nominal, varied] = card["shapes"][0]
    [[key]] = card["bin"][:1]
    workspace = spectrum_workspace(point)
    samples = {sample["name"]: sample for sample in workspace["channels"][0]["samples"]}
    with uproot.open(tmp_path / file) as histograms:

        def values(pattern: str, process: str, systematic: str = "") -> np.ndarray:
            return histograms[pattern.replace("$PROCESS", process).replace("$SYSTEMATIC", systematic)].values()

        assert nominal.startswith(key)
        np.testing.assert_array_equal(values(nominal, "data_obs"), workspace["observations"][0]["data"])
        assert values(nominal, "data_obs").sum() == float(card["observation"][0][0])
        for process, rate in zip(card["process"][0], card["rate"][0], strict=True):
            np.testing.assert_allclose(values(nominal, process), samples[process]["data"])
            assert values(nominal, process).sum() == pytest.approx(float(rate), rel=1e-7)
        modifiers = samples["background"]["modifiers"]
        assert int(card["kmax"][0][0]) == len(modifiers) > 1
        for modifier in modifiers:
            assert card[modifier["name"]] == [["shape", "-", "1"]]
            for direction, data in (("Up", "hi_data"), ("Down", "lo_data")):
                varied_bins = values(varied, "background", modifier["name"] + direction)
                np.testing.assert_allclose(varied_bins, np.maximum(modifier["data"][data], 1e-6))


def test_every_card_names_as_many_nuisances_as_it_has(points):
    for point in points:
        for text in (count_card(point), shape_card(point)):
            card = read_card(text)
            named = [name for name in card if name.startswith("background_fit")]
            assert int(card["kmax"][0][0]) == len(named)


# ---- HEPData ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def submission(run, tmp_path_factory) -> Path:
    pytest.importorskip("hepdata_lib", reason="needs the extra 'stats'")
    folder = tmp_path_factory.mktemp("hepdata")
    write_submission(run, folder)
    return folder


def test_the_submission_is_valid(submission):
    validator = pytest.importorskip("hepdata_validator.full_submission_validator")
    checker = validator.FullSubmissionValidator()
    assert checker.validate(directory=str(submission)), checker.get_messages()


def test_the_submission_holds_the_numbers_of_the_run(submission, points):
    limits = yaml.safe_load((submission / "limits.yaml").read_text())
    [observed, *expected] = limits["dependent_variables"]
    assert len(observed["values"]) == len(points)
    for place, point in enumerate(points):
        ours = count_limit(point.observed, point.expected, point.error)
        assert float(observed["values"][place]["value"]) == pytest.approx(ours, rel=1e-6)
    assert [variable["header"]["name"] for variable in expected][2] == "Expected limit, median"
    counts = yaml.safe_load((submission / "counts.yaml").read_text())
    assert [int(v["value"]) for v in counts["dependent_variables"][0]["values"]] == [p.observed for p in points]


def test_a_submission_replaces_an_earlier_one_and_nothing_else(run, submission, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(submission, tmp_path / "out")
    (folder / "search.yaml").write_text("name: mine")
    before = sorted(path.name for path in folder.iterdir())
    write_submission(run, folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    # nothing in the working directory
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bound_on_the_global_p_value_is_called_one(run, tmp_path):
    pytest.importorskip("hepdata_lib", reason="needs the extra 'stats'")
    copy = shutil.copytree(run, tmp_path / "run")
    results = json.loads((copy / "results.json").read_text())
    results["global"] |= {"p_global": 0.02, "bound": True, "p_global_extrapolated": 1e-9, "reason": None}
    (copy / "results.json").write_text(json.dumps(results))
    write_submission(copy, tmp_path / "out")
    content = yaml.safe_load((tmp_path / "out" / "global_p-value.yaml").read_text())
    kinds = [value["value"] for value in content["independent_variables"][0]["values"]]
    assert kinds == ["upper bound, 50 pseudo-experiments", "extrapolated from the pseudo-experiments"]


def test_an_error_that_gmn_would_round_is_a_log_normal():
    card = read_card(count_card(made_point(1, 0.3, 0.5)))
    assert card["background_fit"] == [["lnN", "-", "2.66666667"]]
    assert not made_point(1, 0.3, 0.5).has_spectrum


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_into_the_run(run, drapes, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    status, said, _ = drapes("export", "pyhf", copy)
    assert status == 0
    assert str(copy / "pyhf") in said
    points = read_points(copy)
    assert len(list((copy / "pyhf").glob("*.json"))) == len(points) + sum(point.has_spectrum for point in points)


def test_an_unknown_format_and_an_unfinished_run_are_one_line(run, drapes, tmp_path):
    status, _, said = drapes("export", "roostats", run)
    assert (status, said) == (2, "drapes: export: no format 'roostats'; choose pyhf, combine, hs3, hepdata\n")
    (tmp_path / "file").touch()
    status, _, said = drapes("export", "pyhf", run, "-o", tmp_path / "file")
    assert (status, said) == (2, f"drapes: {tmp_path / 'file'}: is a file; name another directory with -o\n")
    status, _, said = drapes("export", "pyhf", tmp_path / "none")
    assert status == 2
    assert len(said.strip().splitlines()) == 1


# ---- HS3 -------------------------------------------------------------------------------------------------------------


def hs3_log_likelihood(document: dict, values: dict[str, float]) -> float:
    """The logarithm of the likelihood that the standard writes for a document, Gaussian constraints included."""
    [likelihood] = document["likelihoods"]
    by_name = {each["name"]: each for each in (*document["distributions"], *document["data"])}
    total, constrained = 0.0, set()
    for name, data in zip(likelihood["distributions"], likelihood["data"], strict=True):
        rate = np.zeros(len(by_name[data]["contents"]))
        for sample in by_name[name]["samples"]:
            nominal = np.array(sample["data"]["contents"])
            factor, added = 1.0, np.zeros_like(nominal)
            for modifier in sample["modifiers"]:
                value = values[modifier["parameter"]]
                if modifier["type"] == "normfactor":
                    factor *= value
                else:
                    side = modifier["data"]["hi" if value >= 0 else "lo"]["contents"]
                    added += abs(value) * (np.array(side) - nominal)
                    constrained.add(modifier["parameter"])
            rate += factor * (nominal + added)
        total += float((np.array(by_name[data]["contents"]) * np.log(rate) - rate).sum())
    return total - 0.5 * sum(values[name] ** 2 for name in constrained)


@pytest.mark.parametrize("kind", ["count", "spectrum"])
def test_an_hs3_document_has_the_likelihood_of_the_workspace(kind):
    pyhf = pytest.importorskip("pyhf", reason="needs the extra 'stats'")
    pyhf.set_backend("numpy", "minuit")
    point = made_point()
    workspace = {"count": count_workspace, "spectrum": spectrum_workspace}[kind](point)
    document = {"count": count_document, "spectrum": spectrum_document}[kind](point)
    model = pyhf.Workspace(workspace).model()
    data = pyhf.Workspace(workspace).data(model)
    nuisances = [name for name in document["domains"][0]["axes"] if name["name"] != "signal"]
    differences = []
    for signal, shift in ((0.0, 0.0), (20.0, 0.4), (45.0, -0.7), (10.0, 1.3)):
        background = {axis["name"]: 1 + 0.1 * shift if kind == "count" else shift for axis in nuisances}
        pars = [signal if name == "signal" else next(iter(background.values())) for name in model.config.par_order]
        theirs = float(np.asarray(model.logpdf(pars, data)).sum())
        differences.append(theirs - hs3_log_likelihood(document, {"signal": signal, **background}))
    np.testing.assert_allclose(differences, differences[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["count", "spectrum"])
def test_pyhs3_reads_what_is_exported(kind):
    pyhs3 = pytest.importorskip("pyhs3", reason="needs pyhs3, whose numba is older than ours")
    document = {"count": count_document, "spectrum": spectrum_document}[kind](made_point())
    pyhs3.Workspace(**document).model(pyhs3.Workspace(**document).analyses["analysis"])


def test_documents_of_a_run(run, points, tmp_path):
    files = write_documents(run, tmp_path / "hs3")
    assert {path.name for path in files} == {
        *(f"count_{point.name}.json" for point in points if point.error > 0),
        *(f"spectrum_{point.name}.json" for point in points if point.has_spectrum),
    }
    for path in files:
        document = json.loads(path.read_text())
        names = {each["name"] for each in document["distributions"]}
        assert set(document["likelihoods"][0]["distributions"]) == names
        used = {m["parameter"] for d in document["distributions"] for s in d["samples"] for m in s["modifiers"]}
        assert used == {axis["name"] for axis in document["domains"][0]["axes"]}
