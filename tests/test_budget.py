"""What a local significance is made of."""

from __future__ import annotations

import numpy as np
import pytest

from drapes_hep.bumphunt.budget import significance_budget
from drapes_hep.bumphunt.significance import local_significance
from drapes_hep.errors import FitError


def test_the_last_line_has_the_significance_of_the_whole_error():
    lines = significance_budget(180, 129.5, [("fit", 8.0), ("function", 6.0), ("nulls", 7.0)])
    assert [line.source for line in lines] == ["Poisson fluctuation", "fit", "function", "nulls"]
    assert lines[0].deviation == pytest.approx(np.sqrt(129.5))
    assert [line.deviation for line in lines[1:]] == [8.0, 6.0, 7.0]
    for line, error in zip(lines, (0.0, 8.0, 10.0, np.sqrt(149.0)), strict=True):
        assert line.z == pytest.approx(float(local_significance([180], [129.5], [error]).z[0]), rel=1e-9)


def test_each_source_lowers_an_excess():
    z = [line.z for line in significance_budget(180, 129.5, [("fit", 8.0), ("function", 6.0)])]
    assert z == sorted(z, reverse=True)


@pytest.mark.parametrize("size", [-1.0, np.nan, np.inf])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(FitError, match="negative or not finite"):
        significance_budget(10, 8.0, [("fit", size)])
