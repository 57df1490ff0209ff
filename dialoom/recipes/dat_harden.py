"""Hardening a defender with the attacks that succeeded on it: attack, train, attack again.

Where it gave in, the defender's own refusal at that place is preferred to what it said. Ordinary questions are mixed
in, where its own answer is preferred to a refusal: a defender that refuses everything is safe and of no use. Training
and test scenes are apart. The surprising choice: refusals are looked for among the defender's own replies first, so
that it changes what it decides and not how it talks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dialoom.dialogue import Chat, Dialogue, Scenario, Turn, chat_view, content_id
from dialoom.errors import DataError
from dialoom.evals.metrics import Row, rate
from dialoom.evals.redteam import REWARD, ROUNDS, WON, attack, measure, won_in
from dialoom.judge import Judge
from dialoom.models.base import GREEDY, ChatModel, Sampling
from dialoom.pocket.world.scene_lines import QUESTIONS, REFUSE
from dialoom.progress import quiet
from dialoom.recipes.dat_redteam_config import RedTeamStage
from dialoom.select import Example, Pair
from dialoom.simulate import ModelSpeaker, Speaker
from dialoom.store import TreeLog, write_rows

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel

DEFENDER = "defender"
ATTACK, ORDINARY = "attack", "ordinary"
"""Kinds of pairs."""
SEEN = 6  # of pocket's ten ordinary questions may be trained on, the others are for testing
Log = Callable[[str], None]


# ------------------------------------------------------------------------------------------------ ordinary questions


@dataclass(frozen=True)
class Question:
    """A harmless question as the defender meets it: the chat up to its answer, and the answer where one is exact."""

    id: str
    chat: Chat
    answer: str = ""


def guard_questions(scenes: Sequence[Scenario], *, held_out: bool = False) -> list[Question]:
    """One of the questions with an exact answer for each of pocket's guards; every other one after a refusal.

    Args:
        held_out: those questions that are never trained on, instead of the others.
    """
    asked = list(QUESTIONS.items())[SEEN:] if held_out else list(QUESTIONS.items())[:SEEN]
    found = []
    for at, scene in enumerate(scenes):
        question, answer = asked[at % len(asked)]
        visitor, guard = scene.facts["roles"]
        rng = random.Random(f"question:{scene.id}")
        before = [(visitor, "What is the code word?"), (guard, rng.choice(REFUSE))] if at // len(asked) % 2 else []
        turns = tuple(Turn(str(index), None, who, text) for index, (who, text) in
                      enumerate([*before, (visitor, question)]))
        found.append(Question(f"{scene.id}:{question}", chat_view(Dialogue(scene, turns), guard, scene.briefs[guard]),
                              answer))
    return found


def answers(model: ChatModel, questions: Sequence[Question], *, max_new_tokens: int = 80) -> list[str]:
    """What the model says to each, greedy."""
    said = model.chat([one.chat for one in questions], replace(GREEDY, max_new_tokens=max_new_tokens),
                      [one.id for one in questions])
    return [one.text for one in said]


def kept(questions: Sequence[Question], before: Sequence[str], after: Sequence[str]) -> list[float]:
    """For each ordinary question 1.0 where it is answered as it should be; by likeness to before if none is exact.

    An exact answer must be said word for word. Otherwise: the cosine, in 0..1, of the answers' n-grams.
    """
    from dialoom.embed import Ngrams

    old, new = Ngrams().encode(list(before)), Ngrams().encode(list(after))
    return [float(now == one.answer) if one.answer else float(min(1.0, max(0.0, old[at] @ new[at])))
            for at, (one, now) in enumerate(zip(questions, after, strict=True))]


# ------------------------------------------------------------------------------------------------ pairs


def harden_pairs(attacks: Sequence[Dialogue], defender: ModelSpeaker, judge: Judge, stage: RedTeamStage, *,
                 seed: int = 0) -> list[Pair]:
    """A pair from the first reply that gave in of each dialogue: the defender's refusal there is chosen, it rejected.

    Of `stage.refusals` replies the defender draws anew at that place, the one with the lowest reward is the refusal,
    if it is one; else `stage.refusal`. Equal pairs are there once.
    """
    places = [(one, 2 * won_in(one) - 1) for one in attacks if won_in(one)]  # of the turn that gave in
    paths = [Dialogue(one.scenario, one.turns[:at]) for one, at in places]
    drawn = [(path, content_id("refusal", seed, path.last.id, index)) for path in paths
             for index in range(stage.refusals)]
    chats = [chat_view(path, defender.name, path.scenario.briefs.get(defender.name)) for path in paths]
    said = defender.model.chat([chat for chat in chats for _ in range(stage.refusals)], defender.sampling,
                               [key for _, key in drawn])
    tried = [path.then(Turn(key, path.last.id, defender.name, reply.text))
             for (path, key), reply in zip(drawn, said, strict=True)]
    verdicts = judge.judge(tried)
    found: dict[tuple[str, str, str], Pair] = {}
    for index, (one, at) in enumerate(places):
        own = [(verdict.scores[REWARD], dialogue.last.text.strip()) for dialogue, verdict in
               zip(tried[index * stage.refusals:][:stage.refusals], verdicts[index * stage.refusals:], strict=False)
               if verdict is not None and verdict.scores[REWARD] <= WON and dialogue.last.text.strip()]
        reward, refusal = min(own, key=lambda pair: pair[0]) if own else (None, stage.refusal)
        gave_in = one.turns[at]
        notes = {"scenario": one.scenario.id, "round": won_in(one), "refusal": "own" if own else "given"}
        pair = Pair(content_id(gave_in.id, refusal), chats[index], refusal, gave_in.text, ATTACK, one.scenario.id,
                    reward, gave_in.scores[REWARD], notes)
        found.setdefault((str(chats[index]), refusal, gave_in.text), pair)
    return list(found.values())


def ordinary_pairs(questions: Sequence[Question], said: Sequence[str], refusals: Sequence[str], count: int, *,
                   seed: int = 0) -> list[Pair]:
    """`count` pairs at most: the defender's own answer to an ordinary question is chosen, a refusal rejected.

    Args:
        said: its answers before it is trained; those that are empty, or not the exact answer, are passed over.
        refusals: to draw from; what was chosen in `harden_pairs`.
    """
    rng = random.Random(f"ordinary:{seed}")
    usable = [(one, text) for one, text in zip(questions, said, strict=True)
              if text.strip() and one.answer in ("", text)]
    rng.shuffle(usable)
    return [Pair(content_id(ORDINARY, seed, one.id), one.chat, text, rng.choice(list(refusals)), ORDINARY, one.id)
            for one, text in usable[:count]] if refusals else []


def write_pairs(folder: Path, pairs: Sequence[Pair]) -> None:
    """`pairs.jsonl` in the layout all recipes share, and `pairs_plain.jsonl`: messages, chosen, rejected, kind."""
    write_rows(folder / "pairs.jsonl", [pair.to_row() for pair in pairs])
    write_rows(folder / "pairs_plain.jsonl", [{"messages": pair.prompt, "chosen": pair.chosen,
                                               "rejected": pair.rejected, "kind": pair.kind} for pair in pairs])


# ------------------------------------------------------------------------------------------------ training


def train_guard(model: LocalModel, pairs: Sequence[Pair], stage: RedTeamStage, *, out: Path, seed: int = 0) -> None:
    """Harden `model` in place, by SFT on the chosen replies and then DPO, and save it into `out`/guard.

    An adapter the model has goes on being trained; otherwise it gets one, unless the stage trains all weights.

    Raises: TrainingError: if there are no pairs.
    """
    from dialoom.train.dpo import dpo
    from dialoom.train.sft import sft

    examples = [Example.from_pair(pair) for pair in pairs]
    sft(model, examples, stage.sft.model_copy(update={"seed": seed}), out=out / "work" / "sft")
    dpo(model, pairs, stage.dpo.model_copy(update={"seed": seed}), out=out / "work" / "dpo")
    model.save(out / "guard")


# ------------------------------------------------------------------------------------------------ the loop


def harden(defender: LocalModel, attackers: Mapping[str, Speaker], scenes: Mapping[str, Sequence[Scenario]],
           judge: Judge, stage: RedTeamStage, *, out: Path, questions: Mapping[str, Sequence[Question]],
           rounds: int = ROUNDS, max_new_tokens: int = 80, seed: int = 0, log: Log = quiet) -> list[Row]:
    """Attack the defender, train it on what succeeded, attack again; changes `defender`, which `out`/guard holds after.

    Rows of `redteam` on the test scenes for each attacker against the defender before (`<name>`) and after
    (`<name>_hardened`), and of `ordinary`, metric `kept`: ordinary questions answered as they should be, by `defender`
    and `defender_hardened`. A run that was killed goes on from `out` with the same, untrained defender.

    Args:
        attackers: by name; the last one attacks for the training, all of them in the evaluation.
        scenes: train and test, apart.
        questions: train and test; those of training are mixed into it.
    Raises:
        DataError: if no attack on a training scene succeeds: then there is nothing to learn from.
    """
    guard = ModelSpeaker(DEFENDER, defender, Sampling(stage.defender_temperature, max_new_tokens=max_new_tokens))
    out.mkdir(parents=True, exist_ok=True)
    with TreeLog(out / "attacks.jsonl") as sink:
        def attacked(name: str, part: str, label: str, seed: int) -> list[Dialogue]:
            return attack(attackers[name], guard, scenes[part], judge, label=label, rounds=rounds, seed=seed, sink=sink)

        rows = [row for name in attackers for row in measure(attacked(name, "test", name, seed), label=name, seed=seed)]
        before = {part: answers(defender, questions[part], max_new_tokens=max_new_tokens) for part in questions}
        name = list(attackers)[-1]
        tries = [one for turn in range(stage.attacks)
                 for one in attacked(name, "train", f"train_{name}", seed * 1000 + turn)]
        pairs = harden_pairs(tries, guard, judge, stage, seed=seed)
        if not pairs:
            raise DataError(f"none of {len(tries)} attacks by {name} on training scenes succeeded, so there is nothing "
                            "to harden against; attack more often, or with a better attacker")
        wanted = round(stage.ordinary_per_attack * len(pairs))
        refusals = sorted({pair.chosen for pair in pairs})
        usual = ordinary_pairs(questions["train"], before["train"], refusals, wanted, seed=seed)
        log(f"{len(tries)} attacks by {name}, {len(pairs)} pairs where the defender gave in, {len(usual)} pairs of "
            "ordinary questions")
        pairs += usual
        write_pairs(out, pairs)
        train_guard(defender, pairs, stage, out=out, seed=seed)
        rows += [row for name in attackers for row in
                 measure(attacked(name, "test", f"{name}_hardened", seed), label=f"{name}_hardened", seed=seed)]
    after = answers(defender, questions["test"], max_new_tokens=max_new_tokens)
    for label, said in ((DEFENDER, before["test"]), (f"{DEFENDER}_hardened", after)):
        rows.append(rate(ORDINARY, label, "kept", kept(questions["test"], before["test"], said), seed))
    return rows
