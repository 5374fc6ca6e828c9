"""The KV cache of one replica: how many blocks there are, who holds them, and whose content can be shared."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import Field

from cbsim.base.errors import ConfigError
from cbsim.base.units import GIB, MIB, format_bytes
from cbsim.config.section import Section
from cbsim.schedulers.prefix_keys import PrefixKey, PrefixKeys
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.workload.request import Request

MAX_NUMBERED_BLOCKS = 16 * MIB
"""Each of them takes some hundred bytes where their contents are known."""


class KVCacheConfig(Section):
    """The paged KV cache of a replica."""

    block_size: int = Field(default=16, ge=1)
    """Tokens a block."""
    num_blocks: int | None = Field(default=None, ge=1)
    """Usable blocks; null computes them from the memory left beside weights and activations."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory the engine may use."""
    activation_gib: float = Field(default=2.0, ge=0)
    """Memory kept for activations and CUDA graphs on each GPU, GiB."""
    prefix_caching: bool = False
    """Whether requests share the blocks of equal prefixes."""

    def size(self, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int = 1) -> int:
        """Usable blocks of a replica: `num_blocks`, or what fits beside the weights.

        Raises `ConfigError` if the weights leave no room for a single block, or there are too many to know
        each one's content.
        """
        num_blocks = (
            self._num_fitting(model, gpu, tensor_parallel) if self.num_blocks is None else self.num_blocks
        )
        if self.prefix_caching and num_blocks > MAX_NUMBERED_BLOCKS:
            raise ConfigError(
                f"kv_cache: got {num_blocks:,} KV blocks with prefix_caching; allowed: up to "
                f"{MAX_NUMBERED_BLOCKS:,}, or prefix_caching: false"
            )
        return num_blocks

    def _num_fitting(self, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int) -> int:
        usable = int(gpu.memory_bytes * self.gpu_memory_utilization) * tensor_parallel
        activations = int(self.activation_gib * GIB) * tensor_parallel
        block_bytes = self.block_size * model.kv_bytes_per_token
        num_blocks = (usable - model.weight_bytes - activations) // block_bytes
        if num_blocks < 1:
            raise ConfigError(
                f"kv_cache: no room for a KV block: {model.name} weighs {format_bytes(model.weight_bytes)} "
                f"and {tensor_parallel} x {gpu.name} at gpu_memory_utilization {self.gpu_memory_utilization} "
                f"gives {format_bytes(usable)}, of which activations take {format_bytes(activations)}; "
                f"allowed: a larger GPU, a higher replicas.tensor_parallel, or kv_cache.num_blocks"
            )
        return num_blocks


class PrefixHit(NamedTuple):
    """What a lookup in the prefix cache found."""

    blocks: tuple[int, ...]
    """The leading blocks of the request that are there already."""
    num_free: int
    """How many of them nobody holds: taking those takes them from the free blocks."""


NO_HIT = PrefixHit((), 0)


class BlockPool:
    """Counts the blocks in use. Enough wherever no block's content or number matters.

    A request holds `request.num_blocks` blocks; `allocate` adds to them, `release` gives them all back.
    """

    prefix_caching = False
    has_identities = False

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_free = num_blocks

    @property
    def num_used(self) -> int:
        """Blocks held by requests. Free blocks that still hold reusable content don't count."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens fill."""
        return -(-num_tokens // self.block_size)

    def allocate(self, request: Request, num_blocks: int) -> None:
        """Give a request further blocks. Raises RuntimeError for more than are free, a mistake of policy."""
        if num_blocks > self.num_free:
            raise RuntimeError(
                f"{num_blocks} KV blocks asked for {request.request_id}, {self.num_free} are free"
            )
        self.num_free -= num_blocks
        request.num_blocks += num_blocks

    def release(self, request: Request) -> None:
        """Take back all blocks of a request."""
        self.num_free += request.num_blocks
        request.num_blocks = 0

    def find_prefix(self, request: Request) -> PrefixHit:
        """The longest leading run of the request's blocks whose content is there; never its last token."""
        return NO_HIT

    def adopt(self, request: Request, hit: PrefixHit) -> None:
        """Let a request, which holds nothing yet, share the blocks found."""

    def publish(self, request: Request, num_tokens: int) -> None:
        """Make the request's blocks that its first `num_tokens` tokens fill known to lookups."""

    def withdraw(self, request: Request, num_tokens: int) -> None:
        """Undo `publish` beyond the first `num_tokens`: a step that was to compute them will not run."""

    def forget(self, request: Request) -> None:
        """A request has ended: it will never be looked up or published again."""

    def num_held_by(self, requests: Sequence[Request]) -> int:
        """Blocks that would be free if these requests released all of theirs."""
        return sum(request.num_blocks for request in requests)

    def check_integrity(self, holders: Iterable[Request]) -> None:
        """Raise RuntimeError unless every block is either free or held, and by exactly these requests."""
        held = sum(request.num_blocks for request in holders)
        if not 0 <= self.num_free <= self.num_blocks or held != self.num_used:
            raise RuntimeError(f"{held} KV blocks held, {self.num_free} free, {self.num_blocks} in all")


class IdentityPool(BlockPool):
    """A pool that knows every block by number: for prefix caching and for a real KV cache's block tables.

    Blocks without content are used before any cached one, then cached blocks in order of release, a request's
    later blocks before its earlier ones (vLLM's `FreeKVCacheBlockQueue`). With `unknown_first` False (vLLM
    before 0.33) every released block goes to the tail of the free queue.
    """

    has_identities = True

    def __init__(
        self, num_blocks: int, block_size: int, *, prefix_caching: bool = True, unknown_first: bool = True
    ) -> None:
        super().__init__(num_blocks, block_size)
        self.prefix_caching = prefix_caching
        self._unknown_first = unknown_first
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._num_holders = [0] * num_blocks
        self._key_of: list[PrefixKey | None] = [None] * num_blocks
        self._copies: dict[PrefixKey, list[int]] = {}
        self._prefixes = PrefixKeys()
        self.num_cached_free = 0
        """Free blocks that still hold reusable content."""

    def allocate(self, request: Request, num_blocks: int) -> None:
        """See `BlockPool.allocate`; the blocks are taken from the front of the free queue and forgotten."""
        super().allocate(request, num_blocks)
        take_free, holders, key_of = self._free.popitem, self._num_holders, self._key_of
        for _ in range(num_blocks):
            block, _ = take_free(last=False)
            if key_of[block] is not None:
                self._forget(block)
            holders[block] = 1
            request.blocks.append(block)

    def release(self, request: Request) -> None:
        """Give up a request's share in each of its blocks, from the last to the first."""
        free, holders, key_of = self._free, self._num_holders, self._key_of
        for block in reversed(request.blocks):
            if holders[block] > 1:
                holders[block] -= 1
                continue
            holders[block] = 0
            free[block] = None
            if key_of[block] is not None:
                self.num_cached_free += 1
            elif self._unknown_first:
                free.move_to_end(block, last=False)
        self.num_free = len(free)
        request.blocks.clear()
        request.num_blocks = 0
        request.num_published_blocks = 0

    def find_prefix(self, request: Request) -> PrefixHit:
        """See `BlockPool.find_prefix`; of several copies the one that became known first is found."""
        if not self.prefix_caching:
            return NO_HIT
        found = []
        num_blocks = (request.num_known_tokens - 1) // self.block_size
        for key in self._prefixes.keys(request, self.block_size, 0, num_blocks):
            copies = self._copies.get(key)
            if copies is None:
                break
            found.append(copies[0])
        return PrefixHit(tuple(found), sum(self._num_holders[block] == 0 for block in found))

    def adopt(self, request: Request, hit: PrefixHit) -> None:
        """See `BlockPool.adopt`; blocks that nobody held leave the free queue."""
        for block in hit.blocks:
            if self._num_holders[block] == 0:
                del self._free[block]
                self.num_free -= 1
                self.num_cached_free -= 1
            self._num_holders[block] += 1
        request.blocks.extend(hit.blocks)
        request.num_blocks += len(hit.blocks)
        request.num_published_blocks = len(hit.blocks)

    def publish(self, request: Request, num_tokens: int) -> None:
        """See `BlockPool.publish`. Blocks are not merged: equal content may be known in several copies."""
        if not self.prefix_caching:
            return
        first, end = request.num_published_blocks, num_tokens // self.block_size
        if first >= end:
            return
        keys = self._prefixes.keys(request, self.block_size, first, end)
        key_of, copies = self._key_of, self._copies
        for block, key in zip(request.blocks[first:end], keys, strict=True):
            key_of[block] = key
            if key in copies:
                copies[key].append(block)
            else:
                copies[key] = [block]
        request.num_published_blocks = end

    def withdraw(self, request: Request, num_tokens: int) -> None:
        """See `BlockPool.withdraw`."""
        num_kept = num_tokens // self.block_size
        for i in range(num_kept, request.num_published_blocks):
            self._forget(request.blocks[i])
        request.num_published_blocks = min(request.num_published_blocks, num_kept)

    def forget(self, request: Request) -> None:
        """See `BlockPool.forget`; what its blocks hold stays known."""
        self._prefixes.forget(request)

    def num_held_by(self, requests: Sequence[Request]) -> int:
        """See `BlockPool.num_held_by`; blocks that others share don't count."""
        shares = Counter(block for request in requests for block in request.blocks)
        return sum(self._num_holders[block] == count for block, count in shares.items())

    def check_integrity(self, holders: Iterable[Request]) -> None:
        """See `BlockPool.check_integrity`; shares, the free queue and the known contents must agree too."""
        num_shares = [0] * self.num_blocks
        for request in holders:
            if len(request.blocks) != request.num_blocks:
                raise RuntimeError(
                    f"{request.request_id} counts {request.num_blocks} blocks: {request.blocks}"
                )
            for block in request.blocks:
                num_shares[block] += 1
        if num_shares != self._num_holders:
            raise RuntimeError("the shares of KV blocks don't add up to those of their holders")
        if set(self._free) != {block for block, shares in enumerate(num_shares) if shares == 0}:
            raise RuntimeError("a KV block is both free and held, or neither")
        if len(self._free) != self.num_free:
            raise RuntimeError(f"{len(self._free)} KV blocks in the free queue, {self.num_free} counted")
        num_cached = sum(self._key_of[block] is not None for block in self._free)
        if num_cached != self.num_cached_free:
            raise RuntimeError(f"{num_cached} free KV blocks with content, {self.num_cached_free} counted")
        for key, copies in self._copies.items():
            if not copies or any(self._key_of[block] != key for block in copies):
                raise RuntimeError("the prefix cache knows a block by the wrong content")

    def _forget(self, block: int) -> None:
        key = self._key_of[block]
        if key is None:
            return
        self._key_of[block] = None
        if self._num_holders[block] == 0:
            self.num_cached_free -= 1
        copies = self._copies[key]
        if len(copies) == 1:
            del self._copies[key]
        else:
            copies.remove(block)
