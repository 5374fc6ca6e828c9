"""HandOvers: requests whose prompts one replica computes and another one decodes, and their KV caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cbsim.results.run_log import EVENTS, HANDED_OVER, LOADED, Column

if TYPE_CHECKING:
    import pandas as pd

STARTED = EVENTS.index("load_started")


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
    """Whose KV was brought."""

    @classmethod
    def of(cls, num_requests: int, events: Mapping[str, Column]) -> HandOvers | None:
        """Those in the events of a `RunLog`; `None` if there are none."""
        if HANDED_OVER not in events["event"]:
            return None
        over, begun, loaded = np.full((3, num_requests), -1)
        for place, code in ((over, HANDED_OVER), (begun, STARTED), (loaded, LOADED)):
            rows = np.flatnonzero(events["event"] == code)
            place[events["request"][rows]] = rows
        begun[over < 0] = loaded[over < 0] = -1
        over_s, begun_s, loaded_s = (
            np.where(rows >= 0, events["time_s"][rows], np.nan) for rows in (over, begun, loaded)
        )
        sender, receiver = (np.where(rows >= 0, events["replica"][rows], -1) for rows in (over, begun))
        # The last token's KV is what the first step there computes.
        num_tokens = np.where(begun >= 0, events["num_tokens"][begun] - 1, 0)
        return cls(sender, receiver, over_s, begun_s, loaded_s, num_tokens)


def transfers(events: Mapping[str, Column]) -> tuple[Column, Column]:
    """Of each KV cache that came from another replica: seconds on its way, and its tokens."""
    code = events["event"]
    rows = np.flatnonzero((code == STARTED) | (code == LOADED))
    rows = rows[np.argsort(events["request"][rows], kind="stable")]
    first, then = rows[:-1], rows[1:]
    has_come = (events["request"][first] == events["request"][then]) & (code[then] == LOADED)
    first, then = first[has_come], then[has_come]
    return events["time_s"][then] - events["time_s"][first], events["num_tokens"][then] - 1


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
