"""Free memory: what Linux says is available, else the pages that nobody uses."""

import os

import pytest

pytest.importorskip("torch")

import torch

from cbsim.base.units import KIB
from cbsim.lab.kernels import timing as memory

CPU = torch.device("cpu")


def test_the_file_cache_counts_as_free(tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  900 kB\nMemFree:  100 kB\nMemAvailable:  700 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", path)
    assert memory.free_bytes(CPU) == 700 * KIB


@pytest.mark.parametrize("content", [None, "MemTotal: 900 kB\n"])
def test_systems_that_do_not_say_it(tmp_path, monkeypatch, content):
    path = tmp_path / "meminfo"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(memory, "MEMINFO", path)
    assert 0 < memory.free_bytes(CPU) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
