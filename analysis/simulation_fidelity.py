"""How close are simulated events to others? Features one by one, and a classifier that tries to tell them apart.

    python analysis/simulation_fidelity.py SIMULATED REFERENCE [--label 0] [--window 3300-3700] [--axes onepass_kt]

Both files may be of any layout. Of a reference with labels, only events of ``--label`` are used. In the window it
prints, for every feature, the Kolmogorov-Smirnov distance with its p-value and both means, and the AUC of boosted trees
(out of fold; 0.5 where they cannot tell) on the masses, the N-subjettiness ratios and all features. ``null`` is the
same with reference against reference, in a sample of the simulated one's size: the yardstick for the AUC.

``--axes`` is that of N-subjettiness, where it is computed here. ``--no-wrap`` keeps only events whose jets both stay
away from azimuth pi: the R&D features of the first release did not wrap azimuth differences, which changes tau of jets
that straddle it. It costs two thirds of the events and biases nothing, since physics has no preferred azimuth.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import awkward as ak
import numpy as np
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from drapes_hep.cwola.classifiers import balanced_weights
from drapes_hep.events.chunks import Reading, split
from drapes_hep.events.features import HLV, compute_features, invariant_mass
from drapes_hep.events.readers import read, scan
from drapes_hep.metrics import Estimate, auc

MASSES = ("mjj", "m_j1", "delta_m", "delta_r")
TAUS = ("tau21_j1", "tau21_j2")


@dataclass(frozen=True)
class Sample:
    """Features of the events in the window, and how many events there are above ``--above``."""

    columns: Mapping[str, np.ndarray]
    above: int

    def __len__(self) -> int:
        return len(self.columns["mjj"])

    @property
    def fraction(self) -> float:
        """Events in the window over those above ``--above``."""
        return len(self) / self.above

    def matrix(self, names: tuple[str, ...]) -> np.ndarray:
        """Columns side by side, shape (n, number of names)."""
        return np.stack([self.columns[name] for name in names], axis=1)


def load(
    path: str, window: tuple[float, float], above: float, leading_pt: float, axes: str, label: int, no_wrap: bool
) -> Sample:
    """Read the features of the events in the window; taus are NaN where they are undefined."""
    reading = Reading(axes=axes)
    parts: list[dict[str, np.ndarray]] = []
    for chunk in split(scan(path, reading=reading), chunksize=5000, reading=reading):
        events = read(chunk)
        chosen = ak.to_numpy(ak.num(events.jets)) >= 2
        if "label" in events.fields:
            chosen &= ak.to_numpy(events.label) == label
        jets = events.jets[chosen]
        pair = jets[ak.argsort(jets.pt, axis=1, ascending=False, stable=True)][:, :2]
        pair = pair[ak.to_numpy(pair.pt[:, 0]) > leading_pt]
        edge = ak.to_numpy(ak.max(abs(pair.phi), axis=1))
        parts.append({"mjj": invariant_mass(pair), "edge": edge, **compute_features(HLV, pair)})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    used = (columns["mjj"] > above) & ((columns["edge"] < np.pi - 1) | (not no_wrap))
    inside = used & (columns["mjj"] >= window[0]) & (columns["mjj"] < window[1])
    return Sample({name: values[inside] for name, values in columns.items()}, int(np.count_nonzero(used)))


def separability(a: np.ndarray, b: np.ndarray, seed: int = 1, splits: int = 3) -> Estimate:
    """AUC of boosted trees between two samples, each event scored by trees that did not see it."""
    x, y = np.concatenate([a, b]), np.repeat([1, 0], [len(a), len(b)])
    trees = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, random_state=seed)
    folds = StratifiedKFold(splits, shuffle=True, random_state=seed)
    weight = balanced_weights(y, np.ones(len(y)))
    score = cross_val_predict(trees, x, y, cv=folds, method="predict_proba", params={"sample_weight": weight})
    return auc(score[:, 1], y == 1)


def compare(ours: Sample, theirs: Sample, nulls: int = 3) -> list[str]:
    """Lines of the report."""
    lines = [
        f"{len(ours)} simulated, {len(theirs)} reference events in the window",
        f"of those above: {ours.fraction:.4f} +- {_binomial(ours):.4f} simulated,"
        f" {theirs.fraction:.4f} +- {_binomial(theirs):.4f} reference",
    ]
    for name in (*MASSES, *TAUS):
        a, b = (sample.columns[name][np.isfinite(sample.columns[name])] for sample in (ours, theirs))
        test = ks_2samp(a, b)
        means = ", ".join(f"{v.mean():.5g} +- {v.std() / np.sqrt(len(v)):.2g}" for v in (a, b))
        lines.append(
            f"{name:9} KS {test.statistic:.4f} (p {test.pvalue:.2g})"
            f"  mean {means}  median {np.median(a):.5g}, {np.median(b):.5g}"
        )
    for title, names in (("masses", MASSES), ("taus", TAUS), ("all", (*MASSES, *TAUS)), ("no m_JJ", HLV)):
        area = separability(ours.matrix(names), theirs.matrix(names))
        reference = theirs.matrix(names)
        null = []
        for seed in range(nulls):
            order = np.random.default_rng(seed).permutation(len(reference))
            size = min(len(ours), len(reference) // 2)
            null.append(separability(reference[order[:size]], reference[order[size:]], seed).value)
        lines.append(
            f"AUC {title:8} {area.value:.4f} +- {area.error:.4f}"
            f"  null {np.mean(null):.4f}, spread {np.std(null, ddof=1):.4f}"
        )
    return lines


def _binomial(sample: Sample) -> float:
    return float(np.sqrt(sample.fraction * (1 - sample.fraction) / sample.above))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("simulated")
    parser.add_argument("reference")
    parser.add_argument("--window", default="3300-3700", help="GeV")
    parser.add_argument("--above", type=float, default=2700.0, help="GeV; of m_JJ: the window's share is of these")
    parser.add_argument("--leading-pt", type=float, default=1200.0, help="GeV")
    parser.add_argument("--label", type=int, default=0)
    parser.add_argument("--axes", default="onepass_kt", choices=("onepass_kt", "kt"))
    parser.add_argument("--no-wrap", action="store_true")
    arguments = parser.parse_args()
    low, high = (float(edge) for edge in arguments.window.split("-"))
    ours, theirs = (
        load(
            path, (low, high), arguments.above, arguments.leading_pt, arguments.axes, arguments.label, arguments.no_wrap
        )
        for path in (arguments.simulated, arguments.reference)
    )
    print("\n".join(compare(ours, theirs)))  # noqa: T201


if __name__ == "__main__":
    main()
