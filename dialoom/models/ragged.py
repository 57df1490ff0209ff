"""Attention over dialogues of unequal length, in two forms: many runs of new tokens read at once, and one token a row.

Both forms see the model as one row of tokens and find each token's own past themselves; nothing is padded in the
linear layers, and no mask is made where none is needed. Any transformers model whose attention can be replaced runs on
them unchanged (`attend` is registered with transformers); so does `fused`.
Surprising choice: while tokens are drawn on a CPU, keys lie transposed, which makes reading them twice as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dialoom.errors import ModelError
from dialoom.models.exact import register_attention
from dialoom.models.kept import Node, Shape

NAME = "dialoom_ragged"
"""Under which transformers finds this attention."""

STAYING_BYTES = 1 << 28
UNKNOWN = ("softcap", "s_aux", "position_bias")  # what a model may want of its attention beyond the plain one


class Ragged(Protocol):
    """Who sees what in one pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Keep the new keys and values of a layer, and attend to them and to what came before.

        Args:
            query: (tokens, heads, width), rotated; key and value: (tokens, fewer or as many heads, width).
        Returns: (tokens, heads, value width).
        """
        ...


class Reading:
    """Runs of new tokens, each after a path of runs read before; fills in the states of `nodes`."""

    def __init__(self, nodes: Sequence[Node], shape: Shape) -> None:
        self._runs = []
        self.states = [shape.empty(node.stop - node.start) for node in nodes]
        at = 0
        for node, own in zip(nodes, self.states, strict=True):
            before = [kept.states for kept in node.path()[:-1] if kept.states is not None]
            size = node.stop - node.start
            mask = None
            if before:
                mask = torch.zeros(size, node.stop, dtype=shape.dtype, device=shape.device)
                mask[:, node.start:].fill_(float("-inf")).triu_(1)
            self._runs.append((at, at + size, before, own, mask))
            at += size

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """As in `Ragged`; what is more than the runs hold is told nothing."""
        heads, kept = query.shape[1], key.shape[1]
        out = query.new_zeros(len(query), heads, value.shape[-1])
        self.keep(layer, key, value)
        for start, stop, before, (own_keys, own_values), mask in self._runs:
            keys, values = own_keys[layer], own_values[layer]
            if before:
                keys = torch.cat([*(part[0][layer] for part in before), keys], 1)
                values = torch.cat([*(part[1][layer] for part in before), values], 1)
            # the query heads of one key head are a dimension of their own: keys are shared, not repeated
            asked = query[start:stop].unflatten(1, (kept, -1)).permute(1, 2, 0, 3)
            shared = keys[:, None].expand(-1, heads // kept, -1, -1), values[:, None].expand(-1, heads // kept, -1, -1)
            found = functional.scaled_dot_product_attention(asked, *shared, attn_mask=mask, is_causal=mask is None,
                                                            scale=scale)
            out[start:stop] = found.permute(2, 0, 1, 3).flatten(1, 2)
        return out

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Only take the new keys and values of a layer, (tokens, heads, width) each."""
        for start, stop, _, (own_keys, own_values), _ in self._runs:
            own_keys[layer] = key[start:stop].transpose(0, 1)
            own_values[layer] = value[start:stop].transpose(0, 1)


class Rows:
    """The dialogues in flight: keys and values of each in a row of its own, with room for tokens to come.

    What all of them begin with may stand apart, once, and is then read once for all rows.

    Attributes:
        count: rows in use, always the first ones.
        lengths: (slots,) tokens of each dialogue.
        shares: whether a common beginning can stand apart on this device.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self.shares = self._across = shape.device.type == "cpu" and shape.dtype in (torch.float32, torch.float64)
        # on a CPU fresh memory is slow to touch, so a little of it stays; no more is taken than is written to
        tokens = STAYING_BYTES // shape.token_bytes if shape.device.type == "cpu" else 0
        self._staying = self._stores = [shape.zeros(tokens * width) for width in (shape.key_width, shape.value_width)]

    def open(self, slots: int, room: int, common: Node | None = None) -> None:
        """Begin with empty rows of `room` tokens, after those that lead to `common`."""
        shape, device = self._shape, self._shape.device
        parts = [node.states for node in common.path() if node.states is not None] if common is not None else []
        self._skip = common.stop if common is not None else 0
        self._common = [torch.cat(part, 2) for part in zip(*parts, strict=True)]
        self._common_across = self._common[0].transpose(-1, -2).contiguous() if parts else None
        room -= self._skip
        sizes = [slots * room * width for width in (shape.key_width, shape.value_width)]
        if any(store.numel() < size * shape.layers * shape.heads
               for store, size in zip(self._stores, sizes, strict=True)):
            self.close()
            self._stores = [shape.zeros(size) for size in sizes]
        keys, values = (store[:shape.layers * shape.heads * size]
                        for store, size in zip(self._stores, sizes, strict=True))
        last = (shape.key_width, room) if self._across else (room, shape.key_width)
        self._keys = keys.view(shape.layers, slots, shape.heads, *last)
        self._values = values.view(shape.layers, slots, shape.heads, room, shape.value_width)
        self._bias = torch.full((slots, 1, room), float("-inf"), dtype=shape.dtype, device=device)
        self._index = torch.arange(slots, device=device)
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self._sizes = [0] * slots  # on the host, and without the common ones
        self.count = 0

    def close(self) -> None:
        """Give back the memory of a large batch."""
        self._stores = self._staying
        self._keys = self._values = self._stores[0]
        self._common, self._common_across = [], None

    def join(self, node: Node) -> None:
        """A dialogue that has come to the end of `node` takes the next free row."""
        row = self.count
        for part in node.path():
            if part.start >= self._skip:
                assert part.states is not None
                keys, values = part.states
                self._key_view(row, part.start, part.stop).copy_(keys)
                self._values[:, row, :, part.start - self._skip:part.stop - self._skip] = values
        self._set_length(row, node.stop)
        self.count += 1

    def leave(self, row: int) -> None:
        """Free a row; the last one moves into its place."""
        last = self.count - 1
        if row != last:
            stop = self._skip + self._sizes[last]
            self._key_view(row, self._skip, stop).copy_(self._key_view(last, self._skip, stop))
            self._values[:, row, :, :self._sizes[last]] = self._values[:, last, :, :self._sizes[last]]
            self._set_length(row, stop)
        self.count = last

    def states(self, row: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """A copy of a stretch of a dialogue: (layers, heads, tokens, width) keys and values."""
        own = max(start, self._skip)
        keys = self._key_view(row, own, stop)
        values = self._values[:, row, :, own - self._skip:stop - self._skip]
        if start == own:
            return keys.clone(memory_format=torch.contiguous_format), values.clone()
        return (torch.cat([self._common[0][:, :, start:stop], keys], 2),
                torch.cat([self._common[1][:, :, start:stop], values], 2))

    def _key_view(self, row: int, start: int, stop: int) -> Tensor:
        span = slice(start - self._skip, max(start, stop) - self._skip)
        return self._keys[:, row, :, :, span].transpose(-1, -2) if self._across else self._keys[:, row, :, span]

    def _set_length(self, row: int, size: int) -> None:
        own = size - self._skip
        self.lengths[row] = size
        self._sizes[row] = own
        self._bias[row, 0, :own] = 0.0
        self._bias[row, 0, own:] = float("-inf")

    def begin_step(self) -> None:
        """Every row is about to get one token; `end_step` after the pass."""
        used = self._sizes[:self.count]
        self._longest = max(used) + 1
        self._is_even = min(used) + 1 == self._longest
        self._now = self.lengths[:self.count] - self._skip
        self._rows = self._index[:self.count]
        self._bias[self._rows, 0, self._now] = 0.0

    def end_step(self) -> None:
        """The rows are one token longer."""
        self.lengths[:self.count] += 1
        for row in range(self.count):
            self._sizes[row] += 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """As in `Ragged`; one token a row, and what is more than the rows is taken for the first one again."""
        if len(query) > self.count:
            own = self.attend(layer, query[:self.count], key[:self.count], value[:self.count], scale)
            return own.repeat(len(query), 1, 1)
        rows, heads, width = query.shape
        kept = key.shape[1]
        keys, values = self._keys[layer, :rows], self._values[layer, :rows]
        values[self._rows, :, self._now] = value
        values = values[:, :, :self._longest]
        if self._across:
            keys[self._rows, :, :, self._now] = key
            asked = (query * scale).reshape(rows * kept, -1, width)
            return self._attend_across(layer, asked, keys.flatten(0, 1), values.flatten(0, 1)).view(rows, heads, -1)
        keys[self._rows, :, self._now] = key
        mask = None if self._is_even else self._bias[:rows, None, :, :self._longest]
        asked = query.reshape(rows, kept, -1, width)
        found = functional.scaled_dot_product_attention(asked, keys[:, :, :self._longest], values, attn_mask=mask,
                                                        scale=scale)
        return found.reshape(rows, heads, -1)

    def _attend_across(self, layer: int, asked: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of (rows * kept heads, group, width) scaled queries to the row's own tokens and the common ones."""
        rows, kept = self.count, self._shape.heads
        scores = torch.bmm(asked, keys[:, :, :self._longest])
        if not self._is_even:
            scores.view(rows, -1, self._longest).add_(self._bias[:rows, :, :self._longest])
        if self._common_across is None:
            return torch.bmm(scores.softmax(-1), values)
        group = asked.shape[1]
        # the queries of all rows to one common head are one product: its keys are read once, not once a row
        together = asked.view(rows, kept, group, -1).transpose(0, 1).reshape(kept, rows * group, -1)
        common = torch.bmm(together, self._common_across[layer]).view(kept, rows, group, -1).transpose(0, 1)
        weights = torch.cat([common.flatten(0, 1), scores], -1).softmax(-1)
        ahead = weights[:, :, :self._skip].view(rows, kept, group, -1).transpose(0, 1).reshape(kept, rows * group, -1)
        found = torch.bmm(ahead, self._common[1][layer]).view(kept, rows, group, -1).transpose(0, 1)
        own = torch.bmm(weights[:, :, self._skip:], values)
        own.view(found.shape).add_(found)
        return own


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
           scaling: float | None = None, dropout: float = 0.0, ragged: Ragged | None = None,
           **more: Any) -> tuple[Tensor, None]:
    """The attention function given to transformers; `ragged` travels as a keyword of the model's forward.

    Args:
        query: (1, heads, tokens, width); key and value may have fewer heads.
    Returns: (1, tokens, heads, width), and no weights.
    Raises: ModelError: if the model asks for more than that.
    """
    if ragged is None:
        raise ModelError("it keeps what its attention is to be told to itself")
    if attention_mask is not None or any(more.get(name) is not None for name in UNKNOWN):
        raise ModelError("it asks for a mask, sinks or a cap of its own")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return ragged.attend(module.layer_idx, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1),
                         scale)[None], None


register_attention(NAME, attend)
