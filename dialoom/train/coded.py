"""Self-cloning with codes: a mapping whose actions choose among the sorts of replies a model gives.

A model answers each prompt several times. What the state foretells of a reply (its topic) is taken off, what is left
(its manner) is clustered, and clone and mapping are fitted so that the clone alone gives all replies and the clone plus
the corner of a cluster gives that cluster's. So actions are directions the model's own speech varies in, which those of
the embeddings are not. Ours, not the paper's: there the mapping of a self-clone is left to chance, and on a small model
its actions change little of what is said.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dialoom.errors import TrainingError
from dialoom.models.decode import padded_left, positions
from dialoom.models.local import LocalModel
from dialoom.models.steering import Planner, PlannerShape, Steering, UpMapping, corner
from dialoom.train.cloning import Cloned, Descent, Reply, frozen, mean_loss, prompt_states, reply_loss
from dialoom.train.cross_entropy import target_logprobs

RARE = 5  # a token that stands in fewer replies than these tells no sort from another
RIDGE = 50.0  # of the regression on the state, in replies
DIRECTIONS, FAINT = 24, 0.2  # in which sorts are told apart, and how wide one must be beside the widest
RESTARTS, ROUNDS = 4, 60  # of the clustering
WARM = 10  # steps until the full rates
LAST = 0.05  # share of the rates at the end

Log = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Coding:
    """How clone and mapping are fitted; the recipe's settings say what each is.

    Attributes:
        norm: length of a code; actions are meant to be about as long.
        each: replies of each prompt in one step.
        longest: tokens of a reply that are learned; its sort shows in the first ones.
    """

    tokens: int = 2
    sorts: int = 16
    norm: float = 1.0
    hidden: tuple[int, ...] = (128,)
    position: Literal["start", "end"] = "end"
    steps: int = 300
    batch: int = 12
    each: int = 4
    lr: float = 2e-3
    mapping_lr: float = 0.03
    plain: float = 0.2
    longest: int = 20
    seed: int = 0


def sorts_of(replies: Sequence[Sequence[int]], states: Tensor, sorts: int, *, seed: int = 0) -> Tensor:
    """(replies,) which of `sorts` sorts each reply (token ids) is of, by its words less what its state foretells.

    Args:
        states: (replies, width), those of their prompts.
    Raises: TrainingError: if there are fewer replies than sorts.
    """
    if len(replies) < sorts:
        raise TrainingError(f"{len(replies)} replies cannot be of {sorts} sorts; collect more, or use a smaller action")
    tokens = sorted({token for reply in replies for token in reply})
    place = {token: at for at, token in enumerate(tokens)}
    holds = torch.zeros(len(replies), len(tokens))
    for row, reply in enumerate(replies):
        holds[row, [place[token] for token in set(reply)]] = 1
    counts = holds.sum(0)
    words = (holds * (len(replies) / counts).log())[:, counts >= RARE]
    if not words.shape[1]:
        raise TrainingError(f"no word stands in {RARE} of {len(replies)} replies; collect more of them")
    manner = nn.functional.normalize(_less(nn.functional.normalize(words, dim=-1), states), dim=-1)
    found = torch.linalg.svd(manner - manner.mean(0), full_matrices=False)
    told = found.U[:, :DIRECTIONS][:, found.S[:DIRECTIONS] > FAINT * found.S[0]]
    return _clustered(nn.functional.normalize(told, dim=-1), sorts, seed)


def _less(words: Tensor, states: Tensor) -> Tensor:
    """What a ridge regression on the states leaves of each word."""
    spread = states.std(0)
    known = torch.cat([(states - states.mean(0)) / torch.where(spread > 0, spread, 1.0),
                       torch.ones(len(states), 1)], 1)
    return words - known @ torch.linalg.solve(known.T @ known + RIDGE * torch.eye(known.shape[1]), known.T @ words)


def _clustered(points: Tensor, count: int, seed: int) -> Tensor:
    from sklearn.cluster import KMeans

    return torch.from_numpy(KMeans(count, n_init=RESTARTS, max_iter=ROUNDS, random_state=seed)
                            .fit(points.double().numpy()).labels_).long()


def coded_clone(model: LocalModel, replies: Sequence[Sequence[Reply]], config: Coding, *,
                held_out: Sequence[Reply] = (), out: Path | None = None,
                log: Log = lambda *_: None) -> tuple[Cloned, list[int]]:
    """A clone with a mapping of codes, and how many replies were of each sort. The model is not changed.

    Args:
        replies: those of each prompt, equally many and two at least.
        held_out: replies to other prompts, on which the clone's gap is measured.
        out: takes `metrics.jsonl`, and `bad_batch.json` where a loss is no number; None: nothing is written.
    Raises:
        ModelError: if the model cannot be steered.
        TrainingError: if there is too little to learn from, or a loss or gradient is not finite (naming step and
            replies).
    """
    each = {len(one) for one in replies}
    if len(each) != 1 or min(each) < 2:
        raise TrainingError(f"coded cloning needs equally many replies to each prompt, two at least; found {each}")
    flat = [one for own in replies for one in own]
    states = prompt_states(model, [own[0] for own in replies])
    count = next(iter(each))
    sorts = sorts_of([one.reply[:-1] for one in flat], states.repeat_interleave(count, 0), config.sorts,
                     seed=config.seed)
    steering = Steering(UpMapping.linear(model, config.sorts, tokens=config.tokens, seed=config.seed),
                        clone=_clone(states, config), position=config.position)
    measured = list(held_out) or flat
    seen = prompt_states(model, measured)
    with frozen(model):
        base = mean_loss(model, measured)
        before = mean_loss(model, measured, steering, config.position, seen)
        _fit(model, steering, replies, states, sorts.view(-1, count), config, out, log)
        after = mean_loss(model, measured, steering, config.position, seen)
    return Cloned(steering.eval(), base, before, after), torch.bincount(sorts, minlength=config.sorts).tolist()


def _clone(states: Tensor, config: Coding) -> Planner:
    """One that begins near no action at all, so that the mapping's bias is learned first."""
    clone = Planner(PlannerShape(states.shape[1], config.sorts, config.hidden, "linear"), seed=config.seed)
    clone.normalizer.add(states)
    last = clone.layers[-1]
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.zero_()
    return clone


def _fit(model: LocalModel, steering: Steering, replies: Sequence[Sequence[Reply]], states: Tensor, sorts: Tensor,
         config: Coding, out: Path | None, log: Log) -> None:
    """Steps on replies of all sorts equally often, some of them without their code."""
    assert steering.clone is not None
    optimizer = torch.optim.AdamW([{"params": steering.mapping.parameters(), "lr": config.mapping_lr},
                                   {"params": steering.clone.parameters(), "lr": config.lr}], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM) * max(LAST, 1 - step / config.steps))
    rarity = (1 / torch.bincount(sorts.flatten(), minlength=config.sorts))[sorts]
    order = sorted(range(len(replies)), key=lambda at: (len(replies[at][0].prompt), at))
    parts = [order[start:start + config.batch] for start in range(0, len(order), config.batch)]
    draw, pick = torch.Generator().manual_seed(config.seed), random.Random(f"coded:{config.seed}")
    codes = corner(torch.eye(config.sorts), config.norm)
    each = min(config.each, sorts.shape[1])
    descent = Descent(model, optimizer, schedule, out)
    for step in range(config.steps):
        part = pick.choice(parts)
        prompts = torch.tensor(part).repeat_interleave(each)
        chosen = torch.multinomial(rarity[part], each, generator=draw).flatten()
        plain = torch.rand(len(prompts), generator=draw) < config.plain
        chosen = torch.where(plain, torch.randint(sorts.shape[1], chosen.shape, generator=draw), chosen)
        actions = codes[sorts[prompts, chosen]] * ~plain[:, None]
        prefixes = steering.prefixes(states[prompts], actions)
        taken = list(zip(prompts.tolist(), chosen.tolist(), strict=True))
        rows = [replace(one, reply=one.reply[:config.longest]) for at, own in taken for one in [replies[at][own]]]
        loss, tokens = (shared_loss(model, rows, prefixes) if config.position == "end"
                        else reply_loss(model, rows, prefixes, config.position))
        descent.step(loss / tokens, [f"prompt {at} reply {own}" for at, own in taken], rows)
        log("self-cloning", step + 1, config.steps)


def shared_loss(model: LocalModel, replies: Sequence[Reply], prefixes: Tensor) -> tuple[Tensor, int]:
    """`reply_loss` with the prefix at the end, where replies of one prompt stand together: it is read once.

    Args:
        prefixes: (replies, tokens, width) soft tokens, which gradients reach.
    """
    prompts = list(dict.fromkeys(one.prompt for one in replies))
    place = {prompt: at for at, prompt in enumerate(prompts)}
    of = torch.tensor([place[one.prompt] for one in replies], device=model.device)
    ids, mask = padded_left([list(prompt) for prompt in prompts], model.device)
    with torch.no_grad():
        read = model.module(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True,
                            logits_to_keep=1).past_key_values
    read.batch_select_indices(of)
    soft, longest = prefixes.shape[1], max(len(one.reply) for one in replies)
    words = torch.tensor([[*one.reply[:-1], *[one.reply[-1]] * (longest - len(one.reply))] for one in replies],
                         dtype=torch.long, device=model.device)
    said_so_far = model.module.get_input_embeddings()(words)
    inputs = torch.cat([prefixes.to(said_so_far), said_so_far], 1)
    whole = torch.cat([mask[of], mask.new_ones(len(replies), inputs.shape[1])], 1)
    logits = model.module(inputs_embeds=inputs, attention_mask=whole, position_ids=positions(whole)[:, ids.shape[1]:],
                          past_key_values=read, use_cache=True).logits[:, soft - 1:]
    said = torch.tensor([[True] * len(one.reply) + [False] * (longest - len(one.reply)) for one in replies])
    targets = torch.tensor([token for one in replies for token in one.reply], device=model.device)
    return -target_logprobs(logits[said.to(model.device)], targets).sum(), len(targets)
