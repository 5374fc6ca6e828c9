"""What `tune:` may say: ranges and choices in all their forms, words, and mistakes with key and line."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import ConfigError
from cbsim.config.document import Document
from cbsim.config.tune_space import Choices, Range, TuneSpace, parse_space
from cbsim.config.yaml_text import parse_yaml

FORMS = "a range [LOW, HIGH], {from: LOW, to: HIGH}, or a list of choices"


def space(text: str, pinned: set[tuple[str | int, ...]] | None = None) -> TuneSpace:
    parsed = parse_yaml(text, "f")
    found = parse_space(Document(parsed.value, "f", parsed.lines), pinned or set())
    assert found is not None
    return found


def only(form: str) -> Range | Choices:
    (dimension,) = space(f"tune: {{a.b: {form}}}").dimensions
    return dimension


def test_without_a_tune_there_is_no_space() -> None:
    for text in ("a: 1", "tune:", "tune: {}"):
        assert parse_space(Document(parse_yaml(text, "f").value, "f"), set()) is None


@pytest.mark.parametrize(
    ("form", "is_whole", "is_log", "num_values"),
    [
        ("[1, 8]", True, False, 8),
        ("[256, 16384]", True, True, 16129),
        ("[0.5, 0.9]", False, False, None),
        ("[0.01, 1]", False, True, None),
        ("[0, 1000]", True, False, 1001),
        ("{from: 256, to: 16384}", True, True, 16129),
        ("{from: 256, to: 16384, log: false}", True, False, 16129),
        ("{from: 1, to: 8, log: true}", True, True, 8),
        ("{from: 256, to: 16384, step: 256}", True, False, 64),
        ("{from: 0, to: 1, step: 0.3}", False, False, 4),
    ],
)
def test_two_numbers_are_a_range(form: str, is_whole: bool, is_log: bool, num_values: int | None) -> None:
    found = only(form)
    assert isinstance(found, Range)
    assert (found.is_whole, found.is_log, found.num_values) == (is_whole, is_log, num_values)


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("[1, 2, 4]", [1, 2, 4]),
        ("[fcfs, sjf]", ["fcfs", "sjf"]),
        ("[true, false]", [True, False]),
        ("[512]", [512]),
        ("{choices: [1, 2]}", [1, 2]),
        ("[null, 3]", [None, 3]),
        (
            "[{type: static}, {type: vllm, max_num_seqs: 4}]",
            [{"type": "static"}, {"type": "vllm", "max_num_seqs": 4}],
        ),
    ],
)
def test_any_other_list_holds_choices(form: str, values: list[Any]) -> None:
    found = only(form)
    assert isinstance(found, Choices)
    assert [step[0].value for step in found.steps] == values
    assert found.is_ordered == (values in ([1, 2, 4], [512], [1, 2]))


def test_keys_that_vary_together_are_one_dimension() -> None:
    found = space("tune:\n  zip: {gpu: [h100, h200], x.profile: [p, q]}\n  a: [1, 3]\n")
    assert found.keys == ("gpu", "x.profile", "a")
    assert [[(each.key, each.value) for each in step] for step in found.dimensions[0].extremes()] == [
        [("gpu", "h100"), ("x.profile", "p")],
        [("gpu", "h200"), ("x.profile", "q")],
    ]
    assert found.num_settings == 6
    assert [found.numbered(number) for number in range(6)] == [(g, a) for g in (0, 1) for a in (1, 2, 3)]


def test_words_say_how_to_search() -> None:
    plan = space("tune: {a: [1, 2], objective: cost, trials: 7, windows: [], batch: 3}").plan
    assert (plan.objective, plan.trials, plan.windows, plan.batch) == ("cost", 7, [], 3)
    assert space("tune: {a: [1, 2], where: a < 2}").conditions[0].names == ("a",)


def test_keys_that_are_set_are_dropped_with_a_note() -> None:
    found = space("tune: {a.b: [1, 2], c: [3, 4]}", {("a", "b")})
    assert found.keys == ("c",)
    assert found.notes == ("tune.a.b: dropped, since a.b is set",)


@pytest.mark.parametrize(
    ("tune", "problem"),
    [
        ("3", "tune: got 3; expected a mapping of dotted keys to ranges and choices"),
        ("{trials: 5}", f"tune: varies no key; expected keys, each with {FORMS}"),
        ("{a: 3}", f"tune.a: got 3; expected {FORMS}"),
        ("{a: []}", f"tune.a: got an empty list; expected {FORMS}"),
        ("{trial: 5, a: [1, 2]}", f"tune.trial: got 5; expected {FORMS}; did you mean 'trials'?"),
        ("{a: [2, 1]}", "tune.a: got 2 to 1; expected the lower end first"),
        ("{a: [2, 2]}", "tune.a: got 2 to 2; expected the lower end first"),
        ("{a: {from: 1}}", f"tune.a: to missing; expected {FORMS}"),
        ("{a: {form: 1, to: 2}}", "tune.a.form: unknown key; did you mean 'from'?"),
        ("{a: {from: x, to: 2}}", "tune.a.from: got 'x' (str); expected a number"),
        ("{a: {from: 1, to: 2, log: 3}}", "tune.a.log: got 3; expected true or false"),
        (
            "{a: {from: 0, to: 2, log: true}}",
            "tune.a.log: got true with from 0; expected from > 0, and no step",
        ),
        (
            "{a: {from: 1, to: 9, log: true, step: 2}}",
            "tune.a.log: got true with step 2; expected from > 0, and no step",
        ),
        ("{a: {from: 1, to: 9, step: 0}}", "tune.a.step: got 0; expected a number > 0 and <= 8"),
        ("{a: {choices: 3}}", "tune.a.choices: got 3; expected a list of values"),
        ("{a: {choices: [1], from: 2}}", "tune.a.from: unknown key; allowed: choices"),
        ("{tune.a: [1, 2]}", "tune.tune.a: a tune can't vary itself"),
        ("{sweep.a: [1, 2]}", "tune.sweep.a: a tune can't vary a sweep"),
        ("{a: [1, 2], zip: {a: [3, 4]}}", "tune.zip.a: is tuned twice"),
        ("{a: [1, 2], trials: 0}", "tune.trials: got 0; expected an integer >= 1"),
        (
            "{a: [1, 2], objective: speed}",
            "tune.objective: got 'speed' (str); expected one of 'goodput', 'cost', 'latency'",
        ),
        (
            "{a: [1, 2], windows: [0.3, 0.1]}",
            "tune.windows: got [0.3, 0.1]; expected rising shares, as in [0.1, 0.3]",
        ),
        ("{a: [1, 2], windows: [1.5]}", "tune.windows[0]: got 1.5; expected a number > 0 and < 1"),
        (
            "{a: [1, 2], where: a <}",
            "tune.where: 'a <' can't be read; expected a comparison, as in 'seed < 3'",
        ),
    ],
)
def test_mistakes_in_form(tune: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space(f"tune: {tune}")
    assert caught.value.problems == (f"f:1: {problem}",)


def test_each_mistake_is_told_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        space("name: x\ntune:\n  a: [2, 1]\n  b:\n    from: 1\n    to: x\n  trials: many\n")
    assert caught.value.problems == (
        "f:3: tune.a: got 2 to 1; expected the lower end first",
        "f:6: tune.b.to: got 'x' (str); expected a number",
        "f:7: tune.trials: got 'many' (str); expected an integer >= 1",
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_places_lead_to_values_within_the_range_and_back(data: st.DataObject) -> None:
    numbers = st.integers(1, 10**6) if data.draw(st.booleans()) else st.floats(1e-3, 1e6)
    low, high = sorted([data.draw(numbers), data.draw(numbers)])
    if high <= low * 1.001:
        high = low * 2
    is_whole = isinstance(low, int)
    found = Range("a", low, high, is_whole, data.draw(st.booleans()), ())
    assert (found.at(0.0), found.at(1.0)) == (pytest.approx(low), pytest.approx(high))
    place = data.draw(st.floats(0, 1))
    value = found.at(place)
    assert low <= value <= high
    assert not is_whole or value == int(value)
    assert found.at(found.place(value)) == pytest.approx(value, rel=1e-3)
    near = max(1 / (high - low), 1 / math.log(high / low) / low) if is_whole else 0.0
    assert abs(found.place(value) - place) <= near + 1e-2


@given(st.integers(1, 9), st.floats(0, 1))
def test_choices_have_a_place_each(count: int, place: float) -> None:
    found = only(str(list(range(100, 100 + count))) if count != 2 else "{choices: [100, 101]}")
    number = found.at(place)
    assert found.settings(number)[0].value == 100 + number
    assert found.at(found.place(number)) == number
