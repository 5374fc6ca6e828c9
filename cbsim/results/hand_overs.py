"""HandOvers: requests whose prompts one replica computes and another one decodes, and their KV caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cbsim.results.run_log import EVENTS, HANDED_OVER, LOADED, Column

if TYPE_CHECKING:
    import pandas as pd

STARTED, READ = map(EVENTS.index, ("load_started", "read"))
STAGES = (HANDED_OVER, STARTED, READ, LOADED)
"""In the order in which they come."""


class HandOvers(NamedTuple):
    """A row a request: who handed it over to whom, -1 for none; the instants, seconds, NaN for never.

    Of a request that is handed over several times, as it is lost in between, the last time.
    """

    sender: Column
    receiver: Column
    """Replicas."""
    handed_over_s: Column
    load_started_s: Column
    """When the receiver had room for it."""
    loaded_s: Column
    """When the receiver's scheduler knew that it was there."""
    num_tokens: Column
    """Whose KV came from the sender."""

    @classmethod
    def of(cls, num_requests: int, events: Mapping[str, Column]) -> HandOvers | None:
        """Those in the events of a `RunLog`; `None` if there are none."""
        if HANDED_OVER not in events["event"]:
            return None
        over, begun, loaded, num_tokens = np.full((4, num_requests), [[-1], [-1], [-1], [0]])
        rows, *further = _hand_overs(events)
        request = events["request"][rows]
        over[request] = rows
        begun[request], loaded[request], num_tokens[request] = further
        over_s, begun_s, loaded_s = (
            np.where(rows >= 0, events["time_s"][rows], np.nan) for rows in (over, begun, loaded)
        )
        sender, receiver = (np.where(rows >= 0, events["replica"][rows], -1) for rows in (over, begun))
        return cls(sender, receiver, over_s, begun_s, loaded_s, num_tokens)


def transfers(events: Mapping[str, Column]) -> tuple[Column, Column]:
    """Of each KV cache that came from another replica: seconds on its way, and its tokens."""
    _, begun, loaded, num_tokens = _hand_overs(events)
    has_come = loaded >= 0
    return events["time_s"][loaded[has_come]] - events["time_s"][begun[has_come]], num_tokens[has_come]


def _hand_overs(events: Mapping[str, Column]) -> tuple[Column, Column, Column, Column]:
    """Rows of events of each hand-over: of itself, the load's start and its end, -1 for none; and its tokens.

    In order of requests, those of one in order of time. What the receiver's tiers bring is not counted.
    """
    rows = np.flatnonzero(np.isin(events["event"], STAGES))
    # At one instant ends of loads are told before decisions.
    rank = np.argsort(STAGES)[np.searchsorted(np.sort(STAGES), events["event"][rows])]
    rows = rows[np.lexsort((rank, events["time_s"][rows], events["request"][rows]))]
    ends = [-1, -1, -1]
    code, request = (np.append(events[name][rows], ends) for name in ("event", "request"))
    rows, num_tokens = np.append(rows, ends), np.append(events["num_tokens"][rows], [0, 0, 0])
    over = np.flatnonzero(code == HANDED_OVER)

    def comes(place: Column, kind: int) -> Column:
        found: Column = (code[place] == kind) & (request[place] == request[over])
        return found

    has_begun = comes(over + 1, STARTED)
    is_read = has_begun & comes(over + 2, READ)
    has_come = has_begun & comes(over + 2 + is_read, LOADED)
    # The last token's KV is what the first step there computes.
    brought = np.where(has_begun, num_tokens[over + 1] - 1 - is_read * num_tokens[over + 2], 0)
    return (
        rows[over],
        np.where(has_begun, rows[over + 1], -1),
        np.where(has_come, rows[over + 2 + is_read], -1),
        brought,
    )


def hand_over_table(events: pd.DataFrame) -> pd.DataFrame:
    """A row a request whose KV cache has come, by its `request_id`: the columns of `HandOvers`.

    `events` are those of a `Result`, or some of them.
    """
    import pandas as pd

    ids, kinds = events["request_id"].cat, events["event"].cat
    columns = {
        "request": ids.codes.to_numpy(),
        "event": np.array([EVENTS.index(name) for name in kinds.categories])[kinds.codes],
        **{name: events[name].to_numpy() for name in ("time_s", "num_tokens")},
        "replica": events["replica"].fillna(-1).to_numpy(np.int64),
    }
    over = HandOvers.of(len(ids.categories), columns)
    if over is None:
        return pd.DataFrame(columns=HandOvers._fields)
    table = pd.DataFrame(over._asdict(), index=pd.Index(ids.categories, name="request_id"))
    return table[(table["receiver"] >= 0) & table["loaded_s"].notna()]
