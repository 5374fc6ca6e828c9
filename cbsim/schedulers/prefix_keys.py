"""PrefixKeys: names for what KV blocks hold, equal where the tokens from the start on are equal."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from cbsim.workload.request import Request

PrefixKey = tuple[int, int]
"""`(node, length)`: the tokens before a segment, as a node, and how many of the segment's tokens follow."""


class PrefixKeys:
    """Names token sequences from position 0 on, so that equal sequences, and only those, have equal keys.

    A sequence is a chain of segments, each used from its offset 0, so it is told by the chain of whole
    segments before its last one (a node, numbered when first seen) and its length in that last one. One
    lookup a segment, however many blocks it spans.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int, str], int] = {}
        self._chains: dict[str, list[tuple[int, int]]] = {}

    def keys(self, request: Request, block_size: int, first: int, end: int) -> Iterator[PrefixKey]:
        """The keys of a request's blocks `first` to `end`, generated tokens included.

        Each names all the request's tokens up to the block's last.
        """
        chain = self._chains.get(request.request_id)
        if chain is None:
            chain = self._chains[request.request_id] = self._chain(request)
        num_tokens = (first + 1) * block_size
        # The segment that holds the block's last token is the last one to start before it ends.
        place = bisect_left(chain, (num_tokens,)) - 1
        start, node = chain[place]
        num_left = end - first
        while num_left:
            while place + 1 < len(chain) and chain[place + 1][0] < num_tokens:
                place += 1
                start, node = chain[place]
            # All blocks that end in this segment.
            num_here = num_left
            if place + 1 < len(chain):
                num_here = min(num_left, (chain[place + 1][0] - num_tokens) // block_size + 1)
            beyond = num_tokens + num_here * block_size
            for length in range(num_tokens - start, beyond - start, block_size):
                yield node, length
            num_tokens = beyond
            num_left -= num_here

    def forget(self, request: Request) -> None:
        """Drop what is kept for a request that has ended. The numbers of its nodes stay: keys hold them."""
        self._chains.pop(request.request_id, None)

    def _chain(self, request: Request) -> list[tuple[int, int]]:
        """`(first position, node)` of each segment of the prompt, then of the answer."""
        chain = []
        node, start, length = 0, 0, 0
        prompt = request.prompt or ((f"p:{request.request_id}", request.num_prompt_tokens),)
        for segment, num_tokens in (*prompt, (f"o:{request.request_id}", request.num_output_tokens)):
            if num_tokens == 0:
                continue
            node = self._nodes.setdefault((node, length, segment), len(self._nodes) + 1)
            chain.append((start, node))
            start, length = start + num_tokens, num_tokens
        return chain
