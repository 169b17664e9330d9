"""Settings of a training loop."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LoopSettings"]


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How a network is trained.

    Parameters
    ----------
    epochs : int
        Passes over the training rows at most.
    batch : int
        Rows per step.
    rate : float
        Largest learning rate of Adam.
    warmup : float
        Fraction of all steps over which the rate rises linearly, 0 <= warmup < 1.
    starts_high : bool
        Whether the first step has the largest rate and the cosine begins after it; without warm-up.
    steps : int, optional
        Steps at most, whatever the number of rows.
    validations : int
        Least number of validations where ``steps`` ends the training before ``epochs`` does.
    drop_last : bool
        Whether the rows of a pass that fill no batch are left out of it.
    ema : float, optional
        Decay per step of the averaged weights, 0 <= ema < 1; None averages nothing.
    patience : int, optional
        Passes without a smaller validation loss before it stops; None never stops.
    weight_decay : float
        AdamW's, of matrices; 0 is Adam.
    clip : float, optional
        Largest norm of the gradient.
    one_buffer : bool
        Whether the parameters are moved into one buffer; a training with a checkpoint needs it, and has no
        ``weight_decay``.
    checkpoint_seconds : float
        Least time between two checkpoints; one is always written at the end, and when Ctrl-C or SIGTERM ends it.

    Raises
    ------
    ValueError
        If a value is out of range, or two exclude each other.
    """

    epochs: int
    batch: int
    rate: float
    warmup: float = 0.0
    starts_high: bool = False
    steps: int | None = None
    validations: int = 1
    drop_last: bool = False
    ema: float | None = None
    patience: int | None = None
    weight_decay: float = 0.0
    clip: float | None = None
    one_buffer: bool = False
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch, self.validations, self.patience, self.steps)
        if min(count for count in counts if count is not None) < 1:
            raise ValueError("epochs, batch, patience, steps and validations must be at least 1")
        if not (0 <= self.warmup < 1 and 0 <= (self.ema or 0.0) < 1 and self.rate > 0):
            raise ValueError("training needs 0 <= warmup < 1, 0 <= ema < 1 and rate > 0")
        if (self.starts_high and self.warmup) or (self.one_buffer and self.weight_decay):
            raise ValueError("starts_high excludes a warm-up, one_buffer a weight decay")
