"""Tiny random models for tests: a byte-level tokenizer with a chat template, and two-layer models of several kinds.

Nothing is downloaded and nothing is trained: the tokenizer learns its merges from one paragraph, weights are random and
sharpened so that sampled text is not mere noise around a flat distribution.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from dialoom.models.local import LocalModel
from dialoom.train import checkpoint

torch.set_num_threads(1)

SPECIAL = ["<|pad|>", "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

TEMPLATE = ("{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")
"""Prefix-stable, with a system role; the shape of pocket's own template."""

TEXT = ("The capital of France is Paris and the capital of Norway is Oslo. I think you are right, but let us check. "
        "No, the answer is not Rome; my answer stays the same for I am sure. Which river flows through Vienna? ") * 4


@cache
def _tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT], trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(template: str | None = TEMPLATE, extra: tuple[str, ...] = ()) -> Any:
    """A fresh tokenizer of a few hundred tokens; `extra` are more special tokens that another `template` needs."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_tokenizer_json()), bos_token="<|begin|>",
                                        eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False)
    tokenizer.add_special_tokens({"extra_special_tokens": [*SPECIAL[2:5], *extra]})
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def tiny_module(kind: str = "llama", *, seed: int = 0, vocab: int = 400, context: int = 256) -> Any:
    """A random two-layer causal LM in fp32.

    `kind` is "llama" or "qwen3" (grouped queries in both), "gpt_neox" (another family altogether), "mistral" (a window
    of 16 tokens) or "mamba" (no attention).
    """
    import transformers
    shape = {"vocab_size": vocab, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": context,
             "bos_token_id": 1, "eos_token_id": 5, "pad_token_id": 0, "tie_word_embeddings": True}
    name = {"llama": "Llama", "qwen3": "Qwen3", "gpt_neox": "GPTNeoX", "mistral": "Mistral", "mamba": "Mamba"}[kind]
    if kind in ("gpt_neox", "mamba"):
        shape = {key: value for key, value in shape.items() if key not in ("num_key_value_heads", "head_dim")}
    if kind == "mistral":
        shape["sliding_window"] = 16
    torch.manual_seed(seed)
    module = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**shape))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return module.eval()


def tiny_model(kind: str = "llama", *, seed: int = 0, context: int = 256, template: str = TEMPLATE) -> LocalModel:
    """A ready LocalModel on the CPU, named `tiny-<kind>`."""
    return LocalModel(tiny_module(kind, seed=seed, context=context), tiny_tokenizer(template), name=f"tiny-{kind}")


def save_tiny(folder: Path, kind: str = "llama", *, seed: int = 0) -> Path:
    """Write a tiny model in the hub's layout (config, safetensors, tokenizer, template) and return its folder."""
    tiny_model(kind, seed=seed).save(folder)
    return folder


def half_removed(root: Path, step: int = 1) -> dict[str, bytes]:
    """Leave among checkpoints what a kill leaves that comes while one is removed or written; what was there before."""
    held = files_in(root)
    for folder in (checkpoint.folder_of(root, step), root / f".step-{step:08d}.77.tmp"):
        folder.mkdir()
        (folder / checkpoint.WEIGHTS).write_bytes(b"some of it")
    return held


def files_in(root: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
