"""Tiles: rows by hand, and that more rows never count less."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cbsim.cost.form import Tiles


def test_rows_by_hand():
    """The lowest power of two up to 128, then multiples of 128; empty rows count three quarters."""
    rows = np.array([0, 1, 3, 64, 65, 128, 129, 256, 257])
    whole = np.array([0, 1, 4, 64, 128, 128, 256, 256, 384])
    assert Tiles(height=128, share=1.0).counted(rows).tolist() == whole.tolist()
    expected = rows + 0.75 * (whole - rows)
    assert Tiles(height=128, share=0.75).counted(rows).tolist() == expected.tolist()
    assert Tiles().counted(rows).tolist() == rows.tolist()


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 100_000),
    more=st.integers(1, 300),
    height=st.sampled_from([1, 32, 64, 128, 256]),
    share=st.sampled_from([0.0]) | st.floats(1e-300, 1),
)
def test_more_rows_never_count_less(rows, more, height, share):
    before, after = Tiles(height=height, share=share).counted([rows, rows + more])
    assert rows <= before <= after


@pytest.mark.parametrize(("height", "share"), [(96, 0.5), (0, 0.5), (128, 1.5), (128, -0.1)])
def test_tiles_that_are_none(height, share):
    with pytest.raises(ValidationError):
        Tiles(height=height, share=share)
