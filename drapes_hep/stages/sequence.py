"""The stages in their order: the verbs, what each runs, and what is checked before the first stage starts.

The command line and :class:`drapes_hep.search.Search` both go through here. Stages are imported where they are used:
``--help`` waits for nothing, and a selection not for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drapes_hep.errors import ConfigError

if TYPE_CHECKING:
    from drapes_hep.config import Config
    from drapes_hep.pipeline.context import Context
    from drapes_hep.pipeline.stage import Stage
    from drapes_hep.regions import Window

__all__ = ["VERBS", "check_plugins", "run_verb"]

VERBS = {
    "run": "Run the whole search: skim, train, generate, classify, hunt, report.",
    "skim": "Select events; write the skim, control histograms and cut flow.",
    "train": "Train each window's diffusion model on its sidebands.",
    "generate": "Generate each window's background template.",
    "classify": "Train classifiers of data against template and score each event out of fold.",
    "hunt": "Count and fit; compute local and global significances.",
}
"""What a user can ask for; ``run`` is all the others, and the report is drawn by who asks."""


def run_verb(verb: str, context: Context, windows: Sequence[Window]) -> None:
    """Run the stages of a verb, each unless it is done.

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
        If a stage would replace that of another configuration, before any of them runs; or as the stages do.
    """
    from drapes_hep.pipeline.execution import check_overwrite

    if verb in {"classify", "run"}:
        from drapes_hep.cwola.trees import fallback_line

        # first: scores of the other library are refused below
        if line := fallback_line():
            context.reporter.say(line)
    for stage in _long_stages(verb, context, windows):
        check_overwrite(context.run, stage)
    if verb in {"hunt", "run"}:
        from drapes_hep.bumphunt.signal_shapes import find_signal

        # a sample that cannot be read is better refused before the first stage, and before unblinding
        find_signal(context.config.hunt.signal)
    if verb in {"skim", "run"}:
        _skim(context)
    for window in windows:
        _run_window(verb, context, window)
    if verb in {"hunt", "run"}:
        from drapes_hep.stages.hunt import hunt

        hunt(context, windows)


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


def _run_window(verb: str, context: Context, window: Window) -> None:
    """Run the stages of a verb that each window has."""
    if verb in {"train", "run"}:
        from drapes_hep.stages.train import train

        train(context, window)
    if verb in {"generate", "run"}:
        from drapes_hep.stages.generate import generate

        generate(context, window)
    if verb in {"classify", "run"}:
        from drapes_hep.stages.classify import classify

        classify(context, window)


def _long_stages(verb: str, context: Context, windows: Sequence[Window]) -> list[Stage]:
    """Describe the stages of a verb that take long: better refused before the first than hours into the last."""
    stages = []
    if verb in {"skim", "run"}:
        from drapes_hep.stages.derived import needs_simulation
        from drapes_hep.stages.skim import skim_stage

        stages.append(skim_stage(context))
        if needs_simulation(context):
            from drapes_hep.stages.simulation import simulation_stage

            stages.append(simulation_stage(context))
    if verb in {"train", "generate", "classify", "run"}:
        from drapes_hep.stages.classify import classify_stage
        from drapes_hep.stages.generate import generate_stage
        from drapes_hep.stages.train import train_stage

        by_verb = {"train": train_stage, "generate": generate_stage, "classify": classify_stage}
        described = [describe for name, describe in by_verb.items() if verb in {name, "run"}]
        stages += [describe(context, window) for window in windows for describe in described]
    return stages


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
