"""The bins of the search."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from drapes_hep.pipeline.context import Context
from drapes_hep.spectrum.bins import spectrum_edges

__all__ = ["mass_edges"]


def mass_edges(context: Context) -> npt.NDArray[np.float64]:
    """Return the bins of the search, GeV."""
    config = context.config
    return spectrum_edges(config.mass.fitted, config.mass.bin_width, context.windows)
