"""Keys and values that are kept: a trie of token sequences in which every shared beginning is stored once.

A dialogue's next prompt begins with its last prompt and reply, a branch with its parent's, a batch of dialogues with
one system message; whatever of a prompt is in the trie is not read again. Nothing else identifies a dialogue, so the
callers stay stateless. Least recently used leaves go first when the budget is spent.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """What one token keeps in every layer: (heads, key_width) and (heads, value_width) numbers."""

    layers: int
    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes kept for one token over all layers."""
        return int(self.layers * self.heads * (self.key_width + self.value_width) * self.dtype.itemsize)

    def empty(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Unset keys and values of a run of tokens, (layers, heads, tokens, width) each."""
        keys, values = (torch.empty(self.layers, self.heads, tokens, width, dtype=self.dtype, device=self.device)
                        for width in (self.key_width, self.value_width))
        return keys, values

    def zeros(self, numbers: int) -> Tensor:
        """`numbers` zeros for each layer and head, flat; on a CPU their memory is taken as they are written."""
        size = self.layers * self.heads * numbers
        if self.device.type != "cpu":
            return torch.zeros(size, dtype=self.dtype, device=self.device)
        return torch.from_numpy(np.zeros(size * self.dtype.itemsize, dtype=np.uint8)).view(self.dtype)


class Node:
    """A run of tokens without a branch, after its parent's.

    Attributes:
        ids: its tokens; empty for a run given as embeddings, which never enters the trie.
        start, stop: depth of its first token and of the one after its last.
        states: (layers, heads, tokens, width) keys and values; None until the run was read.
    """

    __slots__ = ("children", "ids", "parent", "start", "states", "stop", "used")

    def __init__(self, ids: tuple[int, ...], parent: Node | None, tokens: int | None = None) -> None:
        self.ids = ids
        self.parent = parent
        self.start: int = parent.stop if parent is not None else 0
        self.stop: int = self.start + (len(ids) if tokens is None else tokens)
        self.states: tuple[Tensor, Tensor] | None = None
        self.children: dict[int, Node] = {}
        self.used = 0

    def path(self) -> list[Node]:
        """From the first run to this one."""
        found: list[Node] = []
        node: Node | None = self
        while node is not None and node.stop:
            found.append(node)
            node = node.parent
        return found[::-1]


class PrefixCache:
    """The trie, within a budget of bytes.

    Attributes:
        limit: bytes of keys and values it may hold between calls.
        bytes: what it holds.
        pinned: a run that is in use and stays, with all that leads to it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.root = Node((), None)
        self.bytes = 0
        self.pinned: Node | None = None
        self._clock = 0

    def begin(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """A new call is going to ask for these: what is known of them is used most recently."""
        self._clock += 1
        for ids in prompts:
            for node, shared in self._walk(ids):
                if shared == len(node.ids):
                    node.used = self._clock

    def known(self, ids: tuple[int, ...]) -> int:
        """How many leading tokens of `ids` are kept."""
        return sum(shared for node, shared in self._walk(ids) if node.states is not None)

    def _walk(self, ids: tuple[int, ...]) -> Iterator[tuple[Node, int]]:
        """The runs `ids` goes along, and how many tokens it shares with each."""
        at, node = 0, self.root
        while at < len(ids) and (child := node.children.get(ids[at])) is not None:
            shared = shared_length(child.ids, ids[at:at + len(child.ids)])
            leaves_here = shared < len(child.ids)  # whoever is given the run may split it
            yield child, shared
            if leaves_here:
                return
            at, node = at + shared, child

    def insert(self, ids: tuple[int, ...]) -> Node:
        """The run that ends where `ids` ends; what was not there is added, its states still None."""
        at, node = 0, self.root
        for child, shared in self._walk(ids):
            node = child if shared == len(child.ids) else self.split(child, shared)
            node.used = self._clock
            at += shared
        if at < len(ids):
            child = Node(ids[at:], node)
            child.used = self._clock
            node.children[ids[at]] = child
            node = child
        return node

    def split(self, node: Node, at: int) -> Node:
        """Cut a run in two and return its upper part, a new object: whoever holds the run holds its end."""
        assert node.parent is not None
        upper = Node(node.ids[:at], node.parent)
        node.parent.children[upper.ids[0]] = upper
        upper.children[node.ids[at]] = node
        upper.used = node.used
        node.ids, node.parent, node.start = node.ids[at:], upper, upper.stop
        if node.states is not None:
            keys, values = node.states
            upper.states = keys[:, :, :at].clone(), values[:, :, :at].clone()
            node.states = keys[:, :, at:].clone(), values[:, :, at:].clone()
        return upper

    def fill(self, node: Node, states: tuple[Tensor, Tensor]) -> None:
        """Give a run of the trie its states."""
        node.states = states
        self.bytes += sum(part.nbytes for part in states)

    def trim(self) -> None:
        """Drop least recently used leaves until a tenth of the budget is free, if it is overdrawn."""
        if self.bytes <= self.limit:
            return
        heap = [(node.used, -node.stop, id(node), node) for node in self._nodes() if not node.children]
        heapq.heapify(heap)
        while heap and self.bytes > 0.9 * self.limit:
            *_, node = heapq.heappop(heap)
            if node is self.pinned:
                continue
            assert node.parent is not None
            del node.parent.children[node.ids[0]]
            self.bytes -= sum(part.nbytes for part in node.states or ())
            parent = node.parent
            if parent is not self.root and not parent.children:
                heapq.heappush(heap, (parent.used, -parent.stop, id(parent), parent))

    def _nodes(self) -> Iterator[Node]:
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()


def shared_length(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many tokens two sequences begin with in common."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:  # left and right agree up to low, and differ before high
        middle = (low + high) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle)
    return low
