"""Configurations that a study derives from its own: other values, other templates, other generators.

It imports nothing that measures or draws, so that ``drapes validate`` can check them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drapes_hep.config import Config, assign, changed_config
from drapes_hep.errors import ConfigError
from drapes_hep.templates.registry import origin_of

__all__ = ["changed", "check_study", "generators", "of_template"]


def of_template(config: Config, method: str, **changes: Any) -> Config:
    """Return the configuration with one template method, at ``study.strength``, and other changes of ``template``."""
    origin = origin_of(method, config.folder)
    own: dict[str, Any] = {
        "method": method,
        "strength": config.study.strength if origin.partial else None,
        "steps_left": None,
        "source": config.study.source if origin.source == "simulation" else None,
    }
    if method != config.template.method:
        # options and a table belong to the one method
        own |= {"options": {}, "path": None}
    template = config.template.model_dump(mode="json") | own | changes
    return changed_config(config, {"template": template})


def changed(config: Config, *assignments: str) -> Config:
    """Return the configuration with other values, as ``SECTION.KEY=VALUE``; raises ConfigError if they do not fit."""
    tree = config.model_dump(mode="json")
    assign(tree, assignments)
    return changed_config(config, tree)


def generators(config: Config) -> dict[str, Config]:
    """Return the configurations of ``study.generators``, by their names; without any, the one there is."""
    if not config.study.generators:
        return {"": config}
    return {name: _generator(config, name, changes) for name, changes in config.study.generators.items()}


def _generator(config: Config, name: str, changes: Sequence[str]) -> Config:
    try:
        return changed(config, *changes)
    except ConfigError as error:
        what = str(error).removeprefix(f"{config.name}: ")
        raise ConfigError(f"study.generators: {name}: {what}") from error


def check_study(config: Config) -> None:
    """Check what only studies use of a configuration: the generators, and the templates if they are named.

    Raises
    ------
    ConfigError
        With the key and what is wrong.
    """
    for generator in generators(config).values():
        # a search's configuration need not be fit for all templates that studies know
        for method in generator.study.templates if "templates" in generator.study.model_fields_set else ():
            of_template(generator, method)
