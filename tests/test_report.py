"""The report: reads the files of the contract alone, is self-contained, honest and the same when made twice."""

from __future__ import annotations

import csv
import gc
import html
import json
import re
import shutil
import weakref
from dataclasses import replace

import hist
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uhi.io.json
from scipy.stats import norm

from drapes_hep.config import Config
from drapes_hep.errors import RunDirectoryError
from drapes_hep.events.features import FEATURES
from drapes_hep.events.skims import write_skim
from drapes_hep.report import sections, write_report
from drapes_hep.report.pictures import Rendered
from drapes_hep.report.points_to_check import checks
from drapes_hep.report.run_files import load_run

NAMES = ("m_j1", "delta_m", "tau21_j1", "tau21_j2", "delta_r")
CUTS = (1.0, 0.1, 0.01, 0.001)
LOW, HIGH, WIDTH = 2700.0, 6000.0, 20.0


def _features(n, rng, signal=False):
    if signal:
        return {
            "m_j1": rng.normal(500, 25, n),
            "delta_m": rng.normal(400, 35, n),
            "tau21_j1": rng.beta(4, 16, n),
            "tau21_j2": rng.beta(4, 16, n),
            "delta_r": rng.normal(3.1, 0.2, n),
        }
    return {
        "m_j1": rng.gamma(3, 80, n),
        "delta_m": rng.gamma(2, 70, n),
        "tau21_j1": rng.beta(6, 5, n),
        "tau21_j2": rng.beta(6, 5, n),
        "delta_r": rng.normal(3.2, 0.35, n),
    }


def _masses(n, rng):
    return LOW - 520 * np.log1p(-rng.random(n) * (1 - np.exp(-(HIGH - LOW) / 520)))


def _table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, allow_nan=False))


def build_run(
    folder,
    starts=(2900, 3300, 3700),
    events=20_000,
    signal=150,
    labels=True,
    blind=False,
    toys=400,
    seed=1,
    names=NAMES,
):
    """A run directory with plausible numbers."""
    rng = np.random.default_rng(seed)
    windows = [(float(a), float(a) + 400) for a in starts]
    mjj = np.concatenate([_masses(events, rng), rng.normal(3480, 70, signal)])
    label = np.concatenate([np.zeros(events, int), np.ones(signal, int)])
    back, front = _features(events, rng), _features(signal, rng, signal=True)
    values = {k: np.concatenate([back[k], front[k]]) for k in names}
    order = rng.permutation(len(mjj))
    mjj, label, values = mjj[order], label[order], {k: v[order] for k, v in values.items()}
    ids = np.arange(len(mjj)) + 7
    covered = np.zeros(len(mjj), bool)
    for a, b in windows:
        covered |= (mjj >= a) & (mjj < b)

    config = Config.model_validate(
        {
            "name": "synthetic",
            "features": list(names),
            "data": {"path": "/data/<events>.h5", "labels": labels},
            "blind": blind,
            "windows": {"first": starts[0], "last": starts[-1], "step": 200},
            "hunt": {"toys": toys},
            "plots": {"label": "LHC Olympics", "text": "R&D dataset"},
        }
    )
    stages = {"skim": {"seconds": 3.2, "peak_memory_mib": 512.0}}
    for a, b in windows:
        for k, stage in enumerate(("train", "generate", "classify")):
            stages[f"{stage}.{a:g}-{b:g}"] = {"seconds": 31.5 - 9 * k, "peak_memory_mib": 800.0 + k}
    stages["hunt"] = {"seconds": 12.0, "peak_memory_mib": 420.0}
    makers = {
        "finished": "2026-01-02T03:05:05+00:00",
        "versions": {"python": "3.11.2", "drapes-hep": "0.1.0", "torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "clean": True},
        "code": "ab" * 32,
        "platform": "Linux",
    }
    stages = {name: {**cost, **makers} for name, cost in stages.items()}
    _json(
        folder / "manifest.json",
        {
            "layout_version": 1,
            "name": "synthetic",
            "created": "2026-01-02T03:04:05+00:00",
            "config": config.model_dump(mode="json"),
            "processor": {"class": "mine.py:Mine", "files": {"/project/mine.py": "ef" * 32}},
            "inputs": {"/data/<events>.h5": "cd" * 32},
            "stages": stages,
        },
    )

    n = len(mjj)
    flow = {
        "read": 3 * n,
        "golden_json": 3 * n,
        "trigger": 3 * n,
        "two_jets": 3 * n - 4,
        "leading_pt": 2 * n,
        "abs_eta": 2 * n - 90,
        "mass_range": n + 25,
        "undefined_m_j1": 0,
        "undefined_tau21_j1": 20,
        "undefined_tau21_j2": 5,
        "defined": n,
        "not_injected": 1100,
    }
    _json(
        folder / "skim" / "skim.json",
        {
            "accounting": {"requested": 3 * n + 1100, "processed": 3 * n + 1100, "lost": 0},
            "cutflow": [{"name": k, "events": v, "weight": float(v)} for k, v in flow.items()],
            "files": [{"path": "/data/<events>.h5", "requested": 1000, "processed": 1000}],
            "hidden": windows if blind else [],
        },
    )
    axes = {"mjj": hist.axis.Regular(160, 0, 8000, name="mjj", label=r"$m_{JJ}$ [GeV]")}
    axes |= {
        k: hist.axis.Regular(FEATURES[k].bins, *FEATURES[k].range, name=k, label=FEATURES[k].axis_label) for k in names
    }
    categories = (
        hist.axis.StrCategory(["qcd"], growth=True, name="dataset"),
        hist.axis.StrCategory(["before", "after"], name="selection"),
    )
    hists = {}
    for name, axis in axes.items():
        h = hist.Hist(*categories, axis, storage="weight")
        column = mjj if name == "mjj" else values[name]
        wide = np.concatenate([column, column * rng.uniform(0.5, 1.3, n)])
        h.fill(dataset="qcd", selection="before", **{name: wide})
        h.fill(dataset="qcd", selection="after", **{name: column})
        hists[name] = h
    for name, axis in {
        "pt": hist.axis.Regular(150, 0, 3000, name="pt", label=r"$p_T$ [GeV]"),
        "eta": hist.axis.Regular(60, -3, 3, name="eta", label=r"$\eta$"),
    }.items():
        h = hist.Hist(*categories, hist.axis.StrCategory(["leading", "subleading"], name="jet"), axis, storage="weight")
        for selection in ("before", "after"):
            for jet in ("leading", "subleading"):
                column = rng.exponential(250, n) + 1200 if name == "pt" else rng.normal(0, 1, n)
                h.fill(dataset="qcd", selection=selection, jet=jet, **{name: column})
        hists["jet_" + name] = h
    _json(folder / "skim" / "hists.json", json.loads(json.dumps(hists, default=uhi.io.json.default)))
    jets = pa.array([[{"pt": 1300.0}, {"pt": 1250.0}]] * n)
    _table(
        folder / "skim" / "events.parquet", {"event_id": ids, "weight": np.ones(n), "mjj": mjj, **values, "jets": jets}
    )
    if labels:
        _table(folder / "skim" / "truth.parquet", {"event_id": ids, "label": label})

    edges = np.arange(LOW, HIGH + 1, WIDTH)
    centre = 0.5 * (edges[1:] + edges[:-1])
    shape = np.exp(-(centre - LOW) / 520)
    shape /= shape.sum()
    hunts, results = [], []
    for w, (a, b) in enumerate(windows):
        home = folder / "windows" / f"{a:g}-{b:g}"
        inside = (mjj >= a) & (mjj < b)
        bins_inside = (centre > a) & (centre < b)
        tail = rng.random(n)
        tail[label == 1] = 10 ** -rng.uniform(0.5, 4.5, int(label.sum()))
        tail[mjj < 3000] *= 0.93
        part = rng.choice(3, n, p=[0.8, 0.1, 0.1]).astype(np.int8)
        side = ~inside
        _table(home / "split.parquet", {"event_id": ids[side], "part": part[side]})
        held_out = side & (part == 2)
        m = int(held_out.sum())
        copy = {
            k: v * rng.normal(1.0, 0.02, m) + (8 if k == "m_j1" else 0)
            for k, v in _features(m, rng).items()
            if k in names
        }
        weights = np.ones(m)
        _table(
            home / "closure.parquet",
            {"event_id": np.arange(m), "parent_id": np.full(m, -1), "mjj": mjj[held_out], "weight": weights, **copy},
        )
        t = 5 * int(inside.sum())
        tem = {k: v for k, v in _features(t, rng).items() if k in names}
        _table(
            home / "template.parquet",
            {
                "event_id": np.arange(t),
                "parent_id": np.full(t, -1),
                "mjj": rng.uniform(a, b, t),
                "weight": np.ones(t),
                **tem,
            },
        )
        _table(
            home / "template_scores.parquet",
            {
                "event_id": np.arange(t),
                "parent_id": np.full(t, -1),
                "mjj": rng.uniform(a, b, t),
                "weight": np.ones(t),
                "fold": np.arange(t) % 5,
                "score": rng.random(t),
                "tail": (np.arange(t) + 1.0) / t,
            },
        )
        _table(
            home / "scores.parquet",
            {
                "event_id": ids,
                "mjj": mjj,
                "weight": np.ones(n),
                "region": inside.astype(np.int8),
                "part": np.where(inside, -1, ids % 3).astype(np.int8),
                "fold": ids % 5,
                "score": -np.log(tail),
                "tail": tail,
            },
        )
        epochs = 60
        loss = 0.9 * np.exp(-np.arange(epochs) / 6) + 0.41
        _json(
            home / "training.json",
            {
                "trainings": {
                    "features": {
                        "title": "Training of the background model",
                        "caption": "",
                        "unit": "event",
                        "train": list(loss + rng.normal(0, 0.003, epochs)),
                        "validation": list(loss + 0.004 + rng.normal(0, 0.006, epochs)),
                        "rate": list(2e-3 * np.cos(np.linspace(0, 1.5, epochs))),
                        "best_epoch": 51,
                        "stopped_early": False,
                        "seconds": 30.1,
                    }
                },
                "events": {
                    "train": int((side & (part == 0)).sum()),
                    "validation": int((side & (part == 1)).sum()),
                    "closure": m,
                },
            },
        )
        truth = int((inside & (label == 1)).sum())
        eff_b = np.geomspace(1e-4, 1, 200)
        eff_s = np.minimum(1, eff_b**0.2)
        metrics = {
            "auc": {"value": 0.86, "error": 0.01},
            "sic_100": {"value": 5.6, "error": 0.3, "signal_efficiency": 0.56, "background_efficiency": 0.01},
            "sic_1000": {"value": 10.1, "error": 1.2, "signal_efficiency": 0.32, "background_efficiency": 0.001}
            if w
            else None,
            "sic_max": {"value": 10.5, "error": 1.4, "signal_efficiency": 0.3, "background_efficiency": 0.0008},
        }
        quality = {
            "name": "from_noise",
            "n": t,
            "auc_vs_truth": {"value": 0.515 + 0.004 * w, "error": 0.004} if labels else None,
            "strength": None,
            "steps_left": None,
            "auc_vs_sideband_closure": {"value": 0.505, "error": 0.004},
            "auc_vs_pseudo_window": {"value": 0.51, "error": 0.005, "window": [3700, 4100]} if w == 0 else None,
        }
        with_truth = labels and truth > 0
        _json(
            home / "quality.json",
            {
                "template": quality,
                "metrics": metrics if with_truth else None,
                "roc": {"signal_efficiency": list(eff_s), "background_efficiency": list(eff_b)} if with_truth else None,
                "n_signal_truth": truth if labels else None,
            },
        )
        points, hunted = [], []
        for cut in CUTS:
            passed = tail <= cut
            counts = np.histogram(mjj[passed], edges)[0].astype(float)
            expected = shape * events * cut
            error = expected * np.sqrt(0.0004 + 0.05 / max(cut * 1000, 1))
            mu, sigma = float(expected[bins_inside].sum()), float(error[bins_inside].sum())
            poor = cut == 0.001 and w == len(windows) - 1
            observed = int(counts[bins_inside].sum())
            z = (observed - mu) / np.sqrt(mu + sigma**2)
            null = poor or blind
            points.append(
                {
                    "background_efficiency": cut,
                    "observed": None if blind else observed,
                    "expected": None if poor else mu,
                    "expected_error": None if poor else sigma,
                    "p_local": None if null else float(norm.sf(z)),
                    "z_local": None if null else float(z),
                }
            )
            hidden = np.zeros(len(centre), bool)
            if blind:
                for lo, hi in windows:
                    hidden |= (centre > lo) & (centre < hi)
            outside = ~bins_inside
            chi2 = float(((counts - expected)[outside] ** 2 / expected[outside]).sum()) if cut == 1 else None
            hunted.append(
                {
                    "background_efficiency": cut,
                    "counts": [None if h else c for c, h in zip(counts, hidden, strict=True)],
                    "expected": None if poor else list(expected),
                    "expected_bin_error": None if poor else list(error),
                    "degree": None if cut == 1 else 1,
                    "chi2": chi2,
                    "ndof": int(outside.sum()) - 4 if cut == 1 else None,
                }
            )
        hunts.append({"sr": [a, b], "working_points": hunted})
        results.append(
            {
                "sr": [a, b],
                "n_observed": points[0]["observed"],
                "n_signal_truth": truth if labels else None,
                "fit": {"chi2": hunted[0]["chi2"], "ndof": hunted[0]["ndof"]},
                "template": quality,
                "working_points": points,
                "metrics": metrics if with_truth and not blind else None,
            }
        )
    quoted = [(p["p_local"], r["sr"]) for r in results for p in r["working_points"] if p["p_local"] is not None]
    best = min(quoted) if quoted else None
    smallest = rng.beta(1, 9, toys)
    have = bool(toys and best)
    overall = {
        "p_global": 1 / (toys + 1) if have else None,
        "z_global": float(norm.isf(1 / (toys + 1))) if have else None,
        "p_global_interval": [0.0, 3.7 / toys] if have else None,
        "bound": True if have else None,
        "exceeding": 0 if have else None,
        "p_global_extrapolated": 2.3e-5 if have else None,
        "z_global_extrapolated": float(norm.isf(2.3e-5)) if have else None,
        "p_global_extrapolated_interval": [2.2e-5, 2.4e-5] if have else None,
        "effective_trials": 28.7 if have else None,
        "effective_trials_interval": [27.3, 30.1] if have else None,
        "best_window": best[1] if best else None,
        "toys": toys,
        "reason": None if have else "the run is blinded" if blind else "hunt.toys is 0: no pseudo-experiments",
    }
    fits = resonance_fits(windows, shape, events, centre)
    _json(
        folder / "hunt.json",
        {
            "resonance": [] if blind else [spectra for _, spectra in fits if spectra is not None],
            "edges": list(edges),
            "counts": hunts[0]["working_points"][0]["counts"],
            "windows": hunts,
            "toys": {"smallest_p": list(smallest) if have else [], "observed": best[0] if have else None},
            "global_background": {"expected": list(shape * events)},
        },
    )
    _json(
        folder / "results.json",
        {
            "schema_version": 1,
            "accounting": {"requested": 3 * n + 1100, "processed": 3 * n + 1100, "lost": 0},
            "windows": results,
            "global": overall,
            "resonance": {
                "shape": None if blind else "Gaussian, σ/m = 0.033",
                "unsearched": [[LOW, windows[0][0]], [windows[-1][1], HIGH]],
                "points": [] if blind else [fit for fit, _ in fits],
                "conditional": None,
                "reason": "the run is blinded" if blind else None,
            },
        },
    )
    return folder


def resonance_fits(windows, shape, events, centre):
    """Return points of a scan of each window with its largest z in the middle, and the spectra of the largest."""
    out = []
    for window, cut in [(None, 1.0), *((w, c) for w in windows for c in CUTS if c < 1)]:
        masses = (LOW, 3480.0, 5500.0) if window is None else (window[0], 0.5 * sum(window), window[1] - 50)
        for i, mass in enumerate(masses):
            quoted = i > 0
            peak = 60 * np.exp(-0.5 * ((centre - mass) / 115) ** 2)
            fit = {
                "mass": mass,
                "resolution": 115.0,
                "window": None if window is None else list(window),
                "background_efficiency": cut,
                "signal": 300.0 if quoted else None,
                "signal_error": 60.0 if quoted else None,
                "signal_failing": 20.0 if quoted and window else None,
                "z": 5.25 / i if quoted else None,
                "p_local": 7.6e-8 if quoted else None,
                "method": "asymptotic" if quoted else None,
                "z_asymptotic": 5.25 / i if quoted else None,
                "toys": None,
                "exceeding": None,
                "background": 500.0 if quoted else None,
                "degree": 2 if quoted and window else None,
                "p_signal": 0.43 / i if quoted else None,
                "p_background": 1e-4 if quoted else None,
                "reason": None if quoted else "fewer than 10 events outside the window pass",
            }
            largest = {
                **{key: fit[key] for key in ("window", "background_efficiency", "mass")},
                "background": list(shape * events * cut),
                "signal": list(peak),
            }
            out.append((fit, largest if i == 1 else None))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("run") / "run", starts=(3300, 3700))


@pytest.fixture(scope="module")
def coarse():
    """Small pictures: what is drawn is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drapes_hep.report.pictures.DPI", 25)
        yield


@pytest.fixture(scope="module")
def page(run, coarse):
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture
def no_pictures(monkeypatch):
    """Figures are made but not rendered: what is tested is the reading."""
    monkeypatch.setattr("drapes_hep.report.page.render_figure", lambda _: Rendered(b"", b""))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("small") / "run", starts=(3300,), events=3000, signal=30, toys=50)


@pytest.fixture
def small(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


def test_page_is_self_contained(page):
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert sources
    assert all(s.startswith(("data:image/png;base64,", "#")) for s in sources)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_page_has_its_sections_and_names_its_files(page):
    for anchor in (
        "headline",
        "accounting",
        "windows",
        "template",
        "metrics",
        "figures",
        "trained",
        "provenance",
        "glossary",
    ):
        assert f'id="{anchor}"' in page
    for name in ("results.json", "hunt.json", "skim/skim.json", "manifest.json", "windows/*/quality.json"):
        assert name in page
    assert "discover" not in page.lower()


def test_page_quotes_the_results(run, page):
    results = json.loads((run / "results.json").read_text())
    for window in results["windows"]:
        for point in window["working_points"]:
            if point["z_local"] is not None:
                assert f"<td>{point['z_local']:.2f}</td>".replace("-", "−") in page
    assert "as extreme as the data" in page
    assert "p ≤ " in page


def rows_of(page, heading):
    """Cells of the table whose first header this is, without markup."""
    (table,) = [t for t in re.findall(r"<table>.*?</table>", page, re.DOTALL) if f"<th>{heading}</th>" in t]
    return [
        [html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)]
        for row in re.findall(r"<tr.*?</tr>", table)[1:]
    ]


def section(page, name):
    """Return the words of a section of the page."""
    text = page[page.index(f'<section id="{name}">') :]
    return " ".join(re.sub(r"<[^>]+>", " ", text[: text.index("</section>")]).split())


def test_the_resonance_fit_has_a_section(page):
    words = section(page, "resonance")
    assert "A signal (Gaussian, σ/m = 0.033) is fitted together with the background" in words
    assert "– 1 (inclusive) 3480 300 ± 60 5.25 0.43 1.0 × 10 −4" in words
    assert "3300–3700 0.01 3500 300 ± 60 5.25" in words
    assert all(f"figures/resonance_{name}.pdf" in words for name in ("scan", "inclusive", "selected"))


def test_the_headline_names_what_it_quotes(page):
    words = section(page, "headline")
    assert "window count, largest local significance" in words
    assert "resonance fit, largest local significance 5.25 σ 3480 GeV at ε B = 1 (inclusive)" in words
    assert "The window counts are the primary result" in words


def test_a_range_in_no_window_is_a_point_to_check(page):
    assert "in no window, 2700–3300 and 4100–6000 GeV: only the resonance fit without a cut" in section(
        page, "headline"
    )


def test_a_poor_fit_is_quoted_with_that_with_a_signal(small, no_pictures):
    results = json.loads((small / "results.json").read_text())
    results["windows"][0]["fit"]["p_value"] = 1e-5
    (small / "results.json").write_text(json.dumps(results))
    page = write_report(small).read_text(encoding="utf-8")
    assert "3300–3700 GeV, p = 1e-05 (with a signal of 3480 GeV, p = 0.43)" in section(page, "headline")


def test_a_run_without_resonance_fits_has_a_page(small, no_pictures):
    for name in ("results.json", "hunt.json"):
        record = json.loads((small / name).read_text())
        del record["resonance"]
        (small / name).write_text(json.dumps(record))
    page = write_report(small).read_text(encoding="utf-8")
    assert section(page, "resonance").startswith("Resonance fit This run is of a version without resonance fits.")
    assert "resonance fit, largest" not in section(page, "headline")


def test_masses_without_a_result_have_their_reason(small, no_pictures):
    results = json.loads((small / "results.json").read_text())
    few = dict.fromkeys(("z", "signal", "signal_error", "p_signal", "p_background"))
    few["reason"] = "fewer than 10 events outside the window pass"
    for fit in results["resonance"]["points"]:
        if fit["background_efficiency"] == 0.001:
            fit.update(few)
    (small / "results.json").write_text(json.dumps(results))
    page = write_report(small).read_text(encoding="utf-8")
    assert "3300–3700 0.001 – – – fewer than 10 events outside the window pass – –" in section(page, "resonance")


def changed_page(run, change):
    """Return the page of a run after a change of its resonance fits."""
    results = json.loads((run / "results.json").read_text())
    change(results["resonance"])
    (run / "results.json").write_text(json.dumps(results))
    return write_report(run).read_text(encoding="utf-8")


def test_a_window_that_no_signal_describes_shows_the_best_fit(small, no_pictures):
    def change(record):
        for fit in record["points"]:
            if fit["background_efficiency"] == 0.01:
                fit |= {"z": None, "p_signal": 1e-5 / fit["mass"], "p_background": 1e-12, "reason": "it does not"}

    words = section(changed_page(small, change), "resonance")
    assert "3300–3700 0.01 3300 – – no mass describes the spectrum; the best is shown 3.0 × 10 −9 1.0 × 10 −12" in words


def test_a_significance_from_pseudo_experiments_says_so(small, no_pictures):
    def change(record):
        for fit in record["points"]:
            if fit["z"] is not None:
                fit |= {"method": "pseudo-experiments", "toys": 400, "exceeding": 0 if fit["window"] else 80}

    page = changed_page(small, change)
    words = section(page, "resonance")
    assert "3480 300 ± 60 5.25 (pseudo-experiments; asymptotic 5.25)" in words
    assert "3500 300 ± 60 5.25 (pseudo-experiments; asymptotic 5.25)" in words


def test_the_scan_with_a_resonance_included_is_a_column_and_in_the_table(small, no_pictures):
    def change(record):
        included = {**record["points"][1], "mass": 3512.0, "z": 12.5}
        points = [{**fit, "z": None if fit["z"] is None else -0.5 - fit["mass"] / 1e4} for fit in record["points"]]
        record["conditional"] = {"included": included, "points": points}

    words = section(changed_page(small, change), "resonance")
    assert "Fits of other masses do not have the resonance of 3512 GeV (z = 12.50) in their model" in words
    assert "z local with 3512 GeV included" in words
    assert "3300–3700 0.01 3500 300 ± 60 5.25 0.43 1.0 × 10 −4 −0.85 at 3500 GeV" in words
    with (small / "report" / "tables" / "resonance.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["included_mass"] for row in rows] == [""] * (len(rows) // 2) + ["3512.0"] * (len(rows) // 2)


def test_the_table_of_the_scan_has_every_mass(run, page):
    with (run / "report" / "tables" / "resonance.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    fits = json.loads((run / "results.json").read_text())["resonance"]["points"]
    assert [float(row["mass"]) for row in rows] == [fit["mass"] for fit in fits]
    assert [row["z"] for row in rows] == ["" if fit["z"] is None else str(fit["z"]) for fit in fits]
    assert rows[0]["window_lo_gev"] == ""


def global_card(run, **values):
    """What the headline says of the whole search, without markup, and the sentence below."""
    results = json.loads((run / "results.json").read_text())
    whole = {**results["global"], **values}
    cards, lines = sections.headline(replace(load_run(run), results={**results, "global": whole}))
    (card,) = [c for c in cards if c["what"].startswith("global")]
    return (*(html.unescape(re.sub("<[^>]+>", "", str(card[key]))) for key in ("value", "more")), lines[-1])


def test_without_an_exceeding_toy_the_extrapolation_is_quoted(run):
    toys = json.loads((run / "results.json").read_text())["global"]["toys"]
    value, more, line = global_card(run)
    assert value == "p = 2.3 × 10−5 extrapolated"
    assert more.startswith("z = 4.08; 68% interval [2.2 × 10−5, 2.4 × 10−5]; measured: p ≤ ")
    assert more.endswith(f"; z ≥ {norm.isf(1 / (toys + 1)):.2f}")
    assert line.startswith(f"None of {toys} pseudo-experiments was as extreme as the data")
    assert "28.7 independent searches" in line


def test_with_enough_exceeding_toys_the_measured_value_is_quoted(run):
    counted = {"bound": False, "p_global": 0.02, "z_global": 2.054, "p_global_interval": [0.015, 0.026]}
    value, more, _ = global_card(run, exceeding=10, p_global_extrapolated=0.019, z_global_extrapolated=2.075, **counted)
    assert value == "p = 0.02 measured"
    assert more == "z = 2.05; 95% interval [0.015, 0.026]; extrapolated: p = 0.019; z = 2.08"
    value, *_, line = global_card(run, exceeding=9, **counted)
    assert "extrapolated" in value
    assert line.startswith("Only 9 of")


def test_results_without_an_extrapolation_quote_the_measured_value(run):
    value, more, line = global_card(run, p_global_extrapolated=None)
    assert value.startswith("p ≤ ")
    assert "measured" not in value + more
    assert line.endswith("the global p-value is an upper bound, set by their number.")


def test_the_cut_flow_follows_the_events(run, page):
    rows = rows_of(page, "step")
    names = [row[0] for row in rows]
    assert names == [
        "in the files",
        "signal not injected",
        "before the selection",
        "golden JSON",
        "trigger",
        "two jets",
        "leading jet pT > 1200 GeV",
        "both jets |η| < 2.5",
        "2700 ≤ mJJ < 6000 GeV",
        "tau21_j1 undefined",
        "tau21_j2 undefined",
        "all features defined",
    ]
    events = [int(row[1].replace("\u202f", "")) for row in rows]
    assert events[0] - events[1] == events[2]
    assert events[0] == json.loads((run / "results.json").read_text())["accounting"]["processed"]
    assert rows[2][3:] == ["–", "100.00%"]
    with (run / "report" / "tables" / "cutflow.csv").open() as stream:
        assert [row["step"] for row in csv.DictReader(stream)][:3] == ["in_files", "not_injected", "read"]


def test_a_cut_flow_without_injection_starts_in_the_files(small, no_pictures):
    record = json.loads((small / "skim" / "skim.json").read_text())
    flow = [{"name": "my_step", "events": 5, "weight": 5.0} if s["name"] == "trigger" else s for s in record["cutflow"]]
    _json(small / "skim" / "skim.json", record | {"cutflow": [s for s in flow if s["name"] != "not_injected"]})
    names = [row[0] for row in rows_of(write_report(small).read_text(encoding="utf-8"), "step")]
    assert names[:3] == ["in the files", "golden JSON", "my step"]
    assert "before the selection" not in names


def test_steps_that_are_not_applied_are_named_below_the_cut_flow(small, no_pictures):
    record = json.loads((small / "skim" / "skim.json").read_text())
    flow = [step for step in record["cutflow"] if step["name"] not in {"golden_json", "trigger"}]
    _json(small / "skim" / "skim.json", record | {"cutflow": flow, "not_applied": ["golden_json", "trigger"]})
    page = write_report(small).read_text(encoding="utf-8")
    assert "Not applied: golden JSON, trigger." in page
    assert not {"golden JSON", "trigger"} & {row[0] for row in rows_of(page, "step")}


def test_counts_of_constituents_are_no_steps(small, no_pictures):
    record = json.loads((small / "skim" / "skim.json").read_text())
    extra = [{"name": name, "events": 3, "weight": 3.0} for name in ("no_constituents", "cut_off_constituents")]
    _json(small / "skim" / "skim.json", record | {"cutflow": [*record["cutflow"], *extra]})
    rows = rows_of(write_report(small).read_text(encoding="utf-8"), "step")
    fractions = {row[0]: row[3:] for row in rows}
    assert fractions["no constituents"] == fractions["cut off constituents"] == ["–", "–"]


def test_the_pseudo_window_says_where_it_lies(run, page):
    assert "0.510 ± 0.005 in 3700–4100 GeV" in [row[-1] for row in rows_of(page, "AUC in a pseudo-window")]
    with (run / "report" / "tables" / "template_quality.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["pseudo_window_lo_gev"], r["pseudo_window_hi_gev"]) for r in rows] == [("3700.0", "4100.0"), ("", "")]


def test_symbols_are_typeset(page):
    text = re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert "m_JJ" not in text
    assert "ε_B" not in text
    assert not [alt for alt in re.findall(r'alt="([^"]*)"', text) if "&lt;sub" in alt]


def test_the_glossary_has_the_words_of_the_page(page):
    glossary = page.partition('id="glossary"')[2]
    terms = " ".join(re.sub("<[^>]+>", "", term) for term in re.findall(r"<dt>.*?</dt>", glossary))
    for word in (
        "pseudo-window", "held-out", "closure", "fold", "AUC", "pull", "pseudo-experiment", "εS", "εB", "inclusive",
        "sculpting", "2NLLR", "SIC", "template", "tail",
    ):  # fmt: skip
        assert word in terms


def test_memory_that_was_not_recorded_is_a_dash(small, no_pictures):
    manifest = json.loads((small / "manifest.json").read_text())
    for cost in manifest["stages"].values():
        cost["peak_memory_mb"] = cost.pop("peak_memory_mib")
    _json(small / "manifest.json", manifest)
    assert {row[2] for row in rows_of(write_report(small).read_text(encoding="utf-8"), "wall time [s]")} == {"–"}


def test_provenance_names_what_made_the_stages(page):
    for words in ("0123456789abcdef0123456789abcdef01234567, clean", "ab" * 32, "torch 2.13.0", "/project/mine.py"):
        assert words in page


def test_provenance_names_the_files_that_the_processor_reads(small, no_pictures):
    manifest = json.loads((small / "manifest.json").read_text())
    manifest["processor"] |= {"reads": {"/a/golden.json": "12" * 32}, "opened": {"/a/b": None, "/a/jes": "34" * 32}}
    _json(small / "manifest.json", manifest)
    html = write_report(small).read_text(encoding="utf-8")
    opened = f"/a/b (absent; not declared); /a/jes (SHA-256 {'34' * 32}; not declared)"
    assert f"/a/golden.json (SHA-256 {'12' * 32}); {opened}" in html


def test_provenance_tells_stages_of_different_code_apart(small, no_pictures):
    manifest = json.loads((small / "manifest.json").read_text())
    manifest["stages"]["hunt"] |= {"code": "cd" * 32, "git": {"commit": "fedc", "clean": False}}
    manifest["stages"]["train.9000-9400"] = {"seconds": 1.0, "peak_memory_mib": 1.0, "code": "ef" * 32}
    _json(small / "manifest.json", manifest)
    for name, state in (("skim", "1"), ("hunt", "2")):
        stamp = {key: {} for key in ("config", "other", "recorded", "reads", "files", "opened")}
        modules = {"drapes_hep/rng.py": "0", "drapes_hep/spectrum/fit.py": state}
        _json(small / "stages" / f"{name}.json", {**stamp, "version": 2, "key": "", "modules": modules})
    html = write_report(small).read_text(encoding="utf-8")
    assert f"{'cd' * 32} (hunt)" in html
    assert f"{'ab' * 32} (skim, train.3300-3700, generate.3300-3700, classify.3300-3700)" in html
    assert "The code had uncommitted changes when hunt was run." in html
    assert "Not all stages were run by the same code: drapes_hep/spectrum/fit.py changed between them." in html
    # of a window that is not among the results
    assert "9000-9400" not in html
    assert "ef" * 32 not in html.replace("/project/mine.py (SHA-256 " + "ef" * 32, "")


def test_a_page_can_be_drawn_in_other_words(small, no_pictures):
    before = {name: (small / name).read_bytes() for name in ("manifest.json", "results.json", "hunt.json")}
    html = write_report(small, {"label": "Elsewhere", "text": "", "lumi": None}).read_text(encoding="utf-8")
    assert "Elsewhere: bump hunt" in html
    assert {name: (small / name).read_bytes() for name in before} == before


def test_a_blinded_page_needs_a_skim_that_hides_every_window(tmp_path, no_pictures):
    run = build_run(tmp_path / "run", starts=(3300,), events=400, signal=0, blind=True)
    for hidden in ([], [[3300, 3500]]):
        record = json.loads((run / "skim" / "skim.json").read_text())
        _json(run / "skim" / "skim.json", record | {"hidden": hidden})
        with pytest.raises(RunDirectoryError, match=r"skim.json: was not made blind, and the results are"):
            write_report(run)


def test_nulls_are_dashes_with_a_reason(page):
    assert "too few events outside the window" in page
    assert "one window only" in page
    assert not re.search(r">(None|nan|null)<", page)


def test_what_opens_a_url_is_not_shown(small, no_pictures):
    manifest = json.loads((small / "manifest.json").read_text())
    url = "https://me:word@host.org/a.root?token=abcdef"
    manifest["inputs"] = {url: "12" * 32}
    manifest["config"]["data"] |= {"path": url}
    _json(small / "manifest.json", manifest)
    html = write_report(small).read_text(encoding="utf-8")
    assert html.count("https://...@host.org/a.root?token=...") == 2
    assert "word@" not in html
    assert "abcdef" not in html.replace("0123456789abcdef", "")


def test_text_is_escaped(page):
    assert "&lt;events&gt;" in page
    assert "<events>" not in page


def test_every_figure_is_there_as_png_and_pdf(run, page):
    figures = run / "report" / "figures"
    stems = {p.stem for p in figures.glob("*.png")}
    assert stems == {p.stem for p in figures.glob("*.pdf")}
    assert {
        "local_p",
        "toys",
        "template_quality",
        "passing_fraction",
        "sic",
        "roc",
        "data_split",
        "control_events",
    } <= stems
    for window in ("3300-3700", "3700-4100"):
        for kind in ("spectrum", "spectrum_selected", "spectra", "score", "training_features", "closure"):
            assert f"{kind}_{window}" in stems
    assert not list((run / "report").rglob("*.part"))


def test_figures_are_not_kept(small, monkeypatch):
    figures = []

    def render(figure):
        figures.append(weakref.ref(figure))
        return Rendered(b"", b"")

    def write(_, rendered):
        # what a first collection finalises may be freed by the next alone
        gc.collect()
        gc.collect()
        alive.extend(figure for figure in figures if figure() is not None)
        return dict.fromkeys(rendered, "")

    alive = []
    monkeypatch.setattr("drapes_hep.report.page.render_figure", render)
    monkeypatch.setattr("drapes_hep.report.page.write_figures", write)
    write_report(small)
    assert len(figures) > 10
    # the last may still be in the frame that made it
    assert len(alive) <= 1


def test_a_run_that_cannot_be_read_leaves_the_earlier_report(small, no_pictures, monkeypatch):
    write_report(small)
    before = _bytes(small)
    monkeypatch.setattr("drapes_hep.report.page.render_figure", lambda _: Rendered(b"new", b"new"))
    (small / "windows" / "3300-3700" / "scores.parquet").unlink()
    with pytest.raises(RunDirectoryError, match="missing"):
        write_report(small)
    assert _bytes(small) == before


def test_progress_counts_the_windows(run, no_pictures, tmp_path):
    steps = []
    write_report(shutil.copytree(run, tmp_path / "run"), progress=lambda done, of: steps.append((done, of)))
    assert steps == [(1, 2), (2, 2)]


def test_tables_hold_full_precision_and_empty_nulls(run, page):
    results = json.loads((run / "results.json").read_text())
    with (run / "report" / "tables" / "working_points.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    points = [p for w in results["windows"] for p in w["working_points"]]
    assert len(rows) == len(points)
    for row, point in zip(rows, points, strict=True):
        for key in ("expected", "p_local", "z_local"):
            assert row[key] == ("" if point[key] is None else repr(point[key]))


def _bytes(run):
    files = sorted((run / "report").rglob("*"))
    return {str(p.relative_to(run)): p.read_bytes() for p in files if p.is_file()}


def test_blinded_report_is_deterministic_and_independent_of_data_in_windows(tmp_path, coarse):
    run = build_run(tmp_path / "run", starts=(3300,), events=4000, signal=30, blind=True, names=NAMES[:2])
    (run / "report" / "figures").mkdir(parents=True)
    (run / "report" / "figures" / "stale.png").write_bytes(b"")
    page = write_report(run).read_text(encoding="utf-8")
    first = _bytes(run)
    assert not [name for name in first if "stale" in name]
    assert "Blinded run" in page
    assert "blinded</small>" in page
    assert not [
        name
        for name in first
        if name.removeprefix("report/figures/").startswith(("score", "local_p", "toys", "roc", "sic"))
    ]

    rng = np.random.default_rng(9)
    path = run / "windows" / "3300-3700" / "scores.parquet"
    scores = pq.read_table(path)
    table = {k: scores.column(k).to_numpy().copy() for k in scores.column_names}
    inside = table["region"] == 1
    assert inside.sum() > 100
    table["tail"][inside] = rng.random(inside.sum()) ** 3
    _table(path, table)
    path = run / "skim" / "events.parquet"
    table = pq.read_table(path).drop_columns(["jets"])
    events = {k: table.column(k).to_numpy().copy() for k in table.column_names}
    inside = (events["mjj"] >= 3300) & (events["mjj"] < 3700)
    events["m_j1"][inside] = 1.0
    _table(path, events)
    path = run / "skim" / "hists.json"
    hists = {k: hist.Hist(v) for k, v in json.loads(path.read_text(), object_hook=uhi.io.json.object_hook).items()}
    hists["mjj"].fill(dataset="qcd", selection="after", mjj=np.full(5000, 3500.0))
    _json(path, json.loads(json.dumps(hists, default=uhi.io.json.default)))
    write_report(run)
    second = _bytes(run)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_run_without_control_histograms_has_a_page_without_them(small, no_pictures):
    pages = []
    for hists in (json.loads((small / "skim" / "hists.json").read_text()), {}):
        _json(small / "skim" / "hists.json", hists)
        pages.append(write_report(small).read_text(encoding="utf-8"))
    assert ["Control histograms of" in page for page in pages] == [True, False]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in ("results.json", "hunt.json", "manifest.json", "skim/skim.json", "skim/hists.json")
        for damage in ("cut", "missing", "empty mapping", "list")
        if (name, damage) != ("skim/hists.json", "empty mapping")  # no damage, but a run without control histograms
    ],
)
def test_damaged_json_is_one_clear_line(small, no_pictures, name, damage):
    path = small / name
    if damage == "cut":
        path.write_text(path.read_text()[: path.stat().st_size // 2])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text("{}" if damage == "empty mapping" else "[1]")
    with pytest.raises(RunDirectoryError) as error:
        write_report(small)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (small / "report" / "index.html").exists()


@pytest.mark.parametrize("name", ["scores.parquet", "template_scores.parquet", "quality.json", "closure.parquet"])
def test_damaged_window_is_one_clear_line(small, no_pictures, name):
    path = small / "windows" / "3300-3700" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunDirectoryError, match=re.escape(str(path))) as error:
        write_report(small)
    assert "\n" not in str(error.value)


def test_missing_column_and_missing_run_are_named(small, no_pictures, tmp_path):
    path = small / "windows" / "3300-3700" / "scores.parquet"
    _table(path, {"event_id": np.arange(3)})
    with pytest.raises(RunDirectoryError, match="mjj"):
        write_report(small)
    with pytest.raises(RunDirectoryError, match="no such run directory"):
        write_report(tmp_path / "nowhere")


def test_run_without_toys_labels_or_training(small, no_pictures):
    results = json.loads((small / "results.json").read_text())
    results["global"] = dict.fromkeys(results["global"]) | {
        "toys": 0,
        "reason": "hunt.toys is 0: no pseudo-experiments",
    }
    results["windows"][0]["metrics"] = None
    _json(small / "results.json", results)
    hunt = json.loads((small / "hunt.json").read_text())
    _json(small / "hunt.json", hunt | {"toys": {"smallest_p": [], "observed": None}})
    folder = small / "windows" / "3300-3700"
    quality = json.loads((folder / "quality.json").read_text())
    _json(folder / "quality.json", quality | {"roc": None, "metrics": None, "n_signal_truth": None})
    for name in ("training.json", "split.parquet", "closure.parquet"):
        (folder / name).unlink()
    page = write_report(small).read_text(encoding="utf-8")
    assert 'id="metrics"' not in page
    assert "hunt.toys is 0: no pseudo-experiments" in page
    assert "neighbouring" not in page
    assert "1 window with 4 working points was searched" in page
    assert "the global one does" not in page
    assert "was not trained in this run" in page
    assert "No closure sample" in page


def recorded(path, **values):
    """Write a table again as a skim with this metadata."""
    table = pq.read_table(path)
    write_skim(path, {name: table.column(name).to_numpy() for name in table.column_names}, values)


def test_what_a_method_points_out_is_a_point_to_check(small):
    home = next((small / "windows").iterdir())
    sentence = "its table names no parents"
    assert f"3300–3700 GeV: {sentence}." not in checks(load_run(small), [])
    recorded(home / "closure.parquet", remarks=[sentence])
    assert f"3300–3700 GeV: {sentence}." in checks(load_run(small), [])


@pytest.mark.parametrize(("value", "shown"), [(0.74, False), (0.76, True), (None, False)])
def test_features_that_give_the_mass_away_are_a_point_to_check(small, value, shown):
    recorded(next((small / "windows").iterdir()) / "scores.parquet", mass_r2=value)
    found = [one for one in checks(load_run(small), []) if "give m_JJ away" in one]
    assert ([one.endswith("3300–3700 GeV, R<sup>2</sup> = 0.76.") for one in found]) == [True] * shown


@pytest.mark.parametrize(("spread", "shown"), [(0.03, 0), (0.05, 1)])
def test_models_that_disagree_are_pointed_out(small, spread, shown):
    path = next((small / "windows").iterdir()) / "quality.json"
    quality = json.loads(path.read_text())
    quality["template"]["models_spread"] = {"m_j1": spread, "delta_m": 0.01}
    path.write_text(json.dumps(quality))
    points = [text for text in checks(load_run(small), []) if text.startswith("The models of the folds disagree")]
    assert [text.endswith("3300–3700 GeV, m_j1: 0.050.") for text in points] == [True] * shown
