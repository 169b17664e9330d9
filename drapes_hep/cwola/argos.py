r"""ARGOS: how well scores find an excess, judged without labels (arXiv:2511.14832).

With :math:`\epsilon_{SR}` and :math:`\epsilon_{BT}` the fractions of data and of template that score above a threshold,

.. math:: \mathrm{ARGOS} = \max \left( \epsilon_{SR} / \sqrt{\epsilon_{BT}} - \sqrt{\epsilon_{BT}} \right)

over the thresholds. Data and template that are alike have 0 but for fluctuations, those of n data events and of m
template events by :math:`1 / \sqrt{n}` and :math:`1 / \sqrt{m}` at any threshold. A signal of fraction f of which a
fraction :math:`\epsilon_S` passes adds :math:`f (\epsilon_S / \sqrt{\epsilon_{BT}} - \sqrt{\epsilon_{BT}})`: f times
its significance improvement at tight thresholds. A template that lacks background raises it, too: whether ARGOS may
choose is a question to searches without a signal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_TEMPLATE", "argos"]

LEAST_TEMPLATE = 10
"""Template events above a threshold, at least: fewer say too little of their fraction."""


def argos(score: npt.ArrayLike, is_data: npt.ArrayLike, weight: npt.ArrayLike) -> float:
    """Compute ARGOS (arXiv:2511.14832) of scores that were not trained on these events.

    Parameters
    ----------
    score : array_like, shape (n,)
        Larger is more data-like.
    is_data : array_like of bool, shape (n,)
        Whether an event is of the data; of the template otherwise.
    weight : array_like, shape (n,)

    Returns
    -------
    float
        At least 0, the value without a cut; 0 if there are fewer than :data:`LEAST_TEMPLATE` template events.
    """
    s, data, w = np.asarray(score, float), np.asarray(is_data, bool), np.asarray(weight, float)
    order = np.argsort(-s, kind="stable")
    s, data, w = s[order], data[order], w[order]
    totals = w[data].sum(), w[~data].sum()
    # a threshold passes all events of one score
    last = np.append(s[1:] != s[:-1], True)
    chosen = last & (np.cumsum(~data) >= LEAST_TEMPLATE)
    if not chosen.any() or min(totals) <= 0:
        return 0.0
    passed_data, passed_template = (np.cumsum(w * part)[chosen] for part in (data, ~data))
    eps_data, root = passed_data / totals[0], np.sqrt(passed_template / totals[1])
    positive = root > 0
    return max(float(np.max(eps_data[positive] / root[positive] - root[positive], initial=0.0)), 0.0)
