"""Speculative decoding and KV connectors: the settings, and what they are to the core."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cbsim.config.section import Section
from cbsim.core.layout import BOTH, CONSUMER, FAIL, PRODUCER, RECOMPUTE_LOST, REMOTE, TIER_ALONE
from cbsim.workload.values import MAX_DRAFTS


class SpeculativeConfig(Section):
    """A drafter proposes tokens, and one step verifies them all (Leviathan et al., ICML'23)."""

    method: Literal["eagle", "ngram", "draft_model"] = "eagle"
    """Who drafts: a head on the model's own features (EAGLE, EAGLE-3, MTP), its prompt and answer so far, or
    a small model of its own, which computes one token of each request more."""
    num_tokens: int = Field(default=3, ge=1, le=MAX_DRAFTS)
    """Drafts of a request in each step."""
    acceptance: float | list[float] = 0.7
    """The chance that a draft is accepted if those before it were; a list gives one for each position.
    Requests that bring a list of their own (`accepted`) go by that."""
    draft_share: float | None = Field(default=None, ge=0)
    """Seconds of one pass of the drafter, as a share of a decode of one request by the model itself; null
    takes that of `draft_parameters`, else 0.05 for `eagle`, 0.1 for `draft_model`, and 0 for `ngram`."""
    draft_parameters: float | None = Field(default=None, gt=0)
    """Parameters of the drafter. A pass reads them all, as a decode reads the model's, and takes as much less
    time as they are fewer."""
    lookahead_block_hashes: bool = True
    """Whether `eagle` tells cached blocks by the token behind them too; false drops the last block of a hit
    (vLLM's `disable_lookahead_block_hashes`)."""

    @field_validator("acceptance")
    @classmethod
    def _are_chances(cls, value: float | list[float]) -> float | list[float]:
        chances = value if isinstance(value, list) else [value]
        if not chances or not all(0 <= chance <= 1 for chance in chances):
            raise ValueError(f"got {value}; expected a chance from 0 to 1, or a list of them")
        return value

    @property
    def chances(self) -> list[float]:
        """The chance of each draft, the last one given standing for those behind it."""
        given = self.acceptance if isinstance(self.acceptance, list) else [self.acceptance]
        return [given[min(position, len(given) - 1)] for position in range(self.num_tokens)]

    def share_of(self, num_parameters: int) -> float:
        """Seconds of a pass of the drafter over those of a decode by a model of `num_parameters`."""
        if self.draft_share is not None:
            return self.draft_share
        if self.draft_parameters is not None:
            return self.draft_parameters / num_parameters
        return {"eagle": 0.05, "draft_model": 0.1, "ngram": 0.0}[self.method]

    def numbers(self) -> dict[str, float]:
        """Fields of `Replica.config`."""
        return {
            "num_speculative_tokens": self.num_tokens,
            "num_lookahead_tokens": 0 if self.method == "ngram" else self.num_tokens,
            "num_extra_slots": 1 if self.method == "draft_model" else 0,
            "proposes": self.method == "ngram",
        }


def fits_budget(value: SpeculativeConfig | None, max_tokens_per_step: int | None) -> SpeculativeConfig | None:
    """The settings as they are. Raises ValueError if a request with its drafts is more than a step takes."""
    if value is not None and max_tokens_per_step is not None:
        num_needed = 1 + value.num_tokens + (1 if value.method == "draft_model" else 0)
        if num_needed > max_tokens_per_step:
            raise ValueError(
                f"got num_tokens: {value.num_tokens}, which with method: {value.method} takes {num_needed} "
                f"tokens of a step; expected at most max_tokens_per_step, {max_tokens_per_step}"
            )
    return value


class ConnectorConfig(Section):
    """KV that other replicas or a tier below the GPU hold, as vLLM's KV connectors bring and fetch it."""

    kind: Literal["remote", "tier_read", "tier_loaded"] = "remote"
    """Another replica's (prefill and decode apart), a tier's that is read within a step, or one's that is
    loaded before it."""
    role: Literal["consumer", "producer", "both"] = "both"
    """Whether KV comes, goes, or both."""
    load_failure: Literal["fail", "recompute"] = "fail"
    """What becomes of a request whose KV does not come: it ends in error, or computes what is missing."""

    def numbers(self) -> dict[str, float]:
        """Fields of `Replica.config`."""
        roles = {"consumer": CONSUMER, "producer": PRODUCER, "both": BOTH}
        policy = FAIL if self.load_failure == "fail" else RECOMPUTE_LOST
        return {
            "connector": REMOTE if self.kind == "remote" else TIER_ALONE,
            "reads_in_step": self.kind == "tier_read",
            "role": roles[self.role],
            "load_failure_policy": policy,
        }
