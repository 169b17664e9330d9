"""Diffusion-model background templates and weakly supervised bump hunts, from ROOT to report.

Names are imported when they are first used, so that importing the package takes no time.
"""

from typing import TYPE_CHECKING

from drapes_hep.version import __version__

__all__ = [
    "BackgroundMethod",
    "Classifier",
    "Results",
    "Search",
    "__version__",
    "load_config",
    "read_results",
    "run_search",
]

if TYPE_CHECKING:
    from drapes_hep.config import load_config
    from drapes_hep.cwola.classifiers import Classifier
    from drapes_hep.outcome import Results, read_results
    from drapes_hep.search import Search, run_search
    from drapes_hep.templates.methods import BackgroundMethod
else:
    _HOMES = {
        "BackgroundMethod": "templates.methods",
        "Classifier": "cwola.classifiers",
        "Results": "outcome",
        "Search": "search",
        "load_config": "config",
        "read_results": "outcome",
        "run_search": "search",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'drapes_hep' has no attribute '{name}'")
        from importlib import import_module

        value = getattr(import_module(f"drapes_hep.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
