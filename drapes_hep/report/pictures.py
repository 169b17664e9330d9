"""Figures on disk and on the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from drapes_hep.files import atomic_path

__all__ = ["Album", "Picture", "Rendered", "render_figure", "write_figures"]

DPI = 110


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes
    ----------
    slug : str
        Its name in ``report/figures``.
    title : str
    caption : str or Markup
        Markup where it holds symbols.
    sources : tuple of str
        The files that it shows.
    wide : bool
        It takes the width of the page.
    """

    slug: str
    title: str
    caption: str
    sources: tuple[str, ...]
    wide: bool

    @property
    def alt(self) -> str:
        """Alternative text of the image."""
        words = self.caption.striptags() if isinstance(self.caption, Markup) else self.caption
        return f"{self.title}. {words}"


class Rendered(NamedTuple):
    """Contents of a figure's two files."""

    png: bytes
    pdf: bytes


class Album:
    """Takes the figures of a page as they are made.

    Parameters
    ----------
    show : callable
        Called with name and figure. The album does not keep the figure: those of a page together need several hundred
        MB.
    """

    def __init__(self, show: Callable[[str, Figure], None]) -> None:
        self._show = show

    def add(
        self, slug: str, figure: Figure, title: str, caption: str, sources: Iterable[str], *, wide: bool = False
    ) -> Picture:
        """Add a figure.

        Parameters
        ----------
        slug, title, caption, sources, wide
            As :class:`Picture` has them.
        figure : Figure

        Returns
        -------
        Picture
        """
        self._show(slug, figure)
        return Picture(slug, title, caption, tuple(sources), wide)


def render_figure(figure: Figure) -> Rendered:
    """Return a figure as PNG and PDF."""
    png, pdf = io.BytesIO(), io.BytesIO()
    # no date and no version: the same files give the same bytes
    # half the time of zlib's usual level, for 3% more bytes
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return Rendered(png.getvalue(), pdf.getvalue())


def write_figures(folder: Path, figures: Mapping[str, Rendered]) -> dict[str, str]:
    """Write the files of figures, and remove those of an earlier report: next to a new report they would mislead.

    Parameters
    ----------
    folder : Path
    figures : mapping of str to Rendered
        By the names of their files.

    Returns
    -------
    dict of str to str
        The PNG files, base64, by the same names.
    """
    for slug, rendered in figures.items():
        for suffix, content in rendered._asdict().items():
            with atomic_path(folder / f"{slug}.{suffix}") as temporary:
                temporary.write_bytes(content)
    for path in folder.iterdir():
        if path.suffix in {".png", ".pdf"} and not path.name.startswith(".") and path.stem not in figures:
            path.unlink()
    return {slug: base64.b64encode(rendered.png).decode("ascii") for slug, rendered in figures.items()}
