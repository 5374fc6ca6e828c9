"""The generator: streams kept apart, laziness, equal iterations, and sessions whose prompts grow."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
from pydantic import ValidationError

from cbsim.workload.synthetic import turn_arrivals

BASE = {
    "type": "synthetic",
    "num_requests": 300,
    "arrivals": {"type": "poisson", "rate_per_s": 5.0},
    "prompt_tokens": {"type": "lognormal", "median": 200.0, "p90": 800.0},
    "output_tokens": {"type": "uniform", "min": 1, "max": 90},
}
EVERYTHING = {
    **BASE,
    "sessions": {"num_turns": {"type": "uniform", "min": 1, "max": 5}, "think_time_s": 4.0},
    "shared_prefix": {"num_tokens": 64, "num_groups": 3},
    "users": {"num_users": 4, "skew": 1.0},
    "priorities": {"values": [0, 5], "weights": [1, 3]},
    "deadlines": {"values_s": [1.5, 30.0]},
}


def column(workload, name):
    return [getattr(request, name) for request in workload.requests()]


@pytest.mark.parametrize("settings_", [BASE, EVERYTHING], ids=["plain", "everything"])
def test_two_iterations_are_equal_and_the_batch_size_does_not_matter(make, facts, settings_):
    workload = make(**settings_)
    first = [facts(r) for r in workload.requests()]
    assert [facts(r) for r in workload.requests()] == first
    for size in (1, 7, 64):
        other = make(**settings_)
        other.batch_size = size
        assert [facts(r) for r in other.requests()] == first


@pytest.mark.parametrize("settings_", [BASE, EVERYTHING], ids=["plain", "everything"])
def test_in_order_of_arrival_numbered_and_counted(make, settings_):
    workload = make(**settings_)
    arrivals = column(workload, "arrival_s")
    assert arrivals == sorted(arrivals)
    assert column(workload, "request_id") == [f"r{i}" for i in range(300)]
    assert workload.num_requests() == 300


def test_another_seed_is_another_workload(make):
    assert column(make(seed=1, **BASE), "arrival_s") != column(make(seed=2, **BASE), "arrival_s")


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"prompt_tokens": {"type": "fixed", "value": 9}}, ("arrival_s", "num_output_tokens")),
        ({"output_tokens": {"type": "fixed", "value": 9}}, ("arrival_s", "num_prompt_tokens")),
        ({"arrivals": {"type": "constant", "rate_per_s": 2.0}}, ("num_prompt_tokens", "num_output_tokens")),
        ({"users": {"num_users": 3}}, ("arrival_s", "num_prompt_tokens", "num_output_tokens")),
        ({"deadlines": {"values_s": [1.0]}}, ("arrival_s", "num_prompt_tokens", "num_output_tokens")),
    ],
)
def test_changing_one_thing_changes_no_other(make, changed, same):
    for name in same:
        assert column(make(**BASE), name) == column(make(**{**BASE, **changed}), name)


def test_more_requests_begin_with_the_same(make, facts):
    few = [facts(r) for r in make(**EVERYTHING).requests()]
    more = [facts(r) for r in make(**{**EVERYTHING, "num_requests": 400}).requests()]
    assert more[:250] == few[:250]


@pytest.mark.parametrize("settings_", [BASE, EVERYTHING], ids=["plain", "everything"])
def test_the_first_requests_of_a_billion_are_cheap(make, settings_, monkeypatch):
    workload = make(**{**settings_, "num_requests": 1_000_000_000})
    assert workload.num_requests() == 1_000_000_000
    assert len(list(itertools.islice(workload.requests(), 10))) == 10


def test_limit_stops_the_drawing(make):
    assert len(column(make(**{**BASE, "num_requests": 1_000_000_000, "limit": 12}), "arrival_s")) == 12


def test_a_limit_or_a_window_makes_any_duration_right(make):
    endless = {**BASE, "num_requests": None, "duration_s": 1e9}
    assert len(column(make(**endless, limit=3), "arrival_s")) == 3
    assert max(column(make(**endless, end_s=4.0), "arrival_s")) < 4.0


def test_a_duration_takes_what_arrives_before_it(make):
    settings_ = {**BASE, "num_requests": None, "duration_s": 100.0}
    workload = make(**settings_)
    arrivals = column(workload, "arrival_s")
    assert arrivals == [t for t in column(make(**{**BASE, "num_requests": 1000}), "arrival_s") if t < 100.0]
    assert workload.num_requests() is None


def test_a_window_is_counted_only_by_iterating(make):
    workload = make(**BASE, start_s=10.0, end_s=20.0)
    assert workload.num_requests() is None
    inside = [t - 10.0 for t in column(make(**BASE), "arrival_s") if 10.0 <= t < 20.0]
    assert column(workload, "arrival_s") == inside


def test_sessions_talk_in_turns(make):
    turns = defaultdict(list)
    for request in make(**EVERYTHING).requests():
        turns[request.session_id].append(request)
    assert max(map(len, turns.values())) > 2
    for session in turns.values():
        first = session[0]
        assert first.prompt[0][0].startswith("g:")
        assert first.prompt[0][1] == 64
        assert len(first.prompt) == 2
        assert len({(r.user, r.priority) for r in session}) == 1
        for earlier, later in itertools.pairwise(session):
            answer = (f"o:{earlier.request_id}", earlier.num_output_tokens)
            assert later.prompt[:-1] == (*earlier.prompt, answer)
            assert later.prompt[-1][0] == f"p:{later.request_id}"
            assert later.arrival_s > earlier.arrival_s


def test_prompt_lengths_are_the_sums_of_their_segments(make):
    for request in make(**EVERYTHING).requests():
        assert sum(n for _, n in request.prompt) == request.num_prompt_tokens
        assert all(n > 0 for _, n in request.prompt)


def test_constant_think_time_worked_by_hand(make):
    workload = make(
        type="synthetic",
        num_requests=6,
        arrivals={"type": "constant", "rate_per_s": 0.5},
        prompt_tokens={"type": "fixed", "value": 10},
        output_tokens={"type": "fixed", "value": 3},
        sessions={"num_turns": {"type": "fixed", "value": 3}, "think_time_s": 1.5, "think_time_cv": 0.0},
    )
    # sessions start at 0, 2, 4 ...; their turns are 1.5 s apart
    found = [(r.session_id, r.arrival_s, r.num_prompt_tokens) for r in workload.requests()]
    assert found == [
        ("s0", 0.0, 10),
        ("s0", 1.5, 23),
        ("s1", 2.0, 10),
        ("s0", 3.0, 36),
        ("s1", 3.5, 23),
        ("s2", 4.0, 10),
    ]


def test_turns_are_summed_session_by_session():
    start_s, num_turns, gaps_s = np.array([0.0, 10.0, 20.0]), np.array([3, 1, 2]), np.array([1.0, 2.0, 4.0])
    assert turn_arrivals(start_s, num_turns, gaps_s).tolist() == [0.0, 1.0, 3.0, 10.0, 20.0, 24.0]


def test_think_times_have_the_mean_asked_for(make):
    workload = make(
        **{**BASE, "num_requests": 20_000},
        sessions={"num_turns": {"type": "fixed", "value": 2}, "think_time_s": 7.0},
    )
    started, gaps = {}, []
    for request in workload.requests():
        if request.session_id in started:
            gaps.append(request.arrival_s - started[request.session_id])
        started[request.session_id] = request.arrival_s
    # requests at the end are cut off before their second turn: 35 of 10,000 sessions, too few to see
    assert sum(gaps) / len(gaps) == pytest.approx(7.0, abs=4 * 7.0 / len(gaps) ** 0.5 + 0.1)


def test_a_shared_prefix_without_sessions(make):
    workload = make(**BASE, shared_prefix={"num_tokens": 100, "num_groups": 2})
    plain = column(make(**BASE), "num_prompt_tokens")
    assert column(workload, "num_prompt_tokens") == [n + 100 for n in plain]
    groups = Counter(prompt[0] for prompt in column(workload, "prompt"))
    assert set(groups) == {("g:0", 100), ("g:1", 100)}


def test_mixes_occur_by_weight(make):
    many = {**BASE, "num_requests": 20_000}
    workload = make(
        **many,
        users={"num_users": 3, "skew": 1.0},
        priorities={"values": [0, 5], "weights": [1, 3]},
        deadlines={"values_s": [1.5, 30.0]},
    )
    counts = [Counter(column(workload, name)) for name in ("user", "priority", "deadline_s")]
    # Zipf with exponent 1 over three users: 6/11, 3/11, 2/11
    shares = [{"u0": 6 / 11, "u1": 3 / 11, "u2": 2 / 11}, {0: 0.25, 5: 0.75}, {1.5: 0.5, 30.0: 0.5}]
    for found, wanted in zip(counts, shares, strict=True):
        assert set(found) == set(wanted)
        for value, share in wanted.items():
            assert found[value] / 20_000 == pytest.approx(
                share, abs=4 * (share * (1 - share) / 20_000) ** 0.5
            )


def test_traces_drawn_from_are_inputs(make, tmp_path):
    (tmp_path / "v.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,6\n")
    lengths = {"type": "empirical", "path": "v.csv"}
    workload = make(**{**BASE, "prompt_tokens": lengths, "output_tokens": lengths})
    assert workload.inputs() == [tmp_path / "v.csv"]
    assert set(column(workload, "num_prompt_tokens")) == {5}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_requests": None}, "give one of num_requests and duration_s"),
        ({"num_requests": 10**12}, "less than or equal to 1000000000"),
        (
            {"num_requests": None, "duration_s": 1e9},
            r"duration_s = 1e\+09 brings 5e\+09 requests; allowed: at most 1,000,000,000, or a limit",
        ),
        ({"duration_s": 5.0}, "give one of num_requests and duration_s"),
        (
            {"num_requests": None, "duration_s": 5.0, "arrivals": {"type": "all_at_once"}},
            "all_at_once arrivals need num_requests",
        ),
        ({"arrivals": {"type": "poisson"}}, "rate_per_s"),
        ({"arrivals": {"type": "possion", "rate_per_s": 1.0}}, "'poisson'"),
        ({"users": {"num_users": 0}}, "num_users"),
        ({"priorities": {"values": [1, 2], "weights": [1.0]}}, "one for each value, 2"),
    ],
)
def test_wrong_settings(make, wrong, message):
    with pytest.raises(ValidationError, match=message):
        make(**{**BASE, **wrong})
