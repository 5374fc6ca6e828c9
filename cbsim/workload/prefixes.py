"""PrefixTree: how much of each prompt came before, as far as segments tell."""

from __future__ import annotations

from cbsim.workload.request import Request

_Node = dict[str, dict[int, "_Node"]]


class PrefixTree:
    """Everything said so far, as a tree of segments: what a prefix cache without limits would hold."""

    def __init__(self) -> None:
        self._root: _Node = {}

    def add(self, request: Request) -> int:
        """Adds a request's prompt and answer; returns how many of its first tokens were there already.

        A prompt without segments shares nothing. The answer counts as said at once, so that the sum is the
        most that any cache could find.
        """
        if request.prompt is None:
            return 0
        num_shared = 0
        is_known = True
        node = self._root
        for name, length in (*request.prompt, (f"o:{request.request_id}", request.num_output_tokens)):
            lengths = node.setdefault(name, {})
            if is_known and length not in lengths:
                num_shared += min(length, max(lengths, default=0))
                is_known = False
            elif is_known:
                num_shared += length
            node = lengths.setdefault(length, {})
        return min(num_shared, request.num_prompt_tokens)
