"""Small tables for notebooks, everything in them escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_table", "number"]


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Write a table.

    Parameters
    ----------
    header : sequence of str
    rows : iterable of sequence of str
    caption : str

    Returns
    -------
    str
        HTML.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"


def number(value: float | None, error: float | None = None) -> str:
    """Write a number, with its error where there is one; a dash for None."""
    if value is None:
        return "–"
    text = str(value) if isinstance(value, int) else f"{value:.4g}"
    return text if error is None else f"{text} ± {error:.2g}"
