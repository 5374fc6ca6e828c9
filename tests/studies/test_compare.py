"""Two runs paired by request: exact changes, what can't be paired, and the command."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cbsim.base.errors import CbsimError
from cbsim.cli import main
from cbsim.results.result import Result
from cbsim.results.run_log import RunLog
from cbsim.show.reader_tables import compare_answer, difference_table
from cbsim.show.text import format_interval
from cbsim.studies.compare import Comparison, Difference, compare
from cbsim.studies.intervals import Interval, block_weights
from cbsim.workload.request import RequestState
from tests.run_logs import make_result, random_log

SLO = {"ttft_s": 0.2}


def later(log: RunLog, by_s: float) -> RunLog:
    """The same run with every first token, and all after it, so much later."""
    moved = {name: log.requests[name] + by_s for name in ("first_token_at_s", "finished_at_s")}
    return dataclasses.replace(log, requests=log.requests | moved)


def result(log: RunLog, slo: dict[str, Any] | None = None) -> Result:
    made = make_result(log, slo=slo or {})
    made.config["slo"] = slo or {}
    return made


def one(comparison: Comparison, figure: str, statistic: str) -> Difference:
    (found,) = (
        each for each in comparison.differences if (each.figure, each.statistic) == (figure, statistic)
    )
    return found


def test_equal_runs_differ_in_nothing() -> None:
    run = result(random_log(1), SLO)
    comparison = compare(run, run)
    assert comparison.num_pairs == 50
    assert {difference.change for difference in comparison.differences} == {Interval(0.0, 0.0, 0.0)}
    assert not any(difference.is_clear for difference in comparison.differences)


def test_a_constant_shift_is_found_exactly_whatever_the_noise() -> None:
    log = random_log(1)
    comparison = compare(result(log), result(later(log, 0.25)))
    for figure in ("ttft_s", "e2e_s"):
        for statistic in ("mean", "p50", "p99"):
            difference = one(comparison, figure, statistic)
            assert difference.is_clear
            assert difference.change == pytest.approx((0.25, 0.25, 0.25))
    assert one(comparison, "queue_s", "mean").change == (0.0, 0.0, 0.0)


def test_the_interval_is_that_of_resampled_pairs() -> None:
    first, second = result(random_log(1)), result(random_log(2))
    both = first.requests.merge(second.requests, on="request_id")
    change = (both["ttft_s_y"] - both["ttft_s_x"]).to_numpy()
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(0)))
    drawn = [np.repeat(change, weights).mean() for weights in block_weights(len(change), generator)]
    found = one(compare(first, second), "ttft_s", "mean").change
    assert found == pytest.approx((change.mean(), *np.quantile(drawn, [0.025, 0.975])))


def test_the_share_within_the_slo_is_compared_over_all_pairs() -> None:
    log = random_log(1)
    first, second = result(log, SLO), result(later(log, 0.1), SLO)
    difference = one(compare(first, second), "slo_attainment", "mean")
    assert difference.num_pairs == 50
    assert (difference.first, difference.second) == (
        first.summary["slo_attainment"],
        second.summary["slo_attainment"],
    )
    assert difference.change.estimate == pytest.approx(difference.second - difference.first)


def test_what_cannot_be_paired_is_told() -> None:
    log = random_log(1)
    columns = {name: column.copy() for name, column in log.requests.items()}
    columns["request_id"][3] = "other"
    columns["num_output_tokens"][5] += 1
    columns["state"][7] = RequestState.UNFINISHED
    columns["finished_at_s"][7] = np.nan
    changed = dataclasses.replace(log, requests=columns)
    comparison = compare(result(log, SLO), result(changed))
    assert (comparison.num_pairs, comparison.num_only_first, comparison.num_only_second) == (49, 1, 1)
    assert comparison.notes == (
        "settings that differ: slo.ttft_s 0.2 and None",
        "1 requests have answers of other lengths in the second run",
        "1 requests finished in the first run only",
        "the runs have different SLOs, and so no share within it to compare",
    )
    assert one(comparison, "e2e_s", "mean").num_pairs == 48


def test_runs_of_different_requests_are_refused() -> None:
    log = random_log(1)
    names = np.array([f"x{place}" for place in range(50)], dtype=object)
    other = dataclasses.replace(log, requests=log.requests | {"request_id": names})
    with pytest.raises(CbsimError, match="no request in common"):
        compare(result(log), result(other))


def test_equal_seeds_give_equal_comparisons() -> None:
    first, second = result(random_log(1)), result(later(random_log(1), 0.01))
    assert compare(first, second, seed=3) == compare(first, second, seed=3)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(11.83, 11.5, 12.1), "11.83 ± 0.30"),
        (Interval(4796.2, 4470.0, 5124.0), "4,796 ± 327"),
        (Interval(0.0123, 0.0119, 0.0127), "0.01230 ± 0.00040"),
        (Interval(5.0, 5.0, 5.0), "5.00"),
        (Interval(5.0, -math.inf, math.inf), "5.00"),
    ],
)
def test_intervals_are_told_to_as_many_digits_as_they_deserve(interval: Interval, expected: str) -> None:
    assert format_interval(interval) == expected


def test_the_table_says_what_is_not_clear() -> None:
    log = random_log(1)
    text = difference_table(compare(result(log), result(later(log, 0.25))), "old", "new").to_text()
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "+0.250" in lines["TTFT mean (s)"]
    assert lines["queue mean (s)"].endswith(" no")
    assert "50 requests in both runs" in text


def test_settings_that_differ_are_told_and_of_other_parts_their_names_alone() -> None:
    log = random_log(1)
    ours = {"name": "a", "gpu": {"name": "h100", "memory_gib": 80}, "scheduler": {"type": "vllm", "n": 1}}
    theirs = {"name": "b", "gpu": {"name": "h200", "memory_gib": 141}, "scheduler": {"type": "vllm", "n": 2}}
    both = [dataclasses.replace(result(log), config=config | {"seed": 0}) for config in (ours, theirs)]
    assert compare(*both).notes == ("settings that differ: gpu.name h100 and h200, scheduler.n 1 and 2",)
    assert compare(both[0], both[0]).notes == ()


def test_an_interval_that_is_not_known_is_clear_of_nothing() -> None:
    unknown = Difference("ttft_s", "mean", 2, 1.0, 1.5, Interval(0.5, math.nan, math.nan))
    assert not unknown.is_clear
    text = difference_table(Comparison(2, 0, 0, (unknown,), ()), "old", "new").to_text()
    assert re.search(r"\+0\.500 +- +no", text)


def test_the_command_compares_folders(tmp_path: Path) -> None:
    log = random_log(1)
    result(log, SLO).save(tmp_path / "old")
    result(later(log, 0.25), SLO).save(tmp_path / "new")
    folders = [str(tmp_path / name) for name in ("old", "new")]
    ran = CliRunner().invoke(main, ["compare", *folders, "--out", str(tmp_path / "out")])
    assert ran.exit_code == 0
    assert "TTFT mean (s)" in ran.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"latency_cdfs.png", "latency_cdfs.svg"}
    told = json.loads(CliRunner().invoke(main, ["compare", *folders, "--json"]).stdout)
    assert told["first"] == "old"
    assert told["differences"][0]["change"]["estimate"] == pytest.approx(0.25)
    ran = CliRunner().invoke(main, ["compare", folders[0], str(tmp_path)])
    assert (ran.exit_code, ran.stderr) == (2, f"{tmp_path}: is not a run folder (it has no manifest.json)\n")


def test_whether_each_run_meets_the_slo_is_told_first(tmp_path: Path) -> None:
    log = random_log(1)
    p95 = result(log).summary["ttft_s"]["p95"]
    promised = {"ttft_s": {"p95": p95 + 0.1}}
    runs = {"old": result(log, promised), "new": result(later(log, 0.25), promised)}
    for name, run in runs.items():
        run.save(tmp_path / name)
    ran = CliRunner().invoke(main, ["compare", *(str(tmp_path / name) for name in runs)])
    first, _, rest = ran.stdout.partition("\n\n")
    told = " ".join(first.split())
    assert re.fullmatch(r"Met by old: TTFT p95 ≤ .* Not met: new misses TTFT p95 by \d+% \(.*\)\.", told)
    assert "TTFT p95 (s)" in rest
    assert compare_answer({"one": result(log)}) == []
    unlike = compare_answer({"one": result(log, promised), "two": result(log)})
    assert [told.split()[0] for told in unlike] == ["Met", "No"]
