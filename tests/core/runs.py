"""One setting at both speeds and through SimPy, and what differs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from cbsim.cluster.simpy_world import World, make_router
from cbsim.core import request_rows
from cbsim.core.record import TABLES, Record, RequestColumns
from cbsim.results.run_log import RunLog
from cbsim.studies import core_log, simulation
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import Told, simulate_core, stepwise
from cbsim.testing import differences

ENGINES = ("compiled", "interpreted", "simpy")


class Ended(NamedTuple):
    """A run as the core left it: requests, rows of replicas, and the record."""

    requests: RequestColumns
    own: NDArray[Any]
    record: Record
    end_s: float = 0.0
    """Not looked at here; observers are told one."""


def run(setup: Setup, engine: str, told: Told | None = None) -> RunLog:
    """A run by one of `ENGINES`, the core's perhaps told of. What can't be compiled is no test: it fails."""
    if engine == "simpy":
        world = stepwise(setup)
        stop_at_s = None if setup.until_s == np.inf else setup.until_s
        router = make_router(setup.router.kind, setup.means.seed)
        World(setup.workload, world.replicas, router, stop_at_s=stop_at_s).run()
        for replica in world.replicas:
            replica.check_integrity()
            assert replica.num_outstanding == 0 or stop_at_s is not None
        return stepwise_log(world, setup)
    with few_records():
        log, _, speed = simulate_core(setup, engine, told=told)
    assert speed.is_compiled == (engine == "compiled"), speed.notes
    return log


@contextmanager
def few_records() -> Iterator[None]:
    """Compiled runs make records of three requests at a time, and those that they give back hold nonsense."""

    def spoil(array: NDArray[Any]) -> None:
        array.view(np.uint8)[:] = 0x7F

    with mock.patch.multiple(request_rows, AT_A_TIME=3, HELD_ROWS=0, give_back=spoil):
        yield


@contextmanager
def unread() -> Iterator[None]:
    """Runs give an `Ended` instead of a log, whose tables take longer than the run."""

    def ended(rows: RequestColumns, ids: Any, own: Any, record: Record, setup: Setup, **_: bool) -> Ended:
        return Ended(rows, own, record)

    with mock.patch.object(simulation, "log_of", ended), mock.patch.object(core_log, "log_of", ended):
        yield


def raw_differences(one: Ended, other: Ended) -> list[str]:
    """Where two runs differ, to the last bit; each replica's rows in their order, gaps in that of length.

    Not compared: numbers of nobody's concern, such as rows of tables and who was asked when.
    """
    tables = [
        *(
            (table, _sorted(one.record.columns(table)), _sorted(other.record.columns(table)))
            for table in TABLES
        ),
        ("requests", _chosen(one.requests, RESULTS), _chosen(other.requests, RESULTS)),
        ("own", _chosen(one.own, COUNTS), _chosen(other.own, COUNTS)),
    ]
    return [
        f"{table}.{name}: {columns[name]} and {others[name]}"
        for table, columns, others in tables
        for name in columns
        if columns[name].tobytes() != others[name].tobytes()
    ]


RESULTS = (
    "arrival_s",
    "first_scheduled_at_s",
    "first_token_at_s",
    "last_token_at_s",
    "max_itl_s",
    "replica",
    "state",
    "num_generated_tokens",
    "num_preemptions",
    "num_cached_tokens",
    "rejection",
)
COUNTS = (
    "last_end_s",
    "num_free",
    "num_cached_free",
    "num_running",
    "num_waiting",
    "num_kv_tokens",
    "num_steps",
    "num_outstanding",
    "num_tokens_recomputed",
    "num_tokens_queried",
    "num_tokens_hit",
    "num_padding_tokens",
    "num_swapped_blocks",
    "num_moved_out",
    "num_turned_away",
)


def _chosen(rows: Any, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    return {name: rows[name] for name in names}


def _sorted(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    if "replica" not in columns:
        return {name: np.sort(column) for name, column in columns.items()}
    order = np.argsort(columns["replica"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def assert_same(setup: Setup, engines: tuple[str, ...]) -> RunLog:
    """Runs by several engines give the same log; returns it."""
    log = run(setup, engines[0])
    for engine in engines[1:]:
        assert differences(log, run(setup, engine)) == [], (engine, repr(setup))
    return log
