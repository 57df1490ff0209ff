"""Small whole runs of every recipe: `SCRIPTED` ones without torch, `POCKET` ones on the embedded models.

A run is a function of a folder; called again it goes on there, as the same command would.
"""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from dialoom.config import Config
from dialoom.dialogue import Chat, content_id
from dialoom.models.base import Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.recipes import aloe, dat, ditto, ideas, pbt, personas
from dialoom.recipes.run import RunFolder
from dialoom.scenarios.triviaqa import pocket_trivia
from dialoom.store import TreeLog, write_rows
from dialoom.train.config import TrainConfig
from tests.faults.doubles import quiet

Run = Callable[[Path], int | None]
EVENT: Callable[[str], None] = quiet  # told of what DITTO's scripted writer is asked
STRATEGIES = ("ask why", "ask how", "ask for more", "ask for an example")
BRIEF = TrainConfig(epochs=1, batch_pairs=4, checkpoint_every=2)


def whole(name: str, recipe: Any, config: Config) -> Run:
    """A recipe's run, as the command line does it."""
    def run(out: Path) -> None:
        with RunFolder(out, name, config, log=quiet) as folder:
            recipe.run(config, folder, recipe.STAGES, quiet)
    return run


# ------------------------------------------------------------------------------------------------ what scripts say


@cache
def _answers() -> dict[str, list[str]]:
    scenarios = [one for split in ("train", "valid", "test") for phrasing in ("train", "held_out")
                 for one in pocket_trivia(split, seed=1, phrasing=phrasing)[:12]]
    return {one.opening: [str(one.facts["answer"]), *one.facts["distractors"]] for one in
            (*scenarios, *pocket_trivia(None, seed=1)[:12])}


def respond(name: str, chat: Chat, key: str) -> str:
    """What the scripted models of all recipes say, by the part they play; now and then nothing or nonsense."""
    draw = int(content_id(chat, key), 16)
    if draw % 41 == 0:
        return ""
    if name == "people":
        return invent(draw)
    if name == "judge":
        return ("first", "second", str(1 + draw % 5), "hm")[draw % 4] if draw % 9 == 0 else (
            ("first", "second")[draw % 2] if "second" in chat[-1]["content"] else str(1 + draw % 5))
    if name == "extractor":
        return json.dumps({"analysis": "They wonder.", "strategy": STRATEGIES[draw % len(STRATEGIES)]})
    if name == "simulator" and "- ask" in chat[0]["content"]:
        listed = [line[2:] for line in chat[0]["content"].splitlines() if line.startswith("- ask")]
        return f"strategy: {listed[draw % len(listed)]}\ninstruction: {_sentence(draw)}"
    if name == "abstractor":
        return f"ask {chat[-1]['content'].split()[-1]}"
    text = "\n".join(message["content"] for message in chat)
    found = next((answers for opening, answers in _answers().items() if opening in text), None)
    if found and draw % 3 == 0:
        return ("It is Zorblax.", "It is Zorblax hill.")[draw // 3 % 2]  # one answer in two forms, for PBT's filter
    return f"It is {found[draw % 2 if draw % 8 else draw % len(found)]}." if found else _sentence(draw)


def _sentence(draw: int) -> str:
    rng = random.Random(draw)
    return " ".join(rng.sample(("bees", "tea", "rivers", "why", "stones", "songs", "paper", "frost", "boats"), 5)) + "?"


def invent(draw: int) -> str:
    """New people in a JSON list, and rubbish in between."""
    rng = random.Random(draw)
    if rng.random() < 0.2:
        return "I cannot."
    words = ("lamp", "goat", "drum", "fern", "kite", "oven", "moss", "reed", "yarn", "tide", "plum", "wasp")
    return json.dumps([" ".join(f"She {verb} {' '.join(rng.sample(words, 3))}." for verb in
                                ("paints", "sells", "mends", "breeds", "tests")) for _ in range(3)])


# ------------------------------------------------------------------------------------------------ runs without torch


def pbt_config(**more: Any) -> pbt.PBTConfig:
    """Twelve questions, both orders, two debaters."""
    settings = {"model": "hf:strong", "partner": "hf:weak", "limit": 12, "eval_questions": 4, "max_pairs": 16,
                "sft": BRIEF, "dpo": BRIEF}
    return pbt.PBTConfig(**{**settings, **more})


def aloe_config(**more: Any) -> aloe.AloeConfig:
    """Four people, two messages each."""
    settings = {"model": "hf:aloe", "judge": "hf:judge", "train_count": 6, "eval_count": 3, "turns": 3, "shift_at": 2,
                "baselines": ("self_critique",), "margin": 0.0, "sft": BRIEF, "dpo": BRIEF}
    return aloe.AloeConfig(**{**settings, **more})


def ideas_config(**more: Any) -> ideas.IdeasConfig:
    """Eight source dialogues, five openings."""
    named = {part: f"hf:{part}" for part in ("model", "simulator", "extractor", "abstractor", "answerer")}
    settings = {**named, "verifier": "rule", "corpus_count": 8, "opening_count": 5, "eval_count": 3, "weighed": 3,
                "embedding": "ngrams", "threshold": 0.9, "policy": "random", "max_pairs": 3, "extract_draws": 1,
                "simulator_sft": BRIEF, "sft": BRIEF}
    return ideas.IdeasConfig(**{**settings, **more})


def personas_config() -> personas.PersonasConfig:
    """Pools that stop after six rounds."""
    return personas.PersonasConfig(model="hf:people", style="free", rounds=6, batch=3, count=3, passes=2,
                                   threshold=0.7)


def ditto_writing(out: Path) -> None:
    """DITTO's samples at three checkpoints, which is what of it needs no torch, in stages as in a run."""
    from dialoom.dialogue import DialogueTree
    from dialoom.recipes.ditto_write import Writer, add_demonstration, write
    from dialoom.scenarios.demonstrations import pocket_demonstrations

    config = ditto.DittoConfig(model="hf:writer")
    demos = pocket_demonstrations(())[:8]
    with RunFolder(out, "ditto", config, log=quiet) as folder, TreeLog(out / "trees.jsonl", log=quiet) as sink:
        held = sink.trees()
        named = [(content_id(1, demo.scenario.id), demo) for demo in demos]
        trees = {name: held.get(name) or DialogueTree(demo.scenario, name) for name, demo in named}
        for name, demo in named:
            add_demonstration(trees[name], demo, sink)
        for step in (0, 10, 20):
            model = ScriptedModel(lambda chat, step=step: _said(chat, step), f"writer@{step}")

            def sample(model: Any = model) -> int:
                return sum(map(len, write(list(trees.values()), Writer(model.name, model, Sampling(), 3), seed=1,
                                          sink=sink)))

            folder.stage(f"write-{step}", sample)
        turns = [{"id": turn.id, "text": turn.text} for _, tree in sorted(trees.items()) for turn in tree]
        folder.stage("gather", lambda: write_rows(out / "pairs.jsonl", sorted(turns, key=lambda row: row["id"])))


def _said(chat: Chat, step: int) -> str:
    EVENT("model")
    return _sentence(int(content_id(chat, step), 16))


SCRIPTED: dict[str, Run] = {
    "pbt": whole("pbt", pbt, pbt_config()), "aloe": whole("aloe", aloe, aloe_config()),
    "ideas": whole("ideas", ideas, ideas_config()), "personas": whole("personas", personas, personas_config()),
    "ditto": ditto_writing}


# ------------------------------------------------------------------------------------------------ runs on pocket


def warm_up() -> None:
    """Import what training needs, so that forks find it; nothing is computed, since a fork keeps no threads."""
    for name in ("torch", "transformers", "peft", "accelerate", "sklearn", "dialoom.train.dpo", "dialoom.train.sft",
                 "dialoom.models.engine", "dialoom.models.local", "dialoom.recipes.ditto_train",
                 "dialoom.recipes.ditto_eval", "dialoom.train.td3", "dialoom.models.steering",
                 "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)


QUICK = TrainConfig(max_steps=3, batch_pairs=4, checkpoint_every=1)
_DITTO = {"model": "pocket-small", "max_authors": 1, "train_demos": 3, "pool": ("zero_shot", "sft"), "beside": (),
          "test_samples": 1, "max_new_tokens": 16, "sft": {"max_steps": 3}, "lora_rank": 4,
          "dpo": {"steps": 4, "resample_every": 2, "samples": 2}}
_DAT = {"train_scenes": 6, "valid_scenes": 2, "test_scenes": 3, "rounds": 2, "max_new_tokens": 16, "action": 4,
        "transfer": (), "constants": 2, "constant_scenes": 2,
        "clone": {"prompts": 12, "replies": 2, "steps": 4, "hidden": (16,)},
        "td3": {"steps": 6, "checkpoint_every": 2, "critic_widths": (64, 32)}}
_LORA = QUICK.model_copy(update={"tune": "lora"})
_REDTEAM = {**_DAT, "scenes": "redteam", "harden": True, "train_scenes": 24, "rounds": 3, "max_new_tokens": 24,
            "redteam": {"attacks": 2, "sft": _LORA, "dpo": _LORA}}  # enough of them that one succeeds
POCKET: dict[str, Run] = {
    "pbt": whole("pbt", pbt, pbt_config(model="pocket-small", partner="pocket", limit=16, eval_questions=4, max_pairs=8,
                                        both_orders=False, train_partner=False, sft=QUICK, dpo=QUICK, ceiling="")),
    "aloe": whole("aloe", aloe, aloe_config(model="pocket-small", judge="exact", train_count=4, eval_count=2, turns=2,
                                            shift_at=0, baselines=(), ceiling="", sft=QUICK, dpo=QUICK)),
    "ideas": whole("ideas", ideas, ideas_config(
        **dict.fromkeys(("model", "simulator", "extractor", "abstractor", "answerer"), "pocket"), policy="ranker",
        arms=("ideas",), corpus_count=16, opening_count=6, threshold=0.9, max_pairs=2, sft=QUICK, ceiling="",
        simulator_sft=TrainConfig(max_steps=8, lr=1e-3, batch_pairs=12, checkpoint_every=3), ranker={"epochs": 3})),
    "ditto": whole("ditto", ditto, ditto.DittoConfig.model_validate(_DITTO)),
    "dat": whole("dat", dat, dat.DatConfig.model_validate(_DAT)),
    "redteam": whole("dat", dat, dat.DatConfig.model_validate(_REDTEAM)),
}
