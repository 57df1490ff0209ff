"""Gradient checkpointing: a layer keeps what enters it, and computes the rest again on the way back.

Done here and not by the switch in transformers, which is off in eval mode, where DITTO's loop trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dialoom.errors import TrainingError


@contextmanager
def recomputed(module: Any, wanted: bool = True) -> Iterator[None]:
    """Within, passes with gradients keep only the layers' inputs; gradients are the same, dropout included.

    Args:
        module: a transformers causal LM or a PeftModel around one.
        wanted: False changes nothing.
    Raises: TrainingError: if the model's layers are not marked for it.
    """
    layers = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)] if wanted else []
    if wanted and not layers:
        raise TrainingError(f"{module.config.model_type} has no layers that can be computed again; "
                            "leave gradient_checkpointing off")
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_again, layer.forward)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            del layer.forward
            if own is not None:  # hooks of accelerate lie on the layer itself
                layer.forward = own


def _again(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(forward, *given, use_reentrant=False, **named)
