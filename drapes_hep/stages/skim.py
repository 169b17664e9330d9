"""Stage skim: files to selected events, control histograms, cut flow and the account of every event."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uhi.io.json

from drapes_hep.errors import ConfigError, DrapesError, InputError
from drapes_hep.events.chunks import Reading
from drapes_hep.events.injection import SignalInjection, choose_signal, collect_ids, collect_truth
from drapes_hep.events.loading import load_processor
from drapes_hep.events.readers import expand
from drapes_hep.events.running import run, scan_fileset
from drapes_hep.events.skims import Truth, read_truth, write_skim, write_truth
from drapes_hep.events.types import Foreign
from drapes_hep.files import atomic_path, file_hash
from drapes_hep.remote import fingerprint, is_url
from drapes_hep.rundir import note, run_stage
from drapes_hep.stages.context import Context

__all__ = ["skim"]


def skim(context: Context) -> None:
    """Select events, unless it is done.

    Raises
    ------
    DrapesError
        If an input is bad, or not every requested event was processed.
    """
    config, directory = context.config, context.run
    paths = expand(config.data.path)
    fileset = {config.name: {"files": paths}}
    processor_class = load_processor(config.processor)
    reading = Reading(
        config.data.layout,
        config.data.radius,
        config.data.axes,
        constituents=bool(getattr(processor_class, "reads_constituents", False)),
    )
    infos = scan_fileset(fileset, reading)
    hashes: dict[str, int] = {}
    for i, path in enumerate(paths if len(paths) > 1 else []):
        twin = hashes.setdefault(fingerprint(path), i)
        if twin != i:
            problem = f"holds the same bytes as {paths[twin]}"
            raise InputError(path, problem, "list a file once: its events would count twice")
    if sum(info.entries for info in infos) == 0:
        raise InputError(paths[0], "holds no events", "check data.path")
    if config.data.labels and config.data.truth is None:
        for info in infos:
            if not info.has_labels:
                raise InputError(
                    info.path, "carries no column 'label'", "set data.labels to false, or name a sidecar in data.truth"
                )
    reads = [*paths, *(one for info in infos for one in info.beside)]
    if config.data.truth is not None:
        reads.append(config.data.truth)
    needs = {
        **config.model_dump(mode="json", include={"name", "signal", "processor", "selection", "features"}),
        "range": config.mass.range,
        "labels": config.data.labels,
        "reading": dataclasses.asdict(reading),
        "source": _sources(processor_class),
    }
    if not config.data.truth or is_url(config.data.truth) or Path(config.data.truth).is_file():
        run_stage(
            directory, "skim", needs, reads, lambda: _work(context, fileset, processor_class, reading), context.reporter
        )
    else:
        raise InputError(config.data.truth, "no such file", "check data.truth")


def _sources(processor_class: Foreign) -> list[str]:
    """Hashes of the files that a processor is written in: its own and those of the classes that it builds on."""
    own = [one for one in processor_class.__mro__ if one.__module__.split(".")[0] not in {"builtins", "abc", "coffea"}]
    files = [inspect.getsourcefile(one) for one in own]
    return [file_hash(file) for file in dict.fromkeys(files) if file]


def _all_truth(context: Context, fileset: Mapping[str, Any], reading: Reading) -> Truth | None:
    """Labels of all events, before any selection."""
    config = context.config
    if not config.data.labels:
        return None
    sidecar = None if config.data.truth is None else read_truth(config.data.truth)
    if sidecar is not None and config.signal.inject is None:
        return sidecar
    out, _ = run(
        fileset,
        collect_truth if sidecar is None else collect_ids,
        chunksize=config.data.chunksize,
        reading=dataclasses.replace(reading, constituents=False, jets=False),
    )
    columns = out["truth"].columns()
    order = np.argsort(columns["event_id"], kind="stable")
    ids = columns["event_id"][order]
    # a sidecar may know more events than the files hold: those must not be counted as injected
    label = columns["label"][order] if sidecar is None else sidecar.truth_for(ids)
    return Truth(config.data.truth or "data.path", ids, label)


def _work(context: Context, fileset: Mapping[str, Any], processor_class: Foreign, reading: Reading) -> list[Path]:
    config, directory = context.config, context.run
    settings = {
        "leading_pt": config.selection.leading_pt,
        "abs_eta_max": config.selection.abs_eta_max,
        "undefined": config.selection.undefined,
        "features": config.features,
        "mass_range": config.mass.range,
    }
    if config.selection.max_constituents is not None:
        # only if given: a processor without constituents knows no such setting, and says so
        settings["max_constituents"] = config.selection.max_constituents
    truth = _all_truth(context, fileset, reading)
    dropped = np.empty(0, dtype=np.int64)
    if truth is not None and config.signal.inject is not None:
        signal = truth.event_id[truth.label == 1]
        dropped = np.setdiff1d(signal, choose_signal(signal, config.signal.inject, config.signal.seed))
    try:
        processor = processor_class(settings)
    except DrapesError:
        raise
    except Exception as error:  # a user's class may take anything else
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"processor '{config.processor}': cannot be made with the settings ({type(error).__name__}: {reason})"
        ) from error
    output, report = run(
        fileset,
        SignalInjection(processor, dropped),
        executor=context.executor,
        workers=context.workers,
        chunksize=config.data.chunksize,
        progress=context.reporter.draws,
        reading=reading,
    )
    columns = output["skim"].columns()
    if not len(columns["event_id"]):
        raise ConfigError("the selection keeps no event: see the cuts in 'selection' and 'mass.range'")
    label = None if truth is None else truth.truth_for(columns["event_id"])
    inputs = {str(one.path): fingerprint(one.path) for one in report.files}
    # the account is about what the files hold; events that were not injected were read and set aside, and say so
    write_skim(directory.events, columns, {"inputs": inputs, "name": config.name})
    written = [directory.events]
    if label is not None:
        write_truth(directory.truth, columns["event_id"], label)
        written.append(directory.truth)
    else:
        directory.truth.unlink(missing_ok=True)  # of an earlier run that had labels
    hists = {name: json.loads(json.dumps(one, default=uhi.io.json.default)) for name, one in output["hists"].items()}
    with atomic_path(directory.skim_hists) as temporary:
        temporary.write_text(json.dumps(hists), encoding="utf-8")
    flow = output["cutflow"][config.name]
    record = {
        "accounting": {
            "requested": report.requested,
            "processed": report.processed,
            "lost": report.requested - report.processed,
        },
        "cutflow": [{"name": step, **numbers} for step, numbers in flow.items()],
        "files": [{"path": one.path, "requested": one.requested, "processed": one.processed} for one in report.files],
        "clipped_masses": report.clipped_masses,
    }
    with atomic_path(directory.skim_info) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    note(directory, inputs=inputs)
    return [*written, directory.skim_hists, directory.skim_info]
