"""What `describe` says of workloads worked out by hand, and the sharing of prefixes token by token."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbsim.workload.request import Request
from cbsim.workload.stats import PrefixTree, describe

HEADER = "arrival_s,num_prompt_tokens,num_output_tokens,user\n"


def test_by_hand(trace):
    stats = describe(trace("c.csv", HEADER + "1,10,1,a\n2,20,2,b\n5,30,3,a\n"))
    assert (stats.num_requests, stats.duration_s, stats.rate_per_s) == (3, 4.0, 0.5)
    assert stats.interarrival_cv == 0.5  # gaps 1 and 3
    assert (stats.num_prompt_tokens, stats.num_output_tokens) == (60, 6)
    assert (stats.prompt_tokens.mean, stats.prompt_tokens.p50, stats.prompt_tokens.max) == (20.0, 20.0, 30)
    assert stats.prompt_tokens.p90 == pytest.approx(28.0)
    assert (stats.num_users, stats.num_sessions, stats.prefix_share) == (2, 0, 0.0)


def test_a_single_instant_has_no_rate(trace):
    stats = describe(trace("c.csv", HEADER + "1,10,1,\n1,20,2,\n"))
    assert math.isnan(stats.rate_per_s)
    assert math.isnan(stats.interarrival_cv)
    assert stats.to_json()["rate_per_s"] is None
    json.dumps(stats.to_json(), allow_nan=False)


def test_text_is_a_table(trace):
    text = describe(trace("c.csv", HEADER + "5,30,3,a\n1,10,1,a\n2,20,2,b\n")).to_text()
    assert text.splitlines() == [
        "requests                             3",
        "from first to last              4.00 s",
        "arrivals per second              0.500",
        "CV between arrivals              0.500",
        "prompt tokens                       60",
        "output tokens                        6",
        "sessions                             -",
        "users                                2",
        "prompt tokens said before         0.0%",
        "",
        "tokens                 mean        p50        p90        p99        max",
        "of a prompt              20         20         28         30         30",
        "of an answer              2          2          3          3          3",
        "",
        "c.csv: 1 of 3 requests stood after a later one; sorted",
    ]


SEGMENTS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "o:0", "o:1"]), st.integers(1, 4)), min_size=1, max_size=4
)


@given(st.lists(st.tuples(SEGMENTS, st.integers(1, 4)), max_size=8))
def test_the_tree_agrees_with_comparing_token_by_token(drawn):
    def spelled(segments):
        return [(name, offset) for name, n in segments for offset in range(n)]

    tree = PrefixTree()
    said = []
    for i, (prompt, num_output) in enumerate(drawn):
        tokens = spelled(prompt)
        request = Request(str(i), 0.0, len(tokens), num_output, prompt=tuple(prompt))
        longest = 0
        for earlier in said:
            num_equal = 0
            while num_equal < min(len(tokens), len(earlier)) and tokens[num_equal] == earlier[num_equal]:
                num_equal += 1
            longest = max(longest, num_equal)
        assert tree.add(request) == longest
        said.append(spelled([*prompt, (f"o:{i}", num_output)]))


def test_sessions_share_what_was_said(make):
    stats = describe(
        make(
            type="synthetic",
            num_requests=3,
            arrivals={"type": "all_at_once"},
            prompt_tokens={"type": "fixed", "value": 10},
            output_tokens={"type": "fixed", "value": 5},
            shared_prefix={"num_tokens": 30},
        )
    )
    assert stats.prefix_share == 60 / 120
