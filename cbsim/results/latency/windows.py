"""Windows: a run's record in stretches of many steps, each with the visits of requests that begin in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cbsim.core.record import Record, wide
from cbsim.results.run_log import PREEMPTED, RESUMED, Column

WINDOW_ROWS = 200_000
"""Steps of all replicas in a window."""
MOST_WINDOWS = 8
"""A visit over more windows than these is looked at with the whole record at hand, so that no other is."""
_STEP_COLUMNS = (
    *("scheduled_at_s", "start_s", "duration_s", "transfer_s", "waiting_for"),
    *("num_decode_seqs", "num_context_tokens", "max_decode_context", "num_shared_tokens"),
)
_PREFILL_COLUMNS = ("step", "request", "replica", "num_tokens", "num_computed_tokens", "emits")
Table = dict[str, Column]


class OfReplica(NamedTuple):
    """The steps of one replica in a stretch; how many of them, the first, are in no other stretch."""

    number: int
    steps: slice
    num_new: int


class Stretch(NamedTuple):
    """Steps of replicas that cost alike, one replica behind the other, and the visits looked at here.

    Steps are named by their places here. Rows of visits have a column `visit`, see `Visits`.
    """

    replicas: Sequence[OfReplica]
    steps: Table
    prefills: Table
    """All prompt slices of these steps."""
    prefills_of_visits: Column
    """The rows of `prefills` that are of the visits."""
    decodes: Table
    """Runs of decodes of the visits."""
    preempted: Table
    """Events of the visits, by visit and then in the order of time."""
    resumed: Table
    begun: Table
    """`visit` and `first_step` of each that begins here, whether or not it is looked at here."""


class Grouped:
    """The rows of a table by the group that each is in, in their order."""

    def __init__(self, table: Table, group: Column) -> None:
        order = np.argsort(group, kind="stable")
        self._group = group[order]
        self._table = {name: column[order] for name, column in table.items()}

    def of(self, group: int) -> Table:
        """Those of a group."""
        rows = slice(*np.searchsorted(self._group, (group, group + 1)).tolist())
        return {name: column[rows] for name, column in self._table.items()}


class Visits:
    """Numbers for visits: that of the request, plus their number where another replica went on with it."""

    def __init__(self, num_requests: int, takes_over: Column | None) -> None:
        """`takes_over`: the replica that each request is handed over to; `None` where none is."""
        self._num_requests, self._takes_over = num_requests, takes_over

    def __len__(self) -> int:
        return self._num_requests * (1 if self._takes_over is None else 2)

    def of(self, request: Column, replica: Column) -> Column:
        """The visits of some requests to replicas."""
        if self._takes_over is None:
            return request
        visits: Column = request + self._num_requests * (self._takes_over[request] == replica)
        return visits

    def take_over(self, visits: Column) -> Column:
        """Whether each is that of a replica that goes on with a request."""
        return visits >= self._num_requests

    def requests(self, visits: Column) -> Column:
        """The request of each."""
        return np.where(self.take_over(visits), visits - self._num_requests, visits)


class Windows:
    """Goes through a record once, holding few steps at a time.

    A visit is looked at in the window in which its first step is, with all steps up to its last one at hand.
    """

    def __init__(
        self,
        record: Record,
        groups: Column,
        visits: Visits,
        requests_of: Column | None = None,
        *,
        has_window: bool = False,
    ) -> None:
        """`groups`: a number from 0 for each replica, equal for those whose steps cost alike; `requests_of`:
        the request that each row of the core is a visit of, if it is not of itself; `has_window`: whether
        some layers of the model have a window.
        """
        self._record, self._visits, self._requests_of = record, visits, requests_of
        self._groups, self._num_groups = groups, 1 + int(groups.max())
        self._in_order = np.argsort(groups, kind="stable")
        self._rank = np.argsort(self._in_order).astype(np.int32)
        self._step_columns = (*_STEP_COLUMNS, *(["num_window_keys"] if has_window else []))
        counts = [
            np.bincount(record.column("steps", "replica", piece, piece + 1), minlength=len(groups))
            for piece in range(record.num_pieces)
        ]
        self._first_step = np.cumsum([np.zeros(len(groups), np.int64), *counts], axis=0)
        """By piece and replica, the number of its first step; behind the pieces, how many there are."""
        num_before = self._first_step[:-1].sum(axis=1)
        starts = np.flatnonzero(np.diff(num_before // WINDOW_ROWS, prepend=-1))
        self._ends = [*starts[1:].tolist(), record.num_pieces]
        """The piece behind the last one of each window; behind all windows is one for visits over many."""
        decodes = self._table("decodes", ("request", "replica", "first_step", "last_step"))
        replica, last = np.full((2, len(visits)), -1, dtype=np.int32)
        first = np.full(len(visits), np.iinfo(np.int32).max, dtype=np.int32)
        for piece in range(record.num_pieces):
            prefills = self._table("prefills", ("request", "replica", "step"), piece, piece + 1)
            replica[prefills["visit"]] = prefills["replica"]
            np.minimum.at(first, prefills["visit"], prefills["step"])
            np.maximum.at(last, prefills["visit"], prefills["step"])
        replica[decodes["visit"]] = decodes["replica"]
        np.minimum.at(first, decodes["visit"], decodes["first_step"])
        np.maximum.at(last, decodes["visit"], decodes["last_step"])
        here = np.flatnonzero(replica >= 0).astype(np.int32)
        self._begin, self._end = np.zeros((2, len(visits)), dtype=np.int32)
        for pieces, step in ((self._begin, first), (self._end, last)):
            pieces[here] = self._pieces_of(replica[here], step[here])
        begins_in, ends_in = (
            np.searchsorted(self._ends, piece, side="right").astype(np.int32)
            for piece in (self._begin, self._end)
        )
        self._window_of = begins_in.copy()
        self._window_of[ends_in - begins_in > MOST_WINDOWS] = len(self._ends)
        self._window_of[replica < 0] = -1
        self.replica_of = replica
        """By visit, -1 for those without steps."""
        begun: Table = {"visit": here, "first_step": first[here], "replica": replica[here]}
        self._begun = self._grouped(begun, begins_in[here])
        self._decodes = self._grouped(decodes, self._window_of[decodes["visit"]])
        event = record.column("events", "event")
        self._preempted, self._resumed = (self._events(event == code) for code in (PREEMPTED, RESUMED))

    def _events(self, chosen: Column) -> Grouped:
        """Some of the events, by visit."""
        rows = np.flatnonzero(chosen)
        events = self._table("events", ("request", "replica", "step", "time_s"), rows=rows)
        order = np.argsort(events["visit"], kind="stable")
        events = {name: column[order] for name, column in events.items()}
        return self._grouped(events, self._window_of[events["visit"]])

    def _grouped(self, table: Table, window: Column) -> Grouped:
        group = window * self._num_groups + self._groups[table["replica"]]
        return Grouped(table, group.astype(np.int32))

    def _pieces_of(self, replica: Column, step: Column) -> Column:
        """The piece in which each step of a replica is."""
        found = np.zeros(len(step), dtype=np.int32)
        rows = np.argsort(replica, kind="stable")
        ends = np.cumsum(np.bincount(replica, minlength=len(self._groups)))
        for number, mine in enumerate(np.split(rows, ends[:-1])):
            found[mine] = np.searchsorted(self._first_step[1:, number], step[mine], side="right")
        return found

    def _table(
        self,
        table: str,
        names: Sequence[str],
        first: int = 0,
        end: int | None = None,
        rows: Column | slice = slice(None),
    ) -> Table:
        """Columns of some pieces; with that of visits, where requests are named."""
        columns = {name: self._record.column(table, name, first, end)[rows] for name in names}
        if "request" in columns:
            request = columns.pop("request")
            request = request if self._requests_of is None else self._requests_of[request]
            columns["visit"] = self._visits.of(request, columns["replica"])
        return columns

    def __iter__(self) -> Iterator[Stretch]:
        """Each window's stretches by group; at the end, those of visits over many windows."""
        begin = 0
        for window, end in enumerate(self._ends):
            yield from self._stretches(window, begin, end)
            begin = end
        is_long = self._window_of == len(self._ends)
        if is_long.any():
            begin = int(self._begin[is_long].min())
            yield from self._stretches(len(self._ends), begin, begin)

    def _stretches(self, window: int, begin: int, end: int) -> Iterator[Stretch]:
        """The stretches of a window from piece `begin` up to `end`, with what its visits need beyond."""
        until = max(end, 1 + int(self._end[self._window_of == window].max(initial=-1)))
        first, new, last = self._first_step[[begin, end, until]]
        ends = np.cumsum((last - first)[self._in_order])
        place_of = (ends - (last - first)[self._in_order])[self._rank]
        """By replica, the place of its first step among all steps in this order."""
        steps, prefills = (
            self._table(table, names, begin, until, self._order(table, begin, until))
            for table, names in (("steps", self._step_columns), ("prefills", _PREFILL_COLUMNS))
        )
        groups = self._groups[prefills["replica"]]
        for group in range(self._num_groups):
            members = self._in_order[self._groups[self._in_order] == group]
            shift = place_of - place_of[members[0]]
            here = slice(place_of[members[0]], ends[self._rank[members[-1]]])
            rows = slice(*np.searchsorted(groups, (group, group + 1)).tolist())
            tables = [{name: column[rows] for name, column in prefills.items()}]
            for grouped in (self._decodes, self._preempted, self._resumed, self._begun):
                tables.append(grouped.of(window * self._num_groups + group))
            for table in tables:
                for name in {"step", "first_step", "last_step"} & table.keys():
                    places = table[name] + (shift - first)[table["replica"]]
                    table[name] = np.where(table[name] < 0, -1, places)
            columns = (members, shift[members], (last - first)[members], (new - first)[members])
            yield Stretch(
                [
                    OfReplica(number, slice(place, place + length), num_new)
                    for number, place, length, num_new in np.transpose(columns).tolist()
                ],
                {name: wide(column[here]) for name, column in steps.items()},
                tables[0],
                np.flatnonzero(self._window_of[tables[0]["visit"]] == window),
                *tables[1:],
            )

    def _order(self, table: str, first: int, end: int) -> Column | slice:
        """Rows of some pieces by replica, in the order of `_in_order`."""
        if len(self._groups) == 1:
            return slice(None)
        rank = self._rank[self._record.column(table, "replica", first, end)]
        return np.argsort(rank.astype(np.min_scalar_type(len(self._groups))), kind="stable")
