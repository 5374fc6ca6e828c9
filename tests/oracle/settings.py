"""What is set. Names are those of the recorded cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Speculative:
    method: str = ""
    """`eagle`, `ngram` or `draft_model`; empty for none."""
    num_speculative_tokens: int = 0
    disable_lookahead_block_hashes: bool = False


@dataclass(frozen=True)
class Connector:
    kind: str = ""
    """`pd`, `tier_sync` or `tier_async`; empty for none."""
    role: str = ""
    """`kv_consumer`, `kv_producer` or `kv_both`."""
    load_failure_policy: str = "fail"


@dataclass(frozen=True)
class Group:
    """Layers that share a table of blocks."""

    kind: str = "full"
    """`full` or `sliding`."""
    window: int = 0
    block_size: int | None = None
    """`None` for that of the settings."""


@dataclass(frozen=True)
class Settings:
    """The keys of a recorded case's `config`, and the release."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_gpu_blocks: int
    """One of them, the null block, is never used."""
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    policy: str = "fcfs"
    enable_prefix_caching: bool = False
    reserve_full_isl: bool = True
    watermark: float = 0.0
    async_scheduling: bool = False
    version: str = "0.33"
    speculative: Speculative = Speculative()
    connector: Connector = Connector()
    kv_groups: tuple[Group, ...] = (Group(),)
    prefix_cache_retention_interval: int | None = 0
    pipeline_parallel_size: int = 1
    max_num_active_seqs: int | None = None
    long_prefill_token_threshold_adaptive: bool = False
    prefill_schedule_interval: int = 1
    max_model_len: float = math.inf

    def __post_init__(self) -> None:
        has_one = [group.kind for group in self.kv_groups] == ["full"]
        if not has_one and (self.connector.kind or self.drops_last_hit):
            raise NotImplementedError("groups of layers with a connector, or by S8, were not recorded")
        if self.num_drafts and self.num_calls > 1 and not self.async_scheduling:
            raise NotImplementedError("synchronous speculation with a pipeline was not recorded (Q6)")

    @property
    def num_calls(self) -> int:
        """`D`: calls that may be outstanding (E1, Q1)."""
        return self.pipeline_parallel_size + self.async_scheduling

    @property
    def num_drafts(self) -> int:
        return self.speculative.num_speculative_tokens

    @property
    def num_lookahead(self) -> int:
        """`look`: slots held beyond what a step computes (S4)."""
        return 0 if self.speculative.method == "ngram" else self.num_drafts

    @property
    def num_extra(self) -> int:
        """`x`: what each entry costs of the budget beside its tokens (S3)."""
        return int(self.speculative.method == "draft_model")

    @property
    def drops_last_hit(self) -> bool:
        """S8."""
        is_plain = self.speculative.disable_lookahead_block_hashes or self.connector.kind
        return self.speculative.method == "eagle" and bool(is_plain)

    @property
    def num_behind(self) -> int:
        """Tokens behind a block that its key covers too (S7)."""
        return int(self.speculative.method == "eagle" and not self.drops_last_hit)

    @property
    def reserves_prompts(self) -> bool:
        return self.reserve_full_isl and self.version != "0.15"

    @property
    def may_recompute(self) -> bool:
        """What a transfer fails to bring (P7)."""
        return self.connector.load_failure_policy == "recompute"

    @property
    def fetches(self) -> bool:
        """Whether blocks may be written to from outside while steps run (P10)."""
        return self.connector.role in ("kv_consumer", "kv_both") and self.num_calls > 1

    @property
    def drops_victims(self) -> bool:
        """Whether a victim's steps under way come to nothing (P11)."""
        return self.connector.kind == "pd" and not self.fetches and self.num_calls > 1


def settings_of(config: Mapping[str, Any]) -> Settings:
    """From the JSON of a recorded case."""
    groups = [Group(**group) for group in config.get("kv_groups", [{}])]
    parts = {
        "speculative": Speculative(**config.get("speculative", {})),
        "connector": Connector(**config.get("connector", {})),
        "kv_groups": tuple(groups),
    }
    return Settings(**{**config, **parts})
