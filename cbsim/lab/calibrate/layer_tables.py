"""CSV tables of other profilers: columns by their usual names, times by the unit that ends their name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cbsim.base.errors import CalibrationError, refusals
from cbsim.base.registry import did_you_mean
from cbsim.base.units import MS_PER_S, NS_PER_S, US_PER_S
from cbsim.lab.calibrate.pointsfile import MAX_SECONDS, MIN_SECONDS
from cbsim.workload.table import Mistakes, Table, open_table
from cbsim.workload.values import MAX_EXACT, Kind, number_kind, read_columns, whole

USUAL_NAMES = {
    "layer": "layer op op_name operator name kernel module",
    "tokens": "tokens num_tokens n_tokens total_tokens batch_tokens",
    "bytes": "bytes message_bytes message_size size_bytes num_bytes size",
    "sequences": "sequences num_sequences seqs num_seqs n_seqs batch_size batch rows",
    "prefill_chunk": "prefill_chunk chunk chunk_size chunk_tokens prefill_tokens num_prefill_tokens "
    "prefill_chunk_size q_len pc",
    "kv_prefill": "kv_prefill prefill_kv prefill_context chunk_context prefill_kv_len kv_cache_size kp",
    "n_decode": "n_decode num_decode n_decodes num_decodes decodes decode_batch decode_batch_size n",
    "kv_decode": "kv_decode decode_kv decode_context decode_kv_len kv_len context_len",
    "n_longest": "n_longest num_longest n_big nb",
    "kv_longest": "kv_longest kv_big kv_max",
    "kv_others": "kv_others kv_small kvs",
}
"""What a column is called: the first name that is there; case, blanks and hyphens don't count."""
UNITS = {"s": 1, "ms": MS_PER_S, "us": US_PER_S, "ns": NS_PER_S}
_TIME = re.compile(
    r"(?:(?:time|latency|duration|elapsed|median|mean|avg|average|t)(?:_[a-z0-9]+)*_)?(ns|us|ms|s)"
)
_PREFERRED = ("time", "latency", "duration", "median", "mean", "avg")
"""Of several times, what the name begins with or holds, the first that is there."""


def read_table(
    path: Path, columns: tuple[str, ...], renamed: Mapping[str, str], times: tuple[str, ...] = ("time",)
) -> pd.DataFrame:
    """A CSV's `columns` and its `times`, the usual one as `seconds`, the others, in seconds too, by their
    names; one row for each combination, the median of its timings.

    `renamed` says what columns are called there that have no usual name. Raises `CalibrationError` for
    columns that are missing, and with the line of each value that can't be.
    """
    table, mistakes = _open(path)
    names = _names(table)
    wanted: dict[str, tuple[str, Kind]] = {}
    for column in columns:
        theirs = _find(path, names, column, renamed)
        if theirs is None:
            raise CalibrationError(
                f"{path}:1: column {column} is missing among {', '.join(names.values())}; expected "
                f"{', '.join(columns)} and a time with its unit, such as time_us, or --column {column}=NAME"
            )
        wanted[column] = theirs, _LAYER if column == "layer" else _COUNT
    per_s: dict[str, int] = {}
    for time in times:
        name = "seconds" if time == "time" else time
        theirs, per_s[name] = _find_time(path, names, renamed, time)
        least, most = MIN_SECONDS * per_s[name], MAX_SECONDS * per_s[name]
        wanted[name] = theirs, number_kind(f"a time from {least:g} to {most:g}", least, most, np.float64)
    read, lines = read_columns(table, wanted, mistakes)
    if not lines and not mistakes:
        mistakes.add(0, 0, "holds no timings")
    if mistakes:
        raise CalibrationError(*mistakes.error().problems)
    found = pd.DataFrame(read)
    found[[*per_s]] /= pd.Series(per_s)
    medians: pd.DataFrame = found.groupby(list(columns), sort=False)[[*per_s]].median().reset_index()
    return medians


_LAYER = Kind("text", lambda value: str(value).strip())
_COUNT = whole(0, MAX_EXACT)


def has_column(path: Path, column: str, renamed: Mapping[str, str]) -> bool:
    """Whether a CSV has a column; raises `CalibrationError` if it can't be read."""
    return _find(path, _names(_open(path)[0]), column, renamed) is not None


def _open(path: Path) -> tuple[Table, Mistakes]:
    """The table in a file, and where mistakes in it are gathered; raises `CalibrationError` without one."""
    mistakes = Mistakes(str(path))
    with refusals(path, "read", CalibrationError):
        table = open_table(path, mistakes)
    if table is None:
        raise CalibrationError(*mistakes.error().problems)
    return table, mistakes


def _names(table: Table) -> dict[str, str]:
    """What columns are called there, by their plain names."""
    return {_plain(name): name for name in table.names}


def _find(path: Path, names: Mapping[str, str], column: str, renamed: Mapping[str, str]) -> str | None:
    """The name of a column there: the one that was said, else the first usual one."""
    if column in renamed:
        if _plain(renamed[column]) not in names:
            hint = did_you_mean(renamed[column], list(names.values()))
            raise CalibrationError(f"{path}:1: no column '{renamed[column]}' for {column}{hint}")
        return names[_plain(renamed[column])]
    return next((names[usual] for usual in USUAL_NAMES.get(column, "").split() if usual in names), None)


def _find_time(
    path: Path, names: Mapping[str, str], renamed: Mapping[str, str], time: str
) -> tuple[str, int]:
    """The column of a time, `time` for the usual one, and how many of its units are a second."""
    said = _find(path, names, time, renamed)
    if said is not None:
        unit = _plain(said).rpartition("_")[2]
        if unit not in UNITS:
            raise CalibrationError(f"{path}:1: column {said} has no unit at its end: _ns, _us, _ms or _s")
        return said, UNITS[unit]
    if time != "time":
        for unit, per_s in UNITS.items():
            if f"{time}_{unit}" in names:
                return names[f"{time}_{unit}"], per_s
        raise CalibrationError(
            f"{path}:1: column {time}_us is missing among {', '.join(names.values())}; --column {time}=NAME "
            "says what it is called"
        )
    units = {name: match[1] for name in names if (match := _TIME.fullmatch(name))}
    for word in (*_PREFERRED, *UNITS):
        for name, unit in units.items():
            if word in name.split("_"):
                return names[name], UNITS[unit]
    raise CalibrationError(
        f"{path}:1: no column of times among {', '.join(names.values())}; expected one such as time_us, "
        "latency_ms or median_s, or --column time=NAME"
    )


def _plain(name: object) -> str:
    """A column's name without what doesn't count; a unit in brackets becomes an ending."""
    words = re.sub(r"[^a-z0-9]+", "_", str(name).strip().lower().replace("µ", "u").replace("μ", "u"))
    return words.strip("_")
