"""A search from Python: :class:`Search` runs the stages of the command line, :func:`run_search` all of them at once.

Everything is in a run directory as for ``drapes run``: a search resumes where it was, and commands can continue it.
"""

from __future__ import annotations

import dataclasses
import difflib
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from drapes_hep.config import Config, changed_config, load_config, make_config
from drapes_hep.errors import ConfigError
from drapes_hep.events.features import check_classifier_features
from drapes_hep.events.table import PLACE, read_events
from drapes_hep.outcome import ReadOnDemand, Results, read_results
from drapes_hep.pipeline.context import Context
from drapes_hep.pipeline.run_directory import open_run
from drapes_hep.products import ByWindow, Scored, Selected, Template, Trained
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window, parse_window
from drapes_hep.stages.sequence import run_verb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from drapes_hep.stages.apply import Applied

__all__ = ["Search", "run_search"]

K = TypeVar("K", bound=ReadOnDemand)


class _Temporary:
    """A directory that is removed when nothing refers to this object any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="drapes-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Search:
    """A search whose stages run one by one.

    Parameters
    ----------
    config : Config, str, Path or mapping
        A configuration, its YAML file, or its keys and sections.
    output : str or Path, optional
        The run directory. None uses a temporary one, which is removed with this object and the results that it gave.
    device : {"auto", "cpu", "cuda"}
        Where networks run.
    executor : {"iterative", "futures"}
        Of coffea, for the selection.
    workers : int, optional
        Cores to use, all by default: windows run side by side in processes of their own, whose results do not depend
        on this number. A script needs no ``if __name__ == "__main__"`` for it.
    quiet : bool
        No progress bars and no messages.
    overwrite : bool
        Replace finished stages that were run with another configuration.

    Raises
    ------
    DrapesError
        If the configuration is wrong, or the run directory cannot be used.

    Notes
    -----
    A stage that is done is not run again. Each method takes ``window``, such as ``"3300-3700"``, for one window only.
    """

    def __init__(
        self,
        config: Config | str | Path | Mapping[str, Any],
        output: str | Path | None = None,
        *,
        device: str = "auto",
        executor: str = "iterative",
        workers: int | None = None,
        quiet: bool = False,
        overwrite: bool = False,
    ) -> None:
        checked = _configured(config)
        self._temporary = _Temporary() if output is None else None
        place = output if self._temporary is None else self._temporary.path
        self._context = Context.of(
            checked,
            open_run(str(place), overwrite=overwrite),
            device=device,
            executor=executor,
            workers=workers,
            reporter=Reporter(quiet=quiet),
        )

    @classmethod
    def of_events(
        cls,
        events: Any,
        output: str | Path | None = None,
        *,
        config: Config | str | Path | Mapping[str, Any] | None = None,
        device: str = "auto",
        workers: int | None = None,
        quiet: bool = False,
        overwrite: bool = False,
        **sections: Any,
    ) -> Search:
        """Create a search from events in memory.

        Parameters
        ----------
        events : mapping, DataFrame, awkward.Array, pyarrow.Table or structured array
            Columns ``mjj`` (GeV) and the features, or what an expression of ``define`` computes them from; optionally
            ``event_id`` (unique integers, the row by default) and ``label`` (1 for signal, which only metrics and
            ``signal.inject`` read). Rows outside ``mass.range`` or with an undefined feature (NaN) are counted in the
            cut flow and left out.
        output : str or Path, optional
            The run directory; temporary by default.
        config : Config, str, Path or mapping, optional
            A configuration; its ``data`` section is not used.
        device, workers, quiet, overwrite
            As for :class:`Search`.
        **sections
            Keys of the top level, such as ``seed=3``, and sections, such as ``windows={"first": 3300}``; they replace
            those of ``config`` key by key.

        Returns
        -------
        Search

        Raises
        ------
        ConfigError
            If the configuration is wrong.
        InputError
            If the table is: see :func:`drapes_hep.events.table.read_events`.
        """
        base = _configured(_with_place({} if config is None else config))
        # the whole configuration before the first column; labels are seen with the table at hand
        changed = changed_config(base, {**_changed(base, sections), "data": {"path": PLACE, "labels": True}})
        check_classifier_features(changed.features, changed.classifier_features, **changed.definitions)
        table = read_events(events, changed.features, **changed.definitions)
        labels = "label" in table.columns
        if changed.signal.inject is not None and not labels:
            raise ConfigError(
                "signal.inject needs labelled events: add a column 'label', or signal={'inject': None} if the signal"
                " is chosen already"
            )
        search = cls(
            changed_config(changed, {"data": {"path": PLACE, "labels": labels}}),
            output,
            device=device,
            workers=workers,
            quiet=quiet,
            overwrite=overwrite,
        )
        search._context = dataclasses.replace(search._context, table=table)
        return search

    @property
    def config(self) -> Config:
        """The configuration, checked, with every default filled in."""
        return self._context.config

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._context.run.path

    @property
    def windows(self) -> tuple[str, ...]:
        """Names of the windows, from low to high mass."""
        return tuple(window.name for window in self._context.windows)

    def skim(self) -> Selected:
        """Select the events.

        Returns
        -------
        Selected
            Events, labels, cut flow and control histograms.

        Raises
        ------
        DrapesError
            If an input is bad.
        """
        self._run("skim", None)
        return self._keep(Selected.of(self._context.run))

    def train(self, window: str | None = None) -> ByWindow[Trained]:
        """Train the background model of each window on its sidebands.

        Returns
        -------
        ByWindow of Trained
            The curves of the trainings.

        Raises
        ------
        DrapesError
            If an earlier stage is missing, or there are too few events.
        """
        windows = self._run("train", window)
        return ByWindow({window.name: self._keep(Trained.of(self._context.run, window.name)) for window in windows})

    def generate(self, window: str | None = None) -> ByWindow[Template]:
        """Generate the background template of each window.

        Returns
        -------
        ByWindow of Template
            The templates' events.

        Raises
        ------
        DrapesError
            If an earlier stage is missing, or the mass fit cannot be done.
        """
        windows, run = self._run("generate", window), self._context.run
        return ByWindow({w.name: self._keep(Template(w.name, run.window(w) / "template.parquet")) for w in windows})

    def classify(self, window: str | None = None) -> ByWindow[Scored]:
        """Train data against template in each window, and score every event out of fold.

        Returns
        -------
        ByWindow of Scored
            Scores of data and template, and the template's quality.

        Raises
        ------
        DrapesError
            If an earlier stage is missing, or there are too few events.
        """
        windows = self._run("classify", window)
        return ByWindow({window.name: self._keep(Scored.of(self._context.run, window.name)) for window in windows})

    def hunt(self, window: str | None = None) -> Results:
        """Count, fit, and quote local and global significances.

        Returns
        -------
        Results

        Raises
        ------
        DrapesError
            If an earlier stage is missing, or the data are weighted.
        """
        self._run("hunt", window)
        return self.results()

    def run(self, window: str | None = None) -> Results:
        """Run all stages from the selection to the hunt.

        Returns
        -------
        Results

        Raises
        ------
        DrapesError
            As the stages do.
        """
        self._run("run", window)
        return self.results()

    def apply(self, events: Any, output: str | Path | None = None) -> Applied:
        """Pass other events, such as a simulated signal, through the selection, the classifiers and the cuts.

        Parameters
        ----------
        events : str, Path, list of these, or as :meth:`of_events` takes them
            Files, or a table; labels are not read.
        output : str or Path, optional
            Directory for what passes, event by event; not kept by default.

        Returns
        -------
        Applied
            The fraction that passes each cut, window by window, and its statistical error.

        Raises
        ------
        DrapesError
            If a file is bad, windows were not classified, or the classifiers cannot be written to files.
        """
        from drapes_hep.stages.apply import applied_config, apply_search

        context, config = self._context, self.config
        temporary = _Temporary() if output is None else None
        place = open_run(str(output if temporary is None else temporary.path), "applied")
        files = [events] if isinstance(events, str | Path) else events
        if isinstance(files, list | tuple) and all(isinstance(file, str | Path) for file in files):
            sample = applied_config(config, {"path": [str(file) for file in files]})
            table = None
        else:
            sample = applied_config(config, {"path": PLACE})
            table = read_events(events, config.features, **config.definitions)
        return apply_search(context, dataclasses.replace(context, config=sample, run=place, table=table))

    def report(self) -> Path:
        """Write the report of the finished search.

        Returns
        -------
        Path
            Its page, ``report/index.html`` in the run directory.

        Raises
        ------
        RunDirectoryError
            If the hunt is not done.
        """
        from drapes_hep.stages.report import report

        return report(self._context.run, self.config.model_dump(mode="json"))

    def results(self) -> Results:
        """Read the results of the hunt; raises RunDirectoryError if there are none."""
        return self._keep(read_results(self.path))

    def figures(self) -> dict[str, Figure]:
        """Draw the figures of the report, by name; raises RunDirectoryError if the hunt is not done."""
        return self.results().figures()

    def __repr__(self) -> str:
        """Return the name, the windows and the run directory."""
        return f"<Search {self.config.name}: windows {', '.join(self.windows)} GeV, in {self.path}>"

    def _run(self, verb: str, window: str | None) -> tuple[Window, ...]:
        context = self._context
        windows = context.windows if window is None else (parse_window(window, context.windows),)
        run_verb(verb, context, windows)
        return windows

    def _keep(self, product: K) -> K:
        return dataclasses.replace(product, directory=self._temporary)


def run_search(
    config: Config | str | Path | Mapping[str, Any],
    output: str | Path | None = None,
    **options: Any,
) -> Results:
    """Run a whole search, from the selection to the hunt.

    Parameters
    ----------
    config, output
        As for :class:`Search`.
    **options
        ``device``, ``executor``, ``workers``, ``quiet`` and ``overwrite``, as for :class:`Search`.

    Returns
    -------
    Results

    Raises
    ------
    DrapesError
        If the configuration, an input or the run directory is wrong.
    """
    return Search(config, output, **options).run()


def _configured(config: Config | str | Path | Mapping[str, Any]) -> Config:
    if isinstance(config, Config):
        return config
    return make_config(config) if isinstance(config, Mapping) else load_config(config)


def _with_place(config: Config | str | Path | Mapping[str, Any]) -> Config | str | Path | Mapping[str, Any]:
    """Put the table's place into a configuration that is written in Python and names no data."""
    if not isinstance(config, Mapping):
        return config
    return {"name": "events", **config, "data": {"path": PLACE, "labels": True}}


def _changed(config: Config, sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return all keys of a configuration, as JSON values, those of the caller in their place."""
    tree = config.model_dump(mode="json")
    for name, value in sections.items():
        if name not in tree:
            close = difflib.get_close_matches(name, tree, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"available: {', '.join(tree)}"
            raise ConfigError(f"unknown section '{name}'; {hint}")
        if name == "data":
            raise ConfigError("data: the events come from the table; remove this section")
        merged = isinstance(tree[name], Mapping) and isinstance(value, Mapping)
        tree[name] = {**tree[name], **value} if merged else value
    return tree
