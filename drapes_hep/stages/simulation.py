"""Stage skim.simulation: events of another simulation, selected as the data are, for templates that start from them."""

from __future__ import annotations

import dataclasses

import numpy as np

from drapes_hep.config import Config, keys_of
from drapes_hep.errors import ConfigError, InputError
from drapes_hep.events.chunks import FileInfo, Reading
from drapes_hep.events.paths import expand, expand_trees
from drapes_hep.events.processing import scan_fileset
from drapes_hep.events.skims import write_skim
from drapes_hep.events.table import PLACE
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stage
from drapes_hep.pipeline.stage import Stage, Written
from drapes_hep.plugins import class_sources
from drapes_hep.remote import fingerprint
from drapes_hep.stages.resume import discard, reported
from drapes_hep.stages.skim import check_seeds, load_selection, opened_by, processor_of, reading_of, run_selection

__all__ = ["check_sources", "reading_of_sources", "simulation_stage", "skim_simulation"]


def check_sources(config: Config) -> list[FileInfo]:
    """Open the files of other simulations, ``template.source`` and ``study.source``, without reading an event.

    Raises
    ------
    DrapesError
        If one cannot be read, is the data itself or holds the data's simulated events.
    """
    infos: list[FileInfo] = []
    for name, source in (("template.source", config.template.source), ("study.source", config.study.source)):
        if source is not None:
            infos += _opened(config, expand(source), name)
    return infos


def reading_of_sources(config: Config) -> Reading:
    """Return how files of other simulations are read."""
    # the simulation may be in another layout than the data
    return dataclasses.replace(reading_of(config), layout=None)


def _opened(config: Config, paths: list[str], name: str) -> list[FileInfo]:
    infos = scan_fileset({"simulation": {"files": paths}}, reading_of_sources(config))
    trees = {} if config.data.path == PLACE else expand_trees(config.data.path)
    data = {fingerprint(path): path for path in trees}
    for path in paths:
        twin = data.get(fingerprint(path))
        if twin is not None:
            raise InputError(path, f"is the data itself ({twin})", f"name another simulation in {name}")
    check_seeds([*(scan_fileset({"data": {"files": trees}}, reading_of(config)) if trees else []), *infos])
    return infos


def simulation_stage(context: Context) -> Stage:
    """Describe the stage: what decides the simulated events."""
    config = context.config
    source, selection = config.template.source or (), load_selection(config)
    return Stage(
        "skim.simulation",
        config.model_dump(mode="json"),
        keys_of("simulation"),
        lambda: [*expand(source)],
        ("stages.simulation", *class_sources(selection)),
        other=processor_of(config, selection),
        recorded=("processor", "template.source"),
    )


def skim_simulation(context: Context) -> None:
    """Select the events of ``template.source``, unless it is done.

    Raises
    ------
    DrapesError
        If an input is bad, is data as well, or no event passes.
    """
    stage = simulation_stage(context)
    run_stage(context.run, stage, lambda: _work(context, stage), context.reporter)
    discard(context.run, stage)


def _work(context: Context, stage: Stage) -> Written:
    config, directory = context.config, context.run
    paths = expand(config.template.source or ())
    # a study's source is its template's, too
    infos = _opened(
        config, paths, "study.source" if config.study.source == config.template.source else "template.source"
    )
    selection = load_selection(config)
    fileset, nothing = {"simulation": {"files": paths}}, np.empty(0, dtype=np.int64)
    with reported(context, stage):
        reading = reading_of_sources(config)
        output, report, inputs = run_selection(context, fileset, selection, nothing, reading, stage, infos=infos)
    columns = output["skim"].columns()
    if not len(columns["event_id"]):
        discard(directory, stage)  # other cuts have other results
        raise ConfigError("template.source: the selection keeps no events of the simulation")
    account = {"requested": report.requested, "processed": report.processed}
    write_skim(directory.simulation, columns, {"inputs": inputs, "accounting": account})
    return Written([directory.simulation], opened_by(context, stage, selection, report))
