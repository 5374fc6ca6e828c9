"""KV blocks that several requests hold are read from memory once, whatever prices the step."""

from __future__ import annotations

import pytest

from cbsim.cost.profile_record import form_seconds
from cbsim.cost.step_columns import L2_SPEED, StepColumns, StepShape
from tests.cost.laws import make_form
from tests.cost.test_attention_grid import FORM as TABLES
from tests.cost.test_roofline import make

PRICES = {
    "formula": lambda shape: form_seconds(make_form(fused=True), StepColumns.from_shapes([shape]))[0],
    "tables": lambda shape: form_seconds(TABLES, StepColumns.from_shapes([shape]))[0],
    "roofline": lambda shape: make().step_s(shape),
}


def decodes(chunks: tuple[tuple[int, int], ...], context: float, shared: int = 0) -> StepShape:
    """32 decodes of equal contexts, beside chunks."""
    return StepShape(chunks, 0, 32, int(32 * context), int(context), num_shared_tokens=32 * shared)


@pytest.mark.parametrize("chunks", [(), ((500, 4096),)], ids=["alone", "beside a chunk"])
@pytest.mark.parametrize("name", PRICES)
def test_what_is_shared_costs_no_more_than_once(name, chunks):
    price = PRICES[name]
    assert price(decodes(chunks, 3900, shared=400)) == price(decodes(chunks, 3500))
    assert price(decodes(chunks, 3900)) > price(decodes(chunks, 3500))


@pytest.mark.parametrize("name", PRICES)
def test_all_still_comes_from_the_cache(name):
    """However much is shared, all of it passes through the L2 cache, which is not infinitely fast."""
    price = PRICES[name]
    through_cache = price(decodes((), 3900 / L2_SPEED))
    assert price(decodes((), 3900, shared=3890)) == price(decodes((), 3900, shared=2000)) == through_cache
