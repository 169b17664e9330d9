"""What every stage is given."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drapes_hep.caller import option
from drapes_hep.config import Config
from drapes_hep.errors import ConfigError
from drapes_hep.events.features import check_classifier_features
from drapes_hep.parallel import available_cores
from drapes_hep.pipeline.run_directory import RunDirectory
from drapes_hep.progress import Reporter
from drapes_hep.regions import Window, sliding_windows

if TYPE_CHECKING:
    from drapes_hep.events.table import Table

__all__ = ["Context", "choose_device"]


_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Devices of the drivers of NVIDIA, of AMD, and of Windows' subsystem for Linux."""


@dataclass(frozen=True)
class Context:
    """A search, where it writes, and what it runs on.

    Attributes
    ----------
    config : Config
    run : RunDirectory
    windows : tuple of Window
        All windows of the search.
    wanted_device : str
        "auto", "cpu" or "cuda".
    executor : str
        Of coffea: "iterative" or "futures".
    workers : int
        Cores to use: processes, or threads within one.
    reporter : Reporter
    table : Table or None
        The events, where they are a table in memory and ``data.path`` names no file.
    """

    config: Config
    run: RunDirectory
    windows: tuple[Window, ...]
    wanted_device: str
    executor: str
    workers: int
    reporter: Reporter
    table: Table | None = None

    @classmethod
    def of(
        cls,
        config: Config,
        run: RunDirectory,
        *,
        device: str = "auto",
        executor: str = "iterative",
        workers: int | None = None,
        reporter: Reporter | None = None,
    ) -> Context:
        """Fill in what follows from the configuration and the machine."""
        count = available_cores() if workers is None else workers
        if count < 1:
            raise ConfigError(f"{option('workers', count)}: at least 1")
        if executor not in {"iterative", "futures"}:
            raise ConfigError(f"{option('executor', executor)}: choose iterative or futures")
        check_classifier_features(config.features, config.classifier_features, **config.definitions)
        return cls(
            config,
            run,
            sliding_windows(config),
            device if device == "auto" else choose_device(device),
            executor,
            count,
            reporter or Reporter(quiet=True),
        )

    @functools.cached_property
    def device(self) -> str:
        """Where networks run, "cpu" or "cuda": asked for by the stages that have one, for torch takes long to load."""
        return choose_device(self.wanted_device)

    @property
    def on_gpu(self) -> bool:
        """Whether networks run on a GPU: on a machine that has none, this is known without torch."""
        if self.wanted_device == "auto" and sys.platform == "linux" and not any(map(os.path.exists, _GPU_FILES)):
            return False
        return self.wanted_device != "cpu" and self.device == "cuda"

    @property
    def side_by_side(self) -> bool:
        """Whether windows can run at the same time: several, whose models leave the other cores free."""
        return len(self.windows) > 1 and self.config.constituents is None

    def without_events(self) -> Context:
        """Return the context for another process, which reads the selected events of a table from their file."""
        table = None if self.table is None else dataclasses.replace(self.table, columns={})
        return dataclasses.replace(self, table=table)

    @property
    def hidden(self) -> tuple[tuple[float, float], ...]:
        """The windows that blinding hides, as edges in GeV: all of the search, or none."""
        return tuple((window.lo, window.hi) for window in self.windows) if self.config.blind else ()


def choose_device(name: str) -> str:
    """Turn ``auto`` into a device; refuse one that is not there.

    Raises
    ------
    ConfigError
        If CUDA is asked for and not available.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise ConfigError(f"{option('device', name)}: choose auto, cpu or cuda")
    if name == "cpu":
        return name
    import torch  # so that a selection does not wait for it

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(f"{option('device', 'cuda')}: no CUDA device is available; use {option('device', 'cpu')}")
    return "cuda" if available else "cpu"
