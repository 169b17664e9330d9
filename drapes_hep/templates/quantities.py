"""What generated jets are compared in: quantities by name, with their axis labels."""

from __future__ import annotations

__all__ = ["QUANTITIES"]

QUANTITIES: dict[str, str] = {
    "pt": r"Jet $p_T$ [GeV]",
    "eta": r"Jet $\eta$",
    "mass": r"Jet mass [GeV]",
    "n": r"Constituents per jet",
    "tau21": r"$\tau_{21}$",
    "tau32": r"$\tau_{32}$",
    "mjj": r"$m_{JJ}$ [GeV]",
    "delta_phi_jj": r"$\pi - |\Delta\phi_{JJ}|$ [rad]",
    "pt_fraction": r"$p_{T,i}\,/\,p_{T,J}$",
    "log_pt_fraction": r"$\log_{10}(p_{T,i}\,/\,p_{T,J})$",
    "delta_eta": r"$\eta_i - \eta_J$",
    "delta_phi": r"$\phi_i - \phi_J$ [rad]",
}
"""What is compared: of jets, of pairs, of constituents; with axis labels."""
