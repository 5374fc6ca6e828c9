"""The verdict on a recorded run: it names the steps, the part of the run and the setting that are wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from cbsim.base.errors import WorkloadError
from cbsim.lab.validate.log_verdict import Verdict, cell_ratios, judge
from cbsim.lab.validate.recorded_run import compare_with_log, replay_log
from cbsim.lab.validate.server_log import ServerLog
from cbsim.lab.validate.token_clock import Cell, Stretch
from cbsim.show.style import save_figure
from cbsim.show.validation_plot import recorded_picture
from cbsim.studies.experiment import Experiment
from tests.lab.validate.logs import make_experiment, serve, server_log


def verdict_of(experiment: Experiment, log: ServerLog, *, with_replay: bool = True) -> Verdict:
    stretches = replay_log(experiment, log).stretches if with_replay else None
    compare = partial(compare_with_log, log=log, with_interval=False)
    return judge(experiment, compare(experiment), stretches, compare)


def test_a_right_simulation_is_called_right():
    experiment = make_experiment()
    verdict = verdict_of(experiment, server_log(serve(experiment), with_tokens=True))
    assert verdict.within_pct < 1e-6
    assert verdict.where == []
    assert verdict.remedies == []
    assert verdict.told()[0].startswith("verdict: means are right within 0.0% (TTFT")


def test_mixed_steps_that_are_too_short_are_found():
    """From first and last tokens alone, so that no stretch between two of them holds one kind of step."""
    experiment = make_experiment()
    log = server_log(serve(experiment, decode=1.0, other=1.3), with_tokens=False)
    verdict = verdict_of(experiment, log)
    assert verdict.error_pct["ttft_s"] < -10
    mixed = [each for each in verdict.cells if each.cell.kind == "mixed" and each.num_steps > 20]
    assert [each.ratio for each in mixed] == pytest.approx([1.3] * len(mixed), abs=0.08)
    (decodes,) = [each for each in verdict.cells if each.cell.kind == "decode"]
    assert decodes.ratio == pytest.approx(1.0, abs=0.02)
    assert any("steps of chunks and decodes, 257 to 512 tokens took 1." in told for told in verdict.where)
    assert verdict.remedies[0].startswith("timings of chunks and decodes of such sizes launched together")
    assert verdict.remedies[0].endswith("most time is missing there")


def test_steps_that_are_too_long_are_told_as_such():
    experiment = make_experiment()
    verdict = verdict_of(experiment, server_log(serve(experiment, decode=0.8), with_tokens=True))
    assert verdict.remedies[0].startswith("timings of such decodes as the server launches them")
    assert verdict.remedies[0].endswith("most time is too much there")


def test_the_setting_that_a_server_had_is_found():
    served = make_experiment(cost_model={"type": "profile", "profile": "h200/llama-3-8b", "host": "sync"})
    log = server_log(serve(served), with_tokens=False)
    verdict = verdict_of(make_experiment(), log, with_replay=False)
    assert verdict.within_pct > 5
    assert any(told.startswith("--set cost_model.host=sync would give TTFT") for told in verdict.remedies)
    assert verdict.remedies[-1].startswith("--replay tells which kinds of step are off")


def test_a_budget_is_a_setting_too():
    served = make_experiment(scheduler={"type": "vllm", "max_num_seqs": 12, "max_tokens_per_step": 256})
    verdict = verdict_of(make_experiment(), server_log(serve(served), with_tokens=False), with_replay=False)
    assert verdict.remedies[0].startswith("--set scheduler.max_tokens_per_step=256 would give TTFT +0.0%")


def test_no_value_is_proposed_that_servers_lack_or_that_the_log_cannot_tell_from_others():
    """Prompts are of 900 tokens at most: any budget from 1,024 on is the same."""
    few, many = ({"type": "vllm", "max_num_seqs": 12, "max_tokens_per_step": each} for each in (100, 8192))
    log = server_log(serve(make_experiment(scheduler=many)), with_tokens=False)
    remedies = verdict_of(make_experiment(scheduler=few), log, with_replay=False).remedies
    assert remedies[:2] == [
        "--set scheduler.max_tokens_per_step=1024 (or more: the log cannot tell) would give TTFT +0.0%, "
        "TPOT +0.0%, E2E +0.0%; 14 of 14 figures are nearer",
        "that is from figures alone: what the server had, its command says",
    ]


@pytest.mark.parametrize(
    ("lack_s", "told"),
    [
        (0.002, "lack about +2 ms, as the host's time would: cost_model.host_step_s"),
        (0.0001, "lack about +0.098 ms, as the host's time would: cost_model.host_gap_s"),
        (-0.002, "most time is too much there"),
    ],
)
def test_time_that_every_step_lacks_is_the_hosts(lack_s, told):
    cells = {kind: Cell(kind, 1, 16) for kind in ("decode", "mixed")}
    stretches = [
        Stretch(kind, 1, predicted_s + lack_s, predicted_s, {cell: (1, predicted_s)})
        for kind, cell in cells.items()
        for predicted_s in (20 * abs(lack_s), 21 * abs(lack_s))
        for _ in range(20)
    ]
    ratios = cell_ratios(stretches)
    assert [each.missing_s for each in ratios] == pytest.approx([lack_s] * 2, rel=0.05)
    experiment = make_experiment()
    log = server_log(serve(experiment, decode=1.2, other=1.2), with_tokens=False)
    run = compare_with_log(experiment, log, with_interval=False)
    verdict = judge(experiment, run, stretches, lambda changed: run)
    assert told in verdict.remedies[0]
    assert verdict.remedies[1].startswith("no setting tried does (cost_model.host, scheduler.max_tokens_per")


def test_what_part_of_the_run_is_off():
    experiment = make_experiment()
    log = server_log(serve(experiment), with_tokens=True)
    last = np.arange(len(log)) >= 48
    shift_s = np.where(last, 1.0, 0.0)
    late = replace(
        log, first_token_s=log.first_token_s + shift_s, last_token_s=log.last_token_s + shift_s,
        token_times_s=None,
    )  # fmt: skip
    run = compare_with_log(experiment, late, with_interval=False)
    found = judge(experiment, run, None, lambda changed: run).where
    start_s = run.arrival_s[48]
    assert any(f"for requests that came at {start_s:.3g}" in told for told in found)


@pytest.mark.parametrize("size", [1, 16, 17, 32, 33, 64, 128])
def test_cells_end_at_powers_of_two(size):
    """The sizes at which kernels are timed, up to which batches are padded."""
    cell = Cell.of("decode", [None] * size)  # type: ignore[list-item]
    assert cell.least <= size <= cell.most
    assert cell in (Cell("decode", 1, 16), Cell("decode", cell.most // 2 + 1, cell.most))


def test_a_replay_needs_token_times():
    """Without them, and without when requests were scheduled, it would tell ratios that aren't so."""
    experiment = make_experiment()
    log = replace(server_log(serve(experiment, 1.06, 1.06), with_tokens=False), scheduled_s=None)
    with pytest.raises(WorkloadError, match="a replay needs token times: a column token_times_s or token_ti"):
        replay_log(experiment, log)


def test_what_the_interval_does_not_hold_is_told():
    """Steps twice as long are more than imported timings are wrong by; slightly longer ones are not."""
    experiment = make_experiment()
    for factor, is_held in ((1.05, True), (2.0, False)):
        run = compare_with_log(experiment, server_log(serve(experiment, factor, factor), with_tokens=True))
        assert run.interval is not None
        assert run.interval.error.basis == "imported"
        found = judge(experiment, run, None, lambda changed, run=run: run).where
        beyond = [
            told for told in found if told.startswith("beyond the interval of 9 in 10 cases: TTFT mean")
        ]
        assert bool(beyond) != is_held


def test_the_picture_shows_both_worlds(tmp_path):
    experiment = make_experiment()
    log = server_log(serve(experiment, 1.2, 1.2), with_tokens=True)
    run = compare_with_log(experiment, log, with_interval=False)
    figure = recorded_picture(run.arrival_s, run.recorded, run.simulated, "a run")
    lines = [line.get_label() for line in figure.axes[0].get_lines()]
    assert lines.count("recorded") == lines.count("simulated") == 1
    texts = [text.get_text() for text in figure.axes[3].texts]
    assert [text.split()[0] for text in texts] == ["p50", "p90", "p99"]
    assert all(path.is_file() for path in save_figure(figure, tmp_path / "picture.png"))


def test_means_far_off_are_not_called_right() -> None:
    (line,) = Verdict({"ttft_s": -50.0, "tpot_s": 1.0}, [], [], []).told()
    assert line.startswith("verdict: means are wrong by up to 50.0%")
