"""Where and how a local model lies in memory: the settings all recipes and commands share. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dialoom.config import Config
from dialoom.models.spending import Endpoints

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["none", "auto", "balanced", "balanced_low_0", "sequential"]
Quantize = Literal["none", "4bit", "8bit"]


@dataclass(frozen=True)
class Place:
    """How the weights of a local model are loaded; the names and values are those of `Placed`."""

    device: str = "auto"
    dtype: Dtype = "auto"
    device_map: DeviceMap = "none"
    quantize: Quantize = "none"
    replicas: int = 1

    @property
    def single(self) -> Place:
        """The same place for one copy: models that are trained, or steered, are not spread over replicas."""
        return replace(self, replicas=1)

    @classmethod
    def of(cls, device: str | Place) -> Place:
        """A place from a device's name; a place stays itself."""
        return device if isinstance(device, Place) else cls(device)


class Placed(Config):
    """Settings of everything that loads models: where local ones lie, how endpoints are asked."""

    not_identity: ClassVar[frozenset[str]] = frozenset({"device", "device_map", "endpoint", "replicas"})

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

    @property
    def place(self) -> Place:
        """Where and how local models are loaded."""
        return Place(self.device, self.dtype, self.device_map, self.quantize, self.replicas)

    @model_validator(mode="after")
    def _can_be_trained(self) -> Placed:
        if self.replicas > 1 and self.device_map != "none":
            raise ValueError(f"replicas is {self.replicas} and device_map is {self.device_map}; a replica has one GPU, "
                             "so give one of the two")
        full = [name for name, part in self if getattr(part, "tune", "") == "full"]
        if self.quantize != "none" and full:
            raise ValueError(f"quantize is {self.quantize}, of which only an adapter can be trained; give "
                             + " and ".join(f"--{name.replace('_', '-')}.tune lora" for name in full))
        return self
