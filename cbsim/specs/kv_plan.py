"""KvPlan: how a model's layers share KV blocks, and how many blocks some memory makes, as vLLM plans it.

vLLM 0.33, `vllm/v1/core/kv_cache_planning.py` and `kv_cache_utils.py`: layers with a window and layers
without are dealt into groups of equal size, all of which draw their blocks from one pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Layers that are alike, each with `token_bytes` bytes of keys and values a token."""

    num_layers: int
    token_bytes: int
    window: int = 0
    """Tokens that attention reaches back; 0 for all."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers whose keys and values lie in the same blocks."""

    window: int
    num_layers: int


@dataclass(frozen=True, slots=True)
class KvPlan:
    """Groups of layers, and the bytes of a block: `block_size` tokens of one group's layers."""

    groups: tuple[LayerGroup, ...]
    block_size: int
    block_bytes: int

    def num_blocks(self, available_bytes: int) -> int:
        """Blocks that fit into some memory; vLLM keeps one of them as its null block."""
        return available_bytes // self.block_bytes

    def num_blocks_of(self, num_tokens: int, max_tokens_under_way: int) -> int:
        """Blocks that one request of `num_tokens` tokens needs in all groups.

        A group with a window holds the window and what is under way, not counted beyond the request, and one
        block more, as a window begins anywhere in a block.
        """
        total = 0
        for group in self.groups:
            num_held = num_tokens
            if group.window:
                num_held = min(group.window - 1 + max_tokens_under_way, num_tokens)
            total += -(-num_held // self.block_size) + (1 if group.window else 0)
        return total

    def num_tokens(self, num_blocks: int, max_model_len: int, max_tokens_under_way: int) -> int:
        """What vLLM logs as "GPU KV cache size": the tokens of all longest requests that fit at once."""
        return num_blocks * max_model_len // self.num_blocks_of(max_model_len, max_tokens_under_way)


def plan_kv_cache(kinds: Sequence[LayerKind], block_size: int, *, is_hybrid: bool = True) -> KvPlan:
    """Deal layers into groups. With `is_hybrid` off all layers make one group that keeps every token.

    A group has as many layers as the smallest kind, or the largest if that is less than 1.5 times as many;
    each kind is dealt into groups one layer at a time.
    """
    token_bytes = max(kind.token_bytes for kind in kinds)
    if not is_hybrid or len(kinds) == 1:
        window = kinds[0].window if is_hybrid else 0
        groups = [LayerGroup(window, sum(kind.num_layers for kind in kinds))]
    else:
        smallest = min(kind.num_layers for kind in kinds)
        largest = max(kind.num_layers for kind in kinds)
        size = largest if largest < 1.5 * smallest else smallest
        groups = []
        for kind in kinds:
            num_groups = -(-kind.num_layers // size)
            groups += [
                LayerGroup(
                    kind.window, kind.num_layers // num_groups + (number < kind.num_layers % num_groups)
                )
                for number in range(num_groups)
            ]
    most = max(group.num_layers for group in groups)
    return KvPlan(tuple(groups), block_size, most * block_size * token_bytes)
