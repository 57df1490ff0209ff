"""Where and how a local model lies in memory, as recipes and commands are told. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from dialoom.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["none", "auto", "balanced", "balanced_low_0", "sequential"]
Quantize = Literal["none", "4bit", "8bit"]
DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True)
class Place:
    """How the weights of local models are loaded; endpoints take no notice of it.

    Attributes:
        device: Where to compute: cpu, cuda, cuda:<number>, mps or auto.
        dtype: Type of the weights; auto: bfloat16 on CUDA, float32 elsewhere (bfloat16 is slow on most CPUs).
        device_map: Spread each model's layers over all GPUs, as accelerate does it; none: one device.
        quantize: Hold weights in 4 or 8 bits (bitsandbytes); then only adapters can be trained.
        replicas: Copies of each model that dialogues are spread over, each in a Ray actor.
    Raises: ConfigError: where two of them cannot be meant together.
    """

    device: str = "auto"
    dtype: Dtype = "auto"
    device_map: DeviceMap = "none"
    quantize: Quantize = "none"
    replicas: int = 1

    def __post_init__(self) -> None:
        if not DEVICES.fullmatch(self.device):
            raise ConfigError(f"--device {self.device!r}: expected auto, cpu, cuda, cuda:<number> or mps")
        if self.replicas < 1:
            raise ConfigError(f"replicas is {self.replicas}; expected at least 1")
        if self.replicas > 1 and self.device_map != "none":
            raise ConfigError(f"replicas is {self.replicas} and device_map is {self.device_map}; a replica has one "
                              "GPU, so give one of the two")

    @property
    def single(self) -> Place:
        """The same place for one copy: models that are trained, or steered, are not spread over replicas."""
        return replace(self, replicas=1)

    @classmethod
    def of(cls, device: str | Place) -> Place:
        """A place from a device's name; a place stays itself."""
        return device if isinstance(device, Place) else cls(device)


@dataclass(frozen=True)
class Origin:
    """What a local model was read from, and how: enough for another process to read it as well."""

    path: str
    adapter: str | None
    place: Place
