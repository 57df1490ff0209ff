"""Replacing a model's attention by one of ours: how, for which models, and whether it still computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

ROPE_BY_LENGTH = {"dynamic", "longrope"}  # their angles depend on the longest position in the row


def why_not_replaceable(module: Any, longest: float = math.inf, *, training: bool = False) -> str | None:
    """Why plain attention in another order would not be exact for this model, by name; None if it is.

    Args:
        module: a transformers causal LM or a PeftModel around one.
        longest: tokens in the longest sequence; a window at least that wide hides nothing.
        training: whether the model's dropout is on.
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
    adapters = getattr(module, "peft_config", {}).values()
    if any(adapter.is_prompt_learning for adapter in adapters):
        found = "an adapter that puts virtual tokens before every prompt"
    elif getattr(base, "_is_stateful", False) or foreign:
        found = f"recurrent or other layers without full attention ({', '.join(sorted(foreign)) or 'stateful'})"
    elif not getattr(base, "_supports_attention_backend", False):
        found = "an attention that transformers cannot replace"
    elif len({str(place) for place in getattr(base, "hf_device_map", {}).values()}) > 1:
        found = "its layers on several devices"
    elif any(name.endswith("sinks") for name, _ in base.named_parameters()):
        found = "attention sinks"
    elif getattr(config, "attn_logit_softcapping", None) is not None:
        found = "capped attention scores"
    elif ropes & ROPE_BY_LENGTH:
        found = f"rotary positions that depend on the row's length ({', '.join(sorted(ropes & ROPE_BY_LENGTH))})"
    elif training and bool(getattr(config, "attention_dropout", 0.0)):
        found = f"attention dropout of {config.attention_dropout}"
    else:
        for kind, window in windows.items():
            if window is not None and window < longest and (kind in kinds or not kinds):
                found = f"{kind.replace('_', ' ')} over a window of {window} tokens"
    return found and f"{config.model_type} has {found}"


def register_attention(name: str, attend: Callable[..., Any]) -> None:
    """Let transformers find an attention function by this name; it makes no mask for it."""
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


@contextmanager
def attention(module: Any, name: str) -> Iterator[None]:
    """Switch the model to a registered attention for a while; holds for a backward pass that recomputes, too."""
    config = module.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def is_same(off: float, dtype: torch.dtype) -> bool:
    """Whether two passes of a probe that are `off` by so many nats a token compute the same, to rounding (not NaN)."""
    # bfloat16 keeps 8 bits; a mask that is wrong is off by far more
    return off <= (1e-3 if dtype in (torch.float32, torch.float64) else 0.2)
