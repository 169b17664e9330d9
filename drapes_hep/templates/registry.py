"""Which background method a configuration names, and what decides its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from drapes_hep.config import DRAPES, Config
from drapes_hep.errors import ConfigError, UsersCode, describe_error
from drapes_hep.events.features import function_sources
from drapes_hep.plugins import Kind, check_options, class_with, is_users, load_class, source_hashes
from drapes_hep.templates.checked import CheckedMethod, check_declared
from drapes_hep.templates.drapes_family import RECIPES, Origin
from drapes_hep.templates.methods import BackgroundMethod

__all__ = ["METHODS", "find_method", "method_of", "method_settings", "origin_of"]

_FEATURES = "drapes_hep.templates.drapes:Drapes"
_CONSTITUENTS = "drapes_hep.templates.constituents.method:DrapesConstituents"

METHODS: dict[str, str] = {**dict.fromkeys(DRAPES, _FEATURES), "file": "drapes_hep.templates.from_file:TemplateTable"}
"""The package's own, by the names that ``template.method`` takes."""

_KIND = Kind("method", "template.method", "a background method", class_with("fit", "save", "load", "sample"), METHODS)


def find_method(config: Config) -> type[BackgroundMethod]:
    """Find the class that a configuration names; raises ConfigError."""
    name = config.template.method
    if name in RECIPES and config.constituents is not None:
        name = _CONSTITUENTS
    return cast(type[BackgroundMethod], load_class(_KIND, name, config.folder))


def method_of(config: Config) -> BackgroundMethod:
    """Make the method that a configuration names.

    Parameters
    ----------
    config : Config
        Its ``template.method`` and ``template.options``.

    Returns
    -------
    BackgroundMethod

    Raises
    ------
    ConfigError
        If there is no such class, or it refuses the configuration or the options.
    """
    name, options = config.template.method, config.template.options
    method_class = find_method(config)
    check_options("template.options", name, method_class, options, ("config",))
    if name in METHODS:
        return method_class(config, **options)
    with UsersCode(lambda error: ConfigError(f"template.method {name}: {describe_error(error, is_users)}")):
        method = method_class(config, **options)
    return CheckedMethod(method, config)


def origin_of(name: str, folder: Path | None = None) -> Origin:
    """Return where the templates of a method start, by its name in the configuration; raises ConfigError."""
    if name in RECIPES:
        return RECIPES[name]
    method_class = load_class(_KIND, name, folder)
    check_declared(name, method_class)
    return cast(Origin, method_class)


def method_settings(config: Config) -> dict[str, Any]:
    """Return what decides a model beside the keys of a training: class and options of a method that is no Drapes."""
    out = {**method_of(config).settings(), **feature_settings(config)}
    if config.template.method not in RECIPES:
        # the templates of Drapes share their models, whatever they start from
        out |= {
            "template method": config.template.method.rpartition(":")[2],
            "method's source": list(source_hashes(find_method(config))),
            "method's options": dict(config.template.options),
        }
    return out


def feature_settings(config: Config) -> dict[str, Any]:
    """Return how the features are made that the configuration defines, and where they end; not how they are drawn."""
    own = {name: config.define[name] for name in config.features if name in config.define}
    if not own:
        return {}
    definitions = {name: definition for name, definition in config.definitions["define"].items() if name in own}
    return {
        "definitions": {
            name: [definition.expression, definition.function, definition.bounds] for name, definition in own.items()
        },
        "feature's source": function_sources(definitions),
    }
