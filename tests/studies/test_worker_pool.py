"""Pools: workers end with their parent, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing.connection import Listener, wait
from pathlib import Path

import pytest
from click.testing import CliRunner

from cbsim.cli import main

STUDY = """
from cbsim.studies.worker_pool import open_pool, start_server
from tests.sweep_parts import hold_on

{begin}
list(open_pool(2).run_all(hold_on, [{address!r}] * 2))
"""
WITHIN_S = 2.0


@pytest.mark.parametrize("begin", ["", "start_server()"])
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, ended_by: signal.Signals, begin: str) -> None:
    address = str(tmp_path / "s")
    with Listener(address, "AF_UNIX") as listener:
        command = [sys.executable, "-c", STUDY.format(address=address, begin=begin)]
        study = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        workers = [listener.accept(), listener.accept()]
        assert wait(workers, 0) == []
        study.send_signal(ended_by)
        for worker in workers:
            assert wait([worker], WITHIN_S) == [worker]
            with pytest.raises(EOFError):
                worker.recv()
        told = study.communicate(timeout=WITHIN_S)[1]
    assert told.count("Traceback") == (ended_by == signal.SIGINT)  # the study's own, and no worker's


UNWANTED = """
from contextlib import suppress

from cbsim.studies.worker_pool import open_pool, start_server
from tests.sweep_parts import process_id

start_server()
for _ in range(4):
    with suppress(KeyError), open_pool(2).kept_open() as pool:
        list(pool.run_all(process_id, [0.05] * 2))
        raise KeyError
"""


def test_workers_without_a_task_are_ended_without_a_word() -> None:
    ran = subprocess.run([sys.executable, "-c", UNWANTED], capture_output=True, text=True, check=True)
    assert not ran.stderr


SERVED = """
import os, signal, time
import cbsim
from cbsim.studies.worker_pool import open_pool, start_server
from tests.sweep_parts import where_it_runs

if __name__ == "__main__":
    before = dict(os.environ)
    start_server()
    assert dict(os.environ) == before
    signal.signal(signal.SIGINT, lambda *_: None)
    time.sleep(0.1)
    os.kill(0, signal.SIGINT)
    print({outcome.answer for outcome in open_pool(2).run_all(where_it_runs, ["cbsim"] * 2)})
    print({(cbsim.__file__, True)})
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are spawned elsewhere")
def test_a_server_s_workers_have_imported_what_their_parent_has(tmp_path: Path) -> None:
    """Whatever lies in the current folder under that name, and though a terminal's Ctrl-C comes to all."""
    (tmp_path / "cbsim").mkdir()
    (tmp_path / "cbsim" / "__init__.py").write_text("")
    script = tmp_path / "scripts" / "study.py"
    script.parent.mkdir()
    script.write_text(SERVED)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not ran.stderr
    by_workers, here = ran.stdout.splitlines()
    assert by_workers == here


@pytest.mark.parametrize(
    ("arguments", "is_started"),
    [(["--workers", "2"], True), (["--workers=16"], True), (["--workers", "1"], False), ([], False)],
)
def test_commands_with_several_workers_start_a_server(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], is_started: bool
) -> None:
    """At once, before they know that they can't run; not where they are called in somebody's process."""
    started: list[bool] = []
    monkeypatch.setattr("cbsim.studies.worker_pool.start_server", lambda: started.append(True))
    with pytest.raises(SystemExit):
        main(["sweep", "no such experiment", *arguments])
    assert bool(started) == is_started
    started.clear()
    CliRunner().invoke(main, ["sweep", "no such experiment", *arguments])
    assert not started
