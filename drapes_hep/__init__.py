"""Diffusion-model background templates and weakly supervised bump hunts, from ROOT to report."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("drapes-hep")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
