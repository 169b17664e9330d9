"""Does a cut pass alike along the spectrum? Selected against inclusive m_JJ, without signal.

drapes study sculpting configs/studies.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drapes_hep.config import Config
from drapes_hep.plots import Panel
from drapes_hep.studies.design import (
    Entry,
    Row,
    Study,
    bands,
    injected,
    repetitions,
    select,
    subjects,
    title_of,
    trial_of,
)


def entries(config: Config) -> list[Entry]:
    """Select background with each template, and with true background in its place."""
    return [
        Entry(trial_of("sculpting", injected(one, 0), subject), {"template": title_of(subject), "seed": one.seed})
        for one in repetitions(config)
        for subject in subjects(config, "over_idealised")
    ]


def lines(entry: Entry, record: Mapping[str, Any]) -> list[Row]:
    """Give a line a cut and bin; those of the window and of held-out sidebands carry their whole regions' fraction."""
    out: list[Row] = []
    edges = record["edges"]
    inclusive = record["cuts"]["1"]["bins"]
    for cut, found in record["cuts"].items():
        if cut == "1":
            continue
        for region in ("window", "sidebands"):
            total, passing = record[f"{region}_events"], found[f"{region}_passing"]
            for low, high, before, after in zip(
                edges[:-1], edges[1:], inclusive[region], found["bins"][region], strict=True
            ):
                if before:
                    out.append(
                        {
                            **entry.labels,
                            "background_efficiency": float(cut),
                            "region": region,
                            "region_events": total,
                            "region_passing": passing,
                            "mjj": 0.5 * (low + high),
                            "events": before,
                            "passing": after,
                            "fraction_over_cut": after / before / float(cut),
                        }
                    )
    return out


def panels(rows: Sequence[Row], config: Config) -> list[Panel]:
    """Draw, a panel a cut, the passing fraction over what the cut's name says."""
    cuts = [cut for cut in config.hunt.background_efficiencies if cut < 1]
    out = []
    for cut in cuts:
        mine = [row for row in rows if row["background_efficiency"] == cut]
        # bins with few expected events say nothing
        wide = _merged(mine, least=20.0 / cut)
        out.append(
            Panel(
                r"$m_{JJ}$ [GeV]",
                "Passing fraction over the cut's name",
                bands(wide, "mjj", "fraction_over_cut"),
                rf"$\epsilon_B = {cut:g}$",
                level=1.0,
                meaning="No sculpting",
            )
        )
    return out


def _merged(rows: Sequence[Row], least: float) -> list[Row]:
    """Merge neighbouring bins until each holds enough events of a template and seed, on average."""
    samples = list(dict.fromkeys((row["template"], row["seed"]) for row in rows))
    places = sorted({float(row["mjj"]) for row in rows})
    held = {place: sum(float(row["events"]) for row in rows if row["mjj"] == place) / len(samples) for place in places}
    groups: list[list[float]] = [[]]
    for place in places:
        if groups[-1] and sum(held[one] for one in groups[-1]) >= least:
            groups.append([])
        groups[-1].append(place)
    if len(groups) > 1 and sum(held[one] for one in groups[-1]) < least:
        groups[-2:] = [groups[-2] + groups[-1]]
    out: list[Row] = []
    for template, seed in samples:
        for group in groups:
            mine = [row for row in select(rows, template=template, seed=seed) if row["mjj"] in group]
            events, passing = (sum(float(row[name]) for row in mine) for name in ("events", "passing"))
            if events:
                fraction = passing / events / float(mine[0]["background_efficiency"])
                middle = sum(group) / len(group)
                out.append({"template": template, "seed": seed, "mjj": middle, "fraction_over_cut": fraction})
    return out


STUDY = Study("Selected against inclusive m_JJ without signal", entries, lines, panels)
