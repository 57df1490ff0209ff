"""The settings of everything that loads models: which, where local ones lie, how endpoints are asked. No torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from dialoom.config import Config
from dialoom.models.place import DeviceMap, Dtype, Place, Quantize
from dialoom.models.spending import Endpoints, check_address
from dialoom.tracking import Tracker


class Placed(Config):
    """Settings of everything that loads models: where local ones lie, how endpoints are asked."""

    not_identity: ClassVar[frozenset[str]] = frozenset({"device", "device_map", "endpoint", "replicas", "report_to"})

    model: str = "pocket"
    """The model: pocket, hf:<name or path>[+<adapter>], run:<folder>, openai:<model>."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:<number>, mps or auto."""
    dtype: Dtype = "auto"
    """Type of local models' weights; auto: bfloat16 on CUDA, float32 elsewhere (bfloat16 is slow on most CPUs)."""
    device_map: DeviceMap = "none"
    """Spread the layers of each local model over all GPUs, as accelerate does it; none: one device."""
    quantize: Quantize = "none"
    """Hold local models' weights in 4 or 8 bits (bitsandbytes); then only adapters can be trained."""
    replicas: int = Field(1, ge=1)
    """Copies of each local model that dialogues are spread over, each in a Ray actor (pip install 'dialoom[ray]')."""
    endpoint: Endpoints = Endpoints()
    """How models behind a server are asked, and what they may cost."""
    report_to: Tracker = "none"
    """Who else gets training curves and results: tensorboard (into the run's folder), wandb or trackio."""

    @property
    def place(self) -> Place:
        """Where and how local models are loaded."""
        return Place(self.device, self.dtype, self.device_map, self.quantize, self.replicas)

    @model_validator(mode="after")
    def _addresses_hold_no_key(self) -> Placed:
        for value in (one for _, part in self for one in (part if isinstance(part, tuple) else (part,))):
            model, at, address = str(value).partition("@http")
            if at and model.startswith("openai:"):
                check_address(f"http{address}")
        return self

    @model_validator(mode="after")
    def _can_be_trained(self) -> Placed:
        place = self.place  # which refuses what cannot be meant together
        full = [name for name, part in self if getattr(part, "tune", "") == "full"]
        if place.quantize != "none" and full:
            raise ValueError(f"quantize is {place.quantize}, of which only an adapter can be trained; give "
                             + " and ".join(f"--{name.replace('_', '-')}.tune lora" for name in full))
        return self
