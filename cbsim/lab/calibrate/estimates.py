"""What timings of other GPUs say of attention launches that nobody timed.

Of two GPUs, an RTX 4090 and an RTX PRO 6000, all kinds of launches were timed with vLLM 0.19 and
Llama-3.1-8B (bundles of LLMServingSim 2.0, MIT), which has 8 KV heads:

* Beside chunks in one launch, n decodes take `factor(n)` times what they take alone, on top of what the
  chunks do: medians over chunks of 16 to 2,048 tokens and contexts of 256 to 3,000. The kernel that serves
  chunks reads the keys of a KV head once for each query head, which tells the more the fuller the GPU is.
* Where contexts are not split, decodes of unequal contexts lose, for each token that the longest is beyond
  the mean, as much time as a full launch takes for `LOST_TOKENS(n)` tokens.

Both go by the KV heads launched. The means are geometric; theory (`attention_grid.py`) has 0.6 to 0.8 of the
losses without chunks. By the factors of one GPU alone the other's mixed launches come out 25 % too short or
too long at the median.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from cbsim.cost.attention import BesideChunks
from cbsim.cost.attention_grid import UnequalTable
from cbsim.cost.form import StepForm
from cbsim.lab.calibrate.skewfit import Splitting

Estimate = Literal["mixed", "unequal", "collectives"]
KV_HEADS = 8
"""Of the model that was timed."""
BESIDE_FACTORS = {1: 0.60, 2: 0.66, 4: 0.98, 8: 1.26, 16: 1.39, 32: 1.44, 64: 1.57, 128: 1.98}
"""0.30 to 1.69 on the RTX PRO 6000, 1.0 to 2.32 on the RTX 4090; alike within 14 % of the mean from 8 on."""
FIRST_LOST_TOKENS = 5.1
"""Of the smallest launch that doesn't split its contexts: 4.9 and 5.4."""
LOST_TOKENS = {64: 4.6, 128: 3.6, 256: 1.6}
"""4.5 to 4.6, 3.3 to 3.9 and 1.1 to 2.4."""
MIXED_ERRORS: dict[str, Any] = {
    "num_points": 2,
    "median_pct": 25.0,
    "p90_pct": 48.0,
    "worst_pct": 180.0,
    "bias_pct": 0.0,
}
"""Of each GPU's mixed launches of 8 decodes and more by the other's factors; two GPUs are two points."""
SENTENCES = {
    "mixed": "attention of steps that mix chunks and decodes was not measured: estimated by what mixing "
    "costs on two other GPUs, which differ by 25 % themselves",
    "unequal": "decodes of unequal contexts were not measured: estimated by what they lose on two other "
    "GPUs, within 10 % where contexts are not split",
}


def with_estimates(form: StepForm, wanted: list[Estimate], splitting: Splitting) -> StepForm:
    """The form with what is wanted, as far as nobody timed it, in place of nothing or of theory."""
    share = splitting.num_kv_heads / KV_HEADS
    if "mixed" in wanted and form.fused is None:
        knots = np.maximum(np.round(np.array(list(BESIDE_FACTORS)) / share), 1).astype(int)
        factors = dict(zip(knots.tolist(), BESIDE_FACTORS.values(), strict=True))
        beside = BesideChunks(decodes=tuple(factors), factors=tuple(factors.values()))
        form = form.model_copy(update={"beside": beside})
    if "unequal" in wanted and form.grid is not None and form.grid.decode.skew.timed is None:
        decode = form.grid.decode
        lost_s = {splitting.up_to: 0.0, splitting.up_to + 1: FIRST_LOST_TOKENS}
        later = {round(count / share): tokens for count, tokens in LOST_TOKENS.items()}
        lost_s |= {count: tokens for count, tokens in later.items() if count > splitting.up_to + 1}
        line = [round(tokens / decode.skew.tokens_per_s, 13) for tokens in lost_s.values()]
        table = UnequalTable(tokens=(0, 1), decodes=tuple(lost_s), lost_s_per_token=(*line, *line))
        skew = decode.skew.model_copy(update={"timed": table})
        grid = form.grid.model_copy(update={"decode": decode.model_copy(update={"skew": skew})})
        form = form.model_copy(update={"grid": grid})
    return form
