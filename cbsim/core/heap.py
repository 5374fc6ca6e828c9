"""A pairing heap through an array of nodes: requests in the order of `(key, index)`.

Fredman, Sedgewick, Sleator and Tarjan, Algorithmica 1986. A heap is told by its root, the index of the node
that comes first, or `NOBODY`; a node can be in one heap of its array at a time.
"""

from __future__ import annotations

from typing import Any

from cbsim.base.binding import apart
from cbsim.core.layout import NOBODY


@apart
def put(nodes: Any, root: int, index: int, key: float) -> int:
    """Add a node that is in no heap; the new root."""
    node = nodes[index]
    node.key = key
    node.child = node.next = node.last = NOBODY
    node.is_in = 1
    return index if root == NOBODY else meld(nodes, root, index)


@apart
def take_out(nodes: Any, root: int, index: int) -> int:
    """Remove a node, usually the root; the new root."""
    node = nodes[index]
    node.is_in = 0
    below = merge_siblings(nodes, node.child)
    if index == root:
        return below
    before = nodes[node.last]
    if before.child == index:
        before.child = node.next
    else:
        before.next = node.next
    if node.next != NOBODY:
        nodes[node.next].last = node.last
    return root if below == NOBODY else meld(nodes, root, below)


def meld(nodes: Any, one: int, other: int) -> int:
    """Make one heap of two by their roots; the new root."""
    if comes_before(nodes, other, one):
        one, other = other, one
    first, second = nodes[one], nodes[other]
    second.last = one
    second.next = first.child
    if first.child != NOBODY:
        nodes[first.child].last = other
    first.child = other
    return one


def merge_siblings(nodes: Any, first: int) -> int:
    """Make one heap of a list of siblings: in pairs from the left, then all from the right; its root."""
    pairs = NOBODY
    while first != NOBODY:
        second = nodes[first].next
        rest = NOBODY
        if second != NOBODY:
            rest = nodes[second].next
        nodes[first].next = nodes[first].last = NOBODY
        melded = first
        if second != NOBODY:
            nodes[second].next = nodes[second].last = NOBODY
            melded = meld(nodes, first, second)
        nodes[melded].next = pairs
        pairs = melded
        first = rest
    root = pairs
    if root != NOBODY:
        pairs = nodes[root].next
        nodes[root].next = NOBODY
        while pairs != NOBODY:
            rest = nodes[pairs].next
            nodes[pairs].next = NOBODY
            root = meld(nodes, root, pairs)
            pairs = rest
        nodes[root].last = NOBODY
    return root


def comes_before(nodes: Any, one: int, other: int) -> bool:
    """Whether node `one` comes before `other`: by key, then by index."""
    if nodes[one].key != nodes[other].key:
        return nodes[one].key < nodes[other].key
    return one < other
