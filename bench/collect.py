"""Collecting steered dialogues in lock-step, against one dialogue at a time as DAT's released code plays them.

Both play the same scenes greedily, with the same planner, partner and rounds, in one process and in turns. The pattern
of the release, written anew here: for every round the whole prompt is read for the state, read again with the soft
tokens by `generate`, and the partner reads its own from the start. It is spared what the release also spends: a judge's
pass over each reply, and a state after the last round. Both end in the same texts, which is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.measure import Row, release

if TYPE_CHECKING:
    from torch import Tensor

    from dialoom.dialogue import Chat, Dialogue, Scenario
    from dialoom.models.local import LocalModel
    from dialoom.models.steering import SteeredModel

ROUNDS = 3
REPLY = 60  # tokens at most; a random model uses them up, pocket ends its replies after a dozen
SCENES = {"pocket": 128, "llama-8m": 32}
REPEATS = {"pocket": 3, "llama-8m": 2, "toy": 1}  # the other way takes the 7.5M Llama over a minute
ABOUT = {"pocket": "embedded pocket, 4 x 192, V 4608", "llama-8m": "7.5M Llama, 8 x 256, 8/4 heads, V 4608",
         "toy": "2 x 48 Llama"}
POSITIONS = ("start", "end")
Log = Callable[[str], None]


@dataclass(frozen=True)
class Played:
    """A collection done once: what was said in each scene, and the CPU seconds it took."""

    texts: list[list[str]]
    tokens: int
    cpu_s: float


def rows(*, quick: bool, log: Log) -> Iterator[Row]:
    """A row for each model and place of the soft tokens."""
    import torch

    torch.set_num_threads(1)
    for name in ("toy",) if quick else SCENES:
        model, scenes = model_of(name), scenes_of(4 if quick else SCENES[name])
        for position in POSITIONS:
            yield compared(model, position, scenes, 6 if quick else REPLY, log=log)


def compared(model: LocalModel, position: str, scenes: Sequence[Scenario], reply: int, *, log: Log) -> Row:
    """Both ways in turns; the quickest of each, and the ratios of all repeats beside it."""
    ways = {"ours": lock_step, "theirs": one_by_one}
    best: dict[str, Played] = {}
    ratios = []
    for repeat in range(repeats := REPEATS[model.name]):
        found = {}
        for name, way in ways.items():
            model._engine = None  # nothing is carried over
            player = steered(model, position)  # with an engine that has kept nothing
            release()
            found[name] = way(player, scenes, reply)
            if name not in best or found[name].cpu_s < best[name].cpu_s:
                best[name] = found[name]
        ratios.append(found["theirs"].cpu_s / found["ours"].cpu_s)
        log(f"collect/{position}, {model.name}: {ratios[-1]:.2f} times as fast, repeat {repeat + 1} of {repeats}")
    mine, theirs = best["ours"], best["theirs"]
    pairs = [pair for both in zip(mine.texts, theirs.texts, strict=True) for pair in zip(*both, strict=False)]
    same = sum(one == other for one, other in pairs)
    return {"work": f"collect/{position}", "against": "one by one", "ratio": theirs.cpu_s / mine.cpu_s,
            "model": model.name,
            "setting": f"{ABOUT[model.name]}; {len(scenes)} scenes x {ROUNDS} rounds, replies of {reply} tokens at "
                       f"most, 2 soft tokens at the {position}", "ours_s": mine.cpu_s, "theirs_s": theirs.cpu_s,
            "tokens": mine.tokens, "same": same == len(pairs), "identical": same, "compared": len(pairs),
            "lowest": min(ratios), "highest": max(ratios)}


def lock_step(player: SteeredModel, scenes: Sequence[Scenario], reply: int) -> Played:
    """Ours: every round of all scenes is one batch."""
    from dialoom.evals.redteam import LeakJudge, attack
    from dialoom.models.base import Sampling
    from dialoom.simulate import ModelSpeaker

    greedy = Sampling(0.0, max_new_tokens=reply)
    start = time.process_time()
    said = attack(ModelSpeaker("player", player, greedy), ModelSpeaker("partner", player.model, greedy), scenes,
                  LeakJudge(), label="bench", rounds=ROUNDS)
    return _played(player.model, said, time.process_time() - start)


def one_by_one(player: SteeredModel, scenes: Sequence[Scenario], reply: int) -> Played:
    """The release's pattern: a dialogue after the other, every prompt read whole, for the state and for the reply."""
    from dialoom.dialogue import Dialogue, Turn, chat_view
    from dialoom.evals.redteam import LeakJudge

    model, judge = player.model, LeakJudge()
    start = time.process_time()
    said = []
    for scene in scenes:
        brief = dict(zip(("player", "partner"), (scene.briefs[role] for role in scene.facts["roles"]), strict=True))
        dialogue = Dialogue(scene)
        for at in range(2 * ROUNDS):
            name = ("player", "partner")[at % 2]
            chat = chat_view(dialogue, name, brief[name])
            text = steered_reply(player, chat, reply) if at % 2 == 0 else plain_reply(model, chat, reply)
            last = dialogue.turns[-1].id if dialogue.turns else None
            dialogue = dialogue.then(Turn(f"{scene.id}/{at}", last, name, text))
            if at % 2:
                judge.judge([dialogue])
        said.append(dialogue)
    return _played(model, said, time.process_time() - start)


def steered_reply(player: SteeredModel, chat: Chat, reply: int) -> str:
    """A pass over the prompt for the state, with all layers' states and all logits, then `generate` from embeddings."""
    import torch

    model = player.model
    ids = torch.tensor([model.template.prompt(chat)])
    with torch.inference_mode():
        state = model.module(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, -1].float()
        prefix = player.steering.prefixes(state, player.steering.plan(state))
        embedded = model.module.get_input_embeddings()(ids)
        cut = 1 if player.position == "start" else ids.shape[1]
        given = torch.cat([embedded[:, :cut], prefix, embedded[:, cut:]], 1)
        return _text(model, _generate(model, reply, inputs_embeds=given)[0])


def plain_reply(model: LocalModel, chat: Chat, reply: int) -> str:
    """`generate` from the prompt."""
    import torch

    ids = torch.tensor([model.template.prompt(chat)])
    with torch.inference_mode():
        return _text(model, _generate(model, reply, input_ids=ids)[0, ids.shape[1]:])


def _generate(model: LocalModel, reply: int, **given: Tensor) -> Tensor:
    import torch

    size = next(iter(given.values())).shape[1]
    found: Tensor = model.module.generate(**given, attention_mask=torch.ones(1, size, dtype=torch.long),
                                          max_new_tokens=reply, do_sample=False, pad_token_id=0,
                                          eos_token_id=sorted(model.stops))
    return found


def _text(model: LocalModel, ids: Tensor) -> str:
    text: str = model.tokenizer.decode(model.template.spoken(tuple(ids.tolist())), skip_special_tokens=True)
    return text.strip()


def _played(model: LocalModel, dialogues: Sequence[Dialogue], seconds: float) -> Played:
    texts = [[turn.text for turn in one.turns] for one in dialogues]
    return Played(texts, sum(len(model.template.encode(text)) for one in texts for text in one), seconds)


# What is played


def scenes_of(count: int) -> list[Scenario]:
    """Scenes of pocket's world."""
    from dialoom.evals.redteam import guard_scenes
    return guard_scenes(count, split="train", seed=1)


def model_of(name: str) -> LocalModel:
    """Pocket, or a random sharpened Llama with pocket's tokenizer."""
    from dialoom.models.load import load_model
    from dialoom.models.local import LocalModel
    pocket: Any = load_model("pocket", device="cpu")
    if name == "pocket":
        return pocket
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    layers, width = (2, 48) if name == "toy" else (8, 256)
    module = LlamaForCausalLM(LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=width // 32 or 1,
        num_key_value_heads=width // 64 or 1, vocab_size=pocket.module.config.vocab_size, max_position_embeddings=4096,
        pad_token_id=0, tie_word_embeddings=True))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)  # so that no reply is one token
    return LocalModel(module.eval(), pocket.tokenizer, name=name)


def steered(model: LocalModel, position: str) -> SteeredModel:
    """Under an untrained planner whose actions are as long as an embedding, two soft tokens."""
    from dialoom.models.steering import Planner, SteeredModel, Steering, UpMapping
    return SteeredModel(model, Steering(UpMapping.pca(model, 16), Planner.of(model, 16)), position=position)
