"""Fits of attention with decodes: alone, and in one launch with chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cbsim.cost.attention import DecodeAttention, FusedAttention, PrefillAttention
from cbsim.cost.step_columns import Floats, StepColumns
from cbsim.lab.calibrate.coefficients import Search, Unknown, Values
from cbsim.lab.calibrate.point import Point, columns_of, seconds_of

SERVING_WEIGHT = 3.0
"""Weight of points where serving sits: 8 to 128 decodes with 256 to 3,000 tokens of context each."""
ODD_WEIGHT = 0.3
"""Weight of points where it hardly ever is: contexts under 16 tokens."""
NO_START = {"start_per_token_s": 0.0, "start_tokens": 0.0}
NOTHING_BEYOND = {"beyond_per_context_token_s": 0.0, "beyond_context_tokens": 0.0}
"""Of lines that don't bend."""


def fit_decode(points: Sequence[Point], rng: np.random.Generator) -> DecodeAttention:
    """Fit the attention of decodes."""
    columns, seconds = columns_of(points), seconds_of(points)
    shortest = float(seconds.min())
    context, decodes = columns.decode_context, columns.num_decodes
    longest, widest = int(context.argmax()), int(np.argmax(decodes / context))
    per_token_s = float(seconds[longest] / context[longest])
    unknowns = [
        Unknown("launch_s", 0.5 * shortest),
        Unknown("floor_s", 0.5 * shortest),
        Unknown("per_decode_s", 0.3 * float(seconds[widest] / decodes[widest])),
        Unknown("per_token_s", 0.9 * per_token_s),
        Unknown("start_per_token_s", 0.1 * per_token_s),
        Unknown("start_tokens", 0.1 * float(context[longest])),
        Unknown("softness", 1.0, upper=4.0),
        Unknown("floor_softness", 0.5, upper=4.0),
    ]

    def predict(values: Values) -> Floats:
        return DecodeAttention.model_construct(None, **values).at(columns)

    search = Search(seconds, _serving_weights(columns), rng)
    return DecodeAttention(**search.fit_bent(predict, unknowns, "start_tokens", NO_START, context))


def fit_fused(
    points: Sequence[Point], decode: DecodeAttention, prefill: PrefillAttention, rng: np.random.Generator
) -> FusedAttention:
    """Fit the attention of mixed steps; a step never costs less than its decodes or its chunks alone."""
    columns, seconds = columns_of(points), seconds_of(points)
    context = columns.decode_context
    alone = np.maximum(decode.at(columns), prefill.at(columns))
    longest_s = float(np.median(seconds / np.maximum(columns.longest_prefill, columns.max_decode_context)))
    unknowns = [
        Unknown("launch_s", 0.5 * float(seconds.min())),
        Unknown("per_pair_s", max(prefill.per_pair_s, 1e-15)),
        Unknown("per_token_s", max(prefill.per_token_s, 1e-12)),
        Unknown("per_decode_s", max(decode.per_decode_s, 1e-12)),
        Unknown("per_context_token_s", max(decode.per_token_s, 1e-15)),
        Unknown("beyond_per_context_token_s", max(decode.per_token_s, 1e-15)),
        Unknown("beyond_context_tokens", 0.3 * float(context.max())),
        Unknown("per_longest_token_s", 0.1 * longest_s),
        Unknown("per_longest_decode_token_s", 0.1 * longest_s),
        Unknown("softness", 1.0, upper=4.0),
    ]

    def predict(values: Values) -> Floats:
        form = FusedAttention.model_construct(None, **values)
        return np.maximum(form.at(columns, prefill.tile), alone)

    search = Search(seconds, _serving_weights(columns), rng)
    found = search.fit_bent(predict, unknowns, "beyond_context_tokens", NOTHING_BEYOND, context)
    return FusedAttention(**found)


def _serving_weights(columns: StepColumns) -> Floats:
    """More for decodes as servers have them, less for contexts that hardly occur."""
    decodes = columns.num_decodes
    mean_context = columns.decode_context / decodes
    weights = np.ones(len(decodes))
    usual = (decodes >= 8) & (decodes <= 128) & (mean_context >= 256) & (mean_context <= 3000)
    weights[usual] = SERVING_WEIGHT
    weights[mean_context < 16] = ODD_WEIGHT
    return weights
