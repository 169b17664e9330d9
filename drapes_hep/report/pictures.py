"""Figures on disk and on the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from drapes_hep.files import atomic_path

__all__ = ["Album", "FigureAlbum", "Picture"]

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
    png : str
        The image, base64.
    wide : bool
        It takes the width of the page.
    """

    slug: str
    title: str
    caption: str
    sources: tuple[str, ...]
    png: str
    wide: bool

    @property
    def alt(self) -> str:
        """Alternative text of the image."""
        words = self.caption.striptags() if isinstance(self.caption, Markup) else self.caption
        return f"{self.title}. {words}"


class Album:
    """Renders figures into a folder and remembers which, so that those of an older run can go.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[str] = set()

    def add(
        self, slug: str, figure: Figure, title: str, caption: str, sources: Iterable[str], *, wide: bool = False
    ) -> Picture:
        """Write a figure as PNG and PDF.

        Parameters
        ----------
        slug, title, caption, sources, wide
            As :class:`Picture` has them.
        figure : Figure

        Returns
        -------
        Picture
        """
        png, pdf = io.BytesIO(), io.BytesIO()
        # no date and no version: the same files give the same bytes
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
        for suffix, content in (("png", png), ("pdf", pdf)):
            with atomic_path(self.folder / f"{slug}.{suffix}") as temporary:
                temporary.write_bytes(content.getvalue())
            self.written.add(f"{slug}.{suffix}")
        encoded = base64.b64encode(png.getvalue()).decode("ascii")
        return Picture(slug, title, caption, tuple(sources), encoded, wide)

    def prune(self) -> None:
        """Remove figures of an earlier report: next to a new report they would mislead."""
        for path in self.folder.iterdir():
            if path.suffix in {".png", ".pdf"} and not path.name.startswith(".") and path.name not in self.written:
                path.unlink()


class FigureAlbum(Album):
    """Keeps the figures themselves, and writes nothing.

    Attributes
    ----------
    figures : dict of str to Figure
        By slug, in the order of the page.
    """

    def __init__(self) -> None:
        super().__init__(Path())
        self.figures: dict[str, Figure] = {}

    def add(
        self, slug: str, figure: Figure, title: str, caption: str, sources: Iterable[str], *, wide: bool = False
    ) -> Picture:
        """Keep a figure; parameters as for :class:`Album`."""
        self.figures[slug] = figure
        return Picture(slug, title, caption, tuple(sources), "", wide)
