"""Points of mixed launches in place of those that were not timed."""

import pytest

from cbsim.base.errors import CalibrationError
from cbsim.lab.calibrate.fit import SENTENCES, fit_form, with_stand_ins
from tests.cost.laws import NUM_LAYERS, make_form
from tests.lab.calibrate.synthetic import sizes, timed

POINTS = timed(sizes(mixed=True), make_form(fused=True), 0.0, 0)


def test_points_that_suffice_are_left_alone():
    assert with_stand_ins(POINTS) == (POINTS, [])


@pytest.mark.parametrize("lacking", ["prefill", "decode"])
def test_launches_with_the_least_of_the_other_part_stand_in(lacking):
    timings = [point for point in POINTS if point.op != lacking]
    with pytest.raises(CalibrationError, match=f"{lacking}: 0 points"):
        fit_form(timings, NUM_LAYERS, seed=0)
    points, sentences = with_stand_ins(timings)
    assert sentences == [SENTENCES[lacking]]
    added = points[len(timings) :]
    assert len(added) >= 8
    for point in added:
        assert point.op == lacking
        assert bool(point.chunks) == (lacking == "prefill")
        assert bool(point.num_decodes) == (lacking == "decode")
    assert fit_form(points, NUM_LAYERS, seed=0).fused is not None


def test_without_mixed_launches_nothing_can_stand_in():
    timings = [point for point in POINTS if point.op not in ("prefill", "mixed")]
    assert with_stand_ins(timings) == (timings, [])
