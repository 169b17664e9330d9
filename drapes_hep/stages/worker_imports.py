"""What worker processes import, once for all of them: a server imports it, and they are forked from it.

Each would take seconds for it, and hundreds of megabytes of its own. Nothing else imports this module: a search in one
process loads what its stages need.
"""

from __future__ import annotations

import contextlib

import scipy.stats  # noqa: F401
import sklearn.ensemble  # noqa: F401
import torch  # noqa: F401

from drapes_hep.bumphunt import signal_shapes  # noqa: F401  checks need it
from drapes_hep.pipeline.code_keys import code_hash
from drapes_hep.stages import hunt, steps  # noqa: F401
from drapes_hep.templates import feature_model  # noqa: F401

# who needs it says what is wrong with it
with contextlib.suppress(Exception):
    import lightgbm  # noqa: F401

for _stage in ("train", "generate", "classify", "skim_table"):
    # parsing the package takes half a second
    code_hash(f"stages.{_stage}")
