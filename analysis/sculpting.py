"""Does a cut pass alike along the spectrum? Selected against inclusive m_JJ, without signal.

drapes study sculpting configs/studies.yaml
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        Entry(
            trial_of("sculpting", injected(repetition, 0), subject),
            {"template": title_of(subject, config), "seed": repetition.seed},
        )
        for repetition in repetitions(config)
        for subject in subjects(config, "over_idealised")
    ]


def lines(entry: Entry, record: Mapping[str, Any]) -> list[Row]:
    """Return a line a cut and bin; those of the window and of held-out sidebands carry their regions' fraction."""
    out: list[Row] = []
    edges = record["edges"]
    inclusive = record["cuts"]["1"]["bins"]
    for cut, passing_cut in record["cuts"].items():
        if cut == "1":
            continue
        for region in ("window", "sidebands"):
            total, passing = record[f"{region}_events"], passing_cut[f"{region}_passing"]
            for low, high, before, after in zip(
                edges[:-1], edges[1:], inclusive[region], passing_cut["bins"][region], strict=True
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
    return [
        Panel(
            r"$m_{JJ}$ [GeV]",
            "Passing fraction over the cut's name",
            bands(_merged(select(rows, background_efficiency=cut), least=60.0 / cut), "mjj", "fraction_over_cut"),
            rf"$\epsilon_B = {cut:g}$",
            level=1.0,
            meaning="As the cut's name says",
        )
        for cut in config.hunt.background_efficiencies
        if cut < 1
    ]


def _merged(rows: Sequence[Row], least: float) -> list[Row]:
    """Merge neighbouring bins until each holds enough events, all seeds together; never window with sidebands."""
    out: list[Row] = []
    for template in dict.fromkeys(row["template"] for row in rows):
        mine = select(rows, template=template)
        seeds = list(dict.fromkeys(row["seed"] for row in mine))
        for part in _regions(mine):
            for group in _groups(part, least):
                lines = _of_bin([row for row in part if row["mjj"] in group], seeds)
                out += [{"template": template, **line} for line in lines]
    return out


def _regions(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Divide rows into the lower sideband, the window and the upper sideband."""
    low = min((float(row["mjj"]) for row in rows if row["region"] == "window"), default=0.0)
    outside = select(rows, region="sidebands")
    return [
        [row for row in outside if float(row["mjj"]) < low],
        select(rows, region="window"),
        [row for row in outside if float(row["mjj"]) > low],
    ]


def _of_bin(rows: Sequence[Row], seeds: Sequence[Any]) -> Iterator[Row]:
    """Return the passing fraction of each seed in one merged bin."""
    weight = sum(float(row["events"]) for row in rows)
    middle = sum(float(row["events"]) * float(row["mjj"]) for row in rows) / weight
    for seed in seeds:
        own = select(rows, seed=seed)
        events, passing = (sum(float(row[name]) for row in own) for name in ("events", "passing"))
        if events:
            fraction = passing / events / float(own[0]["background_efficiency"])
            yield {"seed": seed, "mjj": middle, "fraction_over_cut": fraction}


def _groups(rows: Sequence[Row], least: float) -> list[set[float]]:
    """Return neighbouring bins in groups of enough events; what is left at the end joins the last group."""
    events_at: dict[float, float] = {}
    for row in rows:
        events_at[float(row["mjj"])] = events_at.get(float(row["mjj"]), 0.0) + float(row["events"])
    groups: list[set[float]] = []
    filled = least
    for place in sorted(events_at):
        if filled >= least:
            groups.append(set())
            filled = 0.0
        groups[-1].add(place)
        filled += events_at[place]
    if len(groups) > 1 and filled < least:
        groups[-2:] = [groups[-2] | groups[-1]]
    return groups


STUDY = Study("Selected against inclusive m_JJ without signal", entries, lines, panels)
