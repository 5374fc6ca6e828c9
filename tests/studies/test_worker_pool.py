"""Pools: workers end with their parent, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from multiprocessing.connection import Listener, wait
from pathlib import Path

import pytest

STUDY = """
from cbsim.studies.worker_pool import open_pool
from tests.sweep_parts import hold_on

list(open_pool(2).run_all(hold_on, [{address!r}] * 2))
"""
WITHIN_S = 2.0


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, ended_by: signal.Signals) -> None:
    address = str(tmp_path / "s")
    with Listener(address, "AF_UNIX") as listener:
        command = [sys.executable, "-c", STUDY.format(address=address)]
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
