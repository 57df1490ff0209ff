"""Builds the embedded pocket models from the grammar: tokenizer, weights, card.

Seeded throughout: batch n is a function of the seed and n, so a build that is killed goes on from its last whole
checkpoint and ends with the same weights (bit for bit on one kind of machine and thread count). The loss lies on
assistant messages only, and the LM head is computed only there.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dialoom.config import Config
from dialoom.errors import ConfigError, StoreError
from dialoom.files import lock, read_json, remove_drafts, stopped, whole_folder, write_whole
from dialoom.models.pretrained import one_line, written
from dialoom.models.pretrained import quiet as quietly
from dialoom.pocket.corpus import documents
from dialoom.pocket.world.facts import load_facts
from dialoom.train import checkpoint
from dialoom.train.bad_batch import bad_batch

TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CONTEXT = 2048
CHECKPOINTS, KEPT = "checkpoints", 2
NAME_WEIGHT = 100  # how often each name is shown to the BPE besides: a name in one token is easy to compare

Log = Callable[[str], None]


class PocketConfig(Config):
    """What is built, and how long it learns."""

    name: str = "pocket"
    """`pocket`, or `pocket-small`, which learns fewer facts."""
    hidden: int = 192
    """Width of the model."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 6
    """Attention heads."""
    intermediate: int = 576
    """Width of the feed-forward layers."""
    vocabulary: int = 4608
    """Size of the byte-level BPE vocabulary."""
    steps: int = 5000
    """Optimiser steps."""
    batch_tokens: int = 4096
    """Tokens in one step, padding included."""
    learning_rate: float = 2e-3
    """Peak rate; linear warm-up over 2 % of the steps, then cosine decay to 2 % of it."""
    seed: int = 1
    """Seeds weights, text and order."""
    threads: int = 1
    """Torch threads; part of what makes a build bit-reproducible."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""


SMALL = PocketConfig(name="pocket-small", hidden=128, layers=4, heads=4, intermediate=352, steps=4000)
PRESETS = {"pocket": PocketConfig(), "pocket-small": SMALL}


def train_tokenizer(seed: int, vocabulary: int, texts: int = 40_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the corpus: any text can be written in it, the world's own words in few tokens."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    sample = itertools.islice(documents("pocket", seed, "tokenizer"), texts)
    names = [f" {name}" for fact in load_facts() for name in (fact.subject, fact.answer)] * NAME_WEIGHT
    words = (message["content"] for text in sample for message in text.messages)
    tokenizer.train_from_iterator(itertools.chain(words, names), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|begin|>",
                                   eos_token="<|end|>", chat_template=TEMPLATE, model_max_length=CONTEXT,
                                   clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class Row:
    """A tokenised document: ids, and whether each token carries loss."""

    ids: list[int]
    target: list[bool]


def tokenise(tokenizer: PreTrainedTokenizerFast, batch: list[Any]) -> list[Row]:
    """Documents as rows, piece by piece as the chat template writes them (checked against it by a test)."""
    roles = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("system", "user", "assistant")}
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = [message["content"] for document in batch for message in document.messages]
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    pieces = iter(encoding.ids for encoding in encoded)
    rows = []
    for document in batch:
        ids, target, trained = [begin], [False], set(document.targets())
        for index, message in enumerate(document.messages):
            piece = [*next(pieces), end]
            ids += [roles[message["role"]], *piece]
            target += [False, *[index in trained] * len(piece)]
        rows.append(Row(ids[:CONTEXT], target[:CONTEXT]))
    return rows


def batches(tokenizer: PreTrainedTokenizerFast, config: PocketConfig, split: str = "train",
            pool: int = 2048) -> Iterator[list[Row]]:
    """Endless batches of about `batch_tokens`, cut from length-sorted pools and shuffled within each pool."""
    for number in itertools.count():
        stream = documents(config.name, config.seed, split, number * pool)
        rows = sorted(tokenise(tokenizer, list(itertools.islice(stream, pool))), key=lambda row: len(row.ids))
        cut: list[list[Row]] = [[]]
        for row in rows:
            if cut[-1] and len(row.ids) * (len(cut[-1]) + 1) > config.batch_tokens:
                cut.append([])
            cut[-1].append(row)
        random.Random(f"{config.seed}/{split}/{number}").shuffle(cut)
        yield from cut


def loss_of(model: LlamaForCausalLM, rows: list[Row]) -> Tensor:
    """Mean cross-entropy (nats) of the batch's target tokens."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    target = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):  # right padding: causal attention never looks at it
        ids[index, :len(row.ids)] = torch.tensor(row.ids)
        target[index, :len(row.ids)] = torch.tensor(row.target)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    predicted = model.lm_head(hidden[target[:, 1:]])
    return functional.cross_entropy(predicted.float(), ids[:, 1:][target[:, 1:]])


def new_model(config: PocketConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Seeded random weights in the standard Llama layout."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=config.hidden, intermediate_size=config.intermediate,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, rope_theta=10_000.0,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))


def rate(step: int, config: PocketConfig) -> float:
    """Learning rate at a step: linear warm-up, cosine decay."""
    warm = max(1, config.steps // 50)
    share = min(1.0, max(0.0, (step - warm) / max(1, config.steps - warm)))
    return config.learning_rate * min(1.0, (step + 1) / warm) * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)


def train(config: PocketConfig, tokenizer: PreTrainedTokenizerFast, work: Path, log: Log) -> LlamaForCausalLM:
    """Learn the corpus; continues from the newest whole checkpoint in `work`.

    Raises:
        TrainingError: if a loss or gradient is no number; the last good checkpoint stays.
        StoreError: if a checkpoint cannot be written.
    """
    torch.set_num_threads(config.threads)
    model = new_model(config, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01,
                                  fused=True)
    step, spent = _load(work, model, optimizer)
    stream = itertools.islice(batches(tokenizer, config), step, None)
    started, seen, total, clock = time.time(), 0, 0.0, time.process_time()
    while step < config.steps:
        rows = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, config)
        loss = loss_of(model, rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        _check(step + 1, {"loss": loss.item(), "gradient norm": norm.item()}, rows, tokenizer, work)
        optimizer.step()
        optimizer.zero_grad()
        step, seen, total = step + 1, seen + sum(len(row.ids) for row in rows), total + loss.item()
        if step % 100 == 0:
            log(f"{config.name} {step}/{config.steps} loss {total / 100:.3f} "
                f"{seen / (time.time() - started):.0f} tokens/s, cpu {spent + time.process_time() - clock:.0f} s")
            total = 0.0
        if step % config.checkpoint_every == 0 or step == config.steps:
            _save(work, model, optimizer, step, spent + time.process_time() - clock)
    return model


def _check(step: int, values: dict[str, float], rows: list[Row], tokenizer: PreTrainedTokenizerFast,
           work: Path) -> None:
    """Raise TrainingError, its texts in a file, if something of a step is no number."""
    for what, value in values.items():
        if not math.isfinite(value):
            raise bad_batch(work, step, what, value, [f"document {at}" for at in range(len(rows))],
                            advice="lower learning_rate, or look at these texts",
                            checkpoints=checkpoint.steps(work / CHECKPOINTS),
                            texts=[tokenizer.decode(row.ids) for row in rows])


def _save(work: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int, cpu: float) -> None:
    names, root = [name for name, _ in model.named_parameters()], work / CHECKPOINTS
    moments = {f"{key}/{names[at]}": value for at, found in optimizer.state_dict()["state"].items()
               for key, value in found.items()}
    weights = {name: value.detach() for name, value in model.named_parameters()}
    checkpoint.save(root, step, weights, moments, {"cpu_seconds": round(cpu)})
    checkpoint.prune(root, checkpoint.steps(root)[-KEPT:])


def _load(work: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> tuple[int, float]:
    """Take over the newest whole checkpoint; its step, and the CPU seconds spent up to it."""
    root = work / CHECKPOINTS
    found = checkpoint.load_newest(root)
    checkpoint.prune(root, checkpoint.steps(root)[-KEPT:])  # a kill may have come in there
    if found is None:
        return 0, 0.0
    state = optimizer.state_dict()
    state["state"] = {at: {key: found.optimizer[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                      for at, (name, _) in enumerate(model.named_parameters())}
    optimizer.load_state_dict(state)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(found.weights[name])
    return found.step, float(found.state["cpu_seconds"])


def progress_of(work: Path) -> tuple[int, float]:
    """Steps done and CPU seconds spent according to the newest whole checkpoint in `work`; zeros without one."""
    found = checkpoint.load_newest(work / CHECKPOINTS)
    return (0, 0.0) if found is None else (found.step, float(found.state["cpu_seconds"]))


def build(config: PocketConfig, out: Path, log: Log = print) -> Path:
    """Build one pocket model into `out/<name>` (work files in `out/<name>.work`); returns that folder.

    A build that was stopped goes on from its newest whole checkpoint; `out/<name>` is there whole or not at all.

    Raises:
        ConfigError: for another name, or if the work files are of other settings.
        StoreError: if something cannot be written or read, or another process builds there.
        TrainingError: if a loss or gradient is no number.
    """
    if config.name not in PRESETS:
        raise ConfigError(f"name {config.name!r}: expected one of {', '.join(PRESETS)}")
    work, folder = out / f"{config.name}.work", out / config.name
    try:
        work.mkdir(parents=True, exist_ok=True)
        held = lock(work / ".lock", work)
    except OSError as wrong:
        raise wrong if isinstance(wrong, StoreError) else stopped(work, wrong) from None
    try:
        for draft in (*out.glob(f".{config.name}.*.tmp"), *work.glob(".tokenizer.*.tmp")):
            shutil.rmtree(draft, ignore_errors=True)
        remove_drafts(work)
        resolved = work / "config.json"
        if read_json(resolved, default=(own := config.model_dump()), hint=f"remove {work} to begin anew") != own:
            raise ConfigError(f"{work} holds a build with other settings; remove it, or give another --out")
        write_whole(resolved, json.dumps(own, indent=1))
        tokenizer = _tokenizer(config, work / "tokenizer")
        model = train(config, tokenizer, work, log)
        with quietly(), written(folder), whole_folder(folder) as draft:
            model.eval().to(torch.bfloat16).save_pretrained(draft)
            tokenizer.save_pretrained(draft)
    finally:
        os.close(held)
    return folder


def _tokenizer(config: PocketConfig, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a build, trained once."""
    if not folder.exists():
        trained = train_tokenizer(PRESETS["pocket"].seed, config.vocabulary)
        with written(folder), whole_folder(folder) as draft:
            trained.save_pretrained(draft)
    with one_line(str(folder)):
        return PreTrainedTokenizerFast.from_pretrained(folder)
