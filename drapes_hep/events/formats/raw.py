"""Raw LHC Olympics files: particles as one wide, zero-padded table, and the labels of the black boxes next to it.

Row i of the table is event i: pT, eta, phi of each particle, falling back to zeros after the last one. One column more
than a multiple of three means that the last is the truth label.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drapes_hep.errors import InputError, counted
from drapes_hep.events.chunks import label_file
from drapes_hep.events.clustering import make_particles
from drapes_hep.events.schema import offsets_of
from drapes_hep.events.types import AwkwardArray
from drapes_hep.remote import NotThereError, is_url, open_url

__all__ = ["raw_columns", "read_label_file", "read_last_column", "read_particles"]

Block = tuple[Any, list[str]]

_STEP = 1000
"""Rows that are held with their padding: 17 MB of the official files."""


def _width(blocks: Sequence[Block]) -> int:
    return sum(len(names) for _, names in blocks)


def raw_columns(path: str, blocks: Sequence[Block]) -> list[str] | None:
    """Return what a table of numbered columns holds.

    Parameters
    ----------
    path : str
        The file.
    blocks : sequence of (dataset, list of str)
        The table's blocks and the names of their columns.

    Returns
    -------
    list of str or None
        ``particles``, and ``label`` where there is one, in the table or in a file next to it; None where the columns
        are not numbered 0, 1, 2, ...

    Raises
    ------
    InputError
        A number of columns, or a type, that no raw file has.
    """
    width = _width(blocks)
    if width == 0 or {name for _, names in blocks for name in names} != {str(i) for i in range(width)}:
        return None
    if width < 3 or width % 3 == 2:
        raise InputError(
            path,
            f"has {width} numbered columns, and neither that nor one less is a multiple of 3 (pT, eta, phi)",
            "write raw events as 3k columns, or 3k + 1 with the label last",
        )
    particles = {str(i) for i in range(width - width % 3)}
    for values, names in blocks:
        if values.dtype.kind != "f" and particles.intersection(names):
            raise InputError(path, f"stores particles as {values.dtype}, not as real numbers", "write them as float32")
    labelled = width % 3 == 1 or _has_label_file(path)
    return ["particles", "label"] if labelled else ["particles"]


def _has_label_file(path: str) -> bool:
    """Whether it exists; a server that does not say is an error, for labels must not come and go."""
    place = label_file(path)
    if not is_url(place):
        return Path(place).exists()
    try:
        with open_url(place):
            return True
    except NotThereError:
        return False


def _read_whole(place: str) -> bytes:
    if not is_url(place):
        return Path(place).read_bytes()
    with open_url(place) as stream:
        return bytes(stream.read())


def read_label_file(path: str, rows: int) -> npt.NDArray[np.int64]:
    """Read the labels of a raw file: one number per line, 0 for background, 1 or 2 for signal.

    The published labels of the third black box distinguish its two kinds of signal; here both are signal.

    Parameters
    ----------
    path : str
        Path or URL of the raw file.
    rows : int
        Its events.

    Returns
    -------
    array of int64, shape (rows,)
        0 or 1.

    Raises
    ------
    InputError
        Unreadable, another number of lines, a line that is not one value, another value.
    """
    place = label_file(path)
    try:
        content = _read_whole(place)
    except OSError as error:
        raise InputError(place, f"cannot be read ({error.strerror or error})", "check the file of labels") from None
    return _parse_labels(content, place, path, rows)


@functools.lru_cache(2)
def _parse_labels(content: bytes, place: str, path: str, rows: int) -> npt.NDArray[np.int64]:
    """Turn a label file into labels; kept, since every chunk of a file asks for its own."""
    lines = content.rstrip().splitlines()
    numbers = [line.split() for line in lines]
    odd = next((i for i, line in enumerate(numbers) if len(line) != 1), None)
    if odd is not None:
        what = counted(len(numbers[odd]), "value") if numbers[odd] else "nothing"
        raise InputError(place, f"holds {what} in line {odd + 1}", "write one label per line")
    if len(lines) != rows:
        raise InputError(
            place,
            f"holds {counted(len(lines), 'label')} for the {counted(rows, 'event')} of {Path(path).name}",
            "use the labels of this file",
        )
    text = np.array([line[0] for line in numbers], dtype=np.bytes_)
    try:
        labels = text.astype(np.float64)
        wrong = ~np.isin(labels, (0, 1, 2))
    except ValueError:
        wrong = ~np.isin(text, [b"0", b"1", b"2", b"0.0", b"1.0", b"2.0"])
    if wrong.any():
        line = int(np.argmax(wrong))
        raise InputError(
            place,
            f"holds '{lines[line].decode('utf-8', 'replace')[:20]}' in line {line + 1}",
            "a label is 0 (background), 1 or 2 (signal)",
        )
    is_signal = (labels > 0).astype(np.int64)
    is_signal.setflags(write=False)  # all who ask share it
    return is_signal


def _dense(blocks: Sequence[Block], width: int, start: int, stop: int) -> npt.NDArray[np.float64]:
    (values, names), *others = blocks
    if not others and names == [str(i) for i in range(len(names))]:
        return np.asarray(values[start:stop], dtype=np.float64)
    out = np.empty((stop - start, width))
    for values, names in blocks:
        out[:, [int(name) for name in names]] = values[start:stop]
    return out


def read_particles(blocks: Sequence[Block], start: int, stop: int) -> AwkwardArray:
    """Read the particles of some rows, without the padding after the last one.

    Parameters
    ----------
    blocks : sequence of (dataset, list of str)
        Of a table that :func:`raw_columns` accepts.
    start, stop : int
        Rows.

    Returns
    -------
    awkward.Array
        Lists of massless particles, as :func:`drapes_hep.events.clustering.cluster_events` takes them. Zeros *between*
        particles are kept, since they are not padding.

    Notes
    -----
    Memory is 32 bytes for each particle of the chunk, and 17 MB for the padded rows that are decompressed at a time:
    220 MB for 50,000 events of the official files, where the padded table takes 840.
    """
    width = _width(blocks)
    slots = width // 3
    counts, particles = [], []
    for first in range(start, stop, _STEP):
        dense = _dense(blocks, width, first, min(first + _STEP, stop))[:, : 3 * slots]
        # any of the three: NaN counts as a value, and so does an angle without a momentum. Both are errors later
        used = (dense[:, 0::3] != 0) | (dense[:, 1::3] != 0) | (dense[:, 2::3] != 0)
        count = np.where(used.any(axis=1), slots - np.argmax(used[:, ::-1], axis=1), 0)
        mask = np.arange(slots) < count[:, None]
        counts.append(count)
        particles.append(dense.reshape(len(dense), slots, 3)[mask].T)
    offsets = offsets_of(np.concatenate(counts))
    return make_particles(offsets, *np.concatenate(particles, axis=1))


def read_last_column(blocks: Sequence[Block], start: int, stop: int) -> Any:
    """Read the label column of some rows, and nothing else.

    Parameters
    ----------
    blocks : sequence of (dataset, list of str)
        Of a table whose last column is the label.
    start, stop : int
        Rows.

    Returns
    -------
    array, shape (stop - start,)
        As the file stores it.
    """
    last = str(_width(blocks) - 1)
    ((values, names),) = ((values, names) for values, names in blocks if last in names)
    return values[start:stop, names.index(last)]
