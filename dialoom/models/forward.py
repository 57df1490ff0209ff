"""One pass of a causal LM over a row of tokens whose attention is `ragged`: through transformers, or fused.

`Hosted` calls the transformers model as it is. `Fused` is for small models of the Llama family on a CPU, where what
costs is not arithmetic but the number of operations: projections of one input are one product, an adapter is merged
into a copy of the weights, weights lie as the product wants them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dialoom.models.exact import attention
from dialoom.models.ragged import NAME, Ragged, Reading

FUSED_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
LOOKED_AT = 1024  # values of a tensor
FUSED_BELOW = 500_000_000  # parameters; above, a second copy costs more than it gains


class Forward(Protocol):
    """A pass over tokens that belong to many dialogues."""

    def embed(self, ids: Tensor) -> Tensor:
        """(tokens, width) input embeddings."""
        ...

    def hidden(self, inputs: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        """(tokens, width) states after the last norm, of (tokens,) ids or (tokens, width) embeddings."""
        ...

    def read(self, inputs: Tensor, positions: Tensor, reading: Reading) -> None:
        """Only fill in the keys and values of `reading`."""
        ...

    def logits(self, inputs: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        """(tokens, vocabulary)."""
        ...


class Hosted:
    """The model of transformers, adapter and all."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._trunk = base_model(module).get_decoder()

    def embed(self, ids: Tensor) -> Tensor:
        found: Tensor = self._module.get_input_embeddings()(ids)
        return found

    def hidden(self, inputs: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        with attention(self._module, NAME):
            found: Tensor = self._trunk(**_named(inputs), position_ids=positions[None], use_cache=False,
                                        ragged=ragged).last_hidden_state[0]
        return found

    def read(self, inputs: Tensor, positions: Tensor, reading: Reading) -> None:
        self.hidden(inputs, positions, reading)

    def logits(self, inputs: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        with attention(self._module, NAME):
            found: Tensor = self._module(**_named(inputs), position_ids=positions[None], use_cache=False,
                                         ragged=ragged).logits[0]
        return found


class InPairs:
    """Another pass, in which a token alone is taken twice, so that a dialogue says the same alone as among others.

    A product with one row adds up in another order than one with more.
    """

    def __init__(self, inner: Forward) -> None:
        self._inner = inner
        self.embed = inner.embed

    def hidden(self, inputs: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        return self._inner.hidden(_twice(inputs), _twice(positions), ragged)[:len(inputs)]

    def read(self, inputs: Tensor, positions: Tensor, reading: Reading) -> None:
        self._inner.read(_twice(inputs), _twice(positions), reading)

    def logits(self, inputs: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        return self._inner.logits(_twice(inputs), _twice(positions), ragged)[:len(inputs)]


def _twice(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows]) if len(rows) == 1 else rows


def _named(inputs: Tensor) -> dict[str, Tensor]:
    return {"inputs_embeds" if inputs.is_floating_point() else "input_ids": inputs[None]}


def base_model(module: Any) -> Any:
    """The causal LM under an adapter."""
    return module.get_base_model() if hasattr(module, "peft_config") else module


class _Layer:
    """One layer's weights, (in, out) each."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.before, self.after = layer.input_layernorm, layer.post_attention_layernorm
        self.read = _across(*projections)
        self.read_bias = _biases(*projections)
        self.norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self.write = _across(attention.o_proj)
        self.write_bias = _biases(attention.o_proj)
        self.up = _across(mlp.gate_proj, mlp.up_proj)
        self.down = _across(mlp.down_proj)
        self.scale: float = attention.scaling
        self.width: int = attention.head_dim


class Fused:
    """A pre-norm decoder with rotary positions and a gated SiLU, on copies of the weights."""

    def __init__(self, module: Any) -> None:
        model = base_model(module)
        trunk = model.get_decoder()
        self._embedding: Tensor = trunk.embed_tokens.weight
        self._rotary = trunk.rotary_emb
        self._layers = [_Layer(layer) for layer in trunk.layers]
        self._norm = trunk.norm
        self._heads: int = model.config.num_attention_heads
        self._kept: int = model.config.num_key_value_heads
        self._head = _across(model.lm_head)

    def embed(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self._embedding)

    def hidden(self, inputs: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        return _normed(self._through(inputs, positions, ragged), self._norm)

    def read(self, inputs: Tensor, positions: Tensor, reading: Reading) -> None:
        self._through(inputs, positions, reading, reading)

    def logits(self, inputs: Tensor, positions: Tensor, ragged: Ragged) -> Tensor:
        return torch.mm(self.hidden(inputs, positions, ragged), self._head)

    def _through(self, inputs: Tensor, positions: Tensor, ragged: Ragged, reading: Reading | None = None) -> Tensor:
        """The states after the last layer; where only keys and values are wanted, it stops at the last layer's."""
        x = inputs if inputs.is_floating_point() else self.embed(inputs)
        cos, sin = (part[0, :, None] for part in self._rotary(x, positions[None]))
        for at, layer in enumerate(self._layers):
            query, key, value = self._projected(layer, x, cos, sin)
            if reading is not None and at + 1 == len(self._layers):
                reading.keep(at, key, value)
                break
            said = ragged.attend(at, query, key, value, layer.scale).view(len(x), -1)
            x = torch.addmm(x, said, layer.write)
            if layer.write_bias is not None:
                x += layer.write_bias
            gate, up = torch.mm(_normed(x, layer.after), layer.up).chunk(2, -1)
            x = torch.addmm(x, functional.silu(gate).mul_(up), layer.down)
        return x

    def _projected(self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, heads, width) rotated queries and keys, and values."""
        read = torch.mm(_normed(x, layer.before), layer.read)
        if layer.read_bias is not None:
            read += layer.read_bias
        split = read.view(len(x), -1, layer.width)
        both = self._heads + self._kept
        turned, value = split[:, :both], split[:, both:]
        if layer.norms is not None:
            turned = torch.cat([_normed(turned[:, :self._heads], layer.norms[0]),
                                _normed(turned[:, self._heads:], layer.norms[1])], 1)
        left, right = turned.chunk(2, -1)
        turned = torch.addcmul(turned * cos, torch.cat([-right, left], -1), sin)
        return turned[:, :self._heads], turned[:, self._heads:], value


def _normed(x: Tensor, norm: Any) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _across(*linears: Any) -> Tensor:
    """(in, out) weights of linear layers that read one input, side by side, their adapters merged in."""
    return torch.cat([_weight(linear) for linear in linears]).t().contiguous()


def _weight(linear: Any) -> Tensor:
    weight: Tensor = getattr(linear, "base_layer", linear).weight
    if hasattr(linear, "base_layer") and not linear.disable_adapters:
        for adapter in linear.active_adapters:
            if adapter in linear.lora_A:
                weight = weight + linear.get_delta_weight(adapter)
    return weight


def _biases(*linears: Any) -> Tensor | None:
    found = [getattr(linear, "base_layer", linear).bias for linear in linears]
    return None if found[0] is None else torch.cat(found)


def can_fuse(module: Any) -> bool:
    """Whether `Fused` knows this architecture and a copy of its weights is worth its memory."""
    from torch.nn import Embedding, Linear
    model = base_model(module)
    if model.config.model_type not in FUSED_TYPES or model.config.hidden_act != "silu":
        return False
    parameters = list(model.parameters())
    if sum(parameter.numel() for parameter in parameters) > FUSED_BELOW:
        return False
    if any(parameter.device.type != "cpu" or parameter.dtype not in (torch.float32, torch.float64)
           for parameter in parameters):
        return False
    if type(model.get_decoder().embed_tokens) is not Embedding:
        return False
    if not all(_is_plain_lora(part) for part in model.modules()
               if hasattr(part, "base_layer") or hasattr(part, "original_module")):
        return False
    linears = {name: getattr(part, "base_layer", part) for name, part in model.named_modules()
               if name.endswith(("_proj", "lm_head"))}
    return all(type(part) is Linear and (part.bias is None or "self_attn" in name) for name, part in linears.items())


def _is_plain_lora(part: Any) -> bool:
    from peft.tuners.lora import Linear
    return type(part) is Linear and not part.merged and not any(part.use_dora.values()) and not any(
        part.lora_bias.values()) and not part.lora_variant


def weights_state(module: Any) -> tuple[object, ...]:
    """Changes whenever a weight was written or an adapter switched."""
    adapters = [(part.disable_adapters, part.merged, *part.active_adapters, *getattr(part, "scaling", {}).items())
                for part in module.modules() if hasattr(part, "base_layer")]
    return (id(module), *adapters, *written(module.parameters()))


def written(parameters: Iterable[Any]) -> tuple[object, ...]:
    """Changes whenever one of them was written.

    Fused optimisers leave a tensor's version as it was, so values are looked at as well: some of each that can be
    trained, and a step moves them all.
    """
    places = []
    some: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        places.append((parameter._version, parameter.data_ptr()))
        if parameter.requires_grad:
            flat = parameter.detach().reshape(-1)
            some.setdefault(flat.dtype, []).append(flat[::max(1, flat.numel() // LOOKED_AT)])
    digest = hashlib.blake2b(digest_size=8)
    for values in some.values():
        digest.update(torch.cat(values).cpu().view(torch.uint8).numpy().tobytes())
    return (*places, digest.hexdigest())
