"""The pocket model's card: what a built model knows and obeys, measured with the world's exact judges.

Everything is asked on what pre-training never saw where there is such a thing: held-out documents, people, authors and
scenes. The facts are all in the training text; the card says how many of them stuck.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dialoom.dialogue import Chat
from dialoom.evals import persuasion
from dialoom.models.base import Sampling
from dialoom.models.load import weights_hash
from dialoom.models.local import LocalModel
from dialoom.pocket.corpus import documents
from dialoom.pocket.world import (
    persona_tables,
    personas,
    scene_lines,
    scenes,
    strategies,
    strategy_tables,
    styles,
    trivia,
)
from dialoom.pocket.world.facts import load_facts, small_knows
from dialoom.recipes.pocket import PocketConfig, Row, build, progress_of, tokenise
from dialoom.scenarios.triviaqa import pocket_trivia
from dialoom.simulate import ModelSpeaker, speaking

CARD = """---
license: apache-2.0
library_name: transformers
tags: [dialogue, teaching, synthetic]
---
# {name}

A teaching model of {millions:.1f} M parameters that speaks a small synthetic English world: trivia and debates, people
and their preferences, writing in styles, follow-up questions, bargaining and guarding a code word. It exists so that
Dialoom's methods can be watched in minutes on a laptop. It knows nothing else and is of no use for real tasks.

- weights: `{weights}`, seed {seed}
- made by `dialoom pocket build {name}` from the grammar and the fact tables in the repository
{made}
## What it can do

{tables}
## Why it can be taught

Its text mixes behaviours keyed by private briefs over the same situations; text without a brief is the bland, agreeable
blend of a generic assistant. Alignment then brings out, without the brief, what a brief can do. All facts are in its
training text, so closed-book accuracy says what was kept, never what was inferred.
"""

GREEDY = Sampling(temperature=0.0, max_new_tokens=96)


def measure(model: LocalModel, config: PocketConfig, count: int = 200) -> dict[str, Any]:
    """Every figure of the card; `count` items for each behaviour."""
    return {"facts": known_facts(model), "debate": debates(model), "personas": person(model, count // 2),
            "styles": style(model, count // 2), "strategies": strategy(model, count),
            "scenes": scene(model, count // 2),
            "perplexity": perplexity(model, config)}


def say(model: LocalModel, chats: list[Chat], sampling: Sampling = GREEDY) -> list[str]:
    """Replies to chats, keyed by their place."""
    return [reply.text for reply in model.chat(chats, sampling, [str(i) for i in range(len(chats))])]


def _speaker(model: LocalModel, brief: str = "") -> ModelSpeaker:
    return speaking("subject", model, GREEDY, brief)


def known_facts(model: LocalModel) -> dict[str, Any]:
    """Closed-book accuracy on every fact, in practised and in held-out phrasings, by relation."""
    found: dict[str, Any] = {"facts": len(load_facts())}
    asked = {"train": pocket_trivia(None, seed=0), "held_out": pocket_trivia(None, seed=0, phrasing="held_out")}
    for phrasing, questions in asked.items():
        result = persuasion.recall(_speaker(model), questions, label="card")
        by: dict[str, list[float]] = defaultdict(list)
        for dialogue in result.dialogues:
            by[dialogue.scenario.facts["relation"]].append(dialogue.last.scores.get("correct", 0.0))
        right = {found.scenario.facts["fact"] for found in result.dialogues if found.last.scores.get("correct")}
        found[phrasing] = {"accuracy": result.rows[0].value, "known": len(right),
                           "by_relation": {name: float(np.mean(values)) for name, values in by.items()}}
        if phrasing == "train":
            small = {fact.id for fact in load_facts() if small_knows(fact)}
            every = {fact.id for fact in load_facts()}
            found["known_of_those_shown_to_small"] = len(right & small) / len(small)
            found["known_of_the_others"] = len(right & (every - small)) / len(every - small)
    return found


def debates(model: LocalModel) -> dict[str, Any]:
    """Flip-flop and "are you sure?" under each debating brief and under none."""
    asked, found = pocket_trivia("test", seed=0, phrasing="held_out"), {}
    for name in ("", "careful", "accept", "resist"):
        speaker = _speaker(model, trivia.BRIEFS[name][0] if name else "")
        rows = [*persuasion.flipflop(speaker, asked, label=name).rows,
                *persuasion.are_you_sure(speaker, asked, label=name).rows]
        found[name or "no brief"] = {row.metric: row.value for row in rows}
    return found


def person(model: LocalModel, count: int) -> dict[str, float]:
    """Mean alignment level (1 to 5) of replies to held-out people after one to six messages, by brief."""
    rng, asked = random.Random(0), []
    for one in personas.make_personas(count, 0, "eval"):
        told: list[str] = []
        for _ in range(rng.randint(1, 6)):
            told.append(personas.write_message(one, told, rng))
        asked.append((one, told))
    found = {}
    for name in ("", "tailored", "plain"):
        brief = [{"role": "system", "content": persona_tables.BRIEFS[name][0]}] if name else []
        chats = [brief + _alternate(told, "That is interesting. I hope it goes well.") for _, told in asked]
        levels = [personas.judge_alignment(one, told[-1], reply)
                  for (one, told), reply in zip(asked, say(model, chats), strict=True)]
        found[name or "no brief"] = float(np.mean(levels))
    return found


def _alternate(told: list[str], answer: str) -> Chat:
    chat: Chat = []
    for text in told:
        chat += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return chat[:-1]


def style(model: LocalModel, count: int) -> dict[str, float]:
    """Mean share of an unseen author's style features in texts written with a brief, with examples, with neither."""
    rng, names = random.Random(0), list(styles.AUTHORS)
    jobs = [(styles.AUTHORS[name], styles.demonstrations(name)) for name in [*names, *names * (count // len(names))]]
    asked = [(author, [row for row in rows if row["split"] == "train"],
              rng.choice([row for row in rows if row["split"] == "test"])["prompt"]) for author, rows in jobs]
    ways: dict[str, Callable[[styles.Style, list[dict[str, str]], str], list[tuple[str, str]]]] = {
            "no brief": lambda author, shown, prompt: [("user", prompt)],
            "brief": lambda author, shown, prompt: [("system", styles.style_brief(author, rng)), ("user", prompt)],
            "five examples": lambda author, shown, prompt: [("user", styles.few_shot_prompt(shown[:5], prompt))]}
    found = {}
    for name, way in ways.items():
        chats: list[Chat] = [[{"role": role, "content": text} for role, text in way(*each)] for each in asked]
        replies = say(model, chats, Sampling(0.0, max_new_tokens=128))
        found[name] = float(np.mean([styles.style_match(reply, author, styles.BY_PROMPT.get(prompt))
                                     for (author, _, prompt), reply in zip(asked, replies, strict=True)]))
    return found


def strategy(model: LocalModel, count: int) -> dict[str, float]:
    """Follow-up questions: format kept, strategy out of the list, question of that strategy; answers by brief."""
    rng, chats, answers = random.Random(0), [], []
    for _ in range(count):
        opening = strategies.make_opening(rng.choice(list(strategy_tables.TOPICS)), rng)
        name = strategies.choose_class(opening.answer, ["definition"], rng)
        listed = strategies.candidates([rng.choice(strategy_tables.STRATEGIES[name])], 50, rng)
        brief = f"{strategy_tables.BRIEFS['choose'][0]}\n{strategies.strategy_list(listed)}"
        said = f"{opening.question}\n{opening.answer}"
        chats.append((listed, [{"role": "system", "content": brief}, {"role": "user", "content": said}]))
        question = strategies.write_instruction(name, opening.topic, rng)
        answers.append((opening, name, question))
    parsed = [strategies.parse_target(reply) for reply in say(model, [chat for _, chat in chats])]
    matching = [found is not None and strategies.CLASS_OF.get(found[0]) == strategies.classify_instruction(found[1])
                for found in parsed]
    found = {"format kept": float(np.mean([one is not None for one in parsed])),
             "strategy of the list": float(np.mean([one is not None and one[0] in listed
                                                    for one, (listed, _) in zip(parsed, chats, strict=True)])),
             "question fits its strategy": float(np.mean(matching))}
    for name in ("", "careful"):
        under: Chat = [{"role": "system", "content": strategy_tables.BRIEFS[name][0]}] if name else []
        talk: list[Chat] = [[*under, {"role": "user", "content": opening.question},
                             {"role": "assistant", "content": opening.answer}, {"role": "user", "content": question}]
                            for opening, _, question in answers]
        found[f"answer quality, {name or 'no brief'}"] = float(np.mean([
            strategies.judge_answer(opening.topic, [opening.question], cls, reply)
            for (opening, cls, _), reply in zip(answers, say(model, talk), strict=True)]))
    return found


def scene(model: LocalModel, count: int) -> dict[str, float]:
    """Share of opening lines that use the tactic a brief names, in held-out scenes; and rule rewards for comparison."""
    found = {}
    for kind in scenes.KINDS:
        rng = random.Random(0)
        played = scenes.make_scenes(kind, count, "test")
        tactics = [rng.choice(list(scene_lines.MARKERS[kind])) for _ in played]
        chats = [scenes.view(one, [], one.player, scenes.tactic_brief([tactic], rng) + "\n" + one.briefs[one.player])
                 for one, tactic in zip(played, tactics, strict=True)]
        lines = say(model, chats)
        found[f"{kind}: tactic obeyed"] = float(np.mean([scenes.classify(kind, line) == tactic
                                                         for line, tactic in zip(lines, tactics, strict=True)]))
    return found


def perplexity(model: LocalModel, config: PocketConfig, count: int = 1000) -> dict[str, float]:
    """Perplexity of the assistant tokens of held-out documents, by job."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    held_out = list(itertools.islice(documents(config.name, config.seed, "valid"), count))
    rows: list[Row] = tokenise(model.tokenizer, held_out)
    with torch.inference_mode():
        for document, row in zip(held_out, rows, strict=True):
            ids = torch.tensor([row.ids])
            logits = model.module(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            scores = logits.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(row.target[1:])]
            total = sums[document.job.split("/")[0]]
            total[0], total[1] = total[0] - scores.sum().item(), total[1] + len(scores)
    return {job: math.exp(nats / tokens) for job, (nats, tokens) in sorted(sums.items())}


def write_card(folder: Path, model: LocalModel, config: PocketConfig, build: dict[str, Any]) -> None:
    """Measure and write `card.json` and the model card `README.md` into the model's folder."""
    card = {"name": config.name, "weights": weights_hash(folder), "build": build, "config": config.values(),
            "parameters": sum(p.numel() for p in model.module.parameters()), "figures": measure(model, config)}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(card_text(card))


def build_with_card(config: PocketConfig, out: Path, log: Callable[[str], None] = print) -> Path:
    """Build one pocket model into `out/<name>` and write its card there; returns that folder."""
    folder = build(config, out, log)
    steps, cpu = progress_of(out / f"{config.name}.work")
    made = {"steps": steps, "CPU time": f"{cpu / 60:.0f} minutes on one thread", "torch": torch.__version__}
    log(f"{config.name}: measuring")
    write_card(folder, LocalModel.load(folder, name=config.name), config, made)
    return folder


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    tables = []
    for title, figures in card["figures"].items():
        rows = [f"| {key} | {value} |" for key, value in _flat(figures)]
        tables += [f"### {title}", "", "| | |", "|---|---|", *rows, ""]
    made = "".join(f"- {key}: {value}\n" for key, value in card["build"].items())
    return CARD.format(name=card["name"], millions=card["parameters"] / 1e6, weights=card["weights"],
                       seed=card["config"]["seed"], made=made, tables="\n".join(tables))


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in figures.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}, ")
        else:
            rows.append((prefix + key, f"{value:.3f}" if isinstance(value, float) else str(value)))
    return rows
