"""Frames: a pandas DataFrame of requests as a trace file, so that workers and later sessions find it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from cbsim.base.errors import WorkloadError
from cbsim.base.paths import cache_folder, written_whole

WORKLOAD = "workload"


def with_files(settings: Any, key: str = "") -> Any:
    """Settings in which each DataFrame has become the trace file that it is kept as.

    One that stands for a whole workload becomes a `trace` of that file. Raises `WorkloadError` for a frame
    that no Parquet file can hold.
    """
    if isinstance(settings, Mapping):
        return {name: with_files(value, name) for name, value in settings.items()}
    if not hasattr(settings, "to_parquet"):
        return settings
    path = str(keep(settings))
    return {"type": "trace", "path": path} if key == WORKLOAD else path


def keep(frame: Any) -> Path:
    """The Parquet file of a DataFrame, in the user's cache folder, named by its content.

    Lists and mappings (block ids, prompts) are written as JSON.
    """
    try:
        import pandas as pd

        plain = frame.copy()
        for name in plain.columns:
            if plain[name].map(lambda value: isinstance(value, (list, tuple, dict))).any():
                plain[name] = plain[name].map(_as_json)
            elif pd.api.types.is_datetime64_any_dtype(plain[name]):
                plain[name] = plain[name].map(lambda time: time.isoformat(sep=" "))
        data = BytesIO()
        plain.to_parquet(data, index=False)
    except (TypeError, ValueError) as error:
        raise WorkloadError(f"workload: got a DataFrame that can't be written: {error}") from None
    content = data.getvalue()
    path = cache_folder() / "workloads" / f"{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            partial.write_bytes(content)
    return path


def _as_json(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value
