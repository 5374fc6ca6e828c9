"""Tables of a run: their columns with types, units and meanings, and how they are made from a `RunLog`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbsim.core.record import StepColumns
from cbsim.results.latency import HAND_OVER_PARTS, PARTS, TTFT_PARTS
from cbsim.results.metrics import request_latencies, weighted_quantiles
from cbsim.results.run_log import CHANGES, EVENTS, KINDS, RunLog
from cbsim.workload.request import RequestState

if TYPE_CHECKING:
    import pandas as pd

ArrowArray = Any
"""A `pyarrow.Array`; pyarrow carries no types."""


def numbers(values: NDArray[Any], type_: Any, is_null: NDArray[np.bool_] | None = None) -> ArrowArray:
    """Numbers of a fixed width, null where `is_null`; `type_` is a `pyarrow.DataType` of numbers."""
    import pyarrow as pa

    data = np.ascontiguousarray(values, dtype=type_.to_pandas_dtype())
    validity, num_nulls = _validity(is_null)
    return pa.Array.from_buffers(type_, len(data), [validity, pa.py_buffer(data)], num_nulls)


def texts(strings: Sequence[str] | NDArray[Any]) -> ArrowArray:
    """Strings, none of them null."""
    import pyarrow as pa

    encoded = [text.encode() for text in strings]
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers, 0)


def labels(codes: NDArray[Any], names: Sequence[str] | NDArray[Any]) -> ArrowArray:
    """Repeated strings by their codes, as Arrow keeps them; a negative code is a null."""
    import pyarrow as pa

    indices = numbers(np.maximum(codes, 0), pa.int32(), codes < 0)
    return pa.DictionaryArray.from_arrays(indices, texts(names))


def _validity(is_null: NDArray[np.bool_] | None) -> tuple[Any, int]:
    import pyarrow as pa

    if is_null is None or not is_null.any():
        return None, 0
    return pa.py_buffer(np.packbits(~is_null, bitorder="little")), int(is_null.sum())


ArrowTable = Any
"""A `pyarrow.Table`; pyarrow carries no types, and is imported only where a table is made."""


class Field(NamedTuple):
    """One column: type (`int64`, `float64`, `string`, or `label` for repeated strings), unit and meaning."""

    name: str
    type: str
    unit: str
    description: str
    nullable: bool = False


_POOL = Field("pool", "label", "", "Pool of equal replicas that its replica is one of", True)
_REPLICA = Field("replica", "int64", "", "Replica that served it, from 0; null where it came to none", True)
_STEP_REPLICA = Field("replica", "int64", "", "Replica, from 0")
_STEP = Field("step", "int64", "", "Number of the step on its replica, from 0")

_WAITING_FOR = ("0 nobody waits", "1 its turn (budget, batch)", "2 a slot", "3 KV blocks")
_PART_MEANINGS = {
    "queue": "waiting for admission: for its turn, for the step under way",
    "no_slot": "waiting while the head of the queue found no slot (max_num_seqs)",
    "no_kv": "waiting while the head of the queue found too few KV blocks",
    "prefill": "computing its own prompt",
    "recompute": "computing again what a preemption threw away",
    "others_prefill": "what the prompts of others add to its steps, and steps of prompts that pass it over",
    "decode": "decoding its own tokens, beside other decodes",
    "skipped": "running, while steps without prompts pass it over",
    "preempted": "preempted, until it is resumed",
    "swap": "moving KV blocks to and from host memory in its steps",
    "host": "what the host adds to its steps",
    "handed_over": "its prompt computed, waiting for KV blocks where it will decode",
    "kv_transfer": "its KV cache on its way there, until the scheduler knows that it came",
    "decode_queue": "its KV cache there, waiting for admission",
}


def _parts(columns: Mapping[str, str], latency: str) -> tuple[Field, ...]:
    return tuple(
        Field(column, "float64", "s", f"Of {latency}: {_PART_MEANINGS[name]}", True)
        for name, column in columns.items()
    )


REQUESTS = (
    Field("request_id", "string", "", "Name of the request, unique"),
    _REPLICA,
    Field("arrival_s", "float64", "s", "Instant of arrival"),
    Field("queue_s", "float64", "s", "First scheduled - arrival", True),
    Field("ttft_s", "float64", "s", "First token - arrival, queueing included", True),
    Field("tpot_s", "float64", "s", "(E2E - TTFT) / (output tokens - 1); null for one token", True),
    Field("max_itl_s", "float64", "s", "Longest gap between consecutive tokens", True),
    Field("e2e_s", "float64", "s", "Finish - arrival", True),
    Field("finished_at_s", "float64", "s", "Instant of the last token", True),
    Field("num_prompt_tokens", "int64", "tokens", "Length of the prompt"),
    Field("num_output_tokens", "int64", "tokens", "Length of the whole answer"),
    Field("num_cached_tokens", "int64", "tokens", "Prefix-cache tokens found at the first admission"),
    Field("num_preemptions", "int64", "", "Times it was preempted"),
    Field("priority", "int64", "", "Smaller goes first"),
    Field("state", "label", "", "finished, rejected, unfinished or failed"),
    _POOL,
)
REQUEST_PARTS = (*_parts(PARTS, "E2E"), *_parts(TTFT_PARTS, "TTFT"))
"""Behind `REQUESTS`, where the record tells: not of live runs."""
REQUEST_HAND_OVERS = _parts(HAND_OVER_PARTS, "E2E")
"""Behind those, where requests are handed over from one replica to another."""
VISITS = (
    Field("request_id", "label", "", "Name of the request"),
    _POOL,
    _REPLICA,
    Field("role", "label", "", "What the replica does: prefill, decode or both", True),
    Field("arrived_at_s", "float64", "s", "Instant at which it came to the replica"),
    Field("admitted_at_s", "float64", "s", "Instant at which it was first scheduled there", True),
    Field("left_at_s", "float64", "s", "Instant at which it left; null if it was there at the end", True),
    Field("num_prefill_tokens", "int64", "tokens", "Prompt tokens it came with"),
    Field("num_output_tokens", "int64", "tokens", "Output tokens it got there"),
    Field("reason", "label", "", "Why it left: finished, handed_over, rejected or failed; else null", True),
)
"""A row a request and replica."""
REPLICAS = (
    Field("time_s", "float64", "s", "Instant"),
    _POOL,
    _STEP_REPLICA,
    Field("event", "label", "", f"What changed: {', '.join(CHANGES)}"),
)
"""A row a change of a replica: where pools grow and shrink, or replicas fail."""
STEPS = (
    _STEP_REPLICA,
    _STEP,
    Field("scheduled_at_s", "float64", "s", "Instant the step was scheduled"),
    Field("start_s", "float64", "s", "Instant the step started"),
    Field("duration_s", "float64", "s", "From its start to its end"),
    Field("num_prefill_tokens", "int64", "tokens", "Prompt tokens computed"),
    Field("num_decode_tokens", "int64", "tokens", "Output tokens computed"),
    Field("num_prefill_seqs", "int64", "requests", "Requests that computed prompt tokens"),
    Field("num_decode_seqs", "int64", "requests", "Requests that computed an output token"),
    Field("num_running", "int64", "requests", "Running right after scheduling"),
    Field("num_waiting", "int64", "requests", "Waiting right after scheduling"),
    Field("num_preempted", "int64", "requests", "Preempted while this step was scheduled"),
    Field("num_finished", "int64", "requests", "Finished at the step's end"),
    Field("kv_blocks_used", "int64", "blocks", "KV blocks taken right after scheduling"),
    Field("kv_blocks_total", "int64", "blocks", "KV blocks there are"),
    Field("num_attention_pairs", "int64", "", "Pairs of a query token and a key, for MFU"),
    Field("num_context_tokens", "int64", "tokens", "KV entries read, for MBU"),
    Field("num_logits", "int64", "", "Rows of logits computed"),
    _POOL,
)
SLICE_STEPS = (
    Field("transfer_s", "float64", "s", "Of its duration: moving KV blocks to and from host memory"),
    Field("waiting_for", "int64", "", f"What the head of the queue lacked: {', '.join(_WAITING_FOR)}"),
)
"""Behind `STEPS`, where the record tells."""
DRAFT_STEPS = (
    Field("num_drafts", "int64", "tokens", "Drafts verified"),
    Field("num_accepted", "int64", "tokens", "Drafts that were right"),
    Field("skips_drafts", "int64", "", "1 if the drafter did not run, as nobody could use drafts"),
)
"""Behind those, with speculative decoding."""
WINDOW_STEPS = (
    Field("num_window_pairs", "int64", "", "Pairs of a query token and a key in layers with a window"),
    Field("num_window_keys", "int64", "tokens", "KV entries read in layers with a window"),
)
"""Behind those, where some layers have a window."""
EVENT_ROWS = (
    Field("time_s", "float64", "s", "Instant"),
    _REPLICA,
    Field("step", "int64", "", "Number of the step on its replica; null outside of steps", True),
    Field("request_id", "label", "", "Name of the request"),
    Field("event", "label", "", ", ".join(EVENTS)),
    Field(
        "num_tokens",
        "int64",
        "tokens",
        "Cached or brought from elsewhere (admitted, resumed, load_started, loaded, read), or emitted",
    ),
    Field("reason", "label", "", "Why it was rejected; null for other events", True),
)
BATCHES = (
    _STEP_REPLICA,
    _STEP,
    Field("start_s", "float64", "s", "Instant the step started"),
    Field("position", "int64", "", "Place in the batch, from 0"),
    Field("request_id", "label", "", "Name of the request"),
    Field("num_tokens", "int64", "tokens", "Tokens computed in this step"),
    Field("num_computed_tokens", "int64", "tokens", "Tokens computed before this step"),
    Field("kind", "label", "", ", ".join(KINDS)),
)
DRAFT_BATCHES = (
    Field("num_drafts", "int64", "tokens", "Of these tokens: drafts to verify"),
    Field("num_accepted", "int64", "tokens", "Drafts that were right"),
    Field("is_padded", "int64", "", "1 if the drafts are placeholders that can't be right"),
)
"""Behind `BATCHES`, with speculative decoding."""
ITL = (
    Field("quantile", "float64", "", "Share of all gaps between tokens that are no longer"),
    Field("itl_s", "float64", "s", "Exact quantile of the gaps between consecutive tokens"),
)
NUM_ITL_QUANTILES = 2001
STEPS_AT_ONCE = 1 << 18
"""Rows of steps that are made into a table at a time."""

_ENDS = {
    RequestState.FINISHED: "finished",
    RequestState.REJECTED: "rejected",
    RequestState.FAILED: "failed",
    RequestState.HANDED_OVER: "handed_over",
}


def requests_table(log: RunLog) -> ArrowTable:
    """One row a request in order of arrival."""
    columns = {**log.requests, **request_latencies(log), **(log.parts or {})}
    further = (field for field in (*REQUEST_PARTS, *REQUEST_HAND_OVERS) if field.name in columns)
    fields = (*REQUESTS, *further)
    pool = _pool(log, log.requests["replica"])
    return _table(fields, columns | {"pool": pool, "state": _ends(log.requests["state"], "unfinished")})


def _pool(log: RunLog, replica: NDArray[Any]) -> Any:
    """The pools of replicas, as labels."""
    return labels(log.pools_of(replica), [name for name, _ in log.pools])


def visits_table(log: RunLog) -> ArrowTable:
    """One row a visit of a request to a replica, in the order in which they came there."""
    requests, visits = log.requests, log.visits
    if visits is None:
        is_rejected = requests["state"] == RequestState.REJECTED
        visits = {
            "request": np.arange(len(is_rejected)),
            "replica": requests["replica"],
            "arrived_at_s": requests["arrival_s"],
            "admitted_at_s": requests["first_scheduled_at_s"],
            "left_at_s": np.where(is_rejected, requests["arrival_s"], requests["finished_at_s"]),
            "num_prefill_tokens": requests["num_prompt_tokens"],
            "num_output_tokens": requests["num_generated_tokens"],
            "state": requests["state"],
        }
    names, roles = zip(*log.pools, strict=True)
    pool = log.pools_of(visits["replica"])
    return _table(
        VISITS,
        {
            **visits,
            "request_id": labels(visits["request"], requests["request_id"]),
            "pool": labels(pool, names),
            "role": labels(pool, roles),
            "reason": _ends(visits["state"]),
        },
    )


def replicas_table(log: RunLog) -> ArrowTable | None:
    """One row a change of a replica in the order they happened; `None` where none can change."""
    if log.changes is None:
        return None
    pool = _pool(log, log.changes["replica"])
    return _table(REPLICAS, {**log.changes, "pool": pool, "event": labels(log.changes["change"], CHANGES)})


def _ends(state: Any, *under_way: str) -> Any:
    """How requests ended, as labels; those that did not are `under_way`, null if that is left out."""
    codes = np.select([state == end for end in _ENDS], range(len(_ENDS)), len(_ENDS) if under_way else -1)
    return labels(codes, [*_ENDS.values(), *under_way])


def steps_tables(log: RunLog) -> Iterator[ArrowTable]:
    """One row a step in order of (start, replica), in tables one behind the other."""
    further = (*(() if log.slices is None else SLICE_STEPS), *DRAFT_STEPS, *WINDOW_STEPS)
    fields = (*STEPS, *(field for field in further if field.name in log.steps))
    names = tuple(field.name for field in fields if field is not _POOL)
    pieces: Iterable[Mapping[str, Any]] = [log.steps]
    if isinstance(log.steps, StepColumns):
        pieces = log.steps.in_order(names, STEPS_AT_ONCE)
    for columns in pieces:
        yield _table(fields, {**columns, "pool": _pool(log, columns["replica"])})


def events_table(log: RunLog) -> ArrowTable:
    """One row an event in the order they happened, with the reason of each rejection."""
    events = log.events
    texts = sorted(set(log.rejections.values()))
    code_of = {text: code for code, text in enumerate(texts)}
    reason = np.full(len(events["event"]), -1, dtype=np.int32)
    for row in np.flatnonzero(events["event"] == EVENTS.index("rejected")).tolist():
        reason[row] = code_of.get(log.rejections.get(int(events["request"][row]), ""), -1)
    named = {
        "request_id": labels(events["request"], log.requests["request_id"]),
        "event": labels(events["event"], EVENTS),
        "reason": labels(reason, texts),
    }
    return _table(EVENT_ROWS, {**events, **named})


def batches_table(log: RunLog) -> ArrowTable | None:
    """One row a slice of a step; `None` where they weren't recorded."""
    if log.batches is None:
        return None
    named = {
        "request_id": labels(log.batches["request"], log.requests["request_id"]),
        "kind": labels(log.batches["kind"], KINDS),
    }
    return _table((*BATCHES, *(DRAFT_BATCHES if log.has_drafts else ())), log.batches | named)


def itl_table(log: RunLog) -> ArrowTable:
    """The distribution of all inter-token gaps at evenly spaced quantiles; no rows without gaps."""
    has_gaps = any(len(gap_s) for gap_s, _ in log.gaps)
    quantile = np.linspace(0, 1, NUM_ITL_QUANTILES if has_gaps else 0)
    itl_s = weighted_quantiles(log.gaps, quantile) if has_gaps else quantile
    return _table(ITL, {"quantile": quantile, "itl_s": itl_s})


class TableKind(NamedTuple):
    """A Parquet file of the run folder."""

    fields: tuple[Field, ...]
    """The columns it may have."""
    make: Callable[[RunLog], ArrowTable | Iterator[ArrowTable] | None]
    """Its table, or tables one behind the other so that few rows are held; none if it wasn't recorded."""
    is_optional: bool = False
    """Whether a run folder may lack it: recorded on demand, or unknown to former versions."""

    def tables(self, log: RunLog) -> Iterator[ArrowTable]:
        """What `make` gives, one or several."""
        made = self.make(log)
        yield from made if isinstance(made, Iterator) else [made] if made is not None else []


TABLES = {
    "requests": TableKind((*REQUESTS, *REQUEST_PARTS, *REQUEST_HAND_OVERS), requests_table),
    "visits": TableKind(VISITS, visits_table, is_optional=True),
    "replicas": TableKind(REPLICAS, replicas_table, is_optional=True),
    "steps": TableKind((*STEPS, *SLICE_STEPS), steps_tables),
    "events": TableKind(EVENT_ROWS, events_table),
    "batches": TableKind(BATCHES, batches_table, is_optional=True),
    "itl": TableKind(ITL, itl_table),
}
"""By their names, without suffix."""
OPTIONAL_COLUMNS = (
    {field.name for field in REQUEST_PARTS},
    {field.name for field in REQUEST_HAND_OVERS},
    {field.name for field in SLICE_STEPS},
    {"num_attention_pairs", "num_context_tokens", "num_logits"},
)
"""Columns that live runs, or the runs of former versions, lack: each group whole."""


def step_columns(*, has_drafts: bool, has_window: bool) -> tuple[str, ...]:
    """The columns of `RunLog.steps` where slices are recorded, with those that no table has."""
    told = (*STEPS, *SLICE_STEPS, *(DRAFT_STEPS if has_drafts else ()), *(WINDOW_STEPS if has_window else ()))
    names = (field.name for field in told if field is not _POOL)
    return (*names, "num_kv_tokens", "max_decode_context", "num_shared_tokens")


def to_frame(table: ArrowTable) -> pd.DataFrame:
    """The table for pandas: labels as categoricals, nullable integers as Int64, null instants as NaN."""
    import pandas as pd
    import pyarrow as pa

    columns = {}
    for field in table.schema:
        nullable_integer = field.nullable and pa.types.is_int64(field.type)
        mapper = {pa.int64(): pd.Int64Dtype()}.get if nullable_integer else None
        columns[field.name] = table.column(field.name).to_pandas(types_mapper=mapper)
    return pd.DataFrame(columns, copy=False)


def _table(fields: tuple[Field, ...], columns: Mapping[str, Any]) -> ArrowTable:
    import pyarrow as pa

    schema = pa.schema(map(arrow_field, fields))
    return pa.Table.from_arrays([_array(field, columns[field.name]) for field in fields], schema=schema)


def arrow_field(field: Field) -> Any:
    """A column's name, type and meaning, as Arrow has them: a `pyarrow.Field`."""
    import pyarrow as pa

    types = {
        "int64": pa.int64(),
        "float64": pa.float64(),
        "string": pa.string(),
        "label": pa.dictionary(pa.int32(), pa.string()),
    }
    metadata = {"unit": field.unit} if field.unit else {}
    metadata["description"] = field.description
    return pa.field(field.name, types[field.type], field.nullable, metadata)


def _array(field: Field, values: Any) -> Any:
    if field.type == "label":
        return values
    type_ = arrow_field(field).type
    if field.type == "string":
        return texts(values)
    if not field.nullable:
        return numbers(values, type_)
    return numbers(values, type_, values < 0 if field.type == "int64" else np.isnan(values))
