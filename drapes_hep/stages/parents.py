"""The selected events as a template's model takes them."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np

from drapes_hep.config import Config
from drapes_hep.errors import ConfigError
from drapes_hep.events.skims import read_skim
from drapes_hep.stages.feature_tables import check_values, feature_matrix
from drapes_hep.templates.registry import method_of
from drapes_hep.templates.tables import EventTable

__all__ = ["load_parents"]


def load_parents(path: Path, config: Config) -> EventTable:
    """Read the events of a table as a template's model takes them: with their jets if the method reads them.

    Raises
    ------
    ConfigError
        If it does, and the events were selected by a processor that keeps no constituents.
    DrapesError
        If a mass, a weight or a feature is not one.
    """
    columns = method_of(config).columns
    table = read_skim(path, ("event_id", "weight", "mjj", *config.features, *columns))
    mjj, weight, ids = (np.asarray(table[name]) for name in ("mjj", "weight", "event_id"))
    check_values(path, "mjj", mjj, np.isfinite(mjj) & (mjj > 0), "a mass that is not positive and finite")
    check_values(path, "weight", weight, np.isfinite(weight), "a weight that is not finite")
    pairs = table["jets"] if "jets" in columns else None
    if pairs is not None and "constituents" not in ak.fields(pairs):
        raise ConfigError(
            f"constituents: {path} holds no constituents; set processor: processors/constituents.py:Constituents"
        )
    return EventTable(feature_matrix(table, config.features, path), mjj, weight, ids, pairs)
