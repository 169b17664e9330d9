"""What the studies of constituents share: who is compared, lines of their tables, figures of jets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from drapes_hep.config import Config
from drapes_hep.cwola.classifiers import find_classifier, reads_of
from drapes_hep.errors import ConfigError
from drapes_hep.plots.jets import jet_grid, jet_shapes
from drapes_hep.plots.style import Stamp
from drapes_hep.studies.design import (
    Entry,
    Row,
    generators,
    injected,
    of_template,
    on_features,
    repetitions,
    subjects,
    title_of,
    trial_of,
)
from drapes_hep.studies.trials import Kind, Trial
from drapes_hep.templates.registry import method_of

__all__ = ["comparisons", "jet_figure", "jet_lines", "llv_searches"]


def _name(generator: str, method: str, config: Config) -> str:
    """Return what legends call a generator's template."""
    if generator and method == "from_noise":
        return generator
    return f"{generator or title_of(method, config)} LLV"


def _check(config: Config) -> None:
    if "jets" not in method_of(config).columns:
        raise ConfigError("this study compares jets: its configuration needs the section constituents")


def comparisons(config: Config, kind: Kind, in_sidebands: bool) -> list[Entry]:
    """Compare each generator's templates with true background, without signal.

    Parameters
    ----------
    config : Config
    kind : {"quality", "jets"}
    in_sidebands : bool
        In the sidebands, where only templates from noise can be compared, or in the window.

    Returns
    -------
    list of Entry
    """
    _check(config)
    methods = ("from_noise",) if in_sidebands else config.study.templates
    return [
        Entry(
            Trial(kind, of_template(injected(repetition, 0), method), method, in_sidebands=in_sidebands),
            {
                "template": _name(name, method, config),
                "region": "sidebands" if in_sidebands else "window",
                "seed": repetition.seed,
            },
        )
        for name, own in generators(config).items()
        for repetition in repetitions(own)
        for method in methods
    ]


def jet_lines(entry: Entry, record: Mapping[str, Any]) -> list[Row]:
    """Return one line per quantity: the distance of generated from true jets, and that of true from true."""
    lost = {name: value for name, value in record.items() if name.startswith("lost_")}
    shared = {"n_truth": record["n_truth"], "n_template": record["n_template"], "events_a_side": record["events"]}
    shared |= lost
    return [
        {**entry.labels, "quantity": name, **quantities, **shared} for name, quantities in record["quantities"].items()
    ]


def jet_figure(entries: Sequence[Entry], records: Sequence[Mapping[str, Any]], config: Config, stamp: Stamp) -> Figure:
    """Draw the distributions of the first repetition, all generators together."""
    first = [
        (entry, record) for entry, record in zip(entries, records, strict=True) if entry.labels["seed"] == config.seed
    ]
    shapes = jet_shapes({str(entry.labels["template"]): record for entry, record in first})
    region = str(first[0][0].labels["region"]) if first else ""
    return jet_grid(shapes, stamp, title=f"In the {region}, without signal")


def llv_searches(config: Config, counts: Sequence[int], *references: str) -> list[Entry]:
    """Search with each generator's templates and with references, and with Drapes 0 made of features.

    References are called LLV where the configuration's classifier reads constituents; one of features reads those of
    true jets.

    Parameters
    ----------
    config : Config
    counts : sequence of int
        Signal events injected, before the selection.
    *references : str
        Of :data:`drapes_hep.studies.trials.REFERENCES`.

    Returns
    -------
    list of Entry
    """
    _check(config)
    level = " LLV" if reads_of(find_classifier(config.cwola.classifier, config.folder)) == "constituents" else ""
    out: list[Entry] = []
    for count in counts:
        for i, (name, own) in enumerate(generators(config).items()):
            for repetition in repetitions(injected(own, count)):
                # references know no generator: they are measured once
                for subject in subjects(own, *(() if i else references)):
                    title = (
                        _name(name, subject, config)
                        if subject in config.study.templates
                        else title_of(subject, config) + level
                    )
                    labels: Row = {"injected": count, "template": title, "seed": repetition.seed}
                    out.append(Entry(trial_of("search", repetition, subject), labels))
        for repetition in repetitions(injected(on_features(config), count)):
            of_features: Row = {"injected": count, "template": title_of("from_noise", config), "seed": repetition.seed}
            out.append(Entry(trial_of("search", repetition, "from_noise"), of_features))
    return out
