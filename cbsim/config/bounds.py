"""Bounds: what no service has, by the names of settings, and why; the same in every section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

from cbsim.base.units import MEGA, MIB

MAX_TOKENS = 100 * MEGA
"""Longer prompts and answers, of traces and of generators, are taken for mistakes."""
MAX_BLOCKS_IN_ALL = 256 * MIB
"""KV blocks of all replicas, where each has a record: of 64 bytes, compiled."""
MAX_IN_A_RUN = 100 * MEGA
"""Requests that a run sends: each has records in memory, of a kilobyte in all."""
MOST_I32, MOST_I64 = 2**31 - 1, 2**63 - 1


MOST_S, MOST_PER_S = 1e9, 1e9
"""No traffic or run lasts longer, 31 years, and none comes faster; what does is noted."""


def unreal(duration_s: float, rate_per_s: float = 0.0) -> list[str]:
    """A sentence where traffic or a run lasts longer, or comes faster, than any service has it."""
    if duration_s > MOST_S:
        return [f"it lasts {duration_s:.3g} s, more than 31 years: no service does"]
    if rate_per_s > MOST_PER_S:
        return [f"{rate_per_s:.3g} requests arrive a second: no service has so many"]
    return []


def unreal_figures(figures: Mapping[str, float]) -> list[str]:
    """A sentence on figures, by name, that no service has, by the bounds on settings of such names."""
    wrong = (
        f"{name} {value:.3g}"
        for name, value in figures.items()
        if bound_of(name.partition(".")[0]).problem(float(value))
    )
    told = ", ".join(wrong)
    return [f"{told}: no service has such figures (configs/reference.md, the bounds)"] if told else []


class Bound(NamedTuple):
    """The sizes that a setting of some names may have, apart from 0 and signs."""

    names: str
    """Patterns of keys, as a shell has them."""
    least: float
    """The smallest number above 0 that is no whole number's."""
    most: float
    why: str

    def problem(self, number: float) -> str | None:
        """What is wrong with a number; `None` if nothing is."""
        size, most, why = abs(number), self.most, self.why
        if isinstance(number, int) and MOST_I32 < most < MOST_I64:
            most, why = MOST_I32, "32 bits"
        if size > most:
            return f"got {number!r}; expected at most {_shown(most)} ({why})"
        if isinstance(number, int) or size == 0 or size >= self.least:
            return None
        return f"got {number!r}; expected at least {self.least:g} ({why})"


BOUNDS = (
    Bound("seed", 1, MOST_I64, "64 bits"),
    Bound("max_attention_pairs", 1, MOST_I64, "64 bits"),
    Bound("rate_per_s rate_scale", 1e-9, 1e9, "one request in 31 years, or one a nanosecond"),
    Bound("tokens_per_s", 1e-9, 1e15, "a thousand times what memory moves"),
    Bound("start_s end_s", 1e-9, 1e19, "traces may begin in 1970, and count nanoseconds"),
    Bound("*step_s", 1e-12, 1e15, "less than a clock's tick; what is long is noted"),
    Bound(
        "host_*_s per_* *_per_*_s *_per_token launch_s floor_s more_s fixed_s sort_logit_s",
        *(1e-300, 1000),
        "parts of a step, which does not take a quarter of an hour",
    ),
    Bound("*_s", 1e-9, 1e9, "a nanosecond to 31 years"),
    Bound("*_gb_s *_gib *_tflops *_tops", 1e-12, 1e9, "a million times what machines have"),
    Bound("cv *_cv skew", 1e-4, 100, "beyond, draws are all alike, or nearly all 0"),
    Bound("burstiness", 1e-4, 1e8, "as of cv, of which it is the inverse square"),
    Bound("sigma prediction_error", 1e-9, 10, "one in six would be 20,000 times the median"),
    Bound("block_size hash_block_tokens", 1, 2**20, "a context's worth of tokens in one block"),
    Bound("num_users num_groups concurrency", 1, 10 * MEGA, "each has a record in memory"),
    Bound("num_blocks", 1, 100 * MEGA, "each has a record in memory"),
    Bound("count tensor pipeline expert data *_parallel", 1, 10_000, "more than any cluster serves with"),
    Bound("num_layers", 1, 10_000, "fifty times the deepest models"),
    Bound("num_*heads num_*experts*", 1, 100_000, "hundreds of times what models have"),
    Bound("*_size *_dim *_rank", 1, 1e9, "thousands of times what models have"),
    Bound("cuda_graph_batch_sizes trials batch", 1, 100_000, "each takes time or memory of its own"),
    Bound("*", 1e-300, 1e15, "products of larger and smaller numbers lose their meaning"),
)
"""The first whose names fit a key holds for it. Whole numbers are below 2**31, but for those of 64 bits."""


@cache
def bound_of(key: str) -> Bound:
    """The bound of a key."""
    return next(each for each in BOUNDS if any(fnmatchcase(key, name) for name in each.names.split()))


def beyond_bounds(key: str, value: Any) -> str | None:
    """What is wrong with the first number of a setting, or of the list that it holds, that no service has."""
    bound = bound_of(key)
    return next(filter(None, map(bound.problem, _numbers(value))), None)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _shown(most: float) -> str:
    return f"{most:,.0f}" if most < 1e12 else f"{most:g}"


def bounds_table() -> Iterator[tuple[str, str, str, str]]:
    """Rows of the reference: keys, smallest, largest, why."""
    for bound in BOUNDS:
        keys = " ".join(f"`{name}`" for name in bound.names.split())
        yield keys if bound.names != "*" else "all others", f"{bound.least:g}", _shown(bound.most), bound.why
