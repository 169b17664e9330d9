"""Stage skim.simulation: events of another simulation, selected as the data are, for templates that start from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError, InputError
from drapes_hep.events.chunks import FileInfo, Reading
from drapes_hep.events.features import function_sources
from drapes_hep.events.loading import class_sources
from drapes_hep.events.readers import expand, expand_trees
from drapes_hep.events.running import scan_fileset
from drapes_hep.events.skims import write_skim
from drapes_hep.files import file_hash
from drapes_hep.remote import fingerprint
from drapes_hep.stages.context import Context
from drapes_hep.stages.resume import discard, reported
from drapes_hep.stages.skim import check_seeds, load_selection, reading_of, run_selection
from drapes_hep.stamps import Stage, run_stage
from drapes_hep.templates.registry import origin_of

__all__ = ["check_sources", "needs_simulation", "simulation_stage", "skim_simulation"]


def needs_simulation(context: Context) -> bool:
    """Whether the template starts from another simulation."""
    config = context.config
    return origin_of(config.template.method, config.folder).source == "simulation"


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


def _reading(config: Config) -> Reading:
    # the simulation may lie in another layout than the data
    return dataclasses.replace(reading_of(config), layout=None)


def _opened(config: Config, paths: list[str], name: str) -> list[FileInfo]:
    infos = scan_fileset({"simulation": {"files": paths}}, _reading(config))
    trees = expand_trees(config.data.path)
    data = {fingerprint(path): path for path in trees}
    for path in paths:
        twin = data.get(fingerprint(path))
        if twin is not None:
            raise InputError(path, f"is the data itself ({twin})", f"name another simulation in {name}")
    check_seeds([*scan_fileset({"data": {"files": trees}}, reading_of(config)), *infos])
    return infos


def simulation_stage(context: Context) -> Stage:
    """Describe the stage: what decides the simulated events."""
    config = context.config
    source = config.template.source or ()
    return Stage(
        "skim.simulation",
        config.model_dump(mode="json"),
        ("processor", "selection", "features", "define", "mass.range", "data.radius", "data.axes"),
        lambda: [*expand(source)],
        other={
            "features' sources": function_sources(config.definitions["define"]),
            "processor's source": [file_hash(path) for path in class_sources(load_selection(config))],
        },
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


def _work(context: Context, stage: Stage) -> list[Path]:
    config, directory = context.config, context.run
    paths = expand(config.template.source or ())
    # a study's source is its template's, too
    _opened(config, paths, "study.source" if config.study.source == config.template.source else "template.source")
    fileset, nothing = {"simulation": {"files": paths}}, np.empty(0, dtype=np.int64)
    with reported(context, stage):
        output, report, inputs = run_selection(
            context, fileset, load_selection(config), nothing, _reading(config), stage
        )
    columns = output["skim"].columns()
    if not len(columns["event_id"]):
        discard(directory, stage)  # other cuts have other results
        raise ConfigError("template.source: the selection keeps no event of the simulation")
    account = {"requested": report.requested, "processed": report.processed}
    write_skim(directory.simulation, columns, {"inputs": inputs, "name": config.name, "accounting": account})
    return [directory.simulation]
