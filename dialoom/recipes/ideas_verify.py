"""IDEAS' check of an instruction before anybody answers it: a rubric of three flags, by a rule or by a model.

A verifier is a judge of a dialogue whose last turn is the instruction. It notes three flags: `correct` (agrees with the
rest), `new` (not answered or asked already) and `coherent` (follows from what was said). No verdict means that a
model could not be read, twice. The three questions are the paper's (arXiv 2404.11095), wording and thresholds ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dialoom.dialogue import Chat, Dialogue, content_id
from dialoom.evals.alignment_roles import ASSISTANT, USER
from dialoom.judge import Judge, RuleJudge, Verdict, ask_until_read
from dialoom.models.base import ChatModel, Sampling
from dialoom.pocket.world.strategies import classify_instruction, find_topic, fits
from dialoom.text import edit_ratio, overlap

NAME = "verifier"
FLAGS = ("correct", "new", "coherent")
WHY = {"correct": "not correct", "new": "asked already", "coherent": "not coherent"}
"""What an instruction is rejected for if a flag is not set; the first one that is not counts."""
NOTE = "flags"
VERIFYING = Sampling(0.0, max_new_tokens=60)
ASKED_AGAIN = 0.8  # F1 of shared words with an earlier instruction, from which the rule takes it for the same one
COPIED = 0.8  # edit ratio with an answer, from which the rule takes an instruction for a copy of it
BRIEF_MESSAGE = 8  # words: so short a message is understood as a remark on what was said
TELLING = 4  # letters of a word that counts as shared
VERIFY = ("This is a conversation, and then a message that its user may send next.\n\n{conversation}\n\n"
          "Next message: {message}\n\nThree questions about the next message.\n"
          "correct: does it go together with the answers and with the user's earlier messages, without contradicting "
          "them?\n"
          "new: does it want something that no answer has given yet?\n"
          "coherent: does it follow from the conversation, by asking for, doubting or confirming something in an "
          "answer, by taking up a thing mentioned there, by carrying an earlier message further, or by wanting "
          "something closely related?\n"
          'Reply with JSON and nothing else: {{"correct": true or false, "new": true or false, '
           '"coherent": true or false}}')
ONLY = "\n\nWrite the JSON object only."


def rejection(verdict: Verdict | None) -> str:
    """Why a verdict rejects an instruction; "" if it does not."""
    if verdict is None:
        return "verifier not readable"
    return next((WHY[flag] for flag in FLAGS if not verdict.notes[NOTE][flag]), "")


def flagged(correct: bool, new: bool, coherent: bool) -> Verdict:
    """The verdict that these flags are."""
    return Verdict(notes={NOTE: dict(zip(FLAGS, (correct, new, coherent), strict=True))})


def _before(dialogue: Dialogue) -> tuple[list[str], list[str]]:
    """What the user asked before the last turn, the opening first, and what was answered."""
    earlier = Dialogue(dialogue.scenario, dialogue.turns[:-1])
    return ([dialogue.scenario.opening, *(turn.text for turn in earlier.by(USER))],
            [turn.text for turn in earlier.by(ASSISTANT)])


def exact_flags(dialogue: Dialogue) -> Verdict:
    """The flags in pocket's world: the dialogue's topic, a kind of question not asked yet, one that fits the answer.

    A plain wish to hear more fits every answer and is never answered already.
    """
    asked, answers = _before(dialogue)
    kind, named = classify_instruction(dialogue.last.text), find_topic(dialogue.last.text)
    if kind == "more":
        return flagged(named in (None, find_topic(asked[0])), True, True)
    earlier = {"definition", *(classify_instruction(text) for text in asked)}
    return flagged(named in (None, find_topic(asked[0])), kind is None or kind not in earlier,
                    kind is not None and fits(kind, answers[-1] if answers else ""))


def general_flags(dialogue: Dialogue) -> Verdict:
    """The flags of any text, by the words it shares. A rule sees no contradiction: name a model for that.

    Not correct is the copy of an answer, not new what nearly repeats an earlier instruction, not coherent a longer
    message that shares no longer word with anything said before.
    """
    asked, answers = _before(dialogue)
    text = dialogue.last.text
    said = _words(" ".join([*asked, *answers]))
    return flagged(all(edit_ratio(text, answer) <= COPIED for answer in answers),
                    all(overlap(text, other) <= ASKED_AGAIN for other in asked),
                    len(text.split()) <= BRIEF_MESSAGE or bool(_words(text) & said))


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.casefold()) if len(word) >= TELLING}


RULES: Mapping[str, Callable[[Dialogue], Verdict]] = {"exact": exact_flags, "rule": general_flags}
"""The verifiers without a model: of pocket's world, and of any text."""


@dataclass(frozen=True)
class ModelVerifier:
    """A model asked the three questions; an answer that cannot be read is asked for again, then it is no verdict."""

    model: ChatModel
    sampling: Sampling = VERIFYING
    name: str = NAME

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        ids = [content_id(NAME, dialogue.last.id) for dialogue in dialogues]
        return ask_until_read(self.model, [_question(dialogue) for dialogue in dialogues], ids, read_flags,
                              sampling=self.sampling, reminder=ONLY)


def _question(dialogue: Dialogue) -> Chat:
    lines = [f"User: {dialogue.scenario.opening}"]
    lines += [f"{'User' if turn.speaker == USER else 'Assistant'}: {turn.text}" for turn in dialogue.turns[:-1]]
    return [{"role": "user", "content": VERIFY.format(conversation="\n".join(lines), message=dialogue.last.text)}]


def read_flags(text: str) -> Verdict | None:
    """Three flags out of JSON or of lines such as `new: yes`; None if one is missing or said both ways."""
    flags = []
    for flag in FLAGS:
        said = {word.lower() in ("true", "yes") for word in
                re.findall(rf"\b{flag}\b[\"'*\s]*[:=][\"'*\s]*(true|false|yes|no)\b", text, re.IGNORECASE)}
        if len(said) != 1:
            return None
        flags.append(said.pop())
    return flagged(*flags)


def make_verifier(spec: str, model: ChatModel | None = None) -> Judge:
    """The verifier of a name: `exact`, `rule`, or anything else with the model of that name."""
    if spec in RULES:
        return RuleJudge(NAME, RULES[spec])
    assert model is not None, "a verifier that is no rule comes with its model"
    return ModelVerifier(model)
