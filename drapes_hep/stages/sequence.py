"""The stages in their order: the verbs, what each runs, and in which processes.

The command line and :class:`drapes_hep.search.Search` both go through here. Stages are imported where they are used:
``--help`` waits for nothing, a selection not for torch, and where windows run in processes of their own, this process
never imports it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from drapes_hep.errors import ConfigError, counted
from drapes_hep.parallel import available_memory, in_processes, may_start_processes, tell
from drapes_hep.progress import Relay, board

if TYPE_CHECKING:
    from drapes_hep.config import Config
    from drapes_hep.pipeline.context import Context
    from drapes_hep.pipeline.stage import Stage
    from drapes_hep.regions import Window

__all__ = ["VERBS", "WORKER_MODULE", "check_plugins", "run_verb"]

VERBS = {
    "run": "Run the whole search: skim, train, generate, classify, hunt, report.",
    "skim": "Select events; write the skim, control histograms and cut flow.",
    "train": "Train each window's diffusion model on its sidebands.",
    "generate": "Generate each window's background template.",
    "classify": "Train classifiers of data against template and score each event out of fold.",
    "hunt": "Count and fit; compute local and global significances.",
}
"""What a user can ask for; ``run`` is all the others, and the report is drawn by who asks."""

_OF_WINDOWS = {"train", "generate", "classify", "run"}
WORKER_MODULE = "drapes_hep.stages.worker_imports"
"""What worker processes import, once for all of them."""


def run_verb(verb: str, context: Context, windows: Sequence[Window]) -> None:
    """Run the stages of a verb, each unless it is done.

    Windows run side by side in ``context.workers`` processes, if there are several of both, the models are of features
    and the device is the CPU; a search whose models are of constituents, or are trained on a GPU, runs window by window
    in this process.

    Parameters
    ----------
    verb : str
        One of :data:`VERBS`.
    context : Context
    windows : sequence of Window
        Those that are trained, generated, classified and hunted.

    Raises
    ------
    DrapesError
        If a class of the configuration cannot be loaded or a stage would replace that of another configuration, before
        any of them runs; or as the stages do.
    """
    several = verb in _OF_WINDOWS and min(len(windows), context.workers) > 1
    apart = several and _can_run_apart(context)
    call = _call_apart if apart else _call
    call(_check, context, verb, windows)
    if verb in {"skim", "run"}:
        _skim(context)
    if verb in _OF_WINDOWS:
        (_run_side_by_side if apart else _run_in_turn)(verb, context, windows)
    if verb in {"hunt", "run"}:
        call(_hunt, context, windows)


def _can_run_apart(context: Context) -> bool:
    return context.side_by_side and not context.on_gpu and not _of_main(context.config) and may_start_processes()


def _of_main(config: Config) -> bool:
    """Whether a class is one of the running script or notebook, which no other process can import."""
    return '"__main__:' in config.model_dump_json()


def _skim(context: Context) -> None:
    if context.table is None:
        from drapes_hep.stages.skim import skim

        skim(context)
    else:
        from drapes_hep.stages.skim_table import skim_table

        skim_table(context)
    from drapes_hep.stages.derived import needs_simulation

    if needs_simulation(context):
        from drapes_hep.stages.simulation import skim_simulation

        skim_simulation(context)


def _run_in_turn(verb: str, context: Context, windows: Sequence[Window]) -> None:
    """Run the windows' stages one after the other in this process, which all cores work for.

    On a GPU the models of all windows are trained as one stack: one alone does not fill it.
    """
    trained = context.on_gpu and verb in {"train", "run"}
    if trained:
        from drapes_hep.stages.train import train_windows

        train_windows(context, windows)
    for window in windows:
        _run_window(context, verb, window, trained=trained)


def _run_side_by_side(verb: str, context: Context, windows: Sequence[Window]) -> None:
    """Run the windows' stages in processes of their own, as many as there are workers and as memory allows."""
    from drapes_hep.stages.window_memory import window_memory

    wanted, available = min(context.workers, len(windows)), available_memory()
    processes = max(1, min(wanted, int(available // max(window_memory(context, window) for window in windows))))
    if processes < wanted:
        # how much a window takes follows from the number of its events, which a blinded run does not tell
        context.reporter.say(
            f"{counted(processes, 'window')} at a time instead of {wanted}: there is no memory for more"
            f" ({available / 2**30:.1f} GiB available)"
        )
    # cores that no window has are for the folds of those that run
    inner = dataclasses.replace(context, workers=max(1, context.workers // processes))
    _in_workers(_run_window, inner, [(verb, window) for window in windows], processes)


def _call(function: Callable[..., None], context: Context, *arguments: Any) -> None:
    function(context, *arguments)


def _call_apart(function: Callable[..., None], context: Context, *arguments: Any) -> None:
    _in_workers(function, context, [arguments], 1)


def _in_workers(
    function: Callable[..., None], context: Context, arguments: Sequence[tuple[Any, ...]], processes: int
) -> None:
    """Call a function in processes of their own, with a context whose lines and bars come here."""
    relay = Relay(context.reporter.quiet, context.reporter.draws, tell)
    travels = dataclasses.replace(context.without_events(), wanted_device="cpu", reporter=relay)
    calls = [(travels, *others) for others in arguments]
    with board(context.reporter) as shown:
        for _ in in_processes(function, calls, processes, hear=shown.hear, apart=True, preload=WORKER_MODULE):
            pass


# ---- in this process or in a worker ----------------------------------------------------------------------------------


def _check(context: Context, verb: str, windows: Sequence[Window]) -> None:
    """Check what is better refused before the first stage than hours into the last."""
    from drapes_hep.pipeline.execution import check_overwrite

    if verb == "run":
        check_plugins(context.config, table=context.table is not None)
    if verb in {"classify", "run"}:
        from drapes_hep.cwola.trees import fallback_line

        # first: scores of the other library are refused below
        if line := fallback_line():
            context.reporter.say(line)
    for stage in _long_stages(verb, context, windows):
        check_overwrite(context.run, stage)
    if verb in {"hunt", "run"}:
        from drapes_hep.bumphunt.signal_shapes import find_signal

        # a sample that cannot be read is better refused before unblinding as well
        find_signal(context.config.hunt.signal)
        if context.config.hunt.calibration is not None:
            from drapes_hep.bumphunt.calibrated import read_pulls

            read_pulls(context.config.hunt.calibration)
        if context.config.hunt.seeds is not None:
            from drapes_hep.bumphunt.seed_spread import read_spreads

            read_spreads(context.config.hunt.seeds)


def _long_stages(verb: str, context: Context, windows: Sequence[Window]) -> list[Stage]:
    """Describe the stages of a verb that take long."""
    stages = []
    if verb in {"skim", "run"}:
        from drapes_hep.stages.derived import needs_simulation
        from drapes_hep.stages.skim import skim_stage

        stages.append(skim_stage(context))
        if needs_simulation(context):
            from drapes_hep.stages.simulation import simulation_stage

            stages.append(simulation_stage(context))
    if verb in _OF_WINDOWS:
        from drapes_hep.stages.classify import classify_stage
        from drapes_hep.stages.generate import generate_stage
        from drapes_hep.stages.train import train_stage

        by_verb = {"train": train_stage, "generate": generate_stage, "classify": classify_stage}
        described = [describe for name, describe in by_verb.items() if verb in {name, "run"}]
        stages += [describe(context, window) for window in windows for describe in described]
    return stages


def _run_window(context: Context, verb: str, window: Window, *, trained: bool = False) -> None:
    from drapes_hep.stages.steps import run_window

    run_window(verb, context, window, trained=trained)


def _hunt(context: Context, windows: Sequence[Window]) -> None:
    from threadpoolctl import threadpool_limits

    from drapes_hep.stages.hunt import hunt

    # sums depend on the number of threads of the libraries
    with threadpool_limits(1):
        hunt(context, windows)


# ---- classes of the configuration ------------------------------------------------------------------------------------


def check_plugins(config: Config, *, table: bool = False) -> str:
    """Load the classes that a configuration names: better now than after an hour of training.

    Parameters
    ----------
    config : Config
    table : bool
        Whether the events are a table in memory, which no processor selects.

    Returns
    -------
    str
        Where the processor is; empty for a table.

    Raises
    ------
    ConfigError
        If a class cannot be loaded, or does not fit the others.
    """
    from drapes_hep.cwola.classifiers import load_classifier, reads_of
    from drapes_hep.spectrum.shapes import find_shape
    from drapes_hep.templates.registry import method_of

    method = method_of(config)
    find_shape(config.mass)
    for name, definition in config.define.items():
        # matplotlib, for labels that are not the package's own
        from drapes_hep import plots

        if not plots.can_be_typeset(f"{definition.label or name} [{definition.unit}]"):
            raise ConfigError(f"define.{name}: its label or unit is not valid matplotlib mathtext")
    on_jets = "jets" in method.columns
    place = ""
    if not table:
        place = _check_processor(config, on_jets)
    elif on_jets:
        raise ConfigError("constituents: a table contains features only; remove this section, or use files")
    classifier = load_classifier(config.cwola.classifier, config.cwola.options, folder=config.folder)
    if not on_jets and reads_of(classifier) == "constituents":
        raise ConfigError(
            f"cwola.classifier {config.cwola.classifier} needs templates of constituents: add 'constituents: {{}}'"
        )
    if (method.source == "simulation") != (config.template.source is not None):
        what = "is empty, but the method starts from a simulation" if config.template.source is None else "is not used"
        raise ConfigError(f"template.source: {what} ({method.title})")
    method.check()
    return place


def _check_processor(config: Config, on_jets: bool) -> str:
    """Load the processor and make it; returns where it is."""
    from drapes_hep.plugins import class_sources
    from drapes_hep.stages.skim import load_selection, make_processor

    selection = load_selection(config)
    if on_jets and not getattr(selection, "reads_constituents", False):
        raise ConfigError(
            f"constituents: {config.processor} does not keep constituents; set processor:"
            " processors/constituents.py:Constituents"
        )
    make_processor(config, selection)
    sources = class_sources(selection)
    return str(sources[0]) if sources else config.processor
