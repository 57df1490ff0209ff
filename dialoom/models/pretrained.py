"""A model's files as others wrote them: where its weights are to lie, what is read, and what goes wrong in one line.

Weights and adapters are read from safetensors only, and no code is ever taken from a folder. The surprising choice: any
error at all on reading becomes one line, for transformers and tokenizers raise whatever a damaged file leads them to.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dialoom.errors import DialoomError, ModelError, StoreError
from dialoom.models.place import Place

ADAPTER_SETTINGS, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
# What a file of another shape, or one that is torn, leads its readers to.
DAMAGED = (KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError, json.JSONDecodeError)


def read_tokenizer(words: str, *, local_files_only: bool) -> Any:
    """The tokenizer of a folder or of a name on the hub. Raises whatever transformers does: see `one_line`."""
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(words, local_files_only=local_files_only, trust_remote_code=False)


def read_model(path: str, adapter: str | None, place: Place) -> tuple[Any, Any]:
    """A causal LM, with an adapter on it if one is named, and its tokenizer.

    Raises: whatever transformers does, see `one_line`; ModelError: if weights or adapter are not in safetensors.
    """
    from transformers import AutoModelForCausalLM
    here = all(Path(part).is_dir() for part in (path, adapter or path)) or not hub_is_there()
    tokenizer = read_tokenizer(path, local_files_only=here)
    if _file(path, ADAPTER_SETTINGS, here, needed=False):
        _safe_adapter(path, here)  # which transformers reads along with the model
    module = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, local_files_only=here,
                                                  trust_remote_code=False, **_how(place))
    if adapter is not None:
        from peft import PeftModel
        module = PeftModel.from_pretrained(module, _safe_adapter(adapter, here), is_trainable=True,
                                           use_safetensors=True, local_files_only=True)
    return module.eval(), tokenizer


def _file(name: str, file: str, here: bool, *, needed: bool) -> str | None:
    """Where a file of a folder or of a name on the hub lies, fetched if need be; None if there is no such file.

    Raises: OSError: if it is `needed` and the hub cannot be asked.
    """
    from transformers.utils import cached_file
    try:
        found: str | None = cached_file(name, file, local_files_only=here, _raise_exceptions_for_missing_entries=needed,
                                        _raise_exceptions_for_connection_errors=needed)
    except OSError as wrong:
        if "does not appear to have" not in str(wrong):
            raise
        return None
    return found


def _safe_adapter(name: str, here: bool) -> str:
    """The folder of an adapter, fetched if need be.

    Raises: ModelError: if its weights are not in safetensors: PEFT would unpickle `adapter_model.bin` in their place,
        whatever it is told.
    """
    weights = _file(name, ADAPTER, here, needed=True)
    settings = _file(name, ADAPTER_SETTINGS, here, needed=True)
    if weights is None or settings is None:
        missing = ADAPTER if weights is None else ADAPTER_SETTINGS
        raise ModelError(f"the adapter {name} has no file named {missing}; adapters are read from safetensors only, "
                         "never from a .bin, which is a pickle: have it saved again as safetensors")
    if Path(weights).parent != Path(settings).parent:  # two states of a name on the hub
        raise ModelError(f"the adapter {name} changed while it was fetched; run the same command again")
    return str(Path(weights).parent)


def _how(place: Place) -> dict[str, Any]:
    """What transformers is told about where and how to load."""
    import torch
    device = torch.device(_device(place.device))
    dtype = place.dtype if place.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    how: dict[str, Any] = {"dtype": getattr(torch, dtype), "device_map": {"": device}}
    if place.device_map != "none":
        how["device_map"] = place.device_map
    if place.quantize != "none":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError(f"--quantize {place.quantize} needs bitsandbytes, which is not installed; "
                             "pip install 'dialoom[quantize]', or leave --quantize out")
        from transformers import BitsAndBytesConfig
        how["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True) if place.quantize == "8bit" else \
            BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                               bnb_4bit_compute_dtype=how["dtype"])
    return how


def _device(wanted: str) -> str:
    import torch
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch sees no GPU; use --device cpu, or a CUDA build of torch")
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def hub_is_there() -> bool:
    """Whether the hub's name resolves; without this, a machine off the net waits a minute for retries."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy resolves names, not this machine
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ what is told


@contextmanager
def quiet() -> Iterator[None]:
    """No bar for reading weights, and no word of what PEFT still calls by its old name; settings come back."""
    from transformers.utils import logging as told
    was_on = told.is_progress_bar_enabled()
    told.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if was_on:
            told.enable_progress_bar()


@contextmanager
def one_line(name: str, folder: str = "") -> Iterator[None]:
    """Turn what transformers, tokenizers and the hub raise on reading into one line that says what to do.

    Args:
        folder: where the model lies, if its name does not say so.
    """
    from safetensors import SafetensorError
    told = f"cannot load {name!r}" + (f" ({folder})" if folder else "")
    try:
        yield
    except DialoomError as error:
        raise ModelError(f"{told}: {str(error).removeprefix(f'{name}: ')}") from error
    except SafetensorError as error:
        raise ModelError(f"{told}: its weights are torn or not safetensors ({error}); fetch or build "
                         "them again") from error
    except Exception as error:
        text = " ".join(str(error).split())
        if "couldn't connect" in text or "couldn't find them in the cached files" in text:
            text = ("it is no folder here and not in the hub's cache, and the hub cannot be reached; give a folder, or "
                    "fetch it where there is a network")
        elif type(error) is Exception or isinstance(error, DAMAGED):  # the former is what tokenizers raise
            text = (f"a file of its tokenizer or settings is damaged ({type(error).__name__}: {text[:200]}); fetch or "
                    "build it again")
        raise ModelError(f"{told}: {text[:300]}") from error


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into one line; safetensors and tokenizers have errors of their own."""
    from safetensors import SafetensorError
    try:
        yield
    except Exception as wrong:
        if not isinstance(wrong, OSError | SafetensorError) and "os error" not in str(wrong):
            raise
        raise StoreError(f"{path}: the model cannot be written ({getattr(wrong, 'strerror', None) or wrong}); make "
                         "room and run the same command again") from None
