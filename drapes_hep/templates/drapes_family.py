r"""The templates of Drapes: one reverse diffusion, and five choices of where it starts.

A template event is made by starting at a noise level :math:`\sigma'` and following the flow down to 0 under a mass:

.. math:: x' = x_0 + \sigma' n, \qquad n \sim N(0, 1),

in the scaled features, with :math:`x_0` a parent event, or 0 where there is none (METHOD of Drapes: full noise is
:math:`\sigma' = \sigma_{max}`, beside which any :math:`x_0` is lost). :data:`RECIPES` is the table of the family.

Only the strengths exist that are among the sampler's steps: of N steps with n' left, :math:`\sigma' = \sigma_{N-n'}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["RECIPES", "Origin", "Recipe", "Source"]

Source = Literal["noise", "window", "sidebands", "simulation"]
"""Where the parents of template events come from: none, data of the window, sideband events that trained the model,
events of another simulation in the window."""


class Origin(Protocol):
    """Where a template starts: what its plan follows from.

    Attributes
    ----------
    title : str
        What legends call it.
    source : {"noise", "window", "sidebands", "simulation"}
    own_mass : bool
        Whether a template event has its parent's m_JJ, or one drawn in the window.
    partial : bool
        Whether parents are noised by ``template.strength``.
    """

    @property
    def title(self) -> str: ...  # noqa: D102 - above

    @property
    def source(self) -> Source: ...  # noqa: D102 - above

    @property
    def own_mass(self) -> bool: ...  # noqa: D102 - above

    @property
    def partial(self) -> bool: ...  # noqa: D102 - above


@dataclass(frozen=True)
class Recipe:
    """One row of the family.

    Attributes
    ----------
    source : {"noise", "window", "sidebands", "simulation"}
        Where parents come from.
    partial : bool
        Whether it starts at the strength sigma' instead of sigma_max.
    own_mass : bool
        Whether the condition is the parent's own m_JJ, or one drawn from the mass fit inside the window.
    title : str
        What papers call it.
    """

    source: Source
    partial: bool
    own_mass: bool
    title: str


RECIPES: dict[str, Recipe] = {
    "from_noise": Recipe("noise", partial=False, own_mass=False, title="Drapes 0"),
    "from_low_noise": Recipe("noise", partial=True, own_mass=False, title="Drapes 0 at sigma'"),
    "from_window": Recipe("window", partial=True, own_mass=True, title="Drapes SR"),
    "from_sidebands": Recipe("sidebands", partial=True, own_mass=False, title="Drapes SB"),
    "from_simulation": Recipe("simulation", partial=True, own_mass=True, title="Drapes MC"),
}
"""The family, by the names that ``template.method`` takes."""
