"""Attention over a packed row, in which every token sees its ancestors and itself.

A row is cut into segments (runs without a branch) in depth-first order, so all that descends from a segment follows it
without a gap. One causal call per segment lets the segment and its descendants read the segment's keys; the parts are
merged by their log-sum-exp. The surprise: with causality aligned to the top left, one such call covers both the
triangle within the segment and the full rectangle below it. No mask, no padding, no gathered keys, exactly the work
the tree needs. Without that kernel a dense ancestor mask does the same, and on a GPU, in long rows, FlexAttention.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dialoom.errors import ModelError
from dialoom.models.exact import register_attention

NAME = "dialoom_tree"
"""Under which transformers finds this attention."""

FLEX_FROM = 2048  # tokens in a row; below, a dense mask was quicker in figures others published for an H200
FLEX_WIDTHS = {16, 32, 64, 128, 256}

_forward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


class Segment(NamedTuple):
    """Rows `start:stop` hold its tokens, rows `start:end` those and all that descends from them."""

    start: int
    stop: int
    end: int
    is_root: bool


class Tree:
    """Who sees whom in a packed row of `size` tokens."""

    def __init__(self, segments: tuple[Segment, ...], size: int) -> None:
        self.segments = segments
        self.size = size
        self._masks: dict[torch.device, Tensor] = {}
        self._block_masks: dict[torch.device, BlockMask] = {}

    def mask(self, device: torch.device) -> Tensor:
        """(size, size) booleans: row i sees row j; kept for the other layers."""
        if device not in self._masks:
            seen = torch.zeros(self.size, self.size, dtype=torch.bool)
            for start, stop, end, _ in self.segments:
                seen[start:end, start:stop] = True
            self._masks[device] = seen.tril_().to(device)
        return self._masks[device]

    def ends(self, device: torch.device) -> Tensor:
        """(size,) for each row the end of what descends from it: row i sees row j where j <= i < ends[j]."""
        lengths = torch.tensor([stop - start for start, stop, *_ in self.segments])
        return torch.tensor([end for *_, end, _ in self.segments]).repeat_interleave(lengths).to(device)

    def block_mask(self, device: torch.device) -> BlockMask:
        """The same for FlexAttention; kept for the other layers."""
        if device not in self._block_masks:
            ends = self.ends(device)

            def sees(_: Tensor, __: Tensor, row: Tensor, other: Tensor) -> Tensor:
                return (other <= row) & (row < ends[other])
            self._block_masks[device] = create_block_mask(sees, None, None, self.size, self.size, device=str(device))
        return self._block_masks[device]


class _SegmentAttention(torch.autograd.Function):  # type: ignore[misc]
    """Attention of (groups, heads, size, width) queries over (1, heads, size, width) keys and values."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Tree, scale: float | None) -> Tensor:
        groups, heads, size, width = query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        out = torch.empty(size, heads, groups, width, dtype=wide).permute(2, 1, 0, 3)
        mass = torch.empty(size, heads, groups, dtype=wide).permute(2, 1, 0)  # log-sum-exp of the scores so far
        keys, values = key.expand(groups, -1, -1, -1), value.expand(groups, -1, -1, -1)
        for start, stop, end, is_root in tree.segments:
            part, weight = _forward(query[:, :, start:end], keys[:, :, start:stop], values[:, :, start:stop], 0.0, True,
                                    scale=scale)
            below_out, below_mass = out[:, :, start:end], mass[:, :, start:end]
            if is_root:
                below_out.copy_(part)
                below_mass.copy_(weight)
            else:
                below_out.lerp_(part.to(wide), torch.sigmoid(weight - below_mass).unsqueeze(-1))
                below_mass.copy_(torch.logaddexp(below_mass, weight))
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, mass)
        ctx.tree, ctx.scale = tree, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, mass = ctx.saved_tensors
        groups = len(query)
        keys, values = key.expand(groups, -1, -1, -1), value.expand(groups, -1, -1, -1)
        to_query = torch.zeros_like(query, dtype=torch.promote_types(query.dtype, torch.float32))
        to_key, to_value = torch.empty_like(key), torch.empty_like(value)
        for start, stop, end, _ in ctx.tree.segments:
            # given the merged output and mass, the kernel's own backward is the exact share of these keys
            below, own = slice(start, end), slice(start, stop)
            grads = _backward(grad[:, :, below], query[:, :, below], keys[:, :, own], values[:, :, own],
                              out[:, :, below], mass[:, :, below], 0.0, True, scale=ctx.scale)
            to_query[:, :, below] += grads[0]
            to_key[:, :, own], to_value[:, :, own] = grads[1].sum(0, keepdim=True), grads[2].sum(0, keepdim=True)
        return to_query.to(query.dtype), to_key, to_value, None, None


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
           scaling: float | None = None, dropout: float = 0.0, tree: Tree | None = None,
           **_: Any) -> tuple[Tensor, None]:
    """The attention function given to transformers; `tree` travels as a keyword of the model's forward.

    Args:
        query: (1, heads, size, width); key and value may have fewer heads.
    Returns: (1, size, heads, width), and no weights.
    """
    if tree is None:
        raise ModelError(f"{type(module).__name__} did not pass the tree on to its attention; train it unpacked")
    _, heads, size, width = query.shape
    groups = heads // key.shape[1]
    if query.device.type == "cpu" and _forward is not None and width == value.shape[-1]:
        # the queries that read one key head are the batch, so its keys are not copied for each of them
        grouped = query.view(-1, groups, size, width).transpose(0, 1)
        out = _SegmentAttention.apply(grouped, key.to(query.dtype), value.to(query.dtype), tree, scaling)
        return out.permute(2, 1, 0, 3).reshape(1, size, heads, width), None
    if query.device.type == "cuda" and size >= FLEX_FROM and width in FLEX_WIDTHS and width == value.shape[-1]:
        return flex(query, key, value, tree, scaling).transpose(1, 2), None
    if groups > 1:  # the masked kernels want as many key heads as query heads
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=tree.mask(query.device), scale=scaling)
    return out.transpose(1, 2), None


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


def flex(query: Tensor, key: Tensor, value: Tensor, tree: Tree, scaling: float | None) -> Tensor:
    """Attention over the tree by FlexAttention, which skips blocks that nobody in them sees; compiled once, for GPUs.

    On a CPU it runs uncompiled and without gradients, which is how it is held against the other ways; on a GPU it has
    not been run by us.
    """
    run = _compiled() if query.device.type == "cuda" else flex_attention
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast knows nothing of this attention
    out: Tensor = run(query, key, value, block_mask=tree.block_mask(query.device), scale=scaling,
                      enable_gqa=query.shape[1] != key.shape[1])
    return out


register_attention(NAME, attend)
