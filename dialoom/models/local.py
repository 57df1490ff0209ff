"""Any transformers causal LM on this machine: chat, weigh options, score replies, carry a LoRA adapter, save.

How text is drawn is in `engine`, the chat template in `template`, how a model's files are read in `pretrained`. Weights
are written to safetensors only. The fingerprint follows the weights: training changes it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dialoom.dialogue import Chat, content_id
from dialoom.errors import ModelError
from dialoom.models.base import Completion, Sampling
from dialoom.models.place import Origin, Place
from dialoom.models.pretrained import one_line, quiet, read_model, written
from dialoom.models.template import ChatTemplate, fit

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from dialoom.models.engine import Engine, Position

T = TypeVar("T")

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which tells of every cast; peft imports it where it can
SAMPLED_ABOVE = 200_000_000  # parameters; hashing every byte of a larger model would take longer than a batch
PASSING = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"})  # says who wrote the file
SAMPLES_PER_TENSOR = 4096  # spread over the tensor: any real update of the weights moves some of them


class LocalModel:
    """A causal LM, its tokenizer, and at most one LoRA adapter.

    Attributes:
        module: the transformers model, or the PeftModel around it once there is an adapter.
        tokenizer: with a chat template.
        template: the checked template (`.stable`, `.end`, `.has_system`).
        device: where the weights are (torch.device).
        name: as the user wrote it.
        base: how a saved adapter names the model it belongs to.
        origin: where it was read from; None if it was made otherwise.
        stops: ids that end a reply.
        context: longest prompt with its reply, in tokens.
        batch_tokens: how many tokens (padding and new ones included) one plain batch may hold; if given, also those the
            engine has in flight.
        truncated: how many prompts were too long and lost their oldest messages so far.
    """

    def __init__(self, module: Any, tokenizer: Any, *, name: str = "local", base: str | None = None,
                 batch_tokens: int | None = None) -> None:
        """Raises ModelError if the tokenizer has no usable chat template."""
        self.module = module
        self.tokenizer = tokenizer
        self.name = name
        self.base = base or name
        self.origin: Origin | None = None
        self.template = ChatTemplate(tokenizer, name)
        self.device = next(module.parameters()).device
        self.stops = _stops(module, tokenizer, self.template)
        self.context = int(getattr(module.config, "max_position_embeddings", 0) or 1 << 30)
        self.batch_tokens = batch_tokens or (16_384 if self.device.type == "cpu" else 131_072)
        self._in_flight = batch_tokens
        self.truncated = 0
        self._adapter_on = True
        self._hashed: tuple[object, str] | None = None
        self._engine: Engine | None = None
        self._no_engine, self._refused = "", None  # why the module at the time has no engine

    @classmethod
    def load(cls, path_or_name: str | Path, *, adapter: str | Path | None = None, device: str | Place = "auto",
             name: str | None = None, base: str | None = None) -> LocalModel:
        """Read a model, and a LoRA adapter on top of it, from folders or from the hub (cached or online).

        Args:
            device: "auto" takes cuda, then mps, then cpu; a `Place` also says type, spread and quantisation.
        Raises: ModelError: one line, if it is not there, not a causal LM, or has no safetensors.
        """
        named, place = name or str(path_or_name), Place.of(device)
        origin = Origin(str(path_or_name), str(adapter or "") or None, place)
        folder = origin.adapter or origin.path
        with one_line(named, "" if folder in named else folder), quiet():
            module, tokenizer = read_model(origin.path, origin.adapter, place)
            model = cls(module, tokenizer, name=named, base=base or origin.path)
        model.origin = origin
        return model

    # What the model says

    def prompt_ids(self, chat: Chat) -> list[int]:
        """Ids of the chat ready for a reply, cut to the context if need be (see `template.fit`)."""
        return self._fitted([chat], 1)[0]

    def reply_ids(self, chat: Chat, reply: str) -> tuple[list[int], int]:
        """Ids of the chat, the reply and its end token, and where the reply starts (the length of the prompt).

        Raises: ModelError: if the reply alone does not fit into the context.
        """
        ids, start = self.template.with_reply(chat, reply)
        if len(ids) > self.context:
            room = len(ids) - start
            prompt = self._fitted([chat], room)[0]
            return [*prompt, *ids[start:]], len(prompt)
        return ids, start

    def _fitted(self, chats: Sequence[Chat], room: int) -> list[list[int]]:
        """Prompt ids of each chat with `room` tokens left free; prompts that lost messages are counted, said once."""
        if room >= self.context:
            raise ModelError(f"{self.name}: {room} new tokens leave no room for a prompt in a context of "
                             f"{self.context}; ask for fewer")
        fitted = [fit(self.template, chat, self.context - room) for chat in chats]
        cut = sum(was_cut for _, was_cut in fitted)
        if cut and not self.truncated:
            warnings.warn(f"{self.name}: truncated prompts: {cut} (the context is {self.context} tokens; the oldest "
                          "messages go first, the system message stays)", stacklevel=3)
        self.truncated += cut
        return [ids for ids, _ in fitted]

    def chat(self, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str], *,
             prefixes: Sequence[Tensor | None] | None = None, position: Position = "end") -> list[Completion]:
        """Continue each chat with one assistant message; equal keys and chats give equal text in any batch.

        Args:
            prefixes: for each chat soft tokens, (tokens, width) embeddings, or None; they steer this reply only and
                are in no later prompt.
            position: they stand after the first token ("start"; the whole chat is then read anew) or after the last.
        Raises: ModelError: for soft tokens, if the model cannot be run on ragged batches.
        """
        if len(chats) != len(keys) or (prefixes is not None and len(chats) != len(prefixes)):
            given = f"{len(keys)} keys" + ("" if prefixes is None else f" and {len(prefixes)} prefixes")
            raise ModelError(f"{self.name}: {len(chats)} chats came with {given}; give one key for each chat (and one "
                             "prefix or None, where there are any)")
        soft = max((len(prefix) for prefix in prefixes or () if prefix is not None), default=0)
        prompts = self._fitted(chats, sampling.max_new_tokens + soft)
        with self._inference():
            if (engine := self.engine) is not None:
                drawn = engine.draw(prompts, keys, sampling, self.stops, prefixes=prefixes, position=position)
            elif soft:
                raise ModelError(f"{self.name} cannot be steered by soft tokens: {self._no_engine}")
            else:
                drawn = self._drawn_plainly(prompts, sampling, keys)
        return [self._completion(one) for one in drawn]

    def _drawn_plainly(self, prompts: Sequence[list[int]], sampling: Sampling, keys: Sequence[str]) -> list[Any]:
        """Without an engine: every prompt is read whole."""
        import numpy as np
        import torch

        from dialoom.models import decode

        def draw(group: list[int]) -> list[decode.Drawn]:
            noise = np.stack([decode.uniforms(keys[at], sampling.max_new_tokens) for at in group])
            place = "cpu" if self.device.type == "mps" else self.device  # no float64 there
            return decode.draw(self.module, [prompts[at] for at in group], torch.from_numpy(noise).to(place), sampling,
                               self.stops)

        return self._in_batches(prompts, sampling.max_new_tokens, draw)

    def _completion(self, drawn: Any) -> Completion:
        text = self.tokenizer.decode(self.template.spoken(drawn.ids), skip_special_tokens=True).strip()
        return Completion(text, "stop" if drawn.ended else "length", drawn.ids)

    def states(self, chats: Sequence[Chat]) -> Tensor:
        """(chats, width) hidden state after the last norm at each chat's last prompt token; no head is computed.

        Raises: ModelError: if the model cannot be run on ragged batches.
        """
        prompts = self._fitted(chats, 1)
        with self._inference():
            if self.engine is None:
                raise ModelError(f"{self.name} gives no states: {self._no_engine}")
            return self.engine.states(prompts)

    @property
    def engine(self) -> Engine | None:
        """What generates: rows of unequal length together, keys and values kept; None if the model does not allow it.

        Then every prompt is read whole, and a warning has said why.
        """
        if self._engine is None or self._engine.module is not self.module:
            if self._no_engine and self._refused is self.module:
                return None
            from dialoom.models.engine import engine_for
            try:
                self._engine = engine_for(self.module, self.context, batch_tokens=self._in_flight)
            except ModelError as error:
                self._engine, self._no_engine, self._refused = None, str(error), self.module
                warnings.warn(f"{self.name}: every prompt is read whole: {error}", stacklevel=3)
        return self._engine

    def choose(self, chats: Sequence[Chat], options: Sequence[str]) -> list[list[float]]:
        """Log-probability (nats, normalised over `options`) that each chat's reply begins with each option."""
        import torch

        from dialoom.models import decode
        if not options or any(not option for option in options):
            raise ModelError(f"{self.name}: cannot choose among {list(options)!r}; give options that are not empty")
        room = 1 + max(len(self.template.encode(option)) for option in options)
        prompts = self._fitted(chats, room)
        said = [[self._option_ids(chat, prompt, option) for option in options]
                for chat, prompt in zip(chats, prompts, strict=True)]

        def weigh(group: list[int]) -> list[list[float]]:
            return decode.option_logprobs(self.module, [prompts[at] for at in group], [said[at] for at in group],
                                          self.device)

        with self._inference():
            scores = self.engine.weigh(prompts, said) if self.engine is not None \
                else self._in_batches(prompts, room, weigh, share=len(options))
        return [torch.tensor(row, dtype=torch.float64).log_softmax(-1).tolist() for row in scores]

    def _option_ids(self, chat: Chat, prompt: list[int], option: str) -> list[int]:
        ids, start = self.template.with_reply(chat, option, prompt)
        return ids[start:-1] or [ids[-1]]

    def logprobs(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[float]:
        """Summed log-probability (nats) of `ids[start:]` given `ids[:start]` for each (ids, start)."""
        from dialoom.models import decode
        for ids, start in rows:
            if not 1 <= start <= len(ids) <= self.context:
                raise ModelError(f"{self.name}: a row of {len(ids)} ids with the reply at {start} cannot be scored; "
                                 f"needed is 1 <= start <= length <= {self.context}")

        def score(group: list[int]) -> list[float]:
            return decode.reply_logprobs(self.module, [rows[at] for at in group], self.device)

        return self._in_batches([ids for ids, _ in rows], 0, score)

    def _in_batches(self, rows: Sequence[Sequence[int]], room: int, run: Callable[[list[int]], list[T]],
                    share: int = 1) -> list[T]:
        """`run` over groups of row indices within the token budget, results in the order of the rows.

        A batch that finds no memory is tried again with half the budget, three times at most; the smaller budget stays
        and is told. `share` is how many rows one row becomes while it is run.
        """
        from dialoom.models import decode
        found: dict[int, T] = {}
        tries = 0
        recurrent = getattr(self.module, "_is_stateful", False)
        with self._inference():
            while len(found) < len(rows):
                todo = [at for at in range(len(rows)) if at not in found]
                try:
                    for part in decode.batches([rows[at] for at in todo], room, self.batch_tokens // share,
                                               even=recurrent):
                        group = [todo[at] for at in part]
                        found.update(zip(group, run(group), strict=True))
                except (MemoryError, RuntimeError) as error:
                    tries += 1
                    if not decode.is_out_of_memory(error) or tries > 3:
                        raise
                    self.batch_tokens //= 2
                    warnings.warn(decode.SPARING.format(tokens=self.batch_tokens), stacklevel=4)
        return [found[at] for at in range(len(rows))]

    @contextmanager
    def _inference(self) -> Iterator[None]:
        import torch
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.module.train(was_training)

    # What is trained

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter sits on the weights."""
        return hasattr(self.module, "peft_config")

    def add_lora(self, rank: int = 16, alpha: float = 32, dropout: float = 0.0,
                 targets: Sequence[str] | None = None) -> None:
        """Put a fresh LoRA adapter on the model, which freezes everything else.

        Args:
            alpha: the adapter's output is scaled by alpha / rank.
            targets: names of linear layers; None is all of them but the head, experts and their router included.
        Raises: ModelError: if there is an adapter already, or the model has no such layers.
        """
        from peft import LoraConfig, get_peft_model
        if self.has_adapter:
            raise ModelError(f"{self.name} has an adapter already; train that one, or merge it first")
        if dropout and targets is None and (fused := self._fused_experts()):
            warnings.warn(f"{self.name}: its experts lie in fused tensors ({fused}), whose adapters cannot have "
                          f"dropout; lora_dropout is 0 in place of {dropout:g}", stacklevel=2)
            dropout = 0.0
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, task_type="CAUSAL_LM",
                            target_modules=list(targets) if targets else "all-linear",
                            fan_in_fan_out=any(type(part).__name__ == "Conv1D" for part in self.module.modules()))
        try:
            with quiet():
                self.module, self._engine = get_peft_model(self.module, config).eval(), None
        except ValueError as error:
            raise ModelError(f"{self.name}: no adapter can be put on {', '.join(targets or ['its linear layers'])}: "
                             f"{' '.join(str(error).split())[:200]}") from error

    def _fused_experts(self) -> str:
        """The tensors that hold all experts' weights of a layer, by name; "" in a model without any."""
        names = {name.rpartition(".")[2] for name, parameter in self.module.named_parameters() if parameter.dim() == 3}
        return ", ".join(sorted(names - {"weight"}))

    def merge(self) -> None:
        """Add the adapter into the weights, so that a fresh one may be put on top; nothing is left to switch off."""
        if not self.has_adapter:
            raise ModelError(f"{self.name} has no adapter to merge")
        self.module, self._engine = self.module.merge_and_unload(), None
        for parameter in self.module.parameters():
            parameter.requires_grad_(True)

    def trainable(self) -> list[Parameter]:
        """The parameters that training moves: the adapter's where there is one, else all."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @contextmanager
    def without_adapter(self) -> Iterator[LocalModel]:
        """The model below its adapter, for as long as the context lasts; the fingerprint is that of the base.

        Raises: ModelError: if there is no adapter (a fully trained model has no base left to return to).
        """
        if not self.has_adapter:
            raise ModelError(f"{self.name} has no adapter to switch off; keep a clone() from before training instead")
        with self.module.disable_adapter():
            self._adapter_on = False
            try:
                yield self
            finally:
                self._adapter_on = True

    def clone(self) -> LocalModel:
        """A copy on the same device that shares nothing trainable."""
        return LocalModel(copy.deepcopy(self.module), self.tokenizer, name=self.name, base=self.base,
                          batch_tokens=self._in_flight)

    def save(self, folder: str | Path) -> None:
        """Write the adapter (PEFT's layout, naming `base`) or the whole model, and the tokenizer with its template.

        Raises: StoreError: if it cannot be written, as on a full disk.
        """
        path = Path(folder)
        with quiet(), written(path):
            path.mkdir(parents=True, exist_ok=True)
            if self.has_adapter:
                for config in self.module.peft_config.values():
                    config.base_model_name_or_path = self.base
                # without False, PEFT asks the hub for the base's vocabulary to decide
                self.module.save_pretrained(str(path), save_embedding_layers=False)
                (path / "README.md").unlink(missing_ok=True)  # a card full of gaps; the run folder has its own
            else:
                self.module.save_pretrained(str(path))
            self.tokenizer.save_pretrained(str(path))

    # What it is

    @property
    def fingerprint(self) -> str:
        """16 hex digits over weights, adapter (while it is on) and chat template; remade when a weight changed."""
        from dialoom.models.forward import written
        parameters = [(name, parameter) for name, parameter in self.module.named_parameters()
                      if self._adapter_on or "lora_" not in name]
        state = (self._adapter_on, id(self.module), str(self.tokenizer.chat_template),
                 written(parameter for _, parameter in parameters))
        if self._hashed is None or self._hashed[0] != state:
            self._hashed = (state, self._hash(parameters))
        return self._hashed[1]

    @property
    def known_by(self) -> dict[str, str]:
        """What a run writes down to know the model again: its fingerprint, its chat template's, its number type."""
        return {"fingerprint": self.fingerprint, "template": content_id(str(self.tokenizer.chat_template)),
                "dtype": str(next(self.module.parameters()).dtype).removeprefix("torch.")}

    def _hash(self, parameters: list[tuple[str, Any]]) -> str:
        import torch
        digest = hashlib.blake2b(digest_size=8)
        config = {name: value for name, value in self.module.config.to_diff_dict().items() if name not in PASSING}
        digest.update(json.dumps([config, self.tokenizer.chat_template], sort_keys=True, default=str).encode())
        large = sum(parameter.numel() for _, parameter in parameters) > SAMPLED_ABOVE
        for name, parameter in parameters:
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            values = parameter.detach().reshape(-1)
            if large and "lora_" not in name:
                values = values[::max(1, values.numel() // SAMPLES_PER_TENSOR)]
            digest.update(f"{plain} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(values.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _stops(module: Any, tokenizer: Any, template: ChatTemplate) -> frozenset[int]:
    """Every id that may end a reply: the template's, the tokenizer's, and those of the generation settings."""
    found = {template.end, tokenizer.eos_token_id}
    for settings in (getattr(module, "generation_config", None), module.config):
        ends = getattr(settings, "eos_token_id", None)
        found.update(ends if isinstance(ends, list) else [ends])
    return frozenset(int(end) for end in found if end is not None)
