"""The chain of stages of a window.

The chain runs on one thread of the libraries' kernels, whether windows run side by side or not: sums depend on the
number of threads, and results must not depend on how many processes a search has. Classifiers and batches, which run in
threads of our own, give the same on any number of them. Two kinds of search use all cores within a window, and have
one at a time: one of a single window, and one of models of constituents, whose products are large.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from threadpoolctl import threadpool_limits

from drapes_hep.cwola.classifiers import find_classifier
from drapes_hep.kernels import kernel_threads
from drapes_hep.pipeline.context import Context
from drapes_hep.regions import Window
from drapes_hep.stages.classify import classify
from drapes_hep.stages.generate import generate
from drapes_hep.stages.train import train
from drapes_hep.templates.registry import method_of

__all__ = ["run_window"]


def run_window(verb: str, context: Context, window: Window, *, trained: bool = False) -> None:
    """Run the stages of a verb that each window has.

    Parameters
    ----------
    verb : {"train", "generate", "classify", "run"}
    context : Context
    window : Window
    trained : bool
        Whether its model has been trained already, together with those of other windows.

    Raises
    ------
    DrapesError
        As the stages do.
    """
    # libraries are limited to one thread if they are loaded: those of a user's classes, too
    config = context.config
    method_of(config)
    find_classifier(config.cwola.classifier, config.folder)
    with _one_thread(context):
        if verb in {"train", "run"} and not trained:
            train(context, window)
        if verb in {"generate", "run"}:
            generate(context, window)
        if verb in {"classify", "run"}:
            classify(context, window)


@contextlib.contextmanager
def _one_thread(context: Context) -> Iterator[None]:
    """Run the libraries' kernels on one thread, where windows can run side by side."""
    if not context.side_by_side or context.device != "cpu":
        yield
        return
    with threadpool_limits(limits=1), kernel_threads(1):
        yield
