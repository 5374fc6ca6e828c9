"""The fit of chunks alone: what spills from the cache, and what lengths do, is found where it is."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares

from cbsim.cost.attention import ChunkLengths, PrefillAttention, blend
from cbsim.cost.elementwise import over_columns
from cbsim.cost.form import StepForm
from cbsim.lab.calibrate import coefficients
from cbsim.lab.calibrate.attentionfit import Timings, Variant, fit_prefill
from cbsim.lab.calibrate.coefficients import Search, Unknown
from cbsim.lab.calibrate.point import Point, columns_of, seconds_of
from tests.cost.laws import SPILL, make_form
from tests.lab.calibrate.synthetic import timed

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
MORE_S = {512: 5e-6, 64: -0.1e-6}
"""An odd kernel for 512 tokens: 1.8 times what the formula says of it; a good one for 64."""


def batches() -> list[Point]:
    """Equal prompts of each length, 1, 2, 4 to 256 of them, as profilers time them."""
    return [
        Point("prefill", 1.0, chunks=((length, 0),) * count)
        for length in LENGTHS
        for count in (2**power for power in range(9))
        if length * count <= 16_384
    ]


def between() -> list[Point]:
    """Sizes between those timed."""
    pairs = [(3, 128), (5, 512), (24, 512), (100, 64), (48, 128), (3, 2048), (7, 1024), (90, 16)]
    return [Point("prefill", 1.0, chunks=((length, 0),) * count) for count, length in pairs]


def law(*, spills: bool = False, odd: bool = False) -> StepForm:
    form = make_form(fused=False)
    settings = form.prefill.model_dump() | {"spill": SPILL if spills else None}
    if odd:
        more_s = tuple(MORE_S.get(length, 0.0) for length in LENGTHS)
        settings["lengths"] = ChunkLengths(tokens=LENGTHS, more_s=more_s)
    return form.model_copy(update={"prefill": PrefillAttention(**settings)})


def fitted(form: StepForm, noise: float, seed: int = 0) -> PrefillAttention:
    return fit_prefill(timed(batches(), form, noise, seed), np.random.default_rng(seed))


def worst_error(found: PrefillAttention, form: StepForm, points: list[Point]) -> float:
    truth = timed(points, form, 0.0, 0)
    return float(np.abs(found.at(columns_of(truth)) / seconds_of(truth) - 1.0).max())


@pytest.mark.parametrize(("noise", "seed"), [(0.005, 0), (0.04, 3)])
def test_a_formula_that_suffices_is_left_alone(noise, seed):
    """With the second noise a spill does predict a little better what is left out, by less than it must."""
    found = fitted(law(), noise, seed)
    assert found.lengths is None
    assert found.spill is None


def test_data_that_spill_from_the_cache_are_found():
    form = law(spills=True)
    found = fitted(form, 0.01)
    assert found.spill is not None
    assert found.spill.per_token_s == pytest.approx(SPILL.per_token_s, rel=0.1)
    assert SPILL.cached_tokens * 0.7 < found.spill.cached_tokens < 4096 * 1.05, (
        "as near as 2048 and 4096 tell"
    )
    assert worst_error(found, form, [*batches(), *between()]) < 0.06


def test_a_length_with_a_kernel_of_its_own_is_found():
    form = law(odd=True)
    found = fitted(form, 0.01)
    assert found.lengths is not None
    assert fitted(form, 0.01) == found, "a fit is the same again"
    more = dict(zip(found.lengths.tokens, found.lengths.more_s, strict=True))
    assert more[512] == pytest.approx(MORE_S[512], rel=0.15)
    assert worst_error(found, form, [*batches(), *between()]) < 0.06


def test_both_at_once():
    form = law(spills=True, odd=True)
    found = fitted(form, 0.01)
    assert found.spill is not None
    assert found.lengths is not None
    assert worst_error(found, form, batches()) < 0.08


def test_an_absurdly_slow_length_makes_no_longer_one_quicker():
    slow = [
        replace(point, t_median_s=point.t_median_s * (2.5 if point.chunks[0][0] == 512 else 1.0))
        for point in timed(batches(), law(), 0.01, 0)
    ]
    found = fit_prefill(slow, np.random.default_rng(0))
    assert found.lengths is not None
    steps = [Point("prefill", 1.0, chunks=((length, 0),)) for length in range(1, 2000)]
    seconds = found.at(columns_of(steps))
    assert (np.diff(seconds) >= -1e-12 * seconds[1:]).all()


def test_slopes_of_all_coefficients_at_once_are_those_that_scipy_finds(monkeypatch):
    """To the last bit, where a bound is near and a coefficient is pulled to 0, too."""
    sizes, rng = np.arange(1.0, 40.0), np.random.default_rng(0)
    timings = 2e-6 + 3e-7 * sizes + np.maximum(0.0, sizes - 20.0) * 1e-7 * rng.lognormal(0.0, 0.1, 39)
    unknowns = [
        Unknown("launch_s", 1e-6),
        Unknown("each_s", 1e-7),
        Unknown("softness", 4.0, upper=4.0),
        Unknown("odd", 0.0, upper=1.0, lower=-1.0, pull=0.15),
    ]

    def predict(values):
        form = over_columns(blend)(values["launch_s"], values["each_s"] * sizes, values["softness"])
        return form * np.exp(values["odd"] * (sizes > 30.0))

    def found():
        return Search(timings, np.ones(39), np.random.default_rng(0)).fit(predict, unknowns, {})

    fit = found()
    monkeypatch.setattr(
        coefficients, "least_squares", lambda of, start, jac, **how: least_squares(of, start, **how)
    )
    assert found() == fit


@pytest.mark.parametrize("variant", [Variant(64, "beyond"), Variant(32, "spill", (64, 512))])
def test_columns_of_coefficients_give_rows_of_seconds(variant):
    columns, rng = columns_of(batches()), np.random.default_rng(0)
    names = [unknown.name for unknown in Timings(columns, np.ones(len(batches())), rng).unknowns(variant)]
    rows = 1e-7 * rng.random((3, len(names)))
    together = variant.attention({name: rows[:, [place]] for place, name in enumerate(names)}).at(columns)
    alone = [variant.attention(dict(zip(names, row, strict=True))).at(columns) for row in rows.tolist()]
    assert (together == np.array(alone)).all()
