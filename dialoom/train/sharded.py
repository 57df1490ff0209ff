"""Fully sharded training (FSDP2): each process holds a part of every layer, and of its gradients and moments.

What is sharded is a copy. The model itself waits on the CPU with whole weights and takes them over when it is validated
and at the end, so whatever speaks for it (its engine, its adapter, saving) never meets a shard. Layers are sharded;
embeddings, head and norms are small beside them and stay whole, which leaves tied ones alone.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dialoom.errors import ConfigError


def is_asked_for(processes: int) -> bool:
    """Whether `accelerate launch --use_fsdp` started us, with more than one process."""
    return processes > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


class Sharded:
    """A sharded copy of a module.

    Attributes:
        module: what is trained.
        parameters: its trainable parameters under the names of the original; some are DTensors.
    """

    def __init__(self, original: Any, device: torch.device) -> None:
        """Raises ConfigError if it is quantised, or no repeated layers are known of it."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if getattr(original, "is_quantized", False):
            raise ConfigError("a quantised model cannot be sharded; train it with --tune lora on one process for each "
                              "GPU, without --use_fsdp")
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise ConfigError(f"--use_fsdp needs a newer torch than {torch.__version__}; 2.13 is tested")
        names = _layer_names(original)
        self.original, self.device = original.to("cpu"), device
        self.module = copy.deepcopy(original)
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        layers = [part for part in self.module.modules() if type(part).__name__ in names]
        for layer in layers:
            fully_shard(layer, mesh=mesh)
            layer.set_gradient_divide_factor(1.0)  # a batch's gradient is a sum here, over rows and over processes
            layer.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        self.module.to(device)
        self.parameters = {name: parameter for name, parameter in self.module.named_parameters()
                           if parameter.requires_grad}

    def give_back(self) -> None:
        """Copy the trained weights into the original. All processes must call it."""
        theirs = dict(self.original.named_parameters())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                theirs[name].copy_(whole(parameter.detach()))

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """The original with the trained weights, on the device, for as long as the context lasts."""
        self.give_back()
        self.original.to(self.device)
        try:
            yield
        finally:
            self.original.to("cpu")


def _layer_names(module: Any) -> set[str]:
    """Class names of the repeated layers, as transformers knows them."""
    names = set(getattr(module, "_no_split_modules", None) or ())
    base = module.get_base_model() if hasattr(module, "get_base_model") else module
    names |= set(getattr(base, "_no_split_modules", None) or ())
    if not any(type(part).__name__ in names for part in module.modules()):
        raise ConfigError(f"{type(base).__name__} does not say which of its parts are its layers (_no_split_modules), "
                          "so it cannot be sharded; train it without --use_fsdp")
    return names


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is one process's part of a larger one."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor that a shard is a part of (all processes must ask); any other as it is."""
    found: Tensor = tensor.full_tensor() if is_shard(tensor) else tensor
    return found


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor on the device of `model`, cut as `model` is."""
    moved = tensor.to(model.device)
    if not is_shard(model):
        return moved
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(moved, model.device_mesh, model.placements)


def by_kind(parameters: Iterable[Tensor], decay: float) -> list[dict[str, Any]]:
    """The optimiser's groups: decay on matrices only, and shards apart, since one step takes only one kind."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dim() > 1, is_shard(parameter)), []).append(parameter)
    return [{"params": found, "weight_decay": decay if matrices else 0.0} for (matrices, _), found in groups.items()]


def clip(parameters: Mapping[str, Tensor], most: float) -> float:
    """Scale the gradients down to the norm `most`; returns the norm they had over all processes."""
    grads = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    parts: list[tuple[Tensor, bool]] = [(grad.to_local() if is_shard(grad) else grad, is_shard(grad)) for grad in grads]
    shared = torch.zeros((), dtype=torch.float64, device=parts[0][0].device)
    for part, is_part in parts:
        shared += part.double().square().sum() if is_part else 0.0
    torch.distributed.all_reduce(shared)
    alone = sum(float(part.double().square().sum()) for part, is_part in parts if not is_part)
    norm = math.sqrt(float(shared) + alone)
    if math.isfinite(norm) and norm > most:
        for part, _ in parts:
            part.mul_(most / (norm + 1e-6))
    return norm
