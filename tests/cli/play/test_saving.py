"""A saved file is a complete experiment that decides what a restart shows, and nobody's file is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cbsim.base.errors import CbsimError
from cbsim.cli.play.session import Session
from cbsim.cli.play.settings import MARK, free_name
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload, simulate
from cbsim.testing.conformance import differences
from tests.cli.play.games import ROWS, SCHEDULERS, experiment, play_out


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Played a while: another budget, a request added, another scheduler."""
    rows = (*ROWS, (40.0, 9, 3))
    session = Session(experiment(tmp_path, SCHEDULERS["preemptive"], rows, seed=7))
    for _ in range(3):
        session.step()
    session.change("scheduler.max_tokens_per_step=31")
    session.step()
    session.add(21, 6, priority=-2)
    session.step()
    session.change("kv_cache.num_blocks=29")
    return session


@pytest.mark.parametrize("scheduler", ["static", "continuous", "chunked_prefill", "preemptive", "vllm"])
def test_its_run_is_the_session_from_the_start(scheduler: str, session: Session, tmp_path: Path) -> None:
    session.use_scheduler(scheduler)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path, trace = session.save(folder / "game.yaml")
    assert trace == folder / "game.jsonl"
    saved = Experiment.load(path, ["engine=reference"])
    log, _ = simulate(saved, make_workload(saved))
    session.restart()
    play_out(session)
    replica = session.replica
    played = stepwise_log(replica.stepper.world, replica.setup)
    assert differences(replace(played, end_s=log.end_s), log) == []
    assert saved.scheduler == session.experiment.scheduler
    assert (saved.seed, saved.kv_cache.num_blocks) == (7, 29)


def test_its_comments_tell_what_was_done_and_when(session: Session, tmp_path: Path) -> None:
    path, _ = session.save(tmp_path / "game.yaml")
    text = path.read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments == [
        MARK,
        "# `cbsim run game.yaml` goes from the start with the settings as they stood when this was saved.",
        "# What was done in play, and when:",
        "#   step 3, 7.4375 s: scheduler.max_tokens_per_step 24 -> 31",
        "#   step 4, 10.25 s: added added-1: 21 + 6 tokens",
        "#   step 5, 12.0625 s: kv_cache.num_blocks 32 -> 29",
    ]
    assert "model: tiny\n" in text
    assert "max_tokens_per_step: 31" in text
    assert "max_num_seqs: 4, max_tokens_per_step: 31, chunk_size: 16" in text


def test_without_additions_the_workload_stays_what_it_was(tmp_path: Path) -> None:
    session = Session(experiment(tmp_path, SCHEDULERS["vllm"]))
    written = session.save(tmp_path / "game.yml")
    assert written == [tmp_path / "game.yml"]
    saved = Experiment.load(written[0])
    assert "chunk_size: 0" in written[0].read_text(encoding="utf-8")  # the limits are told, defaults too
    assert saved.resolved()["workload"] == session.experiment.resolved()["workload"]
    assert saved.model == session.experiment.model


def test_a_model_of_ones_own_is_written_out(tmp_path: Path) -> None:
    model = Experiment.from_mapping(
        {"model": "tiny", "workload": {"type": "trace", "path": "azure-like.csv"}, "scheduler": "vllm"}
    ).model.model_dump()
    session = Session(experiment(tmp_path, SCHEDULERS["vllm"], model={**model, "max_model_len": 99}))
    saved = Experiment.load(session.save(tmp_path / "game.yaml")[0])
    assert saved.model.max_model_len == 99


def test_it_can_be_saved_again_and_played_on(session: Session, tmp_path: Path) -> None:
    path, _ = session.save(tmp_path / "game.yaml")
    session.step()
    session.add(3, 3)
    session.save(path)
    resumed = Session(Experiment.load(path))
    assert resumed.num_requests == 9
    assert resumed.add(4, 4) == "added-3"
    resumed.save(path)
    assert Session(Experiment.load(path)).num_requests == 10
    play_out(resumed)


@pytest.mark.parametrize("name", ["game.yaml", "game.jsonl"])
def test_files_of_others_stay(name: str, session: Session, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(CbsimError, match=f"{name}: a file that is no saved play stands there; name another"):
        session.save(tmp_path / "game.yaml")
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    others = {path.name for path in tmp_path.iterdir()}
    assert others == {"requests.jsonl", name}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("game.json", "expected a name that ends in .yaml or .yml"),
        ("folder.yaml", "a folder that is no saved play stands there; name another file, or remove it"),
        ("folder.yaml/game.yaml/game.yaml", "can't be written"),
    ],
)
def test_names_that_can_not_be(name: str, problem: str, session: Session, tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "folder.yaml" / "game.yaml").touch()
    with pytest.raises(CbsimError, match=problem):
        session.save(tmp_path / name)


def test_a_free_name_is_one_at_which_nothing_stands(tmp_path: Path) -> None:
    assert free_name(tmp_path, "game") == tmp_path / "game.yaml"
    (tmp_path / "game.jsonl").touch()
    (tmp_path / "game-2.yaml").touch()
    assert free_name(tmp_path, "game") == tmp_path / "game-3.yaml"
