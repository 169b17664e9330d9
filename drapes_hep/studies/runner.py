"""Run a study's trials over the cores: each trial's record is written when it is done, so a killed study resumes.

Memory: a process holds the selected events (about 100 bytes each), a template, and a classifier's copies of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from drapes_hep.config import Config, keys_of
from drapes_hep.errors import ConfigError, DrapesError, counted
from drapes_hep.events.skims import read_truth, write_truth
from drapes_hep.files import content_hash, file_hash, write_json
from drapes_hep.kernels import kernel_threads
from drapes_hep.parallel import in_processes
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.execution import run_stage
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.pipeline.stage import Stage
from drapes_hep.progress import Reporter
from drapes_hep.stages.sequence import WORKER_MODULE
from drapes_hep.stages.simulation import skim_simulation
from drapes_hep.stages.skim import all_truth, skim, skim_stage
from drapes_hep.studies.measures import MEASURES
from drapes_hep.studies.records import has_record, read_trial, record_path
from drapes_hep.studies.sample import StudySample, check_signal, load_sample
from drapes_hep.studies.trial_keys import TRIAL_CODE, trial_key
from drapes_hep.studies.trials import SampleKeys, Trial, TrialContext, model_folder, model_key
from drapes_hep.templates.window_models import has_model, unfinished
from drapes_hep.training.curves import Epoch

__all__ = ["check_labels", "counting", "make_sample", "run_tasks", "run_trials", "sample_keys", "select_events"]


def check_labels(config: Config) -> None:
    """Raise ConfigError unless the events carry labels and nothing in the windows is hidden."""
    if not config.data.labels:
        raise ConfigError("data.labels: a study needs labelled events, to inject signal and to measure performance")
    if config.blind:
        raise ConfigError("blind: a study counts labelled events in the windows; for simulation, set blind: false")


def select_events(context: Context, *, labels: bool) -> None:
    """Select the events of a study, signal and all, unless it is done.

    Parameters
    ----------
    context : Context
        Of the study's configuration; its run directory is the study's.
    labels : bool
        Whether to write the labels of all events in the files as well.

    Raises
    ------
    DrapesError
        If an input is bad.
    """
    whole = replace(context, config=_whole(context.config))
    skim(whole)
    if labels:
        selected = skim_stage(whole)
        keys, code = keys_of("study.labels"), ("stages.skim",)
        stage = Stage("study.labels", selected.config, keys, selected.reads, code, after=(selected,), cheap=True)
        run_stage(context.run, stage, lambda: _write_labels(whole), context.reporter)


def make_sample(context: Context) -> None:
    """Select the labelled events of a study, and those of the other simulation, unless it is done.

    Parameters
    ----------
    context : Context
        Of the study's configuration; its run directory is the study's.

    Raises
    ------
    ConfigError
        If the events carry no labels.
    DrapesError
        If an input is bad.
    """
    config = context.config
    check_labels(config)
    select_events(context, labels=True)
    if config.study.source is not None:
        skim_simulation(replace(context, config=_whole(config)))


def _whole(config: Config) -> Config:
    """Return the configuration that selects all events of a study."""
    source = {"method": "from_simulation", "strength": config.study.strength, "steps_left": None}
    template = config.template.model_copy(update={**source, "source": config.study.source})
    return config.model_copy(
        update={
            "signal": config.signal.model_copy(update={"inject": None}),
            "template": config.template if config.study.source is None else template,
        }
    )


def _write_labels(context: Context) -> list[Path]:
    truth = all_truth(context.config)
    assert truth is not None
    write_truth(context.run.labels, truth.event_id, truth.label)
    return [context.run.labels]


@dataclass(frozen=True)
class _Place:
    """What a worker needs to find the sample and to leave its results."""

    run: RunDirectory
    config: Config
    keys: SampleKeys
    code: str
    device: str
    loud: bool
    threads: int = 1

    @property
    def models(self) -> Path:
        return self.run.path / "models"

    def record(self, key: str) -> Path:
        return record_path(self.run, key)


def run_trials(
    trials: Sequence[Trial],
    context: Context,
    *,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[dict[str, Any]]:
    """Run what is missing of some trials, over ``context.workers`` processes.

    Parameters
    ----------
    trials : sequence of Trial
    context : Context
        After :func:`make_sample`.
    progress : callable, optional
        Called with the tasks done, and all of them: first the models, then the trials.

    Returns
    -------
    list of dict
        The record of each trial.

    Raises
    ------
    DrapesError
        If a trial cannot be done; those that are done stay.
    """
    loud = not (context.reporter.quiet or context.reporter.draws)
    place = _Place(context.run, context.config, sample_keys(context), code_hash(*TRIAL_CODE), context.device, loud)
    keys = [trial_key(trial, place.keys) for trial in trials]
    distinct = dict(zip(keys, trials, strict=True))
    missing = {key: trial for key, trial in distinct.items() if not has_record(place.record(key))}
    models = {model_key(t.config, place.keys, saw): (t.config, saw) for t in missing.values() for saw in t.models}
    to_train = [model for key, model in models.items() if not has_model(model_folder(place.models, key))]
    _check_signal(context.run, trials)
    every = len(distinct)
    say = context.reporter.say
    say(
        f"{counted(len(to_train), 'model')} and {counted(len(missing), 'trial')} to do, {every - len(missing)} of"
        f" {counted(every, 'trial')} already done"
    )
    for model, saw in to_train:
        stem = model_folder(place.models, model_key(model, place.keys, saw))
        if training := unfinished(stem):
            say(f"model {stem.name[:8]}: the interrupted training resumes from the checkpoint of {training}")

    # a model alone has all cores; several, side by side, one thread each
    place = replace(place, threads=max(1, context.workers // max(1, len(to_train))))
    trainings = [(place, *model) for model in to_train]
    measurements = [(place, key, trial) for key, trial in missing.items()]
    run_tasks(((_train, trainings), (_measure, measurements)), context, progress)
    return [read_trial(place.record(key)) for key in keys]


def run_tasks(
    tasks: Sequence[tuple[Callable[..., None], Sequence[tuple[Any, ...]]]],
    context: Context,
    progress: Callable[[int, int], None],
) -> None:
    """Call functions over ``context.workers`` processes, each for all of its arguments before the next.

    Parameters
    ----------
    tasks : sequence of (callable, sequence of tuple)
        Functions that write what they make, and their arguments.
    context : Context
    progress : callable
        Called with the calls done, and all of them.

    Raises
    ------
    DrapesError
        If a call fails; what is done stays.
    """
    advance = counting(sum(len(arguments) for _, arguments in tasks), context.reporter, progress)
    for function, arguments in tasks:
        for _ in in_processes(function, arguments, context.workers, preload=WORKER_MODULE):
            advance()


def counting(total: int, reporter: Reporter, progress: Callable[[int, int], None]) -> Callable[[], None]:
    """Return a function that counts one more task as done, for a bar or, without one, in a line now and then."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)
        if not reporter.draws and (10 * done // total) > (10 * (done - 1) // total):
            reporter.say(f"{done} of {total} done")

    return advance


def _check_signal(run: RunDirectory, trials: Sequence[Trial]) -> None:
    """Refuse, before anything is trained, to inject more signal than there is."""
    truth = read_truth(run.labels)
    available, requested = (
        int((truth.label == 1).sum()),
        max((trial.config.signal.inject or 0 for trial in trials), default=0),
    )
    check_signal(requested, available)


def sample_keys(context: Context) -> SampleKeys:
    """Hash the selected events with their labels, and the other simulation's: no more of the files reaches a trial."""
    run = context.run
    data = content_hash([file_hash(path) for path in (run.events, run.truth, run.labels)])
    return SampleKeys(data, None if context.config.study.source is None else file_hash(run.simulation))


# ---- in the workers --------------------------------------------------------------------------------------------------

_LOADED: dict[SampleKeys, StudySample] = {}


def _bench(place: _Place, config: Config) -> TrialContext:
    if place.code != code_hash(*TRIAL_CODE):
        # this process would give its models and records other names than those that are waited for
        raise DrapesError("the package's code changed while the study ran; run the same command again")
    if place.keys not in _LOADED:
        _LOADED.clear()
        _LOADED[place.keys] = load_sample(place.run, place.config)
    return TrialContext(_LOADED[place.keys], config, place.models, place.keys, place.device)


def _train(place: _Place, config: Config, saw_window: bool) -> None:
    name = f"model {model_key(config, place.keys, saw_window)[:8]}"

    def report_epoch(training: str, epoch: Epoch) -> None:
        # a line now and then says that a training of minutes or hours lives
        if training == "constituents" and epoch.epoch % 5 == 0:
            Reporter().say(f"{name}: epoch {epoch.epoch}, validation loss {epoch.validation_loss:.4f}")

    with kernel_threads(place.threads):
        _bench(place, config).train(saw_window, report_epoch if place.loud else None)


def _measure(place: _Place, key: str, trial: Trial) -> None:
    # one thread each: the processes share the cores, and small products gain nothing from more
    with threadpool_limits(limits=1), kernel_threads(1):
        record = MEASURES[trial.kind](_bench(place, trial.config), trial)
    write_json(place.record(key), record)
