"""Figures on disk and on the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from drapes_hep.files import atomic_path

__all__ = ["Album", "Picture", "render_figures"]

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


class Album:
    """Collects the figures of a page, which are rendered together at the end.

    Attributes
    ----------
    figures : dict of str to Figure
        By slug, in the order of the page.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

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
        self.figures[slug] = figure
        return Picture(slug, title, caption, tuple(sources), wide)


def render_figures(
    folder: Path, figures: Mapping[str, Figure], progress: Callable[[int, int], None] | None = None
) -> dict[str, str]:
    """Write figures as PNG and PDF, and remove those of an earlier report: next to a new report they would mislead.

    Parameters
    ----------
    folder : Path
    figures : mapping of str to Figure
        By the names of their files.
    progress : callable, optional
        Called with (figures rendered, figures).

    Returns
    -------
    dict of str to str
        The PNG files, base64, by the same names.
    """
    images: dict[str, str] = {}
    for slug, figure in figures.items():
        images[slug] = _render(folder / slug, figure)
        if progress is not None:
            progress(len(images), len(figures))
    for path in folder.iterdir():
        if path.suffix in {".png", ".pdf"} and not path.name.startswith(".") and path.stem not in images:
            path.unlink()
    return images


def _render(stem: Path, figure: Figure) -> str:
    """Write a figure as PNG and PDF; returns the PNG, base64."""
    png, pdf = io.BytesIO(), io.BytesIO()
    # no date and no version: the same files give the same bytes
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    for suffix, content in (("png", png), ("pdf", pdf)):
        with atomic_path(stem.with_name(f"{stem.name}.{suffix}")) as temporary:
            temporary.write_bytes(content.getvalue())
    return base64.b64encode(png.getvalue()).decode("ascii")
