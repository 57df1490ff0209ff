"""Attention over a packed row, in which every token sees its ancestors and itself; and which models may be packed.

A row is cut into segments (runs without a branch) in depth-first order, so all that descends from a segment follows it
without a gap. One causal call per segment lets the segment and its descendants read the segment's keys; the parts are
merged by their log-sum-exp. The surprise: with causality aligned to the top left, one such call covers both the
triangle within the segment and the full rectangle below it. No mask, no padding, no gathered keys, exactly the work
the tree needs. On devices without that kernel a dense ancestor mask does the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from dialoom.errors import ModelError

NAME = "dialoom_tree"
"""Under which transformers finds this attention."""

ROPE_BY_LENGTH = {"dynamic", "longrope"}  # their angles depend on the longest position in the row

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

    def mask(self, device: torch.device) -> Tensor:
        """(size, size) booleans: row i sees row j; kept for the other layers."""
        if device not in self._masks:
            seen = torch.zeros(self.size, self.size, dtype=torch.bool)
            for start, stop, end, _ in self.segments:
                seen[start:end, start:stop] = True
            self._masks[device] = seen.tril_().to(device)
        return self._masks[device]


class _SegmentAttention(torch.autograd.Function):  # type: ignore[misc]
    """Attention of (1, heads, size, width) queries, keys and values, segment by segment."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Tree, scale: float | None) -> Tensor:
        _, heads, size, width = query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        out = torch.empty(1, size, heads, width, dtype=wide).transpose(1, 2)
        mass = torch.empty(1, size, heads, dtype=wide).transpose(1, 2)  # log-sum-exp of the scores so far
        for start, stop, end, is_root in tree.segments:
            part, weight = _forward(query[:, :, start:end], key[:, :, start:stop], value[:, :, start:stop], 0.0, True,
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
        to_query = torch.zeros_like(query, dtype=torch.promote_types(query.dtype, torch.float32))
        to_key, to_value = torch.empty_like(key), torch.empty_like(value)
        for start, stop, end, _ in ctx.tree.segments:
            # given the merged output and mass, the kernel's own backward is the exact share of these keys
            below, own = slice(start, end), slice(start, stop)
            grads = _backward(grad[:, :, below], query[:, :, below], key[:, :, own], value[:, :, own],
                              out[:, :, below], mass[:, :, below], 0.0, True, scale=ctx.scale)
            to_query[:, :, below] += grads[0]
            to_key[:, :, own], to_value[:, :, own] = grads[1], grads[2]
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
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if query.device.type == "cpu" and _forward is not None and query.shape[-1] == value.shape[-1]:
        out = _SegmentAttention.apply(query, key.to(query.dtype), value.to(query.dtype), tree, scaling)
    else:
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=tree.mask(query.device),
                                                      scale=scaling)
    return out.transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def tree_attention(module: Any) -> Iterator[None]:
    """Switch the model's attention to `attend` for a while; holds for a backward pass that recomputes, too."""
    config = module.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def why_not_packable(module: Any, longest: float = math.inf) -> str | None:
    """Why this model cannot be packed exactly, by name; None if it can.

    Args:
        longest: tokens in the longest path; a window at least that wide hides nothing.
    """
    config = module.config.get_text_config()
    base = module.get_base_model() if hasattr(module, "peft_config") else module
    kinds = set(getattr(config, "layer_types", None) or [])
    windows = {"sliding_attention": getattr(config, "sliding_window", None),
               "chunked_attention": getattr(config, "attention_chunk_size", None)}
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    foreign = kinds - {"full_attention", "attention", *windows}
    found = None
    if getattr(base, "_is_stateful", False) or foreign:
        found = f"recurrent or other layers without full attention ({', '.join(sorted(foreign)) or 'stateful'})"
    elif not getattr(base, "_supports_attention_backend", False):
        found = "an attention that transformers cannot replace"
    elif any(name.endswith("sinks") for name, _ in base.named_parameters()):
        found = "attention sinks"
    elif getattr(config, "attn_logit_softcapping", None) is not None:
        found = "capped attention scores"
    elif ropes & ROPE_BY_LENGTH:
        found = f"rotary positions that depend on the row's length ({', '.join(sorted(ropes & ROPE_BY_LENGTH))})"
    elif getattr(config, "attention_dropout", 0.0):
        found = f"attention dropout of {config.attention_dropout}"
    else:
        for kind, window in windows.items():
            if window is not None and window < longest and (kind in kinds or not kinds):
                found = f"{kind.replace('_', ' ')} over a window of {window} tokens"
    return found and f"{config.model_type} has {found}"
