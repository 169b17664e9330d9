"""What failed for good: which files, which rows, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from drapes_hep.errors import InputError, LostEventsError

__all__ = ["FailedFilesError", "Failure", "join_failures"]


@dataclass(frozen=True)
class Failure:
    """Rows that could not be processed.

    Parameters
    ----------
    dataset, path : str
        Whose.
    start, stop : int or None
        Rows, ``stop`` exclusive; None where the file could not even be opened.
    problem, remedy : str
        As in :class:`~drapes_hep.errors.InputError`.
    """

    dataset: str
    path: str
    start: int | None
    stop: int | None
    problem: str
    remedy: str

    @property
    def line(self) -> str:
        """All of it in one line."""
        rows = "" if self.start is None else f", rows {self.start} to {self.stop}"
        return f"{self.path}{rows}: {self.problem}; {self.remedy}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


_NAMED = 4
"""Further files that a message names."""


class FailedFilesError(InputError, LostEventsError):
    """Files that could not be read, or rows whose worker died, after all that could be done without them was done.

    Parameters
    ----------
    failures : sequence of Failure
        At least one; the message is the first's, and names the other files.
    hint : str
        What the user can do further.
    """

    def __init__(self, failures: Sequence[Failure], hint: str = "") -> None:
        self.failures, self.hint = tuple(failures), hint
        first = self.failures[0]
        problems = {failure.path: failure.problem for failure in reversed(self.failures) if failure.path != first.path}
        others = [f"{path}: {problem}" for path, problem in reversed(problems.items())]
        more = len(others) - _NAMED
        named = others[:_NAMED] + ([f"{more} more file{'s' * (more > 1)}"] if more > 0 else [])
        also = f"; failed as well: {', '.join(named)}" if named else ""
        super().__init__(first.path, first.problem, first.remedy + also + (f"; {hint}" if hint else ""))

    def __reduce__(self) -> Any:
        return type(self), (self.failures, self.hint)


_ATTEMPTS = re.compile(r" \(\d+ attempts? in [^)]*\)")


def join_failures(failures: Iterable[Failure]) -> tuple[Failure, ...]:
    """Join neighbouring rows of a file that failed for the same reason.

    Parameters
    ----------
    failures : iterable of Failure
        Of each file in the order of rows.

    Returns
    -------
    tuple of Failure
    """
    joined: list[Failure] = []
    for failure in failures:
        last = joined[-1] if joined else None
        if (
            last is not None
            and (last.dataset, last.path, last.stop, last.remedy)
            == (failure.dataset, failure.path, failure.start, failure.remedy)
            and last.stop is not None
            and _ATTEMPTS.sub("", last.problem) == _ATTEMPTS.sub("", failure.problem)
        ):
            joined[-1] = Failure(last.dataset, last.path, last.start, failure.stop, last.problem, last.remedy)
        else:
            joined.append(failure)
    return tuple(joined)
